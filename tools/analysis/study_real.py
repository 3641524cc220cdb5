"""Trains on blood cells and cell nuclei with every activation, and compares.

    python tools/analysis/study_real.py --data FOLDER --weights FILE

FOLDER has bccd, a Pascal VOC folder, and nuclei, images with instance maps;
FILE is what tools/model_converters/efficientnet_lite2mm.py wrote. Prints the
tables of docs/real_images.md, which says what they mean and where the files
come from, and draws its figure, OUT/real_curves.png.

A finished run is kept in WORK_DIR/results.json and its weights in
WORK_DIR/checkpoints. What was stopped, by --minutes or by a kill, goes on
after its last whole epoch when the command is given again, to the same
numbers but for the seconds. --report prints what there is.
"""
import argparse
import contextlib
import hashlib
import io
import os
import re
import shutil
import statistics
import sys
import time
from itertools import islice
from pathlib import Path
from typing import Callable, Dict, List, NamedTuple, Optional, Tuple

import torch
from comparison import Results, alignment, compare, verdict
from drawing import save
from matplotlib.figure import Figure
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.hooks import Hook
from mmengine.runner import Runner, set_random_seed
from tables import table
from timing import start_benchmark

from mm_acon import adapt_mmengine
from mm_acon.cli import build_runner, load_config
from mm_acon.visualization.figures import COLOURS, DASHES, grid_of_axes, styled

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / 'configs/real_images'
# Alignment is measured on the first images of the test set alone: on all of
# them the inputs of 33 layers would take gigabytes.
ALIGNMENT_BATCHES = 2
NEVER = 10**6

FIXED = {'custom_hooks': []}
BOUND = 'model.backbone.swap.act_cfg.bound'


class Variant(NamedTuple):
    """A config of configs/real_images and the options that change it."""
    config: str
    options: dict = {}


class Study(NamedTuple):
    """One network on one data set.

    Attributes:
        title: Of the table.
        data: Folder of the data set.
        metrics: Keys of what is measured, and how they are called; the first
            is what is compared.
        seeds: How many, if the command does not say.
        variants: What is compared with the first of them.
    """
    title: str
    data: str
    metrics: Tuple[Tuple[str, str], ...]
    seeds: int
    variants: Dict[str, Variant]


def _scratch(name: str) -> Dict[str, Variant]:
    """The PWLU paper's Table 5 in small."""
    pwlu = f'{name}_pwlu'
    return {
        'ReLU': Variant(f'{name}_relu'),
        'PWLU, fix-init 3': Variant(pwlu, FIXED),
        'PWLU, fix-init 10': Variant(pwlu, {
            BOUND: 10.,
            **FIXED
        }),
        'PWLU, realigned': Variant(pwlu),
    }


STUDIES: Dict[str, Study] = {
    'retinanet_lite0':
    Study(
        'RetinaNet on blood cells, from ImageNet weights', 'bccd',
        (('coco/bbox_mAP', 'box mAP'), ('coco/bbox_mAP_50', 'box AP50')), 3, {
            'ReLU6': Variant('retinanet_lite0_relu6'),
            'PWLU': Variant('retinanet_lite0_pwlu', FIXED),
            'PWLU, realigned': Variant('retinanet_lite0_pwlu'),
            'ACON-C': Variant('retinanet_lite0_acon'),
            'meta-ACON': Variant('retinanet_lite0_metaacon'),
        }),
    'retinanet_r18':
    Study('RetinaNet on nuclei, from scratch', 'nuclei',
          (('coco/bbox_mAP', 'box mAP'), ('coco/bbox_mAP_50', 'box AP50')), 3,
          _scratch('retinanet_r18')),
    'mask_rcnn_r18':
    Study('Mask R-CNN on nuclei, from scratch', 'nuclei',
          (('coco/segm_mAP', 'mask mAP'), ('coco/bbox_mAP', 'box mAP')), 3,
          _scratch('mask_rcnn_r18')),
    'pspnet_r18':
    Study(
        'PSPNet on nuclei, from scratch', 'nuclei', (('mIoU', 'mIoU'), ), 5, {
            'ReLU': Variant('pspnet_r18_relu'),
            'Swish': Variant('pspnet_r18_swish'),
            'ACON-C': Variant('pspnet_r18_acon'),
            'meta-ACON': Variant('pspnet_r18_metaacon'),
            'PWLU, realigned': Variant('pspnet_r18_pwlu'),
        }),
}


