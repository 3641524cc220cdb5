"""What the initialisation of a backbone leaves of its new activations."""
import copy
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.model import BaseModule
from mmengine.registry import MODELS, init_default_scope
from torch import nn

from mm_acon import LearnableActivation, swap_activations
from tests.helpers.backbones import BACKBONES, build, images
from tests.utils import unless_long

pytestmark = pytest.mark.usefixtures('unverified')

CONFIGS_OF_BACKBONES = {
    name: config
    for name, (config, *_) in BACKBONES.items()
    if not name.endswith(('with_cp', 'memory_efficient'))
}
CONFIGS_OF_BACKBONES['ShuffleNetV1'] = dict(type='mmpretrain.ShuffleNetV1')
CONFIGS = {
    path.stem: path
    for path in sorted((Path(__file__).parents[2] / 'configs').glob('*.py'))
}
ACT_CFGS = {
    'MetaACON': dict(type='MetaACON', norm_cfg=dict(type='BN')),
    'FReLU': dict(type='FReLU'),
}


def activations(model):
    return {
        f'{prefix}.{name}': value
        for prefix, module in model.named_modules()
        if isinstance(module, LearnableActivation)
        for name, value in module.state_dict().items()
    }


def assert_kept(model, before):
    after = activations(model)
    assert after.keys() == before.keys() and before
    for name, value in before.items():
        assert torch.equal(after[name], value), name


def swapped(name, act):
    model = build(CONFIGS_OF_BACKBONES[name])
    swap_activations(
        model,
        ACT_CFGS[act],
        replace=['ReLU', 'ReLU6', 'Swish', 'Hardswish', 'HSwish'])
    return model


@pytest.mark.parametrize('name', unless_long(CONFIGS_OF_BACKBONES))
def test_rules_and_loops_of_every_backbone(name):
    """ShuffleNetV1 goes on with a loop of its own, and a bias of 1e-4."""
    for act in ACT_CFGS:
        backbone = swapped(name, act)
        before = copy.deepcopy(activations(backbone))
        for _ in range(2):
            backbone.init_weights()
            assert_kept(backbone, before)


@pytest.mark.parametrize('name', unless_long(CONFIGS))
def test_every_config_that_ships(name):
    """Without the weights that it starts from, which would be loaded."""
    cfg = Config.fromfile(CONFIGS[name])
    cfg.model.backbone.pop('init_cfg', None)
    cfg.model.pop('pretrained', None)
    init_default_scope(cfg.default_scope)
    model = build(cfg.model)
    before = copy.deepcopy(activations(model))
    model.init_weights()
    if name.endswith(('relu', 'swish')):
        assert not before
    else:
        assert_kept(model, before)


def test_inside_a_model_and_a_copy_of_it():

    class Model(BaseModule):

        def __init__(self, backbone):
            super().__init__(dict(type='Normal', layer='Conv2d', std=.1))
            self.backbone = backbone

    backbone = swapped('ShuffleNetV1', 'MetaACON')
    before = copy.deepcopy(activations(backbone))
    for owner in (copy.deepcopy(backbone), Model(copy.deepcopy(backbone)),
                  copy.deepcopy(Model(backbone))):
        owner.init_weights()
        assert_kept(getattr(owner, 'backbone', owner), before)


@pytest.mark.parametrize('library', ('mmdet', 'mmpretrain'))
def test_an_act_cfg_without_width(library):
    """Its own init walks over convolutions that have no elements yet."""
    config = dict(
        type='mmpretrain.ShuffleNetV2', act_cfg=dict(type='MetaACON'))
    if library == 'mmdet':
        config = dict(type='mmdet.MobileNetV2', act_cfg=dict(type='MetaACON'))
    backbone = MODELS.build(config)
    backbone.init_weights()
    backbone(images(size=32))
    units = [
        m for m in backbone.modules() if isinstance(m, LearnableActivation)
    ]
    assert units and not any(unit.is_lazy for unit in units)
    for unit in units:
        # PyTorch's rule: uniform to 1 / sqrt(inputs), bias and weight.
        for layer in (unit.fc1, unit.fc2):
            bound = layer.weight[0].numel()**-.5
            assert layer.weight.abs().max() <= bound
            assert layer.weight.std() > .5 * bound / 3**.5
            assert layer.bias.any()


def test_a_module_without_init_weights():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU())
    swap_activations(model, dict(type='PWLU'))
    assert not hasattr(model, 'init_weights')
