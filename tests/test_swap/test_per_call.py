"""One activation per call of a shared module."""
import copy

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from mm_acon import ACONC, swap_activations
from mm_acon.swap.per_call import ActivationPerCall
from tests.helpers.backbones import (Block, assert_same, images,
                                     outputs_and_gradients)


class Times(nn.Module):
    """Multiplies, and remembers how often it was asked to."""

    def __init__(self, factor):
        super().__init__()
        self.factor = factor

    def forward(self, x):
        return x * self.factor


class Caller(nn.Module):

    def __init__(self):
        super().__init__()
        self.first = nn.Identity()
        self.act = None

    def forward(self, x, calls=3):
        x = self.first(x)
        for _ in range(calls):
            x = self.act(x) + 1
        return x


def caller(first_child=True):
    module = Caller()
    module.act = ActivationPerCall(
        [Times(2), Times(3), Times(5)], module,
        module.first if first_child else None)
    return module


# ((1 * 2 + 1) * 3 + 1) * 5 + 1
RESULT = 51


def test_nth_call_goes_to_the_nth_child():
    module, x = caller(), torch.ones(1)
    assert module(x) == RESULT
    assert module(x) == RESULT
    assert list(module.act.children()) == list(module.act)
    assert [child.factor for child in module.act] == [2, 3, 5]


@pytest.mark.parametrize('calls, what', [
    (1, '1 calls in one forward'),
    (2, '2 calls in one forward'),
    (4, 'call 4 in one forward'),
    (5, 'call 4 in one forward'),
])
def test_another_number_of_calls_is_an_error(calls, what):
    """Two of three calls need not be the first two: never a wrong child."""
    module, x = caller(), torch.ones(1)
    with pytest.raises(
            RuntimeError,
            match='Caller calls an activation otherwise than it did when it '
            f'was swapped: {what}, expected 3 calls. Swap it with a '
            'sample_input .* or leave it out with exclude='):
        module(x, calls)
    assert module(x) == RESULT  # And is over with the next forward.


def test_no_call_at_all_is_none_to_confuse():
    module, x = caller(), torch.ones(1)
    assert module(x, calls=0) == 1
    assert module(x) == RESULT


@pytest.mark.parametrize('first_child', [False, True])
def test_forward_that_stopped_half_way(first_child):
    module, x = caller(first_child), torch.ones(1)
    handle = module.act[1].register_forward_pre_hook(lambda *unused: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        module(x)
    handle.remove()
    assert module(x) == RESULT


def test_copies_count_for_themselves():
    module, x = caller(), torch.ones(1)
    module(x)
    other = copy.deepcopy(module)
    other.act[0].factor = 20
    handle = module.act[1].register_forward_pre_hook(lambda *unused: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        module(x)
    handle.remove()
    assert other(x) == ((1 * 20 + 1) * 3 + 1) * 5 + 1
    assert module(x) == RESULT


@pytest.mark.parametrize('replaced', [False, True])
@pytest.mark.parametrize('use_reentrant', [False, True])
def test_rerun_that_starts_at_the_first_child(use_reentrant, replaced):
    """As a bottleneck's with_cp: the caller's forward is not run again."""

    class Checkpointing(Block):

        def forward(self, x):
            return checkpoint(super().forward, x, use_reentrant=use_reentrant)

    plain = Block()
    model = Checkpointing()
    model.load_state_dict(plain.state_dict())
    for module in (plain, model):
        swap_activations(module, dict(type='ACONC'))
    if replaced:  # As by SyncBN conversion, and conv-BN fusion.
        model.conv1 = copy.deepcopy(plain.conv1)
    x = images().requires_grad_()
    assert_same(
        outputs_and_gradients(model, x, backwards=2),
        outputs_and_gradients(plain, x, backwards=2))


def test_one_block_called_twice_in_a_forward():
    """Shared weights: the count starts again with each of its forwards."""

    class Twice(nn.Module):

        def __init__(self):
            super().__init__()
            self.block = Block()

        def forward(self, x):
            return self.block(x) + self.block(2 * x)

    model = Twice()
    plain = copy.deepcopy(model)
    report = swap_activations(model, dict(type='PWLU'))
    assert [row.site for row in report.rows] == ['block.conv1', 'block.conv2']
    assert_same((model(images()), {}), (plain(images()), {}))


def test_keys_and_modes():
    """A child per call, under the name of the module that was there."""
    model = Block()
    model.train()
    model.relu.eval()
    swap_activations(model, dict(type='ACONC'), include='conv2')
    assert isinstance(model.relu, ActivationPerCall)
    assert isinstance(model.relu[0], nn.ReLU)
    assert isinstance(model.relu[1], ACONC)
    assert not any(module.training for module in model.relu.modules())
    assert [key for key in model.state_dict()
            if 'relu' in key] == ['relu.1.p1', 'relu.1.p2', 'relu.1.beta']