class TimeIsUp(Exception):
    """--minutes are over; what was trained is in a checkpoint."""


class StudyHook(Hook):
    """Seeds, evaluates and times every epoch.

    Random numbers start anew with each epoch, so that a run that goes on
    after one draws what it would have drawn. The evaluation comes before the
    checkpoint is written and goes into it, so that none is missed.
    """

    def __init__(self, seed: int, interval: int) -> None:
        self.seed, self.interval = seed, interval

    def before_train(self, runner: Runner) -> None:
        hub = runner.message_hub
        if 'study' not in hub.runtime_info:
            hub.update_info('study', dict(curve={}, seconds=[]))
        # Or what the checkpoint brought.
        self.seen = hub.get_info('study')

    def before_train_epoch(self, runner: Runner) -> None:
        set_random_seed(1000 * self.seed + runner.epoch)
        self.times: List[float] = []

    def before_train_iter(self, runner: Runner, *args, **kwargs) -> None:
        self.begin = time.process_time()

    def after_train_iter(self, runner: Runner, *args, **kwargs) -> None:
        # Of the processor, not of the clock: what else the machine does in
        # these hours is not in it.
        self.times.append(time.process_time() - self.begin)

    def after_train_epoch(self, runner: Runner) -> None:
        self.seen['seconds'].append(statistics.median(self.times))
        # mmengine counts the epoch as done only later.
        epoch = runner.epoch + 1
        if epoch % self.interval == 0 or epoch == runner.max_epochs:
            self.evaluate(runner, epoch)

    def evaluate(self, runner: Runner, epoch: int) -> None:
        self.seen['curve'][epoch] = numbers(quietly(runner.val_loop.run))


class EndsHook(Hook):
    """Evaluates before the first step, and stops behind a checkpoint."""

    # After mmengine's, which writes the checkpoint.
    priority = 'LOWEST'

    def __init__(self, hook: StudyHook, deadline: float) -> None:
        self.hook, self.deadline = hook, deadline

    def before_train(self, runner: Runner) -> None:
        if runner.iter == 0:
            self.hook.evaluate(runner, 0)

    def after_train_epoch(self, runner: Runner) -> None:
        if time.time() > self.deadline and (runner.epoch + 1
                                            < runner.max_epochs):
            raise TimeIsUp


def quietly(function: Callable, *args):
    """pycocotools prints a table each time."""
    with contextlib.redirect_stdout(io.StringIO()):
        return function(*args)


def numbers(metrics: dict) -> Dict[str, float]:
    return {key: float(value) for key, value in metrics.items()}


def convert_data(args: argparse.Namespace) -> None:
    """Runs the converters, if their files are not there yet."""
    sys.path.insert(0, str(ROOT / 'tools/dataset_converters'))
    import instance_maps
    import pascal_voc
    source, out = Path(args.data), Path(args.work_dir) / 'data'
    wanted = {STUDIES[name].data for name in args.studies}
    # Written last, where the conversion was whole.
    if 'bccd' in wanted and not (out / 'bccd/coco/val.json').exists():
        pascal_voc.convert(source / 'bccd', out / 'bccd/coco', None, None)
    if 'nuclei' in wanted and not (out / 'nuclei/coco/val.json').exists():
        instance_maps.convert(source / 'nuclei', out / 'nuclei', 'nucleus', 5,
                              1)


class Cell(NamedTuple):
    """One network, one activation, one seed."""
    study: str
    variant: str
    seed: int

    def __str__(self) -> str:
        return f'{self.study} / {self.variant} / {self.seed}'

    @property
    def slug(self) -> str:
        """The name of its files."""
        return re.sub(r'\W+', '_', str(self).lower().replace('/', ' '))

    def config(self, epochs: Optional[int]) -> Config:
        """Its config, still with the paths of configs/real_images."""
        variant = STUDIES[self.study].variants[self.variant]
        cfg = load_config(str(CONFIGS / f'{variant.config}.py'))
        cfg.merge_from_dict(dict(variant.options))
        if epochs:
            cfg.train_cfg.max_epochs = epochs
            cfg.param_scheduler[-1].T_max = epochs - 1
        return cfg


