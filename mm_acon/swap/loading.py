"""Says what a checkpoint brings to the activations of a swapped module."""
import logging
from typing import Dict, List

from mmengine.logging import print_log
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..activations import PWLU, LearnableActivation
from ..activations.base import activations_of
from ..activations.pwlu import PHASE_1
from ..compat import register_load_state_dict_pre_hook
from .keys import (bring_up, is_of_activation, listed, prefixes_of,
                   rename_deep_stem, where_hint, without_counts)


class LoadingReport:
    """Reports every checkpoint that is loaded into a swapped module.

    Weights that ``init_cfg`` names and of which nothing fits, or that have
    another shape, are an error; what else is loaded is the user's business.
    Of a file's layout it knows MMPretrain's deep stem beside that of the
    other two libraries, and weights that lie under a key of their own.

    Args:
        root (nn.Module): The root of the swap.
        module (nn.Module): The same, or a backbone inside it that loads
            weights for itself, as in BiSeNetV1.
    """

    def __init__(self, root: nn.Module, module: nn.Module) -> None:
        self.of_root = root is module
        self.errors: List[str] = []
        register_load_state_dict_pre_hook(module, self.before)
        module.register_load_state_dict_post_hook(self.after)

    def before(self, module: nn.Module, state_dict: dict, prefix: str,
               metadata: dict, strict: bool, missing: List[str],
               unexpected: List[str], errors: List[str]) -> None:
        self.given: List[str] = []
        if not any(key.startswith(prefix) for key in state_dict):
            return
        self.by_init_cfg = not prefix and is_being_initialised(module)
        if not (self.of_root or self.by_init_cfg):
            return
        if not prefix:
            bring_up(module, state_dict)
        self.given = [key for key in state_dict if key.startswith(prefix)]
        self.errors = errors
        rename_deep_stem(module, state_dict, prefix)
        _report(module, state_dict, prefix)

    def after(self, module: nn.Module, incompatible) -> None:
        if not self.given or not self.by_init_cfg:
            return
        source = pretrained_cfgs(module)[-1]['checkpoint']
        own = set(without_counts(module.state_dict()))
        if own.issubset(incompatible.missing_keys):
            raise ValueError(
                f'Nothing in {source} fits {type(module).__name__}' +
                where_hint(module, source, self.given))
        if self.errors:
            raise ValueError(
                f'{source} does not fit {type(module).__name__}: '
                f'{len(self.errors)} tensors have another shape: '
                f'{listed(self.errors, 5)}. Name the weights of this '
                'backbone in init_cfg, or build the one that they are of.')


def watch_loading(root: nn.Module) -> None:
    """Reports what is loaded into a swapped module from now on."""
    for module in root.modules():
        if any(
                isinstance(getattr(hook, '__self__', None), LoadingReport)
                for hook in module._load_state_dict_post_hooks.values()):
            continue
        if module is root or (pretrained_cfgs(module)
                              and activations_of(module)):
            LoadingReport(root, module)
    if not pretrained_cfgs(root):
        _warn_of_fresh_norms(_kept_norms(root))


def pretrained_cfgs(module: nn.Module) -> List[dict]:
    """The parts of a module's ``init_cfg`` that name a checkpoint."""
    init_cfgs = getattr(module, 'init_cfg', None) or []
    if isinstance(init_cfgs, dict):
        init_cfgs = [init_cfgs]
    return [
        cfg for cfg in init_cfgs
        if getattr(cfg.get('type'), '__name__', cfg.get('type')) in (
            'Pretrained', 'PretrainedInit')
    ]


def is_being_initialised(module: nn.Module) -> bool:
    """Whether mmengine's ``init_weights`` is at its ``init_cfg`` now."""
    return bool(pretrained_cfgs(module)) and hasattr(module,
                                                     '_params_init_info')


def _kept_norms(module: nn.Module) -> List[str]:
    """Running means of norms inside activations under norm_eval=True."""
    in_eval = {
        activation
        for owner in module.modules() if getattr(owner, 'norm_eval', False)
        for activation in activations_of(owner).values()
    }
    return [
        f'{name}.{child}.running_mean'
        for name, activation in activations_of(module).items()
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


def _report(module: nn.Module, state_dict: dict, prefix: str) -> None:
    own = dict(module.named_parameters(remove_duplicate=False))
    own.update(module.named_buffers(remove_duplicate=False))
    given = [key[len(prefix):] for key in state_dict if key.startswith(prefix)]
    # Another shape is not loaded, but by a tensor that is still empty.
    loaded = {
        key
        for key in given
        if key in own and (own[key].numel() == 0
                           or own[key].shape == state_dict[prefix + key].shape)
    }
    unused = [key for key in given if key not in loaded]
    expected, num_fresh, fresh = 0, 0, {}
    for name, activation in activations_of(module).items():
        keys = dict(activation.named_parameters(prefix=name)).keys()
        expected += len(keys)
        if activation.adopts(state_dict, f'{prefix}{name}.'):
            # It starts as the PReLU that was there.
            loaded |= keys
            unused.remove(f'{name}.weight')
        num_fresh += len(keys - loaded)
        if keys - loaded:
            fresh[name] = activation

    message = (f'{type(module).__name__}: {expected - num_fresh} of '
               f'{expected} activation parameters come from the checkpoint')
    if 0 < num_fresh < expected:
        message += f'. Fresh: {listed(fresh)}'
    if unused:
        message += f'. Not used of the checkpoint: {listed(unused)}'
    warnings = _warnings(module, fresh, unused)
    resting = {
        name: activation.function.name
        for name, activation in activations_of(module).items()
        if isinstance(activation, PWLU) and f'{name}.phase' in loaded
        and state_dict[f'{prefix}{name}.phase'] == PHASE_1
    }
    if resting:
        warnings.append(f'{len(resting)} PWLU come in Phase I and compute '
                        f'{" and ".join(sorted(set(resting.values())))} until '
                        'PWLURealignHook in custom_hooks ends it')
    if not loaded:
        prefixes = prefixes_of(own, given)
        warnings.append('Nothing of the checkpoint fits; ' +
                        (f'its keys begin with {prefixes[0]!r}, so write '
                         f'prefix={prefixes[0]!r} in init_cfg'
                         if prefixes else f'it has {listed(given, 3)}'))
    print_log(
        '. '.join([message, *warnings]),
        logger='current',
        level=logging.WARNING if warnings else logging.INFO)
    _warn_of_fresh_norms(
        [key for key in _kept_norms(module) if key not in loaded])


def _warnings(module: nn.Module, fresh: Dict[str, LearnableActivation],
              unused: List[str]) -> List[str]:
    """What of a loading changes the network's function."""
    found = []
    types = sorted({
        type(activation).__name__
        for activation in fresh.values()
        # A PWLU keeps its function in Phase I; ActivationSetupHook warns
        # where there is none.
        if not (activation.keeps_function or isinstance(activation, PWLU))
    })
    if types:
        found.append(
            f'The {" and ".join(types)} that it does not bring start fresh '
            'and do not compute what the checkpoint was trained with: train '
            'the backbone with these activations first, or expect to lose '
            'what it learnt')
    if any(not parameter.requires_grad for activation in fresh.values()
           for parameter in activation.parameters()):
        found.append(
            'Those in frozen stages stay fresh for the whole training; leave '
            "out frozen='swap'")
    if any(is_of_activation(module, key) for key in unused):
        found.append(
            'It was trained with activations that are not these; write the '
            'act_cfg, include and exclude that it was trained with, and '
            "frozen='swap' if it has those of frozen stages too")
    return found
