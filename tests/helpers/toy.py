"""A small model and Runner for the tests of hooks."""
import os
import signal

import torch
import torch.nn.functional as F
from mmengine.evaluator import BaseMetric
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from mmengine.optim import DefaultOptimWrapperConstructor
from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS
from mmengine.runner import Runner
from torch import nn
from torch.utils.data import Dataset

from mm_acon import PWLU

SAMPLES, BATCH = 24, 4


class ToyModel(BaseModel):
    """Two convolutions with PWLU, then a linear classifier."""

    def __init__(self, num_channels=4):
        super().__init__()
        torch.manual_seed(0)
        self.conv1 = nn.Conv2d(3, num_channels, 3, padding=1)
        self.act1 = PWLU(num_channels)
        self.conv2 = nn.Conv2d(num_channels, num_channels, 3, padding=1)
        self.act2 = PWLU(num_channels, granularity='layer')
        self.head = nn.Linear(num_channels, 3)

    def forward(self, inputs, labels, mode='loss'):
        x = self.act1(self.conv1(torch.stack(list(inputs))))
        x = self.act2(self.conv2(x)).mean((2, 3))
        labels = torch.stack(list(labels))
        return dict(loss=F.cross_entropy(self.head(x), labels))


class ToyData(Dataset):

    def __init__(self, seed=0):
        generator = torch.Generator().manual_seed(seed)
        self.inputs = torch.randn(SAMPLES, 3, 6, 6, generator=generator)
        self.labels = torch.arange(SAMPLES) % 3

    def __len__(self):
        return SAMPLES

    def __getitem__(self, index):
        return dict(inputs=self.inputs[index], labels=self.labels[index])


class Val(BaseMetric):
    """A measure that needs no model output."""

    default_prefix = 'toy'

    def process(self, data_batch, data_samples):
        self.results.append(1)

    def compute_metrics(self, results):
        return dict(score=len(results))


def predict(self, inputs, labels, mode='loss'):
    return [0] if mode == 'predict' else ToyModel.forward(self, inputs, labels)


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class WeightsAndBiases(DefaultOptimWrapperConstructor):
    """Collects by attribute name, as some libraries do."""

    def add_params(self, params, module, **kwargs):
        for child in module.modules():
            for name in ('weight', 'bias'):
                parameter = getattr(child, name, None)
                if isinstance(parameter, nn.Parameter):
                    params.append(dict(params=[parameter]))


class StopAt(Hook):
    """Ends the process, or the training, before an iteration."""

    # After the realignment hook, so that a stop "at" the switch finds it.
    priority = 'VERY_LOW'

    def __init__(self, iteration, kill=False):
        self.iteration = iteration
        self.kill = kill

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if runner.iter == self.iteration:
            if self.kill:
                os.kill(os.getpid(), signal.SIGKILL)
            raise KeyboardInterrupt


def loader(shuffle=False):
    return dict(
        batch_size=BATCH,
        num_workers=0,
        dataset=ToyData(),
        sampler=dict(type='DefaultSampler', shuffle=shuffle))


def make_runner(work_dir,
                hooks=(),
                epochs=4,
                train_cfg=None,
                model=None,
                lr=0.1,
                runner_type=Runner,
                **kwargs):
    arguments = dict(
        model=model or ToyModel(),
        work_dir=str(work_dir),
        train_dataloader=loader(shuffle=True),
        train_cfg=train_cfg or dict(by_epoch=True, max_epochs=epochs),
        optim_wrapper=dict(
            optimizer=dict(type='SGD', lr=lr, momentum=0.9, weight_decay=0.1)),
        default_hooks=dict(
            checkpoint=dict(type='CheckpointHook', interval=1),
            logger=dict(type='LoggerHook', interval=1)),
        custom_hooks=list(hooks),
        randomness=dict(seed=0),
        default_scope='mmengine',
        experiment_name=f'toy_{os.urandom(8).hex()}',
        log_level='INFO')
    arguments.update(kwargs)
    return runner_type(**arguments)


def weights_of(folder, model):
    """The path of a file with the model's weights."""
    torch.save(dict(state_dict=model.state_dict()), folder / 'weights.pth')
    return str(folder / 'weights.pth')
