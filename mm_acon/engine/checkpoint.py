"""Checkpoints: read without running code, checked, and never half written.

- Every way of mmengine to load a checkpoint goes through ``torch.load`` with
  ``weights_only=True``, and an error names the file and the reason.
- mmengine's own checkpoints load that way too, although they also hold the
  training log (HistoryBuffer) and numpy numbers.
- :class:`SafeCheckpointHook` leaves a complete checkpoint behind whenever the
  process is killed, and refuses one that does not fit the model.
"""
import functools
import os
import pickle
from contextlib import contextmanager
from typing import Callable, Iterator, List

import mmengine.runner.checkpoint
import numpy as np
import torch
from mmengine.fileio import LocalBackend, register_backend
from mmengine.hooks import CheckpointHook
from mmengine.logging import HistoryBuffer
from mmengine.model import BaseTTAModel, PretrainedInit, is_model_wrapper
from mmengine.registry import HOOKS, WEIGHT_INITIALIZERS
from mmengine.runner import BaseLoop, CheckpointLoader, find_latest_checkpoint
from torch import nn

from ..swap.loading import check_next_loading, is_swapped

# Names of torch's environment variables, either of which overrules what
# mmengine's loaders pass, or do not pass, to torch.load.
_ONLY_WEIGHTS = 'TORCH_FORCE_WEIGHTS_ONLY_LOAD'
_NOT_ONLY_WEIGHTS = 'TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD'


def _get_statistics_method(owner: type, name: str):
    """What a checkpoint may use ``getattr`` for: HistoryBuffer's methods."""
    if owner is not HistoryBuffer or name.startswith('_'):
        raise pickle.UnpicklingError(
            f'a checkpoint may take methods of HistoryBuffer only, it asks '
            f'for {name!r} of {owner!r}.')
    return getattr(owner, name)


def allow_mmengine_checkpoints() -> None:
    """Lets mmengine load its own checkpoints, and none that run code."""
    for prefix, loader in list(CheckpointLoader._schemes.items()):
        CheckpointLoader.register_scheme(prefix, _guarded(loader), force=True)
    # The maintained fork's mmengine allows getattr itself while it loads, and
    # takes back afterwards what is allowed here.
    if hasattr(mmengine.runner.checkpoint, 'get_torch_safe_globals'):
        mmengine.runner.checkpoint.get_torch_safe_globals = list
    numpy_core = np._core if hasattr(np, '_core') else np.core
    torch.serialization.add_safe_globals([
        HistoryBuffer, np.ndarray, np.dtype,
        numpy_core.multiarray._reconstruct, numpy_core.multiarray.scalar,
        type(np.dtype(np.float64)),
        type(np.dtype(np.int64)), (_get_statistics_method, 'builtins.getattr')
    ])


@contextmanager
def _weights_only() -> Iterator[None]:
    """``torch.load`` unpickles only what is known to be harmless.

    mmengine leaves that to torch's default, and passes False for URLs.
    """
    names = (_ONLY_WEIGHTS, _NOT_ONLY_WEIGHTS)
    before = {name: os.environ.pop(name, None) for name in names}
    os.environ[_ONLY_WEIGHTS] = '1'
    try:
        yield
    finally:
        del os.environ[_ONLY_WEIGHTS]
        os.environ.update({k: v for k, v in before.items() if v is not None})


def _guarded(loader: Callable) -> Callable:
    """A loader of mmengine whose errors name the file and the reason."""

    @functools.wraps(loader)
    def load(filename: str, *args, **kwargs) -> dict:
        if not filename:
            raise ValueError(
                'The name of the checkpoint to load is empty. If it was to '
                'come from the file last_checkpoint, the writing of that was '
                'interrupted: name the checkpoint, --resume FILE.')
        try:
            with _weights_only():
                checkpoint = loader(filename, *args, **kwargs)
        except (FileNotFoundError, PermissionError, ImportError):
            raise
        except Exception as error:
            # What torch says first; it goes on to advise weights_only=False.
            reason = str(error).rpartition('WeightsUnpickler error: ')[2]
            reason = reason.strip().partition('. ')[0].partition('\n')[0]
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


