_base_ = './_base_/pspnet_r18.py'
