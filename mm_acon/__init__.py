"""Learnable activations for OpenMMLab.

Importing the package registers everything in mmengine's root registries and
changes nothing else; docs/import.md lists what it adds.
"""
from importlib.util import find_spec

if find_spec('mmengine') is None:
    raise ImportError(
        'mm_acon needs mmengine, and there is none. Two packages bring it, '
        'and only one of them can be installed: pip install mmengine, the '
        'official one, or pip install onedl-mmengine, the maintained fork. '
        'The extras mm_acon[openmmlab] and mm_acon[onedl] bring it together '
        'with MMDetection, MMSegmentation and MMPretrain.')

from mmengine.analysis.complexity_analysis import _DEFAULT_SUPPORTED_FLOP_OPS
from mmengine.analysis.jit_handles import elementwise_flop_counter

from .activations import (ACONA, ACONB, ACONC, APL, PAU, PWLU, ACONFReLU,
                          FReLU, LearnableActivation, MetaACON)
from .adapt import adapt_mmengine
from .checkpoints import SafeCheckpointHook, allow_mmengine_checkpoints
from .engine import (ActivationOptimWrapperConstructor, ActivationSetupHook,
                     ActivationVisHook, ClassCountHook, PWLURealignHook,
                     find_widths)
from .models import EfficientNetLite, MobileNetV1, SENet154, TFNet
from .ops.extension import COSTS
from .swap import SwapActivations, SwapReport, swap_activations

allow_mmengine_checkpoints()
# mmengine's FLOP counter; the operators have told torch's.
for _name, _cost in COSTS.items():
    _DEFAULT_SUPPORTED_FLOP_OPS[f'mm_acon::{_name}'] = (
        elementwise_flop_counter(_cost, 0))

__version__ = '0.1.0'
__all__ = [
    'ACONA', 'ACONB', 'ACONC', 'ACONFReLU', 'APL',
    'ActivationOptimWrapperConstructor', 'ActivationSetupHook',
    'ActivationVisHook', 'ClassCountHook', 'FReLU', 'LearnableActivation',
    'EfficientNetLite', 'MetaACON', 'MobileNetV1', 'PAU', 'PWLU',
    'PWLURealignHook', 'SENet154', 'SafeCheckpointHook', 'SwapActivations',
    'SwapReport', 'TFNet', 'adapt_mmengine', 'allow_mmengine_checkpoints',
    'find_widths', 'swap_activations'
]
