import math
from contextlib import contextmanager
from types import MethodType
from typing import Dict, Iterator, Optional, Union

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..compat import is_compiling
from ..ops.checks import (axis_of_size, channels_first, channels_last,
                          check_channel_axis, check_device, check_input,
                          unclear_axis)
from .empty import UnknownWidthError, empty_parameter, fill_parameter
from .function import ElementWise, FunctionLike, normal_grid


def apply_norm(norm: nn.Module, x: Tensor) -> Tensor:
    """The norm of x, also where x has at most one value per channel.

    One value has no variance, so that PyTorch raises an error for it in
    training; a BatchNorm then uses its running statistics.
    """
    alone = x.numel() <= x.shape[1]
    if (alone and norm.training and isinstance(norm, _BatchNorm)
            and not isinstance(norm, nn.SyncBatchNorm)):
        return F.batch_norm(
            x,
            norm.running_mean,
            norm.running_var,
            norm.weight,
            norm.bias,
            eps=norm.eps)
    return norm(x)


class InnerConv(nn.Module):
    """A convolution that belongs to an activation.

    No ``nn.Conv2d``: a backbone's or head's rule for its convolutions, and a
    loop of its own over them, would reach into the activation and give it
    another start. The numbers start by PyTorch's rule.

    Args:
        in_channels (int): Channels of the input.
        out_channels (int): Channels of the output.
        kernel_size (int): Height and width of the kernel, odd. The input is
            padded so that stride 1 keeps its size.
        stride (int): As in ``nn.Conv2d``.
        groups (int): As in ``nn.Conv2d``.
        bias (bool): Whether there is one.
    """

    def __init__(self,
                 in_channels: int,
                 out_channels: int,
                 kernel_size: int,
                 stride: int = 1,
                 groups: int = 1,
                 bias: bool = True) -> None:
        super().__init__()
        self.stride = stride
        self.padding = kernel_size // 2
        self.groups = groups
        self.weight = nn.Parameter(
            torch.empty(out_channels, in_channels // groups, kernel_size,
                        kernel_size))
        self.bias = nn.Parameter(torch.empty(out_channels)) if bias else None

    def reset_parameters(self) -> None:
        bound = 1 / math.sqrt(self.weight[0].numel())
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -bound, bound)

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(
            x,
            self.weight,
            self.bias,
            stride=self.stride,
            padding=self.padding,
            groups=self.groups)

    def extra_repr(self) -> str:
        return (f'{tuple(self.weight.shape)}, stride={self.stride}, '
                f'groups={self.groups}, bias={self.bias is not None}')


_INIT_MARK = '_params_init_info'


