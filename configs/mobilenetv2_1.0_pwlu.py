_base_ = [
    'mmpretrain::_base_/models/mobilenet_v2_1x.py', './_base_/imagenet_100e.py'
]

custom_imports = dict(imports=['mm_acon'])

model = dict(
    backbone=dict(
        type='SwapActivations',
        backbone='MobileNetV2',
        swap=dict(act_cfg=dict(type='PWLU'), replace='ReLU6')))
optim_wrapper = dict(
    constructor='ActivationOptimWrapperConstructor',
    optimizer=dict(weight_decay=4e-5))
train_cfg = dict(max_epochs=200)
custom_hooks = [dict(type='PWLURealignHook', phase1_epochs=5)]
