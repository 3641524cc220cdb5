from itertools import islice
from typing import Iterable, Optional, Sequence, Tuple, Union

from mmengine.model import BaseModule
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


class StagedBackbone(BaseModule):
    """Base of the backbones here: a stem, then stages, one after the other.

    A subclass hands its modules to :meth:`add_layers`; they become ``stem``,
    ``layer1``, ``layer2`` and so on, all built with ``self.configs``.

    Args:
        out_indices (Sequence[int]): Stages whose outputs are returned, from
            0. The stages behind the last of them are not built: without a
            gradient, they would stop DistributedDataParallel.
        frozen_stages (int): The stem and that many stages are frozen:
            without gradient, norms in eval mode. -1 freezes nothing.
        conv_cfg (dict, optional): Config of the convolutions.
        norm_cfg (dict, optional): Config of the norms, BN if None.
        norm_eval (bool): Keep all BatchNorms in eval mode.
        init_cfg (dict or list of dict, optional): As in MMEngine. None
            stands for He initialisation.
    """

    num_stages: int

    def __init__(self,
                 out_indices: Sequence[int],
                 frozen_stages: int = -1,
                 conv_cfg: Optional[dict] = None,
                 norm_cfg: Optional[dict] = None,
                 norm_eval: bool = False,
                 init_cfg: Union[dict, Sequence[dict], None] = None) -> None:
        name = type(self).__name__
        if not out_indices or not all(
                index in range(self.num_stages) for index in out_indices):
            raise ValueError(f'{name} expects out_indices from 0 to '
                             f'{self.num_stages - 1}, got {out_indices!r}.')
        num_built = max(out_indices) + 1
        if frozen_stages not in range(-1, num_built + 1):
            raise ValueError(
                f'{name} expects frozen_stages from -1 to {num_built}, the '
                f'number of stages that out_indices={tuple(out_indices)} '
                f'needs, got {frozen_stages!r}.')
        super().__init__(init_cfg or [
            dict(type='Kaiming', layer='Conv2d'),
            dict(type='Constant', layer=['_BatchNorm', 'GroupNorm'], val=1)
        ])
        self.out_indices = tuple(out_indices)
        self.frozen_stages = frozen_stages
        self.norm_eval = norm_eval
        self.configs = dict(
            conv_cfg=conv_cfg, norm_cfg=norm_cfg or dict(type='BN'))

    def add_layers(self, stem: nn.Module, stages: Iterable[nn.Module]) -> None:
        self.stem = stem
        self.layers = []
        for stage in islice(stages, max(self.out_indices) + 1):
            self.layers.append(f'layer{len(self.layers) + 1}')
            self.add_module(self.layers[-1], stage)
        self._freeze_stages()

    def _freeze_stages(self) -> None:
        for name in ['stem', *self.layers][:self.frozen_stages + 1]:
            getattr(self, name).eval().requires_grad_(False)

    def train(self, mode: bool = True) -> 'StagedBackbone':
        super().train(mode)
        self._freeze_stages()
        if mode and self.norm_eval:
            for module in self.modules():
                if isinstance(module, _BatchNorm):
                    module.eval()
        return self

    def forward(self, x: Tensor) -> Tuple[Tensor, ...]:
        """From (N, 3, H, W) to one (N, C_i, H_i, W_i) per out index."""
        x = self.stem(x)
        outs = []
        for index, name in enumerate(self.layers):
            x = getattr(self, name)(x)
            if index in self.out_indices:
                outs.append(x)
        return tuple(outs)
