"""The piecewise linear unit (arXiv 2104.03693)."""
from typing import Optional, Tuple

import torch
from torch import Tensor

from ..compat import register_fake
from .checks import (channels_first, channels_last, check_input,
                     check_parameter, compute_dtype, find_channel_axis,
                     per_channel)
from .extension import (DEVICES, dense_like, has_kernels, only_asked,
                        register_cost)

# Bounds that cross or touch while they are learnt are treated as if the
# right one lay this far right of the left one, in forward and backward.
MIN_WIDTH = 1e-3


def pwlu(x: Tensor,
         points: Tensor,
         left_bound: Tensor,
         right_bound: Tensor,
         left_slope: Tensor,
         right_slope: Tensor,
         channel_axis: Optional[int] = 1) -> Tensor:
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
        x: Input of shape (N, C, ...), or (N, ..., C) as tokens are, any
            floating-point dtype.
        points: Values Y at the N + 1 knots, shape (C, N + 1) or (1, N + 1).
        left_bound: B_L, shape (C,) or (1,).
        right_bound: B_R, shape (C,) or (1,).
        left_slope: K_L, shape (C,) or (1,).
        right_slope: K_R, shape (C,) or (1,).
        channel_axis: Where x has the channels, 1 or -1; neither costs a
            copy. None goes by which axis has C numbers.

    Returns:
        Tensor: x's shape and dtype. The arithmetic is done in float32, or
        in float64 where x is float64. NaN gives NaN.

    Raises:
        TypeError: x is not of a floating-point dtype.
        ValueError: a shape does not fit x, or ``channel_axis`` is None and
            x has 3 axes, the last two of C numbers.
        RuntimeError: a parameter is on another device than x.
    """
    if channel_axis == 1 and has_kernels(x):
        try:
            return _operator(x, points, left_bound, right_bound, left_slope,
                             right_slope)
        except RuntimeError:
            # It checks the same, and says less of what to write instead.
            _check(x, points, left_bound, right_bound, left_slope, right_slope,
                   1)
            raise
    parameters = points, left_bound, right_bound, left_slope, right_slope
    axis = _check(x, *parameters, channel_axis=channel_axis)
    operator = _operator if has_kernels(x) else pwlu_reference
    if axis == 1:
        return operator(x, *parameters)
    return channels_last(operator(channels_first(x), *parameters), x)


def _check(x: Tensor, points: Tensor, left_bound: Tensor, right_bound: Tensor,
           left_slope: Tensor, right_slope: Tensor,
           channel_axis: Optional[int]) -> int:
    """Refuses what does not fit; the axis of the channels."""
    check_input(x, 'pwlu')
    if points.dim() != 2 or points.shape[1] < 2:
        raise ValueError(
            'pwlu expects points of shape (C, N + 1) or (1, N + 1) with N '
            f'>= 1 intervals, got {tuple(points.shape)}.')
    axis = find_channel_axis(x, channel_axis, 'pwlu', points, left_bound,
                             right_bound, left_slope, right_slope)
    check_parameter('points', points, x, 'pwlu', dim=2, axis=axis)
    for name, value in (('left_bound', left_bound), ('right_bound',
                                                     right_bound),
                        ('left_slope', left_slope), ('right_slope',
                                                     right_slope)):
        check_parameter(name, value, x, 'pwlu', axis=axis)
    return axis


def pwlu_reference(x: Tensor, points: Tensor, left_bound: Tensor,
                   right_bound: Tensor, left_slope: Tensor,
                   right_slope: Tensor) -> Tensor:
    """:func:`pwlu` in plain PyTorch, without its checks."""
    dtype = compute_dtype(x)
    num_intervals = points.shape[1] - 1
    value = x.to(dtype)
    # A list: torch.compile of 2.1 cannot unpack a generator.
    left, right, left_slope, right_slope = [
        per_channel(parameter, x).to(dtype)
        for parameter in (left_bound, right_bound, left_slope, right_slope)
    ]
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
        index += (inside >= left + (index + 1) * length).to(dtype)
        index = index.clamp(0, num_intervals - 1)
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
    return torch.where(is_left, below, torch.where(is_right, above,
                                                   y)).to(x.dtype)


def inference_table(points: Tensor, left_bound: Tensor, right_bound: Tensor,
                    left_slope: Tensor,
                    right_slope: Tensor) -> Tuple[Tensor, ...]:
    """The parameters as :func:`pwlu_table` takes them (Sec. 4.3).

    Returns:
        tuple[Tensor]: Slopes and offsets of the N + 2 straight pieces, (C,
        N + 2) or (1, N + 2), the left bound, (C,) or (1,), and one over the
        length of an interval.
    """
    num_intervals = points.shape[1] - 1
    left, right = left_bound[:, None], right_bound[:, None]
    length = (right - left).clamp(min=MIN_WIDTH) / num_intervals
    right = torch.maximum(right, left + MIN_WIDTH)
    steps = torch.arange(num_intervals, device=points.device)
    inner = points.diff(dim=1) / length
    slope = torch.cat([left_slope[:, None], inner, right_slope[:, None]], 1)
    knots = torch.cat([left, left + steps * length, right], 1)
    starts = torch.cat([points[:, :1], points], 1)
    return (slope, starts - slope * knots, left_bound, (1 / length).squeeze(1))


def pwlu_table(x: Tensor, slope: Tensor, offset: Tensor, left: Tensor,
               inverse_length: Tensor) -> Tensor:
    r"""PWLU for inference: one look-up and one multiply-add (Sec. 4.3).

    In plain PyTorch, for deployment: here :func:`pwlu`, which makes its own
    table in every call, is faster.

    .. math::
        f(x) = A_j x + b_j, \quad
        j = \mathrm{clamp}(\lfloor (x - B_L) / d \rfloor + 1, 0, N + 1)

    Args:
        x: Input of shape (N, C, ...), any floating-point dtype.
        slope: A, from :func:`inference_table`.
        offset: b.
        left: :math:`B_L`.
        inverse_length: 1 / d.

    Returns:
        Tensor: x's shape and dtype; :func:`pwlu` but for rounding.
    """
    check_input(x, 'pwlu_table')
    check_parameter('slope', slope, x, 'pwlu_table', dim=2)
    return look_up(x, slope, offset, left, inverse_length)


def look_up(x: Tensor, slope: Tensor, offset: Tensor, left: Tensor,
            inverse_length: Tensor) -> Tensor:
    """:func:`pwlu_table` without its checks; TorchScript compiles it."""
    dtype = compute_dtype(x)
    value = x.to(dtype)
    position = (value - per_channel(left, x)) * per_channel(inverse_length, x)
    # NaN is no index; times a slope it is NaN again.
    position = torch.where(position.isnan(), 0, position + 1)
    units, pieces = slope.shape[0], slope.shape[1]
    rows = torch.arange(units, device=x.device) * pieces
    index = position.clamp(0, pieces - 1).long() + per_channel(rows, x)
    # Exported as Gather; indexing is three times slower and becomes GatherND.
    flat = index.flatten()
    slope = slope.to(dtype).flatten().index_select(0, flat).view_as(x)
    offset = offset.to(dtype).flatten().index_select(0, flat).view_as(x)
    return (slope * value + offset).to(x.dtype)


if DEVICES:
    _operator = torch.ops.mm_acon.pwlu.default
    register_cost('pwlu', 2)

    @register_fake('mm_acon::pwlu')
    def _(x, *parameters):
        _check(x, *parameters, channel_axis=1)
        return dense_like(x)

    @register_fake('mm_acon::pwlu_backward')
    def _(grad, x, *others):
        *parameters, asked = others
        gradients = (dense_like(x), *(torch.empty_like(p.contiguous())
                                      for p in parameters))
        return only_asked(gradients, asked)
