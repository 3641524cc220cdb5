import copy
import random

import numpy as np
import pytest
import torch
from mmcv.cnn import ConvModule
from mmcv.cnn.bricks.transformer import FFN
from mmengine.model import BaseModel, ExponentialMovingAverage
from mmengine.runner import Runner
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from mm_acon import ACONC, find_widths
from mm_acon.activations.base import activations_of
from mm_acon.engine.widths import finding_widths, training_batch, without_width
from tests.helpers.toy import BATCH, ToyData, ToyModel, make_runner


def block(act, inputs=3, outputs=4):
    return ConvModule(
        inputs, outputs, 1, norm_cfg=dict(type='BN'), act_cfg=dict(type=act))


class Model(BaseModel):
    """A backbone, an auxiliary head for training, and a part never used."""

    def __init__(self, *acts):
        super().__init__()
        self.backbone = nn.Sequential(*(block(act, 4 if i else 3)
                                        for i, act in enumerate(acts)))
        self.auxiliary = block('PWLU', 4, 6)
        self.unused = block('ACONC', 4, 8)

    def forward(self, inputs, mode='tensor'):
        x = self.backbone(torch.stack(list(inputs)))
        if mode == 'tensor':
            return x
        assert self.training and mode == 'loss'
        random.random(), np.random.rand(), torch.rand(1)
        return dict(loss=x.mean() + self.auxiliary(x).mean())


def data(size=2):
    return dict(inputs=list(torch.rand(size, 3, 5, 5)))


def test_one_pass_of_training():
    """Widths of what it reaches, and of what stands behind a layer."""
    model = Model('PWLU', 'MetaACON', 'FReLU').eval()
    held = list(model.parameters())
    assert len(without_width(model)) == 5
    find_widths(model, data())
    assert not without_width(model)
    assert [m.activate.num_channels for m in model.backbone] == [4, 4, 4]
    assert model.auxiliary.activate.num_channels == 6
    assert model.unused.activate.num_channels == 8
    # The same objects, for an optimizer that has them.
    assert [id(p) for p in model.parameters()] == [id(p) for p in held]
    assert not any(module.training for module in model.modules())


def test_nothing_else_changes():
    model = Model('PWLU', 'FReLU')
    before = copy.deepcopy(model.state_dict())
    batch = data()
    torch.manual_seed(5)
    states = random.getstate(), np.random.get_state()[1].copy()
    find_widths(model, batch)
    assert torch.equal(
        torch.rand(3),
        torch.rand(3, generator=torch.Generator().manual_seed(5)))
    assert random.getstate() == states[0]
    assert (np.random.get_state()[1] == states[1]).all()
    for name, value in model.state_dict().items():
        if 'activate' in name:
            continue
        assert torch.equal(value, before[name]), name
    # Nor did norms inside the new activations keep the batch.
    norm = model.backbone[1].activate.norm
    assert (norm.running_mean == 0).all() and norm.num_batches_tracked == 0


def test_known_widths_need_no_pass():
    find_widths(nn.Sequential(nn.Conv2d(3, 4, 1)), None)


@pytest.mark.parametrize(
    'batch', (torch.rand(2, 3, 5, 5),
              (torch.rand(2, 3, 5, 5), ), dict(input=torch.rand(2, 3, 5, 5))),
    ids=('tensor', 'tuple', 'dict'))
def test_models_of_others(batch):
    model = nn.Sequential(block('PWLU'))
    find_widths(model, batch)
    assert model[0].activate.num_channels == 4


class Momentum(BaseModel):
    """As MoCo: the average is made with the model, and follows in it."""

    def __init__(self):
        super().__init__()
        self.backbone = nn.Sequential(block('PWLU'), block('ACONC', 4))
        self.encoder_q = nn.Sequential(self.backbone, nn.Flatten())
        self.encoder_k = ExponentialMovingAverage(self.encoder_q, momentum=.5)

    def forward(self, inputs, mode='tensor'):
        x = self.encoder_q(torch.stack(list(inputs)))
        self.encoder_k.update_parameters(self.encoder_q)
        return dict(loss=(x - self.encoder_k(torch.stack(inputs))).mean())


def test_momentum_copies_are_as_wide():
    model = Momentum()
    find_widths(model, data())
    assert not without_width(model)
    assert model.encoder_k.module[0][1].activate.num_channels == 4
    assert model.encoder_k.steps == 0
    model(data()['inputs'], mode='loss')['loss'].backward()


def test_what_is_left_without_is_an_error():
    model = nn.ModuleDict(
        dict(
            a=block('PWLU'),
            b=nn.ModuleDict(dict(act=block('PWLU').activate))))
    model.forward = lambda x: model['a'](x)
    with pytest.raises(
            RuntimeError,
            match='^b.act met no input in a training step.*num_channels'):
        find_widths(model, torch.rand(2, 3, 5, 5))


def test_a_pass_that_fails_says_what_to_do():
    with pytest.raises(
            RuntimeError,
            match='Sequential could not be run to find the widths of '
            '0.activate: .*expected input.*find_widths.*SwapActivations'):
        find_widths(nn.Sequential(block('PWLU')), torch.rand(2, 4, 5, 5))


