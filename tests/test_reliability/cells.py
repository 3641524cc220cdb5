"""The matrix of training runs: its cells, and how each is judged."""
import random
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Dict, List

import torch

# Importing the package lets it read mmengine's checkpoints.
from mm_acon.compat import load_weights

from .launch import killed_message, launch

# Images per rank and step, steps in an epoch, epochs. A checkpoint is written
# after every epoch.
BATCH, EPOCH, EPOCHS = 4, 4, 3
# In the middle of an epoch and, with accumulation, between two steps of the
# optimizer.
PHASE1_ITERS = 5

ACTIVATIONS = ('PWLU', 'MetaACON', 'ACONC')
PROCESSES = (1, 2, 4)
PRECISIONS = ('float32', 'bfloat16')
OPTIONS = ('plain', 'accumulation', 'with_cp', 'EMA', 'SyncBN')
# Of torch.compile, which is an option like the others.
BACKENDS = ('aot_eager', 'inductor')

YES, NONE = 'yes', '-'
OUTCOMES = ('trains', 'ranks equal', 'counted once', 'EMA realigned',
            'resumed = straight')


@dataclass(frozen=True)
class Cell:
    activation: str
    processes: int
    precision: str
    option: str

    def __str__(self) -> str:
        return '-'.join(map(str, asdict(self).values()))


@dataclass(frozen=True)
class Kill:
    """SIGKILL to one rank.

    Attributes:
        moment (str): 'step', ``delay`` seconds after its beginning;
            'realignment', right after it; 'checkpoint', half-way through
            writing it.
    """
    rank: int
    iteration: int
    moment: str
    delay: float = 0.

    def __str__(self) -> str:
        when = dict(
            step=f'step {self.iteration} + {1000 * self.delay:.0f} ms',
            realignment='realignment',
            checkpoint=f'writing checkpoint {self.iteration // EPOCH + 1}')
        return f'rank {self.rank}, {when[self.moment]}'


# Compiling takes seconds in every process. Left out: more than two processes,
# since each compiles by itself, and both backends for all.
COMPILED = [
    Cell('PWLU', 1, 'float32', 'inductor'),
    Cell('PWLU', 1, 'float32', 'aot_eager'),
    Cell('PWLU', 1, 'bfloat16', 'aot_eager'),
    Cell('PWLU', 2, 'float32', 'aot_eager'),
    Cell('MetaACON', 1, 'float32', 'aot_eager'),
    Cell('ACONC', 1, 'float32', 'aot_eager'),
]
# ReLU shows whether the Runner itself is exact.
ALL = [
    Cell('ReLU', processes, 'float32', option)
    for processes, option in product(PROCESSES, OPTIONS)
] + [
    Cell(*row) for row in product(ACTIVATIONS, PROCESSES, PRECISIONS, OPTIONS)
] + COMPILED
# Every value of every axis but torch.compile, and a kill at each moment.
SOME = [
    Cell('PWLU', 1, 'bfloat16', 'with_cp'),
    Cell('PWLU', 2, 'float32', 'accumulation'),
    Cell('PWLU', 2, 'float32', 'EMA'),
    Cell('PWLU', 4, 'bfloat16', 'plain'),
    Cell('MetaACON', 2, 'bfloat16', 'SyncBN'),
    Cell('MetaACON', 1, 'float32', 'with_cp'),
    Cell('ACONC', 1, 'float32', 'EMA'),
]


def random_kill(cell: Cell) -> Kill:
    """Always the same for a cell."""
    chance = random.Random(str(cell))
    moments = ['step', 'step', 'checkpoint']
    if cell.activation == 'PWLU':
        moments.append('realignment')
    moment = chance.choice(moments)
    rank = chance.randrange(cell.processes)
    iteration = chance.randrange(1, EPOCH * EPOCHS - 1)
    if moment == 'realignment':
        return Kill(rank, PHASE1_ITERS, moment)
    if moment == 'checkpoint':
        # Which rank 0 writes.
        return Kill(0, iteration, moment)
    return Kill(rank, iteration, moment, chance.uniform(0, 0.02))


def run_cell(cell: Cell, folder: Path) -> Dict[str, str]:
    """Trains straight, and once more with a kill and a resumption.

    Returns:
        dict: A row of the table. An outcome is 'yes', '-' where there is
            nothing to say, or what went wrong.
    """
    kill = random_kill(cell)
    row = {
        **asdict(cell), 'trains': NONE,
        'ranks equal': NONE,
        'counted once': NONE,
        'EMA realigned': NONE,
        'killed': NONE,
        'resumed = straight': NONE,
        'steps': 0
    }

    def train(name: str, **arguments) -> str:
        return launch(
            'train', cell.processes, folder / name, cell=cell, **arguments)

    row['trains'] = train('straight') or YES
    if row['trains'] == YES:
        straight = ends(cell, folder / 'straight')
        judge(cell, straight, row)
        row['killed'] = str(kill)
        trouble = train('killed', kill=kill)
        if trouble != killed_message(kill.rank):
            row['resumed = straight'] = f'not killed: {trouble or "it ended"}'
        else:
            trouble = train('killed', resume=True)
            row['resumed = straight'] = trouble or YES
        if row['resumed = straight'] == YES:
            resumed = ends(cell, folder / 'killed')
            judge(cell, resumed, row)
            row['steps'] += kill.iteration
            if not (same(state(straight), state(resumed)) and same(
                    last_checkpoint(folder / 'straight'),
                    last_checkpoint(folder / 'killed'))):
                row['resumed = straight'] = 'differs'
    return row


def ends(cell: Cell, folder: Path) -> List[dict]:
    """What each rank ended with."""
    return [
        torch.load(folder / f'rank{rank}.pth', weights_only=True)
        for rank in range(cell.processes)
    ]


def state(ranks: List[dict]) -> List[dict]:
    return [dict(model=rank['model'], ema=rank['ema']) for rank in ranks]


def last_checkpoint(folder: Path) -> dict:
    """All that training would go on from."""
    checkpoint = load_weights(folder / f'epoch_{EPOCHS}.pth')
    return {
        key: checkpoint[key]
        for key in ('state_dict', 'ema_state_dict', 'optimizer')
        if key in checkpoint
    }


def judge(cell: Cell, ranks: List[dict], row: Dict[str, str]) -> None:
    """Adds what one run shows by itself; a failure stays."""

    def note(column: str, good: bool, trouble: str) -> None:
        if row[column] in (YES, NONE):
            row[column] = YES if good else trouble

    row['steps'] += ranks[0]['steps']
    if cell.processes > 1:
        first, *others = state(ranks)
        note('ranks equal', all(same(first, other) for other in others),
             'differ')
    # Nothing was seen by a run that was resumed behind the realignment.
    seen = [rank['realignment'] for rank in ranks if rank['realignment']]
    if cell.activation == 'PWLU' and seen:
        counted = [rank['batches'] for rank in seen]
        note('counted once', all(n == [PHASE1_ITERS] for n in counted),
             f'{counted} batches of {PHASE1_ITERS}')
        if cell.option == 'EMA':
            note('EMA realigned', all(rank['ema'] for rank in seen), 'no')


def same(first, second) -> bool:
    """Whether two nests of tensors are equal to the last bit."""
    if isinstance(first, torch.Tensor):
        return torch.equal(first, second)
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(
            same(value, second[key]) for key, value in first.items())
    if isinstance(first, (list, tuple)):
        return len(first) == len(second) and all(map(same, first, second))
    return first == second
