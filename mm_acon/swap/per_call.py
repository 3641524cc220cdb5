from typing import Optional, Sequence

from mmengine.model import ModuleList
from torch import Tensor, nn

from ..compat import is_compiling


class ActivationPerCall(ModuleList):
    """Stands for one activation module that a forward calls several times.

    Which child a call goes to is given by its number within one forward of
    ``caller``; in training it may be another one than in evaluation
    (TridentNet has more branches there). The count starts again when the
    caller's forward starts, and when the first module that the caller calls
    is called: gradient checkpointing runs a block again from that module on,
    without the caller's own forward. A forward that makes another number of
    calls than were seen is an error, because its n-th call need not be the
    n-th of those.

    Args:
        activations (Sequence[nn.Module]): The children.
        caller (nn.Module): The module whose forward makes the calls.
        first_called (nn.Module, optional): The module that it calls first.
        order (Sequence[int], optional): The child for each call in
            evaluation. None takes one after the other.
        training_order (Sequence[int], optional): Likewise in training. None
            is the same as in evaluation.
    """

    def __init__(self,
                 activations: Sequence[nn.Module],
                 caller: nn.Module,
                 first_called: Optional[nn.Module],
                 order: Optional[Sequence[int]] = None,
                 training_order: Optional[Sequence[int]] = None) -> None:
        super().__init__(activations)
        self.order = tuple(range(len(activations)) if order is None else order)
        self.training_order = (
            self.order if training_order is None else tuple(training_order))
        self.next_call = 0
        self.caller_type = type(caller).__name__
        self.first_called = next((name
                                  for name, module in caller.named_modules()
                                  if module is first_called), None)
        self.watch_first_called(caller)
        caller.register_forward_pre_hook(self.restart_with_caller)
        caller.register_forward_hook(self.check_number)

    @property
    def current_order(self) -> Sequence[int]:
        return self.training_order if self.training else self.order

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
        if 0 < self.next_call < len(self.current_order):
            raise self.other_way(f'{self.next_call} calls in one forward')

    def remove_hooks(self, caller: nn.Module) -> None:
        """Takes the hooks away again."""
        modules = [caller]
        if self.first_called is not None:
            modules.append(caller.get_submodule(self.first_called))
        own = self.restart_with_caller, self.check_number, self.restart
        for module in modules:
            for hooks in (module._forward_pre_hooks, module._forward_hooks):
                for key in [k for k, hook in hooks.items() if hook in own]:
                    del hooks[key]

    def other_way(self, what: str) -> RuntimeError:
        return RuntimeError(
            f'{self.caller_type} calls an activation otherwise than it did '
            f'when it was swapped: {what}, expected '
            f'{len(self.current_order)} calls. Swap '
            'it with a sample_input that makes its forward go the same way, '
            "or leave it out with exclude='...' in swap (--act-exclude of the "
            'tools).')

    def forward(self, x: Tensor) -> Tensor:
        if self.next_call == len(self.current_order):
            raise self.other_way(f'call {self.next_call + 1} in one forward')
        activation = self[self.current_order[self.next_call]]
        self.next_call += 1
        width = getattr(activation, 'num_channels', None)
        axis = getattr(activation, 'channel_axis', 1) or 1
        if width is not None and x.shape[axis] != width:
            raise self.other_way(f'{x.shape[axis]} channels in call '
                                 f'{self.next_call}, which had {width}')
        return activation(x)

    def _load_from_state_dict(self, state_dict, prefix, *args) -> None:
        slopes = state_dict.get(f'{prefix}weight')
        if slopes is not None:
            # A PReLU's, from before it was split; each child takes them over.
            del state_dict[f'{prefix}weight']
            for index in range(len(self)):
                state_dict.setdefault(f'{prefix}{index}.weight', slopes)
        super()._load_from_state_dict(state_dict, prefix, *args)
