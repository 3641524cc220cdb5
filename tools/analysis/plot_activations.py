"""Draws the learnt activations of a few layers beside ReLU.

    python tools/analysis/plot_activations.py CONFIG CHECKPOINT --out FILE

Behind the curves of a layer lies the distribution of its input on a few
images of the test set; a meta-ACON is drawn for the first of them.
"""
from drawing import (add_layer_options, chosen_layers, observe, parser, save,
                     trained_runner)

from mm_acon.visualization.figures import shapes_figure


def main() -> None:
    arguments = parser('Draw learnt activations')
    add_layer_options(arguments)
    arguments.add_argument(
        '--num-channels', type=int, default=4, help='channels per layer')
    args = arguments.parse_args()
    runner = trained_runner(args)
    layers = chosen_layers(runner, args)
    found = observe(runner, layers, 8, args.num_channels)
    save(shapes_figure(list(found.values())), args.out)


if __name__ == '__main__':
    main()
