"""Configs of the libraries, turned into the demo on drawn shapes."""
import copy

import pytest
import torch
from mmengine.config import Config
from mmengine.hooks import EMAHook
from mmengine.hub import get_config
from mmengine.runner import Runner

from mm_acon.demo import SHAPES, demo_config

RETINANET = 'mmdet::retinanet/retinanet_r18_fpn_1x_coco.py'
MASK_RCNN = 'mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py'
CASCADE = 'mmdet::cascade_rcnn/cascade-mask-rcnn_r50_fpn_1x_coco.py'
YOLOX = 'mmdet::yolox/yolox_tiny_8xb8-300e_coco.py'
PSPNET = 'mmseg::pspnet/pspnet_r18-d8_4xb2-80k_cityscapes-512x1024.py'
RESNET = 'mmpretrain::resnet/resnet18_8xb32_in1k.py'


@pytest.fixture(scope='module')
def data_root(tmp_path_factory):
    return str(tmp_path_factory.mktemp('shapes'))


def dicts(node):
    if isinstance(node, dict):
        yield node
        node = list(node.values())
    if isinstance(node, (list, tuple)):
        for child in node:
            yield from dicts(child)


def demo(name, data_root, **changes):
    cfg = get_config(name)
    cfg.merge_from_dict(changes)
    demo_config(cfg, data_root)
    return cfg


# What may differ in a backbone: what a pretrained one needs, and SyncBN.
def comparable(backbone):
    backbone = copy.deepcopy(backbone.to_dict())
    for node in dicts(backbone):
        for key in ('init_cfg', 'pretrained', 'frozen_stages', 'norm_eval'):
            node.pop(key, None)
        if node.get('type') == 'SyncBN':
            node['type'] = 'BN'
    return backbone


@pytest.mark.parametrize(
    'name', [RETINANET, MASK_RCNN, CASCADE, YOLOX, PSPNET, RESNET])
def test_the_backbone_stays(name, data_root):
    before = comparable(get_config(name).model.backbone)
    after = demo(name, data_root).model.backbone
    assert comparable(after) == before
    assert after.get('init_cfg') is None


SWAP = dict(act_cfg=dict(type='MetaACON'), include=r'\.conv2$', frozen='skip')


@pytest.mark.parametrize('whole', [False, True], ids=['name', 'whole dict'])
def test_swapped_activations_stay(whole, data_root):
    cfg = get_config(RETINANET)
    plain = cfg.model.backbone
    if whole:
        cfg.model.backbone = dict(
            type='SwapActivations', backbone=plain, swap=SWAP)
    else:
        cfg.model.backbone = dict(
            plain, type='SwapActivations', backbone='ResNet', swap=SWAP)
    before = comparable(cfg.model.backbone)
    demo_config(cfg, data_root)
    assert comparable(cfg.model.backbone) == before
    inner = cfg.model.backbone.backbone if whole else cfg.model.backbone
    assert inner.init_cfg is None
    assert inner.frozen_stages == -1
    assert inner.norm_eval is False


@pytest.mark.parametrize('name', [
    'mmpretrain::efficientnet/efficientnet-b0_8xb32_in1k.py',
    'mmdet::efficientnet/retinanet_effb3_fpn_8xb4-crop896-1x_coco.py'
])
def test_efficientnet_freezes_nothing_at_0(name, data_root):
    assert demo(name, data_root).model.backbone.frozen_stages == 0


def test_nothing_pretrained_in_a_list_or_by_a_switch(data_root):
    cfg = get_config(RETINANET)
    kaiming = dict(type='Kaiming', layer='Conv2d')
    cfg.model.backbone.init_cfg = [
        kaiming, dict(type='Pretrained', checkpoint='no.pth')
    ]
    cfg.model.neck.pretrained = True
    demo_config(cfg, data_root)
    assert cfg.model.backbone.init_cfg == [kaiming]
    assert not cfg.model.neck.pretrained


def test_norm_eval_that_is_a_default_is_switched_off(data_root):
    cfg = get_config(RETINANET)
    del cfg.model.backbone['norm_eval']
    demo_config(cfg, data_root)
    assert cfg.model.backbone.norm_eval is False


@pytest.mark.parametrize('name, heads', [(RETINANET, 1), (MASK_RCNN, 2),
                                         (CASCADE, 4), (YOLOX, 1)])
