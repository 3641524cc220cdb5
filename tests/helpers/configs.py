"""A config as small as can be."""
from mmengine.config import Config


def config(**kwargs):
    settings = dict(
        model=dict(
            type='FCOS',
            backbone=dict(type='ResNet', depth=50, act_cfg=dict(type='A')),
            neck=dict(type='FPN')),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.1)),
        train_cfg=dict(by_epoch=True, max_epochs=12))
    settings.update(kwargs)
    return Config(settings)
