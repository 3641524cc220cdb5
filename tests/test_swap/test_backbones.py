"""Real backbones: their sites, and that a swap leaves their function."""
import copy

import pytest
import torch
from mmengine.runner.checkpoint import load_checkpoint, save_checkpoint

from mm_acon import PWLU, LearnableActivation, swap_activations
from mm_acon.swap.probe import probe
from tests.helpers.backbones import (BACKBONES, RightReLU, assert_same, build,
                                     images, outputs_and_gradients,
                                     pwlu_in_phase1, relu_backbone,
                                     with_activations)
from tests.utils import unless_long

EVERY = pytest.mark.parametrize('name', unless_long(BACKBONES))


@EVERY
def test_sites_of_the_probe(name):
    config, modules, sites, others = BACKBONES[name]
    probed = probe(build(config)).sites
    assert len({site.module for site in probed}) == modules
    assert len(probed) == sites
    for type_name, count in others.items():
        assert sum(site.type == type_name for site in probed) == count
    assert len({site.name for site in probed}) == sites
    # Every activation of these backbones lies behind a convolution.
    assert all(site.feed is not None and site.width for site in probed)


@EVERY
def test_swap_keeps_outputs_gradients_and_keys(name, tmp_path):
    """In Phase I, where PWLU is ReLU in its gradient at 0 too."""
    plain = relu_backbone(name)
    keys = list(plain.state_dict())
    parameters = list(dict(plain.named_parameters()))
    checkpoint = tmp_path / 'plain.pth'
    save_checkpoint(dict(state_dict=plain.state_dict()), str(checkpoint))
    swapped = copy.deepcopy(plain)
    report = pwlu_in_phase1(swapped)
    assert all(row.new for row in report.rows if row.old == 'ReLU')
    pwlus = [m for m in swapped.modules() if isinstance(m, PWLU)]
    assert len(pwlus) == len(report.replaced)
    again = copy.deepcopy(swapped)

    x = images()
    expected = outputs_and_gradients(plain, x, backwards=2)
    for model in (swapped, again):  # The copy counts its calls for itself.
        assert_same(
            outputs_and_gradients(model, x, parameters, backwards=2), expected)

    # No key is renamed or gone; the new ones are the activations'.
    state = swapped.state_dict()
    assert [key for key in state if key in set(keys)] == keys
    owned = {
        f'{prefix}.{key}'
        for prefix, module in swapped.named_modules()
        if isinstance(module, LearnableActivation)
        for key in module.state_dict()
    }
    assert state.keys() - set(keys) == owned

    fresh = copy.deepcopy(again)
    with torch.no_grad():
        for parameter_name in parameters:
            fresh.get_parameter(parameter_name).zero_()
    loaded = load_checkpoint(fresh, str(checkpoint), map_location='cpu')
    assert loaded['state_dict'].keys() == set(keys)
    for key in keys:
        assert torch.equal(fresh.state_dict()[key], loaded['state_dict'][key])
    missing, unexpected = fresh.load_state_dict(
        loaded['state_dict'], strict=False)
    assert set(missing) == owned
    assert not unexpected


@EVERY
def test_fresh_pwlu_is_relu_with_the_right_hand_slope_at_0(name):
    """The paper's formula has slope 1 at 0, PyTorch's ReLU 0.

    It matters in ResNeXt: a dead group gives inputs of exactly 0.
    """
    swapped = relu_backbone(name)
    plain = with_activations(copy.deepcopy(swapped), ['ReLU'], RightReLU)
    parameters = list(dict(plain.named_parameters()))
    swap_activations(swapped, dict(type='PWLU'), tiny_maps=True)
    x = images()
    assert_same(
        outputs_and_gradients(swapped, x, parameters),
        outputs_and_gradients(plain, x))
