"""Evaluates a checkpoint of any config that tools/train.py trains.

    python tools/test.py CONFIG CHECKPOINT [--demo] [--show-dir FOLDER]

The last line it prints is the metrics as JSON.
"""
import argparse
import json
import sys

from mmengine.config import Config

import mm_acon  # noqa: F401  (registers)
from mm_acon.engine.config import (add_config_options, add_run_options,
                                   build_runner, prepare_config)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description='Test a detector, segmentor or classifier')
    add_config_options(parser)
    add_run_options(parser)
    parser.add_argument(
        'checkpoint', help="checkpoint file, or 'none': untrained weights")
    parser.add_argument('--show', action='store_true', help='show predictions')
    parser.add_argument(
        '--show-dir', help='folder for pictures of the predictions')
    return parser.parse_args()


def draw_predictions(cfg: Config, show: bool, show_dir: str) -> None:
    """Switches the library's own visualisation hook on."""
    hook = cfg.default_hooks.get('visualization')
    if hook is None:
        sys.exit('test.py: --show and --show-dir need '
                 "default_hooks=dict(visualization=dict(type='...')) in the "
                 f'config, {cfg.filename} has none.')
    hook.show = show
    if hook.type.endswith('DetVisualizationHook'):
        hook.draw, hook.test_out_dir = True, show_dir
    elif hook.type.endswith('SegVisualizationHook'):
        hook.draw = True
        if show_dir:
            cfg.visualizer.save_dir = show_dir
    else:
        hook.enable, hook.out_dir = True, show_dir


def main() -> None:
    args = parse_args()
    cfg = prepare_config(args, 'test_dataloader')
    if args.show or args.show_dir:
        draw_predictions(cfg, args.show, args.show_dir)
    print(json.dumps(build_runner(cfg).test()))


if __name__ == '__main__':
    main()
