_base_ = './_base_/retinanet_r18.py'
