"""Snapshots, figures, and the tools that draw them."""
import runpy
import sys
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from mmengine.registry import MODELS
from PIL import Image
from torch import nn

from mm_acon import ACONC, PWLU, FReLU, MetaACON
from mm_acon.ops.pwlu import MIN_WIDTH
from mm_acon.visualization import (Observer, choose_layers, curve_activations,
                                   scalars)
from mm_acon.visualization.figures import (alignment_figure, beta_figure,
                                           family_figure, save_animation,
                                           shapes_figure, to_image,
                                           training_frames)
from tests.utils import ACTIVATIONS, FUNNELS, assert_near

ROOT = Path(__file__).parents[1]
TOOLS = ROOT / 'tools'
PWLU_CONFIG = ROOT / 'configs' / 'resnet18_pwlu.py'
META_CONFIG = ROOT / 'configs' / 'resnet18_metaacon.py'


def snapshot_of(module, x, num_channels=4):
    with Observer({'act': module}, num_channels) as seen:
        module(x)
    return seen.snapshots['act']


def images(*shape):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(*shape, generator=generator)


@pytest.mark.parametrize('name', sorted(set(ACTIVATIONS) - set(FUNNELS)))
def test_curves_are_the_module(name):
    """Of the first sample, also where other samples have another curve."""
    module = MODELS.build(dict(ACTIVATIONS[name], num_channels=6)).eval()
    x = images(3, 6, 4, 4)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.1 * torch.rand_like(parameter))
        found = snapshot_of(module, x)
        y = module(x)[0]
    rows = found.channels or range(6)
    assert found.channels in ([0, 1, 3, 5], [])
    for row, channel in enumerate(rows):
        curve = found.curves[row if found.channels else 0]
        values = x[0, channel].flatten()
        nearest = np.interp(values, found.grid, curve)
        np.testing.assert_allclose(nearest, y[channel].flatten(), atol=5e-3)


def test_numbers_of_pwlu():
    module = PWLU(3)
    x = images(4, 3, 8, 8) * torch.tensor([1., 2., 0.]).view(3, 1, 1)
    with torch.no_grad():
        module.left_bound[0] = -1
        module.right_bound[2] = module.left_bound[2] + MIN_WIDTH / 2
    found = snapshot_of(module, x, num_channels=2)
    assert_near(found.iou, module.alignment_iou(x))
    assert found.iou[2].isnan()
    assert found.degenerate.tolist() == [False, False, True]
    # The slopes give back the points: Y_i+1 = Y_i + K_i d.
    assert_near(found.slopes[0, 1:-1].cumsum(0) * 4 / 16,
                module.points[0, 1:] - module.points[0, 0])
    assert found.slopes.shape == (3, 18)
    # Both drawn channels' bounds lie on the grid.
    assert found.channels == [0, 2]
    assert found.grid[0] <= -3 and found.grid[-1] >= 3


def test_phase1_is_not_disturbed():
    """The grid of a curve is no input."""
    module, twin = PWLU(3), PWLU(3)
    for unit in (module, twin):
        unit.start_phase1()
    x = images(4, 3, 8, 8)
    found = snapshot_of(module, x)
    twin(x)
    assert torch.equal(module.running_std, twin.running_std)
    assert torch.equal(module.num_batches, twin.num_batches)
    assert torch.equal(found.curves, found.grid.relu().expand(3, -1))


@pytest.mark.parametrize('granularity, columns',
                         (('channel', 6), ('layer', 1), ('pixel', 6 * 16)))
def test_beta_of_meta_acon_belongs_to_samples(granularity, columns):
    module = MetaACON(6, granularity=granularity, reduction=2)
    x = images(5, 6, 4, 4)
    found = snapshot_of(module, x)
    assert found.beta.shape == (5, columns)
    assert_near(found.beta, module.switching_factor(x).flatten(1))


def test_empty_batch():
    module = MetaACON(6, reduction=2)
    with Observer(dict(act=module)) as seen:
        module(images(0, 6, 4, 4))
        assert not seen.snapshots
        module(images(2, 6, 4, 4))
    assert seen.snapshots['act'].beta.shape == (2, 6)


def test_layers():
    model = nn.Sequential(nn.ReLU(), ACONC(3), FReLU(3), PWLU(3), PWLU(3),
                          PWLU(3))
    modules = curve_activations(model)
    assert list(modules) == ['1', '3', '4', '5']
    assert list(choose_layers(modules, limit=2)) == ['1', '5']
    assert list(choose_layers(modules, '[34]')) == ['3', '4']
    with pytest.raises(ValueError, match="No layer matches 'x'; there are: 1"):
        choose_layers(modules, 'x')
    with pytest.raises(ValueError, match='ReLU has no learnable activation'):
        curve_activations(nn.ReLU())
    assert scalars({'1': snapshot_of(modules['1'], images(2, 3))}) == dict(
        beta_mean=1., beta_std=0.)


