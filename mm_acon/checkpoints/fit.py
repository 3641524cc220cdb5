"""Whether a checkpoint that a Runner loads fits the model."""
from typing import Callable, List

from torch import nn

from ..activations.base import activations_of
from ..compat import register_load_state_dict_pre_hook
from ..swap.keys import is_of_activation, listed, prefixes_of, without_counts


class FitCheck:
    """Looks at the next loading into a model, and makes a misfit an error.

    Args:
        model (nn.Module): The root of what is loaded.
        source (str): The file, for the message.
        find_problems (callable): One of the functions below.
    """

    def __init__(self, model: nn.Module, source: str,
                 find_problems: Callable) -> None:
        self.source = source
        self.find_problems = find_problems
        self.errors: List[str] = []
        self.handles = [
            register_load_state_dict_pre_hook(model, self.before),
            model.register_load_state_dict_post_hook(self.after)
        ]

    def remove(self) -> None:
        """Not before the loading is over: PyTorch iterates over its hooks."""
        for handle in self.handles:
            handle.remove()

    def before(self, module: nn.Module, state_dict: dict, prefix: str,
               metadata: dict, strict: bool, missing: List[str],
               unexpected: List[str], errors: List[str]) -> None:
        self.errors = errors

    def after(self, module: nn.Module, incompatible) -> None:
        own, missing, unexpected = map(without_counts,
                                       (module.state_dict(), *incompatible))
        if len(missing) + len(self.errors) >= len(own) > 0:
            prefixes = prefixes_of(own, unexpected)
            hint = (f'; its keys begin with {prefixes[0]!r}'
                    if prefixes else f'; it has {listed(unexpected, 3)}')
            raise ValueError(
                f'Nothing in {self.source} fits {type(module).__name__}'
                f'{hint}.')
        problems = self.find_problems(module, self.errors, missing, unexpected)
        found = [
            f'{len(keys)} tensors {what}: {listed(keys, 5)}'
            for what, keys in problems.items() if keys
        ]
        if found:
            raise ValueError(
                f'{self.source} does not fit {type(module).__name__}: ' +
                '; '.join(found) + '. Use the config, with the --act and '
                'swap, that the checkpoint was trained with.')


def for_training(module: nn.Module, errors: List[str], missing: List[str],
                 unexpected: List[str]) -> dict:
    """A start from other weights: what fits is taken."""
    return {}


def for_test(module: nn.Module, errors: List[str], missing: List[str],
             unexpected: List[str]) -> dict:
    """All must be there that decides what the network computes.

    An activation that starts as the function in whose place it stands, which
    is ReLU if none is named, may be missing, and a part that the
    model does not have may be there, unless it tells of a deeper network or
    of other activations.
    """
    kept = {
        f'{name}.{key}'
        for name, activation in activations_of(module).items()
        if activation.keeps_function for key in activation.state_dict()
    }
    return for_resume(
        module, errors, [key for key in missing if key not in kept],
        [key for key in unexpected if _tells_another(module, key)])


def for_resume(module: nn.Module, errors: List[str], missing: List[str],
               unexpected: List[str]) -> dict:
    """Exactly the model's, as resuming needs it."""
    return {
        'have another shape': errors,
        'are missing in it': missing,
        'have no place in the model': unexpected
    }


def _tells_another(module: nn.Module, key: str) -> bool:
    """Whether an unused key is of an activation, or a part too many."""
    if is_of_activation(module, key):
        return True
    for name in key.split('.'):
        module = module._modules.get(name)
        if module is None:
            return name.isdigit()
    return False
