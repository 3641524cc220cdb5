"""Trains the toy model in a process of its own, or in several ranks.

Usage: run_toy.py WORK_DIR [--kill-at ITERATION] [--launcher pytorch]
"""
import argparse
import sys
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.dist import get_rank
from mmengine.model import is_model_wrapper

sys.path.insert(0, str(Path(__file__).parents[2]))
from mm_acon.cli import use_ranks_without_gpu  # noqa: E402
from tests.helpers.toy import StopAt, make_runner  # noqa: E402

if __name__ == '__main__':
    parser = argparse.ArgumentParser()
    parser.add_argument('work_dir')
    parser.add_argument('--kill-at', type=int)
    parser.add_argument('--launcher', default='none')
    args = parser.parse_args()
    torch.set_num_threads(1)
    hooks = [dict(type='PWLURealignHook', phase1_epochs=2)]
    if args.kill_at is not None:
        hooks.append(StopAt(args.kill_at, kill=True))
    cfg = Config(dict(launcher=args.launcher))
    use_ranks_without_gpu(cfg)
    runner = make_runner(args.work_dir, hooks, launcher=args.launcher, cfg=cfg)
    runner.train()
    model = runner.model
    model = model.module if is_model_wrapper(model) else model
    torch.save(model.state_dict(),
               Path(args.work_dir) / f'rank{get_rank()}.pth')
