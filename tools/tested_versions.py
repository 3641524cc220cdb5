"""Prints what the whole test suite was last run with, as a Markdown table.

    python tools/tested_versions.py

Read from the reports that ``bash tools/run_tests.sh --full`` leaves in docs/.
"""
import re
from pathlib import Path

DOCS = Path(__file__).resolve().parents[1] / 'docs'
COLUMNS = ('Python', 'torch', 'mmengine', 'mmcv', 'mmdet', 'mmseg',
           'mmpretrain', 'GPUs', 'tests')


def row(report: Path) -> list:
    text = report.read_text()
    found = dict(
        line.split(maxsplit=1)
        for line in text.split('```')[1].strip().splitlines())
    date = re.search(r'on (\d{4}-\d\d-\d\d)', text)[1]
    return [found[column] for column in COLUMNS] + [date]


def main() -> None:
    lines = [[*COLUMNS, 'date'], ['---'] * (len(COLUMNS) + 1)]
    lines += [row(path) for path in sorted(DOCS.glob('reliability*.md'))]
    print('\n'.join(f'| {" | ".join(line)} |' for line in lines))


if __name__ == '__main__':
    main()
