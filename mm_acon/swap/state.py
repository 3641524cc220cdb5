"""Running a module so that nothing of it is another afterwards."""
import random
from contextlib import contextmanager
from typing import Iterable, Iterator

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy


@contextmanager
def kept_random_states(devices: Iterable = ()) -> Iterator[None]:
    """Random states of Python, numpy and torch are put back."""
    states = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices):
        try:
            yield
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])


@contextmanager
def kept_tensors(modules: Iterable[nn.Module], *kinds: str) -> Iterator[None]:
    """Each module's own '_buffers', '_parameters' or both are put back."""
    held = [(owner, name, value, value.detach().clone()) for module in modules
            for owner in (getattr(module, kind) for kind in kinds)
            for name, value in owner.items() if isinstance(value, Tensor)]
    try:
        yield
    finally:
        for owner, name, value, before in held:
            value.data.copy_(before)
            owner[name] = value


# Above what anybody starts from.
_LARGEST = 1e6


@contextmanager
def filled_parameters(root: nn.Module) -> Iterator[None]:
    """Numbers that ``init_weights`` has yet to write read as 0.

    Detectors like DINO have parameters of ``torch.empty``. NaN, or what
    makes it, would stand for all that comes behind.
    """
    held = []
    for parameter in root.parameters():
        if is_lazy(parameter) or not (parameter.is_floating_point()
                                      and parameter.numel()):
            continue
        value = parameter.data
        # False where it is NaN.
        if not value.is_meta and not value.abs().max() < _LARGEST:
            held.append((parameter, value))
            parameter.data = value.where(value.abs() < _LARGEST,
                                         value.new_zeros(()))
    try:
        yield
    finally:
        for parameter, value in held:
            parameter.data = value


@contextmanager
def kept_state(root: nn.Module, devices: Iterable = ()) -> Iterator[None]:
    """Random states and buffers are put back."""
    with kept_random_states(devices), kept_tensors(
            root.modules(), '_buffers'), filled_parameters(root):
        yield


@contextmanager
def in_mode(root: nn.Module, training: bool) -> Iterator[None]:
    """As ``train()`` or ``eval()``, and every module's own flag afterwards.

    A backbone's ``train()`` may do more than set flags, and it is wanted:
    LeViT makes there what its eval forward needs, MobileNetV2 freezes its
    stages there and nowhere else.
    """
    flags = {module: module.training for module in root.modules()}
    try:
        # Some backbones' own eval() takes what train(False) does not do.
        root.train() if training else root.eval()
        yield
    finally:
        root.train(flags[root])
        for module, flag in flags.items():
            module.training = flag
