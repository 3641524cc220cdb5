_base_ = './_base_/mask_rcnn_r50_scratch.py'

custom_imports = dict(imports=['mm_acon'])

model = dict(
    backbone=dict(
        type='SwapActivations',
        backbone='ResNet',
        swap=dict(act_cfg=dict(type='SiLU'))))
