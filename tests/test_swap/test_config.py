import pytest

from mm_acon import (ActivationOptimWrapperConstructor, PWLURealignHook,
                     SwapActivations)
from mm_acon.swap.config import find_backbones, type_name, use_activation
from tests.helpers.configs import config
from tests.helpers.toy import ToyModel


def test_use_activation_wraps_the_backbone_as_it_is():
    cfg = config()
    use_activation(cfg, 'MetaACON', r'\.conv2$')
    backbone = cfg.model.backbone
    assert backbone.type == 'SwapActivations'
    assert backbone.backbone == dict(
        type='ResNet', depth=50, act_cfg=dict(type='A'))
    assert backbone.swap == dict(
        act_cfg=dict(type='MetaACON'), include=r'\.conv2$')
    assert cfg.model.neck == dict(type='FPN')
    assert cfg.optim_wrapper.constructor == 'ActivationOptimWrapperConstructor'
    assert 'custom_hooks' not in cfg


def test_use_activation_wraps_the_users_constructor_and_keeps_hooks():
    cfg = config(
        optim_wrapper=dict(constructor='Mine'),
        custom_hooks=[dict(type='EMAHook')])
    use_activation(cfg, 'PWLU')
    assert cfg.optim_wrapper == dict(
        constructor='ActivationOptimWrapperConstructor',
        base_constructor='Mine')
    assert [hook.type
            for hook in cfg.custom_hooks] == ['EMAHook', 'PWLURealignHook']


@pytest.mark.parametrize('train_cfg, phase1', (
    (dict(max_epochs=12), dict(phase1_epochs=1)),
    (dict(max_epochs=36), dict(phase1_epochs=2)),
    (dict(max_epochs=100), dict(phase1_epochs=5)),
    (dict(max_epochs=300), dict(phase1_epochs=5)),
    (dict(max_iters=80000), dict(phase1_iters=4000)),
))
def test_length_of_phase1(train_cfg, phase1):
    cfg = config(train_cfg=train_cfg)
    use_activation(cfg, 'PWLU')
    assert cfg.custom_hooks[-1] == dict(type='PWLURealignHook', **phase1)


def test_a_hook_of_the_users_own_stays():
    cfg = config(custom_hooks=[dict(type='PWLURealignHook', phase1_iters=7)])
    use_activation(cfg, 'PWLU')
    assert len(cfg.custom_hooks) == 1


@pytest.mark.parametrize(
    'ours',
    ('ActivationOptimWrapperConstructor', ActivationOptimWrapperConstructor))
def test_a_constructor_that_is_ours_is_not_wrapped_again(ours):
    given = dict(constructor=ours, base_constructor='Mine')
    cfg = config(optim_wrapper=dict(given))
    use_activation(cfg, 'PWLU')
    assert cfg.optim_wrapper == given


def test_use_activation_finds_nested_backbones():
    cfg = config(
        model=dict(
            type='SoftTeacher',
            detector=dict(type='FasterRCNN', backbone=dict(type='ResNet'))))
    use_activation(cfg, 'PWLU')
    assert cfg.model.detector.backbone.backbone.type == 'ResNet'


def test_use_activation_without_a_backbone():
    with pytest.raises(ValueError, match='needs a model with a backbone'):
        use_activation(config(model=dict(type='GAN')), 'PWLU')


def test_use_activation_twice():
    cfg = config()
    use_activation(cfg, 'PWLU')
    with pytest.raises(
            ValueError, match='model.backbone.swap.act_cfg.type=PWLU inst'):
        use_activation(cfg, 'PWLU')


def test_all_backbones_under_keys_that_end_so():
    cfg = config(
        model=dict(
            type='DetectoRS',
            backbone=dict(type='ResNet', depth=18),
            neck=dict(type='RFP', rfp_backbone=dict(type='Inner', depth=34)),
            parts=[dict(pts_backbone=dict(type='SECOND'))],
            teacher_backbone=dict(type='ResNet', depth=101),
            text_backbone=dict(type='BERT')))
    use_activation(cfg, 'PWLU')
    assert [(place.path, place.type, type_name(place.config))
            for place in find_backbones(cfg.model)] == [
                ('model.backbone', 'ResNet', 'SwapActivations'),
                ('model.neck.rfp_backbone', 'Inner', 'SwapActivations'),
                ('model.parts.0.pts_backbone', 'SECOND', 'SwapActivations'),
                # They are not trained, or read no images.
                ('model.teacher_backbone', 'ResNet', 'ResNet'),
                ('model.text_backbone', 'BERT', 'BERT'),
            ]
    assert cfg.model.neck.rfp_backbone.backbone.depth == 34


