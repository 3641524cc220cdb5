"""PWLU paper's schedule on ImageNet (arXiv 2104.03693, Sec. 4.1).

100 epochs of 16 x 64 images, one cosine cycle, SGD with momentum 0.9, weight
decay 1e-4, random crop and flip. The networks that the paper trains for longer
or with another decay say so in their own config.
"""
_base_ = [
    'mmpretrain::_base_/datasets/imagenet_bs64.py',
    'mmpretrain::_base_/schedules/imagenet_bs1024_coslr.py',
    'mmpretrain::_base_/default_runtime.py'
]

# The paper names no learning rate: 0.1 for 256 images, scaled to 1024, with
# the warm-up of 5 epochs that goes with it.
optim_wrapper = dict(optimizer=dict(lr=0.4, weight_decay=1e-4))
# They end with the training, however long it is.
param_scheduler = [
    dict(
        type='LinearLR',
        start_factor=0.1,
        by_epoch=True,
        end=5,
        convert_to_iter_based=True),
    dict(
        type='CosineAnnealingLR',
        by_epoch=True,
        begin=5,
        convert_to_iter_based=True)
]
default_hooks = dict(checkpoint=dict(max_keep_ckpts=3))