def digest(cfg: Config) -> str:
    """Changes with the recipe."""
    return hashlib.sha256(cfg.pretty_text.encode()).hexdigest()[:12]


def use_files(cfg: Config, study: Study, args: argparse.Namespace) -> None:
    """Puts the data and the weights of the command into a config."""
    source = Path(args.data).absolute() / study.data
    converted = Path(args.work_dir).absolute() / 'data' / study.data
    for split in ('train', 'val', 'test'):
        dataset = cfg[f'{split}_dataloader'].dataset
        if args.images:
            dataset.indices = args.images
        if 'ann_file' not in dataset:
            dataset.data_root = str(converted)
            continue
        dataset.data_root = str(source)
        dataset.ann_file = str(converted / dataset.ann_file)
        if split != 'train':
            cfg[f'{split}_evaluator'].ann_file = dataset.ann_file
    init_cfg = cfg.model.backbone.get('init_cfg')
    if init_cfg:
        init_cfg.checkpoint = str(Path(args.weights).absolute())


def train(cell: Cell, args: argparse.Namespace) -> dict:
    """A cell from where it was to its metrics.

    Raises:
        TimeIsUp: it was stopped, and goes on the next time.
    """
    study = STUDIES[cell.study]
    cfg = cell.config(args.epochs)
    found = dict(config=digest(cfg))
    use_files(cfg, study, args)
    interval, cfg.train_cfg.val_interval = cfg.train_cfg.val_interval, NEVER
    folder = Path(args.work_dir) / 'runs' / f'{cell.slug}_{found["config"]}'
    cfg.update(
        work_dir=str(folder),
        launcher='none',
        # From its latest checkpoint, if it has one.
        resume=True,
        randomness=dict(seed=cell.seed),
        log_level='ERROR',
        # Runner refuses a second run of the same name.
        experiment_name=f'{cell.slug}_{os.getpid()}_{time.time_ns()}')
    # Else the next run would write into this one's folder.
    cfg.visualizer.update(name=cfg.experiment_name, vis_backends=[])
    cfg.train_dataloader.sampler.seed = cell.seed
    runner = build_runner(cfg, training=True)
    hook = StudyHook(cell.seed, interval)
    runner.register_hook(hook)
    runner.register_hook(EndsHook(hook, args.deadline))
    quietly(runner.train)
    found.update(
        metrics=numbers(quietly(runner.test)),
        curve={
            str(key): value
            for key, value in hook.seen['curve'].items()
        },
        seconds=statistics.median(hook.seen['seconds']),
        iou=[
            round(value, 3) for value in alignment(
                runner.model, islice(runner.test_dataloader,
                                     ALIGNMENT_BATCHES))
        ])
    keep_weights(runner, Path(args.work_dir) / f'checkpoints/{cell.slug}.pth')
    shutil.rmtree(folder)
    return found


def keep_weights(runner: Runner, path: Path) -> None:
    """Without what only training needs."""
    path.parent.mkdir(exist_ok=True)
    part = path.with_suffix('.part')
    torch.save(
        dict(
            meta=dict(dataset_meta=runner.train_dataloader.dataset.metainfo),
            state_dict=runner.model.state_dict()), part)
    os.replace(part, path)


def all_cells(args: argparse.Namespace) -> List[Cell]:
    """Seed by seed, so that what is there can be compared at any time."""
    seeds = {name: args.seeds or STUDIES[name].seeds for name in args.studies}
    return [
        Cell(name, variant, seed) for seed in range(max(seeds.values()))
        for name in args.studies if seed < seeds[name]
        for variant in args.variants[name]
    ]


def refuse_other_recipes(results: Results, args: argparse.Namespace) -> None:
    """Raises ValueError where a run was made with another config."""
    for cell in all_cells(args):
        run = results['runs'].get(str(cell))
        if run and run['config'] != digest(cell.config(args.epochs)):
            raise ValueError(
                f'{results.path} holds the run {cell} of another config than '
                f'{CONFIGS} has now; write another --work-dir, or remove the '
                'run there.')


