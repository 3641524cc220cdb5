"""Inputs and gradients that are parts of a tensor, or lie in another order."""
import pytest
import torch
from torch import Tensor

from mm_acon.ops import acon, pwlu
from tests.conftest import BUILT
from tests.utils import assert_near, images, run

SHAPE = (4, 6, 3, 5)


def in_order(x: Tensor, *axes: int) -> Tensor:
    """The same values, the axes in this order in memory."""
    back = [axes.index(axis) for axis in range(x.dim())]
    return x.permute(axes).contiguous().permute(back)


def part_of(x: Tensor, axis: int, layout=torch.contiguous_format) -> Tensor:
    """Cut out of a tensor that is wider by three along an axis."""
    sizes = list(x.shape)
    sizes[axis] += 3
    wide = torch.full(sizes, torch.nan, dtype=x.dtype, device=x.device)
    found = wide.contiguous(memory_format=layout).narrow(
        axis, 1, x.shape[axis])
    return found.copy_(x)


# How x may lie without being copied.
VIEWS = {
    'contiguous':
    lambda x: x.contiguous(),
    'channels_last':
    lambda x: in_order(x, 0, 2, 3, 1),
    'channels of more':
    lambda x: part_of(x, 1),
    'channels of more, channels_last':
    lambda x: part_of(x, 1, torch.channels_last),
    'samples of more':
    lambda x: part_of(x, 0),
    'every other sample':
    lambda x: x.repeat_interleave(2, 0)[::2],
    'columns before rows':
    lambda x: in_order(x, 0, 1, 3, 2),
    'columns before rows, channels_last':
    lambda x: in_order(x, 0, 3, 2, 1),
    'channels outermost':
    lambda x: in_order(x, 1, 0, 2, 3),
    'not aligned':
    lambda x: torch.cat([x.new_zeros(1), x.flatten()])[1:].view(x.shape),
}
COPIED = {
    'every other column': lambda x: x.repeat_interleave(2, 3)[..., ::2],
    'columns of more': lambda x: part_of(x, 3),
    'samples innermost': lambda x: in_order(x, 1, 2, 3, 0),
    'channels between': lambda x: in_order(x, 0, 2, 1, 3),
    'one sample for all': lambda x: x[:1].expand(x.shape),
}


def parameters(operator, kind, device):
    channels = SHAPE[1]
    rows = [images(channels, seed=seed) for seed in range(2, 7)]
    if operator is acon:
        shapes = {
            'channel': (channels, ),
            'sample': SHAPE[:2],
            'pixel': SHAPE,
            'layer': (1, )
        }
        found = rows[:2] + [images(*shapes[kind], seed=9)]
        if kind == 'layer':
            found = [p[:1] for p in found]
    else:
        found = [
            images(channels, 9, seed=9), -1 - rows[0].abs(), 1 + rows[1].abs(),
            rows[2], rows[3]
        ]
        if kind == 'layer':
            found = [p[:1] for p in found]
    return [p.to(device) for p in found]


CASES = pytest.mark.parametrize('operator, kind', [(acon, 'channel'),
                                                   (acon, 'sample'),
                                                   (acon, 'pixel'),
                                                   (acon, 'layer'),
                                                   (pwlu, 'channel'),
                                                   (pwlu, 'layer')])


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize('of_grad', ['contiguous', 'channels of more'])
@pytest.mark.parametrize('view', [*VIEWS, *COPIED])
@CASES
def test_values(operator, kind, view, of_grad, dtype, device):
    """As of contiguous tensors, in the layout that PyTorch's ReLU gives."""
    change = {**VIEWS, **COPIED}[view]
    x = change(images(*SHAPE, seed=0).to(device, dtype))
    grad = images(*SHAPE, seed=1).to(device, dtype)
    held = parameters(operator, kind, device)
    y, grads = run(operator, x, *held, grad=VIEWS[of_grad](grad))
    true_y, true_grads = run(operator, x.contiguous(), *held, grad=grad)
    assert_near(y, true_y)
    assert_near(grads[0], true_grads[0], backward=True)
    for result, true in zip(grads[1:], true_grads[1:]):
        scale = true.abs().max()
        assert_near(result / scale, true / scale, backward=True)
    assert y.stride() == torch.relu(x).stride()


