"""The CUDA kernels on a machine without a GPU: compiled, and emulated."""
import os
import re
import shlex
import shutil
import sys

import pytest
import torch
from torch.utils import cpp_extension

from mm_acon.ops.extension import DEVICES as BUILT
from tests.helpers.cache import made_once
from tests.helpers.emulation import (DEFINES, HEADERS, INCLUDES, ROOT, SOURCES,
                                     call, emulate)
from tests.utils import needs_torch

NVCC = shutil.which('nvcc') or shutil.which(
    'nvcc', path=os.path.join(cpp_extension.CUDA_HOME or '', 'bin'))


@pytest.mark.full
@pytest.mark.skipif(not NVCC, reason='nvcc is not found')
# Of CUDA 13 the oldest, and of each family since.
@pytest.mark.parametrize('arch', ('sm_75', 'sm_80', 'sm_90', 'sm_120'))
@pytest.mark.parametrize('source', SOURCES, ids=lambda path: path.stem)
def test_compiles_for_a_gpu(source, arch, tmp_path):
    """Every kernel does without what would make it slow or unrepeatable."""
    flags = [
        *DEFINES, *cpp_extension.COMMON_NVCC_FLAGS, '-O3', f'-arch={arch}',
        '-Xptxas', '-v'
    ]

    def compile(folder):
        log = call(NVCC, *flags, *INCLUDES, '--keep', '--keep-dir', tmp_path,
                   '-c', source, '-o', tmp_path / 'object.o')
        shutil.copy(tmp_path / f'{source.stem}.ptx', folder / 'ptx')
        (folder / 'log').write_text(log)

    made = made_once(
        f'{source.stem}-ptx',
        [call(NVCC, '--version'), torch.__version__, *flags, source, *HEADERS],
        compile)
    log, ptx = (made / 'log').read_text(), (made / 'ptx').read_text()
    ptx = dict(re.findall(r'\.entry (\w+)\((.*?)\n}', ptx, re.DOTALL))
    resources = re.findall(
        r"Compiling entry function '(\w+)'.*?(\d+) bytes stack frame, "
        r'(\d+) bytes spill stores, (\d+) bytes spill loads.*?'
        r'Used (\d+) registers', log, re.DOTALL)
    assert len(resources) == len(ptx) > 20
    for name, *memory, registers in resources:
        finish = 'finish' in name
        assert int(registers) * (512 if finish else 256) <= 65536, name
        # double is for checks of gradients; all else is to be as fast as
        # memory, which spilled registers would not be.
        if not re.search(r'(rows|pixels|finish)Id', name):
            assert memory == ['0', '0', '0'], name
        # Sums in the order in which threads come differ from run to run.
        assert not re.search(r'\b(atom|red)\.', ptx[name]), name
        # No kernel has memory of its own: a pointer taken for one into it
        # would be an error of the compiler, seen with nvcc 13.0.
        assert '.local' not in ptx[name], name
        # pixelsI<dtype>Li1E: one channel a lane.
        if not (finish or re.search(r'pixelsI.*?Li1E', name)):
            # Two numbers of 16 bit are also written as one word.
            word = r'|[bu]32' if re.search('Half|BFloat16', name) else ''
            stores = re.findall(rf'st\.global\.(v[24]\.{word})', ptx[name])
            assert len(stores) > 1, name


@pytest.fixture(scope='module')
def emulated(tmp_path_factory):
    copy = tmp_path_factory.mktemp('emulated')
    emulate(copy)
    return copy


def test_emulated(emulated):
    """The operators' own tests, and those of how a GPU shares the work.

    But for those of the reference, and of the CPU's forms for older
    processors.
    """
    command = ('-m pytest -q -x -p no:cacheprovider '
               '-k "not reference and not older"')
    files = ('test_acon.py', 'test_pwlu.py', 'test_views.py',
             'cuda_emulation/cases.py')
    log = call(
        sys.executable,
        *shlex.split(command),
        f'-c{ROOT / "pyproject.toml"}',
        f'--rootdir={emulated}',
        *(emulated / 'tests' / 'test_ops' / file for file in files),
        cwd=emulated)
    assert int(re.search(r'(\d+) passed', log)[1]) > 1400


def counts_of_launches(**environment):
    """The rows of tools/dev/count_launches.py."""
    log = call(
        sys.executable,
        ROOT / 'tools/dev/count_launches.py',
        '--rows',
        cwd=ROOT,
        env=dict(os.environ, **environment))
    return [line.split('\t') for line in log.splitlines() if '\t' in line]


def rows_of_launches():
    page = (ROOT / 'docs/benchmarks/launches.md').read_text()
    return [
        line.strip('| ').split(' | ') for line in page.splitlines()
        if re.search(r'^\| .*(all|x alone|nothing) \|', line)
    ]


def test_counts_of_launches_are_those_of_the_page(emulated):
    """docs/benchmarks/launches.md, but for what PyTorch does by itself."""
    rows = rows_of_launches()
    found = counts_of_launches(PYTHONPATH=str(emulated))
    assert len(rows) == len(found) > 30
    for row, other in zip(rows, found):
        assert row[:3] == other[:3]
        ours = ('ACONA', 'ACONB', 'ACONC', 'PWLU')
        for column in (3, 4, 6, 7) if row[0] in ours else (4, 7):
            assert row[column] == other[column], row


@pytest.mark.skipif('cpu' not in BUILT, reason='_ext is not built')
@needs_torch('2.13', 'books memory under another operator, at times (2.1)')
def test_what_is_allocated_is_that_of_the_page():
    rows = rows_of_launches()
    found = counts_of_launches()
    assert len(rows) == len(found) > 30
    for row, other in zip(rows, found):
        for column in (0, 1, 2, 5, 8):
            assert row[column] == other[column], row


@pytest.mark.full
@needs_torch('2.1', 'compiles no autograd.Function, as meta-ACON\'s mean is')
def test_check_of_a_gpu_is_tried_without_one():
    """All steps that tools/gpu_check.sh takes, and those it only lists."""
    log = call(
        'bash',
        ROOT / 'tools/gpu_check.sh',
        '--dry-run',
        env=dict(os.environ, PYTHON=sys.executable, CUDA_VISIBLE_DEVICES=''))
    for tool in ('memcheck', 'racecheck', 'synccheck', 'initcheck'):
        assert f'compute-sanitizer --tool {tool} ' in log
    for shape in ('64x256x56x56', '16x64x112x112', '2x256x200x336',
                  '64x2048x7x7'):
        assert shape in log
    assert log.splitlines()[-1] == 'gpu_check: all steps passed'


def test_what_another_process_made_meanwhile_stays(tmp_path, monkeypatch):
    monkeypatch.setattr('tests.helpers.cache.CACHE', tmp_path)

    def make(folder):
        (folder / 'made').write_text('by this one')
        other = folder.with_name(folder.name.split('-')[0])
        other.mkdir()
        (other / 'made').write_text('by the other')

    folder = made_once('thing', ['part'], make)
    assert (folder / 'made').read_text() == 'by the other'
    assert list(folder.parent.iterdir()) == [folder]
