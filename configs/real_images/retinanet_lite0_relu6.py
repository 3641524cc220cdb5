_base_ = './_base_/retinanet_lite0.py'
