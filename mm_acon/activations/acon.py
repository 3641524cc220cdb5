from typing import Optional

import torch
from mmengine.registry import MODELS
from torch import Tensor, nn

from ..ops import acon
from .base import LearnableActivation

# The largest t * (1 - sigmoid(t)). Divided by beta, it bounds the distance of
# ACON from max(p1 x, p2 x).
MAX_GAP = 0.2784645428


class _ACON(LearnableActivation):
    """ACON with p1, p2 and beta, each learnt or fixed.

    ``start`` holds every number's initial value (Sec. 3 of arXiv 2009.04759)
    and ``learnt`` the names of those that are parameters. The others are
    buffers that no checkpoint carries. :class:`ACONC` says what the arguments
    are.
    """

    start = dict(p1=1., p2=0., beta=1.)
    learnt = ('p1', 'p2', 'beta')

    # Spelt out: a swap looks in the signature for where the width goes.
    def __init__(self,
                 num_channels: Optional[int] = None,
                 granularity: str = 'channel',
                 beta_init: float = 1.0,
                 inplace: bool = False,
                 channel_axis: Optional[int] = None) -> None:
        super().__init__(num_channels, granularity, inplace, channel_axis)
        if not 0 < beta_init < float('inf'):
            raise ValueError(
                f'{type(self).__name__} expects beta_init to be a finite '
                f'number greater than 0, got {beta_init!r}.')
        self.start = dict(self.start, beta=float(beta_init))
        self.build()

    @property
    def starts_as_relu(self) -> bool:
        """To within 0.003, which moves a ResNet-50 by about 1 percent."""
        return (self.start['p2'] == 0
                and MAX_GAP / self.start['beta'] <= 0.003)

    def add_parameters(self, num_channels: int) -> None:
        for name, value in self.start.items():
            if name in self.learnt:
                setattr(self, name, nn.Parameter(torch.empty(self.num_units)))
            else:
                self.register_buffer(
                    name, torch.full((1, ), value), persistent=False)

    def reset_parameters(self) -> None:
        for name in self.learnt:
            nn.init.constant_(getattr(self, name), self.start[name])

    def activate(self, x: Tensor) -> Tensor:
        return acon(x, self.p1, self.p2, self.beta, channel_axis=1)

    def extra_repr(self) -> str:
        return f'{super().extra_repr()}, beta_init={self.start["beta"]}'


@MODELS.register_module()
class ACONA(_ACON):
    r"""ACON-A, Swish with a learnt :math:`\beta` (arXiv 2009.04759, Eq. 2).

    .. math:: f(x) = x \cdot \sigma(\beta x)

    :math:`\beta` starts at 1. Input and output: (N, C, ...) or (N, ..., C),
    any floating-point dtype. Arguments are those of :class:`ACONC`.
    """

    learnt = ('beta', )


@MODELS.register_module()
class ACONB(_ACON):
    r"""ACON-B, the smooth form of PReLU (arXiv 2009.04759, Eq. 3).

    .. math:: f(x) = (1 - p) x \cdot \sigma(\beta (1 - p) x) + p x

    The parameter ``p2`` is the paper's p and starts at 0.25,
    :math:`\beta` at 1. Input and output: (N, C, ...) or (N, ..., C), any
    floating-point dtype. Arguments are those of :class:`ACONC`.
    """

    start = dict(p1=1., p2=0.25, beta=1.)
    learnt = ('p2', 'beta')


@MODELS.register_module(name=['ACONC', 'ACON', 'AconC'])
class ACONC(_ACON):
    r"""ACON-C (arXiv 2009.04759, Eq. 4).

    .. math::
        f(x) = (p_1 - p_2) x \cdot \sigma(\beta (p_1 - p_2) x) + p_2 x

    p1 and :math:`\beta` start at 1, p2 at 0, which is Swish. For every x,

    .. math:: 0 \le \max(p_1 x, p_2 x) - f(x) \le 0.2785 / \beta
        \quad (\beta > 0),

    so a network trained with ReLU keeps its function with a large beta at
    the start: ``beta_init=100`` changes no activation by more than 0.0028.
    Such a beta learns slowly, :math:`|df / d\beta| \le 0.44 / \beta^2`; p1
    and p2 learn as ever.

    Args:
        num_channels (int, optional): C. None takes it from the first input.
        granularity (str): 'channel', or 'layer' for one function per layer.
        beta_init (float): :math:`\beta` at the start, greater than 0.
        inplace (bool): Accepted, no effect.
        channel_axis (int, optional): Axis of the channels, 1 or -1, as in
            :class:`LearnableActivation`.

    Input and output: (N, C, ...) or (N, ..., C), any floating-point dtype.
    """
