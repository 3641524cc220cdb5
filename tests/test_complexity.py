"""The papers' numbers (arXiv 2009.04759, 2104.03693), counted again."""
import importlib.util
import sys
from pathlib import Path

import pytest
import torch
from mmengine.logging import MMLogger

from mm_acon import PWLU
from mm_acon.ops.extension import DEVICES
from tests.helpers.counting import MACS, PARAMETERS
from tests.utils import FLOP_COUNTER

pytestmark = [FLOP_COUNTER, pytest.mark.usefixtures('unverified')]

for library in ('mmdet', 'mmpretrain'):
    pytest.importorskip(f'{library}.models')

TOOL = Path(__file__).parents[1] / 'tools' / 'analysis' / 'complexity.py'
spec = importlib.util.spec_from_file_location('complexity', TOOL)
complexity = importlib.util.module_from_spec(spec)
spec.loader.exec_module(complexity)


@pytest.fixture(scope='module')
def rows():
    return list(complexity.paper_rows())


@pytest.mark.full
def test_every_row_is_as_known(rows):
    assert not [row.cells() for row in rows if not row.is_as_known]


# By hand for ResNet-18: a site of C channels adds 2 C + (C h + h) + (h C + C),
# h = max(16, C // 16), which is 2256, 4496, 8976 and 34336, four times each.
def test_resnet18_by_hand():
    assert PARAMETERS['resnet18_metaacon'] - PARAMETERS['resnet18_relu'] == (
        4 * (2256 + 4496 + 8976 + 34336))


# Network and activation in the tool's tables, and the same by its config.
NAMES = {
    ('ResNet-18', 'ReLU'): 'resnet18_relu',
    ('ResNet-18', 'meta-ACON'): 'resnet18_metaacon',
    ('ResNet-50', 'ReLU'): 'resnet50_relu',
    ('ResNet-50', 'meta-ACON'): 'resnet50_metaacon',
    ('ResNet-101', 'ReLU'): 'resnet101_relu',
    ('ResNet-101', 'meta-ACON'): 'resnet101_metaacon',
    ('ResNet-152', 'ReLU'): 'resnet152_relu',
    ('ResNet-152', 'meta-ACON'): 'resnet152_metaacon',
    ('MobileNetV1 0.25', 'meta-ACON'): 'mobilenetv1_0.25_metaacon',
    ('MobileNetV1 0.75', 'meta-ACON'): 'mobilenetv1_0.75_metaacon',
    ('MobileNetV2 1.0', 'meta-ACON'): 'mobilenetv2_1.0_metaacon',
    ('MobileNetV2 1.0, r=8', 'meta-ACON'): 'mobilenetv2_1.0_metaacon_r8',
    ('TFNet 0.5', 'ACON-FReLU'): 'tfnet_0.5',
    ('TFNet 2.0', 'ACON-FReLU'): 'tfnet_2.0',
}
EXACT = {(*key, 'parameters'): PARAMETERS[name] for key, name in NAMES.items()}
EXACT.update({
    (*key, 'MACs'): MACS[NAMES[key]]
    for key in (('ResNet-50', 'ReLU'), ('TFNet 2.0', 'ACON-FReLU'))
})


@pytest.mark.parametrize('key', EXACT, ids='-'.join)
@pytest.mark.full
def test_exact_number(key, rows):
    found = {
        row.counted
        for row in rows
        if row.table.startswith('ACON') and (row.network, row.activation,
                                             row.quantity) == key
    }
    assert found == {EXACT[key]}


@pytest.mark.full
def test_rows_that_do_not_agree_show_both_numbers(rows):
    cells = {row.cells() for row in rows if not row.agrees}
    for row in (('MobileNetV2 1.0', 'meta-ACON', 'parameters', '4.874M',
                 '6.0M', '-18.8%', 'ACON Table 2'),
                ('TFNet 2.0', 'ACON-FReLU', 'MACs', '473.657M', '591M',
                 '-19.9%', 'ACON Appendix Table 1')):
        assert (*row, 'does not agree') in cells


