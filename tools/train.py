"""Trains any config of MMDetection, MMSegmentation or MMPretrain.

    python tools/train.py configs/retinanet_r50_metaacon.py
    python tools/train.py configs/retinanet_r50_metaacon.py --demo
    python tools/train.py mmdet::rpn/rpn_r50_fpn_1x_coco.py --act PWLU
"""
import argparse
import os
import sys

import torch
from mmengine.config import DictAction
from mmengine.registry import RUNNERS
from mmengine.runner import Runner

import mm_acon  # noqa: F401  (registers)
from mm_acon.datasets.demo import demo_config
from mm_acon.engine.config import (check_files, default_work_dir, load_config,
                                   use_activation, use_ranks_without_gpu)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description='Train a detector, segmentor or classifier')
    parser.add_argument(
        'config', help='config file, or mmdet::, mmseg::, mmpretrain:: path')
    parser.add_argument('--work-dir', help='folder for logs and checkpoints')
    parser.add_argument(
        '--act',
        metavar='TYPE',
        help="replace the backbone's ReLUs by this activation, e.g. PWLU")
    parser.add_argument(
        '--act-include',
        metavar='REGEX',
        help='only at sites whose name matches, e.g. "\\.conv2$"')
    parser.add_argument(
        '--demo',
        action='store_true',
        help='train on drawn shapes, small and short, without pretrained '
        'weights')
    parser.add_argument(
        '--amp', action='store_true', help='automatic mixed precision')
    parser.add_argument(
        '--auto-scale-lr',
        action='store_true',
        help='scale the learning rate to the actual batch size')
    parser.add_argument(
        '--resume',
        nargs='?',
        const='auto',
        help='resume from this checkpoint, or without a value from the '
        'latest one in the work dir')
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
    # torch.distributed.launch passes it with a dash.
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0)
    args = parser.parse_args()
    if args.act_include and not args.act:
        parser.error('--act-include goes with --act')
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    return args


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
        check_files(cfg, ('train_dataloader', 'val_dataloader'))
    except (FileNotFoundError, ValueError) as error:
        sys.exit(f'train.py: {error}')

    if args.work_dir:
        cfg.work_dir = args.work_dir
    elif cfg.get('work_dir') is None:
        cfg.work_dir = default_work_dir(args.config, args.act,
                                        'demo' if args.demo else None)
    if args.amp:
        if not torch.cuda.is_available():
            sys.exit('train.py: --amp needs a GPU, and there is none in '
                     'sight; leave it out.')
        cfg.optim_wrapper.type = 'AmpOptimWrapper'
        cfg.optim_wrapper.setdefault('loss_scale', 'dynamic')
    if args.auto_scale_lr:
        if 'base_batch_size' not in cfg.get('auto_scale_lr', {}):
            sys.exit('train.py: --auto-scale-lr needs '
                     'auto_scale_lr=dict(base_batch_size=...) in the config, '
                     f'{args.config} has none.')
        cfg.auto_scale_lr.enable = True
    if args.resume:
        cfg.resume = True
        cfg.load_from = None if args.resume == 'auto' else args.resume

    use_ranks_without_gpu(cfg)
    runner = (
        RUNNERS.build(cfg) if 'runner_type' in cfg else Runner.from_cfg(cfg))
    runner.train()


if __name__ == '__main__':
    main()
