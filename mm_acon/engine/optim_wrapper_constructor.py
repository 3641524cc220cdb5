import copy
from contextlib import contextmanager
from typing import Dict, Iterator, List, Optional, Union

from mmengine.logging import print_log
from mmengine.model import is_model_wrapper
from mmengine.optim import OptimWrapper, OptimWrapperDict
from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS
from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from ..activations.base import activations_of

_DEFAULT = 'DefaultOptimWrapperConstructor'


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class ActivationOptimWrapperConstructor:
    """Any constructor, with rules for activation parameters.

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

    A config with a constructor of its own names it as ``base_constructor``.
    Its groups stay, in their order, and what it gives activations does, the
    learning rate of layer decay for example; activations leave a group that
    they share with others for one of their own. Activation parameters that
    it leaves out, as constructors do that collect ``weight`` and ``bias`` of
    all modules, are added. One that stops at modules that it does not know
    is run without the activations' parameters.

    .. code-block:: python

        optim_wrapper=dict(
            constructor='ActivationOptimWrapperConstructor',
            base_constructor='LearningRateDecayOptimizerConstructor',
            optimizer=dict(type='AdamW', lr=1e-4, weight_decay=0.05),
            paramwise_cfg=dict(
                decay_rate=0.8, decay_type='layer_wise', num_layers=6))

    Args:
        optim_wrapper_cfg (dict): As in MMEngine, and

            - ``base_constructor`` (str or type): The constructor that is
              wrapped. Defaults to MMEngine's.
        paramwise_cfg (dict, optional): The wrapped constructor's options, and

            - ``act_lr_mult`` (float): Learning rate of activation parameters
              over what the wrapped constructor gives them, which is that of
              the others unless it has rules. Defaults to 1.
            - ``act_decay_mult`` (float): Their weight decay over that of the
              optimizer. Defaults to 0.
    """

    def __init__(self,
                 optim_wrapper_cfg: dict,
                 paramwise_cfg: Optional[dict] = None) -> None:
        cfg = copy.copy(optim_wrapper_cfg)
        base = cfg.pop('base_constructor', _DEFAULT)
        self.paramwise_cfg = dict(paramwise_cfg or {})
        rest = copy.copy(paramwise_cfg) or {}
        self.lr_mult = rest.pop('act_lr_mult', 1.)
        self.decay_mult = rest.pop('act_decay_mult', 0.)
        if base == _DEFAULT:
            # Never empty: a group for every parameter, as checkpoints of
            # earlier versions have them.
            rest.setdefault('act_lr_mult', self.lr_mult)
        self.base_wd = cfg.get('optimizer', {}).get('weight_decay')
        self.base = OPTIM_WRAPPER_CONSTRUCTORS.build(
            dict(type=base, optim_wrapper_cfg=cfg, paramwise_cfg=rest or None))

    def __call__(self,
                 model: nn.Module) -> Union[OptimWrapper, OptimWrapperDict]:
        wrapper = self._build(model)
        model = unwrapped(model)
        self._add_left_out(model, wrapper)
        own = {
            parameter: f'{prefix}.{name}' if prefix else name
            for prefix, module in activations_of(model).items()
            for name, parameter in module.named_parameters(recurse=False)
        }
        for single in single_wrappers(wrapper):
            self._apply_rules(single.optimizer, own)
        return wrapper

    def _build(self, model: nn.Module):
        try:
            return self.base(model)
        except Exception as error:
            if not activations_of(model):
                raise
            with _parameters_hidden(model):
                try:
                    wrapper = self.base(model)
                except Exception:
                    raise error from None
            print_log(
                f'{type(self.base).__name__} does not take activations: '
                f'{error}. It was run without their parameters.',
                logger='current')
            return wrapper

    def _add_left_out(self, model: nn.Module, wrapper) -> None:
        names = left_out(model, wrapper)
        for name in names:
            path, _, leaf = name.rpartition('.')
            module = model.get_submodule(path)
            optimizer = _optimizer_around(model, path, wrapper)
            group = dict(params=[getattr(module, leaf)])
            if 'param_names' in optimizer.param_groups[0]:
                group['param_names'] = [name]
            decay = self._decay(optimizer)
            custom = self._custom(name)
            if custom is not None:
                group.update(custom)
                group['lr'] = (
                    optimizer.defaults['lr'] * custom.get('lr_mult', 1.))
                decay_mult = custom.get('decay_mult', 1.)
            elif isinstance(module, (_NormBase, nn.GroupNorm)):
                decay_mult = self.paramwise_cfg.get('norm_decay_mult', 1.)
            else:
                decay_mult = 1.
            if decay is not None:
                group['weight_decay'] = decay * decay_mult
            optimizer.add_param_group(group)
        if names:
            print_log(
                f'{len(names)} activation parameters that '
                f'{type(self.base).__name__} left out are added to the '
                'optimizer',
                logger='current')

    def _apply_rules(self, optimizer, own: Dict[nn.Parameter, str]) -> None:
        groups = optimizer.param_groups
        for index, group in enumerate(list(groups)):
            if type(group) is not dict:
                # torch.compile of train_step stops at a ConfigDict.
                group = groups[index] = dict(group)
            chosen = [
                parameter for parameter in group['params']
                if parameter in own and self._custom(own[parameter]) is None
            ]
            if not chosen:
                continue
            if len(chosen) < len(group['params']):
                group = _split(optimizer, group, chosen)
            group['lr'] = group['lr'] * self.lr_mult
            decay = self._decay(optimizer)
            if decay is not None:
                group['weight_decay'] = decay * self.decay_mult

    def _decay(self, optimizer) -> Optional[float]:
        if self.base_wd is not None:
            return self.base_wd
        return optimizer.defaults.get('weight_decay')

    def _custom(self, name: str) -> Optional[dict]:
        """The ``custom_keys`` entry for a parameter, the longest key first."""
        keys = self.paramwise_cfg.get('custom_keys') or {}
        found = sorted((key for key in keys if key in name), key=len)
        return dict(keys[found[-1]]) if found else None


