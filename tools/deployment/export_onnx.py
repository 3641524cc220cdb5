"""Writes a trained model as ONNX and compares the two.

    python tools/deployment/export_onnx.py CONFIG CHECKPOINT
    python tools/deployment/export_onnx.py CONFIG --demo --part backbone

The input is what the data preprocessor makes of images: (N, 3, H, W), any N,
H and W. The outputs are those of the network: a classifier's scores before
softmax, a segmentor's before they are enlarged, the maps of a one-stage
detector's head. A detector of two stages ends in operators that ONNX does not
have, so of it there are the backbone and the features. The exit status is 1
where onnxruntime's outputs differ from PyTorch's by more than the tolerance,
or where the file needs an operator that is not ONNX's own.
"""
import argparse
import logging
import sys
from pathlib import Path
from typing import NoReturn

import torch
from mmengine.logging import MMLogger
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import MODELS, init_default_scope
from mmengine.runner import load_checkpoint
from torch import Tensor, nn

import mm_acon  # noqa: F401  (registers)
from mm_acon.cli import add_config_options, prepare_config
from mm_acon.deployment import compare_onnx, count_operators, export_onnx


class Features(nn.Module):
    """The backbone and the neck of a model."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, inputs: Tensor):
        return self.model.extract_feat(inputs)


def stop(message) -> NoReturn:
    sys.exit(f'export_onnx.py: {message}')


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    add_config_options(parser)
    parser.add_argument(
        'checkpoint',
        nargs='?',
        help='checkpoint file; without one the weights are random')
    parser.add_argument('--out', help='default: <work dir>/<part>.onnx')
    parser.add_argument(
        '--part',
        choices=['backbone', 'features', 'model'],
        default='model',
        help='features: backbone and neck')
    parser.add_argument(
        '--shape',
        type=int,
        nargs=2,
        default=(224, 224),
        metavar=('H', 'W'),
        help='size of the example, 224 224 if not given; others are compared '
        'too')
    parser.add_argument(
        '--tolerance',
        type=float,
        default=1e-4,
        help='largest difference, times the largest output where that is '
        'above 1; 1e-4 if not given')
    return parser.parse_args()


def build_part(args: argparse.Namespace) -> nn.Module:
    cfg = prepare_config(args)
    args.out = Path(args.out or Path(cfg.work_dir) / f'{args.part}.onnx')
    init_default_scope(cfg.get('default_scope', 'mmengine'))
    torch.manual_seed(0)
    model = MODELS.build(cfg.model)
    if cfg.get('load_from'):
        try:
            load_checkpoint(
                model, cfg.load_from, map_location='cpu', strict=True)
        except RuntimeError as error:
            raise ValueError(f'{cfg.load_from} is no checkpoint of the model '
                             f'in {args.config}. {error}') from error
    else:
        print('There is no checkpoint: the weights are random.')
    model = revert_sync_batchnorm(model)
    model.eval()
    if args.part == 'backbone':
        return model.backbone
    return Features(model) if args.part == 'features' else model


def run(model: nn.Module, example: Tensor, args: argparse.Namespace) -> None:
    """As it is, since what does not run cannot be exported either."""
    try:
        with torch.no_grad():
            model(example)
    except Exception as error:
        advice = ('write --part features'
                  if args.part == 'model' else 'try another --shape')
        stop(f'the {args.part} of {args.config} does not run on a bare batch '
             f'of shape {tuple(example.shape)} ({type(error).__name__}: '
             f'{error}); {advice}.')


def main() -> None:
    args = parse_args()
    # The swap's report is long.
    MMLogger.get_current_instance().setLevel(logging.ERROR)
    try:
        model = build_part(args)
    except ValueError as error:
        stop(error)
    height, width = args.shape
    example = torch.randn(2, 3, height, width)
    run(model, example, args)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    try:
        export_onnx(model, example, args.out)
        operators = count_operators(args.out)
    except (NotImplementedError, ValueError) as error:
        stop(error)
    print(f'wrote {args.out}: {sum(operators.values())} nodes, all of '
          "ONNX's own operators")
    print(', '.join(f'{name} {n}' for name, n in operators.most_common()))
    worst = 0.
    for shape in ((2, height, width), (1, height + 32, width),
                  (3, height - height // 4, width + 19)):
        inputs = torch.randn(shape[0], 3, *shape[1:])
        difference, largest = compare_onnx(model, args.out, inputs)
        print(f'batch of {shape[0]}, {shape[1]}x{shape[2]}: maximum '
              f'difference {difference:.1e}, largest output {largest:.3g}')
        worst = max(worst, difference / max(1, largest))
    if worst > args.tolerance:
        stop(f'the outputs differ by more than {args.tolerance:g}.')


if __name__ == '__main__':
    main()
