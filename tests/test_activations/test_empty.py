"""Parameters whose size is not known yet."""
import copy
from io import BytesIO

import pytest
import torch
from torch import nn

from mm_acon.activations.empty import (EmptyParameter, EmptyTensor,
                                       UnknownWidthError, empty_parameter,
                                       fill_parameter)


def empty(*shape):
    parameter = nn.Parameter(torch.ones(shape))
    empty_parameter(parameter)
    return parameter


def test_is_a_parameter_without_elements():
    """The axes stay: rules count them."""
    parameter = empty(3, 4)
    assert isinstance(parameter, nn.Parameter)
    assert parameter.shape == (0, 4) and parameter.requires_grad
    assert parameter.mean().isnan() and type(parameter.mean()) is torch.Tensor


@pytest.mark.parametrize(
    'view',
    (lambda p: p.data, lambda p: p.detach(), lambda p: p.detach().cpu(),
     lambda p: p.clone(), lambda p: p.double()))
def test_what_is_made_of_it_is_empty_too(view):
    assert isinstance(view(empty(3)), EmptyTensor)


def test_moved_with_its_module():
    module = nn.Module()
    parameter = module.weight = empty(3)
    module.double()
    assert module.weight is parameter
    assert parameter.dtype == torch.float64
    # Elsewhere PyTorch makes a new parameter, of any other as well.
    module.to('meta')
    assert isinstance(module.weight, nn.Parameter)
    assert isinstance(module.weight, EmptyTensor) and module.weight.is_meta
    fill_parameter(module.weight, torch.ones(3, device='meta'))
    assert type(module.weight) is nn.Parameter


@pytest.mark.parametrize(
    'use', (
        lambda p, x: p.data.copy_(x),
        lambda p, x: p.data.mul_(.9).add_(x, alpha=.1),
        lambda p, x: p.data.lerp_(x, .1),
        lambda p, x: torch.cat([x, p]),
        lambda p, x: torch._foreach_add_([p.data], [x]),
        lambda p, x: torch.add(input=p, other=x),
    ),
    ids=('copy', 'add', 'lerp', 'cat', 'foreach', 'keywords'))
def test_is_not_put_together_with_numbers(use):
    """One element would be broadcast into none, in silence."""
    for x in (torch.ones(3), torch.ones(1)):
        with pytest.raises(
                UnknownWidthError,
                match=r'\(\) of a tensor and of a parameter without a size: '
                r'an activation has met no input that tells its width.*'
                r'find_widths'):
            use(empty(3), x)
    use(empty(3), torch.empty(0))


def test_is_not_saved():
    for value in (empty(3), empty(3).detach(), dict(a=empty(3).data)):
        with pytest.raises(UnknownWidthError, match='cannot be saved'):
            torch.save(value, BytesIO())


def test_copies_are_empty_and_apart():
    first = empty(3)
    second = copy.deepcopy(first)
    assert isinstance(second, EmptyParameter) and second.requires_grad
    fill_parameter(first, torch.ones(3))
    assert first.numel() == 3 and second.numel() == 0
    frozen = copy.deepcopy(empty(3).requires_grad_(False))
    assert not frozen.requires_grad
    state = copy.deepcopy(dict(a=empty(3).detach()))
    assert type(state['a']) is EmptyTensor


def test_filled_it_is_an_ordinary_parameter():
    """And the one that an optimizer was given."""
    parameter = empty(3)
    optimizer = torch.optim.AdamW([parameter], lr=.1)
    optimizer.step()
    fill_parameter(parameter, torch.ones(3))
    assert type(parameter) is nn.Parameter
    parameter.sum().backward()
    optimizer.step()
    assert (parameter < 1).all()
