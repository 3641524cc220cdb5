"""What a pass of each activation launches and holds, without timing it.

    python tools/dev/count_launches.py

Of a map of (8, 64, 28, 28) float32. `ops` are the calls in which PyTorch
does work, counted by its profiler on the CPU: those that only change how
memory is seen are left out. `bytes` are what these allocate, in units of the
input: the output, in backward the gradient of the input, and what is beside
them. `kernels` are the launches of mm_acon's own CUDA kernels, counted in
their emulation on the CPU; what else there is (meta-ACON's mean and
convolutions) are PyTorch's own, as many as on the CPU.
"""
import argparse
import os
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Callable, Dict, List, Optional, Tuple

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

ROOT = Path(__file__).resolve().parents[2]
SHAPE = (8, 64, 28, 28)
LAYOUTS = dict(
    contiguous=torch.contiguous_format, channels_last=torch.channels_last)
TITLES = ('activation', 'layout', 'learns', 'forward ops', 'kernels', 'bytes',
          'backward ops', 'kernels', 'bytes')
# They allocate, change how memory is seen, or only ask.
FREE = {
    f'aten::{name}'
    for name in ('alias', 'as_strided', 'detach', 'empty', 'empty_like',
                 'empty_strided', 'expand', 'expand_as', 'flatten',
                 'is_same_size', 'permute', 'reshape', 'resize_',
                 'resolve_conj', 'resolve_neg', 'result_type', 'select',
                 'slice', 'squeeze', 't', 'to', 'transpose', 'unsqueeze',
                 'view', 'view_as')
}


def activations() -> Dict[str, Callable[[], nn.Module]]:
    import mm_acon
    channels = SHAPE[1]
    found = {'ReLU': nn.ReLU, 'SiLU': nn.SiLU}
    for name in ('ACONA', 'ACONB', 'ACONC', 'MetaACON', 'PWLU'):
        found[name] = lambda name=name: getattr(mm_acon, name)(channels)
    return found


def emulated_launches() -> Optional[int]:
    """So far; None where the operators are not emulated."""
    count = getattr(torch.ops.mm_acon, 'launches', None)
    return count and count()


def count(work: Callable[[], Tensor]) -> Tuple[Tensor, List[str]]:
    """Ops, kernels and bytes of what is done."""
    before = emulated_launches()
    with profile(
            activities=[ProfilerActivity.CPU], profile_memory=True) as run:
        result = work()
    kernels = '-' if before is None else emulated_launches() - before
    leaves = [
        event.name for event in run.events()
        if event.name.startswith(('aten::', 'mm_acon::'))
        and event.name not in FREE and all(child.name in FREE
                                           for child in event.cpu_children)
    ]
    size = torch.empty(SHAPE).untyped_storage().nbytes()
    held = sum(
        max(0, event.self_cpu_memory_usage) for event in run.events()
        if event.name.startswith(('aten::', 'mm_acon::')))
    return result, [str(len(leaves)), str(kernels), f'{held / size:.2f}']


def row(module: nn.Module, x: Tensor, grad: Tensor, learns: str) -> List[str]:
    """What is counted of one module; `learns`: all, x alone or nothing."""
    module.requires_grad_(learns == 'all')
    leaf = x.detach().requires_grad_(learns != 'nothing')
    # What the first call prepares.
    module(leaf)
    y, forward = count(partial(module, leaf))
    if learns == 'nothing':
        return forward + ['-'] * 3
    asked = [leaf] + [p for p in module.parameters() if p.requires_grad]
    return forward + count(partial(torch.autograd.grad, y, asked, grad))[1]


def rows() -> List[List[str]]:
    # Before any tensor: the emulation knows its own memory alone.
    kinds = activations()
    torch.manual_seed(0)
    found = []
    for layout, memory_format in LAYOUTS.items():
        x, grad = (
            torch.randn(SHAPE).to(memory_format=memory_format)
            for _ in range(2))
        for name, make in kinds.items():
            for learns in ('all', 'x alone', 'nothing'):
                if learns != 'all' or list(make().parameters()):
                    counted = row(make(), x, grad, learns)
                    found.append([name, layout, learns, *counted])
    return found


def run_emulated() -> List[List[str]]:
    """The same rows in a process whose operators are the CUDA kernels."""
    sys.path.insert(0, str(ROOT))
    from tests.helpers.emulation import emulate
    with tempfile.TemporaryDirectory() as folder:
        emulate(Path(folder))
        done = subprocess.run([sys.executable, __file__, '--rows'],
                              env=dict(os.environ, PYTHONPATH=folder),
                              stdout=subprocess.PIPE,
                              text=True,
                              check=True)
    return [line.split('\t') for line in done.stdout.splitlines()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        '--rows', action='store_true', help='here, separated by tabs')
    if parser.parse_args().rows:
        print('\n'.join('\t'.join(row) for row in rows()))
        return
    sys.path.insert(0, str(ROOT / 'tools/analysis'))
    from tables import table
    found = rows()
    for here, emulated in zip(found, run_emulated()):
        for column in (4, 7):
            here[column] = emulated[column]
    print(table(TITLES, found, text=(0, 1, 2)))


if __name__ == '__main__':
    main()
