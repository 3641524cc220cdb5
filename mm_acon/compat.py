"""What Python and torch have not had since the oldest that is supported.

Each entry says with which version it goes. Nothing else in the package asks
for a version, or whether a name exists; what differs in C++ is in
ops/csrc/compat.h.
"""
from importlib import metadata
from typing import Callable, Dict, Iterator, List, Sequence

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

_LIBRARIES = []


def register_fake(operator: str) -> Callable:
    """``torch.library.register_fake``: shapes without arithmetic.

    Goes with torch 2.4; ``impl_abstract`` came with 2.1.
    """
    for name in ('register_fake', 'impl_abstract'):
        if hasattr(torch.library, name):
            return getattr(torch.library, name)(operator)

    def register(function: Callable) -> Callable:
        namespace, _, name = operator.partition('::')
        library = torch.library.Library(namespace, 'IMPL', 'Meta')
        library.impl(name, function)
        # It takes its kernels with it when it is deleted.
        _LIBRARIES.append(library)
        return function

    return register


def register_flop_formula(operator) -> Callable:
    """``torch.utils.flop_counter.register_flop_formula``.

    Goes with torch 2.4; before, torch's counter knows its own operators only.
    """
    try:
        from torch.utils.flop_counter import register_flop_formula
    except ImportError:
        return lambda function: function
    return register_flop_formula(operator)


try:
    # Goes with torch 2.3.
    from torch.compiler import is_compiling
except ImportError:
    from torch._utils import is_compiling  # noqa: F401

try:
    # Goes with numpy 2.
    from numpy._core import multiarray as numpy_multiarray
except ImportError:
    from numpy.core import multiarray as numpy_multiarray  # noqa: F401


def register_load_state_dict_pre_hook(module: nn.Module,
                                      hook: Callable) -> RemovableHandle:
    """The method of ``nn.Module``; goes with torch 2.5."""
    if hasattr(module, 'register_load_state_dict_pre_hook'):
        return module.register_load_state_dict_pre_hook(hook)
    return module._register_load_state_dict_pre_hook(hook, with_module=True)


def packages_distributions() -> Dict[str, List[str]]:
    """``importlib.metadata.packages_distributions``; goes with Python 3.10."""
    if hasattr(metadata, 'packages_distributions'):
        return metadata.packages_distributions()  # novermin
    found = {}
    for distribution in metadata.distributions():
        for package in (distribution.read_text('top_level.txt') or '').split():
            found.setdefault(package, []).append(distribution.metadata['Name'])
    return found


def strict_zip(*sequences: Sequence) -> Iterator[tuple]:
    """``zip(..., strict=True)`` of sequences; goes with Python 3.10."""
    lengths = [len(sequence) for sequence in sequences]
    if len(set(lengths)) > 1:
        raise ValueError(f'Expected sequences of one length, got {lengths}.')
    return zip(*sequences)


def removeprefix(text: str, prefix: str) -> str:
    """``text.removeprefix(prefix)``; goes with Python 3.9."""
    return text[len(prefix):] if text.startswith(prefix) else text
