"""What tests share: activations, comparisons, options, a hostile object.

Toys and whole backbones are in tests/helpers.
"""
import os
import re
from argparse import ArgumentParser
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from mmengine.registry import MODELS
from mmengine.utils import digit_version
from torch import Tensor

from mm_acon.cli import add_config_options, add_run_options

DEVICES = ['cpu'] + (['cuda'] if torch.cuda.is_available() else [])
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
# (N, C) and one, two, three spatial axes.
SHAPES = [(2, 3), (2, 3, 5), (2, 3, 3, 4), (2, 3, 2, 3, 2)]
LAYOUTS = ['contiguous', 'channels_last', 'transposed', 'strided']

# Every activation, with the options that change what it computes.
ACTIVATIONS = {
    'ACONA':
    dict(type='ACONA'),
    'ACONB':
    dict(type='ACONB'),
    'ACONC':
    dict(type='ACONC'),
    'ACONC-layer':
    dict(type='ACONC', granularity='layer'),
    'MetaACON':
    dict(type='MetaACON', reduction=2),
    'MetaACON-BN':
    dict(type='MetaACON', reduction=2, norm_cfg=dict(type='BN')),
    'MetaACON-depthwise':
    dict(type='MetaACON', depthwise=True),
    'MetaACON-depthwise-BN':
    dict(type='MetaACON', depthwise=True, norm_cfg=dict(type='BN')),
    'MetaACON-layer':
    dict(type='MetaACON', granularity='layer'),
    'MetaACON-pixel':
    dict(type='MetaACON', granularity='pixel'),
    'PWLU':
    dict(type='PWLU'),
    'PWLU-layer':
    dict(type='PWLU', granularity='layer'),
    'APL':
    dict(type='APL'),
    'APL-layer':
    dict(type='APL', granularity='layer'),
    'PAU':
    dict(type='PAU', granularity='channel'),
    'PAU-layer':
    dict(type='PAU', granularity='layer'),
    'FReLU':
    dict(type='FReLU'),
    'ACONFReLU':
    dict(type='ACONFReLU'),
}
# Those that look at neighbours, and so take (N, C, H, W) only.
FUNNELS = ('FReLU', 'ACONFReLU')


def needs_torch(version: str, what: str):
    """A mark that skips a test where torch itself lacks something.

    Args:
        version: The first that has it, or that is known to.
        what: The rest of the reason.
    """
    return pytest.mark.skipif(
        digit_version(torch.__version__) < digit_version(version),
        reason=f'torch before {version} {what}')


# Exporting models of free sizes may well work from a version between 2.6 and
# 2.13 on.
EXPORTS = needs_torch('2.7', 'cannot export models of free sizes')
OPCHECK = needs_torch('2.4', 'has no torch.library.opcheck')
FLOP_COUNTER = needs_torch('2.1', 'has no counter of FLOPs')
ASSIGN = needs_torch('2.1', 'has no load_state_dict(assign=True)')
EXPORT = needs_torch('2.1', 'has no torch.export')
HALF_FUNCTIONS = needs_torch(
    '2.1', 'has no half-precision ReLU and sigmoid on the CPU, and adds such '
    'numbers up in their own precision')
HALF_ON_CPU = needs_torch(
    '2.2', 'has no half-precision convolution and matrix product on the CPU')

# What others show, too, and takes seconds each: of our ImageNet configs, of
# the backbones that a swap is tried on, and of our detectors and segmentors,
# where each activation and each setting stays once.
LONG = re.compile(
    'resnet(101|152)|resnet50_(?!metaacon)|senet154|tfnet_[12]'
    '|shufflenetv2_(1.5x_acon|0.5x_metaacon)|mobilenetv(1_0.75|2_1.0)'
    '|ResNeXt|Res2Net|HRNet|ResNeSt|ResNetV1c|mmpretrain|SEResNet'
    '|DenseNet-121|VGG|RegNetX|CSPDarknet'
    '|retinanet_r50_(?!metaacon)|mask_rcnn_r50_(?!pwlu)|pspnet_r50_(?!acon)')


def unless_long(names):
    """Parameters of a test; what others show, too, is for --full."""
    return [
        pytest.param(name, marks=pytest.mark.full if LONG.match(name) else ())
        for name in names
    ]


def tolerance(dtype: torch.dtype,
              backward: bool = False,
              roundings: int = 1) -> dict:
    """How far a result of that dtype may be from the exact one.

    The operators compute in float32 at least: a few roundings of that dtype
    forward, more backward, where they sum. Half and bfloat16 results are
    rounded once at the end; a layer inside an activation rounds more often.
    """
    working = torch.promote_types(dtype, torch.float32)
    error = torch.finfo(working).eps * (64 if backward else 8)
    if working != dtype:
        error += torch.finfo(dtype).eps / 2 * roundings
    return dict(rtol=error, atol=error)


def assert_near(result: Tensor,
                expected: Tensor,
                backward: bool = False,
                roundings: int = 1) -> None:
    """Compares within the tolerance of the result's dtype."""
    torch.testing.assert_close(
        result.detach().cpu().double(),
        expected.detach().cpu().double(),
        equal_nan=True,
        **tolerance(result.dtype, backward, roundings))


def moved(name: str, num_channels: int = 4, seed: int = 0, **kwargs):
    """One of ACTIVATIONS, with parameters unlike those of a fresh one."""
    torch.manual_seed(seed)
    activation = MODELS.build(
        dict(ACTIVATIONS[name], num_channels=num_channels, **kwargs))
    with torch.no_grad():
        for parameter in activation.parameters():
            parameter += .2 * torch.randn_like(parameter)
    return activation


@contextmanager
def torch_threads(count: int):
    """torch computes by so many threads within."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def images(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def with_layout(x: Tensor, layout: str) -> Tensor:
    """x, its values in another order in memory."""
    if layout == 'channels_last':
        return x.movedim(1, -1).contiguous().movedim(-1, 1)
    if layout == 'transposed':
        return x.transpose(0, -1).contiguous().transpose(0, -1)
    if layout == 'strided':
        wide = x.new_empty(*x.shape[:-1], 2 * x.shape[-1])
        wide[..., ::2] = x
        return wide[..., ::2]
    return x.contiguous()


def run(function, *inputs: Tensor, grad: Tensor = None):
    """The output and the gradient of each input, where grad comes in.

    Inputs keep their layout. Without grad it is all ones.
    """
    leaves = [t.detach().requires_grad_() for t in inputs]
    y = function(*leaves)
    y.backward(torch.ones_like(y) if grad is None else grad.to(y))
    return y.detach(), [leaf.grad for leaf in leaves]


FASTER_RCNN = 'mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py'


def options(*arguments, run=False):
    """The options of a tool as they are typed after the config."""
    parser = ArgumentParser()
    add_config_options(parser)
    if run:
        add_run_options(parser)
        parser.add_argument('checkpoint')
    return parser.parse_args([FASTER_RCNN, *map(str, arguments)])


class WriteFile:
    """Writes a file when it is unpickled as pickle does."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return exec, (f'open({self.path!r}, "w")', )


def real_data(name):
    """A folder of the real data sets, or a skip that says what is missing.

    They lie beside the repository; docs/real_images.md says where they come
    from.
    """
    beside = Path(__file__).parents[2] / 'shared/data'
    folder = Path(os.environ.get('MM_ACON_DATA', beside)) / name
    if not folder.is_dir():
        pytest.skip(f'there is no {folder}, a real data set; set '
                    'MM_ACON_DATA to the folder that has it')
    return folder
