import functools
import logging
import re
from pathlib import Path

import pytest
import torch

from tests.helpers.kill_in_save import runner_of
from tests.helpers.scripts import run_script
from tests.helpers.toy import ToyModel, Val, loader, make_runner, predict
from tests.utils import torch_threads

KILL_IN_SAVE = Path(__file__).parents[1] / 'helpers' / 'kill_in_save.py'


def test_killed_while_saving(tmp_path):
    """At four places, with one checkpoint kept; nothing is lost."""
    stages = dict(
        writing='SIGXFSZ',
        written='SIGKILL',
        renamed='SIGKILL',
        removing='SIGKILL')
    done = run_script(
        KILL_IN_SAVE, tmp_path, 'SafeCheckpointHook', *stages, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    died = [
        line.split() for line in done.stdout.splitlines()
        if line.startswith(tuple(stages))
    ]
    assert dict(died) == stages
    with torch_threads(1):
        straight = runner_of(tmp_path / 'straight')
        straight.train()
        for stage in stages:
            folder = tmp_path / stage
            named = Path((folder / 'last_checkpoint').read_text())
            assert named.name == f'epoch_{1 + (stage == "removing")}.pth'
            resumed = runner_of(folder, resume=True)
            resumed.train()
            for key, value in straight.model.state_dict().items():
                assert torch.equal(resumed.model.state_dict()[key], value), key
            assert (folder / 'epoch_3.pth').exists()
            assert not (folder / 'epoch_2.pth').exists()
            assert not list(folder.glob('*.part'))


def test_best_checkpoint_is_replaced_when_the_next_is_there(tmp_path):
    """And of each kind as many are left as mmengine leaves."""
    left = {}
    for hook in ('CheckpointHook', 'SafeCheckpointHook'):
        model = ToyModel()
        model.forward = functools.partial(predict, model)
        scores = iter((1, 3, 2, 4))
        metric = Val()
        metric.compute_metrics = lambda results, s=scores: dict(score=next(s))
        events = []
        runner = make_runner(
            tmp_path / hook,
            model=model,
            train_cfg=dict(by_epoch=True, max_epochs=4, val_interval=1),
            val_cfg=dict(),
            val_dataloader=loader(),
            val_evaluator=[metric],
            default_hooks=dict(
                checkpoint=dict(
                    type=hook,
                    interval=1,
                    max_keep_ckpts=2,
                    save_best='toy/score',
                    rule='greater')))
        save = runner.save_checkpoint

        def watched(*args,
                    save=save,
                    folder=tmp_path / hook,
                    events=events,
                    **kwargs):
            before = len(list(folder.glob('best_*.pth')))
            save(*args, **kwargs)
            events.append((before, len(list(folder.glob('best_*.pth')))))

        runner.save_checkpoint = watched
        runner.train()
        left[hook] = sorted(p.name for p in (tmp_path / hook).glob('*.pth'))
        # A best one was there at every moment once there was one.
        found = [count for pair in events for count in pair]
        first = next(i for i, count in enumerate(found) if count)
        assert all(found[first:]) is (hook == 'SafeCheckpointHook')
    assert left['SafeCheckpointHook'] == left['CheckpointHook'] == [
        'best_toy_score_epoch_4.pth', 'epoch_3.pth', 'epoch_4.pth'
    ]


def test_full_disk(tmp_path):
    """A file size limit, since a disk is not to be filled by a test."""
    program = tmp_path / 'fill.py'
    program.write_text(f"""
import resource, signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
from mmengine.fileio import get_file_backend
from mm_acon.checkpoints.files import SafeCheckpointHook
backend = get_file_backend(backend_args=dict(backend='complete_files'))
backend.put(b'a' * 1000, {str(tmp_path / 'epoch_1.pth')!r})
open({str(tmp_path / 'last_checkpoint')!r}, 'w').write('epoch_1.pth')
resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, 2**20))
backend.put(b'a' * 2**21, {str(tmp_path / 'epoch_2.pth')!r})
""")
    done = run_script(program, cwd=tmp_path)
    message = done.stderr.splitlines()[-1]
    assert re.fullmatch(
        r'OSError: \[Errno 27\] .*epoch_2.pth could not be written: File too '
        r'large. It needs 2.0 MiB, \d+\.\d MiB are free there; nothing of it '
        'is left. The checkpoint before is epoch_1.pth: make room, and resume',
        message)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        'epoch_1.pth', 'fill.py', 'last_checkpoint'
    ]


class Strange:
    """What no run should put into its checkpoints."""


@pytest.mark.parametrize('info, said', ((Strange(), True), (1, False)))
def test_what_could_not_be_read_again_is_said_at_once(info, said, tmp_path):
    runner = make_runner(
        tmp_path,
        epochs=2,
        default_hooks=dict(
            checkpoint=dict(type='SafeCheckpointHook', interval=1)))
    runner.message_hub.update_info('mine', info)
    seen = []
    runner.logger.addHandler(_to(seen))
    runner.train()
    lines = [line for line in seen if 'is not read again' in line]
    assert len(lines) == said
    if said:
        assert "'message_hub' of the checkpoints" in lines[0]
        assert 'Strange was not an allowed global' in lines[0]


def _to(seen):
    handler = logging.Handler()
    handler.emit = lambda record: seen.append(record.getMessage())
    return handler
