_base_ = './shufflenetv2_0.5x_acon.py'

# Above 0.5x the first block of the paper's network differs from MMPretrain's.
model = dict(backbone=dict(backbone='MegviiShuffleNetV2', widen_factor=1.5))
