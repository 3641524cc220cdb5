_base_ = './resnet50_metaacon.py'

model = dict(backbone=dict(depth=152))
