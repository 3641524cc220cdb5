_base_ = './shufflenetv2_1.5x_acon.py'

model = dict(backbone=dict(swap=dict(act_cfg=dict(type='MetaACON'))))
