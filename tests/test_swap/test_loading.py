"""What is said when a checkpoint is loaded, and checkpoints that travel."""
import copy
import logging

import pytest
import torch
from mmengine.runner.checkpoint import load_checkpoint, save_checkpoint
from torch import nn

from mm_acon import LearnableActivation, swap_activations

from .cases import build, images, run, small


def saved(path, model, prefix=''):
    state = {
        prefix + key: value
        for key, value in model.state_dict().items()
    }
    save_checkpoint(dict(state_dict=state), str(path))
    return str(path)


def loading_lines(log, level):
    return [line for line in log.of(level) if 'come from the' in line]


# Activation: level of the message, and its parameters in the small backbone
# (22 sites, MetaACON p1, p2, two weights and two biases).
ACTS = {
    'MetaACON': (logging.WARNING, 132),
    'ACONC': (logging.WARNING, 66),
    'PWLU': (logging.INFO, 110),
}


@pytest.mark.parametrize('name', ACTS)
def test_checkpoint_without_activations_is_reported(name, log, tmp_path):
    level, number = ACTS[name]
    checkpoint = saved(tmp_path / 'plain.pth', small())
    model = small(dict(type=name))
    load_checkpoint(model, checkpoint)
    (line, ) = loading_lines(log, level)
    assert line.startswith(f'ResNet: 0 of {number} activation parameters '
                           'come from the checkpoint')
    # PWLU starts as ReLU: nothing is lost, nothing to warn of.
    assert (f'The {name} that it does not bring start fresh' in line) is (
        level == logging.WARNING)
    assert not loading_lines(log, logging.WARNING + logging.INFO - level)


@pytest.mark.parametrize('name', ACTS)
def test_checkpoint_with_activations_is_reported(name, log, tmp_path):
    number = ACTS[name][1]
    model = small(dict(type=name))
    load_checkpoint(model, saved(tmp_path / 'same.pth', model))
    assert loading_lines(log, logging.INFO) == [
        f'ResNet: {number} of {number} activation parameters come from the '
        'checkpoint'
    ]
    assert not loading_lines(log, logging.WARNING)


def test_checkpoint_with_some_activations(log, tmp_path):
    """Trained with MetaACON after the 3x3, loaded where all are swapped."""
    meta = dict(type='MetaACON')
    partly = small(meta, swap=dict(include=r'layer\d.*\.conv2$'))
    model = small(meta)
    load_checkpoint(model, saved(tmp_path / 'some.pth', partly))
    (line, ) = loading_lines(log, logging.WARNING)
    assert line.startswith('ResNet: 42 of 132 activation parameters')


def test_whole_detector_is_loaded_and_reported_once(log, tmp_path):
    """The keys have a prefix then, and another load is another report."""
    model = nn.ModuleDict(dict(backbone=small(dict(type='PWLU'))))
    checkpoint = saved(tmp_path / 'detector.pth', model)
    again = copy.deepcopy(model)
    swap_activations(  # A second swap does not report twice.
        again['backbone'],
        dict(type='ACONC'),
        replace='PWLU',
        include='conv1')
    for _ in range(2):
        load_checkpoint(again, checkpoint)
    lines = loading_lines(log, logging.WARNING)
    assert len(lines) == 2
    # 8 of 22 sites are ACON now: 14 PWLUs come, 8 ACONs have no key.
    assert lines[0].startswith('ResNet: 70 of 94 activation parameters')
    assert 'The ACONC that it does not' in lines[0]
    load_checkpoint(again, saved(tmp_path / 'neck.pth', nn.Conv2d(3, 3, 1)))
    assert len(loading_lines(log, logging.WARNING)) == 2  # Nothing of ours.


def test_checkpoint_brings_the_norms_of_norm_eval(log, tmp_path):
    meta = dict(type='MetaACON', norm_cfg=dict(type='BN'))
    model = small(meta, norm_eval=True)
    for source, warned in ((model, False), (small(), True)):
        log.records.clear()
        load_checkpoint(model, saved(tmp_path / 'source.pth', source))
        assert warned is any('relu.bn1.running_mean' in line
                             for line in log.of(logging.WARNING))


RULE = dict(act_cfg=dict(type='MetaACON'), include=r'\.conv2$')


def classifier(**backbone):
    return build(
        dict(
            type='mmpretrain.ImageClassifier',
            backbone=dict(
                type='SwapActivations',
                backbone='mmpretrain.ResNet',
                depth=50,
                out_indices=(0, 1, 2, 3),
                **backbone)),
        seed=1)


@pytest.mark.parametrize('swap', [
    RULE,
    dict(act_cfg=dict(type='MetaACON', norm_cfg=dict(type='BN'))),
    dict(act_cfg=dict(type='PWLU')),
], ids=['MetaACON', 'MetaACON-BN everywhere', 'PWLU'])
def test_pretrained_in_mmpretrain_then_loaded_in_mmdet(swap, log, tmp_path):
    trained = classifier(swap=swap)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for module in trained.modules():
            if isinstance(module, LearnableActivation):
                for parameter in module.parameters():
                    parameter += .1 * torch.rand(
                        parameter.shape, generator=generator)
    run(trained.backbone, images())  # Statistics of norms too.
    checkpoint = saved(tmp_path / 'pretrained.pth', trained)

    # As in a detector's config: both of the first stages frozen, because
    # the checkpoint brings their activations.
    detector = build(
        dict(
            type='SwapActivations',
            backbone='mmdet.ResNet',
            depth=50,
            frozen_stages=1,
            swap=dict(swap, frozen='swap'),
            init_cfg=dict(
                type='Pretrained', checkpoint=checkpoint,
                prefix='backbone.')))
    log.records.clear()
    detector.init_weights()
    parameters = [
        parameter for module in detector.modules()
        if isinstance(module, LearnableActivation)
        for parameter in module.parameters()
    ]
    assert loading_lines(log, logging.INFO) == [
        f'ResNet: {len(parameters)} of {len(parameters)} activation '
        'parameters come from the checkpoint'
    ]
    assert not log.of(logging.WARNING)
    expected = trained.backbone.state_dict()
    assert detector.state_dict().keys() == expected.keys()
    for key, value in detector.state_dict().items():
        assert torch.equal(value, expected[key]), key
    trained.eval()
    detector.eval()
    stages = run(detector, images())
    assert len(stages) == 4
    for y, wanted in zip(stages, run(trained.backbone, images())):
        assert torch.equal(y, wanted)
