"""What is said when a checkpoint is loaded, and checkpoints that travel."""
import copy
import logging
import os
import re
from argparse import Namespace
from contextlib import contextmanager

import pytest
import torch
from mmengine.model import BaseModule
from mmengine.runner.checkpoint import load_checkpoint, save_checkpoint
from torch import nn

from mm_acon import ACONC, PWLU, LearnableActivation, swap_activations
from mm_acon.activations.acon import MAX_GAP
from mm_acon.compat import strict_zip
from mm_acon.swap.loading import watch_loading
from tests.helpers.backbones import build, images, run, small
from tests.helpers.toy import weights_of


def saved(path, model, prefix=''):
    state = {prefix + key: value for key, value in model.state_dict().items()}
    save_checkpoint(dict(state_dict=state), str(path))
    return str(path)


@contextmanager
def chdir(folder):
    before = os.getcwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


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
    assert (f'The {name} that it does not bring start fresh'
            in line) is (level == logging.WARNING)
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


META = dict(type='MetaACON')
AT_CONV2 = dict(include=r'layer\d.*\.conv2$')


def test_checkpoint_with_some_activations(log, tmp_path):
    """Trained with MetaACON after the 3x3, loaded where all are swapped."""
    model = small(META)
    load_checkpoint(model,
                    saved(tmp_path / 'some.pth', small(META, swap=AT_CONV2)))
    (line, ) = loading_lines(log, logging.WARNING)
    assert line.startswith('ResNet: 42 of 132 activation parameters')
    assert ('. Fresh: relu, layer1.0.relu.0, layer1.0.relu.2, '
            'layer1.1.relu.0, ') in line
    assert 'Not used' not in line


def test_checkpoint_with_more_activations(log, tmp_path):
    """And the other way round: the network is not the one that was trained."""
    model = small(META, swap=AT_CONV2)
    load_checkpoint(model, saved(tmp_path / 'more.pth', small(META)))
    (line, ) = loading_lines(log, logging.WARNING)
    assert line.startswith('ResNet: 42 of 42 activation parameters come from '
                           'the checkpoint. Not used of the checkpoint: '
                           'relu.p1, relu.p2, relu.fc1.weight, ')
    assert ' and 70 more. It was trained with activations that are not' in line
    assert 'Fresh' not in line


@pytest.mark.parametrize('trained, loaded, counts', [
    (META, dict(type='PWLU'), '0 of 110'),
    (dict(META, norm_cfg=dict(type='BN')), META, '132 of 132'),
    (dict(META, reduction=8), META, '66 of 132'),
])
def test_checkpoint_with_other_activations(trained, loaded, counts, log,
                                           tmp_path):
    """By type, options and shape; PWLU's ReLU is no start for them."""
    load_checkpoint(
        small(loaded), saved(tmp_path / 'other.pth', small(trained)))
    (line, ) = loading_lines(log, logging.WARNING)
    assert line.startswith(f'ResNet: {counts} activation parameters')
    assert ('trained with activations that are not these; write the act_cfg, '
            'include and exclude that it was trained with') in line


def test_other_keys_that_are_not_used_are_no_warning(log, tmp_path):
    """Those of a classifier's head, for example."""
    model = small(META)
    checkpoint = saved(tmp_path / 'head.pth',
                       nn.ModuleDict(dict(fc=nn.Linear(2, 2))))
    state = dict(model.state_dict(), **torch.load(checkpoint)['state_dict'])
    save_checkpoint(dict(state_dict=state), checkpoint)
    load_checkpoint(model, checkpoint)
    (line, ) = loading_lines(log, logging.INFO)
    assert line.endswith('come from the checkpoint. Not used of the '
                         'checkpoint: fc.weight, fc.bias')


@pytest.mark.parametrize('name', ACTS)
def test_forgotten_prefix(name, log, tmp_path):
    model = small(dict(type=name))
    load_checkpoint(model,
                    saved(tmp_path / 'whole.pth', model, prefix='backbone.'))
    (line, ) = loading_lines(log, logging.WARNING)
    assert line.startswith(f'ResNet: 0 of {ACTS[name][1]} activation')
    assert line.endswith("Nothing of the checkpoint fits; its keys begin with "
                         "'backbone.', so write prefix='backbone.' in "
                         'init_cfg')


