"""ACON paper's schedule for light networks (arXiv 2009.04759, Sec. 4.1).

It is the one of ShuffleNetV2: 300k iterations of 16 x 64 images, learning
rate from 0.5 linearly to 0, weight decay 4e-5 and none for norms. Data and
optimizer are MMPretrain's for ShuffleNetV2, whose warm-up is left out.
"""
_base_ = [
    'mmpretrain::_base_/datasets/imagenet_bs64_pil_resize.py',
    'mmpretrain::_base_/schedules/imagenet_bs1024_linearlr_bn_nowd.py',
    'mmpretrain::_base_/default_runtime.py'
]

train_cfg = dict(
    _delete_=True,
    type='IterBasedTrainLoop',
    max_iters=300000,
    val_interval=10000)
param_scheduler = [dict(type='PolyLR', power=1, eta_min=0, by_epoch=False)]
train_dataloader = dict(sampler=dict(type='InfiniteSampler'))

default_hooks = dict(
    checkpoint=dict(by_epoch=False, interval=10000, max_keep_ckpts=3))
log_processor = dict(by_epoch=False)
