_base_ = ['mmpretrain::_base_/models/resnet18.py', './_base_/imagenet_100e.py']

custom_imports = dict(imports=['mm_acon'])

model = dict(
    backbone=dict(
        type='SwapActivations',
        backbone='ResNet',
        swap=dict(act_cfg=dict(type='PWLU'))))
optim_wrapper = dict(constructor='ActivationOptimWrapperConstructor')
custom_hooks = [dict(type='PWLURealignHook', phase1_epochs=5)]
