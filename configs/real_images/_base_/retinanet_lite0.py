"""RetinaNet on blood cells, from EfficientNet-Lite0's ImageNet weights.

docs/real_images.md says where they come from. BatchNorm learns, so that an
activation that changes what the network computes can be trained too.
"""
_base_ = [
    'mmdet::_base_/models/retinanet_r50_fpn.py', './runtime_det.py',
    './bccd.py', './schedule_6e.py'
]

custom_imports = dict(imports=['mm_acon'])

model = dict(
    data_preprocessor=dict(mean=[127] * 3, std=[128] * 3),
    backbone=dict(
        _delete_=True,
        type='EfficientNetLite',
        out_indices=(2, 3, 4),
        init_cfg=dict(
            type='Pretrained',
            checkpoint='checkpoints/efficientnet_lite0_imagenet.pth',
            prefix='backbone.')),
    neck=dict(
        in_channels=[40, 112, 320], out_channels=64, start_level=0,
        num_outs=4),
    bbox_head=dict(
        num_classes=3,
        in_channels=64,
        feat_channels=64,
        stacked_convs=2,
        # From 24 pixels: platelets are 20 to 30 of them wide, at half size.
        anchor_generator=dict(octave_base_scale=3, strides=[8, 16, 32, 64])))
