"""Input that does not fit, and numbers that are none.

What one function refuses stands beside its other tests; here is what all
activations, or a whole training run, have to answer.
"""
import logging
import re

import pytest
import torch
from mmengine.logging import MMLogger
from mmengine.registry import MODELS
from torch import nn

from mm_acon import PWLU
from mm_acon.engine.class_count_hook import ClassCountHook
from mm_acon.ops import acon, pwlu
from tests.helpers.toy import (BATCH, ToyData, ToyModel, Val, make_runner,
                               predict)
from tests.utils import ACTIVATIONS, FUNNELS, run

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


@pytest.mark.parametrize('name',
                         [name for name in ACTIVATIONS if name not in FUNNELS])
def test_largest_half_numbers(name):
    """The largest float16 may overflow to infinity, never to NaN."""
    most = torch.finfo(torch.float16).max
    x = torch.full((2, CHANNELS, 3, 3), most, dtype=torch.float16)
    x[:, ::2] *= -1
    activation = build(name)
    y, (grad, ) = run(activation, x)
    for tensor in (y, grad, *(p.grad for p in activation.parameters())):
        assert not tensor.isnan().any()


def parameters_of(operator, device):
    rows = [images(CHANNELS).to(device) for _ in range(3)]
    if operator is acon:
        return rows
    points = images(CHANNELS, 5).to(device)
    return [points, rows[0] - 3, rows[0] + 3, rows[1], rows[2]]


@pytest.mark.parametrize('value', [torch.nan, torch.inf])
@pytest.mark.parametrize('operator', [acon, pwlu])
def test_gradients_that_are_no_numbers(operator, value, device):
    """They reach their own element and their own channel, no others."""
    x = images(2, CHANNELS, 5, 3).to(device)
    parameters = parameters_of(operator, device)
    grad = images(2, CHANNELS, 5, 3).to(device)
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
        overflow = any(not p.grad.isfinite().all()
                       for p in model.parameters())
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


# Numbers of classes.

HEADS = {
    'head':
    dict(type='LinearClsHead', _scope_='mmpretrain', in_channels=8),
    'bbox_head':
    dict(
        type='RetinaHead', _scope_='mmdet', in_channels=8, feat_channels=8),
    'decode_head':
    dict(
        type='FCNHead',
        _scope_='mmseg',
        in_channels=8,
        channels=8,
        num_convs=1),
}


class Classes(ToyData):

    def __init__(self, count, **meta):
        super().__init__()
        self.metainfo = dict(classes=tuple('abcdefgh'[:count]), **meta)


def with_head(name, count):
    model = ToyModel()
    model.detector = nn.Module()
    setattr(model.detector, name,
            MODELS.build(dict(HEADS[name], num_classes=count)))
    model.rpn_head = MODELS.build(
        dict(
            type='RPNHead', _scope_='mmdet', in_channels=8, feat_channels=8))
    return model


def loader(data):
    return dict(
        batch_size=BATCH,
        num_workers=0,
        dataset=data,
        sampler=dict(type='DefaultSampler', shuffle=False))


def trained(folder, model, data):
    """What is warned of while it trains for an epoch."""
    warnings = []
    runner = make_runner(
        folder, [ClassCountHook()],
        epochs=1,
        model=model,
        train_dataloader=loader(data))
    handler = logging.Handler()
    handler.emit = lambda record: warnings.append(record.getMessage())
    handler.setLevel(logging.WARNING)
    logger = MMLogger.get_current_instance()
    logger.addHandler(handler)
    runner.train()
    logger.removeHandler(handler)
    return [text for text in warnings if 'num_classes' in text]


@pytest.mark.parametrize('name', HEADS)
def test_classes_that_do_not_fit(name, tmp_path):
    kind = HEADS[name]['type']
    message = (f'detector.{name} ({kind}) has num_classes=4, and Classes of '
               'train_dataloader has {there} classes. Write --cfg-options '
               f'model.detector.{name}.num_classes={{there}}, or the classes '
               'that are meant in train_dataloader.dataset.metainfo.classes.')
    with pytest.raises(ValueError, match=re.escape(message.format(there=5))):
        trained(tmp_path, with_head(name, 4), Classes(5))
    assert trained(tmp_path, with_head(name, 4), Classes(4)) == []
    assert trained(tmp_path, with_head(name, 4),
                   Classes(3)) == [message.format(there=3)]


def test_classes_that_count_otherwise(tmp_path):
    """An auxiliary head for boundaries, panoptic data, no classes at all."""
    model = with_head('decode_head', 4)
    model.auxiliary_head = MODELS.build(
        dict(HEADS['decode_head'], num_classes=2))
    (warning, ) = trained(tmp_path, model, Classes(4))
    assert warning.startswith('auxiliary_head (FCNHead) has num_classes=2')
    assert trained(tmp_path, model, Classes(7, thing_classes=('a', ))) == []
    assert trained(tmp_path, model, ToyData()) == []


def test_classes_of_a_test(tmp_path):
    model = with_head('head', 4)
    model.forward = lambda inputs, labels, mode: predict(
        model, inputs, labels, mode)
    runner = make_runner(
        tmp_path, [ClassCountHook()],
        model=model,
        test_cfg=dict(),
        test_dataloader=loader(Classes(5)),
        test_evaluator=[Val()])
    with pytest.raises(ValueError, match='Classes of test_dataloader has 5'):
        runner.test()
