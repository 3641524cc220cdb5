_base_ = [
    'mmpretrain::_base_/models/efficientnet_b0.py', './_base_/imagenet_100e.py'
]

custom_imports = dict(imports=['mm_acon'])

model = dict(
    backbone=dict(
        type='SwapActivations',
        backbone='EfficientNet',
        swap=dict(act_cfg=dict(type='PWLU'), replace='Swish')))
optim_wrapper = dict(
    constructor='ActivationOptimWrapperConstructor',
    optimizer=dict(weight_decay=1e-5))
train_cfg = dict(max_epochs=350)
custom_hooks = [dict(type='PWLURealignHook', phase1_epochs=5)]

# Its own crops, and AutoAugment.
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='EfficientNetRandomCrop', scale=224),
    dict(type='RandomFlip', prob=0.5, direction='horizontal'),
    dict(
        type='AutoAugment',
        policies='imagenet',
        hparams=dict(pad_val=[104, 116, 124], interpolation='bicubic')),
    dict(type='PackInputs')
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='EfficientNetCenterCrop', crop_size=224),
    dict(type='PackInputs')
]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
