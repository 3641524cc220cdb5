"""Builds the documentation, and tries what README.md and all pages show.

What is done with a fenced block depends on its language:

- ``python`` with nothing but assignments of plain values is a config: loaded
  by mmengine; its model, or backbone or activation, its hooks and optimizer
  are built. Data sets are not, since there is no data.
- other ``python`` is executed, all blocks of a page in one namespace. The
  formulas of README.md are compared with the operators.
- ``bash`` is parsed and not run: a tool's own parser must take the command
  line, also what the dist and slurm scripts make of theirs; the config must
  be there; where a command changes the model, that model is built. Names in
  capitals (CONFIG) stand for anything, and so do files that a command of the
  page would make.
- ``console`` is run: the lines below a command must be in its output, in
  that order.
- ``cpp`` and ``diff``, and ``python`` that is a file of the repository, are
  tried by test_contributing.py.
- ``text``, and what names no language, is not looked at; ``{...}`` is
  Sphinx's. Other languages are an error.

Messages in troubleshooting.md must be in the sources.
"""
import ast
import os
import re
import runpy
import shlex
import subprocess
import sys
from argparse import ArgumentParser, Namespace
from importlib.util import find_spec
from pathlib import Path
from typing import Iterator, List, Optional

import pytest
import torch
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.optim import build_optim_wrapper
from mmengine.registry import HOOKS, MODELS, init_default_scope
from torch import nn

from mm_acon import LearnableActivation, MetaACON, adapt_mmengine, ops
from mm_acon.cli import load_config
from mm_acon.swap.config import use_activation
from tests.helpers.pages import ROOT, Block, read_blocks
from tests.utils import EXPORTS, FLOP_COUNTER

# pytest brings the other one.
TOML = 'tomllib' if sys.version_info >= (3, 11) else 'tomli'
tomllib = pytest.importorskip(TOML)
for library in ('mmdet', 'mmseg', 'mmpretrain'):
    pytest.importorskip(library)

# As the tools that read these configs.
adapt_mmengine()

PAGES = [
    ROOT / 'README.md', ROOT / 'CONTRIBUTING.md', ROOT / 'configs/README.md',
    ROOT / 'mm_acon/ops/csrc/README.md', *sorted((ROOT / 'docs').rglob('*.md'))
]

# Which only one stack has.
FORMATTERS = ('isort', 'yapf')


def is_config(block: Block) -> bool:
    """Whether it is assignments of plain values and nothing else."""
    known = {'dict', 'list', 'tuple'}
    for statement in ast.parse(block.text).body:
        if not isinstance(statement, ast.Assign):
            return False
        if any(
                node.id not in known for node in ast.walk(statement.value)
                if isinstance(node, ast.Name)):
            return False
        known.update(target.id for target in statement.targets)
    return True


def file_name(block: Block) -> Optional[str]:
    """The name in a first line such as ``# my_config.py: RetinaNet``."""
    found = re.match(r'# (\w+\.py)', block.text)
    return found and found.group(1)


BLOCKS = list(read_blocks(*PAGES))


def in_language(name: str) -> List[Block]:
    return [block for block in BLOCKS if block.language == name]


# A file of the repository is not run by itself; see test_contributing.py.
PYTHON = [block for block in in_language('python') if not block.path]
CONFIGS = [block for block in PYTHON if is_config(block)]
SCRIPTS = [block for block in PYTHON if not is_config(block)]
FORMULAS = [block for block in SCRIPTS if block.page == 'README.md']


@pytest.fixture(autouse=True)
def leave_no_trace():
    """Tools set the logger's level, the scripts register classes."""
    logger = MMLogger.get_current_instance()
    level, path = logger.level, list(sys.path)
    yield
    logger.setLevel(level)
    sys.path[:] = path
    for name, found in list(MODELS._module_dict.items()):
        if found.__module__ == 'documentation':
            del MODELS._module_dict[name]


def test_pages_build_without_warnings(tmp_path):
    pytest.importorskip('sphinx')
    done = subprocess.run(
        [sys.executable, '-m', 'sphinx', '-W', '--keep-going', '-q',
         '-d', tmp_path / 'doctrees', '-c', 'docs', '.', tmp_path / 'html'],
        cwd=ROOT, capture_output=True, text=True)  # yapf: disable
    assert done.returncode == 0, '\n'.join(
        line for line in done.stderr.splitlines() if 'WARNING' in line)
    page = (tmp_path / 'html/docs/activations.html').read_text()
    assert 'mm_acon.PWLU.realign' in page


