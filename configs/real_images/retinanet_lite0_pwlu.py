_base_ = './_base_/retinanet_lite0.py'

# A fresh PWLU is the ReLU6 that it stands for, and keeps the network.
model = dict(
    backbone=dict(
        type='SwapActivations',
        backbone='EfficientNetLite',
        swap=dict(act_cfg=dict(type='PWLU'), replace='ReLU6')))
optim_wrapper = dict(constructor='ActivationOptimWrapperConstructor')
custom_hooks = [dict(type='PWLURealignHook', phase1_epochs=1)]
