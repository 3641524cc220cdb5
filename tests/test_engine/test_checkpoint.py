import io
import pickle
import struct

import pytest
import torch
from mmengine.logging import HistoryBuffer
from torch import _weights_only_unpickler

from .toy import make_runner


def test_mmengine_checkpoint_loads_with_weights_only(tmp_path):
    make_runner(tmp_path, epochs=1).train()
    checkpoint = torch.load(tmp_path / 'epoch_1.pth', weights_only=True)
    assert any(
        isinstance(value, HistoryBuffer)
        for value in checkpoint['message_hub']['log_scalars'].values())


@pytest.mark.parametrize('owner, name',
                         ((HistoryBuffer, '__init__'),
                          (HistoryBuffer, '_statistics_methods'),
                          (torch.Tensor, 'numpy')))
def test_getattr_is_for_statistics_only(tmp_path, owner, name):
    """Written by hand: pickle would name Tensor.numpy in another way."""
    program = (b'cbuiltins\ngetattr\n(c' +
               f'{owner.__module__}\n{owner.__qualname__}\n'.encode() +
               b'X' + struct.pack('<I', len(name)) + name.encode() + b'tR.')
    torch.serialization.add_safe_globals([torch.Tensor])
    with pytest.raises(pickle.UnpicklingError,
                       match='methods of HistoryBuffer only'):
        _weights_only_unpickler.load(io.BytesIO(b'\x80\x02' + program))


def test_code_in_a_checkpoint_is_refused(tmp_path):

    class Run:

        def __reduce__(self):
            return exec, (f'open({str(tmp_path / "ran")!r}, "w")', )

    torch.save(Run(), tmp_path / 'file.pth')
    with pytest.raises(pickle.UnpicklingError):
        torch.load(tmp_path / 'file.pth', weights_only=True)
    assert not (tmp_path / 'ran').exists()
