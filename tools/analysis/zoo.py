"""Swaps every backbone of the configs that the OpenMMLab libraries ship.

    python tools/analysis/zoo.py --out docs/zoo.md
    python tools/analysis/zoo.py mmseg --match pspnet --whole

Each config goes through what --act does; of backbones that differ in no
argument but where their weights come from one is built, swapped and compared
with itself. All its activations are replaced but gates. No weights and no
data are needed. What does not run unswapped is not judged. The exit code is 1
where a swap stopped with an error that is none of the package's own, or where
the network was another one afterwards.

It takes an hour. With --out, what was found lies in a JSON file beside the
page, and the same command goes on from there, as long as torch and what
decides the result in this package are the same.
"""
import argparse
import copy
import hashlib
import importlib
import json
import logging
import multiprocessing
import resource
import sys
import time
from collections import Counter, defaultdict
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path
from typing import Dict, Iterator, List, Optional, Tuple

import torch
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.registry import MODELS, init_default_scope
from torch import nn

import mm_acon
from mm_acon import swap_activations
from mm_acon.swap.config import (find_backbones, type_name, use_activation,
                                 without_weights)
from mm_acon.swap.probe import ACTIVATION_TYPES
from mm_acon.swap.swap import CHANGES, GATES

from tables import table  # isort: skip

EQUAL = 'equal'
NOT_YET = 'not run yet'
CHANGED = 'sites left that would change it'
LIBRARIES = ('mmdet', 'mmseg', 'mmpretrain')
NOT_READ = 'mmengine cannot read it'
# Where a backbone comes from and what of it is frozen makes no other network.
_NO_DIFFERENCE = ('init_cfg', 'pretrained', 'frozen_stages', 'norm_eval',
                  'drop_path_rate', 'with_cp')


@dataclass
class Network:
    """A backbone or model of some configs, and what became of its swap."""
    library: str
    type: str
    arguments: dict
    configs: List[str] = field(default_factory=list)
    outcome: str = ''
    detail: str = ''
    sites: int = 0
    replaced: int = 0
    # How many sites were left, by reason.
    left: Dict[str, int] = field(default_factory=dict)
    seconds: float = 0.
    # What the swap took beyond the network itself, in MB.
    memory: float = 0.


class Found:
    """What became of networks, in a file that a later run goes on from.

    Args:
        path (Path, optional): The file; None keeps nothing.
        act (str): The activation that is put in.
        most (float): Million parameters of a network that is run.
    """

    def __init__(self,
                 path: Optional[Path] = None,
                 act: str = 'PWLU',
                 most: float = 100) -> None:
        self.path = path
        self.setting = dict(
            act=act, most=most, torch=torch.__version__, sources=sources())
        content = {}
        if path and path.is_file():
            content = json.loads(path.read_text())
        # Another setting's say nothing.
        self.networks: Dict[str, dict] = (
            content['networks']
            if content.get('setting') == self.setting else {})

    @staticmethod
    def key(network: Network) -> str:
        text = f'{network.library} {key_of(network.arguments)}'
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def fill(self, network: Network) -> bool:
        """Whether it was there."""
        known = self.networks.get(self.key(network), {})
        for name, value in known.items():
            setattr(network, name, value)
        return bool(known)

    def add(self, network: Network) -> None:
        self.networks[self.key(network)] = {
            name: value
            for name, value in vars(network).items()
            if name not in ('arguments', 'configs', 'library', 'type')
        }
        if self.path:
            self.path.write_text(
                json.dumps(
                    dict(setting=self.setting, networks=self.networks),
                    indent=0))


def sources() -> str:
    """Of what decides the result in this package."""
    digest = hashlib.sha256()
    package = Path(mm_acon.__file__).parent
    for folder in ('activations', 'ops', 'swap'):
        for path in sorted((package / folder).rglob('*.py')):
            digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


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


def key_of(config: dict) -> str:
    """The same for networks that differ in no number."""

    def plain(node):
        if isinstance(node, dict):
            return {
                str(key): plain(value)
                for key, value in node.items() if key not in _NO_DIFFERENCE
            }
        if isinstance(node, (list, tuple)):
            return [plain(item) for item in node]
        return node

    return json.dumps(plain(config), sort_keys=True, default=str)


def collect(library: str, act: str, match: str, problems: Dict[str, str],
            whole: bool) -> List[Network]:
    """Puts the activation into every config; gives the distinct networks."""
    found: Dict[str, Network] = {}
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
        model = copy.deepcopy(cfg.model.to_dict())
        try:
            use_activation(cfg, act)
        except ValueError as error:
            problems[f'{library}: {name}'] = str(error)
            continue
        scope = cfg.get('default_scope') or library
        configs = [model] if whole else [
            place.arguments.to_dict() for place in find_backbones(cfg.model)
            if type_name(place.config) == 'SwapActivations'
        ]
        for config in configs:
            network = found.setdefault(
                key_of(config),
                Network(
                    config.get('_scope_') or scope, type_name(config), config))
            without_weights(network.arguments)
            network.configs.append(name)
    return list(found.values())


