from typing import Iterator, Optional, Sequence

from mmengine.model import Sequential
from mmengine.registry import MODELS
from torch import nn

from .base import StagedBackbone


@MODELS.register_module()
class MobileNetV1(StagedBackbone):
    """MobileNet of depth-wise separable convolutions (arXiv 1704.04861).

    The ACON paper's Table 2 has it with ``widen_factor`` 0.25 and 0.75. 27
    activations: one behind the stem's 3x3 convolution and two in each of 13
    blocks, which make five stages of strides 2, 4, 8, 16 and 32 and of 64,
    128, 256, 512 and 1024 channels times ``widen_factor``.

    Args:
        widen_factor (float): Multiplies the number of channels everywhere.
        out_indices (Sequence[int]): Stages whose outputs are returned.
        act_cfg (dict, optional): Config of the activations, ReLU if None.
        **kwargs: Other arguments of :class:`StagedBackbone`.
    """

    num_stages = 5
    # Channels, blocks and stride of each stage.
    arch_settings = ((64, 1, 1), (128, 2, 2), (256, 2, 2), (512, 6, 2), (1024,
                                                                         2, 2))

    def __init__(self,
                 widen_factor: float = 1.0,
                 out_indices: Sequence[int] = (4, ),
                 act_cfg: Optional[dict] = None,
                 **kwargs) -> None:
        from mmcv.cnn import ConvModule
        super().__init__(out_indices, **kwargs)
        self.configs['act_cfg'] = act_cfg or dict(type='ReLU')
        channels = int(32 * widen_factor)
        stem = ConvModule(3, channels, 3, stride=2, padding=1, **self.configs)
        self.add_layers(stem, self._stages(channels, widen_factor))

    def _stages(self, in_channels: int,
                widen_factor: float) -> Iterator[nn.Module]:
        from mmcv.cnn import DepthwiseSeparableConvModule
        for channels, num_blocks, stride in self.arch_settings:
            channels = int(channels * widen_factor)
            blocks = []
            for _ in range(num_blocks):
                blocks.append(
                    DepthwiseSeparableConvModule(
                        in_channels,
                        channels,
                        3,
                        stride=stride,
                        padding=1,
                        **self.configs))
                in_channels, stride = channels, 1
            yield Sequential(*blocks)
