from typing import Iterator, Optional, Sequence

from mmengine.model import BaseModule, Sequential
from mmengine.registry import MODELS
from torch import Tensor, nn

from .base import StagedBackbone


class SEBottleneck(BaseModule):
    """Bottleneck of SENet-154.

    The 3x3 convolution has 64 groups, twice the channels of the 1x1
    convolution before it and those of the output. MMPretrain's SEResNeXt
    gives both the same number.

    Args:
        in_channels (int): Channels of the input.
        channels (int): Channels of the output.
        stride (int): Stride of the 3x3 convolution and of the shortcut.
        shortcut_kernel (int, optional): Kernel of the shortcut's
            convolution. None is a shortcut without one.
        conv_cfg (dict, optional): Config of the convolutions.
        norm_cfg (dict): Config of the norms.
    """

    def __init__(self, in_channels: int, channels: int, stride: int,
                 shortcut_kernel: Optional[int], conv_cfg: Optional[dict],
                 norm_cfg: dict) -> None:
        from mmcv.cnn import ConvModule
        super().__init__()
        configs = dict(conv_cfg=conv_cfg, norm_cfg=norm_cfg)
        self.conv1 = ConvModule(in_channels, channels // 2, 1, **configs)
        self.conv2 = ConvModule(
            channels // 2,
            channels,
            3,
            stride=stride,
            padding=1,
            groups=64,
            **configs)
        self.conv3 = ConvModule(channels, channels, 1, act_cfg=None, **configs)
        self.se = Sequential(
            nn.AdaptiveAvgPool2d(1),
            ConvModule(channels, channels // 16, 1, conv_cfg=conv_cfg),
            ConvModule(
                channels // 16,
                channels,
                1,
                conv_cfg=conv_cfg,
                act_cfg=dict(type='Sigmoid')))
        self.shortcut = None
        if shortcut_kernel is not None:
            self.shortcut = ConvModule(
                in_channels,
                channels,
                shortcut_kernel,
                stride=stride,
                padding=shortcut_kernel // 2,
                act_cfg=None,
                **configs)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        branch = self.conv3(self.conv2(self.conv1(x)))
        branch = branch * self.se(branch)
        return self.relu(branch + (self.shortcut(x) if self.shortcut else x))


@MODELS.register_module()
class SENet154(StagedBackbone):
    """SENet-154 (arXiv 1709.01507, appendix).

    A squeeze-and-excitation ResNeXt-152 64x4d whose first 1x1 convolutions
    are half as wide, with three 3x3 convolutions as stem and 3x3 convolutions
    in the shortcuts that halve height and width. Four stages of strides 4, 8,
    16 and 32 and of 256, 512, 1024 and 2048 channels.

    Args:
        out_indices (Sequence[int]): Stages whose outputs are returned.
        **kwargs: Other arguments of :class:`StagedBackbone`.
    """

    num_stages = 4
    stage_blocks = (3, 8, 36, 3)

    def __init__(self, out_indices: Sequence[int] = (3, ), **kwargs) -> None:
        from mmcv.cnn import ConvModule
        super().__init__(out_indices, **kwargs)
        stem = Sequential(
            ConvModule(3, 64, 3, stride=2, padding=1, **self.configs),
            ConvModule(64, 64, 3, padding=1, **self.configs),
            ConvModule(64, 128, 3, padding=1, **self.configs),
            nn.MaxPool2d(3, stride=2, padding=1))
        self.add_layers(stem, self._stages())

    def _stages(self) -> Iterator[nn.Module]:
        in_channels = 128
        for index, num_blocks in enumerate(self.stage_blocks):
            channels = 256 * 2**index
            yield Sequential(
                SEBottleneck(
                    in_channels,
                    channels,
                    stride=1 if index == 0 else 2,
                    shortcut_kernel=1 if index == 0 else 3,
                    **self.configs),
                *(SEBottleneck(channels, channels, 1, None, **self.configs)
                  for _ in range(num_blocks - 1)))
            in_channels = channels
