"""Parameters whose size is not known yet."""
import torch
from torch import Tensor, nn

from ..nested import tensors


class UnknownWidthError(RuntimeError):
    """What an activation without a width learns later would be lost."""

    def __init__(self, what: str) -> None:
        super().__init__(
            f'{what}: an activation has met no input that tells its width, '
            'and would be fresh afterwards, whatever is learnt. Call '
            'mm_acon.find_widths(model, batch) right after the model is '
            "built, write custom_hooks=[dict(type='ActivationSetupHook')], or "
            'train with tools/train.py, which finds the widths.')


class EmptyTensor(Tensor):
    """A tensor of no elements, for one whose size is not known yet.

    It goes wherever a parameter goes: to a device, into an optimizer, through
    an initialisation. Two things would lose in silence what is learnt later,
    and are an :class:`UnknownWidthError`: to pickle it, as ``torch.save``
    does, and to put it together with a tensor that has elements, as moving
    averages do.
    """

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        with torch._C.DisableTorchFunctionSubclass():
            if any(x.numel() for x in tensors([args, kwargs])):
                name = getattr(function, '__name__', function)
                raise UnknownWidthError(
                    f'{name}() of a tensor and of a parameter without a size')
            result = function(*args, **kwargs)
            if type(result) is Tensor and not result.numel():
                # What state_dict() gives, and its copy on another device.
                result = result.as_subclass(EmptyTensor)
        return result

    def __reduce_ex__(self, protocol: int):
        raise UnknownWidthError('A parameter without a size cannot be saved')

    def __deepcopy__(self, memo: dict) -> Tensor:
        with torch._C.DisableTorchFunctionSubclass():
            copied = self.detach().clone()
            if isinstance(self, nn.Parameter):
                copied = nn.Parameter(copied, self.requires_grad)
                copied.__class__ = EmptyParameter
            else:
                copied = copied.as_subclass(EmptyTensor)
        memo[id(self)] = copied
        return copied


class EmptyParameter(EmptyTensor, nn.Parameter):
    """The same as a parameter.

    Not torch's UninitializedParameter: MMEngine takes the mean of every
    parameter before it initialises a model.
    """


def empty_parameter(parameter: nn.Parameter) -> None:
    """Takes a parameter's elements away, in place.

    The axes stay, since initialisations and optimizers have rules that count
    them.
    """
    parameter.data = parameter.data.new_empty(0, *parameter.shape[1:])
    parameter.__class__ = EmptyParameter


def fill_parameter(parameter: nn.Parameter, value: Tensor) -> None:
    """Makes an empty parameter an ordinary one of that value, in place."""
    parameter.__class__ = nn.Parameter
    parameter.data = value
