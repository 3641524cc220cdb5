from typing import Optional

import torch
from mmengine.registry import MODELS
from torch import Tensor, nn

from ..ops.checks import compute_dtype, per_channel
from .base import LearnableActivation

# |x| on [-3, 3] by a quotient of even polynomials: coefficients of 1, x^2 and
# x^4, fitted by least squares. Root mean square error 0.011, 0.068 at 0.
_ABS_NUMERATOR = (0.0678, 3.3387, 1.8799)
_ABS_DENOMINATOR = (1., 3.9765, 0.3013)


def _polynomial(coefficients: Tensor, x: Tensor) -> Tensor:
    """c_0 + c_1 x + c_2 x^2 ... with c_j (C,) in column j."""
    y = per_channel(coefficients[:, -1], x)
    for j in range(coefficients.shape[1] - 2, -1, -1):
        y = y * x + per_channel(coefficients[:, j], x)
    return y


def pau(x: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """:class:`PAU` with a of shape (C, 6) or (1, 6), b (C, 4) or (1, 4)."""
    dtype = compute_dtype(x)
    value, a, b = x.to(dtype), a.to(dtype), b.to(dtype)
    numerator = _polynomial(a, value)
    denominator = 1 + (value * _polynomial(b, value)).abs()
    return (numerator / denominator).to(x.dtype)


@MODELS.register_module()
class PAU(LearnableActivation):
    r"""Pade activation unit (arXiv 1907.06732, Eq. 2), the safe form.

    .. math::
        f(x) = \frac{\sum_{j=0}^5 a_j x^j}{1 + |\sum_{k=1}^4 b_k x^k|}

    A comparison of the PWLU paper (arXiv 2104.03693, Sec. 4.6), in plain
    PyTorch. a has shape (1, 6) and b (1, 4), or (C, 6) and (C, 4) with
    ``granularity='channel'``. A fresh PAU is leaky ReLU of slope 0.01 to
    within 0.034 for x from -3 to 3.

    Args:
        num_channels (int, optional): C. None takes it from the first input.
        granularity (str): 'layer' for one function, as in the original, or
            'channel' for one per channel.
        inplace (bool): Accepted, no effect.
        channel_axis (int, optional): Axis of the channels, 1 or -1, as in
            :class:`LearnableActivation`.

    Input and output: (N, C, ...) or (N, ..., C), any floating-point dtype.
    """

    def __init__(self,
                 num_channels: Optional[int] = None,
                 granularity: str = 'layer',
                 inplace: bool = False,
                 channel_axis: Optional[int] = None) -> None:
        super().__init__(num_channels, granularity, inplace, channel_axis)
        self.build()

    def add_parameters(self, num_channels: int) -> None:
        self.a = nn.Parameter(torch.empty(self.num_units, 6))
        self.b = nn.Parameter(torch.empty(self.num_units, 4))

    @torch.no_grad()
    def reset_parameters(self) -> None:
        # Leaky ReLU is mean * x + rest * |x|; x times the denominator over
        # the denominator is x without an error.
        mean, rest = (1 + 0.01) / 2, (1 - 0.01) / 2
        self.a[:, ::2] = rest * self.a.new_tensor(_ABS_NUMERATOR)
        self.a[:, 1::2] = mean * self.a.new_tensor(_ABS_DENOMINATOR)
        self.b[:, ::2] = 0
        self.b[:, 1::2] = self.b.new_tensor(_ABS_DENOMINATOR[1:])

    def activate(self, x: Tensor) -> Tensor:
        return pau(x, self.a, self.b)
