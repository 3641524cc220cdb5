_base_ = './_base_/imagenet_600k.py'

custom_imports = dict(imports=['mm_acon'])

model = dict(
    type='ImageClassifier',
    backbone=dict(
        type='SwapActivations',
        backbone='SENet154',
        swap=dict(act_cfg=dict(type='ACON'))),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(
        type='LinearClsHead',
        num_classes=1000,
        in_channels=2048,
        loss=dict(type='CrossEntropyLoss')))
optim_wrapper = dict(constructor='ActivationOptimWrapperConstructor')
