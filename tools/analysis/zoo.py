"""Swaps every backbone of the configs that the OpenMMLab libraries ship.

    python tools/analysis/zoo.py --out docs/zoo.md
    python tools/analysis/zoo.py mmseg --match pspnet

Each config goes through what --act does; of backbones that differ in no
argument but where their weights come from one is built, swapped and run. No
weights and no data are needed. What does not run unswapped is not judged.
The exit code is 1 where a swap stopped with an error that is none of the
package's own.
"""
import argparse
import copy
import importlib
import json
import logging
import sys
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Dict, Iterator, List, Optional

import torch
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.registry import MODELS, init_default_scope
from torch import nn

from mm_acon import swap_activations
from mm_acon.swap.config import find_backbones, type_name, use_activation

from tables import table  # isort: skip

LIBRARIES = ('mmdet', 'mmseg', 'mmpretrain')
NOT_READ = 'mmengine cannot read it'
# Where a backbone comes from and what of it is frozen makes no other network.
_NO_DIFFERENCE = ('init_cfg', 'pretrained', 'frozen_stages', 'norm_eval',
                  'drop_path_rate', 'with_cp')


@dataclass
class Backbone:
    """A backbone of some configs, and what became of its swap."""
    library: str
    type: str
    arguments: dict
    configs: List[str] = field(default_factory=list)
    outcome: str = ''
    detail: str = ''


def shipped_configs(library: str) -> List[Path]:
    """The config files of an installed library, without the bases."""
    package = Path(importlib.import_module(library).__file__).parent
    folder = package / '.mim' / 'configs'
    if not folder.is_dir():
        folder = package.parent / 'configs'
    return [
        path for path in sorted(folder.rglob('*.py'))
        if '_base_' not in path.parts
    ]


def key_of(backbone: dict) -> str:
    plain = {
        key: value
        for key, value in backbone.items() if key not in _NO_DIFFERENCE
    }
    return json.dumps(plain, sort_keys=True, default=str)


def collect(library: str, act: str, match: str,
            problems: Dict[str, str]) -> Iterator[Backbone]:
    """Puts the activation into every config; yields distinct backbones."""
    found: Dict[str, Backbone] = {}
    for path in shipped_configs(library):
        name = str(path).rpartition('/configs/')[2]
        if match not in name:
            continue
        try:
            cfg = Config.fromfile(path, import_custom_modules=False)
        except Exception as error:
            # A base that the library does not ship, for example.
            problems[f'{library}: {name}'] = f'{NOT_READ}: {error}'
            continue
        if 'model' not in cfg:
            continue
        try:
            use_activation(cfg, act)
        except ValueError as error:
            problems[f'{library}: {name}'] = str(error)
            continue
        for place in find_backbones(cfg.model):
            if type_name(place.config) != 'SwapActivations':
                continue
            arguments = place.arguments
            scope = cfg.get('default_scope') or library
            backbone = found.setdefault(
                key_of(arguments),
                Backbone(
                    arguments.get('_scope_') or scope, type_name(arguments),
                    copy.deepcopy(arguments.to_dict())))
            backbone.configs.append(name)
    yield from found.values()


def swap(backbone: Backbone, act: str, most: float) -> None:
    """Builds and swaps it, if it is not too large; notes what happened."""
    init_default_scope(backbone.library)
    arguments = dict(backbone.arguments, init_cfg=None)
    try:
        with torch.device('meta'):
            plain = MODELS.build(copy.deepcopy(arguments))
        size = sum(p.numel() for p in plain.parameters())
    except Exception:
        # Some compute with their parameters while they are built.
        size = 0
    too_large = f'not run, over {most:g}M parameters'
    if size > most * 1e6:
        backbone.outcome = too_large
        return
    arguments = dict(backbone.arguments)
    try:
        plain = MODELS.build(copy.deepcopy(arguments))
    except Exception as error:
        backbone.outcome = 'does not build unswapped'
        backbone.detail = f'{type(error).__name__}: {error}'
        return
    if sum(p.numel() for p in plain.parameters()) > most * 1e6:
        backbone.outcome = too_large
        return
    try:
        swap_activations(plain, dict(type=act))
        backbone.outcome = 'swapped'
    except (ValueError, RuntimeError) as error:
        backbone.outcome, backbone.detail = refusal(plain, str(error))
    except Exception as error:
        backbone.outcome = 'broken'
        backbone.detail = f'{type(error).__name__}: {error}'


