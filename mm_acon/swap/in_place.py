"""Activations whose input is written to.

As hooks, so that what a network holds is the activation itself.
"""
from typing import Optional, Tuple

import torch
from torch import Tensor, nn


class InputCopied:
    """Gives an activation a copy of its input, which is changed afterwards.

    What keeps its input for the backward pass needs that; ReLU keeps its
    output.
    """

    def apply_to(self, activation: nn.Module) -> None:
        activation.register_forward_pre_hook(self.before)

    def before(self, activation: nn.Module,
               args: Tuple[Tensor]) -> Optional[Tensor]:
        return args[0].clone() if torch.is_grad_enabled() else None


class WrittenBack(InputCopied):
    """Writes the output into the input, which is read again.

    As ``ReLU(inplace=True)`` does, for a block that relies on it.
    """

    def __init__(self) -> None:
        self.x: Optional[Tensor] = None

    def apply_to(self, activation: nn.Module) -> None:
        super().apply_to(activation)
        activation.register_forward_hook(self.after)

    def before(self, activation: nn.Module,
               args: Tuple[Tensor]) -> Optional[Tensor]:
        self.x, = args
        return super().before(activation, args)

    def after(self, activation: nn.Module, args: Tuple[Tensor],
              output: Tensor) -> Tensor:
        x, self.x = self.x, None
        return x.copy_(output)


def carry_over(old: nn.Module, new: nn.Module) -> None:
    """Applies to a module what was applied to the one whose place it takes."""
    for hook in old._forward_pre_hooks.values():
        owner = getattr(hook, '__self__', None)
        if isinstance(owner, InputCopied):
            type(owner)().apply_to(new)
