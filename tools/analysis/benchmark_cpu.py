"""Runs the benchmarks of the CPU and prints the figures of docs/benchmarks.

    python tools/analysis/benchmark_cpu.py FOLDER

Needs a machine left alone, for 15 minutes on two cores. What is there of
FOLDER, one JSON file a command and run, is not run again. Prints what every
bar was set to and what it took, missed ones in bold, and the tables of all
runs, each behind its command.
"""
import argparse
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Dict, List, NamedTuple, Tuple

from tables import table

HERE = Path(__file__).parent
FULL = '8x256x56x56'
# Name, title and command of what is run, its environment first.
COMMANDS: Dict[str, Tuple[str, str]] = {
    'ops': ('Operators', 'benchmark_ops.py --shapes 16x64x112x112 '
            f'{FULL} --activations ACONC MetaACON PWLU '
            '--forms compiled torch.compile --rounds 31'),
    'kinds':
    ('bfloat16 and channels_last', f'benchmark_ops.py --shapes {FULL}'
     ' --dtypes float32 bfloat16 --layouts contiguous channels_last '
     '--activations ACONC MetaACON PWLU --forms compiled --rounds 31'),
    'avx2': ('Without AVX-512', 'ATEN_CPU_CAPABILITY=avx2 benchmark_ops.py '
             f'--shapes {FULL} --activations ACONC MetaACON PWLU '
             '--forms compiled --rounds 31'),
    'host': ("The host's share", 'benchmark_ops.py --shapes 1x8x4x4 '
             '--activations ACONC MetaACON PWLU --forms compiled '
             '--rounds 501 --warmup 50 --threads 1'),
    'model': ('A backbone', 'benchmark_model.py '
              'mmpretrain::resnet/resnet50_8xb32_in1k.py '
              '--activations PWLU ACONC MetaACON --rounds 21'),
}


class Bar(NamedTuple):
    """The most that a figure is meant to be.

    Attributes:
        command: The key of COMMANDS.
        row: What the row has that holds the figure.
        figure: Its key, a ratio.
        most: What it is meant not to pass.
    """
    command: str
    row: Dict[str, str]
    figure: str
    most: float

    @property
    def title(self) -> str:
        where = [self.row['case']]
        where += [self.row[key] for key in ('dtype', 'layout')
                  if key in self.row]  # yapf: disable
        return f'{COMMANDS[self.command][0]}: {", ".join(where)}'


def _operator(command: str, **row: str) -> List[Bar]:
    """Beside SiLU's: of PWLU, ACON-C and meta-ACON."""
    most = (('PWLU', 'forward', 1.0), ('PWLU', 'both', 1.15),
            ('ACONC', 'forward', 1.0), ('ACONC', 'both',
                                        1.0), ('MetaACON', 'forward', 1.4))
    return [
        Bar(command, dict(row, case=f'{name} compiled'), f'{phase}_over_SiLU',
            limit) for name, phase, limit in most
    ]


BARS: List[Bar] = [
    *_operator('ops', shape=FULL),
    *(bar for dtype, layout in (('float32', 'channels_last'),
                                ('bfloat16', 'contiguous'),
                                ('bfloat16', 'channels_last'))
      for bar in _operator('kinds', dtype=dtype, layout=layout)),
    Bar('avx2', dict(case='PWLU compiled'), 'forward_over_SiLU', 1.3),
    *(Bar('host', dict(case=f'{name} compiled'), 'forward_over_ReLU', 2.5)
      for name in ('PWLU', 'ACONC')),
    *(Bar('model', dict(case=name), 'train_ratio', limit)
      for name, limit in (('PWLU', 1.05), ('ACONC', 1.03),
                          ('MetaACON', 1.04))),
    *(Bar('model', dict(case=name), 'inference_ratio', 1.04)
      for name in ('PWLU', 'ACONC', 'MetaACON')),
]


def run(name: str, number: int, folder: Path) -> dict:
    """What a command measured in one of its runs, and what it printed."""
    path = folder / f'{name}_{number}.json'
    if not path.exists():
        words = shlex.split(COMMANDS[name][1])
        settings = dict(word.split('=') for word in words if '=' in word)
        script, *arguments = [word for word in words if '=' not in word]
        part = path.with_suffix('.part')
        done = subprocess.run(
            [sys.executable, HERE / script, *arguments, '--json', part],
            env=dict(os.environ, **settings),
            stdout=subprocess.PIPE,
            check=True,
            text=True)
        content = dict(json.loads(part.read_text()), printed=done.stdout)
        part.write_text(json.dumps(content))
        os.replace(part, path)
    return json.loads(path.read_text())


def figure(bar: Bar, content: dict) -> float:
    found = [
        row[bar.figure] for row in content['rows']
        if bar.row.items() <= row.items()
    ]
    if len(found) != 1:
        raise ValueError(f'expected one row for {bar}, got {len(found)}.')
    return found[0]


def is_kept(bar: Bar, figures: List[float]) -> bool:
    """One figure over the bar is a miss."""
    return max(figures) <= bar.most


def line(bar: Bar, figures: List[float]) -> List[str]:
    """Of the table."""
    text = ', '.join(f'{value:.3f}' for value in figures)
    return [
        bar.title,
        bar.figure.replace('_over_', ' / ').replace('_ratio', ' / ReLU'),
        f'{bar.most:.2f}', text if is_kept(bar, figures) else f'**{text}**'
    ]


def page(runs: Dict[str, List[dict]]) -> str:
    first = runs['ops'][0]
    bars = [(bar, [figure(bar, content) for content in runs[bar.command]])
            for bar in BARS]
    parts = [
        '{device}; torch {versions[torch]}, {date}. {kept} of {all} bars are '
        'kept in every run.'.format(
            **first,
            kept=sum(is_kept(*found) for found in bars),
            all=len(bars)),
        table(('what', 'ratio', 'at most', 'runs'),
              [line(*found) for found in bars],
              text=(0, 1))
    ]
    for name, (title, command) in COMMANDS.items():
        command = command.replace('benchmark_', 'python tools/analysis/'
                                  'benchmark_')
        parts += [f'## {title}', f'```bash\n{command}\n```']
        parts += [content['printed'].strip() for content in runs[name]]
    return '\n\n'.join(parts)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument('folder', type=Path, help='for the figures')
    parser.add_argument('--runs', type=int, default=3)
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    runs: Dict[str, List[dict]] = {name: [] for name in COMMANDS}
    # The runs of a command lie apart: a machine drifts over minutes.
    for number in range(1, args.runs + 1):
        for name in COMMANDS:
            runs[name].append(run(name, number, args.folder))
    print(page(runs))


if __name__ == '__main__':
    main()
