"""Mask R-CNN from scratch: PWLU paper's setting, MMDetection's GN-all model.

The model is that of mmdet::scratch/mask-rcnn_r50-scratch_fpn_gn-all_6x_coco,
put together again because that file brings a schedule of its own.
"""
_base_ = [
    'mmdet::_base_/models/mask-rcnn_r50_fpn.py',
    'mmdet::_base_/datasets/coco_instance.py', './scratch_270k.py'
]

norm_cfg = dict(type='GN', num_groups=32, requires_grad=True)
model = dict(
    backbone=dict(
        frozen_stages=-1,
        norm_eval=False,
        zero_init_residual=False,
        norm_cfg=norm_cfg,
        init_cfg=None),
    neck=dict(norm_cfg=norm_cfg),
    roi_head=dict(
        # Four convolutions, which GroupNorm can normalise, in place of the
        # first of two fully connected layers.
        bbox_head=dict(
            type='Shared4Conv1FCBBoxHead',
            conv_out_channels=256,
            norm_cfg=norm_cfg),
        mask_head=dict(norm_cfg=norm_cfg)))
train_dataloader = dict(sampler=dict(type='InfiniteSampler'))
