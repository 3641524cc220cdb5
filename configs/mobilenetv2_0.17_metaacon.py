_base_ = './mobilenetv2_1.0_metaacon.py'

model = dict(backbone=dict(widen_factor=0.17))
