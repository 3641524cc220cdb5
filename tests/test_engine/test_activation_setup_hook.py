import re

import pytest
import torch
from mmcv.cnn import ConvModule
from mmengine.hooks import Hook
from torch import nn

from mm_acon import PWLU, MetaACON
from mm_acon.compat import load_weights
from tests.helpers.toy import ToyModel, make_runner

from .test_pwlu_realign_hook import logged

HOOK = dict(type='ActivationSetupHook')


class Lazy(ToyModel):
    """Both activations take their width from the input."""

    def __init__(self):
        super().__init__()
        self.conv1 = ConvModule(
            3, 4, 3, padding=1, act_cfg=dict(type='MetaACON'))
        self.act1 = PWLU()


BY_NAME = dict(
    constructor='WeightsAndBiases',
    optimizer=dict(type='SGD', lr=.1, weight_decay=.1),
    paramwise_cfg=dict(norm_decay_mult=0.))


def test_widths_are_there_before_ema_copies(tmp_path):
    """Without it the first update stops, in words."""
    ema = dict(type='EMAHook', momentum=.5)
    runner = make_runner(tmp_path, [ema, HOOK], epochs=1, model=Lazy())
    runner.train()
    average = next(
        hook.ema_model.module for hook in runner.hooks
        if type(hook).__name__ == 'EMAHook')
    assert average.act1.num_channels == 4
    assert not torch.equal(average.act1.points, PWLU(4).points)
    saved = load_weights(tmp_path / 'epoch_1.pth')
    assert all(v.numel() for v in saved['ema_state_dict'].values())

    with pytest.raises(RuntimeError, match='mm_acon.find_widths.model, batch'):
        make_runner(
            tmp_path / 'without', [ema], epochs=1, model=Lazy()).train()


def test_training_is_the_same_as_with_known_widths(tmp_path):
    """One batch was read and run, and left no trace."""

    def train(name, hooks, model):
        runner = make_runner(tmp_path / name, hooks, epochs=2, model=model)
        runner.train()
        return runner.model.state_dict()

    known = ToyModel()
    known.act1 = PWLU(4)
    lazy = ToyModel()
    lazy.act1 = PWLU()
    first, second = train('known', [], known), train('lazy', [HOOK], lazy)
    assert first.keys() == second.keys()
    for key, value in first.items():
        assert torch.equal(value, second[key]), key


def test_left_out_parameters_are_named(tmp_path):
    make_runner(tmp_path, [HOOK], epochs=1, optim_wrapper=BY_NAME).train()
    assert ('10 activation parameters require a gradient and are in no '
            'optimizer, so they never learn: act1.points, act1.left_bound'
            ) in logged(tmp_path)
    assert "base_constructor='...'" in logged(tmp_path)


def test_wrapped_they_are_not(tmp_path):
    make_runner(
        tmp_path, [HOOK],
        epochs=1,
        optim_wrapper=dict(
            BY_NAME,
            constructor='ActivationOptimWrapperConstructor',
            base_constructor='WeightsAndBiases')).train()
    assert 'in no optimizer' not in logged(tmp_path)
    assert ('10 activation parameters that WeightsAndBiases left out are '
            'added') in logged(tmp_path)


def test_frozen_ones_are_not_named(tmp_path):
    model = ToyModel()
    model.act1.requires_grad_(False)
    model.act2.requires_grad_(False)
    make_runner(
        tmp_path, [HOOK], epochs=1, model=model,
        optim_wrapper=BY_NAME).train()
    assert 'in no optimizer' not in logged(tmp_path)


def test_init_weights_of_the_whole_model(tmp_path):
    """A detector's loop over parameters, after MMEngine's part."""

    class Model(ToyModel):

        def __init__(self):
            super().__init__()
            self.act1 = MetaACON(4, reduction=2)

        def init_weights(self):
            super().init_weights()
            for parameter in self.parameters():
                if parameter.dim() > 1:
                    nn.init.constant_(parameter, .25)

    states = []

    class Watch(Hook):

        def before_train(self, runner):
            states.append({
                name: value.clone()
                for name, value in runner.model.state_dict().items()
            })

    model = Model()
    start = {k: v.clone() for k, v in model.state_dict().items()}
    make_runner(
        tmp_path / 'run', [HOOK, Watch()], epochs=1, model=model).train()
    assert (states[0]['conv1.weight'] == .25).all()
    for name, value in start.items():
        if name.startswith('act'):
            assert torch.equal(states[0][name], value), name


def test_tests_need_no_training_data(tmp_path):
    """before_run comes before tests, too: nothing is read there."""
    from mm_acon import ActivationSetupHook
    runner = make_runner(tmp_path, [HOOK], model=Lazy())
    hook = next(h for h in runner.hooks if isinstance(h, ActivationSetupHook))
    hook.before_run(runner)
    assert runner.model.act1.is_lazy


FIXED = (
    '2 PWLU are fresh, and their fixed bounds change the function that '
    r'was there: SiLU by 0\.3% where the input has a std of 1, by '
    r'\d\.\d% where it is 0\.1 or 10; GELU by 0\.4% .* Write custom_hooks='
    r"\[dict\(type='PWLURealignHook', phase1_epochs=1\)\]")


def smooth(first='SiLU', second='GELU'):
    model = ToyModel()
    model.act1 = PWLU(4, function=first)
    model.act2 = PWLU(4, granularity='layer', function=second)
    return model


def test_a_fixed_start_that_loses_the_function(tmp_path):
    make_runner(tmp_path, [HOOK], epochs=1, model=smooth()).train()
    assert len(re.findall(FIXED, logged(tmp_path))) == 1


@pytest.mark.parametrize('hooks, model', [
    ([dict(type='PWLURealignHook', phase1_iters=2)], smooth),
    ([], ToyModel),
    ([], lambda: smooth('ReLU6', 'LeakyReLU')),
])
def test_a_start_that_does_not(hooks, model, tmp_path):
    make_runner(tmp_path, [HOOK, *hooks], epochs=1, model=model()).train()
    assert 'fixed bounds' not in logged(tmp_path)


def test_a_checkpoint_of_its_own_is_no_fixed_start(tmp_path):
    make_runner(tmp_path / '1', [], epochs=1, model=smooth()).train()
    make_runner(
        tmp_path / '2', [HOOK],
        epochs=1,
        model=smooth(),
        load_from=str(tmp_path / '1' / 'epoch_1.pth')).train()
    assert 'fixed bounds' not in logged(tmp_path / '2')
