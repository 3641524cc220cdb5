_base_ = './_base_/pspnet_r18.py'

model = dict(
    backbone=dict(
        type='SwapActivations',
        backbone='ResNet',
        swap=dict(act_cfg=dict(type='MetaACON'), include=r'\.conv[12]$')))
optim_wrapper = dict(constructor='ActivationOptimWrapperConstructor')
