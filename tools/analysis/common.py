"""What the drawing tools share."""
import argparse
import sys
from pathlib import Path

import matplotlib
from mmengine.config import DictAction
from mmengine.runner import Runner

import mm_acon  # noqa: F401  (registers)
from mm_acon.datasets.demo import demo_config
from mm_acon.engine.config import check_files, load_config, use_activation

matplotlib.use('Agg')

# Okabe and Ito's colours, told apart by colour-blind readers too.
COLOURS = ('#0072B2', '#D55E00', '#009E73', '#CC79A7', '#E69F00', '#56B4E9')
STYLE = {
    'font.size': 9,
    'axes.spines.top': False,
    'axes.spines.right': False,
    'axes.titlesize': 9,
    'figure.dpi': 130,
    'savefig.bbox': 'tight',
}


def parser(description: str) -> argparse.ArgumentParser:
    """Arguments of a tool that draws what a checkpoint has learnt."""
    found = argparse.ArgumentParser(description=description)
    found.add_argument(
        'config', help='config file, or mmdet::, mmseg::, mmpretrain:: path')
    found.add_argument('checkpoint', help='checkpoint file')
    found.add_argument('--out', required=True, help='PNG file to write')
    found.add_argument(
        '--act', metavar='TYPE', help='as it was given to train.py')
    found.add_argument(
        '--act-include', metavar='REGEX', help='as it was given to train.py')
    found.add_argument(
        '--demo', action='store_true', help='look at drawn shapes')
    found.add_argument(
        '--cfg-options',
        nargs='+',
        action=DictAction,
        help='override settings, key=value')
    return found


def trained_runner(args: argparse.Namespace) -> Runner:
    """A Runner in eval mode that has loaded the checkpoint."""
    try:
        cfg = load_config(args.config)
        if args.act:
            use_activation(cfg, args.act, args.act_include)
        if args.demo:
            demo_config(cfg)
        if args.cfg_options:
            cfg.merge_from_dict(args.cfg_options)
        if not Path(args.checkpoint).is_file():
            raise FileNotFoundError(
                f'There is no checkpoint {args.checkpoint!r} '
                f'({Path(args.checkpoint).absolute()}).')
        check_files(cfg, ('test_dataloader', ))
    except (FileNotFoundError, ValueError) as error:
        sys.exit(f'{Path(sys.argv[0]).name}: {error}')
    cfg.work_dir = str(Path(args.out).parent)
    cfg.load_from = args.checkpoint
    runner = Runner.from_cfg(cfg)
    runner.load_or_resume()
    runner.model.eval()
    return runner


def save(figure, out: str) -> None:
    Path(out).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out)
    print(f'wrote {out}')
