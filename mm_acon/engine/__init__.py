from .activation_vis_hook import ActivationVisHook
from .checkpoint import SafeCheckpointHook, allow_mmengine_checkpoints
from .class_count_hook import ClassCountHook
from .complexity import register_costs
from .optim_wrapper_constructor import ActivationOptimWrapperConstructor
from .package_configs import allow_package_configs
from .pwlu_realign_hook import PWLURealignHook

__all__ = [
    'ActivationOptimWrapperConstructor', 'ActivationVisHook', 'ClassCountHook',
    'PWLURealignHook', 'SafeCheckpointHook', 'allow_mmengine_checkpoints',
    'allow_package_configs', 'register_costs'
]
