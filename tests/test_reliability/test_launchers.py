"""The scripts that start several ranks."""
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from .cells import same

ROOT = Path(__file__).parents[2]
TOOLS = ROOT / 'tools'

# What a stand-in for srun or python is given, one argument a line.
RECORDER = """#!/usr/bin/env bash
printf '%s\\n' "$@"
"""


def environment(*folders, **variables):
    path = os.pathsep.join([*map(str, folders), os.environ['PATH']])
    return dict(os.environ, PATH=path, **variables)


def recorded(tmp_path, program, script, *arguments, **variables):
    """The command line that the script gives the program."""
    stand_in = tmp_path / program
    stand_in.write_text(RECORDER)
    stand_in.chmod(0o755)
    done = subprocess.run(['bash', str(TOOLS / script), *arguments],
                          env=environment(tmp_path, **variables),
                          cwd=tmp_path,
                          capture_output=True,
                          text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.parametrize('script, tool, fourth', (
    ('slurm_train.sh', 'train.py', '--work-dir=work dir'),
    ('slurm_test.sh', 'test.py', 'work dir'),
))
def test_slurm(tmp_path, script, tool, fourth):
    (tmp_path / 'a.pth').touch()
    given = recorded(
        tmp_path,
        'srun',
        script,
        'gpu',
        'my job; ls',
        'a config.py',
        'work dir',
        '--cfg-options',
        'a=[1, 2]',
        'b=$(ls)',
        GPUS='16',
        SRUN_ARGS='--time=1:00 --nodelist=*')
    assert given == [
        '-p', 'gpu', '--job-name=my job; ls', '--gres=gpu:8', '--ntasks=16',
        '--ntasks-per-node=8', '--cpus-per-task=5', '--kill-on-bad-exit=1',
        '--time=1:00', '--nodelist=*', 'python', '-u',
        str(TOOLS / tool), 'a config.py', fourth, '--launcher=slurm',
        '--cfg-options', 'a=[1, 2]', 'b=$(ls)'
    ]


@pytest.mark.parametrize('script, positional', (
    ('dist_train.sh', ['a config.py']),
    ('dist_test.sh', ['a config.py', 'a b.pth']),
))
def test_nodes(tmp_path, script, positional):
    given = recorded(
        tmp_path,
        'python',
        script,
        *positional,
        '4',
        '--work-dir',
        'a b',
        NNODES='2',
        NODE_RANK='1',
        MASTER_ADDR='host',
        PORT='1234')
    assert given == [
        '-m', 'torch.distributed.run', '--nnodes=2', '--node_rank=1',
        '--master_addr=host', '--master_port=1234', '--nproc_per_node=4',
        str(TOOLS / script.replace('dist_', '').replace('.sh', '.py')),
        *positional, '--launcher', 'pytorch', '--work-dir', 'a b'
    ]


@pytest.mark.parametrize('script', ('slurm_train.sh', 'slurm_test.sh'))
def test_usage(script):
    done = subprocess.run(
        ['bash', str(TOOLS / script), 'partition', 'job', 'config.py'],
        capture_output=True,
        text=True)
    assert done.returncode == 2
    assert f'usage: bash tools/{script} PARTITION JOB_NAME' in done.stderr


CONFIG = f"""
_base_ = {str(ROOT / 'configs' / 'resnet18_pwlu.py')!r}
custom_imports = dict(imports=['mm_acon', 'save_rank'])
custom_hooks = [
    dict(type='PWLURealignHook', phase1_epochs=1),
    dict(type='SaveRank')
]
"""
SAVE_RANK = """
import torch
from mmengine.hooks import Hook
from mmengine.registry import HOOKS


@HOOKS.register_module()
class SaveRank(Hook):

    def after_train(self, runner):
        model = runner.model.module
        torch.save(
            dict(
                parameters=dict(model.named_parameters()),
                phase=model.backbone.relu.phase), f'rank{runner.rank}.pth')
"""


@pytest.mark.full
def test_two_nodes(tmp_path):
    """dist_train.sh twice, as on two machines."""
    (tmp_path / 'config.py').write_text(CONFIG)
    (tmp_path / 'save_rank.py').write_text(SAVE_RANK)
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = str(free.getsockname()[1])
    nodes = [
        subprocess.Popen([
            'bash',
            str(TOOLS / 'dist_train.sh'), 'config.py', '1', '--demo',
            '--cfg-options', 'model.backbone.base_channels=8',
            'model.backbone.stem_channels=8', 'model.head.in_channels=64',
            'train_cfg.max_epochs=2', 'train_dataloader.batch_size=4',
            'train_dataloader.dataset.indices=32',
            'val_dataloader.dataset.indices=4'
        ],
                         env=environment(
                             Path(sys.executable).parent,
                             PYTHONPATH=str(tmp_path),
                             NNODES='2',
                             NODE_RANK=str(rank),
                             MASTER_ADDR='127.0.0.1',
                             PORT=port),
                         cwd=tmp_path,
                         stdout=subprocess.PIPE,
                         stderr=subprocess.STDOUT,
                         text=True) for rank in range(2)
    ]
    logs = [node.communicate(timeout=300)[0] for node in nodes]
    for node, log in zip(nodes, logs):
        assert node.returncode == 0, log[-3000:]
    assert 'PWLU: Phase II starts at iteration 4.' in logs[0]
    first, second = (
        torch.load(tmp_path / f'rank{rank}.pth', weights_only=True)
        for rank in range(2))
    assert first['phase'] == 2
    assert same(first, second)
