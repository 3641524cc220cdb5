"""Training runs with the real Runner, straight, and killed and resumed."""
import pytest

from .cells import (ALL, NONE, OPTIONS, OUTCOMES, PRECISIONS, PROCESSES, SOME,
                    YES, run_cell)

CELLS = [
    pytest.param(
        cell, id=str(cell), marks=() if cell in SOME else pytest.mark.full)
    for cell in ALL
]


@pytest.mark.parametrize('cell', CELLS)
def test_run(cell, tmp_path, record_property):
    row = run_cell(cell, tmp_path)
    record_property('matrix', row)
    for outcome in OUTCOMES:
        assert row[outcome] in (YES, NONE), row
    assert row['trains'] == row['resumed = straight'] == YES
    assert (row['ranks equal'] == YES) == (cell.processes > 1)


def test_some_cells_have_every_value():
    assert set(SOME) < set(ALL)
    assert {cell.processes for cell in SOME} == set(PROCESSES)
    assert {cell.precision for cell in SOME} == set(PRECISIONS)
    assert {cell.option for cell in SOME} == set(OPTIONS)
