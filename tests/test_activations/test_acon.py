"""ACON-A, B and C against Sec. 3 of arXiv 2009.04759."""
import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from mm_acon import ACONA, ACONB, ACONC
from mm_acon.activations.acon import MAX_GAP
from mm_acon.ops import acon
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


FLOATS = partial(st.floats, allow_nan=False, allow_subnormal=False)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(
    x=st.lists(FLOATS(-1e3, 1e3), min_size=1, max_size=50),
    p1=FLOATS(-4, 4),
    p2=FLOATS(-4, 4),
    beta=FLOATS(1e-3, 1e4))
def test_distance_from_the_maximum(x, p1, p2, beta):
    """At most 0.2784645428 / beta, for any p1 and p2."""
    x, p1, p2, beta = (
        torch.tensor(value, dtype=torch.float64).view(-1)
        for value in (x, p1, p2, beta))
    gap = torch.maximum(p1 * x, p2 * x) - acon(x[:, None], p1, p2, beta)[:, 0]
    rounding = 1e-12 * (1 + 4 * x.abs().max())
    assert gap.min() >= -rounding
    assert gap.max() <= MAX_GAP / beta + rounding


def test_distance_that_is_reached():
    """Near t = 1.2785 = 1 + W(1 / e), where t (1 - sigmoid(t)) is largest."""
    t = torch.linspace(1.278, 1.279, 1001, dtype=torch.float64)
    largest = (t * (1 - t.sigmoid())).max().item()
    assert 0 <= MAX_GAP - largest < 1e-9


@pytest.mark.parametrize('kind, start, learnt', KINDS)
def test_beta_init(kind, start, learnt):
    activation = kind(4, beta_init=100)
    assert activation.beta.tolist() == [100] * 4
    assert 'beta_init=100.0' in repr(activation)
    activation.beta.data.fill_(7)
    activation.init_weights()
    assert activation.beta.tolist() == [100] * 4
    x = line(2, 4, 500)
    gap = torch.maximum(x, start['p2'] * x) - activation(x)
    assert -1e-6 <= gap.min() and .0025 < gap.max() <= MAX_GAP / 100 + 1e-6
    # ACON-B starts at a leaky ReLU.
    assert activation.starts_as_relu is (start['p2'] == 0)
    assert not kind(4, beta_init=90).starts_as_relu
    assert kind(4).beta.tolist() == [1] * 4


@pytest.mark.parametrize('beta_init', [0, -1., math.inf, math.nan])
def test_refused_beta_init(beta_init):
    with pytest.raises(
            ValueError,
            match='ACONC expects beta_init to be a finite number greater '
            f'than 0, got {beta_init!r}'):
        ACONC(4, beta_init=beta_init)


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
