_base_ = './resnet18_acon.py'

model = dict(backbone=dict(swap=dict(act_cfg=dict(type='MetaACON'))))