def test_family_has_the_papers_bounds():
    """Swish's derivative stays within -0.0998 and 1.0998 (Eq. 7, 8)."""
    of_f, _, slopes, free = family_figure().axes
    swish = of_f.lines[0]
    x = torch.tensor(swish.get_xdata())
    np.testing.assert_allclose(
        swish.get_ydata(), torch.nn.functional.silu(x), atol=1e-5)
    for line in slopes.lines[:4]:
        assert line.get_ydata().max() == pytest.approx(1.0998, abs=1e-3)
        assert line.get_ydata().min() == pytest.approx(-0.0998, abs=1e-3)
    # p1 = 1.2 and p2 = -0.8: 1.0998 p1 - 0.0998 p2 and the other way round.
    y = free.lines[1].get_ydata()
    assert y.max() == pytest.approx(1.0998 * 1.2 + 0.0998 * 0.8, abs=1e-3)
    assert y.min() == pytest.approx(-1.0998 * 0.8 - 0.0998 * 1.2, abs=1e-3)


def test_shapes_show_curves_and_bounds():
    module = PWLU(4)
    module.start_phase1()
    module(images(2, 4, 8, 8))
    module.realign()
    found = snapshot_of(module, images(2, 4, 8, 8), num_channels=3)
    figure = shapes_figure([found])
    axes = figure.axes[0]
    curves = [line for line in axes.lines if len(line.get_xdata()) == 400]
    np.testing.assert_array_equal(curves[1].get_ydata(), found.curves[1])
    drawn = sorted(line.get_xdata()[0] for line in axes.lines
                   if line.get_linestyle() == ':')
    np.testing.assert_allclose(
        drawn, sorted(found.bounds[found.channels].flatten().tolist()))
    words = [text.get_text() for text in figure.legends[0].get_texts()]
    assert words == [
        'ReLU', "distribution of the layer's input", "PWLU's bounds"
    ]
    assert [text.get_text() for text in axes.get_legend().get_texts()
            ] == ['channel 0', 'channel 1', 'channel 3']


def test_beta_has_a_row_for_each_image():
    x = images(3, 6, 4, 4)
    meta = beta_figure(snapshot_of(MetaACON(6, reduction=2), x))
    assert [axes.get_ylabel()
            for axes in meta.axes] == ['image 1', 'image 2', 'image 3']
    for axes in meta.axes:
        assert sum(patch.get_height() for patch in axes.patches) == 6
    plain = beta_figure(snapshot_of(ACONC(6), x))
    assert [axes.get_ylabel() for axes in plain.axes] == ['all images']


def test_alignment_tells_mean_and_median():
    module = PWLU(4)
    cases = {}
    for case, scale in (('fits', 1.), ('too wide', 0.1)):
        cases[case] = {
            f'stage.{index}.relu': snapshot_of(module,
                                               scale * images(8, 4, 8, 8))
            for index in range(2)
        }
    figure = alignment_figure(cases)
    by_layer, overall = figure.axes[2:]
    iou = cases['too wide']['stage.1.relu'].iou
    assert by_layer.get_title() == 'too wide'
    assert by_layer.lines[1].get_ydata()[0] == pytest.approx(
        np.median(iou.numpy()))
    assert overall.get_title() == f'all units: mean {iou.mean():.2f}'
    assert [label.get_text()
            for label in by_layer.get_xticklabels()] == ['0.relu', '1.relu']


def test_animation(tmp_path):
    module = PWLU(3)
    history = {}
    for step in range(3):
        history[f'iter {step}'] = dict(
            act=snapshot_of(module, images(2, 3, 4, 4)))
        with torch.no_grad():
            module.right_bound.add_(1.)
    frames = training_frames(history)
    assert len({frame.axes[0].get_xlim() for frame in frames}) == 1
    save_animation(frames, tmp_path / 'a' / 'training.gif', 0.5)
    with Image.open(tmp_path / 'a' / 'training.gif') as picture:
        assert picture.n_frames == 3
        assert picture.info['duration'] == 500
        picture.seek(2)
        assert picture.info['duration'] == 1500


def test_the_program_around_keeps_its_style():
    before = dict(matplotlib.rcParams)
    picture = to_image(family_figure())
    assert dict(matplotlib.rcParams) == before
    assert picture.dtype == np.uint8 and picture.shape[2] == 3


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp('trained')


@pytest.fixture
def tool(folder, monkeypatch):
    """Runs a tool as from the command line, in this process."""
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(str(TOOLS / 'analysis'))

    def call(name, *arguments):
        path = str(TOOLS / name)
        monkeypatch.setattr(sys, 'argv',
                            [path, *(str(value) for value in arguments)])
        runpy.run_path(path, run_name='__main__')

    return call


