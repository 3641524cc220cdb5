"""The mean over the map, of which meta-ACON's G is a function."""
import torch
from torch import Tensor

from ..compat import is_compiling, is_transformed, register_fake
from .checks import check_input
from .extension import DEVICES, has_kernels


def spatial_mean(x: Tensor) -> Tensor:
    """The mean of each sample and channel (arXiv 2009.04759, Sec. 3.1).

    Args:
        x: Input of shape (N, C, ...), any floating-point dtype.

    Returns:
        Tensor: (N, C), in x's dtype; added up in float32 or float64. NaN
        where there are no places.

    Raises:
        TypeError: x is not of a floating-point dtype.
        ValueError: x has fewer than two axes.
    """
    check_input(x, 'spatial_mean')
    if x.dim() == 2:
        return x
    # torch.func takes no autograd.Function of this kind.
    if not is_compiling() and is_transformed():
        return x.flatten(2).mean(2)
    return _SpatialMean.apply(x)


class _SpatialMean(torch.autograd.Function):
    """Its gradient is a view of N * C numbers, which autograd adds to the
    other gradient of x in place; that of ``Tensor.mean`` is one more tensor
    of x's size.
    """

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        ctx.shape = x.shape
        rows = x.flatten(2)
        # A symbol where x has symbols, as shape[2:].numel() is not.
        ctx.area = rows.shape[2]
        # On a GPU PyTorch's own is as fast.
        if _HAS_KERNEL and x.device.type == 'cpu' and has_kernels(x):
            return torch.ops.mm_acon.spatial_mean.default(x)
        return rows.mean(2)

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        ones = [1] * (len(ctx.shape) - 2)
        return (grad / ctx.area).view(*grad.shape, *ones).expand(ctx.shape)


_HAS_KERNEL = bool(DEVICES) and torch._C._dispatch_has_kernel_for_dispatch_key(
    'mm_acon::spatial_mean', 'CPU')

if DEVICES:

    @register_fake('mm_acon::spatial_mean')
    def _(x):
        return x.new_empty(x.shape[:2])
