from typing import Optional

import torch
import torch.nn.functional as F
from mmengine.registry import MODELS
from torch import Tensor, nn

from ..ops.checks import compute_dtype, per_channel
from .base import LearnableActivation


def apl(x: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """:class:`APL` with a and b of shape (C, S) or (1, S)."""
    dtype = compute_dtype(x)
    value, a, b = x.to(dtype), a.to(dtype), b.to(dtype)
    y = F.relu(value)
    for s in range(a.shape[1]):
        y = y + per_channel(a[:, s],
                            x) * F.relu(per_channel(b[:, s], x) - value)
    return y.to(x.dtype)


@MODELS.register_module()
class APL(LearnableActivation):
    r"""Adaptive piecewise linear unit (arXiv 1412.6830, Eq. 1).

    .. math::
        f(x) = \max(0, x) + \sum_{s=1}^S a^s \max(0, -x + b^s)

    A comparison of the PWLU paper (arXiv 2104.03693, Sec. 4.6), in plain
    PyTorch. a and b have shape (C, S). a starts at 0, so that a fresh APL is
    exactly ReLU, and the hinges b evenly between -1 and 1; the original draws
    both at random.

    Args:
        num_channels (int, optional): C. None takes it from the first input.
        num_hinges (int): The number S. The original's code has 5, which did
            not train stably on ImageNet in the PWLU paper.
        granularity (str): 'channel' for one function per channel, 'layer'
            for one.
        inplace (bool): Accepted, no effect.
        channel_axis (int, optional): Axis of the channels, 1 or -1, as in
            :class:`LearnableActivation`.

    Input and output: (N, C, ...) or (N, ..., C), any floating-point dtype.
    """

    starts_as_relu = True

    def __init__(self,
                 num_channels: Optional[int] = None,
                 num_hinges: int = 2,
                 granularity: str = 'channel',
                 inplace: bool = False,
                 channel_axis: Optional[int] = None) -> None:
        super().__init__(num_channels, granularity, inplace, channel_axis)
        if not isinstance(num_hinges, int) or num_hinges < 1:
            raise ValueError('APL expects num_hinges to be a positive '
                             f'integer, got {num_hinges!r}.')
        self.num_hinges = num_hinges
        self.build()

    def add_parameters(self, num_channels: int) -> None:
        self.a = nn.Parameter(torch.empty(self.num_units, self.num_hinges))
        self.b = nn.Parameter(torch.empty(self.num_units, self.num_hinges))

    @torch.no_grad()
    def reset_parameters(self) -> None:
        self.a.zero_()
        steps = torch.arange(self.num_hinges, device=self.b.device)
        self.b.copy_((2 * steps + 1) / self.num_hinges - 1)

    def activate(self, x: Tensor) -> Tensor:
        return apl(x, self.a, self.b)

    def extra_repr(self) -> str:
        return f'{super().extra_repr()}, num_hinges={self.num_hinges}'
