"""What is changed of mmengine, and only by whoever asks for it.

Importing mm_acon changes nothing of it. The command line tools call
:func:`adapt_mmengine`, and so may a program of your own.
"""
import functools
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Optional, Tuple

import mmengine.runner.checkpoint
from mmengine.config import Config
from mmengine.config.utils import MODULE2PACKAGE
from mmengine.model import PretrainedInit
from mmengine.registry import WEIGHT_INITIALIZERS
from mmengine.runner import CheckpointLoader
from torch import nn

from .checkpoints import guarded

SCOPE = 'mm_acon::'
FOLDER = Path(__file__).parent / '.mim' / 'configs'


@functools.lru_cache(maxsize=None)
def adapt_mmengine() -> None:
    """Changes mmengine for this process; a second call does nothing.

    - Every way of mmengine to load a checkpoint refuses what could run code,
      whatever torch's default and environment variables say, and its errors
      name the file (:func:`mm_acon.checkpoints.guarded`). Until mmengine
      passes ``weights_only=True`` to torch.load.
    - ``init_cfg=dict(type='Pretrained')`` names the file when it has no key
      with the prefix. Until mmengine's own message does.
    - ``_base_ = 'mm_acon::...'`` is found. mmengine itself finds only the
      configs of the packages that it lists, wants a folder in front of the
      name, and looks for a development install in the wrong place.
    - ``mmseg::`` is found where it is not of mmsegmentation: the maintained
      fork's is of onedl-mmsegmentation, and its mmengine would install
      mmsegmentation over it.
    """
    for prefix, loader in list(CheckpointLoader._schemes.items()):
        CheckpointLoader.register_scheme(prefix, guarded(loader), force=True)
    # The maintained fork's mmengine allows getattr itself while it loads, and
    # takes back afterwards what is allowed here.
    if hasattr(mmengine.runner.checkpoint, 'get_torch_safe_globals'):
        mmengine.runner.checkpoint.get_torch_safe_globals = list
    WEIGHT_INITIALIZERS.register_module(
        name='Pretrained', module=Pretrained, force=True)
    Config._get_cfg_path = staticmethod(
        functools.partial(_config_path, Config._get_cfg_path))
    for module, distribution in MODULE2PACKAGE.items():
        try:
            version(distribution)
        except PackageNotFoundError:
            if find_spec(module):
                MODULE2PACKAGE[module] = module


class Pretrained(PretrainedInit):
    """mmengine's, whose error about a prefix names the file."""

    def __call__(self, module: nn.Module) -> None:
        try:
            super().__call__(module)
        except AssertionError as error:
            raise ValueError(
                f'{self.checkpoint} has no key that begins with '
                f'{self.prefix!r}, the prefix in init_cfg.') from error


def package_config(name: str) -> str:
    """The path of ``mm_acon::NAME.py``.

    Raises:
        FileNotFoundError: there is no such config.
    """
    path = FOLDER / name.partition('::')[2]
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


def _config_path(find, cfg_path: str,
                 filename: str) -> Tuple[str, Optional[str]]:
    """mmengine's, which finds this package's configs too.

    Such a base gets no scope, as one of the user's own files: its types are
    those of the library that it inherits from in turn.
    """
    if cfg_path.startswith(SCOPE):
        return package_config(cfg_path), None
    return find(cfg_path, filename)
