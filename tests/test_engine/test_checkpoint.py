import functools
import io
import os
import pickle
import struct
import subprocess
import sys
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from mmcv.cnn import ConvModule
from mmengine.logging import HistoryBuffer
from mmengine.model import BaseModule
from mmengine.runner import load_checkpoint
from torch import _weights_only_unpickler, nn

from tests.helpers.backbones import small
from tests.helpers.kill_in_save import runner_of
from tests.helpers.toy import (BATCH, ToyData, ToyModel, Val, make_runner,
                               predict)
from tests.utils import WriteFile

KILL_IN_SAVE = Path(__file__).parents[1] / 'helpers' / 'kill_in_save.py'
SAFE = dict(checkpoint=dict(type='SafeCheckpointHook', interval=1))


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    """A checkpoint after one epoch of the toy model."""
    folder = tmp_path_factory.mktemp('trained')
    make_runner(folder, epochs=1).train()
    return folder / 'epoch_1.pth'


def test_mmengine_checkpoint_loads_with_weights_only(trained):
    checkpoint = torch.load(trained, weights_only=True)
    assert any(
        isinstance(value, HistoryBuffer)
        for value in checkpoint['message_hub']['log_scalars'].values())


@pytest.mark.parametrize('owner, name',
                         ((HistoryBuffer, '__init__'),
                          (HistoryBuffer, '_statistics_methods'),
                          (torch.Tensor, 'numpy')))
def test_getattr_is_for_statistics_only(tmp_path, owner, name):
    """Written by hand: pickle would name Tensor.numpy in another way."""
    program = (b'cbuiltins\ngetattr\n(c' +
               f'{owner.__module__}\n{owner.__qualname__}\n'.encode() +
               b'X' + struct.pack('<I', len(name)) + name.encode() + b'tR.')
    torch.serialization.add_safe_globals([torch.Tensor])
    with pytest.raises(pickle.UnpicklingError,
                       match='methods of HistoryBuffer only'):
        _weights_only_unpickler.load(io.BytesIO(b'\x80\x02' + program))


# Files that run code.


def test_code_in_a_pickle_is_refused(tmp_path, monkeypatch):
    """Whatever torch is told to do elsewhere."""
    monkeypatch.setenv('TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD', '1')
    path, ran = tmp_path / 'file.pth', tmp_path / 'ran'
    torch.save(dict(state_dict={}, code=WriteFile(ran)), path)
    with pytest.raises(ValueError) as error:
        load_checkpoint(nn.Linear(2, 2), str(path))
    # Older versions of torch say builtins.exec.
    assert str(error.value).replace('builtins.', '') == (
        f'{path} holds objects beside tensors and plain Python values, and '
        'loading those could run code. If you trust the file, write its '
        'state_dict alone into a new one. PyTorch says: UnpicklingError: '
        'Unsupported global: GLOBAL exec was not an allowed global by default')
    assert not ran.exists()
    assert os.environ['TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD'] == '1'
    assert 'TORCH_FORCE_WEIGHTS_ONLY_LOAD' not in os.environ
    # The payload is a real one.
    torch.load(path, weights_only=False)
    assert ran.exists()


