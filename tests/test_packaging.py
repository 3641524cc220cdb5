"""What an installed package brings, and where it can be installed."""
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
from argparse import ArgumentParser
from importlib.metadata import Distribution
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml
from mmengine.config import Config
from mmengine.config.utils import _get_cfg_metainfo

import mm_acon
from mm_acon import adapt
from mm_acon.cli import add_config_options, prepare_config
from tests.helpers.cache import CACHE

for library in ('mmdet', 'mmseg', 'mmpretrain'):
    pytest.importorskip(library)

# As the tools.
adapt.adapt_mmengine()

ROOT = Path(__file__).parents[1]
CONFIGS = {path.stem: path for path in (ROOT / 'configs').glob('*.py')}
# What a checkout has, of which the tests need the package alone.
SOURCES = ('configs', 'mm_acon', 'tools', 'CHANGELOG.md', 'CITATION.cff',
           'LICENSE', 'MANIFEST.in', 'README.md', 'model-index.yml',
           'pyproject.toml', 'setup.py')
# One of each library, one whose name has a dot, and a file of _base_.
READ = ('retinanet_r50_metaacon.py', 'pspnet_r50_pwlu.py', 'tfnet_0.5.py',
        '_base_/scratch_270k.py')


def call(folder, *arguments, **environment):
    done = subprocess.run([sys.executable, *map(str, arguments)],
                          cwd=folder,
                          capture_output=True,
                          text=True,
                          env=dict(
                              os.environ, OMP_NUM_THREADS='1', **environment))
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def files(*folders):
    """What there is, by the path below the folder's parent."""
    return {
        path.relative_to(folder.parent)
        for folder in folders
        for path in [folder, *folder.rglob('*')]
        if path.is_file() and path.suffix != '.pyc'
    }


@pytest.fixture(scope='module')
def sdist(tmp_path_factory):
    folder = tmp_path_factory.mktemp('sdist')
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(
                ROOT / name,
                folder / name,
                ignore=shutil.ignore_patterns('__pycache__', '*.so', '.mim'))
        else:
            shutil.copy(ROOT / name, folder)
    call(
        folder,
        '-c',
        "from setuptools import build_meta; build_meta.build_sdist('dist')",
        MM_ACON_WITH_OPS='0')
    path, = (folder / 'dist').iterdir()
    return path


def test_build_without_a_compiler(sdist, tmp_path):
    shutil.unpack_archive(sdist, tmp_path)
    folder, = tmp_path.iterdir()
    with pytest.raises(
            AssertionError,
            match=re.escape(
                "there is no compiler 'no-such-compiler -O2': install g++, "
                'name yours with CXX=..., or set MM_ACON_WITH_OPS=0 to build '
                'without, which is several times slower.')):
        call(folder, 'setup.py', 'build_ext', CXX='no-such-compiler -O2')


def test_build_with_an_old_setuptools(sdist, tmp_path):
    """It would take no notice of pyproject.toml."""
    shutil.unpack_archive(sdist, tmp_path)
    folder, = tmp_path.iterdir()
    (folder / 'setuptools.py').write_text("__version__ = '60.2.0'")
    with pytest.raises(
            AssertionError,
            match=
        ('mm_acon needs setuptools 61 or newer, and .* has 60.2.0: python '
         "-m pip install --upgrade 'setuptools>=61,<82'")):
        call(folder, 'setup.py', '--version')


def empty_environment(sdist, folder, **options):
    """A virtual environment with the sdist's wheel, and its interpreter.

    It sees the packages of this environment, so that torch need not be
    downloaded, but nothing that was installed here for development.
    """
    call(folder, *('-m', 'pip', 'wheel', '--quiet', '--no-index'),
         *('--no-deps', '--no-build-isolation', '--wheel-dir', folder, sdist),
         **options)
    wheel, = folder.glob('*.whl')
    call(folder, '-m', 'venv', '--without-pip', 'venv')
    python = folder / 'venv/bin/python'
    call(folder, *('-m', 'pip', '--python', python, 'install', '--quiet'),
         *('--no-index', '--no-deps', '--no-compile', wheel))
    site, = folder.glob('venv/lib/*/site-packages')
    here = sysconfig.get_paths()['purelib']
    lines = [here]
    # What setup_env.sh has put beside the wrong kind of torchvision.
    if find_spec('torchvision_cpu_schemas'):
        lines.append('import torchvision_cpu_schemas')
    (site / 'here.pth').write_text('\n'.join(lines))
    return python


@pytest.fixture(scope='module')
def environment(sdist, tmp_path_factory):
    return empty_environment(
        sdist, tmp_path_factory.mktemp('empty'), MM_ACON_WITH_OPS='0')


@pytest.fixture(scope='module')
def installed(environment):
    """A folder with the package as a wheel of the sdist installs it."""
    site, = environment.parents[1].glob('lib/*/site-packages')
    return site


