from typing import Optional, Sequence

import torch
from mmengine.model import ModuleList
from torch import Tensor, nn


class ActivationPerCall(ModuleList):
    """Stands for one activation module that a forward calls several times.

    The n-th call within one forward of ``caller`` goes to the n-th child.
    The count starts again when the caller's forward starts, and when the
    first module that the caller calls is called: gradient checkpointing runs
    a block again from that module on, without the caller's own forward.

    Args:
        activations (Sequence[nn.Module]): One per call.
        caller (nn.Module): The module whose forward makes the calls.
        first_child (nn.Module, optional): The module that it calls first.
    """

    def __init__(self, activations: Sequence[nn.Module], caller: nn.Module,
                 first_child: Optional[nn.Module]) -> None:
        super().__init__(activations)
        self.next_call = 0
        self.caller_type = type(caller).__name__
        self.first_child = next(
            (name for name, module in caller.named_modules()
             if module is first_child), None)
        caller.register_forward_pre_hook(self.restart_with_caller)
        caller.register_forward_hook(self.check_number)

    def restart_with_caller(self, caller: nn.Module, args: tuple) -> None:
        self.next_call = 0
        if self.first_child is None or torch.compiler.is_compiling():
            return
        # Looked up each time: SyncBN conversion puts new modules in place.
        child = caller.get_submodule(self.first_child)
        if self.restart not in child._forward_pre_hooks.values():
            child.register_forward_pre_hook(self.restart)

    def restart(self, *unused) -> None:
        self.next_call = 0

    def check_number(self, caller: nn.Module, args: tuple, result) -> None:
        """Fewer calls than were seen may not be the first ones of them."""
        if 0 < self.next_call < len(self):
            raise self.wrong_number(self.next_call)

    def wrong_number(self, calls: int) -> RuntimeError:
        return RuntimeError(
            f'an activation of {self.caller_type} was called {calls} times '
            f'in one forward, {len(self)} calls were seen when it was '
            'swapped. Swap it with a sample_input that makes the forward go '
            'the same way, or leave it out with exclude=.')

    def forward(self, x: Tensor) -> Tensor:
        if self.next_call == len(self):
            raise self.wrong_number(len(self) + 1)
        activation = self[self.next_call]
        self.next_call += 1
        return activation(x)
