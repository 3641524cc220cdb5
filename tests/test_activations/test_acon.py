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


# In place of another function.


@pytest.mark.parametrize('kind, start, learnt', KINDS)
@pytest.mark.parametrize('function', ['SiLU', 'Swish'])
def test_swish_exactly(function, kind, start, learnt):
    unit, x = kind(4, function=function), line(2, 4, 50)
    assert [unit.start[name] for name in ('p1', 'p2', 'beta')] == [1, 0, 1]
    assert_near(unit(x), F.silu(x))
    assert unit.difference_from() < 1e-7
    assert unit.keeps_function and not unit.starts_as_relu


@pytest.mark.parametrize('function, beta, gap', [('GELU', 1.71, .011),
                                                 ('Hardswish', .79, .05),
                                                 ('Mish', 1.26, .11)])
def test_best_beta(function, beta, gap):
    """No beta beside it is nearer."""
    unit = ACONC(4, function=function)
    assert unit.beta.tolist() == pytest.approx([beta] * 4, abs=.01)
    assert unit.difference_from() == pytest.approx(gap, rel=.2)
    assert not unit.keeps_function
    for moved in (.95, 1.05):
        beta = moved * unit.start['beta']
        other = ACONC(4, function=function, beta_init=beta)
        assert other.difference_from() > unit.difference_from()


def test_gelu_of_tanh_by_hand():
    """Its sigmoid form has 1.702; the best over a unit normal is near."""
    unit = ACONC(4, function=dict(type='GELU', approximate='tanh'))
    assert unit.start['beta'] == pytest.approx(1.702, abs=.02)


@pytest.mark.parametrize('kind', [ACONB, ACONC])
@pytest.mark.parametrize('function, slope',
                         [(dict(type='LeakyReLU', negative_slope=.1), .1),
                          (dict(type='PReLU', init=.3), .3)])
def test_leaky_relu(kind, function, slope):
    unit, x = kind(4, function=function), 3 * line(2, 4, 500)
    assert unit.p2.tolist() == pytest.approx([slope] * 4)
    assert unit.beta.tolist() == [100] * 4
    gap = F.leaky_relu(x, slope) - unit(x)
    assert -1e-6 <= gap.min() and gap.max() <= MAX_GAP / 100 + 1e-6
    assert unit.keeps_function


def test_slopes_of_prelu():
    """Of every channel, and of a checkpoint from before the swap."""
    prelu = torch.nn.PReLU(3)
    prelu.weight.data = torch.tensor([.1, .5, -.25])
    for unit in (ACONC(function=prelu), ACONC(3, function='PReLU')):
        unit.load_state_dict(prelu.state_dict())
        assert_near(unit.p2, prelu.weight)
        x = line(2, 3, 50)
        assert (unit(x) - prelu(x)).abs().max() <= .003
        assert unit.keeps_function
        unit.init_weights()
        assert_near(unit.p2, prelu.weight)


@pytest.mark.parametrize('kind, start, learnt', KINDS)
@pytest.mark.parametrize(
    'function',
    [None, 'ReLU', 'ReLU6', 'Tanh', 'Sigmoid',
     torch.nn.Identity()])
def test_the_papers_start(function, kind, start, learnt):
    """For ReLU, and for what no two lines can follow."""
    unit = kind(4, function=function)
    assert unit.start == start
    assert kind(4, function=function, beta_init=7).start['beta'] == 7
    assert not unit.keeps_function


@pytest.mark.parametrize('function', ['SiLU', 'GELU', 'LeakyReLU'])
def test_beta_init_wins(function):
    unit = ACONC(4, function=function, beta_init=3)
    assert unit.beta.tolist() == [3] * 4
    assert 'beta_init=3.0, function=' in repr(unit)


def test_keeps_relu_with_a_large_beta():
    assert ACONC(4, beta_init=100).keeps_function
    assert ACONC(4, beta_init=100).difference_from() < .001
