_base_ = ['mmpretrain::_base_/models/resnet50.py', './_base_/imagenet_600k.py']

custom_imports = dict(imports=['mm_acon'])

model = dict(
    backbone=dict(
        type='SwapActivations',
        backbone='ResNet',
        # The paper's 3.9G: stride in the first 1x1 convolution.
        style='caffe',
        swap=dict(act_cfg=dict(type='ACON'), include=r'\.conv2$')))
optim_wrapper = dict(constructor='ActivationOptimWrapperConstructor')
