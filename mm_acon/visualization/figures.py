"""Figures of activations. Each function returns a matplotlib Figure.

Drawn on canvases of their own, so that the backend and the style of the
program around stay as they are.
"""
import functools
import math
from os.path import commonprefix
from pathlib import Path
from typing import Callable, Dict, List, Sequence, Tuple

import matplotlib
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from PIL import Image
from torch import Tensor

from ..ops import acon
from .snapshot import Snapshot

# Okabe and Ito's colours, told apart by colour-blind readers too.
COLOURS = ('#0072B2', '#D55E00', '#009E73', '#CC79A7', '#E69F00', '#56B4E9')
# A second sign beside the colour.
DASHES = ('-', '--', '-.', (0, (1, 1)), (0, (5, 1, 1, 1, 1, 1)), (0, (8, 2)))
STYLE = {
    'font.size': 9,
    'axes.spines.top': False,
    'axes.spines.right': False,
    'axes.titlesize': 9,
    'figure.constrained_layout.use': True,
    'figure.dpi': 110,
}
# min and max of the derivative of Swish (arXiv 2009.04759, Eq. 7 and 8).
LOWEST, HIGHEST = -0.0998, 1.0998


def styled(function: Callable) -> Callable:
    """Runs a function that draws with this package's style."""

    @functools.wraps(function)
    def in_style(*args, **kwargs):
        with matplotlib.rc_context(STYLE):
            return function(*args, **kwargs)

    return in_style


