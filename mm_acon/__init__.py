"""Learnable activations for OpenMMLab.

Importing the package registers everything in mmengine's root registries.
"""
from .activations import (ACONA, ACONB, ACONC, APL, PAU, PWLU, ACONFReLU,
                          FReLU, LearnableActivation, MetaACON)
from .engine import (ActivationOptimWrapperConstructor, ClassCountHook,
                     PWLURealignHook, SafeCheckpointHook,
                     allow_mmengine_checkpoints, allow_package_configs,
                     register_costs)
from .models import MobileNetV1, SENet154, TFNet
from .swap import SwapReport, swap_activations

allow_mmengine_checkpoints()
allow_package_configs()
register_costs()

__version__ = '0.1.0'
__all__ = [
    'ACONA', 'ACONB', 'ACONC', 'ACONFReLU', 'APL',
    'ActivationOptimWrapperConstructor', 'ClassCountHook', 'FReLU',
    'LearnableActivation', 'MetaACON', 'MobileNetV1', 'PAU', 'PWLU',
    'PWLURealignHook', 'SENet154', 'SafeCheckpointHook', 'SwapReport', 'TFNet',
    'swap_activations'
]
