"""Nothing runs that the user did not ask to run; configs are code and may."""
import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mm_acon.cli import prepare_config
from tests.helpers.scripts import run_script
from tests.utils import WriteFile, options

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / 'tools' / 'model_converters'))
import nmaac2mm  # noqa: E402

SOURCES = sorted(
    path for folder in ('mm_acon', 'tools', 'configs')
    for path in (ROOT / folder).rglob('*.py') if '.mim' not in path.parts)
# Each would write a file called ran, if a shell or Python looked at it.
HOSTILE = [
    'a b', '$(touch ran)', '`touch ran`', '; touch ran #', '"; touch ran; "',
    "'; touch ran; '", '*', 'key=__import__("os").system("touch ran")'
]


def calls(path):
    """Function calls in a file: dotted name, and the keywords as written."""
    source = path.read_text()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call):
            yield ast.get_source_segment(source, node.func), {
                keyword.arg: ast.get_source_segment(source, keyword.value)
                for keyword in node.keywords
            }


@pytest.mark.parametrize(
    'path', SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_call_runs_what_a_file_or_a_user_says(path):
    for name, keywords in calls(path):
        if name in ('torch.load', 'torch.hub.load_state_dict_from_url'):
            assert keywords.get('weights_only') == 'True'
        assert keywords.get('shell', 'False') == 'False'
        assert name not in ('eval', 'exec', 'os.system', 'os.popen',
                            'pickle.load', 'pickle.loads', 'np.load')


@pytest.mark.parametrize(
    'script',
    sorted((ROOT / 'tools').glob('[ds]*_t*.sh')),
    ids=lambda path: path.name)
def test_launchers_pass_words_on_as_they_are(script, tmp_path):
    """To a python or srun that only lists its arguments."""
    for name in ('python', 'srun'):
        program = tmp_path / name
        program.write_text('#!/bin/sh\nprintf "%s\\0" "$@" > arguments\n')
        program.chmod(0o755)
    names = ('NNODES', 'NODE_RANK', 'MASTER_ADDR',
             'PORT') if script.name.startswith('dist') else ('GPUS',
                                                             'GPUS_PER_NODE',
                                                             'CPUS_PER_TASK',
                                                             'SRUN_ARGS')
    for word in HOSTILE:
        done = subprocess.run(
            ['bash', str(script), *[word] * 6],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            env={
                **os.environ,
                **dict.fromkeys(names, word), 'PATH':
                f'{tmp_path}:{os.environ["PATH"]}'
            })
        assert done.returncode == 0, done.stderr
        found = (tmp_path / 'arguments').read_text().split('\0')
        # Alone, as in --option=word, or as in gpu:word.
        assert sum(argument.endswith(word) for argument in found) >= 10
        assert not (tmp_path / 'ran').exists()


def test_setup_does_not_run_a_word(tmp_path):
    """The interpreter is a name, not a line for the shell."""
    for word in HOSTILE[1:4]:
        done = subprocess.run(
            ['bash', str(ROOT / 'tools' / 'setup_env.sh')],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            env=dict(os.environ, PYTHON=word))
        assert done.returncode == 1
        assert f"no '{word}' on PATH" in done.stderr
    assert not (tmp_path / 'ran').exists()
    assert not (ROOT / 'ran').exists()


def test_config_options_are_values(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for word in HOSTILE:
        cfg = prepare_config(options('--cfg-options', f'some.key={word}'))
        # mmengine takes blanks and the outer quotes away.
        quotes = '"\''
        assert cfg.some.key.strip(quotes) == word.replace(' ',
                                                          '').strip(quotes)
    assert not (tmp_path / 'ran').exists()


def test_converter_refuses_code(tmp_path):
    ran = tmp_path / 'ran'
    torch.save(dict(code=WriteFile(ran)), tmp_path / 'file.pth')
    with pytest.raises(ValueError, match='loading those could run code'):
        nmaac2mm.load_state_dict(str(tmp_path / 'file.pth'))
    assert not ran.exists()


def test_test_refuses_code(tmp_path):
    """The whole tool, on the checkpoint that a stranger sent."""
    ran, path = tmp_path / 'ran', tmp_path / 'file.pth'
    torch.save(dict(state_dict={}, code=WriteFile(ran)), path)
    done = run_script(
        ROOT / 'tools/test.py',
        'mmpretrain::resnet/resnet18_8xb32_in1k.py',
        path,
        '--demo',
        cwd=tmp_path)
    assert done.returncode != 0
    assert f'{path} holds objects beside tensors' in done.stderr
    assert not ran.exists()
