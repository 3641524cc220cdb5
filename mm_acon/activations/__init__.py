from .acon import ACONA, ACONB, ACONC
from .base import LearnableActivation
from .frelu import ACONFReLU, FReLU
from .meta_acon import MetaACON
from .pwlu import PWLU

__all__ = [
    'ACONA', 'ACONB', 'ACONC', 'ACONFReLU', 'FReLU', 'LearnableActivation',
    'MetaACON', 'PWLU'
]
