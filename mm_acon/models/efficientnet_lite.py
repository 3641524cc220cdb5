import math
from typing import Iterator, Optional, Sequence

from mmengine.model import Sequential
from mmengine.registry import MODELS
from torch import nn

from .base import StagedBackbone


@MODELS.register_module()
class EfficientNetLite(StagedBackbone):
    """EfficientNet without squeeze-and-excitation, and with ReLU6.

    The networks that were published as EfficientNet-Lite0 to Lite4: the
    blocks of EfficientNet (arXiv 1905.11946, Table 1); stem and last layer
    keep their 32 and 1280 channels at every width, the first and the last
    group of blocks their one block. MMPretrain's EfficientNet always has
    squeeze-and-excitation. Lite0 has 33 activations: one in the stem, one in
    the first block, two in each of 15 blocks and one in the last layer.

    Six stages, of strides 2, 4, 8, 16, 32 and 32, in Lite0 of 16, 24, 40,
    112, 320 and 1280 channels; the last is the 1x1 convolution in front of a
    classifier. Detectors and segmentors take ``out_indices=(1, 2, 3, 4)`` or
    less. Weights: ``tools/model_converters/efficientnet_lite2mm.py``. Needs
    MMPretrain, whose blocks it is built of.

    Args:
        arch (str): 'lite0', 'lite1', 'lite2', 'lite3' or 'lite4'.
        out_indices (Sequence[int]): Stages whose outputs are returned.
        conv_cfg (dict, optional): Config of the convolutions; where there is
            none, those with a stride pad as the published networks do, the
            odd pixel at the right and below.
        norm_cfg (dict, optional): Config of the norms, BN of eps 1e-3 if
            None.
        act_cfg (dict, optional): Config of the activations, ReLU6 if None.
        **kwargs: Other arguments of :class:`StagedBackbone`.
    """

    num_stages = 6
    # Factors of width and depth, and the size of the images in training.
    arch_settings = dict(
        lite0=(1.0, 1.0, 224),
        lite1=(1.0, 1.1, 240),
        lite2=(1.1, 1.2, 260),
        lite3=(1.2, 1.4, 280),
        lite4=(1.4, 1.8, 300))
    # Of each stage its groups: kernel, channels, blocks, stride, expansion.
    stage_settings = (
        ((3, 16, 1, 1, 1), ),
        ((3, 24, 2, 2, 6), ),
        ((5, 40, 2, 2, 6), ),
        ((3, 80, 3, 2, 6), (5, 112, 3, 1, 6)),
        ((5, 192, 4, 2, 6), (3, 320, 1, 1, 6)),
    )
    stem_channels, last_channels = 32, 1280

    def __init__(self,
                 arch: str = 'lite0',
                 out_indices: Sequence[int] = (5, ),
                 conv_cfg: Optional[dict] = None,
                 norm_cfg: Optional[dict] = None,
                 act_cfg: Optional[dict] = None,
                 **kwargs) -> None:
        from mmcv.cnn import ConvModule
        if arch not in self.arch_settings:
            raise ValueError('EfficientNetLite expects arch to be one of '
                             f'{list(self.arch_settings)}, got {arch!r}.')
        super().__init__(
            out_indices,
            conv_cfg=conv_cfg,
            norm_cfg=norm_cfg or dict(type='BN', eps=1e-3),
            **kwargs)
        self.configs['act_cfg'] = act_cfg or dict(type='ReLU6')
        stem = ConvModule(
            3,
            self.stem_channels,
            3,
            stride=2,
            padding=1,
            **self._configs(stride=2))
        self.add_layers(stem, self._stages(*self.arch_settings[arch][:2]))

    def _configs(self, stride: int) -> dict:
        """Without a stride, padding by half the kernel is the same."""
        if stride == 1 or self.configs['conv_cfg']:
            return self.configs
        return dict(self.configs, conv_cfg=dict(type='Conv2dAdaptivePadding'))

    def _stages(self, width: float, depth: float) -> Iterator[nn.Module]:
        from mmcv.cnn import ConvModule
        from mmpretrain.models.utils import InvertedResidual, make_divisible
        in_channels = self.stem_channels
        ends = self.stage_settings[0][0], self.stage_settings[-1][-1]
        for groups in self.stage_settings:
            blocks = []
            for group in groups:
                kernel_size, channels, num_blocks, stride, expansion = group
                channels = make_divisible(channels * width, 8)
                if group not in ends:
                    num_blocks = math.ceil(num_blocks * depth)
                for _ in range(num_blocks):
                    blocks.append(
                        InvertedResidual(in_channels, channels,
                                         in_channels * expansion, kernel_size,
                                         stride, **self._configs(stride)))
                    in_channels, stride = channels, 1
            yield Sequential(*blocks)
        yield ConvModule(in_channels, self.last_channels, 1, **self.configs)
