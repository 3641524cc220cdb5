from typing import Optional, Tuple

import torch
from mmengine.registry import MODELS
from torch import Tensor, nn

from ..compat import forget_compiled, is_compiling, is_transformed
from ..ops import pwlu
from ..ops.pwlu import MIN_WIDTH
from .base import LearnableActivation
from .function import FunctionLike
from .pwlu_fit import (Form, corner_is_near, exact_bound, form_of,
                       with_knots_at_corners)

# Values of the buffer `phase`.
NO_PHASES, PHASE_1, PHASE_2 = 0, 1, 2


class _JoinGraph(torch.autograd.Function):
    """Returns x; the parameters get a gradient of zero.

    In Phase I the output does not depend on the parameters, but
    DistributedDataParallel waits for a gradient of each of them.
    """

    @staticmethod
    def forward(ctx, x: Tensor, *parameters: Tensor) -> Tensor:
        ctx.save_for_backward(*parameters)
        return x.view_as(x)

    @staticmethod
    def backward(ctx, grad: Tensor):
        return (grad, *(torch.zeros_like(p) for p in ctx.saved_tensors))


def _in_backward() -> bool:
    """Whether this forward is the re-run of gradient checkpointing."""
    if is_compiling():
        return False
    return torch._C._current_graph_task_id() != -1


