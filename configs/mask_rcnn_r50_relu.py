_base_ = './_base_/mask_rcnn_r50_scratch.py'