def swap(network: Network, act: str, most: float) -> Network:
    """Builds and swaps it, if it is not too large; notes what happened."""
    init_default_scope(network.library)
    plain = _built(network, most)
    if plain is None:
        return network
    before, start = peak_memory(), time.perf_counter()
    try:
        report = swap_activations(
            plain,
            dict(type=act),
            replace=sorted(ACTIVATION_TYPES.difference(GATES)),
            frozen='swap')
    except (ValueError, RuntimeError) as error:
        network.outcome, network.detail = refusal(plain, str(error))
    except Exception as error:
        network.outcome = 'broken'
        network.detail = f'{type(error).__name__}: {error}'
    else:
        changing = [
            row for row in report.rows if row.reason.startswith(CHANGES)
        ]
        failures = report.proof.failures
        if changing:
            network.outcome = CHANGED
        elif report.proof.no_gradients:
            network.outcome = 'equal in outputs, gradients are not compared'
        elif report.proof.tolerance:
            network.outcome = 'equal as far as its own runs are'
        elif failures:
            network.outcome = 'equal, ' + ' and '.join(
                f'does not run in {mode} unswapped' for mode in failures)
        else:
            network.outcome = EQUAL
        network.detail = '; '.join([
            *(f'{row.site}: {row.reason}' for row in changing),
            *failures.values(), *filter(None, [report.proof.no_gradients])
        ])
        network.sites = len(report.rows)
        network.replaced = len(report.replaced)
        network.left = Counter(row.reason for row in report.rows if row.reason)
    network.seconds = time.perf_counter() - start
    network.memory = peak_memory() - before
    return network


def quiet() -> None:
    """A process that prints no reports and takes one core."""
    MMLogger.get_current_instance().setLevel(logging.ERROR)
    torch.set_num_threads(1)


