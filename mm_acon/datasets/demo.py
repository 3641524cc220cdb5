"""Turn a config on COCO, Cityscapes or ImageNet into a demo on the shapes."""
import inspect
from typing import Iterator, List

import torch
from mmengine.config import Config, ConfigDict
from mmengine.registry import MODELS

from .shapes import (SHAPES, write_cityscapes_shapes, write_coco_shapes,
                     write_imagenet_shapes)

# Images in detection, crops in segmentation, in pixels.
IMAGE_SIZE = (96, 96)

# Necks and heads get these widths; most of their cost is in their width.
WIDTH, FC_WIDTH = 64, 256


def demo_config(cfg: Config, data_root: str = 'data/shapes') -> None:
    """Make a config train and evaluate on the drawn shapes, in minutes.

    Replaces the data, their pipelines and evaluators, and the schedule; the
    necks and heads are narrowed and their numbers of classes set. The
    backbone with its activations stays, but nothing of it is pretrained, hence
    nothing frozen. The type, the constructor and the parameter-wise settings
    of the optimizer wrapper stay as well, and so do the hooks, apart from
    arguments that count the epochs or iterations of a longer schedule.

    The shapes are drawn at the first call and found again at later ones.
    ``cfg.launcher`` must be set before, since SyncBN becomes BN outside
    distributed training on GPUs. Other changes, for example
    ``train_cfg.max_epochs=1``, belong after the call.

    Args:
        cfg (Config): A config whose ``train_dataloader`` reads a
            ``CocoDataset`` (detection or instance segmentation), a
            ``CityscapesDataset`` or an ``ImageNet``. Modified in place.
        data_root (str): Folder that the shapes are drawn into.
            Defaults to 'data/shapes'.

    Raises:
        ValueError: The config's training data is of another type.
    """
    dataset_type = _dataset_type(cfg)
    if (dataset_type == 'CityscapesDataset'
            and cfg.get('default_scope') == 'mmdet'):
        # mmdet's class of this name reads boxes and masks, like COCO's.
        dataset_type = 'CocoDataset'
    tasks = dict(
        CocoDataset=_detection,
        CityscapesDataset=_segmentation,
        ImageNet=_classification)
    if dataset_type not in tasks:
        raise ValueError(
            'Expected a config on data of type CocoDataset (detection, '
            'instance segmentation), CityscapesDataset (semantic '
            'segmentation) or ImageNet (classification), which the demo can '
            f'draw, but train_dataloader.dataset is of type {dataset_type}. '
            'Start from a config on COCO, Cityscapes or ImageNet, for example '
            'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py, or train on your '
            'own data without the demo.')
    _train_from_scratch(cfg)
    tasks[dataset_type](cfg, data_root)
    # Test-time augmentation would enlarge the images again.
    cfg.pop('tta_model', None)
    cfg.pop('tta_pipeline', None)
    cfg.randomness = dict(seed=0)


def _dataset_type(cfg: Config) -> str:
    """Name of the training data set's type, inside wrappers, if any."""
    node = cfg.get('train_dataloader', {}).get('dataset', {})
    while 'dataset' in node or 'datasets' in node:
        node = node['dataset'] if 'dataset' in node else node['datasets'][0]
    return _type_name(node)


def _type_name(node: dict) -> str:
    """Type of a config dict without its scope; it may be the class itself."""
    node_type = node.get('type')
    return getattr(node_type, '__name__', str(node_type)).split('.')[-1]


def _dicts(node) -> Iterator[dict]:
    """All dicts in a nested config, the outer before the inner ones."""
    if isinstance(node, dict):
        yield node
        node = list(node.values())
    if isinstance(node, (list, tuple)):
        for child in node:
            yield from _dicts(child)


def _train_from_scratch(cfg: Config) -> None:
    cfg.load_from = None
    # SyncBN needs both a process group and a GPU.
    sync = cfg.get('launcher', 'none') != 'none' and torch.cuda.is_available()
    for node in _dicts(cfg.model):
        if isinstance(node.get('pretrained'), str):
            node['pretrained'] = None
        if 'checkpoint' in (node.get('init_cfg') or ()):
            node['init_cfg'] = None
        if _type_name(node) == 'SyncBN' and not sync:
            node['type'] = 'BN'

    with MODELS.switch_scope_and_registry(cfg.get('default_scope')) as models:
        for backbone in _backbones(cfg.model):
            cls = backbone.get('backbone', backbone.type)
            cls = models.get(cls) if isinstance(cls, str) else cls
            if cls is None:
                # Building the model will say that the type is unknown.
                continue
            # What freezes nothing: set even if the config does not name it,
            # since norm_eval is True by default in mmdet's ResNet.
            nothing = dict(frozen_stages=-1, norm_eval=False)
            names = set(backbone)
            bases = inspect.getmro(cls) if inspect.isclass(cls) else ()
            for base in reversed(bases):
                parameters = inspect.signature(base.__init__).parameters
                names.update(parameters)
                if 'frozen_stages' in parameters:
                    # 0 in EfficientNet.
                    nothing['frozen_stages'] = parameters[
                        'frozen_stages'].default
            backbone.update({k: v for k, v in nothing.items() if k in names})


