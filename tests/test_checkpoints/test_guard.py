import functools
import io
import os
import pickle
import struct
import threading
import zipfile
from argparse import Namespace
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import ConfigDict
from mmengine.logging import HistoryBuffer
from mmengine.model import BaseModule
from mmengine.runner import CheckpointLoader, load_checkpoint
from torch import nn

from mm_acon.compat import add_safe_globals, load_weights
from tests.helpers.toy import make_runner, weights_of
from tests.utils import WriteFile


def test_mmengine_checkpoint_loads_with_weights_only(trained):
    checkpoint = load_weights(trained)
    assert any(
        isinstance(value, HistoryBuffer)
        for value in checkpoint['message_hub']['log_scalars'].values())


def named(value):
    """A class or function as pickle names it."""
    return f'c{value.__module__}\n{value.__qualname__}\n'.encode()


def quoted(text):
    return b'X' + struct.pack('<I', len(text)) + text.encode()


def attribute(owner, name):
    """Written by hand: pickle would name Tensor.numpy in another way."""
    return b'cbuiltins\ngetattr\n' + named(owner) + quoted(name) + b'\x86R'


def refused(program, reason):
    with pytest.raises(pickle.UnpicklingError, match=reason):
        load_weights(io.BytesIO(b'\x80\x02' + program + b'.'))


@pytest.mark.parametrize('owner, name',
                         ((HistoryBuffer, '__init__'),
                          (HistoryBuffer, '_statistics_methods'),
                          (torch.Tensor, 'numpy')))
def test_getattr_is_for_statistics_only(owner, name):
    add_safe_globals([torch.Tensor])
    refused(attribute(owner, name), 'methods of HistoryBuffer only')


# Files that run code.


def test_code_in_a_pickle_is_refused(tmp_path, monkeypatch):
    """Whatever torch is told to do elsewhere."""
    monkeypatch.setenv('TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD', '1')
    path, ran = tmp_path / 'file.pth', tmp_path / 'ran'
    torch.save(dict(state_dict={}, code=WriteFile(ran)), path)
    with pytest.raises(ValueError) as error:
        load_checkpoint(nn.Linear(2, 2), str(path))
    # Older versions of torch say builtins.exec.
    assert str(error.value).replace('builtins.', '') == (
        f'{path} holds objects beside tensors and plain Python values, and '
        'loading those could run code. If you trust the file, write its '
        'state_dict alone into a new one. PyTorch says: UnpicklingError: '
        'Unsupported global: GLOBAL exec was not an allowed global by default')
    assert not ran.exists()
    assert os.environ['TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD'] == '1'
    assert 'TORCH_FORCE_WEIGHTS_ONLY_LOAD' not in os.environ
    # The payload is a real one.
    torch.load(path, weights_only=False)
    assert ran.exists()


