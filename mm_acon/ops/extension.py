"""Finds and loads the compiled operators, ``mm_acon._ext``."""
import functools
import warnings
from contextlib import contextmanager
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Dict, FrozenSet, Iterator, Optional, Sequence, Tuple

import torch

from ..compat import is_compiling, is_transformed, register_flop_formula

BUILD_COMMAND = 'pip install --no-build-isolation -e .'


def _load() -> FrozenSet[str]:
    """Device types that the extension has kernels for."""
    spec = PathFinder.find_spec('_ext', [str(Path(__file__).parents[1])])
    if spec is None:
        return frozenset()
    try:
        torch.ops.load_library(spec.origin)
    except OSError as error:
        raise ImportError(
            f'{spec.origin} is there but cannot be loaded: {error}. It was '
            f'probably built for another torch than {torch.__version__}: '
            f'build it again with {BUILD_COMMAND}, or remove it.') from error
    return frozenset(device
                     for device, key in (('cpu', 'CPU'), ('cuda', 'CUDA'))
                     if torch._C._dispatch_has_kernel_for_dispatch_key(
                         'mm_acon::acon', key))


DEVICES = _load()
_HAS_CPU, _HAS_CUDA = 'cpu' in DEVICES, 'cuda' in DEVICES
_reference = False


@contextmanager
def use_reference() -> Iterator[None]:
    """Operators called within run in plain PyTorch, without a warning.

    For comparisons, and for what the compiled ones refuse: a second
    derivative, for example. It holds for the whole process, and for what is
    called: a backward pass goes the way that its forward pass went.
    """
    global _reference
    before, _reference = _reference, True
    try:
        yield
    finally:
        _reference = before


@functools.lru_cache(maxsize=None)
def _warn_of_reference(device: str) -> None:
    command = BUILD_COMMAND
    if device == 'cuda':
        command = f'FORCE_CUDA=1 {command} (needs nvcc)'
    warnings.warn(
        f'mm_acon has no compiled operators for {device} and runs its '
        'plain-PyTorch reference, which takes several times the time and '
        f'memory. Build them in the source folder: {command}',
        stacklevel=4)


def has_kernels(x: torch.Tensor) -> bool:
    """Whether compiled operators take x; warns once where none do."""
    compiling = is_compiling()
    if _reference or not compiling and is_transformed():
        return False
    # What is nearly always so: x.device.type takes 0.3 us, up to 0.8 in torch
    # 2.0, whose torch.compile cannot follow is_cpu.
    if not compiling and (x.is_cpu and _HAS_CPU or x.is_cuda and _HAS_CUDA):
        return True
    device = x.device.type
    if device in DEVICES or (device == 'meta' and DEVICES):
        return True
    if device in ('cpu', 'cuda') and not compiling:
        _warn_of_reference(device)
    return False


# What the operators cost: multiply-adds per element.
COSTS: Dict[str, int] = {}


def register_cost(operator: str, multiply_adds: int) -> None:
    """Notes what an operator costs, and tells torch's FLOP counter."""
    COSTS[operator] = multiply_adds

    # torch counts a multiply-add as two.
    def count(x_shape, *args, **kwargs) -> int:
        return 2 * multiply_adds * x_shape.numel()

    register_flop_formula(getattr(torch.ops.mm_acon, operator))(count)


def dense_like(x: torch.Tensor) -> torch.Tensor:
    """An output of the operators: x's layout, as far as it is dense."""
    return torch.empty_like(x)


def only_asked(gradients: Sequence[torch.Tensor],
               asked: Sequence[bool]) -> Tuple[Optional[torch.Tensor], ...]:
    """What a backward operator returns: None for what was not asked for."""
    return tuple(g if wanted else None for g, wanted in zip(gradients, asked))
