"""RetinaNet in the setting of the ACON paper (arXiv 2009.04759, Sec. 4.3).

COCO's train2017 and val2017 are the paper's trainval35k and minival. Weight
decay 1e-4, momentum 0.9, nine anchors (3 scales, 3 ratios) and 2 images per
GPU are what MMDetection has already.
"""
_base_ = 'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py'

# Shorter side 600. The paper gives no limit for the longer one; 1000 keeps
# the proportion of 1333 to 800.
train_pipeline = _base_.train_pipeline
train_pipeline[2].scale = (1000, 600)
test_pipeline = _base_.test_pipeline
test_pipeline[1].scale = (1000, 600)
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader

# The paper does not say what it froze; these are MMDetection's own values,
# spelled out because they decide what happens to activations of stage 1.
model = dict(backbone=dict(frozen_stages=1, norm_eval=True))

# A batch of 2 is either 2 images in all or 2 per GPU, and the paper names no
# learning rate. Scaling 0.01 for 16 images to the actual batch serves both:
# 0.00125 on one GPU, 0.01 on eight.
auto_scale_lr = dict(enable=True)
