"""Counts parameters and multiply-adds (MACs).

    python tools/analysis/complexity.py
    python tools/analysis/complexity.py CONFIG --act PWLU --shape 800 1333

Without arguments: the networks of the papers (arXiv 2009.04759, 2104.03693)
beside the numbers that the papers print, at 224 pixels. The exit status is 1
if a row is not what its last column says. With a config: what the activations
of its backbone add, site by site.
"""
import argparse
import logging
import sys
from dataclasses import dataclass
from typing import Iterator, List, Optional, Sequence, Tuple

import torch
from mmengine.logging import MMLogger
from mmengine.registry import MODELS, init_default_scope
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from mm_acon import LearnableActivation, swap_activations
from mm_acon.cli import add_config_options, prepare_config
from mm_acon.compat import counting_flops
from mm_acon.ops.extension import DEVICES
from mm_acon.swap.config import find_backbones
from mm_acon.swap.probe import probe
from mm_acon.swap.report import aligned

RULES = """\
MACs are those of convolutions and fully connected layers; they agree if less
than one unit of the last printed digit off. Parameters are without those of
BatchNorm in the ACON paper and with them in the PWLU paper; they agree if
they round to the printed number."""


@dataclass
class Row:
    """A number of a paper and the same counted here.

    Attributes:
        table: Where the paper prints it.
        network: Name of the network.
        activation: What is in place of its ReLUs.
        quantity: What is counted.
        printed: The paper's number: '11.7M', '3.9G' or '81,984'.
        counted: The number counted here.
        agrees: Whether the two are known to agree.
    """
    table: str
    network: str
    activation: str
    quantity: str
    printed: str
    counted: int
    agrees: bool = True

    @property
    def unit(self) -> int:
        return dict(M=10**6, G=10**9).get(self.printed[-1], 1)

    @property
    def value(self) -> float:
        return float(self.printed.rstrip('MG').replace(',', '')) * self.unit

    @property
    def is_as_known(self) -> bool:
        digits = len(self.printed.rstrip('MG').partition('.')[2])
        allowed = self.unit / 10**digits
        if self.quantity != 'MACs':
            allowed /= 2
        return (abs(self.counted - self.value) < allowed) is self.agrees

    def cells(self) -> Tuple[str, ...]:
        counted = f'{self.counted:,}'
        if self.unit > 1:
            counted = f'{self.counted / self.unit:.3f}{self.printed[-1]}'
        note = 'agrees' if self.agrees else 'does not agree'
        if not self.is_as_known:
            note = f'OFF: not so, "{note}"'
        return (self.network, self.activation, self.quantity, counted,
                self.printed, f'{self.counted / self.value - 1:+.1%}',
                self.table, note)


def resnet(depth: int, style: str = 'caffe') -> dict:
    """The ACON paper has the stride in the first 1x1 convolution."""
    return dict(type='mmpretrain.ResNet', depth=depth, style=style)