def unwrapped(model: nn.Module) -> nn.Module:
    """The model inside a wrapper such as DistributedDataParallel."""
    return model.module if is_model_wrapper(model) else model


def left_out(model: nn.Module, optim_wrapper) -> List[str]:
    """Activation parameters that need a gradient and are in no optimizer.

    Empty where the optimizer has none of the model's parameters, but others
    in their place, as those that shard them do.
    """
    held = {
        parameter
        for wrapper in single_wrappers(optim_wrapper)
        for group in wrapper.optimizer.param_groups
        for parameter in group['params']
    }
    if held.isdisjoint(model.parameters()):
        return []
    return [
        f'{prefix}.{name}' if prefix else name
        for prefix, module in activations_of(model).items()
        for name, parameter in module.named_parameters()
        if parameter.requires_grad and parameter not in held
    ]


def single_wrappers(optim_wrapper) -> list:
    """The optimizer wrappers, also of a training with several."""
    if isinstance(optim_wrapper, OptimWrapperDict):
        return list(optim_wrapper.values())
    return [optim_wrapper]


@contextmanager
def _parameters_hidden(model: nn.Module) -> Iterator[None]:
    """Activations look as if they had no parameters."""
    hidden = {
        module: dict(module._parameters)
        for activation in activations_of(model).values()
        for module in activation.modules()
    }
    for module, parameters in hidden.items():
        module._parameters.update(dict.fromkeys(parameters))
    try:
        yield
    finally:
        for module, parameters in hidden.items():
            module._parameters.update(parameters)


def _optimizer_around(model: nn.Module, path: str, wrapper):
    """The optimizer of the nearest module around that has one."""
    optimizers = [single.optimizer for single in single_wrappers(wrapper)]
    if len(optimizers) == 1:
        return optimizers[0]
    parts = path.split('.')
    for depth in range(len(parts), -1, -1):
        around = set(model.get_submodule('.'.join(parts[:depth])).parameters())
        holding = [
            optimizer for optimizer in optimizers
            if not around.isdisjoint(p for group in optimizer.param_groups
                                     for p in group['params'])
        ]
        if len(holding) == 1:
            return holding[0]
        if holding:
            break
    raise ValueError(
        f'The parameters of {path!r} are in none of the {len(optimizers)} '
        'optimizers, and what lies around it does not tell which one is to '
        'train it. Freeze it, or use a constructor that takes it in.')


def _split(optimizer, group: dict, chosen: list) -> dict:
    """Moves parameters from a group that others share to one at the end.

    Groups stay where they are: schedules count them.
    """
    moved = set(chosen)
    new = {
        key: copy.copy(value)
        for key, value in group.items() if key not in ('params', 'param_names')
    }
    where = [parameter in moved for parameter in group['params']]
    for key in ('params', 'param_names'):
        if key in group:
            values = list(group[key])
            new[key] = [value for value, out in zip(values, where) if out]
            group[key] = [v for v, out in zip(values, where) if not out]
    if 'group_name' in new:
        new['group_name'] += '_activation'
    optimizer.add_param_group(new)
    return optimizer.param_groups[-1]
