"""What holds for any shape, dtype, layout, bounds and number of intervals."""
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mm_acon.ops import (acon, acon_reference, inference_table, pwlu,
                         pwlu_reference, pwlu_table)
from mm_acon.ops.pwlu import MIN_WIDTH
from tests.utils import DTYPES, LAYOUTS, assert_near, run, with_layout

any_case = settings(max_examples=150, deadline=None, derandomize=True)
shapes = st.tuples(
    st.integers(0, 3), st.integers(1, 20),
    st.lists(st.integers(0, 6),
             max_size=3)).map(lambda drawn: (drawn[0], drawn[1], *drawn[2]))
seeds = st.integers(0, 2**16)
# Of x and of the parameters, which mixed precision keeps in float32.
dtypes = st.sampled_from([(dtype, torch.promote_types(dtype, torch.float32))
                          for dtype in DTYPES])
# Width of the bounds: most are apart, some touch, cross or nearly do.
widths = st.one_of(
    st.floats(.5, 6), st.floats(-1, 2 * MIN_WIDTH), st.just(MIN_WIDTH))


def draw(seed, *shape, step=None):
    """Normal numbers, or multiples of step."""
    generator = torch.Generator().manual_seed(seed)
    x = 2 * torch.randn(shape, generator=generator, dtype=torch.float64)
    return x if step is None else (x / step).round() * step


def exact_units(seed, units, intervals, length):
    """PWLU's parameters, such that float32 holds all that is computed."""
    left = draw(seed, units, step=.25)
    return [
        draw(seed + 1, units, intervals + 1, step=.125), left,
        left + intervals * length,
        draw(seed + 2, units, step=.25),
        draw(seed + 3, units, step=.25)
    ]


def assert_gradients(results, expected, scales=(1, ) * 6):
    """scales: the sizes of the terms that were added up, and may cancel."""
    for result, true, scale in zip(results, expected, scales):
        assert result.shape == true.shape
        assert_near(result / scale, true / scale, backward=True)


def with_memory(shape, layout):
    """Layouts that a tensor without elements, or of two axes, can have."""
    return layout if 0 not in shape and len(shape) > 2 else 'contiguous'


@any_case
@given(
    shape=shapes,
    dtypes=dtypes,
    layout=st.sampled_from(LAYOUTS),
    intervals=st.integers(1, 40),
    length=st.sampled_from([.125, .25, .5, 1.]),
    layer_wise=st.booleans(),
    cut=st.integers(0, 3),
    seed=seeds)
def test_pwlu(shape, dtypes, layout, intervals, length, layer_wise, cut, seed,
              device):
    """Many x lie on knots and bounds, where each form must decide alike."""
    (dtype, parameter_dtype), channels = dtypes, shape[1]
    units = 1 if layer_wise else channels
    exact = exact_units(seed, units, intervals, length)
    parameters = [p.to(device, parameter_dtype) for p in exact]
    layout = with_memory(shape, layout)
    x = draw(seed + 4, *shape, step=.0625).clamp(-6, 6)
    x = with_layout(x.to(device, dtype), layout)
    # Gradients that half precision holds, so that sums are exact.
    grad = draw(seed + 5, *shape, step=.25).clamp(-4, 4).to(device)

    # The reference in float64, whatever form this run is of.
    y, grads = run(pwlu, x, *parameters, grad=grad)
    true_y, true_grads = run(
        pwlu_reference, x.double().cpu(), *exact, grad=grad.cpu())
    assert y.dtype == dtype
    assert_near(y, true_y)
    assert_gradients(grads, true_grads)

    # One row for all is equal rows, whose gradients are added.
    if layer_wise:
        rows = [p.expand(channels, *p.shape[1:]) for p in parameters]
        rows_y, rows_grads = run(pwlu, x, *rows, grad=grad)
        assert torch.equal(rows_y, y)
        assert torch.equal(rows_grads[0], grads[0])
        assert_gradients([g.sum(0, keepdim=True) for g in rows_grads[1:]],
                         grads[1:])
    else:
        order = torch.randperm(
            channels, generator=torch.Generator().manual_seed(seed))
        order = order.to(device)
        moved_y, moved = run(
            pwlu,
            with_layout(x[:, order], layout),
            *(p[order] for p in parameters),
            grad=grad[:, order])
        assert torch.equal(moved_y, y[:, order])
        assert torch.equal(moved[0], grads[0][:, order])
        assert_gradients(moved[1:], [g[order] for g in grads[1:]])

    # Two parts of a batch give the whole's gradients, added.
    parts = [
        run(pwlu, part, *parameters, grad=g)
        for part, g in zip(x.tensor_split([cut]), grad.tensor_split([cut]))
    ]
    assert torch.equal(torch.cat([part[0] for part in parts]), y)
    assert_gradients(
        [sum(both) for both in zip(*(part[1][1:] for part in parts))],
        grads[1:])

    # The table for inference is the same function.
    table = inference_table(*parameters)
    assert_near(pwlu_table(x, *table), true_y)


