"""Says what a checkpoint brings to the activations of a swapped module."""
import logging
from dataclasses import dataclass, field
from typing import Dict, Iterable, List, Optional

from mmengine.logging import print_log
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..activations import PWLU, LearnableActivation
from ..activations.pwlu import PHASE_1
from .per_call import ActivationPerCall
from .probe import ACTIVATION_TYPES


def _activations(module: nn.Module) -> Dict[str, LearnableActivation]:
    return {
        name: child
        for name, child in module.named_modules()
        if isinstance(child, LearnableActivation)
    }


def watch_loading(module: nn.Module) -> None:
    """Reports every checkpoint that is loaded into the module."""
    if not is_swapped(module):
        module.register_load_state_dict_pre_hook(_before_loading)
    if not _is_pretrained(module):
        _warn_of_fresh_norms(_kept_norms(module))


def is_swapped(module: nn.Module) -> bool:
    """Whether it is the root of a swap."""
    return _before_loading in (
        getattr(hook, 'hook', None)
        for hook in module._load_state_dict_pre_hooks.values())


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


def _before_loading(module: nn.Module, state_dict: dict, prefix: str,
                    *unused) -> None:
    if not any(key.startswith(prefix) for key in state_dict):
        return
    _rename_deep_stem(module, state_dict, prefix)
    _report_loading(module, state_dict, prefix)


def _rename_deep_stem(module: nn.Module, state_dict: dict,
                      prefix: str) -> None:
    """Turns one form of a stem of three 3x3 convolutions into the other.

    MMPretrain's has three ConvModules, 'stem.1.bn.weight', those of
    MMDetection and MMSegmentation nine modules in a row, 'stem.4.weight'.
    """
    forms = [(f'stem.{3 * i + n}.', f'stem.{i}.{name}.') for i in range(3)
             for n, name in enumerate(('conv', 'bn', 'activate'))]
    weights = 'stem.0.weight', 'stem.0.conv.weight'
    own = dict(module.named_parameters())
    for here, there in ((0, 1), (1, 0)):
        if weights[here] in own and prefix + weights[there] in state_dict:
            break
    else:
        return
    for key in list(state_dict):
        for form in forms:
            if key.startswith(prefix + form[there]):
                rest = key[len(prefix + form[there]):]
                state_dict[prefix + form[here] + rest] = state_dict.pop(key)


def _report_loading(module: nn.Module, state_dict: dict, prefix: str) -> None:
    own = dict(module.named_parameters(remove_duplicate=False))
    own.update(module.named_buffers(remove_duplicate=False))
    given = [key[len(prefix):] for key in state_dict if key.startswith(prefix)]
    # Another shape is not loaded, but by a tensor that is still empty.
    loaded = {
        key
        for key in given if key in own and (
            own[key].numel() == 0
            or own[key].shape == state_dict[prefix + key].shape)
    }
    unused = [key for key in given if key not in loaded]
    expected, num_fresh, fresh = 0, 0, {}
    for name, activation in _activations(module).items():
        keys = dict(activation.named_parameters(prefix=name)).keys()
        expected += len(keys)
        num_fresh += len(keys - loaded)
        if keys - loaded:
            fresh[name] = activation

    message = (f'{type(module).__name__}: {expected - num_fresh} of '
               f'{expected} activation parameters come from the checkpoint')
    if 0 < num_fresh < expected:
        message += f'. Fresh: {_listed(fresh)}'
    if unused:
        message += f'. Not used of the checkpoint: {_listed(unused)}'
    warnings = _warnings(module, fresh, unused)
    resting = [
        name for name, activation in _activations(module).items()
        if isinstance(activation, PWLU) and f'{name}.phase' in loaded
        and state_dict[f'{prefix}{name}.phase'] == PHASE_1
    ]
    if resting:
        warnings.append(
            f'{len(resting)} PWLU come in Phase I and compute ReLU until '
            'PWLURealignHook in custom_hooks ends it')
    if not loaded:
        warnings.append('Nothing of the checkpoint fits' + _prefix_hint(
            list(own), given))
    print_log(
        '. '.join([message, *warnings]),
        logger='current',
        level=logging.WARNING if warnings else logging.INFO)
    _warn_of_fresh_norms(
        [key for key in _kept_norms(module) if key not in loaded])


