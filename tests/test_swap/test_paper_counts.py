"""Parameter counts of the two papers (arXiv 2009.04759, 2104.03693).

They need no data: a swap at the papers' sites has to give their numbers.
"""
import pytest
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from mm_acon import PWLU, MetaACON, swap_activations

from .cases import build


def resnet(depth):
    """A classifier on the meta device, to which counting is enough."""
    return build(
        dict(
            type='mmpretrain.ImageClassifier',
            backbone=dict(type='mmpretrain.ResNet', depth=depth),
            neck=dict(type='mmpretrain.GlobalAveragePooling'),
            head=dict(
                type='mmpretrain.LinearClsHead',
                num_classes=1000,
                in_channels=512 if depth < 50 else 2048))).to('meta')


def count(model):
    """All parameters but those of BatchNorm, as the ACON paper counts."""
    norms = {
        parameter
        for module in model.modules() if isinstance(module, _BatchNorm)
        for parameter in module.parameters()
    }
    return sum(p.numel() for p in model.parameters() if p not in norms)


# Depth: the paper's rule, MetaACONs, parameters before and after, and as
# the paper's tables round them, in millions. By hand for depth 18: a site
# of C channels adds 2 C + (C h + h) + (h C + C), h = max(16, C / 16), which
# is 2256, 4496, 8976 and 34336 for four sites each.
META_ACON = {
    18: (r'\.conv[12]$', 16, 11_679_912, 11_880_168, '11.7', '11.9'),
    50: (r'\.conv2$', 16, 25_503_912, 25_685_528, '25.5', '25.7'),
    101: (r'\.conv2$', 33, 44_443_816, 44_778_024, '44.4', '44.8'),
    152: (r'\.conv2$', 50, 60_041_384, 60_510_264, '60.0', '60.5'),
}


@pytest.mark.parametrize('depth', META_ACON)
def test_meta_acon_adds_what_the_paper_counts(depth):
    include, number, base, total, *rounded = META_ACON[depth]
    model = resnet(depth)
    assert count(model) == base
    report = swap_activations(
        model.backbone, dict(type='MetaACON'), include=include)
    activations = [m for m in model.modules() if isinstance(m, MetaACON)]
    assert len(activations) == len(report.replaced) == number
    assert count(model) == total
    assert sum(row.parameters for row in report.rows) == total - base
    assert [f'{n / 1e6:.1f}' for n in (base, total)] == rounded


# Depth: sites, their channels, and N + 5 = 21 numbers for each.
PWLUS = {18: (17, 3904), 50: (49, 22720), 101: (100, 48832)}


@pytest.mark.parametrize('depth', PWLUS)
def test_pwlu_adds_21_numbers_per_channel(depth):
    sites, channels = PWLUS[depth]
    model = resnet(depth)
    before = sum(p.numel() for p in model.parameters())
    report = swap_activations(model.backbone, dict(type='PWLU'))
    assert len(report.replaced) == sites
    assert not any(isinstance(m, nn.ReLU) for m in model.modules())
    activations = [m for m in model.modules() if isinstance(m, PWLU)]
    assert len(activations) == sites
    assert sum(m.num_channels for m in activations) == channels
    added = sum(p.numel() for p in model.parameters()) - before
    assert added == 21 * channels
