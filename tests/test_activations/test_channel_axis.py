"""Where the channels of an input lie: axis 1 or the last."""
import copy
import pickle
import re
from functools import partial

import pytest
import torch
import torch._dynamo
from mmcv.cnn.bricks.transformer import FFN
from mmengine.registry import MODELS
from torch import nn
from torch.autograd import gradcheck
from torch.profiler import profile

from mm_acon import ACONC, APL, PWLU, ACONFReLU, FReLU, MetaACON
from mm_acon.ops import acon, pwlu, use_reference
from tests.utils import ACTIVATIONS, FUNNELS, assert_near, images, moved, run

EVERY = pytest.mark.parametrize('name', ACTIVATIONS)
CURVES = pytest.mark.parametrize(
    'name', [name for name in ACTIVATIONS if name not in FUNNELS])
CHANNELS = 4


def build(name, channel_axis=None, **kwargs):
    return moved(name, CHANNELS, channel_axis=channel_axis, **kwargs)


def refused(text):
    return pytest.raises(ValueError, match=re.escape(text))


UNCLEAR = ('cannot tell which axis of x with shape {} has the channels; write '
           'channel_axis=-1 for (N, ..., C), as tokens are, or channel_axis=1 '
           'for (N, C, ...).')

# By hand.


def test_last_axis_by_hand():
    """Two channels, slopes 1 and 3 far right; beta so large that it is max."""
    unit = ACONC(2, beta_init=1e4, channel_axis=-1)
    unit.p1.data = torch.tensor([1., 3.])
    x = torch.tensor([[[1., 1.], [-2., 2.], [5., -1.]]])
    assert unit(x).tolist() == [[[1, 3], [0, 6], [5, 0]]]
    assert unit(x[0]).tolist() == [[1, 3], [0, 6], [5, 0]]


def test_statistics_by_hand():
    """PWLU follows channels, not tokens."""
    unit = PWLU(2, channel_axis=-1)
    unit.start_phase1()
    unit(torch.tensor([[[1., -4.], [3., 4.]], [[1., -4.], [3., 4.]]]))
    assert unit.running_mean.tolist() == [2, 0]
    assert unit.running_std.tolist() == [1, 4]


def test_mean_runs_over_the_tokens():
    unit = build('MetaACON', -1)
    x = images(2, 5, CHANNELS)
    beta = unit.switching_factor(x.mean(1))
    assert_near(unit(x), acon(x, unit.p1, unit.p2, beta, channel_axis=-1))


# Every activation.


@pytest.mark.parametrize('training', [True, False])
@pytest.mark.parametrize('shape', [(3, 7, CHANNELS), (0, 7, CHANNELS),
                                   (1, 1, CHANNELS), (2, CHANNELS, CHANNELS),
                                   (2, 5, 6, CHANNELS), (2, 2, 3, 5, CHANNELS),
                                   (2, 2, 1, 3, 2, CHANNELS)])
@CURVES
def test_as_axis_1(name, shape, training):
    """The same numbers and gradients as with the channels moved."""
    x, grad = images(*shape), images(*shape, seed=1)
    y, grads = run(build(name, -1).train(training), x, grad=grad)
    moved = build(name, 1).train(training)
    true_y, true_grads = run(
        moved, x.movedim(-1, 1).contiguous(), grad=grad.movedim(-1, 1))
    assert y.shape == x.shape
    assert_near(y, true_y.movedim(1, -1))
    assert_near(grads[0], true_grads[0].movedim(1, -1), backward=True)


@pytest.mark.parametrize('channel_axis', [None, 1, -1])
@CURVES
def test_two_axes(name, channel_axis):
    """(N, C), whatever is written."""
    x = images(3, CHANNELS)
    activation = build(name, channel_axis).eval()
    assert torch.equal(activation(x), build(name, 1).eval()(x))
    assert activation.channel_axis == channel_axis


@EVERY
def test_maps_of_the_last_axis(name):
    x = images(2, 5, 6, CHANNELS)
    y = build(name, -1).eval()(x)
    true = build(name, 1).eval()(x.permute(0, 3, 1, 2))
    assert_near(y, true.permute(0, 2, 3, 1))


@pytest.mark.parametrize('kind', [FReLU, ACONFReLU])
def test_funnels_take_no_tokens(kind):
    for axis in (None, 1, -1):
        with refused(f'{kind.__name__} expects x of shape (N, C, H, W), or '
                     '(N, H, W, C) with channel_axis=-1, got (2, 50, 4)'):
            kind(CHANNELS, channel_axis=axis)(images(2, 50, CHANNELS))
    assert kind(
        CHANNELS, stride=2,
        channel_axis=-1)(images(2, 6, 8,
                                CHANNELS)).shape == (2, 3, 4, CHANNELS)


def copies(function, x, size):
    """Operators that copy as many numbers as that, forward and backward."""
    x = x.requires_grad_()
    grad = torch.ones_like(x)
    with profile(record_shapes=True) as seen:
        function(x).backward(grad)
    return [
        event.name for event in seen.events()
        if event.name in ('aten::copy_', 'aten::clone') and any(
            torch.Size(shape).numel() >= size for shape in event.input_shapes)
    ]


