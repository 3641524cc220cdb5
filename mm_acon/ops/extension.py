"""Finds and loads the compiled operators, ``mm_acon._ext``."""
import functools
import warnings
from importlib.machinery import PathFinder
from pathlib import Path
from typing import FrozenSet

import torch

from ..versions import is_compiling

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
    return frozenset(
        device for device, key in (('cpu', 'CPU'), ('cuda', 'CUDA'))
        if torch._C._dispatch_has_kernel_for_dispatch_key(
            'mm_acon::acon', key))


DEVICES = _load()


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
    device = x.device.type
    if device in DEVICES or (device == 'meta' and DEVICES):
        return True
    if device in ('cpu', 'cuda') and not is_compiling():
        _warn_of_reference(device)
    return False


def dense_like(x: torch.Tensor) -> torch.Tensor:
    """An output of the operators: x's layout, or contiguous."""
    layout = {4: torch.channels_last, 5: torch.channels_last_3d}.get(x.dim())
    if (layout is None or x.is_contiguous()
            or not x.is_contiguous(memory_format=layout)):
        layout = torch.contiguous_format
    return torch.empty_like(x, memory_format=layout)
