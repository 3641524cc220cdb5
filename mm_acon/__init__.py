"""Learnable activations for OpenMMLab.

Importing the package registers everything in mmengine's root registries.
"""
from .activations import (ACONA, ACONB, ACONC, PWLU, ACONFReLU, FReLU,
                          LearnableActivation, MetaACON)
from .swap import SwapReport, swap_activations

__version__ = '0.1.0'
__all__ = [
    'ACONA', 'ACONB', 'ACONC', 'ACONFReLU', 'FReLU', 'LearnableActivation',
    'MetaACON', 'PWLU', 'SwapReport', 'swap_activations'
]
