"""Prints what the whole test suite was last run with, as a Markdown table.

    python tools/tested_versions.py

Read from the reports that ``bash tools/run_tests.sh --full`` leaves in docs/.
"""
import re
from pathlib import Path

from analysis.tables import table

DOCS = Path(__file__).resolve().parents[1] / 'docs'
COLUMNS = ('Python', 'torch', 'mmengine', 'mmcv', 'mmdet', 'mmseg',
           'mmpretrain', 'GPUs', 'tests', 'date')


def row(report: Path) -> list:
    text = report.read_text()
    found = dict(
        line.split(maxsplit=1)
        for line in text.split('```')[1].strip().splitlines())
    found['date'] = re.search(r'on (\d{4}-\d\d-\d\d)', text)[1]
    return [found[column] for column in COLUMNS]


def main() -> None:
    rows = map(row, sorted(DOCS.glob('reliability*.md')))
    print(table(COLUMNS, rows, text=range(len(COLUMNS))))


if __name__ == '__main__':
    main()
