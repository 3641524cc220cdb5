"""What every activation has in common: one table, one test per promise."""
import copy
import importlib
import pickle

import pytest
import torch
import torch._dynamo
from mmcv.cnn import ConvModule
from mmengine.registry import MODELS, DefaultScope
from torch import nn
from torch.autograd import gradcheck

import mm_acon
from mm_acon import LearnableActivation
from tests.utils import (ACTIVATIONS, ASSIGN, FUNNELS, HALF_ON_CPU, LAYOUTS,
                         assert_near, images, moved, run, with_layout)

NAMES = {
    'ACONA': mm_acon.ACONA,
    'ACONB': mm_acon.ACONB,
    'ACONC': mm_acon.ACONC,
    'ACON': mm_acon.ACONC,
    'AconC': mm_acon.ACONC,
    'MetaACON': mm_acon.MetaACON,
    'MetaAconC': mm_acon.MetaACON,
    'PWLU': mm_acon.PWLU,
    'APL': mm_acon.APL,
    'PAU': mm_acon.PAU,
    'FReLU': mm_acon.FReLU,
    'ACONFReLU': mm_acon.ACONFReLU,
}
# Those with convolutions, matrix products or means of their own.
LAYERS = ('MetaACON', 'MetaACON-BN', 'MetaACON-depthwise',
          'MetaACON-depthwise-BN', *FUNNELS)
EVERY = pytest.mark.parametrize('name', ACTIVATIONS)
# What a checkpoint of each holds, in this order.
NORM = ['weight', 'bias', 'running_mean', 'running_var', 'num_batches_tracked']
FC = ['p1', 'p2', 'fc1.weight', 'fc1.bias', 'fc2.weight', 'fc2.bias']
# Each norm behind its convolution, which fuse_conv_bn relies on.
FC_BN = (
    FC[:4] + [f'bn1.{key}'
              for key in NORM] + FC[4:] + [f'bn2.{key}' for key in NORM])
PIECES = [
    'points', 'left_bound', 'right_bound', 'left_slope', 'right_slope',
    'running_mean', 'running_std', 'num_batches', 'phase'
]
FUNNEL = ['conv.weight'] + [f'norm.{key}' for key in NORM]
STATES = {
    'ACONA': ['beta'],
    'ACONB': ['p2', 'beta'],
    'ACONC': ['p1', 'p2', 'beta'],
    'ACONC-layer': ['p1', 'p2', 'beta'],
    'MetaACON': FC,
    'MetaACON-BN': FC_BN,
    'MetaACON-depthwise': FC,
    'MetaACON-depthwise-BN': FC_BN,
    'MetaACON-layer': ['p1', 'p2'],
    'MetaACON-pixel': ['p1', 'p2'],
    'PWLU': PIECES,
    'PWLU-layer': PIECES,
    'APL': ['a', 'b'],
    'APL-layer': ['a', 'b'],
    'PAU': ['a', 'b'],
    'PAU-layer': ['a', 'b'],
    'FReLU': FUNNEL,
    'ACONFReLU': FUNNEL,
}


@pytest.mark.parametrize('name', NAMES)
def test_registered(name):
    activation = MODELS.build(dict(type=name, num_channels=4))
    assert type(activation) is NAMES[name]
    assert isinstance(activation, LearnableActivation)


@pytest.mark.parametrize('scope', ['mmdet', 'mmseg', 'mmpretrain'])
def test_found_from_the_scope_of(scope):
    """Without a prefix, as an act_cfg in a config of that library is."""
    pytest.importorskip(scope)
    registry = importlib.import_module(f'{scope}.registry').MODELS
    for name, kind in NAMES.items():
        cfg = dict(type=name, num_channels=4)
        assert type(registry.build(cfg)) is kind
        with DefaultScope.overwrite_default_scope(scope):
            assert type(MODELS.build(cfg)) is kind


@EVERY
def test_state_dict_names(name):
    """Checkpoints depend on these names: they are not to change."""
    assert list(moved(name).state_dict()) == STATES[name]


@EVERY
def test_repr_tells_the_options(name):
    text = repr(moved(name))
    granularity = ACTIVATIONS[name].get('granularity', 'channel')
    assert f'4, granularity={granularity!r}' in text


@pytest.mark.parametrize('training', [True, False])
@pytest.mark.parametrize('shape', [(0, 4, 5, 6), (1, 4, 5, 6), (1, 4, 1, 1),
                                   (2, 4, 1, 1), (3, 4, 5, 6), (0, 4), (1, 4),
                                   (3, 4), (2, 4, 7), (2, 4, 2, 3, 4)])
