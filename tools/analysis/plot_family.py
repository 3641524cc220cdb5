"""Draws the ACON family and its first derivatives.

    python tools/analysis/plot_family.py --out FILE
"""
import argparse

from drawing import save

from mm_acon.visualization.figures import family_figure


def main() -> None:
    parser = argparse.ArgumentParser(
        description='Draw the ACON family and its first derivatives')
    parser.add_argument('--out', required=True, help='PNG file to write')
    args = parser.parse_args()
    save(family_figure(), args.out)


if __name__ == '__main__':
    main()
