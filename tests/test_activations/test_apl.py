"""APL: by hand, at its start, in a network."""
import copy

import pytest
import torch
from mmengine.registry import MODELS

from mm_acon import APL, swap_activations


def test_by_hand():
    """max(0, x) + a1 max(0, b1 - x) + a2 max(0, b2 - x)."""
    activation = APL(1, num_hinges=2)
    with torch.no_grad():
        activation.a.copy_(torch.tensor([[2., -1.]]))
        activation.b.copy_(torch.tensor([[0., 1.]]))
    x = torch.tensor([-2., 0., .5, 1., 3.]).view(5, 1)
    # -2: 2 * 2 - 3; 0: -1; 0.5: 0.5 - 0.5; 1: 1; 3: 3.
    assert activation(x).flatten().tolist() == [1, -1, 0, 1, 3]


def test_gradients_by_hand():
    activation = APL(1, num_hinges=2)
    with torch.no_grad():
        activation.a.copy_(torch.tensor([[2., -1.]]))
        activation.b.copy_(torch.tensor([[0., 1.]]))
    x = torch.tensor([[-2.]], requires_grad=True)
    activation(x).sum().backward()
    assert x.grad.item() == -2 + 1
    assert activation.a.grad.tolist() == [[2, 3]]
    assert activation.b.grad.tolist() == [[2, -1]]


@pytest.mark.parametrize('hinges, start', [(1, [0.]), (2, [-.5, .5]),
                                           (5, [-.8, -.4, 0., .4, .8])])
def test_start(hinges, start):
    """Exactly ReLU, and it can leave it."""
    activation = APL(3, num_hinges=hinges)
    torch.testing.assert_close(activation.b, torch.tensor([start] * 3))
    x = torch.randn(2, 3, 5, 5)
    y = activation(x)
    assert torch.equal(y, x.relu())
    y.sum().backward()
    assert (activation.a.grad > 0).all()


def test_shapes_of_parameters():
    assert APL(3).a.shape == APL(3).b.shape == (3, 2)
    layer = APL(3, granularity='layer', num_hinges=4)
    assert layer.a.shape == layer.b.shape == (1, 4)
    assert 'num_hinges=4' in repr(layer)


@pytest.mark.parametrize('hinges', [0, -1, 1.5, '2'])
def test_refused_hinges(hinges):
    with pytest.raises(
            ValueError,
            match='APL expects num_hinges to be a positive integer, got '
            f'{hinges!r}'):
        APL(3, num_hinges=hinges)


def test_a_relu_network_keeps_its_function():
    pytest.importorskip('mmpretrain')
    torch.manual_seed(0)
    plain = MODELS.build(dict(type='mmpretrain.ResNet', depth=18))
    plain.eval()
    model = copy.deepcopy(plain)
    report = swap_activations(model, dict(type='APL', num_hinges=3))
    assert len(report.replaced) == 17
    assert sum(row.parameters for row in report.rows) == 6 * 3904
    x = torch.randn(1, 3, 64, 64)
    assert torch.equal(model(x)[0], plain(x)[0])
