import logging
import math
from typing import Dict, Iterable, List, Optional

import torch
from mmengine.dist import all_gather, get_world_size
from mmengine.hooks import Hook
from mmengine.hooks.hook import DATA_BATCH
from mmengine.logging import print_log
from mmengine.model import BaseAveragedModel
from mmengine.registry import HOOKS
from mmengine.runner import EpochBasedTrainLoop
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel

from ..activations import PWLU
from ..activations.pwlu import NO_PHASES, PHASE_1
from ..compat import register_step_pre_hook
from .activation_setup_hook import ActivationSetupHook, warn_of_left_out
from .momentum_copies import Mirror, find_mirrors
from .optim_wrapper_constructor import single_wrappers, unwrapped


@HOOKS.register_module()
class PWLURealignHook(Hook):
    """Trains PWLU in its two phases (arXiv 2104.03693, Sec. 3.3).

    In Phase I every PWLU is the function in whose place it stands, ReLU or
    another, its parameters rest and the statistics of its input are followed,
    pooled over all ranks after every step. At the start of Phase II the
    bounds are set to mean -+ 3 std (Eq. 6) with that function between them,
    the log says how well, and ordinary training begins. Copies that follow
    the model by momentum take part: EMA's and those of other hooks, and
    inside the model a part of the same structure without gradient whose
    weights move, the teacher of MeanTeacherHook, MoCo's key encoder, BYOL's
    target network. The phase is part of the checkpoint: a resumed run goes on
    where it was. PWLUs that are frozen, or already realigned in a loaded
    checkpoint, are left as they are.

    .. code-block:: python

        custom_hooks = [dict(type='PWLURealignHook', phase1_epochs=5)]

    Args:
        phase1_epochs (int, optional): Length of Phase I in passes over the
            training set; 5 in the paper.
        phase1_iters (int, optional): The same in iterations. Exactly one of
            the two is given.
    """

    def __init__(self,
                 phase1_epochs: Optional[int] = None,
                 phase1_iters: Optional[int] = None) -> None:
        if (phase1_epochs is None) == (phase1_iters is None):
            raise ValueError(
                'PWLURealignHook expects either phase1_epochs or '
                f'phase1_iters, got phase1_epochs={phase1_epochs!r} and '
                f'phase1_iters={phase1_iters!r}.')
        length = phase1_iters if phase1_epochs is None else phase1_epochs
        if not isinstance(length, int) or length < 1:
            raise ValueError('PWLURealignHook expects the length of Phase I '
                             f'to be a positive integer, got {length!r}.')
        self.phase1_epochs = phase1_epochs
        self.phase1_iters = phase1_iters
        self._handles: list = []
        self._mirrors: List[Mirror] = []
        self._followers: Dict[PWLU, List[PWLU]] = {}

    def before_train(self, runner) -> None:
        modules = trained_pwlus(runner.model)
        refuse_sharded(runner.model, list(modules.values()))
        if not any(
                isinstance(hook, ActivationSetupHook)
                for hook in runner.hooks):
            warn_of_left_out(runner)
        self._first_iter = self._phase1_length(runner)
        left_alone = []
        for name, module in modules.items():
            if module.current_phase != NO_PHASES:
                continue
            if runner.iter < self._first_iter and module.is_fresh():
                for copy in [module, *_outside(runner, name)]:
                    copy.start_phase1()
            else:
                left_alone.append(name)
        if left_alone:
            print_log(
                f'{len(left_alone)} PWLU were trained without phases before '
                'and go on so, without realignment: ' + ', '.join(left_alone),
                logger='current',
                level=logging.WARNING)
        self._waiting = {
            name: module
            for name, module in modules.items()
            if module.current_phase == PHASE_1
        }
        if not self._waiting:
            print_log('PWLU: no unit is in Phase I', logger='current')
            return
        if self._first_iter >= runner.max_iters:
            raise ValueError(
                f'Phase I of {self._first_iter} iterations leaves nothing of '
                f'the {runner.max_iters} iterations of training for Phase '
                'II; write a shorter phase1_epochs or phase1_iters.')
        self._mirrors = find_mirrors(unwrapped(runner.model))
        self._followers = {module: [] for module in self._waiting.values()}
        self._meet_followers(runner)
        self._let_parameters_rest(runner)
        print_log(
            f'PWLU: {len(self._waiting)} modules are in Phase I '
            f'({", ".join(_by_function(self._waiting.values()))}) up to '
            f'iteration {self._first_iter}',
            logger='current')

    def before_train_iter(self,
                          runner,
                          batch_idx: int,
                          data_batch: DATA_BATCH = None) -> None:
        if self._waiting and runner.iter >= self._first_iter:
            self._realign(runner)

    def after_train_iter(self,
                         runner,
                         batch_idx: int,
                         data_batch: DATA_BATCH = None,
                         outputs: Optional[dict] = None) -> None:
        if self._waiting:
            self._meet_followers(runner)
        # Not only at the switch: a checkpoint holds what rank 0 has.
        pool_statistics(list(self._waiting.values()))

    def after_train(self, runner) -> None:
        self._remove_handles()

    def _phase1_length(self, runner) -> int:
        """Number of iterations of Phase I."""
        if self.phase1_iters is not None:
            return self.phase1_iters
        loader = runner.train_dataloader
        if isinstance(runner.train_loop, EpochBasedTrainLoop):
            return self.phase1_epochs * len(loader)
        # An endless sampler: a pass is as long as the data set.
        batch_size = getattr(loader.batch_sampler, 'batch_size', None)
        if not isinstance(batch_size, int) or not hasattr(
                loader.dataset, '__len__'):
            raise ValueError(
                f'phase1_epochs={self.phase1_epochs} needs a data set that '
                'has a length and a batch sampler of one batch size, got '
                f'{type(loader.dataset).__name__} and '
                f'{type(loader.batch_sampler).__name__} with '
                f'batch_size={batch_size!r}; write phase1_iters instead.')
        return self.phase1_epochs * math.ceil(
            len(loader.dataset) / (batch_size * get_world_size()))

    def _let_parameters_rest(self, runner) -> None:
        """Takes the gradients away right before each optimizer step.

        With a gradient of zero, weight decay and momentum would still move
        the parameters; without ``requires_grad``, DDP would not know them.
        """

        def drop_gradients(*unused) -> None:
            for module in self._waiting.values():
                for parameter in module.parameters():
                    parameter.grad = None

        self._handles = [
            register_step_pre_hook(wrapper.optimizer, drop_gradients)
            for wrapper in single_wrappers(runner.optim_wrapper)
        ]

    def _remove_handles(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def _realign(self, runner) -> None:
        modules = list(self._waiting.values())
        before = mean_iou(modules)
        realigned = torch.cat([module.realign() for module in modules])
        after = mean_iou(modules)
        changes = {
            function: [
                module.difference_from(
                    mean=module.running_mean, std=module.running_std)
                for module in group if not module.is_lazy
            ]
            for function, group in _by_function(modules).items()
        }
        changes = {name: values for name, values in changes.items() if values}
        for name, module in self._waiting.items():
            for copy in [*_outside(runner, name), *self._followers[module]]:
                copy.load_state_dict(module.state_dict())
        self._waiting, self._mirrors, self._followers = {}, [], {}
        self._remove_handles()
        total, count = realigned.numel(), int(realigned.sum())
        form = 'ReLU form' if changes.keys() == {'ReLU'} else 'form'
        print_log(
            f'PWLU: Phase II starts at iteration {runner.iter}. {count} of '
            f'{total} units were realigned, {total - count} degenerate ones '
            f'keep their {form}. Mean alignment IOU {before:.3f} before, '
            f'{after:.3f} after. The realignment changed ' + '; '.join(
                f'{name} by {sum(values) / len(values):.2%} in the mean of '
                f'{len(values)} modules, {max(values):.2%} at most'
                for name, values in changes.items()),
            logger='current')

    def _meet_followers(self, runner) -> None:
        """Takes in the parts of the model that turn out to be copies.

        A part of the same structure can also be a frozen network of its own,
        which must stay as it is: what tells is that its weights move, or in
        a resumed run that it was taken in before.
        """
        for mirror in list(self._mirrors):
            if not mirror.follows and not any(
                    isinstance(copy, PWLU) and copy.current_phase == PHASE_1
                    for _, _, copy in mirror.pairs()):
                continue
            self._mirrors.remove(mirror)
            if len(mirror.sources) != 1:
                there = ', '.join(mirror.sources) or 'no part'
                raise ValueError(
                    f'{mirror.name} follows another part of the model by '
                    'momentum, and PWLURealignHook cannot tell which: '
                    f'{there} of the same structure is trained. Leave out '
                    'PWLURealignHook, so that PWLU trains without phases.')
            for name, source, copy in mirror.pairs():
                if source in self._followers:
                    copies = [copy, *_outside(runner, name)]
                    self._followers[source].extend(copies)
                    for copy in copies:
                        if copy.current_phase == NO_PHASES:
                            copy.start_phase1()


def _by_function(modules: Iterable[PWLU]) -> Dict[str, List[PWLU]]:
    """By the name of the function in whose place they stand."""
    found: Dict[str, List[PWLU]] = {}
    for module in modules:
        found.setdefault(module.function.name, []).append(module)
    return found


def _outside(runner, name: str) -> List[PWLU]:
    """The same PWLU in the copies of the model that hooks hold."""
    found = []
    for hook in runner.hooks:
        for value in vars(hook).values():
            if not isinstance(value, nn.Module):
                continue
            if isinstance(value, BaseAveragedModel):
                value = value.module
            copy = dict(value.named_modules()).get(name)
            if (isinstance(copy, PWLU)
                    and copy is not unwrapped(runner.model).get_submodule(name)
                    and copy not in found):
                found.append(copy)
    return found


def trained_pwlus(model: nn.Module) -> Dict[str, PWLU]:
    """The PWLUs of a model that are not frozen, by name."""
    model = unwrapped(model)
    found = {
        name: module
        for name, module in model.named_modules() if isinstance(module, PWLU)
    }
    if not found:
        raise ValueError(
            f'PWLURealignHook found no PWLU in {type(model).__name__}. Write '
            "backbone=dict(type='SwapActivations', backbone='ResNet', "
            "swap=dict(act_cfg=dict(type='PWLU')), ...), or remove the hook.")
    return {
        name: module
        for name, module in found.items() if module.points.requires_grad
    }


def refuse_sharded(model: nn.Module, modules: List[PWLU]) -> None:
    """Raises an error where no rank holds the parameters as a whole."""
    if not (any(
            isinstance(module, FullyShardedDataParallel)
            for module in model.modules())
            or any(module.points.dim() < 2 and not module.is_lazy
                   for module in modules)):
        return
    raise ValueError(
        f'PWLURealignHook cannot realign {len(modules)} PWLU whose parameters '
        'are spread over the ranks, as FSDP and ZeRO-3 do. Train both phases '
        "with DDP, which Runner uses, or strategy=dict(type='DDPStrategy'). "
        'Without the hook PWLU trains under FSDP, too: without phases, or '
        'from a checkpoint of Phase II.')


@torch.no_grad()
def pool_statistics(modules: List[PWLU]) -> None:
    """Gives all ranks the mean and std of all ranks' inputs.

    Ranks count equally; for a unit, only those that met it. Summed in the
    order of the ranks, so that every rank gets the same bits.
    """
    if not modules or get_world_size() == 1:
        return
    means = torch.cat([m.running_mean for m in modules]).double()
    stds = torch.cat([m.running_std for m in modules]).double()
    met = (torch.cat([m.num_batches for m in modules]) > 0).double()
    local = torch.stack([met, met * means, met * (stds**2 + means**2)])
    count, first, second = torch.stack(all_gather(local)).sum(0)
    mean = first / count.clamp(min=1)
    variance = second / count.clamp(min=1) - mean**2
    std = variance.clamp(min=0).sqrt()
    sizes = [module.num_units for module in modules]
    for module, m, s, n in zip(modules, mean.split(sizes), std.split(sizes),
                               count.split(sizes)):
        module.running_mean.copy_(m)
        module.running_std.copy_(s)
        module.num_batches.clamp_(min=(n > 0).long())


def mean_iou(modules: List[PWLU]) -> float:
    """Mean alignment IOU (Eq. 7) over the units that have one."""
    return float(torch.cat([m.alignment_iou() for m in modules]).nanmean())
