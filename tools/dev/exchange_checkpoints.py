"""Goes on with one set of packages from what another one trained.

    python tools/dev/exchange_checkpoints.py \
        .venv-oldest/bin/python .venv/bin/python

Each of the two trains a small ResNet-18 with PWLU on drawn shapes. From the
checkpoint of its first epoch, which is in Phase I, the other resumes and
realigns; the one of its last epoch the other tests. What the model holds
after loading has to be the same with both, to the last bit.
"""
import argparse
import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CONFIG = 'mm_acon::resnet18_pwlu.py'
# Two of three epochs are Phase I.
OPTIONS = ('--demo', '--cfg-options', 'train_cfg.max_epochs=3',
           'custom_hooks.0.phase1_epochs=2', 'model.backbone.base_channels=8',
           'model.backbone.stem_channels=8', 'model.head.in_channels=64',
           'train_dataloader.dataset.indices=64',
           'val_dataloader.dataset.indices=16',
           'test_dataloader.dataset.indices=16',
           'default_hooks.checkpoint.interval=1',
           'default_hooks.checkpoint.max_keep_ckpts=3')


def call(python: str, *arguments, folder: Path) -> str:
    done = subprocess.run([python, *map(str, arguments)],
                          cwd=folder,
                          stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT,
                          text=True,
                          env=dict(os.environ, PYTHONPATH=str(ROOT)))
    if done.returncode:
        sys.exit(f'{python} {" ".join(map(str, arguments))}\n{done.stdout}')
    return done.stdout


def held(config: str, checkpoint: str) -> dict:
    """A hash of each parameter and buffer of the model that loaded it."""
    from mm_acon import adapt_mmengine
    from mm_acon.cli import build_runner, load_config
    adapt_mmengine()
    runner = build_runner(load_config(config))
    runner.load_checkpoint(checkpoint)
    return {
        name: hashlib.sha256(value.numpy().tobytes()).hexdigest()
        for name, value in runner.model.state_dict().items()
    }


def exchange(first: str, second: str, folder: Path) -> None:
    train = ROOT / 'tools/train.py', CONFIG, *OPTIONS, '--work-dir'
    call(first, *train, 'first', folder=folder)
    for epoch in (1, 3):
        last_lines = {
            call(
                python,
                __file__,
                '--held',
                'first/resnet18_pwlu.py',
                f'first/epoch_{epoch}.pth',
                folder=folder).splitlines()[-1]
            for python in (first, second)
        }
        if len(last_lines) > 1:
            sys.exit(f'The models that loaded epoch_{epoch}.pth differ')
        print(f'  epoch_{epoch}.pth: {len(json.loads(last_lines.pop()))} '
              'parameters and buffers are equal after loading')
    log = call(
        second,
        *train,
        'second',
        '--resume',
        'first/epoch_1.pth',
        folder=folder)
    print('  resumed: ' + re.search(r'PWLU: Phase II starts.*', log)[0])
    for python in (first, second):
        log = call(
            python,
            ROOT / 'tools/test.py',
            CONFIG,
            'first/epoch_3.pth',
            *OPTIONS,
            '--work-dir',
            'test',
            folder=folder)
        print(f'  tested with {python}: {log.splitlines()[-1]}')


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('pythons', nargs='+', help='two interpreters')
    parser.add_argument('--held', action='store_true', help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.held:
        print(json.dumps(held(*args.pythons)))
        return
    # Not resolved: a virtual environment's is a link.
    pythons = [os.path.abspath(python) for python in args.pythons]
    for first, second in (pythons, pythons[::-1]):
        print(f'{first} trains, {second} goes on', flush=True)
        with tempfile.TemporaryDirectory() as folder:
            exchange(first, second, Path(folder))


if __name__ == '__main__':
    main()
