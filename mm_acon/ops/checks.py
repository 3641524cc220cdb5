"""Checks and small shape helpers that every operator shares."""
from typing import Optional

import torch
from torch import Tensor


def check_input(x: Tensor, operator: str) -> None:
    """Refuses what is no floating-point tensor of shape (N, C, ...)."""
    if not x.is_floating_point():
        remedy = 'x.real or x.abs()' if x.is_complex() else 'x.float()'
        raise TypeError(
            f'{operator} expects a floating-point x, got {x.dtype}; write '
            f'{remedy} first.')
    if x.dim() < 2:
        raise ValueError(
            f'{operator} expects x of shape (N, C, ...), got '
            f'{tuple(x.shape)}; write x.unsqueeze(0) for a single sample.')


def check_device(name: str, value: Tensor, x: Tensor, operator: str) -> None:
    """Refuses a tensor that lies on another device than x."""
    if value.device != x.device:
        raise RuntimeError(
            f'{operator} expects x and {name} on one device, got x on '
            f'{x.device} and {name} on {value.device}; move the module with '
            f'.to({str(x.device)!r}).')


def check_parameter(name: str,
                    value: Tensor,
                    x: Tensor,
                    operator: str,
                    dim: int = 1,
                    axis: int = 1) -> None:
    """Refuses a parameter that is not one number, or row, per channel."""
    check_device(name, value, x, operator)
    if value.dim() != dim or value.shape[0] not in (1, x.shape[axis]):
        raise ValueError(
            f'{operator} expects {name} to have {dim} axes and 1 or '
            f'{x.shape[axis]} rows (the channels of x with shape '
            f'{tuple(x.shape)}), got shape {tuple(value.shape)}; write '
            f'num_channels={x.shape[axis]} where the activation is built.')


def check_channel_axis(channel_axis: Optional[int], owner: str) -> None:
    """Refuses what is not 1, -1 or None."""
    if channel_axis not in (None, 1, -1):
        raise ValueError(
            f'{owner} expects channel_axis to be 1 for x of shape (N, C, '
            '...), -1 for (N, ..., C), or None to go by the sizes, got '
            f'{channel_axis!r}.')


def axis_of_size(x: Tensor, size: int, owner: str) -> Optional[int]:
    """Which of axis 1 and the last has that size, None if neither.

    Raises:
        ValueError: x has 3 axes, and both have that size.
    """
    first, last = x.shape[1] == size, x.shape[-1] == size
    if first and last and x.dim() == 3:
        raise unclear_axis(x, owner)
    if first:
        return 1
    return -1 if last else None


def unclear_axis(x: Tensor, owner: str) -> ValueError:
    return ValueError(
        f'{owner} cannot tell which axis of x with shape {tuple(x.shape)} has '
        f'the channels; write channel_axis=-1 for (N, ..., C), as tokens are, '
        'or channel_axis=1 for (N, C, ...).')


def find_channel_axis(x: Tensor, channel_axis: Optional[int], owner: str,
                      *parameters: Tensor) -> int:
    """The axis of x that parameters of one row per channel belong to."""
    check_channel_axis(channel_axis, owner)
    if x.dim() == 2:
        return 1
    if channel_axis is not None:
        return channel_axis
    # One row serves every axis. What does not fit is refused by its check.
    rows = {p.shape[0] for p in parameters if p.dim() and p.shape[0] > 1}
    return len(rows) == 1 and axis_of_size(x, *rows, owner) or 1


def channels_first(x: Tensor) -> Tensor:
    """Views (N, ..., C) as (N, C, ...), at least as (N, C, L, 1).

    A contiguous x becomes a map in channels_last memory, which every
    operator reads as it lies.
    """
    if x.dim() == 3:
        x = x.unsqueeze(2)
    return x.movedim(-1, 1)


def channels_last(y: Tensor, like: Tensor) -> Tensor:
    """Views an output as (N, ..., C), like the input of channels_first."""
    y = y.movedim(1, -1)
    return y.squeeze(2) if like.dim() == 3 else y


# TorchScript compiles the three below, which folded models call.


def compute_dtype(x: Tensor) -> torch.dtype:
    """The dtype of the arithmetic: at least float32."""
    # Not promote_types, which torch.compile could not trace before torch 2.2.
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def per_channel(parameter: Tensor, x: Tensor) -> Tensor:
    """Views (C,) or (1,) so that it broadcasts against x (N, C, ...)."""
    return parameter.view([1, -1] + [1] * (x.dim() - 2))


def per_sample(parameter: Tensor, x: Tensor) -> Tensor:
    """Views (N, C) or (N, 1) so that it broadcasts against x (N, C, ...)."""
    return parameter.view(list(parameter.shape) + [1] * (x.dim() - 2))
