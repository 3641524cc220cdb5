"""ACON paper's schedule for ResNets on ImageNet (arXiv 2009.04759, Sec. 4.1).

600k iterations of 8 x 32 images, learning rate from 0.1 linearly to 0, weight
decay 1e-4. Data and optimizer are MMPretrain's.
"""
_base_ = [
    'mmpretrain::_base_/datasets/imagenet_bs32.py',
    'mmpretrain::_base_/schedules/imagenet_bs256.py',
    'mmpretrain::_base_/default_runtime.py'
]

train_cfg = dict(
    _delete_=True,
    type='IterBasedTrainLoop',
    max_iters=600000,
    val_interval=50000)
param_scheduler = [dict(type='PolyLR', power=1, eta_min=0, by_epoch=False)]
train_dataloader = dict(sampler=dict(type='InfiniteSampler'))

default_hooks = dict(
    checkpoint=dict(by_epoch=False, interval=50000, max_keep_ckpts=3))
log_processor = dict(by_epoch=False)
