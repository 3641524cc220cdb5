"""Finds the copies inside a model that follow a part of it by momentum.

The teacher of mmdet's MeanTeacherHook, the key encoder of MoCo, the target
network of BYOL. No name tells them: a copy is a part of the same structure as
another part, without gradient, whose weights move nevertheless.
"""
from dataclasses import dataclass, field
from typing import Dict, Iterator, List, Optional, Tuple

import torch
from mmengine.model import BaseAveragedModel
from torch import Tensor, nn

from ..activations.base import LearnableActivation, activations_of


@dataclass
class Mirror:
    """A part without gradient, built as a part that is trained.

    Attributes:
        name: Of the part, in the model.
        module: The part itself.
        sources: Names of the parts that it may be a copy of.
        source: The first of them.
        is_average: Whether its type says that it follows the source.
    """
    name: str
    module: nn.Module
    sources: List[str]
    source: Optional[nn.Module]
    is_average: bool
    # A parameter, and its value when this was made.
    _watched: Optional[Tuple[nn.Parameter, Tensor]] = field(
        default=None, repr=False)

    def __post_init__(self) -> None:
        if self.source is None:
            return
        inner = _inner_parameters(self.source)
        mine = dict(self.module.named_parameters())
        for name, parameter in self.source.named_parameters():
            if parameter.requires_grad and name not in inner:
                self._watched = mine[name], mine[name].detach().clone()
                return

    def pairs(self) -> Iterator[Tuple[str, nn.Module, nn.Module]]:
        """Name of an activation in the model, its source and itself."""
        if self.source is None:
            return
        for name, activation in activations_of(self.module).items():
            path = f'{self.name}.{name}' if name else self.name
            yield path, self.source.get_submodule(name), activation

    @property
    def follows(self) -> bool:
        """Whether it is known to be a momentum copy by now."""
        if self.is_average or self._watched is None:
            return self.is_average
        return not torch.equal(*self._watched)


def find_mirrors(model: nn.Module) -> List[Mirror]:
    """The parts of a model that may be momentum copies of other parts."""
    return [
        mirror for part in _parts_without_gradient(model, '', set())
        for mirror in _mirrors(model, *part)
    ]


def _mirrors(model: nn.Module, name: str, part: nn.Module,
             is_average: bool) -> Iterator[Mirror]:
    # An activation by itself has no weights to be known by.
    alone = isinstance(part, LearnableActivation)
    sources = {} if alone else _sources(model, part)
    if sources:
        yield Mirror(name, part, list(sources), next(iter(sources.values())),
                     is_average)
    elif isinstance(part, (nn.Sequential, nn.ModuleList, nn.ModuleDict)):
        # MoCo averages Sequential(backbone, neck), and keeps the two alone.
        for child_name, child in part.named_children():
            if activations_of(child):
                yield from _mirrors(model, f'{name}.{child_name}', child,
                                    is_average)
    elif is_average:
        yield Mirror(name, part, [], None, is_average)


def _sources(model: nn.Module, part: nn.Module) -> Dict[str, nn.Module]:
    """The parts of a model that are trained and of that structure."""
    inside, build = set(part.modules()), _build(part)
    return {
        name: module
        for name, module in model.named_modules()
        if type(module) is type(part) and module not in inside
        and _build(module) == build and any(p.requires_grad
                                            for p in module.parameters())
    }


def _inner_parameters(part: nn.Module) -> set:
    """Names of the parameters of activations, whose sizes may be unknown."""
    return {
        name
        for prefix, activation in activations_of(part).items()
        for name, _ in activation.named_parameters(prefix=prefix)
    }


def _build(part: nn.Module) -> tuple:
    """What two parts of the same structure have in common."""
    inner = _inner_parameters(part)
    return ([(name, type(activation))
             for name, activation in activations_of(part).items()],
            [(name, parameter.shape)
             for name, parameter in part.named_parameters()
             if name not in inner])


def _parts_without_gradient(module: nn.Module, name: str, seen: set):
    """The largest parts with activations of which no parameter is trained."""
    if module in seen:
        return
    seen.add(module)
    if not activations_of(module):
        return
    if isinstance(module, BaseAveragedModel):
        yield f'{name}.module' if name else 'module', module.module, True
    elif not any(p.requires_grad for p in module.parameters()):
        yield name, module, False
    else:
        for child_name, child in module.named_children():
            path = f'{name}.{child_name}' if name else child_name
            yield from _parts_without_gradient(child, path, seen)
