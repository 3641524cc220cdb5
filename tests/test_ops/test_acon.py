"""mm_acon.ops.acon against Eq. 4 of arXiv 2009.04759 and what follows."""
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd import gradcheck

from mm_acon.ops import acon
from tests.utils import DTYPES, LAYOUTS, SHAPES, assert_near, run, with_layout

# With beta (p1 - p2) x = ln 3 the sigmoid is exactly 3/4. Here p1 = 1.5,
# p2 = 0.5 and beta = ln 3, so D = (p1 - p2) x = x and y = x ln 3, and
# g = s + y s (1 - s) with s (1 - s) = 3/16. By hand:
# x, f, df/dx = g + p2, df/dp1 = x g, df/dp2 = x (1 - g), df/dbeta = 3/16
LN3 = math.log(3)
BY_HAND = [
    (1., 1.25, 1.25 + LN3 * 3 / 16, .75 + LN3 * 3 / 16, .25 - LN3 * 3 / 16,
     3 / 16),
    (-1., -.75, .75 - LN3 * 3 / 16, -.25 + LN3 * 3 / 16, -.75 - LN3 * 3 / 16,
     3 / 16),
    (0., 0., 1., 0., 0., 0.),
]
# beta's shape for x of shape (2, 3, ...), each kind that there is.
BETAS = {
    'channel': lambda x: (3, ),
    'layer': lambda x: (1, ),
    'sample and channel': lambda x: (2, 3),
    'sample': lambda x: (2, 1),
    'pixel': lambda x: tuple(x.shape),
}
# Where the slope g(y) of y sigmoid(y) is greatest, and how large it is.
EXTREMUM, GREATEST, LEAST = 2.3993572805, 1.0998393201, -.0998393201
# The greatest value of t sigmoid(-t).
GAP = .2784645


def numbers(shape, device, seed=0, scale=1.):
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(shape, generator=generator) * scale).to(device)


def one(device, *values):
    return [
        torch.tensor([v], dtype=torch.float64, device=device) for v in values
    ]


def spread(parameter, x):
    """A parameter or beta, one number for each element of x."""
    if parameter.shape == x.shape:
        return parameter
    if parameter.dim() == 1:
        parameter = parameter[None]
    return parameter.reshape(*parameter.shape,
                             *[1] * (x.dim() - 2)).expand_as(x)


def expected(x, p1, p2, beta, grad):
    """Value and gradients, in float64 and each from its own formula."""
    shapes = [t.shape for t in (p1, p2, beta)]
    x, grad = x.double(), grad.double()
    p1, p2, beta = (spread(t.double(), x) for t in (p1, p2, beta))
    difference = (p1 - p2) * x
    s = 1 / (1 + torch.exp(-beta * difference))
    g = s + beta * difference * s * (1 - s)
    grads = [grad * (p2 + (p1 - p2) * g)]
    for full, shape in zip(
        (grad * x * g, grad * x * (1 - g), grad * difference**2 * s * (1 - s)),
            shapes):
        if full.shape != shape:
            full = full.flatten(2).sum(2) if x.dim() > 2 else full
            full = full.sum(0) if len(shape) == 1 else full
            full = full.sum(-1, keepdim=True) if shape[-1] == 1 else full
        grads.append(full)
    return difference * s + p2 * x, grads


@pytest.mark.parametrize('row', BY_HAND, ids=lambda row: f'x={row[0]}')
def test_by_hand(row, device):
    result, grads = run(acon,
                        torch.tensor([[row[0]]], device=device).double(),
                        *one(device, 1.5, .5, LN3))
    assert [result.item(), *(g.item() for g in grads)] == pytest.approx(
        row[1:], abs=1e-12)


@pytest.mark.parametrize('layout', LAYOUTS)
@pytest.mark.parametrize('dtype', DTYPES, ids=str)
@pytest.mark.parametrize('shape', SHAPES, ids=str)
@pytest.mark.parametrize('beta', BETAS)
def test_shapes_layouts_dtypes(beta, shape, dtype, layout, device):
    x, grad = (numbers(shape, device, seed).to(dtype) for seed in range(2))
    parameters = [
        numbers(s, device, seed + 2).to(dtype)
        for seed, s in enumerate([(3, ), (3, ), BETAS[beta](x)])
    ]
    y, grads = run(acon, with_layout(x, layout), *parameters, grad=grad)
    true_y, true_grads = expected(x, *parameters, grad)
    assert (y.dtype, y.shape) == (dtype, shape)
    assert_near(y, true_y)
    for result, true, given_ in zip(grads, true_grads, (x, *parameters)):
        assert (result.dtype, result.shape) == (dtype, given_.shape)
        assert_near(result, true, backward=True)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize('beta', BETAS)