@MODELS.register_module()
class PWLU(LearnableActivation):
    r"""Piecewise linear unit (arXiv 2104.03693).

    N intervals of equal length between the bounds :math:`B_L < B_R`, values
    :math:`Y_0 \ldots Y_N` at their ends and the slopes :math:`K_L`,
    :math:`K_R` outside are learnt, N + 5 numbers per unit. The formula is in
    :func:`mm_acon.ops.pwlu`.

    A fresh PWLU is the function in whose place it stands, ReLU unless
    another is named, as far as N straight pieces between
    :math:`B_R = -B_L` = ``bound`` can be: ReLU, LeakyReLU, PReLU, ReLU6 and
    Hardtanh exactly, others by a least-squares fit. It is trained from there
    (the paper's fix-init), or in the two phases of Sec. 3.3, which
    :class:`PWLURealignHook` drives:

    - Phase I (:meth:`start_phase1`): the output is that function itself, the
      parameters get a gradient of zero, and ``running_mean`` and
      ``running_std`` of the input follow every training batch,
      r <- 0.9 r + 0.1 batch (Eq. 5). The first batch sets them.
    - Phase II (:meth:`realign`): bounds at mean -+ 3 std, again as that
      function (Eq. 6 for ReLU, a fit for others), then ordinary training.

    The phase is a buffer, so that checkpoints carry it. A fixed start serves
    an input whose std is near bound / 3; a network trained with SiLU or GELU
    has others, and keeps what it computes by the two phases alone.

    Args:
        num_channels (int, optional): C. None takes it from the first input.
        num_intervals (int): N, even, so that a knot lies at 0.
        bound (float, optional): :math:`B_R` at the start, greater than 0.
            None is 3, or the bound nearest to 3 that puts every corner of
            ``function`` on a knot, 6 for ReLU6.
        granularity (str): 'channel' for one function per channel, 'layer'
            for one.
        inplace (bool): Accepted, no effect.
        channel_axis (int, optional): Axis of the channels, 1 or -1, as in
            :class:`LearnableActivation`.
        function (optional): The element-wise function in whose place it
            stands: a config, ``dict(type='SiLU')``, a name, a class or a
            module. None is ReLU. A swap hands over what it replaces. Of
            PReLU the slopes are taken, from a checkpoint of the network
            before the swap too.

    Input and output: (N, C, ...) or (N, ..., C), any floating-point dtype.
    """

    def __init__(self,
                 num_channels: Optional[int] = None,
                 num_intervals: int = 16,
                 bound: Optional[float] = None,
                 granularity: str = 'channel',
                 inplace: bool = False,
                 channel_axis: Optional[int] = None,
                 function: FunctionLike = None) -> None:
        super().__init__(num_channels, granularity, inplace, channel_axis)
        if (not isinstance(num_intervals, int) or num_intervals < 2
                or num_intervals % 2):
            raise ValueError(
                'PWLU expects num_intervals to be an even number of at least '
                '2, so that a knot lies at 0 and the unit can start as ReLU, '
                f'got {num_intervals!r}.')
        self.stand_for(function)
        if bound is None:
            bound = exact_bound(self.function, num_intervals)
        if not MIN_WIDTH / 2 <= bound < float('inf'):
            raise ValueError('PWLU expects a finite bound of at least '
                             f'{MIN_WIDTH / 2}, got {bound!r}.')
        self.num_intervals = num_intervals
        self.bound = bound
        self._phase = NO_PHASES
        self.build()

    def add_parameters(self, num_channels: int) -> None:
        units = self.num_units
        self.points = nn.Parameter(torch.empty(units, self.num_intervals + 1))
        for name in ('left_bound', 'right_bound', 'left_slope', 'right_slope'):
            setattr(self, name, nn.Parameter(torch.empty(units)))
        self.register_buffer('running_mean', torch.zeros(units))
        self.register_buffer('running_std', torch.zeros(units))
        self.register_buffer('num_batches',
                             torch.zeros(units, dtype=torch.long))
        self.register_buffer('phase', torch.tensor(self._phase))

    def reset_parameters(self) -> None:
        left, right, form = self._start(self.function.slopes)
        self._set_form(left, right, form)

    def _start(self, slopes: Optional[Tensor]) -> Tuple[Tensor, Tensor, Form]:
        """Bounds and form of a fresh unit."""
        right = torch.tensor([float(self.bound)], device='cpu')
        if slopes is not None:
            right = right.expand(len(slopes))
        form = form_of(self.function, self.num_intervals, -right, right,
                       slopes)
        return -right, right, form

    @torch.no_grad()
    def _set_form(self,
                  left: Tensor,
                  right: Tensor,
                  form: Form,
                  chosen: Optional[Tensor] = None) -> None:
        """Gives the chosen units, or all, these bounds and that form."""
        for parameter, value in ((self.points, form.points), (self.left_bound,
                                                              left),
                                 (self.right_bound, right), (self.left_slope,
                                                             form.left_slope),
                                 (self.right_slope, form.right_slope)):
            value = value.to(parameter)
            if chosen is not None:
                mask = chosen[:, None] if value.dim() == 2 else chosen
                value = torch.where(mask, value, parameter)
            parameter.copy_(value)

    def activate(self, x: Tensor) -> Tensor:
        if self._phase == PHASE_1:
            if self.training and not _in_backward():
                self._update_statistics(x.detach())
            y = self._replaced(x)
            # torch.func takes no autograd.Function of this kind, and no one
            # waits for its gradients.
            if not is_compiling() and is_transformed():
                return y
            return _JoinGraph.apply(y, *self.parameters())
        return pwlu(x, *self._parameters.values())

    def _replaced(self, x: Tensor) -> Tensor:
        """The function in whose place the unit stands."""
        if self.channel_axis == -1 and not self.function.is_prelu:
            # As it lies: torch has other kernels for some functions of what
            # is not contiguous, and they round otherwise.
            return self.function(x.movedim(1, -1)).movedim(-1, 1)
        # PReLU's slopes rest in a parameter, which a checkpoint carries.
        return self.function(x, self.left_slope.detach())

    def curve(self, x: Tensor) -> Tensor:
        return (self._replaced(x)
                if self._phase == PHASE_1 else self.activate(x))

    @torch.no_grad()
    def _update_statistics(self, x: Tensor) -> None:
        if not x.numel():
            return
        mean, std = self._moments(x)
        # A batch that overflowed does not count.
        valid = mean.isfinite() & std.isfinite()
        weight = torch.where(self.num_batches == 0, 1.0, 0.1)
        for running, batch in ((self.running_mean, mean), (self.running_std,
                                                           std)):
            new = running + weight * (batch - running)
            running.copy_(torch.where(valid, new.to(running.dtype), running))
        # "+=" would set an attribute, and torch.compile of 2.0 takes a class
        # that does for one it cannot find in a Sequential.
        self.num_batches.add_(valid)

    def moments(self, x: Tensor) -> Tuple[Tensor, Tensor]:
        """Mean and standard deviation of an input, float32, one per unit."""
        return self._moments(self.channels_first(x))

    def _moments(self, x: Tensor) -> Tuple[Tensor, Tensor]:
        axes = [
            axis for axis in range(x.dim())
            if axis != 1 or self.granularity == 'layer'
        ]
        std, mean = torch.std_mean(x.float(), axes, correction=0)
        return mean.view(-1), std.view(-1)

    @property
    def current_phase(self) -> int:
        """0 where trained without phases, 1 in Phase I, 2 in Phase II."""
        return self._phase

    def _set_phase(self, phase: int) -> None:
        self.phase.fill_(phase)
        self._note_phase(phase)

    def _note_phase(self, phase: int) -> None:
        if phase != self._phase:
            self._phase = phase
            forget_compiled()

    @torch.no_grad()
    def start_phase1(self) -> None:
        """Enters Phase I with no statistics."""
        for buffer in (self.running_mean, self.running_std, self.num_batches):
            buffer.zero_()
        self._set_phase(PHASE_1)

    @torch.no_grad()
    def realign(self) -> Tensor:
        r"""Enters Phase II: bounds at mean -+ 3 std, still that function.

        ReLU as in Eq. 6 of the paper. Three kinds of unit cannot be ReLU
        between such bounds and keep the form they have: all of the input
        below 0, all of it above 0, and a width below
        ``mm_acon.ops.pwlu.MIN_WIDTH`` (a dead channel, or one that met no
        batch).

        Another function by its least-squares fit in Y, :math:`K_L` and
        :math:`K_R` under a normal input of that mean and std. One of
        straight pieces exactly: the bounds move by up to half an interval,
        so that a knot lies at its corner, and farther where the corner lies
        beyond them but within 12 std; without such a corner a unit keeps the
        form it has. The width is ``MIN_WIDTH`` at
        least, so that a channel that hardly varies keeps its value, and a
        unit that met no batch keeps the form it has.

        Returns:
            Tensor: Boolean, one per unit: whether it was realigned.
        """
        left, right = self.input_range()
        if self.function.is_relu:
            realigned = ((left < 0) & (right > 0)
                         & (right - left >= MIN_WIDTH))
        else:
            realigned = self.num_batches > 0
            if self.keeps_function:
                # Elsewhere the form that it has is right for every input.
                realigned &= corner_is_near(self.function, left, right)
            # A margin, since the width is what is left after rounding.
            missing = (1.001 * MIN_WIDTH - (right - left)).clamp(min=0)
            left, right = with_knots_at_corners(self.function,
                                                self.num_intervals,
                                                left - missing / 2,
                                                right + missing / 2)
        if not self.is_lazy:
            if self.function.is_prelu:
                self.function.slopes = self.left_slope
            form = form_of(self.function, self.num_intervals, left, right,
                           self.function.slopes)
            self._set_form(left, right, form, realigned)
        self._set_phase(PHASE_2)
        return realigned

    def input_range(self, x: Optional[Tensor] = None) -> Tuple[Tensor, Tensor]:
        """mean - 3 std and mean + 3 std of the input, one each per unit.

        Args:
            x (Tensor, optional): The input. None takes the statistics that
                Phase I has followed.
        """
        mean, std = ((self.running_mean,
                      self.running_std) if x is None else self.moments(x))
        return mean - 3 * std, mean + 3 * std

    @torch.no_grad()
    def alignment_iou(self, x: Optional[Tensor] = None) -> Tensor:
        """IOU of the bounds and the input's range (Eq. 7), one per unit.

        NaN for a unit that met no batch or whose input never varied.

        Args:
            x (Tensor, optional): As in :meth:`input_range`.
        """
        left, right = self.input_range(x)
        overlap = (torch.minimum(self.right_bound, right) -
                   torch.maximum(self.left_bound, left)).clamp(min=0)
        union = (self.right_bound - self.left_bound) + (right - left) - overlap
        return torch.where(right > left, overlap / union, torch.nan)

    @property
    def starts_as_relu(self) -> bool:
        return self.function.is_relu

    @property
    def keeps_function(self) -> bool:
        """Exactly, in every phase but at the realignment."""
        return bool(self._start(self.function.slopes)[-1].is_exact.all())

    def is_fresh(self) -> bool:
        """Whether the parameters are still those of a fresh PWLU."""
        if self.is_lazy:
            return True
        if self.points.dim() < 2:
            return False  # A part of it, under FSDP.
        slopes = self.left_slope.detach() if self.function.is_prelu else None
        left, right, form = self._start(slopes)
        fresh = (form.points, left, right, form.left_slope, form.right_slope)
        return all(
            torch.equal(mine,
                        other.to(mine).expand_as(mine))
            for mine, other in zip(self.parameters(), fresh))

    def is_relu_form(self) -> bool:
        """Whether this is a fresh PWLU in place of ReLU."""
        return self.function.is_relu and self.is_fresh()

    def _load_from_state_dict(self, state_dict, prefix, *args) -> None:
        super()._load_from_state_dict(state_dict, prefix, *args)
        self._note_phase(int(self.phase))
        if self.function.is_prelu and self._phase == PHASE_1:
            self.function.slopes = self.left_slope

    def extra_repr(self) -> str:
        return (f'{super().extra_repr()}, num_intervals={self.num_intervals}, '
                f'bound={self.bound}, phase={self._phase}'
                f'{self.function_repr()}')