# What a message of the package says, and under which words it is counted.
_REFUSALS = (
    ('channels in the last axis', 'refused, channels in the last axis'),
    # Before the next, whose words such a message has, too.
    ('there are none', 'refused, no activation that is a module'),
    ('expects replace to name activations',
     'refused, no ReLU; the message proposes --act-replace'),
    ('was chosen for replacement', 'refused, no site is left to replace'),
    ('could not be run to find its activations',
     'refused, takes no image; the message asks for sample_input'),
    ('has no convolution to tell the shape',
     'refused, takes no image; the message asks for sample_input'),
)


def refusal(module: nn.Module, message: str):
    for words, outcome in _REFUSALS:
        if words in message:
            return outcome, message.splitlines()[0]
    return 'broken', message.splitlines()[0]


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        'libraries', nargs='*', help=f'default: {", ".join(LIBRARIES)}')
    parser.add_argument('--act', default='PWLU', help='default: PWLU')
    parser.add_argument(
        '--match', default='', help='only configs whose path contains this')
    parser.add_argument(
        '--most',
        type=float,
        default=100,
        help='million parameters of a backbone that is run; default: 100')
    parser.add_argument('--out', help='Markdown file to write')
    return parser.parse_args()


def run(libraries,
        act: str = 'PWLU',
        match: str = '',
        problems: Optional[Dict[str, str]] = None,
        most: float = 100) -> List[Backbone]:
    """All distinct backbones, swapped; config-level problems by name."""
    problems = {} if problems is None else problems
    MMLogger.get_current_instance().setLevel(logging.ERROR)
    backbones = []
    for library in libraries:
        importlib.import_module(library + '.models')
        for backbone in collect(library, act, match, problems):
            swap(backbone, act, most)
            print(
                f'{library} {backbone.type}: {backbone.outcome}. '
                f'{backbone.detail[:150]}',
                file=sys.stderr,
                flush=True)
            backbones.append(backbone)
    return backbones


def page(backbones: List[Backbone], problems: Dict[str, str], act: str,
         most: float) -> str:
    """The Markdown page."""
    counts: Dict[str, Counter] = defaultdict(Counter)
    for backbone in backbones:
        counts[backbone.outcome]['backbones'] += 1
        counts[backbone.outcome]['configs'] += len(backbone.configs)
    unread = [text for text in problems.values() if NOT_READ in text]
    lines = [
        '# Swapping what OpenMMLab ships', '',
        f'What `--act {act}` does to every config of '
        f'{", ".join(sorted({b.library for b in backbones}))} that has a '
        'backbone; backbones are built and swapped once for all configs that '
        'share them. Printed by', '', '```bash',
        f'python tools/analysis/zoo.py --most {most:g} --out docs/zoo.md',
        '```', '',
        table(('outcome', 'backbones', 'configs'),
              sorted(((outcome, n['backbones'], n['configs'])
                      for outcome, n in counts.items()),
                     key=lambda row: -row[2])), '',
        f'{len(unread)} configs cannot be read by mmengine, with or without '
        f'--act; {len(problems) - len(unread)} have no backbone to swap: the '
        'message says so and lists what their model has.', '',
        '## Backbone by backbone', '',
        table(('library', 'backbone', 'configs', 'outcome'),
              by_type(backbones), (0, 1, 3)), ''
    ]
    broken = [b for b in backbones if b.outcome == 'broken']
    lines += [
        f'- {b.library} {b.type} ({b.configs[0]}): {b.detail}' for b in broken
    ]
    return '\n'.join(lines)


def by_type(backbones: List[Backbone]) -> List[tuple]:
    counts: Counter = Counter()
    for backbone in backbones:
        key = backbone.library, backbone.type, backbone.outcome
        counts[key] += len(backbone.configs)
    return [(library, name, count, outcome)
            for (library, name, outcome), count in sorted(counts.items())]


def main() -> int:
    args = parse_args()
    problems: Dict[str, str] = {}
    backbones = run(args.libraries or LIBRARIES, args.act, args.match,
                    problems, args.most)
    text = page(backbones, problems, args.act, args.most)
    if args.out:
        Path(args.out).write_text(text + '\n')
    else:
        print(text)
    return any(backbone.outcome == 'broken' for backbone in backbones)


if __name__ == '__main__':
    sys.exit(main())
