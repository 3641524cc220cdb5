"""torch.func and forward-mode AD: what the compiled operators do not have."""
import pytest
import torch
from torch.autograd import forward_ad
from torch.func import functional_call, grad, hessian, jacrev, jvp, vmap

from mm_acon.ops import acon, pwlu, use_reference
from tests.conftest import BUILT
from tests.utils import ACTIVATIONS, FUNNELS, assert_near, images, moved

CHANNELS = 4
OPERATORS = {
    acon: [(CHANNELS, )] * 3,
    pwlu: [(CHANNELS, 5)] + [(CHANNELS, )] * 4,
}


def arguments(operator):
    x = 2 * images(3, CHANNELS, 5).double()
    parameters = [
        images(*shape, seed=1 + seed).double()
        for seed, shape in enumerate(OPERATORS[operator])
    ]
    if operator is pwlu:
        parameters[1], parameters[2] = (
            side + 0 * parameters[1] for side in (-1, 1))
    return x, parameters


@pytest.fixture(params=OPERATORS, ids=lambda operator: operator.__name__)
def operator(request):
    return request.param


@pytest.mark.filterwarnings('error')
def test_vmap(operator):
    """Over a further axis of x, and over parameters."""
    x, parameters = arguments(operator)
    many = torch.stack([x, 2 * x, -x])
    assert_near(
        vmap(lambda one: operator(one, *parameters))(many),
        torch.stack([operator(one, *parameters) for one in many]))
    last = torch.stack([parameters[-1], 2 * parameters[-1]])
    assert_near(
        vmap(lambda one: operator(x, *parameters[:-1], one))(last),
        torch.stack([operator(x, *parameters[:-1], one) for one in last]))


def test_gradients(operator):
    x, parameters = arguments(operator)
    everything = [x, *parameters]
    leaves = [t.clone().requires_grad_() for t in everything]
    expected = torch.autograd.grad(operator(*leaves).square().sum(), leaves)
    found = grad(
        lambda *inputs: operator(*inputs).square().sum(),
        argnums=tuple(range(len(everything))))(*everything)
    for result, true in zip(found, expected):
        assert_near(result, true, backward=True)


@pytest.mark.parametrize('which', [0, -1])
def test_forward_mode(operator, which):
    """As central differences; torch.func and torch.autograd alike."""
    x, parameters = arguments(operator)
    everything = [x + .01, *parameters]
    tangent, h = images(*everything[which].shape, seed=9).double(), 1e-6

    def of(value):
        inputs = list(everything)
        inputs[which] = value
        return operator(*inputs)

    value = everything[which]
    expected = (of(value + h * tangent) - of(value - h * tangent)) / (2 * h)
    y, slope = jvp(of, (value, ), (tangent, ))
    assert_near(y, of(value))
    torch.testing.assert_close(slope, expected, rtol=1e-6, atol=1e-6)
    with forward_ad.dual_level():
        dual = of(forward_ad.make_dual(value, tangent))
        assert torch.equal(forward_ad.unpack_dual(dual).tangent, slope)


@pytest.mark.skipif('cpu' not in BUILT, reason='_ext is not built')
def test_forward_mode_of_the_compiled_operators_is_refused(operator):
    """Not lost in silence."""
    x, parameters = arguments(operator)
    compiled = getattr(torch.ops.mm_acon, operator.__name__)
    with forward_ad.dual_level(), torch.no_grad():
        with pytest.raises(
                RuntimeError,
                match='has no forward-mode derivative. Run the plain-PyTorch'):
            compiled(forward_ad.make_dual(x, x), *parameters)


def test_second_derivative(operator):
    """Which the compiled operators do not have."""
    x, parameters = arguments(operator)
    row = x[:1, :, 0]

    def loss(row):
        return operator(row, *parameters).pow(3).sum()

    with use_reference():
        first = torch.autograd.functional.hessian(loss, row)
    assert_near(hessian(loss)(row), first, backward=True)
    assert_near(jacrev(grad(loss))(row), first, backward=True)


@pytest.mark.parametrize('name, phase_1',
                         [(name, False)
                          for name in ACTIVATIONS if name not in FUNNELS] +
                         [('PWLU', True)])
def test_gradients_of_every_sample(name, phase_1):
    """The usual use: functional_call under grad under vmap."""
    module = moved(name, CHANNELS).eval()
    if phase_1:
        module.start_phase1()
    x = images(3, CHANNELS, 5, 6)
    held = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    names = [n for n, _ in module.named_parameters()]

    def loss(parameters, sample):
        y = functional_call(module, {**held, **parameters}, sample[None])
        return y.square().sum()

    found = vmap(grad(loss), (None, 0))({
        n: held[n].detach()
        for n in names
    }, x)
    for i, sample in enumerate(x):
        module.zero_grad()
        module(sample[None]).square().sum().backward()
        for n, parameter in module.named_parameters():
            torch.testing.assert_close(
                found[n][i], parameter.grad, rtol=1e-4, atol=1e-4)
