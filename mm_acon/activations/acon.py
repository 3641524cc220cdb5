from typing import Dict, Optional

import torch
from mmengine.registry import MODELS
from torch import Tensor, nn

from ..ops import acon, acon_reference
from .base import LearnableActivation
from .function import ElementWise, FunctionLike, normal_grid

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
                 beta_init: Optional[float] = None,
                 inplace: bool = False,
                 channel_axis: Optional[int] = None,
                 function: FunctionLike = None) -> None:
        super().__init__(num_channels, granularity, inplace, channel_axis)
        if beta_init is not None and not 0 < beta_init < float('inf'):
            raise ValueError(
                f'{type(self).__name__} expects beta_init to be a finite '
                f'number greater than 0, got {beta_init!r}.')
        self.stand_for(function)
        self.start = self._start_as_function()
        if beta_init is not None:
            self.start['beta'] = float(beta_init)
        self.build()

    def _start_as_function(self) -> Dict[str, float]:
        """The numbers with which it comes nearest to the function."""
        start = dict(type(self).start)
        if self.function.is_relu:
            return start  # Swish is what the paper puts there.
        slopes = self.function.far_slopes()
        # Between lines of one slope there is nothing to switch.
        if slopes is None or slopes[0] == slopes[1]:
            return start
        for name, slope in zip(('p2', 'p1'), slopes):
            if name in self.learnt:
                start[name] = slope
        start['beta'] = (100. if self.function.corners else _best_beta(
            self.function, start))
        return start

    def _numbers(self) -> Dict[str, Tensor]:
        """The start: (1,), or (C,) in place of a PReLU of C slopes."""
        numbers = {
            name: torch.tensor([value], device='cpu')
            for name, value in self.start.items()
        }
        if self.function.is_prelu and 'p2' in self.learnt:
            numbers['p2'] = self.function.slopes
        return numbers

    @property
    def starts_as_relu(self) -> bool:
        """To within 0.003, which moves a ResNet-50 by about 1 percent."""
        return (self.start['p2'] == 0
                and MAX_GAP / self.start['beta'] <= 0.003)

    @property
    def keeps_function(self) -> bool:
        """To within the same 0.003."""
        x, _ = normal_grid(self.num_units)
        y = acon_reference(x[None], **self._numbers())
        return bool((y - self.function(x[None])).abs().max() <= 0.003)

    def add_parameters(self, num_channels: int) -> None:
        for name, value in self.start.items():
            if name in self.learnt:
                setattr(self, name, nn.Parameter(torch.empty(self.num_units)))
            else:
                self.register_buffer(
                    name, torch.full((1, ), value), persistent=False)

    @torch.no_grad()
    def reset_parameters(self) -> None:
        for name, value in self._numbers().items():
            if name in self.learnt:
                getattr(self, name).copy_(value)

    def activate(self, x: Tensor) -> Tensor:
        own = self._parameters
        if len(own) == 3:  # An attribute costs ten times a look-up.
            return acon(x, own['p1'], own['p2'], own['beta'])
        return acon(x, self.p1, self.p2, self.beta)

    def extra_repr(self) -> str:
        return (f'{super().extra_repr()}, beta_init={self.start["beta"]}'
                f'{self.function_repr()}')


def _best_beta(function: ElementWise, start: Dict[str, float]) -> float:
    r"""The :math:`\beta` nearest to a function under unit-normal input.

    Exactly 1 for Swish.
    """
    x, weight = normal_grid(1, steps=601)
    true = function(x)
    slope, p2 = start['p1'] - start['p2'], start['p2']

    def error(betas: Tensor) -> Tensor:
        y = slope * x * torch.sigmoid(betas[:, None] * slope * x) + p2 * x
        return ((y - true).square() * weight).sum(1)

    one = torch.ones(1, dtype=torch.float64, device='cpu')
    if error(one) < 1e-12:
        return 1.
    # On ever finer grids around the best so far, from 0.01 to 100.
    exponent, reach = 0., 2.
    for _ in range(7):
        betas = 10**torch.linspace(
            max(exponent - reach, -2),
            min(exponent + reach, 2),
            21,
            dtype=torch.float64,
            device='cpu')
        exponent = betas[error(betas).argmin()].log10().item()
        reach /= 5
    return round(10**exponent, 4)


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

    In place of a named ``function`` it starts as near to it as it can: p1
    and p2 are its slopes far right and left, and :math:`\beta` is 1 for
    SiLU and Swish, exactly them, 100 for LeakyReLU and PReLU, the best under
    unit-normal input for others, 1.7 for GELU. Of ReLU, and of what is
    bounded as ReLU6 is, it keeps nothing of itself and starts as Swish.

    Args:
        num_channels (int, optional): C. None takes it from the first input.
        granularity (str): 'channel', or 'layer' for one function per layer.
        beta_init (float, optional): :math:`\beta` at the start, greater
            than 0. None is 1, or what ``function`` asks for.
        inplace (bool): Accepted, no effect.
        channel_axis (int, optional): Axis of the channels, 1 or -1, as in
            :class:`LearnableActivation`.
        function (optional): The function in whose place it stands, as for
            :class:`PWLU`.

    Input and output: (N, C, ...) or (N, ..., C), any floating-point dtype.
    """
