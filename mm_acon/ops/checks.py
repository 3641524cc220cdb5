"""Checks and small shape helpers that every operator shares."""
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
                    dim: int = 1) -> None:
    """Refuses a parameter that is not one number, or row, per channel."""
    check_device(name, value, x, operator)
    if value.dim() != dim or value.shape[0] not in (1, x.shape[1]):
        raise ValueError(
            f'{operator} expects {name} to have {dim} axes and 1 or '
            f'{x.shape[1]} rows (the channels of x with shape '
            f'{tuple(x.shape)}), got shape {tuple(value.shape)}; write '
            f'num_channels={x.shape[1]} where the activation is built.')


def compute_dtype(x: Tensor, parameter: Tensor) -> torch.dtype:
    """The dtype of the arithmetic: at least float32."""
    # Not promote_types, which torch.compile could not trace before torch 2.2.
    return torch.float64 if torch.float64 in (
        x.dtype, parameter.dtype) else torch.float32


def per_channel(parameter: Tensor, x: Tensor) -> Tensor:
    """Views (C,) or (1,) so that it broadcasts against x (N, C, ...)."""
    return parameter.view(1, -1, *[1] * (x.dim() - 2))
