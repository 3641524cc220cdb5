"""mm_acon.ops.pwlu against Eq. 1 to 4 and Table 1 of arXiv 2104.03693."""
import math
import re
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd import gradcheck

from mm_acon.ops import inference_table, pwlu, pwlu_reference, pwlu_table
from mm_acon.ops.pwlu import MIN_WIDTH
from tests.helpers.scripts import run_script
from tests.utils import DTYPES, LAYOUTS, SHAPES, assert_near, run, with_layout

ANY_LENGTH = Path(__file__).parents[1] / 'helpers/pwlu_of_any_length.py'

# One unit: bounds -1 and 1, Y = (0.5, -1, 2), K_L = -0.5, K_R = 4. Its two
# intervals have length 1 and slopes -1.5 and 3. By hand from Table 1:
# x, y, dx, dY, dB_L, dB_R, dK_L, dK_R
BY_HAND = [
    (-2., 1., -.5, (1, 0, 0), .5, 0, -1, 0),
    (-1., .5, -1.5, (1, 0, 0), 1.5, 0, 0, 0),  # on B_L: inside
    (-.75, .125, -1.5, (.75, .25, 0), 1.3125, .1875, 0, 0),
    (0., -1., 3, (0, 1, 0), -1.5, -1.5, 0, 0),  # on a knot: right of it
    (.5, .5, 3, (0, .5, .5), -.75, -2.25, 0, 0),
    (1., 2., 4, (0, 0, 1), 0, -4, 0, 0),  # on B_R: outside
    (3., 10., 4, (0, 0, 1), 0, -4, 0, 2),
]


def unit(dtype, device, points=(.5, -1, 2), bounds=(-1, 1), slopes=(-.5, 4)):
    """The five parameters of one unit."""
    return [
        torch.tensor(value, dtype=dtype, device=device)
        for value in ([points], [bounds[0]], [bounds[1]], [slopes[0]],
                      [slopes[1]])
    ]


def three_units(dtype=torch.float64, device='cpu'):
    """Parameters of three channels, N = 4.

    The lengths of the intervals are powers of two, so that any dtype holds
    the knots exactly.
    """
    generator = torch.Generator().manual_seed(0)
    points = torch.randint(-16, 17, (3, 5), generator=generator) / 8
    parameters = (points, torch.tensor([-1., -.5,
                                        -2.25]), torch.tensor([1., .5, 1.75]),
                  torch.tensor([-.5, .25, 2.]), torch.tensor([2., -.75, 1.5]))
    return [p.to(device, dtype) for p in parameters]


def sixteenths(shape, device, seed=0):
    """Multiples of 1/16 between -3 and 3: many lie on knots and bounds."""
    generator = torch.Generator().manual_seed(seed)
    return (torch.randint(-48, 49, shape, generator=generator) / 16).to(device)


def expected(x, grad, points, left, right, left_slope, right_slope):
    """Table 1 element by element: y, and the gradients of all six."""
    num_intervals = points.shape[1] - 1
    y = torch.zeros(x.shape, dtype=torch.float64)
    d_x, d_points = torch.zeros_like(y), points.double() * 0
    d_left, d_right, d_kl, d_kr = (left.double() * 0 for _ in range(4))
    for at in torch.cartesian_prod(*map(torch.arange, x.shape)).view(
            -1, x.dim()).tolist():
        at, c = tuple(at), at[1] if len(left) > 1 else 0
        value, g = x[at].item(), grad[at].item()
        b_l, b_r, k_l, k_r = (
            t[c].item() for t in (left, right, left_slope, right_slope))
        if value < b_l:
            y[at] = (value - b_l) * k_l + points[c, 0]
            d_x[at] = g * k_l
            d_points[c, 0] += g
            d_left[c] -= g * k_l
            d_kl[c] += g * (value - b_l)
        elif value >= b_r:
            y[at] = (value - b_r) * k_r + points[c, -1]
            d_x[at] = g * k_r
            d_points[c, -1] += g
            d_right[c] -= g * k_r
            d_kr[c] += g * (value - b_r)
        else:
            length = (b_r - b_l) / num_intervals
            i = math.floor((value - b_l) / length)
            t = (value - b_l) / length - i
            slope = (points[c, i + 1] - points[c, i]).item() / length
            y[at] = points[c, i] + t * length * slope
            d_x[at] = g * slope
            d_points[c, i] += g * (1 - t)
            d_points[c, i + 1] += g * t
            d_left[c] -= g * slope * (b_r - value) / (b_r - b_l)
            d_right[c] -= g * slope * (value - b_l) / (b_r - b_l)
    return y, [d_x, d_points, d_left, d_right, d_kl, d_kr]