def test_sdist_has_all_that_a_build_needs(sdist):
    with tarfile.open(sdist) as archive:
        names = {Path(*Path(name).parts[1:]) for name in archive.getnames()}
    csrc = ROOT / 'mm_acon/ops/csrc'
    assert {
        path.relative_to(ROOT)
        for path in csrc.rglob('*.*') if path.is_file()
    } <= names
    assert {Path('setup.py'), Path('MANIFEST.in')} <= names
    assert not any('.mim' in name.parts for name in names)


def test_wheel_has_configs_and_tools(installed):
    mim = installed / 'mm_acon/.mim'
    shipped = (ROOT / name for name in ('configs', 'tools', 'model-index.yml'))
    assert files(*mim.iterdir()) == {
        path
        for path in files(*shipped) if path.parts[:2] != ('tools', 'dev')
    }
    assert not any(path.is_symlink() for path in [mim, *mim.rglob('*')])
    demo = 'mm_acon/demo/configs'
    assert files(installed / demo) == files(ROOT / demo)


# The README's first config, built, with an image through its backbone.
BUILD = '''
import sys
import warnings
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
import mm_acon
from mm_acon.ops.extension import DEVICES
cfg = Config.fromfile('my_config.py')
init_default_scope(cfg.default_scope)
model = MODELS.build(cfg.model)
model.backbone(torch.rand(1, 3, 64, 64))[-1].sum().backward()
count = sum(isinstance(m, mm_acon.MetaACON) for m in model.modules())
print(mm_acon.__file__, count, *sorted(DEVICES))
'''


