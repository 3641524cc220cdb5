from .files import SafeCheckpointHook
from .guard import allow_mmengine_checkpoints, guarded

__all__ = ['SafeCheckpointHook', 'allow_mmengine_checkpoints', 'guarded']