def test_detectors_know_the_shapes(name, heads, data_root):
    cfg = demo(name, data_root)
    numbers = [
        node['num_classes'] for node in dicts(cfg.model.to_dict())
        if 'num_classes' in node
    ]
    assert numbers == [len(SHAPES)] * heads
    for loader in (cfg.train_dataloader, cfg.val_dataloader,
                   cfg.test_dataloader):
        assert loader.dataset.type == 'CocoDataset'
        assert loader.dataset.metainfo.classes == SHAPES


@pytest.mark.parametrize('name, metric', [(RETINANET, 'bbox'),
                                          (MASK_RCNN, ['bbox', 'segm'])])
def test_masks_are_read_and_scored_where_there_are_masks(
        name, metric, data_root):
    cfg = demo(name, data_root)
    assert cfg.val_evaluator.metric == metric
    loads = [
        step for step in cfg.train_dataloader.dataset.pipeline
        if step.type == 'LoadAnnotations'
    ]
    assert [step.with_mask for step in loads] == [name == MASK_RCNN]


@pytest.mark.parametrize('name, base',
                         [(RETINANET, 2),
                          ('mmdet::atss/atss_r50_fpn_1x_coco.py', 2)])
def test_the_smallest_anchor_is_16_pixels(name, base, data_root):
    # At the finest stride, 8.
    head = demo(name, data_root).model.bbox_head
    assert head.anchor_generator.octave_base_scale == base


def test_the_smallest_proposal_anchor_is_16_pixels(data_root):
    # At the finest stride, 4.
    head = demo(MASK_RCNN, data_root).model.rpn_head
    assert head.anchor_generator.scales == [4]


@pytest.mark.parametrize('cuda, kept', [(True, 'AmpOptimWrapper'),
                                        (False, 'OptimWrapper')])
def test_the_optimizer_wrapper_keeps_what_is_not_schedule(
        cuda, kept, data_root, monkeypatch):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: cuda)
    wrapper = demo(
        RETINANET,
        data_root,
        optim_wrapper=dict(
            type='AmpOptimWrapper',
            loss_scale='dynamic',
            accumulative_counts=4,
            constructor='ActivationOptimWrapperConstructor',
            paramwise_cfg=dict(norm_decay_mult=0.))).optim_wrapper
    assert wrapper.type == kept
    assert ('loss_scale' in wrapper) is cuda
    assert wrapper.constructor == 'ActivationOptimWrapperConstructor'
    assert wrapper.paramwise_cfg == dict(norm_decay_mult=0.)
    assert wrapper.optimizer.type == 'AdamW'
    assert 'accumulative_counts' not in wrapper


def test_hooks_fit_the_short_schedule(data_root):
    mine = dict(type='CheckInvalidLossHook', interval=3)
    cfg = get_config(YOLOX)
    assert cfg.custom_hooks[0].type == 'YOLOXModeSwitchHook'
    cfg.custom_hooks += [
        dict(type='PWLURealignHook', phase1_epochs=5),
        dict(type='PipelineSwitchHook', switch_epoch=2, switch_pipeline=[]),
        mine,
    ]
    demo_config(cfg, data_root)
    assert [hook.type for hook in cfg.custom_hooks] == [
        'SyncNormHook', 'EMAHook', 'PWLURealignHook', 'CheckInvalidLossHook'
    ]
    assert cfg.custom_hooks[2].phase1_epochs == 1
    assert cfg.custom_hooks[3] == mine


def test_default_hooks_keep_their_type(data_root):
    cfg = demo(
        RETINANET, data_root, **{
            'default_hooks.checkpoint': None,
            'default_hooks.logger.type': 'MyLoggerHook'
        })
    assert cfg.default_hooks.checkpoint is None
    assert cfg.default_hooks.logger == dict(type='MyLoggerHook', interval=8)
    cfg = get_config(RETINANET)
    cfg.pop('default_hooks')
    demo_config(cfg, data_root)
    assert cfg.default_hooks.checkpoint == dict(
        type='CheckpointHook', by_epoch=True, interval=4, max_keep_ckpts=1)


def test_phase_one_in_iterations_ends_within_the_schedule(data_root):
    cfg = get_config(PSPNET)
    cfg.custom_hooks = [dict(type='PWLURealignHook', phase1_iters=4000)]
    demo_config(cfg, data_root)
    assert 0 < cfg.custom_hooks[0].phase1_iters < cfg.train_cfg.max_iters / 2


