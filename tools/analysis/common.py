"""What the drawing tools share, and what the benchmarks share."""
import atexit
import ctypes
import json
import platform
import sys
import time
from argparse import ArgumentParser, Namespace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Callable, Dict, List, NoReturn, Optional

import torch
from mmengine.runner import Runner

import mm_acon  # noqa: F401  (registers)
from mm_acon.cli import (add_config_options, build_runner,
                                   prepare_config)
from mm_acon.ops.extension import DEVICES
from mm_acon.visualization import (Observer, Snapshot, choose_layers,
                                   curve_activations)

DTYPES = dict(
    float32=torch.float32, bfloat16=torch.bfloat16, float16=torch.float16)
LAYOUTS = dict(
    contiguous=torch.contiguous_format, channels_last=torch.channels_last)


def parser(description: str, *source: str, **options) -> ArgumentParser:
    """Arguments of a tool that draws what a checkpoint has learnt.

    ``source`` and ``options`` declare where the weights come from, if not
    from one checkpoint.
    """
    found = ArgumentParser(description=description)
    add_config_options(found)
    if source:
        found.add_argument(*source, **options)
    else:
        found.add_argument('checkpoint', help='checkpoint file')
    found.add_argument('--out', required=True, help='picture to write')
    return found


def add_layer_options(found: ArgumentParser,
                      num_layers: Optional[int] = 6) -> None:
    found.add_argument(
        '--layers', metavar='REGEX', help='only layers whose name matches')
    found.add_argument(
        '--num-layers',
        type=int,
        default=num_layers,
        help='how many of them, spread evenly; default: '
        f'{num_layers or "all"}')


def trained_runner(args: Namespace) -> Runner:
    """A Runner in eval mode that has loaded the checkpoint."""
    # A Runner wants a folder for its log; what remains is the picture.
    folder = TemporaryDirectory()
    atexit.register(folder.cleanup)
    args.work_dir = folder.name
    runner = build_runner(prepare_config(args, 'test_dataloader'))
    runner.load_or_resume()
    runner.model.eval()
    return runner


def chosen_layers(runner: Runner, args: Namespace, *kinds: type) -> dict:
    """The activations of these kinds that the options choose, by name."""
    try:
        found = curve_activations(runner.model)
        if kinds:
            found = {
                name: module
                for name, module in found.items() if isinstance(module, kinds)
            }
        if not found:
            names = ', '.join(kind.__name__ for kind in kinds)
            raise ValueError(f'the model has no {names}.')
        return choose_layers(found, args.layers, args.num_layers)
    except ValueError as error:
        stop(error)


def stop(message) -> NoReturn:
    sys.exit(f'{Path(sys.argv[0]).name}: {message}')


def observe(runner: Runner,
            layers: dict,
            num_images: int,
            num_channels: int = 4) -> Dict[str, Snapshot]:
    """Snapshots of layers on the first images of the test set."""
    dataset = runner.test_dataloader.dataset
    batch = [dataset[index] for index in range(min(num_images, len(dataset)))]
    with Observer(layers, num_channels) as seen, torch.no_grad():
        runner.model.test_step(runner.test_dataloader.collate_fn(batch))
    # Auxiliary heads, for example, are only trained.
    found = {
        name: seen.snapshots[name]
        for name in layers if name in seen.snapshots
    }
    if not found:
        stop('no image passes through ' + ', '.join(layers))
    return found


def save(figure, out: str) -> None:
    Path(out).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out)
    print(f'wrote {out}')


def add_timing_options(found: ArgumentParser) -> None:
    found.add_argument('--device', default='cpu')
    found.add_argument('--rounds', type=int, default=15)
    found.add_argument('--warmup', type=int, default=3)
    found.add_argument('--threads', type=int, default=2)
    found.add_argument('--json', help='file for the figures')


def start_benchmark(args: Namespace) -> dict:
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
