"""Draws how learnt activations and bounds move over training, animated.

    python tools/analysis/plot_training.py CONFIG WORK_DIR --out FILE.gif

One frame for each checkpoint of the work dir, so train with
``default_hooks.checkpoint.interval=1`` and ``max_keep_ckpts=-1``. What lies
behind the curves is as in plot_activations.py.
"""
import re
from pathlib import Path
from typing import Dict

from drawing import (add_layer_options, chosen_layers, observe, parser, stop,
                     trained_runner)

from mm_acon.activations.pwlu import PHASE_1
from mm_acon.visualization.figures import save_animation, training_frames


def checkpoints_of(folder: str) -> Dict[str, str]:
    """Files by the moment they were written at, the first moment first."""
    found = []
    for path in Path(folder).glob('*.pth'):
        name = re.fullmatch(r'(epoch|iter)_(\d+)', path.stem)
        if name:
            found.append((int(name[2]), f'{name[1]} {name[2]}', str(path)))
    return {moment: path for _, moment, path in sorted(found)}


def main() -> None:
    arguments = parser(
        'Draw activations over training, as an animated GIF',
        'folder',
        metavar='work_dir',
        help='folder with the checkpoints epoch_*.pth or iter_*.pth')
    add_layer_options(arguments, num_layers=3)
    arguments.add_argument(
        '--num-channels', type=int, default=4, help='channels per layer')
    arguments.add_argument(
        '--seconds', type=float, default=0.9, help='length of a frame')
    args = arguments.parse_args()
    checkpoints = checkpoints_of(args.folder)
    if not checkpoints:
        stop(f'there is no epoch_*.pth or iter_*.pth in {args.folder!r}.')
    args.checkpoint = next(iter(checkpoints.values()))
    runner = trained_runner(args)
    layers = chosen_layers(runner, args)
    history = {}
    for moment, checkpoint in checkpoints.items():
        runner.load_checkpoint(checkpoint)
        if any(
                getattr(layer, 'current_phase', None) == PHASE_1
                for layer in layers.values()):
            moment += ', Phase I'
        history[moment] = observe(runner, layers, 8, args.num_channels)
    frames = training_frames(history)
    save_animation(frames, args.out, args.seconds)
    print(f'wrote {args.out}: {len(frames)} frames')


if __name__ == '__main__':
    main()
