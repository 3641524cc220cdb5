from .report import SwapReport, SwapRow
from .swap import SwapActivations, swap_activations

__all__ = ['SwapActivations', 'SwapReport', 'SwapRow', 'swap_activations']
