_base_ = [
    'mmpretrain::_base_/models/shufflenet_v2_1x.py',
    './_base_/imagenet_300k.py'
]

custom_imports = dict(imports=['mm_acon'])

model = dict(
    backbone=dict(
        type='SwapActivations',
        backbone='ShuffleNetV2',
        widen_factor=0.5,
        swap=dict(act_cfg=dict(type='ACON'))),
    head=dict(loss=dict(type='LabelSmoothLoss', label_smooth_val=0.1)))
optim_wrapper = dict(constructor='ActivationOptimWrapperConstructor')
