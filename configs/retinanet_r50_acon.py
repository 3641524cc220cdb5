_base_ = './_base_/retinanet_r50_600px.py'

custom_imports = dict(imports=['mm_acon'])

model = dict(
    backbone=dict(
        type='SwapActivations',
        backbone='ResNet',
        # The frozen stage too: the checkpoint was trained with it.
        swap=dict(
            act_cfg=dict(type='ACON'), include=r'\.conv2$', frozen='swap'),
        # Trained on ImageNet with this activation; README.md says how.
        init_cfg=dict(
            type='Pretrained',
            checkpoint='checkpoints/resnet50_acon_imagenet.pth',
            prefix='backbone.')))
optim_wrapper = dict(constructor='ActivationOptimWrapperConstructor')
