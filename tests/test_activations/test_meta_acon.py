"""meta-ACON against Sec. 3.1 and Table 5 of arXiv 2009.04759."""
import math

import pytest
import torch
from torch import nn

from mm_acon import MetaACON
from tests.utils import assert_near, run

BN = dict(type='BN')


def build(num_channels=4, seed=0, **kwargs):
    """With numbers unlike those at the start, in norms too."""
    torch.manual_seed(seed)
    activation = MetaACON(num_channels, **kwargs).double()
    with torch.no_grad():
        for tensor in (*activation.parameters(), *activation.buffers()):
            if tensor.is_floating_point():
                tensor += .3 * torch.rand_like(tensor)
    return activation


def maps(*shape):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(shape, generator=generator).double()


def smooth_maximum(x, p1, p2, beta):
    """Eq. 4 with p1 and p2 per channel, beta for each element."""
    view = [1, -1] + [1] * (x.dim() - 2)
    p1, p2 = p1.view(view), p2.view(view)
    difference = (p1 - p2) * x
    return difference / (1 + torch.exp(-beta * difference)) + p2 * x


def expand(beta, x):
    return beta.view(*beta.shape, *[1] * (x.dim() - 2)).expand_as(x)


def normalised(z, norm, batch):
    """BatchNorm of (N, C) with the batch's or the running statistics."""
    mean, variance = norm.running_mean, norm.running_var
    if batch:
        mean = z.sum(0) / len(z)
        variance = (z - mean).square().sum(0) / len(z)
    z = (z - mean) / torch.sqrt(variance + norm.eps)
    return z * norm.weight + norm.bias


def channel_beta(activation, x, batch=False):
    """sigmoid(W1 W2 GAP(x)), with matrices instead of convolutions."""
    z = x.reshape(*x.shape[:2], -1)
    z = z.sum(2) / z.shape[2]
    for fc, norm in (('fc1', 'bn1'), ('fc2', 'bn2')):
        layer = getattr(activation, fc)
        weight = layer.weight.flatten(1)
        if activation.depthwise:
            weight = weight.flatten().diag()
        z = torch.einsum('oi,ni->no', weight, z) + layer.bias
        if activation.norm_cfg:
            z = normalised(z, getattr(activation, norm), batch)
    return 1 / (1 + torch.exp(-z))


def test_by_hand():
    """G gives exactly 3/4 to channel 0 and 1/4 to channel 1."""
    activation = MetaACON(2, reduction=1).double()
    with torch.no_grad():
        activation.fc1.weight.copy_(torch.eye(2)[..., None, None])
        activation.fc2.weight.zero_()
        activation.fc2.weight[0, 0] = math.log(3)
        activation.fc2.weight[1, 1] = -math.log(3)
        activation.fc1.bias.zero_()
        activation.fc2.bias.zero_()
    x = torch.tensor([[[[-1., 3.]], [[.5, 1.5]]]]).double()  # means 1 and 1
    assert activation.switching_factor(x)[0].tolist() == pytest.approx(
        [.75, .25])
    expected = [
        value / (1 + math.exp(-beta * value))
        for value, beta in ((-1, .75), (3, .75), (.5, .25), (1.5, .25))
    ]
    assert activation(x).flatten().tolist() == pytest.approx(expected)


@pytest.mark.parametrize('shape', [(3, 4), (3, 4, 5), (3, 4, 5, 2),
                                   (3, 4, 2, 2, 3)])
@pytest.mark.parametrize('norm_cfg', [None, BN])
@pytest.mark.parametrize('depthwise', [False, True])
def test_channel_granularity(depthwise, norm_cfg, shape):
    activation = build(depthwise=depthwise, norm_cfg=norm_cfg).eval()
    x = maps(*shape)
    beta = channel_beta(activation, x)
    assert_near(activation.switching_factor(x), beta, backward=True)
    expected = smooth_maximum(x, activation.p1, activation.p2, expand(beta, x))
    assert_near(activation(x), expected, backward=True)


@pytest.mark.parametrize('depthwise', [False, True])
def test_norm_in_training(depthwise):
    """Statistics of the batch are used, and followed with momentum 0.1."""
    activation = build(depthwise=depthwise, norm_cfg=BN).train()
    x = maps(3, 4, 5, 2)
    mean = activation.bn1.running_mean.clone()
    beta = channel_beta(activation, x, batch=True)
    assert_near(activation.switching_factor(x), beta, backward=True)
    z = x.mean((2, 3))
    weight = activation.fc1.weight.flatten(1)
    weight = weight.flatten().diag() if depthwise else weight
    z = z @ weight.t() + activation.fc1.bias
    assert_near(
        activation.bn1.running_mean, .9 * mean + .1 * z.mean(0), backward=True)
    assert activation.bn1.num_batches_tracked == 1


@pytest.mark.parametrize('shape', [(1, 4, 5, 2), (1, 4, 1, 1), (1, 4)])
def test_batch_of_one_in_training(shape):
    """Where the authors' code fails: running statistics take over."""
    activation = build(norm_cfg=BN).train()
    x = maps(*shape)
    beta = channel_beta(activation, x, batch=False)
    y, (grad, ) = run(activation, x)
    expected = smooth_maximum(x, activation.p1, activation.p2, expand(beta, x))
    assert_near(y, expected, backward=True)
    assert activation.bn1.num_batches_tracked == 0
    assert all(p.grad.isfinite().all() for p in activation.parameters())
    assert grad.isfinite().all()


