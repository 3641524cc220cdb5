"""Draws the distribution of beta in a layer, image by image.

    python tools/analysis/plot_beta.py CONFIG CHECKPOINT --out FILE

meta-ACON has its own betas for each image, ACON one beta per channel for
all of them.
"""
from drawing import chosen_layers, observe, parser, save, trained_runner

from mm_acon import ACONA, ACONB, ACONC, MetaACON
from mm_acon.visualization.figures import beta_figure


def main() -> None:
    arguments = parser('Draw the distribution of beta per image')
    arguments.add_argument(
        '--layer',
        dest='layers',
        metavar='REGEX',
        help='the last layer whose name matches; default: the last of all')
    arguments.add_argument(
        '--num-images', type=int, default=7, help='how many images')
    arguments.set_defaults(num_layers=None)
    args = arguments.parse_args()
    runner = trained_runner(args)
    layers = chosen_layers(runner, args, ACONA, ACONB, ACONC, MetaACON)
    found = observe(runner, layers, args.num_images)
    save(beta_figure(list(found.values())[-1]), args.out)


if __name__ == '__main__':
    main()
