"""Whole networks keep their function with PWLU in place of theirs."""
import copy
import importlib

import pytest
import torch
from mmcv.cnn import ConvModule
from torch import nn

from mm_acon import PWLU
from mm_acon.activations.base import activations_of

# Library, backbone, pixels; number of sites, the largest change of the
# output after the realignment, and at the fixed start.
NETWORKS = [
    ('mmdet',
     dict(
         type='CSPNeXt',
         deepen_factor=.167,
         widen_factor=.375,
         act_cfg=dict(type='SiLU')), 96, 33, .002, 1.),
    ('mmdet', dict(type='CSPDarknet', deepen_factor=.33,
                   widen_factor=.5), 96, 35, .002, 1.),
    ('mmpretrain', dict(type='MobileNetV3', arch='small'), 96, 18, .005, 9.),
    ('mmpretrain', dict(type='ConvNeXt', arch='atto'), 64, 12, .002, 1.),
    ('mmpretrain',
     dict(
         type='SwinTransformer', arch='tiny', img_size=64,
         pad_small_map=True), 64, 12, .002, 1.),
    ('mmpretrain', dict(type='MobileNetV2'), 96, 35, 1e-5, 1e-5),
    ('mmdet', dict(type='Darknet', depth=53), 96, 52, 1e-5, 1e-5),
]
SMOOTH_OR_CORNERED = ('SiLU', 'Swish', 'Hardswish', 'GELU', 'ReLU6',
                      'LeakyReLU')


def put_in_place(network):
    """PWLU behind every convolution and fully connected layer."""
    for owner in list(network.modules()):
        for name, old in list(owner.named_children()):
            if type(old).__name__ not in SMOOTH_OR_CORNERED:
                continue
            if isinstance(owner, ConvModule):
                width, axis = owner.conv.out_channels, 1
            else:
                layer = next(m for m in owner.children()
                             if isinstance(m, nn.Linear))
                width, axis = layer.out_features, -1
            setattr(owner, name, PWLU(width, channel_axis=axis, function=old))


def outputs(network, x):
    return torch.cat([y.flatten() for y in network(x)])


def step(network, x):
    """Of training, by one random state."""
    network = copy.deepcopy(network)
    network.train()
    torch.manual_seed(0)
    y = outputs(network, x)
    y.square().mean().backward()
    return y, dict(network.named_parameters())


@pytest.mark.parametrize('library, cfg, size, sites, bar, start', NETWORKS)
def test_kept(library, cfg, size, sites, bar, start):
    """Exactly in Phase I, and nearly after the realignment."""
    pytest.importorskip(library)
    torch.manual_seed(0)
    registry = importlib.import_module(f'{library}.registry')
    importlib.import_module(f'{library}.models')
    old = registry.MODELS.build(cfg)
    with torch.no_grad():
        old.train()
        for _ in range(3):
            x = torch.rand(4, 3, size, size)
            old(x)
        old.eval()
        true = outputs(old, x)
    new = copy.deepcopy(old)
    put_in_place(new)
    units = activations_of(new).values()
    assert len(units) == sites

    def change():
        with torch.no_grad():
            return (outputs(new, x) - true).norm() / true.norm()

    assert change() < start
    for unit in units:
        unit.start_phase1()
    y, parameters = step(new, x)
    true_y, true_parameters = step(old, x)
    assert torch.equal(y, true_y)
    for name, parameter in true_parameters.items():
        if parameter.grad is not None:
            assert torch.equal(parameters[name].grad, parameter.grad), name
    for unit in units:
        unit.train()
    assert change() == 0
    for unit in units:
        unit.eval()
        unit.realign()
    assert change() < bar
