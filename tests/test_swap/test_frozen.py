"""Frozen stages, and what train() does to activations inside them."""
import copy

import pytest
import torch
from torch import nn

from mm_acon import LearnableActivation, swap_activations
from tests.helpers.backbones import build, images, loss_of, run, small

pytestmark = pytest.mark.usefixtures('unverified')

META_WITH_NORM = dict(type='MetaACON', norm_cfg=dict(type='BN'))
FROZEN_RESNET_18 = dict(
    type='mmdet.ResNet',
    depth=18,
    base_channels=8,
    frozen_stages=1,
    norm_eval=False)


def activations(module):
    return {
        name: child
        for name, child in module.named_modules()
        if isinstance(child, LearnableActivation)
    }


def test_frozen_sites_keep_their_relu_and_the_report_says_why():
    model = build(FROZEN_RESNET_18)
    report = swap_activations(model, dict(type='MetaACON'))
    assert len(report.rows) == 17
    for row in report.rows:
        if row.site == 'conv1' or row.site.startswith('layer1'):
            assert row.new is None
            assert row.reason.startswith("frozen; frozen='swap' if")
        else:
            assert row.new == 'MetaACON'
    assert type(model.relu) is type(model.layer1[0].relu) is nn.ReLU
    assert not any(
        name.startswith(('relu', 'layer1')) for name in activations(model))
    assert len(activations(model)) == 12
    assert all(
        p.requires_grad for activation in activations(model).values()
        for p in activation.parameters())


@pytest.mark.parametrize('config, frozen, trained', [
    (dict(
        type='mmdet.MobileNetV2', frozen_stages=1,
        act_cfg=dict(type='ReLU')), 2, 33),
    (dict(type='mmpretrain.VGG', depth=11, frozen_stages=1), 1, 7),
])
def test_stages_that_only_train_freezes(config, frozen, trained):
    """The constructors of these leave everything trainable."""
    model = build(config)
    assert all(p.requires_grad for p in model.parameters())
    report = swap_activations(model, dict(type='PWLU'))
    notes = [row.reason for row in report.rows if row.reason]
    assert len(notes) == frozen
    assert all(note.startswith('frozen') for note in notes)
    assert len(report.replaced) == trained
    model.train()
    assert all(
        p.requires_grad for activation in activations(model).values()
        for p in activation.parameters())


def in_frozen(name):
    return name.startswith(('relu', 'layer1'))


@pytest.mark.parametrize('copied', [False, True])
def test_swapped_frozen_sites_are_frozen_and_stay_in_eval_mode(copied):
    """The stem's too, of which the backbone's own freezing knows nothing."""
    model = build(FROZEN_RESNET_18)
    report = swap_activations(model, META_WITH_NORM, frozen='swap')
    assert len(report.replaced) == 17
    if copied:
        model = copy.deepcopy(model)
    for mode in (True, False, True):
        model.train(mode)
        for name, activation in activations(model).items():
            frozen = in_frozen(name)
            assert [p.requires_grad for p in activation.parameters()
                    ] == [not frozen] * 10, name
            assert all(
                m.training is (mode and not frozen)
                for m in activation.modules()), name
    # Nothing of them moves in training, neither parameters nor statistics.
    before = copy.deepcopy(model.state_dict())
    optimizer = torch.optim.SGD(model.parameters(), lr=.1)
    loss_of(run(model, images())).backward()
    optimizer.step()
    for name, activation in activations(model).items():
        for key, value in activation.state_dict(prefix=f'{name}.').items():
            same = torch.equal(value, before[key])
            if in_frozen(name):
                assert same, key
            elif 'running' in key:
                assert not same, key


def test_norm_eval_warns_of_norms_that_no_checkpoint_brings(log):
    small(META_WITH_NORM, norm_eval=True)
    (warning, ) = log.of(30)
    assert warning.startswith(
        'norm_eval=True keeps these norms inside activations at mean 0 and '
        'variance 1 for the whole training, because no checkpoint brings '
        'them: ')
    for key in ('relu.bn1.running_mean', 'layer2.3.relu.2.bn2.running_mean'):
        assert key in warning
    assert 'layer1.0.bn1' not in warning  # The backbone's own.


@pytest.mark.parametrize('config', [
    dict(act_cfg=META_WITH_NORM, norm_eval=False),
    dict(act_cfg=dict(type='MetaACON'), norm_eval=True),
    dict(
        act_cfg=META_WITH_NORM,
        norm_eval=True,
        init_cfg=dict(type='Pretrained', checkpoint='x.pth')),
])
def test_norm_eval_warns_only_where_it_has_to(config, log):
    small(**config)
    assert not log.of(30)


def test_norm_eval_of_a_backbone_inside_the_swapped_module(log):
    model = nn.Sequential(small(norm_eval=True))
    swap_activations(model, META_WITH_NORM, include='layer1')
    (warning, ) = log.of(30)
    assert '0.layer1.0.relu.0.bn1.running_mean' in warning
