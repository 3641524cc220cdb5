"""The ACON family (arXiv 2009.04759)."""
from typing import Optional

import torch
from torch import Tensor

from ..compat import register_fake
from .checks import (channels_first, channels_last, check_device, check_input,
                     check_parameter, compute_dtype, find_channel_axis,
                     per_channel, per_sample)
from .extension import (DEVICES, dense_like, has_kernels, only_asked,
                        register_cost)


def acon(x: Tensor,
         p1: Tensor,
         p2: Tensor,
         beta: Tensor,
         channel_axis: Optional[int] = 1) -> Tensor:
    r"""ACON-C, the smooth maximum of two lines (Sec. 3, Eq. 4).

    .. math::
        f(x) = (p_1 - p_2) x \cdot \sigma(\beta (p_1 - p_2) x) + p_2 x

    :math:`\sigma` is the sigmoid. Large :math:`\beta` gives
    :math:`\max(p_1 x, p_2 x)`, :math:`\beta = 0` the mean of the two lines.

    Args:
        x: Input of shape (N, C, ...), or (N, ..., C) as tokens are, any
            floating-point dtype.
        p1: Slope for large x (beta > 0), shape (C,) or (1,).
        p2: Slope for small x (beta > 0), shape (C,) or (1,).
        beta: Switching factor: (C,) or (1,) per channel or layer, (N, C)
            per sample and channel, (N, 1) per sample, or x's shape.
        channel_axis: Where x has the channels, 1 or -1; neither costs a
            copy. None goes by which axis has C numbers.

    Returns:
        Tensor: x's shape and dtype. The arithmetic is done in float32, or
        in float64 where x is float64.

    Raises:
        TypeError: x is not of a floating-point dtype.
        ValueError: a shape does not fit x, or ``channel_axis`` is None and
            x has 3 axes, the last two of C numbers.
        RuntimeError: a parameter is on another device than x.
    """
    if channel_axis == 1 and has_kernels(x):
        try:
            return _operator(x, p1, p2, beta)
        except RuntimeError:
            # It checks the same, and says less of what to write instead.
            _check(x, p1, p2, beta, 1)
            raise
    axis = _check(x, p1, p2, beta, channel_axis)
    if axis == 1:
        return _acon(x, p1, p2, beta)
    if beta.dim() > 2:
        beta = channels_first(beta)
    return channels_last(_acon(channels_first(x), p1, p2, beta), x)


def _acon(x: Tensor, p1: Tensor, p2: Tensor, beta: Tensor) -> Tensor:
    operator = _operator if has_kernels(x) else acon_reference
    return operator(x, p1, p2, beta)


def _check(x: Tensor, p1: Tensor, p2: Tensor, beta: Tensor,
           channel_axis: Optional[int]) -> int:
    """Refuses what does not fit; the axis of the channels."""
    check_input(x, 'acon')
    axis = find_channel_axis(x, channel_axis, 'acon', p1, p2,
                             *([beta] if beta.dim() == 1 else []))
    check_parameter('p1', p1, x, 'acon', axis=axis)
    check_parameter('p2', p2, x, 'acon', axis=axis)
    check_device('beta', beta, x, 'acon')
    if beta.dim() == 1:
        check_parameter('beta', beta, x, 'acon', axis=axis)
    elif beta.shape != x.shape and tuple(
            beta.shape) not in ((x.shape[0], x.shape[axis]), (x.shape[0], 1)):
        raise ValueError(
            'acon expects beta of shape (C,), (1,), (N, C), (N, 1) or the '
            f'shape of x, here {tuple(x.shape)}, got {tuple(beta.shape)}.')
    return axis


def acon_reference(x: Tensor, p1: Tensor, p2: Tensor, beta: Tensor) -> Tensor:
    """:func:`acon` in plain PyTorch, without its checks."""
    dtype = compute_dtype(x)
    if beta.dim() == 1:
        beta = per_channel(beta, x)
    elif beta.dim() == 2:
        beta = per_sample(beta, x)
    p1 = per_channel(p1, x).to(dtype)
    p2 = per_channel(p2, x).to(dtype)
    value = x.to(dtype)
    difference = (p1 - p2) * value
    y = difference * torch.sigmoid(beta.to(dtype) * difference) + p2 * value
    return y.to(x.dtype)


if DEVICES:
    _operator = torch.ops.mm_acon.acon.default
    # A sigmoid counts as one.
    register_cost('acon', 4)

    @register_fake('mm_acon::acon')
    def _(x, p1, p2, beta):
        _check(x, p1, p2, beta, 1)
        return dense_like(x)

    @register_fake('mm_acon::acon_backward')
    def _(grad, x, p1, p2, beta, asked):
        dbeta = torch.empty(beta.shape, dtype=beta.dtype, device=beta.device)
        if beta.dim() > 2:
            dbeta = dense_like(x).to(beta.dtype)
        gradients = (dense_like(x), torch.empty_like(p1.contiguous()),
                     torch.empty_like(p2.contiguous()), dbeta)
        return only_asked(gradients, asked)
