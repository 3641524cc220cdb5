_base_ = './_base_/retinanet_r50_scratch.py'

custom_imports = dict(imports=['mm_acon'])

model = dict(
    backbone=dict(
        type='SwapActivations',
        backbone='ResNet',
        swap=dict(act_cfg=dict(type='PWLU', num_intervals=16))))
optim_wrapper = dict(constructor='ActivationOptimWrapperConstructor')

# Phase I lasts 36,650 iterations: 5 times the 7,330 batches of 16 that hold
# the 117,266 training images with objects.
custom_hooks = [dict(type='PWLURealignHook', phase1_epochs=5)]