def test_mixed_precision(beta, dtype, device):
    """The sums of the gradients stay in float32, however coarse x is."""
    shape = (2, 3, 40, 60)
    x, grad = (numbers(shape, device, seed).to(dtype) for seed in range(2))
    parameters = [
        numbers(s, device, seed + 2)
        for seed, s in enumerate([(3, ), (3, ), BETAS[beta](x)])
    ]
    y, grads = run(acon, x, *parameters, grad=grad)
    true_y, true_grads = expected(x, *parameters, grad)
    assert (y.dtype, grads[0].dtype) == (dtype, dtype)
    assert_near(y, true_y)
    for result, true in zip(grads[1:], true_grads[1:]):
        assert result.dtype == torch.float32
        # A sum of thousands of terms: relative to the largest sum.
        scale = true.abs().max()
        assert_near(result / scale, true / scale, backward=True)


@pytest.mark.parametrize('rows', [1, 3])
@pytest.mark.parametrize('beta', BETAS)
def test_gradcheck(beta, rows, device):
    x = numbers((2, 3, 2, 2), device).double()
    inputs = [x] + [
        numbers(s, device, seed + 1).double()
        for seed, s in enumerate([(rows, ), (rows, ), BETAS[beta](x)])
    ]
    assert gradcheck(acon, [t.requires_grad_() for t in inputs])


@pytest.mark.parametrize('shared', range(3))
def test_one_parameter_of_the_layer(shared, device):
    """Each parameter may be one number; then it gets the channels' sum."""
    x = numbers((2, 3, 4), device).double()
    parameters = [numbers((3, ), device, s).double() for s in range(1, 4)]
    parameters[shared] = parameters[shared][:1]
    full = list(parameters)
    full[shared] = full[shared].repeat(3)
    y, grads = run(acon, x, *parameters)
    true_y, true_grads = run(acon, x, *full)
    assert torch.equal(y, true_y)
    torch.testing.assert_close(grads[1 + shared],
                               true_grads[1 + shared].sum(0, keepdim=True))


@pytest.mark.parametrize('dtype', DTYPES, ids=str)
def test_swish(dtype, device):
    """p1 = 1, p2 = 0 and beta = 1 is PyTorch's silu."""
    x = numbers((2, 3, 5), device, scale=4.).to(dtype)
    fixed = [torch.tensor([v], device=device) for v in (1., 0., 1.)]
    y, (grad, *_) = run(acon, x, *fixed)
    true_y, (true_grad, ) = run(F.silu, x.double())
    assert_near(y, true_y)
    assert_near(grad, true_grad, backward=True)


@pytest.mark.parametrize('p1, p2', [(1., 0.), (.25, 1.5), (-1., 2.), (.7, .7)])
def test_limits(p1, p2, device):
    """Maximum, mean and minimum of the two lines."""
    x = torch.linspace(-3, 3, 61, device=device).double()[:, None]
    x = x[x.abs() > .01][:, None]
    for beta, line in ((1e6, torch.maximum(p1 * x,
                                           p2 * x)), (0., (p1 + p2) / 2 * x),
                       (-1e6, torch.minimum(p1 * x, p2 * x))):
        torch.testing.assert_close(acon(x, *one(device, p1, p2, beta)), line)


@pytest.mark.parametrize('p1, p2', [(1., 0.), (1.5, .25), (.25, 1.5),
                                    (-1., 2.)])
def test_extrema_of_the_slope(p1, p2, device):
    beta = .7
    y = torch.tensor([EXTREMUM, -EXTREMUM], device=device).double()
    x = torch.cat([y, torch.linspace(-9, 9, 1801, device=device).double()])
    x = x[:, None] / (beta * (p1 - p2))
    _, (slope, *_) = run(acon, x, *one(device, p1, p2, beta))
    at_extrema = [GREATEST * p1 + LEAST * p2, GREATEST * p2 + LEAST * p1]
    assert slope[:2].flatten().tolist() == pytest.approx(at_extrema, abs=1e-9)
    assert slope.max() <= max(at_extrema) + 1e-9
    assert slope.min() >= min(at_extrema) - 1e-9


def test_gap_to_the_maximum(device):
    """|f - max(p1 x, p2 x)| reaches 0.2784645 / beta and stays below it."""
    beta = 3.
    x = torch.linspace(-4, 4, 8001, device=device).double()[:, None]
    gap = torch.relu(x) - acon(x, *one(device, 1., 0., beta))
    assert gap.min() >= 0
    assert gap.max().item() == pytest.approx(GAP / beta, abs=1e-6)