def test_a_wrapped_model_is_refused(tmp_path):
    import torch.distributed as dist
    dist.init_process_group(
        'gloo', init_method=f'file://{tmp_path}/f', rank=0, world_size=1)
    try:
        model = DistributedDataParallel(nn.Sequential(block('PWLU')))
        with pytest.raises(
                RuntimeError,
                match='was built over activations without a width .module.0.'
                'activate.*before the model is wrapped'):
            find_widths(model, torch.rand(2, 3, 5, 5))
        del model
    finally:
        dist.destroy_process_group()


def test_a_runner_finds_them_before_it_wraps_the_model(tmp_path):
    seen = []

    class Watch(Runner):

        def wrap_model(self, cfg, model):
            seen.append(without_width(model))
            return super().wrap_model(cfg, model)

    for runner_type, expected in ((Watch, ['act1']), (finding_widths(Watch),
                                                      [])):
        model = ToyModel()
        model.act1 = block('PWLU').activate
        make_runner(tmp_path, model=model, runner_type=runner_type)
        assert seen.pop() == expected


def test_the_batch_leaves_an_endless_sampler_where_it_is(tmp_path):
    runner = make_runner(
        tmp_path,
        train_cfg=dict(by_epoch=False, max_iters=3),
        train_dataloader=dict(
            batch_size=BATCH,
            num_workers=1,
            persistent_workers=True,
            prefetch_factor=2,
            dataset=ToyData(),
            sampler=dict(type='InfiniteSampler', shuffle=True)))
    first = training_batch(runner)
    second = training_batch(runner)
    assert len(first['inputs']) == BATCH
    assert all(
        torch.equal(a, b) for a, b in zip(first['inputs'], second['inputs']))


# Where the channels are.


class Tokens(nn.Module):
    """A convolution for patches, then mmcv's FFN."""

    def __init__(self, act_cfg):
        super().__init__()
        self.patches = nn.Conv2d(3, 8, 2, stride=2)
        self.ffn = FFN(8, 16, act_cfg=act_cfg)

    def forward(self, x):
        return self.ffn(self.patches(x).flatten(2).mT)


@pytest.mark.parametrize('name', ['ACONC', 'PWLU', 'MetaACON'])
def test_ffn_of_mmcv(name):
    """16 tokens and 16 channels: the layer before it tells, not the size."""
    model = Tokens(dict(type=name))
    find_widths(model, torch.rand(2, 3, 8, 8))
    activation = model.ffn.layers[0][1]
    assert (activation.num_channels, activation.channel_axis) == (16, -1)
    model(torch.rand(2, 3, 8, 8)).sum().backward()
    # Nothing is left behind.
    assert not any(m._forward_hooks or m._forward_pre_hooks
                   for m in model.modules())


@pytest.mark.parametrize('cfg, widths', [
    (dict(type='SwinTransformer', img_size=64,
          pad_small_map=True), [384, 768, 1536, 3072]),
    (dict(type='ConvNeXt', arch='atto'), [160, 320, 640, 1280]),
    (dict(type='ConvNeXt', arch='atto',
          linear_pw_conv=False), [160, 320, 640, 1280]),
])
def test_transformers_of_mmpretrain(cfg, widths):
    pytest.importorskip('mmpretrain')
    act_cfg = dict(type='PWLU')
    if cfg['type'] == 'ConvNeXt':
        cfg = dict(cfg, act_cfg=act_cfg)
    else:
        cfg = dict(
            cfg,
            stage_cfgs=dict(block_cfgs=dict(ffn_cfgs=dict(act_cfg=act_cfg))))
    from mmpretrain.registry import MODELS
    model = MODELS.build(cfg)
    find_widths(model, torch.rand(2, 3, 64, 64))
    units = list(activations_of(model).values())
    assert sorted({unit.num_channels for unit in units}) == widths
    axis = 1 if cfg.get('linear_pw_conv') is False else -1
    assert {unit.channel_axis for unit in units} == {axis}


def test_maps_behind_a_linear():
    """Tokens that were made a map have their channels in axis 1."""

    class Model(nn.Module):

        def __init__(self):
            super().__init__()
            self.layer, self.act = nn.Linear(3, 5), ACONC()

        def forward(self, x):
            return self.act(self.layer(x).permute(0, 3, 1, 2))

    model = Model()
    find_widths(model, torch.rand(2, 7, 7, 3))
    assert (model.act.num_channels, model.act.channel_axis) == (5, 1)


def test_a_sequence_behind_a_convolution():
    model = nn.Sequential(nn.Conv1d(3, 5, 1), nn.BatchNorm1d(5), ACONC())
    find_widths(model, torch.rand(2, 3, 7))
    assert (model[2].num_channels, model[2].channel_axis) == (5, 1)


def test_three_axes_of_unknown_origin():
    model = nn.Sequential(
        nn.Linear(3, 5), nn.Identity(), nn.Flatten(1, 2),
        nn.Unflatten(1, (7, 5)), ACONC())
    with pytest.raises(
            RuntimeError,
            match='cannot tell which axis of x with '
            r'shape \(2, 7, 5\) has the channels; write channel_ax'):
        find_widths(model, torch.rand(2, 7, 3))
