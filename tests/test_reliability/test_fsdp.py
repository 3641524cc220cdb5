"""mmengine's FSDPStrategy: what trains under it, and what is refused."""
import pytest
import torch

from mm_acon.compat import load_weights
from tests.utils import needs_torch

from .cells import EPOCHS, PHASE1_ITERS, Cell
from .launch import launch

pytestmark = needs_torch('2.2', 'has no FSDP without a GPU')


def trained(run, folder, **arguments):
    assert launch(run, 2, folder, **arguments) is None
    return load_weights(folder / f'epoch_{EPOCHS}.pth')['state_dict']


@pytest.mark.full
def test_acon_trains_as_under_ddp(tmp_path):
    cell = Cell('MetaACON', 2, 'float32', 'plain')
    expected = trained('train', tmp_path / 'ddp', cell=cell)
    result = trained('train_fsdp', tmp_path / 'fsdp', cell=cell)
    assert result.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(result[name], value, msg=name)


def test_pwlu_goes_on_from_phase_2(tmp_path):
    cell = Cell('PWLU', 2, 'float32', 'plain')
    before = trained('train', tmp_path / 'ddp', cell=cell)
    after = trained(
        'train_fsdp',
        tmp_path / 'fsdp',
        cell=cell,
        load_from=str(tmp_path / 'ddp' / f'epoch_{EPOCHS}.pth'))
    assert after['backbone.relu.phase'] == 2
    for name in ('running_mean', 'running_std'):
        key = f'backbone.relu.{name}'
        assert torch.equal(after[key], before[key])
    moved = (after['backbone.relu.points'] -
             before['backbone.relu.points']).abs()
    assert moved.max() > 0 and moved.isfinite().all()


def test_realignment_is_refused(tmp_path):
    trouble = launch(
        'train_fsdp',
        2,
        tmp_path,
        cell=Cell('PWLU', 2, 'float32', 'plain'),
        hooks=[dict(type='PWLURealignHook', phase1_iters=PHASE1_ITERS)])
    assert ('ValueError: PWLURealignHook cannot realign 17 PWLU whose '
            'parameters are spread over the ranks' in trouble)
    assert "strategy=dict(type='DDPStrategy')" in trouble