class LearnableActivation(nn.Module):
    """Base of the activations whose parameters belong to channels.

    A subclass sets its own attributes, calls :meth:`build` at the end of
    ``__init__`` and writes the formula in :meth:`activate`. Without
    ``num_channels`` the parameters are empty until the first input or the
    first checkpoint tells the width; they are filled in place, so that an
    optimizer that was given them keeps them. While they are empty they can
    be neither saved nor averaged (:class:`EmptyTensor`), and nothing empty is
    loaded.

    An activation has its start from when it is built or meets its width. The
    ``init_weights`` of an owner leaves it as it was, or as a checkpoint that
    it loads has it (:func:`start_kept`).

    Args:
        num_channels (int, optional): C, the number of channels of the input.
            None takes it from the first input.
        granularity (str): One of the class's ``granularities``.
        inplace (bool): Accepted because MMCV's ConvModule passes it; there
            is no in-place form.
        channel_axis (int, optional): Where the input has its channels: 1 for
            (N, C, ...), -1 for (N, ..., C), as tokens are (N, L, C); neither
            costs a copy. None, the default, finds it at the first input of
            more than two axes and keeps it: the axis of ``num_channels``
            numbers, axis 1 where both are. Three axes that leave it open are
            a ValueError, so that tokens are never counted as channels. Input
            of shape (N, C) is taken whatever stands here.
    """

    granularities = ('channel', 'layer')
    # Whether a fresh instance computes ReLU, so that a ReLU network keeps
    # its function when its activations are replaced.
    starts_as_relu = False
    # The function in whose place it stands, None for ReLU.
    function: Optional[ElementWise] = None
    # Whether a channel's output depends on one input number, and on what
    # meta-ACON has worked out of the map, so that it can be drawn over it.
    is_curve = True

    def __init__(self,
                 num_channels: Optional[int] = None,
                 granularity: str = 'channel',
                 inplace: bool = False,
                 channel_axis: Optional[int] = None) -> None:
        super().__init__()
        if granularity not in self.granularities:
            raise ValueError(
                f'{type(self).__name__} expects granularity to be one of '
                f'{self.granularities}, got {granularity!r}.')
        if num_channels is not None and (not isinstance(num_channels, int)
                                         or num_channels < 1):
            raise ValueError(
                f'{type(self).__name__} expects num_channels to be a '
                f'positive integer or None, got {num_channels!r}.')
        check_channel_axis(channel_axis, type(self).__name__)
        self.num_channels = num_channels
        self.channel_axis = channel_axis
        self.granularity = granularity
        # The parameters' values while an owner is initialised, and how many
        # owners are at it.
        self._kept: Dict[str, Tensor] = {}
        self._owners = 0

    def build(self) -> None:
        """Registers parameters, empty ones where the width is unknown."""
        self.is_lazy = self.needs_width and self.num_channels is None
        self.add_parameters(self.num_channels or 1)
        if self.is_lazy:
            for parameter in self.parameters():
                empty_parameter(parameter)
        else:
            self.reset_parameters()

    @property
    def num_units(self) -> int:
        """How many functions are learnt, C or 1 where a layer shares one."""
        if self.granularity == 'layer':
            return 1
        return self.num_channels or 1

    @property
    def needs_width(self) -> bool:
        """Whether the size of a parameter depends on C."""
        return self.granularity != 'layer'

    def add_parameters(self, num_channels: int) -> None:
        """Registers parameters, buffers and submodules for that width."""
        raise NotImplementedError

    def reset_parameters(self) -> None:
        """Gives parameters and buffers their values at the start."""
        raise NotImplementedError

    def activate(self, x: Tensor) -> Tensor:
        """The output for (N, C, ...), whatever ``channel_axis`` is."""
        raise NotImplementedError

    def curve(self, x: Tensor) -> Tensor:
        """As :meth:`activate`, for numbers that are nobody's input.

        Raises:
            ValueError: it has no curve, since an output depends on more than
                one number of the input.
        """
        if not self.is_curve:
            raise ValueError(
                f'{type(self).__name__} is no function of one number: its '
                'output depends on others of the input too.')
        return self.activate(x)

    def stand_for(self, function: FunctionLike) -> None:
        """Notes the function in whose place it stands, before it is built.

        Raises:
            ValueError: it is not element-wise, or its numbers would be lost.
        """
        self.function = ElementWise(function, type(self).__name__)
        slopes = self.function.slopes
        if slopes is None or len(slopes) == 1:
            return
        if self.granularity != 'layer' and self.num_channels is None:
            self.num_channels = len(slopes)
        if self.num_units != len(slopes):
            raise ValueError(
                f'{type(self).__name__} has {self.num_units} functions and '
                f'cannot stand in place of a PReLU of {len(slopes)} slopes; '
                f"write granularity='channel' and num_channels={len(slopes)}.")

    def function_repr(self) -> str:
        """The end of ``extra_repr``: the function, where it is not ReLU."""
        if self.function is None or self.function.is_relu:
            return ''
        return f', function={self.function.module}'

    @property
    def keeps_function(self) -> bool:
        """Whether a fresh one is the function in whose place it stands."""
        return self.starts_as_relu

    @torch.no_grad()
    def difference_from(self,
                        function: FunctionLike = None,
                        mean: Union[float, Tensor] = 0.,
                        std: Union[float, Tensor] = 1.) -> float:
        r"""How far it is from an element-wise function.

        .. math:: \|f - function\| / \|function\|

        over all units, with :math:`\|f\|^2` the mean of f squared under a
        normal input, out to 6 std.

        Args:
            function (optional): As for :class:`PWLU`. None is the one in
                whose place it stands, ReLU if none was named.
            mean (float or Tensor): Of the input; of each unit, (units,), or
                of all.
            std (float or Tensor): Likewise.

        Returns:
            float: 0 where it is the function but for rounding.

        Raises:
            ValueError: it has no width yet, or is no function of one number.
        """
        name = type(self).__name__
        if self.is_lazy:
            raise ValueError(f'{name} has no width yet, and no curve.')
        if function is not None or self.function is None:
            function = ElementWise(function, name)
        else:
            function = self.function
        like = next(self.parameters())
        x, weight = normal_grid(self.num_units, mean, std)
        y = self.curve(x.to(like.device)[None])[0].cpu()
        true = function(x[None])[0]
        difference = ((y - true).square() @ weight).sum().sqrt()
        norm = (true.square() @ weight).sum().sqrt()
        # Of rounding nothing is said.
        return (difference / norm).item() if difference > 1e-6 * norm else 0.

    def train(self, mode: bool = True) -> 'LearnableActivation':
        """Stays in eval mode while nothing of it is trained.

        The norms of a frozen stage do; those inside an activation would not,
        nor would the statistics of a PWLU.
        """
        parameters = list(self.parameters())
        frozen = parameters and not any(p.requires_grad for p in parameters)
        return super().train(mode and not frozen)

    def init_weights(self) -> None:
        """Gives the start again; nothing while an owner is initialised."""
        if not self.is_lazy and not self._owners:
            self.reset_parameters()

    def _keep_start(self) -> None:
        if not self._owners:
            self._kept = {
                name: parameter.detach().clone()
                for name, parameter in self.named_parameters()
            }
        self._owners += 1

    @torch.no_grad()
    def _restore_start(self) -> None:
        self._owners -= 1
        if self._owners:
            return
        for name, parameter in self.named_parameters():
            # Not where a checkpoint was loaded, or told the width.
            if name in self._kept and self._kept[name].numel():
                parameter.copy_(self._kept[name])
        self._kept = {}

    # MMEngine gives every module this attribute when it begins to initialise
    # a model, and takes it away at the end. In between, rules reach what is
    # inside an activation, and the activation is not told: it may lie in a
    # module that MMEngine does not visit.
    def __setattr__(self, name: str, value) -> None:
        begins = name == _INIT_MARK and name not in self.__dict__
        super().__setattr__(name, value)
        if begins:
            self._keep_start()

    def __delattr__(self, name: str) -> None:
        super().__delattr__(name)
        if name == _INIT_MARK:
            self._restore_start()

    def forward(self, x: Tensor) -> Tensor:
        # One line for what is nearly always so: on small maps a few calls of
        # Python cost as much as the operator.
        axis, shape = 1, x.shape
        if (self.channel_axis != 1 or len(shape) < 2
                or shape[1] != self.num_channels or not x.is_floating_point()):
            axis = self._meet(x)
        try:
            if axis == -1:
                return channels_last(self.activate(channels_first(x)), x)
            return self.activate(x)
        except RuntimeError:
            # Afterwards, since a look at the devices costs time.
            for name, parameter in self.named_parameters():
                check_device(name, parameter, x, type(self).__name__)
            raise

    def channels_first(self, x: Tensor) -> Tensor:
        """An input as :meth:`activate` gets it: a view as (N, C, ...)."""
        last = self.channel_axis == -1 and x.dim() > 2
        return channels_first(x) if last else x

    def _meet(self, x: Tensor) -> int:
        """The axis of x's channels; refuses what does not fit.

        Takes axis and width from a first input.
        """
        check_input(x, type(self).__name__)
        axis = self._axis_of(x)
        if self.is_lazy:
            self._refuse_lazy_in_distributed_training()
            self.materialize(x.shape[axis])
        elif self.num_channels not in (None, x.shape[axis]):
            raise self._wrong_width(x, axis)
        if (self.channel_axis is None and self.num_channels is not None
                and x.dim() > 2 and not is_compiling()):
            self.channel_axis = axis
        return axis

    def _axis_of(self, x: Tensor) -> int:
        name = type(self).__name__
        if x.dim() == 2:
            return 1
        if self.channel_axis is not None:
            return self.channel_axis
        if self.is_lazy:
            if x.dim() == 3 or _comes_from_linear(x):
                raise unclear_axis(x, name)
            return 1
        width = self.num_channels
        if width is None or not self.needs_width and x.shape[1] == width:
            return 1  # All numbers belong to the layer, whatever the axis.
        return axis_of_size(x, width, name) or 1

    def _wrong_width(self, x: Tensor, axis: int) -> ValueError:
        first, last = x.shape[1], x.shape[-1]
        if axis == -1:
            remedy = f'num_channels={last}'
        elif last == self.num_channels and x.dim() > 2:
            remedy = 'channel_axis=-1'
        elif self.channel_axis == 1 or x.dim() == 2:
            remedy = f'num_channels={first}'
        elif x.dim() == 3:
            # Never the number of tokens by itself.
            remedy = (f'num_channels={last} and channel_axis=-1 if these are '
                      f'tokens (N, L, C), num_channels={first} and '
                      'channel_axis=1 if it is (N, C, L)')
        else:
            remedy = (f'num_channels={first}, or num_channels={last} and '
                      'channel_axis=-1 if the last axis has the channels')
        where = 'axis 1' if axis == 1 else 'the last axis'
        return ValueError(
            f'{type(self).__name__} expects {self.num_channels} channels in '
            f'{where}, got x of shape {tuple(x.shape)}; write {remedy}.')

    def _refuse_lazy_in_distributed_training(self) -> None:
        if (torch.is_grad_enabled() and dist.is_available()
                and dist.is_initialized() and dist.get_world_size() > 1):
            name = type(self).__name__
            raise RuntimeError(
                f'{name} meets its first input inside a distributed run: '
                'DistributedDataParallel was built over parameters that had '
                'no size yet and would never reduce them. Train with '
                'tools/train.py, which finds the widths, call '
                'mm_acon.find_widths(model, batch) before the model is '
                'wrapped, use SwapActivations, which knows the widths, or '
                f"write act_cfg=dict(type='{name}', num_channels=...).")

    # A parameter created in inference mode could never be trained.
    @torch.inference_mode(False)
    @torch.no_grad()
    def materialize(self, num_channels: int) -> None:
        """Gives the empty parameters their size, in place."""
        held = dict(self.named_parameters())
        any_parameter = next(iter(held.values()))
        self.num_channels = num_channels
        self.build()
        self.to(any_parameter.device, any_parameter.dtype)
        self.train(self.training)
        for name, fresh in list(self.named_parameters()):
            fill_parameter(held[name], fresh.data)
            owner, _, leaf = name.rpartition('.')
            self.get_submodule(owner)._parameters[leaf] = held[name]

    def adopts(self, state_dict: Dict[str, Tensor], prefix: str) -> bool:
        """Whether a checkpoint has the PReLU's slopes in whose place it is."""
        slopes = state_dict.get(f'{prefix}weight')
        if (self.function is None or not self.function.is_prelu
                or slopes is None
                or any(prefix + key in state_dict
                       for key, _ in self.named_parameters())):
            return False
        return slopes.dim() == 1 and (self.is_lazy
                                      or slopes.numel() in (1, self.num_units))

    def _adopt(self, state_dict: Dict[str, Tensor], prefix: str) -> None:
        """Starts as the PReLU that is in a checkpoint.

        Its key makes way for those of the activation, so that nothing is
        missing and nothing left.
        """
        slopes = self.function.slopes = state_dict.pop(f'{prefix}weight')
        if self.is_lazy and slopes.numel() > 1:
            self.materialize(slopes.numel())
        if self.is_lazy:
            return
        self.reset_parameters()
        for key, value in self.state_dict().items():
            state_dict[prefix + key] = value

    def _load_from_state_dict(self, state_dict, prefix, *args) -> None:
        if self.adopts(state_dict, prefix):
            self._adopt(state_dict, prefix)
        for name, _ in self.named_parameters():
            given = state_dict.get(prefix + name)
            if given is not None and not given.numel():
                raise UnknownWidthError(
                    f'{prefix}{name} is empty in what is loaded')
            if given is not None:
                self._kept.pop(name, None)
        if self.is_lazy:
            width = self.width_in(state_dict, prefix)
            if width:
                self.materialize(width)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def width_in(self, state_dict, prefix: str) -> int:
        """The number of channels in a checkpoint, 0 if it does not tell."""
        for name, _ in self.named_parameters(recurse=False):
            if prefix + name in state_dict:
                return state_dict[prefix + name].shape[0]
        return 0

    def extra_repr(self) -> str:
        axis = ', channel_axis=-1' if self.channel_axis == -1 else ''
        return f'{self.num_channels}, granularity={self.granularity!r}{axis}'