@any_case
@given(
    shape=shapes,
    dtypes=dtypes,
    layout=st.sampled_from(LAYOUTS),
    kind=st.sampled_from(['row', 'rows', 'sample', 'both', 'element']),
    cut=st.integers(0, 3),
    seed=seeds)
def test_acon(shape, dtypes, layout, kind, cut, seed, device):
    (dtype, parameter_dtype), (samples, channels) = dtypes, shape[:2]
    units = 1 if kind == 'row' else channels
    beta_shape = dict(
        row=(1, ),
        rows=(channels, ),
        sample=(samples, 1),
        both=(samples, channels),
        element=shape)[kind]
    exact = [draw(seed + i, units).float()
             for i in range(2)] + [draw(seed + 2, *beta_shape).float()]
    parameters = [p.to(device, parameter_dtype) for p in exact]
    layout = with_memory(shape, layout)
    x = with_layout(draw(seed + 3, *shape).to(device, dtype), layout)
    grad = draw(seed + 4, *shape).to(device, dtype)

    y, grads = run(acon, x, *parameters, grad=grad)
    true_y, true_grads = run(
        acon_reference,
        x.double().cpu(),
        *(p.double() for p in exact),
        grad=grad.double().cpu())
    # Sizes of y, and of the gradients of x, p1, p2 and beta.
    slope = 1 + max(p.abs().max().item() for p in exact[:2])
    wide_x, wide_grad = x.double().abs(), grad.double().abs()
    size_y = slope * (1 + wide_x.amax() if x.numel() else 1)
    steps = 1 + (wide_grad * wide_x).sum()
    bumps = slope**2 * (1 + (wide_grad * wide_x.square()).sum())
    sizes = [
        slope * (1 + wide_grad.amax() if x.numel() else 1), steps, steps, bumps
    ]
    assert y.dtype == dtype
    assert_near(y / size_y, true_y / size_y)
    assert_gradients(grads, true_grads, sizes)

    if kind == 'row':
        rows = [p.expand(channels) for p in parameters]
        rows_y, rows_grads = run(acon, x, *rows, grad=grad)
        assert torch.equal(rows_y, y)
        assert_gradients([g.sum(0, keepdim=True) for g in rows_grads[1:]],
                         grads[1:], sizes[1:])
    order = torch.randperm(
        channels, generator=torch.Generator().manual_seed(seed)).to(device)
    p1, p2, beta = parameters

    def permuted(parameter):
        if parameter.dim() == 1:
            return parameter if parameter.shape[0] == 1 else parameter[order]
        return parameter if kind == 'sample' else parameter[:, order]

    moved_y, moved = run(
        acon,
        with_layout(x[:, order], layout),
        *map(permuted, parameters),
        grad=grad[:, order])
    assert_near(moved_y / size_y, y[:, order] / size_y)
    assert_gradients(moved, [grads[0][:, order], *map(permuted, grads[1:])],
                     sizes)

    betas = [beta] * 2 if beta.dim() == 1 else beta.tensor_split([cut])
    parts = [
        run(acon, part, p1, p2, b, grad=g) for part, b, g in zip(
            x.tensor_split([cut]), betas, grad.tensor_split([cut]))
    ]
    whole = torch.cat([part[0] for part in parts])
    assert_near(whole / size_y, y / size_y)
    _, p1s, p2s, dbetas = zip(*(part[1] for part in parts))
    # Those of every sample stay apart.
    dbeta = sum(dbetas) if beta.dim() == 1 else torch.cat(dbetas)
    assert_gradients([sum(p1s), sum(p2s), dbeta], grads[1:], sizes[1:])


