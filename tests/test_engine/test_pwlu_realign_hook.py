import copy
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from mmengine.hooks import Hook
from mmengine.model import ExponentialMovingAverage
from mmengine.runner import IterBasedTrainLoop
from torch import nn

from mm_acon import PWLU, PWLURealignHook
from mm_acon.activations.pwlu import NO_PHASES, PHASE_1, PHASE_2
from mm_acon.compat import load_weights
from mm_acon.engine.pwlu_realign_hook import mean_iou, refuse_sharded
from tests.helpers.scripts import run_script
from tests.helpers.toy import (BATCH, SAMPLES, StopAt, ToyData, ToyModel,
                               make_runner)
from tests.utils import torch_threads

ITERS = SAMPLES // BATCH
HOOK = dict(type='PWLURealignHook', phase1_epochs=2)
RUN_TOY = Path(__file__).parents[1] / 'helpers' / 'run_toy.py'


@pytest.fixture(autouse=True)
def one_thread():
    """As in the processes that are started: convolutions sum in an order
    that depends on the number of threads."""
    with torch_threads(1):
        yield


class Record(Hook):
    """Keeps a copy of the model's state before every iteration."""

    priority = 'VERY_LOW'

    def __init__(self):
        self.states = []

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        self.states.append(copy.deepcopy(runner.model.state_dict()))


def state_of(path):
    return load_weights(path)


def assert_same(first, second):
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


def logged(work_dir):
    return ''.join(path.read_text() for path in work_dir.glob('*/*.log'))


PARAMETERS = ('points', 'left_bound', 'right_bound', 'left_slope',
              'right_slope')


@pytest.mark.parametrize('compiled', [False, True])
def test_phase1_rests_and_phase2_trains(tmp_path, compiled):
    """Weight decay 0.1 and momentum 0.9 must not move the parameters.

    Before 2.3 torch.compile took hooks away from all optimizers.
    """
    if compiled:
        torch.compile(lambda x: x + 1, backend='eager')(torch.zeros(1))
    record = Record()
    start = copy.deepcopy(ToyModel().state_dict())
    runner = make_runner(tmp_path, [HOOK, record])
    runner.train()
    for state in record.states[:2 * ITERS]:
        for name in PARAMETERS:
            assert torch.equal(state[f'act1.{name}'], start[f'act1.{name}'])
        assert state['act1.phase'] == PHASE_1
    assert record.states[2 * ITERS]['act1.phase'] == PHASE_2
    last = runner.model.state_dict()
    # No input lies beyond three standard deviations: the slopes rest.
    for name in PARAMETERS[:3]:
        key = f'act1.{name}'
        assert not torch.equal(last[key], record.states[2 * ITERS][key]), key
    # The convolutions do train in Phase I.
    assert not torch.equal(record.states[ITERS]['conv1.weight'],
                           start['conv1.weight'])


def test_statistics_and_realignment_by_hand(tmp_path):
    """Eq. 5 over the iterations of Phase I, then Eq. 6."""
    inputs = []

    class Watch(Hook):

        def before_train(self, runner):
            runner.model.act1.register_forward_pre_hook(
                lambda module, args: inputs.append(args[0].detach().clone()))

    record = Record()
    make_runner(tmp_path, [HOOK, record, Watch()], epochs=3).train()
    mean = std = None
    for x in inputs[:2 * ITERS]:
        batch = x.transpose(0, 1).flatten(1).double()
        batch_mean = batch.mean(1)
        batch_std = ((batch - batch_mean[:, None])**2).mean(1).sqrt()
        mean = batch_mean if mean is None else 0.9 * mean + 0.1 * batch_mean
        std = batch_std if std is None else 0.9 * std + 0.1 * batch_std
    state = record.states[2 * ITERS]
    torch.testing.assert_close(
        state['act1.left_bound'], (mean - 3 * std).float(),
        rtol=1e-4,
        atol=1e-5)
    torch.testing.assert_close(
        state['act1.right_bound'], (mean + 3 * std).float(),
        rtol=1e-4,
        atol=1e-5)
    knots = torch.stack([mean - 3 * std + 6 * std / 16 * i for i in range(17)],
                        1).relu()
    torch.testing.assert_close(
        state['act1.points'], knots.float(), rtol=1e-4, atol=1e-5)
    assert (state['act1.num_batches'] == 2 * ITERS).all()


