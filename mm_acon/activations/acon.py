from typing import Optional

import torch
from mmengine.registry import MODELS
from torch import Tensor, nn

from ..ops import acon
from .base import LearnableActivation


class _ACON(LearnableActivation):
    """ACON with p1, p2 and beta, each learnt or fixed.

    ``start`` holds every number's initial value (Sec. 3 of arXiv 2009.04759)
    and ``learnt`` the names of those that are parameters. The others are
    buffers that no checkpoint carries.
    """

    start = dict(p1=1., p2=0., beta=1.)
    learnt = ('p1', 'p2', 'beta')

    # Spelt out: a swap looks in the signature for where the width goes.
    def __init__(self,
                 num_channels: Optional[int] = None,
                 granularity: str = 'channel',
                 inplace: bool = False) -> None:
        super().__init__(num_channels, granularity, inplace)
        self.build()

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
        return acon(x, self.p1, self.p2, self.beta)


@MODELS.register_module()
class ACONA(_ACON):
    r"""ACON-A, Swish with a learnt :math:`\beta` (arXiv 2009.04759, Eq. 2).

    .. math:: f(x) = x \cdot \sigma(\beta x)

    :math:`\beta` starts at 1. Input and output: (N, C, ...), any
    floating-point dtype. Arguments are those of
    :class:`LearnableActivation`.
    """

    learnt = ('beta', )


@MODELS.register_module()
class ACONB(_ACON):
    r"""ACON-B, the smooth form of PReLU (arXiv 2009.04759, Eq. 3).

    .. math:: f(x) = (1 - p) x \cdot \sigma(\beta (1 - p) x) + p x

    The parameter ``p2`` is the paper's p and starts at 0.25,
    :math:`\beta` at 1. Input and output: (N, C, ...), any floating-point
    dtype. Arguments are those of :class:`LearnableActivation`.
    """

    start = dict(p1=1., p2=0.25, beta=1.)
    learnt = ('p2', 'beta')


@MODELS.register_module(name=['ACONC', 'ACON', 'AconC'])
class ACONC(_ACON):
    r"""ACON-C (arXiv 2009.04759, Eq. 4).

    .. math::
        f(x) = (p_1 - p_2) x \cdot \sigma(\beta (p_1 - p_2) x) + p_2 x

    p1 and :math:`\beta` start at 1, p2 at 0. Input and output: (N, C, ...),
    any floating-point dtype. Arguments are those of
    :class:`LearnableActivation`.
    """