def _backbones(model: ConfigDict) -> Iterator[dict]:
    """The dicts with the backbones' arguments, inside SwapActivations too."""
    for owner in _dicts(model):
        backbone = owner.get('backbone')
        if isinstance(backbone, dict):
            if not isinstance(backbone.get('backbone'), dict):
                yield backbone


def _detection(cfg: Config, data_root: str) -> None:
    root = str(write_coco_shapes(data_root))
    _narrow_detector(cfg.model)
    _fit_anchors(cfg.model)
    _reduce_regions(cfg.model)
    for name, part in cfg.model.items():
        if name == 'roi_head' or name.endswith('_head') and name != 'rpn_head':
            _set_num_classes(part, len(SHAPES))
    # Resizing batches, for example, is for images of another size.
    cfg.model.get('data_preprocessor', {}).pop('batch_augments', None)

    with_mask = any(
        node.get('with_mask') for node in _dicts(cfg.train_dataloader))
    load = [
        dict(type='LoadImageFromFile'),
        dict(type='LoadAnnotations', with_bbox=True, with_mask=with_mask),
        dict(type='Resize', scale=IMAGE_SIZE, keep_ratio=True),
    ]
    train_pipeline = [
        *load,
        dict(type='RandomFlip', prob=0.5),
        dict(type='PackDetInputs'),
    ]
    test_pipeline = [
        *load,
        dict(
            type='PackDetInputs',
            meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape',
                       'scale_factor')),
    ]

    def dataset(split: str, **kwargs) -> dict:
        return dict(
            type='CocoDataset',
            data_root=root,
            ann_file=f'annotations/instances_{split}.json',
            data_prefix=dict(img=f'{split}/'),
            metainfo=dict(classes=SHAPES),
            **kwargs)

    # What the model predicts: boxes, masks, proposals.
    metrics = [
        node['metric'] for node in _dicts(cfg.get('val_evaluator'))
        if 'metric' in node
    ]
    _set_data(
        cfg,
        dataset('train', pipeline=train_pipeline),
        dataset('val', pipeline=test_pipeline, test_mode=True),
        dict(
            type='CocoMetric',
            ann_file=f'{root}/annotations/instances_val.json',
            metric=metrics[0] if metrics else 'bbox'),
        batch_size=16)
    _set_schedule(cfg, num_epochs=8, epoch_length=32)


def _segmentation(cfg: Config, data_root: str) -> None:
    root = str(write_cityscapes_shapes(data_root))
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
            preprocessor.size = IMAGE_SIZE
    if cfg.model.get('test_cfg', {}).get('mode') == 'slide':
        cfg.model.test_cfg.update(crop_size=IMAGE_SIZE, stride=(64, 64))

    load = [dict(type='LoadImageFromFile'), dict(type='LoadAnnotations')]
    train_pipeline = [
        *load,
        dict(type='RandomCrop', crop_size=IMAGE_SIZE),
        dict(type='RandomFlip', prob=0.5),
        dict(type='PackSegInputs'),
    ]
    test_pipeline = [*load, dict(type='PackSegInputs')]

    def dataset(split: str, **kwargs) -> dict:
        return dict(
            type='CityscapesDataset',
            data_root=root,
            data_prefix=dict(
                img_path=f'leftImg8bit/{split}',
                seg_map_path=f'gtFine/{split}'),
            **kwargs)

    _set_data(
        cfg,
        dataset('train', pipeline=train_pipeline),
        dataset('val', pipeline=test_pipeline),
        dict(type='IoUMetric', iou_metrics=['mIoU']),
        batch_size=4)
    _set_schedule(cfg, num_epochs=2, epoch_length=64)


def _classification(cfg: Config, data_root: str) -> None:
    root = str(write_imagenet_shapes(data_root))
    parts = [
        cfg.get('data_preprocessor'),
        cfg.model.get('data_preprocessor'),
        cfg.model.get('head')
    ]
    _set_num_classes(parts, len(SHAPES))
    for node in _dicts(parts):
        if 'topk' in node:
            node['topk'] = (1, )

    train_pipeline = [
        dict(type='LoadImageFromFile'),
        dict(type='RandomFlip', prob=0.5, direction='horizontal'),
        dict(type='PackInputs'),
    ]
    test_pipeline = [dict(type='LoadImageFromFile'), dict(type='PackInputs')]

    def dataset(split: str, pipeline: List[dict]) -> dict:
        return dict(
            type='ImageNet',
            data_root=root,
            split=split,
            metainfo=dict(classes=SHAPES),
            pipeline=pipeline)

    _set_data(
        cfg,
        dataset('train', train_pipeline),
        dataset('val', test_pipeline),
        dict(type='Accuracy', topk=(1, )),
        batch_size=32)
    _set_schedule(cfg, num_epochs=8, epoch_length=16)


def _set_num_classes(part, num_classes: int) -> None:
    for node in _dicts(part):
        if 'num_classes' in node:
            node['num_classes'] = num_classes
        if 'num_things_classes' in node:
            node['num_things_classes'] = num_classes
        weight = node.get('class_weight')
        if isinstance(weight, list) and len(weight) > num_classes + 1:
            # The last is the weight of "no object".
            node['class_weight'] = weight[:num_classes] + weight[-1:]


