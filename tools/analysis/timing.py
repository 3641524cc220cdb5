"""What the benchmarks share: options, the clock, and memory."""
import ctypes
import json
import platform
import sys
import time
from argparse import ArgumentParser, Namespace
from typing import Callable, List, Optional

import torch
from torch import nn

from mm_acon.ops.extension import DEVICES

DTYPES = dict(
    float32=torch.float32, bfloat16=torch.bfloat16, float16=torch.float16)
LAYOUTS = dict(
    contiguous=torch.contiguous_format, channels_last=torch.channels_last)


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
        torch.cuda.get_device_name(args.device)
        if 'cuda' in args.device else f'{processor()}, {args.threads} threads')
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


def capture(work: Callable, pool=None) -> tuple:
    """A CUDA graph of work, without what the host does for it.

    Args:
        work: Reads and writes the same tensors every time.
        pool: Memory that graphs share which never run at once.

    Returns:
        tuple: The graph, and what the work gave when it was captured, which
        a replay writes again.
    """
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        # What is tuned or compiled on the first calls.
        for _ in range(3):
            work()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, pool=pool):
        result = work()
    return graph, result


def replay_seconds(graph: torch.cuda.CUDAGraph) -> float:
    """Of one replay, between two events on the GPU."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    graph.replay()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3


def peak_bytes(function: Callable, device: torch.device) -> Optional[int]:
    """Highest GPU memory while a function runs, above that before."""
    if device.type != 'cuda':
        return None
    torch.cuda.synchronize(device)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    function()
    return torch.cuda.max_memory_allocated(device) - before


def kept_bytes(function: nn.Module, x: torch.Tensor) -> int:
    """Bytes that autograd keeps, each storage once, parameters left out."""
    parameters = {
        p.untyped_storage().data_ptr()
        for p in function.parameters()
    }
    kept = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        y = function(x.detach().requires_grad_())
    del y
    return sum(kept.values())
