"""A user's program, for the type checker alone: mypy, see pyproject.toml.

It uses the public API as documented. Where mypy is told to ignore an error
there has to be one, so that an annotation that got lost is an error, too.
"""
from typing import List, Optional, Tuple

import torch
from torch import Tensor, nn
from typing_extensions import assert_type

import mm_acon
from mm_acon import ops
from mm_acon.swap import SwapRow


def activations(x: Tensor) -> List[Tensor]:
    modules: List[mm_acon.LearnableActivation] = [
        mm_acon.ACONA(),
        mm_acon.ACONB(8),
        mm_acon.ACONC(8, granularity='layer', beta_init=100.),
        mm_acon.MetaACON(8, reduction=4, norm_cfg=dict(type='BN')),
        mm_acon.PWLU(8, num_intervals=8, bound=2.5),
        mm_acon.FReLU(8, stride=2),
        mm_acon.ACONFReLU(8),
        mm_acon.APL(8, num_hinges=3),
        mm_acon.PAU(8, granularity='channel'),
    ]
    assert_type(modules[0].num_channels, Optional[int])
    assert_type(mm_acon.MetaACON(8).switching_factor(x), Tensor)
    mm_acon.ACONC('8')  # type: ignore[arg-type]
    mm_acon.PWLU(num_interval=8)  # type: ignore[call-arg]
    return [module(x) for module in modules]


def phases(module: mm_acon.PWLU) -> Tensor:
    module.start_phase1()
    assert_type(module.realign(), Tensor)
    assert_type(module.current_phase, int)
    assert_type(module.input_range(), Tuple[Tensor, Tensor])
    module.realign(3)  # type: ignore[call-arg]
    mean, std = module.moments(torch.ones(2, 8))
    assert_type(module.alignment_iou(), Tensor)
    return module.alignment_iou(mean * std)


def swap(backbone: nn.Module) -> List[SwapRow]:
    report = mm_acon.swap_activations(
        backbone,
        dict(type='MetaACON'),
        include=[r'\.conv2$'],
        frozen='swap',
        sample_input=(1, 3, 64, 64))
    assert_type(report, mm_acon.SwapReport)
    assert_type(report.functional, List[str])
    mm_acon.swap_activations(backbone, 'PWLU')  # type: ignore[arg-type]
    return report.replaced


def operators(x: Tensor) -> Tensor:
    one = torch.ones(1)
    y = ops.acon(x, one, one, one)
    points = torch.zeros(1, 17)
    assert_type(ops.pwlu(y, points, -one, one, one, one), Tensor)
    ops.acon(x, 1.0, one, one)  # type: ignore[arg-type]
    table = ops.inference_table(points, -one, one, one, one)
    with ops.use_reference():
        return ops.pwlu_table(x, *table)


def training() -> None:
    mm_acon.PWLURealignHook(phase1_epochs=5)
    mm_acon.PWLURealignHook(phase1_epochs='5')  # type: ignore[arg-type]
    mm_acon.SafeCheckpointHook()
    mm_acon.ClassCountHook()


def backbones() -> List[nn.Module]:
    mm_acon.TFNet(widen_factor='1')  # type: ignore[arg-type]
    return [
        mm_acon.EfficientNetLite(arch='lite1', out_indices=(2, 3, 4)),
        mm_acon.TFNet(widen_factor=0.5),
        mm_acon.MobileNetV1(widen_factor=0.25, out_indices=(2, 4)),
        mm_acon.SENet154(frozen_stages=1),
    ]
