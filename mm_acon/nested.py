"""Tensors in lists, tuples and dicts that lie in one another."""
from typing import Any, Iterator

from torch import Tensor


def tensors(value: Any) -> Iterator[Tensor]:
    """The tensors in it, from left to right."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from tensors(item)
    elif isinstance(value, dict):
        yield from tensors(list(value.values()))