@WEIGHT_INITIALIZERS.register_module(name='Pretrained', force=True)
class Pretrained(PretrainedInit):
    """mmengine's, whose errors name the file.

    A swapped backbone refuses a checkpoint of which nothing fits, or which
    has tensors of another shape.
    """

    def __call__(self, module: nn.Module) -> None:
        if is_swapped(module):
            check_next_loading(module, self.checkpoint, 'shapes')
        try:
            super().__call__(module)
        except AssertionError as error:
            raise ValueError(
                f'{self.checkpoint} has no key that begins with '
                f'{self.prefix!r}, the prefix in init_cfg.') from error


@register_backend('complete_files')
class _CompleteFiles(LocalBackend):
    """A file appears under its name when it has been written to the disk."""

    def put(self, obj: bytes, filepath: str) -> None:
        part = f'{filepath}.part'
        super().put(obj, part)
        with open(part, 'rb') as file:
            os.fsync(file.fileno())
        os.replace(part, filepath)


class _LateRemoval(LocalBackend):
    """Keeps a list of what is to be removed, until it may be."""

    def __init__(self) -> None:
        self.old: List[str] = []

    def remove(self, filepath: str) -> None:
        self.old.append(filepath)

    rmtree = remove

    def remove_old(self, kept: List[str]) -> None:
        for path in self.old:
            if path in kept:
                continue
            if self.isdir(path):
                super().rmtree(path)
            else:
                super().remove(path)
        self.old = []


@HOOKS.register_module()
class SafeCheckpointHook(CheckpointHook):
    """mmengine's CheckpointHook; loses nothing, loads nothing that misfits.

    - A checkpoint on a local disk is written beside its place and renamed
      when it is complete, and only then older ones are removed: a process
      that is killed while it saves leaves the one before, also with
      ``max_keep_ckpts=1`` and ``save_best``. For that moment there is one
      more than ``max_keep_ckpts``.
    - ``resume`` needs a checkpoint of a training run that fits the model
      exactly. Tests need all of the model's weights, but those of
      activations that start as ReLU, and none of another shape. Training
      from ``load_from`` needs anything that fits. Else there is an error that
      names the file and what does not fit.

    Arguments are mmengine's:

    .. code-block:: python

        default_hooks = dict(checkpoint=dict(type='SafeCheckpointHook'))
    """

    def after_load_checkpoint(self, runner, checkpoint: dict) -> None:
        source = runner._load_from or find_latest_checkpoint(runner.work_dir)
        model = runner.model
        while is_model_wrapper(model) or isinstance(model, BaseTTAModel):
            model = model.module
        if runner._resume:
            lacking = {'meta', 'message_hub'} - set(checkpoint)
            if lacking:
                raise ValueError(
                    f'{source} cannot be resumed from: it is no checkpoint of '
                    f'a training run, it has no {" and no ".join(lacking)}. '
                    'To start from its weights write --cfg-options '
                    f'load_from={source} without --resume.')
            check_next_loading(model, source, 'all')
        elif isinstance(runner._train_loop, BaseLoop):
            check_next_loading(model, source, 'some')
        else:
            check_next_loading(model, source, 'weights')

    def before_train(self, runner) -> None:
        super().before_train(runner)
        if type(self.file_backend) is LocalBackend:
            self.file_backend = _LateRemoval()
            self.backend_args = dict(backend='complete_files')

    def after_train_epoch(self, runner) -> None:
        super().after_train_epoch(runner)
        self._remove_old()

    def after_train_iter(self, runner, *args, **kwargs) -> None:
        super().after_train_iter(runner, *args, **kwargs)
        self._remove_old()

    def after_val_epoch(self, runner, metrics: dict) -> None:
        super().after_val_epoch(runner, metrics)
        self._remove_old()

    def _remove_old(self) -> None:
        if isinstance(self.file_backend, _LateRemoval):
            best = getattr(self, 'best_ckpt_path_dict', {}).values()
            self.file_backend.remove_old([
                self.last_ckpt,
                getattr(self, 'best_ckpt_path', None), *best
            ])
