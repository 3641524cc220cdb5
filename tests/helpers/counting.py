"""Counting as the ACON paper does."""
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from mm_acon.activations.base import InnerConv

# What the papers' networks have, BatchNorm's parameters left out, by the name
# of their config or of the network that it changes. The papers print the same,
# rounded; tools/analysis/complexity.py says where they do not.
PARAMETERS = {
    'mobilenetv1_0.25_metaacon': 560_792,
    'mobilenetv1_0.75_metaacon': 3_078_232,
    'mobilenetv2_0.17_metaacon': 1_753_704,
    'mobilenetv2_1.0_metaacon': 4_874_264,
    'shufflenetv2_0.5x_acon': 1_358_840 + 3 * 2944,
    'shufflenetv2_0.5x_metaacon': 1_667_900,
    'shufflenetv2_1.5x_acon': 3_484_280 + 3 * 8000,
    'shufflenetv2_1.5x_metaacon': 3_901_294,
    'resnet18_acon': 11_691_432,
    'resnet18_metaacon': 11_880_168,
    'resnet50_acon': 25_515_240,
    'resnet50_metaacon': 25_685_528,
    'resnet50_swish': 25_503_912,
    'resnet101_acon': 44_468_200,
    'resnet101_metaacon': 44_778_024,
    'resnet152_acon': 60_077_288,
    'resnet152_metaacon': 60_510_264,
    'senet154_acon': 115_201_240,
    'tfnet_0.5': 1_321_224,
    'tfnet_1.0': 1_884_968,
    'tfnet_1.5': 2_725_448,
    'tfnet_2.0': 3_842_664,
    'resnet18_relu': 11_679_912,
    'resnet50_relu': 25_503_912,
    'resnet101_relu': 44_443_816,
    'resnet152_relu': 60_041_384,
    'mobilenetv1_0.25_relu': 464_600,
    'mobilenetv1_0.75_relu': 2_569_144,
    'mobilenetv2_1.0_metaacon_r8': 6_185_608,
}
# Multiply-adds at 224 pixels.
MACS = {
    'resnet50_relu': 3_857_973_248,
    'mobilenetv1_0.25_relu': 41_030_272,
    'mobilenetv1_0.75_relu': 325_400_448,
    'senet154_relu': 20_688_363_520,
    'tfnet_0.5': 42_450_560,
    'tfnet_1.0': 134_805_760,
    'tfnet_1.5': 278_541_184,
    'tfnet_2.0': 473_656_832,
}


def count(backbone, **kwargs):
    """Parameters but BatchNorm's, and multiply-adds at 224 pixels.

    With a fully connected layer to 1000 classes behind. Of the backbone on
    the meta device, which is enough to count.
    """
    macs = []

    def add(module, args, result):
        macs.append(result.numel() * module.weight[0].numel())

    with torch.device('meta'):
        model = backbone(**kwargs).eval()
        for module in model.modules():
            if isinstance(module, (nn.Conv2d, InnerConv)):
                module.register_forward_hook(add)
        x, = model(torch.empty(1, 3, 224, 224))
        classifier = nn.Linear(x.shape[1], 1000)
        classifier.register_forward_hook(add)
        classifier(x.mean((2, 3)))
    parameters = sum(parameter.numel()
                     for module in (*model.modules(), classifier)
                     if not isinstance(module, _BatchNorm)
                     for parameter in module.parameters(recurse=False))
    return parameters, sum(macs)
