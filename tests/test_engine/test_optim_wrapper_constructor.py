import pytest
import torch
from mmengine.config import ConfigDict
from mmengine.optim import (DefaultOptimWrapperConstructor, OptimWrapper,
                            OptimWrapperDict, build_optim_wrapper)
from mmengine.registry import (MODELS, OPTIM_WRAPPER_CONSTRUCTORS,
                               OPTIM_WRAPPERS, OPTIMIZERS)
from torch import nn

import mm_acon


class Model(nn.Module):

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)
        self.bn = nn.BatchNorm2d(8)
        self.meta = mm_acon.MetaACON(8)
        self.pwlu = mm_acon.PWLU(8)


def settings(paramwise_cfg=None, weight_decay=0.1, **optimizer):
    """(lr, weight decay) of every parameter, by name."""
    model = Model()
    config = dict(type='SGD', lr=1., **optimizer)
    if weight_decay is not None:
        config['weight_decay'] = weight_decay
    wrapper = build_optim_wrapper(
        model,
        dict(
            type='OptimWrapper',
            constructor='ActivationOptimWrapperConstructor',
            optimizer=config,
            **({} if paramwise_cfg is None else dict(
                paramwise_cfg=paramwise_cfg))))
    names = {parameter: name for name, parameter in model.named_parameters()}
    return {
        names[parameter]: (group['lr'], group['weight_decay'])
        for group in wrapper.optimizer.param_groups
        for parameter in group['params']
    }


def test_no_decay_on_activation_parameters():
    found = settings()
    own = ('meta.p1', 'meta.p2', 'pwlu.points', 'pwlu.left_bound',
           'pwlu.right_bound', 'pwlu.left_slope', 'pwlu.right_slope')
    for name in own:
        assert found.pop(name) == (1., 0.), name
    # G's convolutions are convolutions like any other.
    assert 'meta.fc1.weight' in found
    assert set(found.values()) == {(1., 0.1)}


def test_every_parameter_is_there():
    assert set(settings()) == {name for name, _ in Model().named_parameters()}


def test_groups_are_plain_dicts():
    """torch.compile of train_step cannot trace a ConfigDict."""
    wrapper = build_optim_wrapper(
        Model(),
        ConfigDict(
            constructor='ActivationOptimWrapperConstructor',
            optimizer=dict(type='SGD', lr=1.)))
    assert {type(group) for group in wrapper.optimizer.param_groups} == {dict}


def test_multipliers():
    found = settings(dict(act_lr_mult=0.5, act_decay_mult=2.))
    assert found['pwlu.points'] == (0.5, 0.2)
    assert found['conv.weight'] == (1., 0.1)


def test_users_paramwise_cfg_stays():
    found = settings(
        dict(
            norm_decay_mult=0.,
            bias_lr_mult=2.,
            custom_keys={
                'pwlu.points': dict(lr_mult=0.1, decay_mult=1.),
                'conv': dict(lr_mult=3.)
            }))
    assert found['bn.weight'] == (1., 0.)
    assert found['meta.fc1.bias'] == (2., 0.1)
    assert found['conv.weight'] == (3., 0.1)
    assert found['pwlu.points'] == (pytest.approx(0.1), 0.1)
    assert found['pwlu.left_slope'] == (1., 0.)


def test_without_weight_decay():
    assert settings(weight_decay=None)['pwlu.points'] == (1., 0)


