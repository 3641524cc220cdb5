"""Runs that the tools write, kill, resume and test, from configs as written.

Each trains for some iterations, is killed, resumed and tested, by
tools/train.py and tools/test.py in processes of their own.
"""
import json
from pathlib import Path

import pytest
import torch

from mm_acon.cli import load_config
from mm_acon.compat import load_weights
from mm_acon.demo import demo_config
from tests.helpers.scripts import run_script
from tests.utils import needs_torch

ROOT = Path(__file__).parents[1]
for library in ('mmseg', 'mmpretrain'):
    pytest.importorskip(library)


def call(tool, folder, *arguments, killed=False):
    done = run_script(
        ROOT / 'tools' / tool,
        *arguments,
        cwd=folder,
        PYTHONPATH=f'{ROOT}:{folder}')
    assert (done.returncode == -9) if killed else not done.returncode, (
        done.stderr[-3000:])
    return done.stdout


def small(cfg, data):
    """Drawn data, a small backbone with PWLU, few samples."""
    cfg.launcher = 'none'
    demo_config(cfg, str(data))
    cfg.model.backbone = dict(
        type='SwapActivations',
        backbone='ResNet',
        depth=18,
        base_channels=8,
        stem_channels=8,
        swap=dict(act_cfg=dict(type='PWLU')))
    for split in ('train', 'val', 'test'):
        cfg[f'{split}_dataloader'].dataset.indices = 32
    cfg.custom_hooks = [dict(type='PWLURealignHook', phase1_iters=1)]
    cfg.custom_imports = dict(imports=['mm_acon', 'tests.helpers.toy'])


def best_miou(data):
    """best_score is a numpy.float32."""
    cfg = load_config('mmseg::fcn/fcn_r50-d8_4xb2-40k_cityscapes-512x1024.py')
    small(cfg, data)
    narrow = dict(channels=16, norm_cfg=dict(type='BN'))
    cfg.model.decode_head.update(in_channels=64, **narrow)
    cfg.model.auxiliary_head.update(in_channels=32, **narrow)
    cfg.train_cfg = dict(
        type='IterBasedTrainLoop', max_iters=4, val_interval=2)
    cfg.default_hooks.checkpoint = dict(
        type='CheckpointHook', by_epoch=False, interval=1, save_best='mIoU')
    return cfg


def one_cycle(data):
    """The schedule's state names functions."""
    cfg = load_config('mmpretrain::resnet/resnet18_8xb32_in1k.py')
    small(cfg, data)
    cfg.model.head.in_channels = 64
    cfg.train_dataloader.batch_size = 8
    cfg.train_dataloader.dataset.metainfo.groups = dict(round=['circle'])
    cfg.train_cfg = dict(
        type='IterBasedTrainLoop', max_iters=4, val_interval=4)
    cfg.train_dataloader.sampler.type = 'InfiniteSampler'
    cfg.param_scheduler = dict(
        type='OneCycleLR', eta_max=.01, total_steps=4, by_epoch=False)
    cfg.default_hooks.checkpoint = dict(
        type='CheckpointHook', by_epoch=False, interval=1)
    return cfg


PURE_PYTHON = '''
from mmengine.config import read_base

with read_base():
    from .base import *

from mmengine.runner import IterBasedTrainLoop
from mm_acon import PWLURealignHook, SwapActivations
from tests.helpers.toy import StopAt

model.backbone = dict(
    type=SwapActivations,
    backbone=ResNet,
    depth=18,
    base_channels=8,
    stem_channels=8,
    swap=dict(act_cfg=dict(type='PWLU')))
custom_hooks = [dict(type=PWLURealignHook, phase1_iters=1)]
'''
BASE = '''
from mmengine.dataset import DefaultSampler, InfiniteSampler
from mmengine.hooks import CheckpointHook, LoggerHook
from mmengine.optim import OptimWrapper
from mmengine.runner import IterBasedTrainLoop, TestLoop, ValLoop
from mmpretrain.datasets import ImageNet, LoadImageFromFile, PackInputs
from mmpretrain.evaluation import Accuracy
from mmpretrain.models import (ClsDataPreprocessor, CrossEntropyLoss,
                               GlobalAveragePooling, ImageClassifier,
                               LinearClsHead, ResNet)
from torch.optim import SGD

default_scope = None
model = dict(
    type=ImageClassifier,
    data_preprocessor=dict(
        type=ClsDataPreprocessor, mean=[127.] * 3, std=[60.] * 3),
    backbone=dict(type=ResNet, depth=18),
    neck=dict(type=GlobalAveragePooling),
    head=dict(
        type=LinearClsHead,
        num_classes=3,
        in_channels=64,
        loss=dict(type=CrossEntropyLoss),
        topk=(1, )))
data = dict(
    type=ImageNet,
    data_root='DATA',
    split='train',
    metainfo=dict(classes=('circle', 'square', 'triangle')),
    indices=16,
    pipeline=[dict(type=LoadImageFromFile), dict(type=PackInputs)])
train_dataloader = dict(
    batch_size=4,
    num_workers=0,
    sampler=dict(type=InfiniteSampler, shuffle=True),
    dataset=data)
test_dataloader = val_dataloader = dict(
    batch_size=4,
    num_workers=0,
    sampler=dict(type=DefaultSampler, shuffle=False),
    dataset=dict(data, split='val'))
test_evaluator = val_evaluator = dict(type=Accuracy, topk=(1, ))
train_cfg = dict(type=IterBasedTrainLoop, max_iters=4, val_interval=4)
val_cfg = dict(type=ValLoop)
test_cfg = dict(type=TestLoop)
optim_wrapper = dict(type=OptimWrapper, optimizer=dict(type=SGD, lr=.01))
default_hooks = dict(
    logger=dict(type=LoggerHook, interval=1),
    checkpoint=dict(type=CheckpointHook, by_epoch=False, interval=1))
randomness = dict(seed=0)
'''


