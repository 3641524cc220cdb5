"""The ImageNet configs: what they build and change, and that they train."""
import copy
import functools
import math
import re
import shlex
from collections import Counter
from pathlib import Path

import pytest
import torch
from mmengine.config import Config, DictAction
from mmengine.registry import MODELS, DefaultScope
from mmengine.runner import Runner
from torch.nn.modules.batchnorm import _BatchNorm

from mm_acon import PWLU, LearnableActivation
from mm_acon.datasets import demo_config
from mm_acon.swap.probe import probe
from tests.helpers.counting import PARAMETERS
from tests.utils import unless_long

pytest.importorskip('mmpretrain')

pytestmark = pytest.mark.usefixtures('unverified')

ROOT = Path(__file__).parents[1] / 'configs'
README = (ROOT / 'README.md').read_text()
CONFIGS = {
    path.stem: path
    for path in ROOT.glob('*.py')
    if not re.match('retinanet|mask_rcnn|pspnet', path.stem)
}

# Config: setting, backbone, its activation, at how many sites and of how
# many.
ACON_PAPER = {
    'mobilenetv1_0.25_metaacon': ('300k', 'MobileNetV1', 'MetaACON', 27, 27),
    'mobilenetv1_0.75_metaacon': ('300k', 'MobileNetV1', 'MetaACON', 27, 27),
    'mobilenetv2_0.17_metaacon': ('300k', 'MobileNetV2', 'MetaACON', 35, 35),
    'mobilenetv2_1.0_metaacon': ('300k', 'MobileNetV2', 'MetaACON', 35, 35),
    'shufflenetv2_0.5x_acon': ('300k', 'ShuffleNetV2', 'ACONC', 37, 37),
    'shufflenetv2_0.5x_metaacon': ('300k', 'ShuffleNetV2', 'MetaACON', 37, 37),
    'shufflenetv2_1.5x_acon': ('300k', 'ShuffleNetV2', 'ACONC', 37, 37),
    'shufflenetv2_1.5x_metaacon': ('300k', 'ShuffleNetV2', 'MetaACON', 37, 37),
    'resnet18_acon': ('600k', 'ResNet', 'ACONC', 16, 17),
    'resnet18_metaacon': ('600k', 'ResNet', 'MetaACON', 16, 17),
    'resnet50_acon': ('600k', 'ResNet', 'ACONC', 16, 49),
    'resnet50_metaacon': ('600k', 'ResNet', 'MetaACON', 16, 49),
    'resnet50_swish': ('600k', 'ResNet', 'SiLU', 49, 49),
    'resnet101_acon': ('600k', 'ResNet', 'ACONC', 33, 100),
    'resnet101_metaacon': ('600k', 'ResNet', 'MetaACON', 33, 100),
    'resnet152_acon': ('600k', 'ResNet', 'ACONC', 50, 151),
    'resnet152_metaacon': ('600k', 'ResNet', 'MetaACON', 50, 151),
    'senet154_acon': ('600k', 'SENet154', 'ACONC', 153, 253),
    'tfnet_0.5': ('300k', 'TFNet', 'ACONFReLU', 33, 34),
    'tfnet_1.0': ('300k', 'TFNet', 'ACONFReLU', 33, 34),
    'tfnet_1.5': ('300k', 'TFNet', 'ACONFReLU', 33, 34),
    'tfnet_2.0': ('300k', 'TFNet', 'ACONFReLU', 33, 34),
}
# Config: backbone, sites of PWLU, all sites, their channels together, epochs
# and weight decay.
PWLU_PAPER = {
    'resnet18_pwlu': ('ResNet', 17, 17, 3904, 100, 1e-4),
    'resnet50_pwlu': ('ResNet', 49, 49, 22_720, 100, 1e-4),
    'mobilenetv2_1.0_pwlu': ('MobileNetV2', 35, 35, 15_552, 200, 4e-5),
    'mobilenetv3_small_pwlu': ('MobileNetV3', 23, 41, 5488, 350, 4e-5),
    'efficientnet_b0_pwlu': ('EfficientNet', 33, 65, 19_200, 350, 1e-5),
}


@functools.lru_cache(maxsize=None)
def _read(name) -> Config:
    return Config.fromfile(CONFIGS[name])


def load(name, **options) -> Config:
    cfg = copy.deepcopy(_read(name))
    cfg.merge_from_dict(options)
    return cfg


