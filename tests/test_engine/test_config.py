import pytest
from mmengine.config import Config

from mm_acon.cli import (check_files, default_work_dir, load_config,
                                   prepare_config, use_activation)
from tests.utils import FASTER_RCNN, options

LOADERS = ('train_dataloader', )


def config(**kwargs):
    settings = dict(
        model=dict(
            type='FCOS',
            backbone=dict(type='ResNet', depth=50, act_cfg=dict(type='A')),
            neck=dict(type='FPN')),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.1)),
        train_cfg=dict(by_epoch=True, max_epochs=12))
    settings.update(kwargs)
    return Config(settings)


def test_prepare_config_of_a_tool_without_runs():
    cfg = prepare_config(
        options('--act', 'PWLU', '--cfg-options',
                'model.backbone.swap.include=conv1'))
    # What --act makes can be changed by --cfg-options.
    assert cfg.model.backbone.swap == dict(
        act_cfg=dict(type='PWLU'), include='conv1')
    assert cfg.launcher == 'none' and cfg.load_from is None
    assert cfg.work_dir == 'work_dirs/faster-rcnn_r50_fpn_1x_coco-PWLU'


def test_prepare_config_of_a_run(tmp_path):
    checkpoint = tmp_path / 'epoch_1.pth'
    checkpoint.touch()
    cfg = prepare_config(
        options(checkpoint, '--launcher', 'slurm', '--work-dir', 'there',
                run=True))
    assert cfg.launcher == 'slurm'
    assert cfg.work_dir == 'there'
    assert cfg.load_from == str(checkpoint)
    assert prepare_config(options('none', run=True)).load_from is None


@pytest.mark.parametrize('arguments, loaders, message', (
    (('none', '--act-include', 'x'), (), '--act-include goes with --act'),
    (('no.pth', ), (), "There is no checkpoint 'no.pth'"),
    (('none', ), ('test_dataloader', ), 'looks for its data in'),
))
def test_prepare_config_ends_the_tool(tmp_path, monkeypatch, arguments,
                                      loaders, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match=message):
        prepare_config(options(*arguments, run=True), *loaders)


def test_load_config_of_an_installed_package():
    assert load_config(FASTER_RCNN).model.type == 'FasterRCNN'


def test_load_config_that_is_not_there(tmp_path):
    with pytest.raises(
            FileNotFoundError,
            match=r"There is no config '.*nothing.py' \(looked for .*mmseg::"):
        load_config(str(tmp_path / 'nothing.py'))


def test_use_activation_wraps_the_backbone_as_it_is():
    cfg = config()
    use_activation(cfg, 'MetaACON', r'\.conv2$')
    backbone = cfg.model.backbone
    assert backbone.type == 'SwapActivations'
    assert backbone.backbone == dict(
        type='ResNet', depth=50, act_cfg=dict(type='A'))
    assert backbone.swap == dict(
        act_cfg=dict(type='MetaACON'), include=r'\.conv2$')
    assert cfg.model.neck == dict(type='FPN')
    assert cfg.optim_wrapper.constructor == 'ActivationOptimWrapperConstructor'
    assert 'custom_hooks' not in cfg


def test_use_activation_keeps_the_users_constructor_and_hooks():
    cfg = config(
        optim_wrapper=dict(constructor='Mine'),
        custom_hooks=[dict(type='EMAHook')])
    use_activation(cfg, 'PWLU')
    assert cfg.optim_wrapper.constructor == 'Mine'
    assert [hook.type for hook in cfg.custom_hooks
            ] == ['EMAHook', 'PWLURealignHook']


@pytest.mark.parametrize('train_cfg, phase1', (
    (dict(max_epochs=12), dict(phase1_epochs=1)),
    (dict(max_epochs=36), dict(phase1_epochs=2)),
    (dict(max_epochs=100), dict(phase1_epochs=5)),
    (dict(max_epochs=300), dict(phase1_epochs=5)),
    (dict(max_iters=80000), dict(phase1_iters=4000)),
))
def test_length_of_phase1(train_cfg, phase1):
    cfg = config(train_cfg=train_cfg)
    use_activation(cfg, 'PWLU')
    assert cfg.custom_hooks[-1] == dict(type='PWLURealignHook', **phase1)


def test_a_hook_of_the_users_own_stays():
    cfg = config(custom_hooks=[dict(type='PWLURealignHook', phase1_iters=7)])
    use_activation(cfg, 'PWLU')
    assert len(cfg.custom_hooks) == 1


def test_use_activation_finds_nested_backbones():
    cfg = config(
        model=dict(
            type='SoftTeacher',
            detector=dict(type='FasterRCNN', backbone=dict(type='ResNet'))))
    use_activation(cfg, 'PWLU')
    assert cfg.model.detector.backbone.backbone.type == 'ResNet'


def test_use_activation_without_a_backbone():
    with pytest.raises(ValueError, match='needs a model with a backbone'):
        use_activation(config(model=dict(type='GAN')), 'PWLU')


def test_use_activation_twice():
    cfg = config()
    use_activation(cfg, 'PWLU')
    with pytest.raises(
            ValueError, match='model.backbone.swap.act_cfg.type=PWLU inst'):
        use_activation(cfg, 'PWLU')


def test_missing_data_names_folder_key_and_demo(tmp_path):
    cfg = config(
        train_dataloader=dict(
            dataset=dict(
                type='RepeatDataset',
                dataset=dict(
                    type='CocoDataset', data_root=str(tmp_path / 'coco')))))
    with pytest.raises(FileNotFoundError) as error:
        check_files(cfg, LOADERS)
    text = str(error.value)
    assert "CocoDataset of train_dataloader looks for its data in" in text
    assert str(tmp_path / 'coco') in text
    assert 'train_dataloader.dataset.dataset.data_root=FOLDER' in text
    assert '--demo' in text
    (tmp_path / 'coco').mkdir()
    check_files(cfg, LOADERS)


def test_missing_weights(tmp_path):
    cfg = config()
    cfg.model.backbone.init_cfg = dict(
        type='Pretrained', checkpoint=str(tmp_path / 'r50.pth'))
    with pytest.raises(
            FileNotFoundError, match='The config starts from the weights in'):
        check_files(cfg, LOADERS)
    (tmp_path / 'r50.pth').touch()
    check_files(cfg, LOADERS)
    cfg.model.backbone.init_cfg.checkpoint = 'torchvision://resnet50'
    check_files(cfg, LOADERS)


def test_default_work_dir():
    assert default_work_dir(FASTER_RCNN, 'PWLU', 'demo') == (
        'work_dirs/faster-rcnn_r50_fpn_1x_coco-PWLU-demo')
    assert default_work_dir('a/b.py', None, None) == 'work_dirs/b'