@pytest.mark.parametrize('launcher, cuda, norm', [
    ('none', True, 'BN'),
    ('pytorch', True, 'SyncBN'),
    ('pytorch', False, 'BN'),
])
def test_sync_bn_needs_ranks_and_gpus(launcher, cuda, norm, data_root,
                                      monkeypatch):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: cuda)
    cfg = demo(PSPNET, data_root, launcher=launcher)
    for part in ('backbone', 'decode_head', 'auxiliary_head'):
        assert cfg.model[part].norm_cfg.type == norm


def test_crops_fit_everywhere(data_root):
    cfg = demo(
        PSPNET, data_root, **{
            'model.test_cfg.mode': 'slide',
            'model.test_cfg.crop_size': (512, 512),
            'model.test_cfg.stride': (341, 341)
        })
    assert tuple(cfg.model.data_preprocessor.size) == (96, 96)
    assert tuple(cfg.model.test_cfg.crop_size) == (96, 96)
    assert max(cfg.model.test_cfg.stride) <= 96
    assert cfg.model.pretrained is None
    assert cfg.model.decode_head.num_classes == 19


@pytest.mark.parametrize('name, came', [
    ('mmpretrain::resnet/resnet18_8xb16_cifar10.py', 'CIFAR10 of mmpretrain'),
    ('mmseg::pspnet/pspnet_r50-d8_4xb4-80k_ade20k-512x512.py',
     'ADE20KDataset of mmseg'),
    ('mmdet::pascal_voc/retinanet_r50_fpn_1x_voc0712.py',
     'VOCDataset of mmdet'),
    ('mmpretrain::mae/mae_vit-base-p16_8xb512-amp-coslr-300e_in1k.py',
     'ImageNet of mmpretrain without val_evaluator, as for models that learn '
     'no classes'),
])
def test_other_data_is_refused(name, came, data_root):
    cfg = get_config(name)
    with pytest.raises(ValueError) as error:
        demo_config(cfg, data_root)
    message = str(error.value)
    assert 'Expected a config on data of type CocoDataset' in message
    assert f'train_dataloader.dataset is of type {came}.' in message
    assert 'Start from a config on COCO, Cityscapes or ImageNet' in message


# As their configs are; none of these libraries need be there.
@pytest.mark.parametrize('scope, dataset, came', [
    ('mmpose', dict(type='CocoDataset'), 'CocoDataset of mmpose'),
    ('mmrotate', dict(type='DOTADataset'), 'DOTADataset of mmrotate'),
    ('mmrotate', dict(type='mmdet.CocoDataset'),
     'CocoDataset of mmdet in a config of mmrotate'),
    ('mmdet3d', dict(type='RepeatDataset', dataset=dict(type='KittiDataset')),
     'KittiDataset of mmdet3d'),
    ('mmaction', dict(type='VideoDataset'), 'VideoDataset of mmaction'),
    ('mmocr', dict(type='ConcatDataset', datasets=[dict(type='OCRDataset')
                                                   ]), 'OCRDataset of mmocr'),
    ('mmseg', dict(type='CocoDataset', _scope_='mmpose'),
     'CocoDataset of mmpose in a config of mmseg'),
    (None, dict(type='CocoDataset'), 'CocoDataset'),
])
def test_other_libraries_are_refused(scope, dataset, came, tmp_path):
    cfg = Config(
        dict(
            default_scope=scope,
            model=dict(type='Model', backbone=dict(frozen_stages=1)),
            train_dataloader=dict(dataset=dataset)))
    before = copy.deepcopy(cfg.to_dict())
    with pytest.raises(ValueError) as error:
        demo_config(cfg, str(tmp_path / 'shapes'))
    message = str(error.value)
    assert 'CocoDataset (detection, instance segmentation)' in message
    assert f'train_dataloader.dataset is of type {came}.' in message
    assert message.endswith(
        'A library that no type tells stands in default_scope.')
    assert cfg.to_dict() == before
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('scope', [None, 'mmengine', 'absent'])
@pytest.mark.parametrize('telling', [
    {'train_dataloader.dataset.type': 'mmdet.CityscapesDataset'},
    {'train_dataloader.dataset._scope_': 'mmdet'},
    {'model.type': 'mmdet.RetinaNet'},
    {'model._scope_': 'mmdet'},
])  # yapf: disable
def test_the_library_without_a_default_scope(telling, scope, data_root):
    cfg = get_config(RETINANET)
    cfg.train_dataloader.dataset.type = 'CityscapesDataset'
    cfg.default_scope = scope
    if scope == 'absent':
        cfg.pop('default_scope')
    cfg.merge_from_dict(telling)
    demo_config(cfg, data_root)
    assert cfg.default_scope == 'mmdet'
    assert cfg.train_dataloader.dataset.type == 'CocoDataset'


