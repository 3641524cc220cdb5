from .acon import acon
from .pwlu import pwlu

__all__ = ['acon', 'pwlu']