def test_frozen_activations_that_stay_fresh(log, tmp_path):
    frozen = dict(frozen_stages=1, swap=dict(frozen='swap'))
    load_checkpoint(
        small(dict(type='PWLU'), **frozen),
        saved(tmp_path / 'plain.pth', small()))
    (line, ) = loading_lines(log, logging.WARNING)
    assert line.endswith('. Those in frozen stages stay fresh for the whole '
                         "training; leave out frozen='swap'")


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


def backbone(config, swap=None, **kwargs):
    """Config of a ResNet-18 of any library, swapped or plain."""
    config = dict(depth=18, out_indices=(0, 1, 2, 3), **config, **kwargs)
    if swap:
        config = dict(type='SwapActivations', backbone=config, swap=swap)
    return config


def trained(config, swap=None):
    """Activations and statistics are no longer the first."""
    model = build(
        dict(
            type='mmpretrain.ImageClassifier', backbone=backbone(config,
                                                                 swap)))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, LearnableActivation):
                for parameter in module.parameters():
                    parameter += .1 * torch.rand(
                        parameter.shape, generator=generator)
    run(model.backbone, images())
    model.eval()
    return model


DEEP_STEM = [
    dict(type='mmpretrain.ResNetV1c'),
    dict(type='mmseg.ResNetV1c'),
    dict(type='mmdet.ResNet', deep_stem=True)
]
# Pairs that are the same network.
TRAVELS = [(dict(type='mmpretrain.ResNet'), dict(type='mmdet.ResNet')),
           (dict(type='mmpretrain.ResNet'), dict(type='mmseg.ResNet')),
           (dict(type='mmpretrain.ResNetV1d'), dict(type='mmdet.ResNetV1d')),
           (DEEP_STEM[0], DEEP_STEM[1]), (DEEP_STEM[0], DEEP_STEM[2]),
           (DEEP_STEM[1], DEEP_STEM[2]), (DEEP_STEM[2], DEEP_STEM[0])]

SWAPS = {
    'MetaACON': dict(act_cfg=META, include=r'layer\d\.\d\.conv[12]$'),
    'MetaACON-BN': dict(act_cfg=dict(META, norm_cfg=dict(type='BN'))),
    'PWLU': dict(act_cfg=dict(type='PWLU')),
}


@pytest.mark.parametrize(
    'source, target, name', [
        *((*travel, 'MetaACON-BN')
          for travel in TRAVELS), *((*TRAVELS[0], name)
                                    for name in ('MetaACON', 'PWLU'))
    ],
    ids=lambda value: value if isinstance(value, str) else value['type'])
def test_trained_in_one_library_then_loaded_in_another(source, target, name,
                                                       log, tmp_path):
    model = trained(source, SWAPS[name])
    checkpoint = saved(tmp_path / 'trained.pth', model)
    # As in a detector's config: both of the first stages frozen, because
    # the checkpoint brings their activations.
    loaded = build(
        backbone(
            target,
            dict(SWAPS[name], frozen='swap'),
            frozen_stages=1,
            init_cfg=dict(
                type='Pretrained', checkpoint=checkpoint, prefix='backbone.')))
    log.records.clear()
    loaded.init_weights()
    number = sum(
        len(list(module.parameters())) for module in loaded.modules()
        if isinstance(module, LearnableActivation))
    assert loading_lines(log, logging.INFO) == [
        f'{type(loaded).__name__}: {number} of {number} activation '
        'parameters come from the checkpoint'
    ]
    assert not log.of(logging.WARNING)
    for (key,
         value), wanted in strict_zip(loaded.state_dict().items(),
                                      model.backbone.state_dict().values()):
        assert torch.equal(value, wanted), key
    loaded.eval()
    for y, wanted in strict_zip(
            run(loaded, images()), run(model.backbone, images())):
        assert torch.equal(y, wanted)


@pytest.mark.parametrize('library', ['mmdet', 'mmseg', 'mmpretrain'])
def test_relu_checkpoint_keeps_its_function_with_pwlu(library, tmp_path):
    config = dict(type=f'{library}.ResNet')
    plain = trained(config).backbone
    model = build(backbone(config, dict(act_cfg=dict(type='PWLU'))))
    load_checkpoint(model, saved(tmp_path / 'plain.pth', plain))
    model.eval()
    for y, wanted in zip(run(model, images()), run(plain, images())):
        assert torch.equal(y, wanted)


