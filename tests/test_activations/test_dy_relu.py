"""DyReLU, which is MMDetection's under a name."""
import sys

import pytest
import torch
from mmengine.registry import MODELS

from mm_acon import swap_activations


def test_is_mmdetections():
    layers = pytest.importorskip('mmdet.models.layers')
    torch.manual_seed(0)
    activation = MODELS.build(dict(type='DyReLU', num_channels=8, ratio=2))
    assert type(activation) is layers.DyReLU
    x = torch.randn(2, 8, 5, 5)
    hidden = activation.conv1(x.mean((2, 3), keepdim=True))
    a1, b1, a2, b2 = (activation.conv2(hidden) - 0.5).split(8, 1)
    expected = torch.maximum((2 * a1 + 1) * x + b1, 2 * a2 * x + b2)
    torch.testing.assert_close(activation(x), expected)


def test_swap_tells_it_the_width():
    pytest.importorskip('mmdet')
    pytest.importorskip('mmpretrain')
    model = MODELS.build(dict(type='mmpretrain.ResNet', depth=18))
    report = swap_activations(model, dict(type='DyReLU'), include=r'\.conv2$')
    assert [row.new for row in report.replaced] == ['DyReLU'] * 8
    model(torch.randn(2, 3, 64, 64))[0].sum().backward()


def test_without_mmdetection(monkeypatch):
    monkeypatch.setitem(sys.modules, 'mmdet.models.layers', None)
    with pytest.raises(ImportError) as error:
        MODELS.build(dict(type='DyReLU', num_channels=8))
    assert 'DyReLU is the one of MMDetection' in str(error.value)
    assert 'install mmdet' in str(error.value)
