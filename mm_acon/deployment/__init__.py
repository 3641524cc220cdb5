from .export import compare_onnx, count_operators, export_onnx
from .fold import fold_activations

__all__ = [
    'compare_onnx', 'count_operators', 'export_onnx', 'fold_activations'
]
