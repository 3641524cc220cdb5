"""Lets mmengine load its own checkpoints with ``weights_only=True``.

From torch 2.6 on ``torch.load`` unpickles only what is known to be harmless.
mmengine's checkpoints also hold the training log (HistoryBuffer) and numpy
numbers, so that ``--resume`` would fail. Nothing here loads a file with
``weights_only=False``.
"""
import pickle

import numpy as np
import torch
from mmengine.logging import HistoryBuffer
from mmengine.utils import digit_version


def _get_statistics_method(owner: type, name: str):
    """What a checkpoint may use ``getattr`` for: HistoryBuffer's methods."""
    if owner is not HistoryBuffer or name.startswith('_'):
        raise pickle.UnpicklingError(
            f'a checkpoint may take methods of HistoryBuffer only, it asks '
            f'for {name!r} of {owner!r}.')
    return getattr(owner, name)


def allow_mmengine_checkpoints() -> None:
    if digit_version(torch.__version__) < digit_version('2.6'):
        return
    numpy_core = np._core if hasattr(np, '_core') else np.core
    torch.serialization.add_safe_globals([
        HistoryBuffer, np.ndarray, np.dtype,
        numpy_core.multiarray._reconstruct, numpy_core.multiarray.scalar,
        type(np.dtype(np.float64)),
        type(np.dtype(np.int64)), (_get_statistics_method, 'builtins.getattr')
    ])