def written(make, folder):
    """The path of the config, and the words that kill it at iteration 2."""
    if callable(make):
        cfg = make(folder / 'data')
        cfg.dump(folder / 'config.py')
        kill = load_config(str(folder / 'config.py'))
        kill.custom_hooks.append(
            dict(type='tests.helpers.toy.StopAt', iteration=2, kill=True))
        kill.dump(folder / 'killed.py')
        return folder
    cfg = load_config('mmpretrain::resnet/resnet18_8xb32_in1k.py')
    cfg.launcher = 'none'
    demo_config(cfg, str(folder / 'data'))
    root = cfg.train_dataloader.dataset.data_root
    (folder / 'base.py').write_text(BASE.replace('DATA', root))
    (folder / 'config.py').write_text(make)
    (folder / 'killed.py'
     ).write_text(make + 'custom_hooks.append(dict(type=StopAt, iteration=2, '
                  'kill=True))\n')
    return folder


@pytest.mark.parametrize(
    'make', (pytest.param(best_miou, id='best mIoU', marks=pytest.mark.full),
             pytest.param(one_cycle, id='OneCycleLR', marks=pytest.mark.full),
             pytest.param(PURE_PYTHON, id='pure Python')))
def test_run_is_killed_resumed_and_tested(make, tmp_path):
    written(make, tmp_path)
    call('train.py', tmp_path, 'killed.py', '--work-dir', 'work', killed=True)
    assert (tmp_path /
            'work/last_checkpoint').read_text().endswith('iter_2.pth')
    call('train.py', tmp_path, 'config.py', '--work-dir', 'work', '--resume')
    end = tmp_path / 'work/iter_4.pth'
    if make is not best_miou:
        # mmengine does not resume the random state of augmentations.
        call('train.py', tmp_path, 'config.py', '--work-dir', 'straight')
        ends = [
            load_weights(path)['state_dict']
            for path in (end, tmp_path / 'straight/iter_4.pth')
        ]
        assert all(torch.equal(ends[0][key], ends[1][key]) for key in ends[0])
    # Realigned once, by the one hook that there is.
    weights = load_weights(end)['state_dict']
    assert {int(weights[key])
            for key in weights if key.endswith('.phase')} == {2}
    config = (tmp_path / 'work' / 'config.py').read_text()
    assert config.count('PWLURealignHook') in (1, 2)  # An import, too.
    assert config.count('SafeCheckpointHook') == 1
    arguments = ['config.py', 'work/iter_4.pth', '--work-dir', 'test']
    metrics = json.loads(
        call('test.py', tmp_path, *arguments).splitlines()[-1])
    assert metrics


# What MMDetection's tools/train.py does, and nothing of this package's tools.
PLAIN_TOOL = '''
import sys
from mmengine.config import Config
from mmengine.runner import Runner

cfg = Config.fromfile('config.py')
cfg.work_dir = 'plain'
cfg.train_cfg.max_iters = int(sys.argv[1])
cfg.param_scheduler = None
cfg.resume = len(sys.argv) > 2
Runner.from_cfg(cfg).train()
'''


@needs_torch('2.6', 'reads what mmengine wrote without being told')
def test_other_tools_train_save_and_resume(tmp_path):
    written(one_cycle, tmp_path)
    (tmp_path / 'plain_tool.py').write_text(PLAIN_TOOL)
    for arguments in (['2'], ['4', 'resume']):
        call(tmp_path / 'plain_tool.py', tmp_path, *arguments)
    log = sorted((tmp_path / 'plain').glob('*/*.log'))[-1].read_text()
    assert 'resumed epoch: 0, iter: 2' in log
    # By mmengine's own hook, whose file the tools read too.
    weights = load_weights(tmp_path / 'plain/iter_4.pth')['state_dict']
    assert {int(weights[k]) for k in weights if k.endswith('.phase')} == {2}
