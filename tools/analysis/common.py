"""What the drawing tools share, and what the benchmarks share."""
import argparse
import ctypes
import json
import platform
import sys
import time
from pathlib import Path
from typing import Callable, List, Optional

import torch
from mmengine.runner import Runner

import mm_acon  # noqa: F401  (registers)
from mm_acon.engine.config import (add_config_options, build_runner,
                                   prepare_config)
from mm_acon.ops.extension import DEVICES

# Okabe and Ito's colours, told apart by colour-blind readers too.
COLOURS = ('#0072B2', '#D55E00', '#009E73', '#CC79A7', '#E69F00', '#56B4E9')
STYLE = {
    # Draws into files.
    'backend': 'Agg',
    'font.size': 9,
    'axes.spines.top': False,
    'axes.spines.right': False,
    'axes.titlesize': 9,
    'figure.dpi': 130,
    'savefig.bbox': 'tight',
}
DTYPES = dict(
    float32=torch.float32, bfloat16=torch.bfloat16, float16=torch.float16)
LAYOUTS = dict(
    contiguous=torch.contiguous_format, channels_last=torch.channels_last)


def parser(description: str) -> argparse.ArgumentParser:
    """Arguments of a tool that draws what a checkpoint has learnt."""
    found = argparse.ArgumentParser(description=description)
    add_config_options(found)
    found.add_argument('checkpoint', help='checkpoint file')
    found.add_argument('--out', required=True, help='PNG file to write')
    return found


def trained_runner(args: argparse.Namespace) -> Runner:
    """A Runner in eval mode that has loaded the checkpoint."""
    args.work_dir = str(Path(args.out).parent)
    runner = build_runner(prepare_config(args, 'test_dataloader'))
    runner.load_or_resume()
    runner.model.eval()
    return runner


def save(figure, out: str) -> None:
    Path(out).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out)
    print(f'wrote {out}')


def add_timing_options(found: argparse.ArgumentParser) -> None:
    found.add_argument('--device', default='cpu')
    found.add_argument('--rounds', type=int, default=15)
    found.add_argument('--warmup', type=int, default=3)
    found.add_argument('--threads', type=int, default=2)
    found.add_argument('--json', help='file for the figures')


def start_benchmark(args: argparse.Namespace) -> dict:
    """Sets threads and heap; prints and returns where and when it runs."""
    torch.set_num_threads(args.threads)
    keep_heap()
    device = (
        torch.cuda.get_device_name(args.device) if 'cuda' in args.device else
        f'{processor()}, {args.threads} threads')
    date = time.strftime('%Y-%m-%d')
    print(f'{device}; torch {torch.__version__}, {date}')
    return dict(device=device, date=date)


def keep_heap() -> None:
    """Makes glibc keep freed memory up to 32 MiB a block, its largest limit.

    By default it gives memory back and takes it again as it sees fit, and
    fresh pages cost several times what an activation does: a case would be
    slow for what the one before it freed.
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, 'mallopt'):
        trim_threshold, mmap_threshold = -1, -3
        libc.mallopt(trim_threshold, 2**31 - 1)
        libc.mallopt(mmap_threshold, 32 * 2**20)


def processor() -> str:
    with open('/proc/cpuinfo') as file:
        for line in file:
            if line.startswith('model name'):
                return line.split(':', 1)[1].strip()
    return platform.processor()


def write_json(path: Optional[str], run: dict, rows: List[dict]) -> None:
    """Where asked for, with the versions of what was imported."""
    if path is None:
        return
    packages = ('torch', 'mm_acon', 'mmengine', 'mmcv', 'mmdet', 'mmseg',
                'mmpretrain')
    versions = {
        name: sys.modules[name].__version__
        for name in packages if name in sys.modules
    }
    run = dict(run, versions=versions, operators=sorted(DEVICES), rows=rows)
    with open(path, 'w') as file:
        json.dump(run, file, indent=1)


def now(device: torch.device) -> float:
    """Seconds, when the device has done all it was given."""
    if device.type == 'cuda':
        torch.cuda.synchronize(device)
    return time.perf_counter()


def peak_bytes(function: Callable, device: torch.device) -> Optional[int]:
    """Highest GPU memory while a function runs, above that before."""
    if device.type != 'cuda':
        return None
    torch.cuda.synchronize(device)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    function()
    return torch.cuda.max_memory_allocated(device) - before
