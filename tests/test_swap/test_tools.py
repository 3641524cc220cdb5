"""What OpenMMLab and PyTorch do to a model, on a swapped backbone."""
import copy
import io

import pytest
import torch
import torch._dynamo
from mmcv.cnn.utils import fuse_conv_bn
from mmengine.model import (ExponentialMovingAverage, convert_sync_batchnorm,
                            revert_sync_batchnorm)
from torch import nn

from mm_acon import LearnableActivation, swap_activations
from mm_acon.compat import strict_zip
from mm_acon.swap.per_call import ActivationPerCall
from tests.helpers.backbones import (BACKBONES, assert_same, build, images,
                                     loss_of, outputs_and_gradients,
                                     pwlu_in_phase1, run, small)
from tests.utils import needs_torch

META = dict(type='MetaACON')
META_WITH_NORM = dict(type='MetaACON', norm_cfg=dict(type='BN'))
ACTS = {
    'MetaACON': META,
    'MetaACON-BN': META_WITH_NORM,
    'PWLU': dict(type='PWLU'),
    'ACONC': dict(type='ACONC'),
    'FReLU': dict(type='FReLU'),
}
EVERY = pytest.mark.parametrize('act_cfg', ACTS.values(), ids=list(ACTS))


def learnt(act_cfg, **kwargs):
    """A small swapped backbone, statistics and parameters not at start."""
    model = small(act_cfg, **kwargs)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for activation in model.modules():
            if isinstance(activation, LearnableActivation):
                for parameter in activation.parameters():
                    parameter += .05 * torch.randn(
                        parameter.shape, generator=generator)
    for _ in range(3):
        run(model, images())
    return model


def assert_close(result, expected, **tolerance):
    for y, wanted in strict_zip(result, expected):
        torch.testing.assert_close(y, wanted, **tolerance)


# The last block sees 1x1 maps of a 4x4 image.
@EVERY
@pytest.mark.parametrize('shape', [(1, 3, 64, 64), (1, 3, 4, 4), (2, 3, 4, 4),
                                   (0, 3, 64, 64)])
def test_single_images_tiny_maps_and_empty_batches(act_cfg, shape):
    # The backbone's own BatchNorm cannot train on a single value.
    model = small(act_cfg, norm_eval=True)
    model.train()
    outputs, grads = outputs_and_gradients(model, torch.randn(shape))
    assert all(y.shape[0] == shape[0] and y.isfinite().all() for y in outputs)
    assert all(grad.isfinite().all() for grad in grads.values()
               if grad is not None)
    if shape[0]:
        assert all(grad is not None for name, grad in grads.items()
                   if '.relu.' in name)


@EVERY
def test_conversion_to_sync_batchnorm_and_back(act_cfg):
    model = learnt(act_cfg)
    keys = list(model.state_dict())
    expected = outputs_and_gradients(copy.deepcopy(model), images())
    synced = convert_sync_batchnorm(copy.deepcopy(model))
    assert any(isinstance(m, nn.SyncBatchNorm) for m in synced.modules())
    assert list(synced.state_dict()) == keys
    # Without a process group it does what BatchNorm does.
    assert_same(outputs_and_gradients(synced, images()), expected)
    back = revert_sync_batchnorm(synced)
    assert not any(isinstance(m, nn.SyncBatchNorm) for m in back.modules())
    assert list(back.state_dict()) == keys
    assert_same(
        outputs_and_gradients(back, images()),
        outputs_and_gradients(synced, images()))


@pytest.mark.parametrize('name', ['DenseNet-121 memory_efficient'])
def test_checkpointing_after_the_first_child_was_replaced(name):
    """Checkpointing runs a dense layer again from norm1 on.

    So norm1 sets the count of the layer's calls back; the conversion
    puts another module in its place, without a hook.
    """
    config = dict(
        BACKBONES[name][0],
        arch=dict(growth_rate=8, depths=[2, 2], init_channels=16),
        out_indices=(1, ))
    plain = build(config)
    swapped = copy.deepcopy(plain)
    pwlu_in_phase1(swapped)
    names = list(dict(plain.named_parameters()))
    for change in (lambda model: model, convert_sync_batchnorm,
                   revert_sync_batchnorm, copy.deepcopy):
        plain, swapped = change(plain), change(swapped)
        assert_same(
            outputs_and_gradients(swapped, images(), names),
            outputs_and_gradients(plain, images()))


