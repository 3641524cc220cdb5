"""PWLU and its two phases against Sec. 3.3 of arXiv 2104.03693."""
import copy
import math
import pickle
import warnings

import pytest
import torch
import torch._dynamo
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from mm_acon import PWLU
from mm_acon.ops import pwlu
from mm_acon.ops.pwlu import MIN_WIDTH
from tests.utils import (ASSIGN, DTYPES, HALF_FUNCTIONS, assert_near,
                         needs_torch, run)

# For PyTorch's ReLU, which Phase I is.
RELU_DTYPES = [
    pytest.param(
        dtype,
        id=str(dtype),
        marks=HALF_FUNCTIONS if dtype == torch.float16 else ())
    for dtype in DTYPES
]

NUMBERS = ('points', 'left_bound', 'right_bound', 'left_slope', 'right_slope')


def maps(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def shaken(*args, **kwargs):
    """With parameters unlike those of a fresh one."""
    torch.manual_seed(0)
    unit = PWLU(*args, **kwargs)
    with torch.no_grad():
        for parameter in unit.parameters():
            parameter += .2 * torch.randn_like(parameter)
    return unit


def phase1(*args, **kwargs):
    unit = PWLU(*args, **kwargs)
    unit.start_phase1()
    return unit


def with_statistics(mean, std, **kwargs):
    """In Phase I, as if batches had given this mean and std."""
    unit = phase1(len(mean), **kwargs)
    unit.running_mean.copy_(torch.tensor(mean))
    unit.running_std.copy_(torch.tensor(std))
    unit.num_batches.fill_(5)
    return unit


def assert_relu_form(unit, channel, left, right):
    """Knots between left and right on the ReLU, slopes 0 and 1."""
    steps = unit.points.shape[1] - 1
    knots = [left + i * (right - left) / steps for i in range(steps + 1)]
    got = [getattr(unit, name)[channel].tolist() for name in NUMBERS]
    assert got[0] == pytest.approx([max(knot, 0) for knot in knots], abs=1e-6)
    assert got[1:] == pytest.approx([left, right, 0, 1], abs=1e-6)


# The start.


def test_shapes_of_the_parameters():
    unit = PWLU(5, num_intervals=8)
    assert {
        name: tuple(p.shape)
        for name, p in unit.named_parameters()
    } == {
        'points': (5, 9),
        **{
            name: (5, )
            for name in NUMBERS[1:]
        }
    }
    unit = PWLU(5, granularity='layer')
    assert {
        name: tuple(p.shape)
        for name, p in unit.named_parameters()
    } == {
        'points': (1, 17),
        **{
            name: (1, )
            for name in NUMBERS[1:]
        }
    }


@pytest.mark.parametrize('channels, added', [(3904, 81984), (22720, 477120),
                                             (48832, 1025472)])
def test_count_of_the_resnets(channels, added):
    """N + 5 numbers a channel, in ResNet-18, 50 and 101."""
    assert sum(p.numel() for p in PWLU(channels).parameters()) == added


@pytest.mark.parametrize('kwargs, left, right', [
    (dict(), -3, 3),
    (dict(bound=1.5, num_intervals=2), -1.5, 1.5),
    (dict(bound=.7, num_intervals=6, granularity='layer'), -.7, .7),
])
def test_start(kwargs, left, right):
    unit = PWLU(3, **kwargs)
    for channel in range(unit.num_units):
        assert_relu_form(unit, channel, left, right)
    assert unit.starts_as_relu and unit.is_relu_form()
    assert unit.current_phase == unit.phase == 0


def any_float32(count, least, most):
    """Both signs, magnitudes spread evenly over the exponents."""
    generator = torch.Generator().manual_seed(0)
    exponent = torch.rand(count, generator=generator) * (most - least) + least
    sign = torch.randint(0, 2, (count, ), generator=generator) * 2 - 1
    return sign * exponent.double().exp2().float()


@pytest.mark.parametrize('kwargs', [
    dict(),
    dict(granularity='layer'),
    dict(bound=1.),
    dict(bound=4.5, num_intervals=8),
    dict(bound=.75, num_intervals=2),
])
def test_fresh_is_exactly_relu(kwargs, device):
    """To the last bit: a ReLU network keeps every number at step 0.

    Where x - bound is no float32, which takes an x above a million (2^20),
    the last bit may differ.
    """
    x = torch.cat([
        any_float32(5000, -149, 20),
        torch.linspace(-5, 5, 2001),
        torch.tensor([0., -0., 1e-45, -1e-45, 1e-9, -1e-9, 1e20, -1e20]),
    ])[None, None].to(device)
    unit = PWLU(1, **kwargs).to(device)
    y, (grad, ) = run(unit, x)
    assert torch.equal(y, F.relu(x))
    # On its knot at 0 a PWLU has the slope to the right.
    assert torch.equal(grad, (x >= 0).float())
    large = any_float32(2000, 20, 126).to(device)[None, None]
    torch.testing.assert_close(unit(large), F.relu(large), rtol=1.2e-7, atol=0)


@pytest.mark.parametrize('dtype', RELU_DTYPES[2:])
def test_fresh_is_exactly_relu_in_low_precision(dtype, device):
    """Every finite number that the dtype has."""
    bits = torch.arange(-2**15, 2**15, dtype=torch.int32).short()
    x = bits.view(dtype)
    x = x[x.isfinite()][None, None].to(device)
    for unit in (PWLU(1), PWLU(1).to(dtype)):
        unit = unit.to(device)
        torch.testing.assert_close(unit(x), F.relu(x), rtol=0, atol=0)


def test_fresh_with_any_bound_is_relu_but_for_rounding():
    """A bound such as 0.7 has knots that no float32 holds."""
    x = maps(2, 3, 500)
    for bound, num_intervals in ((.7, 6), (2.9, 10), (100, 16)):
        unit = PWLU(3, bound=bound, num_intervals=num_intervals)
        torch.testing.assert_close(
            unit(x), F.relu(x), rtol=1e-6, atol=1e-7 * bound)


def test_forward_is_the_operator():
    unit, x = shaken(3), maps(2, 3, 5)
    assert torch.equal(
        unit(x), pwlu(x, *(getattr(unit, name) for name in NUMBERS)))


def test_no_phases_keep_no_statistics():
    """Trained from the start (fix-init), the buffers stay as they are."""
    unit = shaken(3).train()
    unit(4 * maps(2, 3, 50)).sum().backward()
    assert not unit.num_batches.any() and not unit.running_std.any()
    assert all(p.grad.any() for p in unit.parameters())


def test_is_relu_form():
    for name in NUMBERS:
        unit = PWLU(3)
        assert unit.is_relu_form()
        getattr(unit, name).data[1] += .1
        assert not unit.is_relu_form()


# Phase I.


@pytest.mark.parametrize('granularity', ['channel', 'layer'])
@pytest.mark.parametrize('dtype', RELU_DTYPES)
def test_phase1_is_relu(dtype, granularity, device):
    """Whatever the parameters; also at x = 0, where ReLU's slope is 0."""
    unit = shaken(3, granularity=granularity).to(device)
    unit.start_phase1()
    x = maps(2, 3, 5).to(device, dtype)
    x[0, 0, 0], x[0, 1, 0], x[1, 2, 3] = 0., -0., torch.nan
    grad = maps(2, 3, 5, seed=1).to(device, dtype)
    y, (mine, ) = run(unit, x, grad=grad)
    true_y, (true, ) = run(F.relu, x, grad=grad)
    assert torch.equal(y.nan_to_num(7), true_y.nan_to_num(7))
    assert y.isnan().sum() == 1
    assert torch.equal(mine, true)
    assert mine[0, 0, 0] == mine[0, 1, 0] == 0


def test_phase1_gives_parameters_a_gradient_of_zero():
    """Zero and not None: DDP waits for every parameter."""
    unit = phase1(3)
    unit(maps(2, 3, 5)).sum().backward()
    for parameter in unit.parameters():
        assert parameter.grad is not None
        assert parameter.grad.shape == parameter.shape
        assert not parameter.grad.any()
        assert parameter.requires_grad


def test_phase1_joins_the_graph_of_a_frozen_input():
    """The first layer's input needs no gradient; its PWLU still does."""
    unit = phase1(3)
    y = unit(maps(2, 3, 5))
    assert y.requires_grad
    frozen = phase1(3).requires_grad_(False)
    assert not frozen(maps(2, 3, 5)).requires_grad


def test_statistics_by_hand():
    """Eq. 5: the first batch sets them, then r <- 0.9 r + 0.1 batch."""
    unit = phase1(2)
    # Channel 0: 1 and 3, mean 2, std 1. Channel 1: -4 and 4.
    unit(torch.tensor([[[1.], [-4.]], [[3.], [4.]]]))
    assert unit.running_mean.tolist() == [2, 0]
    assert unit.running_std.tolist() == [1, 4]
    unit(torch.tensor([[[10.], [1.]], [[-8.], [1.]]]))  # 1, 9 and 1, 0
    assert unit.running_mean.tolist() == pytest.approx([1.9, .1])
    assert unit.running_std.tolist() == pytest.approx([1.8, 3.6])
    unit(torch.tensor([[[0.], [0.]]]))
    assert unit.running_mean.tolist() == pytest.approx([1.71, .09])
    assert unit.running_std.tolist() == pytest.approx([1.62, 3.24])
    assert unit.num_batches.tolist() == [3, 3]


def test_statistics_of_a_layer_by_hand():
    unit = phase1(2, granularity='layer')
    unit(torch.tensor([[[1.], [-4.]], [[3.], [4.]]]))
    # Mean 1; squared deviations 0, 25, 4, 9: variance 38 / 4.
    assert unit.running_mean.tolist() == [1]
    assert unit.running_std.item() == pytest.approx(math.sqrt(9.5))


@pytest.mark.parametrize('shape', [(6, 3), (2, 3, 5), (2, 3, 5, 4),
                                   (2, 3, 2, 3, 4)])
def test_statistics_of_every_shape(shape):
    unit, x = phase1(3), maps(*shape) * 3 + 1
    unit(x)
    columns = x.movedim(1, -1).reshape(-1, 3).double()
    mean = columns.sum(0) / len(columns)
    std = ((columns - mean).square().sum(0) / len(columns)).sqrt()
    torch.testing.assert_close(unit.running_mean.double(), mean)
    torch.testing.assert_close(unit.running_std.double(), std)


@pytest.mark.parametrize('dtype', RELU_DTYPES[2:])
def test_statistics_in_low_precision(dtype, device):
    """Sums of many half numbers are not taken in half."""
    unit = phase1(2).to(device)
    x = (maps(4, 2, 50, 50) * 2 + 100).to(device, dtype)
    unit(x)
    exact = x.double().movedim(1, 0).flatten(1)
    torch.testing.assert_close(
        unit.running_mean.double(), exact.mean(1), rtol=1e-4, atol=0)
    torch.testing.assert_close(
        unit.running_std.double(),
        exact.std(1, correction=0),
        rtol=1e-3,
        atol=0)


def statistics(unit):
    return [
        tensor.clone()
        for tensor in (unit.running_mean, unit.running_std, unit.num_batches)
    ]


def assert_same(before, after):
    assert all(torch.equal(*pair) for pair in zip(before, after))


def test_eval_leaves_statistics():
    unit = phase1(3)
    unit(maps(2, 3, 5))
    before = statistics(unit)
    unit.eval()(maps(2, 3, 5, seed=1) * 9)
    assert_same(before, statistics(unit))


def test_phase2_leaves_statistics():
    """They are what the bounds were taken from."""
    unit = phase1(3)
    unit(maps(2, 3, 5))
    unit.realign()
    before = statistics(unit)
    unit(maps(2, 3, 5, seed=1) * 9)
    assert_same(before, statistics(unit))


@pytest.mark.parametrize('first', [True, False])
@pytest.mark.parametrize('granularity', ['channel', 'layer'])
def test_empty_batch_does_not_count(granularity, first):
    unit = phase1(3, granularity=granularity)
    if not first:
        unit(maps(2, 3, 5))
    before = statistics(unit)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        for shape in ((0, 3, 5), (0, 3), (2, 3, 0)):
            unit(maps(*shape))
    assert_same(before, statistics(unit))


@pytest.mark.parametrize('first', [True, False])
@pytest.mark.parametrize('value', [math.nan, math.inf, -math.inf])
def test_overflow_does_not_count(value, first):
    """Of the three units only the one that met it misses the batch."""
    unit, clean = phase1(3), phase1(3)
    if not first:
        unit(maps(2, 3, 5)), clean(maps(2, 3, 5))
    before = statistics(unit)
    x = maps(2, 3, 5, seed=1)
    clean(x)
    x[0, 1, 2] = value
    unit(x)
    for now, then, true in zip(statistics(unit), before, statistics(clean)):
        assert torch.equal(now[::2], true[::2])
        assert now[1] == then[1]


def test_statistics_have_no_graph():
    unit = phase1(3)
    unit(maps(2, 3, 5).requires_grad_())
    assert not any(t.requires_grad for t in statistics(unit))


@pytest.mark.parametrize('use_reentrant', [True, False])
def test_gradient_checkpointing_counts_a_batch_once(use_reentrant):
    """Its backward pass runs the forward again."""
    torch.manual_seed(0)
    conv, unit = nn.Conv2d(3, 4, 1), phase1(4)
    plain = copy.deepcopy(unit)
    model = nn.Sequential(conv, unit)
    for seed in range(3):
        x = maps(2, 3, 5, 5, seed=seed).requires_grad_()
        checkpoint(model, x, use_reentrant=use_reentrant).sum().backward()
        plain(conv(x))
    assert unit.num_batches.tolist() == [3] * 4
    assert_same(statistics(unit), statistics(plain))
    assert all(not p.grad.any() for p in unit.parameters())


@pytest.mark.parametrize('use_reentrant', [True, False])
def test_checkpointed_gradients(use_reentrant):
    """The same with and without checkpointing, in every phase."""
    torch.manual_seed(0)
    for phase in range(3):
        model = nn.Sequential(nn.Conv2d(3, 4, 1), shaken(4))
        model[1]._set_phase(phase)
        x = maps(2, 3, 5, 5).requires_grad_()
        model(x).sum().backward()
        expected = [p.grad.clone() for p in model.parameters()]
        model.zero_grad()
        checkpoint(model, x, use_reentrant=use_reentrant).sum().backward()
        for parameter, grad in zip(model.parameters(), expected):
            assert torch.equal(parameter.grad, grad)


def test_two_calls_count_twice():
    """A unit that serves two sites takes both in."""
    unit = phase1(1)
    y = unit(torch.tensor([[1.], [3.]]))
    unit(y).sum().backward()
    assert unit.num_batches.tolist() == [2]


def test_start_phase1_forgets():
    unit = phase1(3)
    unit(maps(2, 3, 5))
    unit.start_phase1()
    assert not any(tensor.any() for tensor in statistics(unit))
    assert unit.current_phase == unit.phase == 1


# Realignment.


def test_realign_by_hand():
    """Eq. 6: mean 0.5 and std 0.25 give bounds -0.25 and 1.25."""
    unit = with_statistics([.5, -1], [.25, 2.], num_intervals=4)
    assert unit.realign().tolist() == [True, True]
    assert unit.left_bound.tolist() == [-.25, -7]
    assert unit.right_bound.tolist() == [1.25, 5]
    assert unit.points[0].tolist() == [0, .125, .5, .875, 1.25]
    assert unit.points[1].tolist() == [0, 0, 0, 2, 5]
    assert unit.left_slope.tolist() == [0, 0]
    assert unit.right_slope.tolist() == [1, 1]
    assert unit.current_phase == unit.phase == 2


@pytest.mark.parametrize('granularity', ['channel', 'layer'])
def test_realign_after_real_batches(granularity):
    unit = phase1(3, granularity=granularity)
    for seed in range(4):
        unit(maps(8, 3, 50, seed=seed) * 2 + .5)
    assert unit.realign().all()
    for channel in range(unit.num_units):
        mean, std = unit.running_mean[channel], unit.running_std[channel]
        assert_relu_form(unit, channel, (mean - 3 * std).item(),
                         (mean + 3 * std).item())


def test_realigned_stays_near_relu():
    """The gap is greatest at the knots beside 0: at most d / 4."""
    unit = with_statistics([.37], [1.1])
    unit.realign()
    x = torch.linspace(-8, 8, 20001)[:, None]
    gap = (unit(x) - F.relu(x)).abs()
    assert gap.max() <= 6 * 1.1 / 16 / 4 + 1e-6
    assert gap[x.abs() > 6 * 1.1 / 16].max() <= 1e-5


def test_realign_keeps_the_optimizer():
    """Parameters are written in place, so that training goes on."""
    unit = phase1(3)
    held = list(unit.parameters())
    optimizer = torch.optim.SGD(held, lr=.1)
    unit(maps(8, 3, 50))
    unit.realign()
    assert all(p is q for p, q in zip(unit.parameters(), held))
    before = [p.detach().clone() for p in held]
    (unit(maps(8, 3, 50) * 2) - 1).square().sum().backward()
    optimizer.step()
    for parameter, old in zip(unit.parameters(), before):
        assert not torch.equal(parameter, old)


# Kind of unit, its mean and std.
DEGENERATE = [('all negative', -5., .1), ('all positive', 5., .1),
              ('just negative', -3., 1.), ('just positive', 3., 1.),
              ('dead at 0', 0., 0.), ('dead below 0', -2., 0.),
              ('dead above 0', 2., 0.), ('narrow', 0., MIN_WIDTH / 7)]


@pytest.mark.parametrize('kind, mean, std', DEGENERATE)
def test_degenerate_units_stay_relu(kind, mean, std):
    """While the unit beside them is realigned."""
    unit = with_statistics([mean, .5], [std, .25])
    assert unit.realign().tolist() == [False, True]
    assert_relu_form(unit, 0, -3, 3)
    assert_relu_form(unit, 1, -.25, 1.25)
    x = (maps(50, 2) * (std or 1) + mean).requires_grad_()
    y = unit(x)
    assert torch.equal(y[:, 0], F.relu(x[:, 0]))
    y.sum().backward()
    for tensor in (x, *unit.parameters()):
        assert tensor.grad.isfinite().all()


@pytest.mark.parametrize('batches', [[], [(0, 2, 5)], [math.nan]])
def test_units_that_met_nothing_stay_relu(batches):
    """No batch, only empty ones, only ones that overflowed."""
    unit = phase1(2)
    for batch in batches:
        unit(
            torch.full((2, 2), batch) if isinstance(batch, float) else maps(
                *batch))
    assert unit.realign().tolist() == [False, False]
    assert_relu_form(unit, 0, -3, 3)
    assert unit.current_phase == 2


def test_realign_before_the_first_input():
    """A site that no training batch reached has no width yet."""
    unit = phase1()
    assert not unit.realign().any()
    assert unit.current_phase == 2
    x = maps(2, 3, 5, 4)
    assert torch.equal(unit(x), F.relu(x))
    assert unit.current_phase == unit.phase == 2


def test_lazy_phase1_counts_the_first_batch():
    unit = phase1()
    unit(torch.tensor([[1., -4.], [3., 4.]]))
    assert unit.running_mean.tolist() == [2, 0]
    assert unit.running_std.tolist() == [1, 4]
    assert unit.num_batches.tolist() == [1, 1]
    assert unit.current_phase == unit.phase == 1


# Alignment.


@pytest.mark.parametrize(
    'mean, std, iou',
    [
        (0., 1., 1.),  # [-3, 3], the bounds themselves
        (1., 1 / 3, 1 / 3),  # [0, 2] inside
        (0., 2., 1 / 2),  # [-6, 6] around
        (3., 1., 1 / 3),  # [0, 6]: 3 of 9 in common
        (10., 1., 0.),  # [7, 13] apart
        (6., 1., 0.),  # [3, 9] touches
        (0., 0., math.nan),
    ])
def test_alignment_by_hand(mean, std, iou):
    """Eq. 7 with bounds -3 and 3."""
    unit = with_statistics([mean, 0.], [std, 1.])
    result = unit.alignment_iou()
    assert result.tolist() == pytest.approx([iou, 1.], nan_ok=True)
    assert not result.requires_grad


@pytest.mark.parametrize('granularity, moments, iou', (
    ('channel', ([0., 1.], [1., 2.]), [1., .5]),
    ('layer', ([.5], [2.75**.5]), [2.75**-.5]),
))
def test_alignment_of_an_input(granularity, moments, iou):
    """Of [-3, 3] with [-3, 3] and [-5, 7], or with both as one layer."""
    unit = PWLU(2, granularity=granularity)
    x = torch.tensor([[[-1.], [-1.]], [[1.], [3.]]])
    for found, expected in zip(unit.moments(x), moments):
        assert found.tolist() == pytest.approx(expected)
    assert unit.alignment_iou(x).tolist() == pytest.approx(iou)
    # The statistics of Phase I stay as they are.
    assert not unit.running_std.any() and unit.alignment_iou().isnan().all()


def test_alignment_after_realignment():
    unit = phase1(3)
    unit(maps(8, 3, 50) * 2 + .5)
    assert unit.alignment_iou().max() < .9
    unit.realign()
    torch.testing.assert_close(unit.alignment_iou(), torch.ones(3))


def test_alignment_of_crossed_bounds():
    unit = with_statistics([0.], [1.])
    with torch.no_grad():
        unit.left_bound.fill_(1)
        unit.right_bound.fill_(-1)
    assert unit.alignment_iou().item() == 0


def test_input_range():
    unit = with_statistics([.5, -1], [.25, 2.])
    left, right = unit.input_range()
    assert left.tolist() == [-.25, -7]
    assert right.tolist() == [1.25, 5]


# The phase is state.


def in_phase(phase):
    unit = phase1(3)
    unit(maps(8, 3, 50) * 2)
    if phase == 2:
        unit.realign()
    return unit if phase else shaken(3)


def through_state_dict(unit):
    loaded = PWLU(3)
    loaded.load_state_dict(unit.state_dict())
    return loaded


def through_assign(unit):
    loaded = PWLU(3)
    loaded.load_state_dict(copy.deepcopy(unit.state_dict()), assign=True)
    return loaded


def through_lazy(unit):
    loaded = PWLU()
    loaded.load_state_dict(unit.state_dict())
    return loaded


def through_meta(unit):
    with torch.device('meta'):
        loaded = PWLU(3)
    loaded.load_state_dict(copy.deepcopy(unit.state_dict()), assign=True)
    return loaded


def through_a_model(unit):
    loaded = nn.Sequential(nn.Identity(), PWLU(3))
    loaded.load_state_dict({
        f'1.{key}': value
        for key, value in unit.state_dict().items()
    })
    return loaded[1]


def through_pickle(unit):
    return pickle.loads(pickle.dumps(unit))


@pytest.mark.parametrize('phase', [0, 1, 2])
@pytest.mark.parametrize('way', [
    copy.deepcopy, through_pickle, through_state_dict,
    pytest.param(through_assign, marks=ASSIGN), through_lazy,
    pytest.param(through_meta, marks=ASSIGN), through_a_model
])
def test_phase_survives(way, phase):
    """And what comes after it is the same, in value and statistics."""
    unit = in_phase(phase)
    copied = way(unit)
    assert copied.current_phase == copied.phase == phase
    for x in (maps(4, 3, 9, seed=1), maps(4, 3, 9, seed=2) * 5):
        y, (grad, ) = run(unit, x)
        copied_y, (copied_grad, ) = run(copied, x)
        assert torch.equal(y, copied_y) and torch.equal(grad, copied_grad)
    assert_same(statistics(unit), statistics(copied))


def test_phase_survives_a_file(tmp_path):
    """Through a file that is read without running code in it."""
    torch.save(in_phase(2).state_dict(), tmp_path / 'unit.pth')
    unit = PWLU(3)
    unit.load_state_dict(torch.load(tmp_path / 'unit.pth', weights_only=True))
    assert unit.current_phase == 2


def test_loading_goes_back_too():
    """A Phase I checkpoint in a unit that was already realigned."""
    unit = in_phase(2)
    unit.load_state_dict(in_phase(1).state_dict())
    assert unit.current_phase == unit.phase == 1
    x = maps(4, 3, 9)
    assert torch.equal(unit(x), F.relu(x))


def test_checkpoint_without_the_unit_leaves_its_phase():
    unit = phase1(3)
    unit.load_state_dict({}, strict=False)
    assert unit.current_phase == unit.phase == 1


@pytest.mark.parametrize('dtype', DTYPES, ids=str)
def test_cast_keeps_the_phase(dtype):
    unit = in_phase(2).to(dtype)
    assert unit.current_phase == unit.phase == 2
    assert unit.phase.dtype == unit.num_batches.dtype == torch.long


@pytest.mark.parametrize('phase', [0, 1, 2])
def test_repr_tells_the_phase(phase):
    assert f'num_intervals=16, bound=3.0, phase={phase}' in repr(
        in_phase(phase))


# Learning.


def test_learns_a_function_that_relu_is_not():
    """Two steps of a stair, which N = 8 pieces can follow."""
    unit = PWLU(1, num_intervals=8, bound=2.)
    optimizer = torch.optim.Adam(unit.parameters(), lr=.02)
    x = torch.linspace(-3, 3, 300)[:, None]
    target = torch.sin(2 * x)
    for _ in range(300):
        loss = (unit(x) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < .01 < (F.relu(x) - target).square().mean()


def test_bounds_may_cross_while_learning():
    """A loss that pushes them together meets no NaN on the way."""
    unit = PWLU(2, bound=.5)
    optimizer = torch.optim.SGD(unit.parameters(), lr=.05)
    x = maps(16, 2, 10)
    for _ in range(60):
        loss = unit(x).square().mean() + (unit.right_bound -
                                          unit.left_bound).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        assert all(p.grad.isfinite().all() for p in unit.parameters())
    assert (unit.right_bound < unit.left_bound).all()
    assert unit(x).isfinite().all()


# What the constructor refuses.


@pytest.mark.parametrize('num_intervals', [0, -2, 1, 15, 16., '16'])
def test_refused_num_intervals(num_intervals):
    with pytest.raises(
            ValueError,
            match='PWLU expects num_intervals to be an even number of at '
            f'least 2, .*got {num_intervals!r}'):
        PWLU(3, num_intervals=num_intervals)


@pytest.mark.parametrize(
    'bound', [0, -3., MIN_WIDTH / 4, math.nan, math.inf, -math.inf])
def test_refused_bound(bound):
    with pytest.raises(
            ValueError,
            match=f'PWLU expects a finite bound of at least {MIN_WIDTH / 2}, '
            f'got {bound!r}'):
        PWLU(3, bound=bound)


def test_least_bound():
    unit, x = PWLU(3, bound=MIN_WIDTH / 2), maps(2, 3, 5)
    torch.testing.assert_close(unit(x), F.relu(x))


# In place of other functions.

# What stands there, and what it is; those of straight pieces first.
PIECES = [
    ('ReLU6', F.relu6),
    (dict(type='LeakyReLU', negative_slope=.1), lambda x: F.leaky_relu(x, .1)),
    (dict(type='PReLU', init=.3), lambda x: F.prelu(x, torch.full((3, ), .3))),
    (nn.Hardtanh(), F.hardtanh),
]
SMOOTH = [('SiLU', F.silu), (dict(type='GELU'), F.gelu),
          ('HSwish', F.hardswish), (nn.ELU(inplace=True), F.elu),
          ('Mish', F.mish), ('Tanh', torch.tanh)]
ANY = pytest.mark.parametrize('function, true',
                              [(None, F.relu), *PIECES, *SMOOTH])


def test_by_hand_in_place_of_leaky_relu():
    """Mean 0.1 and std 0.5 give [-1.4, 1.6], moved so that a knot is at 0."""
    kwargs = dict(
        num_intervals=4, function=dict(type='LeakyReLU', negative_slope=.5))
    unit = PWLU(1, **kwargs)
    assert (unit.bound, unit.left_slope) == (3, .5)
    assert unit.points.tolist() == [[-1.5, -.75, 0, 1.5, 3]]
    unit = with_statistics([.1], [.5], **kwargs)
    assert unit.realign().tolist() == [True]
    found = [unit.left_bound, *unit.points[0], unit.right_bound]
    assert [round(value.item(), 5)
            for value in found] == [-1.5, -.75, -.375, 0, .75, 1.5, 1.5]
    assert (unit.left_slope, unit.right_slope) == (.5, 1)


@pytest.mark.parametrize('channel_axis', [1, -1])
@pytest.mark.parametrize('granularity', ['channel', 'layer'])
@ANY
def test_phase1_is_the_function(function, true, granularity, channel_axis):
    """To the last bit, with a gradient for every parameter."""
    unit = PWLU(
        3,
        granularity=granularity,
        function=function,
        channel_axis=channel_axis)
    unit.start_phase1()
    x = 4 * maps(5, 3, 7, 9)
    if channel_axis == -1:
        x = x.permute(0, 2, 3, 1).contiguous()
    if isinstance(function, dict) and function['type'] == 'PReLU':

        def true(x):  # noqa: E306
            return F.leaky_relu(x, .3)

    y, (grad, ) = run(unit, x)
    true_y, (true_grad, ) = run(true, x)
    assert torch.equal(y, true_y) and torch.equal(grad, true_grad)
    assert not any(p.grad.any() for p in unit.parameters())
    first = unit.channels_first(x)
    axes = (0, 2, 3) if granularity == 'channel' else (0, 1, 2, 3)
    assert_near(unit.running_mean, first.mean(axes).view(-1))
    assert_near(unit.running_std, first.std(axes, correction=0).view(-1))
    # And no statistic moves in eval mode.
    assert torch.equal(unit.eval()(x), true_y)
    assert unit.num_batches.tolist() == [1] * unit.num_units


@pytest.mark.parametrize('function, true', PIECES)
def test_pieces_start_exactly(function, true):
    unit = PWLU(3, function=function)
    x = 5 * maps(50, 3, 20)
    y, (grad, ) = run(unit, x)
    true_y, (true_grad, ) = run(true, x)
    torch.testing.assert_close(y, true_y, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(grad, true_grad, rtol=1e-6, atol=1e-6)
    assert unit.keeps_function and not unit.starts_as_relu
    assert unit.is_fresh() and not unit.is_relu_form()


def test_relu6_starts_to_the_last_bit():
    unit, x = PWLU(3, function='ReLU6'), 9 * maps(500, 3, 20)
    assert torch.equal(unit(x), F.relu6(x))


@pytest.mark.parametrize('function, true', SMOOTH)
def test_smooth_functions_start_near(function, true):
    """Far closer than ReLU, which would be there otherwise."""
    unit = PWLU(3, function=function)
    x = maps(500, 3, 20)
    gap = (unit(x) - true(x)).norm() / true(x).norm()
    assert unit.difference_from() == pytest.approx(gap.item(), rel=.05)
    assert gap < .006 < .1 * (F.relu(x) - true(x)).norm() / true(x).norm()
    assert not unit.keeps_function and unit.is_fresh()


@pytest.mark.parametrize('mean, std', [(0., 1.), (-1., .3), (.5, 4.), (8., .5),
                                       (-3., 1e-5), (1., 0.)])
@ANY
def test_realigned_unit_is_near(function, true, mean, std):
    """Of the input that it has met; exactly the function of one value."""
    unit = with_statistics([0., 0., mean], [1., 1., std], function=function)
    realigned = unit.realign()
    x = mean + std * maps(3000, 3)
    expected = true(x)[:, 2]
    gap = (unit(x)[:, 2] - expected).square().mean().sqrt()
    scale = max(expected.square().mean().sqrt(), std)
    left, right = mean - 3 * std, mean + 3 * std
    if function is None:
        assert realigned[2].item() is (left < 0 < right)
        assert gap <= .04 * scale
        return
    corners = unit.function.corners
    assert realigned[2].item() is (corners is None or any(
        abs(corner - mean) < 12 * std for corner in corners))
    assert unit.right_bound[2] - unit.left_bound[2] >= MIN_WIDTH
    assert gap <= (.1 if function == 'Tanh' and std == 4 else .02) * scale
    if (function, true) in PIECES:
        # But for Hardtanh under an input so wide that no two knots fit.
        assert gap <= (.1 if std == 4 and true is F.hardtanh else 1e-6) * max(
            scale, abs(mean))
    if std < .01:
        assert gap <= 1e-5


def test_realigned_with_a_knot_at_the_corner():
    """The bounds move by half an interval of 6 std / 16 at most."""
    std = torch.rand(50) + .1
    mean = 3 * std * (2 * torch.rand(50) - 1)
    unit = with_statistics(mean.tolist(), std.tolist(), function='LeakyReLU')
    unit.realign()
    left, right = unit.input_range()
    assert ((unit.left_bound - left).abs() <= std * 6 / 16 / 2 + 1e-5).all()
    torch.testing.assert_close(unit.right_bound - unit.left_bound,
                               right - left)
    assert (unit.alignment_iou() > .93).all()
    assert unit.difference_from(
        mean=unit.running_mean, std=unit.running_std) < 1e-6


def test_bounds_reach_out_to_a_corner():
    """5 std to the right or left of the mean, not 13."""
    unit = with_statistics([-1., 1., 2.6], [.2] * 3, function='LeakyReLU')
    unit.realign()
    found = torch.stack([unit.left_bound, unit.right_bound], 1)
    torch.testing.assert_close(
        found, torch.tensor([[-1.6, 0.], [0., 1.6], [-3., 3.]]))
    assert unit.difference_from(
        mean=unit.running_mean, std=unit.running_std) < 1e-6


def test_units_that_met_nothing_keep_their_form():
    unit = PWLU(2, function='SiLU')
    unit.start_phase1()
    unit.running_std[0] = unit.num_batches[0] = 1
    before = copy.deepcopy(unit.state_dict())
    assert unit.realign().tolist() == [True, False]
    for key in ('points', 'left_bound', 'left_slope'):
        assert torch.equal(unit.state_dict()[key][1], before[key][1])
    assert unit.realign().tolist() == [True, False]


def test_a_bound_that_is_given_stays():
    unit = PWLU(3, bound=4.5, function='ReLU6')
    assert unit.right_bound.tolist() == [4.5] * 3
    assert not unit.keeps_function
    assert 0 < unit.difference_from() < .05


def test_the_default_bound_of_relu():
    assert PWLU(3).bound == PWLU(3, bound=3.).bound == 3
    assert_relu_form(PWLU(3), 0, -3, 3)


@pytest.mark.parametrize('way', [
    copy.deepcopy, through_pickle,
    lambda unit: through_state(unit, PWLU(3, function='SiLU'))
])
def test_copies_keep_the_function(way):
    unit = PWLU(3, function='SiLU')
    unit.start_phase1()
    copied, x = way(unit), maps(4, 3, 9)
    assert copied.function.name == 'SiLU' and copied.current_phase == 1
    assert torch.equal(copied(x), F.silu(x))
    assert torch.equal(unit(x), F.silu(x))
    assert_same(statistics(unit), statistics(copied))


def through_state(unit, loaded):
    loaded.load_state_dict(unit.state_dict())
    return loaded


def test_the_function_is_no_part_of_the_module():
    unit, plain = PWLU(3, function=nn.PReLU(3)), PWLU(3)
    assert list(unit.state_dict()) == list(plain.state_dict())
    assert [n for n, _ in unit.named_modules()] == ['']
    assert len(list(unit.parameters())) == 5


@pytest.mark.parametrize(
    'function, text',
    [(None, 'phase=0)'), ('SiLU', 'phase=0, function=SiLU())'),
     (nn.LeakyReLU(.2), 'function=LeakyReLU(negative_slope=0.2))')])
def test_repr_tells_the_function(function, text):
    assert repr(PWLU(3, function=function)).endswith(text)


def test_lazy_in_place_of_a_function():
    unit = PWLU(function='SiLU')
    unit(maps(2, 5, 3, 3))
    assert torch.equal(unit.points, PWLU(5, function='SiLU').points)


@ASSIGN
def test_function_on_meta():
    with torch.device('meta'):
        loaded = PWLU(3, function='GELU')
    unit = PWLU(3, function='GELU')
    loaded.load_state_dict(unit.state_dict(), assign=True)
    x = maps(4, 3, 9)
    assert torch.equal(loaded(x), unit(x))


@needs_torch('2.1', 'compiles no call of an object')
@pytest.mark.parametrize('function', ['SiLU', 'LeakyReLU', nn.PReLU(3)])
def test_compiles_in_phase1(function):
    unit, x = PWLU(3, function=function).eval(), maps(4, 3, 9, 9)
    unit.start_phase1()
    torch._dynamo.reset()
    compiled = torch.compile(unit, backend='eager', fullgraph=True)
    torch.testing.assert_close(compiled(x), unit(x))


@pytest.mark.parametrize('change', ['realign', 'load_state_dict'])
def test_compiled_before_a_phase_begins(change):
    """Before 2.5 torch does not compare what it has compiled in.

    And 2.0 does not find a module in a Sequential that sets an attribute.
    """
    unit, x = PWLU(3), 3 * maps(4, 3, 9, 9)
    unit.start_phase1()
    torch._dynamo.reset()
    compiled = torch.compile(nn.Sequential(unit), backend='eager')
    compiled(x)
    other = copy.deepcopy(unit)
    other.realign()
    with torch.no_grad():
        other.points.add_(torch.rand_like(other.points))
    if change == 'realign':
        unit.realign()
        with torch.no_grad():
            unit.points.copy_(other.points)
    else:
        unit.load_state_dict(other.state_dict())
    y = compiled(x)
    torch.testing.assert_close(y, other(x))
    grad, = torch.autograd.grad(y.sum(), unit.points)
    assert grad.abs().sum() > 0


@pytest.mark.parametrize('mean, std', [(0., 1.), (.5, 2.)])
def test_difference_by_hand(mean, std):
    """Of 1.01 x from x: 1 percent, whatever the input."""
    unit = PWLU(2, function=nn.Identity())
    with torch.no_grad():
        for name in ('points', 'left_slope', 'right_slope'):
            getattr(unit, name).mul_(1.01)
    percent = pytest.approx(.01, rel=1e-5)
    assert unit.difference_from(mean=mean, std=std) == percent
    each = torch.tensor([mean, 0.])
    assert unit.difference_from(mean=each, std=std) == percent
    assert unit.difference_from('ReLU') > .5
    assert PWLU(2).difference_from() == 0
    with torch.no_grad():
        unit.points.add_(1)
    unit.start_phase1()
    assert unit.difference_from() == 0
    assert not unit.num_batches.any()


def test_difference_without_a_width():
    with pytest.raises(ValueError, match='PWLU has no width yet'):
        PWLU().difference_from()


# PReLU's slopes.


def test_slopes_of_every_channel():
    prelu = nn.PReLU(3)
    prelu.weight.data = torch.tensor([.1, .5, -.25])
    unit, x = PWLU(function=prelu), 4 * maps(6, 3, 9)
    assert unit.num_channels == 3
    torch.testing.assert_close(unit(x), prelu(x))
    unit.start_phase1()
    assert torch.equal(unit(x), prelu(x))
    unit.realign()
    torch.testing.assert_close(unit.left_slope, prelu.weight)
    torch.testing.assert_close(unit(x), prelu(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('granularity', ['layer', 'channel'])
def test_slopes_of_another_width(granularity):
    units = 1 if granularity == 'layer' else 4
    with pytest.raises(
            ValueError,
            match=f'PWLU has {units} functions and cannot stand in place of a '
            'PReLU of 3 slopes; write granularity=.channel. and '
            'num_channels=3'):
        PWLU(4, granularity=granularity, function=nn.PReLU(3))


@pytest.mark.parametrize('num_channels', [3, None])
@pytest.mark.parametrize('slopes', [[.1, .5, .2], [.4]])
def test_slopes_of_a_checkpoint(num_channels, slopes):
    """Of the network before the swap; nothing is missing or left."""
    old = nn.Sequential(nn.Conv2d(2, 3, 1), nn.PReLU(len(slopes)))
    old[1].weight.data = torch.tensor(slopes)
    new = nn.Sequential(
        nn.Conv2d(2, 3, 1), PWLU(num_channels, function='PReLU'))
    if num_channels is None and len(slopes) == 1:
        new.load_state_dict(old.state_dict(), strict=False)
    else:
        new.load_state_dict(old.state_dict())
        assert new[1].is_fresh()
    x = maps(2, 2, 5, 5)
    torch.testing.assert_close(new(x), old(x))
    new[1].init_weights()
    torch.testing.assert_close(new(x), old(x))
    new[1].start_phase1()
    assert torch.equal(new(x), old(x))
    assert new[1].is_fresh()
    # A run that goes on takes them from its own checkpoint.
    resumed = nn.Sequential(nn.Conv2d(2, 3, 1), PWLU(3, function='PReLU'))
    resumed.load_state_dict(new.state_dict())
    assert torch.equal(resumed(x), old(x))
    assert resumed[1].difference_from() == 0


def test_own_numbers_come_before_slopes():
    """Of a checkpoint that has both, and of a width that does not fit."""
    unit = PWLU(3, function='PReLU')
    state = {**shaken(3).state_dict(), 'weight': torch.zeros(3)}
    unit.load_state_dict(state, strict=False)
    assert torch.equal(unit.points, state['points'])
    unit = PWLU(3, function='PReLU')
    found = unit.load_state_dict(dict(weight=torch.zeros(4)), strict=False)
    assert found.unexpected_keys == ['weight']
    assert unit.left_slope.tolist() == [.25] * 3
    found = PWLU(3).load_state_dict(dict(weight=torch.zeros(3)), strict=False)
    assert found.unexpected_keys == ['weight']


def test_is_fresh():
    """Until it learns; without a width; not of a part under FSDP."""
    unit = PWLU(3, function='SiLU')
    assert unit.is_fresh() and unit.half().is_fresh()
    unit.points.data[1, 1] += .01
    assert not unit.is_fresh()
    assert PWLU(function='SiLU').is_fresh()
    unit.points.data = unit.points.data.flatten()[:7]
    assert not unit.is_fresh()
