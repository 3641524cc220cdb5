"""Learnable activations for OpenMMLab.

Importing the package registers everything in mmengine's root registries.
"""
from .activations import (ACONA, ACONB, ACONC, PWLU, ACONFReLU, FReLU,
                          LearnableActivation, MetaACON)
from .engine import (ActivationOptimWrapperConstructor, PWLURealignHook,
                     allow_mmengine_checkpoints, register_costs)
from .swap import SwapReport, swap_activations

allow_mmengine_checkpoints()
register_costs()

__version__ = '0.1.0'
__all__ = [
    'ACONA', 'ACONB', 'ACONC', 'ACONFReLU',
    'ActivationOptimWrapperConstructor', 'FReLU', 'LearnableActivation',
    'MetaACON', 'PWLU', 'PWLURealignHook', 'SwapReport', 'swap_activations'
]
