from typing import Optional

import torch
import torch.nn.functional as F
from mmengine.registry import MODELS
from torch import Tensor, nn

from ..ops import acon
from .base import InnerConv, LearnableActivation, apply_norm


class _Funnel(LearnableActivation):
    """A smooth or hard maximum of x and a 3x3 spatial condition of x."""

    granularities = ('channel', )
    is_curve = False

    def __init__(self,
                 num_channels: Optional[int] = None,
                 stride: int = 1,
                 norm_cfg: Optional[dict] = None,
                 granularity: str = 'channel',
                 inplace: bool = False,
                 channel_axis: Optional[int] = None) -> None:
        super().__init__(num_channels, granularity, inplace, channel_axis)
        if stride not in (1, 2):
            raise ValueError(f'{type(self).__name__} expects stride 1 or 2, '
                             f'got {stride!r}.')
        self.stride = stride
        self.norm_cfg = norm_cfg or dict(type='BN')
        self.build()

    def add_parameters(self, num_channels: int) -> None:
        from mmcv.cnn import build_norm_layer
        self.conv = InnerConv(
            num_channels,
            num_channels,
            3,
            stride=self.stride,
            groups=num_channels,
            bias=False)
        self.norm = build_norm_layer(self.norm_cfg, num_channels)[1]

    def reset_parameters(self) -> None:
        # The norm rescales it in training; in eval mode, before any, the
        # condition is small and the unit close to ReLU.
        nn.init.normal_(self.conv.weight, std=0.01)
        self.norm.reset_parameters()

    def width_in(self, state_dict, prefix: str) -> int:
        weight = state_dict.get(prefix + 'conv.weight')
        return 0 if weight is None else weight.shape[0]

    def _axis_of(self, x: Tensor) -> int:
        # Tokens would come to `lines` as a map one pixel wide.
        self._refuse_other_than_maps(x)
        return super()._axis_of(x)

    def _refuse_other_than_maps(self, x: Tensor) -> None:
        if x.dim() != 4:
            raise ValueError(
                f'{type(self).__name__} expects x of shape (N, C, H, W), or '
                f'(N, H, W, C) with channel_axis=-1, got {tuple(x.shape)}; it '
                'looks at 3x3 neighbourhoods.')

    def lines(self, x: Tensor):
        r""":math:`\eta_a` and :math:`\eta_b` of Table 1 (2009.04759)."""
        self._refuse_other_than_maps(x)
        identity = x
        if self.stride == 2:
            identity = F.max_pool2d(x, 3, stride=2, padding=1)
        return identity, apply_norm(self.norm, self.conv(x))


@MODELS.register_module()
class FReLU(_Funnel):
    r"""Funnel ReLU (arXiv 2007.11824).

    .. math:: f(x) = \max(x, BN(DWConv_{3 \times 3}(x)))

    Args:
        num_channels (int, optional): C. None takes it from the first input.
        stride (int): 1, or 2 to halve height and width; x is then
            max-pooled by 3x3.
        norm_cfg (dict, optional): Norm after the convolution, BN if None.
        granularity (str): 'channel' only.
        inplace (bool): Accepted, no effect.
        channel_axis (int, optional): Axis of the channels, 1 or -1, as in
            :class:`LearnableActivation`.

    Input: (N, C, H, W) or (N, H, W, C), any floating-point dtype.
    """

    def activate(self, x: Tensor) -> Tensor:
        return torch.maximum(*self.lines(x))


@MODELS.register_module()
class ACONFReLU(_Funnel):
    r"""ACON-FReLU, the smooth FReLU of TFNet (arXiv 2009.04759, Table 1).

    .. math::
        f(x) = (\eta_a - \eta_b) \sigma(\eta_a - \eta_b) + \eta_b, \quad
        \eta_b = BN(DWConv_{3 \times 3}(x))

    and :math:`\eta_a = x`, or its 3x3 maximum where the stride is 2.
    Arguments are those of :class:`FReLU`. Input: (N, C, H, W) or
    (N, H, W, C), any floating-point dtype.
    """

    def activate(self, x: Tensor) -> Tensor:
        identity, condition = self.lines(x)
        one, zero = x.new_ones(1), x.new_zeros(1)
        difference = identity - condition
        return acon(difference, one, zero, one) + condition