def test_relu_checkpoint_keeps_its_function_with_acon(log, tmp_path):
    """To within 0.2784645428 / beta at every site."""
    config = dict(type='mmdet.ResNet')
    plain = trained(config).backbone
    model = build(
        backbone(config, dict(act_cfg=dict(type='ACONC', beta_init=1000))))
    load_checkpoint(model, saved(tmp_path / 'plain.pth', plain))
    assert loading_lines(log, logging.INFO) == [
        'ResNet: 0 of 51 activation parameters come from the checkpoint'
    ]
    gaps = []
    for module in model.modules():
        if isinstance(module, LearnableActivation):
            module.register_forward_hook(lambda module, args, y: gaps.append(
                (args[0].relu() - y).abs().max().item()))
    model.eval()
    outputs = run(model, images())
    assert len(gaps) == 17
    assert 2e-4 < max(gaps) <= MAX_GAP / 1000 + 1e-6
    for y, wanted in strict_zip(outputs, run(plain, images())):
        assert (y - wanted).norm() < 1e-2 * wanted.norm()


# Weights that init_cfg names.


def pretrained(model, path, **kwargs):
    model.init_cfg = dict(type='Pretrained', checkpoint=path, **kwargs)
    model._is_init = False
    model.init_weights()


def test_pretrained_weights_of_another_backbone(tmp_path):
    path = weights_of(tmp_path, small(depth=18))
    with pytest.raises(
            ValueError,
            match=f'{path} does not fit ResNet: .* tensors have another shape'
            ': size mismatch for layer1.0.conv1.weight'):
        pretrained(small(dict(type='PWLU')), path)
    # Of a plain backbone that is mmengine's warning, and of a classifier
    # with another head as well.
    pretrained(small(), path)

    class Classifier(BaseModule):

        def __init__(self, classes):
            super().__init__()
            self.backbone = small(dict(type='PWLU'))
            self.head = nn.Linear(2, classes)

    pretrained(Classifier(3), weights_of(tmp_path, Classifier(5)))


def test_pretrained_weights_of_a_whole_model(tmp_path):
    path = weights_of(tmp_path, nn.ModuleDict(dict(backbone=small())))
    model = small(dict(type='PWLU'))
    with pytest.raises(
            ValueError,
            match=f"Nothing in {path} fits ResNet; its keys begin with "
            "'backbone.', so write prefix='backbone.' in init_cfg"):
        pretrained(model, path)
    pretrained(model, path, prefix='backbone.')


def written(path, content):
    torch.save(content, path)
    return str(path)


def same_weights(model, source):
    own = model.state_dict()
    return all(torch.equal(own[k], v) for k, v in source.state_dict().items())


@pytest.mark.parametrize('layout', [
    lambda w: dict(model=w, epoch=3),
    lambda w: dict(teacher={
        f'backbone.{k}': v
        for k, v in w.items()
    }),
    lambda w: dict(state_dict_ema=w, args=Namespace(lr=.1)),
    lambda w: dict(model={
        f'module.{k}': v
        for k, v in w.items()
    }),
])
def test_weights_under_a_key_of_their_own(layout, tmp_path):
    """mmengine looks at 'state_dict' and the top of the file only."""
    source, model = small(), small(dict(type='PWLU'))
    path = written(tmp_path / 'file.pth', layout(source.state_dict()))
    pretrained(model, path)
    assert same_weights(model, source)


def test_two_sets_of_weights_under_keys_of_their_own(tmp_path):
    """Nothing tells which is meant; what the message says can be done."""
    source, model = small(), small(dict(type='PWLU'))
    weights = source.state_dict()
    path = written(tmp_path / 'file.pth',
                   dict(student=small().state_dict(), teacher=weights))
    with pytest.raises(ValueError, match='Nothing in') as error:
        pretrained(model, path)
    message = str(error.value)
    assert message.startswith(
        f'Nothing in {path} fits ResNet; it has such weights under student '
        'and teacher: write those that are meant into a file of their own, ')
    command = message.partition('of their own, ')[2]
    with chdir(tmp_path):
        exec(command, dict(torch=torch))
    pretrained(model, str(tmp_path / 'weights.pth'))
    assert same_weights(model, source)


