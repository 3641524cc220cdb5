"""What a rank's process does."""
import ctypes
import gc
import os
import signal
import threading
from contextlib import contextmanager
from pathlib import Path
from typing import Optional

import mmpretrain.models  # noqa: F401  (registers)
import torch
from mmengine.config import Config
from mmengine.dist import all_gather
from mmengine.fileio import LocalBackend
from mmengine.hooks import EMAHook, Hook
from mmengine.hub import get_config
from mmengine.model import (MMDistributedDataParallel, is_model_wrapper,
                            revert_sync_batchnorm)
from mmengine.optim import OptimWrapper
from mmengine.registry import DATASETS, HOOKS, MODEL_WRAPPERS, OPTIM_WRAPPERS
from mmengine.runner import FlexibleRunner
from mmpretrain.structures import DataSample
from torch.utils.data import Dataset

from mm_acon import PWLU
from mm_acon.cli import build_runner
from mm_acon.datasets import demo_config
from mm_acon.swap.config import use_activation

from .cells import BACKENDS, BATCH, EPOCH, EPOCHS, PHASE1_ITERS, Cell, Kill


@DATASETS.register_module()
class Noise(Dataset):
    """Images of noise; what is learnt does not matter here."""

    def __init__(self, length: int) -> None:
        generator = torch.Generator().manual_seed(0)
        self.images = torch.randn(length, 3, 32, 32, generator=generator)

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        return dict(
            inputs=self.images[index],
            data_samples=DataSample().set_gt_label(index % 3))


@OPTIM_WRAPPERS.register_module()
class Bfloat16OptimWrapper(OptimWrapper):
    """AmpOptimWrapper(dtype='bfloat16'), which asks for a GPU."""

    @contextmanager
    def optim_context(self, model):
        with super().optim_context(model):
            with torch.autocast('cpu', torch.bfloat16):
                yield


@MODEL_WRAPPERS.register_module()
class OrderedDDP(MMDistributedDataParallel):
    """Sums gradients in the order of the ranks.

    DDP puts gradients into other buckets from the second step on, and the
    order in which gloo sums depends on them: with more than two ranks a
    resumed run differs in the last bits from the straight one, with ReLU too.

    A model that was converted to SyncBN is reverted: SyncBN asks for a GPU.
    """

    def __init__(self, module, **kwargs):
        super().__init__(revert_sync_batchnorm(module), **kwargs)
        self.register_comm_hook(None, self.mean_in_order)

    @staticmethod
    def mean_in_order(state, bucket):
        gradients = torch.stack(all_gather(bucket.buffer()))
        future = torch.futures.Future()
        future.set_result(gradients.sum(0) / len(gradients))
        return future


def bare(model):
    return model.module if is_model_wrapper(model) else model


def pwlus(model):
    return {
        name: module
        for name, module in model.named_modules() if isinstance(module, PWLU)
    }


def ema_of(runner):
    return next((hook.ema_model.module
                 for hook in runner.hooks if isinstance(hook, EMAHook)), None)


@HOOKS.register_module()
class Observe(Hook):
    """Looks at the model right after realignment."""

    priority = 'VERY_LOW'

    def before_train(self, runner):
        runner.seen = dict(steps=-runner.iter, realignment={})

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        units = pwlus(bare(runner.model))
        if runner.iter != PHASE1_ITERS or not units:
            return
        seen = runner.seen['realignment']
        seen['batches'] = sorted({
            number
            for unit in units.values()
            for number in unit.num_batches.tolist()
        })
        ema = ema_of(runner)
        if ema is not None:
            seen['ema'] = all(
                unit.phase == 2 and torch.equal(value, copy[key])
                for name, unit in units.items()
                for copy in [ema.get_submodule(name).state_dict()]
                for key, value in unit.state_dict().items())

    def after_train(self, runner):
        runner.seen['steps'] += runner.iter


