"""Time and memory of every activation beside ReLU's.

    python tools/analysis/benchmark_ops.py [--device cuda] [--json FILE]

All cases alternate in one run, so that a machine whose speed drifts changes
none of the ratios; times are medians. `kept` is what autograd keeps for the
backward pass, in units of the input and without the parameters; `peak` is the
highest GPU memory during forward and backward, in the same units.
"""
import argparse
import json
import platform
import statistics
import time
from contextlib import contextmanager
from typing import Callable, Dict, List

import torch
import torch.nn.functional as F
from torch import nn

import mm_acon
from mm_acon.ops import extension

# Outputs of ResNet-50's stem and stages at 224 pixels, batch 16 and 8.
SHAPES = ('16x64x112x112', '8x256x56x56', '8x512x28x28', '8x1024x14x14',
          '8x2048x7x7')
ACTIVATIONS = dict(
    ACONA=mm_acon.ACONA,
    ACONB=mm_acon.ACONB,
    ACONC=mm_acon.ACONC,
    MetaACON=mm_acon.MetaACON,
    PWLU=mm_acon.PWLU,
    FReLU=mm_acon.FReLU,
    ACONFReLU=mm_acon.ACONFReLU)
DTYPES = dict(
    float32=torch.float32, bfloat16=torch.bfloat16, float16=torch.float16)


@contextmanager
def without_extension():
    devices = extension.DEVICES
    extension.DEVICES = frozenset()
    extension._warn_of_reference.cache_clear()
    try:
        yield
    finally:
        extension.DEVICES = devices


class Reference(nn.Module):
    """An activation on the plain-PyTorch operators."""

    def __init__(self, activation: nn.Module) -> None:
        super().__init__()
        self.activation = activation

    def forward(self, x):
        with without_extension():
            return self.activation(x)


class CompiledReference(nn.Module):
    """The same through torch.compile, traced without the extension."""

    def __init__(self, activation: nn.Module) -> None:
        super().__init__()
        self.compiled = torch.compile(activation, fullgraph=True)

    def forward(self, x):
        devices, extension.DEVICES = extension.DEVICES, frozenset()
        try:
            return self.compiled(x)
        finally:
            extension.DEVICES = devices


def cases(names: List[str], forms: List[str], channels: int,
          device: torch.device) -> Dict[str, Callable]:
    found: Dict[str, Callable] = {
        # Reads and writes the same bytes, in both directions.
        'copy': lambda x: x * 1,
        'ReLU': F.relu,
        # On a fresh product, as after a norm: a leaf cannot be overwritten.
        'ReLU inplace': lambda x: F.relu(x * 1, inplace=True),
        'SiLU': F.silu,
    }
    for name in names:
        for form in forms:
            if form == 'compiled' and device.type not in extension.DEVICES:
                continue
            module = ACTIVATIONS[name](channels).to(device)
            if form == 'reference':
                module = Reference(module)
            elif form == 'torch.compile':
                module = CompiledReference(module)
            found[f'{name} {form}'] = module
    return found


def synchronize(device: torch.device) -> None:
    if device.type == 'cuda':
        torch.cuda.synchronize(device)


def measure(function: Callable, x: torch.Tensor, grad: torch.Tensor):
    """Seconds of one forward and one backward pass."""
    x = x.detach().requires_grad_()
    synchronize(x.device)
    start = time.perf_counter()
    y = function(x)
    synchronize(x.device)
    middle = time.perf_counter()
    y.backward(grad)
    synchronize(x.device)
    return middle - start, time.perf_counter() - middle


def kept_bytes(function: Callable, x: torch.Tensor) -> int:
    """Bytes that autograd keeps, each storage once, parameters left out."""
    parameters = {
        p.untyped_storage().data_ptr()
        for p in getattr(function, 'parameters', list)()
    }
    kept = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        y = function(x.detach().requires_grad_())
    del y
    return sum(kept.values())


def peak_bytes(function: Callable, x: torch.Tensor, grad: torch.Tensor):
    if x.device.type != 'cuda':
        return None
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    measure(function, x, grad)
    return torch.cuda.max_memory_allocated() - before


