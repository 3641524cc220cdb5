from .acon import ACONA, ACONB, ACONC
from .apl import APL
from .base import LearnableActivation, keep_start
from .dy_relu import build_dy_relu
from .frelu import ACONFReLU, FReLU
from .meta_acon import MetaACON
from .pau import PAU
from .pwlu import PWLU

__all__ = [
    'ACONA', 'ACONB', 'ACONC', 'ACONFReLU', 'APL', 'FReLU',
    'LearnableActivation', 'MetaACON', 'PAU', 'PWLU', 'build_dy_relu',
    'keep_start'
]
