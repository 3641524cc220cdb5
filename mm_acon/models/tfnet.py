from collections import OrderedDict
from typing import Iterator, Optional, Sequence

import torch
from mmengine.model import BaseModule, Sequential
from mmengine.registry import MODELS
from torch import Tensor, nn

from ..activations import ACONFReLU
from .base import StagedBackbone


def _funnel(channels: int, stride: int, norm_cfg: dict) -> Sequential:
    """ACON-FReLU and the norm that the authors' code puts behind it."""
    from mmcv.cnn import build_norm_layer
    return Sequential(
        OrderedDict(
            act=ACONFReLU(channels, stride=stride, norm_cfg=norm_cfg),
            norm=build_norm_layer(norm_cfg, channels)[1]))


class TFBlock(BaseModule):
    """Building block of TFNet (arXiv 2009.04759, Appendix Fig. 2).

    Two 1x1 convolutions with a funnel between them, whose result is added to
    the input (stride 1) or concatenated with it (stride 2). The funnel behind
    that has the stride.

    Args:
        in_channels (int): The width C. The output has C * ``stride`` channels.
        stride (int): 1 or 2.
        conv_cfg (dict, optional): Config of the 1x1 convolutions.
        norm_cfg (dict): Config of the norms.
    """

    def __init__(self, in_channels: int, stride: int, conv_cfg: Optional[dict],
                 norm_cfg: dict) -> None:
        from mmcv.cnn import ConvModule
        super().__init__()
        self.stride = stride
        configs = dict(conv_cfg=conv_cfg, norm_cfg=norm_cfg, act_cfg=None)
        self.conv1 = ConvModule(in_channels, in_channels, 1, **configs)
        self.funnel1 = _funnel(in_channels, 1, norm_cfg)
        self.conv2 = ConvModule(in_channels, in_channels, 1, **configs)
        self.funnel2 = _funnel(in_channels * stride, stride, norm_cfg)

    def forward(self, x: Tensor) -> Tensor:
        branch = self.conv2(self.funnel1(self.conv1(x)))
        if self.stride == 1:
            return self.funnel2(x + branch)
        return self.funnel2(torch.cat([x, branch], 1))


@MODELS.register_module()
class TFNet(StagedBackbone):
    """Toy funnel network (arXiv 2009.04759, Sec. 4.2, Appendix Table 1).

    1x1 convolutions and ACON-FReLU alone, behind a stem of one 3x3
    convolution with ReLU. Stages 0 to 3 have 2, 3, 8 and 3 blocks, halve
    height and width and double the number of channels; stage 4 is the 1x1
    convolution "conv6". For a detector take ``out_indices=(0, 1, 2, 3)``:
    strides 4, 8, 16 and 32, and 32, 64, 128 and 256 channels times
    ``widen_factor``.

    Args:
        widen_factor (float): Size of the network; 0.5, 1, 1.5 and 2 in the
            paper. The stem has 16 channels times this, conv6 always 1024.
        out_indices (Sequence[int]): Stages whose outputs are returned.
        **kwargs: Other arguments of :class:`StagedBackbone`.
    """

    num_stages = 5
    stage_blocks = (2, 3, 8, 3)

    def __init__(self,
                 widen_factor: float = 1.0,
                 out_indices: Sequence[int] = (4, ),
                 **kwargs) -> None:
        from mmcv.cnn import ConvModule
        super().__init__(out_indices, **kwargs)
        channels = int(16 * widen_factor)
        stem = ConvModule(3, channels, 3, stride=2, padding=1, **self.configs)
        self.add_layers(stem, self._stages(channels))

    def _stages(self, channels: int) -> Iterator[nn.Module]:
        from mmcv.cnn import ConvModule
        for num_blocks in self.stage_blocks:
            yield Sequential(
                TFBlock(channels, 2, **self.configs),
                *(TFBlock(2 * channels, 1, **self.configs)
                  for _ in range(num_blocks - 1)))
            channels *= 2
        yield Sequential(
            OrderedDict(
                conv=ConvModule(
                    channels, 1024, 1, act_cfg=None, **self.configs),
                funnel=_funnel(1024, 1, self.configs['norm_cfg'])))
