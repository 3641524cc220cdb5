"""TFNet: the paper's counts (arXiv 2009.04759, Table 8) and its block."""
import pytest
import torch

from mm_acon import TFNet
from mm_acon.models.tfnet import TFBlock
from tests.helpers.counting import MACS, PARAMETERS, count

# Size: millions of parameters and of MACs, as the paper rounds them. It prints
# 43 for the smallest, 42.45.
SIZES = {0.5: ('1.3', '42'), 1.0: ('1.9', '135'), 1.5: ('2.7', '279'),
         2.0: ('3.8', '474')}  # yapf: disable


@pytest.mark.parametrize('size', SIZES)
def test_the_papers_counts(size):
    parameters, macs = count(TFNet, widen_factor=size)
    name = f'tfnet_{size}'
    assert (parameters, macs) == (PARAMETERS[name], MACS[name])
    assert (f'{parameters / 1e6:.1f}', f'{macs / 1e6:.0f}') == SIZES[size]


@pytest.mark.parametrize('stride', [1, 2])
def test_block(stride):
    """Branch and input are added, or concatenated, before the funnel."""
    torch.manual_seed(0)
    block = TFBlock(4, stride, None, dict(type='BN')).eval()
    x = torch.randn(2, 4, 8, 8)
    y = block(x)
    assert y.shape == (2, 4 * stride, 8 // stride, 8 // stride)

    def funnel(part, value):
        condition = part.act.norm(part.act.conv(value))
        if part.act.stride == 2:
            value = torch.nn.functional.max_pool2d(value, 3, 2, 1)
        difference = value - condition
        return part.norm(difference * difference.sigmoid() + condition)

    branch = funnel(block.funnel1, block.conv1.bn(block.conv1.conv(x)))
    branch = block.conv2.bn(block.conv2.conv(branch))
    joined = x + branch if stride == 1 else torch.cat([x, branch], 1)
    torch.testing.assert_close(y, funnel(block.funnel2, joined))


def test_only_the_stem_has_relu():
    names = [
        name for name, module in TFNet(0.5).named_modules()
        if type(module).__name__ == 'ReLU'
    ]
    assert names == ['stem.activate']
