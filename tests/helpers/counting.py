"""Counting as the ACON paper does."""
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


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
            if isinstance(module, nn.Conv2d):
                module.register_forward_hook(add)
        x, = model(torch.empty(1, 3, 224, 224))
        classifier = nn.Linear(x.shape[1], 1000)
        classifier.register_forward_hook(add)
        classifier(x.mean((2, 3)))
    parameters = sum(
        parameter.numel() for module in (*model.modules(), classifier)
        if not isinstance(module, _BatchNorm)
        for parameter in module.parameters(recurse=False))
    return parameters, sum(macs)