def test_code_from_a_url_is_refused(tmp_path, monkeypatch):
    """mmengine itself loads these with weights_only=False."""
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'home'))
    ran = tmp_path / 'ran'
    torch.save(dict(state_dict={}, code=WriteFile(ran)), tmp_path / 'x.pth')
    handler = functools.partial(SimpleHTTPRequestHandler, directory=tmp_path)
    with ThreadingHTTPServer(('127.0.0.1', 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f'http://127.0.0.1:{server.server_port}/x.pth'
        with pytest.raises(ValueError, match=f'{url} holds objects beside'):
            load_checkpoint(nn.Linear(2, 2), url)
        server.shutdown()
    assert not ran.exists()


def test_code_in_the_config_of_a_checkpoint_is_not_run(trained, tmp_path):
    """Runner.resume reads meta['config'] as a Python file."""
    checkpoint = load_weights(trained)
    ran = tmp_path / 'ran'
    checkpoint['meta']['config'] = f'open({str(ran)!r}, "w")\n'
    torch.save(checkpoint, tmp_path / 'file.pth')
    runner = make_runner(
        tmp_path, epochs=2, resume=True, load_from=str(tmp_path / 'file.pth'))
    runner.train()
    assert runner.epoch == 2 and not ran.exists()


@pytest.mark.parametrize('program, reason', (
    (b'cos\nsystem\n', 'GLOBAL os.system '),
    (b'c__builtin__\neval\n', 'eval was not an allowed global'),
    (attribute(HistoryBuffer, 'mean') + b')R', 'call reduce for unrecognized'),
    (named(HistoryBuffer) + b'N}' + quoted('mean') + b'Ns\x86b',
     'Can only build'),
    # torch compares a module's source, and writes a patch.
    (b'(' + quoted('module') + named(HistoryBuffer) + quoted('file') +
     quoted('source') + b'tQ', 'Only persistent_load of storage is allowed'),
), ids=('global', 'builtin', 'method', 'class', 'module'))  # yapf: disable
def test_programs_of_a_pickle_are_refused(program, reason):
    mean = HistoryBuffer.mean
    refused(program, reason)
    assert HistoryBuffer.mean is mean


@pytest.mark.parametrize('zipped', (True, False))
def test_code_is_refused_in_either_format(zipped, tmp_path):
    path, ran = tmp_path / 'file.pth', tmp_path / 'ran'
    torch.save(
        dict(state_dict={}, code=WriteFile(ran)),
        path,
        _use_new_zipfile_serialization=zipped)
    with pytest.raises(ValueError, match='holds objects beside tensors'):
        load_checkpoint(nn.Linear(2, 2), str(path))
    assert not ran.exists()


def test_torchscript_is_refused(tmp_path):
    path = str(tmp_path / 'file.pth')
    torch.jit.script(nn.ReLU()).save(path)
    with pytest.raises(ValueError, match=f'{path} '):
        load_checkpoint(nn.ReLU(), path)


# Files that are no checkpoints.

BROKEN = {
    'empty': lambda whole: b'',
    'half': lambda whole: whole[:len(whole) // 2],
    'last bytes': lambda whole: whole[:-30],
    'text': lambda whole: b'epoch 3, mAP 37.2\n' * 99,
    'picture': lambda whole: b'\x89PNG\r\n\x1a\n' + whole,
    'zeros': lambda whole: bytes(1000),
    'other pickle': lambda whole: pickle.dumps(dict(a=[1])),
}


@pytest.mark.parametrize('name', BROKEN)
def test_broken_file(name, trained, tmp_path):
    path = tmp_path / 'file.pth'
    path.write_bytes(BROKEN[name](trained.read_bytes()))
    runner = make_runner(tmp_path / 'work', resume=True, load_from=str(path))
    with pytest.raises(ValueError) as error:
        runner.train()
    assert str(error.value).startswith(
        f'{path} cannot be read as a checkpoint: it is cut off, or another '
        'kind of file. PyTorch says: ')
    # Which PyTorch would advise now.
    assert 'weights_only` set to `False' not in str(error.value)


def test_what_is_no_dict(tmp_path):
    torch.save([torch.zeros(2)], tmp_path / 'file.pth')
    with pytest.raises(
            ValueError,
            match='file.pth is no checkpoint: expected a dict of tensors, or '
            "one as 'state_dict', got list"):
        load_checkpoint(nn.Linear(2, 2), str(tmp_path / 'file.pth'))


def test_interrupted_name_of_the_last_checkpoint(tmp_path):
    (tmp_path / 'last_checkpoint').touch()
    with pytest.raises(ValueError, match='come from the file last_checkpoint'):
        make_runner(tmp_path, resume=True).train()


def test_file_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match='no.pth can not be found'):
        make_runner(tmp_path, load_from=str(tmp_path / 'no.pth')).train()


def test_pretrained_file_that_is_cut_off(tmp_path):
    path = Path(weights_of(tmp_path, nn.Linear(2, 2)))
    path.write_bytes(path.read_bytes()[:200])
    module = BaseModule(dict(type='Pretrained', checkpoint=str(path)))
    with pytest.raises(ValueError, match=f'{path} cannot be read as a check'):
        module.init_weights()


# What mmengine writes.


def read_back(value, path):
    torch.save(dict(state_dict={}, value=value), path)
    return CheckpointLoader.load_checkpoint(str(path), 'cpu')['value']


CODES = [code for code in np.typecodes['All'] if code != 'O']


@pytest.mark.parametrize('code', CODES)
def test_numbers_and_arrays_of_every_dtype(code, tmp_path):
    dtype = np.dtype({
        'S': 'S3',
        'U': 'U3',
        'V': 'V3',
        'M': 'M8[s]',
        'm': 'm8[s]'
    }.get(code, code))
    array = np.zeros(2, dtype)
    for value in (array, array[0]):
        found = read_back(value, tmp_path / 'file.pth')
        # Two types of one size, long and long long, become one.
        assert isinstance(found, np.ndarray) == (value is array)
        assert found.dtype == value.dtype
        assert found.tobytes() == value.tobytes()


def test_array_of_objects(tmp_path):
    array = np.array(['a', 1, None], dtype=object)
    assert read_back(array, tmp_path / 'file.pth').tolist() == ['a', 1, None]


def test_names_of_numpy_1(tmp_path):
    """And of numpy 2, whichever is there."""
    for core in (b'core', b'_core'):
        path = tmp_path / f'{core.decode()}.pth'
        torch.save(dict(state_dict={}, value=np.float32(.5)), path)
        # Uncompressed, so that the pickle stands in the file as it is. Not
        # of the same length, so by hand and without the checksum.
        with zipfile.ZipFile(path) as archive:
            parts = {name: archive.read(name) for name in archive.namelist()}
        path.unlink()
        with zipfile.ZipFile(path, 'w') as archive:
            for name, content in parts.items():
                if name.endswith('data.pkl'):
                    content = content.replace(b'numpy._core.', b'numpy.core.')
                    content = content.replace(b'numpy.core.',
                                              b'numpy.' + core + b'.')
                archive.writestr(name, content)
        found = CheckpointLoader.load_checkpoint(str(path), 'cpu')['value']
        assert found == np.float32(.5)


def test_configs_and_what_is_nested_in_them(tmp_path):
    value = ConfigDict(classes=('a', ), groups=dict(round=['circle']))
    found = read_back(value, tmp_path / 'file.pth')
    assert found == value and found.groups.round == ['circle']


def test_command_lines_of_other_projects(tmp_path):
    """DeiT's and MAE's checkpoints have them."""
    value = Namespace(lr=.1, name='a')
    assert read_back(value, tmp_path / 'file.pth') == value


@pytest.mark.parametrize('schedule', (
    dict(type='OneCycleLR', eta_max=.1, total_steps=12, by_epoch=False),
    dict(
        type='OneCycleLR',
        eta_max=.1,
        total_steps=12,
        by_epoch=False,
        anneal_strategy='linear'),
    dict(
        type='CosineRestartLR',
        periods=[4, 8],
        restart_weights=[1, .5],
        eta_min=0,
        by_epoch=False),
    dict(type='PolyLR', by_epoch=False),
    dict(type='MultiStepLR', milestones=[4], by_epoch=False),
    dict(type='LinearLR', by_epoch=False),
))
def test_every_schedule_is_resumed(schedule, tmp_path):
    make_runner(tmp_path, epochs=1, param_scheduler=[dict(schedule)]).train()
    runner = make_runner(
        tmp_path, epochs=2, resume=True, param_scheduler=[dict(schedule)])
    runner.train()
    assert runner.epoch == 2
