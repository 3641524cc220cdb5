_base_ = [
    'mmpretrain::_base_/models/mobilenet_v2_1x.py', './_base_/imagenet_300k.py'
]

custom_imports = dict(imports=['mm_acon'])

model = dict(
    backbone=dict(
        type='SwapActivations',
        backbone='MobileNetV2',
        swap=dict(act_cfg=dict(type='MetaACON'), replace='ReLU6')),
    head=dict(loss=dict(type='LabelSmoothLoss', label_smooth_val=0.1)))
optim_wrapper = dict(constructor='ActivationOptimWrapperConstructor')