def test_languages_are_known():
    for block in BLOCKS:
        known = ('python', 'bash', 'console', 'cpp', 'diff', 'text', '')
        assert block.language in known or block.language.startswith(
            '{'), f'{block} is in {block.language!r}'


def check_config(text: str) -> None:
    cfg = Config.fromstring(text, '.py')
    init_default_scope(cfg.get('default_scope', 'mmengine'))
    model, built = nn.Linear(1, 1), False
    for key in ('model', 'backbone', 'act_cfg'):
        part = cfg.get(key)
        if part is not None:
            part = part if 'type' in part else part.backbone
            model, built = MODELS.build(part), True
            assert any(
                isinstance(module, LearnableActivation)
                for module in model.modules())
    hooks = list(cfg.get('custom_hooks') or [])
    hooks.extend(hook for name, hook in cfg.get('default_hooks', {}).items()
                 if name == 'checkpoint')
    for hook in hooks:
        HOOKS.build(hook)
    if 'optim_wrapper' in cfg:
        build_optim_wrapper(model, cfg.optim_wrapper)
    assert built or hooks or 'optim_wrapper' in cfg, 'nothing was tried'


@pytest.mark.parametrize('block', CONFIGS, ids=str)
def test_config_can_be_built(block):
    check_config(block.text)


def execute(blocks: List[Block], **names) -> dict:
    names['__name__'] = 'documentation'
    for block in blocks:
        # So that a traceback names the line of the page.
        source = '\n' * block.line + block.text
        exec(compile(source, block.page, 'exec'), names)
    return names


@pytest.mark.parametrize('page', [
    pytest.param(
        page,
        marks=(EXPORTS, pytest.mark.full) if 'deployment' in page else ())
    for page in sorted({block.page
                        for block in SCRIPTS} - {'README.md'})
])
def test_scripts_run(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    execute([block for block in SCRIPTS if block.page == page])


def test_formula_of_acon():
    x = torch.randn(5, 3)
    p1, p2, beta = torch.randn(3, 3)
    names = execute(FORMULAS[:1], torch=torch, x=x, p1=p1, p2=p2, beta=beta)
    torch.testing.assert_close(names['y'], ops.acon(x, p1, p2, beta))


@pytest.mark.parametrize('line, granularity',
                         enumerate(MetaACON.granularities))
def test_formula_of_meta_acon(line, granularity):
    module = MetaACON(32, granularity=granularity).double()
    x = torch.randn(2, 32, 3, 3, dtype=torch.float64)
    block = FORMULAS[1]
    formula = block.text.splitlines()[line]
    assert f"'{granularity}'" in formula
    layers = {name: getattr(module, name, None) for name in ('fc1', 'fc2')}
    names = execute([Block(block.page, block.line + line, 'python', formula)],
                    torch=torch,
                    x=x,
                    **layers)
    beta = module.switching_factor(x)
    torch.testing.assert_close(names['beta'].reshape(beta.shape), beta)


def test_formula_of_pwlu():
    assert len(FORMULAS) == 3
    x, points = torch.linspace(-3, 3, 101), torch.randn(9)
    numbers = [torch.tensor([value]) for value in (-1.3, 1.9, 0.3, -0.7)]
    left_bound, right_bound, left_slope, right_slope = numbers

    # points[i] with the i of a floor, which the formula leaves a float.
    class Points:

        def __getitem__(self, index):
            return points[torch.as_tensor(index).long()]

    names = execute(
        FORMULAS[2:],
        where=torch.where,
        x=x,
        N=8,
        points=Points(),
        left_bound=left_bound,
        right_bound=right_bound,
        left_slope=left_slope,
        right_slope=right_slope)
    torch.testing.assert_close(
        names['y'],
        ops.pwlu(x[:, None], points[None], *numbers)[:, 0])


class Parsed(Exception):
    """Leaves a tool when it has parsed its command line."""


def parse(tool: str, arguments: List[str]) -> Namespace:
    """The arguments as the tool's own parser takes them."""
    parse_args = ArgumentParser.parse_args

    def parse_and_leave(parser):
        raise Parsed(parse_args(parser))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ArgumentParser, 'parse_args', parse_and_leave)
        try:
            run_tool(tool, arguments)
        except Parsed as parsed:
            return parsed.args[0]
    raise AssertionError(f'{tool} has not parsed {arguments}')


