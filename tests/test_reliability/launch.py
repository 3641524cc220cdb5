"""Starts the ranks of a run, each a process of its own."""
import os
import socket
import time
import traceback
from pathlib import Path
from typing import Optional

import torch

from tests.helpers.scripts import FORKS

# Seconds that a run may take.
LIMIT = 300
KILLED = -9


def launch(run: str, processes: int, work_dir: Path,
           **arguments) -> Optional[str]:
    """Calls that function of runs.py in every rank, as torchrun would.

    Ranks are forked from a server that has imported everything, so that a
    start takes milliseconds. When one ends badly the others are ended.

    Returns:
        str, optional: What went wrong.
    """
    work_dir.mkdir(parents=True, exist_ok=True)
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        environment = dict(
            MASTER_ADDR='127.0.0.1',
            MASTER_PORT=str(free.getsockname()[1]),
            WORLD_SIZE=str(processes))
    ranks = [
        FORKS.Process(
            target=run_rank,
            args=(run, rank, environment, str(work_dir), arguments))
        for rank in range(processes)
    ]
    try:
        for process in ranks:
            process.start()
        return watch(ranks, work_dir)
    finally:
        for process in ranks:
            process.kill()
            process.join()


def watch(ranks, work_dir: Path) -> Optional[str]:
    end = time.monotonic() + LIMIT
    while time.monotonic() < end:
        codes = [process.exitcode for process in ranks]
        if any(codes) and KILLED not in codes:
            # The others may only have lost the one that was killed.
            time.sleep(0.2)
            codes = [process.exitcode for process in ranks]
        if KILLED in codes:
            return killed_message(codes.index(KILLED))
        for rank, code in enumerate(codes):
            if code:
                log = (work_dir / f'rank{rank}.txt').read_text()
                return f'rank {rank} ended with {code}: {log.strip()[-2000:]}'
        if all(code == 0 for code in codes):
            return None
        time.sleep(0.01)
    return f'not done after {LIMIT} s'


def killed_message(rank: int) -> str:
    return f'rank {rank} was killed'


def run_rank(run: str, rank: int, environment: dict, work_dir: str,
             arguments: dict) -> None:
    output = os.open(
        Path(work_dir) / f'rank{rank}.txt',
        os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.environ.update(environment, RANK=str(rank), LOCAL_RANK=str(rank))
    torch.set_num_threads(1)
    from . import runs
    try:
        getattr(runs, run)(rank, work_dir, **arguments)
    except BaseException:
        traceback.print_exc()
        # Not exit, which would wait for the other ranks.
        os._exit(1)
