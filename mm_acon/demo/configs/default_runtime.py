# What every demo has: short, and the same at every call.
# The images are so small that worker processes would only cost time.
train_dataloader = dict(
    num_workers=0, sampler=dict(type='DefaultSampler', shuffle=True))
val_dataloader = dict(
    num_workers=0, sampler=dict(type='DefaultSampler', shuffle=False))
test_dataloader = val_dataloader
val_cfg = dict()
test_cfg = dict()

optim_wrapper = dict(optimizer=dict(type='AdamW', lr=1e-3, weight_decay=0.05))
auto_scale_lr = dict(enable=False)
default_hooks = dict(
    logger=dict(type='LoggerHook', interval=8),
    checkpoint=dict(type='CheckpointHook', max_keep_ckpts=1))
load_from = None
randomness = dict(seed=0)
