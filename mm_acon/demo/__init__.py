from .demo import demo_config
from .shapes import (SHAPES, write_cityscapes_shapes, write_coco_shapes,
                     write_imagenet_shapes)

__all__ = [
    'SHAPES', 'demo_config', 'write_cityscapes_shapes', 'write_coco_shapes',
    'write_imagenet_shapes'
]
