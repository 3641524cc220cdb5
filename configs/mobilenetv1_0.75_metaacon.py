_base_ = './mobilenetv1_0.25_metaacon.py'

model = dict(backbone=dict(widen_factor=0.75), head=dict(in_channels=768))
