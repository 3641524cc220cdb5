"""Turn a config on COCO, Cityscapes or ImageNet into a demo on the shapes."""
import inspect
import os.path as osp
from typing import Optional, Tuple

import torch
from mmengine.config import Config, ConfigDict
from mmengine.registry import MODELS

from ..swap.config import dicts, find_backbones, type_name, without_weights
from .shapes import (SHAPES, write_cityscapes_shapes, write_coco_shapes,
                     write_imagenet_shapes)

# Necks and heads get these widths; most of their cost is in their width.
WIDTH, FC_WIDTH = 64, 256


def demo_config(cfg: Config, data_root: str = 'data/shapes') -> None:
    """Make a config train and evaluate on the drawn shapes, in minutes.

    Replaces the data, their pipelines (``tta_pipeline`` too) and evaluators,
    and the schedule; the necks and heads are narrowed and their numbers of
    classes set. The backbone with its activations stays, but nothing of it is
    pretrained, hence nothing frozen. Whether training counts epochs or
    iterations, the type, the constructor and the parameter-wise settings of
    the optimizer wrapper stay as well, and so do the hooks, apart from
    arguments that count the epochs or iterations of a longer schedule.

    The shapes are drawn at the first call and found again at later ones.
    ``cfg.launcher`` must be set before, since SyncBN becomes BN outside
    distributed training on GPUs. Other changes, for example
    ``train_cfg.max_epochs=1``, belong after the call.

    Args:
        cfg (Config): A config, of any style, whose ``train_dataloader`` reads
            mmdet's ``CocoDataset`` or ``CityscapesDataset`` (detection or
            instance segmentation), mmseg's ``CityscapesDataset`` or
            mmpretrain's ``ImageNet``. Modified in place; a ``default_scope``
            that is not there becomes the library.
        data_root (str): Folder that the shapes are drawn into.
            Defaults to 'data/shapes'.

    Raises:
        ValueError: The config's training data is of another type or library,
            or its library cannot be told.
    """
    library, dataset_type = _training_data(cfg)
    task, write, narrow = _DEMOS[library, dataset_type]
    demo = ConfigDict(
        Config.fromfile(
            osp.join(osp.dirname(__file__), 'configs', f'{task}.py')).items())
    root = str(write(data_root))
    for node in dicts(demo):
        if 'data_root' in node:
            node.data_root = root
        elif 'ann_file' in node:
            node.ann_file = osp.join(root, node.ann_file)
    # The types in the demo's config have no scope of their own.
    cfg.default_scope = library
    _train_from_scratch(cfg)
    narrow(cfg, demo)
    _merge(cfg, demo)


def _training_data(cfg: Config) -> Tuple[str, str]:
    """Library and type of the training data, if the demo can draw them."""
    node = (cfg.get('train_dataloader') or {}).get('dataset') or {}
    while 'dataset' in node or 'datasets' in node:
        node = node['dataset'] if 'dataset' in node else node['datasets'][0]
    # 'mmengine' is what the runner takes for no scope.
    scope = cfg.get('default_scope')
    scope = None if scope == 'mmengine' else scope
    library = _scope(node) or scope or _scope(cfg.get('model') or {})
    data = library, type_name(node)
    came = data[1]
    if library:
        came += f' of {library}'
    if scope not in (None, library):
        came += f' in a config of {scope}'
    elif data == ('mmpretrain', 'ImageNet') and not cfg.get('val_evaluator'):
        came += ' without val_evaluator, as for models that learn no classes'
    elif data in _DEMOS:
        return data
    raise ValueError(
        'Expected a config on data of type CocoDataset (detection, instance '
        'segmentation) or CityscapesDataset of mmdet, CityscapesDataset '
        '(semantic segmentation) of mmseg, or ImageNet (classification) of '
        'mmpretrain, which the demo can draw, but train_dataloader.dataset '
        f'is of type {came}. Start from a config on COCO, Cityscapes or '
        'ImageNet, for example mmdet::retinanet/retinanet_r50_fpn_1x_coco.py, '
        'or train on your own data without the demo. A library that no type '
        'tells stands in default_scope.')


