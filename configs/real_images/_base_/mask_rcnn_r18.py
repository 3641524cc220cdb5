"""Mask R-CNN on cell nuclei from scratch, the PWLU paper's setting in small.

A ResNet-18 of a quarter of its width with GroupNorm everywhere, as
configs/_base_/mask_rcnn_r50_scratch.py has it.
"""
_base_ = [
    'mmdet::_base_/models/mask-rcnn_r50_fpn.py', './runtime_det.py',
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
        num_outs=4,
        norm_cfg=norm_cfg),
    rpn_head=dict(
        in_channels=32,
        feat_channels=32,
        # From 8 pixels: half of the nuclei are narrower than 12.
        anchor_generator=dict(scales=[2, 4], strides=[4, 8, 16, 32])),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=32),
        bbox_head=dict(
            type='Shared4Conv1FCBBoxHead',
            in_channels=32,
            conv_out_channels=32,
            fc_out_channels=128,
            num_classes=1,
            norm_cfg=norm_cfg),
        mask_roi_extractor=dict(out_channels=32),
        mask_head=dict(
            num_convs=2,
            in_channels=32,
            conv_out_channels=32,
            num_classes=1,
            norm_cfg=norm_cfg)),
    train_cfg=dict(
        rpn=dict(sampler=dict(num=128)),
        rpn_proposal=dict(nms_pre=500, max_per_img=300),
        rcnn=dict(sampler=dict(num=128))),
    test_cfg=dict(rpn=dict(nms_pre=500, max_per_img=300)))

val_evaluator = dict(metric=['bbox', 'segm'])
test_evaluator = dict(metric=['bbox', 'segm'])
