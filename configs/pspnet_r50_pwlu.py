_base_ = './_base_/pspnet_r50_batch16.py'

custom_imports = dict(imports=['mm_acon'])

# A fresh PWLU is ReLU, so the pretrained ReLU backbone of the base serves.
model = dict(
    backbone=dict(
        type='SwapActivations',
        backbone='ResNet',
        swap=dict(act_cfg=dict(type='PWLU', num_intervals=16))))
optim_wrapper = dict(constructor='ActivationOptimWrapperConstructor')

# Phase I lasts 930 iterations: 5 times the 186 batches of 16 that hold the
# 2,975 training images.
custom_hooks = [dict(type='PWLURealignHook', phase1_epochs=5)]
