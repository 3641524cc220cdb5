"""What only the CUDA kernels have to show: how they cut a tensor into pieces.

Run by tests/test_ops/test_cuda_sources.py, where mm_acon._ext holds these
kernels, emulated on the CPU, and by tools/gpu_check.sh on a GPU.
"""
import math

import pytest
import torch

from mm_acon.ops import acon, acon_reference, pwlu, pwlu_reference
from tests.utils import DTYPES, assert_near, run, with_layout

EMULATED = hasattr(torch.ops.mm_acon, 'launches')
DEVICE = 'cpu' if EMULATED else 'cuda'
pytestmark = pytest.mark.skipif(
    not EMULATED and not torch.cuda.is_available(),
    reason='neither a GPU nor the emulation of one')

LAYOUTS = ('contiguous', 'channels_last')
# Rows of whole vectors and not, shorter than a warp, longer than a chunk;
# channels of whole vectors and not, of several tiles, of lanes left over.
SHAPES = [(3, 5, 7, 7), (1, 3, 101, 99), (1, 6, 96, 96), (2, 12, 9, 8),
          (2, 260, 2, 3), (1, 130, 5, 5), (2, 64, 13, 10), (70, 6), (9, 132),
          (1, 8, 1, 1), (2, 6, 2, 3, 4), (5, 4, 2)]
if not EMULATED:
    # As in ResNet-50, RetinaNet, a classifier's end and a transformer.
    SHAPES += [(16, 64, 112, 112), (2, 256, 200, 336), (64, 2048, 7, 7),
               (8, 3136, 96)]
BETAS = {
    'channel': lambda shape: shape[1:2],
    'sample and channel': lambda shape: shape[:2],
    'sample': lambda shape: (shape[0], 1),
    'pixel': lambda shape: shape,
}


