"""Trains any config of MMDetection, MMSegmentation or MMPretrain.

    python tools/train.py configs/retinanet_r50_metaacon.py
    python tools/train.py configs/retinanet_r50_metaacon.py --demo
    python tools/train.py mmdet::rpn/rpn_r50_fpn_1x_coco.py --act PWLU
"""
import argparse
import sys

import torch

import mm_acon  # noqa: F401  (registers)
from mm_acon.cli import (add_config_options, add_run_options, build_runner,
                         prepare_config)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description='Train a detector, segmentor or classifier')
    add_config_options(parser)
    add_run_options(parser)
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
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    cfg = prepare_config(args, 'train_dataloader', 'val_dataloader')
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
    build_runner(cfg, training=True).train()


if __name__ == '__main__':
    main()