def test_error_names_the_key_of_the_backbone():
    cfg = config(
        model=dict(
            type='A',
            neck=dict(
                rfp_backbone=dict(
                    type='SwapActivations', backbone='ResNet', swap=dict()))))
    with pytest.raises(
            ValueError,
            match='--cfg-options model.neck.rfp_backbone.swap.act_cfg.type='):
        use_activation(cfg, 'PWLU')


def test_patterns_and_types_go_into_the_swap():
    cfg = config()
    use_activation(
        cfg, 'ACONC', include='conv', exclude='conv1', replace=['SiLU'])
    assert cfg.model.backbone.swap == dict(
        act_cfg=dict(type='ACONC'),
        include='conv',
        exclude='conv1',
        replace=['SiLU'])


def test_types_may_be_classes():
    """As in pure-Python configs."""
    cfg = config(
        model=dict(
            type=ToyModel, backbone=dict(type=SwapActivations, backbone=4)),
        custom_hooks=[dict(type=PWLURealignHook, phase1_iters=3)])
    assert type_name(cfg.model.backbone) == 'SwapActivations'
    with pytest.raises(ValueError, match='is SwapActivations already'):
        use_activation(cfg, 'PWLU')
    cfg.model.backbone = dict(type=ToyModel)
    use_activation(cfg, 'PWLU')
    assert cfg.model.backbone.backbone.type is ToyModel
    # Never two.
    assert cfg.custom_hooks == [dict(type=PWLURealignHook, phase1_iters=3)]


@pytest.mark.parametrize('nested', [True, False])
def test_arguments_of_a_backbone_inside_its_swap(nested):
    backbone = dict(type='SwapActivations', swap=dict())
    if nested:
        backbone['backbone'] = dict(type='ResNet', depth=18)
    else:
        backbone.update(backbone='ResNet', depth=18)
    place, = find_backbones(dict(backbone=backbone))
    assert place.type == 'ResNet' and place.arguments['depth'] == 18


@pytest.mark.parametrize('missing',
                         (dict(optim_wrapper=None), dict(train_cfg=None)))
def test_config_that_only_tests(missing):
    """As those of trackers."""
    cfg = config(**missing)
    use_activation(cfg, 'PWLU')
    assert cfg.model.backbone.type == 'SwapActivations'


def test_other_parts_are_swapped_in_the_model():
    """Whose keys stay where they are."""
    cfg = config()
    cfg.model.type = 'RetinaNet'
    use_activation(cfg, 'PWLU', r'conv2$', parts=['backbone', 'neck'])
    assert cfg.model == dict(
        type='SwapActivations',
        model='RetinaNet',
        swap=dict(
            act_cfg=dict(type='PWLU'),
            include=r'conv2$',
            parts=['neck', 'backbone']),
        backbone=dict(type='ResNet', depth=50, act_cfg=dict(type='A')),
        neck=dict(type='FPN'))
    assert cfg.custom_hooks[-1].type == 'PWLURealignHook'
    with pytest.raises(
            ValueError,
            match='whose model is SwapActivations already; write '
            '--cfg-options model.swap.act_cfg.type=PWLU'):
        use_activation(cfg, 'PWLU')


def test_all_backbones_are_backbone():
    cfg = config()
    cfg.model.neck.rfp_backbone = dict(type='Inner')
    cfg.model.teacher_backbone = dict(type='Other')
    use_activation(cfg, 'PWLU', parts=['backbone', 'neck'])
    assert cfg.model.swap.parts == ['neck', 'backbone', 'rfp_backbone']


def test_a_part_of_a_part():
    cfg = config()
    cfg.model.roi_head = dict(type='Head', bbox_head=dict(type='Box'))
    use_activation(cfg, 'PWLU', parts=['roi_head.bbox_head'])
    assert cfg.model.swap.parts == ['roi_head.bbox_head']


def test_a_part_that_is_not_there():
    with pytest.raises(
            ValueError,
            match="--act-parts head: the model in .* has no 'head'; it has "
            r"\['backbone', 'neck'"):
        use_activation(config(), 'PWLU', parts=['neck', 'head'])
