"""Training runs with the real Runner, straight, and killed and resumed."""
import pytest
import torch
import torch._dynamo
from mmengine.model import stack_batch

from .cells import (ALL, BACKENDS, NONE, OPTIONS, OUTCOMES, PRECISIONS,
                    PROCESSES, SOME, YES, run_cell)

CELLS = [
    pytest.param(
        cell, id=str(cell), marks=() if cell in SOME else pytest.mark.full)
    for cell in ALL
]


@pytest.fixture(scope='module')
def why_not_compiled():
    """What torch 2.1 says to the batch of every model of images."""
    torch._dynamo.reset()
    try:
        torch.compile(stack_batch, backend='eager')([torch.zeros(3, 4, 4)])
    except torch._dynamo.exc.TorchDynamoException as error:
        return str(error)
    return None


@pytest.mark.parametrize('cell', CELLS)
def test_run(cell, tmp_path, record_property, request):
    if cell.option in BACKENDS:
        reason = request.getfixturevalue('why_not_compiled')
        if reason:
            pytest.skip(
                f'torch {torch.__version__} cannot compile MMEngine\'s '
                f'stack_batch: {reason.splitlines()[0]}')
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