def _listed(names: Iterable[str], most: int = 20) -> str:
    names = list(names)
    more = f' and {len(names) - most} more' if len(names) > most else ''
    return ', '.join(names[:most]) + more


def _warnings(module: nn.Module, fresh: Dict[str, LearnableActivation],
              unused: List[str]) -> List[str]:
    """What of a loading changes the network's function."""
    found = []
    types = sorted({
        type(activation).__name__
        for activation in fresh.values() if not activation.starts_as_relu
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
    if any(_is_of_activation(module, key) for key in unused):
        found.append(
            'It was trained with activations that are not these; write the '
            'act_cfg, include and exclude that it was trained with, and '
            "frozen='swap' if it has those of frozen stages too")
    return found


def _is_of_activation(module: nn.Module, key: str) -> bool:
    """Whether a key leads to an activation, or would if it had parameters."""
    for name in key.split('.'):
        module = module._modules.get(name)
        if module is None:
            return False
        if (isinstance(module, (LearnableActivation, ActivationPerCall))
                or type(module).__name__ in ACTIVATION_TYPES):
            return True
    return False


def _prefix_hint(own: List[str], given: List[str]) -> str:
    for key in given:
        if key.endswith('.' + own[0]):
            prefix = key[:-len(own[0])]
            return (f'; its keys begin with {prefix!r}, so write '
                    f'prefix={prefix!r} in init_cfg')
    return ''


@dataclass
class _FitCheck:
    """Hooks that look at one loading; :func:`check_next_loading`."""
    source: str
    need: str
    errors: Optional[List[str]] = field(default=None)
    done: bool = False

    def before(self, module: nn.Module, state_dict: dict, prefix: str,
               metadata: dict, strict: bool, missing: List[str],
               unexpected: List[str], errors: List[str]) -> None:
        self.errors = errors

    def after(self, module: nn.Module, incompatible) -> None:
        if self.done:
            return
        self.done = True
        # PyTorch makes counts that an old file lacks.
        own, missing, unexpected = (
            [key for key in keys if not key.endswith('num_batches_tracked')]
            for keys in (module.state_dict(), *incompatible))
        if len(missing) + len(self.errors) >= len(own) > 0:
            raise ValueError(
                f'Nothing in {self.source} fits {type(module).__name__}' +
                _prefix_hint(own, unexpected))
        if self.need != 'all':
            missing = _not_of_relu(module, missing)
            unexpected = [
                key for key in unexpected if _tells_another(module, key)
            ]
        # What each need counts, most of what there is first.
        counted = dict(some=0, shapes=1, weights=3, all=3)[self.need]
        problems = [
            f'{len(found)} tensors {what}: {_listed(found, 5)}'
            for what, found in ((('have another shape', self.errors),
                                 ('are missing in it', missing),
                                 ('have no place in the model',
                                  unexpected))[:counted]) if found
        ]
        if problems:
            raise ValueError(
                f'{self.source} does not fit {type(module).__name__}: ' +
                '; '.join(problems) + '. Use the config, with the --act and '
                'swap, that the checkpoint was trained with.')


def check_next_loading(module: nn.Module, source: str, need: str) -> None:
    """Makes the next loading an error if the checkpoint does not fit.

    Args:
        module (nn.Module): The root of what is loaded.
        source (str): The file, for the message.
        need (str): What has to fit. 'some' tensor; 'shapes': besides, none
            has another shape; 'weights': besides, none is missing but those
            of activations that start as ReLU, and none tells of a deeper
            network or of other activations; 'all': exactly the model's.
    """
    check = _FitCheck(source, need)
    module.register_load_state_dict_pre_hook(check.before)
    module.register_load_state_dict_post_hook(check.after)


def _not_of_relu(module: nn.Module, keys: List[str]) -> List[str]:
    """Without those of activations that start as ReLU."""
    relus = {
        f'{name}.{key}'
        for name, activation in _activations(module).items()
        if activation.starts_as_relu for key in activation.state_dict()
    }
    return [key for key in keys if key not in relus]


def _tells_another(module: nn.Module, key: str) -> bool:
    """Whether an unused key is of an activation, or a part too many."""
    if _is_of_activation(module, key):
        return True
    for name in key.split('.'):
        module = module._modules.get(name)
        if module is None:
            return name.isdigit()
    return False
