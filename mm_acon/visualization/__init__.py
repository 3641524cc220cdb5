from .snapshot import (Observer, Snapshot, choose_layers, curve_activations,
                       scalars)

__all__ = [
    'Observer', 'Snapshot', 'choose_layers', 'curve_activations', 'scalars'
]
