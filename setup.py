"""Builds mm_acon._ext and links mm_acon/.mim; the rest is in pyproject.toml.

MM_ACON_WITH_OPS=0 builds without: the operators then run in plain PyTorch.
CUDA kernels are built where torch sees a GPU and finds nvcc, elsewhere with
FORCE_CUDA=1 and, for example, TORCH_CUDA_ARCH_LIST='8.0;9.0'.
"""
import os
import shlex
import shutil
import sys
from pathlib import Path

import setuptools

# First of all: an older one ignores [project] in pyproject.toml, builds a
# package without name and version, and says nothing.
if int(setuptools.__version__.split('.')[0]) < 61:
    raise SystemExit(
        'mm_acon needs setuptools 61 or newer, and '
        f'{sys.executable} has {setuptools.__version__}: '
        "python -m pip install --upgrade 'setuptools>=61,<82' (mmcv needs one "
        'below 82), or install mm_acon without --no-build-isolation.')


def with_cuda():
    import torch
    from torch.utils.cpp_extension import CUDA_HOME
    if os.getenv('FORCE_CUDA', '0') != '1':
        return torch.cuda.is_available() and CUDA_HOME is not None
    if torch.version.cuda is None:
        raise SystemExit(
            'FORCE_CUDA=1 needs a torch that was built with CUDA, and this '
            f'is {torch.__version__}: install one, or unset FORCE_CUDA.')
    if not (torch.cuda.is_available() or os.getenv('TORCH_CUDA_ARCH_LIST')):
        raise SystemExit(
            'FORCE_CUDA=1 without a GPU does not know what to build for: '
            "write TORCH_CUDA_ARCH_LIST='8.0;9.0' or the like.")
    return True


def arguments():
    if os.getenv('MM_ACON_WITH_OPS', '1') == '0':
        return {}
    from torch.utils.cpp_extension import (BuildExtension, CppExtension,
                                           CUDAExtension)

    class BuildOperators(BuildExtension):

        def run(self):
            compiler = os.getenv('CXX', 'c++')
            if shutil.which(shlex.split(compiler)[0]) is None:
                raise SystemExit(
                    'The operators of mm_acon are C++, and there is no '
                    f'compiler {compiler!r}: install g++, name yours '
                    'with CXX=..., or set MM_ACON_WITH_OPS=0 to build '
                    'without, which is several times slower.')
            super().run()

    # Relative to this file, as setuptools wants paths.
    csrc = Path('mm_acon/ops/csrc')
    sources = sorted([*csrc.glob('*.cpp'), *csrc.glob('cpu/*.cpp')])
    extension = CppExtension
    if with_cuda():
        sources += sorted(csrc.glob('cuda/*.cu'))
        extension = CUDAExtension
    # No errno and no traps, so that loops become vector code. OpenMP for
    # at::parallel_for, when compiling only: linked, it would bring a second
    # OpenMP library beside torch's, whose threads get in each other's way.
    flags = [
        '-O3', '-g0', '-fno-math-errno', '-fno-trapping-math', '-fopenmp',
        '-fvisibility=hidden'
    ]
    module = extension(
        'mm_acon._ext', [str(source) for source in sources],
        extra_compile_args=dict(cxx=flags, nvcc=['-O3']))
    return dict(ext_modules=[module], cmdclass=dict(build_ext=BuildOperators))


def link_mim():
    """Puts configs and tools where mim and mmengine look for them.

    A wheel gets the files, a development install has the links.
    """
    mim = Path('mm_acon/.mim')
    mim.mkdir(exist_ok=True)
    for name in ('configs', 'tools', 'model-index.yml'):
        link = mim / name
        # In an sdist that setuptools 61 made there are copies.
        if not os.path.lexists(link):
            link.symlink_to(Path('../..', name))


link_mim()
setuptools.setup(**arguments())
