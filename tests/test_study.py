"""The study of small networks, at tiny size."""
import json
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from mm_acon import PWLU
from tests.helpers.scripts import run_script

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / 'tools' / 'analysis'
TINY = ('--seeds', '2', '--epochs', '2', '--train-images', '32',
        '--val-images', '32', '--rounds', '1', '--variants', 'Swish',
        'PWLU channel, fix-init 10', 'PWLU channel, realigned')


@pytest.fixture
def study(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    import study
    return study


def call(folder, *arguments):
    return run_script(
        FOLDER / 'study.py',
        *('--work-dir', 'work', '--out', 'out', *arguments),
        cwd=folder)


def test_study_and_its_resumption(tmp_path):
    done = call(tmp_path, *TINY)
    assert done.returncode == 0, done.stderr[-3000:]
    results = tmp_path / 'work' / 'results.json'
    content = json.loads(results.read_text())
    assert len(content['runs']) == 8
    assert list(content['costs']) == ['ReLU', 'Swish']
    assert content['costs']['ReLU']['over_relu'] == 1
    # 17 sites keep one more tensor each; ReLU works in place.
    assert content['costs']['Swish']['kept'] > content['costs']['ReLU']['kept']
    units = {key: len(run['iou']) for key, run in content['runs'].items()}
    assert units['ReLU / 0'] == 0
    # The channels of the 17 sites, but those whose input never varies.
    assert 400 < units['PWLU channel, realigned / 1'] <= 488
    assert ('\n| PWLU channel, realigned > PWLU channel, fix-init 10 | IOU | '
            'drawn | PWLU Fig. 6, MobileNetV3 | +0.' in done.stdout)
    assert done.stdout.count('| Swish > ReLU | accuracy | +0.27 |') == 1
    assert done.stdout.count('\n| Swish | ') == 2
    for name in ('accuracy', 'iou'):
        figure = tmp_path / 'out' / f'study_{name}.png'
        assert figure.read_bytes().startswith(b'\x89PNG')

    # As if the study had been interrupted: the same numbers again.
    missing = content['runs'].pop('PWLU channel, realigned / 1')
    results.write_text(json.dumps(content))
    printed = done.stdout.partition('study_iou.png')[2]
    done = call(tmp_path, *TINY)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count(' %') == 1
    runs = json.loads(results.read_text())['runs']
    assert runs['PWLU channel, realigned / 1'] == missing
    assert done.stdout.endswith(printed)

    done = call(tmp_path, *TINY, '--epochs', '3')
    assert done.returncode == 1
    assert 'holds runs of another setting' in done.stderr
    assert 'write another --work-dir, or remove the file.' in done.stderr


@pytest.mark.parametrize('arguments, message', (
    (('--variants', 'Mish'), "got ['Mish']."),
    (('--seeds', '1'), 'a spread needs two, got 1.'),
    (('--epochs', '1'), "one of them for PWLU's Phase I, got 1."),
))
def test_errors_of_the_options(study, monkeypatch, capsys, arguments, message):
    monkeypatch.setattr(sys, 'argv', ['study.py', *arguments])
    with pytest.raises(SystemExit):
        study.parse_args()
    assert message in capsys.readouterr().err


def test_orderings_are_between_variants(study):
    for better, worse, gain, _ in study.ORDERINGS:
        assert {better, worse} <= set(study.VARIANTS) and gain > 0
    assert set(study.IOU_ORDERING) <= set(study.VARIANTS)
    assert len(study.COSTS) == 11


def test_verdicts(study):
    # Differences 1, 2 and 3: their mean is 2, its error 1 / sqrt(3), and
    # Student's t of two degrees of freedom 4.30.
    difference, error = study.compare([2, 4, 6], [1, 2, 3])
    assert difference == 2 and error == pytest.approx(3**-0.5)
    assert study.verdict(difference, error, 3) == 'not decided'
    assert study.verdict(4.31 * error, error, 3) == 'shows'
    assert study.verdict(-4.31 * error, error, 3) == 'reversed'
    assert study.verdict(0, 0, 3) == 'not decided'


def rows_of(page, title):
    """The cells of the table whose first column has that title."""
    lines = page.partition(f'| {title} |')[2].partition('\n\n')[0]
    return [
        tuple(line.strip('| ').split(' | ')) for line in lines.splitlines()[2:]
    ]


def test_page(study, monkeypatch):
    """What docs/study.md says is the tool's, and follows from its tables."""
    page = (ROOT / 'docs' / 'study.md').read_text()
    monkeypatch.setattr(sys, 'argv', ['study.py'])
    args = study.parse_args()
    prose = ' '.join(page.split())
    for words in (
            f'ResNet-18 with {study.WIDTH} instead of 64',
            f'on {study.IMAGE_SIZE}-pixel images',
            f'{study.NOISE / (2 * study.CONTRAST)} times the mean step',
            f'the {args.seeds} seeds draws {args.train_images} training',
            f'on the same {args.val_images} images. {args.epochs} epochs of '
            f'batches of {study.BATCH_SIZE}, {study.OPTIMIZER["type"]} with '
            f'learning rate {study.OPTIMIZER["lr"]}, one epoch',
            f'weight decay {study.OPTIMIZER["weight_decay"]} but on'):
        assert words in prose
    orderings = rows_of(page, 'ordering')
    assert [
        row[:4] for row in orderings
    ] == [(f'{better} > {worse}', 'accuracy', f'{gain:+.2f}', where)
          for better, worse, gain, where in study.ORDERINGS] + [(' > '.join(
              study.IOU_ORDERING), 'IOU', 'drawn', 'PWLU Fig. 6, MobileNetV3')]
    assert study.summary(orderings, args.seeds) in page
    accuracies = page.partition('## Accuracy')[2]
    assert [row[0] for row in rows_of(accuracies, 'activation')
            ] == list(study.VARIANTS)
    costs = page.partition('## Time and memory')[2]
    assert [row[0] for row in rows_of(costs, 'activation')
            ] == list(study.COSTS.values())


@pytest.mark.parametrize('granularity, iou',
                         (('channel', [1, .5]), ('layer', [3 / 4.743416])))
def test_alignment(study, granularity, iou):
    """Bounds at 3; inputs of +-1 and +-2, whose ranges are +-3 and +-6."""

    class Model(nn.Sequential):
        test_step = nn.Sequential.forward

    x = torch.tensor([[[-1.], [-2.]], [[1.], [2.]]])
    model = Model(PWLU(2, granularity=granularity))
    batches = [x[:1], x[1:]]
    assert study.alignment(model, batches) == pytest.approx(iou)


def test_noise_is_new_in_training_only(study):
    train = study.Shapes('train', 3, 4)
    val = study.Shapes('val', 0, 4)
    assert len(train) == 4
    assert not torch.equal(train[0]['inputs'], train[0]['inputs'])
    assert torch.equal(val[0]['inputs'], val[0]['inputs'])
    assert val[0]['inputs'].std() == pytest.approx(
        (study.NOISE**2 + study.CONTRAST**2)**0.5, rel=0.1)
