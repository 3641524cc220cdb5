"""Says what a checkpoint brings to the activations of a swapped module."""
import logging
from typing import Dict, List

from mmengine.logging import print_log
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..activations import LearnableActivation


def _activations(module: nn.Module) -> Dict[str, LearnableActivation]:
    return {
        name: child
        for name, child in module.named_modules()
        if isinstance(child, LearnableActivation)
    }


def watch_loading(module: nn.Module) -> None:
    """Reports every checkpoint that is loaded into the module."""
    if _report_loading not in (
            getattr(hook, 'hook', None)
            for hook in module._load_state_dict_pre_hooks.values()):
        module.register_load_state_dict_pre_hook(_report_loading)
    if not _is_pretrained(module):
        _warn_of_fresh_norms(_kept_norms(module))


def _is_pretrained(module: nn.Module) -> bool:
    init_cfgs = getattr(module, 'init_cfg', None) or []
    if isinstance(init_cfgs, dict):
        init_cfgs = [init_cfgs]
    return any(cfg.get('type') == 'Pretrained' for cfg in init_cfgs)


def _kept_norms(module: nn.Module) -> List[str]:
    """Running means of norms inside activations under norm_eval=True."""
    in_eval = {
        activation
        for owner in module.modules() if getattr(owner, 'norm_eval', False)
        for activation in _activations(owner).values()
    }
    return [
        f'{name}.{child}.running_mean'
        for name, activation in _activations(module).items()
        for child, norm in activation.named_children()
        if activation in in_eval and isinstance(norm, _BatchNorm)
    ]


def _warn_of_fresh_norms(keys: List[str]) -> None:
    if keys:
        print_log(
            'norm_eval=True keeps these norms inside activations at mean 0 '
            'and variance 1 for the whole training, because no checkpoint '
            f'brings them: {", ".join(keys)}. Write norm_eval=False, or '
            'leave norm_cfg out of the act_cfg.',
            logger='current',
            level=logging.WARNING)


def _report_loading(module: nn.Module, state_dict: dict, prefix: str,
                    *unused) -> None:
    if not any(key.startswith(prefix) for key in state_dict):
        return
    expected, missing, fresh_types = 0, 0, set()
    for name, activation in _activations(module).items():
        for key, _ in activation.named_parameters():
            expected += 1
            if f'{prefix}{name}.{key}' not in state_dict:
                missing += 1
                if not activation.starts_as_relu:
                    fresh_types.add(type(activation).__name__)
    message = (f'{type(module).__name__}: {expected - missing} of {expected} '
               'activation parameters come from the checkpoint')
    level = logging.INFO
    if fresh_types:
        level = logging.WARNING
        message += (
            f'. The {" and ".join(sorted(fresh_types))} that it does not '
            'bring start fresh and do not compute what the checkpoint was '
            'trained with: train the backbone with these activations first, '
            'or expect to lose what it learnt')
    print_log(message, logger='current', level=level)
    _warn_of_fresh_norms(
        [key for key in _kept_norms(module) if prefix + key not in state_dict])