@pytest.mark.parametrize('quantity, printed, counted, agrees', [
    ('parameters', '11.7M', 11_740_000, True),
    ('parameters', '11.7M', 11_760_000, False),
    ('parameters', '11.7M', 11_640_000, False),
    ('MACs', '43M', 42_100_000, True),
    ('MACs', '43M', 44_000_000, False),
    ('MACs', '3.9G', 3_990_000_000, True),
    ('added parameters', '81,984', 81_984, True),
    ('added parameters', '81,984', 81_985, False),
])
def test_when_numbers_agree(quantity, printed, counted, agrees):
    row = ('a table', 'a network', 'ReLU', quantity, printed, counted)
    assert complexity.Row(*row, agrees=agrees).is_as_known
    assert not complexity.Row(*row, agrees=not agrees).is_as_known


@pytest.fixture
def call(monkeypatch, capsys):
    """Runs the tool; its exit status or message, and what it printed."""
    logger = MMLogger.get_current_instance()
    level = logger.level

    def call(*arguments):
        monkeypatch.setattr(sys, 'argv', ['complexity.py', *arguments])
        with pytest.raises(SystemExit) as done:
            complexity.main()
        return done.value.code, capsys.readouterr().out

    yield call
    logger.setLevel(level)


@pytest.mark.full
def test_exit_status(call, rows, monkeypatch):
    monkeypatch.setattr(complexity, 'paper_rows', lambda: iter(rows))
    status, text = call()
    assert status == 0 and '0 are otherwise' in text
    assert len(text.splitlines()) == len(rows) + 8
    wrong = complexity.Row('a table', 'a network', 'ReLU', 'parameters',
                           '11.7M', 12_000_000)
    monkeypatch.setattr(complexity, 'paper_rows', lambda: iter([*rows, wrong]))
    status, text = call()
    assert status == 1 and '1 are otherwise' in text
    assert 'OFF: not so, "agrees"' in text


def test_sites_of_a_config(call):
    status, text = call('mmpretrain::resnet/resnet18_8xb32_in1k.py', '--act',
                        'PWLU', '--act-include', r'layer1\..*\.conv1$',
                        '--shape', '64', '96')
    assert status is None
    # Two sites of 64 channels: 21 numbers for each, and two multiply-adds an
    # element, which are counted where the operators are compiled.
    macs = 2 * 64 * 16 * 24 if DEVICES else 0
    lines = text.splitlines()
    assert [
        line.split() for line in lines[:3]
    ] == [['site', 'activation', 'width', 'map', 'parameters', 'MACs']] + [[
        f'layer1.{index}.conv1', 'PWLU', '64', '16x24', '1,344', f'{macs:,}'
    ] for index in (0, 1)]
    assert lines[4] == 'ResNet, 64x96 pixels, 2 sites'
    assert lines[5].startswith('parameters: 2,688 by the activations, 0.02% '
                               'of the other 11,176,512')
    assert lines[6].startswith(f'MACs: {2 * macs:,} by the activations')


def test_layers_inside_an_activation_are_counted(call):
    _, text = call('mmdet::retinanet/retinanet_r18_fpn_1x_coco.py', '--act',
                   'MetaACON', '--act-include', r'layer4\.1\.conv1$')
    # fc1 and fc2 of 512 x 32, p1, p2 and biases; four an element on 7 x 7.
    macs = 2 * 512 * 32 + (4 * 512 * 49 if DEVICES else 0)
    assert text.splitlines()[1].split() == [
        'layer4.1.conv1', 'MetaACON', '512', '7x7', '34,336', f'{macs:,}'
    ]


def test_config_without_activations(call):
    message, _ = call('mmpretrain::resnet/resnet18_8xb32_in1k.py')
    assert message == ('complexity.py: ResNet has no learnable activation; '
                       'write --act PWLU, for example.')


def test_counter_sees_the_operators_alone_where_it_should():
    """The papers' rule leaves out what is done element by element."""
    unit = PWLU(4).to('meta')
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 1), unit).to('meta')
    shape = 1, 3, 5, 6
    assert complexity.count_macs(model, *shape, layers=True) == 3 * 4 * 30
    if DEVICES:
        assert complexity.count_macs(model, *shape) == 3 * 4 * 30 + 2 * 4 * 30
