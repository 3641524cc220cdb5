_base_ = ['mmpretrain::_base_/models/resnet18.py', './_base_/imagenet_600k.py']

custom_imports = dict(imports=['mm_acon'])

model = dict(
    backbone=dict(
        type='SwapActivations',
        backbone='ResNet',
        swap=dict(act_cfg=dict(type='ACON'), include=r'\.conv[12]$')))
optim_wrapper = dict(constructor='ActivationOptimWrapperConstructor')