def run_all(results: Results, args: argparse.Namespace) -> None:
    cells = all_cells(args)
    missing = [cell for cell in cells if str(cell) not in results['runs']]
    for cell in missing:
        # At least an epoch each time, else it might never come to an end.
        if cell is not missing[0] and time.time() > args.deadline:
            raise TimeIsUp
        begin = time.time()
        run = results['runs'][str(cell)] = train(cell, args)
        results['machine'].update(args.machine)
        results.save()
        key, name = STUDIES[cell.study].metrics[0]
        print(
            f'{cell}: {name} '
            f'{percent(run["metrics"], key):.2f}, '
            f'{(time.time() - begin) / 60:.1f} min',
            flush=True)


def percent(metrics: Dict[str, float], key: str) -> float:
    """COCO's are shares, mmseg's are in percent."""
    value = metrics.get(key, 0.)
    return 100 * value if key.startswith('coco') else value


def finished(results: Results, args: argparse.Namespace, name: str,
             variant: str) -> Dict[int, dict]:
    """Runs by seed."""
    found = {
        seed: results['runs'].get(str(Cell(name, variant, seed)))
        for seed in range(args.seeds or STUDIES[name].seeds)
    }
    return {seed: run for seed, run in found.items() if run}


def spread(values: List[float], digits: int = 2) -> str:
    """Mean and standard deviation."""
    text = f'{statistics.fmean(values):.{digits}f}'
    if len(values) > 1:
        text += f' ± {statistics.stdev(values):.{digits}f}'
    return text


def row(results: Results, args: argparse.Namespace, name: str,
        variant: str) -> Optional[Tuple[str, ...]]:
    """A line of a study's table, or None where nothing was run."""
    study = STUDIES[name]
    runs = finished(results, args, name, variant)
    if not runs:
        return None
    baseline = next(iter(study.variants))
    key = study.metrics[0][0]
    pairs = [
        (percent(run['metrics'], key), percent(other['metrics'], key))
        for seed, other in finished(results, args, name, baseline).items()
        for run in [runs.get(seed)] if run
    ]
    difference = word = '-'
    if variant != baseline and len(pairs) > 1:
        mean, error = compare(*map(list, zip(*pairs)))
        difference = f'{mean:+.2f} ± {error:.2f}'
        word = dict(
            shows='better', reversed='worse').get(
                verdict(mean, error, len(pairs)), 'not decided')
    ious = [
        statistics.fmean(run['iou']) for run in runs.values() if run['iou']
    ]
    metrics = [
        spread([percent(run['metrics'], key) for run in runs.values()])
        for key, _ in study.metrics
    ]
    start = [percent(run['curve']['0'], key) for run in runs.values()]
    return (variant, len(runs), *metrics, difference, word,
            spread(ious, 3) if ious else '-', f'{statistics.fmean(start):.2f}',
            f'{statistics.median(r["seconds"] for r in runs.values()):.2f}')


def report(results: Results, args: argparse.Namespace) -> str:
    parts = []
    cells = all_cells(args)
    done = sum(str(cell) in results['runs'] for cell in cells)
    parts.append(f'{done} of {len(cells)} runs are there.')
    if results['machine']:
        parts[0] += ' {device}, {date}.'.format(**results['machine'])
    for name in args.studies:
        study = STUDIES[name]
        rows = [row(results, args, name, v) for v in args.variants[name]]
        rows = [cells for cells in rows if cells]
        parts.append(f'### {study.title}')
        if not rows:
            parts.append('Not run.')
            continue
        titles = ('activation', 'seeds', *(title
                                           for _, title in study.metrics),
                  'to the first', 'verdict', 'IOU', 'before the first step',
                  'CPU seconds per step')
        parts.append(table(titles, rows, (0, 3 + len(study.metrics))))
    return '\n\n'.join(parts)


