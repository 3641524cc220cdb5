"""Draws how well PWLU's bounds fit their input, layer by layer.

    python tools/analysis/plot_alignment.py CONFIG CHECKPOINT... --out FILE

The IOU of Eq. 7 (arXiv 2104.03693). The input is measured on a batch of the
test set, normalised as in training: by the batch where BatchNorm trains. A
checkpoint from Phase I is drawn before and after realignment.
"""
from pathlib import Path

from drawing import (add_layer_options, chosen_layers, observe, parser, save,
                     trained_runner)
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from mm_acon import PWLU
from mm_acon.activations.pwlu import PHASE_1
from mm_acon.visualization.figures import alignment_figure


def normalise_as_in_training(model: nn.Module) -> None:
    """BatchNorms that train take the batch's mean and variance.

    Phase I aligns the bounds to these; early in training the running ones
    of eval mode are far from them.
    """
    model.train()
    norms = [
        module for module in model.modules()
        if isinstance(module, _BatchNorm) and module.training
    ]
    model.eval()
    for norm in norms:
        norm.train()
        # The running ones stay as they are.
        norm.momentum = 0.


def main() -> None:
    arguments = parser(
        'Draw the alignment of bounds and input',
        'checkpoints',
        nargs='+',
        help='checkpoint files of the same model')
    add_layer_options(arguments, num_layers=None)
    arguments.add_argument(
        '--num-images', type=int, default=32, help='how many images')
    args = arguments.parse_args()
    args.checkpoint = args.checkpoints[0]
    runner = trained_runner(args)
    layers = chosen_layers(runner, args, PWLU)
    normalise_as_in_training(runner.model)
    cases = {}
    for checkpoint in args.checkpoints:
        runner.load_checkpoint(checkpoint)
        path = Path(checkpoint)
        name = f'{path.absolute().parent.name}/{path.stem}'
        waiting = [
            layer for layer in layers.values()
            if layer.current_phase == PHASE_1
        ]
        if waiting:
            cases[f'{name}, before realignment'] = observe(
                runner, layers, args.num_images)
            for layer in waiting:
                layer.realign()
            name += ', after realignment'
        cases[name] = observe(runner, layers, args.num_images)
    save(alignment_figure(cases), args.out)


if __name__ == '__main__':
    main()