def test_code_from_a_url_is_refused(tmp_path, monkeypatch):
    """mmengine itself loads these with weights_only=False."""
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'home'))
    ran = tmp_path / 'ran'
    torch.save(dict(state_dict={}, code=WriteFile(ran)), tmp_path / 'x.pth')
    handler = functools.partial(SimpleHTTPRequestHandler, directory=tmp_path)
    with ThreadingHTTPServer(('127.0.0.1', 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f'http://127.0.0.1:{server.server_port}/x.pth'
        with pytest.raises(ValueError, match=f'{url} holds objects beside'):
            load_checkpoint(nn.Linear(2, 2), url)
        server.shutdown()
    assert not ran.exists()


def test_code_in_the_config_of_a_checkpoint_is_not_run(trained, tmp_path):
    """Runner.resume reads meta['config'] as a Python file."""
    checkpoint = torch.load(trained, weights_only=True)
    ran = tmp_path / 'ran'
    checkpoint['meta']['config'] = f'open({str(ran)!r}, "w")\n'
    torch.save(checkpoint, tmp_path / 'file.pth')
    runner = make_runner(
        tmp_path, epochs=2, resume=True, load_from=str(tmp_path / 'file.pth'))
    runner.train()
    assert runner.epoch == 2 and not ran.exists()


# Files that are no checkpoints.

BROKEN = {
    'empty': lambda whole: b'',
    'half': lambda whole: whole[:len(whole) // 2],
    'last bytes': lambda whole: whole[:-30],
    'text': lambda whole: b'epoch 3, mAP 37.2\n' * 99,
    'picture': lambda whole: b'\x89PNG\r\n\x1a\n' + whole,
    'zeros': lambda whole: bytes(1000),
    'other pickle': lambda whole: pickle.dumps(dict(a=[1])),
}


@pytest.mark.parametrize('name', BROKEN)
def test_broken_file(name, trained, tmp_path):
    path = tmp_path / 'file.pth'
    path.write_bytes(BROKEN[name](trained.read_bytes()))
    runner = make_runner(
        tmp_path / 'work', resume=True, load_from=str(path))
    with pytest.raises(ValueError) as error:
        runner.train()
    assert str(error.value).startswith(
        f'{path} cannot be read as a checkpoint: it is cut off, or another '
        'kind of file. PyTorch says: ')
    # Which PyTorch would advise now.
    assert 'weights_only` set to `False' not in str(error.value)


def test_what_is_no_dict(tmp_path):
    torch.save([torch.zeros(2)], tmp_path / 'file.pth')
    with pytest.raises(
            ValueError,
            match='file.pth is no checkpoint: expected a dict of tensors, or '
            "one as 'state_dict', got list"):
        load_checkpoint(nn.Linear(2, 2), str(tmp_path / 'file.pth'))


def test_interrupted_name_of_the_last_checkpoint(tmp_path):
    (tmp_path / 'last_checkpoint').touch()
    with pytest.raises(ValueError, match='come from the file last_checkpoint'):
        make_runner(tmp_path, resume=True).train()


def test_file_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match='no.pth can not be found'):
        make_runner(tmp_path, load_from=str(tmp_path / 'no.pth')).train()


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


def weights_of(folder, model):
    torch.save(dict(state_dict=model.state_dict()), folder / 'weights.pth')
    return str(folder / 'weights.pth')


def load_and_test(folder, model, source):
    model.forward = functools.partial(predict, model)
    make_runner(
        folder,
        model=model,
        load_from=source,
        default_hooks=SAFE,
        test_cfg=dict(),
        test_dataloader=dict(
            batch_size=BATCH,
            num_workers=0,
            dataset=ToyData(),
            sampler=dict(type='DefaultSampler', shuffle=False)),
        test_evaluator=[Val()]).test()


UNFIT = [
    ('width', lambda: ToyModel(5), ToyModel, '13 tensors have another shape: '
     r'size mismatch for conv1.weight: .*\[5, 3, 3, 3\].* and 8 more'),
    ('less', lambda: nn.ModuleDict(dict(conv1=nn.Conv2d(3, 4, 3))), ToyModel,
     '4 tensors are missing in it: conv2.weight, conv2.bias, head.weight, '
     r'head.bias\. Use'),
    ('no start as ReLU', Plain, Meta, '5 tensors are missing in it: '
     'act1.conv.weight, .*act1.activate.p1'),
    ('other activations', ToyModel, Plain, '18 tensors have no place in the '
     'model: act1.points, .* and 13 more'),
    ('deeper', lambda: Plain(extra=3), lambda: Plain(extra=1),
     '4 tensors have no place in the model: tail.1.weight, tail.1.bias, '
     r'tail.2.weight, tail.2.bias\. Use'),
    ('nothing', lambda: nn.Linear(3, 3), ToyModel, 'Nothing in .* fits'),
]


# A PWLU that the file lacks is the ReLU that it was trained with; a part that
# a test does not need may be there.
@pytest.mark.parametrize('source', (ToyModel(), Plain(), Plain(extra=1)))
def test_weights_that_fit_a_test(source, tmp_path):
    load_and_test(tmp_path, ToyModel(), weights_of(tmp_path, source))


@pytest.mark.parametrize('source, model, message',
                         [row[1:] for row in UNFIT],
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
    with pytest.raises(ValueError, match=f'{trained} does not fit .*message'
                       .replace('message', message)):
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
    with pytest.raises(ValueError,
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


def pretrained(model, path, **kwargs):
    model.init_cfg = dict(type='Pretrained', checkpoint=path, **kwargs)
    model._is_init = False
    model.init_weights()


def test_pretrained_weights_of_another_backbone(tmp_path):
    path = weights_of(tmp_path, small(depth=18))
    with pytest.raises(
            ValueError,
            match=f'{path} does not fit ResNet: .* tensors have another shape'
            ': size mismatch for layer1.0.conv1.weight'):
        pretrained(small(dict(type='PWLU')), path)
    # Of a plain backbone that is mmengine's warning, and of a classifier
    # with another head as well.
    pretrained(small(), path)

    class Classifier(BaseModule):

        def __init__(self, classes):
            super().__init__()
            self.backbone = small(dict(type='PWLU'))
            self.head = nn.Linear(2, classes)

    pretrained(Classifier(3), weights_of(tmp_path, Classifier(5)))


def test_pretrained_weights_of_a_whole_model(tmp_path):
    path = weights_of(tmp_path, nn.ModuleDict(dict(backbone=small())))
    model = small(dict(type='PWLU'))
    with pytest.raises(
            ValueError,
            match=f"Nothing in {path} fits ResNet; its keys begin with "
            "'backbone.', so write prefix='backbone.' in init_cfg"):
        pretrained(model, path)
    with pytest.raises(ValueError,
                       match=f"{path} has no key that begins with 'neck.'"):
        pretrained(model, path, prefix='neck.')
    pretrained(model, path, prefix='backbone.')


def test_pretrained_file_that_is_cut_off(tmp_path):
    path = Path(weights_of(tmp_path, nn.Linear(2, 2)))
    path.write_bytes(path.read_bytes()[:200])
    module = BaseModule(dict(type='Pretrained', checkpoint=str(path)))
    with pytest.raises(ValueError, match=f'{path} cannot be read as a check'):
        module.init_weights()


# Writing.


def test_killed_while_saving(tmp_path):
    """At four places, with one checkpoint kept; nothing is lost."""
    stages = dict(
        writing='SIGXFSZ',
        written='SIGKILL',
        renamed='SIGKILL',
        removing='SIGKILL')
    done = subprocess.run(
        [sys.executable, str(KILL_IN_SAVE), str(tmp_path),
         'SafeCheckpointHook', *stages], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    died = [line.split() for line in done.stdout.splitlines()
            if line.startswith(tuple(stages))]
    assert dict(died) == stages
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    straight = runner_of(tmp_path / 'straight')
    straight.train()
    for stage in stages:
        folder = tmp_path / stage
        named = Path((folder / 'last_checkpoint').read_text())
        assert named.name == f'epoch_{1 + (stage == "removing")}.pth'
        resumed = runner_of(folder, resume=True)
        resumed.train()
        for key, value in straight.model.state_dict().items():
            assert torch.equal(resumed.model.state_dict()[key], value), key
        assert (folder / 'epoch_3.pth').exists()
        assert not (folder / 'epoch_2.pth').exists()
        assert not list(folder.glob('*.part'))
    torch.set_num_threads(threads)


def test_best_checkpoint_is_replaced_when_the_next_is_there(tmp_path):
    """And of each kind as many are left as mmengine leaves."""
    left = {}
    for hook in ('CheckpointHook', 'SafeCheckpointHook'):
        model = ToyModel()
        model.forward = functools.partial(predict, model)
        scores = iter((1, 3, 2, 4))
        metric = Val()
        metric.compute_metrics = lambda results, s=scores: dict(score=next(s))
        events = []
        runner = make_runner(
            tmp_path / hook,
            model=model,
            train_cfg=dict(by_epoch=True, max_epochs=4, val_interval=1),
            val_cfg=dict(),
            val_dataloader=dict(
                batch_size=BATCH,
                num_workers=0,
                dataset=ToyData(),
                sampler=dict(type='DefaultSampler', shuffle=False)),
            val_evaluator=[metric],
            default_hooks=dict(
                checkpoint=dict(
                    type=hook,
                    interval=1,
                    max_keep_ckpts=2,
                    save_best='toy/score',
                    rule='greater')))
        save = runner.save_checkpoint

        def watched(*args, save=save, folder=tmp_path / hook, events=events,
                    **kwargs):
            before = len(list(folder.glob('best_*.pth')))
            save(*args, **kwargs)
            events.append((before, len(list(folder.glob('best_*.pth')))))

        runner.save_checkpoint = watched
        runner.train()
        left[hook] = sorted(p.name for p in (tmp_path / hook).glob('*.pth'))
        # A best one was there at every moment once there was one.
        found = [count for pair in events for count in pair]
        first = next(i for i, count in enumerate(found) if count)
        assert all(found[first:]) is (hook == 'SafeCheckpointHook')
    assert left['SafeCheckpointHook'] == left['CheckpointHook'] == [
        'best_toy_score_epoch_4.pth', 'epoch_3.pth', 'epoch_4.pth'
    ]