def build(cfg):
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        return MODELS.build(cfg.model)


def activations(model):
    return [m for m in model.modules() if isinstance(m, LearnableActivation)]


def test_every_config_is_tested():
    assert set(CONFIGS) == {*ACON_PAPER, *PWLU_PAPER}
    for name in CONFIGS:
        assert f'`{name}.py`' in README


@pytest.mark.parametrize('name', unless_long(ACON_PAPER))
def test_acon_paper(name):
    _, backbone, activation, number, total = ACON_PAPER[name]
    model = build(load(name))
    assert type(model.backbone).__name__ == backbone
    counted = sum(p.numel() for m in model.modules()
                  if not isinstance(m, _BatchNorm)
                  for p in m.parameters(recurse=False))
    assert counted == PARAMETERS[name]
    # Before the probe runs the model, as the optimizer meets them.
    assert all(not unit.is_lazy for unit in activations(model))
    sites = probe(model.backbone).sites
    assert len(sites) == total
    chosen = [site.name for site in sites if site.type == activation]
    assert len(chosen) == number
    if backbone == 'ResNet' and activation != 'SiLU':
        after = r'\.conv[12]$' if '18' in name else r'\.conv2$'
        assert all(re.search(after, site) for site in chosen)
    if backbone == 'SENet154':
        assert not any('.se.' in site for site in chosen)
    if activation == 'MetaACON':
        r = 8 if name == 'shufflenetv2_0.5x_metaacon' else 16
        assert {unit.reduction for unit in activations(model)} == {r}
    if re.match('resnet(50|101|152)', name):
        first = model.backbone.layer2[0]
        assert (first.conv1.stride, first.conv2.stride) == ((2, 2), (1, 1))


@pytest.mark.parametrize('name', ACON_PAPER)
def test_setting_of_the_acon_paper(name):
    setting, backbone, *_ = ACON_PAPER[name]
    cfg = load(name)
    lr, decay, gpus, batch, iters = {
        '600k': (0.1, 1e-4, 8, 256, 600_000),
        '300k': (0.5, 4e-5, 16, 1024, 300_000)
    }[setting]
    optimizer = cfg.optim_wrapper.optimizer
    assert (optimizer.type, optimizer.momentum) == ('SGD', 0.9)
    assert (optimizer.lr, optimizer.weight_decay) == (lr, decay)
    assert gpus * cfg.train_dataloader.batch_size == batch
    assert cfg.auto_scale_lr.base_batch_size == batch
    assert cfg.train_cfg.max_iters == iters
    assert cfg.train_dataloader.sampler.type == 'InfiniteSampler'
    schedule, = cfg.param_scheduler
    assert schedule.type == ('CosineAnnealingLR'
                             if backbone == 'TFNet' else 'PolyLR')
    assert cfg.model.head.loss.type == ('LabelSmoothLoss' if setting == '300k'
                                        else 'CrossEntropyLoss')


@pytest.mark.parametrize('name', PWLU_PAPER)
def test_pwlu_paper(name):
    backbone, number, total, channels, *_ = PWLU_PAPER[name]
    model = build(load(name))
    assert type(model.backbone).__name__ == backbone
    units = activations(model)
    assert len(units) == number
    assert all(isinstance(unit, PWLU) for unit in units)
    assert {unit.num_intervals for unit in units} == {16}
    assert {unit.granularity for unit in units} == {'channel'}
    assert sum(unit.num_channels for unit in units) == channels
    left = [s for s in probe(model.backbone).sites if s.type != 'PWLU']
    assert len(left) == total - number
    assert all(site.map_size == (1, 1) for site in left)


@pytest.mark.parametrize('name', PWLU_PAPER)
def test_setting_of_the_pwlu_paper(name):
    backbone, *_, epochs, decay = PWLU_PAPER[name]
    cfg = load(name)
    optimizer = cfg.optim_wrapper.optimizer
    assert (optimizer.type, optimizer.momentum) == ('SGD', 0.9)
    assert optimizer.weight_decay == decay
    assert 16 * cfg.train_dataloader.batch_size == 1024
    assert cfg.auto_scale_lr.base_batch_size == 1024
    assert cfg.train_cfg.max_epochs == epochs
    hook, = cfg.custom_hooks
    assert hook == dict(type='PWLURealignHook', phase1_epochs=5)
    steps = [step.type for step in cfg.train_dataloader.dataset.pipeline]
    assert 'RandomFlip' in steps and any('Crop' in step for step in steps)
    assert ('AutoAugment' in steps) == (backbone == 'EfficientNet')


