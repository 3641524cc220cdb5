"""RetinaNet from scratch with ReLU, the baseline of the PWLU paper's Table 3.

Complete: it can be trained itself. Nothing is pretrained, so nothing is
frozen and every layer is normalised. GroupNorm, because the statistics of 2
images are too poor for BatchNorm, and because the convolutions of the head
run on five pyramid levels, whose statistics SyncBN would mix.
"""
_base_ = [
    'mmdet::_base_/models/retinanet_r50_fpn.py',
    'mmdet::_base_/datasets/coco_detection.py', './scratch_270k.py'
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
    bbox_head=dict(norm_cfg=norm_cfg))
train_dataloader = dict(sampler=dict(type='InfiniteSampler'))
