"""More than 2^31 elements, which only 64-bit indices reach."""
from pathlib import Path

import pytest
import torch

from mm_acon.ops import acon, pwlu
from tests.conftest import COMPILED

HEIGHT, WIDTH = 2**15, 2**15 + 1
# In bfloat16.
TENSOR = 2 * 2 * HEIGHT * WIDTH / 2**30
# Three tensors of that size, and a mask of one.
NEEDED = 3.5 * TENSOR

pytestmark = [
    pytest.mark.full,
    # The plain-PyTorch form has no indices of its own.
    COMPILED,
    pytest.mark.parametrize('operator', [acon, pwlu]),
    pytest.mark.parametrize(
        'layout', [torch.contiguous_format, torch.channels_last],
        ids=['contiguous', 'channels_last']),
]


@pytest.fixture(autouse=True)
def enough_memory(device):
    if device == 'cuda':
        free = torch.cuda.mem_get_info()[0]
    else:
        lines = Path('/proc/meminfo').read_text().splitlines()
        kib, = [
            int(line.split()[1]) for line in lines
            if line.startswith('MemAvailable')
        ]
        free = kib * 2**10
    if free / 2**30 < NEEDED:
        pytest.skip(f'needs {NEEDED:.0f} GiB of memory on {device}')


def parameters(operator, device):
    if operator is acon:
        values = [1.2, .9], [-.1, .2], [1.5, .7]
    else:
        points = [-.5, .3, -.2, .9, 2.], [.1, -.4, .6, .2, 1.]
        values = points, [-1., -2.], [1.5, 2.], [.1, -.2], [1.1, .8]
    return [torch.tensor(v, device=device) for v in values]


def last_rows(device, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(
        1, 2, 2, WIDTH, generator=generator).to(device, torch.bfloat16)


def ending_in(rows, layout):
    """Zeros, and these rows at the end of every map."""
    x = torch.empty(
        1,
        2,
        HEIGHT,
        WIDTH,
        dtype=rows.dtype,
        device=rows.device,
        memory_format=layout).zero_()
    assert x.numel() > 2**31
    x[:, :, -2:] = rows
    return x


def test_forward(operator, layout, device):
    held = parameters(operator, device)
    rows = last_rows(device, 1)
    y = operator(ending_in(rows, layout), *held)
    assert torch.equal(y[:, :, -2:], operator(rows, *held))
    at_zero = operator(torch.zeros_like(rows), *held)[:, :, :1, :1]
    assert (y[:, :, :-2] == at_zero).all()


def test_backward(operator, layout, device):
    """Where the gradient is zero, so is its part of every sum."""
    held = parameters(operator, device)
    rows, grad = last_rows(device, 1), last_rows(device, 2)
    backward = getattr(torch.ops.mm_acon, f'{operator.__name__}_backward')
    asked = [True] * (1 + len(held))
    expected, *sums = backward(grad, rows, *held, asked)
    dx, *large_sums = backward(
        ending_in(grad, layout), ending_in(rows, layout), *held, asked)
    assert torch.equal(dx[:, :, -2:], expected)
    assert not dx[:, :, :-2].any()
    torch.testing.assert_close(large_sums, sums)
