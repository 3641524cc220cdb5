"""Compares the compiled PWLU with the reference, for what registers hold.

Run with ATEN_CPU_CAPABILITY, by which the processor's best form is left out.
Prints how many cases it compared.
"""
import math

import torch

from mm_acon.ops import pwlu, use_reference


def results(x, parameters, grad):
    # Which would stand in all gradients.
    odd = x.clone()
    for place, value in enumerate((math.nan, math.inf, -math.inf)):
        odd[place % 2, place, -1] = value
    leaves = [t.clone().requires_grad_() for t in (x, *parameters)]
    y = pwlu(*leaves)
    y.backward(grad)
    # Without the parameters' gradients dx is computed on another way.
    alone = x.clone().requires_grad_()
    pwlu(alone, *parameters).backward(grad)
    return [
        pwlu(odd, *parameters),
        y.detach(), alone.grad, *(t.grad for t in leaves)
    ]


def compare(intervals, length):
    generator = torch.Generator().manual_seed(intervals + length)

    def draw(*shape):
        return torch.randn(*shape, generator=generator)

    x = 2 * draw(2, 3, length)
    # Knots, where intervals are 4: what lies right of them is decided.
    x[..., ::3] = x[..., ::3].round()
    grad = draw(*x.shape)
    parameters = [
        draw(3, intervals + 1), -2 * torch.ones(3), 2 * torch.ones(3),
        draw(3),
        draw(3)
    ]
    ours = results(x, parameters, grad)
    with use_reference():
        expected = results(x, parameters, grad)
    for one, other in zip(ours, expected):
        # Sums of as many numbers, in another order.
        error = 2e-6 * (4 + length**.5)
        torch.testing.assert_close(
            one, other, rtol=error, atol=error, equal_nan=True)


if __name__ == '__main__':
    # 22 and 23: 24 and 25 pieces. 30 and 31: 32 and 33.
    cases = [(intervals, length) for intervals in (1, 4, 16, 22, 23, 30, 31)
             for length in (1, 7, 8, 9, 16, 40, 1500)]
    for case in cases:
        compare(*case)
    print(len(cases))
