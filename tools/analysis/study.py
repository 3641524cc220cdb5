"""Trains small networks with every activation and compares them.

    python tools/analysis/study.py

A ResNet-18 of an eighth of the width learns to tell the drawn shapes apart
in strong noise, which is drawn anew for every training image in every epoch.
Every seed has training images and initial weights of its own; the images that
are tested on are the same for all. All activations share one recipe.
Prints the tables of docs/study.md, which says what they mean, and draws its
figures, OUT/study_*.png. Finished runs are kept in WORK_DIR/results.json: a
study that was interrupted goes on where it was.
"""
import argparse
import os
import random
import statistics
import sys
from pathlib import Path
from typing import Dict, List, NamedTuple, Optional, Tuple

import torch
from benchmark_model import Backbone
from comparison import Results, alignment, compare, student, verdict
from drawing import save
from matplotlib.figure import Figure
from mmengine.device import get_device
from mmengine.registry import MODELS, init_default_scope
from mmengine.runner import Runner
from tables import table
from timing import kept_bytes, start_benchmark
from torch.utils.data import Dataset

from mm_acon.demo.shapes import SHAPES, draw_shapes
from mm_acon.visualization.figures import COLOURS, DASHES, styled

# Chosen so that the ReLU network errs on some of the images.
CONTRAST, NOISE = 0.25, 1.0
IMAGE_SIZE, WIDTH, BATCH_SIZE = 64, 8, 32
# The demo's, with a higher rate for so few steps.
OPTIMIZER = dict(type='AdamW', lr=3e-3, weight_decay=0.05)


class Variant(NamedTuple):
    """What stands in place of a ReLU.

    Attributes:
        act_cfg: The activation, None for the library's own ReLU.
        realigned: Whether PWLU trains in its two phases.
    """
    act_cfg: Optional[dict]
    realigned: bool = False


VARIANTS: Dict[str, Variant] = {
    'ReLU':
    Variant(None),
    'Swish':
    Variant(dict(type='SiLU')),
    'ACON-A':
    Variant(dict(type='ACONA')),
    'ACON-B':
    Variant(dict(type='ACONB')),
    'ACON-C':
    Variant(dict(type='ACONC')),
    'meta-ACON channel':
    Variant(dict(type='MetaACON')),
    'meta-ACON channel, norm':
    Variant(dict(type='MetaACON', norm_cfg=dict(type='BN'))),
    'meta-ACON layer':
    Variant(dict(type='MetaACON', granularity='layer')),
    'meta-ACON pixel':
    Variant(dict(type='MetaACON', granularity='pixel')),
}
for _units in ('channel', 'layer'):
    for _bound in (3, 6, 10):
        VARIANTS[f'PWLU {_units}, fix-init {_bound}'] = Variant(
            dict(type='PWLU', bound=float(_bound), granularity=_units))
    VARIANTS[f'PWLU {_units}, realigned'] = Variant(
        dict(type='PWLU', granularity=_units), realigned=True)

# The others cost what these do.
COSTS = {
    name: name.replace(', fix-init 3', '')
    for name, variant in VARIANTS.items()
    if not variant.realigned and (variant.act_cfg or {}).get('bound', 3) == 3
}

