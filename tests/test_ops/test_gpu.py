"""What only a GPU has: graphs, streams, its compiler, other devices."""
from functools import partial

import pytest
import torch

from mm_acon import ACONC, PWLU, MetaACON
from tests.conftest import BUILT
from tests.utils import assert_near
from tools.analysis.timing import capture

if not torch.cuda.is_available() or 'cuda' not in BUILT:
    pytest.skip(
        'needs a GPU, and operators that are compiled for it',
        allow_module_level=True)
ACTIVATIONS = pytest.mark.parametrize('activation', (ACONC, MetaACON, PWLU))
LAYOUTS = pytest.mark.parametrize(
    'layout', (torch.contiguous_format, torch.channels_last), ids=str)
SHAPE = (4, 64, 56, 56)


def made(activation, layout=torch.contiguous_format, device='cuda'):
    """A module, an input that learns, and a gradient."""
    torch.manual_seed(0)
    x, grad = torch.randn(2, *SHAPE, device=device)
    return (activation(SHAPE[1]).to(device),
            x.to(memory_format=layout).requires_grad_(), grad)


def gradients(module, x, grad):
    y = module(x)
    return [y, *torch.autograd.grad(y, [x, *module.parameters()], grad)]


def assert_same(found, expected, activation=MetaACON):
    """To the last bit, but for meta-ACON's convolutions, which others do."""
    for result, true in zip(found, expected):
        if activation is not MetaACON:
            assert torch.equal(result, true)
        else:
            scale = true.abs().max().clamp(min=1).item()
            assert_near(result / scale, true / scale, backward=True)


@ACTIVATIONS
def test_inductor(activation):
    module, x, grad = made(activation)
    torch._dynamo.reset()
    compiled = torch.compile(module, fullgraph=True)
    expected = gradients(module, x, grad)
    y = compiled(x)
    found = torch.autograd.grad(y, [x, *module.parameters()], grad)
    assert_same([y, *found], expected)


@LAYOUTS
@ACTIVATIONS
def test_cuda_graph(activation, layout):
    """Replayed on another input it computes what a call does."""
    module, x, grad = made(activation, layout)
    graph, captured = capture(partial(gradients, module, x, grad))
    with torch.no_grad():
        x.copy_(3 * torch.randn_like(x))
    graph.replay()
    assert_same(captured, gradients(module, x, grad), activation)


@ACTIVATIONS
def test_side_stream(activation):
    """The kernels run on the current stream, behind what it waits for."""
    module, x, grad = made(activation)
    expected = gradients(module, 2 * x, grad)
    stream = torch.cuda.Stream()
    late = torch.empty_like(x)
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        # A fifth of a second of a GPU's clock.
        torch.cuda._sleep(3 * 10**8)
        with torch.no_grad():
            late.copy_(2 * x)
        found = gradients(module, late.requires_grad_(), grad)
    stream.synchronize()
    # That of x, which the other case doubles inside, is twice as large there.
    del found[1], expected[1]
    assert_same(found, expected, activation)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason='needs two GPUs')
@ACTIVATIONS
def test_second_gpu(activation):
    """While the first one is the current device."""
    module, x, grad = made(activation, device='cpu')
    expected = gradients(module, x, grad)
    there = x.detach().to('cuda:1').requires_grad_()
    found = gradients(module.to('cuda:1'), there, grad.to('cuda:1'))
    assert torch.cuda.current_device() == 0
    assert all(result.device.index == 1 for result in found)
    assert_same([result.cpu() for result in found], expected)
