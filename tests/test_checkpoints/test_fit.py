import functools
import pickle

import pytest
import torch
from mmcv.cnn import ConvModule
from torch import nn

from mm_acon import PWLU
from tests.helpers.toy import (ToyModel, Val, loader, make_runner, predict,
                               weights_of)

SAFE = dict(checkpoint=dict(type='SafeCheckpointHook', interval=1))

# Checkpoints of other networks.


class Plain(ToyModel):
    """Without activations that learn."""

    def __init__(self, num_channels=4, extra=0):
        super().__init__(num_channels)
        self.act1, self.act2 = nn.ReLU(), nn.ReLU()
        self.tail = nn.Sequential(*(nn.Linear(2, 2) for _ in range(extra)))


class Meta(Plain):
    """With one that does not start as ReLU."""

    def __init__(self):
        super().__init__()
        self.act1 = ConvModule(
            4, 4, 1, act_cfg=dict(type='ACONC', num_channels=4))


def load_and_test(folder, model, source):
    model.forward = functools.partial(predict, model)
    make_runner(
        folder,
        model=model,
        load_from=source,
        default_hooks=SAFE,
        test_cfg=dict(),
        test_dataloader=loader(),
        test_evaluator=[Val()]).test()


UNFIT = [
    ('width', lambda: ToyModel(5), ToyModel, '13 tensors have another shape: '
     r'size mismatch for conv1.weight: .*\[5, 3, 3, 3\].* and 8 more'),
    ('less', lambda: nn.ModuleDict(dict(conv1=nn.Conv2d(3, 4, 3))), ToyModel,
     '4 tensors are missing in it: conv2.weight, conv2.bias, head.weight, '
     r'head.bias\. Use'),
    ('no start as ReLU', Plain, Meta, '5 tensors are missing in it: '
     'act1.conv.weight, .*act1.activate.p1'),
    ('not kept', Plain, lambda: InPlace('SiLU'),
     '9 tensors are missing in it: act1.points'),
    ('other activations', ToyModel, Plain, '18 tensors have no place in the '
     'model: act1.points, .* and 13 more'),
    ('deeper', lambda: Plain(extra=3), lambda: Plain(extra=1),
     '4 tensors have no place in the model: tail.1.weight, tail.1.bias, '
     r'tail.2.weight, tail.2.bias\. Use'),
    ('nothing', lambda: nn.Linear(3, 3), ToyModel, 'Nothing in .* fits'),
]


class InPlace(Plain):
    """With PWLU in place of a function that it keeps exactly, or not."""

    def __init__(self, function):
        super().__init__()
        self.act1 = PWLU(4, function=function)


# A PWLU that the file lacks is the ReLU that it was trained with; a part that
# a test does not need may be there.
@pytest.mark.parametrize('source', (ToyModel(), Plain(), Plain(extra=1)))
def test_weights_that_fit_a_test(source, tmp_path):
    load_and_test(tmp_path, ToyModel(), weights_of(tmp_path, source))


@pytest.mark.parametrize('function', ('ReLU6', 'LeakyReLU'))
def test_a_function_that_is_kept_may_be_missing(function, tmp_path):
    load_and_test(tmp_path, InPlace(function), weights_of(tmp_path, Plain()))


def test_the_slopes_of_a_prelu_are_there(tmp_path):
    before = Plain()
    before.act1 = nn.PReLU(4)
    before.act1.weight.data = torch.rand(4)
    model = InPlace('PReLU')
    load_and_test(tmp_path, model, weights_of(tmp_path, before))
    assert torch.equal(model.act1.left_slope, before.act1.weight)


@pytest.mark.parametrize(
    'source, model, message', [row[1:] for row in UNFIT],
    ids=[row[0] for row in UNFIT])
def test_weights_of_another_network(source, model, message, tmp_path):
    """For a test all has to fit that decides what the network computes."""
    path = weights_of(tmp_path, source())
    with pytest.raises(ValueError, match=message) as error:
        load_and_test(tmp_path, model(), path)
    assert path in str(error.value)
    if 'Nothing' not in message:
        assert str(error.value).startswith(f'{path} does not fit ')
        assert str(error.value).endswith(
            '. Use the config, with the --act and swap, that the checkpoint '
            'was trained with.')


@pytest.mark.parametrize('model, message', (
    (ToyModel(5), '13 tensors have another shape'),
    (Plain(), '18 tensors have no place in the model'),
    (Plain(extra=1), '2 tensors are missing in it: tail.0.weight'),
))
def test_resume_of_another_network(model, message, trained, tmp_path):
    runner = make_runner(
        tmp_path,
        model=model,
        resume=True,
        load_from=str(trained),
        default_hooks=SAFE)
    with pytest.raises(
            ValueError,
            match=f'{trained} does not fit .*message'.replace(
                'message', message)):
        runner.train()


def test_resume_of_weights_alone(tmp_path):
    path = weights_of(tmp_path, ToyModel())
    runner = make_runner(
        tmp_path, resume=True, load_from=path, default_hooks=SAFE)
    with pytest.raises(
            ValueError,
            match=f'{path} cannot be resumed from: it is no checkpoint of a '
            'training run, it has no me.* and no me.*write --cfg-options '
            f'load_from={path} without --resume'):
        runner.train()


@pytest.mark.parametrize('source', (ToyModel(5), Plain(), Plain(extra=2)))
def test_training_starts_from_what_fits(source, tmp_path):
    """Heads of another number of classes are the ordinary case."""
    source.head = nn.Linear(source.head.in_features, 9)
    make_runner(
        tmp_path,
        epochs=1,
        load_from=weights_of(tmp_path, source),
        default_hooks=SAFE).train()


def test_training_does_not_start_from_nothing(tmp_path):
    path = weights_of(tmp_path, nn.ModuleDict(dict(model=ToyModel())))
    runner = make_runner(tmp_path, load_from=path, default_hooks=SAFE)
    with pytest.raises(
            ValueError,
            match=f'Nothing in {path} fits ToyModel; its keys '
            "begin with 'model.'"):
        runner.train()


def test_a_checked_model_can_be_copied(tmp_path):
    """And is checked once: what is loaded later is the user's business."""
    model = ToyModel()
    make_runner(
        tmp_path,
        epochs=1,
        model=model,
        load_from=weights_of(tmp_path, ToyModel()),
        default_hooks=SAFE).train()
    pickle.dumps(model)
    model.load_state_dict({}, strict=False)
