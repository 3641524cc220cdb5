from .activation_setup_hook import ActivationSetupHook
from .activation_vis_hook import ActivationVisHook
from .class_count_hook import ClassCountHook
from .optim_wrapper_constructor import ActivationOptimWrapperConstructor
from .pwlu_realign_hook import PWLURealignHook
from .widths import find_widths

__all__ = [
    'ActivationOptimWrapperConstructor', 'ActivationSetupHook',
    'ActivationVisHook', 'ClassCountHook', 'PWLURealignHook', 'find_widths'
]
