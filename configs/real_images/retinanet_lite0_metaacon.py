_base_ = './_base_/retinanet_lite0.py'

# meta-ACON starts as a Swish, whatever it stands for: it loses much of what
# the weights have learnt, and is here to show how much.
model = dict(
    backbone=dict(
        type='SwapActivations',
        backbone='EfficientNetLite',
        swap=dict(act_cfg=dict(type='MetaACON'), replace='ReLU6')))
optim_wrapper = dict(constructor='ActivationOptimWrapperConstructor')