@pytest.mark.parametrize('of_grad', VIEWS)
@CASES
def test_any_gradient(operator, kind, of_grad, device):
    x, grad = (images(*SHAPE, seed=seed).to(device) for seed in range(2))
    held = parameters(operator, kind, device)
    _, true_grads = run(operator, x, *held, grad=grad)
    _, grads = run(operator, x, *held, grad=VIEWS[of_grad](grad))
    for result, true in zip(grads, true_grads):
        assert_near(result, true, backward=True)


# More channels than a line or a tile of CPU kernels takes, and more places
# than a block or a chunk: none is a multiple of it.
@pytest.mark.parametrize('shape', [(1, 1027, 2, 3), (2, 37, 23, 25)], ids=str)
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize('operator', [acon, pwlu])
def test_channels_last_over_many_tiles(operator, dtype, shape, device):
    """The numbers are those of contiguous tensors."""
    x, grad = (images(*shape, seed=seed).to(device, dtype) for seed in (0, 1))
    rows = [images(shape[1], seed=seed) for seed in range(2, 7)]
    held = rows[:3] if operator is acon else [
        images(shape[1], 9, seed=9), -1 - rows[0].abs(), 1 +
        rows[1].abs(), *rows[2:4]
    ]
    held = [p.to(device) for p in held]
    true_y, true_grads = run(operator, x, *held, grad=grad)
    y, grads = run(
        operator,
        in_order(x, 0, 2, 3, 1),
        *held,
        grad=in_order(grad, 0, 2, 3, 1))
    assert_near(y, true_y)
    for result, true in zip(grads, true_grads):
        assert_near(result, true, backward=True)


def copies(function):
    """How often something of x's size was copied."""
    with torch.profiler.profile(record_shapes=True) as profile:
        result = function()
    sizes = [
        event.input_shapes[0] for event in profile.events()
        if event.name == 'aten::copy_'
    ]
    return result, sum(size == list(SHAPE) for size in sizes)


@pytest.mark.skipif('cpu' not in BUILT, reason='_ext is not built')
@pytest.mark.parametrize('view', [*VIEWS, *COPIED])
@CASES
def test_nothing_is_copied(operator, kind, view):
    """But what cannot be seen with one step for each of three axes."""
    change = {**VIEWS, **COPIED}[view]
    x = change(images(*SHAPE)).requires_grad_()
    held = [p.requires_grad_() for p in parameters(operator, kind, 'cpu')]
    if kind == 'pixel':
        held[-1] = change(held[-1].detach()).requires_grad_()
    y, forward = copies(lambda: operator(x, *held))
    grad = torch.ones_like(y)
    _, backward = copies(lambda: torch.autograd.grad(y, [x, *held], grad))
    assert (forward + backward == 0) == (view in VIEWS)


@pytest.mark.skipif('cpu' not in BUILT, reason='_ext is not built')
@CASES
def test_a_part_of_a_gradient_is_not_copied(operator, kind):
    """As behind a concatenation of channels."""
    x = images(*SHAPE).requires_grad_()
    held = [p.requires_grad_() for p in parameters(operator, kind, 'cpu')]
    y = operator(x, *held)
    grad = part_of(torch.ones(SHAPE), 1)
    assert copies(lambda: torch.autograd.grad(y, [x, *held], grad))[1] == 0


def test_tokens_as_channels_first(device):
    """(N, L, C) that was transposed; the channels are neighbours."""
    tokens = images(2, 7, 6, seed=0).to(device)
    x = tokens.transpose(1, 2)
    held = parameters(pwlu, 'channel', device)
    assert torch.equal(pwlu(x, *held), pwlu(x.contiguous(), *held))
    assert pwlu(x, *held).stride() == x.stride()
