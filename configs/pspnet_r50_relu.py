_base_ = './_base_/pspnet_r50_batch16.py'