def test_one_step_moves_only_what_it_should():
    """Gradient zero: weight decay moves convolutions, not activations."""
    model = Model()
    wrapper = build_optim_wrapper(
        model,
        dict(
            constructor='ActivationOptimWrapperConstructor',
            optimizer=dict(type='SGD', lr=0.1, weight_decay=0.1)))
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    wrapper.optimizer.step()
    assert torch.equal(model.pwlu.points, before['pwlu.points'])
    assert torch.equal(model.meta.p1, before['meta.p1'])
    assert not torch.equal(model.conv.weight, before['conv.weight'])


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class ThreeGroups:
    """As those of YOLOv5 and YOLOv7: by attribute name, biases last."""

    def __init__(self, optim_wrapper_cfg, paramwise_cfg=None):
        assert paramwise_cfg is None or 'base_total_batch_size' in (
            paramwise_cfg)
        self.optim_wrapper_cfg = optim_wrapper_cfg
        self.optimizer_cfg = self.optim_wrapper_cfg.pop('optimizer')

    def __call__(self, model):
        cfg = self.optimizer_cfg.copy()
        decay = cfg.pop('weight_decay', 0)
        weights, norms, biases = [], [], []
        for module in model.modules():
            if isinstance(getattr(module, 'bias', None), nn.Parameter):
                biases.append(module.bias)
            if isinstance(module, nn.BatchNorm2d):
                norms.append(module.weight)
            elif isinstance(getattr(module, 'weight', None), nn.Parameter):
                weights.append(module.weight)
        cfg['params'] = [
            dict(params=weights, weight_decay=decay),
            dict(params=norms),
            dict(params=biases)
        ]
        return OPTIM_WRAPPERS.build(
            dict(self.optim_wrapper_cfg, type='OptimWrapper'),
            default_args=dict(optimizer=OPTIMIZERS.build(cfg)))


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class KnownTypes(DefaultOptimWrapperConstructor):
    """As that of TSM: stops at a module whose type it does not know."""

    def add_params(self, params, module, **kwargs):
        for child in module.modules():
            own = list(child.parameters(recurse=False))
            if isinstance(child, nn.BatchNorm2d):
                params.append(dict(params=own, weight_decay=0.))
            elif isinstance(child, nn.Conv2d):
                params.append(dict(params=own[:1], lr=self.base_lr))
                params.append(dict(params=own[1:], lr=2 * self.base_lr))
            elif own and not child._modules:
                raise ValueError(f'New atomic module type: {type(child)}')


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class TwoOptimizers:
    """One for each part, by attribute name."""

    def __init__(self, optim_wrapper_cfg, paramwise_cfg=None):
        self.cfgs = optim_wrapper_cfg

    def __call__(self, model):
        wrappers = {}
        for name, cfg in self.cfgs.items():
            params = [
                module.weight for module in getattr(model, name).modules()
                if hasattr(module, 'weight')
            ]
            wrappers[name] = OptimWrapper(torch.optim.SGD(params, **cfg))
        return OptimWrapperDict(**wrappers)


def wrapped(base, paramwise_cfg=None, model=None, **optimizer):
    model = model or Model()
    cfg = dict(
        constructor='ActivationOptimWrapperConstructor',
        base_constructor=base,
        optimizer=dict(dict(type='SGD', lr=1., weight_decay=.1), **optimizer))
    if paramwise_cfg is not None:
        cfg['paramwise_cfg'] = paramwise_cfg
    return model, build_optim_wrapper(model, ConfigDict(cfg))


def by_name(model, *wrappers):
    names = {parameter: name for name, parameter in model.named_parameters()}
    found = {}
    for wrapper in wrappers:
        for group in wrapper.optimizer.param_groups:
            assert type(group) is dict
            for parameter in group['params']:
                assert names[parameter] not in found
                found[names[parameter]] = (group['lr'], group['weight_decay'])
    return found


OWN = ('meta.p1', 'meta.p2', 'pwlu.points', 'pwlu.left_bound',
       'pwlu.right_bound', 'pwlu.left_slope', 'pwlu.right_slope')


def test_what_is_collected_by_attribute_name_is_completed():
    """The three groups stay, with what was in them."""
    model, wrapper = wrapped('ThreeGroups')
    found = by_name(model, wrapper)
    assert found.keys() == {name for name, _ in model.named_parameters()}
    assert [found.pop(name) for name in OWN] == [(1., 0.)] * 7
    assert found.pop('meta.fc1.weight') == found['conv.weight'] == (1., .1)
    groups = wrapper.optimizer.param_groups
    assert set(groups[2]['params']) >= {model.conv.bias, model.bn.bias}
    assert set(groups[1]['params']) == {model.bn.weight}


