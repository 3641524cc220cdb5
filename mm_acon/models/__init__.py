from .efficientnet_lite import EfficientNetLite
from .mobilenet_v1 import MobileNetV1
from .senet import SENet154
from .shufflenet_v2 import build_megvii_shufflenet_v2
from .tfnet import TFNet

__all__ = [
    'EfficientNetLite', 'MobileNetV1', 'SENet154', 'TFNet',
    'build_megvii_shufflenet_v2'
]