def test_log_tells_units_and_iou(tmp_path):
    make_runner(tmp_path, [HOOK], epochs=3).train()
    text = logged(tmp_path)
    assert 'PWLU: 2 modules are in Phase I (ReLU) up to iteration 12' in text
    found = re.search(
        r'PWLU: Phase II starts at iteration 12\. 5 of 5 units were realigned,'
        r' 0 degenerate ones keep their ReLU form\. Mean alignment IOU '
        r'0\.(\d+) before, 1\.000 after', text)
    assert found and int(found.group(1)) < 990


def test_degenerate_units_keep_relu(tmp_path):
    """A dead channel (no variance) and one that is always negative."""
    model = ToyModel()

    class Force(Hook):
        """Keeps two channels of act1's input degenerate."""

        def before_train_iter(self, runner, batch_idx, data_batch=None):
            with torch.no_grad():
                weight = runner.model.conv1.weight
                weight[0], weight[1] = 0, 0
                runner.model.conv1.bias[:2] = torch.tensor([0., -5.])
                weight[1] += 1e-3

    record = Record()
    make_runner(
        tmp_path, [HOOK, Force(), record], epochs=3, model=model).train()
    state = record.states[2 * ITERS]
    assert torch.equal(state['act1.right_bound'][:2], torch.full((2, ), 3.))
    assert torch.equal(state['act1.left_bound'][:2], torch.full((2, ), -3.))
    assert not (state['act1.right_bound'][2:] == 3).any()
    assert '3 of 5 units were realigned, 2 degenerate' in logged(tmp_path)


@pytest.mark.parametrize('stop', (2 * ITERS - ITERS, 2 * ITERS - 1, 2 * ITERS,
                                  2 * ITERS + 1, 3 * ITERS + 2))
def test_interrupted_and_resumed_equals_straight(tmp_path, stop):
    """Before, at and after the switch; checkpoints are one per epoch."""
    straight = make_runner(tmp_path / 'straight', [HOOK])
    straight.train()
    with pytest.raises(KeyboardInterrupt):
        make_runner(tmp_path / 'broken', [HOOK, StopAt(stop)]).train()
    resumed = make_runner(tmp_path / 'broken', [HOOK], resume=True)
    resumed.train()
    assert_same(straight.model.state_dict(), resumed.model.state_dict())
    switches = logged(tmp_path / 'broken').count('Phase II starts')
    # Stopped at the switch, the realignment was lost with the process and is
    # done again on the same statistics.
    assert switches == (2 if stop in (2 * ITERS, 2 * ITERS + 1) else 1)


@pytest.mark.parametrize('stop', (2 * ITERS - 1, 2 * ITERS, 2 * ITERS + 1))
def test_killed_and_resumed_equals_straight(tmp_path, stop):
    """The same with SIGKILL in a process of its own."""
    straight = make_runner(tmp_path / 'straight', [HOOK])
    straight.train()
    done = run_script(
        RUN_TOY, tmp_path / 'killed', '--kill-at', stop, cwd=tmp_path)
    assert done.returncode == -9, done.stderr[-2000:]
    resumed = make_runner(tmp_path / 'killed', [HOOK], resume=True)
    resumed.train()
    assert_same(straight.model.state_dict(), resumed.model.state_dict())


def test_loading_a_realigned_model_does_not_realign_again(tmp_path):
    first = make_runner(tmp_path / 'first', [HOOK], epochs=3)
    first.train()
    record = Record()
    second = make_runner(
        tmp_path / 'second', [HOOK, record],
        epochs=3,
        load_from=str(tmp_path / 'first' / 'epoch_3.pth'))
    second.train()
    assert torch.equal(record.states[0]['act1.points'],
                       first.model.act1.points)
    assert 'no unit is in Phase I' in logged(tmp_path / 'second')