@EVERY
def test_fusion_of_convolution_and_norm(act_cfg):
    model = learnt(act_cfg)
    model.eval()
    expected = run(model, images())
    fused = fuse_conv_bn(copy.deepcopy(model))
    inside = {
        norm
        for activation in fused.modules()
        if isinstance(activation, LearnableActivation)
        for norm in activation.modules()
    }
    # Those of an activation belong to no nn.Conv2d and stay.
    assert not any(
        isinstance(m, nn.BatchNorm2d) and m not in inside
        for m in fused.modules())
    assert any(isinstance(m, ActivationPerCall) for m in fused.modules())
    assert_close(run(fused, images()), expected, rtol=1e-4, atol=1e-4)


@EVERY
def test_ema_copy(act_cfg):
    model = learnt(act_cfg)
    ema = ExponentialMovingAverage(model, momentum=.5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter *= 1.1
    ema.update_parameters(model)  # The first update copies.
    with torch.no_grad():
        for parameter in model.parameters():
            parameter /= 1.1
    ema.update_parameters(model)
    for (name, parameter), averaged in zip(model.named_parameters(),
                                           ema.module.parameters()):
        torch.testing.assert_close(averaged, parameter * 1.05, msg=name)

    # Half a forward of the model leaves the copy's count as it was.
    model.load_state_dict(ema.module.state_dict())
    model.eval()
    ema.module.eval()
    expected = run(ema.module, images())
    broken = model.layer1[1].conv2.register_forward_pre_hook(
        lambda *unused: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run(model, images())
    broken.remove()
    assert_close(run(ema.module, images()), expected, rtol=0, atol=0)
    assert_close(run(model, images()), expected, rtol=0, atol=0)


@EVERY
def test_saved_as_a_whole(act_cfg):
    """Hooks and counts are pickled with the module."""
    model = learnt(act_cfg, frozen_stages=1, swap=dict(frozen='swap'))
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    # The file was written here.
    loaded = torch.load(buffer, weights_only=False)
    loaded.train()
    model.train()
    assert not loaded.relu.training
    assert_same(
        outputs_and_gradients(loaded, images()),
        outputs_and_gradients(model, images()))


# Tracing takes a second or two each; Inductor would take a minute.
@pytest.mark.parametrize(
    'act_cfg', [META, ACTS['PWLU']], ids=['MetaACON', 'PWLU'])
@pytest.mark.parametrize('with_cp', [
    False,
    pytest.param(
        True, marks=needs_torch('2.1', 'cannot compile checkpointing'))
])
def test_compiled(act_cfg, with_cp):
    model = small(
        act_cfg,
        with_cp=with_cp,
        num_stages=1,
        strides=(1, ),
        dilations=(1, ),
        out_indices=(0, ))
    # Not run before: hooks put on by an eager forward would come too late.
    assert isinstance(model.layer1[0].relu, ActivationPerCall)
    eager = copy.deepcopy(model)
    x = images(size=32)
    torch._dynamo.reset()
    compiled = torch.compile(model, backend='aot_eager')
    for _ in range(2):
        outputs, expected = run(compiled, x), run(eager, x)
        assert_close(outputs, expected)
        loss_of(outputs).backward()
        loss_of(expected).backward()
    for (name, parameter), other in zip(model.named_parameters(),
                                        eager.parameters()):
        torch.testing.assert_close(parameter.grad, other.grad, msg=name)


@EVERY
def test_autocast_to_bfloat16(act_cfg):
    # With batch statistics the backbone itself is off by more.
    model = learnt(act_cfg, norm_eval=True)
    model.train()
    expected = run(copy.deepcopy(model), images())
    with torch.autocast('cpu', dtype=torch.bfloat16):
        outputs = run(model, images())
    loss_of([y.float() for y in outputs]).backward()
    for y, wanted in zip(outputs, expected):
        error = (y.float() - wanted).norm() / wanted.norm()
        assert error < .05
    for name, parameter in model.named_parameters():
        assert parameter.grad.dtype == torch.float32, name
        assert parameter.grad.isfinite().all(), name


@EVERY
def test_channels_last_and_double_precision(act_cfg):
    """The layouts differ in the order of sums, so in float64."""
    model = small().double()
    swap_activations(model, act_cfg)
    assert {p.dtype for p in model.parameters()} == {torch.float64}
    outputs, grads = outputs_and_gradients(
        copy.deepcopy(model),
        images().double())
    model.to(memory_format=torch.channels_last)
    x = images().double().to(memory_format=torch.channels_last)
    result, result_grads = outputs_and_gradients(model, x)
    assert all(
        y.is_contiguous(memory_format=torch.channels_last) for y in result)
    assert_close(result, outputs)
    for name, wanted in grads.items():
        if wanted is not None:
            error = (result_grads[name] - wanted).norm()
            assert error <= 1e-8 * (1 + wanted.norm()), name