@pytest.mark.parametrize('shape', [(8, 50, 64), (2, 9, 11, 64)])
@pytest.mark.parametrize('name', ['ACONC', 'PWLU', 'MetaACON'])
def test_no_copy(name, shape):
    """And what is kept for backward is the input's own memory."""
    x = images(*shape)
    activation = MODELS.build(
        dict(type=name, num_channels=64, channel_axis=-1))
    kept = []

    def pack(tensor):
        if tensor.numel() >= x.numel():
            kept.append(tensor.data_ptr())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        y = activation(x)
    assert kept == [x.data_ptr()]
    assert y.is_contiguous()
    assert not copies(activation, x, x.numel())
    # The profiler does see one where there is one.
    strided = images(*shape[:-1], 128)[..., ::2]
    assert copies(activation, strided, x.numel())


# None goes by the sizes, and keeps what it found.


@pytest.mark.parametrize('shape, axis', [
    ((2, CHANNELS, 7), 1),
    ((2, 7, CHANNELS), -1),
    ((2, CHANNELS, 5, 6), 1),
    ((2, 5, 6, CHANNELS), -1),
    ((2, CHANNELS, 5, CHANNELS), 1),
    ((2, CHANNELS, 2, 3, CHANNELS), 1),
    ((2, 2, 3, 5, CHANNELS), -1),
])
def test_found_by_the_sizes(shape, axis):
    activation, x = build('ACONC'), images(*shape)
    assert torch.equal(activation(x), build('ACONC', axis)(x))
    assert activation.channel_axis == axis
    for copied in (copy.deepcopy(activation),
                   pickle.loads(pickle.dumps(activation))):
        assert copied.channel_axis == axis
    # By what was found then, though the sizes leave it open.
    both = images(2, CHANNELS, CHANNELS)
    assert torch.equal(activation(both), build('ACONC', axis)(both))


def test_both_axes_fit():
    unit = build('ACONC')
    with refused('ACONC ' + UNCLEAR.format('(2, 4, 4)')):
        unit(images(2, 4, 4))
    assert unit.channel_axis is None


@pytest.mark.parametrize('name', ['ACONC', 'PWLU', 'MetaACON'])
def test_unknown_width_of_three_axes(name):
    unit = MODELS.build(dict(type=name))
    with refused(f'{name} ' + UNCLEAR.format('(2, 50, 64)')):
        unit(images(2, 50, 64))
    assert unit.is_lazy
    for axis, width in ((1, 50), (-1, 64)):
        unit = MODELS.build(dict(type=name, channel_axis=axis))
        unit(images(2, 50, 64))
        assert unit.num_channels == width


@pytest.mark.parametrize('shape', [(2, 3, 5, 7), (2, 3, 5, 7, 7)])
def test_unknown_width_of_maps(shape):
    unit = ACONC()
    unit(images(*shape))
    assert (unit.num_channels, unit.channel_axis) == (3, 1)


@pytest.mark.parametrize('bias', [True, False])
@pytest.mark.parametrize('contiguous', [True, False])
def test_unknown_width_behind_a_linear(bias, contiguous):
    """(N, H, W, C) that comes from a fully connected layer is no map."""
    x = images(2, 5, 6, 8)
    if not contiguous:
        x = images(2, 8, 5, 6).permute(0, 2, 3, 1)
    model = nn.Sequential(nn.Linear(8, 7, bias=bias), ACONC())
    with refused('ACONC ' + UNCLEAR.format('(2, 5, 6, 7)')):
        model(x)
    # What was made a map since is one.
    nn.Sequential(nn.Conv2d(8, 7, 1), ACONC())(images(2, 8, 5, 6))
    y = nn.Linear(8, 7)(x).permute(0, 3, 1, 2)
    unit = ACONC()
    unit(y)
    assert unit.num_channels == 7


@pytest.mark.parametrize('name', ['PWLU-layer', 'ACONC-layer', 'PAU-layer'])
def test_one_function_for_the_layer_needs_no_axis(name):
    unit = MODELS.build(ACTIVATIONS[name])
    for shape in ((2, 50, 64), (2, 64, 50), (2, 3, 5, 7)):
        x = images(*shape)
        assert unit(x).shape == x.shape
    assert unit.channel_axis is None and unit.num_channels is None
    unit = build(name)
    assert unit(images(2, 4, 4)).shape == (2, 4, 4)


# What does not fit.