def test_a_config_without_data_is_refused(data_root):
    with pytest.raises(ValueError, match='of type None'):
        demo_config(Config(dict(model=dict())), data_root)


def test_classifiers_know_the_shapes(data_root):
    cfg = demo(RESNET, data_root)
    assert cfg.model.head.num_classes == len(SHAPES)
    assert cfg.data_preprocessor.num_classes == len(SHAPES)
    # There are no five best of three.
    assert tuple(cfg.model.head.topk) == (1, )
    assert cfg.val_evaluator == dict(type='Accuracy', topk=(1, ))
    for split, loader in (('train', cfg.train_dataloader),
                          ('val', cfg.val_dataloader), ('val',
                                                        cfg.test_dataloader)):
        assert loader.dataset.type == 'ImageNet'
        assert loader.dataset.split == split
        assert loader.dataset.metainfo.classes == SHAPES


def test_a_backbone_that_a_function_builds(data_root):
    """It has no signature of a class to look at."""
    cfg = get_config(RESNET)
    cfg.model.backbone = dict(
        type='MegviiShuffleNetV2', frozen_stages=1, norm_eval=True)
    demo_config(cfg, data_root)
    assert cfg.model.backbone == dict(
        type='MegviiShuffleNetV2', frozen_stages=-1, norm_eval=False)


def test_cityscapes_in_mmdet_is_detection(data_root):
    cfg = demo('mmdet::cityscapes/mask-rcnn_r50_fpn_1x_cityscapes.py',
               data_root)
    assert cfg.train_dataloader.dataset.type == 'CocoDataset'
    assert cfg.val_evaluator.metric == ['bbox', 'segm']


def two_iterations(cfg, folder):
    """A runner that has trained, for two iterations, and evaluated."""
    cfg.work_dir = str(folder)
    cfg.experiment_name = str(folder)
    cfg.train_dataloader.update(batch_size=2)
    cfg.train_dataloader.dataset.indices = 4
    cfg.val_dataloader.dataset.indices = 2
    cfg.test_dataloader.dataset.indices = 2
    if 'test_cfg' in cfg.model:
        # An untrained detector finds nothing that it is sure of.
        cfg.model.test_cfg.score_thr = 0.
    # Nothing to keep of so short a run.
    cfg.default_hooks.checkpoint.update(interval=-1, save_last=False)
    key = 'max_iters' if 'max_iters' in cfg.train_cfg else 'max_epochs'
    cfg.train_cfg[key] = dict(max_iters=2, max_epochs=1)[key]
    runner = Runner.from_cfg(cfg)
    runner.train()
    assert runner.iter == 2
    scalars = runner.message_hub.log_scalars
    assert torch.isfinite(torch.as_tensor(scalars['train/loss'].data[0])).all()
    return runner


def score_of(runner, name):
    score = runner.message_hub.log_scalars[name].current()
    assert 0 <= score <= 100
    return score


# The whole way: a loss that is a number, and a score.
@pytest.mark.parametrize('name, score', [
    (RETINANET, 'coco/bbox_mAP_50'),
    (YOLOX, 'coco/bbox_mAP_50'),
    (PSPNET, 'mIoU'),
    (RESNET, 'accuracy/top1'),
])
def test_it_trains_and_evaluates(name, score, data_root, tmp_path):
    runner = two_iterations(demo(name, data_root), tmp_path)
    score_of(runner, f'val/{score}')


