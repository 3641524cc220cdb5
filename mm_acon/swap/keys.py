"""What the keys of a checkpoint tell about a module."""
from collections import Counter
from typing import Dict, Iterable, List

from mmengine.runner import CheckpointLoader
from torch import Tensor, nn

from ..activations import LearnableActivation
from .per_call import ActivationPerCall
from .probe import ACTIVATION_TYPES


def listed(names: Iterable[str], most: int = 20) -> str:
    names = list(names)
    more = f' and {len(names) - most} more' if len(names) > most else ''
    return ', '.join(names[:most]) + more


def without_counts(keys: Iterable[str]) -> List[str]:
    """Without those that PyTorch makes where an old file lacks them."""
    return [key for key in keys if not key.endswith('num_batches_tracked')]


def is_of_activation(module: nn.Module, key: str) -> bool:
    """Whether a key leads to an activation, or would if it had parameters."""
    for name in key.split('.'):
        module = module._modules.get(name)
        if module is None:
            return False
        if (isinstance(module, (LearnableActivation, ActivationPerCall))
                or type(module).__name__ in ACTIVATION_TYPES):
            return True
    return False


def rename_deep_stem(module: nn.Module, state_dict: dict, prefix: str) -> None:
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


def nested_weights(checkpoint: dict) -> Dict[str, dict]:
    """State dicts under keys of their own: 'model', 'teacher' and others."""
    return {
        name: value
        for name, value in checkpoint.items()
        if isinstance(value, dict) and any(
            isinstance(tensor, Tensor) for tensor in value.values()) and all(
                isinstance(key, str) for key in value)
    }


def prefixes_of(own: Iterable[str], given: Iterable[str]) -> List[str]:
    """With what a file puts before a module's keys, the most frequent first.

    The file may hold the module several times: two encoders, or a teacher
    and its student. What comes half as often as the first, or less, is by
    chance: 'layer1.0.' of 'layer1.0.conv1.weight' before 'conv1.weight'.
    """
    own, counts = set(own), Counter()
    for key in given:
        parts = key.split('.')
        counts.update('.'.join(parts[:start]) + '.'
                      for start in range(1, len(parts))
                      if '.'.join(parts[start:]) in own)
    most = max(counts.values(), default=0)
    return [name for name, n in counts.most_common() if n > most / 2]


def bring_up(module: nn.Module, weights: dict) -> None:
    """Takes a file's only nested weights of the module up, in place.

    mmengine looks under 'state_dict' and nowhere else, and for a prefix at
    the top of the file. Several nested ones are left: nothing tells which is
    meant.
    """
    own = set(module.state_dict())
    if own.intersection(weights):
        return
    found = []
    for name, nested in nested_weights(weights).items():
        if own.intersection(nested):
            found.append((name, ''))
        else:
            found += [(name, p) for p in prefixes_of(own, nested)]
    if len(found) == 1:
        (name, prefix), = found
        nested = weights.pop(name)
        weights.update({
            key[len(prefix):]: value
            for key, value in nested.items() if key.startswith(prefix)
        })


def where_hint(module: nn.Module, source: str, given: Iterable[str]) -> str:
    """Where in a file a module's weights are, if they are there.

    Args:
        module (nn.Module): What was to be loaded.
        source (str): The file. It is read again: mmengine takes 'module.'
            from the keys that it hands on, and then does not find a prefix
            without it.
        given (Iterable[str]): The keys that did not fit.
    """
    checkpoint = CheckpointLoader.load_checkpoint(source, 'cpu', None)
    own = list(module.state_dict())
    weights = checkpoint.get('state_dict', checkpoint)
    prefixes = prefixes_of(own, weights)
    if prefixes:
        names = ' and '.join(map(repr, prefixes))
        return (f'; its keys begin with {names}, so write '
                f'prefix={prefixes[0]!r} in init_cfg')
    nested = [
        name for name, part in nested_weights(checkpoint).items()
        if set(own).intersection(part) or prefixes_of(own, part)
    ]
    if nested:
        return (f'; it has such weights under {" and ".join(nested)}: write '
                'those that are meant into a file of their own, '
                f"torch.save(torch.load({source!r}, weights_only=True)"
                f"[{nested[-1]!r}], 'weights.pth')")
    return f'; it has {listed(given, 3)}'