def run_tool(tool: str, arguments: List[str]) -> None:
    path = ROOT / tool
    assert path.is_file(), f'there is no {tool}'
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, 'argv', [tool, *arguments])
        patch.syspath_prepend(path.parent)
        runpy.run_path(str(path), run_name='__main__')


def is_placeholder(word: str) -> bool:
    return word.isupper()


def check_tool(tool: str, arguments: List[str], page: str) -> None:
    if not arguments:
        # complexity.py would begin its work.
        assert (ROOT / tool).is_file(), f'there is no {tool}'
        return
    try:
        args = parse(tool, arguments)
    except SystemExit:
        raise AssertionError(f'{tool} does not take {arguments}') from None
    name = getattr(args, 'config', None)
    own = [block for block in CONFIGS if block.page == page]
    if not name or is_placeholder(name) or any(
            file_name(block) == name for block in own):
        return
    cfg = load_config(str(ROOT / name) if '::' not in name else name)
    act, options = getattr(args, 'act', None), args.cfg_options or {}
    if act:
        use_activation(cfg, act, args.act_include, args.act_exclude,
                       args.act_replace, args.act_parts)
    for key in options:
        # merge_from_dict would make what is not there.
        owner = cfg
        for part in key.split('.')[:-1] if key[:6] != 'model.' else []:
            assert part in owner, f'{key}: no {part} in {name}'
            owner = owner[part]
    cfg.merge_from_dict(options)
    if act or any(key.startswith('model.') for key in options):
        init_default_scope(cfg.get('default_scope'))
        MODELS.build(cfg.model)


def check_shell_script(script: str, arguments: List[str], page: str,
                       folder: Path) -> None:
    path = ROOT / script
    assert path.is_file(), f'there is no {script}'
    subprocess.run(['bash', '-n', path], check=True)
    if not path.name.startswith(('dist_', 'slurm_')):
        for word in arguments:
            assert word in path.read_text(), f'{script} does not take {word}'
        return
    # What it would start is written down instead.
    for program in ('python', 'srun'):
        stub = folder / program
        stub.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
        stub.chmod(0o755)
    done = subprocess.run(['bash', script, *arguments],
                          cwd=ROOT,
                          env=dict(
                              os.environ,
                              PATH=f'{folder}:{os.environ["PATH"]}'),
                          capture_output=True,
                          text=True)
    assert done.returncode == 0, done.stderr
    words = done.stdout.splitlines()
    tool, = (
        word for word in words
        if word.endswith('.py') and word.startswith('tools/'))
    check_tool(tool, words[words.index(tool) + 1:], page)


def check_pip(arguments: List[str]) -> None:
    project = tomllib.loads((ROOT / 'pyproject.toml').read_text())['project']
    extras = project['optional-dependencies']
    assert arguments[0] == 'install'
    for word in arguments[1:]:
        name, _, extra = word.rstrip(']').partition('[')
        assert word.startswith('-') or name == '.' or name in sum(
            extras.values(), []), f'pip install {word}'
        assert not extra or extra in extras, f'there is no extra {extra}'


def commands(text: str) -> Iterator[List[str]]:
    """Words of each command, without variables set in front of it."""
    for line in text.replace('\\\n', ' ').splitlines():
        words = shlex.split(line, comments=True)
        while words and re.match(r'[A-Z_]+=', words[0]):
            words.pop(0)
        if words:
            yield words


def check_command(words: List[str], page: str, folder: Path) -> None:
    program, *arguments = words
    if program.startswith('--'):
        # Options by themselves, to be added to any detector's command.
        check_tool('tools/train.py',
                   ['configs/retinanet_r50_metaacon.py', *words], page)
    elif program == 'python' and arguments[0] == '-m':
        assert arguments[1] in FORMATTERS or find_spec(
            arguments[1]), f'there is no module {arguments[1]}'
    elif program == 'python':
        check_tool(arguments[0], arguments[1:], page)
    elif program == 'bash':
        check_shell_script(arguments[0], arguments[1:], page, folder)
    elif program == 'pip':
        check_pip(arguments)
    else:
        assert program in ('cp', 'find',
                           'source'), f'{program} is not looked at'


@pytest.mark.usefixtures('unverified')
@pytest.mark.parametrize('block', in_language('bash'), ids=str)
def test_commands_are_taken(block, tmp_path):
    for words in commands(block.text):
        check_command(words, block.page, tmp_path)