def benchmark(shape, dtype, layout, args) -> List[dict]:
    device = torch.device(args.device)
    # Otherwise the second shape is compiled for any shape.
    torch._dynamo.reset()
    x = torch.randn(shape, device=device).to(dtype)
    if layout == 'channels_last':
        x = x.to(memory_format=torch.channels_last)
    grad = torch.randn_like(x)
    functions = cases(args.activations, args.forms, shape[1], device)
    if dtype != torch.float32:
        # Convolutions inside an activation take x's dtype under autocast.
        functions = {
            name: autocast(function, device, dtype)
            for name, function in functions.items()
        }
    times = {name: ([], []) for name in functions}
    for round_ in range(args.warmup + args.rounds):
        for name, function in functions.items():
            forward, backward = measure(function, x, grad)
            if round_ >= args.warmup:
                times[name][0].append(forward)
                times[name][1].append(backward)
    size = x.numel() * x.element_size()
    rows = []
    for name, (forward, backward) in times.items():
        peak = peak_bytes(functions[name], x, grad)
        rows.append(
            dict(
                shape='x'.join(map(str, shape)),
                dtype=str(dtype).replace('torch.', ''),
                layout=layout,
                case=name,
                forward_ms=1e3 * statistics.median(forward),
                backward_ms=1e3 * statistics.median(backward),
                both_ms=1e3 * statistics.median(
                    f + b for f, b in zip(forward, backward)),
                kept=kept_bytes(functions[name], x) / size,
                peak=None if peak is None else peak / size))
    return rows


def autocast(function: Callable, device, dtype) -> Callable:

    class Autocast(nn.Module):

        def __init__(self):
            super().__init__()
            if isinstance(function, nn.Module):
                self.inner = function

        def forward(self, x):
            with torch.autocast(device.type, dtype):
                return function(x)

    return Autocast()


def table(rows: List[dict]) -> str:
    lines = [
        '| case | forward ms | backward ms | forward / ReLU | both / ReLU | '
        'forward / SiLU | both / SiLU | both / copy | kept | peak |',
        '| --- |' + ' ---: |' * 9
    ]
    base = {row['case']: row for row in rows}
    for row in rows:
        ratio = [
            row[key] / base[case][key]
            for case, key in (('ReLU', 'forward_ms'), ('ReLU', 'both_ms'),
                              ('SiLU', 'forward_ms'), ('SiLU', 'both_ms'),
                              ('copy', 'both_ms'))
        ]
        peak = '-' if row['peak'] is None else f'{row["peak"]:.2f}'
        lines.append(
            f'| {row["case"]} | {row["forward_ms"]:.2f} | '
            f'{row["backward_ms"]:.2f} | ' +
            ' | '.join(f'{value:.2f}' for value in ratio) +
            f' | {row["kept"]:.2f} | {peak} |')
    return '\n'.join(lines)


def processor() -> str:
    with open('/proc/cpuinfo') as file:
        for line in file:
            if line.startswith('model name'):
                return line.split(':', 1)[1].strip()
    return platform.processor()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--device', default='cpu')
    parser.add_argument('--shapes', nargs='+', default=SHAPES)
    parser.add_argument(
        '--dtypes', nargs='+', choices=DTYPES, default=['float32'])
    parser.add_argument(
        '--layouts',
        nargs='+',
        choices=['contiguous', 'channels_last'],
        default=['contiguous'])
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
    parser.add_argument('--rounds', type=int, default=15)
    parser.add_argument('--warmup', type=int, default=3)
    parser.add_argument('--threads', type=int, default=2)
    parser.add_argument('--json', help='file for the figures')
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    device = (
        torch.cuda.get_device_name(args.device) if 'cuda' in args.device else
        f'{processor()}, {args.threads} threads')
    print(f'{device}; torch {torch.__version__}, {time.strftime("%Y-%m-%d")}')
    everything = []
    for layout in args.layouts:
        for dtype in args.dtypes:
            for text in args.shapes:
                shape = tuple(int(size) for size in text.split('x'))
                rows = benchmark(shape, DTYPES[dtype], layout, args)
                everything += rows
                print(f'\n{text}, {dtype}, {layout}\n\n{table(rows)}',
                      flush=True)
    if args.json:
        with open(args.json, 'w') as file:
            json.dump(
                dict(
                    device=device,
                    torch=torch.__version__,
                    date=time.strftime('%Y-%m-%d'),
                    rows=everything), file, indent=1)


if __name__ == '__main__':
    main()
