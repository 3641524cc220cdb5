"""Time and memory of a backbone with these activations beside ReLU's.

    python tools/analysis/benchmark_model.py configs/retinanet_r50_metaacon.py
    python tools/analysis/benchmark_model.py CONFIG --activations PWLU MetaACON

The first measures the config's own swap, or that of --act; the second each
of the activations: meta-ACON behind the 3x3 convolutions of residual
blocks, as in its paper, the others everywhere. ReLU is the library's own, in
place where the library has it so. A PWLU is in its trained form, not in Phase
I. Weights are random, and the same in all models.

With --whole it is the whole model: its losses on made-up objects, and in
inference what its head computes. The swap stays that of the backbone.

The models alternate in one run, in the other order each round, so that a
machine whose speed drifts changes none of the ratios. Times are medians, and
ratios medians of each round's. A training step is forward, backward of random
gradients and SGD; `peak` is the highest GPU memory during a step or an
inference, above that before.
"""
import argparse
import copy
import re
import statistics
import sys
from contextlib import nullcontext
from typing import Callable, ContextManager, Dict, List, Optional, Tuple

import torch
from mmengine.config import ConfigDict
from mmengine.logging import MMLogger
from mmengine.model import BaseModel
from mmengine.registry import MODELS, init_default_scope
from tables import table
from timing import (DTYPES, LAYOUTS, add_timing_options, now, peak_bytes,
                    start_benchmark, write_json)
from torch import Tensor, nn

from mm_acon import swap_activations
from mm_acon.cli import add_config_options, prepare_config
from mm_acon.swap.config import find_backbones
from mm_acon.swap.probe import probe
from mm_acon.swap.samples import of_model


class Backbone:
    """A backbone with an input, gradients of its outputs and an optimizer."""

    def __init__(self, model: nn.Module, x: Tensor, dtype: torch.dtype,
                 layout: torch.memory_format) -> None:
        self.model = model.to(x.device, memory_format=layout)
        model.train()
        self.x, self.dtype = x, dtype
        # A rate of 0 takes the same time, and no value drifts.
        self.optimizer = torch.optim.SGD(
            model.parameters(), lr=0, momentum=0.9, weight_decay=1e-4)
        self.grads = [torch.randn_like(y) for y in self.trained_outputs()]

    def precision(self) -> ContextManager:
        # Of what is off torch 2.1 refuses float32, too.
        if self.dtype == torch.float32:
            return nullcontext()
        return torch.autocast(self.x.device.type, self.dtype)

    def forward(self) -> List[Tensor]:
        with self.precision():
            outputs = self.model(self.x)
        return [outputs] if isinstance(outputs, Tensor) else list(outputs)

    def trained_outputs(self) -> List[Tensor]:
        """Those behind frozen stages only are left out."""
        return [y for y in self.forward() if y.requires_grad]

    def train_step(self) -> Dict[str, float]:
        """Milliseconds of each phase and of all."""
        times = [now(self.x.device)]
        outputs = self.trained_outputs()
        times.append(now(self.x.device))
        torch.autograd.backward(outputs, self.grads)
        times.append(now(self.x.device))
        self.optimizer.step()
        times.append(now(self.x.device))
        self.optimizer.zero_grad()
        forward, backward, step = (1e3 * (end - start)
                                   for start, end in zip(times, times[1:]))
        return dict(
            forward_ms=forward,
            backward_ms=backward,
            optimizer_ms=step,
            train_ms=forward + backward + step)

    @torch.no_grad()
    def inference(self) -> Dict[str, float]:
        start = now(self.x.device)
        self.forward()
        return dict(inference_ms=1e3 * (now(self.x.device) - start))


class WholeModel(Backbone):
    """A model with images and data samples; its output is its loss."""

    def __init__(self, model: BaseModel, x: Tensor, dtype: torch.dtype,
                 layout: torch.memory_format) -> None:
        model.to(x.device)
        batch, _, pixels, _ = x.shape
        _, self.data_samples = of_model(
            model, pixels, 'loss', batch=batch).args
        super().__init__(model, x, dtype, layout)

    def forward(self) -> List[Tensor]:
        training = self.model.training
        with self.precision():
            outputs = self.model(
                self.x,
                self.data_samples,
                mode='loss' if training else 'tensor')
        return [self.model.parse_losses(outputs)[0]] if training else []


def plain_backbone(backbone: ConfigDict) -> ConfigDict:
    """The config of a backbone without its swap."""
    if backbone.type != 'SwapActivations':
        return backbone
    plain = copy.deepcopy(backbone)
    inner = plain.pop('backbone')
    del plain['swap']
    return inner if isinstance(inner, dict) else ConfigDict(plain, type=inner)


def paper_sites(activation: str, backbone: nn.Module) -> Optional[List[str]]:
    """The ACON authors' sites of meta-ACON, all sites for the others.

    They lie behind the 3x3 convolutions of residual blocks; networks without
    such blocks have meta-ACON everywhere.
    """
    if activation != 'MetaACON':
        return None
    return [
        f'^{re.escape(site.name)}$' for site in probe(backbone).sites
        if re.search(r'\.conv[12]$', site.name)
        and getattr(site.feed, 'kernel_size', None) == (3, 3)
    ] or None


