"""Checkpoints that are never half written, and that fit when they are read."""
import io
import logging
import os
import pickle
import shutil
from typing import List, Optional

import torch
from mmengine.fileio import LocalBackend, register_backend
from mmengine.hooks import CheckpointHook
from mmengine.logging import print_log
from mmengine.model import BaseTTAModel, is_model_wrapper
from mmengine.registry import HOOKS
from mmengine.runner import BaseLoop, find_latest_checkpoint

from ..compat import load_weights
from ..swap.keys import bring_up
from .fit import FitCheck, for_resume, for_test, for_training
from .guard import unpickling_reason


@register_backend('complete_files')
class _CompleteFiles(LocalBackend):
    """A file appears under its name when it has been written to the disk.

    Raises:
        OSError: it could not be written; nothing of it is left.
    """

    def put(self, obj: bytes, filepath: str) -> None:
        part = f'{filepath}.part'
        folder = os.path.dirname(filepath)
        try:
            super().put(obj, part)
            # Open for writing, as Windows wants it.
            with open(part, 'rb+') as file:
                os.fsync(file.fileno())
        except OSError as error:
            if os.path.exists(part):
                os.remove(part)
            before = find_latest_checkpoint(folder)
            raise OSError(
                error.errno, f'{filepath} could not be written: '
                f'{error.strerror}. It needs {len(obj) / 2**20:.1f} MiB, '
                f'{shutil.disk_usage(folder).free / 2**20:.1f} MiB are free '
                'there; nothing of it is left. The checkpoint before is '
                f'{before or "none"}: make room, and resume') from error
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

    _check: Optional[FitCheck] = None
    _read_back = False

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
            find_problems = for_resume
        elif isinstance(runner._train_loop, BaseLoop):
            find_problems = for_training
        else:
            find_problems = for_test
        if 'state_dict' not in checkpoint:
            bring_up(model, checkpoint)
        self._check = FitCheck(model, source, find_problems)

    def _end_check(self) -> None:
        if self._check is not None:
            self._check.remove()
            self._check = None

    def before_val(self, runner) -> None:
        self._end_check()

    def before_test(self, runner) -> None:
        self._end_check()

    def before_train(self, runner) -> None:
        self._end_check()
        super().before_train(runner)
        if type(self.file_backend) is LocalBackend:
            self.file_backend = _LateRemoval()
            self.backend_args = dict(backend='complete_files')

    def before_save_checkpoint(self, runner, checkpoint: dict) -> None:
        """Says at the first one if it could not be read again."""
        if self._read_back:
            return
        self._read_back = True
        for name in ('meta', 'message_hub', 'param_schedulers'):
            written = io.BytesIO()
            torch.save(checkpoint.get(name), written)
            written.seek(0)
            try:
                load_weights(written)
            except pickle.UnpicklingError as error:
                print_log(
                    f'{name!r} of the checkpoints of this run holds what is '
                    'not read again, because it could run code: '
                    f'{unpickling_reason(error)}. The run can be neither '
                    'resumed nor tested by the tools. Write plain values in '
                    'its place; metainfo of the data set is part of '
                    "'meta'.",
                    logger='current',
                    level=logging.WARNING)

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
            self.file_backend.remove_old(
                [self.last_ckpt,
                 getattr(self, 'best_ckpt_path', None), *best])
