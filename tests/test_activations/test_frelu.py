"""FReLU (arXiv 2007.11824) and ACON-FReLU (arXiv 2009.04759, Table 1)."""
import math

import pytest
import torch
from torch import nn

from mm_acon import ACONFReLU, FReLU

BOTH = pytest.mark.parametrize('kind', [FReLU, ACONFReLU])


def build(kind, kernel, num_channels=1, **kwargs):
    """Every channel with this 3x3 kernel and a norm that does nothing."""
    activation = kind(num_channels, **kwargs).double().eval()
    activation.norm.eps = 0.
    kernel = torch.tensor(kernel).double()
    activation.conv.weight.data = kernel.expand(num_channels, 1, 3, 3).clone()
    return activation


def maximum(kind, a, b):
    """The hard or the smooth maximum of two numbers."""
    if kind is FReLU:
        return max(a, b)
    return (a - b) / (1 + math.exp(b - a)) + b


ONES = [[1.] * 3] * 3
RIGHT = [[0., 0., 0.], [0., 0., 1.], [0., 0., 0.]]  # the right neighbour


@BOTH
def test_by_hand(kind):
    """x = 0..8 row by row; the condition is the sum over the 3x3 patch."""
    activation = build(kind, ONES)
    x = torch.arange(9.).double().view(1, 1, 3, 3) - 4
    # By hand: corner 0 sees -4, -3, -1, 0; edge 1 sees -4..-2, -1..1; ...
    sums = [-8., -9., -4., -3., 0., 3., 4., 9., 8.]
    expected = [maximum(kind, a, b) for a, b in zip(range(-4, 5), sums)]
    assert activation(x).flatten().tolist() == pytest.approx(expected)


@BOTH
def test_stride_2(kind):
    """The first line is then the 3x3 maximum of x."""
    activation = build(kind, RIGHT, stride=2)
    x = torch.tensor([[1., -2., 3., 0.], [0., 5., -1., 2.], [-4., 1., 0., 7.],
                      [2., -3., 6., 1.]]).double()
    # Patches around (0, 0), (0, 2), (2, 0), (2, 2), and what lies right of
    # those.
    largest, right = [5., 5., 5., 7.], [-2., 0., 1., 7.]
    expected = [maximum(kind, a, b) for a, b in zip(largest, right)]
    y = activation(x[None, None])
    assert y.shape == (1, 1, 2, 2)
    assert y.flatten().tolist() == pytest.approx(expected)


@BOTH
def test_norm_belongs_to_the_condition(kind):
    activation = build(kind, RIGHT)
    activation.norm.running_mean.fill_(2)
    activation.norm.running_var.fill_(4)
    activation.norm.weight.data.fill_(3)
    activation.norm.bias.data.fill_(-1)
    x = torch.tensor([[.5, 6.]]).double()
    # The neighbours are 6 and 0: (6 - 2) / 2 * 3 - 1 = 5, then -4.
    expected = [maximum(kind, .5, 5.), maximum(kind, 6., -4.)]
    assert activation(x[None,
                        None]).flatten().tolist() == pytest.approx(expected)


@BOTH
def test_channels_do_not_mix(kind):
    activation = build(kind, ONES, num_channels=3)
    assert activation.conv.weight.shape == (3, 1, 3, 3)
    x = torch.randn(2, 3, 4, 4).double()
    y = activation(x)
    x[:, 1] += 1
    changed = (activation(x) != y).flatten(2).any(2).any(0)
    assert changed.tolist() == [False, True, False]


@BOTH
@pytest.mark.parametrize('height, width', [(1, 1), (2, 2), (5, 6), (7, 7)])
def test_size_with_stride_2(kind, height, width):
    y = kind(4, stride=2)(torch.randn(2, 4, height, width))
    assert y.shape == (2, 4, -(-height // 2), -(-width // 2))


@BOTH
def test_norm_cfg(kind):
    activation = kind(4, norm_cfg=dict(type='GN', num_groups=2))
    assert isinstance(activation.norm, nn.GroupNorm)
    assert isinstance(kind(4).norm, nn.BatchNorm2d)
    activation(torch.randn(1, 4, 1, 1)).sum().backward()


@BOTH
@pytest.mark.parametrize('stride', [0, 3, '1'])
def test_refused_stride(kind, stride):
    with pytest.raises(
            ValueError,
            match=f'{kind.__name__} expects stride 1 or 2, got {stride!r}'):
        kind(4, stride=stride)
