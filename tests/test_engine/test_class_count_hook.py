"""Numbers of classes that do not fit the data."""
import logging
import re

import pytest
from mmengine.logging import MMLogger
from mmengine.registry import MODELS
from torch import nn

from mm_acon.engine.class_count_hook import ClassCountHook
from tests.helpers.toy import (BATCH, ToyData, ToyModel, Val, make_runner,
                               predict)

HEADS = {
    'head':
    dict(type='LinearClsHead', _scope_='mmpretrain', in_channels=8),
    'bbox_head':
    dict(type='RetinaHead', _scope_='mmdet', in_channels=8, feat_channels=8),
    'decode_head':
    dict(
        type='FCNHead',
        _scope_='mmseg',
        in_channels=8,
        channels=8,
        num_convs=1),
}


class Classes(ToyData):

    def __init__(self, count, **meta):
        super().__init__()
        self.metainfo = dict(classes=tuple('abcdefgh'[:count]), **meta)


def with_head(name, count):
    model = ToyModel()
    model.detector = nn.Module()
    setattr(model.detector, name,
            MODELS.build(dict(HEADS[name], num_classes=count)))
    model.rpn_head = MODELS.build(
        dict(type='RPNHead', _scope_='mmdet', in_channels=8, feat_channels=8))
    return model


def loader(data):
    return dict(
        batch_size=BATCH,
        num_workers=0,
        dataset=data,
        sampler=dict(type='DefaultSampler', shuffle=False))


def trained(folder, model, data, log):
    """What is warned of while it trains for an epoch."""
    log.records.clear()
    runner = make_runner(
        folder, [ClassCountHook()],
        epochs=1,
        model=model,
        train_dataloader=loader(data))
    # Which has a logger of its own.
    MMLogger.get_current_instance().addHandler(log)
    runner.train()
    return [text for text in log.of(logging.WARNING) if 'num_classes' in text]


@pytest.mark.parametrize('name', HEADS)
def test_classes_that_do_not_fit(name, log, tmp_path):
    kind = HEADS[name]['type']
    message = (f'detector.{name} ({kind}) has num_classes=4, and Classes of '
               'train_dataloader has {there} classes. Write --cfg-options '
               f'model.detector.{name}.num_classes={{there}}, or the classes '
               'that are meant in train_dataloader.dataset.metainfo.classes.')
    with pytest.raises(ValueError, match=re.escape(message.format(there=5))):
        trained(tmp_path, with_head(name, 4), Classes(5), log)
    assert trained(tmp_path, with_head(name, 4), Classes(4), log) == []
    assert trained(tmp_path, with_head(name, 4), Classes(3),
                   log) == [message.format(there=3)]


def test_classes_that_count_otherwise(log, tmp_path):
    """An auxiliary head for boundaries, panoptic data, no classes at all."""
    model = with_head('decode_head', 4)
    model.auxiliary_head = MODELS.build(
        dict(HEADS['decode_head'], num_classes=2))
    (warning, ) = trained(tmp_path, model, Classes(4), log)
    assert warning.startswith('auxiliary_head (FCNHead) has num_classes=2')
    assert trained(tmp_path, model, Classes(7, thing_classes=('a', )),
                   log) == []
    assert trained(tmp_path, model, ToyData(), log) == []


def test_classes_of_a_test(tmp_path):
    model = with_head('head', 4)
    model.forward = lambda inputs, labels, mode: predict(
        model, inputs, labels, mode)
    runner = make_runner(
        tmp_path, [ClassCountHook()],
        model=model,
        test_cfg=dict(),
        test_dataloader=loader(Classes(5)),
        test_evaluator=[Val()])
    with pytest.raises(ValueError, match='Classes of test_dataloader has 5'):
        runner.test()