def _scope(node: dict) -> Optional[str]:
    """Library that a config dict's type comes from, as far as it says so."""
    node_type = node.get('type', '')
    if not isinstance(node_type, str):
        node_type = f'{node_type.__module__}.'
    scope, dot, _ = node_type.partition('.')
    return scope if dot else node.get('_scope_')


def _train_from_scratch(cfg: Config) -> None:
    # SyncBN needs both a process group and a GPU.
    sync = cfg.get('launcher', 'none') != 'none' and torch.cuda.is_available()
    without_weights(cfg.model, keep_sync=sync)

    with MODELS.switch_scope_and_registry(cfg.default_scope) as models:
        for place in find_backbones(cfg.model):
            cls = place.type
            cls = models.get(cls) if isinstance(cls, str) else cls
            if cls is None:
                # Building the model will say that the type is unknown.
                continue
            # What freezes nothing: set even if the config does not name it,
            # since norm_eval is True by default in mmdet's ResNet.
            nothing = dict(frozen_stages=-1, norm_eval=False)
            names = set(place.arguments)
            bases = inspect.getmro(cls) if inspect.isclass(cls) else ()
            for base in reversed(bases):
                parameters = inspect.signature(base.__init__).parameters
                names.update(parameters)
                if 'frozen_stages' in parameters:
                    # 0 in EfficientNet.
                    nothing['frozen_stages'] = parameters[
                        'frozen_stages'].default
            place.arguments.update({
                k: v
                for k, v in nothing.items() if k in names
            })


def _detection(cfg: Config, demo: ConfigDict) -> None:
    _narrow_detector(cfg.model)
    _fit_anchors(cfg.model)
    _reduce_regions(cfg.model)
    for name, part in cfg.model.items():
        if name == 'roi_head' or name.endswith('_head') and name != 'rpn_head':
            _set_num_classes(part, len(SHAPES))
    # Resizing batches, for example, is for images of another size.
    cfg.model.get('data_preprocessor', {}).pop('batch_augments', None)

    if not any(node.get('with_mask') for node in dicts(cfg.train_dataloader)):
        for node in dicts(demo):
            if 'with_mask' in node:
                node.with_mask = False
    # What the model predicts: boxes, masks, proposals.
    for node in dicts(cfg.get('val_evaluator')):
        if 'metric' in node:
            demo.val_evaluator.metric = demo.test_evaluator.metric = node[
                'metric']
            break


def _segmentation(cfg: Config, demo: ConfigDict) -> None:
    for name, part in cfg.model.items():
        if name in ('decode_head', 'auxiliary_head'):
            _set_num_classes(part, 19)
            for head in part if isinstance(part, list) else [part]:
                # A head without convolutions is as wide as its input.
                width = head.get('channels', 0)
                if width > WIDTH and width != head.get('in_channels'):
                    head['channels'] = WIDTH
    for preprocessor in (cfg.get('data_preprocessor'),
                         cfg.model.get('data_preprocessor')):
        if preprocessor is not None:
            preprocessor.pop('size_divisor', None)
            preprocessor.size = demo.crop_size
    if cfg.model.get('test_cfg', {}).get('mode') == 'slide':
        cfg.model.test_cfg.update(crop_size=demo.crop_size, stride=(64, 64))


def _classification(cfg: Config, demo: ConfigDict) -> None:
    parts = [
        cfg.get('data_preprocessor'),
        cfg.model.get('data_preprocessor'),
        cfg.model.get('head')
    ]
    _set_num_classes(parts, len(SHAPES))
    for node in dicts(parts):
        if 'topk' in node:
            node['topk'] = (1, )


def _set_num_classes(part, num_classes: int) -> None:
    for node in dicts(part):
        for key in ('num_classes', 'num_things_classes'):
            if key in node:
                node[key] = num_classes
        weight = node.get('class_weight')
        if isinstance(weight, list) and len(weight) > num_classes + 1:
            # The last is the weight of "no object".
            node['class_weight'] = weight[:num_classes] + weight[-1:]


