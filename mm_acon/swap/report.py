from dataclasses import dataclass, field
from typing import Dict, List, Optional, Sequence, Tuple


@dataclass
class SwapRow:
    """What happened to one activation site.

    Attributes:
        site: Name of the convolution that feeds it.
        old: Type of the activation that was there.
        new: Type of the one that is there now, None where it was left.
        width: Channels.
        map_size: Spatial size of the probe's map, in pixels.
        parameters: Number of parameters added.
        reason: Why it was left alone, empty where it was replaced.
        keeps: How much of the function that was there the new one keeps at
            its start: 'exact', or the norm of the difference over that of
            the function under normal input of mean 0 and std 1.
        note: What else there is to say of a replaced one.
    """
    site: str
    old: str
    new: Optional[str]
    width: int
    map_size: Tuple[int, ...]
    parameters: int = 0
    reason: str = ''
    keeps: str = '-'
    note: str = ''


@dataclass
class Proof:
    """How a network was compared with itself, see ``proof.py``.

    Attributes:
        modes: 'evaluation', 'training' or both.
        failures: Why the network could not be run with gradients, by mode.
        tolerance: 0, or how far apart two runs of the network itself are.
        seconds: What it took.
        no_gradients: Why gradients were not compared, if they were not.
    """
    modes: List[str]
    failures: Dict[str, str] = field(default_factory=dict)
    tolerance: float = 0.
    seconds: float = 0.
    no_gradients: str = ''

    def __str__(self) -> str:
        parts = []
        if self.modes:
            exact = 'exactly' if not self.tolerance else (
                f'to within {self.tolerance:.1g}, for its own runs differ')
            what = 'outputs' if self.no_gradients else 'outputs and gradients'
            parts.append(f'with the old activations at these places, {what} '
                         f'stay {exact} what they are, in '
                         f'{" and ".join(self.modes)} ({self.seconds:.1f} s)')
        parts += [
            f'not compared in {mode}, where it does not run: {reason}'
            for mode, reason in self.failures.items()
        ]
        if self.no_gradients:
            parts.append(f'gradients are not compared: {self.no_gradients}')
        return '; '.join(parts)


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """A table for the terminal."""
    widths = [max(map(len, column)) for column in zip(*rows)]
    return '\n'.join('  '.join(
        cell.ljust(width) for cell, width in zip(row, widths)).rstrip()
                     for row in rows)


@dataclass
class SwapReport:
    """The sites of a module in the order of the forward pass.

    ``functional`` lists activation functions called without a module, which
    a swap cannot reach, and ``uncalled`` the modules of a type to replace
    that neither evaluation nor training came by. ``proof`` says how the
    network was compared with itself. Printing gives a table.
    """
    rows: List[SwapRow]
    functional: List[str]
    uncalled: List[str]
    proof: Optional[Proof] = None

    @property
    def replaced(self) -> List[SwapRow]:
        return [row for row in self.rows if row.new]

    def __str__(self) -> str:
        table = [('site', 'old', 'new', 'width', 'map', 'parameters',
                  'function', 'note')]
        for row in self.rows:
            table.append(
                (row.site, row.old, row.new
                 or '-', str(row.width), 'x'.join(map(str, row.map_size))
                 or '-', f'{row.parameters:,}' if row.new else '-', row.keeps,
                 row.reason or row.note))
        lines = [
            aligned(table), f'{len(self.replaced)} of {len(self.rows)} '
            'activation sites replaced, '
            f'{sum(row.parameters for row in self.rows):,} parameters added'
        ]
        if self.functional:
            lines.append('out of reach, because called as functions: ' +
                         ', '.join(self.functional))
        if self.uncalled:
            lines.append('not called, so left as they are: ' +
                         ', '.join(self.uncalled))
        if self.proof:
            lines.append(str(self.proof))
        return '\n'.join(lines)
