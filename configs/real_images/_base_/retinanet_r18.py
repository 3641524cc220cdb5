"""RetinaNet on cell nuclei from scratch, the PWLU paper's setting in small.

A ResNet-18 of a quarter of its width with GroupNorm everywhere, as
configs/_base_/retinanet_r50_scratch.py has it.
"""
_base_ = [
    'mmdet::_base_/models/retinanet_r50_fpn.py', './runtime_det.py',
    './nuclei_instances.py', './schedule_6e.py'
]

custom_imports = dict(imports=['mm_acon'])

norm_cfg = dict(type='GN', num_groups=8, requires_grad=True)
model = dict(
    backbone=dict(
        depth=18,
        base_channels=16,
        frozen_stages=-1,
        norm_eval=False,
        zero_init_residual=False,
        norm_cfg=norm_cfg,
        init_cfg=None),
    neck=dict(
        in_channels=[16, 32, 64, 128],
        out_channels=32,
        start_level=0,
        num_outs=4,
        norm_cfg=norm_cfg),
    bbox_head=dict(
        num_classes=1,
        in_channels=32,
        feat_channels=32,
        stacked_convs=2,
        norm_cfg=norm_cfg,
        # From 8 pixels: half of the nuclei are narrower than 12.
        anchor_generator=dict(octave_base_scale=2, strides=[4, 8, 16, 32])))
