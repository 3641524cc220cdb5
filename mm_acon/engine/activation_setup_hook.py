import logging
from typing import Dict

from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.model import is_model_wrapper
from mmengine.registry import HOOKS
from mmengine.runner import BaseLoop
from torch import nn

from ..activations import PWLU, keep_start
from ..activations.base import activations_of
from ..activations.pwlu import NO_PHASES
from ..swap.keys import listed
from .optim_wrapper_constructor import left_out, unwrapped
from .widths import find_widths, training_batch, without_width


@HOOKS.register_module()
class ActivationSetupHook(Hook):
    """Sees to it that what activations learn is kept from the start.

    - Activations without a width get it by :func:`mm_acon.find_widths` on one
      batch of the training data, before EMA copies the model. DDP has wrapped
      the model before any hook runs, so over several ranks this is an error;
      ``tools/train.py`` finds the widths earlier.
    - The model's ``init_weights`` leaves activations as they are.
    - Activation parameters that require a gradient and are in no optimizer
      are named in a warning.
    - So are fresh PWLUs whose fixed start does not keep the function in whose
      place they stand, unless PWLURealignHook is there.

    ``tools/train.py`` puts it in; in other projects:

    .. code-block:: python

        custom_hooks = [dict(type='ActivationSetupHook')]
    """

    # Before EMAHook.
    priority = 'VERY_HIGH'

    def before_run(self, runner) -> None:
        if not isinstance(runner._train_loop, BaseLoop):
            return  # Not training.
        if without_width(runner.model):
            find_widths(
                runner.model, None
                if is_model_wrapper(runner.model) else training_batch(runner))
        keep_start(unwrapped(runner.model))

    def before_train(self, runner) -> None:
        warn_of_left_out(runner)
        # By its name, since its file imports this one.
        phases = HOOKS.get('PWLURealignHook')
        if not any(isinstance(hook, phases) for hook in runner.hooks):
            warn_of_fixed_start(unwrapped(runner.model))


def warn_of_fixed_start(model: nn.Module) -> None:
    """Says how far fresh PWLUs are from what was there before."""
    found: Dict[str, PWLU] = {}
    count = 0
    for module in activations_of(model).values():
        if (isinstance(module, PWLU) and module.current_phase == NO_PHASES
                and not module.keeps_function and module.is_fresh()):
            found.setdefault(module.function.name, module)
            count += 1
    if not found:
        return
    figures = []
    for name, module in found.items():
        at_one = module.difference_from()
        worst = max(module.difference_from(std=std) for std in (.1, 10.))
        figures.append(f'{name} by {at_one:.1%} where the input has a std of '
                       f'1, by {worst:.1%} where it is 0.1 or 10')
    print_log(
        f'{count} PWLU are fresh, and their fixed bounds change the function '
        f'that was there: {"; ".join(figures)}. A network that was trained '
        'with it loses what it learnt. Write custom_hooks=[dict(type='
        "'PWLURealignHook', phase1_epochs=1)], which begins with that "
        'function itself and then fits every channel.',
        logger='current',
        level=logging.WARNING)


def warn_of_left_out(runner) -> None:
    names = left_out(unwrapped(runner.model), runner.optim_wrapper)
    if names:
        print_log(
            f'{len(names)} activation parameters require a gradient and are '
            f'in no optimizer, so they never learn: {listed(names, 10)}'
            '. Write optim_wrapper=dict(constructor='
            "'ActivationOptimWrapperConstructor', base_constructor='...') "
            'with the constructor that there is as base_constructor, or '
            'freeze them if they are not to learn.',
            logger='current',
            level=logging.WARNING)
