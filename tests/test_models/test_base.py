"""What the backbones share: outputs, freezing, initialisation, libraries."""
import copy

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from mm_acon import LearnableActivation

# Type: a small one's arguments, its number of stages, the channels of each
# and the stride of the first; the others double it up to 32.
NETWORKS = {
    'TFNet': (dict(widen_factor=0.5), 5, [16, 32, 64, 128, 1024], 4),
    'MobileNetV1': (dict(widen_factor=0.25), 5, [16, 32, 64, 128, 256], 2),
    'EfficientNetLite': (dict(), 6, [16, 24, 40, 112, 320, 1280], 2),
    'SENet154': (dict(), 4, [256, 512, 1024, 2048], 4),
}
EVERY = pytest.mark.parametrize('name', NETWORKS)


def build(name, out_indices=(1, ), **kwargs):
    torch.manual_seed(0)
    return MODELS.build(
        dict(
            type=name, **NETWORKS[name][0], out_indices=out_indices, **kwargs))


@EVERY
def test_outputs(name):
    """On the meta device, where size costs nothing."""
    _, stages, channels, stride = NETWORKS[name]
    strides = [min(stride * 2**i, 32) for i in range(stages)]
    with torch.device('meta'):
        outs = build(name, range(stages))(torch.empty(2, 3, 64, 128))
        last, = MODELS.build(dict(type=name))(torch.empty(2, 3, 64, 128))
    assert isinstance(outs, tuple)
    assert [out.shape for out in outs] == [(2, c, 64 // s, 128 // s)
                                           for c, s in zip(channels, strides)]
    # The default is the last stage, for a classifier.
    assert last.shape[2:] == (2, 4)


@EVERY
def test_stages_that_nobody_reads_are_not_built(name):
    """DistributedDataParallel would wait for their gradients."""
    model = build(name, (0, 1))
    assert not hasattr(model, 'layer3')
    loss = sum(out.sum() for out in model(torch.randn(2, 3, 32, 32)))
    loss.backward()
    assert all(p.grad is not None for p in model.parameters())
    # The same weights as in a deeper one, so that its checkpoints load.
    assert set(model.state_dict()) < set(build(name, (2, )).state_dict())


@pytest.mark.parametrize('frozen', [-1, 0, 1])
@EVERY
def test_frozen_stages(name, frozen):
    built = build(name, frozen_stages=frozen)
    # Both before and after the first call of train().
    for model in (built, copy.deepcopy(built).train()):
        for index, part in enumerate(('stem', 'layer1', 'layer2')):
            part = getattr(model, part)
            trained = index > frozen
            assert all(p.requires_grad == trained for p in part.parameters())
            norms = [m for m in part.modules() if isinstance(m, _BatchNorm)]
            assert norms and all(norm.training == trained for norm in norms)
    before = copy.deepcopy(model.state_dict())
    model(torch.randn(2, 3, 32, 32))
    moved = {
        key.split('.')[0]
        for key, value in model.state_dict().items()
        if not torch.equal(value, before[key])
    }
    assert moved == set(('stem', 'layer1', 'layer2')[frozen + 1:])


@EVERY
def test_norm_eval(name):
    model = build(name, norm_eval=True).train()
    assert model.training
    assert not any(m.training
                   for m in model.modules() if isinstance(m, _BatchNorm))
    assert all(p.requires_grad for p in model.parameters())


@EVERY
def test_configs_of_layers(name):
    model = build(
        name,
        conv_cfg=dict(type='ConvWS'),
        norm_cfg=dict(type='GN', num_groups=2))
    types = {type(module).__name__ for module in model.modules()}
    assert {'ConvWS2d', 'GroupNorm'} <= types
    assert 'BatchNorm2d' not in types


@EVERY
def test_pretrained(name, tmp_path):
    """A classifier's file, into a backbone that needs less of it."""
    source = build(name, (2, ))
    with torch.no_grad():
        for value in source.state_dict().values():
            if value.is_floating_point():
                value.uniform_(0.5, 1)
    state = {f'backbone.{k}': v for k, v in source.state_dict().items()}
    torch.save(dict(state_dict=state), tmp_path / 'model.pth')
    model = build(
        name,
        init_cfg=dict(
            type='Pretrained',
            checkpoint=str(tmp_path / 'model.pth'),
            prefix='backbone.'))
    model.init_weights()
    for key, value in model.state_dict().items():
        assert torch.equal(value, state[f'backbone.{key}']), key


@EVERY
def test_init_weights(name):
    model = build(name)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(9)
    model.init_weights()
    learnt = {
        parameter
        for module in model.modules()
        if isinstance(module, LearnableActivation)
        for parameter in module.parameters()
    }
    for key, parameter in model.named_parameters():
        # An owner leaves its activations as they are.
        assert bool((parameter == 9).all()) is (parameter in learnt), key
    stem = model.stem
    stem = stem[0] if isinstance(stem, nn.Sequential) else stem
    # He et al.: variance 2 over what one number of the input feeds.
    weight = stem.conv.weight.detach()
    assert weight.std() == pytest.approx((2 / (len(weight) * 9))**.5, rel=0.3)


@pytest.mark.parametrize('out_indices', [(), (6, ), (-1, ), (0, 7)])
@EVERY
def test_refused_out_indices(name, out_indices):
    last = NETWORKS[name][1] - 1
    with pytest.raises(ValueError) as error:
        build(name, out_indices)
    assert str(error.value) == (
        f'{name} expects out_indices from 0 to {last}, got {out_indices!r}.')


@pytest.mark.parametrize('frozen', [-2, 3])
@EVERY
def test_refused_frozen_stages(name, frozen):
    with pytest.raises(ValueError) as error:
        build(name, frozen_stages=frozen)
    assert str(error.value) == (
        f'{name} expects frozen_stages from -1 to 2, the number of stages '
        f'that out_indices=(1,) needs, got {frozen}.')


@EVERY
def test_in_a_detector(name):
    pytest.importorskip('mmdet')
    channels = NETWORKS[name][2][:3]
    cfg = Config.fromstring(
        "_base_ = 'mmdet::_base_/models/retinanet_r50_fpn.py'", '.py')
    cfg.merge_from_dict({
        'model.neck.in_channels':
        channels,
        'model.neck.num_outs':
        3,
        'model.neck.start_level':
        0,
        'model.bbox_head.anchor_generator.strides': [8, 16, 32],
    })
    cfg.model.backbone = dict(
        type=name, **NETWORKS[name][0], out_indices=(0, 1, 2))
    model = MODELS.build(cfg.model)
    with torch.no_grad():
        scores, boxes = model(torch.randn(1, 3, 64, 64))
    assert len(scores) == len(boxes) == 3


@EVERY
def test_in_a_segmentor(name):
    pytest.importorskip('mmseg')
    cfg = Config.fromstring("_base_ = 'mmseg::_base_/models/fcn_r50-d8.py'",
                            '.py')
    channels = NETWORKS[name][2]
    for head, index in (('decode_head', 1), ('auxiliary_head', 0)):
        cfg.model[head].update(
            in_index=index,
            in_channels=channels[index],
            channels=8,
            norm_cfg=dict(type='BN'))
    cfg.merge_from_dict({'model.pretrained': None})
    cfg.model.backbone = dict(
        type=name, **NETWORKS[name][0], out_indices=(0, 1))
    model = MODELS.build(cfg.model).eval()
    with torch.no_grad():
        assert model(torch.randn(1, 3, 64, 64)).shape[1] == 19
