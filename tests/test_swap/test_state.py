"""What a pass leaves behind: nothing."""
import random

import numpy as np
import torch
from torch import nn

from mm_acon.swap.state import in_mode, kept_state


def test_random_states_and_buffers():
    net = nn.Sequential(nn.BatchNorm1d(2))
    net[0].register_buffer('held', torch.zeros(2))
    held = net[0].held
    numbers = random.getstate(), np.random.get_state()[1].copy()
    state = torch.get_rng_state()
    with kept_state(net):
        net(torch.rand(4, 2))
        net[0].held = torch.ones(2)
        random.random(), np.random.rand()
    assert net[0].held is held and not held.any()
    assert torch.equal(net[0].running_mean, torch.zeros(2))
    assert net[0].num_batches_tracked == 0
    assert random.getstate() == numbers[0]
    assert (np.random.get_state()[1] == numbers[1]).all()
    assert torch.equal(torch.get_rng_state(), state)


def test_parameters_that_nobody_has_filled():
    """They read as 0, and are what they were afterwards."""
    net = nn.Linear(2, 2)
    weight = torch.tensor([[1., float('nan')], [-1e30, 2.]])
    net.weight.data = weight
    memory = net.weight.data_ptr()
    bias = net.bias.clone()
    with kept_state(net):
        assert torch.equal(net.weight, torch.tensor([[1., 0], [0, 2]]))
        assert torch.equal(net.bias, bias)
        net(torch.ones(1, 2)).sum().backward()
    assert net.weight.data_ptr() == memory
    assert torch.equal(net.weight.isnan(), weight.isnan())
    assert net.weight[1, 0] == -1e30 and net.weight.grad.isfinite().all()


def test_flags():
    net = nn.Sequential(nn.ReLU(), nn.ReLU())
    net[1].eval()
    for training in (True, False):
        with in_mode(net, training):
            assert all(m.training is training for m in net.modules())
        assert net.training and net[0].training and not net[1].training
