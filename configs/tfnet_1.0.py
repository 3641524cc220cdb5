_base_ = './_base_/imagenet_300k.py'

custom_imports = dict(imports=['mm_acon'])

model = dict(
    type='ImageClassifier',
    backbone=dict(type='TFNet', widen_factor=1.0),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(
        type='LinearClsHead',
        num_classes=1000,
        in_channels=1024,
        loss=dict(type='LabelSmoothLoss', label_smooth_val=0.1)))

# TFNet alone is trained with a cosine schedule (Sec. 4.2).
param_scheduler = [dict(type='CosineAnnealingLR', eta_min=0, by_epoch=False)]
