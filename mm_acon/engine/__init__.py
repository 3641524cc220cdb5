from .activation_vis_hook import ActivationVisHook
from .class_count_hook import ClassCountHook
from .optim_wrapper_constructor import ActivationOptimWrapperConstructor
from .pwlu_realign_hook import PWLURealignHook

__all__ = [
    'ActivationOptimWrapperConstructor', 'ActivationVisHook', 'ClassCountHook',
    'PWLURealignHook'
]
