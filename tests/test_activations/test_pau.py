"""PAU: by hand, at its start, far out, in a network."""
import pytest
import torch
import torch.nn.functional as F
from mmengine.registry import MODELS

from mm_acon import PAU, swap_activations


def pau(a, b):
    activation = PAU()
    with torch.no_grad():
        activation.a.copy_(torch.tensor([a]))
        activation.b.copy_(torch.tensor([b]))
    return activation


def test_by_hand():
    """Every coefficient at its power, each a digit of the sum at x = 10."""
    x = torch.tensor([[10.]])
    activation = pau([1., 2., 3., 4., 5., 6.], [0.] * 4)
    assert activation(x).item() == 654321
    activation = pau([98765., 0., 0., 0., 0., 0.], [6., 7., 8., 9.])
    # 1 + |9 8 7 6 0| = 98761.
    assert activation(x).item() == pytest.approx(98765 / 98761)


def test_the_denominator_has_no_zero():
    """At x = 1 the unsafe form, 1 - 1, would divide by zero."""
    activation = pau([1.] + [0.] * 5, [-1., 0., 0., 0.])
    x = torch.tensor([[-1.], [0.], [1.], [3.]])
    assert activation(x).flatten().tolist() == [.5, 1, .5, .25]


def test_start():
    """Leaky ReLU of slope 0.01 to within 0.034, most at 0, from -3 to 3."""
    x = torch.linspace(-3, 3, 601).double().view(-1, 1)
    error = (PAU().double()(x) - F.leaky_relu(x, 0.01)).detach()
    assert error.abs().max() == error[300] == pytest.approx(0.0336, abs=1e-4)
    assert error.square().mean().sqrt() < 0.006


def test_grows_like_a_line():
    x = torch.tensor([[-1e6], [1e6]])
    # To both sides, a polynomial of degree 5 over one of degree 4: a5 / b4.
    assert (PAU()(x) / x).tolist() == [[pytest.approx(0.505, rel=1e-4)]] * 2


def test_shapes_of_parameters():
    assert (PAU().a.shape, PAU().b.shape) == ((1, 6), (1, 4))
    channel = PAU(3, granularity='channel')
    assert (channel.a.shape, channel.b.shape) == ((3, 6), (3, 4))


def test_half_precision_does_not_overflow():
    """20 to the power of 5 is more than float16 holds."""
    x = torch.tensor([[20.]])
    exact = PAU()(x).item()
    assert PAU().half()(x.half()).item() == pytest.approx(exact, rel=2e-3)


def test_in_a_network():
    pytest.importorskip('mmpretrain')
    torch.manual_seed(0)
    model = MODELS.build(dict(type='mmpretrain.ResNet', depth=18))
    report = swap_activations(model, dict(type='PAU'))
    assert len(report.replaced) == 17
    assert sum(row.parameters for row in report.rows) == 17 * 10
    model(torch.randn(2, 3, 64, 64))[0].square().mean().backward()
    units = [m for m in model.modules() if isinstance(m, PAU)]
    assert len(units) == 17
    assert all(u.a.grad.any() and u.b.grad.isfinite().all() for u in units)
