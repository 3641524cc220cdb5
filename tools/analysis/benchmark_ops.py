"""Time and memory of every activation beside ReLU's.

    python tools/analysis/benchmark_ops.py [--device cuda] [--json FILE]

All cases alternate in one run, in another order every round, so that neither
a machine whose speed drifts nor what the case before left in the caches
changes the ratios. Every case is a module, called as a network calls it;
on a GPU its work is a CUDA graph between two events, without the host's time.
Times are medians, and ratios medians of each round's. `kept` is what autograd
keeps for the backward pass, in units of the input and without the parameters;
`peak` is the highest GPU memory during forward and backward, in the same
units. In the layout channels_last every activation of the compiled form is
also called on (N, L, C) of the same bytes; `both / map` is its time over that
of the map.
"""
import argparse
import random
import statistics
from functools import partial
from typing import Dict, Iterable, List

import torch
import torch._dynamo
from tables import table
from timing import (DTYPES, LAYOUTS, add_timing_options, capture, kept_bytes,
                    now, peak_bytes, replay_seconds, start_benchmark,
                    write_json)
from torch import nn

import mm_acon
from mm_acon.ops import use_reference
from mm_acon.ops.extension import DEVICES

# Outputs of ResNet-50's stem and stages at 224 pixels, batch 16 and 8.
SHAPES = ('16x64x112x112', '8x256x56x56', '8x512x28x28', '8x1024x14x14',
          '8x2048x7x7')
TOKENS = ', tokens'
# What the cases are compared with.
BASES = ('ReLU', 'SiLU', 'copy')
ACTIVATIONS = dict(
    ACONA=mm_acon.ACONA,
    ACONB=mm_acon.ACONB,
    ACONC=mm_acon.ACONC,
    MetaACON=mm_acon.MetaACON,
    PWLU=mm_acon.PWLU,
    FReLU=mm_acon.FReLU,
    ACONFReLU=mm_acon.ACONFReLU)


class Reference(nn.Module):
    """An activation on the plain-PyTorch operators."""

    def __init__(self, activation: nn.Module) -> None:
        super().__init__()
        self.activation = activation

    def forward(self, x):
        with use_reference():
            return self.activation(x)


class Tokens(nn.Module):
    """An activation on a channels_last map that is seen as (N, L, C)."""

    def __init__(self, activation: nn.Module) -> None:
        super().__init__()
        self.activation = activation

    def forward(self, x):
        tokens = x.permute(0, 2, 3, 1).flatten(1, 2)
        return self.activation(tokens).view(x.permute(0, 2, 3,
                                                      1).shape).permute(
                                                          0, 3, 1, 2)


class Copy(nn.Module):
    """Reads and writes what an activation does, in both directions."""

    def forward(self, x):
        return x * 1


def cases(names: List[str], forms: List[str], channels: int, layout: str,
          device: torch.device) -> Dict[str, nn.Module]:
    found: Dict[str, nn.Module] = {
        'copy': Copy(),
        'ReLU': nn.ReLU(),
        # On a fresh product, as after a norm: a leaf cannot be overwritten.
        'ReLU inplace': nn.Sequential(Copy(), nn.ReLU(inplace=True)),
        'SiLU': nn.SiLU(),
    }
    for name in names:
        for form in forms:
            if form == 'compiled' and device.type not in DEVICES:
                continue
            module = ACTIVATIONS[name](channels).to(device)
            if form == 'reference':
                module = Reference(module)
            elif form == 'torch.compile':
                module = Reference(torch.compile(module, fullgraph=True))
            found[f'{name} {form}'] = module
            # Funnels take maps only.
            if (form == 'compiled' and layout == 'channels_last'
                    and module.is_curve):
                module = ACTIVATIONS[name](channels, channel_axis=-1)
                found[f'{name} {form}{TOKENS}'] = Tokens(module.to(device))
    return found


def measure(function: nn.Module, x: torch.Tensor, grad: torch.Tensor):
    """Seconds of one forward and one backward pass."""
    x = x.detach().requires_grad_()
    start = now(x.device)
    y = function(x)
    middle = now(x.device)
    y.backward(grad)
    return middle - start, now(x.device) - middle


def on_gpu(function: nn.Module, x: torch.Tensor, grad: torch.Tensor, pool):
    """Measures the same by graphs of the forward pass and of both."""
    x = x.detach().requires_grad_()
    leaves = [x] + [p for p in function.parameters() if p.requires_grad]

    def both():
        # Unlike backward() it adds up nothing.
        torch.autograd.grad(function(x), leaves, grad)

    graphs = [capture(work, pool)[0] for work in (partial(function, x), both)]

    def measured():
        forward, both = map(replay_seconds, graphs)
        return forward, both - forward

    return measured


