import copy

import pytest
import torch
from mmengine.model import ExponentialMovingAverage
from mmengine.registry import HOOKS, MODELS, init_default_scope
from torch import nn

from mm_acon import PWLU
from mm_acon.cli import load_config
from mm_acon.engine.momentum_copies import find_mirrors
from mm_acon.swap.config import use_activation


def part(width=4):
    return nn.Sequential(
        nn.Conv2d(3, width, 1),
        nn.Sequential(nn.Conv2d(width, width, 1), PWLU(width)), PWLU(width))


def frozen(module):
    return module.requires_grad_(False)


class Model(nn.Module):

    def __init__(self, **parts):
        super().__init__()
        for name, module in parts.items():
            self.add_module(name, module)


def names(model):
    return [(m.name, m.sources, m.is_average) for m in find_mirrors(model)]


def test_teacher_and_student():
    student = part()
    model = Model(student=student, teacher=frozen(copy.deepcopy(student)))
    mirror, = find_mirrors(model)
    assert names(model) == [('teacher', ['student'], False)]
    pairs = list(mirror.pairs())
    assert [name for name, _, _ in pairs] == ['teacher.1.1', 'teacher.2']
    for name, source, copied in pairs:
        assert copied is model.get_submodule(name)
        assert source is model.get_submodule(
            name.replace('teacher', 'student'))


def lerp(mine, source):
    mine.data.lerp_(source.data, .01)


def replace(mine, source):
    mine.data = mine.data * .99 + source.data * .01


@pytest.mark.parametrize('update', (lerp, replace))
def test_it_follows_when_its_weights_move(update):
    """A frozen network of the same build is a copy of nothing."""
    student = part()
    model = Model(student=student, teacher=frozen(part()))
    mirror, = find_mirrors(model)
    assert not mirror.follows
    with torch.no_grad():
        model.student[0].weight += 1
    assert not mirror.follows
    with torch.no_grad():
        for mine, source in zip(model.teacher.parameters(),
                                model.student.parameters()):
            update(mine, source)
    assert mirror.follows


def test_it_follows_where_the_first_layer_is_frozen():
    """Watched is a weight that is trained."""
    student = part()
    frozen(student[0])
    model = Model(student=student, teacher=frozen(copy.deepcopy(student)))
    mirror, = find_mirrors(model)
    with torch.no_grad():
        model.teacher[1][0].weight += 1
    assert mirror.follows


def test_an_average_needs_no_proof():
    """MoCo's key encoder: of a Sequential whose parts are held elsewhere."""
    backbone, neck = part(), nn.Linear(4, 4)
    query = nn.Sequential(backbone, neck)
    model = Model(
        backbone=backbone,
        neck=neck,
        encoder_q=query,
        encoder_k=ExponentialMovingAverage(query, momentum=.01))
    assert names(model) == [('encoder_k.module', ['encoder_q'], True)]
    mirror, = find_mirrors(model)
    assert mirror.follows
    assert all(
        source in set(backbone.modules()) for _, source, _ in mirror.pairs())
    # mmpretrain's MoCo does not keep the Sequential.
    del model.encoder_q
    assert names(model) == [('encoder_k.module.0', ['backbone'], True)]


def test_widths_that_are_not_known_yet():
    """On one side or on both."""
    student = nn.Sequential(nn.Conv2d(3, 4, 1), PWLU())
    model = Model(student=student, teacher=frozen(copy.deepcopy(student)))
    assert names(model) == [('teacher', ['student'], False)]
    student(torch.rand(1, 3, 2, 2))
    assert names(model) == [('teacher', ['student'], False)]


@pytest.mark.parametrize(
    'other', (frozen(part(8)), part(), frozen(
        nn.Sequential(nn.Conv2d(3, 4, 1))), frozen(PWLU(4)), nn.Identity()),
    ids=('width', 'trained', 'no activation', 'alone', 'empty'))
def test_what_is_no_copy(other):
    assert not names(Model(a=part(), b=other))


def test_frozen_stages_have_no_source_of_another_width():
    backbone = nn.Sequential(part(4), part(8))
    frozen(backbone[0])
    assert not names(Model(backbone=backbone))


def test_two_that_it_may_be_a_copy_of():
    model = Model(a=part(), b=part(), teacher=frozen(part()))
    assert names(model) == [('teacher', ['a', 'b'], False)]


def test_an_average_of_what_is_not_there():
    other = Model(inner=part(8))
    model = Model(a=part(), ema=ExponentialMovingAverage(other))
    assert names(model) == [('ema.module', [], True)]


def test_moco_of_mmpretrain():
    pytest.importorskip('mmpretrain.models')
    swapped = dict(
        type='SwapActivations',
        backbone='mmpretrain.ResNet',
        depth=18,
        swap=dict(act_cfg=dict(type='PWLU')))
    neck = dict(
        type='mmpretrain.MoCoV2Neck',
        in_channels=512,
        hid_channels=8,
        out_channels=8)
    for model, copied in ((dict(
            type='mmpretrain.MoCo',
            neck=neck,
            head=dict(
                type='mmpretrain.ContrastiveHead',
                loss=dict(type='mmpretrain.CrossEntropyLoss')),
            queue_len=16,
            feat_dim=8), 'encoder_k'), (dict(
                type='mmpretrain.BYOL',
                neck=dict(
                    type='mmpretrain.NonLinearNeck',
                    in_channels=512,
                    hid_channels=8,
                    out_channels=8),
                head=dict(
                    type='mmpretrain.LatentPredictHead',
                    loss=dict(type='mmpretrain.CosineSimilarityLoss'),
                    predictor=dict(
                        type='mmpretrain.NonLinearNeck',
                        in_channels=8,
                        hid_channels=8,
                        out_channels=8))), 'target_net')):
        model = MODELS.build(dict(model, backbone=swapped))
        mirror, = find_mirrors(model)
        assert mirror.name == f'{copied}.module.0'
        assert mirror.sources == ['backbone']
        assert mirror.follows and len(list(mirror.pairs())) == 17


def test_soft_teacher_of_mmdet():
    pytest.importorskip('mmdet.models')
    cfg = load_config('mmdet::soft_teacher/soft-teacher_faster-rcnn_r50-'
                      'caffe_fpn_180k_semi-0.1-coco.py')
    cfg.model.detector.backbone.update(depth=18, init_cfg=None)
    cfg.model.detector.neck.in_channels = [64, 128, 256, 512]
    use_activation(cfg, 'PWLU')
    init_default_scope('mmdet')
    model = MODELS.build(cfg.model)
    mirror, = find_mirrors(model)
    assert (mirror.name, mirror.sources) == ('teacher', ['student'])
    hook = HOOKS.build(dict(type='mmdet.MeanTeacherHook'))
    assert not mirror.follows
    hook.momentum_update(model, hook.momentum)
    assert mirror.follows
