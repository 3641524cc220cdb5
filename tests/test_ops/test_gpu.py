"""What surrounds the operators on a GPU: graphs, streams, other devices.

tools/gpu_check.sh --dry-run has those that need no GPU run on the CPU.
"""
import os

import pytest
import torch
from torch import nn

from mm_acon import ACONC, PWLU, MetaACON
from tests.conftest import BUILT
from tests.utils import OPCHECK, assert_near

GPU = torch.cuda.is_available()
DEVICE = 'cuda' if GPU else 'cpu'
if not (GPU or os.getenv('MM_ACON_DRY_RUN')) or DEVICE not in BUILT:
    pytest.skip(
        'needs a GPU, and operators that are compiled for it',
        allow_module_level=True)
needs_gpu = pytest.mark.skipif(not GPU, reason='needs a GPU')
ACTIVATIONS = pytest.mark.parametrize('activation', (ACONC, MetaACON, PWLU))
LAYOUTS = pytest.mark.parametrize(
    'layout', (torch.contiguous_format, torch.channels_last), ids=str)
SHAPE = (4, 64, 56, 56)


def made(activation, layout=torch.contiguous_format, device=DEVICE):
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


@OPCHECK
@LAYOUTS
@pytest.mark.parametrize('activation', (ACONC, PWLU))
def test_opcheck(activation, layout):
    module, x, _ = made(activation, layout)
    x = x.detach()[:2, :, :8, :8].clone().requires_grad_()
    operators = torch.ops.mm_acon
    operator = operators.acon if activation is ACONC else operators.pwlu
    torch.library.opcheck(operator.default, (x, *module.parameters()))


@ACTIVATIONS
def test_compile(activation):
    module, x, grad = made(activation)
    torch._dynamo.reset()
    backend = 'inductor' if GPU else 'aot_eager'
    compiled = torch.compile(module, fullgraph=True, backend=backend)
    expected = gradients(module, x, grad)
    y = compiled(x)
    found = torch.autograd.grad(y, [x, *module.parameters()], grad)
    assert_same([y, *found], expected)


@LAYOUTS
@pytest.mark.parametrize('activation', (ACONC, PWLU))
def test_keeps_one_input_for_backward(activation, layout):
    module, x, _ = made(activation, layout)
    kept = []

    def pack(tensor):
        if tensor.numel() > 64 * 64:
            kept.append(tensor.data_ptr())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        module(x)
    assert kept == [x.data_ptr()]


@needs_gpu
@LAYOUTS
@ACTIVATIONS
def test_cuda_graph(activation, layout):
    """Replayed on another input it computes what a call does."""
    module, x, grad = made(activation, layout)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            gradients(module, x, grad)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = gradients(module, x, grad)
    with torch.no_grad():
        x.copy_(3 * torch.randn_like(x))
    graph.replay()
    assert_same(captured, gradients(module, x, grad), activation)


@needs_gpu
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


@ACTIVATIONS
def test_autocast(activation):
    module, x, grad = made(activation)
    model = nn.Sequential(nn.Conv2d(64, 64, 1), module).to(DEVICE)
    with torch.autocast(DEVICE, torch.bfloat16):
        y = model(x)
    assert y.dtype == torch.bfloat16
    y.backward(grad.bfloat16())
    assert all(p.grad.isfinite().all() for p in model.parameters())
