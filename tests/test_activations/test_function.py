"""The element-wise function in whose place an activation stands."""
import copy
import pickle
import re

import pytest
import torch
import torch.nn.functional as F
from mmcv.cnn import build_activation_layer
from torch import nn

from mm_acon import ACONC, PWLU
from mm_acon.activations.function import ElementWise, normal_grid

X = torch.linspace(-9, 9, 97).view(1, 1, 97)
# A function, and what is to come of it.
NAMED = [
    (None, F.relu),
    ('ReLU', F.relu),
    (nn.ReLU, F.relu),
    (dict(type='ReLU', inplace=True), F.relu),
    (nn.SiLU(inplace=True), F.silu),
    (dict(type='LeakyReLU', negative_slope=.3), lambda x: F.leaky_relu(x, .3)),
    ('ReLU6', F.relu6),
    ('Hardtanh', F.hardtanh),
    ('GELU', F.gelu),
    (dict(type='GELU',
          approximate='tanh'), lambda x: F.gelu(x, approximate='tanh')),
    ('Hardswish', F.hardswish),
    ('HSwish', F.hardswish),
    ('Swish', lambda x: x * x.sigmoid()),
    ('ELU', F.elu),
    ('Mish', F.mish),
    (dict(type='PReLU', init=.5), lambda x: F.leaky_relu(x, .5)),
]


class Square(nn.Module):

    def forward(self, x):
        return x * x


class Root(nn.Module):

    def forward(self, x):
        return x.sqrt()


class Learnt(nn.Module):

    def __init__(self):
        super().__init__()
        self.a = nn.Parameter(torch.ones(1))
        self.register_buffer('b', torch.ones(1))


class Inplace(nn.Module):

    def forward(self, x):
        return x.mul_(2)


class Neighbours(nn.Module):

    def forward(self, x):
        return x + x.roll(1, -1)


class Position(nn.Module):
    """Of each number alone, and yet another function at each place."""

    def forward(self, x):
        return x * torch.arange(x.shape[1]).view(-1, *[1] * (x.dim() - 2))


def refused(text):
    return pytest.raises(ValueError, match=re.escape(text))


@pytest.mark.parametrize('function, true', NAMED)
def test_named(function, true):
    found = ElementWise(function)
    x = X.clone()
    assert torch.equal(found(x), true(X))
    assert torch.equal(x, X)
    for copied in (copy.deepcopy(found), pickle.loads(pickle.dumps(found))):
        assert torch.equal(copied(x), true(X))


def test_own_copy():
    module = nn.SiLU(inplace=True)
    found = ElementWise(module)
    assert module.inplace and not found.module.inplace
    prelu = nn.PReLU(3)
    found = ElementWise(prelu)
    found.slopes = torch.tensor([.1, .2, .3])
    assert prelu.weight.tolist() == [.25] * 3 and prelu.weight.requires_grad
    assert not any(p.requires_grad for p in found.module.parameters())
    assert ElementWise(build_activation_layer(dict(type='Swish'))).name


@pytest.mark.parametrize('function, corners, left, right', [
    (None, (0., ), [0, 0, 1], [0, 1, 1]),
    ('ReLU6', (0., 6.), [0, 0, 1], [0, 1, 0]),
    (dict(type='LeakyReLU', negative_slope=.5),
     (0., ), [.5, .5, 1], [.5, 1, 1]),
    (dict(type='Hardtanh', min_val=-2., max_val=6.),
     (-2., 6.), [1, 1, 1], [1, 1, 0]),
])
def test_corners(function, corners, left, right):
    """Slopes left of and right of -1, 0 and 6."""
    found = ElementWise(function)
    assert found.corners == corners
    places = torch.tensor([-1., 0., 6.])
    slopes = found.outer_slopes(places, places, None)
    assert [slope.tolist() for slope in slopes] == [left, right]


def test_corners_of_prelu():
    found = ElementWise(nn.PReLU(2))
    slopes = torch.tensor([.5, .75])
    left, right = found.outer_slopes(
        torch.tensor([-1., 1.]), torch.tensor([-1., 1.]), slopes)
    assert left.tolist() == right.tolist() == [.5, 1]


@pytest.mark.parametrize('function, slopes',
                         [('SiLU', (0, 1)), ('GELU', (0, 1)), ('ELU', (0, 1)),
                          ('ReLU6', (0, 0)), ('Tanh', (0, 0)),
                          ('LeakyReLU', (.01, 1)), (nn.Identity(), (1, 1)),
                          (nn.PReLU(3), (.25, 1)), (Square(), None)])
def test_far_slopes(function, slopes):
    assert ElementWise(function).far_slopes() == slopes


@pytest.mark.parametrize('function, text', [
    (Learnt(), 'Learnt has numbers of its own (a, b), which would be lost; of '
     'functions with parameters it takes PReLU alone'),
    (ACONC(4), 'ACONC has numbers of its own (p1, p2, beta)'),
    (nn.BatchNorm2d(4), 'BatchNorm2d has numbers of its own (weight, bias'),
    (nn.Softmax(1), 'Softmax is none: a number of its output depends on more '
     'than one'),
    (nn.Softmax(-1), 'Softmax is none'),
    (nn.LayerNorm(5, elementwise_affine=False), 'LayerNorm is none'),
    (nn.MaxPool2d(2), 'MaxPool2d is none: a number of its output'),
    (nn.MaxPool2d(3, 1, 1), 'MaxPool2d is none'),
    (Neighbours(), 'Neighbours is none'),
    (Position(), 'Position is none'),
    (Inplace(), 'Inplace is none'),
    (Root(), 'Root has no value for some numbers from -8 to 8.'),
    (nn.GLU(), 'GLU is none: it fails on a tensor of shape (2, 3, 4, 5) '
     '(RuntimeError: '),
    ('RReLU', 'RReLU gives the same number another value in another call of '
     'training.'),
    (nn.Dropout(), 'Dropout gives the same number another value'),
])
def test_refused(function, text):
    with refused('PWLU stands in place of an element-wise function, and ' +
                 text):
        PWLU(4, function=function)


@pytest.mark.parametrize('function', [3, dict(negative_slope=.1), ['ReLU']])
def test_no_function(function):
    with refused('ACONC expects function to be the activation in whose place '
                 "it stands, as dict(type='SiLU'), 'SiLU' or torch.nn.SiLU(),"
                 f' got {function!r}.'):
        ACONC(4, function=function)


def test_unknown_name():
    with pytest.raises(KeyError, match='Swosh'):
        PWLU(4, function='Swosh')


def test_random_state_is_kept():
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    ElementWise('SiLU')
    with refused('RReLU gives'):
        ElementWise('RReLU')
    assert torch.equal(torch.rand(3), expected)


def test_normal_grid():
    """Weights of a unit normal, for every unit in its own units."""
    x, weight = normal_grid(2, torch.tensor([1., 0.]), 2.)
    assert x[0, [0, -1]].tolist() == [-11, 13]
    assert x[1, [0, -1]].tolist() == [-12, 12]
    weight = weight / weight.sum()
    assert (x @ weight).tolist() == pytest.approx([1, 0], abs=1e-9)
    assert (x.square() @ weight).tolist() == pytest.approx([5, 4], abs=1e-6)