def sixteenths(shape, seed):
    """Multiples of 1/16 between -3 and 3, exact in every dtype."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randint(-48, 49, shape, generator=generator) / 16
    return x.to(DEVICE)


def acon_parameters(shape, beta='channel', rows=None):
    generator = torch.Generator().manual_seed(2)
    sizes = [(rows or shape[1], )] * 2 + [
        (rows, ) if rows else BETAS[beta](shape)
    ]
    return [
        torch.randn(size, generator=generator).to(DEVICE) for size in sizes
    ]


def pwlu_parameters(shape, intervals=16, rows=None):
    """Units with knots at multiples of 1/4, so that every x has one piece."""
    generator = torch.Generator().manual_seed(2)
    rows = rows or shape[1]
    left = torch.randint(-2, 3, (rows, ), generator=generator) / 4
    left = left - intervals / 8
    points = torch.randint(-16, 17, (rows, intervals + 1), generator=generator)
    found = [
        points / 8, left, left + intervals / 4,
        torch.randn(rows, generator=generator),
        torch.randn(rows, generator=generator)
    ]
    return [parameter.to(DEVICE) for parameter in found]


def check(operator, reference, x, parameters, layout='contiguous'):
    """Against the reference in float64; the same bits when run again."""
    grad = with_layout(sixteenths(x.shape, 1).to(x.dtype), layout)
    if x.dtype == torch.float64:
        parameters = [p.double() for p in parameters]
    true_y, true_grads = run(
        reference, x.double(), *(p.double() for p in parameters), grad=grad)
    x = with_layout(x, layout)
    y, grads = run(operator, x, *parameters, grad=grad)
    assert_near(y, true_y)
    assert_near(grads[0], true_grads[0], backward=True)
    for result, true in zip(grads[1:], true_grads[1:]):
        # A sum of many terms: relative to what its rounding grows with.
        scale = max(true.abs().max(), (x.numel() / true.numel())**.5)
        assert_near(result / scale, true / scale, backward=True)
    again_y, again = run(operator, x, *parameters, grad=grad)
    for result, other in zip([y, *grads], [again_y, *again]):
        assert torch.equal(result, other)


@pytest.mark.parametrize('layout', LAYOUTS)
@pytest.mark.parametrize('dtype', DTYPES, ids=str)
@pytest.mark.parametrize('shape', SHAPES, ids=str)
@pytest.mark.parametrize('beta', BETAS)
def test_acon(beta, shape, dtype, layout):
    check(acon, acon_reference,
          sixteenths(shape, 0).to(dtype), acon_parameters(shape, beta), layout)


@pytest.mark.parametrize('layout', LAYOUTS)
@pytest.mark.parametrize('dtype', DTYPES, ids=str)
@pytest.mark.parametrize('shape', SHAPES, ids=str)
def test_pwlu(shape, dtype, layout):
    check(pwlu, pwlu_reference,
          sixteenths(shape, 0).to(dtype), pwlu_parameters(shape), layout)


def test_more_chunks_than_a_block_takes_at_once():
    """Its groups of lanes walk on to other chunks, of other samples."""
    shape = (460, 3, 2060)
    check(pwlu, pwlu_reference, sixteenths(shape, 0), pwlu_parameters(shape))


@pytest.mark.parametrize('layout', LAYOUTS)
@pytest.mark.parametrize('intervals', (1, 2, 4, 40, 100, 170))
@pytest.mark.parametrize('dtype', (torch.float32, torch.float64), ids=str)
def test_any_number_of_intervals(dtype, intervals, layout):
    shape = (2, 36, 15, 4)
    x = sixteenths(shape, 0).to(dtype) * max(1, intervals // 16)
    check(pwlu, pwlu_reference, x, pwlu_parameters(shape, intervals), layout)


@pytest.mark.parametrize('shape', [(2, 4, 5, 5), (3, 40)])
@pytest.mark.parametrize('layout', LAYOUTS)
def test_too_many_intervals(layout, shape):
    parameters = pwlu_parameters(shape, 2000)
    with pytest.raises(
            RuntimeError,
            match='pwlu with N = 2000 intervals needs .* bytes of shared '
            'memory, and a block on this GPU has .*; write num_intervals='):
        run(pwlu, with_layout(sixteenths(shape, 0), layout), *parameters)


@pytest.mark.parametrize('layout', LAYOUTS)
@pytest.mark.parametrize('shape', [(2, 5, 7, 7), (1, 3, 96, 99), (4, 6)])
def test_one_unit(shape, layout):
    """Any memory is one row then, of as many chunks as it has."""
    x = sixteenths(shape, 0)
    check(acon, acon_reference, x, acon_parameters(shape, rows=1), layout)
    check(pwlu, pwlu_reference, x, pwlu_parameters(shape, rows=1), layout)


@pytest.mark.parametrize('layout', LAYOUTS)
@pytest.mark.parametrize('offset', (1, 2, 4))
def test_input_that_is_not_aligned(offset, layout):
    shape = (2, 8, 5, 6)
    memory = torch.zeros(math.prod(shape) + offset, device=DEVICE)
    x = with_layout(sixteenths(shape, 0), layout)
    moved = memory[offset:].as_strided(shape, x.stride(), offset)
    moved.copy_(x)
    for operator, parameters in ((acon, acon_parameters(shape)),
                                 (pwlu, pwlu_parameters(shape))):
        y, grads = run(operator, x, *parameters)
        moved_y, moved_grads = run(operator, moved, *parameters)
        assert torch.equal(moved_y, y)
        assert torch.equal(moved_grads[0], grads[0])
        for result, true in zip(moved_grads[1:], grads[1:]):
            torch.testing.assert_close(result, true, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('layout', LAYOUTS)
@pytest.mark.parametrize('dtype', DTYPES, ids=str)
@pytest.mark.parametrize('function', ('acon', 'pwlu'))
def test_nan_and_infinity_stay_where_they_are(function, dtype, layout):
    """In their vector; and in their channel, in parameter gradients."""
    shape = (2, 8, 6, 6)
    x = sixteenths(shape, 0).to(dtype)
    x[0, 1, 2, 3] = math.nan
    if function == 'pwlu':
        x[1, 4, 5, 5], x[1, 6, 0, 0] = math.inf, -math.inf
    operator, reference, parameters = {
        'acon': (acon, acon_reference, acon_parameters(shape)),
        'pwlu': (pwlu, pwlu_reference, pwlu_parameters(shape))
    }[function]
    y, grads = run(operator, with_layout(x, layout), *parameters)
    true_y, true_grads = run(reference, x.double(),
                             *(p.double() for p in parameters))
    assert_near(y, true_y)
    # The gradient of NaN is not compared: PWLU's has a piece's slope.
    clean = ~x.isnan()
    assert_near(grads[0][clean], true_grads[0][clean], backward=True)
    clean = [0, 2, 3, 5, 7]
    for result, true in zip(grads[1:], true_grads[1:]):
        torch.testing.assert_close(
            result[clean].double(), true[clean], rtol=1e-4, atol=1e-4)


def launches(call):
    """How many kernels of ours a call launches, and what it returns."""
    if EMULATED:
        before = torch.ops.mm_acon.launches()
        result = call()
        return torch.ops.mm_acon.launches() - before, result
    with torch.profiler.profile(
            activities=[torch.profiler.ProfilerActivity.CUDA]) as profiler:
        result = call()
        torch.cuda.synchronize()
    return sum('mm_acon::' in event.name
               for event in profiler.events()), result


@pytest.mark.parametrize('layout', LAYOUTS)
@pytest.mark.parametrize('learnt', [(), ('beta', ), ('p2', 'beta'),
                                    ('p1', 'p2', 'beta')])
@pytest.mark.parametrize('beta', BETAS)
def test_acon_launches_what_is_asked_for(beta, learnt, layout):
    """dx alone is one kernel, as ReLU's; ACON-A and B are two, as ACON-C."""
    shape = (2, 5, 7, 7)
    x = with_layout(sixteenths(shape, 0), layout).requires_grad_()
    one = torch.ones(1, device=DEVICE)
    numbers = dict(p1=one, p2=0 * one, beta=one)
    for name, value in zip(numbers, acon_parameters(shape, beta)):
        if name in learnt:
            numbers[name] = value.requires_grad_()
    count, y = launches(lambda: acon(x, *numbers.values()))
    assert count == 1
    grad = with_layout(sixteenths(shape, 1), layout)
    asked = [x] + [numbers[name] for name in learnt]
    count, found = launches(lambda: torch.autograd.grad(y, asked, grad))
    sums = set(learnt) - ({'beta'} if beta == 'pixel' else set())
    assert count == (2 if sums else 1)
    all_of_it = run(acon, x, *numbers.values(), grad=grad)[1]
    names = dict(zip(numbers, all_of_it[1:]))
    for result, true in zip(found,
                            all_of_it[:1] + [names[name] for name in learnt]):
        assert torch.equal(result, true)


@pytest.mark.parametrize('layout', LAYOUTS)
@pytest.mark.parametrize('learnt', [(), (0, ), (3, 4), (0, 1, 2, 3, 4)])
def test_pwlu_launches_what_is_asked_for(learnt, layout):
    shape = (2, 5, 7, 7)
    x = with_layout(sixteenths(shape, 0), layout).requires_grad_()
    grad = with_layout(sixteenths(shape, 1), layout)
    parameters = pwlu_parameters(shape)
    for i in learnt:
        parameters[i].requires_grad_()
    count, y = launches(lambda: pwlu(x, *parameters))
    assert count == 1
    asked = [x] + [parameters[i] for i in learnt]
    count, found = launches(lambda: torch.autograd.grad(y, asked, grad))
    assert count == (2 if learnt else 1)
    all_of_it = run(pwlu, x, *parameters, grad=grad)[1]
    for result, true in zip(found, [all_of_it[0]] +
                            [all_of_it[1 + i] for i in learnt]):
        assert torch.equal(result, true)


@pytest.mark.skipif(
    not EMULATED, reason='on a GPU compute-sanitizer looks for that')
def test_memory_is_intact():
    """Nothing before this wrote outside a tensor."""
    assert torch.ops.mm_acon.memory_is_intact()
