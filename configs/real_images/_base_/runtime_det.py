"""A checkpoint after each epoch, so that a run goes on where it was stopped."""
_base_ = 'mmdet::_base_/default_runtime.py'

default_hooks = dict(
    logger=dict(interval=10), checkpoint=dict(max_keep_ckpts=1))
