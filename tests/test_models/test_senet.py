"""SENet-154: its published size, and where it differs from SEResNeXt."""
import torch
from torch import nn

from mm_acon import SENet154, swap_activations
from tests.helpers.counting import MACS, count


def test_published_counts():
    """115.09M parameters with BatchNorm's (arXiv 1709.01507: 115M)."""
    parameters, macs = count(SENet154)
    with torch.device('meta'):
        norms = sum(p.numel() for m in SENet154().modules()
                    if isinstance(m, nn.BatchNorm2d) for p in m.parameters())
    assert parameters + norms == 115_088_984
    assert macs == MACS['senet154_relu']


def test_block():
    torch.manual_seed(0)
    model = SENet154((1, )).eval()
    block = model.layer2[0]
    convs = [block.conv1.conv, block.conv2.conv, block.conv3.conv]
    assert [c.out_channels for c in convs] == [256, 512, 512]
    assert [c.groups for c in convs] == [1, 64, 1]
    assert [c.stride[0] for c in convs] == [1, 2, 1]
    assert block.shortcut.conv.kernel_size == (3, 3)
    assert model.layer1[0].shortcut.conv.kernel_size == (1, 1)
    x = torch.randn(1, 256, 4, 4)
    branch = block.conv3(block.conv2(block.conv1(x)))
    hidden = block.se[1](branch.mean((2, 3), keepdim=True))
    scale = block.se[2].conv(hidden).sigmoid()
    expected = (branch * scale + block.shortcut(x)).relu()
    torch.testing.assert_close(block(x), expected)


def test_swap_leaves_the_gates_alone():
    """Three in the stem and in each block; two more are on 1x1 maps."""
    model = SENet154((0, ))
    report = swap_activations(model, dict(type='ACON'))
    assert len(report.replaced) == 3 + 3 * 3
    left = [row for row in report.rows if not row.new]
    assert len(left) == 3 * 2
    assert all('.se.' in row.site for row in left)
