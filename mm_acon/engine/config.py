"""What version 0.1 had here is in mm_acon.cli and mm_acon.swap.config."""
from importlib import import_module


def __getattr__(name: str):
    # Looked up late: the tools import this room.
    for module in map(import_module, ('mm_acon.cli', 'mm_acon.swap.config')):
        if hasattr(module, name):
            return getattr(module, name)
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
