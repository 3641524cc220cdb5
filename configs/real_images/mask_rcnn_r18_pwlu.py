_base_ = './_base_/mask_rcnn_r18.py'

model = dict(
    backbone=dict(
        type='SwapActivations',
        backbone='ResNet',
        swap=dict(act_cfg=dict(type='PWLU'))))
optim_wrapper = dict(constructor='ActivationOptimWrapperConstructor')
custom_hooks = [dict(type='PWLURealignHook', phase1_epochs=1)]
