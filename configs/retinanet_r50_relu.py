_base_ = './_base_/retinanet_r50_600px.py'
