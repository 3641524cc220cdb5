import pytest
import torch
from mmengine.config import ConfigDict
from mmengine.optim import build_optim_wrapper
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
            **({} if paramwise_cfg is None else
               dict(paramwise_cfg=paramwise_cfg))))
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
    assert set(settings()) == {name for name, _ in
                               Model().named_parameters()}


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
