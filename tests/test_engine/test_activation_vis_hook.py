import copy
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from matplotlib.image import imread
from mmengine.config import Config
from mmengine.dist import get_rank
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from torch import nn
from torch.utils.checkpoint import checkpoint

from mm_acon import ACONC, PWLU, MetaACON
from mm_acon.cli import use_ranks_without_gpu
from mm_acon.compat import load_weights
from mm_acon.engine.activation_vis_hook import ActivationVisHook
from tests.helpers.toy import BATCH, SAMPLES, make_runner

ROOT = Path(__file__).parents[2]
ITERS = SAMPLES // BATCH
REALIGN = dict(type='PWLURealignHook', phase1_epochs=1)
OFTEN = dict(type='ActivationVisHook', interval=1, image_interval=4)


class Model(BaseModel):
    """meta-ACON with a norm, PWLU, and ACON that may not know its width."""

    def __init__(self, form='plain', granularity='channel'):
        super().__init__()
        torch.manual_seed(0)
        self.form = form
        self.conv1 = nn.Conv2d(3, 4, 3)
        norm = dict(type='BN') if granularity == 'channel' else None
        self.act1 = MetaACON(
            4, granularity=granularity, reduction=2, norm_cfg=norm)
        self.conv2 = nn.Conv2d(4, 4, 3, padding=1)
        self.act2 = PWLU(4)
        self.conv3 = nn.Conv2d(4, 5, 1)
        self.act3 = ACONC() if form == 'lazy' else ACONC(5)
        self.head = nn.Linear(5, 3)

    def layers(self, x):
        for number in '123':
            x = getattr(self, f'act{number}')(
                getattr(self, f'conv{number}')(x))
        return x

    def forward(self, inputs, labels, mode='loss'):
        x, labels = torch.stack(list(inputs)), torch.stack(list(labels))
        if self.form == 'checkpointed':
            x = checkpoint(self.layers, x, use_reentrant=False)
        elif self.form == 'mixed precision':
            with torch.autocast('cpu', torch.bfloat16):
                x = self.layers(x)
        else:
            x = self.layers(x)
        return dict(
            loss=F.cross_entropy(self.head(x.float().mean((2, 3))), labels))


class Observed(Hook):
    """Counts the iterations in which something listens to act1."""

    priority = 'VERY_LOW'
    count = 0

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        self.count += bool(runner.model.module.act1._forward_hooks)


class Inputs(Hook):
    """Keeps the input of act1 and act2 and the state of each iteration."""

    def before_train(self, runner):
        self.seen = []
        for module in (runner.model.act1, runner.model.act2):
            module.register_forward_pre_hook(
                lambda module, args: self.seen[-1].append(args[0].detach()))

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        self.seen.append([copy.deepcopy(runner.model.state_dict())])


def scalars_of(work_dir):
    """The hook's lines of every scalars.json below, by step."""
    lines = [
        json.loads(line) for path in work_dir.glob('*/vis_data/scalars.json')
        for line in path.read_text().splitlines()
    ]
    return {
        line.pop('step'): line
        for line in lines if any('activation/' in key for key in line)
    }


def pictures_of(work_dir):
    return {
        int(re.search(r'_(\d+)\.png', path.name)[1]): imread(path)
        for path in work_dir.glob('*/vis_data/vis_image/activations_*.png')
    }


@pytest.mark.parametrize('form', ('plain', 'checkpointed', 'mixed precision'))
def test_training_stays_the_same(tmp_path, form):
    """To the last bit, both phases, with the EMA copy."""
    ends = []
    for hooks in ([], [OFTEN]):
        runner = make_runner(
            tmp_path / str(len(hooks)),
            [REALIGN, dict(type='EMAHook', momentum=0.1), *hooks],
            epochs=2,
            model=Model(form))
        runner.train()
        ends.append(load_weights(Path(runner.work_dir) / 'epoch_2.pth'))
    for key in ('state_dict', 'ema_state_dict'):
        assert ends[0][key].keys() == ends[1][key].keys()
        for name, value in ends[0][key].items():
            assert torch.equal(value, ends[1][key][name]), name
    assert list(scalars_of(tmp_path / '1')) == list(range(1, 2 * ITERS + 1))
    assert not scalars_of(tmp_path / '0')
    # Nothing of it stays on the model.
    for module in runner.model.modules():
        assert not module._forward_hooks
        assert 'switching_factor' not in vars(module)


