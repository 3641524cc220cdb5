"""The detectors' and segmentors' configs: what they build and change, and that
they train.
"""
import copy
import functools
import math
import re
import shutil
import socket
from pathlib import Path

import pytest
import torch
from mmengine.config import Config, DictAction
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS
from mmengine.runner import Runner

from mm_acon import LearnableActivation
from mm_acon.datasets import demo_config
from mm_acon.swap.probe import probe
from tests.utils import unless_long

for library in ('mmdet', 'mmseg', 'mmpretrain'):
    pytest.importorskip(library)

pytestmark = pytest.mark.usefixtures('unverified')

ROOT = Path(__file__).parents[1] / 'configs'
CONFIGS = {
    path.stem: path
    for path in ROOT.glob('*.py')
    if re.match('retinanet|mask_rcnn|pspnet', path.stem)
}
BASES = {
    path.stem: path
    for path in (ROOT / '_base_').glob('*.py')
    if not path.stem.startswith('imagenet')
}

BLOCKS = [
    f'layer{stage}.{block}' for stage, blocks in enumerate((3, 4, 6, 3), 1)
    for block in range(blocks)
]
AFTER_3X3 = [f'{block}.conv2' for block in BLOCKS]
ALL_SITES = ['conv1'
             ] + [f'{block}.conv{i}' for block in BLOCKS for i in (1, 2, 3)]

# Config: type of its activation, the sites, the plain config it changes.
ACTIVATIONS = {
    'retinanet_r50_relu': ('ReLU', ALL_SITES, 'retinanet_r50_600px'),
    'retinanet_r50_swish': ('SiLU', ALL_SITES, 'retinanet_r50_600px'),
    'retinanet_r50_acon': ('ACONC', AFTER_3X3, 'retinanet_r50_600px'),
    'retinanet_r50_metaacon': ('MetaACON', AFTER_3X3, 'retinanet_r50_600px'),
    'retinanet_r50_pwlu': ('PWLU', ALL_SITES, 'retinanet_r50_scratch'),
    'mask_rcnn_r50_relu': ('ReLU', ALL_SITES, 'mask_rcnn_r50_scratch'),
    'mask_rcnn_r50_swish': ('SiLU', ALL_SITES, 'mask_rcnn_r50_scratch'),
    'mask_rcnn_r50_metaacon': ('MetaACON', AFTER_3X3, 'mask_rcnn_r50_scratch'),
    'mask_rcnn_r50_pwlu': ('PWLU', ALL_SITES, 'mask_rcnn_r50_scratch'),
    'pspnet_r50_relu': ('ReLU', ALL_SITES, 'pspnet_r50_batch16'),
    'pspnet_r50_swish': ('SiLU', ALL_SITES, 'pspnet_r50_batch16'),
    'pspnet_r50_acon': ('ACONC', AFTER_3X3, 'pspnet_r50_batch16'),
    'pspnet_r50_metaacon': ('MetaACON', AFTER_3X3, 'pspnet_r50_batch16'),
    'pspnet_r50_pwlu': ('PWLU', ALL_SITES, 'pspnet_r50_batch16'),
}

# Config: its setting, and the library's config that the setting changes.
SETTINGS = {
    'retinanet_r50_600px':
    'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py',
    'retinanet_r50_scratch':
    'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py',
    'mask_rcnn_r50_scratch':
    'mmdet::scratch/mask-rcnn_r50-scratch_fpn_gn-all_6x_coco.py',
    'pspnet_r50_batch16':
    'mmseg::pspnet/pspnet_r50b-d8_4xb2-80k_cityscapes-512x1024.py',
}

# Those that start from a checkpoint with the same activation.
CHECKPOINTS = {
    name: name.rpartition('_')[2]
    for name in ACTIVATIONS
    if re.match('(retinanet|pspnet).*_(swish|acon|metaacon)$', name)
}


@pytest.fixture
def no_network(monkeypatch):

    def refuse(self, address):
        raise AssertionError(f'connects to {address}')

    monkeypatch.setattr(socket.socket, 'connect', refuse)