@EVERY
def test_shapes(name, shape, training, device):
    activation = moved(name).train(training).to(device)
    x = images(*shape).to(device).requires_grad_()
    if name in FUNNELS and len(shape) != 4:
        with pytest.raises(ValueError, match=r'expects x of shape \(N, C, H'):
            activation(x)
        return
    y = activation(x)
    assert (y.shape, y.dtype) == (shape, torch.float32)
    assert y.isfinite().all()
    y.sum().backward()
    for tensor in (x, *activation.parameters()):
        assert tensor.grad.shape == tensor.shape
        assert tensor.grad.isfinite().all()
    if 0 in shape:
        assert not any(p.grad.any() for p in activation.parameters())


@pytest.mark.parametrize('training', [True, False])
@EVERY
def test_batch_of_one_leaves_statistics_alone(name, training):
    """A BatchNorm over one number has no variance to learn from."""
    activation = moved(name).train(training)
    before = copy.deepcopy(dict(activation.named_buffers()))
    activation(images(1, 4, 1, 1))
    activation(images(0, 4, 3, 3))
    for key, buffer in activation.named_buffers():
        # An empty batch may be counted; it must not move a statistic.
        if not key.endswith('num_batches_tracked'):
            assert torch.equal(buffer, before[key])


@EVERY
def test_samples_do_not_mix(name):
    """In eval mode a sample gives the same alone as in a batch."""
    activation = moved(name).eval()
    x = images(3, 4, 5, 6)
    alone = torch.cat([activation(sample[None]) for sample in x])
    torch.testing.assert_close(activation(x), alone)


@EVERY
def test_gradcheck(name):
    """The gradient of x and of every parameter, in eval mode."""
    activation = moved(name, seed=1).double().eval()
    x = images(2, 4, 2, 3, seed=1).double().requires_grad_()

    def function(x, *parameters):
        values = dict(zip(names, parameters))
        return torch.func.functional_call(activation, values, (x, ))

    names, parameters = zip(*activation.named_parameters())
    # One random direction instead of every number: the formulas have the
    # full check in test_ops.
    assert gradcheck(function, (x, *parameters), fast_mode=True)


@pytest.mark.parametrize('layout', LAYOUTS)
@EVERY
def test_layouts(name, layout, device):
    activation = moved(name).eval().to(device)
    x, grad = images(2, 4, 5, 6).to(device), images(2, 4, 5, 6, seed=1)
    y, grads = run(activation, x, grad=grad.to(device))
    moved_y, moved_grads = run(
        activation, with_layout(x, layout), grad=grad.to(device))
    assert_near(moved_y, y)
    assert_near(moved_grads[0], grads[0], backward=True)
    if layout == 'channels_last':
        assert moved_y.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize('name, dtype', [
    pytest.param(
        name,
        dtype,
        id=f'{name}-{dtype}',
        marks=HALF_ON_CPU if (name in LAYERS and dtype == torch.float16) else
        ()) for name in ACTIVATIONS
    for dtype in (torch.float16, torch.bfloat16)
])
def test_low_precision_module(name, dtype, device):
    activation = moved(name).to(device, dtype).eval()
    exact = copy.deepcopy(activation).double()
    x = images(2, 4, 5, 6).to(device, dtype)
    y, (grad, ) = run(activation, x)
    true_y, (true_grad, ) = run(exact, x.double())
    assert (y.dtype, grad.dtype) == (dtype, dtype)
    # MetaACON and FReLU hold convolutions and norms, which round inside.
    assert_near(y, true_y, roundings=32)
    if name != 'FReLU':  # Its maximum may decide otherwise at a tie.
        assert_near(grad, true_grad, roundings=32)
    for parameter in activation.parameters():
        assert parameter.grad.dtype == dtype
        assert parameter.grad.isfinite().all()


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize('name', [n for n in ACTIVATIONS if n not in FUNNELS])
def test_low_precision_input(name, dtype, device):
    """Into a module in float32, as a mixed-precision trainer may do."""
    activation = moved(name).to(device).eval()
    exact = copy.deepcopy(activation).double()
    x = images(2, 4, 5, 6).to(device, dtype)
    y, (grad, ) = run(activation, x)
    true_y, (true_grad, ) = run(exact, x.double())
    assert (y.dtype, grad.dtype) == (dtype, dtype)
    # The mean over the map is rounded too.
    assert_near(y, true_y, roundings=4)
    assert_near(grad, true_grad, roundings=4)
    for parameter in activation.parameters():
        assert parameter.grad.dtype == torch.float32


@EVERY
def test_double_module(name):
    activation = moved(name).double()
    y = activation(images(2, 4, 5, 6).double())
    assert y.dtype == torch.float64


@EVERY
def test_autocast(name, device):
    """Parameters stay in float32, and so do their gradients."""
    torch.manual_seed(0)
    conv = nn.Conv2d(3, 4, 3).to(device)
    model = nn.Sequential(conv, moved(name).to(device))
    x = images(2, 3, 7, 7).to(device)
    exact = model(x)
    with torch.autocast(device, torch.bfloat16):
        y = model(x)
    assert y.dtype == torch.bfloat16
    assert_near(y, exact, roundings=32)
    y.sum().backward()
    for parameter in model.parameters():
        assert parameter.grad.dtype == torch.float32
        assert parameter.grad.isfinite().all()