@pytest.mark.parametrize('name', CONFIGS)
def test_config_is_short(name):
    """And keeps weight decay off activations where it swaps some."""
    cfg = load(name)
    constructor = cfg.optim_wrapper.get('constructor')
    assert ('swap' in cfg.model.backbone) == (
        constructor == 'ActivationOptimWrapperConstructor')
    assert len(CONFIGS[name].read_text().splitlines()) < 45


# Every activation of the tables, in one network, and in each network one.
TYPE = 'model.backbone.swap.act_cfg.type'
COMPARED = [
    *(('resnet18_pwlu', name, kind, 17) for name, kind in dict(
        ReLU='ReLU', SiLU='SiLU', PReLU='PReLU', APL='APL', PAU='PAU',
        FReLU='FReLU', DyReLU='DyReLU').items()),
    ('resnet50_pwlu', 'PAU', 'PAU', 49),
    ('mobilenetv2_1.0_pwlu', 'ReLU6', 'ReLU6', 35),
    ('mobilenetv3_small_pwlu', 'ReLU', 'ReLU', 23),
    ('efficientnet_b0_pwlu', 'ReLU', 'ReLU', 33),
    *(('shufflenetv2_0.5x_acon', name, kind, 37) for name, kind in {
        'ReLU': 'ReLU', 'SiLU': 'SiLU', 'torch.nn.Mish': 'Mish', 'ELU': 'ELU',
        'torch.nn.Softplus': 'Softplus', 'ACONA': 'ACONA', 'ACONB': 'ACONB'
    }.items()),
    ('resnet50_acon', 'ACONB', 'ACONB', 16),
    ('mobilenetv2_0.17_metaacon', 'ReLU6', 'ReLU6', 35),
]  # yapf: disable


@pytest.mark.parametrize('name, act, kind, number', COMPARED)
def test_another_activation_is_one_option_away(name, act, kind, number):
    if act == 'DyReLU':
        pytest.importorskip('mmdet')
    model = build(load(name, **{TYPE: act}))
    # Those inside SE stay; a DyReLU has some of its own.
    found = Counter(
        site.type for site in probe(model.backbone, {kind}).sites
        if site.map_size != (1, 1))
    assert found[kind] == number


def readme_commands():
    """The config and the options of every training command that has some."""
    commands = re.findall(
        r'^python tools/train.py configs/([^/\s]+)\.py --cfg-options (.*)$',
        README, re.M)
    for name, options in commands:
        options = dict(option.split('=', 1) for option in shlex.split(options))
        yield name, {
            key: DictAction._parse_iterable(value)
            for key, value in options.items()
        }


@pytest.mark.parametrize('name, options', readme_commands())
def test_readme_commands_build(name, options):
    cfg = load(name, **options)
    model = build(cfg)
    with torch.no_grad():
        assert model(torch.randn(2, 3, 64, 64)).shape == (2, 1000)
    units = [unit for unit in activations(model) if isinstance(unit, PWLU)]
    # The hook stops without a PWLU.
    assert units or not cfg.get('custom_hooks')
    prefix = 'model.backbone.swap.act_cfg.'
    for key, value in options.items():
        if key.startswith(prefix) and key != TYPE:
            assert {getattr(u, key[len(prefix):]) for u in units} == {value}


def test_readme_has_a_command_for_every_kind_of_row():
    keys = {key.rpartition('.')[2] for _, o in readme_commands() for key in o}
    assert keys == {
        'type', 'backbone', 'widen_factor', 'in_channels', 'custom_hooks',
        'bound', 'granularity', 'num_intervals'
    }


@pytest.mark.parametrize('granularity', ['pixel', 'layer'])
def test_granularity_of_meta_acon(granularity):
    """Table 5 of the ACON paper."""
    key = 'model.backbone.swap.act_cfg.granularity'
    model = build(load('shufflenetv2_0.5x_metaacon', **{key: granularity}))
    assert {u.granularity for u in activations(model)} == {granularity}


