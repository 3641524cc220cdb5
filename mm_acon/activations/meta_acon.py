from typing import Optional

import torch
import torch.nn.functional as F
from mmengine.registry import MODELS
from torch import Tensor, nn

from ..ops import acon, spatial_mean
from ..ops.checks import compute_dtype
from .base import InnerConv, LearnableActivation, apply_norm


@MODELS.register_module(name=['MetaACON', 'MetaAconC'])
class MetaACON(LearnableActivation):
    r"""meta-ACON: ACON-C whose :math:`\beta = G(x)` (arXiv 2009.04759, 3.1).

    .. math::
        f(x) = (p_1 - p_2) x \cdot \sigma(\beta (p_1 - p_2) x) + p_2 x

    With GAP the mean over the spatial axes and :math:`\sigma` the sigmoid,
    G has one of three granularities (Table 5):

    - ``'channel'``: :math:`\beta_c = \sigma(W_1 W_2 \, GAP(x))`, one per
      sample and channel. W2 is ``fc1`` (C to max(r, C // r) numbers), W1 is
      ``fc2`` (back to C), both with bias.
    - ``'layer'``: :math:`\beta = \sigma(\sum_c GAP(x)_c)`, one per sample.
    - ``'pixel'``: :math:`\beta = \sigma(x)`, one per element.

    p1 starts at 1 and p2 at 0, fc1 and fc2 by PyTorch's rule for
    convolutions, whatever the owner's ``init_weights`` does. Since
    :math:`\beta < 1`, a ReLU network does not keep its function: the network
    has to be trained with the activation.

    Args:
        num_channels (int, optional): C. None takes it from the first input.
        granularity (str): 'channel', 'layer' or 'pixel'.
        reduction (int): The paper's r, 16, and 8 for ShuffleNetV2 0.5x.
        norm_cfg (dict, optional): Norm after fc1 and after fc2;
            ``dict(type='BN')`` in the authors' code. A BatchNorm meets one
            number per sample and channel, so for a batch of one it uses its
            running statistics in training too.
        depthwise (bool): fc1 and fc2 weight every channel for itself, as the
            paper does in ResNet-152 to save parameters.
        inplace (bool): Accepted, no effect.
        channel_axis (int, optional): Axis of the channels, 1 or -1, as in
            :class:`LearnableActivation`.

    Input and output: (N, C, ...) or (N, ..., C), any floating-point dtype.
    """

    granularities = ('channel', 'layer', 'pixel')

    def __init__(self,
                 num_channels: Optional[int] = None,
                 granularity: str = 'channel',
                 reduction: int = 16,
                 norm_cfg: Optional[dict] = None,
                 depthwise: bool = False,
                 inplace: bool = False,
                 channel_axis: Optional[int] = None) -> None:
        super().__init__(num_channels, granularity, inplace, channel_axis)
        if granularity != 'channel' and (norm_cfg or depthwise):
            raise ValueError(
                "MetaACON takes norm_cfg and depthwise with granularity="
                f"'channel' only, got granularity={granularity!r}; the other "
                'granularities have no fully connected layers.')
        if reduction < 1:
            raise ValueError('MetaACON expects reduction to be at least 1, '
                             f'got {reduction!r}.')
        self.reduction = reduction
        self.norm_cfg = norm_cfg
        self.depthwise = depthwise
        self.build()

    @property
    def needs_width(self) -> bool:
        return True  # p1 and p2 belong to channels in every granularity.

    def add_parameters(self, num_channels: int) -> None:
        self.p1 = nn.Parameter(torch.empty(num_channels))
        self.p2 = nn.Parameter(torch.empty(num_channels))
        if self.granularity != 'channel':
            return
        if self.depthwise:
            hidden, groups = num_channels, num_channels
        else:
            hidden, groups = max(self.reduction,
                                 num_channels // self.reduction), 1
        for index, size in (('1', (num_channels, hidden)),
                            ('2', (hidden, num_channels))):
            setattr(self, f'fc{index}', InnerConv(*size, 1, groups=groups))
            if self.norm_cfg:
                from mmcv.cnn import build_norm_layer
                norm = build_norm_layer(self.norm_cfg, size[1])[1]
                setattr(self, f'bn{index}', norm)

    def reset_parameters(self) -> None:
        nn.init.ones_(self.p1)
        nn.init.zeros_(self.p2)
        for layer in self.children():
            layer.reset_parameters()

    def activate(self, x: Tensor) -> Tensor:
        beta = self.switching_factor(x)
        return acon(x, self.p1, self.p2, beta)

    def curve(self, x: Tensor) -> Tensor:
        raise ValueError('MetaACON is no function of one number: its beta '
                         'depends on the whole map.')

    def switching_factor(self, x: Tensor) -> Tensor:
        r""":math:`\beta = G(x)`: (N, C), (N, 1) or x's shape."""
        if self.granularity == 'pixel':
            # Its gradient grows with x squared: half precision would make it
            # infinite, and NaN where the sigmoid is 0.
            return torch.sigmoid(x.to(compute_dtype(x)))
        mean = spatial_mean(x)
        if self.granularity == 'layer':
            # Summed over C channels, so not in half precision.
            mean = mean.to(compute_dtype(x))
            return torch.sigmoid(mean.sum(1, keepdim=True))
        hidden = self._connect('1', mean.to(self.fc1.weight.dtype))
        return torch.sigmoid(self._connect('2', hidden))

    def _connect(self, index: str, x: Tensor) -> Tensor:
        """The fully connected layer of that index, and its norm."""
        layer = getattr(self, f'fc{index}')
        # Not layer(x): a convolution over one pixel takes several times as
        # long as the matrix product that it is.
        weight = layer.weight.flatten(1)
        if self.depthwise:
            y = x * weight.squeeze(1) + layer.bias
        else:
            y = F.linear(x, weight, layer.bias)
        if self.norm_cfg:
            norm = getattr(self, f'bn{index}')
            y = apply_norm(norm, y[:, :, None, None]).flatten(1)
        return y

    def extra_repr(self) -> str:
        text = super().extra_repr()
        if self.granularity == 'channel':
            text += (f', reduction={self.reduction}, '
                     f'depthwise={self.depthwise}')
        return text
