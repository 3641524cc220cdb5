"""Schedule of the PWLU paper on COCO (arXiv 2104.03693, Sec. 4.2).

270k iterations of 8 x 2 images at learning rate 0.02, which falls to a tenth
60k and 20k iterations before the end. Learning rate, momentum 0.9 and weight
decay 1e-4 are those of MMDetection's schedule, as is the warm-up of 500
iterations, on which the paper is silent.
"""
_base_ = [
    'mmdet::_base_/schedules/schedule_1x.py',
    'mmdet::_base_/default_runtime.py'
]

train_cfg = dict(
    _delete_=True,
    type='IterBasedTrainLoop',
    max_iters=270000,
    val_interval=30000)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.001, by_epoch=False, end=500),
    dict(
        type='MultiStepLR',
        by_epoch=False,
        milestones=[210000, 250000],
        gamma=0.1)
]
# GroupNorm's scales and shifts are not decayed, as in MMDetection's configs
# for training from scratch.
optim_wrapper = dict(paramwise_cfg=dict(norm_decay_mult=0.))

default_hooks = dict(
    checkpoint=dict(by_epoch=False, interval=30000, max_keep_ckpts=3))
log_processor = dict(by_epoch=False)
