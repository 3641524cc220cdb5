from typing import List

import torch
from mmengine.model import BaseModule
from mmengine.registry import MODELS
from torch import Tensor, nn


def longest_kept_first(positions: range) -> List[int]:
    """Channels by the number of blocks that pass them on unchanged.

    Megvii's block of stride 1 passes the channels at even positions on, in
    front of what it computes from the others: a channel at a multiple of 2^k
    is not touched before block k + 1. MMPretrain's passes the first half on
    and interleaves: untouched are those below C / 2^k, as many. So
    MMPretrain's blocks get the channels that Megvii's get, if new ones are
    put in this order.

    Args:
        positions (range): Positions in Megvii's order.
    """
    return sorted(positions, key=lambda p: -(p & -p) if p else -len(positions))


class UnevenBlock(BaseModule):
    """First block of stage 1: C_in and C_out - C_in channels, not C_out / 2.

    Args:
        even (nn.Module): MMPretrain's block, whose layers it takes over.
        in_channels (int): C_in.
        **configs: Configs of convolution, norm and activation.
    """

    def __init__(self, even: nn.Module, in_channels: int, **configs) -> None:
        from mmcv.cnn import ConvModule
        super().__init__()
        self.branch1, self.branch2 = even.branch1, even.branch2
        half = self.branch2[2].in_channels
        self.branch1[1] = ConvModule(in_channels, in_channels, 1, **configs)
        self.branch2[2] = ConvModule(half, 2 * half - in_channels, 1,
                                     **configs)
        self.register_buffer(
            'order',
            torch.tensor(longest_kept_first(range(2 * half))),
            persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat((self.branch1(x), self.branch2(x)), 1)
        return x[:, self.order]


@MODELS.register_module(name='MegviiShuffleNetV2')
def build_megvii_shufflenet_v2(widen_factor: float = 1.0,
                               **kwargs) -> nn.Module:
    """ShuffleNetV2 as Megvii, and the ACON authors, have it in their code.

    The branches of the first block have 24 and C - 24 channels there, where
    MMPretrain's, otherwise the same, have C / 2 each; with ``widen_factor``
    0.5 both are 24. The ACON paper's 1.0x, 1.5x and 2.0x are these.

    Args:
        widen_factor (float): 0.5, 1.0, 1.5 or 2.0.
        **kwargs: Other arguments of MMPretrain's ShuffleNetV2.
    """
    backbone = MODELS.build(
        dict(
            type='mmpretrain.ShuffleNetV2',
            widen_factor=widen_factor,
            **kwargs))
    backbone.layers[0][0] = UnevenBlock(
        backbone.layers[0][0],
        backbone.conv1.out_channels,
        conv_cfg=backbone.conv_cfg,
        norm_cfg=backbone.norm_cfg,
        act_cfg=backbone.act_cfg)
    return backbone