@pytest.mark.parametrize('shape', [(3, 4), (3, 4, 5, 2)])
def test_layer_granularity(shape):
    """One beta per sample: the sigmoid of the sum of the channels' means."""
    activation, x = build(granularity='layer'), maps(*shape)
    total = x.reshape(3, 4, -1).sum((1, 2)) / x[0, 0].numel()
    beta = (1 / (1 + torch.exp(-total)))[:, None]
    assert activation.switching_factor(x).shape == (3, 1)
    expected = smooth_maximum(x, activation.p1, activation.p2, expand(beta, x))
    assert_near(activation(x), expected, backward=True)


@pytest.mark.parametrize('shape', [(3, 4), (3, 4, 5, 2)])
def test_pixel_granularity(shape):
    activation, x = build(granularity='pixel'), maps(*shape)
    expected = smooth_maximum(x, activation.p1, activation.p2,
                              1 / (1 + torch.exp(-x)))
    assert_near(activation(x), expected, backward=True)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16], ids=str)
def test_layer_sum_over_many_channels(dtype):
    """It is not rounded to the dtype of x."""
    activation = MetaACON(1025, granularity='layer')
    x = torch.full((1, 1025), 2.**-8, dtype=dtype)  # the sum is 4 + 1 / 256
    beta = activation.switching_factor(x).item()
    assert beta == pytest.approx(1 / (1 + math.exp(-4 - 1 / 256)), rel=1e-6)


@pytest.mark.parametrize('num_channels, reduction, hidden', [(8, 16, 16),
                                                             (256, 16, 16),
                                                             (512, 16, 32),
                                                             (24, 8, 8),
                                                             (4, 2, 2),
                                                             (100, 16, 16),
                                                             (300, 16, 18)])
def test_hidden_width(num_channels, reduction, hidden):
    """max(r, C // r)."""
    activation = MetaACON(num_channels, reduction=reduction)
    assert activation.fc1.weight.shape == (hidden, num_channels, 1, 1)
    assert activation.fc2.weight.shape == (num_channels, hidden, 1, 1)
    assert sum(
        p.numel()
        for p in activation.parameters()) == (2 * num_channels + hidden *
                                              (num_channels + 1) +
                                              num_channels * (hidden + 1))


@pytest.mark.parametrize('kwargs, count', [
    (dict(depthwise=True), 2 * 64 + 4 * 64),
    (dict(granularity='layer'), 2 * 64),
    (dict(granularity='pixel'), 2 * 64),
    (dict(norm_cfg=BN), 2 * 64 + 2 * 64 * 16 + 16 + 64 + 2 * 16 + 2 * 64),
])
def test_count(kwargs, count):
    activation = MetaACON(64, **kwargs)
    assert sum(p.numel() for p in activation.parameters()) == count


@pytest.mark.parametrize('blocks, sites, added', [
    pytest.param((2, 2, 2, 2), 2, .200, id='ResNet-18'),
    pytest.param((3, 4, 6, 3), 1, .182, id='ResNet-50'),
    pytest.param((3, 4, 23, 3), 1, .334, id='ResNet-101'),
    pytest.param((3, 8, 36, 3), 1, .469, id='ResNet-152'),
])
def test_count_of_the_papers_resnets(blocks, sites, added):
    """Millions of parameters that meta-ACON adds (Table 2)."""
    total = sum(count * sites * sum(p.numel()
                                    for p in MetaACON(width).parameters())
                for count, width in zip(blocks, (64, 128, 256, 512)))
    assert round(total / 1e6, 3) == added


def test_start():
    activation = MetaACON(4)
    assert activation.p1.tolist() == [1] * 4
    assert activation.p2.tolist() == [0] * 4
    assert not activation.starts_as_relu


def test_any_norm_of_mmcv():
    activation = MetaACON(
        8, reduction=4, norm_cfg=dict(type='GN', num_groups=2))
    assert isinstance(activation.bn1, nn.GroupNorm)
    for batch in (0, 1, 3):
        activation(torch.randn(batch, 8, 3, 3)).sum().backward()


@pytest.mark.parametrize('granularity', ['layer', 'pixel'])
@pytest.mark.parametrize('kwargs', [dict(norm_cfg=BN), dict(depthwise=True)])
def test_refused_combination(granularity, kwargs):
    with pytest.raises(
            ValueError,
            match="MetaACON takes norm_cfg and depthwise with granularity='"
            f"channel' only, got granularity='{granularity}'"):
        MetaACON(4, granularity=granularity, **kwargs)


@pytest.mark.parametrize('reduction', [0, -16])
def test_refused_reduction(reduction):
    with pytest.raises(
            ValueError,
            match='MetaACON expects reduction to be at least 1, got '
            f'{reduction}'):
        MetaACON(4, reduction=reduction)


def test_repr():
    assert repr(MetaACON(4, reduction=2)).startswith(
        "MetaACON(\n  4, granularity='channel', "
        'reduction=2, depthwise=False')
