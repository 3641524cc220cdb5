from typing import Optional, Sequence

from mmengine.model import ModuleList
from torch import Tensor, nn

from ..compat import is_compiling


class ActivationPerCall(ModuleList):
    """Stands for one activation module that a forward calls several times.

    The n-th call within one forward of ``caller`` goes to the n-th child.
    The count starts again when the caller's forward starts, and when the
    first module that the caller calls is called: gradient checkpointing runs
    a block again from that module on, without the caller's own forward.
    A forward that makes other calls than were seen is an error, because the
    n-th of them need not be the n-th of those.

    Args:
        activations (Sequence[nn.Module]): One per call.
        caller (nn.Module): The module whose forward makes the calls.
        first_called (nn.Module, optional): The module that it calls first.
    """

    def __init__(self, activations: Sequence[nn.Module], caller: nn.Module,
                 first_called: Optional[nn.Module]) -> None:
        super().__init__(activations)
        self.next_call = 0
        self.caller_type = type(caller).__name__
        self.first_called = next((name
                                  for name, module in caller.named_modules()
                                  if module is first_called), None)
        self.watch_first_called(caller)
        caller.register_forward_pre_hook(self.restart_with_caller)
        caller.register_forward_hook(self.check_number)

    def restart_with_caller(self, caller: nn.Module, args: tuple) -> None:
        self.next_call = 0
        if not is_compiling():
            self.watch_first_called(caller)

    def watch_first_called(self, caller: nn.Module) -> None:
        if self.first_called is None:
            return
        # Looked up each time: SyncBN conversion puts new modules in place.
        child = caller.get_submodule(self.first_called)
        if self.restart not in child._forward_pre_hooks.values():
            child.register_forward_pre_hook(self.restart)

    def restart(self, *unused) -> None:
        self.next_call = 0

    def check_number(self, caller: nn.Module, args: tuple, result) -> None:
        if 0 < self.next_call < len(self):
            raise self.other_way(f'{self.next_call} calls in one forward')

    def other_way(self, what: str) -> RuntimeError:
        return RuntimeError(
            f'{self.caller_type} calls an activation otherwise than it did '
            f'when it was swapped: {what}, expected {len(self)} calls. Swap '
            'it with a sample_input that makes its forward go the same way, '
            "or leave it out with exclude='...' in swap (--act-exclude of the "
            'tools).')

    def forward(self, x: Tensor) -> Tensor:
        if self.next_call == len(self):
            raise self.other_way(f'call {len(self) + 1} in one forward')
        activation = self[self.next_call]
        self.next_call += 1
        width = getattr(activation, 'num_channels', None)
        if width is not None and x.shape[1] != width:
            raise self.other_way(f'{x.shape[1]} channels in call '
                                 f'{self.next_call}, which had {width}')
        return activation(x)
