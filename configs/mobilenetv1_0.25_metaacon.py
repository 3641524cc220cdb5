_base_ = './_base_/imagenet_300k.py'

custom_imports = dict(imports=['mm_acon'])

model = dict(
    type='ImageClassifier',
    backbone=dict(
        type='SwapActivations',
        backbone='MobileNetV1',
        widen_factor=0.25,
        swap=dict(act_cfg=dict(type='MetaACON'))),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(
        type='LinearClsHead',
        num_classes=1000,
        in_channels=256,
        loss=dict(type='LabelSmoothLoss', label_smooth_val=0.1)))
optim_wrapper = dict(constructor='ActivationOptimWrapperConstructor')
