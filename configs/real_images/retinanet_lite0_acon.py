_base_ = './_base_/retinanet_lite0.py'

# As near to ReLU as ACON starts. ReLU6 is bounded and no ACON is, so what lies
# above 6 changes.
model = dict(
    backbone=dict(
        type='SwapActivations',
        backbone='EfficientNetLite',
        swap=dict(act_cfg=dict(type='ACON', beta_init=100.), replace='ReLU6')))
optim_wrapper = dict(constructor='ActivationOptimWrapperConstructor')
