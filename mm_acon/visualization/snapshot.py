"""What an activation does at one moment, noted while the model runs."""
import re
from dataclasses import dataclass
from typing import Dict, List, Optional

import torch
from torch import Tensor, nn

from ..activations import PWLU, LearnableActivation, MetaACON
from ..ops import acon
from ..ops.pwlu import MIN_WIDTH, inference_table

# Of a layer's input, this many values are kept for its distribution.
NUM_VALUES = 20000


@dataclass
class Snapshot:
    r"""An activation and its input in one forward pass.

    A unit is what has parameters of its own: a channel, or the whole layer.

    Attributes:
        name: The module's name in the model.
        kind: Its class.
        num_channels: C.
        values: Part of the input's finite values, spread evenly over it.
        channels: The channels with a curve; empty if all have the same one.
        grid: Inputs of the curves, (L,): mean -+ 4 std of the values, and
            as far as the bounds of PWLU reach.
        curves: Outputs, (K, L) for K channels, or (1, L). Those of a
            meta-ACON are the first sample's.
        beta: :math:`\beta` of ACON, (C,) or (1,); of meta-ACON a row for
            each sample; None where there is no :math:`\beta`.
        slopes: PWLU's slopes from left to right, (units, N + 2), or None.
        bounds: PWLU's bounds, (units, 2), or None.
        iou: IOU of PWLU's bounds and of mean -+ 3 std of this input
            (arXiv 2104.03693, Eq. 7), (units,), NaN where the input is
            constant, or None.
        replaced: Outputs of the function in whose place it stands, (L,), or
            None for ReLU.
    """

    name: str
    kind: str
    num_channels: int
    values: Tensor
    channels: List[int]
    grid: Tensor
    curves: Tensor
    beta: Optional[Tensor] = None
    slopes: Optional[Tensor] = None
    bounds: Optional[Tensor] = None
    iou: Optional[Tensor] = None
    replaced: Optional[Tensor] = None

    @property
    def degenerate(self) -> Optional[Tensor]:
        """Whether PWLU's bounds are closer than ``MIN_WIDTH``, (units,)."""
        if self.bounds is None:
            return None
        return self.bounds[:, 1] - self.bounds[:, 0] < MIN_WIDTH

    @property
    def drawn_bounds(self) -> Tensor:
        """PWLU's bounds of the channels with a curve, (K, 2) or (1, 2)."""
        return self.bounds[self.channels] if self.channels else self.bounds


@torch.no_grad()
def take(name: str,
         module: LearnableActivation,
         x: Tensor,
         factor: Optional[Tensor] = None,
         num_channels: int = 4) -> Snapshot:
    """A snapshot of an activation.

    Args:
        name (str): The module's name.
        module (LearnableActivation): One of :func:`curve_activations`.
        x (Tensor): Its input.
        factor (Tensor, optional): :math:`G(x)` of a meta-ACON.
        num_channels (int): K, how many curves there are at most, of
            channels spread evenly over the layer.
    """
    values, beta, slopes, bounds, iou = _part(x), None, None, None, None
    if factor is not None:
        beta = _columns(factor.flatten(1)).float()
    elif hasattr(module, 'beta'):
        # A copy: the optimizer changes the parameter in place.
        beta = module.beta.to(torch.float32, copy=True)
    if isinstance(module, PWLU):
        slopes = inference_table(*module.parameters())[0].float()
        bounds = torch.stack([module.left_bound, module.right_bound], 1)
        iou = module.alignment_iou(x).float()
    x = module.channels_first(x)
    # All channels share a layer-wise activation, apart from meta-ACON's p1
    # and p2.
    channels = []
    if module.needs_width:
        count = min(num_channels, x.shape[1])
        channels = torch.linspace(0, x.shape[1] - 1, count).long().tolist()
    rows = channels or [0]
    grid = _grid(values, None if bounds is None else bounds[rows])
    curves = _curves(module, grid, x.shape[1], factor)[rows].float()
    replaced = None
    if module.function is not None and not module.function.is_relu:
        replaced = module.function(grid.expand(1, x.shape[1], -1))[0, rows[0]]
    return Snapshot(name,
                    type(module).__name__, x.shape[1], values, channels, grid,
                    curves, beta, slopes, bounds, iou, replaced)


def _columns(x: Tensor) -> Tensor:
    """At most ``NUM_VALUES`` columns at even distances.

    A whole step would meet the same columns of an image again and again.
    """
    count = x.shape[1]
    if count <= NUM_VALUES:
        return x
    steps = torch.linspace(0, count - 1, NUM_VALUES, dtype=torch.float64)
    return x[:, steps.long().to(x.device)]


def _part(x: Tensor) -> Tensor:
    """Finite values of x, at most ``NUM_VALUES``."""
    values = _columns(x.reshape(1, -1)).flatten().float()
    return values[values.isfinite()]


def _grid(values: Tensor, bounds: Optional[Tensor]) -> Tensor:
    centre, spread = 0., 1.
    if values.numel():
        # In double precision, and not too far: a run may be diverging.
        std, mean = torch.std_mean(values.cpu().double(), unbiased=False)
        # A constant input still has a curve around it.
        centre, spread = mean.item(), std.item() or 1.
    left = max(centre - 4 * spread, -1e30)
    right = min(centre + 4 * spread, 1e30)
    if bounds is not None:
        bounds = bounds[bounds.isfinite()].tolist()
        left, right = min([left, *bounds]), max([right, *bounds])
    return torch.linspace(left, right, 400, device=values.device)