def benchmark(shape, dtype, layout, args) -> List[dict]:
    device = torch.device(args.device)
    # Otherwise the second shape is compiled for any shape.
    torch._dynamo.reset()
    x = torch.randn(shape, device=device)
    x = x.to(dtype, memory_format=LAYOUTS[layout])
    grad = torch.randn_like(x)
    functions = cases(args.activations, args.forms, shape[1], layout, device)
    if dtype != torch.float32:
        # Convolutions inside an activation take x's dtype under autocast.
        functions = {
            name: Autocast(function, device, dtype)
            for name, function in functions.items()
        }
    # Of every case and round: milliseconds forward, backward and in all.
    times: Dict[str, List[dict]] = {name: [] for name in functions}
    cuda = device.type == 'cuda'
    pool = torch.cuda.graph_pool_handle() if cuda else None
    measures = {
        name:
        on_gpu(function, x, grad, pool) if cuda else partial(
            measure, function, x, grad)
        for name, function in functions.items()
    }
    order = list(functions)
    shuffle = random.Random(0).shuffle
    for round_ in range(args.warmup + args.rounds):
        shuffle(order)
        for name in order:
            forward, backward = measures[name]()
            if round_ >= args.warmup:
                times[name].append(
                    dict(
                        forward=1e3 * forward,
                        backward=1e3 * backward,
                        both=1e3 * (forward + backward)))
    size = x.numel() * x.element_size()
    rows = []
    for name, rounds in times.items():
        row = dict(
            shape='x'.join(map(str, shape)),
            dtype=str(dtype).replace('torch.', ''),
            layout=layout,
            case=name)
        for key in rounds[0]:
            row[f'{key}_ms'] = statistics.median(t[key] for t in rounds)
            for base in BASES:
                row[f'{key}_over_{base}'] = statistics.median(
                    t[key] / b[key] for t, b in zip(rounds, times[base]))
        if name.endswith(TOKENS):
            maps = times[name[:-len(TOKENS)]]
            row['both_over_map'] = statistics.median(
                t['both'] / b['both'] for t, b in zip(rounds, maps))
        peak = peak_bytes(partial(measure, functions[name], x, grad), device)
        row.update(
            kept=kept_bytes(functions[name], x) / size,
            peak=None if peak is None else peak / size)
        rows.append(row)
    return rows


class Autocast(nn.Module):

    def __init__(self, module: nn.Module, device, dtype) -> None:
        super().__init__()
        self.module, self.device, self.dtype = module, device, dtype

    def forward(self, x):
        with torch.autocast(self.device.type, self.dtype, cache_enabled=False):
            return self.module(x)


# Keys of a row by the title of their column.
COLUMNS = {
    'forward ms': 'forward_ms',
    'backward ms': 'backward_ms',
    'forward / ReLU': 'forward_over_ReLU',
    'backward / ReLU': 'backward_over_ReLU',
    'both / ReLU': 'both_over_ReLU',
    'forward / SiLU': 'forward_over_SiLU',
    'both / SiLU': 'both_over_SiLU',
    'both / copy': 'both_over_copy',
    'kept': 'kept',
    'peak': 'peak',
}


def cells(row: dict, keys: Iterable[str]) -> List[str]:
    numbers = [row.get(key) for key in keys]
    # Times of what is small are the host's.
    return [row['case']] + [
        '-' if number is None else
        f'{number:.4f}' if 0 < number < .1 else f'{number:.2f}'
        for number in numbers
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_timing_options(parser)
    parser.add_argument('--shapes', nargs='+', default=SHAPES)
    parser.add_argument(
        '--dtypes', nargs='+', choices=DTYPES, default=['float32'])
    parser.add_argument(
        '--layouts', nargs='+', choices=LAYOUTS, default=['contiguous'])
    parser.add_argument(
        '--activations',
        nargs='+',
        choices=ACTIVATIONS,
        default=list(ACTIVATIONS))
    parser.add_argument(
        '--forms',
        nargs='+',
        choices=['compiled', 'reference', 'torch.compile'],
        default=['compiled', 'reference', 'torch.compile'])
    args = parser.parse_args()
    run = start_benchmark(args)
    everything = []
    for layout in args.layouts:
        for dtype in args.dtypes:
            for text in args.shapes:
                shape = tuple(int(size) for size in text.split('x'))
                rows = benchmark(shape, DTYPES[dtype], layout, args)
                everything += rows
                print(f'\n{text}, {dtype}, {layout}\n')
                columns = dict(COLUMNS)
                if any('both_over_map' in row for row in rows):
                    columns['both / map'] = 'both_over_map'
                body = [cells(row, columns.values()) for row in rows]
                print(table(['case', *columns], body), flush=True)
    write_json(args.json, run, everything)


if __name__ == '__main__':
    main()