@pytest.mark.parametrize('dtype', DTYPES, ids=str)
@pytest.mark.parametrize('row', BY_HAND, ids=lambda row: f'x={row[0]}')
def test_by_hand(row, dtype, device):
    """Every number of the table is exact in every dtype."""
    x, y, d_x, d_points, d_left, d_right, d_kl, d_kr = row
    result, grads = run(pwlu, torch.tensor([[x]], dtype=dtype, device=device),
                        *unit(dtype, device))
    assert result.item() == y
    assert [g.flatten().tolist() for g in grads] == [[d_x],
                                                     list(d_points), [d_left],
                                                     [d_right], [d_kl], [d_kr]]


@pytest.mark.parametrize('row', BY_HAND, ids=lambda row: f'x={row[0]}')
def test_inference_table_by_hand(row):
    table = inference_table(*unit(torch.float64, 'cpu'))
    x = torch.tensor([[row[0]]], dtype=torch.float64)
    assert pwlu_table(x, *table).item() == row[1]


def test_inference_table():
    """NaN stays NaN, and crossed bounds are as in the training form."""
    parameters = three_units(torch.float64, 'cpu')
    parameters[2] = parameters[2].clone()
    parameters[2][1] = parameters[1][1] - 1
    x = sixteenths((2, 3, 5, 5), 'cpu').double()
    x[0, 0, 0, 0] = math.nan
    torch.testing.assert_close(
        pwlu_table(x, *inference_table(*parameters)),
        pwlu(x, *parameters),
        equal_nan=True)


@pytest.mark.parametrize('layout', LAYOUTS)
@pytest.mark.parametrize('dtype', DTYPES, ids=str)
@pytest.mark.parametrize('shape', SHAPES, ids=str)
def test_shapes_layouts_dtypes(shape, dtype, layout, device):
    x, grad = sixteenths(shape, device), sixteenths(shape, device, seed=1)
    parameters = three_units(dtype, device)
    y, grads = run(
        pwlu, with_layout(x.to(dtype), layout), *parameters, grad=grad)
    true_y, true_grads = expected(x.cpu(), grad.cpu(), *three_units())
    assert (y.dtype, y.shape) == (dtype, shape)
    assert_near(y, true_y)
    for result, true in zip(grads, true_grads):
        assert result.dtype == dtype
        assert_near(result, true, backward=True)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16], ids=str)
def test_mixed_precision(dtype, device):
    """The sums of the gradients stay in float32, however coarse x is."""
    shape = (4, 3, 40, 30)
    x, grad = sixteenths(shape, device), sixteenths(shape, device, seed=1)
    wide, wide_grads = run(
        pwlu, x.double(), *three_units(device=device), grad=grad)
    y, grads = run(
        pwlu, x.to(dtype), *three_units(torch.float32, device), grad=grad)
    assert (y.dtype, grads[0].dtype) == (dtype, dtype)
    assert_near(y, wide)
    for result, true in zip(grads[1:], wide_grads[1:]):
        assert result.dtype == torch.float32
        assert_near(result, true, backward=True)


# What torch runs on here, and what comes before it.
BEST = re.search(r'CPU capability usage: (\w+)', torch.__config__.show())
LEVELS = dict(
    AVX512=('default', 'avx2', 'avx512'),
    AVX2=('default', 'avx2')).get(BEST and BEST.group(1), ('default', ))


@pytest.mark.parametrize('level', ('default', 'avx2', 'avx512'))
def test_forms_for_older_processors(level, tmp_path):
    """Each, however many pieces its registers hold and elements are left."""
    if level not in LEVELS:
        pytest.skip(f'torch uses no {level} on this processor')
    done = run_script(ANY_LENGTH, cwd=tmp_path, ATEN_CPU_CAPABILITY=level)
    assert (done.returncode, done.stdout) == (0, '49\n'), done.stderr


@pytest.mark.parametrize('rows', [1, 3])
def test_gradcheck(rows, device):
    """Away from the knots, where a difference quotient means something."""
    parameters = [p[:rows] for p in three_units(device=device)]
    points, left, right = parameters[:3]
    generator = torch.Generator().manual_seed(2)
    # Interval -1 is left of B_L, interval 4 right of B_R.
    interval = torch.randint(-1, 5, (2, 3, 6), generator=generator)
    inner = torch.rand(interval.shape, generator=generator) * .6 + .2
    place = (interval + inner.double()).to(device)
    x = left[:, None] + place * ((right - left) / 4)[:, None]
    inputs = [t.detach().requires_grad_() for t in (x, *parameters)]
    assert gradcheck(pwlu, inputs)


