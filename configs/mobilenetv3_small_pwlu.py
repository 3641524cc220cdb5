_base_ = [
    'mmpretrain::_base_/models/mobilenet_v3/mobilenet_v3_small_imagenet.py',
    './_base_/imagenet_100e.py'
]

custom_imports = dict(imports=['mm_acon'])

model = dict(
    backbone=dict(
        type='SwapActivations',
        backbone='MobileNetV3',
        swap=dict(act_cfg=dict(type='PWLU'), replace=['ReLU', 'HSwish'])))
optim_wrapper = dict(
    constructor='ActivationOptimWrapperConstructor',
    optimizer=dict(weight_decay=4e-5))
train_cfg = dict(max_epochs=350)
custom_hooks = [dict(type='PWLURealignHook', phase1_epochs=5)]