@styled
def curves_figure(results: Results, args: argparse.Namespace) -> Figure:
    """Mean over the seeds by epoch; the band is from the least to the most."""
    names = [
        name for name in args.studies if any(
            finished(results, args, name, variant)
            for variant in args.variants[name])
    ]
    figure, panels = grid_of_axes(len(names), (4.6, 3.4), columns=2)
    for name, axes in zip(names, panels):
        key, title = STUDIES[name].metrics[0]
        for number, variant in enumerate(args.variants[name]):
            runs = finished(results, args, name, variant).values()
            if not runs:
                continue
            epochs = sorted(int(epoch) for epoch in next(iter(runs))['curve'])
            values = [[percent(run['curve'][str(e)], key) for run in runs]
                      for e in epochs]
            axes.plot(
                epochs, [statistics.fmean(v) for v in values],
                color=COLOURS[number],
                ls=DASHES[number],
                label=variant)
            axes.fill_between(
                epochs, [min(v) for v in values], [max(v) for v in values],
                color=COLOURS[number],
                alpha=0.15,
                lw=0)
        axes.set_title(STUDIES[name].title)
        axes.set_xlabel('epoch')
        axes.set_ylabel(f'{title}, split val')
        axes.legend(fontsize=7.5, frameon=False, loc='lower right')
    return figure


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument('--data', help='folder with bccd and nuclei')
    parser.add_argument('--weights', help="EfficientNet-Lite0's, converted")
    parser.add_argument('--work-dir', default='work_dirs/real_images')
    parser.add_argument(
        '--out', default='docs/figures', help='folder of the figure')
    parser.add_argument(
        '--studies',
        nargs='+',
        choices=list(STUDIES),
        default=list(STUDIES),
        metavar='NAME',
        help=f'some of {list(STUDIES)}')
    parser.add_argument(
        '--variants',
        nargs='+',
        metavar='NAME',
        help='only these; the first of a study is always among them')
    parser.add_argument(
        '--seeds',
        type=int,
        help='if not given ' + ', '.join(f'{n} {study.seeds}'
                                         for n, study in STUDIES.items()))
    parser.add_argument(
        '--minutes', type=float, help='stop after the epoch that ends then')
    parser.add_argument(
        '--report', action='store_true', help='run nothing, print the tables')
    parser.add_argument('--epochs', type=int, help='to try it out')
    parser.add_argument(
        '--images', type=int, help='of each split, to try it out')
    parser.add_argument('--threads', type=int, default=1)
    args = parser.parse_args()
    known = {v for name in args.studies for v in STUDIES[name].variants}
    unknown = [name for name in args.variants or () if name not in known]
    if unknown:
        parser.error(f'expected --variants among {sorted(known)}, got '
                     f'{unknown}.')
    if args.epochs is not None and args.epochs < 2:
        parser.error('expected --epochs of at least 2, one of them for '
                     f"PWLU's Phase I, got {args.epochs}.")
    args.variants = {
        name: [
            variant for number, variant in enumerate(STUDIES[name].variants)
            if not number or variant in (args.variants or known)
        ]
        for name in args.studies
    }
    if args.report:
        return args
    if not args.data:
        parser.error('expected --data FOLDER with bccd and nuclei, or '
                     '--report.')
    if 'retinanet_lite0' in args.studies and not (args.weights and Path(
            args.weights).is_file()):
        parser.error('retinanet_lite0 starts from the weights that '
                     'tools/model_converters/efficientnet_lite2mm.py writes; '
                     f'expected --weights FILE, got {args.weights}. Other '
                     'networks need none: --studies retinanet_r18')
    return args


def main() -> None:
    args = parse_args()
    args.device = get_device()
    args.deadline = time.time() + 60 * (args.minutes or float('inf'))
    adapt_mmengine()
    stopped = False
    try:
        setting = dict(
            epochs=args.epochs, images=args.images, threads=args.threads)
        results = Results(args.work_dir, setting)
        refuse_other_recipes(results, args)
        if not args.report:
            args.machine = start_benchmark(args)
            convert_data(args)
            run_all(results, args)
    except TimeIsUp:
        stopped = True
    except (FileExistsError, FileNotFoundError, ValueError) as error:
        sys.exit(f'study_real.py: {error}')
    if results['runs']:
        save(
            curves_figure(results, args),
            str(Path(args.out) / 'real_curves.png'))
    print(f'\n{report(results, args)}')
    if stopped:
        print('\nstopped after --minutes; the same command goes on')


if __name__ == '__main__':
    main()
