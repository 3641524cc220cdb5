_base_ = './resnet50_acon.py'

model = dict(backbone=dict(depth=101))
