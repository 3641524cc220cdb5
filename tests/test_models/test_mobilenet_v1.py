"""MobileNetV1: the ACON paper's counts (arXiv 2009.04759, Table 2)."""
import pytest
import torch
from torch import nn

from mm_acon import MetaACON, MobileNetV1, swap_activations
from tests.helpers.counting import count

# Width: parameters, MACs, parameters with meta-ACON; as the paper has them.
WIDTHS = {
    0.25: (464_600, 41_030_272, 560_792, ('0.5', '41', '0.6')),
    0.75: (2_569_144, 325_400_448, 3_078_232, ('2.6', '325', '3.1')),
}


@pytest.mark.parametrize('width', WIDTHS)
def test_the_papers_counts(width):
    base, macs, total, printed = WIDTHS[width]
    assert count(MobileNetV1, widen_factor=width) == (base, macs)
    model = MobileNetV1(width)
    report = swap_activations(model, dict(type='MetaACON'))
    assert len(report.replaced) == len(report.rows) == 27
    assert base + sum(row.parameters for row in report.rows) == total
    assert (f'{base / 1e6:.1f}', f'{macs / 1e6:.0f}',
            f'{total / 1e6:.1f}') == printed


def test_act_cfg():
    model = MobileNetV1(0.25, out_indices=(1, ), act_cfg=dict(type='MetaACON'))
    model(torch.randn(2, 3, 32, 32))
    kinds = [type(m) for m in model.modules()]
    # The stem's and two in each of three blocks.
    assert kinds.count(MetaACON) == 7 and nn.ReLU not in kinds


def test_blocks_are_depthwise_and_pointwise():
    block = MobileNetV1(0.25).layer2[0]
    deep, point = block.depthwise_conv.conv, block.pointwise_conv.conv
    assert deep.groups == deep.in_channels == deep.out_channels == 16
    assert (deep.kernel_size, deep.stride) == ((3, 3), (2, 2))
    assert (point.kernel_size, point.out_channels) == ((1, 1), 32)