def test_large_x_and_beta(device):
    """The sigmoid saturates and nothing becomes NaN."""
    x = torch.tensor([[-1e30], [-90.], [0.], [90.], [1e30]], device=device)
    for beta in (1e6, -1e6):
        y, grads = run(
            acon, x,
            *(torch.tensor([v], device=device) for v in (1., .5, beta)))
        for result in (y, *grads[:3]):
            assert not result.isnan().any()
        best = torch.maximum if beta > 0 else torch.minimum
        torch.testing.assert_close(y, best(x, .5 * x))


def test_nan_stays_where_it_is(device):
    x = numbers((2, 3, 4), device)
    parameters = [numbers((3, ), device, s) for s in range(1, 4)]
    clean, clean_grads = run(acon, x, *parameters)
    x[0, 1, 2] = math.nan
    y, grads = run(acon, x, *parameters)
    hit = x.isnan()
    assert y[hit].isnan().all()
    assert torch.equal(y[~hit], clean[~hit])
    assert torch.equal(grads[0][~hit], clean_grads[0][~hit])
    for result, true in zip(grads[1:], clean_grads[1:]):
        assert torch.equal(result[::2], true[::2])  # the other channels


def test_infinity(device):
    """Both lines are infinite, and so is their maximum."""
    x = torch.tensor([[math.inf], [-math.inf]], device=device).double()
    assert acon(x, *one(device, 2., .5, 1.))[0].item() == math.inf


@pytest.mark.parametrize('beta', BETAS)
@pytest.mark.parametrize('shape', [(2, 3, 0), (2, 3, 4, 0)])
def test_empty_map(shape, beta, device):
    x = torch.zeros(shape, device=device)
    parameters = [torch.ones(3, device=device)] * 2
    y, grads = run(acon, x, *parameters,
                   torch.ones(BETAS[beta](x), device=device))
    assert y.shape == shape
    assert not any(result.any() for result in grads)


@pytest.mark.parametrize('beta', [(3, ), (1, ), (0, 3), (0, 1), (0, 3, 4)])
def test_empty_batch(beta, device):
    parameters = [torch.ones(3, device=device)] * 2
    y, grads = run(acon, torch.zeros(0, 3, 4, device=device), *parameters,
                   torch.ones(beta, device=device))
    assert y.shape == (0, 3, 4)
    assert not any(result.any() for result in grads)


def test_only_asked_gradients(device):
    """A frozen parameter gets none, and does not disturb the others."""
    inputs = [numbers(
        (2, 3, 4), device)] + [numbers((3, ), device, s) for s in range(1, 4)]
    _, grads = run(acon, *inputs)
    for trained in range(4):
        mine = [t.clone() for t in inputs]
        mine[trained].requires_grad_()
        acon(*mine).sum().backward()
        assert torch.equal(mine[trained].grad, grads[trained])
        assert sum(t.grad is not None for t in mine) == 1


some_x = st.lists(st.floats(-9, 9), min_size=2, max_size=8)
slope, beta = st.floats(-3, 3), st.floats(-5, 5)
hypothetical = settings(max_examples=40, deadline=None, derandomize=True)


@hypothetical
@given(x=some_x, p1=slope, p2=slope, beta=beta)
def test_symmetries(x, p1, p2, beta, device):
    """p1 and p2 may be swapped; beta and -beta add up to both lines."""
    x = torch.tensor(x, device=device).double()[:, None]
    y = acon(x, *one(device, p1, p2, beta))
    torch.testing.assert_close(y, acon(x, *one(device, p2, p1, beta)))
    torch.testing.assert_close(
        y + acon(x, *one(device, p1, p2, -beta)), (p1 + p2) * x,
        rtol=1e-9,
        atol=1e-9)


@hypothetical
@given(x=some_x, p1=slope, p2=slope, beta=st.floats(.01, 50))
def test_close_to_the_maximum(x, p1, p2, beta, device):
    x = torch.tensor(x, device=device).double()[:, None]
    y = acon(x, *one(device, p1, p2, beta))
    below = torch.maximum(p1 * x, p2 * x) - y
    assert below.min() >= -1e-9
    assert below.max() <= GAP * (1 + 1e-6) / beta + 1e-9


@hypothetical
@given(x=some_x, p1=slope, p2=slope, beta=beta)
def test_continuous(x, p1, p2, beta, device):
    x = torch.tensor(x, device=device).double()[:, None]
    parameters, h = one(device, p1, p2, beta), 1e-6
    steepest = max(
        abs(GREATEST * a + LEAST * b) for a, b in ((p1, p2), (p2, p1)))
    rise = acon(x + h, *parameters) - acon(x - h, *parameters)
    assert rise.abs().max() <= steepest * 2 * h + 1e-12
