"""Finds the widths of activations before anything takes their parameters."""
from contextlib import ExitStack, contextmanager
from typing import Any, Iterator, List, Optional

import torch
from mmengine.device import get_device
from mmengine.logging import print_log
from mmengine.model import BaseModel, is_model_wrapper
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from ..activations.base import LearnableActivation, activations_of
from ..activations.empty import UnknownWidthError
from ..swap.keys import listed
from ..swap.state import in_mode, kept_random_states, kept_tensors
from .momentum_copies import find_mirrors


def without_width(model: nn.Module) -> List[str]:
    """Names of the activations that have no width yet."""
    return [
        name for name, module in activations_of(model).items()
        if module.is_lazy
    ]


def find_widths(model: nn.Module, batch: Any) -> None:
    """Gives activations whose width is not known their parameters.

    One forward pass without gradient, right after a model is built: before
    optimizer, EMA and DistributedDataParallel see it. The pass is that of
    training, so that auxiliary heads take part; weights, buffers and random
    state are afterwards what they were. An activation that the pass does not
    reach takes the width of the module that it is a momentum copy of, or of
    the layer registered before it. Behind a fully connected layer it learns
    that the channels lie in the last axis. Nothing is run where all widths
    are known.

    .. code-block:: python

        model = MODELS.build(cfg.model)
        mm_acon.find_widths(model, next(iter(train_dataloader)))

    Args:
        model (nn.Module): A model.
        batch: Of a model of MMEngine what a dataloader gives, which its
            ``data_preprocessor`` takes. Of others the input tensor, a tuple
            of arguments or a dict of them.

    Raises:
        RuntimeError: the pass failed, the model is wrapped already, or an
            activation is left without a width.
    """
    if not without_width(model):
        return
    if is_model_wrapper(model):
        raise RuntimeError(
            f'{type(model).__name__} was built over activations without a '
            f'width ({listed(without_width(model), 5)}) and would never '
            'reduce their gradients. Call mm_acon.find_widths(model, batch) '
            'before the model is wrapped, or train with tools/train.py, which '
            'does.')
    lazy = [model.get_submodule(name) for name in without_width(model)]
    with _left_as_it_was(model), _axes_told(model), torch.no_grad():
        try:
            try:
                _forward(model, batch)
            except UnknownWidthError:
                # A momentum copy follows inside the forward, before anything
                # told it its width.
                _fill_copies(model)
                _forward(model, batch)
        except Exception as error:
            raise RuntimeError(
                f'{type(model).__name__} could not be run to find the widths '
                f'of {listed(without_width(model), 5)}: '
                f'{type(error).__name__}: {error}. Call '
                'mm_acon.find_widths(model, batch) with a batch that it can '
                'be trained on, or use SwapActivations, which knows the '
                'widths.') from error
        _fill_copies(model)
        _fill_from_neighbours(model)
        for module in lazy:
            if not module.is_lazy:
                # Norms inside took the batch into their statistics.
                module.reset_parameters()
    for module in lazy:
        # What is inside was made in the mode of the pass.
        module.train(module.training)
    left = without_width(model)
    if left:
        raise RuntimeError(
            f'{listed(left, 5)} met no input in a training step, and nothing '
            'else tells their width. Write num_channels in their act_cfg, or '
            'leave them out of the model.')
    print_log(
        f'{type(model).__name__}: {len(lazy)} activations got their width by '
        'one forward pass',
        logger='current')


def _forward(model: nn.Module, batch: Any) -> None:
    if isinstance(model, BaseModel):
        batch = model.data_preprocessor(batch, True)
        mode = dict(mode='loss')
    else:
        mode = {}
    if isinstance(batch, dict):
        model(**batch, **mode)
    elif isinstance(batch, (list, tuple)):
        model(*batch, **mode)
    else:
        model(batch, **mode)


@contextmanager
def _left_as_it_was(model: nn.Module) -> Iterator[None]:
    """Weights, buffers, modes and random states, whatever a pass does."""
    # What an activation without a width has is replaced as a whole.
    new = {
        part
        for name in without_width(model)
        for part in model.get_submodule(name).modules()
    }
    known = [module for module in model.modules() if module not in new]
    with kept_random_states(), kept_tensors(known, '_parameters', '_buffers'):
        with in_mode(model, True):
            yield


def _axis_behind(layer: nn.Module) -> Optional[int]:
    """The axis of the channels in a layer's output, None if not known."""
    # No subclass of LayerNorm: those of some libraries take (N, C, H, W).
    if isinstance(layer, nn.Linear) or type(layer) is nn.LayerNorm:
        return -1
    if isinstance(layer, (_ConvNd, _BatchNorm, nn.GroupNorm)):
        return 1
    return None


@contextmanager
def _axes_told(model: nn.Module) -> Iterator[None]:
    """Activations without a width learn their axis from what feeds them.

    A layer's output says so itself, until a function makes another tensor of
    it: of a map made of tokens nothing is known.
    """

    def mark(layer: nn.Module, args: tuple, output: Any) -> None:
        if isinstance(output, Tensor):
            output._mm_acon_channel_axis = _axis_behind(layer)

    def tell(activation: LearnableActivation, args: tuple) -> None:
        x = args[0] if args else None
        axis = getattr(x, '_mm_acon_channel_axis', None)
        if activation.is_lazy and activation.channel_axis is None:
            activation.channel_axis = axis

    with ExitStack() as stack:
        for module in model.modules():
            if _axis_behind(module) is not None:
                handle = module.register_forward_hook(mark)
            elif isinstance(module, LearnableActivation):
                handle = module.register_forward_pre_hook(tell)
            else:
                continue
            stack.callback(handle.remove)
        yield


def _fill_copies(model: nn.Module) -> None:
    for mirror in find_mirrors(model):
        for _, source, copied in mirror.pairs():
            if copied.is_lazy and not source.is_lazy:
                copied.channel_axis = source.channel_axis
                copied.materialize(source.num_channels)


def _fill_from_neighbours(model: nn.Module) -> None:
    """As wide as the convolution or norm before it in the same module."""
    for parent in model.modules():
        width, axis = None, None
        for module in parent.children():
            if isinstance(module, LearnableActivation):
                if module.is_lazy and width:
                    module.channel_axis = module.channel_axis or axis
                    module.materialize(width)
                continue
            axis = _axis_behind(module) or axis
            for name in ('out_channels', 'num_features', 'out_features'):
                width = getattr(module, name, width)


def training_batch(runner) -> Any:
    """One batch of a Runner's training data, from a loader of its own.

    Its own one may hold an endless sampler, which would go on after it.
    """
    loader = runner._train_dataloader
    with kept_random_states():
        if isinstance(loader, dict):
            loader = dict(loader, num_workers=0)
            for key in ('persistent_workers', 'prefetch_factor', 'timeout'):
                loader.pop(key, None)
            loader = runner.build_dataloader(loader, seed=runner.seed)
        return next(iter(loader))


def finding_widths(runner_type: type) -> type:
    """A Runner that finds the widths before it wraps the model in DDP.

    For training: the data set is built once more for it, and one batch read,
    where a width is not known.
    """

    class WidthFindingRunner(runner_type):

        def wrap_model(self, model_wrapper_cfg, model: nn.Module):
            if self._train_dataloader is not None and without_width(model):
                find_widths(model.to(get_device()), training_batch(self))
            return super().wrap_model(model_wrapper_cfg, model)

    WidthFindingRunner.__name__ = runner_type.__name__
    return WidthFindingRunner