@pytest.mark.parametrize('axis, shape, remedy', [
    (None, (2, 3), 'axis 1, got x of shape (2, 3); write num_channels=3.'),
    (1, (2, 3, 5), 'axis 1, got x of shape (2, 3, 5); write num_channels=3.'),
    (-1, (2, 3, 5), 'the last axis, got x of shape (2, 3, 5); write '
     'num_channels=5.'),
    (1,
     (2, 50, 4), 'axis 1, got x of shape (2, 50, 4); write channel_axis=-1.'),
    (None, (2, 50, 64), 'axis 1, got x of shape (2, 50, 64); write '
     'num_channels=64 and channel_axis=-1 if these are tokens (N, L, C), '
     'num_channels=50 and channel_axis=1 if it is (N, C, L).'),
    (None, (2, 3, 5, 6), 'axis 1, got x of shape (2, 3, 5, 6); write '
     'num_channels=3, or num_channels=6 and channel_axis=-1 if the last axis '
     'has the channels.'),
])
def test_wrong_width(axis, shape, remedy):
    with refused('ACONC expects 4 channels in ' + remedy):
        build('ACONC', axis)(images(*shape))


@pytest.mark.parametrize('axis', [0, 2, -2, 'last'])
def test_refused_channel_axis(axis):
    text = ('expects channel_axis to be 1 for x of shape (N, C, ...), -1 for '
            f'(N, ..., C), or None to go by the sizes, got {axis!r}.')
    with refused('APL ' + text):
        APL(4, channel_axis=axis)
    one = torch.ones(4)
    with refused('acon ' + text):
        acon(images(2, 3, 4), one, one, one, channel_axis=axis)


@EVERY
def test_repr(name):
    assert 'channel_axis=-1' in repr(build(name, -1))
    assert 'channel_axis' not in repr(build(name))


@EVERY
def test_compiles(name):
    activation = build(name, -1).eval()
    x = images(2, 5, 6, CHANNELS)
    torch._dynamo.reset()
    compiled = torch.compile(activation, backend='eager', fullgraph=True)
    torch.testing.assert_close(compiled(x), activation(x))


# Functions.


def numbers(function, channels=CHANNELS):
    if function is acon:
        return [images(channels, seed=seed) for seed in (1, 2, 3)]
    unit = build('PWLU')
    return [p.detach() for p in unit.parameters()]


@pytest.mark.parametrize('reference', [True, False])
@pytest.mark.parametrize('shape', [(2, 7, CHANNELS), (2, 5, 6, CHANNELS)])
@pytest.mark.parametrize('function', [acon, pwlu])
def test_functions(function, shape, reference):
    x, parameters = images(*shape), numbers(function)
    if reference:
        with use_reference():
            y = function(x, *parameters, channel_axis=-1)
    else:
        y = function(x, *parameters, channel_axis=-1)
    moved = function(x.movedim(-1, 1).contiguous(), *parameters)
    assert_near(y, moved.movedim(1, -1))
    assert_near(function(x, *parameters, channel_axis=None), y)


@pytest.mark.parametrize('function', [acon, pwlu])
def test_functions_by_size(function):
    parameters = numbers(function)
    x = images(2, CHANNELS, 7)
    assert torch.equal(
        function(x, *parameters, channel_axis=None), function(x, *parameters))
    with refused(f'{function.__name__} ' + UNCLEAR.format('(2, 4, 4)')):
        function(images(2, 4, 4), *parameters, channel_axis=None)
    with refused('1 or 4 rows (the channels of x with shape (2, 3, 4))'):
        function(
            images(2, 3, 4), *(p[:3] for p in parameters), channel_axis=-1)


@pytest.mark.parametrize('shape', [(2, CHANNELS), (2, 1), (2, 7, CHANNELS)])
def test_beta_of_any_shape(shape):
    x, beta = images(2, 7, CHANNELS), images(*shape, seed=4)
    p1, p2, _ = numbers(acon)
    moved = beta.mT if beta.dim() > 2 else beta
    assert_near(
        acon(x, p1, p2, beta, channel_axis=-1),
        acon(x.mT, p1, p2, moved).mT)


@pytest.mark.parametrize('function', [acon, pwlu])
@pytest.mark.parametrize('shape', [(2, 3, CHANNELS), (1, 2, 3, CHANNELS)])
def test_gradcheck(function, shape):
    inputs = [images(*shape), *numbers(function)]
    inputs = [tensor.double().requires_grad_() for tensor in inputs]
    assert gradcheck(partial(function, channel_axis=-1), inputs)


# Transformers.


def test_ffn():
    """mmcv's, whose act_cfg cannot know its width."""
    x = images(2, 50, 32)
    ffn = FFN(32, 64, act_cfg=dict(type='ACONC'))
    with refused('ACONC ' + UNCLEAR.format('(2, 50, 64)')):
        ffn(x)
    ffn = FFN(32, 64, act_cfg=dict(type='ACONC', channel_axis=-1))
    assert ffn(x).shape == x.shape
    assert ffn.layers[0][1].p1.shape == (64, )
    ffn = FFN(32, 64, act_cfg=dict(type='ACONC', num_channels=64))
    assert ffn(x).shape == x.shape
    assert ffn.layers[0][1].channel_axis == -1


def test_meta_acon_by_layer_and_pixel():
    x = images(2, 5, CHANNELS)
    for granularity in ('layer', 'pixel'):
        unit = MetaACON(CHANNELS, granularity=granularity, channel_axis=-1)
        moved = MetaACON(CHANNELS, granularity=granularity, channel_axis=1)
        assert_near(unit(x), moved(x.mT).mT)
