"""Builds mm_acon._ext; everything else stands in pyproject.toml.

MM_ACON_WITH_OPS=0 builds without: the operators then run in plain PyTorch.
"""
import os
from pathlib import Path

from setuptools import setup


def arguments():
    if os.getenv('MM_ACON_WITH_OPS', '1') == '0':
        return {}
    from torch.utils.cpp_extension import BuildExtension, CppExtension

    # Relative to this file, as setuptools wants paths.
    csrc = Path('mm_acon/ops/csrc')
    sources = sorted([*csrc.glob('*.cpp'), *csrc.glob('cpu/*.cpp')])
    # No errno and no traps, so that loops become vector code. OpenMP for
    # at::parallel_for, when compiling only: linked, it would bring a second
    # OpenMP library beside torch's, whose threads get in each other's way.
    flags = [
        '-O3', '-g0', '-fno-math-errno', '-fno-trapping-math', '-fopenmp',
        '-fvisibility=hidden'
    ]
    extension = CppExtension(
        'mm_acon._ext', [str(source) for source in sources],
        extra_compile_args=dict(cxx=flags))
    return dict(
        ext_modules=[extension], cmdclass=dict(build_ext=BuildExtension))


setup(**arguments())