R18 = 'ResNet-18'
SHUFFLENET = 'ShuffleNetV2 0.5x'
# Better, worse, points of top-1 accuracy between them in the paper, where.
ORDERINGS: List[Tuple[str, str, float, str]] = [
    ('ACON-A', 'ReLU', 1.1, f'ACON Table 3, {SHUFFLENET}'),
    ('ACON-B', 'ACON-A', 0.9, f'ACON Table 3, {R18}'),
    ('ACON-C', 'ACON-B', 0.3, f'ACON Table 3, {R18}'),
    ('ACON-C', 'ReLU', 1.2, f'ACON Table 3, {R18}'),
    ('meta-ACON channel', 'ACON-C', 0.7, f'ACON Tables 2, 3, {R18}'),
    ('meta-ACON channel', 'ReLU', 1.9, f'ACON Table 2, {R18}'),
    ('meta-ACON channel', 'meta-ACON layer', 1.5,
     f'ACON Table 5, {SHUFFLENET}'),
    ('meta-ACON layer', 'meta-ACON pixel', 0.9, f'ACON Table 5, {SHUFFLENET}'),
    ('meta-ACON pixel', 'ReLU', 2.2, f'ACON Table 5, {SHUFFLENET}'),
    ('Swish', 'ReLU', 0.27, f'PWLU Table 2, {R18}'),
    ('PWLU channel, realigned', 'Swish', 0.96, f'PWLU Table 2, {R18}'),
]
# Top-1 accuracy in PWLU's Table 5, ResNet-18.
TABLE_5 = dict(
    channel=(72.27, 71.86, 72.19, 72.57), layer=(71.57, 71.70, 71.84, 72.22))
for _units, (*_fixed, _realigned) in TABLE_5.items():
    for _bound, _accuracy in zip((3, 6, 10), _fixed):
        ORDERINGS += [
            (f'PWLU {_units}, realigned', f'PWLU {_units}, fix-init {_bound}',
             round(_realigned - _accuracy, 2), f'PWLU Table 5, {R18}'),
            (f'PWLU {_units}, fix-init {_bound}', 'ReLU',
             round(_accuracy - 71.34, 2), f'PWLU Table 5, {R18}'),
        ]
    ORDERINGS.append((f'PWLU {_units}, realigned', 'ReLU',
                      round(_realigned - 71.34, 2), f'PWLU Table 5, {R18}'))
ORDERINGS.append(('PWLU channel, realigned', 'PWLU layer, realigned', 0.35,
                  f'PWLU Table 5, {R18}'))
# The paper draws these two distributions and prints no mean.
IOU_ORDERING = ('PWLU channel, realigned', 'PWLU channel, fix-init 10')


class Shapes(Dataset):
    """Drawn shapes in Gaussian noise.

    Training images are flipped at random and get other noise each time;
    those of the split val always have the same.
    """

    def __init__(self, split: str, first: int, number: int) -> None:
        from mmpretrain.structures import DataSample
        self.training = split == 'train'
        generator = torch.Generator().manual_seed(0)
        self.items = []
        drawings = draw_shapes(
            split, first + number, (IMAGE_SIZE, IMAGE_SIZE), max_shapes=1)
        for index, (image, [(category, _)]) in enumerate(drawings):
            if index >= first:
                # The ground lies between 0 and 63, the shape above 127.
                x = torch.from_numpy(image).permute(2, 0, 1) / 80 - 1
                x *= CONTRAST
                if not self.training:
                    x += NOISE * torch.randn(x.shape, generator=generator)
                self.items.append((x, DataSample().set_gt_label(category)))

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> dict:
        x, sample = self.items[index]
        if self.training:
            if torch.rand(()) < 0.5:
                x = x.flip(2)
            x = x + NOISE * torch.randn(x.shape)
        return dict(inputs=x, data_samples=sample)


def backbone_config(variant: Variant) -> dict:
    plain = dict(
        type='ResNet', depth=18, base_channels=WIDTH, stem_channels=WIDTH)
    if variant.act_cfg is None:
        return plain
    return dict(
        type='SwapActivations',
        backbone=plain,
        swap=dict(act_cfg=variant.act_cfg))


