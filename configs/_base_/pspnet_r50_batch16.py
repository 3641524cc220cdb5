"""PSPNet in the setting of the ACON paper (arXiv 2009.04759, Sec. 4.3).

The backbone is the plain ResNet-50 (MMSegmentation's r50b), not ResNetV1c,
MMSegmentation's usual one with a stem of three convolutions: the 25.5M
parameters of the paper's Table 10 are the plain one's, and one pretrained
checkpoint then serves RetinaNet and PSPNet. The paper gives neither crop nor
number of iterations; they are MMSegmentation's, 512x1024 and 80k.
"""
_base_ = 'mmseg::pspnet/pspnet_r50b-d8_4xb2-80k_cityscapes-512x1024.py'

model = dict(backbone=dict(frozen_stages=-1, norm_eval=False))

optim_wrapper = dict(optimizer=dict(lr=0.01, weight_decay=1e-4))
# Down to 0, without MMSegmentation's floor of 1e-4: the plain poly policy.
param_scheduler = [
    dict(
        type='PolyLR',
        eta_min=0,
        power=0.9,
        begin=0,
        end=80000,
        by_epoch=False)
]

# A batch of 16 is 8 GPUs x 2 images.
train_dataloader = dict(batch_size=2)
auto_scale_lr = dict(enable=False, base_batch_size=16)
