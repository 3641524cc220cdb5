"""Evaluates a checkpoint of any config that tools/train.py trains.

    python tools/test.py CONFIG CHECKPOINT [--demo] [--show-dir FOLDER]

The last line it prints is the metrics as JSON.
"""
import argparse
import json
import os
import sys

from mmengine.config import Config, DictAction
from mmengine.registry import RUNNERS
from mmengine.runner import Runner

import mm_acon  # noqa: F401  (registers)
from mm_acon.datasets.demo import demo_config
from mm_acon.engine.config import (check_files, default_work_dir, load_config,
                                   use_activation, use_ranks_without_gpu)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description='Test a detector, segmentor or classifier')
    parser.add_argument(
        'config', help='config file, or mmdet::, mmseg::, mmpretrain:: path')
    parser.add_argument(
        'checkpoint', help="checkpoint file, or 'none': untrained weights")
    parser.add_argument('--work-dir', help='folder for the metrics')
    parser.add_argument(
        '--act', metavar='TYPE', help='as it was given to train.py')
    parser.add_argument(
        '--act-include', metavar='REGEX', help='as it was given to train.py')
    parser.add_argument(
        '--demo', action='store_true', help='test on drawn shapes')
    parser.add_argument('--show', action='store_true', help='show predictions')
    parser.add_argument(
        '--show-dir', help='folder for pictures of the predictions')
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=DictAction,
        help='override settings, key=value; lists as key="[a,b]"')
    parser.add_argument(
        '--launcher',
        choices=['none', 'pytorch', 'slurm', 'mpi'],
        default='none',
        help='job launcher')
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0)
    args = parser.parse_args()
    if args.act_include and not args.act:
        parser.error('--act-include goes with --act')
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    return args


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


def find_checkpoint(path: str) -> str:
    if '://' not in path and not os.path.isfile(path):
        raise FileNotFoundError(f'There is no checkpoint {path!r} '
                                f'({os.path.abspath(path)}).')
    return path


def main() -> None:
    args = parse_args()
    try:
        cfg = load_config(args.config)
        cfg.launcher = args.launcher
        if args.act:
            use_activation(cfg, args.act, args.act_include)
        if args.demo:
            demo_config(cfg)
        if args.cfg_options:
            cfg.merge_from_dict(args.cfg_options)
        if args.checkpoint != 'none':
            cfg.load_from = find_checkpoint(args.checkpoint)
        check_files(cfg, ('test_dataloader', ))
    except (FileNotFoundError, ValueError) as error:
        sys.exit(f'test.py: {error}')

    if args.work_dir:
        cfg.work_dir = args.work_dir
    elif cfg.get('work_dir') is None:
        cfg.work_dir = default_work_dir(args.config, args.act,
                                        'demo' if args.demo else None)
    if args.show or args.show_dir:
        draw_predictions(cfg, args.show, args.show_dir)
    use_ranks_without_gpu(cfg)
    runner = (
        RUNNERS.build(cfg) if 'runner_type' in cfg else Runner.from_cfg(cfg))
    print(json.dumps(runner.test()))


if __name__ == '__main__':
    main()
