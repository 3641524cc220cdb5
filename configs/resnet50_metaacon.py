_base_ = './resnet50_acon.py'

model = dict(backbone=dict(swap=dict(act_cfg=dict(type='MetaACON'))))