# Pure Python: classes as types, that of the data set as a name as in mmdet,
# and no default scope.
PURE_BASE = '''
from mmengine.hooks import CheckpointHook, LoggerHook

default_scope = None
default_hooks = dict(
    logger=dict(type=LoggerHook, interval=50),
    checkpoint=dict(type=CheckpointHook, interval=1))
train_cfg = dict(by_epoch=True, max_epochs=12)
optim_wrapper = dict(optimizer=dict(type='SGD', lr=0.02))
'''
PURE_DETECTOR = '''
import mmdet.models.backbones
from mmengine.config import read_base
from mmcv.ops import nms
from mmdet.engine.hooks import PipelineSwitchHook
from mmdet.evaluation import CocoMetric
from mmdet.models.data_preprocessors import DetDataPreprocessor
from mmdet.models.dense_heads import FCOSHead
from mmdet.models.detectors import FCOS
from mmdet.models.necks import FPN
from mmengine.hooks import EMAHook
from torch.nn import SyncBatchNorm

with read_base():
    from .base import *

model = dict(
    type=FCOS,
    data_preprocessor=dict(type=DetDataPreprocessor, pad_size_divisor=32),
    backbone=dict(
        type=mmdet.models.backbones.ResNet,
        depth=18,
        frozen_stages=1,
        norm_cfg=dict(type=SyncBatchNorm),
        init_cfg=dict(type='Pretrained', checkpoint='torchvision://resnet18')),
    neck=dict(
        type=FPN,
        in_channels=[64, 128, 256, 512],
        out_channels=256,
        start_level=1,
        num_outs=5),
    bbox_head=dict(type=FCOSHead, num_classes=80, in_channels=256),
    test_cfg=dict(nms=dict(type=nms, iou_threshold=0.5), max_per_img=300))
train_dataloader = dict(dataset=dict(type='CocoDataset', pipeline=[]))
val_evaluator = dict(type=CocoMetric, metric='bbox')
custom_hooks = [
    dict(type=EMAHook, momentum=0.0002),
    dict(type=PipelineSwitchHook, switch_epoch=1, switch_pipeline=[])
]
'''
PURE_CLASSIFIER = '''
from mmengine.config import read_base
from mmpretrain.datasets import ImageNet
from mmpretrain.evaluation import Accuracy
from mmpretrain.models import (GlobalAveragePooling, ImageClassifier,
                               LinearClsHead, ResNet)

with read_base():
    from .base import *

model = dict(
    type=ImageClassifier,
    backbone=dict(type=ResNet, depth=18, frozen_stages=2),
    neck=dict(type=GlobalAveragePooling),
    head=dict(type=LinearClsHead, num_classes=1000, in_channels=512))
train_dataloader = dict(dataset=dict(type=ImageNet))
val_evaluator = dict(type=Accuracy, topk=(1, 5))
'''


@pytest.mark.parametrize('text, library, score', [
    (PURE_DETECTOR, 'mmdet', 'val/coco/bbox_mAP_50'),
    (PURE_CLASSIFIER, 'mmpretrain', 'val/accuracy/top1'),
])
def test_pure_python_configs(text, library, score, data_root, tmp_path):
    (tmp_path / 'base.py').write_text(PURE_BASE)
    (tmp_path / 'pure.py').write_text(text)
    cfg = Config.fromfile(tmp_path / 'pure.py')
    demo_config(cfg, data_root)
    assert cfg.default_scope == library
    assert cfg.model.backbone.frozen_stages == -1
    assert cfg.model.backbone.get('norm_cfg') in (None, dict(type='BN'))
    for hook in cfg.get('custom_hooks'):
        assert hook == dict(type=EMAHook, momentum=0.02)
    runner = two_iterations(cfg, tmp_path / 'run')
    score_of(runner, score)
    assert type(runner.model.backbone).__module__.startswith(library)
    # What Runner writes can be read again: no class is written as such.
    again = Config.fromfile(tmp_path / 'run/pure.py')
    assert again.default_hooks.checkpoint.interval == -1
    assert again.model.backbone.type.endswith('.ResNet')


@pytest.mark.parametrize('name, sizes, score', [
    ('mmdet::retinanet/retinanet_r50_fpn_1x_coco.py', {
        (64, 64), (96, 96), (128, 128)
    }, 'test/coco/bbox_mAP_50'),
    (PSPNET, {(72, 144), (96, 192), (120, 240)}, 'test/mIoU'),
])
def test_time_augmentation_fits_the_shapes(name, sizes, score, data_root,
                                           tmp_path):
    cfg = demo(name, data_root)
    # As the libraries' tools do it.
    cfg.model = dict(**cfg.tta_model, module=cfg.model)
    cfg.test_dataloader.dataset.update(pipeline=cfg.tta_pipeline, indices=2)
    cfg.update(work_dir=str(tmp_path), experiment_name=str(tmp_path))
    runner = Runner.from_cfg(cfg)
    views = runner.test_dataloader.dataset[0]['data_samples']
    assert len(views) == 6
    assert {tuple(view.img_shape[:2]) for view in views} == sizes
    assert sum(view.flip for view in views) == 3
    runner.test()
    score_of(runner, score)
