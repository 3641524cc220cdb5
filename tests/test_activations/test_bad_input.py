"""Input that does not fit any activation, and numbers that are none."""
import pytest
import torch
from mmengine.registry import MODELS
from torch import nn

from mm_acon import PWLU
from tests.utils import ACTIVATIONS, FUNNELS, HALF_FUNCTIONS, needs_torch, run

EVERY = pytest.mark.parametrize('name', ACTIVATIONS)
CHANNELS = 4


def build(name):
    torch.manual_seed(0)
    return MODELS.build(dict(ACTIVATIONS[name], num_channels=CHANNELS))


def images(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


@EVERY
def test_complex_input(name):
    """x.float() would leave half of it away."""
    activation = build(name)
    with pytest.raises(TypeError) as error:
        activation(torch.zeros(2, CHANNELS, 3, 3, dtype=torch.complex64))
    assert str(error.value) == (
        f'{type(activation).__name__} expects a floating-point x, got '
        'torch.complex64; write x.real or x.abs() first.')


@pytest.mark.parametrize('training', [True, False])
@pytest.mark.parametrize('devices', [('cpu', 'meta'), ('meta', 'cpu')])
@EVERY
def test_another_device(name, devices, training):
    """Whichever layer inside the activation notices it first."""
    activation = build(name).to(devices[1]).train(training)
    x = torch.zeros(2, CHANNELS, 3, 3, device=devices[0])
    first = next(iter(dict(activation.named_parameters())))
    with pytest.raises(RuntimeError) as error:
        activation(x)
    assert str(error.value) == (
        f'{type(activation).__name__} expects x and {first} on one device, '
        f'got x on {devices[0]} and {first} on {devices[1]}; move the module '
        f"with .to('{devices[0]}').")


def test_another_device_in_phase1():
    unit = PWLU(CHANNELS)
    unit.start_phase1()
    with pytest.raises(RuntimeError, match='PWLU expects x and points on one'):
        unit.to('meta')(torch.zeros(2, CHANNELS))


def test_other_errors_stay_what_they_are():
    """An error of a layer inside that has nothing to do with devices."""
    activation = build('MetaACON')
    activation.fc1.weight.data = torch.zeros(1, 7, 1, 1)
    with pytest.raises(RuntimeError, match='shapes cannot be multiplied'):
        activation(images(2, CHANNELS, 3, 3))


# Numbers.


@pytest.mark.parametrize('training', [True, False])
@EVERY
def test_constant_input(name, training):
    """No variance, and for APL and PWLU an x on a knot."""
    for value in (0., -1., 3.):
        activation = build(name).train(training)
        x = torch.full((2, CHANNELS, 3, 3), value)
        y, (grad, ) = run(activation, x)
        for tensor in (y, grad, *(p.grad for p in activation.parameters())):
            assert tensor.isfinite().all()


@pytest.mark.parametrize('name', [
    pytest.param(name, marks=HALF_FUNCTIONS if 'MetaACON' in name else ())
    for name in ACTIVATIONS if name not in FUNNELS
])
def test_largest_half_numbers(name):
    """The largest float16 may overflow to infinity, never to NaN."""
    most = torch.finfo(torch.float16).max
    x = torch.full((2, CHANNELS, 3, 3), most, dtype=torch.float16)
    x[:, ::2] *= -1
    activation = build(name)
    y, (grad, ) = run(activation, x)
    for tensor in (y, grad, *(p.grad for p in activation.parameters())):
        assert not tensor.isnan().any()


@needs_torch('2.3', 'has no GradScaler for the CPU')
@pytest.mark.parametrize('phase', [1, 2])
def test_steps_that_overflow(phase):
    """Loss scaling skips them; Phase I counts their batches, which are good.

    The scale starts so high that gradients in float16 are infinite, and is
    halved until they are not.
    """
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, CHANNELS, 3), PWLU(CHANNELS))
    unit = model[1]
    unit.start_phase1()
    if phase == 2:
        model(images(4, 3, 9, 9))
        unit.realign()
    optimizer = torch.optim.SGD(model.parameters(), lr=.01)
    scaler = torch.amp.GradScaler('cpu', init_scale=2.**40)
    steps = skipped = 0
    while steps < 60:
        steps += 1
        before = [p.detach().clone() for p in model.parameters()]
        with torch.autocast('cpu', torch.float16):
            y = model(images(4, 3, 9, 9))
        optimizer.zero_grad()
        scaler.scale(y.float().square().mean()).backward()
        overflow = any(not p.grad.isfinite().all() for p in model.parameters())
        scaler.step(optimizer)
        scaler.update()
        after = list(model.parameters())
        assert all(p.isfinite().all() for p in after)
        if overflow:
            skipped += 1
            assert all(map(torch.equal, before, after))
        elif skipped:
            break
    assert 5 < skipped < 55 and not overflow
    assert not all(map(torch.equal, before, after))
    assert unit.num_batches.tolist() == [steps if phase == 1 else 1] * CHANNELS
    for buffer in (unit.running_mean, unit.running_std):
        assert buffer.isfinite().all() and buffer.all()
    if phase == 1:
        assert unit.realign().all()
        assert unit(images(2, CHANNELS, 3, 3)).isfinite().all()