@functools.lru_cache(maxsize=None)
def _read(name) -> Config:
    if '::' in name:
        # mmengine.hub.get_config would look up the checkpoint as well.
        return Config.fromstring(f'_base_ = {name!r}', '.py')
    return Config.fromfile(CONFIGS.get(name) or BASES[name])


def load(name) -> Config:
    return copy.deepcopy(_read(name))


def changes(old, new, path=''):
    """Dotted names of the leaves in which two configs differ."""
    if isinstance(old, dict) and isinstance(new, dict):
        found = set()
        for key in set(old) | set(new):
            if key != '_scope_':
                found |= changes(
                    old.get(key), new.get(key), f'{path}.{key}'.lstrip('.'))
        return found
    if isinstance(old, (list, tuple)) and isinstance(new, (list, tuple)):
        old = dict(enumerate(old))
        return changes(old, dict(enumerate(new)), path)
    return set() if old == new else {path}


def under(names, *prefixes):
    return {name for name in names if name.startswith(prefixes)}


def test_every_config_is_tested():
    assert set(CONFIGS) == set(ACTIVATIONS)
    assert set(BASES) == set(SETTINGS) | {'scratch_270k'}


@pytest.mark.parametrize('name', unless_long(ACTIVATIONS))
def test_backbone_has_its_activation_at_its_sites(name, no_network):
    activation, wanted, _ = ACTIVATIONS[name]
    model = MODELS.build(load(name).model)
    modules = [
        module for module in model.modules()
        if isinstance(module, LearnableActivation)
    ]
    # Before the probe below runs the model, as the optimizer meets them.
    assert all(not module.is_lazy for module in modules)
    library = 'mmseg' if name.startswith('pspnet') else 'mmdet'
    assert type(model.backbone).__module__.startswith(library)

    sites = probe(model.backbone).sites
    assert [site.name for site in sites] == ALL_SITES
    assert [s.name for s in sites if s.type == activation] == wanted
    assert {s.type for s in sites if s.name not in wanted} <= {'ReLU'}
    # One module per site: none is shared, and none is left over.
    learnable = activation not in ('ReLU', 'SiLU')
    assert len(modules) == (len(wanted) if learnable else 0)


@pytest.mark.parametrize(
    'name, added',
    [
        # 3, 4, 6 and 3 blocks of 64, 128, 256 and 512 channels. meta-ACON has
        # 2 C for p1 and p2, and G with H hidden units 2 C H + H + C.
        ('retinanet_r50_acon', 3 * (3 * 64 + 4 * 128 + 6 * 256 + 3 * 512)),
        ('retinanet_r50_metaacon', 3 * 2256 + 4 * 4496 + 6 * 8976 + 3 * 34336),
        ('retinanet_r50_pwlu', 22_720 * (16 + 5)),
    ])
def test_parameters_added(name, added):
    model = MODELS.build(load(name).model)
    found = sum(parameter.numel() for module in model.modules()
                if isinstance(module, LearnableActivation)
                for parameter in module.parameters())
    assert found == added


@pytest.mark.parametrize('name', ACTIVATIONS)
def test_config_changes_only_its_activation(name):
    plain = ACTIVATIONS[name][2]
    changed = changes(load(plain).to_dict(), load(name).to_dict())
    allowed = under(changed, 'custom_imports', 'model.backbone.type',
                    'model.backbone.backbone', 'model.backbone.swap',
                    'optim_wrapper.constructor')
    if name in CHECKPOINTS:
        allowed |= under(changed, 'model.backbone.init_cfg',
                         'model.pretrained')
    if name.endswith('pwlu'):
        allowed |= under(changed, 'custom_hooks')
    assert changed == allowed
    assert not name.endswith('relu') or not changed
    assert len(CONFIGS[name].read_text().splitlines()) < 25