BOTTLENECK = dict(include=r'\.conv2$')
R8 = dict(act_cfg=dict(type='MetaACON', reduction=8))
RELU6 = dict(replace='ReLU6')
# Network: backbone, swap, and MACs and parameters, with ReLU and meta-ACON.
# None: not printed for that variant.
ACON_TABLE_2 = {
    'MobileNetV1 0.25': (dict(type='MobileNetV1', widen_factor=0.25), {},
                         ('41M', '0.5M'), ('41M', '0.6M')),
    'MobileNetV2 0.17':
    (dict(type='mmpretrain.MobileNetV2',
          widen_factor=0.17), RELU6, ('42M', '1.4M'), ('42M', '1.9M')),
    'ShuffleNetV2 0.5x':
    (dict(type='mmpretrain.ShuffleNetV2',
          widen_factor=0.5), R8, ('41M', '1.4M'), ('41M', '1.7M')),
    'MobileNetV1 0.75': (dict(type='MobileNetV1', widen_factor=0.75), {},
                         ('325M', '2.6M'), ('326M', '3.1M')),
    'MobileNetV2 1.0': (dict(type='mmpretrain.MobileNetV2'), RELU6,
                        ('299M', '3.5M'), ('299M', '6.0M')),
    'MobileNetV2 1.0, r=8': (dict(type='mmpretrain.MobileNetV2'),
                             dict(**R8, **RELU6), None, ('299M', '6.0M')),
    'ShuffleNetV2 1.5x': (dict(type='MegviiShuffleNetV2', widen_factor=1.5),
                          {}, ('299M', '3.5M'), ('299M', '3.9M')),
    'ResNet-18': (resnet(18), dict(include=r'\.conv[12]$'), ('1.8G', '11.7M'),
                  ('1.8G', '11.9M')),
    'ResNet-50':
    (resnet(50), BOTTLENECK, ('3.9G', '25.5M'), ('3.9G', '25.7M')),
    'ResNet-101':
    (resnet(101), BOTTLENECK, ('7.6G', '44.4M'), ('7.6G', '44.8M')),
    'ResNet-152': (resnet(152), BOTTLENECK, ('11.3G', '60.0M'), ('11.3G',
                                                                 '60.5M')),
}
# TFNet's widen_factor: MACs and parameters in Table 8 and in the appendix.
TFNET = {
    0.5: (('43M', '1.3M'), ('41M', '1.4M')),
    1.0: (('135M', '1.9M'), ('146M', '2.3M')),
    1.5: (('279M', '2.7M'), ('279M', '2.7M')),
    2.0: (('474M', '3.8M'), ('591M', '7.4M')),
}
# Network: backbone, hidden layers of the head, MACs and parameters.
PWLU_TABLE_2 = {
    'ResNet-18': (resnet(18), (), '1.8G', '11.69M'),
    'ResNet-50': (resnet(50, style='pytorch'), (), '4.1G', '25.5M'),
    'MobileNetV2': (dict(type='mmpretrain.MobileNetV2'), (), '300M', '3.5M'),
    'MobileNetV3-small': (dict(type='mmpretrain.MobileNetV3',
                               arch='small'), (1024, ), '56M', '2.6M'),
    'EfficientNet-B0': (dict(type='mmpretrain.EfficientNet',
                             arch='b0'), (), '384M', '5.3M'),
}
# ResNet's depth: sites of ReLU, their channels, and N + 5 = 21 numbers for
# each channel.
PWLU_ADDS = {
    18: ('17', '3,904', '81,984'),
    50: ('49', '22,720', '477,120'),
    101: ('100', '48,832', '1,025,472'),
}
# Network, activation and quantity of what does not agree.
DISAGREES = {
    ('MobileNetV2 0.17', 'ReLU', 'MACs'),
    ('MobileNetV2 0.17', 'meta-ACON', 'MACs'),
    ('MobileNetV2 0.17', 'meta-ACON', 'parameters'),
    ('MobileNetV2 1.0', 'ReLU', 'MACs'),
    ('MobileNetV2 1.0', 'meta-ACON', 'MACs'),
    ('MobileNetV2 1.0', 'meta-ACON', 'parameters'),
    ('MobileNetV2 1.0, r=8', 'meta-ACON', 'MACs'),
    ('MobileNetV2 1.0, r=8', 'meta-ACON', 'parameters'),
    ('ResNet-50', 'baseline', 'parameters'),
    ('MobileNetV3-small', 'baseline', 'parameters'),
    ('EfficientNet-B0', 'baseline', 'MACs'),
}


class Classifier(nn.Module):
    """A backbone, the mean over its map, and fully connected layers."""

    def __init__(self, backbone: dict, hidden: Sequence[int] = ()) -> None:
        super().__init__()
        self.backbone = MODELS.build(dict(backbone))
        self.to('meta').eval()
        width = self.backbone(torch.empty(1, 3, 64, 64, device='meta'))
        widths = [width[-1].shape[1], *hidden, 1000]
        self.head = nn.Sequential(*(nn.Linear(*pair, device='meta')
                                    for pair in zip(widths, widths[1:])))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.backbone(x)[-1].mean((2, 3)))


def count_parameters(module: nn.Module, norms: bool = True) -> int:
    left_out = set() if norms else {
        parameter
        for child in module.modules() if isinstance(child, _BatchNorm)
        for parameter in child.parameters()
    }
    return sum(p.numel() for p in module.parameters() if p not in left_out)


def count_macs(module: nn.Module, *shape: int, layers: bool = False) -> int:
    """With ``layers`` those of convolutions and fully connected layers."""
    with torch.no_grad(), counting_flops() as counter:
        module(torch.empty(shape, device='meta'))
    counts = counter.get_flop_counts().get('Global', {})
    return sum(count for operator, count in counts.items()
               if not layers or 'mm_acon' not in str(operator)) // 2


def macs_and_parameters(model: nn.Module, norms: bool = False):
    return (('MACs', count_macs(model, 1, 3, 224, 224, layers=True)),
            ('parameters', count_parameters(model, norms)))


