"""tools/setup_env.sh: which set of packages it takes, with interpreters that
only tell a version and make no environment."""
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# Nothing else is on PATH: no interpreter of the machine.
PROGRAMS = ('awk', 'bash', 'df', 'dirname', 'g++', 'sed')
INTERPRETER = '''#!/bin/sh
case "$*" in
  *version_info*) echo {short};;
  --version) echo Python {short}.9;;
  -m*) echo "made by $0: $*"; exit 1;;
esac
'''
# What pyenv has on PATH for a version that is not chosen.
STAND_IN = '#!/bin/sh\necho "pyenv: $0: command not found" >&2\nexit 127\n'


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)


@pytest.fixture
def setup(tmp_path):
    """Runs a copy of the script; in a folder, as it makes its environment."""
    shutil.copytree(
        ROOT / 'tools',
        tmp_path / 'tools',
        ignore=shutil.ignore_patterns('__pycache__'))
    (tmp_path / 'bin').mkdir()
    for name in PROGRAMS:
        found = shutil.which(name)
        if found is None:
            pytest.skip(f'{name} is not on PATH')
        (tmp_path / 'bin' / name).symlink_to(found)

    def run(*arguments, path='', pyenv='', stand_ins='', PYTHON=None):
        for name in path.split():
            short = '3.11' if name == 'python3' else name[len('python'):]
            write(tmp_path / 'bin' / name, INTERPRETER.format(short=short))
        for name in stand_ins.split():
            write(tmp_path / 'bin' / name, STAND_IN)
        for version in pyenv.split():
            write(tmp_path / f'pyenv/versions/{version}.4/bin/python',
                  INTERPRETER.format(short=version))
        environment = dict(
            PATH=str(tmp_path / 'bin'), PYENV_ROOT=str(tmp_path / 'pyenv'))
        if PYTHON:
            environment['PYTHON'] = PYTHON.format(tmp_path)
        done = subprocess.run(['bash', 'tools/setup_env.sh', *arguments],
                              cwd=tmp_path,
                              capture_output=True,
                              text=True,
                              env=environment)
        # Making the environment failed, or there was none to make.
        assert done.returncode in (1, 2)
        return (done.stdout + done.stderr).replace(f'{tmp_path}/', '')

    run.folder = tmp_path
    return run


@pytest.mark.parametrize('stack, given, options, interpreter, folder', (
    ('openmmlab', [], dict(path='python3'), 'python3', '.venv'),
    ('openmmlab', [], dict(PYTHON='python3.12', path='python3 python3.12'),
     'python3.12', '.venv'),
    ('openmmlab', [], dict(PYTHON='python3.13', path='python3',
                           pyenv='3.12 3.13'),
     'pyenv/versions/3.13.4/bin/python', '.venv'),
    ('classic', [], dict(PYTHON='{}/bin/python3.10', path='python3.10'),
     'bin/python3.10', '.venv-classic'),
    ('classic', [], dict(PYTHON='python3.9', stand_ins='python3.9',
                         pyenv='3.9'),
     'pyenv/versions/3.9.4/bin/python', '.venv-classic'),
    ('oldest', [], dict(PYTHON='python3.8', path='python3 python3.8'),
     'python3.8', '.venv-oldest'),
    ('onedl', ['--stack', 'onedl'], dict(path='python3'), 'python3',
     '.venv-onedl'),
    ('openmmlab', ['--stack', 'openmmlab'], dict(path='python3.13'),
     'python3.13', '.venv'),
    # 3.10 first, wherever it is.
    ('classic', ['--stack', 'classic'],
     dict(path='python3 python3.9', pyenv='3.10'),
     'pyenv/versions/3.10.4/bin/python', '.venv-classic'),
    ('classic', ['--stack', 'classic'], dict(path='python3 python3.9'),
     'python3.9', '.venv-classic'),
    ('oldest', ['--stack', 'oldest'],
     dict(path='python3', stand_ins='python3.8', pyenv='3.10 3.8'),
     'pyenv/versions/3.8.4/bin/python', '.venv-oldest'),
))  # yapf: disable
def test_choice(setup, stack, given, options, interpreter, folder):
    out = setup(*given, **options)
    assert f'setup_env: stack {stack} in {folder}, with Python ' in out
    assert f'({interpreter})' in out
    program = interpreter if '/' in interpreter else f'bin/{interpreter}'
    assert f'made by {program}: -m venv {folder}\n' in out


