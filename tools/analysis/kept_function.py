"""How far networks keep their function when their activations are replaced.

    python tools/analysis/kept_function.py
    python tools/analysis/kept_function.py CONFIG --parts backbone neck

Each network has random weights, and norms that have seen a few batches in
training. Its outputs, in eval mode, are compared with those of a copy with
PWLU in place of its activations: at the fixed start, in Phase I, there with
the gradients of a training step too, and after the realignment on the same
data. A difference is the norm of the outputs' difference over their norm.
Without CONFIG the exit code is 1 where a network misses its bar.

The longer the norms of a random network settle (--batches 60), the more does
every layer enlarge what differs before it, be it by one bit.
"""
import argparse
import copy
import logging
import sys
from dataclasses import dataclass
from typing import List, Optional, Tuple

import torch
from mmengine.logging import MMLogger
from mmengine.registry import MODELS, init_default_scope
from torch import Tensor, nn

from mm_acon import PWLU, swap_activations
from mm_acon.activations.base import activations_of
from mm_acon.cli import load_config
from mm_acon.nested import tensors
from mm_acon.swap.probe import probe
from mm_acon.swap.swap import GATES

from tables import table  # isort: skip


@dataclass
class Network:
    """Parts of a shipped model, one after the other, and their bar.

    Attributes:
        config: Where they are.
        parts: Keys of the model.
        replaced: Types of the activations to replace; all that are no gates
            if empty.
        bar: The largest difference after the realignment, in percent.
        is_exact: Whether the start is to be exact, but for rounding.
        size: Of an image, in pixels.
    """
    config: str
    parts: Tuple[str, ...] = ('backbone', )
    replaced: Tuple[str, ...] = ()
    bar: Optional[float] = None
    is_exact: bool = False
    size: int = 224


DETECTOR = ('backbone', 'neck', 'bbox_head')
NETWORKS = (
    Network('mmdet::rtmdet/rtmdet_tiny_8xb32-300e_coco.py', DETECTOR,
            ('SiLU', ), .2),
    Network('mmdet::yolox/yolox_s_8xb8-300e_coco.py', DETECTOR, ('Swish', ),
            .2),
    Network(
        'mmpretrain::mobilenet_v3/mobilenet-v3-small_8xb128_in1k.py',
        replaced=('Hardswish', ),
        bar=.5),
    Network(
        'mmpretrain::swin_transformer/swin-tiny_16xb64_in1k.py',
        replaced=('GELU', ),
        bar=.2),
    Network(
        'mmpretrain::convnext/convnext-tiny_32xb128_in1k.py',
        replaced=('GELU', ),
        bar=.2),
    Network(
        'mmpretrain::mobilenet_v2/mobilenet-v2_8xb32_in1k.py',
        replaced=('ReLU6', ),
        bar=.5,
        is_exact=True),
    Network('mmdet::yolo/yolov3_d53_8xb8-320-273e_coco.py',
            ('backbone', 'neck'), ('LeakyReLU', ), .5, True),
)


@dataclass
class Result:
    """What became of one network; differences in percent."""
    functions: str
    sites: int
    start: float
    phase1: Optional[str] = None
    realigned: Optional[float] = None


def build(network: Network) -> nn.Module:
    cfg = load_config(network.config)
    init_default_scope(cfg.get('default_scope', 'mmengine'))
    model = MODELS.build(cfg.model)
    return nn.Sequential(*(getattr(model, part) for part in network.parts))


def flat(value) -> Tensor:
    return torch.cat([tensor.flatten() for tensor in tensors(value)])


def percent(found: Tensor, true: Tensor) -> float:
    return 100 * ((found - true).norm() / true.norm()).item()


def trained_step(model: nn.Module, x: Tensor) -> Tuple[Tensor, dict]:
    """Outputs and gradients in train mode, by one random state."""
    model = copy.deepcopy(model).train()
    torch.manual_seed(0)
    y = flat(model(x))
    y.square().mean().backward()
    return y.detach(), {
        name: parameter.grad
        for name, parameter in model.named_parameters()
    }


def same_step(first: nn.Module, second: nn.Module, x: Tensor) -> bool:
    """Whether all that both have is equal to the last bit."""
    (y, grads), (other, others) = (
        trained_step(model, x) for model in (first, second))
    return torch.equal(y, other) and all(grad is None and others[name] is None
                                         or torch.equal(grad, others[name])
                                         for name, grad in grads.items()
                                         if name in others)


@torch.no_grad()
def compare(network: Network, act: str, batches: int, samples: int) -> Result:
    torch.manual_seed(0)
    model = build(network)
    shape = (samples, 3, network.size, network.size)
    model.train()
    for _ in range(batches):
        x = torch.rand(shape)
        model(x)
    model.eval()
    true = flat(model(x))
    replaced = network.replaced or sorted({
        site.type
        for site in probe(model, (), shape).sites if site.type not in GATES
    })
    swapped = copy.deepcopy(model)
    report = swap_activations(
        swapped, dict(type=act), replace=list(replaced), sample_input=shape)
    found = Result(', '.join(replaced), len(report.replaced),
                   percent(flat(swapped(x)), true))
    units = [
        unit for unit in activations_of(swapped).values()
        if isinstance(unit, PWLU)
    ]
    if not units:
        return found
    for unit in units:
        unit.start_phase1()
    with torch.enable_grad():
        equal = (
            same_step(model, swapped, x[:2])
            and torch.equal(flat(swapped(x)), true))
    found.phase1 = 'equal' if equal else 'differs'
    # The statistics of what the eval mode sees.
    for unit in units:
        unit.train()
    swapped(x)
    for unit in units:
        unit.eval()
        unit.realign()
    found.realigned = percent(flat(swapped(x)), true)
    return found


def misses(network: Network, found: Result) -> bool:
    return (found.phase1 == 'differs'
            or network.is_exact and found.start > 1e-3
            or None not in (found.realigned, network.bar)
            and found.realigned > network.bar)


def cells(network: Network, found: Result) -> List[str]:
    name = network.config.rpartition('/')[2].partition('_8xb')[0]
    name = name.partition('_16xb')[0].partition('_32xb')[0]
    realigned = '-' if found.realigned is None else f'{found.realigned:.3f}%'
    bar = '-' if network.bar is None else f'{network.bar}%'
    return [
        name, '+'.join(network.parts), found.functions, found.sites,
        f'{found.start:.2f}%', found.phase1 or '-', realigned, bar
    ]


TITLES = ('network', 'parts', 'activations', 'sites', 'fixed start', 'Phase I',
          'realigned', 'bar')


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('configs', nargs='*', help='of any OpenMMLab library')
    parser.add_argument(
        '--parts',
        nargs='+',
        default=['backbone'],
        help='keys of the models in CONFIG that follow one another')
    parser.add_argument('--size', type=int, default=224)
    parser.add_argument('--act', default='PWLU')
    parser.add_argument(
        '--batches', type=int, default=3, help='that the norms see')
    parser.add_argument('--samples', type=int, default=4, help='in a batch')
    args = parser.parse_args()
    MMLogger.get_current_instance().setLevel(logging.ERROR)
    networks = [
        Network(config, tuple(args.parts), size=args.size)
        for config in args.configs
    ] or NETWORKS
    rows, missed = [], []
    for network in networks:
        found = compare(network, args.act, args.batches, args.samples)
        rows.append(cells(network, found))
        if misses(network, found):
            missed.append(network.config)
    print(table(TITLES, rows, (0, 1, 2, 5)))
    if missed:
        print('\nmissed: ' + ', '.join(missed))
    return int(bool(missed))


if __name__ == '__main__':
    sys.exit(main())
