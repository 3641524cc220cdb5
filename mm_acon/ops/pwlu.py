"""The piecewise linear unit (arXiv 2104.03693)."""
import torch
from torch import Tensor

from .checks import check_input, check_parameter, compute_dtype, per_channel

# Bounds that cross or touch while they are learnt are treated as if the
# right one lay this far right of the left one, in forward and backward.
MIN_WIDTH = 1e-3


def pwlu(x: Tensor, points: Tensor, left_bound: Tensor, right_bound: Tensor,
         left_slope: Tensor, right_slope: Tensor) -> Tensor:
    r"""Piecewise linear unit (Sec. 3.1, Eq. 1 to 4).

    With N intervals of length :math:`d = (B_R - B_L) / N`:

    .. math::
        f(x) = \begin{cases}
            (x - B_L) K_L + Y_0 & x < B_L \\
            (x - B_R) K_R + Y_N & x \ge B_R \\
            (x - B_i) (Y_{i+1} - Y_i) / d + Y_i & \text{otherwise}
        \end{cases}

    where :math:`i = \lfloor (x - B_L) / d \rfloor`,
    :math:`B_i = B_L + i d`. The gradients hold i constant (Sec. 3.2,
    Table 1). Where :math:`B_R - B_L` falls below ``MIN_WIDTH`` = 0.001 the
    right bound counts as :math:`B_L` + ``MIN_WIDTH``.

    Args:
        x: Input of shape (N, C, ...), any floating-point dtype.
        points: Values Y at the N + 1 knots, shape (C, N + 1) or (1, N + 1).
        left_bound: B_L, shape (C,) or (1,).
        right_bound: B_R, shape (C,) or (1,).
        left_slope: K_L, shape (C,) or (1,).
        right_slope: K_R, shape (C,) or (1,).

    Returns:
        Tensor: x's shape and dtype. The arithmetic is done in float32, or
        in float64 where x or points is float64. NaN gives NaN.

    Raises:
        TypeError: x is not of a floating-point dtype.
        ValueError: a shape does not fit x.
        RuntimeError: a parameter is on another device than x.
    """
    check_input(x, 'pwlu')
    if points.dim() != 2 or points.shape[1] < 2:
        raise ValueError(
            'pwlu expects points of shape (C, N + 1) or (1, N + 1) with N '
            f'>= 1 intervals, got {tuple(points.shape)}.')
    check_parameter('points', points, x, 'pwlu', dim=2)
    for name, value in (('left_bound', left_bound),
                        ('right_bound', right_bound),
                        ('left_slope', left_slope),
                        ('right_slope', right_slope)):
        check_parameter(name, value, x, 'pwlu')
    return pwlu_reference(x, points, left_bound, right_bound, left_slope,
                          right_slope)


def pwlu_reference(x: Tensor, points: Tensor, left_bound: Tensor,
                   right_bound: Tensor, left_slope: Tensor,
                   right_slope: Tensor) -> Tensor:
    """:func:`pwlu` in plain PyTorch, without its checks."""
    dtype = compute_dtype(x, points)
    num_intervals = points.shape[1] - 1
    value = x.to(dtype)
    left, right, left_slope, right_slope = (
        per_channel(parameter, x).to(dtype)
        for parameter in (left_bound, right_bound, left_slope, right_slope))
    # Not from the sum below: left + MIN_WIDTH rounds to left if left is large.
    length = (right - left).clamp(min=MIN_WIDTH) / num_intervals
    right = torch.maximum(right, left + MIN_WIDTH)
    is_left, is_right = value < left, value >= right

    # Each branch of the final where sees only its own elements: an infinite
    # x in another branch would turn its zero gradient into NaN.
    inside = torch.where(is_left | is_right, left, value)
    with torch.no_grad():
        index = ((inside - left) / length).nan_to_num(0).floor()
        index = index.clamp(0, num_intervals - 1)
        # inside - left rounds: -1e-9 would land in the interval that starts
        # at 0, and the ReLU form would no longer be ReLU to the last bit.
        index -= (inside < left + index * length).to(dtype)
        index = index.clamp(min=0)
    rows = torch.arange(points.shape[0], device=x.device) * (num_intervals + 1)
    flat_index = index.long() + per_channel(rows, x)
    flat_points = points.to(dtype).flatten()
    start = flat_points[flat_index]
    slope = (flat_points[flat_index + 1] - start) / length
    y = (inside - (left + index * length)) * slope + start

    first = per_channel(points[:, 0], x).to(dtype)
    last = per_channel(points[:, -1], x).to(dtype)
    below = (torch.where(is_left, value, left) - left) * left_slope + first
    above = (torch.where(is_right, value, right) - right) * right_slope + last
    return torch.where(is_left, below,
                       torch.where(is_right, above, y)).to(x.dtype)
