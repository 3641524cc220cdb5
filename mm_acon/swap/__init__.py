from .report import SwapReport, SwapRow
from .swap import swap_activations

__all__ = ['SwapReport', 'SwapRow', 'swap_activations']
