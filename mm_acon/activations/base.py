from typing import Optional

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..ops.checks import check_device, check_input


def apply_norm(norm: nn.Module, x: Tensor) -> Tensor:
    """The norm of x, also where x has at most one value per channel.

    One value has no variance, so that PyTorch raises an error for it in
    training; a BatchNorm then uses its running statistics.
    """
    alone = x.numel() <= x.shape[1]
    if (alone and norm.training and isinstance(norm, _BatchNorm)
            and not isinstance(norm, nn.SyncBatchNorm)):
        return F.batch_norm(x, norm.running_mean, norm.running_var,
                            norm.weight, norm.bias, eps=norm.eps)
    return norm(x)


class LearnableActivation(nn.Module):
    """Base of the activations whose parameters belong to channels.

    A subclass sets its own attributes, calls :meth:`build` at the end of
    ``__init__`` and writes the formula in :meth:`activate`. Without
    ``num_channels`` the parameters are empty until the first input or the
    first checkpoint tells the width; they are filled in place, so that an
    optimizer that was given them keeps them.

    Args:
        num_channels (int, optional): C, the size of axis 1 of the input.
            None takes it from the first input.
        granularity (str): One of the class's ``granularities``.
        inplace (bool): Accepted because MMCV's ConvModule passes it; there
            is no in-place form.
    """

    granularities = ('channel', 'layer')
    # Whether a fresh instance computes ReLU, so that a ReLU network keeps
    # its function when its activations are replaced.
    starts_as_relu = False
    # Whether a channel's output depends on one input number, and on what
    # meta-ACON has worked out of the map, so that it can be drawn over it.
    is_curve = True

    def __init__(self,
                 num_channels: Optional[int] = None,
                 granularity: str = 'channel',
                 inplace: bool = False) -> None:
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
        self.num_channels = num_channels
        self.granularity = granularity

    def build(self) -> None:
        """Registers parameters, empty ones where the width is unknown."""
        self.is_lazy = self.needs_width and self.num_channels is None
        self.add_parameters(self.num_channels or 1)
        if self.is_lazy:
            for parameter in self.parameters():
                parameter.data = parameter.data.new_empty(0)
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
        raise NotImplementedError

    def train(self, mode: bool = True) -> 'LearnableActivation':
        """Stays in eval mode while nothing of it is trained.

        The norms of a frozen stage do; those inside an activation would not,
        nor would the statistics of a PWLU.
        """
        parameters = list(self.parameters())
        frozen = parameters and not any(p.requires_grad for p in parameters)
        return super().train(mode and not frozen)

    def init_weights(self) -> None:
        """Called by MMEngine after the owner's own initialisation.

        A backbone's rule for convolutions or norms would otherwise reach the
        ones inside an activation.
        """
        if not self.is_lazy:
            self.reset_parameters()

    def forward(self, x: Tensor) -> Tensor:
        # One line for what is nearly always so: on small maps a few calls of
        # Python cost as much as the operator.
        if (x.dim() < 2 or x.shape[1] != self.num_channels
                or not x.is_floating_point()):
            self._meet(x)
        try:
            return self.activate(x)
        except RuntimeError:
            # Afterwards, since a look at the devices costs time.
            for name, parameter in self.named_parameters():
                check_device(name, parameter, x, type(self).__name__)
            raise

    def _meet(self, x: Tensor) -> None:
        """Takes the width from a first input, refuses what does not fit."""
        check_input(x, type(self).__name__)
        if self.is_lazy:
            self._refuse_lazy_in_distributed_training()
            self.materialize(x.shape[1])
        elif self.num_channels not in (None, x.shape[1]):
            raise ValueError(
                f'{type(self).__name__} expects {self.num_channels} channels '
                f'in axis 1, got x of shape {tuple(x.shape)}; write '
                f'num_channels={x.shape[1]}.')

    def _refuse_lazy_in_distributed_training(self) -> None:
        if (torch.is_grad_enabled() and dist.is_available()
                and dist.is_initialized() and dist.get_world_size() > 1):
            name = type(self).__name__
            raise RuntimeError(
                f'{name} meets its first input inside a distributed run: '
                'DistributedDataParallel was built over parameters that had '
                'no size yet and would never reduce them. Write '
                f"act_cfg=dict(type='{name}', num_channels=...), use "
                'SwapActivations, which knows the widths, or run one forward '
                'pass under torch.no_grad() before the model is wrapped.')

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
            held[name].data = fresh.data
            owner, _, leaf = name.rpartition('.')
            self.get_submodule(owner)._parameters[leaf] = held[name]

    def _load_from_state_dict(self, state_dict, prefix, *args) -> None:
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
        return f'{self.num_channels}, granularity={self.granularity!r}'