@pytest.mark.parametrize('name', SETTINGS)
def test_setting_changes_only_what_the_paper_says(name):
    changed = changes(load(SETTINGS[name]).to_dict(), load(name).to_dict())
    # Variables of the files, which nothing reads.
    changed -= under(changed, 'norm_cfg', 'max_epochs', 'optimizer.')
    if name == 'retinanet_r50_600px':
        assert changed == {
            'train_pipeline.2.scale.0', 'train_pipeline.2.scale.1',
            'test_pipeline.1.scale.0', 'test_pipeline.1.scale.1',
            *(f'{split}_dataloader.dataset.pipeline.{step}.scale.{axis}'
              for split, step in (('train', 2), ('val', 1), ('test', 1))
              for axis in (0, 1)), 'auto_scale_lr.enable'
        }
    elif name == 'pspnet_r50_batch16':
        assert changed == {
            'model.backbone.frozen_stages', 'auto_scale_lr',
            'optim_wrapper.optimizer.weight_decay', 'param_scheduler.0.eta_min'
        }
    else:
        schedule = under(changed, 'train_cfg', 'param_scheduler',
                         'optim_wrapper.', 'train_dataloader.sampler.type',
                         'default_hooks.checkpoint', 'log_processor.by_epoch',
                         'tta_', 'img_scales')
        changed -= schedule
        assert all('norm' in key or 'zero_init' in key or 'frozen' in key
                   or 'init_cfg' in key for key in changed)
        if name == 'mask_rcnn_r50_scratch':
            assert changed == {'model.backbone.norm_eval'}


def optimizer(cfg):
    found = cfg.optim_wrapper.optimizer
    assert found.type == 'SGD' and found.momentum == 0.9
    return found.lr, found.weight_decay


def scales(cfg):
    return [
        step.scale for split in ('train', 'val', 'test')
        for step in cfg[f'{split}_dataloader'].dataset.pipeline
        if step.type == 'Resize'
    ]


@pytest.mark.parametrize(
    'name', [name for name, row in ACTIVATIONS.items() if '600px' in row[2]])
def test_acon_paper_on_coco(name):
    cfg = load(name)
    assert optimizer(cfg) == (0.01, 1e-4)
    assert cfg.auto_scale_lr == dict(enable=True, base_batch_size=16)
    assert cfg.train_dataloader.batch_size == 2
    assert scales(cfg) == [(1000, 600)] * 3
    anchors = cfg.model.bbox_head.anchor_generator
    assert anchors.scales_per_octave == len(anchors.ratios) == 3
    assert cfg.model.backbone.frozen_stages == 1
    assert cfg.model.backbone.norm_eval is True
    assert (name in CHECKPOINTS) == ('swap' in cfg.model.backbone)
    if name in CHECKPOINTS:
        assert cfg.model.backbone.swap.frozen == 'swap'


@pytest.mark.parametrize(
    'name', [name for name, row in ACTIVATIONS.items() if 'scratch' in row[2]])
def test_pwlu_paper_on_coco(name):
    cfg = load(name)
    assert optimizer(cfg) == (0.02, 1e-4)
    assert cfg.auto_scale_lr == dict(enable=False, base_batch_size=16)
    assert cfg.train_dataloader.batch_size == 2
    assert cfg.train_dataloader.sampler.type == 'InfiniteSampler'
    assert scales(cfg) == [(1333, 800)] * 3
    assert cfg.train_cfg.type == 'IterBasedTrainLoop'
    assert cfg.train_cfg.max_iters == 270_000
    warm_up, steps = cfg.param_scheduler
    assert not warm_up.by_epoch and warm_up.end == 500
    assert not steps.by_epoch and steps.gamma == 0.1
    assert [270_000 - at for at in steps.milestones] == [60_000, 20_000]

    # From scratch: all is trained, and backbone, neck and heads normalised.
    backbone = cfg.model.backbone
    assert backbone.frozen_stages == -1 and backbone.norm_eval is False
    assert backbone.init_cfg is None
    model = MODELS.build(cfg.model).train()
    assert all(p.requires_grad for p in model.parameters())
    norms = {
        type(module).__name__
        for module in model.modules() if 'Norm' in type(module).__name__
    }
    assert norms == {'GroupNorm'}
    for part in (model.backbone, model.neck, getattr(model, 'roi_head', None)
                 or model.bbox_head):
        assert any(isinstance(m, torch.nn.GroupNorm) for m in part.modules())


@pytest.mark.parametrize(
    'name', [name for name in ACTIVATIONS if name.startswith('pspnet')])
