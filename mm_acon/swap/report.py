from dataclasses import dataclass
from typing import List, Optional, Sequence, Tuple


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
    """
    site: str
    old: str
    new: Optional[str]
    width: int
    map_size: Tuple[int, ...]
    parameters: int = 0
    reason: str = ''


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
    that the forward pass did not come by: those of an auxiliary head that
    only training uses, for example. Printing gives a table.
    """
    rows: List[SwapRow]
    functional: List[str]
    uncalled: List[str]

    @property
    def replaced(self) -> List[SwapRow]:
        return [row for row in self.rows if row.new]

    def __str__(self) -> str:
        table = [('site', 'old', 'new', 'width', 'map', 'parameters', 'note')]
        for row in self.rows:
            table.append(
                (row.site, row.old, row.new
                 or '-', str(row.width), 'x'.join(map(str, row.map_size))
                 or '-', f'{row.parameters:,}' if row.new else '-',
                 row.reason))
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
        return '\n'.join(lines)