def test_gradcheck_where_the_bounds_cross(device):
    """The clamped function has a gradient too."""
    parameters = unit(
        torch.float64, device, points=(.5, -1, 2), bounds=(.5, .2))
    inside = .5 + MIN_WIDTH * torch.tensor([-.2, .3, .8, 1.4])
    x = torch.cat([inside.double(), torch.tensor([-2., 2.]).double()])
    inputs = [
        t.detach().requires_grad_()
        for t in (x[:, None].to(device), *parameters)
    ]
    assert gradcheck(pwlu, inputs, eps=1e-8, atol=1e-3)


@pytest.mark.parametrize('width', [-5., -1e-3, 0., 5e-4])
def test_narrow_bounds_count_as_min_width(width, device):
    left = .5
    x = torch.tensor([[
        -1., left, left + .3 * MIN_WIDTH, left + .7 * MIN_WIDTH,
        left + 2 * MIN_WIDTH, 3.
    ]])
    x = x.t().double()
    grad = torch.tensor([[1., 2., -1., 3., .5, 4.]]).t().double()
    y, grads = run(
        pwlu,
        x.to(device),
        *unit(torch.float64, device, bounds=(left, left + width)),
        grad=grad)
    true_y, true_grads = expected(
        x, grad, *unit(torch.float64, 'cpu', bounds=(left, left + MIN_WIDTH)))
    # B_R = B_L + MIN_WIDTH: whatever B_R would get belongs to B_L.
    true_grads[2] = true_grads[2] + true_grads[3]
    true_grads[3] = true_grads[3] * 0
    torch.testing.assert_close(y.cpu(), true_y)
    for result, true in zip(grads, true_grads):
        torch.testing.assert_close(result.cpu(), true)


@pytest.mark.parametrize('dtype', DTYPES, ids=str)
@pytest.mark.parametrize('left', [0., 1., -300., 1e4, -5e4])
def test_narrow_bounds_never_give_nan(left, dtype, device):
    """Also where MIN_WIDTH is below the rounding of the bounds."""
    x = torch.tensor([-6e4, -300., -1., 0., 1., 1e4, 6e4]).to(device, dtype)
    for right in (left, left - 2, 2 * left):
        y, grads = run(pwlu, x[:, None],
                       *unit(dtype, device, bounds=(left, right)))
        for result in (y, *grads):
            assert not result.isnan().any()


def test_nan_stays_where_it_is(device):
    x = sixteenths((2, 3, 4), device)
    clean, clean_grads = run(pwlu, x, *three_units(torch.float32, device))
    dirty = x.clone()
    dirty[0, 1, 2] = math.nan
    y, grads = run(pwlu, dirty, *three_units(torch.float32, device))
    hit = dirty.isnan()
    assert y[hit].isnan().all()
    assert torch.equal(y[~hit], clean[~hit])
    assert torch.equal(grads[0][~hit], clean_grads[0][~hit])
    for result, true in zip(grads[1:], clean_grads[1:]):
        assert torch.equal(result[::2], true[::2])  # the other channels


def test_nan_parameters_give_nan(device):
    """No index is computed from NaN."""
    x = sixteenths((2, 3, 4), device)
    for poisoned in range(1, 3):
        parameters = three_units(torch.float32, device)
        parameters[poisoned][1] = math.nan
        y = pwlu(x, *parameters)
        assert y[:, 1].isnan().any()
        assert not y[:, ::2].isnan().any()


@pytest.mark.parametrize('dtype', DTYPES, ids=str)
def test_infinity(dtype, device):
    """(-inf - B_L) K_L + Y_0 with K_L = -0.5, and the like with K_R = 4."""
    x = torch.tensor([[math.inf], [-math.inf], [.5]]).to(device, dtype)
    y, grads = run(pwlu, x, *unit(dtype, device))
    assert y.flatten().tolist() == [math.inf, math.inf, .5]
    assert grads[0].flatten().tolist() == [4, -.5, 3]
    assert grads[1].tolist() == [[1, .5, 1.5]]
    # x - B_L and x - B_R.
    assert (grads[4].item(), grads[5].item()) == (-math.inf, math.inf)


@pytest.mark.parametrize('shape', [(0, 3), (0, 3, 4, 4), (2, 3, 0),
                                   (2, 3, 4, 0)])
def test_empty(shape, device):
    y, grads = run(pwlu, torch.zeros(shape, device=device),
                   *three_units(torch.float32, device))
    assert y.shape == shape
    for result in grads:
        assert not result.any()


