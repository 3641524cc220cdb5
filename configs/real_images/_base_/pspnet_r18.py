"""PSPNet on cell nuclei from scratch, a ResNet-18 of a quarter of its width.

Borders are thin: the features have an eighth of the image's size. Ground is
92 % of all pixels; without weights a ReLU network calls everything ground.
"""
_base_ = [
    'mmseg::_base_/models/pspnet_r50-d8.py',
    'mmseg::_base_/default_runtime.py', './nuclei_semantic.py',
    './schedule_6e.py'
]

custom_imports = dict(imports=['mm_acon'])

norm_cfg = dict(type='BN', requires_grad=True)
class_weight = [0.4, 2., 4.]
model = dict(
    pretrained=None,
    # What is added to a smaller image is ground: MMSegmentation's weights of
    # classes take no ignored pixels.
    data_preprocessor=dict(size=(256, 256), seg_pad_val=0),
    backbone=dict(
        type='ResNet',
        depth=18,
        stem_channels=16,
        base_channels=16,
        norm_cfg=norm_cfg),
    decode_head=dict(
        in_channels=128,
        channels=32,
        num_classes=3,
        norm_cfg=norm_cfg,
        loss_decode=dict(class_weight=class_weight)),
    auxiliary_head=dict(
        in_channels=64,
        channels=16,
        num_classes=3,
        norm_cfg=norm_cfg,
        loss_decode=dict(class_weight=class_weight)))

# As in runtime_det.py; mmseg has no hooks in its own.
default_hooks = dict(
    timer=dict(type='IterTimerHook'),
    logger=dict(type='LoggerHook', interval=10),
    param_scheduler=dict(type='ParamSchedulerHook'),
    checkpoint=dict(type='CheckpointHook', interval=1, max_keep_ckpts=1),
    sampler_seed=dict(type='DistSamplerSeedHook'),
    visualization=dict(type='SegVisualizationHook'))
log_processor = dict(by_epoch=True)
