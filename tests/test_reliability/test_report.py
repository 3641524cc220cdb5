import subprocess
import sys
from pathlib import Path

from .cells import Cell, Kill
from .report import by_option, cell, figures, markdown

ROOT = Path(__file__).parents[2]

GOOD = {
    'activation': 'PWLU',
    'processes': 2,
    'precision': 'float32',
    'option': 'EMA',
    'trains': 'yes',
    'ranks equal': 'yes',
    'counted once': 'yes',
    'EMA realigned': 'yes',
    'killed': str(Kill(0, 6, 'checkpoint')),
    'resumed = straight': 'yes',
    'steps': 30
}
BAD = {
    **GOOD, 'processes': 4,
    'ranks equal': 'differ',
    'killed': str(Kill(3, 5, 'realignment')),
    'resumed = straight': 'Traceback:\n  a line\nValueError: a | b',
    'steps': 12
}


def report(*matrix, failed=(), skipped=()):
    return markdown('2030-01-01', 'torch 2', '3 passed, 1 failed', failed,
                    skipped, matrix, [])


def test_failures_are_in_the_report():
    text = report(GOOD, BAD, failed=['test_run[x]'])
    assert '2030-01-01' in text and 'torch 2' in text
    assert 'tests      3 passed, 1 failed' in text
    assert '- `test_run[x]`' in text
    _, bad, _ = text.split('\n## ')[1:4]
    assert bad.startswith('Training runs that failed')
    assert (r'| PWLU | 4 | float32 | EMA | yes | differ | yes | yes | rank 3, '
            r'realignment | ValueError: a \| b | 12 |') in bad
    assert '| PWLU | 2 |' not in text
    assert 'that failed\n' not in report(GOOD)


def test_skips_are_in_the_report_with_their_reasons():
    text = report(GOOD, skipped=['no GPU', 'torch is old', 'no GPU'])
    assert '\n'.join(
        ('## Skipped', '', '| skipped | reason |', '| --- | --- |',
         '| 2 | no GPU |', '| 1 | torch is old |', '')) in text
    assert '## Skipped' not in report(GOOD)


def test_cells_of_an_option_are_one_row():
    other = {**GOOD, 'option': 'plain', 'EMA realigned': '-'}
    assert by_option([GOOD, BAD, other]) == [{
        'option': 'EMA',
        'activation': 'PWLU',
        'processes': '2, 4',
        'precision': 'float32',
        'trains': '2 of 2',
        'ranks equal': '1 of 2',
        'counted once': '2 of 2',
        'EMA realigned': '2 of 2',
        'resumed = straight': '1 of 2'
    }, {
        **by_option([GOOD])[0], 'option': 'plain',
        'processes': '2',
        'EMA realigned': '-'
    }]


def test_report_is_the_same_in_any_order():
    assert report(GOOD, BAD) == report(BAD, GOOD)


def test_figures():
    found = {row['what']: row['figure'] for row in figures([GOOD, BAD])}
    assert found['training runs'] == 6
    assert found['steps in them'] == 42
    assert found['kills survived, of kills tried'] == '1 of 2'
    assert found['... right after realignment'] == 1
    assert found['ranks found equal, of ranks compared'] == '2 of 6'


def test_no_folders_of_the_machine():
    assert cell("no 'data/coco/x.py' in /some/where/else/x.py, at a/b/c") == (
        "no 'data/coco/x.py' in .../x.py, at a/b/c")
    assert cell('see https://a.org/b/c/d') == 'see https://a.org/b/c/d'


def test_kill_says_when():
    assert str(Kill(1, 7, 'step', 0.012)) == 'rank 1, step 7 + 12 ms'
    assert str(Cell('PWLU', 1, 'float32', 'plain')) == 'PWLU-1-float32-plain'


def test_readme_has_the_versions_of_the_reports():
    """After a new report: the table of python tools/tested_versions.py."""
    printed = subprocess.run(
        [sys.executable, ROOT / 'tools' / 'tested_versions.py'],
        capture_output=True,
        text=True,
        check=True).stdout
    assert printed in (ROOT / 'README.md').read_text()
