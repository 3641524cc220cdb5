"""A backbone trained in MMPretrain goes on in MMDetection and MMSegmentation.
"""
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from mmengine.config import Config
from mmengine.runner import Runner

from mm_acon import PWLU, LearnableActivation
from mm_acon.activations.pwlu import PHASE_1, PHASE_2
from mm_acon.cli import load_config
from mm_acon.datasets import demo_config

for library in ('mmdet', 'mmseg', 'mmpretrain'):
    pytest.importorskip(library)

CONFIGS = Path(__file__).parents[1] / 'configs'
TARGETS = {
    'RetinaNet': 'mmdet::retinanet/retinanet_r18_fpn_1x_coco.py',
    'PSPNet': 'mmseg::pspnet/pspnet_r18b-d8_4xb2-80k_cityscapes-512x1024.py',
}
# Parameters of 16 MetaACONs and 17 PWLUs, and where the training ends: PWLU's
# first epoch is Phase I.
TRAINED = {
    'resnet18_metaacon': (16 * 6, None),
    'resnet18_pwlu': (17 * 5, PHASE_2),
}


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp('import')


def train(cfg, folder, name, length, batch_size=2):
    """The demo with a few images; returns the runner and what it said."""
    cfg.work_dir, cfg.experiment_name = str(folder / name), name
    cfg.train_dataloader.batch_size = batch_size
    cfg.train_dataloader.dataset.indices = 2 * batch_size
    key = 'max_iters' if 'max_iters' in cfg.train_cfg else 'max_epochs'
    cfg.train_cfg.update({key: length, 'val_interval': length})
    cfg.val_cfg = cfg.val_dataloader = cfg.val_evaluator = None
    cfg.default_hooks.checkpoint.update(interval=1, max_keep_ckpts=-1)
    runner = Runner.from_cfg(cfg)
    runner.train()
    log, = (folder / name).glob('*/*.log')
    return runner, log.read_text()


@pytest.fixture(scope='module', params=TRAINED)
def source(request, folder):
    """A ResNet-18 after two iterations, or epochs of two iterations."""
    cfg = Config.fromfile(CONFIGS / f'{request.param}.py')
    demo_config(cfg, str(folder / 'shapes'))
    runner, _ = train(cfg, folder, request.param, 2, batch_size=8)
    number, phase = TRAINED[request.param]
    return SimpleNamespace(
        name=request.param,
        swap=cfg.model.backbone.swap,
        checkpoint=(folder / request.param / 'last_checkpoint').read_text(),
        activations=activations(runner.model),
        number=number,
        phase=phase)


def activations(model):
    """The whole state of every activation of the backbone."""
    return {
        f'{name}.{key}': value.clone()
        for name, module in model.backbone.named_modules()
        if isinstance(module, LearnableActivation)
        for key, value in module.state_dict().items()
    }


def importing(target, swap, checkpoint, folder):
    """The config that a user would write, on drawn shapes."""
    cfg = load_config(TARGETS[target])
    demo_config(cfg, str(folder / 'shapes'))
    cfg.model.backbone.update(
        type='SwapActivations',
        backbone='ResNet',
        # Stage 1 too, which the checkpoint brings.
        frozen_stages=1,
        swap=dict(swap, frozen='swap'),
        init_cfg=dict(
            type='Pretrained', checkpoint=str(checkpoint), prefix='backbone.'))
    # At learning rate 0 nothing but a hook changes what was imported.
    cfg.optim_wrapper.optimizer.lr = 0
    cfg.param_scheduler = None
    return cfg


@pytest.mark.parametrize('target', TARGETS)
def test_activations_are_imported(target, source, folder):
    cfg = importing(target, source.swap, source.checkpoint, folder)
    if source.phase:
        cfg.custom_hooks = [dict(type='PWLURealignHook', phase1_iters=1)]
    runner, log = train(cfg, folder, f'{target}-{source.name}', 2)
    assert (f'ResNet: {source.number} of {source.number} activation '
            'parameters come from the checkpoint\n') in log
    # Beyond the iteration of the hook's switch: a PWLU that has learnt since
    # its Phase II is not set back to ReLU.
    imported = activations(runner.model)
    assert imported.keys() == source.activations.keys()
    for key, value in imported.items():
        assert torch.equal(value, source.activations[key]), key
    if source.phase:
        assert 'PWLU: no unit is in Phase I\n' in log
        units = pwlus(runner)
        assert {unit.current_phase for unit in units} == {source.phase}
        assert not any(unit.is_relu_form() for unit in units)


@pytest.mark.parametrize('source', ['resnet18_pwlu'], indirect=True)
def test_phase1_goes_on_in_the_detector(source, folder):
    """With the statistics that the checkpoint brings."""
    checkpoint = folder / source.name / 'epoch_1.pth'
    cfg = importing('RetinaNet', source.swap, checkpoint, folder)
    cfg.custom_hooks = [dict(type='PWLURealignHook', phase1_iters=1)]
    runner, log = train(cfg, folder, 'phase1', 1)
    assert ('85 of 85 activation parameters come from the checkpoint. 17 PWLU '
            'come in Phase I and compute ReLU until PWLURealignHook in '
            'custom_hooks ends it\n') in log
    assert 'PWLU: 12 modules are in Phase I (ReLU) up to iteration 1\n' in log
    assert 'PWLU: Phase II starts at iteration 1.' in log
    # Those of the stem and of stage 1 are frozen as they came.
    units = pwlus(runner)
    assert [unit.current_phase
            for unit in units] == [PHASE_1] * 5 + [PHASE_2] * 12
    assert {int(unit.num_batches[0]) for unit in units[:5]} == {2}
    assert {int(unit.num_batches[0]) for unit in units[5:]} == {3}


def pwlus(runner):
    return [m for m in runner.model.modules() if isinstance(m, PWLU)]
