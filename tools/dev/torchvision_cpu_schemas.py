"""Lets a CUDA build of torchvision import beside a CPU build of torch.

``setup_env.sh`` copies this file into the virtual environment when it finds
that combination. Importing it costs nothing: it only puts a finder in front
that acts when torchvision is first imported and then takes itself away.
"""
import sys
from importlib.abc import MetaPathFinder

# torchvision registers Meta kernels for these in Python although the C++
# library that defines them could not be loaded.
_SCHEMAS = ('nms', 'qnms')


class _DeclareOperators(MetaPathFinder):

    def find_spec(self, fullname, path=None, target=None):
        if fullname == 'torchvision':
            sys.meta_path.remove(self)
            import torch
            library = torch.library.Library('torchvision', 'FRAGMENT')
            for name in _SCHEMAS:
                library.define(f'{name}(Tensor dets, Tensor scores, '
                               'float iou_threshold) -> Tensor')
            # The schemas live as long as the library object.
            self.__class__.library = library
        return None


sys.meta_path.insert(0, _DeclareOperators())
