"""What a module is run with where nobody says what it takes."""
from typing import Optional

import pytest
import torch
from torch import Tensor, nn

from mm_acon import swap_activations
from mm_acon.swap.probe import probe
from mm_acon.swap.samples import few_proposals, samples
from tests.helpers.backbones import build

PWLU = dict(type='PWLU')
NECK = dict(
    type='mmdet.CSPNeXtPAFPN',
    in_channels=[16, 32],
    out_channels=16,
    num_csp_blocks=1)


def shapes(root, *args, **kwargs):
    return [sample.text for sample in samples(root, *args, **kwargs)]


def test_sizes_of_images():
    assert shapes(nn.Conv2d(
        3, 4, 3)) == [f'[(1, 3, {s}, {s})]' for s in (256, 224, 32, 384)]
    assert shapes(
        nn.Conv2d(1, 4, 3), small=True)[:3] == [
            '[(2, 1, 64, 64)]', '[(2, 3, 64, 64)]', '[(2, 1, 128, 128)]'
        ]
    assert shapes(nn.Conv3d(3, 4, 3))[0] == '[(1, 3, 32, 32, 32)]'


def test_windows_that_ask_for_large_images():
    """Swin for 384 pixels, which does not state its size."""
    net = build(
        dict(
            type='mmpretrain.SwinTransformer',
            arch=dict(
                embed_dims=8, depths=[2, 2, 2, 2], num_heads=[1, 2, 4, 8]),
            img_size=384,
            stage_cfgs=dict(block_cfgs=dict(window_size=12))))
    report = swap_activations(net, PWLU, replace='GELU')
    assert len(report.replaced) == 8
    assert report.proof.modes == ['evaluation', 'training']


def test_size_that_a_network_states():
    net = nn.Sequential(nn.Conv2d(3, 4, 3))
    net[0].img_size = (192, 192)
    assert shapes(net)[0] == '[(1, 3, 192, 192)]'
    net[0].img_size = 384
    assert shapes(net)[2] == '[(1, 3, 384, 384)]'


@pytest.mark.parametrize('sample_input', [
    None,
    [torch.rand(1, 16, 16, 16), torch.rand(1, 32, 8, 8)],
    ([torch.rand(1, 16, 16, 16), torch.rand(1, 32, 8, 8)], ),
    [[(1, 16, 16, 16), (1, 32, 8, 8)]],
    dict(inputs=[(1, 16, 16, 16), (1, 32, 8, 8)]),
    lambda neck: neck([torch.rand(2, 16, 16, 16),
                       torch.rand(2, 32, 8, 8)]),
])  # yapf: disable
def test_neck(sample_input):
    neck = build(NECK)
    report = swap_activations(
        neck, PWLU, replace='Swish', sample_input=sample_input)
    assert len(report.replaced) == len(report.rows) == 16
    assert report.proof.tolerance == 0


def test_head_over_levels_has_one_activation_for_all():
    head = build(
        dict(
            type='mmdet.RetinaHead',
            num_classes=2,
            in_channels=8,
            feat_channels=16,
            stacked_convs=1))
    report = swap_activations(head, PWLU)
    assert [(row.site, row.width)
            for row in report.rows] == [('cls_convs.0.conv', 16),
                                        ('reg_convs.0.conv', 16)]


def test_vectors_of_a_box_head_are_no_tiny_map():
    head = build(
        dict(
            type='mmdet.Shared2FCBBoxHead',
            in_channels=4,
            fc_out_channels=8,
            num_classes=2))
    report = swap_activations(
        head, PWLU, sample_input=(3, 4, 7, 7), parts=None)
    assert [(row.site, row.new, row.width)
            for row in report.rows] == [('shared_fcs.0', 'PWLU', 8),
                                        ('shared_fcs.1', 'PWLU', 8)]


def test_arguments_are_not_written_into():

    class Writes(nn.Module):

        def __init__(self):
            super().__init__()
            self.conv, self.relu = nn.Conv2d(3, 4, 1), nn.ReLU()

        def forward(self, x, names):
            names.append(len(names))
            x.mul_(2)
            return self.relu(self.conv(x))

    x, seen = torch.ones(1, 3, 4, 4), []
    swap_activations(Writes(), PWLU, sample_input=(x, seen))
    assert not seen and (x == 1).all()


def test_few_proposals_are_for_the_run_alone():
    head = nn.Module()
    head.test_cfg = cfg = dict(max_per_img=1000, nms_pre=1000)
    with few_proposals(head):
        assert head.test_cfg == dict(max_per_img=16, nms_pre=1000)
    assert head.test_cfg is cfg and cfg['max_per_img'] == 1000


@pytest.mark.parametrize('config', [
    dict(type='mmpretrain.LeNet5'),
    dict(type='mmpretrain.SimMIMSwinTransformer', arch='tiny'),
    dict(type='mmpretrain.T2T_ViT', img_size=32, embed_dims=24,
         t2t_cfg=dict(token_dims=8, use_performer=False),
         num_layers=1, layer_cfgs=dict(num_heads=2, feedforward_channels=24)),
])  # yapf: disable
def test_networks_that_take_another_size(config):
    assert probe(build(config)).sites


# Python before 3.9 writes the first as a Union with NoneType.
@pytest.mark.parametrize(
    'kind', [Optional[Tensor], 'Optional[Tensor]', 'Tensor | None'], ids=str)
def test_none_for_what_may_be_none(kind):

    class Masked(nn.Module):

        def __init__(self):
            super().__init__()
            self.conv, self.relu = nn.Conv2d(3, 4, 3), nn.ReLU()

        def forward(self, x, mask):
            assert mask is None
            return self.relu(self.conv(x))

    Masked.forward.__annotations__['mask'] = kind
    assert len(probe(Masked()).sites) == 1
