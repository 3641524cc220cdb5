"""MobileNetV1: the ACON paper's counts (arXiv 2009.04759, Table 2)."""
import pytest
import torch
from torch import nn

from mm_acon import MetaACON, MobileNetV1, swap_activations
from tests.helpers.counting import MACS, PARAMETERS, count

# Width: millions of parameters, of MACs, and of parameters with meta-ACON, as
# the paper has them.
WIDTHS = {0.25: ('0.5', '41', '0.6'), 0.75: ('2.6', '325', '3.1')}


@pytest.mark.parametrize('width', WIDTHS)
def test_the_papers_counts(width):
    base, macs = count(MobileNetV1, widen_factor=width)
    name = f'mobilenetv1_{width}'
    assert base == PARAMETERS[f'{name}_relu']
    assert macs == MACS[f'{name}_relu']
    model = MobileNetV1(width)
    report = swap_activations(model, dict(type='MetaACON'))
    assert len(report.replaced) == len(report.rows) == 27
    total = base + sum(row.parameters for row in report.rows)
    assert total == PARAMETERS[f'{name}_metaacon']
    assert (f'{base / 1e6:.1f}', f'{macs / 1e6:.0f}',
            f'{total / 1e6:.1f}') == WIDTHS[width]


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