def test_its_own_options_are_passed_on():
    """And none where only ours are given: it would refuse them."""
    wrapped('ThreeGroups', dict(base_total_batch_size=64))
    model, wrapper = wrapped('ThreeGroups',
                             dict(act_lr_mult=.5, act_decay_mult=2.))
    found = by_name(model, wrapper)
    assert found['pwlu.points'] == (.5, .2)
    assert found['meta.fc1.weight'] == (1., .1)
    model, wrapper = wrapped(
        'ThreeGroups',
        dict(
            base_total_batch_size=64,
            norm_decay_mult=0.,
            custom_keys={'pwlu.points': dict(lr_mult=.1, decay_mult=3.)}))
    found = by_name(model, wrapper)
    assert found['pwlu.points'] == (pytest.approx(.1), pytest.approx(.3))
    assert found['pwlu.left_slope'] == (1., 0.)


def test_one_that_refuses_unknown_modules():
    model = Model()
    model.frelu = mm_acon.FReLU(8)
    with pytest.raises(ValueError, match='New atomic module type'):
        build_optim_wrapper(
            model,
            dict(
                constructor='KnownTypes',
                optimizer=dict(type='SGD', lr=1.),
                paramwise_cfg=dict(any=1)))
    before = dict(model.named_parameters())
    _, wrapper = wrapped('KnownTypes', dict(norm_decay_mult=0.), model=model)
    found = by_name(model, wrapper)
    assert found.keys() == before.keys()
    assert all(before[name] is p for name, p in model.named_parameters())
    assert found['conv.bias'] == (2., .1)
    assert found['pwlu.points'] == found['meta.p1'] == (1., 0.)
    assert found['meta.fc1.weight'] == found['frelu.conv.weight'] == (1., .1)
    assert found['frelu.norm.weight'] == (1., 0.)


def test_one_that_fails_for_another_reason():
    """Its own error is what is seen, and the model is whole."""
    model = Model()
    model.linear = nn.Linear(2, 2)
    with pytest.raises(ValueError, match='New atomic module type'):
        wrapped('KnownTypes', dict(any=1), model=model)
    assert len(list(model.pwlu.parameters())) == 5


def test_several_optimizers():
    """Each activation goes to the optimizer of what is around it."""
    model = nn.ModuleDict(
        dict(
            generator=nn.Sequential(nn.Conv2d(3, 8, 1), mm_acon.PWLU(8)),
            discriminator=nn.Sequential(nn.Conv2d(3, 8, 1), mm_acon.ACONC(8))))
    model.generator, model.discriminator = model['generator'], model[
        'discriminator']

    def build():
        return build_optim_wrapper(
            model,
            dict(
                constructor='ActivationOptimWrapperConstructor',
                base_constructor='TwoOptimizers',
                generator=dict(lr=1., weight_decay=.1),
                discriminator=dict(lr=2., weight_decay=.2)))

    wrapper = build()
    found = by_name(model, *wrapper.values())
    assert found['generator.1.points'] == (1., 0.)
    assert found['discriminator.1.beta'] == (2., 0.)
    assert found['discriminator.0.weight'] == (2., .2)
    model['loose'] = mm_acon.ACONC(8)
    with pytest.raises(
            ValueError, match="'loose' are in none of the 2 optimizers"):
        build()


def test_frozen_activations_are_not_added():
    model = Model()
    model.pwlu.requires_grad_(False)
    model, wrapper = wrapped('ThreeGroups', model=model)
    assert 'pwlu.points' not in by_name(model, wrapper)


