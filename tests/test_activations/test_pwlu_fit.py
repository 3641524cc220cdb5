"""PWLU's numbers for a function, by hand and by what a best fit has."""
import pytest
import torch
from torch import nn

from mm_acon import PWLU
from mm_acon.activations.function import ElementWise, normal_grid
from mm_acon.activations.pwlu_fit import (exact_bound, form_of,
                                          with_knots_at_corners)
from mm_acon.ops import pwlu


def bounds(*pairs):
    return torch.tensor(pairs).T


def test_leaky_relu_by_hand():
    form = form_of(
        ElementWise(dict(type='LeakyReLU', negative_slope=.5)), 4,
        *bounds([-2., 2.], [-1., 3.]))
    assert form.points.tolist() == [[-1, -.5, 0, 1, 2], [-.5, 0, 1, 2, 3]]
    assert form.left_slope.tolist() == [.5, .5]
    assert form.right_slope.tolist() == [1, 1]
    assert form.is_exact.tolist() == [True, True]


def test_prelu_by_hand():
    form = form_of(
        ElementWise(nn.PReLU(2)), 2, *bounds([-2., 2.], [-1., 1.]),
        torch.tensor([.5, .25]))
    assert form.points.tolist() == [[-1, 0, 2], [-.25, 0, 1]]
    assert form.left_slope.tolist() == [.5, .25]


def test_relu6_by_hand():
    """Knots at -6, 0 and 6."""
    form = form_of(ElementWise('ReLU6'), 2, *bounds([-6., 6.]))
    assert form.points.tolist() == [[0, 0, 6]]
    assert (form.left_slope, form.right_slope) == (0, 0)


def test_relu_whatever_the_bounds():
    """Eq. 6: values at the knots, though none lies at 0."""
    form = form_of(ElementWise(), 2, *bounds([-1., 2.]))
    assert form.points.tolist() == [[0, .5, 2]]
    assert (form.left_slope, form.right_slope) == (0, 1)


@pytest.mark.parametrize('function', [nn.Identity(), 'LeakyReLU'])
def test_what_pieces_can_be_is_fitted_exactly(function):
    """The identity, and a corner 6 std away."""
    left, right = bounds([2., 4.])
    form = form_of(ElementWise(function), 16, left, right)
    torch.testing.assert_close(form.points, torch.linspace(2, 4, 17)[None])
    torch.testing.assert_close(form.left_slope, torch.ones(1))
    torch.testing.assert_close(form.right_slope, torch.ones(1))


@pytest.mark.parametrize('mean, std', [(0., 1.), (-2., .3), (5., 40.)])
@pytest.mark.parametrize('function', ['SiLU', 'GELU', 'Tanh', 'LeakyReLU'])
def test_no_other_numbers_are_nearer(function, mean, std):
    """Under the normal's weights, in every direction."""
    function = ElementWise(function)
    left, right = torch.tensor([[mean - 3 * std], [mean + 3 * std]]).double()
    form = form_of(function, 8, left, right)
    (x, ), weight = normal_grid(1, mean, std)

    def error(points, left_slope, right_slope):
        y = pwlu(x[:, None], points, left, right, left_slope, right_slope)
        return ((y[:, 0] - function(x[None])[0]).square() * weight).sum()

    best = error(*form[:3])
    generator = torch.Generator().manual_seed(0)
    for size in (1e-1, 1e-3):
        for number in range(3):
            for column in range(form[number].shape[-1]):
                moved = [value.clone() for value in form[:3]]
                step = size * torch.randn(1, generator=generator).item()
                moved[number][..., column] += step
                assert error(*moved) > best


def test_many_units_as_one_by_one():
    function = ElementWise('SiLU')
    left, right = bounds(*[(-i - 1., 2. * i + 1) for i in range(300)])
    form = form_of(function, 16, left, right)
    for unit in (0, 127, 128, 299):
        part = slice(unit, unit + 1)
        alone = form_of(function, 16, left[part], right[part])
        for mine, other in zip(form, alone):
            torch.testing.assert_close(mine[part], other)


@pytest.mark.parametrize('function, intervals, bound', [
    ('ReLU', 16, 3), ('SiLU', 16, 3), ('LeakyReLU', 2, 3), ('PReLU', 16, 3),
    ('ReLU6', 16, 6), ('ReLU6', 2, 6), ('ReLU6', 32, 3 * 2),
    ('Hardtanh', 16, 4), ('Hardtanh', 2, 1),
    (dict(type='Hardtanh', min_val=-2., max_val=4.), 16, 4),
    (dict(type='Hardtanh', min_val=0., max_val=.3), 16, 2.4),
    (dict(type='Hardtanh', min_val=-1., max_val=2**.5), 16, 3),
])  # yapf: disable
def test_exact_bound(function, intervals, bound):
    found = exact_bound(ElementWise(function), intervals)
    assert found == pytest.approx(bound)
    unit = PWLU(3, intervals, function=function)
    assert unit.bound == found
    if unit.keeps_function:
        assert unit.difference_from() < 1e-6
    else:
        assert unit.difference_from() > 1e-4


def knots(function, *pairs):
    left, right = with_knots_at_corners(
        ElementWise(function), 4, *bounds(*pairs))
    return torch.stack([left, right], 1).tolist()


@pytest.mark.parametrize('function', ['LeakyReLU', 'PReLU'])
def test_a_knot_at_a_corner(function):
    """0.2 to the right or left, or not at all; 4 intervals of 0.8."""
    near = [pytest.approx(pair) for pair in ([-.8, 2.4], [-2.4, .8])]
    assert knots(function, [-1., 2.2], [-2.2, 1.]) == near


def test_bounds_reach_out_to_a_corner():
    """As far as 12 std from their middle."""
    assert knots('LeakyReLU', [1., 4.], [-4., -1.]) == [[0, 4], [-4, 0]]
    assert knots('LeakyReLU', [1., 2.], [-4., -3.]) == [[0, 2], [-4, -3]]
    assert knots('ReLU6', [1., 5.]) == [[0, 6]]


def test_knots_at_two_corners():
    """Four intervals of 2.9 become those of 3, then of 2; of 12 stay."""
    assert knots('ReLU6', [-3.6, 8.]) == [pytest.approx([-3, 9])]
    assert knots('Hardtanh', [-4.8, 4.8]) == [pytest.approx([-5, 3])]
    assert knots('Hardtanh', [-24., 24.]) == [[-24, 24]]
    # Only 6 lies near them.
    assert knots('ReLU6', [5., 8.2]) == [pytest.approx([5.2, 8.4])]


@pytest.mark.parametrize('function', [None, 'SiLU'])
def test_other_bounds_stay(function):
    assert knots(function, [-1., 2.25]) == [[-1, 2.25]]
