"""Turns what the tests reported into a page of the documentation."""
import re
from collections import Counter
from typing import Dict, List

from tools.analysis.tables import table as markdown_table

from .cells import NONE, OUTCOMES, YES

Row = Dict[str, object]

HEAD = """# Reliability

Written by `bash tools/run_tests.sh --full`, with `--stack` where the name of
this file has one, on {date}, tests that failed included.

```
{versions}
tests      {counts}
```
"""

MATRIX = """## Training runs

Each cell is a ResNet-18 with an eighth of its width on images of 32 pixels, 12
steps in 3 epochs, trained with MMEngine's Runner three times: straight; again,
with SIGKILL to one rank at a moment drawn by lot; and resumed from what that
left. PWLU is realigned at step 5, in the middle of an epoch. Checkpoints are
written by `SafeCheckpointHook` with `max_keep_ckpts=1`.

- ranks equal: parameters, and those of the EMA copy, to the last bit.
- counted once: every unit counted every batch of Phase I once, also where
  gradient checkpointing runs the forward pass twice.
- EMA realigned: bounds, points and phase of the copy equal those of the model.
- resumed = straight: parameters on all ranks, and model, EMA copy and
  optimizer in the last checkpoint, to the last bit. The cells of ReLU show
  that the Runner itself is exact. With four processes it is not, ReLU
  included: DDP regroups gradients after the first step, and gloo sums them in
  another order. Those cells sum in the order of the ranks.
- bfloat16 is `torch.autocast`, the outputs of convolutions in bfloat16.
- SyncBN: a model of SyncBN that the Runner reverts (one process), or one that
  is converted and reverted (several); SyncBN itself needs a GPU.
- aot_eager and inductor: `compile=dict(backend=...)` in the config, on the
  stem and the first stage, three of five activations swapped. Left out,
  because each process compiles by itself for seconds: four processes, and
  both backends everywhere.

All cells of an option are one row: how many of them are as they should be, of
those where it can be said.

{table}
"""


def table(rows: List[Row]) -> str:
    """Its columns are the keys of all rows."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    cells = [[cell(row.get(column, NONE)) for column in columns]
             for row in rows]
    return markdown_table(columns, cells, text=range(len(columns)))


def cell(value: object) -> str:
    """One line, without the folders of the machine that it was run on.

    Of a traceback the last line, which names the error.
    """
    text = (str(value).strip().splitlines() or [''])[-1]
    text = re.sub(r'(?<![\w./:])/(?:[\w.-]+/){2,}', '.../', text)
    return text[:160]


def is_bad(row: Row) -> bool:
    return any(row[outcome] not in (YES, NONE) for outcome in OUTCOMES)


def by_option(matrix: List[Row]) -> List[Row]:
    """The cells of each option added up."""
    rows = []
    for option in dict.fromkeys(row['option'] for row in matrix):
        cells = [row for row in matrix if row['option'] == option]
        row = {'option': option}
        for axis in ('activation', 'processes', 'precision'):
            row[axis] = ', '.join(sorted({str(cell[axis]) for cell in cells}))
        for outcome in OUTCOMES:
            said = [cell[outcome] for cell in cells if cell[outcome] != NONE]
            row[outcome] = (f'{said.count(YES)} of {len(said)}'
                            if said else NONE)
        rows.append(row)
    return rows


def figures(matrix: List[Row]) -> List[Row]:
    kills = [row for row in matrix if row['killed'] != NONE]
    survived = [row for row in kills if row['resumed = straight'] == YES]
    several = [row for row in matrix if row['processes'] > 1]

    def at(moment: str) -> int:
        return sum(moment in row['killed'] for row in kills)

    found = {
        'training runs':
        len(matrix) + 2 * len(kills),
        'steps in them':
        sum(row['steps'] for row in matrix),
        'kills survived, of kills tried':
        f'{len(survived)} of {len(kills)}',
        '... within a step':
        at('step'),
        '... right after realignment':
        at('realignment'),
        '... half-way through writing a checkpoint':
        at('checkpoint'),
        'ranks found equal, of ranks compared':
        '{} of {}'.format(*(sum(row['processes'] for row in rows) for rows in (
            [row for row in several if row['ranks equal'] == YES], several))),
    }
    return [{'what': key, 'figure': value} for key, value in found.items()]


def skips(reasons: List[str]) -> List[Row]:
    """How many tests each reason skipped, the most frequent first."""
    return [{
        'skipped': count,
        'reason': cell(reason)
    } for reason, count in Counter(sorted(reasons)).most_common()]


def markdown(date: str, versions: str, counts: str, failed: List[str],
             skipped: List[str], matrix: List[Row],
             long_runs: List[Row]) -> str:
    # Workers report in any order.
    matrix = sorted(matrix, key=lambda row: list(map(str, row.values()))[:4])
    parts = [HEAD.format(date=date, versions=versions, counts=counts)]
    if failed:
        parts += ['## Failed\n', *(f'- `{test}`' for test in sorted(failed))]
        parts.append('')
    if skipped:
        parts += ['## Skipped\n', table(skips(skipped)), '']
    bad = [row for row in matrix if is_bad(row)]
    if bad:
        parts += ['## Training runs that failed\n', table(bad), '']
    parts += ['## Figures\n', table(figures(matrix)), '']
    parts.append(MATRIX.format(table=table(by_option(matrix))))
    if long_runs:
        parts += [
            '## Long run\n', 'A small RetinaNet on drawn shapes with PWLU, '
            'realigned after a twentieth of the\nsteps; what PWLU learns has '
            'ten times the learning rate of the rest.\n',
            table(sorted(long_runs, key=lambda row: row['steps'])), ''
        ]
    return '\n'.join(parts)