@pytest.fixture(scope='module')
def shapes(tmp_path_factory):
    return str(tmp_path_factory.mktemp('shapes'))


def short(cfg, shapes, work_dir, length):
    """The demo, cut to a few iterations of two images.

    ``length`` counts epochs of two iterations, or iterations.
    """
    demo_config(cfg, shapes)
    cfg.work_dir, cfg.experiment_name = str(work_dir), work_dir.name
    cfg.train_dataloader.batch_size = 2
    cfg.train_dataloader.dataset.indices = 4
    cfg.val_dataloader.dataset.indices = 4
    key = 'max_iters' if 'max_iters' in cfg.train_cfg else 'max_epochs'
    cfg.train_cfg.update({key: length, 'val_interval': length})
    cfg.default_hooks.checkpoint.update(interval=-1, save_last=False)


# Of SENet-154, which is large.
ONE_STAGE = {
    'model.backbone.out_indices': (0, ),
    'model.head.in_channels': 256
}


# Every network with every activation once, the smallest.
@pytest.mark.parametrize('name', [
    'resnet18_acon', 'resnet18_pwlu', 'shufflenetv2_1.5x_metaacon',
    'mobilenetv3_small_pwlu',
    *(pytest.param(name, marks=pytest.mark.full) for name in (
        'resnet18_metaacon', 'resnet50_metaacon', 'resnet50_swish',
        'shufflenetv2_0.5x_acon', 'mobilenetv1_0.25_metaacon',
        'mobilenetv2_0.17_metaacon', 'mobilenetv2_1.0_pwlu',
        'efficientnet_b0_pwlu', 'tfnet_0.5', 'senet154_acon'))
])  # yapf: disable
def test_demo_trains_and_evaluates(name, shapes, tmp_path):
    cfg = load(name, **(ONE_STAGE if name == 'senet154_acon' else {}))
    short(cfg, shapes, tmp_path, length=1 if 'pwlu' in name else 2)
    if 'pwlu' in name:
        cfg.custom_hooks = [dict(type='PWLURealignHook', phase1_iters=1)]
    runner = Runner.from_cfg(cfg)
    runner.train()
    assert runner.iter == 2
    scalars = runner.message_hub.log_scalars
    assert math.isfinite(scalars['train/loss'].current())
    assert 0 <= scalars['val/accuracy/top1'].current() <= 100
    assert runner.model.head.num_classes == 3
    units = activations(runner.model)
    assert units or 'swish' in name
    assert all(unit.current_phase == 2 for unit in units
               if isinstance(unit, PWLU))


# The learning rate in iteration i of n, over the first one.
def linear(i, n):
    return 1 - i / (n - 1)


def cosine(i, n):
    return (1 + math.cos(math.pi * i / n)) / 2


def warm_cosine(i, n):
    """5 epochs of 2 iterations are warm-up."""
    return 0.1 + 0.9 * i / 9 if i < 10 else cosine(i - 10, n - 10)


@pytest.mark.parametrize('name, length, start, rate', [
    ('resnet18_acon', 8, 0.1, linear),
    ('shufflenetv2_0.5x_acon', 8, 0.5, linear),
    ('tfnet_0.5', 8, 0.5, cosine),
    ('mobilenetv3_small_pwlu', 10, 0.4, warm_cosine),
])
def test_learning_rates(name, length, start, rate, shapes, tmp_path):
    """As the whole training, with its own schedule."""
    cfg = load(name)
    schedule, optimizer = cfg.param_scheduler, cfg.optim_wrapper.optimizer
    short(cfg, shapes, tmp_path, length)
    cfg.param_scheduler, cfg.optim_wrapper.optimizer = schedule, optimizer
    # What is trained does not matter, and this is quick.
    cfg.model = load('tfnet_0.5').model
    cfg.model.backbone.out_indices = (0, )
    cfg.model.head.update(num_classes=3, in_channels=16)
    cfg.custom_hooks = []
    runner = Runner.from_cfg(cfg)
    rates, step = [], runner.model.train_step

    def train_step(data, optim_wrapper):
        rates.append(optim_wrapper.get_lr()['lr'][0])
        return step(data, optim_wrapper)

    runner.model.train_step = train_step
    runner.train()
    assert len(rates) == runner.max_iters
    assert rates == pytest.approx(
        [start * rate(i, len(rates)) for i in range(len(rates))])
