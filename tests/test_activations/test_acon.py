"""ACON-A, B and C against Sec. 3 of arXiv 2009.04759."""
import math

import pytest
import torch
import torch.nn.functional as F

from mm_acon import ACONA, ACONB, ACONC
from tests.utils import assert_near, run

# Class, its numbers at the start, the learnt ones.
KINDS = [
    (ACONA, dict(p1=1, p2=0, beta=1), ('beta', )),
    (ACONB, dict(p1=1, p2=.25, beta=1), ('p2', 'beta')),
    (ACONC, dict(p1=1, p2=0, beta=1), ('p1', 'p2', 'beta')),
]


def line(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize('granularity, units', [('channel', 4), ('layer', 1)])
@pytest.mark.parametrize('kind, start, learnt', KINDS)
def test_start(kind, start, learnt, granularity, units):
    activation = kind(4, granularity=granularity)
    assert [name for name, _ in activation.named_parameters()] == list(learnt)
    for name, value in start.items():
        size = units if name in learnt else 1
        assert getattr(activation, name).tolist() == [value] * size
    assert list(activation.state_dict()) == list(learnt)
    assert not activation.starts_as_relu


@pytest.mark.parametrize('kind, start, learnt', KINDS)
def test_formula(kind, start, learnt):
    """One channel by Python's own arithmetic, the other at its start."""
    activation = kind(2)
    values = dict(start)
    for name, value in dict(p1=1.5, p2=-.5, beta=2.).items():
        if name in learnt:
            values[name] = value
            getattr(activation, name).data[1] = value
    for x in (-2., -.3, 0., .7, 3.):
        y = activation(torch.full((1, 2), x))[0].tolist()
        for result, number in zip(y, (start, values)):
            difference = (number['p1'] - number['p2']) * x
            sigmoid = 1 / (1 + math.exp(-number['beta'] * difference))
            assert result == pytest.approx(
                difference * sigmoid + number['p2'] * x, abs=1e-6)


def test_starts_as_swish():
    x = line(2, 4, 3)
    for kind in (ACONA, ACONC):
        y, (grad, ) = run(kind(4), x)
        true_y, (true_grad, ) = run(F.silu, x)
        assert_near(y, true_y)
        assert_near(grad, true_grad, backward=True)


def test_large_beta_is_relu():
    """To within 0.2784645 / beta, which is how a ReLU network is kept."""
    activation = ACONC(4)
    with torch.no_grad():
        activation.beta.fill_(100)
        gap = F.relu(line(2, 4, 500)) - activation(line(2, 4, 500))
    assert 0 <= gap.min() and .002 < gap.max() <= .002784646


def test_fixed_numbers_follow_the_module(device):
    """Buffers that no checkpoint carries move with .to() all the same."""
    activation = ACONA(4).to(device, torch.float64)
    assert activation.p1.dtype == activation.p2.dtype == torch.float64
    assert activation.p1.device.type == device
    assert activation(line(2, 4).to(device).double()).dtype == torch.float64


def test_learns():
    """ACON-B meets a leaky ReLU's slope of 0.5, so that p2 rises to it."""
    activation = ACONB(1, granularity='layer')
    optimizer = torch.optim.Adam(activation.parameters(), lr=.05)
    x = torch.linspace(-8, 8, 200)[:, None]
    for _ in range(150):
        loss = (activation(x) - F.leaky_relu(x, .5)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert activation.p2.item() == pytest.approx(.5, abs=.02)
