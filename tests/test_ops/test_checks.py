"""What the operators refuse, and what they say then."""
import re

import pytest
import torch

from mm_acon.ops import acon, pwlu
from mm_acon.ops.checks import compute_dtype
from tests.utils import run

X = torch.zeros(2, 3, 4)
ACON = dict(x=X, p1=torch.ones(3), p2=torch.zeros(3), beta=torch.ones(3))
PWLU = dict(
    x=X,
    points=torch.zeros(3, 5),
    left_bound=-torch.ones(3),
    right_bound=torch.ones(3),
    left_slope=torch.zeros(3),
    right_slope=torch.ones(3))
OPERATORS = [(acon, ACON), (pwlu, PWLU)]
PARAMETERS = [(operator, inputs, name) for operator, inputs in OPERATORS
              for name in inputs if name != 'x']


def refused(operator, inputs, error, text, **changed):
    with pytest.raises(error, match=re.escape(text)):
        operator(**{**inputs, **changed})


@pytest.mark.parametrize('operator, inputs', OPERATORS)
def test_accepted(operator, inputs):
    """The inputs that the other tests spoil are good ones."""
    assert operator(**inputs).shape == X.shape


@pytest.mark.parametrize('operator, inputs', OPERATORS)
@pytest.mark.parametrize('dtype', [torch.long, torch.uint8, torch.bool])
def test_integer_x(operator, inputs, dtype):
    refused(
        operator,
        inputs,
        TypeError,
        f'{operator.__name__} expects a floating-point x, got {dtype}; write '
        'x.float() first.',
        x=X.to(dtype))


@pytest.mark.parametrize('operator, inputs', OPERATORS)
@pytest.mark.parametrize('shape', [(), (3, )])
def test_too_few_axes(operator, inputs, shape):
    refused(
        operator,
        inputs,
        ValueError,
        f'{operator.__name__} expects x of shape (N, C, ...), got {shape}; '
        'write x.unsqueeze(0) for a single sample.',
        x=torch.zeros(shape))


@pytest.mark.parametrize('operator, inputs, name', PARAMETERS)
def test_wrong_rows(operator, inputs, name):
    """For x with 3 channels: 2 rows, 4 rows, none at all."""
    row = inputs[name].shape[1:]
    for rows in (0, 2, 4):
        refused(
            operator, inputs, ValueError,
            f'{operator.__name__} expects {name} to have {1 + len(row)} axes '
            'and 1 or 3 rows (the channels of x with shape (2, 3, 4)), got '
            f'shape {(rows, *row)}; write num_channels=3 where the '
            'activation is built.', **{name: torch.ones(rows, *row)})


@pytest.mark.parametrize('operator, inputs, name', [
    (operator, inputs, name)
    for operator, inputs, name in PARAMETERS if name not in ('beta', 'points')
])
@pytest.mark.parametrize('shape', [(), (3, 1), (1, 3), (1, 3, 1, 1)])
def test_wrong_axes(operator, inputs, name, shape):
    """(1, C, 1, 1) is how the authors' checkpoints hold p1 and p2."""
    refused(
        operator, inputs, ValueError,
        f'{operator.__name__} expects {name} to have 1 axes and 1 or 3 rows',
        **{name: torch.ones(shape)})


@pytest.mark.parametrize('operator, inputs, name', PARAMETERS)
def test_other_device(operator, inputs, name):
    refused(
        operator, inputs, RuntimeError,
        f'{operator.__name__} expects x and {name} on one device, got x on '
        f"cpu and {name} on meta; move the module with .to('cpu').",
        **{name: inputs[name].to('meta')})


@pytest.mark.parametrize('shape', [(2, 3), (2, 1), (2, 3, 4)])
def test_beta_on_another_device(shape):
    refused(
        acon,
        ACON,
        RuntimeError,
        'acon expects x and beta on one device',
        beta=torch.ones(shape, device='meta'))


@pytest.mark.parametrize('shape', [(), (3, 2), (3, 3), (2, 2), (1, 3),
                                   (2, 3, 1), (1, 3, 4), (2, 3, 4, 1)])
def test_shape_of_beta(shape):
    refused(
        acon,
        ACON,
        ValueError,
        'acon expects beta of shape (C,), (1,), (N, C), (N, 1) or the shape '
        f'of x, here (2, 3, 4), got {shape}.',
        beta=torch.ones(shape))


@pytest.mark.parametrize('shape', [(), (5, ), (3, 0), (3, 1), (1, 3, 5)])
def test_shape_of_points(shape):
    refused(
        pwlu,
        PWLU,
        ValueError,
        'pwlu expects points of shape (C, N + 1) or (1, N + 1) with N >= 1 '
        f'intervals, got {shape}.',
        points=torch.ones(shape))


@pytest.mark.parametrize(
    'x, expected', [(torch.float16, torch.float32),
                    (torch.bfloat16, torch.float32),
                    (torch.float32, torch.float32),
                    (torch.float64, torch.float64)],
    ids=str)
def test_compute_dtype(x, expected):
    """At least float32."""
    assert compute_dtype(X.to(x)) == expected


@pytest.mark.parametrize('operator, parameters', [
    (acon, [torch.rand(3) for _ in range(3)]),
    (pwlu, [
        torch.rand(3, 5), -1 - torch.rand(3), 1 + torch.rand(3),
        torch.rand(3),
        torch.rand(3)
    ]),
])
def test_parameters_of_float64(operator, parameters, device):
    """x alone decides what the arithmetic is done in."""
    x = torch.randn(2, 3, 7, device=device)
    parameters = [p.to(device) for p in parameters]
    y, grads = run(operator, x, *parameters)
    wide_y, wide = run(operator, x, *(p.double() for p in parameters))
    assert torch.equal(wide_y, y)
    assert torch.equal(wide[0], grads[0])
    for result, true in zip(wide[1:], grads[1:]):
        assert result.dtype == torch.float64
        torch.testing.assert_close(result.float(), true)