def build_runner(variant: Variant, seed: int, args) -> Runner:
    train = Shapes('train', seed * args.train_images, args.train_images)

    def loader(dataset: Dataset, shuffle: bool) -> dict:
        return dict(
            dataset=dataset,
            batch_size=BATCH_SIZE,
            num_workers=0,
            sampler=dict(type='DefaultSampler', shuffle=shuffle))

    iterations = args.epochs * -(-len(train) // BATCH_SIZE)
    # As long as Phase I.
    warm_up = iterations // args.epochs
    return Runner(
        model=dict(
            type='ImageClassifier',
            backbone=backbone_config(variant),
            neck=dict(type='GlobalAveragePooling'),
            head=dict(
                type='LinearClsHead',
                num_classes=len(SHAPES),
                in_channels=8 * WIDTH,
                topk=(1, ))),
        work_dir=str(Path(args.work_dir) / 'logs'),
        train_dataloader=loader(train, True),
        train_cfg=dict(
            by_epoch=True,
            max_epochs=args.epochs,
            val_interval=args.epochs + 1),
        val_dataloader=loader(Shapes('val', 0, args.val_images), False),
        val_cfg=dict(),
        val_evaluator=dict(type='Accuracy', topk=(1, )),
        optim_wrapper=dict(
            optimizer=OPTIMIZER,
            constructor='ActivationOptimWrapperConstructor'),
        param_scheduler=[
            dict(
                type='LinearLR', start_factor=0.1, by_epoch=False,
                end=warm_up),
            dict(
                type='CosineAnnealingLR',
                by_epoch=False,
                begin=warm_up,
                end=iterations),
        ],
        default_hooks=dict(checkpoint=None),
        custom_hooks=[dict(type='PWLURealignHook', phase1_epochs=1)]
        if variant.realigned else [],
        randomness=dict(seed=seed),
        default_scope='mmpretrain',
        # Runner refuses a second run of the same name.
        experiment_name=f'study_{os.getpid()}_{id(train)}',
        log_level='ERROR')


def train(variant: Variant, seed: int, args) -> dict:
    """One network from the first step to its accuracy, in percent."""
    runner = build_runner(variant, seed, args)
    runner.train()
    accuracy = runner.val()['accuracy/top1']
    iou = alignment(runner.model, runner.val_dataloader)
    return dict(accuracy=accuracy, iou=[round(value, 3) for value in iou])


def measure_costs(args) -> Dict[str, dict]:
    """Time of a training step and what is kept for the backward pass.

    The networks alternate in one run, in another order every round, and a
    ratio is the median of each round's, so that a machine whose speed drifts
    changes none.
    """
    init_default_scope('mmpretrain')
    shape = BATCH_SIZE, 3, IMAGE_SIZE, IMAGE_SIZE
    x = torch.randn(shape, device=args.device)
    nets = {}
    for name in args.variants:
        if name in COSTS:
            model = MODELS.build(backbone_config(VARIANTS[name]))
            nets[name] = Backbone(model, x, torch.float32,
                                  torch.contiguous_format)
    times: Dict[str, List[float]] = {name: [] for name in nets}
    order = list(nets)
    shuffle = random.Random(0).shuffle
    for round_ in range(args.rounds + 3):
        shuffle(order)
        for name in order:
            milliseconds = nets[name].train_step()['train_ms']
            if round_ >= 3:
                times[name].append(milliseconds)
    return {
        name:
        dict(
            train_ms=statistics.median(times[name]),
            over_relu=statistics.median(
                t / base for t, base in zip(times[name], times['ReLU'])),
            kept=kept_bytes(net.model, x) / 2**20,
            parameters=sum(p.numel() for p in net.model.parameters()))
        for name, net in nets.items()
    }


def run_all(args, results: Results) -> None:
    runs = results['runs']
    for seed in range(args.seeds):
        for name in args.variants:
            key = f'{name} / {seed}'
            if key in runs:
                continue
            runs[key] = train(VARIANTS[name], seed, args)
            results.save()
            print(f'{key}: {runs[key]["accuracy"]:.2f} %', flush=True)
    if list(results['costs']) != [n for n in args.variants if n in COSTS]:
        results['costs'].clear()
        results['costs'].update(measure_costs(args))
        results['machine'].update(args.machine)
        results.save()


def values(results: Results, args, name: str, key: str) -> List[float]:
    """One number of each seed, accuracy or mean IOU."""
    runs = [results['runs'][f'{name} / {seed}'] for seed in range(args.seeds)]
    if key == 'iou':
        return [statistics.fmean(run['iou'] or [0]) for run in runs]
    return [run[key] for run in runs]


def ordering_rows(results: Results, args) -> List[Tuple[str, ...]]:
    """Every ordering of the papers whose two sides were trained."""
    cases = [(better, worse, 'accuracy', f'{gain:+.2f}', where)
             for better, worse, gain, where in ORDERINGS]
    cases.append((*IOU_ORDERING, 'iou', 'drawn', 'PWLU Fig. 6, MobileNetV3'))
    rows = []
    for better, worse, key, paper, where in cases:
        if better not in args.variants or worse not in args.variants:
            continue
        difference, error = compare(
            values(results, args, better, key),
            values(results, args, worse, key))
        errors = '-' if error == 0 else f'{difference / error:+.1f}'
        digits = 2 if key == 'accuracy' else 3
        rows.append(
            (f'{better} > {worse}', 'accuracy' if key == 'accuracy' else 'IOU',
             paper, where, f'{difference:+.{digits}f}', f'{error:.{digits}f}',
             errors, verdict(difference, error, args.seeds)))
    return rows


def accuracy_rows(results: Results, args) -> List[Tuple[str, ...]]:
    rows = []
    relu = values(results, args, 'ReLU', 'accuracy')
    for name in args.variants:
        found = values(results, args, name, 'accuracy')
        difference, error = compare(found, relu)
        iou = '-'
        if name.startswith('PWLU'):
            by_seed = values(results, args, name, 'iou')
            iou = (f'{statistics.fmean(by_seed):.3f} ± '
                   f'{statistics.stdev(by_seed):.3f}')
        rows.append(
            (name, f'{statistics.fmean(found):.2f}',
             f'{statistics.stdev(found):.2f}', f'{min(found):.2f}',
             f'{max(found):.2f}',
             '-' if name == 'ReLU' else f'{difference:+.2f} ± {error:.2f}',
             iou))
    return rows


def cost_rows(results: Results) -> List[Tuple[str, ...]]:
    costs = results['costs']
    return [
        (COSTS[name], f'{cost["train_ms"]:.1f}', f'{cost["over_relu"]:.2f}',
         f'{cost["kept"]:.1f}', f'{cost["kept"] / costs["ReLU"]["kept"]:.2f}',
         f'{cost["parameters"] - costs["ReLU"]["parameters"]:,}')
        for name, cost in costs.items()
    ]


def summary(rows: List[Tuple[str, ...]], seeds: int) -> str:
    """What the verdicts say, in sentences."""
    lines = [
        f'- Decided is what is more than {student(seeds):g} standard errors '
        'from 0. If no activation differed from another, some '
        f'{0.05 * len(rows):.1f} rows would be.'
    ]
    for word, text in (('shows', 'show here'), ('reversed',
                                                'are reversed here')):
        found = [f'{row[0]} ({row[1]})' for row in rows if row[-1] == word]
        lines.append(f'- {len(found)} of {len(rows)} orderings {text}' +
                     (': ' + '; '.join(found) if found else '') + '.')
    undecided = [row for row in rows if row[-1] == 'not decided']
    same_sign = sum(float(row[4]) > 0 for row in undecided)
    lines.append(f'- {len(undecided)} are not decided at this scale; of '
                 f"these {same_sign} have the papers' sign.")
    return '\n'.join(lines)


def report(results: Results, args) -> str:
    orderings = ordering_rows(results, args)
    machine = results['machine']
    return '\n\n'.join(
        (table(('activation', 'mean', 'std', 'min', 'max', 'to ReLU', 'IOU'),
               accuracy_rows(results, args)), summary(orderings, args.seeds),
         table(('ordering', 'of', 'paper', 'where', 'here', 'standard error',
                'in standard errors', 'verdict'), orderings,
               (0, 1, 3, 7)), f'{machine["device"]}, {machine["date"]}',
         table(('activation', 'step ms', '/ ReLU', 'kept MiB', '/ ReLU',
                'parameters added'), cost_rows(results))))


@styled
def accuracy_figure(results: Results, args) -> Figure:
    names = list(reversed(args.variants))
    figure = Figure(figsize=(6.4, 0.27 * len(names) + 0.9))
    axes = figure.subplots()
    families = ('ReLU', 'Swish', 'ACON', 'meta', 'PWLU')
    for y, name in enumerate(names):
        colour = next(colour for family, colour in zip(families, COLOURS)
                      if name.startswith(family))
        found = values(results, args, name, 'accuracy')
        axes.plot(found, [y] * len(found), 'o', color=colour, alpha=0.45)
        axes.plot(statistics.fmean(found), y, '|', color='black', ms=13, mew=2)
    axes.axvline(
        statistics.fmean(values(results, args, 'ReLU', 'accuracy')),
        color='0.6',
        lw=0.8,
        ls='--')
    axes.set_yticks(range(len(names)), names)
    axes.set_xlabel('top-1 accuracy in %')
    axes.set_title('dots: seeds, bars: their mean, dashed: mean of ReLU')
    return figure


@styled
def iou_figure(results: Results, args) -> Figure:
    figure = Figure(figsize=(7.6, 3.3))
    grid = figure.subplots(1, 2, sharex=True, sharey=True)
    for axes, units in zip(grid, ('channel', 'layer')):
        chosen = [
            name for name in args.variants if name.startswith(f'PWLU {units}')
        ]
        for name, colour, dashes in zip(chosen, COLOURS, DASHES):
            found = sorted(
                iou for seed in range(args.seeds)
                for iou in results['runs'][f'{name} / {seed}']['iou'])
            share = [(i + 1) / len(found) for i in range(len(found))]
            axes.plot(
                found,
                share,
                ls=dashes,
                color=colour,
                label=name.split(', ')[1])
        axes.set_title(f'PWLU, one unit per {units}')
        axes.set_xlabel('alignment IOU of bounds and input')
    figure.legend(
        *max(grid, key=lambda a: len(a.lines)).get_legend_handles_labels(),
        loc='outside lower center',
        ncols=4,
        frameon=False)
    grid[0].set_ylabel('share of units with at most this IOU')
    return figure


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument('--work-dir', default='work_dirs/study')
    parser.add_argument(
        '--out', default='docs/figures', help='folder of the figures')
    parser.add_argument('--seeds', type=int, default=6)
    parser.add_argument(
        '--variants',
        nargs='+',
        metavar='NAME',
        default=list(VARIANTS),
        help=f'some of {list(VARIANTS)}; ReLU is always among them')
    parser.add_argument('--epochs', type=int, default=10)
    parser.add_argument('--train-images', type=int, default=1024)
    parser.add_argument('--val-images', type=int, default=1024)
    parser.add_argument('--threads', type=int, default=1)
    parser.add_argument('--rounds', type=int, default=31, help='of the timing')
    args = parser.parse_args()
    unknown = [name for name in args.variants if name not in VARIANTS]
    if unknown:
        parser.error(f'expected --variants among {list(VARIANTS)}, got '
                     f'{unknown}.')
    if args.seeds < 2:
        parser.error('expected --seeds of at least 2, since a spread needs '
                     f'two, got {args.seeds}.')
    if args.epochs < 2:
        parser.error('expected --epochs of at least 2, one of them for '
                     f"PWLU's Phase I, got {args.epochs}.")
    args.variants = [
        name for name in VARIANTS if name in ('ReLU', *args.variants)
    ]
    args.device = get_device()
    return args


def main() -> None:
    args = parse_args()
    try:
        results = Results(
            args.work_dir,
            dict(
                epochs=args.epochs,
                train_images=args.train_images,
                val_images=args.val_images,
                contrast=CONTRAST,
                noise=NOISE,
                width=WIDTH,
                optimizer=OPTIMIZER))
    except ValueError as error:
        sys.exit(f'study.py: {error}')
    args.machine = start_benchmark(args)
    run_all(args, results)
    out = Path(args.out)
    save(accuracy_figure(results, args), out / 'study_accuracy.png')
    save(iou_figure(results, args), out / 'study_iou.png')
    print(f'\n{report(results, args)}')


if __name__ == '__main__':
    main()