def test_acon_paper_on_cityscapes(name):
    cfg = load(name)
    assert optimizer(cfg) == (0.01, 1e-4)
    poly, = cfg.param_scheduler
    assert (poly.type, poly.power, poly.eta_min) == ('PolyLR', 0.9, 0)
    assert poly.end == cfg.train_cfg.max_iters == 80_000
    assert 8 * cfg.train_dataloader.batch_size == 16
    assert cfg.auto_scale_lr.base_batch_size == 16
    assert cfg.model.backbone.frozen_stages == -1
    assert cfg.model.backbone.norm_eval is False
    plain = cfg.model.backbone.get('backbone', cfg.model.backbone.type)
    assert plain == 'ResNet'


@pytest.mark.parametrize('name',
                         [name for name in ACTIVATIONS if 'pwlu' in name])
def test_pwlu_has_two_phases(name):
    cfg = load(name)
    hook, = cfg.custom_hooks
    assert hook == dict(type='PWLURealignHook', phase1_epochs=5)
    images = 2_975 if name.startswith('pspnet') else 117_266
    comment = ' '.join(CONFIGS[name].read_text().replace('\n#', '').split())
    batches = math.ceil(images / 16)
    assert (f'Phase I lasts {5 * batches:,} iterations: 5 times the '
            f'{batches:,} batches of 16 that hold the {images:,} training '
            'images') in comment
    assert cfg.model.backbone.swap.act_cfg == dict(
        type='PWLU', num_intervals=16)


@pytest.mark.parametrize('name', unless_long(ACTIVATIONS))
def test_no_weight_decay_on_activation_numbers(name):
    cfg = load(name)
    model = MODELS.build(cfg.model)
    wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
    decay = {
        parameter: group['weight_decay']
        for group in wrapper.optimizer.param_groups
        for parameter in group['params']
    }
    found = {
        decay[parameter]
        for module in model.modules()
        if isinstance(module, LearnableActivation)
        for parameter in module.parameters(recurse=False) if parameter in decay
    }
    learnable = not name.endswith(('relu', 'swish'))
    assert found == ({0.} if learnable else set())
    last = model.backbone.layer4[2]
    assert decay[last.conv2.weight] == 1e-4
    if 'scratch' in ACTIVATIONS[name][2]:
        assert decay[last.norm2.weight] == 0


def code_blocks(language):
    text = (ROOT / 'README.md').read_text()
    return re.findall(rf'```{language}\n(.*?)```', text, re.S)


def test_readme_names_every_config():
    text = (ROOT / 'README.md').read_text()
    for name in CONFIGS:
        assert f'`{name}.py`' in text
    for name in CHECKPOINTS:
        assert load(name).model.backbone.init_cfg.checkpoint in text


def test_readme_config_of_four_lines():
    code = code_blocks('python')[0]
    assert len(code.splitlines()) == 4
    cfg = Config.fromstring(code, '.py')
    model = MODELS.build(cfg.model)
    # Two modules per frozen block and the stem stay ReLU.
    kept = 1 + 3 * 3
    assert sum(
        isinstance(module, LearnableActivation)
        for module in model.modules()) == 49 - kept
    build_optim_wrapper(model, cfg.optim_wrapper)


@pytest.fixture(scope='module')
def pretrained(tmp_path_factory):
    """Checkpoints as the README's commands would leave them."""
    command, = (
        block for block in code_blocks('bash') if 'dist_train.sh' in block)
    options = dict([re.search(r'--cfg-options (\S+)=(\S+)', command).groups()])
    folder = tmp_path_factory.mktemp('checkpoints')
    paths = {}
    for name in ('swish', 'acon', 'metaacon'):
        cfg = Config.fromfile(ROOT / f'resnet50_{name}.py')
        cfg.merge_from_dict(options)
        assert cfg.model.backbone.style == 'pytorch'
        model = MODELS.build(cfg.model)
        with torch.no_grad():
            for value in model.state_dict().values():
                if value.is_floating_point():
                    value.uniform_(0.5, 1)
        paths[name] = folder / f'{name}.pth'
        torch.save(dict(state_dict=model.state_dict()), paths[name])
    yield paths
    shutil.rmtree(folder)