def _narrow_detector(model: ConfigDict) -> None:
    """Narrow the feature pyramid and all that has the width it had."""
    widths = [
        node['out_channels'] for node in dicts(model.get('neck'))
        if type_name(node).endswith('FPN') and node['out_channels'] > WIDTH
    ]
    for name, part in model.items():
        if name.endswith('backbone'):
            continue
        for node in dicts(part):
            for key, value in node.items():
                if key.endswith(('channels', 'channel')) and value in widths:
                    node[key] = WIDTH
            if node.get('fc_out_channels', 0) > FC_WIDTH:
                node['fc_out_channels'] = FC_WIDTH
            # Initial weights are small (0.01) whatever the width: a narrow
            # stack would pass on almost nothing, and learn late.
            if node.get('stacked_convs', 0) > 1:
                node['stacked_convs'] = 1


def _fit_anchors(model: ConfigDict) -> None:
    """Scale the anchors so that the smallest, of 16 pixels, fits a shape."""
    for node in dicts(model):
        if type_name(node) != 'AnchorGenerator' or 'base_sizes' in node:
            continue
        smallest = min(node.strides) * (
            node.get('octave_base_scale') or min(node.scales))
        if 'octave_base_scale' in node:
            node.octave_base_scale *= 16 / smallest
        else:
            node.scales = [scale * 16 / smallest for scale in node.scales]


def _reduce_regions(model: ConfigDict) -> None:
    """Look at fewer regions: the images are small and almost empty."""
    for node in dicts(model):
        if node.get('max_per_img', 0) > 100:
            node['max_per_img'] = 100
        if 'pos_fraction' in node:
            node['num'] = min(node['num'], 64)
        if node.get('num_queries', 0) > 100:
            node['num_queries'] = 100


def _merge(cfg: Config, demo: ConfigDict) -> None:
    """Put the demo's data and schedule in the place of the config's."""
    by_epoch = 'max_iters' not in (cfg.get('train_cfg') or {})
    warm_up, decay = demo.param_scheduler
    if not by_epoch:
        demo.train_cfg = dict(
            type='IterBasedTrainLoop',
            max_iters=decay.end,
            val_interval=decay.end // 2)
        demo.train_dataloader.sampler.type = 'InfiniteSampler'
    demo.default_hooks.checkpoint.update(
        by_epoch=by_epoch, interval=demo.train_cfg.val_interval)

    wrapper = cfg.setdefault('optim_wrapper', ConfigDict())
    for key in ('optimizer', 'accumulative_counts'):
        wrapper.pop(key, None)
    if (type_name(wrapper) == 'AmpOptimWrapper'
            and not torch.cuda.is_available()):
        # mmengine has no mixed precision on the CPU.
        wrapper.type = 'OptimWrapper'
        for key in ('loss_scale', 'dtype', 'use_fsdp'):
            wrapper.pop(key, None)
    for name, own in cfg.setdefault('default_hooks', ConfigDict()).items():
        # One that is there stays of its type, or switched off.
        if own is None:
            demo.default_hooks.pop(name)
        else:
            demo.default_hooks.get(name, {}).pop('type', None)
    # They change a pipeline that is no longer there.
    cfg.custom_hooks = [
        hook for hook in cfg.get('custom_hooks') or []
        if type_name(hook) not in ('YOLOXModeSwitchHook', 'PipelineSwitchHook')
    ]
    for hook in cfg.custom_hooks:
        if hook.get('phase1_epochs'):
            hook['phase1_epochs'] = 1
        if hook.get('phase1_iters'):
            hook['phase1_iters'] = warm_up.end
        if type_name(hook) == 'EMAHook':
            hook.pop('begin_epoch', None)
            hook.pop('begin_iter', None)
            # At the usual 1e-4 the average would still be the start.
            hook['momentum'] = max(hook.get('momentum', 0), 0.02)

    for key in demo.keys() - {'optim_wrapper', 'default_hooks'}:
        cfg.pop(key, None)
    cfg.merge_from_dict(demo)


# By the library and the type of the training data.
_DEMOS = {
    ('mmdet', 'CocoDataset'): ('detection', write_coco_shapes, _detection),
    # mmdet's class of this name reads boxes and masks, like COCO's.
    ('mmdet', 'CityscapesDataset'):
    ('detection', write_coco_shapes, _detection),
    ('mmseg', 'CityscapesDataset'):
    ('segmentation', write_cityscapes_shapes, _segmentation),
    ('mmpretrain', 'ImageNet'):
    ('classification', write_imagenet_shapes, _classification),
}