def build_config_of_readme(python, folder):
    config, = re.findall(r'```python\n(# my_config.py.*?)```',
                         (ROOT / 'README.md').read_text(), re.DOTALL)
    (folder / 'my_config.py').write_text(config)
    done = subprocess.run([python, '-c', BUILD],
                          cwd=folder,
                          capture_output=True,
                          text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    file, count, *devices = done.stdout.splitlines()[-1].split()
    assert python.parents[1] in Path(file).parents
    # The stem and stage 1, which has three of the 16, are frozen.
    assert count == '13'
    return devices, done.stderr


def test_without_a_compiler(environment, tmp_path):
    devices, warnings = build_config_of_readme(environment, tmp_path)
    assert not devices
    assert 'no compiled operators for cpu' in warnings


@pytest.mark.full
def test_with_a_compiler(sdist, tmp_path):
    python = empty_environment(sdist, tmp_path, MM_ACON_WITH_OPS='1')
    devices, warnings = build_config_of_readme(python, tmp_path)
    assert 'cpu' in devices
    assert 'no compiled operators' not in warnings


def test_without_mmengine(environment, tmp_path):
    here = sysconfig.get_paths()['purelib']
    done = subprocess.run(
        [environment, '-c', f'import sys; sys.path.remove({here!r}); '
         'import mm_acon'],
        cwd=tmp_path, capture_output=True, text=True)  # yapf: disable
    assert re.search(
        'ImportError: mm_acon needs mmengine, and there is none.* pip install '
        'mmengine, .* or pip install onedl-mmengine', done.stderr)


def test_metadata(installed):
    folder, = installed.glob('mm_acon-*.dist-info')
    found = Distribution.at(folder).metadata
    assert found['License'] == 'Apache-2.0'
    license, = folder.rglob('LICENSE')
    assert license.read_text() == (ROOT / 'LICENSE').read_text()
    assert found['Requires-Python'] == '>=3.8'
    # mmengine is in the extras alone, where it has one of two names.
    # setuptools has written blanks and quotes in several ways.
    needed = {
        re.sub('[ "\']', '', line)
        for line in found.get_all('Requires-Dist')
    }
    assert {line
            for line in needed
            if 'extra==' not in line} == {'torch>=2.0', 'numpy'}
    for extra, prefix in (('openmmlab', ''), ('onedl', 'onedl-')):
        assert f'{prefix}mmengine;extra=={extra}' in needed
    assert (installed / 'mm_acon/py.typed').is_file()


def test_one_version():
    changes = (ROOT / 'CHANGELOG.md').read_text()
    assert re.search(r'^## (.+)$', changes,
                     re.MULTILINE).group(1) == mm_acon.__version__
    citation = yaml.safe_load((ROOT / 'CITATION.cff').read_text())
    assert citation['version'] == mm_acon.__version__
    assert [paper['url'] for paper in citation['references']] == [
        'https://arxiv.org/abs/2009.04759', 'https://arxiv.org/abs/2104.03693'
    ]


def test_types_of_the_public_api():
    """As a user's program sees them; see tests/typed_usage.py."""
    pytest.importorskip('mypy')
    done = subprocess.run(
        [sys.executable, '-m', 'mypy', '--cache-dir',
         str(CACHE / 'mypy')],
        cwd=ROOT,
        capture_output=True,
        text=True)
    assert done.returncode == 0, done.stdout


COMPARE = '''
import sys
import mm_acon
from mmengine.config import Config
mm_acon.adapt_mmengine()
root, *names = sys.argv[1:]
for name in names:
    installed = Config.fromstring(f"_base_ = 'mm_acon::{name}'", '.py')
    there = Config.fromfile(f'{root}/configs/{name}')
    assert installed.to_dict() == there.to_dict(), name
print(mm_acon.__file__)
'''


def test_wheel_reads_its_configs(installed, tmp_path):
    """Without the repository on the path."""
    out = call(tmp_path, '-c', COMPARE, ROOT, *READ, PYTHONPATH=str(installed))
    assert out.splitlines()[-1] == str(installed / 'mm_acon/__init__.py')


@pytest.mark.parametrize('name', READ)
def test_checkout_reads_its_configs(name):
    """As one of the user's own files, without a scope."""
    cfg = Config.fromstring(f"_base_ = 'mm_acon::{name}'", '.py')
    assert cfg.to_dict() == Config.fromfile(ROOT / 'configs' / name).to_dict()


@pytest.mark.parametrize(
    'install', [pytest.param('development', marks=pytest.mark.full), 'wheel'])
def test_two_lines_train_in_an_empty_folder(install, installed, tmp_path):
    (tmp_path / 'my.py').write_text(
        "_base_ = 'mm_acon::retinanet_r50_metaacon.py'\n"
        'train_dataloader = dict(batch_size=4)\n')
    tools, environment = ROOT / 'tools', {}
    if install == 'wheel':
        tools = installed / 'mm_acon/.mim/tools'
        environment = dict(PYTHONPATH=str(installed))
    call(tmp_path, tools / 'train.py', 'my.py', '--demo', '--cfg-options',
         'train_cfg.max_epochs=1', 'train_dataloader.dataset.indices=4',
         'train_dataloader.batch_size=2', 'val_dataloader.dataset.indices=2',
         **environment)
    work_dir = tmp_path / 'work_dirs/my-demo'
    assert (work_dir / 'epoch_1.pth').is_file()
    log, = work_dir.glob('*/*.log')
    assert '16 of 49 activation sites replaced' in log.read_text()


def test_tools_take_the_name_of_a_config():
    parser = ArgumentParser()
    add_config_options(parser)
    cfg = prepare_config(parser.parse_args(['mm_acon::tfnet_0.5.py']))
    assert cfg.model.backbone.type == 'TFNet'
    assert cfg.work_dir == 'work_dirs/tfnet_0.5'


def test_name_that_is_no_config():
    with pytest.raises(
            FileNotFoundError,
            match="no config 'mm_acon::nothing.py'. Expected mm_acon:: and a "
            'file of .*configs, such as mm_acon::retinanet_r50_metaacon.py'):
        Config.fromstring("_base_ = 'mm_acon::nothing.py'", '.py')


def test_package_that_was_not_installed(monkeypatch, tmp_path):
    monkeypatch.setattr(adapt, 'FOLDER', tmp_path / 'configs')
    with pytest.raises(
            FileNotFoundError,
            match="'mm_acon::tfnet_0.5.py' is looked for in .*, which is made "
            'when the package is installed: pip install'):
        Config.fromstring("_base_ = 'mm_acon::tfnet_0.5.py'", '.py')


@pytest.fixture(scope='module')
def index():
    """model-index.yml, as mim reads it."""
    load = pytest.importorskip('modelindex.load_model_index').load
    return load(str(Path(mm_acon.__file__).parent / '.mim/model-index.yml'))


def test_index_lists_every_config_once(index):
    assert sorted(model.name for model in index.models) == sorted(CONFIGS)
    for model in index.models:
        assert model.config == f'configs/{model.name}.py'
    # mim leaves out what is wrong and goes on.
    problems = [index.check_errors, index.models.check_errors]
    problems += [model.check_errors for model in index.models]
    assert not any(problems)


def test_index_has_no_results(index):
    """Nothing of it was run."""
    assert not any(model.results or model.weights for model in index.models)


DATA = dict(
    ImageNet='ImageNet-1k', CocoDataset='COCO', CityscapesDataset='Cityscapes')


@pytest.mark.parametrize('name', CONFIGS)
def test_index_says_what_the_config_does(name, index):
    cfg = Config.fromfile(CONFIGS[name])
    model, = (model for model in index.models if model.name == name)
    length = 'max_iters' if 'max_iters' in cfg.train_cfg else 'max_epochs'
    assert model.metadata.data == {
        'Training Data':
        DATA[cfg.train_dataloader.dataset.type],
        'Batch Size':
        cfg.auto_scale_lr.base_batch_size,
        dict(max_iters='Iterations', max_epochs='Epochs')[length]:
        cfg.train_cfg[length],
    }
    collection = name.rpartition('_')[2]
    if name.startswith('tfnet'):
        collection = 'tfnet'
    assert model.in_collection.lower() == collection


def test_mmengine_reads_the_index(installed):
    found = _get_cfg_metainfo(str(installed / 'mm_acon'), 'tfnet_0.5.py')
    assert found['Name'] == 'tfnet_0.5'