@pytest.mark.parametrize('given, options, message', (
    ([], {}, "no 'python3' on PATH or in pyenv/versions. Name an "
     'interpreter: PYTHON=/path/to/python3.11 bash tools/setup_env.sh'),
    ([], dict(PYTHON='python3.12', path='python3',
              pyenv='3.13'), "no 'python3.12' on PATH or in pyenv/versions"),
    ([], dict(PYTHON='python3.12',
              stand_ins='python3.12'), "'python3.12' does not run: pyenv: "),
    ([], dict(PYTHON='python3.7', path='python3.7'),
     "'python3.7' is Python 3.7, which is not one for any set. The sets are "
     'for Python: openmmlab 3.11 or 3.12 or 3.13, classic 3.10 or 3.9, '
     'oldest 3.8, onedl 3.11 or 3.12 or 3.13.'),
    (['--stack', 'classic'], dict(PYTHON='python3', path='python3'),
     "'python3' is Python 3.11, which is not one for classic."),
    (['--stack', 'classic'], dict(path='python3', pyenv='3.8'),
     '--stack classic needs Python 3.10 or 3.9. Looked on PATH for python3 '
     '(it is 3.11) and python3.10 and python3.9, and in pyenv/versions for '
     '3.10.* and 3.9.*. Install one, or name it: PYTHON=/path/to/python3.10 '
     'bash tools/setup_env.sh --stack classic'),
    (['--stack', 'oldest'], {}, 'python3 (it is missing) and python3.8, and'),
    (['--gpu'], {}, "expected --stack NAME or --cpu, got '--gpu'"),
    (['--stack', '../onedl'], {},
     "expected --stack openmmlab, classic, oldest or onedl, got '../onedl'"),
    (['--stack', 'common'], {}, "oldest or onedl, got 'common'"),
    (['--cpu', '--stack'], {}, "oldest or onedl, got ''"),
))
def test_refusal(setup, given, options, message):
    out = setup(*given, **options)
    assert message in out
    assert 'made by' not in out


def test_environment_of_another_python(setup):
    """It is not changed, and not used unasked."""
    write(setup.folder / '.venv/bin/python', INTERPRETER.format(short='3.12'))
    out = setup(PYTHON='python3', path='python3')
    assert ("setup_env: .venv was made with Python 3.12.9, and PYTHON is "
            "'python3'. Remove it to make it again: rm -r .venv") in out


def test_no_compiler(setup):
    (setup.folder / 'bin' / 'g++').unlink()
    assert 'no C++ compiler' in setup(path='python3')


def test_sets_are_for_different_pythons():
    """Those among which an interpreter chooses; a fourth has to be named."""
    found = []
    for name in ('openmmlab', 'classic', 'oldest'):
        text = (ROOT / f'tools/requirements/{name}.txt').read_text()
        found += text.splitlines()[0][len('# Python '):].split()
    assert sorted(
        found, key=lambda version: int(version[2:])) == [
            '3.8', '3.9', '3.10', '3.11', '3.12', '3.13'
        ]


def test_environment_of_the_page_is_the_classic_set():
    """Which the whole suite is run with."""
    page = (ROOT / 'docs/quick_start.md').read_text()
    block, = (block for block in page.split('```') if 'mim install' in block)
    pinned = (ROOT / 'tools/requirements/classic.txt').read_text()
    named = re.findall(r'\S+==\S+', block)
    assert len(named) == 8
    assert all(
        re.search(f'^(# )?{re.escape(name)}$', pinned, re.MULTILINE)
        for name in named)


@pytest.mark.parametrize('script', ('run_tests.sh', 'quickstart.sh'))
def test_scripts_stop_with_the_set_up(setup, script):
    done = subprocess.run(['bash', f'tools/{script}', '--stack', 'classic'],
                          cwd=setup.folder,
                          capture_output=True,
                          text=True,
                          env=dict(
                              PATH=str(setup.folder / 'bin'),
                              HOME=str(setup.folder)))
    assert done.returncode == 1
    assert '--stack classic needs Python 3.10 or 3.9.' in done.stderr
    assert not done.stdout
