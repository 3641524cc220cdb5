"""Detectors, segmentors and classifiers, swapped in all their parts."""
import copy

import pytest
import torch
from mmengine.hub import get_config
from mmengine.registry import MODELS, init_default_scope

from mm_acon import PWLU
from mm_acon.activations.base import activations_of
from mm_acon.engine import ActivationOptimWrapperConstructor
from mm_acon.swap.config import dicts, use_activation, without_weights
from mm_acon.swap.samples import first_run, samples
from tests.helpers.backbones import BACKBONES  # noqa: F401


@pytest.fixture(autouse=True)
def default_scope():
    yield
    init_default_scope('mmengine')


def built(name, parts):
    """A shipped config's model as --act-parts has it, none of it frozen."""
    cfg = get_config(name)
    init_default_scope(cfg.default_scope)
    without_weights(cfg.model)
    # Which level of a pyramid an object falls to is up to the start.
    torch.manual_seed(0)
    for node in dicts(cfg.model):
        if 'frozen_stages' in node:
            node['frozen_stages'] = -1
        if node.get('norm_cfg') and 'requires_grad' in node['norm_cfg']:
            node['norm_cfg']['requires_grad'] = True
    use_activation(
        cfg, 'PWLU', replace=['ReLU', 'SiLU', 'Swish', 'GELU'], parts=parts)
    model = MODELS.build(cfg.model)
    # DINO has parameters that only this fills.
    model.init_weights()
    return model


def train_two_steps(model):
    """On images and objects that are made up.

    The activations that a gradient came to, and those that moved: not where
    a block is dropped, or no object is of that level.
    """
    sample, texts, error = first_run(
        samples(model, small=True, training=True),
        lambda sample: sample.run(model) and sample)
    assert sample and sample.kwargs['mode'] == 'loss', texts
    constructor = ActivationOptimWrapperConstructor(
        dict(
            type='OptimWrapper',
            optimizer=dict(type='SGD', lr=.01),
            clip_grad=dict(max_norm=1)),
        # RTMDet's head shares convolutions between its levels.
        dict(bypass_duplicate=True))
    wrapper = constructor(model)
    model.train()
    reached, before = set(), {}
    for name, activation in activations_of(model).items():
        before[name] = activation, copy.deepcopy(activation.state_dict())
        for parameter in activation.parameters():
            parameter.register_hook(lambda _, name=name: reached.add(name))
    for _ in range(2):
        torch.manual_seed(0)
        losses, _ = sample.run(model)
        loss, _ = model.parse_losses(losses)
        assert loss.isfinite()
        wrapper.update_params(loss)
    moved = {
        name
        for name, (activation, state) in before.items() if not all(
            torch.equal(value, state[key])
            for key, value in activation.state_dict().items())
    }
    return reached, moved


MODELS_OF_USERS = {
    'ResNet': ('mmpretrain::resnet/resnet18_8xb32_in1k.py', ['backbone'], 17),
    'RetinaNet': ('mmdet::retinanet/retinanet_r50_fpn_1x_coco.py',
                  ['backbone', 'bbox_head'], 57),
    'Faster R-CNN': ('mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py',
                     ['backbone', 'roi_head.bbox_head'], 51),
    'Mask R-CNN':
    ('mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py', ['backbone',
                                                       'roi_head'], 56),
    'YOLOX': ('mmdet::yolox/yolox_s_8xb8-300e_coco.py',
              ['backbone', 'neck', 'bbox_head'], 74),
    'RTMDet': ('mmdet::rtmdet/rtmdet_tiny_8xb32-300e_coco.py',
               ['backbone', 'neck', 'bbox_head'], 76),
    'DINO': ('mmdet::dino/dino-4scale_r50_8xb2-12e_coco.py',
             ['backbone', 'encoder', 'decoder', 'bbox_head'], 75),
    'Mask2Former': ('mmdet::mask2former/mask2former_r50_8xb2-lsj-50e_coco.py',
                    ['backbone', 'panoptic_head'], 67),
    'DeepLabV3+':
    ('mmseg::deeplabv3plus/deeplabv3plus_r50-d8_4xb2-40k_'
     'cityscapes-512x1024.py', ['backbone', 'decode_head',
                                'auxiliary_head'], 65),
    'SegFormer': ('mmseg::segformer/segformer_mit-b0_8xb1-160k_cityscapes-'
                  '1024x1024.py', ['backbone', 'decode_head'], 13),
    'UPerNet-Swin':
    ('mmseg::swin/swin-tiny-patch4-window7-in1k-pre_upernet_8xb2-160k_ade20k-'
     '512x512.py', ['backbone', 'decode_head', 'auxiliary_head'], 24),
    'PSPNet': ('mmseg::pspnet/pspnet_r50-d8_4xb2-40k_cityscapes-512x1024.py',
               ['backbone', 'decode_head', 'auxiliary_head'], 56),
}


@pytest.mark.parametrize('name', [
    name if name in ('ResNet', 'SegFormer') else pytest.param(
        name, marks=pytest.mark.full) for name in MODELS_OF_USERS
])
def test_all_parts_are_equal_and_train(name):
    config, parts, number = MODELS_OF_USERS[name]
    model = built(config, parts)
    activations = activations_of(model)
    assert len(activations) == number
    assert all(isinstance(module, PWLU) for module in activations.values())
    reached, moved = train_two_steps(model)
    assert reached == set(activations)
    assert len(moved) > number / 2
