import logging

from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.model import is_model_wrapper
from mmengine.registry import HOOKS
from mmengine.runner import BaseLoop

from ..activations import keep_start
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