# What autograd calls a matrix product, and what leaves its last axis alone.
_PRODUCTS = ('AddmmBackward', 'MmBackward', 'BmmBackward', 'BaddbmmBackward',
             'LinearBackward')
_VIEWS = ('ViewBackward', 'UnsafeViewBackward', 'ReshapeAliasBackward')


def _comes_from_linear(x: Tensor) -> bool:
    """Whether autograd knows x for the output of a fully connected layer."""
    node = x.grad_fn
    while node is not None:
        name = node.name().lstrip('_')
        if name.startswith(_PRODUCTS):
            return True
        # The bias is added for itself where the input is not contiguous.
        is_bias = name.startswith('AddBackward') and any(
            after is not None and after.name().endswith('AccumulateGrad')
            for after, _ in node.next_functions)
        if not is_bias and not name.startswith(_VIEWS):
            return False
        node = node.next_functions[0][0]
    return False


def activations_of(module: nn.Module) -> Dict[str, LearnableActivation]:
    """The learnable activations in a module, itself included, by name."""
    return {
        name: child
        for name, child in module.named_modules()
        if isinstance(child, LearnableActivation)
    }


@contextmanager
def start_kept(owner: nn.Module) -> Iterator[None]:
    """Activations in a module stay as they are while it is initialised.

    What a checkpoint brings meanwhile stays, too.
    """
    kept = activations_of(owner).values()
    for module in kept:
        module._keep_start()
    try:
        yield
    finally:
        for module in kept:
            module._restore_start()


def keep_start(owner: nn.Module) -> None:
    """Makes the ``init_weights`` of a module leave its activations alone.

    MMEngine's own is noticed by every activation; this is for those that go
    on after it with a loop over all convolutions and norms, or parameters.
    """
    if hasattr(owner, 'init_weights') and getattr(
            owner.init_weights, '__func__', None) is not init_weights:
        owner.init_weights = MethodType(init_weights, owner)


# Named as what it stands for: an owner that is pickled looks it up by name.
def init_weights(owner: nn.Module, *args, **kwargs) -> None:
    with start_kept(owner):
        type(owner).init_weights(owner, *args, **kwargs)
