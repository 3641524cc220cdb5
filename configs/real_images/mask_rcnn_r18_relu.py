_base_ = './_base_/mask_rcnn_r18.py'
