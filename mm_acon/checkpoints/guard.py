"""Reads checkpoints without running code that they bring."""
import functools
import pickle
from argparse import Namespace
from typing import Callable

import numpy as np
from mmengine.config import ConfigDict
from mmengine.logging import HistoryBuffer
from mmengine.optim.scheduler.param_scheduler import OneCycleParamScheduler

from ..compat import add_safe_globals, numpy_multiarray, only_weights


def _get_method(owner: type, name: str):
    """What a checkpoint may use ``getattr`` for: methods that mmengine writes.
    """
    statistics = owner is HistoryBuffer and not name.startswith('_')
    annealing = owner is OneCycleParamScheduler and name in (
        '_annealing_cos', '_annealing_linear')
    if not (statistics or annealing):
        raise pickle.UnpicklingError(
            'a checkpoint may take methods of HistoryBuffer only, and the '
            f'annealing of OneCycleLR; it asks for {name!r} of {owner!r}.')
    return getattr(owner, name)


def allow_mmengine_checkpoints() -> None:
    """Lets torch read what mmengine writes, under ``weights_only=True`` too.

    Beside tensors those are the training log, numpy's numbers and arrays of
    every dtype, the state of schedulers, and configs; and the command line
    (Namespace) that other projects' checkpoints hold. Nothing of it can run
    code.
    """
    functions = [numpy_multiarray._reconstruct, numpy_multiarray.scalar]
    # Under the module's old and new name: numpy 2 moved it, and reads the
    # files of numpy 1.
    names = [(function, f'numpy.{core}.multiarray.{function.__name__}')
             for function in functions for core in ('core', '_core')]
    add_safe_globals([
        HistoryBuffer, OneCycleParamScheduler, ConfigDict, Namespace, bytes,
        np.ndarray, np.dtype, (_get_method, 'builtins.getattr'), *names,
        *{type(np.dtype(code))
          for code in np.typecodes['All']}
    ])


def unpickling_reason(error: Exception) -> str:
    """What torch says first; it goes on to advise weights_only=False."""
    reason = str(error).rpartition('WeightsUnpickler error: ')[2]
    return reason.strip().partition('. ')[0].partition('\n')[0]


def guarded(loader: Callable) -> Callable:
    """A loader of mmengine that runs no code and says what is wrong.

    Raises:
        ValueError: the file is no checkpoint, or holds objects that could
            run code; names the file and the reason.
    """

    @functools.wraps(loader)
    def load(filename: str, *args, **kwargs) -> dict:
        if not filename:
            raise ValueError(
                'The name of the checkpoint to load is empty. If it was to '
                'come from the file last_checkpoint, the writing of that was '
                'interrupted: name the checkpoint, --resume FILE.')
        try:
            # mmengine leaves it to torch's default, and passes False for
            # URLs.
            with only_weights():
                checkpoint = loader(filename, *args, **kwargs)
        except (FileNotFoundError, PermissionError, ImportError):
            raise
        except Exception as error:
            reason = unpickling_reason(error)
            if (isinstance(error, pickle.UnpicklingError)
                    and 'operand' not in reason):
                what = ('holds objects beside tensors and plain Python '
                        'values, and loading those could run code. If you '
                        'trust the file, write its state_dict alone into a '
                        'new one')
            else:
                what = ('cannot be read as a checkpoint: it is cut off, or '
                        'another kind of file')
            raise ValueError(
                f'{filename} {what}. PyTorch says: {type(error).__name__}: '
                f'{reason}') from error
        if not isinstance(checkpoint, dict):
            raise ValueError(
                f'{filename} is no checkpoint: expected a dict of tensors, '
                f"or one as 'state_dict', got {type(checkpoint).__name__}.")
        meta = checkpoint.get('meta')
        if isinstance(meta, dict):
            # Runner.resume would run it as a Python file.
            meta.pop('config', None)
        return checkpoint

    return load
