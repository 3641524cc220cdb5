"""Tables in Markdown."""
from typing import Collection, Iterable, Sequence


def table(
    titles: Sequence[str],
    rows: Iterable[Sequence[object]],
    text: Collection[int] = (0, )) -> str:
    """A Markdown table.

    Args:
        titles: Of the columns.
        rows: The cells of each row.
        text: Which columns are aligned at the left; the others are numbers.
    """
    rule = ['---' if i in text else '---:' for i in range(len(titles))]
    return '\n'.join(
        '| ' + ' | '.join(str(cell).replace('|', '\\|') for cell in row) + ' |'
        for row in (titles, rule, *rows))
