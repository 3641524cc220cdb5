"""Trains the toy model and dies while it saves its second checkpoint.

Usage: kill_in_save.py WORK_DIR HOOK STAGE [STAGE ...]
One run per stage, in WORK_DIR/STAGE, each in a process that ends itself:
writing (half of the file is there), written, renamed, removing.
"""
import os
import resource
import signal
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[2]))
from tests.helpers.toy import make_runner  # noqa: E402

PHASES = dict(type='PWLURealignHook', phase1_epochs=1)


def die_at(stage):
    """What Python does to files shows in its audit events."""

    def audit(event, arguments):
        path = str(arguments[0]) if arguments else ''
        if event == 'open' and arguments[1] == 'w' and 'epoch_2' in path:
            if stage == 'writing':
                # The kernel ends the process inside its write.
                signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
                resource.setrlimit(resource.RLIMIT_FSIZE, (8192, 8192))
        elif (stage, event) in (('written', 'os.rename'), ('removing',
                                                           'os.remove')):
            if path.endswith(('epoch_2.pth.part', 'epoch_1.pth')):
                os.kill(os.getpid(), signal.SIGKILL)
        elif (stage, event) == ('renamed', 'open'):
            if path.endswith('last_checkpoint') and Path(path).exists():
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(audit)


def runner_of(work_dir, hook='SafeCheckpointHook', **kwargs):
    return make_runner(
        work_dir, [PHASES],
        epochs=3,
        default_hooks=dict(
            checkpoint=dict(type=hook, interval=1, max_keep_ckpts=1)),
        **kwargs)


if __name__ == '__main__':
    torch.set_num_threads(1)
    work_dir, hook, *stages = sys.argv[1:]
    for stage in stages:
        child = os.fork()
        if child == 0:
            die_at(stage)
            runner_of(f'{work_dir}/{stage}', hook).train()
            os._exit(0)
        status = os.waitpid(child, 0)[1]
        print(
            stage,
            signal.Signals(os.WTERMSIG(status)).name
            if os.WIFSIGNALED(status) else os.WEXITSTATUS(status))