def find_swaps(args, backbone: ConfigDict, relu: nn.Module) -> List[dict]:
    """Arguments of swap_activations for each model beside ReLU's."""
    if args.activations:
        return [
            dict(act_cfg=dict(type=name), include=paper_sites(name, relu))
            for name in args.activations
        ]
    if backbone.type != 'SwapActivations':
        raise ValueError(
            f'expected a config whose backbone is SwapActivations, it is '
            f'{backbone.type} in {args.config}; write --activations TYPE '
            '[TYPE ...] or --act TYPE.')
    return [backbone.swap]


def build_models(args) -> Tuple[Dict[str, nn.Module], Dict[str, int]]:
    """ReLU's model and the swapped ones by activation, and their sites."""
    cfg = prepare_config(args)
    init_default_scope(cfg.get('default_scope', 'mmengine'))
    torch.manual_seed(0)
    try:
        place = next(find_backbones(cfg.model), None)
        if place is None:
            raise ValueError('expected a model with a backbone, '
                             f'{cfg.model.type} in {args.config} has none.')
        plain = plain_backbone(place.config)
        inside = place.path.partition('.')[2]
        if args.whole:
            place.owner[place.key] = plain
        relu = MODELS.build(cfg.model if args.whole else plain)

        def part(model):
            return model.get_submodule(inside) if args.whole else model

        models, sites = {'ReLU': relu}, {'ReLU': 0}
        for swap in find_swaps(args, place.config, part(relu)):
            name = str(swap['act_cfg']['type'])
            models[name] = copy.deepcopy(relu)
            report = swap_activations(part(models[name]), **swap)
            sites[name] = len(report.replaced)
    except (KeyError, ValueError) as error:
        sys.exit(f'benchmark_model.py: {error.args[0]}')
    return models, sites


def alternate(functions: Dict[str, Callable], args) -> Dict[str, List[dict]]:
    """What each function returns in each round after the warm-up."""
    results: Dict[str, List[dict]] = {name: [] for name in functions}
    for round_ in range(args.warmup + args.rounds):
        for name in list(functions)[::-1 if round_ % 2 else 1]:
            times = functions[name]()
            if round_ >= args.warmup:
                results[name].append(times)
    return results


def summarize(phase: str, functions: Dict[str, Callable], args) -> dict:
    """Median times and ratios to ReLU, and peak memory, of each model."""
    found = {}
    results = alternate(functions, args)
    for name, rounds in results.items():
        row = found[name] = {
            key: statistics.median(times[key] for times in rounds)
            for key in rounds[0]
        }
        row[f'{phase}_ratio'] = statistics.median(
            times[f'{phase}_ms'] / base[f'{phase}_ms']
            for times, base in zip(rounds, results['ReLU']))
        peak = peak_bytes(functions[name], torch.device(args.device))
        row[f'{phase}_peak_mib'] = None if peak is None else peak / 2**20
    return found


def benchmark(args: argparse.Namespace) -> List[dict]:
    models, sites = build_models(args)
    parameters = {
        name: sum(p.numel() for p in model.parameters())
        for name, model in models.items()
    }
    layout = LAYOUTS[args.layout]
    x = torch.randn(args.batch, 3, args.size, args.size, device=args.device)
    x = x.to(memory_format=layout)
    kind = WholeModel if args.whole else Backbone
    backbones = {
        name: kind(model, x, DTYPES[args.dtype], layout)
        for name, model in models.items()
    }
    train = summarize('train', {
        n: b.train_step
        for n, b in backbones.items()
    }, args)
    for model in models.values():
        model.eval()
    inference = summarize('inference', {
        n: b.inference
        for n, b in backbones.items()
    }, args)
    return [
        dict(
            case=name,
            sites=sites[name],
            parameters_added=parameters[name] - parameters['ReLU'],
            **train[name],
            **inference[name]) for name in models
    ]


# Titles of what a row holds, in its order.
COLUMNS = ('case', 'sites', 'parameters added', 'forward ms', 'backward ms',
           'optimizer ms', 'training step ms', '/ ReLU', 'peak MiB',
           'inference ms', '/ ReLU', 'peak MiB')


def cells(row: dict) -> List[str]:
    return [
        '-' if value is None else f'{value:.3f}' if key.endswith('ratio') else
        f'{value:.1f}' if isinstance(value, float) else
        f'{value:,}' if isinstance(value, int) else value
        for key, value in row.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_config_options(parser)
    add_timing_options(parser)
    parser.add_argument(
        '--activations',
        nargs='+',
        metavar='TYPE',
        help="measure these in turn, instead of the config's own swap")
    parser.add_argument('--batch', type=int, default=4)
    parser.add_argument('--size', type=int, default=224, help='in pixels')
    parser.add_argument(
        '--dtype',
        choices=DTYPES,
        default='float32',
        help='others under autocast, with float32 weights')
    parser.add_argument('--layout', choices=LAYOUTS, default='contiguous')
    parser.add_argument(
        '--whole', action='store_true', help='the whole model, with losses')
    args = parser.parse_args()
    # The swap's report is long.
    MMLogger.get_current_instance().setLevel('ERROR')
    run = start_benchmark(args)
    run.update(
        (key, getattr(args, key))
        for key in ('config', 'batch', 'size', 'dtype', 'layout', 'rounds'))
    rows = benchmark(args)
    whole = ', whole model' if args.whole else ''
    print(f'\n{args.config}{whole}, batch {args.batch}, {args.size} pixels, '
          f'{args.dtype}, {args.layout}\n')
    print(table(COLUMNS, map(cells, rows)))
    write_json(args.json, run, rows)


if __name__ == '__main__':
    main()
