"""Backbones, toys and comparisons that the tests of the swap share."""
import copy

import pytest
import torch
from mmengine.registry import MODELS
from torch import nn

from mm_acon import PWLU, swap_activations

for library in ('mmdet', 'mmseg', 'mmpretrain'):
    pytest.importorskip(f'{library}.models')

_WIDTHS = (18, 36, 72, 144)
HRNET_W18 = dict(
    stage1=dict(
        num_modules=1,
        num_branches=1,
        block='BOTTLENECK',
        num_blocks=(4, ),
        num_channels=(64, )),
    **{
        f'stage{n}':
        dict(
            num_modules=1,
            num_branches=n,
            block='BASIC',
            num_blocks=(4, ) * n,
            num_channels=_WIDTHS[:n])
        for n in (2, 3, 4)
    })

# Name: config, activation modules, sites, and the modules that have to be
# made ReLU first, so that a PWLU can stand for them.
BACKBONES = {
    'ResNet-18': (dict(type='mmdet.ResNet', depth=18), 9, 17, {}),
    'ResNet-50': (dict(type='mmdet.ResNet', depth=50), 17, 49, {}),
    'ResNet-50 with_cp': (dict(type='mmdet.ResNet', depth=50,
                               with_cp=True), 17, 49, {}),
    'ResNeXt-50': (dict(type='mmdet.ResNeXt', depth=50), 17, 49, {}),
    'Res2Net-50': (dict(type='mmdet.Res2Net', depth=50), 19, 83, {}),
    'RegNetX-800MF': (dict(type='mmdet.RegNet',
                           arch='regnetx_800mf'), 17, 49, {}),
    'HRNet-W18': (dict(type='mmdet.HRNet', extra=HRNET_W18), 53, 104, {}),
    'ResNeSt-50': (dict(type='mmdet.ResNeSt', depth=50), 35, 67, {}),
    'MobileNetV2': (dict(type='mmdet.MobileNetV2'), 35, 35, {
        'ReLU6': 35
    }),
    'CSPDarknet': (dict(type='mmdet.CSPDarknet'), 67, 67, {
        'Swish': 67
    }),
    'ResNetV1c-50': (dict(type='mmseg.ResNetV1c', depth=50), 19, 51, {}),
    'MobileNetV3-small': (dict(type='mmseg.MobileNetV3',
                               arch='small'), 41, 41, {
                                   'Hardswish': 18
                               }),
    'mmpretrain ResNet-50': (dict(type='mmpretrain.ResNet',
                                  depth=50), 17, 49, {}),
    'SEResNet-50': (dict(type='mmpretrain.SEResNet', depth=50), 49, 81, {}),
    'ShuffleNetV2': (dict(type='mmpretrain.ShuffleNetV2'), 37, 37, {}),
    'DenseNet-121': (dict(type='mmpretrain.DenseNet',
                          arch='121'), 62, 121, {}),
    'DenseNet-121 memory_efficient':
    (dict(type='mmpretrain.DenseNet', arch='121',
          memory_efficient=True), 62, 121, {}),
    'VGG-16': (dict(type='mmpretrain.VGG', depth=16), 13, 13, {}),
    'EfficientNet-B0': (dict(type='mmpretrain.EfficientNet',
                             arch='b0'), 65, 65, {
                                 'Swish': 49
                             }),
}


def build(config, seed=0):
    """A module of that config, in training mode, always the same one."""
    torch.manual_seed(seed)
    return MODELS.build(copy.deepcopy(config))


def images(batch=2, size=64, channels=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, channels, size, size, generator=generator)


def tensors(value):
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, dict):
        value = value.values()
    return [tensor for item in value for tensor in tensors(item)]


def run(model, x, seed=0):
    """Outputs, as a flat list, with the same dropout each time."""
    torch.manual_seed(seed)
    return tensors(model(x))


def loss_of(outputs):
    """A number to which every output element counts differently."""
    generator = torch.Generator().manual_seed(1)
    return sum(
        (y * torch.randn(y.shape, generator=generator)).sum() for y in outputs)


def gradients(model, names):
    parameters = dict(model.named_parameters())
    return {name: parameters[name].grad for name in names}


def outputs_and_gradients(model, x, names=None, backwards=1):
    """Of one forward and as many backward passes over its graph."""
    model.zero_grad()
    outputs = run(model, x)
    loss = loss_of(outputs)
    for i in range(backwards, 0, -1):
        loss.backward(retain_graph=i > 1)
    if names is None:
        names = dict(model.named_parameters())
    return outputs, gradients(model, names)


def assert_same(result, expected):
    """Two results of :func:`outputs_and_gradients`, bit by bit."""
    (outputs, grads), (expected_outputs, expected_grads) = result, expected
    assert len(outputs) == len(expected_outputs)
    for i, (y, wanted) in enumerate(zip(outputs, expected_outputs)):
        assert torch.equal(y, wanted), f'output {i}'
    assert grads.keys() == expected_grads.keys()
    different = [
        name for name, wanted in expected_grads.items() if not (
            grads[name] is wanted is None or torch.equal(grads[name], wanted))
    ]
    assert not different


def with_activations(model, types, make):
    """Puts another activation for every module of these types."""
    for parent in list(model.modules()):
        for name, child in parent._modules.items():
            if type(child).__name__ in types:
                parent._modules[name] = make()
    return model


def relu_backbone(name):
    """A backbone of the table, its Swish or ReLU6 made ReLU."""
    config, _, _, others = BACKBONES[name]
    return with_activations(build(config), others, nn.ReLU)


class RightReLU(nn.Module):
    """ReLU with gradient 1 at 0, where nn.ReLU has 0."""

    def forward(self, x):
        return torch.where(x >= 0, x, torch.zeros_like(x))


def pwlu_in_phase1(model):
    """Every ReLU as a PWLU of Phase I, which is ReLU bit by bit."""
    report = swap_activations(model, dict(type='PWLU'), tiny_maps=True)
    for module in model.modules():
        if isinstance(module, PWLU):
            module.start_phase1()
    return report


class Block(nn.Module):
    """One ReLU for two widths, as in a bottleneck."""

    def __init__(self, channels=4, inplace=False):
        super().__init__()
        self.conv1 = nn.Conv2d(3, channels, 3, padding=1)
        self.norm1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, 2 * channels, 3, padding=1)
        self.relu = nn.ReLU(inplace)

    def forward(self, x):
        x = self.relu(self.norm1(self.conv1(x)))
        return self.relu(self.conv2(x))


# Bottlenecks with shared ReLUs, small enough to be trained in a test.
SMALL = dict(
    type='mmdet.ResNet',
    depth=50,
    base_channels=8,
    num_stages=2,
    strides=(1, 2),
    dilations=(1, 1),
    out_indices=(0, 1))


def small(act_cfg=None, swap=None, **kwargs):
    """A small backbone, swapped if an activation is given."""
    config = dict(SMALL, **kwargs)
    if act_cfg:
        config['backbone'] = config.pop('type')
        config.update(
            type='SwapActivations', swap=dict(act_cfg=act_cfg, **swap or {}))
    return build(config)