@pytest.mark.parametrize(
    'block', [
        pytest.param(
            block, marks=FLOP_COUNTER if 'complexity.py' in block.text else ())
        for block in in_language('console')
    ],
    ids=str)
def test_commands_print_what_is_shown(block, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for part in block.text.split('$ ')[1:]:
        command, *shown = part.splitlines()
        words = shlex.split(command)
        assert words[0] == 'python'
        with pytest.raises(SystemExit) as left:
            run_tool(words[1], words[2:])
        printed = capsys.readouterr().out.splitlines()
        assert not left.value.code
        assert [line for line in printed if line in shown] == shown


WRONG = [
    ('python tools/nothing.py', 'there is no tools/nothing.py'),
    ('python tools/train.py CONFIG --fast', 'does not take'),
    ('python tools/train.py configs/nothing.py', 'no config'),
    ('python tools/train.py my_config.py', 'no config'),
    ('python tools/train.py configs/tfnet_0.5.py '
     '--cfg-options val_loader.batch_size=1', 'no val_loader in'),
    ('python tools/train.py configs/tfnet_0.5.py '
     '--cfg-options model.backbone.depth=1', 'depth'),
    ('bash tools/dist_train.sh configs/tfnet_0.5.py', 'usage'),
    ('bash tools/dist_train.sh configs/tfnet_0.5.py 8 --fast',
     'does not take'),
    ('bash tools/quickstart.sh --fast', 'does not take'),
    ('python -m mm_acon.nothing', 'there is no module'),
    ('pip install ".[nothing]"', 'there is no extra'),
    ('conda install mm_acon', 'is not looked at'),
]


@pytest.mark.parametrize('command, reason', WRONG)
def test_wrong_command_is_found(command, reason, tmp_path):
    words, = commands(command)
    with pytest.raises((AssertionError, FileNotFoundError, TypeError),
                       match=reason):
        check_command(words, 'README.md.', tmp_path)


@pytest.mark.parametrize('text, reason', [
    ("act_cfg = dict(type='PWLU', bounds=3)", 'bounds'),
    ("custom_hooks = [dict(type='PWLURealignHook', epochs=5)]", 'epochs'),
    ("swap = dict(act_cfg=dict(type='PWLU'))", 'nothing was tried'),
])
def test_wrong_config_is_found(text, reason):
    with pytest.raises((AssertionError, TypeError), match=reason):
        check_config(text)


def test_decisions_are_counted():
    page = (ROOT / 'docs/design/decisions.md').read_text()
    numbers = [int(number) for number in re.findall(r'^(\d+)\. ', page, re.M)]
    assert numbers == list(range(1, len(numbers) + 1)) and len(numbers) > 50


def test_lines_of_the_design_are_short():
    """So that a change of one sentence is a change of a line or two."""
    pages = [ROOT / 'docs/design.md', *(ROOT / 'docs/design').glob('*.md')]
    assert len(pages) > 6
    for page in pages:
        long = [
            line for line in page.read_text().splitlines() if len(line) > 100
        ]
        assert not long, f'{page.name}: {long}'


def squeeze(text: str) -> str:
    return ' '.join(text.split())


def message_texts() -> str:
    """All that the package and its tools can say."""
    texts = []
    for path in [
            ROOT / 'setup.py', *(ROOT / 'mm_acon').glob('**/*.py'),
            *(ROOT / 'tools').rglob('*.py')
    ]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, (ast.JoinedStr, ast.Constant)):
                parts = node.values if isinstance(node,
                                                  ast.JoinedStr) else [node]
                texts.append('...'.join(
                    str(part.value) if isinstance(part, ast.Constant) else ''
                    for part in parts))
    for path in (ROOT / 'mm_acon/ops/csrc').rglob('*.[ch]*'):
        texts.append(''.join(re.findall(r'"(.*?)"', path.read_text())))
    return squeeze('\n'.join(texts))


def test_messages_are_those_of_the_sources():
    page = (ROOT / 'docs/troubleshooting.md').read_text()
    page = page.partition('## Messages of other packages')[0]
    messages = re.findall(r'^\| `(.+?)` \|', page, re.MULTILINE)
    assert len(messages) > 50
    texts = message_texts()
    for message in messages:
        for part in message.split('...'):
            part = squeeze(part.strip(' :.,()='))
            assert part in texts, f'{part!r} of {message!r}'
