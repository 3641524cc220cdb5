"""A copy of the package whose CPU operators are the CUDA kernels, emulated."""
import os
import shutil
import subprocess
import sysconfig
from pathlib import Path

import torch
from torch.utils import cpp_extension

from tests.helpers.cache import made_once

ROOT = Path(__file__).parents[2]
CSRC = ROOT / 'mm_acon/ops/csrc'
SOURCES = sorted((CSRC / 'cuda').glob('*.cu'))
# The CPU's own are in none of it.
HEADERS = sorted([*CSRC.glob('*.h'), *(CSRC / 'cuda').glob('*.cuh')])
INCLUDES = [f'-I{path}' for path in cpp_extension.include_paths()]
# A header that torch makes when it is built with CUDA may be missing.
DEFINES = [
    '-std=c++20', '-DC10_USING_CUSTOM_GENERATED_MACROS',
    f'-D_GLIBCXX_USE_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}'
]


def call(*command, **options):
    """What a command prints; it has to end with 0."""
    done = subprocess.run(
        list(map(str, command)),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        **options)
    assert done.returncode == 0, done.stdout[-5000:]
    return done.stdout


def emulate(copy: Path) -> None:
    """Writes mm_acon, its emulated operators and the tests to a folder."""
    for folder in ('mm_acon', 'tests'):
        shutil.copytree(
            ROOT / folder,
            copy / folder,
            ignore=shutil.ignore_patterns('_ext*', 'csrc', '.mim',
                                          '__pycache__'))
    emulation = ROOT / 'tests/test_ops/cuda_emulation'
    library = '_ext' + sysconfig.get_config_var('EXT_SUFFIX')
    # Fortified, longjmp takes a change of stacks for an error.
    options = '-O1 -w -shared -fPIC -U_FORTIFY_SOURCE'
    compiler, flags = os.getenv('CXX', 'c++'), [*DEFINES, *options.split()]

    def compile(folder):
        call(compiler, *flags, *INCLUDES, '-include',
             emulation / 'runtime.cuh', emulation / 'emulated.cpp', '-o',
             folder / library,
             *(f'-L{path}' for path in cpp_extension.library_paths()),
             '-ltorch_cpu', '-ltorch', '-lc10')

    made = made_once('emulated', [
        call(compiler, '--version'), torch.__version__, library, *flags,
        *sorted(emulation.glob('*.*')), *SOURCES, *HEADERS,
        *sorted(CSRC.glob('*.cpp'))
    ], compile)
    shutil.copy(made / library, copy / 'mm_acon')