def _narrow_detector(model: ConfigDict) -> None:
    """Narrow the feature pyramid and all that has the width it had."""
    widths = [
        node['out_channels'] for node in _dicts(model.get('neck'))
        if _type_name(node).endswith('FPN') and node['out_channels'] > WIDTH
    ]
    for name, part in model.items():
        if name == 'backbone':
            continue
        for node in _dicts(part):
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
    for node in _dicts(model):
        if _type_name(node) != 'AnchorGenerator' or 'base_sizes' in node:
            continue
        smallest = min(node.strides) * (
            node.get('octave_base_scale') or min(node.scales))
        if 'octave_base_scale' in node:
            node.octave_base_scale *= 16 / smallest
        else:
            node.scales = [scale * 16 / smallest for scale in node.scales]


def _reduce_regions(model: ConfigDict) -> None:
    """Look at fewer regions: the images are small and almost empty."""
    for node in _dicts(model):
        if node.get('max_per_img', 0) > 100:
            node['max_per_img'] = 100
        if 'pos_fraction' in node:
            node['num'] = min(node['num'], 64)
        if node.get('num_queries', 0) > 100:
            node['num_queries'] = 100


def _set_data(cfg: Config, train: dict, val: dict, evaluator: dict,
              batch_size: int) -> None:
    # The images are so small that worker processes would only cost time.
    loader = dict(
        batch_size=batch_size, num_workers=0, persistent_workers=False)
    sampler = 'DefaultSampler' if _by_epoch(cfg) else 'InfiniteSampler'
    cfg.train_dataloader = dict(
        **loader, sampler=dict(type=sampler, shuffle=True), dataset=train)
    for split in ('val', 'test'):
        cfg[f'{split}_dataloader'] = dict(
            **loader,
            sampler=dict(type='DefaultSampler', shuffle=False),
            dataset=val)
        cfg[f'{split}_evaluator'] = evaluator
        cfg[f'{split}_cfg'] = cfg.get(f'{split}_cfg') or dict()
    # mmseg's inference functions read these.
    cfg.train_pipeline, cfg.test_pipeline = train['pipeline'], val['pipeline']


def _by_epoch(cfg: Config) -> bool:
    return 'max_iters' not in cfg.train_cfg


def _set_schedule(cfg: Config, num_epochs: int, epoch_length: int) -> None:
    num_iters = num_epochs * epoch_length
    if _by_epoch(cfg):
        interval = num_epochs // 2
        cfg.train_cfg = dict(
            type='EpochBasedTrainLoop',
            max_epochs=num_epochs,
            val_interval=interval)
    else:
        interval = num_iters // 2
        cfg.train_cfg = dict(
            type='IterBasedTrainLoop',
            max_iters=num_iters,
            val_interval=interval)

    wrapper = cfg.optim_wrapper
    wrapper.optimizer = dict(type='AdamW', lr=1e-3, weight_decay=0.05)
    wrapper.pop('accumulative_counts', None)
    if (_type_name(wrapper) == 'AmpOptimWrapper'
            and not torch.cuda.is_available()):
        # mmengine has no mixed precision on the CPU.
        wrapper.type = 'OptimWrapper'
        for key in ('loss_scale', 'dtype', 'use_fsdp'):
            wrapper.pop(key, None)
    warm_up = num_iters // 8
    cfg.param_scheduler = [
        dict(type='LinearLR', start_factor=0.01, by_epoch=False, end=warm_up),
        dict(
            type='CosineAnnealingLR',
            by_epoch=False,
            begin=warm_up,
            end=num_iters),
    ]
    if 'auto_scale_lr' in cfg:
        cfg.auto_scale_lr.enable = False

    hooks = cfg.setdefault('default_hooks', ConfigDict())
    hooks.setdefault('logger', dict(type='LoggerHook')).update(interval=8)
    hooks.setdefault('checkpoint', dict(type='CheckpointHook')).update(
        by_epoch=_by_epoch(cfg), interval=interval, max_keep_ckpts=1)
    cfg.custom_hooks = _fit_hooks(cfg.get('custom_hooks') or [], warm_up)


def _fit_hooks(hooks: List[dict], phase1_iters: int) -> List[dict]:
    """Fit the hooks that count epochs or iterations to the short schedule."""
    # They change a pipeline that is no longer there.
    hooks = [
        hook for hook in hooks
        if _type_name(hook) not in ('YOLOXModeSwitchHook',
                                    'PipelineSwitchHook')
    ]
    for hook in hooks:
        if hook.get('phase1_epochs'):
            hook['phase1_epochs'] = 1
        if hook.get('phase1_iters'):
            hook['phase1_iters'] = phase1_iters
        if _type_name(hook) == 'EMAHook':
            hook.pop('begin_epoch', None)
            hook.pop('begin_iter', None)
            # At the usual 1e-4 the average would still be the start.
            hook['momentum'] = max(hook.get('momentum', 0), 0.02)
    return hooks