@HOOKS.register_module()
class Die(Hook):
    """Ends the process without a warning to anyone."""

    # After the realignment hook.
    priority = 'VERY_LOW'

    def __init__(self, kill: Kill) -> None:
        self.kill = kill

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if runner.iter != self.kill.iteration:
            return
        if self.kill.moment == 'checkpoint':
            LocalBackend.put = self.write_half
        elif self.kill.moment == 'step':
            threading.Timer(self.kill.delay, self.die).start()
        else:
            self.die()

    def write_half(self, content: bytes, path: str) -> None:
        with open(path, 'wb') as file:
            file.write(content[:len(content) // 2])
        self.die()

    @staticmethod
    def die() -> None:
        os.kill(os.getpid(), signal.SIGKILL)


def make_config(cell: Cell, work_dir: str) -> Config:
    """A ResNet-18 with an eighth of the width, on images of 32 pixels."""
    backbone = dict(
        type='mmpretrain.ResNet',
        depth=18,
        stem_channels=8,
        base_channels=8,
        with_cp=cell.option == 'with_cp')
    width = 64
    norm_cfg = dict(type='BN')
    if cell.option == 'SyncBN' and cell.processes == 1:
        # Which Runner itself reverts.
        norm_cfg = backbone['norm_cfg'] = dict(type='SyncBN')
    act_cfg = dict(type=cell.activation)
    if cell.option == 'SyncBN' and cell.activation == 'MetaACON':
        act_cfg['norm_cfg'] = norm_cfg
    swap = dict(act_cfg=act_cfg)
    if cell.option in BACKENDS:
        # Compiling takes longer the more layers there are.
        width = 8
        backbone.update(
            num_stages=1, strides=(1, ), dilations=(1, ), out_indices=(0, ))
        swap['include'] = r'^conv1|layer1\.0'
    if cell.activation != 'ReLU':
        backbone = dict(type='SwapActivations', backbone=backbone, swap=swap)
    hooks = [dict(type='Observe')]
    if cell.activation == 'PWLU':
        hooks.append(dict(type='PWLURealignHook', phase1_iters=PHASE1_ITERS))
    if cell.option == 'EMA':
        hooks.append(dict(type='EMAHook', momentum=0.01))
    cfg = Config(
        dict(
            default_scope='mmpretrain',
            experiment_name=f'{cell}-{os.getpid()}',
            work_dir=work_dir,
            launcher='none' if cell.processes == 1 else 'pytorch',
            model=dict(
                type='ImageClassifier',
                backbone=backbone,
                neck=dict(type='GlobalAveragePooling'),
                head=dict(
                    type='LinearClsHead',
                    num_classes=3,
                    in_channels=width,
                    topk=(1, ),
                    loss=dict(type='CrossEntropyLoss'))),
            train_dataloader=dict(
                batch_size=BATCH,
                num_workers=0,
                dataset=dict(
                    type='Noise', length=EPOCH * BATCH * cell.processes),
                sampler=dict(type='DefaultSampler', shuffle=True)),
            train_cfg=dict(by_epoch=True, max_epochs=EPOCHS),
            optim_wrapper=dict(
                type='Bfloat16OptimWrapper'
                if cell.precision == 'bfloat16' else 'OptimWrapper',
                constructor='ActivationOptimWrapperConstructor',
                accumulative_counts=2 if cell.option == 'accumulation' else 1,
                optimizer=dict(
                    type='SGD', lr=0.05, momentum=0.9, weight_decay=0.01)),
            default_hooks=dict(
                checkpoint=dict(
                    type='SafeCheckpointHook', interval=1, max_keep_ckpts=1),
                logger=dict(type='LoggerHook', interval=1)),
            custom_hooks=hooks,
            randomness=dict(seed=0)),
        # Formatting takes as long as the training.
        format_python_code=False)
    if cell.option in BACKENDS:
        cfg.compile = dict(backend=cell.option)
    if cell.processes > 1 and cell.option == 'SyncBN':
        cfg.sync_bn = 'torch'
    if cell.processes > 2 or cfg.get('sync_bn'):
        cfg.model_wrapper_cfg = dict(type='OrderedDDP')
    return cfg


def train(rank: int,
          work_dir: str,
          cell: Cell,
          kill: Optional[Kill] = None,
          resume: bool = False) -> None:
    """Trains a cell, and saves what this rank ends with."""
    cfg = make_config(cell, work_dir)
    cfg.resume = resume
    if kill is not None and kill.rank == rank:
        cfg.custom_hooks.append(dict(type='Die', kill=kill))
    runner = build_runner(cfg)
    runner.train()
    ema = ema_of(runner)
    torch.save(
        dict(
            model=dict(bare(runner.model).named_parameters()),
            ema={} if ema is None else dict(ema.named_parameters()),
            **runner.seen),
        Path(work_dir) / f'rank{rank}.pth')


def train_fsdp(rank: int,
               work_dir: str,
               cell: Cell,
               hooks: Optional[list] = None,
               load_from: Optional[str] = None) -> None:
    """Trains a cell with mmengine's FSDPStrategy, on the CPU."""
    torch.distributed.init_process_group('gloo')
    cfg = make_config(cell, work_dir)
    runner = FlexibleRunner(
        **{
            key: cfg[key]
            for key in ('default_scope', 'experiment_name', 'work_dir',
                        'launcher', 'model', 'train_dataloader', 'train_cfg',
                        'optim_wrapper', 'randomness')
        },
        strategy=dict(
            type='FSDPStrategy',
            model_wrapper=dict(
                type='MMFullyShardedDataParallel',
                device_id=torch.device('cpu')),
            state_dict_cfg=dict(
                state_dict_type='FULL_STATE_DICT',
                # Not "full": offloading to the CPU from the CPU crashes.
                state_dict_config=dict(type='FullStateDictConfig'),
                optim_state_dict_config=dict(
                    type='FullOptimStateDictConfig'))),
        default_hooks=dict(
            checkpoint=dict(type='SafeCheckpointHook', interval=EPOCHS)),
        custom_hooks=hooks,
        load_from=load_from)
    runner.train()


@HOOKS.register_module()
class Watch(Hook):
    """Takes a sample of a long run every ``interval`` steps."""

    def __init__(self, interval: int) -> None:
        self.interval = interval

    def before_train(self, runner):
        runner.samples = []
        runner.losses = []

    def after_train_iter(self,
                         runner,
                         batch_idx,
                         data_batch=None,
                         outputs=None):
        runner.losses.append(float(outputs['loss']))
        if self.every_n_train_iters(runner, self.interval):
            runner.samples.append(self.sample(runner))

    def sample(self, runner) -> dict:
        units = pwlus(runner.model).values()
        widths = torch.cat(
            [unit.right_bound - unit.left_bound for unit in units])
        gc.collect()
        # What malloc keeps for later is no leak.
        ctypes.CDLL(None).malloc_trim(0)
        pages = int(Path('/proc/self/statm').read_text().split()[1])
        return dict(
            step=runner.iter + 1,
            narrowest=float(widths.min()),
            widest=float(widths.max()),
            finite=all(
                bool(parameter.isfinite().all())
                for parameter in runner.model.parameters()),
            mib=pages * os.sysconf('SC_PAGE_SIZE') / 2**20,
            files=len(os.listdir('/proc/self/fd')))


def train_detector(rank: int, work_dir: str, steps: int) -> None:
    """A small RetinaNet on drawn shapes, ten times the learning rate for
    what PWLU learns."""
    cfg = get_config('mmdet::retinanet/retinanet_r18_fpn_1x_coco.py')
    cfg.launcher = 'none'
    cfg.work_dir = work_dir
    cfg.randomness = dict(seed=0)
    use_activation(cfg, 'PWLU')
    demo_config(cfg, str(Path(work_dir) / 'data'))
    for split in ('val', 'test'):
        for key in ('dataloader', 'cfg', 'evaluator'):
            cfg[f'{split}_{key}'] = None
    cfg.merge_from_dict(
        dict(
            model=dict(
                backbone=dict(
                    backbone=dict(
                        stem_channels=8,
                        base_channels=8,
                        num_stages=2,
                        strides=(1, 2),
                        dilations=(1, 1),
                        out_indices=(1, ))),
                neck=dict(
                    in_channels=[16],
                    out_channels=16,
                    num_outs=1,
                    start_level=0,
                    add_extra_convs=False),
                bbox_head=dict(
                    in_channels=16,
                    feat_channels=16,
                    anchor_generator=dict(strides=[8]))),
            train_dataloader=dict(
                batch_size=2, sampler=dict(type='InfiniteSampler')),
            train_cfg=dict(
                _delete_=True, type='IterBasedTrainLoop', max_iters=steps),
            optim_wrapper=dict(
                _delete_=True,
                constructor='ActivationOptimWrapperConstructor',
                optimizer=dict(
                    type='SGD', lr=0.02, momentum=0.9, weight_decay=1e-4),
                clip_grad=dict(max_norm=10),
                paramwise_cfg=dict(act_lr_mult=10)),
            default_hooks=dict(
                checkpoint=dict(
                    _delete_=True,
                    type='SafeCheckpointHook',
                    by_epoch=False,
                    interval=steps // 10,
                    max_keep_ckpts=1))))
    cfg.param_scheduler = None
    cfg.custom_hooks = [
        dict(type='PWLURealignHook', phase1_iters=steps // 20),
        dict(type='Watch', interval=steps // 20)
    ]
    runner = build_runner(cfg)
    runner.train()
    torch.save(
        dict(samples=runner.samples, losses=runner.losses),
        Path(work_dir) / 'watched.pth')