def test_scalars_by_hand(tmp_path):
    """beta of Table 5's layer-wise form, IOU of Eq. 7, the ReLU's slopes."""
    inputs = Inputs()
    make_runner(
        tmp_path, [inputs, dict(type='ActivationVisHook', interval=2)],
        epochs=1,
        model=Model(granularity='layer')).train()
    found = scalars_of(tmp_path)
    assert list(found) == [2, 4, 6]
    state, x1, x2 = inputs.seen[3]
    beta = torch.sigmoid(x1.mean((2, 3)).sum(1))
    mean, std = x2.mean((0, 2, 3)), x2.std((0, 2, 3), correction=0)
    left, right = mean - 3 * std, mean + 3 * std
    low, high = state['act2.left_bound'], state['act2.right_bound']
    overlap = torch.minimum(high, right) - torch.maximum(low, left)
    union = torch.maximum(high, right) - torch.minimum(low, left)
    both = torch.cat([beta, state['act3.beta']])
    expected = {
        'act1/beta_mean': beta.mean(),
        'act1/beta_std': beta.std(correction=0),
        'act3/beta_mean': state['act3.beta'].mean(),
        'beta_mean': both.mean(),
        'beta_std': both.std(correction=0),
        'act2/alignment_iou': (overlap / union).mean(),
        'alignment_iou': (overlap / union).mean(),
    }
    for name, value in expected.items():
        assert found[4][f'activation/{name}'] == pytest.approx(
            value.item(), abs=1e-5), name
    assert 'activation/act1/slope_mean' not in found[2]
    assert found[2]['activation/degenerate'] == 0


def test_slopes_and_degenerate_units_by_hand(tmp_path):

    class Spoil(Hook):

        @torch.no_grad()
        def before_train(self, runner):
            unit = runner.model.act2
            unit.right_bound[1] = unit.left_bound[1]
            # Three ReLUs of 9 slopes 0 and 9 slopes 1; all 0 in this one.
            unit.points[1] = 0
            unit.right_slope[1] = 0

    make_runner(tmp_path, [OFTEN, Spoil()], epochs=1, model=Model()).train()
    first = scalars_of(tmp_path)[1]
    assert first['activation/degenerate'] == 0.25
    assert first['activation/act2/slope_mean'] == pytest.approx(3 / 8)
    assert first['activation/act2/slope_std'] == pytest.approx(
        (3 / 8 * 5 / 8)**0.5)


def test_pictures(tmp_path):
    make_runner(tmp_path, [OFTEN], epochs=2, model=Model('lazy')).train()
    pictures = pictures_of(tmp_path)
    assert sorted(pictures) == [4, 8, 12]
    for picture in pictures.values():
        assert picture.shape[1] > picture.shape[0] > 100
        # PWLU's first colour, of Okabe and Ito.
        blue = np.array([0, 0x72, 0xB2]) / 255
        assert (np.abs(picture[..., :3] - blue).max(2) < 0.01).sum() > 100


def test_layers_are_chosen(tmp_path):
    make_runner(
        tmp_path,
        [dict(OFTEN, layers='act[12]', num_layers=1, image_interval=-1)],
        epochs=1,
        model=Model()).train()
    names = {name for name in scalars_of(tmp_path)[1] if 'act' in name}
    assert 'activation/act1/beta_mean' in names
    # The others are in the scalars over all layers.
    assert not any('act2' in name or 'act3' in name for name in names)
    assert 'activation/alignment_iou' in names
    assert not pictures_of(tmp_path)


