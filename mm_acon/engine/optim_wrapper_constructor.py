from typing import List, Optional

from mmengine.optim import DefaultOptimWrapperConstructor
from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS
from torch import nn

from ..activations import LearnableActivation


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class ActivationOptimWrapperConstructor(DefaultOptimWrapperConstructor):
    """MMEngine's constructor, with rules for activation parameters.

    The numbers that an activation owns itself (p1, p2 and beta of ACON,
    points, bounds and slopes of PWLU) get no weight decay, as in the ACON
    authors' training. Convolutions and norms inside an activation, those of
    MetaACON's G, are treated as any other. A ``custom_keys`` entry that
    matches a parameter has the last word, as in MMEngine.

    .. code-block:: python

        optim_wrapper=dict(
            constructor='ActivationOptimWrapperConstructor',
            optimizer=dict(type='SGD', lr=0.01, weight_decay=1e-4),
            paramwise_cfg=dict(act_lr_mult=1.0, act_decay_mult=0.0))

    Args:
        optim_wrapper_cfg (dict): As in MMEngine.
        paramwise_cfg (dict, optional): MMEngine's options, and

            - ``act_lr_mult`` (float): Learning rate of activation parameters
              over that of the others. Defaults to 1.
            - ``act_decay_mult`` (float): Likewise for weight decay.
              Defaults to 0.
    """

    def __init__(self,
                 optim_wrapper_cfg: dict,
                 paramwise_cfg: Optional[dict] = None) -> None:
        paramwise_cfg = dict(paramwise_cfg or {})
        # Never empty: MMEngine would then not look at single parameters.
        paramwise_cfg.setdefault('act_lr_mult', 1.)
        paramwise_cfg.setdefault('act_decay_mult', 0.)
        super().__init__(optim_wrapper_cfg, paramwise_cfg)
        # A ConfigDict would make ConfigDicts of the parameter groups, at which
        # torch.compile of train_step stops.
        self.optimizer_cfg = dict(self.optimizer_cfg)

    def add_params(self,
                   params: List[dict],
                   module: nn.Module,
                   prefix: str = '',
                   **kwargs) -> None:
        first = len(params)
        super().add_params(params, module, prefix=prefix, **kwargs)
        if not isinstance(module, LearnableActivation):
            return
        names = {
            parameter: f'{prefix}.{name}'
            for name, parameter in module.named_parameters(recurse=False)
        }
        custom_keys = self.paramwise_cfg.get('custom_keys', {})
        for group in params[first:]:
            name = names.get(group['params'][0])
            if name is None or any(key in name for key in custom_keys):
                continue
            group['lr'] = self.base_lr * self.paramwise_cfg['act_lr_mult']
            if self.base_wd is not None:
                group['weight_decay'] = (
                    self.base_wd * self.paramwise_cfg['act_decay_mult'])