def peak_memory() -> float:
    """Of this process so far, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _built(network: Network, most: float) -> Optional[nn.Module]:
    """The network as it ships, None if there is a reason in ``outcome``."""
    arguments = network.arguments
    too_large = f'not run, over {most:g}M parameters'
    try:
        with torch.device('meta'):
            plain = MODELS.build(copy.deepcopy(arguments))
        size = sum(p.numel() for p in plain.parameters())
    except Exception:
        # Some compute with their parameters while they are built.
        size = 0
    if size <= most * 1e6:
        try:
            plain = MODELS.build(copy.deepcopy(arguments))
        except Exception as error:
            network.outcome = 'does not build unswapped'
            network.detail = f'{type(error).__name__}: {error}'
            return None
        size = sum(p.numel() for p in plain.parameters())
    if size > most * 1e6:
        network.outcome = too_large
        return None
    return plain


# What a message of the package says, and under which words it is counted.
_REFUSALS = (
    # Before the next, whose words such a message has, too.
    ('there are none', 'refused, no activation that is a module'),
    ('expects replace to name activations',
     'refused, gates are all that there is'),
    ('was chosen for replacement', 'refused, no site is left to replace'),
    ('could not be run to find its activations',
     'refused, takes no image; the message asks for sample_input'),
)


def refusal(module: nn.Module, message: str) -> Tuple[str, str]:
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
        '--whole', action='store_true', help='whole models, not backbones')
    parser.add_argument(
        '--most',
        type=float,
        default=100,
        help='million parameters of a network that is run; default: 100')
    parser.add_argument(
        '--jobs',
        type=int,
        default=multiprocessing.cpu_count(),
        help='processes; default: one per core')
    parser.add_argument('--out', help='Markdown file to write')
    return parser.parse_args()


def run(libraries,
        act: str = 'PWLU',
        match: str = '',
        problems: Optional[Dict[str, str]] = None,
        most: float = 100,
        whole: bool = False,
        jobs: int = 1,
        path: Optional[Path] = None) -> Iterator[List[Network]]:
    """All distinct networks, those of most configs first.

    Yields them after each that was swapped; config-level problems go into
    ``problems`` by name. Those in the file ``path`` are not swapped again.
    """
    problems = {} if problems is None else problems
    found = Found(path, act, most)
    networks = []
    for library in libraries:
        importlib.import_module(library + '.models')
        networks += collect(library, act, match, problems, whole)
    networks.sort(key=lambda network: -len(network.configs))
    left = [i for i, n in enumerate(networks) if not found.fill(n)]
    yield networks
    with ThreadPoolExecutor(jobs) as pool:
        futures = {pool.submit(apart, networks[i], act, most): i for i in left}
        try:
            for future in as_completed(futures):
                network = networks[futures[future]] = future.result()
                print(
                    f'{network.library} {network.type}: {network.outcome}, '
                    f'{network.replaced} of {network.sites}, '
                    f'{network.seconds:.1f} s. {network.detail[:150]}',
                    file=sys.stderr,
                    flush=True)
                found.add(network)
                yield networks
        finally:
            # Of those that have not begun, when this is stopped.
            for future in futures:
                future.cancel()


def apart(network: Network, act: str, most: float) -> Network:
    """Swaps it in a process of its own, whose memory and end are its own."""
    context = multiprocessing.get_context('fork')
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(
        target=lambda: theirs.send(quiet() or swap(network, act, most)))
    process.start()
    theirs.close()
    try:
        network = ours.recv()
    except EOFError:
        process.join()
        network.outcome = 'broken'
        network.detail = f'its process ended with {process.exitcode}'
    process.join()
    return network


def page(networks: List[Network], problems: Dict[str, str], act: str,
         most: float, whole: bool) -> str:
    """The Markdown page."""
    kind = 'model' if whole else 'backbone'
    for network in networks:
        network.outcome = network.outcome or NOT_YET
    counts: Dict[str, Counter] = defaultdict(Counter)
    for network in networks:
        counts[network.outcome]['networks'] += 1
        counts[network.outcome]['configs'] += len(network.configs)
    unread = [text for text in problems.values() if NOT_READ in text]
    lines = [
        '# Swapping what OpenMMLab ships', '',
        f'Every distinct {kind} of the configs of '
        f'{", ".join(sorted({n.library for n in networks}))}, its activations '
        f'(not its gates) replaced by {act}, as the swap proves it: with '
        'copies of the old activations at the new places, outputs, buffers '
        'and gradients are compared with those of the network as it ships, '
        'in evaluation and in training. With torch '
        f'{torch.__version__.split("+")[0]}, printed by', '', '```bash',
        f'python tools/analysis/zoo.py{" --whole" if whole else ""} --most '
        f'{most:g} --out docs/zoo.md', '```', '',
        table(('outcome', f'{kind}s', 'configs'),
              sorted(((outcome, n['networks'], n['configs'])
                      for outcome, n in counts.items()),
                     key=lambda row: -row[2])), '',
        f'{len(unread)} configs cannot be read by mmengine, with or without '
        f'--act; {len(problems) - len(unread)} have no {kind} to swap: the '
        'message says so and lists what their model has.', '',
        f'## {kind.capitalize()} by {kind}', '',
        'Seconds and megabytes are the largest of a swap with its proof, on '
        'one core, beyond the network itself.', '',
        table(('library', kind, 'configs', 'distinct', 'sites', 'replaced',
               'left, and why', 'outcome', 'seconds', 'MB'),
              by_type([n for n in networks if n.outcome != NOT_YET]),
              (0, 1, 6, 7)), ''
    ]
    told = [n for n in networks if n.detail and n.outcome != EQUAL]
    if told:
        lines += ['## What the others say', '']
    lines += [
        f'- {n.library} {n.type} ({n.configs[0]}): {n.outcome}: '
        f'{" ".join(n.detail.split())[:300]}' for n in told
    ]
    return '\n'.join(lines)


def by_type(networks: List[Network]) -> List[tuple]:
    groups: Dict[tuple, List[Network]] = defaultdict(list)
    for network in networks:
        key = network.library, network.type, network.outcome
        groups[key].append(network)
    rows = []
    for (library, name, outcome), group in sorted(groups.items()):
        left: Counter = Counter()
        for network in group:
            left.update(network.left)
        rows.append(
            (library, name, sum(len(n.configs) for n in group), len(group),
             sum(n.sites for n in group), sum(n.replaced for n in group),
             '; '.join(f'{count} {reason[:60]}'
                       for reason, count in left.most_common()), outcome,
             f'{max(n.seconds for n in group):.1f}',
             f'{max(n.memory for n in group):.0f}'))
    return rows


def main() -> int:
    args = parse_args()
    quiet()
    problems: Dict[str, str] = {}
    path = Path(args.out).with_suffix('.json') if args.out else None
    for networks in run(args.libraries or LIBRARIES, args.act, args.match,
                        problems, args.most, args.whole, args.jobs, path):
        text = page(networks, problems, args.act, args.most, args.whole)
        if args.out:
            Path(args.out).write_text(text + '\n')
    if not args.out:
        print(text)
    return any(n.outcome in ('broken', CHANGED) for n in networks)


if __name__ == '__main__':
    sys.exit(main())
