"""The pages for whoever changes the package do what they say."""
import os
import re
import shlex
import shutil
import subprocess
import sys

import pytest

from tests.conftest import BUILT
from tests.helpers.pages import ROOT, read_blocks, write

OPERATOR = 'docs/adding_an_operator.md'
ACTIVATION = 'docs/adding_an_activation.md'
needs_compiler = pytest.mark.skipif(
    'cpu' not in BUILT, reason='_ext is not built')


@pytest.fixture
def copy(tmp_path):
    """The repository without its history and results."""
    for name in ('mm_acon', 'configs', 'docs', 'tests', 'tools'):
        shutil.copytree(
            ROOT / name,
            tmp_path / name,
            ignore=shutil.ignore_patterns('__pycache__', '.mim'))
    for name in ('pyproject.toml', 'setup.py', 'model-index.yml', 'README.md'):
        shutil.copy(ROOT / name, tmp_path)
    return tmp_path


def call(folder, *command):
    done = subprocess.run([sys.executable, *map(str, command)],
                          cwd=folder,
                          env=dict(os.environ, PYTHONPATH=str(folder)),
                          stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT,
                          text=True)
    assert done.returncode == 0, done.stdout[-5000:]
    return done.stdout


def followed(page, folder):
    """Writes what the page shows; the words of its commands."""
    blocks = list(read_blocks(ROOT / page))
    for block in blocks:
        if block.path:
            write(block, folder)
    return [
        shlex.split(line) for block in blocks if block.language == 'bash'
        for line in block.text.splitlines()
    ]


def passed(log):
    assert ' failed' not in log
    # What torch itself lacks, says tests.utils.
    assert all('torch before' in line for line in log.splitlines()
               if line.startswith('SKIPPED'))
    return int(re.search(r'(\d+) passed', log)[1])


@pytest.mark.full
def test_adding_an_activation(copy):
    ((_, *command), ) = followed(ACTIVATION, copy)
    assert passed(call(copy, *command)) > 30
    call(
        copy, '-c', 'import mm_acon; from mmengine.registry import MODELS; '
        "MODELS.build(dict(type='LearnableELU'))")


def test_adding_an_operator(copy):
    """The page's Python: without compiled operators the reference runs."""
    *_, (_, *command) = followed(OPERATOR, copy)
    for library in (copy / 'mm_acon').glob('_ext*'):
        library.unlink()
    log = call(copy, *command)
    assert ' failed' not in log and '_ext is not built' in log
    assert int(re.search(r'(\d+) passed', log)[1]) > 30


@pytest.mark.full
@needs_compiler
def test_adding_an_operator_with_the_build(copy):
    (_, *install), (_, *command) = followed(OPERATOR, copy)
    assert install == ['install', '--no-build-isolation', '-e', '.']
    # What pip does, but for the link in this environment.
    call(copy, 'setup.py', 'build_ext', '--inplace')
    assert passed(call(copy, *command)) > 30
