"""Draws the learnt activations of a few layers beside ReLU.

    python tools/analysis/plot_activations.py CONFIG CHECKPOINT --out FILE

Behind the curves of a layer lies the distribution of its input on one batch
of the test set; a meta-ACON is drawn for the first image of that batch.
"""
import sys
from typing import Dict

import matplotlib.pyplot as plt
import torch
from common import COLOURS, STYLE, parser, save, trained_runner
from torch import Tensor

from mm_acon import PWLU, LearnableActivation, MetaACON
from mm_acon.ops import acon


def curves(module: LearnableActivation, x: Tensor, grid: Tensor) -> Tensor:
    """The function of every channel over the grid, shape (C, len(grid))."""
    lines = grid.expand(1, x.shape[1], -1).to(x)
    if isinstance(module, MetaACON) and module.granularity != 'pixel':
        beta = module.switching_factor(x[:1])
        return acon(lines, module.p1, module.p2, beta)[0]
    return module(lines)[0]


def scalar_activations(model: torch.nn.Module) -> Dict[str, torch.nn.Module]:
    """Activations whose output depends on one input number and G(x)."""
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, LearnableActivation)
        and not hasattr(module, 'lines')
    }


def capture_inputs(runner, modules, num_images: int) -> Dict[str, Tensor]:
    inputs: Dict[str, Tensor] = {}
    handles = [
        module.register_forward_pre_hook(
            lambda module, args, name=name: inputs.setdefault(
                name, args[0].detach())) for name, module in modules.items()
    ]
    dataset = runner.test_dataloader.dataset
    batch = [dataset[index] for index in range(min(num_images, len(dataset)))]
    runner.model.test_step(runner.test_dataloader.collate_fn(batch))
    for handle in handles:
        handle.remove()
    return inputs


def draw_layer(axes, name: str, module, x: Tensor, num_channels: int) -> None:
    values = x.float().flatten()
    centre, spread = values.mean().item(), values.std().item()
    left, right = centre - 4 * spread, centre + 4 * spread
    grid = torch.linspace(left, right, 400, device=x.device)
    y = curves(module, x, grid).float().cpu()
    grid = grid.cpu()
    density = axes.twinx()
    density.hist(
        values.clamp(left, right).cpu(), bins=80, color='0.9', zorder=0)
    density.set_yticks([])
    density.spines['left'].set_visible(False)
    axes.set_zorder(density.get_zorder() + 1)
    axes.patch.set_visible(False)
    axes.plot(grid, grid.relu(), color='black', ls='--', lw=1.2, label='ReLU')
    channels = torch.linspace(0, len(y) - 1, num_channels).long().unique()
    for channel, colour in zip(channels.tolist(), COLOURS):
        axes.plot(grid, y[channel], color=colour, label=f'channel {channel}')
        if isinstance(module, PWLU):
            row = channel if module.granularity == 'channel' else 0
            for bound in (module.left_bound[row], module.right_bound[row]):
                axes.axvline(bound.item(), color=colour, lw=0.6, ls=':')
    low, high = y[channels].min().item(), y[channels].max().item()
    low, high = min(low, 0), max(high, right)
    axes.set_ylim(low - 0.08 * (high - low), high + 0.08 * (high - low))
    axes.set_title(f'{name} ({type(module).__name__}, {len(y)} channels)')
    axes.set_xlabel('input')
    axes.set_ylabel('output')
    axes.legend(fontsize=7, frameon=False, loc='upper left')


def main() -> None:
    arguments = parser('Draw learnt activations')
    arguments.add_argument(
        '--num-layers', type=int, default=6, help='how many layers')
    arguments.add_argument(
        '--num-channels', type=int, default=4, help='channels per layer')
    args = arguments.parse_args()
    runner = trained_runner(args)
    modules = scalar_activations(runner.model)
    if not modules:
        sys.exit('plot_activations.py: the model has no learnable activation '
                 '(ACON, meta-ACON or PWLU) that is a curve.')
    names = list(modules)
    steps = torch.linspace(0, len(names) - 1, min(args.num_layers, len(names)))
    modules = {names[i]: modules[names[i]] for i in steps.long().tolist()}
    with plt.rc_context(STYLE), torch.no_grad():
        inputs = capture_inputs(runner, modules, num_images=8)
        columns = min(3, len(modules))
        rows = -(-len(modules) // columns)
        figure, grid = plt.subplots(
            rows, columns, figsize=(4.2 * columns, 3.2 * rows), squeeze=False)
        for axes in grid.flat[len(modules):]:
            axes.axis('off')
        for (name, module), axes in zip(modules.items(), grid.flat):
            draw_layer(axes, name, module, inputs[name], args.num_channels)
        figure.suptitle('Learnt activations beside ReLU; grey: distribution '
                        "of the layer's input")
        figure.tight_layout()
        save(figure, args.out)


if __name__ == '__main__':
    main()