@pytest.mark.parametrize('value', (float('nan'), float('inf'), 0., 1e9, 3e38))
def test_values_without_a_distribution(tmp_path, value):
    """A run that diverges, or a dead layer, goes on, and is drawn."""
    model = Model()
    with torch.no_grad():
        model.conv2.weight.zero_()
        model.conv2.bias.fill_(value)
    make_runner(tmp_path, [OFTEN], epochs=1, model=model, lr=0.).train()
    found = scalars_of(tmp_path)
    # JSON has no NaN.
    assert all(
        np.isfinite(list(line.values())).all() for line in found.values())
    assert 'activation/act2/alignment_iou' not in found[1]
    assert list(pictures_of(tmp_path)) == [4]


def test_tensorboard(tmp_path):
    pytest.importorskip('tensorboard')
    from tensorboard.backend.event_processing.event_accumulator import \
        EventAccumulator
    make_runner(
        tmp_path, [OFTEN],
        epochs=1,
        model=Model(),
        visualizer=dict(
            type='Visualizer',
            vis_backends=[dict(type='TensorboardVisBackend')])).train()
    folder, = tmp_path.glob('*/vis_data')
    events = EventAccumulator(str(folder))
    events.Reload()
    assert [event.step for event in events.Scalars('activation/beta_mean')
            ] == list(range(1, ITERS + 1))
    assert events.Images('activations')[0].step == 4


@pytest.mark.full
def test_two_ranks(tmp_path):
    """Rank 0 alone observes; both end with the same parameters."""
    done = subprocess.run([
        sys.executable, '-m', 'torch.distributed.run', '--standalone',
        '--nproc_per_node=2', '-m', __name__,
        str(tmp_path)
    ],
                          capture_output=True,
                          text=True,
                          cwd=ROOT)
    assert done.returncode == 0, done.stderr[-3000:]
    first, second = (
        torch.load(tmp_path / f'rank{rank}.pth', weights_only=True)
        for rank in range(2))
    # 24 samples on two ranks: three batches of four per epoch and rank.
    assert first['seen'] == 6 and second['seen'] == 0
    for name, value in first['state'].items():
        assert torch.equal(value, second['state'][name]), name
    assert list(scalars_of(tmp_path)) == [1, 2, 3, 4, 5, 6]
    assert list(pictures_of(tmp_path)) == [4]


@pytest.mark.parametrize('arguments, message', (
    (dict(interval=0), 'expects interval to be a positive integer, or -1 for '
     'never, got 0'),
    (dict(image_interval=2.5), 'expects image_interval .* got 2.5'),
    (dict(num_layers=0), 'expects num_layers to be a positive integer, got 0'),
    (dict(num_channels='4'), "expects num_channels .* got '4'"),
))
def test_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        ActivationVisHook(**arguments)


def test_pattern_without_a_layer(tmp_path):
    runner = make_runner(
        tmp_path, [dict(OFTEN, layers='conv2')], model=Model())
    with pytest.raises(
            ValueError,
            match=("No layer matches 'conv2'; there are: act1, act2, act3")):
        runner.train()


def test_model_without_activations(tmp_path):
    model = Model('checkpointed')
    model.act1 = model.act2 = model.act3 = nn.ReLU()
    with pytest.raises(
            ValueError,
            match=(
                'Model has no learnable activation that is a curve.* Write ')):
        make_runner(tmp_path, [OFTEN], model=model).train()


def test_layer_that_is_not_called(tmp_path):
    model = Model()
    model.spare = ACONC(3)
    runner = make_runner(
        tmp_path, [dict(OFTEN, layers='spare')], epochs=1, model=model)
    runner.train()
    log, = tmp_path.glob('*/*.log')
    assert ('none of the chosen layers was called in iteration 1: spare'
            in log.read_text())


if __name__ == '__main__':
    torch.set_num_threads(1)
    config = Config(dict(launcher='pytorch'))
    use_ranks_without_gpu(config)
    observed = Observed()
    ran = make_runner(
        sys.argv[1], [REALIGN, OFTEN, observed],
        epochs=2,
        model=Model(),
        launcher='pytorch',
        cfg=config)
    ran.train()
    torch.save(
        dict(
            state=dict(ran.model.module.named_parameters()),
            seen=observed.count),
        Path(sys.argv[1]) / f'rank{get_rank()}.pth')