@any_case
@given(
    channels=st.integers(1, 3),
    intervals=st.integers(1, 40),
    left=st.floats(-3, 3),
    width=widths,
    seed=seeds)
def test_pwlu_for_any_bounds(channels, intervals, left, width, seed, device):
    """Bounds that no float32 holds; they may touch or cross."""
    exact = [
        draw(seed, channels, intervals + 1),
        torch.full((channels, ), left).double(),
        torch.full((channels, ), left + width).double(),
        draw(seed + 1, channels),
        draw(seed + 2, channels)
    ]
    rounded = [p.float() for p in exact]
    x = draw(seed + 3, 8, channels, 9).float()
    true_y = pwlu_reference(x.double(), *(p.double() for p in rounded))
    slope = inference_table(*exact)[0].abs().max()
    # An error of x - left is amplified by the slope.
    scale = (1 + slope * (x.abs().max() + 10)).item()
    parameters = [p.to(device) for p in rounded]
    x = x.to(device)
    assert_near(pwlu(x, *parameters) / scale, true_y / scale)
    table = pwlu_table(x, *inference_table(*parameters))
    assert_near(table / scale, true_y / scale)

    # Table 1 bounds every derivative: a step of all numbers by at most h
    # moves the output by no more than that.
    h = 1e-7
    exact = [p.to(device) for p in exact]
    x = x.double()
    steps = [
        h * draw(seed + 4 + i, *p.shape).to(device).clamp(-1, 1)
        for i, p in enumerate((x, *exact))
    ]
    moved = pwlu(x + steps[0], *(p + s for p, s in zip(exact, steps[1:])))
    length = max(width, MIN_WIDTH) - 2 * h
    steepest = slope * max(width, MIN_WIDTH) / length * 1.01
    most = h * (1 + 3 * steepest + 2 * (x.abs() + 10))
    assert ((moved - pwlu(x, *exact)).abs() <= most + 1e-12).all()


@any_case
@given(
    p1=st.floats(-3, 3),
    p2=st.floats(-3, 3),
    beta=st.floats(-5, 5),
    seed=seeds)
def test_acon_is_continuous_in_its_parameters(p1, p2, beta, seed, device):
    """|df/dp| <= 1.1 |x| and |df/dbeta| <= ((p1 - p2) x)^2 / 4."""
    x, h = draw(seed, 50, 1).to(device), 1e-7
    exact = [
        torch.tensor([value], device=device).double()
        for value in (p1, p2, beta)
    ]
    steps = h * draw(seed + 1, 3).to(device).clamp(-1, 1)
    moved = acon(x, *(p + s for p, s in zip(exact, steps)))
    most = h * (2.2 * x.abs() + ((abs(p1 - p2) + 2 * h) * x).square() / 4)
    assert ((moved - acon(x, *exact)).abs() <= most + 1e-12).all()


CHANNELS = 4


def parameters_of(operator, device):
    rows = [draw(seed, CHANNELS).float().to(device) for seed in range(3)]
    if operator is acon:
        return rows
    points = draw(0, CHANNELS, 5).float().to(device)
    return [points, rows[0] - 3, rows[0] + 3, rows[1], rows[2]]


@pytest.mark.parametrize('value', [torch.nan, torch.inf])
@pytest.mark.parametrize('operator', [acon, pwlu])
def test_gradients_that_are_no_numbers(operator, value, device):
    """They reach their own element and their own channel, no others."""
    x = draw(1, 2, CHANNELS, 5, 3).float().to(device)
    parameters = parameters_of(operator, device)
    grad = draw(1, 2, CHANNELS, 5, 3).float().to(device)
    clean_y, clean = run(operator, x, *parameters, grad=grad)
    grad[0, 1, 2, 1] = value
    y, dirty = run(operator, x, *parameters, grad=grad)
    assert torch.equal(y, clean_y)
    changed = ~torch.isclose(dirty[0], clean[0], rtol=0, atol=0)
    assert changed.nonzero().tolist() == [[0, 1, 2, 1]]
    others = [0, 2, 3]
    for result, true in zip(dirty[1:], clean[1:]):
        assert torch.equal(result[others], true[others])
    assert any(not result[1].isfinite().all() for result in dirty[1:])