def test_layer_wise_equals_equal_rows(device):
    x, grad = sixteenths((2, 3, 5), device), sixteenths((2, 3, 5), device, 1)
    one = [p[:1] for p in three_units(device=device)]
    equal = [p.expand(3, *p.shape[1:]).contiguous() for p in one]
    y, grads = run(pwlu, x.double(), *one, grad=grad)
    true_y, true_grads = run(pwlu, x.double(), *equal, grad=grad)
    assert torch.equal(y, true_y)
    assert torch.equal(grads[0], true_grads[0])
    for result, true in zip(grads[1:], true_grads[1:]):
        assert_near(result, true.sum(0, keepdim=True), backward=True)


@pytest.mark.parametrize('shared', range(5))
def test_one_parameter_of_the_layer(shared, device):
    """Each parameter may have one row for itself."""
    x = sixteenths((2, 3, 5), device)
    parameters = three_units(torch.float32, device)
    parameters[shared] = parameters[shared][:1]
    full = list(parameters)
    full[shared] = full[shared].expand(3, *full[shared].shape[1:])
    y, grads = run(pwlu, x, *parameters)
    assert torch.equal(y, pwlu(x, *full))
    assert grads[1 + shared].shape == parameters[shared].shape


def test_one_interval(device):
    """N = 1, the least there is: a line from (0, 1) to (2, 5)."""
    parameters = unit(
        torch.float32, device, points=(1, 5), bounds=(0, 2), slopes=(0, 0))
    x = torch.tensor([[-1.], [0.], [.5], [1.5], [2.], [7.]], device=device)
    assert pwlu(x, *parameters).flatten().tolist() == [1, 1, 2, 4, 5, 5]


def test_inputs_stay_as_they_are(device):
    x, parameters = sixteenths((2, 3), device), three_units(device=device)
    before = [t.clone() for t in (x, *parameters)]
    run(pwlu, x, *parameters)
    for now, then in zip((x, *parameters), before):
        assert torch.equal(now, then)


def test_only_asked_gradients(device):
    """A frozen parameter gets none, and does not disturb the others."""
    x, parameters = sixteenths((2, 3), device), three_units(device=device)
    _, grads = run(pwlu, x, *parameters)
    for trained in range(6):
        inputs = [t.clone() for t in (x, *parameters)]
        inputs[trained].requires_grad_()
        pwlu(*inputs).sum().backward()
        assert torch.equal(inputs[trained].grad, grads[trained])
        assert sum(t.grad is not None for t in inputs) == 1


# Any unit: N = 4, bounds at least 0.1 apart.
units = st.tuples(
    st.lists(st.floats(-4, 4), min_size=5, max_size=5), st.floats(-3, 3),
    st.floats(.1, 5), st.floats(-2, 2), st.floats(-2, 2))
some_x = st.lists(st.floats(-9, 9), min_size=2, max_size=8)
hypothetical = settings(max_examples=40, deadline=None, derandomize=True)


def tensors(drawn, device):
    points, left, width, left_slope, right_slope = drawn
    return unit(torch.float64, device, points, (left, left + width),
                (left_slope, right_slope))


def test_formula_is_compiled_whole():
    """The benchmarks compare with it."""
    x, parameters = torch.randn(2, 1, 3), unit(torch.float32, 'cpu')
    compiled = torch.compile(pwlu_reference, fullgraph=True, backend='eager')
    assert_near(compiled(x, *parameters), pwlu(x, *parameters))


@hypothetical
@given(drawn=units, x=some_x)
def test_continuous(drawn, x, device):
    """One step h changes the value by at most the largest slope times h."""
    parameters = tensors(drawn, device)
    points, left, right = parameters[:3]
    length = (right - left) / 4
    knots = left + torch.arange(5, device=device) * length
    x = torch.cat([knots, torch.tensor(x, device=device).double()])[:, None]
    slopes = torch.cat([points.diff().flatten() / length, *parameters[3:]])
    h = 1e-6
    rise = pwlu(x + h, *parameters) - pwlu(x - h, *parameters)
    assert rise.abs().max() <= slopes.abs().max() * 2 * h + 1e-12


@hypothetical
@given(drawn=units, x=some_x, factor=st.floats(-3, 3))
def test_linear_in_values_and_slopes(drawn, x, factor, device):
    points, left, right, left_slope, right_slope = tensors(drawn, device)
    x = torch.tensor(x, device=device).double()[:, None]
    y = pwlu(x, points, left, right, left_slope, right_slope)
    scaled = pwlu(x, factor * points, left, right, factor * left_slope,
                  factor * right_slope)
    torch.testing.assert_close(scaled, factor * y, rtol=1e-9, atol=1e-9)
