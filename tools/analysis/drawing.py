"""What the tools that draw share: options, the model, its snapshots."""
import atexit
import sys
from argparse import ArgumentParser, Namespace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Dict, NoReturn, Optional

import torch
from mmengine.runner import Runner

import mm_acon  # noqa: F401  (registers)
from mm_acon.cli import add_config_options, build_runner, prepare_config
from mm_acon.visualization import (Observer, Snapshot, choose_layers,
                                   curve_activations)


def parser(description: str, *source: str, **options) -> ArgumentParser:
    """Arguments of a tool that draws what a checkpoint has learnt.

    ``source`` and ``options`` declare where the weights come from, if not
    from one checkpoint.
    """
    found = ArgumentParser(description=description)
    add_config_options(found)
    if source:
        found.add_argument(*source, **options)
    else:
        found.add_argument('checkpoint', help='checkpoint file')
    found.add_argument('--out', required=True, help='picture to write')
    return found


def add_layer_options(found: ArgumentParser,
                      num_layers: Optional[int] = 6) -> None:
    found.add_argument(
        '--layers', metavar='REGEX', help='only layers whose name matches')
    found.add_argument(
        '--num-layers',
        type=int,
        default=num_layers,
        help='how many of them, spread evenly; default: '
        f'{num_layers or "all"}')


def trained_runner(args: Namespace) -> Runner:
    """A Runner in eval mode that has loaded the checkpoint."""
    # A Runner wants a folder for its log; what remains is the picture.
    folder = TemporaryDirectory()
    atexit.register(folder.cleanup)
    args.work_dir = folder.name
    runner = build_runner(prepare_config(args, 'test_dataloader'))
    runner.load_or_resume()
    runner.model.eval()
    return runner


def chosen_layers(runner: Runner, args: Namespace, *kinds: type) -> dict:
    """The activations of these kinds that the options choose, by name."""
    try:
        found = curve_activations(runner.model)
        if kinds:
            found = {
                name: module
                for name, module in found.items() if isinstance(module, kinds)
            }
        if not found:
            names = ', '.join(kind.__name__ for kind in kinds)
            raise ValueError(f'the model has no {names}.')
        return choose_layers(found, args.layers, args.num_layers)
    except ValueError as error:
        stop(error)


def stop(message) -> NoReturn:
    sys.exit(f'{Path(sys.argv[0]).name}: {message}')


def observe(runner: Runner,
            layers: dict,
            num_images: int,
            num_channels: int = 4) -> Dict[str, Snapshot]:
    """Snapshots of layers on the first images of the test set."""
    dataset = runner.test_dataloader.dataset
    batch = [dataset[index] for index in range(min(num_images, len(dataset)))]
    with Observer(layers, num_channels) as seen, torch.no_grad():
        runner.model.test_step(runner.test_dataloader.collate_fn(batch))
    # Auxiliary heads, for example, are only trained.
    found = {
        name: seen.snapshots[name]
        for name in layers if name in seen.snapshots
    }
    if not found:
        stop('no image passes through ' + ', '.join(layers))
    return found


def save(figure, out: str) -> None:
    Path(out).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out)
    print(f'wrote {out}')
