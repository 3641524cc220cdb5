"""Lets a config inherit from those that this package ships.

    _base_ = 'mm_acon::retinanet_r50_metaacon.py'

mmengine itself finds only the configs of the packages that it lists, wants a
folder in front of the name, and looks for a development install in the wrong
place.
"""
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Optional, Tuple

from mmengine.config import Config
from mmengine.config.utils import MODULE2PACKAGE

SCOPE = 'mm_acon::'
FOLDER = Path(__file__).parents[1] / '.mim' / 'configs'


def package_config(name: str) -> str:
    """The path of ``mm_acon::NAME.py``.

    Raises:
        FileNotFoundError: there is no such config.
    """
    path = FOLDER / name.removeprefix(SCOPE)
    if not FOLDER.is_dir():
        raise FileNotFoundError(
            f'{name!r} is looked for in {FOLDER}, which is made when the '
            'package is installed: pip install --no-build-isolation -e . in '
            'the folder of its setup.py.')
    if not path.is_file():
        raise FileNotFoundError(
            f'There is no config {name!r}. Expected mm_acon:: and a file of '
            f'{FOLDER}, such as mm_acon::retinanet_r50_metaacon.py.')
    return str(path)


def allow_package_configs() -> None:
    """Makes mmengine find ``_base_ = 'mm_acon::...'``.

    Such a base gets no scope, as one of the user's own files: its types are
    those of the library that it inherits from in turn.
    """
    find = Config._get_cfg_path

    def find_here_too(cfg_path: str,
                      filename: str) -> Tuple[str, Optional[str]]:
        if cfg_path.startswith(SCOPE):
            return package_config(cfg_path), None
        return find(cfg_path, filename)

    Config._get_cfg_path = staticmethod(find_here_too)
    _know_distributions_of_other_names()


def _know_distributions_of_other_names() -> None:
    """Lets ``mmseg::`` be found where it is not of mmsegmentation.

    The maintained fork's is of onedl-mmsegmentation, and its mmengine would
    install mmsegmentation over it.
    """
    for module, distribution in MODULE2PACKAGE.items():
        try:
            version(distribution)
        except PackageNotFoundError:
            if find_spec(module):
                MODULE2PACKAGE[module] = module
