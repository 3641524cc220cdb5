import logging

from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.model import is_model_wrapper
from mmengine.registry import HOOKS


@HOOKS.register_module()
class ClassCountHook(Hook):
    """Compares the heads' ``num_classes`` with the classes of the data.

    Without it, a label beyond the last class of a head is an index error
    deep in a loss, on a GPU without a place, or goes unnoticed until an image
    shows that class. Data with more classes than a head is an error before
    the first iteration; with fewer, or of an auxiliary head, a warning. Heads
    for proposals and panoptic data count otherwise and are left out.
    """

    def before_train(self, runner) -> None:
        self._compare(runner, 'train_dataloader')

    def before_test(self, runner) -> None:
        self._compare(runner, 'test_dataloader')

    def _compare(self, runner, loader: str) -> None:
        dataset = getattr(runner, loader).dataset
        meta = getattr(dataset, 'metainfo', {})
        if not meta.get('classes') or 'thing_classes' in meta:
            return
        there = len(meta['classes'])
        model = runner.model
        model = model.module if is_model_wrapper(model) else model
        for name, module in model.named_modules():
            count = getattr(module, 'num_classes', None)
            if (not isinstance(count, int) or count == there
                    or 'head' not in name or 'rpn_head' in name):
                continue
            message = (
                f'{name} ({type(module).__name__}) has num_classes={count}, '
                f'and {type(dataset).__name__} of {loader} has {there} '
                f'classes. Write --cfg-options model.{name}.num_classes='
                f'{there}, or the classes that are meant in '
                f'{loader}.dataset.metainfo.classes.')
            if count < there and 'auxiliary' not in name:
                raise ValueError(message)
            print_log(message, logger='current', level=logging.WARNING)