def _curves(module: LearnableActivation, grid: Tensor, num_channels: int,
            factor: Optional[Tensor]) -> Tensor:
    """The function of every channel over the grid, (C, L)."""
    lines = grid.expand(1, num_channels, -1)
    if isinstance(module, MetaACON) and module.granularity != 'pixel':
        return acon(lines, module.p1, module.p2, factor[:1])[0]
    if isinstance(module, MetaACON):
        return module.activate(lines)[0]
    return module.curve(lines)[0]


class Observer:
    """Takes a snapshot of each activation at its next call.

    Neither the model nor its output changes. The first call counts where
    there are several: a head on several maps, or gradient checkpointing.
    An empty batch does not count.

    .. code-block:: python

        with Observer(curve_activations(model)) as seen:
            model(x)
        seen.snapshots['layer1.0.relu']

    Args:
        modules (dict): Activations by name, of :func:`curve_activations`.
        num_channels (int): Curves per snapshot.
    """

    def __init__(self,
                 modules: Dict[str, LearnableActivation],
                 num_channels: int = 4) -> None:
        self.snapshots: Dict[str, Snapshot] = {}
        self._modules = modules
        self._num_channels = num_channels
        self._factors: Dict[nn.Module, Tensor] = {}
        self._handles = [
            module.register_forward_hook(
                lambda module, args, output, name=name: self._take(
                    name, module, args[0]))
            for name, module in modules.items()
        ]
        for module in modules.values():
            if isinstance(module, MetaACON):
                self._note_factor(module)

    def _note_factor(self, module: MetaACON) -> None:
        """Keeps G(x) of the forward pass itself.

        Computed a second time it would move the running statistics of a
        norm, and SyncBN would wait for ranks that observe nothing.
        """
        compute = module.switching_factor

        def noted(x: Tensor) -> Tensor:
            factor = compute(x)
            self._factors[module] = factor.detach()
            return factor

        module.switching_factor = noted

    def _take(self, name: str, module: nn.Module, x: Tensor) -> None:
        factor = self._factors.pop(module, None)
        if name not in self.snapshots and x.numel():
            self.snapshots[name] = take(name, module, x.detach(), factor,
                                        self._num_channels)

    def close(self) -> None:
        for handle in self._handles:
            handle.remove()
        for module in self._modules.values():
            # The class's own method comes back.
            vars(module).pop('switching_factor', None)

    def __enter__(self) -> 'Observer':
        return self

    def __exit__(self, *error) -> None:
        self.close()


def curve_activations(model: nn.Module) -> Dict[str, LearnableActivation]:
    """Activations whose output depends on one input number, and G(x).

    Raises:
        ValueError: the model has none.
    """
    found = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, LearnableActivation) and module.is_curve
    }
    if not found:
        raise ValueError(
            f'{type(model).__name__} has no learnable activation that is a '
            'curve, like ACON, meta-ACON or PWLU. Write backbone=dict('
            "type='SwapActivations', backbone='ResNet', swap=dict(act_cfg="
            "dict(type='MetaACON')), ...), or --act PWLU to a tool.")
    return found


def choose_layers(
        modules: Dict[str, LearnableActivation],
        pattern: Optional[str] = None,
        limit: Optional[int] = None) -> Dict[str, LearnableActivation]:
    """At most so many layers, spread evenly over those that match.

    Args:
        modules (dict): Activations by name.
        pattern (str, optional): Regular expression that is searched in the
            names. None matches all.
        limit (int, optional): How many, None for all.

    Raises:
        ValueError: no name matches.
    """
    names = [
        name for name in modules
        if pattern is None or re.search(pattern, name)
    ]
    if not names:
        raise ValueError(f'No layer matches {pattern!r}; there are: ' +
                         ', '.join(modules))
    if limit is not None and limit < len(names):
        steps = torch.linspace(0, len(names) - 1, limit)
        names = [names[step] for step in steps.long().tolist()]
    return {name: modules[name] for name in names}


def scalars(snapshots: Dict[str, Snapshot]) -> Dict[str, float]:
    """Numbers that sum up some layers, without those that have no value.

    Returns:
        dict: ``beta_mean`` and ``beta_std`` over channels and, for
        meta-ACON, samples; of PWLU ``slope_mean`` and ``slope_std`` over
        units and pieces, ``alignment_iou``, the mean over units, and
        ``degenerate``, the share of units narrower than ``MIN_WIDTH``.
    """

    def all_of(attribute: str) -> Tensor:
        parts = [getattr(found, attribute) for found in snapshots.values()]
        return torch.cat([torch.empty(0)] + [
            part.flatten().float().cpu() for part in parts if part is not None
        ])

    numbers = {}
    for key, values in (('beta', all_of('beta')), ('slope', all_of('slopes'))):
        if values.numel():
            numbers[f'{key}_mean'] = values.mean()
            numbers[f'{key}_std'] = values.std(correction=0)
    iou = all_of('iou')
    if iou.numel():
        numbers['alignment_iou'] = iou.nanmean()
        numbers['degenerate'] = all_of('degenerate').mean()
    return {
        key: value.item()
        for key, value in numbers.items() if value.isfinite()
    }