@pytest.mark.parametrize('name', unless_long(CHECKPOINTS))
def test_pretrained_backbone_is_loaded_whole(name, pretrained, no_network):
    cfg = load(name)
    path = pretrained[CHECKPOINTS[name]]
    assert CHECKPOINTS[name] in cfg.model.backbone.init_cfg.checkpoint
    cfg.model.backbone.init_cfg.checkpoint = str(path)
    model = MODELS.build(cfg.model)
    model.backbone.init_weights()
    source = torch.load(path)['state_dict']
    for key, value in model.backbone.state_dict().items():
        assert torch.equal(value, source[f'backbone.{key}']), key


def test_readme_options_for_the_authors_weights():
    options = dict(
        option.split('=') for block in code_blocks('bash')
        if block.startswith('--cfg-options')
        for option in block.replace('\\', '').split()[1:])
    for name in ('retinanet_r50_metaacon', 'pspnet_r50_metaacon'):
        cfg = load(name)
        cfg.merge_from_dict({
            key: DictAction._parse_iterable(value.strip('"'))
            for key, value in options.items()
        })
        model = MODELS.build(cfg.model)
        first = model.backbone.layer2[0]
        assert first.conv1.stride == (2, 2) and first.conv2.stride == (1, 1)
        preprocessor = model.data_preprocessor
        assert preprocessor.mean.unique().tolist() == [0]
        assert preprocessor.std.unique().tolist() == [1]
        assert cfg.model.data_preprocessor.bgr_to_rgb is False
        units = [
            module for module in model.modules()
            if isinstance(module, LearnableActivation)
        ]
        assert all(isinstance(u.bn1, torch.nn.BatchNorm2d) for u in units)


def shorten(cfg, work_dir):
    """Two iterations and one evaluation of four images."""
    cfg.work_dir = str(work_dir)
    cfg.train_dataloader.batch_size = 2
    cfg.train_dataloader.dataset.indices = 4
    cfg.val_dataloader.dataset.indices = 4
    if 'max_iters' in cfg.train_cfg:
        cfg.train_cfg.update(max_iters=2, val_interval=2)
    else:
        cfg.train_cfg.update(max_epochs=1, val_interval=1)
    by_epoch = 'max_epochs' in cfg.train_cfg
    cfg.default_hooks.checkpoint.update(
        interval=1 if by_epoch else 2, save_optimizer=False)
    for hook in cfg.custom_hooks:
        if hook.type == 'PWLURealignHook':
            hook.pop('phase1_epochs')
            hook.phase1_iters = 1
    # Else nothing is found after two iterations, and nothing is evaluated.
    test_cfg = cfg.model.test_cfg.get('rcnn', cfg.model.test_cfg)
    if 'score_thr' in test_cfg:
        test_cfg.score_thr = 0.


@pytest.fixture(scope='module')
def shapes(tmp_path_factory):
    return str(tmp_path_factory.mktemp('shapes'))


# Each setting, and each activation; the others with --full.
@pytest.mark.parametrize('name', unless_long(ACTIVATIONS))
def test_demo_trains_evaluates_and_saves(name, shapes, tmp_path, no_network):
    cfg = load(name)
    demo_config(cfg, shapes)
    shorten(cfg, tmp_path)
    runner = Runner.from_cfg(cfg)
    runner.train()

    assert runner.iter == 2
    scalars = runner.message_hub.log_scalars
    assert math.isfinite(scalars['train/loss'].current())
    metric = 'mIoU' if name.startswith('pspnet') else 'coco/bbox_mAP'
    assert math.isfinite(scalars[f'val/{metric}'].current())
    activation, sites, _ = ACTIVATIONS[name]
    names = [type(m).__name__ for m in runner.model.backbone.modules()]
    if activation != 'ReLU':
        assert names.count(activation) == len(sites)
    if activation == 'PWLU':
        assert {
            module.current_phase
            for module in runner.model.modules()
            if isinstance(module, LearnableActivation)
        } == {2}

    saved = [*tmp_path.glob('*.pth')]
    assert len(saved) == 1
    weights = torch.load(saved[0])['state_dict']
    assert set(weights) == set(runner.model.state_dict())
    # The 14 of them would take more than a gigabyte.
    saved[0].unlink()