@pytest.fixture
def train(folder, tool):
    """Trains a ResNet-18 on four images, two at a time; the work dir."""

    def call(config, length):
        work_dir = folder / config.stem
        if not work_dir.exists():
            tool('train.py', config, '--demo', '--work-dir', work_dir,
                 '--cfg-options', f'train_cfg.{length}',
                 'train_dataloader.dataset.indices=4',
                 'train_dataloader.batch_size=2',
                 'val_dataloader.dataset.indices=4',
                 'default_hooks.checkpoint.interval=1',
                 'default_hooks.checkpoint.max_keep_ckpts=-1')
        return work_dir

    return call


@pytest.fixture
def trained(train):
    """With PWLU: an epoch of Phase I and one of Phase II."""
    return train(PWLU_CONFIG, 'max_epochs=2')


def is_picture(path):
    with Image.open(path) as picture:
        return len(np.unique(np.asarray(picture.convert('L')))) > 5


def test_plot_family(tool, folder):
    tool('analysis/plot_family.py', '--out', 'family.png')
    assert is_picture(folder / 'family.png')


def test_plot_alignment_before_and_after(tool, trained, capsys):
    from mm_acon.visualization import figures
    drawn = {}

    def note(cases):
        drawn.update(cases)
        return original(cases)

    original, figures.alignment_figure = figures.alignment_figure, note
    try:
        tool('analysis/plot_alignment.py', PWLU_CONFIG,
             trained / 'epoch_1.pth', trained / 'epoch_2.pth', '--demo',
             '--num-images', 8, '--layers', 'layer[34]', '--out', 'iou.png')
    finally:
        figures.alignment_figure = original
    assert is_picture('iou.png')
    assert 'wrote iou.png' in capsys.readouterr().out
    assert list(drawn) == [
        'resnet18_pwlu/epoch_1, before realignment',
        'resnet18_pwlu/epoch_1, after realignment', 'resnet18_pwlu/epoch_2'
    ]
    before, after, end = (
        np.mean([found.iou.mean() for found in case.values()])
        for case in drawn.values())
    assert len(drawn['resnet18_pwlu/epoch_2']) == 8
    assert after > before
    # The second checkpoint was loaded: other bounds than after realignment.
    assert end != after


def test_plot_training(tool, trained):
    tool('analysis/plot_training.py', PWLU_CONFIG, trained, '--demo', '--out',
         'training.gif', '--num-layers', 2)
    with Image.open('training.gif') as picture:
        assert picture.n_frames == 2
    with pytest.raises(
            SystemExit,
            match='plot_training.py: there is no '
            r"epoch_\*.pth or iter_\*.pth in 'none'"):
        tool('analysis/plot_training.py', PWLU_CONFIG, 'none', '--out',
             'training.gif')


@pytest.mark.full
def test_plot_beta_and_activations(tool, trained, train):
    checkpoint = train(META_CONFIG, 'max_iters=2') / 'iter_2.pth'
    for name in ('beta', 'activations'):
        tool(f'analysis/plot_{name}.py', META_CONFIG, checkpoint, '--demo',
             '--out', f'{name}.png')
        assert is_picture(f'{name}.png')
    with pytest.raises(
            SystemExit,
            match='plot_beta.py: the model has no '
            'ACONA, ACONB, ACONC, MetaACON'):
        tool('analysis/plot_beta.py', PWLU_CONFIG, trained / 'epoch_2.pth',
             '--demo', '--out', 'beta.png')
    with pytest.raises(
            SystemExit,
            match='plot_activations.py: No layer '
            "matches 'conv'; there are: backbone.relu, "):
        tool('analysis/plot_activations.py', PWLU_CONFIG,
             trained / 'epoch_2.pth', '--demo', '--out', 'a.png', '--layers',
             'conv')


def test_snapshot_in_place_of_another_function():
    module = PWLU(3, function='SiLU')
    module.start_phase1()
    found = snapshot_of(module, images(4, 3, 8, 8))
    assert torch.equal(found.curves, F.silu(found.grid).expand(3, -1))
    assert_near(found.replaced, F.silu(found.grid))
    assert snapshot_of(PWLU(3), images(4, 3, 8, 8)).replaced is None


@pytest.mark.parametrize('kind', [PWLU, ACONC, MetaACON])
def test_snapshot_of_the_last_axis(kind):
    x = images(4, 3, 8, 8)
    kwargs = dict(reduction=2) if kind is MetaACON else {}
    torch.manual_seed(0)
    first = snapshot_of(kind(3, **kwargs), x)
    torch.manual_seed(0)
    last = snapshot_of(
        kind(3, channel_axis=-1, **kwargs), x.permute(0, 2, 3, 1))
    assert last.num_channels == 3 and last.channels == first.channels
    assert_near(last.curves, first.curves)
    if kind is PWLU:
        assert_near(last.iou, first.iou)
