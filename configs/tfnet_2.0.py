_base_ = './tfnet_1.0.py'

model = dict(backbone=dict(widen_factor=2.0))