def grid_of_axes(count: int,
                 size: Tuple[float, float],
                 columns: int = 3) -> Tuple[Figure, List[Axes]]:
    """A figure with that many axes, each of that size in inches."""
    columns = min(columns, count)
    rows = -(-count // columns)
    figure = Figure(figsize=(size[0] * columns, size[1] * rows))
    axes = figure.subplots(rows, columns, squeeze=False).flat
    for unused in axes[count:]:
        unused.axis('off')
    return figure, list(axes[:count])


@styled
def family_figure() -> Figure:
    """The ACON family and its derivatives (arXiv 2009.04759, Fig. 3, 4)."""
    figure, axes = grid_of_axes(4, (4.6, 3.4), columns=2)
    x = torch.linspace(-6, 6, 601)
    family = (('ACON-A (Swish)', 1., 0.), ('ACON-B, p = 0.25', 1., 0.25),
              (r'ACON-C, $p_1$ = 1.2, $p_2$ = -0.8', 1.2, -0.8))
    for number, (label, p1, p2) in enumerate(family):
        y, _ = _acon(x, p1, p2, 1.)
        _line(axes[0], x, y, number, label)
        axes[0].plot(
            x,
            torch.maximum(p1 * x, p2 * x),
            lw=0.8,
            color=COLOURS[number],
            alpha=0.6)
    axes[0].set_title(r'The family, $\beta$ = 1; thin: its maximum functions')

    axes[1].set_title('ACON-C of 1.2x and -0.8x: '
                      r'$\beta$ makes it linear or not')
    for number, (beta, what) in enumerate(
        ((0., ' (their mean)'), (0.3, ''), (1., ''),
         (10., ' (nearly their maximum)'))):
        y, _ = _acon(x, 1.2, -0.8, beta)
        _line(axes[1], x, y, number, rf'$\beta$ = {beta:g}{what}')

    axes[2].set_title(r"f ' of ACON-A: $\beta$ sets how fast, "
                      'the bounds are fixed')
    for number, beta in enumerate((0.5, 1., 2., 10.)):
        _, slope = _acon(x, 1., 0., beta)
        _line(axes[2], x, slope, number, rf'$\beta$ = {beta:g}')
    for bound in (LOWEST, HIGHEST):
        axes[2].axhline(bound, color='0.5', lw=0.8, ls=':')
        axes[2].annotate(
            f'{bound:.4f}', (math.copysign(6, -bound), bound),
            fontsize=7.5,
            color='0.3',
            ha='left' if bound > 0 else 'right',
            va='bottom' if bound > 0 else 'top')
    axes[2].set_ylim(-0.25, 1.3)

    axes[3].set_title(r"f ' of ACON-C, $\beta$ = 1: "
                      r'$p_1$ and $p_2$ set the bounds')
    for number, (p1, p2) in enumerate(
        ((1., 0.), (1.2, -0.8), (0.8, 0.4), (1.6, 0.))):
        _, slope = _acon(x, p1, p2, 1.)
        _line(axes[3], x, slope, number, f'$p_1$ = {p1:g}, $p_2$ = {p2:g}')
    places = ('upper left', 'upper left', 'center right', 'lower right')
    for panel, output, place in zip(axes, ('f', 'f', "f '", "f '"), places):
        panel.set_xlabel('x')
        panel.set_ylabel(f'{output}(x)')
        panel.legend(fontsize=7.5, frameon=False, handlelength=3, loc=place)
    return figure


def _acon(x: Tensor, p1: float, p2: float,
          beta: float) -> Tuple[Tensor, Tensor]:
    """ACON-C and its first derivative."""
    x = x.view(1, 1, -1).detach().requires_grad_()
    y = acon(x, *(torch.tensor([number]) for number in (p1, p2, beta)))
    slope, = torch.autograd.grad(y.sum(), x)
    return y.detach().flatten(), slope.flatten()


def _line(axes: Axes, x: Tensor, y: Tensor, number: int, label: str) -> None:
    axes.plot(x, y, color=COLOURS[number], ls=DASHES[number], label=label)


@styled
def shapes_figure(snapshots: Sequence[Snapshot]) -> Figure:
    """Learnt activations beside ReLU (arXiv 2104.03693, Fig. 7).

    Or beside the function in whose place they stand.
    """
    figure, axes = grid_of_axes(len(snapshots), (4.2, 3.2))
    for snapshot, panel in zip(snapshots, axes):
        _draw_shape(panel, snapshot, _shape_limits([snapshot]))
    figure.suptitle('Learnt activations of some channels')
    _explain_shapes(figure, snapshots)
    return figure


def _explain_shapes(figure: Figure, snapshots: Sequence[Snapshot]) -> None:
    others = any(snapshot.replaced is not None for snapshot in snapshots)
    label = 'what was there before' if others else 'ReLU'
    handles = [
        Line2D([], [], color='black', ls='--', lw=1.2, label=label),
        Patch(color='0.88', label="distribution of the layer's input")
    ]
    if any(snapshot.bounds is not None for snapshot in snapshots):
        handles.append(
            Line2D([], [], color='0.4', ls=':', lw=1, label="PWLU's bounds"))
    figure.legend(
        handles=handles, loc='outside lower center', ncol=3, frameon=False)


Limits = Tuple[Tuple[float, float], Tuple[float, float]]


def _shape_limits(snapshots: Sequence[Snapshot]) -> Limits:
    """Ends of both axes that hold all of these snapshots of one layer."""
    left = min(snapshot.grid[0].item() for snapshot in snapshots)
    right = max(snapshot.grid[-1].item() for snapshot in snapshots)
    outputs = torch.cat([snapshot.curves.flatten() for snapshot in snapshots])
    outputs = outputs[outputs.isfinite()].tolist()
    low, high = min([0, *outputs]), max([0, right, *outputs])
    margin, edge = 0.06 * (high - low) or 1, 0.02 * (right - left)
    return (left - edge, right + edge), (low - margin, high + margin)


def _draw_shape(axes: Axes, snapshot: Snapshot, limits: Limits) -> None:
    density = axes.twinx()
    density.hist(
        snapshot.values.cpu().numpy(), bins=80, range=limits[0], color='0.88')
    density.set_yticks([])
    density.spines['left'].set_visible(False)
    axes.set_zorder(density.get_zorder() + 1)
    axes.patch.set_visible(False)

    grid, bounds = snapshot.grid.cpu(), None
    if snapshot.replaced is None:
        ends = torch.tensor([limits[0][0], 0, limits[0][1]])
        axes.plot(ends, ends.relu(), color='black', ls='--', lw=1.2)
    else:
        axes.plot(
            grid, snapshot.replaced.cpu(), color='black', ls='--', lw=1.2)
    if snapshot.bounds is not None:
        bounds = snapshot.drawn_bounds.tolist()
    for row, curve in enumerate(snapshot.curves.cpu()):
        colour = COLOURS[row % len(COLOURS)]
        label = (f'channel {snapshot.channels[row]}'
                 if snapshot.channels else 'all channels')
        axes.plot(grid, curve, color=colour, label=label)
        for bound in bounds[row] if bounds else ():
            axes.axvline(bound, color=colour, lw=1, ls=':')
    axes.set_xlim(limits[0])
    axes.set_ylim(limits[1])
    axes.set_title(f'{snapshot.name}\n({snapshot.kind}, '
                   f'{snapshot.num_channels} channels)')
    axes.set_xlabel('input')
    axes.set_ylabel('output')
    axes.legend(fontsize=7, edgecolor='none', framealpha=0.8, loc='upper left')


@styled
def training_frames(history: Dict[str, Dict[str, Snapshot]]) -> List[Figure]:
    """A figure of the same layers for each moment, with the same axes.

    Args:
        history (dict): What moment it is, and the snapshots at that moment
            by layer.
    """
    layers = list(next(iter(history.values())))
    limits = {
        layer: _shape_limits([taken[layer] for taken in history.values()])
        for layer in layers
    }
    frames = []
    for moment, taken in history.items():
        figure, axes = grid_of_axes(len(layers), (4.2, 3.2))
        for layer, panel in zip(layers, axes):
            _draw_shape(panel, taken[layer], limits[layer])
        figure.suptitle(moment)
        _explain_shapes(figure, list(taken.values()))
        frames.append(figure)
    return frames


@styled
def beta_figure(snapshot: Snapshot) -> Figure:
    r"""Distribution of :math:`\beta` per sample (arXiv 2009.04759, Fig. 5).

    One row for each sample of a meta-ACON, one for all of an ACON.
    """
    beta = snapshot.beta.cpu().numpy()
    rows = beta if beta.ndim == 2 else beta[None]
    finite = rows[np.isfinite(rows)]
    left, right = (finite.min(), finite.max()) if finite.size else (0, 1)
    margin = 0.04 * (right - left) or 0.01
    bins = np.linspace(left - margin, right + margin, 61)
    figure = Figure(figsize=(6, 1.4 + 0.55 * len(rows)))
    panels = figure.subplots(len(rows), 1, sharex=True, squeeze=False).flat
    for number, (row, axes) in enumerate(zip(rows, panels)):
        colour = COLOURS[number % len(COLOURS)]
        axes.hist(row[np.isfinite(row)], bins=bins, color=colour)
        axes.axvline(row.mean(), color='black', lw=1)
        axes.set_yticks([])
        axes.spines['left'].set_visible(False)
        axes.set_ylabel(
            f'image {number + 1}' if beta.ndim == 2 else 'all images',
            rotation=0,
            ha='right',
            va='center')
        axes.annotate(
            f'{row.mean():.3f} \u00b1 {row.std():.3f}', (1, 0.95),
            xycoords='axes fraction',
            ha='right',
            va='top',
            fontsize=8)
    axes.set_xlabel(r'$\beta$   (0: linear; larger: less linear)')
    figure.suptitle(rf'$\beta$ of {snapshot.name}' + f'\n({snapshot.kind}, '
                    f'{snapshot.num_channels} channels); line: mean; '
                    'number: mean \u00b1 std')
    return figure


@styled
def alignment_figure(cases: Dict[str, Dict[str, Snapshot]]) -> Figure:
    """IOU of bounds and input by layer (arXiv 2104.03693, Eq. 7, Fig. 6).

    Args:
        cases (dict): What is compared, and the PWLU snapshots of each case
            by layer.
    """
    layers = list(next(iter(cases.values())))
    width = max(6, 1.5 + 0.28 * len(layers))
    figure = Figure(figsize=(width + 2, 1.6 + 1.7 * len(cases)))
    panels = figure.subplots(
        len(cases),
        2,
        sharex='col',
        sharey=True,
        squeeze=False,
        width_ratios=(width, 2))
    for number, (case, taken) in enumerate(cases.items()):
        by_layer, overall = panels[number]
        colour = COLOURS[number % len(COLOURS)]
        units = []
        for place, layer in enumerate(layers):
            iou = taken[layer].iou.cpu().numpy()
            iou = iou[np.isfinite(iou)]
            units.append(iou)
            if iou.size:
                low, first, middle, third, high = np.percentile(
                    iou, (5, 25, 50, 75, 95))
                by_layer.vlines(place, low, high, color=colour, lw=1)
                by_layer.vlines(place, first, third, color=colour, lw=6)
                by_layer.plot(
                    place, middle, 'o', ms=4, mfc='white', mec='black')
        units = np.concatenate(units)
        mean = f'{units.mean():.2f}' if units.size else 'none'
        overall.hist(
            units,
            bins=40,
            range=(0, 1),
            orientation='horizontal',
            color=colour)
        overall.set_xticks([])
        overall.set_title(f'all units: mean {mean}')
        by_layer.set_title(case)
        by_layer.set_ylabel('IOU')
        by_layer.set_ylim(-0.02, 1.02)
        by_layer.grid(axis='y', color='0.9')
        by_layer.set_axisbelow(True)
    prefix = commonprefix([layer.rpartition('.')[0] + '.'
                           for layer in layers]).rpartition('.')[0]
    names = [layer[len(prefix):].lstrip('.') for layer in layers]
    by_layer.set_xticks(range(len(layers)), names, rotation=90, fontsize=7)
    by_layer.set_xlabel(f'layer of {prefix}' if prefix else 'layer')
    overall.set_xlabel('units')
    figure.suptitle(
        "Alignment: IOU of PWLU's bounds and its input's mean \u00b1 3 std\n"
        'dot: median of a layer; bar: middle half; line: 5 to 95 %')
    return figure


def to_image(figure: Figure) -> np.ndarray:
    """The figure's pixels, (H, W, 3), RGB, uint8."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def save_animation(frames: Sequence[Figure],
                   path: str,
                   seconds: float = 0.9) -> None:
    """Writes figures of one size to an animated GIF; the last stays longer."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    images = [Image.fromarray(to_image(frame)).quantize() for frame in frames]
    durations = [int(1000 * seconds)] * len(images)
    durations[-1] *= 3
    images[0].save(
        path,
        save_all=True,
        append_images=images[1:],
        duration=durations,
        loop=0)