@EVERY
def test_nan_and_infinity_stay_data(name):
    """NaN gives NaN, and the sample beside it is not touched."""
    activation = moved(name).eval()
    x = images(2, 4, 5, 6)
    clean = activation(x)
    x[0, 1, 2, 3], x[0, 2, 2, 3] = torch.nan, torch.inf
    y = activation(x)
    assert y[0, 1, 2, 3].isnan()
    assert torch.equal(y[1], clean[1])


@pytest.mark.parametrize('inplace', [True, False])
@EVERY
def test_conv_module(name, inplace):
    """MMCV injects inplace and passes no width."""
    torch.manual_seed(0)
    module = ConvModule(
        3, 4, 3, padding=1, act_cfg=ACTIVATIONS[name], inplace=inplace)
    assert type(module.activate).__name__ == ACTIVATIONS[name]['type']
    x = images(2, 3, 5, 6)
    y = module(x)
    assert y.shape == (2, 4, 5, 6)
    before = module.conv(x)
    kept = before.clone()
    assert torch.equal(module.activate(before), y)
    assert torch.equal(before, kept)
    y.sum().backward()
    assert all(p.grad is not None for p in module.parameters())


@EVERY
def test_wrong_width(name):
    with pytest.raises(
            ValueError,
            match='expects 4 channels in axis 1, got '
            r'x of shape \(2, 3, 5, 5\); write num_channels=3'):
        moved(name)(images(2, 3, 5, 5))


@EVERY
def test_wrong_input(name):
    activation = moved(name)
    kind = type(activation).__name__
    with pytest.raises(ValueError, match=kind + r' expects x of shape \(N, C'):
        activation(torch.zeros(4))
    with pytest.raises(TypeError, match=kind + ' expects a floating-point x'):
        activation(torch.zeros(2, 4, 3, 3, dtype=torch.long))


@EVERY
def test_copies(name):
    """deepcopy, pickle and a state dict give the same function."""
    activation = moved(name).eval()
    x = images(2, 4, 5, 6)
    y = activation(x)
    loaded = moved(name, seed=9).eval()
    loaded.load_state_dict(activation.state_dict())
    for copied in (copy.deepcopy(activation),
                   pickle.loads(pickle.dumps(activation)), loaded):
        assert torch.equal(copied(x), y)
        assert not any(
            p is q
            for p, q in zip(copied.parameters(), activation.parameters()))


@ASSIGN
@EVERY
def test_load_with_assign(name):
    activation = moved(name).eval()
    with torch.device('meta'):
        loaded = moved(name, seed=9).eval()
    # Buffers that no checkpoint carries are left on meta by PyTorch.
    for key, buffer in activation.named_buffers():
        if key not in activation.state_dict():
            setattr(loaded, key, buffer.clone())
    loaded.load_state_dict(activation.state_dict(), assign=True)
    x = images(2, 4, 5, 6)
    assert torch.equal(loaded(x), activation(x))


@EVERY
def test_init_weights(name):
    """MMEngine's call gives the start again, whatever the owner did."""
    activation = moved(name, seed=9)
    with torch.no_grad():
        for parameter in activation.parameters():
            parameter.fill_(7)
    torch.manual_seed(3)
    activation.init_weights()
    torch.manual_seed(3)
    fresh = moved(name)
    torch.manual_seed(3)
    fresh.reset_parameters()
    for mine, true in zip(activation.parameters(), fresh.parameters()):
        assert torch.equal(mine, true)


@pytest.mark.parametrize('num_channels', [0, -4, 2.5, '4'])
@pytest.mark.parametrize('name', NAMES)
def test_refused_num_channels(name, num_channels):
    kind = NAMES[name].__name__
    with pytest.raises(
            ValueError,
            match=f'{kind} expects num_channels to be a positive integer or '
            f'None, got {num_channels!r}'):
        NAMES[name](num_channels)


@pytest.mark.parametrize('name', NAMES)
def test_refused_granularity(name):
    kind = NAMES[name]
    choices = {
        'MetaACON': ('channel', 'layer', 'pixel'),
        'FReLU': ('channel', ),
        'ACONFReLU': ('channel', )
    }.get(kind.__name__, ('channel', 'layer'))
    with pytest.raises(ValueError) as error:
        kind(4, granularity='channels')
    assert (f'{kind.__name__} expects granularity to be one of {choices}, got '
            "'channels'.") in str(error.value)


@EVERY
def test_compiles(name):
    """One graph without a break."""
    activation = moved(name).eval()
    x = images(2, 4, 5, 6)
    torch._dynamo.reset()
    compiled = torch.compile(activation, backend='eager', fullgraph=True)
    torch.testing.assert_close(compiled(x), activation(x))
