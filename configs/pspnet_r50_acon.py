_base_ = './_base_/pspnet_r50_batch16.py'

custom_imports = dict(imports=['mm_acon'])

model = dict(
    pretrained=None,
    backbone=dict(
        type='SwapActivations',
        backbone='ResNet',
        swap=dict(act_cfg=dict(type='ACON'), include=r'\.conv2$'),
        # Trained on ImageNet with this activation; README.md says how.
        init_cfg=dict(
            type='Pretrained',
            checkpoint='checkpoints/resnet50_acon_imagenet.pth',
            prefix='backbone.')))
optim_wrapper = dict(constructor='ActivationOptimWrapperConstructor')
