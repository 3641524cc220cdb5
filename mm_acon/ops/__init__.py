from .acon import acon, acon_reference
from .extension import use_reference
from .pwlu import inference_table, pwlu, pwlu_reference, pwlu_table
from .spatial_mean import spatial_mean

__all__ = [
    'acon', 'acon_reference', 'inference_table', 'pwlu', 'pwlu_reference',
    'pwlu_table', 'spatial_mean', 'use_reference'
]