@pytest.mark.parametrize(
    'prefix', ['backbone.', 'module.backbone.', 'module.encoder_q.', 'a.b.c.'])
def test_prefix_that_is_proposed_works(prefix, tmp_path):
    """Also where mmengine takes 'module.' from what it hands on."""
    source, model = small(), small(dict(type='PWLU'))
    path = written(
        tmp_path / 'file.pth',
        dict(
            state_dict={
                **{
                    prefix + k: v
                    for k, v in source.state_dict().items()
                }, 'head.weight': torch.ones(2)
            }))
    with pytest.raises(ValueError, match='Nothing in') as error:
        pretrained(model, path)
    proposed = re.search("write prefix='(.*?)' in init_cfg",
                         str(error.value))[1]
    pretrained(model, path, prefix=proposed)
    assert same_weights(model, source)


def test_both_encoders_are_named(tmp_path):
    weights = small().state_dict()
    path = written(tmp_path / 'moco.pth', {
        f'encoder_{n}.{k}': v
        for n in 'qk'
        for k, v in weights.items()
    })
    with pytest.raises(
            ValueError,
            match="its keys begin with 'encoder_q.' and 'encoder_k.', so "
            "write prefix='encoder_q.'"):
        pretrained(small(dict(type='PWLU')), path)


def test_backbone_inside_a_backbone_reports_its_loading(log, tmp_path):
    """BiSeNetV1 loads weights into a ResNet that it holds."""
    inner = dict(type='mmseg.ResNet', depth=18)
    path = saved(tmp_path / 'r18.pth', build(dict(inner)))
    model = build(
        dict(
            type='SwapActivations',
            backbone='mmseg.BiSeNetV1',
            swap=dict(act_cfg=dict(type='MetaACON')),
            backbone_cfg=dict(
                inner, init_cfg=dict(type='Pretrained', checkpoint=path))))
    model.init_weights()
    line, = loading_lines(log, logging.WARNING)
    assert line.startswith('ResNet: 0 of ')
    assert 'MetaACON that it does not bring start fresh' in line
    # Loaded as a whole, as from a detector's checkpoint, it is one report.
    load_checkpoint(model, saved(tmp_path / 'whole.pth', model))
    line, = loading_lines(log, logging.INFO)
    assert line.startswith('BiSeNetV1: ')


# Other functions than ReLU.


class Tower(BaseModule):

    def __init__(self, act):
        super().__init__()
        self.conv, self.act = nn.Conv2d(3, 4, 1), act


def loaded_into(new, old, tmp_path):
    watch_loading(new)
    load_checkpoint(new, saved(tmp_path / 'before.pth', old))


def test_slopes_of_a_prelu_come_from_the_checkpoint(log, tmp_path):
    old = Tower(nn.PReLU(4))
    old.act.weight.data = torch.rand(4)
    new = Tower(PWLU(4, function='PReLU'))
    loaded_into(new, old, tmp_path)
    (line, ) = loading_lines(log, logging.INFO)
    assert line == ('Tower: 5 of 5 activation parameters come from the '
                    'checkpoint')
    assert torch.equal(new.act.left_slope, old.act.weight)
    assert not loading_lines(log, logging.WARNING)


def test_fresh_pwlu_in_place_of_silu_is_no_warning(log, tmp_path):
    """In Phase I it is SiLU; ActivationSetupHook warns where there is none."""
    loaded_into(Tower(PWLU(4, function='SiLU')), Tower(nn.SiLU()), tmp_path)
    assert len(loading_lines(log, logging.INFO)) == 1


@pytest.mark.parametrize('function, level', [('SiLU', logging.INFO),
                                             ('GELU', logging.WARNING)])
def test_fresh_acon_in_place_of(function, level, log, tmp_path):
    new = Tower(ACONC(4, function=function))
    loaded_into(new, Tower(nn.SiLU()), tmp_path)
    assert len(loading_lines(log, level)) == 1


def test_phase_1_of_another_function(log, tmp_path):
    unit = PWLU(4, function='SiLU')
    unit.start_phase1()
    new = Tower(PWLU(4, function='SiLU'))
    loaded_into(new, Tower(unit), tmp_path)
    (line, ) = loading_lines(log, logging.WARNING)
    assert '1 PWLU come in Phase I and compute SiLU until PWLUReal' in line
