import pytest
from mmengine.config import Config
from mmengine.hooks import CheckpointHook

from mm_acon import ClassCountHook
from mm_acon.cli import (check_files, default_work_dir, load_config,
                         prepare_config, use_checks)
from tests.helpers.configs import config
from tests.utils import FASTER_RCNN, options

LOADERS = ('train_dataloader', )


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
        options(
            checkpoint, '--launcher', 'slurm', '--work-dir', 'there',
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
    # Who tests a checkpoint has its weights.
    check_files(cfg, [name for name in LOADERS if name != 'train_dataloader'])
    (tmp_path / 'r50.pth').touch()
    check_files(cfg, LOADERS)
    cfg.model.backbone.init_cfg.checkpoint = 'torchvision://resnet50'
    check_files(cfg, LOADERS)


def test_default_work_dir():
    assert default_work_dir(
        FASTER_RCNN, 'PWLU',
        'demo') == ('work_dirs/faster-rcnn_r50_fpn_1x_coco-PWLU-demo')
    assert default_work_dir('a/b.py', None, None) == 'work_dirs/b'


@pytest.mark.parametrize('given, names', (
    (None, ['mm_acon']),
    (dict(), ['mm_acon']),
    (dict(imports=None), ['mm_acon']),
    (dict(imports=[]), ['mm_acon']),
    (dict(imports='json'), ['json', 'mm_acon']),
    (dict(imports=('json', 'math')), ['json', 'math', 'mm_acon']),
    (dict(imports=['mm_acon', 'json']), ['mm_acon', 'json']),
    (dict(imports='mm_acon'), ['mm_acon']),
))
def test_custom_imports_of_every_form(given, names):
    """All of which mmengine takes."""
    cfg = config(custom_imports=given)
    use_checks(cfg)
    assert cfg.custom_imports.imports == names
    assert cfg.custom_imports.allow_failed_imports is False
    # As Runner writes it into the work dir, and others read it.
    again = Config.fromstring(cfg.pretty_text, '.py')
    assert again.custom_imports.imports == names


def test_failed_imports_stay_allowed():
    cfg = config(
        custom_imports=dict(imports='json', allow_failed_imports=True))
    use_checks(cfg)
    assert cfg.custom_imports.allow_failed_imports is True


def test_checks_know_hooks_by_their_class():
    """As in pure-Python configs, where default_hooks need not be there."""
    cfg = config(
        default_hooks=dict(checkpoint=dict(type=CheckpointHook, interval=3)),
        custom_hooks=[dict(type=ClassCountHook)])
    use_checks(cfg)
    assert cfg.default_hooks.checkpoint == dict(
        type='SafeCheckpointHook', interval=3)
    assert cfg.custom_hooks.count(dict(type=ClassCountHook)) == 1
    assert 'ClassCountHook' not in [hook.type for hook in cfg.custom_hooks]


@pytest.mark.parametrize('hook',
                         (None, dict(type='MyCheckpointHook', interval=7)))
def test_a_checkpoint_hook_of_the_users_own_stays(hook):
    cfg = config(default_hooks=dict(checkpoint=hook))
    use_checks(cfg)
    assert cfg.default_hooks.checkpoint == hook


def test_options_of_a_swap():
    cfg = prepare_config(
        options('--act', 'PWLU', '--act-include', 'conv', '--act-exclude',
                'conv1', '--act-replace', 'SiLU', 'ReLU'))
    assert cfg.model.backbone.swap == dict(
        act_cfg=dict(type='PWLU'),
        include='conv',
        exclude='conv1',
        replace=['SiLU', 'ReLU'])


def test_weights_that_a_model_names_for_its_backbone(tmp_path):
    """mmseg's model.pretrained."""
    cfg = config(model=dict(type='A', pretrained=str(tmp_path / 'r.pth')))
    with pytest.raises(FileNotFoundError, match='r.pth'):
        check_files(cfg, LOADERS)
