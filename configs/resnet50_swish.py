_base_ = './resnet50_acon.py'

model = dict(
    backbone=dict(swap=dict(_delete_=True, act_cfg=dict(type='SiLU'))))