def test_trained_without_phases_is_left_alone(tmp_path):
    first = make_runner(tmp_path / 'first', epochs=1)
    first.train()
    assert first.model.act1.current_phase == NO_PHASES
    second = make_runner(
        tmp_path / 'second', [HOOK],
        epochs=3,
        load_from=str(tmp_path / 'first' / 'epoch_1.pth'))
    second.train()
    assert second.model.act1.current_phase == NO_PHASES
    assert ('2 PWLU were trained without phases before and go on so, without '
            'realignment: act1, act2') in logged(tmp_path / 'second')


def test_two_ranks_end_with_equal_parameters(tmp_path):
    """Each rank sees other data and collects other statistics."""
    done = subprocess.run([
        sys.executable, '-m', 'torch.distributed.run', '--standalone',
        '--nproc_per_node=2',
        str(RUN_TOY),
        str(tmp_path), '--launcher', 'pytorch'
    ],
                          capture_output=True,
                          text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    first, second = (
        state_of(tmp_path / f'rank{rank}.pth') for rank in range(2))
    assert first['act1.phase'] == PHASE_2
    assert_same(first, second)
    # 24 samples on two ranks: three batches of four per epoch and rank.
    assert 'Phase II starts at iteration 6' in logged(tmp_path)


def test_pooled_moments_by_hand(tmp_path, monkeypatch):
    """Two ranks at 0 +- 1 and 4 +- 1: mean 2, std sqrt(5)."""
    from mm_acon.engine import pwlu_realign_hook as module
    unit = PWLU(1)
    unit.running_mean.fill_(0.)
    unit.running_std.fill_(1.)
    unit.num_batches.fill_(7)

    def gathered(local):
        other = torch.tensor([[1.], [4.], [17.]], dtype=torch.float64)
        return [local, other]

    monkeypatch.setattr(module, 'get_world_size', lambda: 2)
    monkeypatch.setattr(module, 'all_gather', gathered)
    module.pool_statistics([unit])
    assert unit.running_mean.item() == pytest.approx(2)
    assert unit.running_std.item() == pytest.approx(5**0.5)


def test_statistics_are_pooled_in_every_step_of_phase1(tmp_path, monkeypatch):
    """Whatever step a checkpoint is written after, it has all ranks' part."""
    from mm_acon.engine import pwlu_realign_hook as module
    pooled = []

    class Count(Hook):

        def before_train_iter(self, runner, batch_idx, data_batch=None):
            pooled.append(0)

    def note(modules):
        pooled[-1] += len(modules)

    monkeypatch.setattr(module, 'pool_statistics', note)
    make_runner(tmp_path, [HOOK, Count()], epochs=3).train()
    assert pooled == [2] * 2 * ITERS + [0] * ITERS


def test_ema_copy_is_realigned(tmp_path):
    runner = make_runner(
        tmp_path, [HOOK, dict(type='EMAHook', momentum=1e-6)], epochs=3)
    runner.train()
    ema = next(
        hook.ema_model.module for hook in runner.hooks
        if type(hook).__name__ == 'EMAHook')
    assert ema.act1.current_phase == PHASE_2
    assert ema.act1.phase == PHASE_2
    # With this momentum the copy hardly follows: without realignment its
    # right bounds would still be 3.
    assert ((ema.act1.right_bound - 3).abs() > 0.01).all()
    assert mean_iou([ema.act1]) > 0.99


def test_ema_survives_resume(tmp_path):
    hooks = [HOOK, dict(type='EMAHook', momentum=0.1)]
    straight = make_runner(tmp_path / 'straight', hooks)
    straight.train()
    with pytest.raises(KeyboardInterrupt):
        make_runner(tmp_path / 'broken', hooks + [StopAt(2 * ITERS)]).train()
    make_runner(tmp_path / 'broken', hooks, resume=True).train()
    first, second = (
        load_weights(tmp_path / name / 'epoch_4.pth')
        for name in ('straight', 'broken'))
    assert_same(first['state_dict'], second['state_dict'])
    assert_same(first['ema_state_dict'], second['ema_state_dict'])


class Student(ToyModel):
    """The model of the toy in a part of its own, and parts beside it."""

    def __init__(self, **others):
        super().__init__()
        self.student = ToyModel()
        del self.conv1, self.act1, self.conv2, self.act2, self.head
        for name, module in others.items():
            self.add_module(name, module)

    def forward(self, *args, **kwargs):
        if hasattr(self, 'average'):
            self.average.update_parameters(self.student)
        return self.student(*args, **kwargs)


class Follow(Hook):
    """As mmdet's MeanTeacherHook: equal at the start, then by momentum."""

    def __init__(self, momentum=.01, interval=1):
        self.momentum = momentum
        self.interval = interval

    def before_train(self, runner):
        if runner.iter == 0:
            self.follow(runner.model, 1)

    def after_train_iter(self, runner, batch_idx, *args, **kwargs):
        if (runner.iter + 1) % self.interval == 0:
            self.follow(runner.model, self.momentum)

    def follow(self, model, momentum):
        for mine, source in zip(model.teacher.parameters(),
                                model.student.parameters()):
            mine.data.mul_(1 - momentum).add_(source.data, alpha=momentum)


class AtTheSwitch(Hook):
    """Bounds of the units right after realignment, and their ReLU gap."""

    priority = 'VERY_LOW'

    def __init__(self, *units):
        self.units = units

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if runner.iter == 2 * ITERS:
            self.state = [
                copy.deepcopy(runner.model.get_submodule(unit).state_dict())
                for unit in self.units
            ]


def other_toy():
    """The same structure, other weights."""
    model = ToyModel()
    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            nn.init.normal_(module.weight)
    return model.requires_grad_(False)


@pytest.mark.parametrize('interval', (1, 5))
def test_a_teacher_that_follows_by_momentum(tmp_path, interval):
    """Between the old bounds and the new it would be no function of both."""
    seen = AtTheSwitch('student.act1', 'teacher.act1')
    model = Student(teacher=other_toy())
    make_runner(
        tmp_path, [HOOK, Follow(interval=interval), seen],
        epochs=3,
        model=model).train()
    student, teacher = seen.state
    assert_same(student, teacher)
    assert teacher['phase'] == PHASE_2
    assert not (teacher['right_bound'] == 3).any()
    assert model.teacher.act1.current_phase == PHASE_2


def test_a_teacher_and_its_own_ema(tmp_path):
    """EMA's copy of the model has a teacher, too."""
    model = Student(teacher=other_toy())
    runner = make_runner(
        tmp_path,
        [HOOK, Follow(), dict(type='EMAHook', momentum=1e-6)],
        epochs=3,
        model=model)
    runner.train()
    ema = next(
        hook.ema_model.module for hook in runner.hooks
        if type(hook).__name__ == 'EMAHook')
    for unit in (ema.student.act1, ema.teacher.act1):
        assert unit.current_phase == PHASE_2
        assert ((unit.right_bound - 3).abs() > 0.01).all()


def test_an_average_inside_the_model(tmp_path):
    """As MoCo and BYOL: it follows in the model's own forward."""
    model = Student()
    model.average = ExponentialMovingAverage(model.student, momentum=1e-6)
    seen = AtTheSwitch('student.act1', 'average.module.act1')
    make_runner(tmp_path, [HOOK, seen], epochs=3, model=model).train()
    assert_same(*seen.state)
    assert model.average.module.act1.current_phase == PHASE_2
    assert mean_iou([model.average.module.act1]) > .99


def test_a_copy_that_a_hook_holds(tmp_path):

    class Average(Hook):

        def before_run(self, runner):
            self.any_name = ExponentialMovingAverage(
                runner.model, momentum=1e-6)

        def after_train_iter(self, runner, *args, **kwargs):
            self.any_name.update_parameters(runner.model)

    hook = Average()
    make_runner(tmp_path, [HOOK, hook], epochs=3).train()
    assert mean_iou([hook.any_name.module.act1]) > .99


def test_a_frozen_network_of_the_same_structure_stays(tmp_path):
    """A teacher for distillation follows nobody."""
    teacher = other_toy()
    before = copy.deepcopy(teacher.state_dict())
    make_runner(
        tmp_path, [HOOK], epochs=3, model=Student(teacher=teacher)).train()
    assert_same(teacher.state_dict(), before)


def test_a_teacher_survives_resume(tmp_path):
    """Interrupted at the switch it is known from the checkpoint's phases."""

    def make(name, *hooks, **kwargs):
        return make_runner(
            tmp_path / name, [HOOK, Follow(), *hooks],
            epochs=3,
            model=Student(teacher=other_toy()),
            **kwargs)

    straight = make('straight')
    straight.train()
    for stop in (2 * ITERS - 1, 2 * ITERS):
        with pytest.raises(KeyboardInterrupt):
            make(f'broken{stop}', StopAt(stop)).train()
        resumed = make(f'broken{stop}', resume=True)
        resumed.train()
        assert_same(straight.model.state_dict(), resumed.model.state_dict())


def test_an_average_of_what_cannot_be_told(tmp_path):
    model = Student(second=ToyModel())
    model.average = ExponentialMovingAverage(model.student)
    with pytest.raises(
            ValueError,
            match='average.module follows another part of the model by '
            'momentum.*cannot tell which: student, second of the same'):
        make_runner(tmp_path, [HOOK], epochs=3, model=model).train()


@pytest.mark.parametrize('batch_sampler',
                         (SimpleNamespace(batch_size=[4, 2]), iter([]), None))
def test_epochs_without_one_batch_size(batch_sampler):
    """As that of data sets that are mixed."""
    loop = IterBasedTrainLoop.__new__(IterBasedTrainLoop)
    runner = SimpleNamespace(
        train_loop=loop,
        train_dataloader=SimpleNamespace(
            dataset=range(40), batch_sampler=batch_sampler))
    with pytest.raises(
            ValueError,
            match='phase1_epochs=1 needs a data set that has a length and a '
            'batch sampler of one batch size.*write phase1_iters instead'):
        PWLURealignHook(phase1_epochs=1)._phase1_length(runner)
    hook = PWLURealignHook(phase1_iters=7)
    assert hook._phase1_length(runner) == 7


def test_what_is_in_no_optimizer_is_named(tmp_path):
    """Also where only this hook is there; once where both are."""
    hooks = [HOOK, dict(type='ActivationSetupHook')]
    for number in (1, 2):
        make_runner(
            tmp_path / str(number),
            hooks[:number],
            epochs=3,
            optim_wrapper=dict(
                constructor='WeightsAndBiases',
                paramwise_cfg=dict(norm_decay_mult=0.),
                optimizer=dict(type='SGD', lr=.1, weight_decay=.1))).train()
        text = logged(tmp_path / str(number))
        assert text.count('10 activation parameters require a gradient and '
                          'are in no optimizer') == 1


def test_gradient_checkpointing_counts_once(tmp_path):

    class Checkpointed(ToyModel):

        def forward(self, inputs, labels, mode='loss'):

            def block(x):
                return self.act2(self.conv2(self.act1(self.conv1(x))))

            x = torch.utils.checkpoint.checkpoint(
                block, torch.stack(list(inputs)), use_reentrant=False)
            labels = torch.stack(list(labels))
            return dict(
                loss=F.cross_entropy(self.head(x.mean((2, 3))), labels))

    plain = make_runner(tmp_path / 'plain', [HOOK])
    plain.train()
    checkpointed = make_runner(
        tmp_path / 'checkpointed', [HOOK], model=Checkpointed())
    checkpointed.train()
    assert_same(plain.model.state_dict(), checkpointed.model.state_dict())


def test_iteration_based_training(tmp_path):
    """phase1_iters, and epochs as passes over the data set."""
    for name, arguments in (('iters', dict(phase1_iters=12)),
                            ('epochs', dict(phase1_epochs=2))):
        runner = make_runner(
            tmp_path / name, [dict(type='PWLURealignHook', **arguments)],
            train_cfg=dict(by_epoch=False, max_iters=14),
            train_dataloader=dict(
                batch_size=BATCH,
                num_workers=0,
                dataset=ToyData(),
                sampler=dict(type='InfiniteSampler', shuffle=True)))
        runner.train()
        assert 'Phase II starts at iteration 12' in logged(tmp_path / name)


def test_gradient_accumulation(tmp_path):
    record = Record()
    start = ToyModel().state_dict()
    make_runner(
        tmp_path, [HOOK, record],
        epochs=3,
        optim_wrapper=dict(
            accumulative_counts=4,
            optimizer=dict(type='SGD', lr=0.1, weight_decay=0.1))).train()
    assert torch.equal(record.states[2 * ITERS - 1]['act1.points'],
                       start['act1.points'])
    assert record.states[2 * ITERS]['act1.phase'] == PHASE_2


def test_frozen_pwlu_is_left_alone(tmp_path):
    model = ToyModel()
    model.act1.requires_grad_(False)
    make_runner(tmp_path, [HOOK], epochs=3, model=model).train()
    assert model.act1.current_phase == NO_PHASES
    assert model.act2.current_phase == PHASE_2


@pytest.mark.parametrize('arguments, message', (
    (dict(), 'expects either phase1_epochs or phase1_iters, got '
     'phase1_epochs=None and phase1_iters=None'),
    (dict(phase1_epochs=1, phase1_iters=1), 'expects either'),
    (dict(phase1_iters=0), 'to be a positive integer, got 0'),
    (dict(phase1_epochs=2.5), 'to be a positive integer, got 2.5'),
))
def test_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        PWLURealignHook(**arguments)


def test_phase1_longer_than_training(tmp_path):
    runner = make_runner(tmp_path, [HOOK], epochs=2)
    with pytest.raises(
            ValueError,
            match='Phase I of 12 iterations leaves nothing of the 12'):
        runner.train()


def test_phase1_longer_than_a_fine_tuning(tmp_path):
    """Of a model that has been realigned: there is no Phase I."""
    model = ToyModel()
    for unit in (model.act1, model.act2):
        unit.start_phase1()
        unit.realign()
    make_runner(tmp_path, [HOOK], epochs=2, model=model).train()
    assert model.act1.current_phase == model.act2.current_phase == 2


def test_model_without_pwlu(tmp_path):
    model = ToyModel()
    model.act1 = model.act2 = torch.nn.ReLU()
    with pytest.raises(ValueError, match='found no PWLU in ToyModel. Write '):
        make_runner(tmp_path, [HOOK], model=model).train()


def test_sharded_parameters():
    """As ZeRO-3 leaves them; FSDP in tests/test_reliability."""
    model = ToyModel()
    model.act1.points.data = model.act1.points.data.new_empty(0)
    with pytest.raises(
            ValueError,
            match=r'cannot realign 2 PWLU whose parameters are spread over '
            r'the ranks.* Train both phases with DDP'):
        refuse_sharded(model, [model.act1, model.act2])
    lazy = PWLU()
    refuse_sharded(lazy, [lazy])


# Other functions than ReLU.


class Smooth(ToyModel):

    def __init__(self):
        super().__init__()
        self.act1 = PWLU(4, function='SiLU')
        self.act2 = PWLU(
            4, granularity='layer', function=nn.LeakyReLU(.2, inplace=True))


class Before(Smooth):
    """The same network before a swap."""

    def __init__(self):
        super().__init__()
        self.act1, self.act2 = nn.SiLU(), nn.LeakyReLU(.2)


def test_phase1_trains_the_network_that_was_there(tmp_path):
    """All of Phase I, to the last bit."""
    new, old = Record(), Record()
    make_runner(tmp_path / 'new', [HOOK, new], model=Smooth()).train()
    make_runner(tmp_path / 'old', [old], model=Before()).train()
    for i in range(2 * ITERS + 1):
        for key, value in old.states[i].items():
            assert torch.equal(value, new.states[i][key]), (i, key)
    text = logged(tmp_path / 'new')
    assert ('PWLU: 2 modules are in Phase I (SiLU, LeakyReLU) up to iteration '
            '12') in text
    found = re.search(
        r'5 of 5 units were realigned, 0 degenerate ones keep their form\. '
        r'Mean alignment IOU .* after\. The realignment changed SiLU by '
        r'0\.(\d\d)% in the mean of 1 modules, 0\.\1% at most; LeakyReLU by '
        r'0\.00% in the mean of 1 modules, 0\.00% at most', text)
    assert found and 0 < int(found.group(1)) < 60


def test_log_tells_what_became_of_relu(tmp_path):
    make_runner(tmp_path, [HOOK], epochs=3).train()
    assert re.search(
        r'The realignment changed ReLU by \d\.\d\d% in the mean of 2 modules, '
        r'\d\.\d\d% at most', logged(tmp_path))
