"""Evaluates a checkpoint of any config that tools/train.py trains.

    python tools/test.py CONFIG CHECKPOINT [--demo] [--show-dir FOLDER]

The last line it prints is the metrics as JSON.
"""
import argparse
import copy
import json
import sys

from mmengine.config import Config, ConfigDict

import mm_acon  # noqa: F401  (registers)
from mm_acon.cli import (add_config_options, add_run_options, build_runner,
                         prepare_config)
from mm_acon.swap.config import type_name


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
    parser.add_argument(
        '--tta', action='store_true', help='test-time augmentation')
    return parser.parse_args()


def draw_predictions(cfg: Config, show: bool, show_dir: str) -> None:
    """Switches the library's own visualisation hook on."""
    hook = (cfg.get('default_hooks') or {}).get('visualization')
    if hook is None:
        sys.exit('test.py: --show and --show-dir need '
                 "default_hooks=dict(visualization=dict(type='...')) in the "
                 f'config, {cfg.filename} has none.')
    hook.show = show
    library = type_name(hook)
    if library.endswith('DetVisualizationHook'):
        hook.draw, hook.test_out_dir = True, show_dir
    elif library.endswith('SegVisualizationHook'):
        hook.draw = True
        if show_dir:
            cfg.visualizer.save_dir = show_dir
    else:
        hook.enable, hook.out_dir = True, show_dir


def augment_tests(cfg: Config) -> None:
    """Switches the config's test-time augmentation on.

    Detectors without one of their own get what MMDetection's tool gives
    them: each image flipped and unflipped.
    """
    dataset = cfg.test_dataloader.dataset
    while 'dataset' in dataset:
        dataset = dataset.dataset
    if type_name(dataset.pipeline[-1]) == 'PackDetInputs':
        cfg.setdefault(
            'tta_model',
            ConfigDict(
                type='DetTTAModel',
                tta_cfg=dict(
                    nms=dict(type='nms', iou_threshold=0.5), max_per_img=100)))
        if 'tta_pipeline' not in cfg:
            keys = ('img_id', 'img_path', 'ori_shape', 'img_shape',
                    'scale_factor', 'flip', 'flip_direction')
            flips = dict(
                type='TestTimeAug',
                transforms=[[
                    dict(type='mmdet.RandomFlip', prob=1.),
                    dict(type='mmdet.RandomFlip', prob=0.)
                ], [dict(type='mmdet.PackDetInputs', meta_keys=keys)]])
            cfg.tta_pipeline = [*copy.deepcopy(dataset.pipeline[:-1]), flips]
    lacking = [
        key for key in ('tta_model', 'tta_pipeline') if not cfg.get(key)
    ]
    if lacking:
        sys.exit(f'test.py: --tta needs {" and ".join(lacking)} in the '
                 f'config, {cfg.filename} has none.')
    cfg.model = ConfigDict(**cfg.tta_model, module=cfg.model)
    dataset.pipeline = cfg.tta_pipeline


def main() -> None:
    args = parse_args()
    cfg = prepare_config(args, 'test_dataloader')
    if args.tta:
        augment_tests(cfg)
    if args.show or args.show_dir:
        draw_predictions(cfg, args.show, args.show_dir)
    metrics = build_runner(cfg).test()
    # Some are numbers of numpy.
    print(json.dumps(metrics, default=lambda value: value.tolist()))


if __name__ == '__main__':
    main()