def paper_rows() -> Iterator[Row]:
    for name, (backbone, swap, *printed) in ACON_TABLE_2.items():
        model = Classifier(backbone)
        for activation, numbers in zip(('ReLU', 'meta-ACON'), printed):
            if activation != 'ReLU':
                swap = dict(dict(act_cfg=dict(type='MetaACON')), **swap)
                swap_activations(model.backbone, **swap)
            for (quantity, counted), number in zip(
                    macs_and_parameters(model), numbers or ()):
                row = name, activation, quantity
                yield Row('ACON Table 2', *row, number, counted, row
                          not in DISAGREES)
    for factor, tables in TFNET.items():
        counts = macs_and_parameters(
            Classifier(dict(type='TFNet', widen_factor=factor)))
        for table, numbers in zip(('Table 8', 'Appendix Table 1'), tables):
            for (quantity, counted), number in zip(counts, numbers):
                # The appendix prints the numbers of ShuffleNetV2, but for
                # 1.5.
                agrees = table == 'Table 8' or factor == 1.5
                yield Row(f'ACON {table}', f'TFNet {factor}', 'ACON-FReLU',
                          quantity, number, counted, agrees)
    for name, (backbone, hidden, *numbers) in PWLU_TABLE_2.items():
        counts = macs_and_parameters(Classifier(backbone, hidden), norms=True)
        for (quantity, counted), number in zip(counts, numbers):
            row = name, 'baseline', quantity
            yield Row('PWLU Table 2', *row, number, counted, row
                      not in DISAGREES)
    for depth, numbers in PWLU_ADDS.items():
        model = Classifier(resnet(depth, style='pytorch'))
        report = swap_activations(model.backbone, dict(type='PWLU'))
        counts = (('sites', len(report.replaced)),
                  ('channels', sum(row.width for row in report.replaced)),
                  ('added parameters',
                   sum(row.parameters for row in report.replaced)))
        for (quantity, counted), number in zip(counts, numbers):
            yield Row('N + 5 a channel', f'ResNet-{depth}', 'PWLU', quantity,
                      number, counted)


def report_papers() -> int:
    rows = list(paper_rows())
    print(
        aligned([('network', 'activation', 'quantity', 'counted', 'paper',
                  'difference', 'printed in', 'note')] +
                [row.cells() for row in rows]))
    print(f'\n{RULES}')
    off = [row for row in rows if not row.is_as_known]
    agreeing = sum(row.agrees for row in rows)
    print(f'\n{agreeing} numbers should agree with the papers and '
          f'{len(rows) - agreeing} should not; {len(off)} are otherwise.')
    return 1 if off else 0


def site_rows(backbone: nn.Module, shape: Sequence[int]) -> List[tuple]:
    """Site, activation, width, map, parameters and MACs of each site."""
    rows = []
    for site in probe(backbone, sample_input=shape).sites:
        if isinstance(site.module, LearnableActivation):
            map_size = 'x'.join(map(str, site.map_size))
            macs = count_macs(site.module, 1, site.width, *site.map_size)
            rows.append((site.name, site.type, site.width, map_size,
                         count_parameters(site.module), macs))
    return rows


def report_config(args: argparse.Namespace) -> Optional[str]:
    cfg = prepare_config(args)
    init_default_scope(cfg.get('default_scope', 'mmengine'))
    for place in find_backbones(cfg.model):
        backbone = MODELS.build(place.config).to('meta')
        backbone.eval()
        name = type(backbone).__name__
        shape = (1, 3, *args.shape)
        rows = site_rows(backbone, shape)
        if not rows:
            return (f'complexity.py: {name} has no learnable activation; '
                    'write --act PWLU, for example.')
        print(
            aligned([('site', 'activation', 'width', 'map', 'parameters',
                      'MACs')] + [(*row[:2], str(row[2]), row[3],
                                   f'{row[4]:,}', f'{row[5]:,}')
                                  for row in rows]))
        print(f'\n{name}, {args.shape[0]}x{args.shape[1]} pixels, '
              f'{len(rows)} sites')
        for quantity, total, added in (('parameters',
                                        count_parameters(backbone),
                                        sum(row[4] for row in rows)),
                                       ('MACs', count_macs(backbone, *shape),
                                        sum(row[5] for row in rows))):
            print(f'{quantity}: {added:,} by the activations, '
                  f'{added / (total - added):.2%} of the other '
                  f'{total - added:,}')
    if not DEVICES:
        print('The operators are not compiled, so that only the layers '
              'inside activations are counted.')
    return None


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    add_config_options(parser)
    parser.add_argument(
        '--shape',
        type=int,
        nargs=2,
        default=(224, 224),
        metavar=('H', 'W'),
        help='size of the image, 224 224 if not given')
    # Tables of swaps, one per network, would hide the result.
    MMLogger.get_current_instance().setLevel(logging.ERROR)
    if len(sys.argv) == 1:
        sys.exit(report_papers())
    sys.exit(report_config(parser.parse_args()))


if __name__ == '__main__':
    main()