def convnext(backbone):
    """A model whose backbone has PWLU in place of its GELUs."""
    model = nn.Module()
    model.backbone = MODELS.build(backbone)
    for module in list(model.backbone.modules()):
        if isinstance(getattr(module, 'act', None), nn.GELU):
            module.act = mm_acon.PWLU(granularity='layer')
    model.head = nn.Linear(768, 2)
    model.extra = mm_acon.PWLU(4)
    return model


TINY = dict(arch=dict(depths=[1, 1, 1, 1], channels=[8, 16, 32, 64]))
DECAY = dict(decay_rate=.5, num_layers=6)


@pytest.mark.parametrize('library, base, options', (
    ('mmdet', 'LearningRateDecayOptimizerConstructor',
     dict(DECAY, decay_type='stage_wise')),
    ('mmseg', 'LearningRateDecayOptimizerConstructor',
     dict(DECAY, decay_type='stage_wise')),
    ('mmseg', 'LayerDecayOptimizerConstructor',
     dict(layer_decay_rate=.5, num_layers=6)),
))
def test_layer_decay_keeps_its_scales(library, base, options):
    pytest.importorskip(f'{library}.engine')
    pytest.importorskip('mmpretrain.models')
    model = convnext(dict(type='mmpretrain.ConvNeXt', **TINY))
    plain = build_optim_wrapper(
        model,
        dict(
            constructor=f'{library}.{base}',
            paramwise_cfg=dict(options),
            optimizer=dict(type='AdamW', lr=1., weight_decay=.1)))
    before = by_name(model, plain)
    _, wrapper = wrapped(
        f'{library}.{base}', dict(options), model, type='AdamW')
    found = by_name(model, wrapper)
    acts = [name for name in found if '.act.' in name or 'extra' in name]
    assert len(acts) == 25
    assert len({found[name][0] for name in acts}) > 1
    points = [name for name in acts if name.endswith('points')]
    assert all(before[name][1] == .1 for name in points)
    for name in found:
        lr, decay = before[name]
        assert found[name] == (lr, 0. if name in acts else decay), name
    # What tells of the groups stays with them.
    for group in wrapper.optimizer.param_groups:
        assert len(group['param_names']) == len(group['params'])
        assert group['lr'] == group['lr_scale']
    names = [group['group_name'] for group in wrapper.optimizer.param_groups]
    assert len(set(names)) == len(names)


def test_layer_decay_of_mmpretrain():
    pytest.importorskip('mmpretrain.models')
    import mmpretrain.engine  # noqa: F401  (registers)

    model = MODELS.build(
        dict(
            type='mmpretrain.VisionTransformer',
            arch=dict(
                embed_dims=8,
                num_layers=2,
                num_heads=2,
                feedforward_channels=16),
            img_size=32,
            patch_size=16))
    for layer in model.layers:
        layer.ffn.layers[0][1] = mm_acon.PWLU(granularity='layer')
    options = dict(layer_decay_rate=.5)
    name = 'layers.{}.ffn.layers.0.1.points'
    before = by_name(
        model,
        build_optim_wrapper(
            model,
            dict(
                constructor='mmpretrain.'
                'LearningRateDecayOptimWrapperConstructor',
                paramwise_cfg=options,
                optimizer=dict(type='AdamW', lr=1., weight_decay=.1))))
    _, wrapper = wrapped(
        'mmpretrain.LearningRateDecayOptimWrapperConstructor',
        dict(options, act_lr_mult=2.),
        model,
        type='AdamW')
    found = by_name(model, wrapper)
    for layer in (0, 1):
        lr, decay = before[name.format(layer)]
        assert decay == .1
        assert found[name.format(layer)] == (2 * lr, 0.)
    assert found[name.format(0)] != found[name.format(1)]


def test_wrapped_optimizer_is_resumed():
    model, wrapper = wrapped('ThreeGroups', momentum=.9)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    wrapper.step()
    _, other = wrapped('ThreeGroups', momentum=.9)
    other.load_state_dict(wrapper.state_dict())
