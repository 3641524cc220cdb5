"""Configs, study and tutorial of the real images, at tiny size.

On images that are drawn here; with the real ones where they are.
"""
import argparse
import copy
import json
import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, init_default_scope

from mm_acon import EfficientNetLite, LearnableActivation, adapt_mmengine
from tests.helpers.pages import ROOT, read_blocks
from tests.utils import EXPORTS, real_data

for library in ('mmdet', 'mmseg', 'mmpretrain'):
    pytest.importorskip(library)
cv2 = pytest.importorskip('cv2')

pytestmark = pytest.mark.usefixtures('unverified')

CONFIGS = {
    path.stem: path
    for path in (ROOT / 'configs/real_images').glob('*.py')
}
# Type and number of the activations that a config puts in.
ACTIVATIONS = {
    'relu': ('ReLU', 17),
    'swish': ('SiLU', 17),
    'acon': ('ACONC', 16),
    'metaacon': ('MetaACON', 16),
    'pwlu': ('PWLU', 17)
}
LITE = {
    'relu6': ('ReLU6', 32),
    'acon': ('ACONC', 32),
    'metaacon': ('MetaACON', 32),
    'pwlu': ('PWLU', 32)
}


@pytest.fixture(autouse=True, scope='module')
def adapted():
    """As the tools do, which read checkpoints by weights alone."""
    adapt_mmengine()


def build(name, **backbone):
    """A model without the file of its weights."""
    cfg = Config.fromfile(CONFIGS[name])
    init_default_scope(cfg.default_scope)
    cfg.model.backbone.init_cfg = None
    cfg.model.backbone.update(backbone)
    torch.manual_seed(0)
    return cfg, MODELS.build(cfg.model)


@pytest.mark.parametrize('name', CONFIGS)
def test_activations_and_weight_decay(name):
    cfg, model = build(name)
    known = LITE if 'lite0' in name else ACTIVATIONS
    kind, number = known[name.rpartition('_')[2]]
    found = [
        type(m).__name__ for m in model.backbone.modules()
        if type(m).__name__ == kind
    ]
    if 'relu' not in name:
        assert len(found) == number
        assert not hasattr(model.backbone, 'backbone')
    decays = {
        parameter: group['weight_decay']
        for group in build_optim_wrapper(
            model, cfg.optim_wrapper).optimizer.param_groups
        for parameter in group['params']
    }
    for module in model.modules():
        if isinstance(module, LearnableActivation):
            for parameter in module.parameters(recurse=False):
                assert decays[parameter] == 0
        elif isinstance(module, torch.nn.Conv2d):
            assert decays[module.weight] == 0.05
    text = (ROOT / 'configs/README.md').read_text()
    base, _, activation = name.rpartition('_')
    assert re.search(rf'`{base}_\*\.py`.*`{activation}`', text)


@pytest.mark.parametrize('name', CONFIGS)
def test_config_changes_only_its_activation(name):
    """What a comparison of activations needs."""
    base = CONFIGS[name].parent / f'_base_/{name.rpartition("_")[0]}.py'
    plain, cfg = (Config.fromfile(path).to_dict()
                  for path in (base, CONFIGS[name]))  # yapf: disable
    for content in (plain, cfg):
        content.pop('custom_hooks', None)
        content['optim_wrapper'].pop('constructor', None)
        for key in ('type', 'backbone', 'swap'):
            content['model']['backbone'].pop(key, None)
    assert cfg == plain


def lite0_weights(path):
    """A backbone whose ReLU6 are passed on both sides."""
    torch.manual_seed(1)
    model = EfficientNetLite()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.weight.data.uniform_(1, 3)
            module.bias.data.normal_(1, 3)
    torch.save(
        dict(state_dict={
            f'backbone.{k}': v
            for k, v in model.state_dict().items()
        }), path)
    return str(path)


@pytest.mark.parametrize('phase', ('phases', 'without'))
def test_step_0_of_pwlu_is_the_relu6_network(tmp_path, phase):
    """Every output of the detector, to the last bit."""
    weights = lite0_weights(tmp_path / 'lite0.pth')
    inputs = torch.randn(2, 3, 96, 128)
    outputs = {}
    for name in ('relu6', 'pwlu'):
        _, model = build(
            f'retinanet_lite0_{name}',
            init_cfg=dict(
                type='Pretrained', checkpoint=weights, prefix='backbone.'))
        model.init_weights()
        if name == 'pwlu' and phase == 'phases':
            for module in model.modules():
                if isinstance(module, LearnableActivation):
                    module.start_phase1()
        model.eval()
        with torch.no_grad():
            outputs[name] = sum(map(list, model(inputs, mode='tensor')), [])
    for found, wanted in zip(outputs['pwlu'], outputs['relu6']):
        assert torch.equal(found, wanted)
    # Another activation is another network.
    assert outputs['relu6'][0].std() > 0


# --- The study ---


def draw_nuclei(root, number=10, size=64):
    """Bright discs on dark ground, and their maps."""
    random = np.random.default_rng(0)
    for part in ('images', 'instances'):
        (root / part).mkdir(parents=True)
    for index in range(number):
        image = random.integers(0, 60, (size, size, 3)).astype(np.uint8)
        instances = np.zeros((size, size), np.uint16)
        for nucleus in range(1, 4):
            x, y = random.integers(10, size - 10, 2).tolist()
            for target, colour in ((image, (200, 180, 220)), (instances,
                                                              nucleus)):
                cv2.circle(target, (x, y), 7, colour, -1)
        cv2.imwrite(str(root / f'images/{index:03}.png'), image)
        cv2.imwrite(str(root / f'instances/{index:03}.png'), instances)


@pytest.fixture(scope='module')
def study():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / 'tools/analysis'))
        import study_real
        yield study_real


@pytest.fixture(scope='module')
def nuclei(tmp_path_factory):
    folder = tmp_path_factory.mktemp('data')
    draw_nuclei(folder / 'nuclei')
    return folder


@pytest.fixture
def call(study, monkeypatch, capsys, tmp_path):

    def run(*arguments):
        monkeypatch.setattr(sys, 'argv', [
            'study_real.py', '--work-dir',
            str(tmp_path / 'work'), '--out',
            str(tmp_path / 'out'), '--threads', '1', *(str(word)
                                                       for word in arguments)
        ])
        study.main()
        return capsys.readouterr().out

    return run


def without_seconds(path):
    runs = json.loads(path.read_text())['runs']
    for run in runs.values():
        assert run.pop('seconds') > 0
    return runs


@pytest.mark.full
def test_study_stops_and_goes_on(study, call, nuclei, tmp_path):
    """After every epoch, to the same numbers to the last bit."""
    command = ('--data', nuclei, '--studies', 'pspnet_r18', '--variants',
               'PWLU, realigned', '--seeds', 1, '--epochs', 2)
    printed = call(*command)
    assert '\n2 of 2 runs are there. ' in printed
    assert '\n### PSPNet on nuclei, from scratch\n\n| activation |' in printed
    results = tmp_path / 'work/results.json'
    whole = without_seconds(results)
    run = whole['pspnet_r18 / PWLU, realigned / 0']
    assert list(run['curve']) == ['0', '1', '2'] and len(run['iou']) > 500
    # In Phase I, which is the first epoch, it is the network of ReLU.
    relu = whole['pspnet_r18 / ReLU / 0']['curve']
    assert [run['curve'][epoch]
            for epoch in '01'] == [relu[epoch] for epoch in '01']
    assert run['metrics']['mIoU'] == run['curve']['2']['mIoU'] > 0
    assert (tmp_path / 'out/real_curves.png').is_file()
    weights = tmp_path / 'work/checkpoints'
    names = ['pspnet_r18_pwlu_realigned_0.pth', 'pspnet_r18_relu_0.pth']
    assert sorted(path.name for path in weights.iterdir()) == names
    first = torch.load(weights / names[0], weights_only=True)['state_dict']
    assert not list((tmp_path / 'work/runs').iterdir())
    table = call(*command, '--report').partition('\n### ')[2]
    assert printed.rstrip().endswith(table.rstrip())

    results.unlink()
    stops = 0
    while 'stopped after --minutes' in call(*command, '--minutes', 1e-9):
        stops += 1
        assert stops < 9
    # Two epochs of two runs.
    assert stops == 3
    assert without_seconds(results) == whole
    again = torch.load(weights / names[0], weights_only=True)['state_dict']
    assert all(torch.equal(again[key], first[key]) for key in first)

    with pytest.raises(SystemExit, match='holds runs of another setting'):
        call(*command, '--epochs', 4)
    content = json.loads(results.read_text())
    content['runs']['pspnet_r18 / ReLU / 0']['config'] = 'another'
    results.write_text(json.dumps(content))
    with pytest.raises(SystemExit) as left:
        call(*command)
    assert ('holds the run pspnet_r18 / ReLU / 0 of another config than '
            in str(left.value))


def results_of(study, seeds):
    """Made-up runs of one study: ReLU 1 2 3, PWLU one better, less, more."""

    def run(value, iou):
        return dict(
            metrics={
                'coco/bbox_mAP': value / 100,
                'coco/bbox_mAP_50': value / 50
            },
            curve={'0': {
                'coco/bbox_mAP': 0.
            }},
            iou=iou,
            seconds=value)

    runs = {}
    for seed in range(seeds):
        for variant, gain, iou in (('ReLU', 0, []), ('PWLU, fix-init 3', 5,
                                                     [.25, .75]),
                                   ('PWLU, realigned', -5 - .1 * seed, [1.])):
            cell = study.Cell('retinanet_r18', variant, seed)
            runs[str(cell)] = run(10 + seed + gain, iou)
    return dict(runs=runs, machine={})


@pytest.fixture
def options(study, monkeypatch):
    monkeypatch.setattr(
        sys, 'argv',
        ['study_real.py', '--report', '--studies', 'retinanet_r18'])
    return study.parse_args()


def test_table_by_hand(study, options):
    report = study.report(results_of(study, 3), options)
    assert report.startswith('9 of 12 runs are there.\n')
    rows = [
        line.strip('| ').split(' | ') for line in report.splitlines()
        if line.startswith('| ')
    ][2:]
    assert rows == [
        [
            'ReLU', '3', '11.00 ± 1.00', '22.00 ± 2.00', '-', '-', '-', '0.00',
            '11.00'
        ],
        [
            'PWLU, fix-init 3', '3', '16.00 ± 1.00', '32.00 ± 2.00',
            '+5.00 ± 0.00', 'better', '0.500 ± 0.000', '0.00', '16.00'
        ],
        [
            'PWLU, realigned', '3', '5.90 ± 0.90', '11.80 ± 1.80',
            '-5.10 ± 0.06', 'worse', '1.000 ± 0.000', '0.00', '5.90'
        ],
    ]
    # One seed has no spread, and nothing is decided.
    report = study.report(results_of(study, 1), options)
    assert '| ReLU | 1 | 10.00 | 20.00 | - | - | - |' in report
    assert '| PWLU, fix-init 3 | 1 | 15.00 | 30.00 | - | - | 0.500 |' in report
    report = study.report(dict(runs={}, machine={}), options)
    assert report.endswith('### RetinaNet on nuclei, from scratch\n\nNot run.')


@pytest.mark.parametrize('arguments, message', (
    ((), 'expected --data FOLDER with bccd and nuclei, or --report.'),
    (('--data', 'data'), 'retinanet_lite0 starts from the weights that '
     'tools/model_converters/efficientnet_lite2mm.py writes; expected '
     '--weights FILE, got None. Other networks need none: --studies '
     'retinanet_r18'),
    (('--report', '--variants', 'Mish'), "got ['Mish']."),
    (('--report', '--epochs', '1'), "one of them for PWLU's Phase I, got 1."),
))
def test_errors_of_the_options(study, monkeypatch, capsys, arguments, message):
    monkeypatch.setattr(sys, 'argv', ['study_real.py', *arguments])
    with pytest.raises(SystemExit):
        study.parse_args()
    assert message in ' '.join(capsys.readouterr().err.split())


def test_every_cell_has_a_config_and_a_file(study, monkeypatch):
    monkeypatch.setattr(sys, 'argv', ['study_real.py', '--report'])
    cells = study.all_cells(study.parse_args())
    assert len(cells) == 3 * (5 + 4 + 4) + 5 * 5
    assert len({cell.slug for cell in cells}) == len(cells)
    digests = {
        study.digest(cell.config(None))
        for cell in cells if cell.seed == 0
    }
    assert len(digests) == 18
    used = {v.config for s in study.STUDIES.values()
            for v in s.variants.values()}  # yapf: disable
    assert used == set(CONFIGS)
    bounds = [
        cell.config(None).model.backbone.swap.act_cfg.get('bound')
        for cell in cells if 'fix-init 10' in cell.variant
    ]
    assert set(bounds) == {10.}


def test_page_says_what_was_run(study):
    from comparison import student
    page = (ROOT / 'docs/real_images.md').read_text()
    assert ('**Not run yet.**' in page) == ('| activation |' not in page)
    assert (f'({student(3)} standard errors with 3 seeds, {student(5)} with 5)'
            in ' '.join(page.split()))


# --- The tutorial ---


def draw_cells(root):
    """A Pascal VOC folder of three images, all in every split."""
    random = np.random.default_rng(0)
    for part in ('Annotations', 'JPEGImages', 'ImageSets/Main'):
        (root / part).mkdir(parents=True)
    names = [f'cell_{number}' for number in range(3)]
    for name in names:
        image = random.integers(150, 255, (240, 320, 3)).astype(np.uint8)
        objects = ''
        for kind, radius in (('RBC', 40), ('WBC', 50), ('Platelets', 20)):
            x, y = random.integers(60, 180, 2).tolist()
            cv2.circle(image, (x, y), radius, (60, 60, 160), -1)
            box = dict(
                xmin=x - radius,
                ymin=y - radius,
                xmax=x + radius,
                ymax=y + radius)
            sides = ''.join(f'<{k}>{v}</{k}>' for k, v in box.items())
            objects += (f'<object><name>{kind}</name><bndbox>{sides}</bndbox>'
                        '</object>')
        cv2.imwrite(str(root / f'JPEGImages/{name}.jpg'), image)
        (root / f'Annotations/{name}.xml'
         ).write_text(f'<annotation>{objects}</annotation>')
    for split in ('train', 'val', 'test'):
        (root / f'ImageSets/Main/{split}.txt').write_text('\n'.join(names))


def test_classes_are_numbered_as_the_config_names_them(tmp_path, study):
    """MMDetection numbers classes as the file does, whatever the config."""
    draw_cells(tmp_path / 'data/bccd')
    study.convert_data(
        argparse.Namespace(
            data=tmp_path / 'data',
            work_dir=tmp_path,
            studies=['retinanet_lite0']))
    written = json.loads((tmp_path / 'data/bccd/coco/val.json').read_text())
    names = [category['name'] for category in written['categories']]
    cfg = Config.fromfile(ROOT / 'configs/real_images/retinanet_lite0_pwlu.py')
    assert names == list(cfg.metainfo.classes)


def tutorial():
    """The words of its commands."""
    return [
        shlex.split(line) for block in read_blocks(ROOT / 'docs/tutorial.md')
        if block.language == 'bash' for line in block.text.splitlines()
    ]


@EXPORTS
@pytest.mark.full
def test_tutorial(tmp_path, monkeypatch, capsys):
    """All of its commands, one after the other, in two epochs."""
    monkeypatch.chdir(tmp_path)
    draw_cells(tmp_path / 'data/bccd')
    source = EfficientNetLite().state_dict()
    source.update({
        'fc.weight': torch.zeros(1000, 1280),
        'fc.bias': torch.zeros(1000)
    })
    torch.save(source, tmp_path / 'data/efficientnet-lite0.pth')
    short = [
        'train_cfg.max_epochs=2', 'train_dataloader.batch_size=2',
        'model.test_cfg.score_thr=0.', 'model.test_cfg.max_per_img=5'
    ]
    commands = tutorial()
    assert len(commands) == 10
    for _, tool, *words in commands:
        words = [word.replace('epoch_6', 'epoch_2') for word in words]
        if words[0].startswith('configs'):
            words[0] = str(ROOT / words[0])
            words += ['--cfg-options', *short]
        with monkeypatch.context() as patch:
            patch.setattr(sys, 'argv', [tool, *words])
            patch.syspath_prepend(str(ROOT / Path(tool).parent))
            try:
                runpy.run_path(str(ROOT / tool), run_name='__main__')
            except SystemExit as left:
                assert not left.code, f'{tool} {words}: {left.code}'
        printed = capsys.readouterr().out
        if tool.endswith('test.py'):
            metrics = json.loads(printed.splitlines()[-1])
            assert 0 <= metrics['coco/bbox_mAP'] <= 1
    for name in ('detections', 'activations', 'alignment'):
        picture = tmp_path / f'work_dirs/{name}.png'
        assert picture.read_bytes().startswith(b'\x89PNG')
    assert (tmp_path / 'work_dirs/detector.onnx').stat().st_size > 10**6


# --- Pictures and the quick start ---


@pytest.mark.parametrize('name', ('mask_rcnn_r18_relu', 'pspnet_r18_swish'))
def test_masks_and_classes_are_drawn(nuclei, name, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(ROOT / 'tools/dataset_converters'))
    import instance_maps
    root = tmp_path / 'data/nuclei'
    (tmp_path / 'data').symlink_to(nuclei)
    instance_maps.convert(root, root, 'nucleus', 5, 1)
    options = ['test_dataloader.batch_size=1']
    if name.startswith('mask'):
        options.append('model.test_cfg.rcnn.score_thr=0.')
    _, model = build(name)
    model.init_weights()
    torch.save(dict(state_dict=model.state_dict()), 'new.pth')
    monkeypatch.setattr(sys, 'argv', [
        'plot_detections.py',
        str(CONFIGS[name]), 'new.pth', '--out', 'out.png', '--score', '0',
        '--num-images', '2', '--cfg-options', *options
    ])
    monkeypatch.syspath_prepend(str(ROOT / 'tools/analysis'))
    runpy.run_path(
        str(ROOT / 'tools/analysis/plot_detections.py'), run_name='__main__')
    assert Path('out.png').read_bytes().startswith(b'\x89PNG')


def test_quickstart_wants_images_and_instances(tmp_path):
    done = subprocess.run(
        ['bash', ROOT / 'tools/quickstart.sh', '--data', tmp_path],
        capture_output=True,
        text=True)
    assert done.returncode == 2 and not done.stdout
    assert done.stderr == ('quickstart: expected --data FOLDER with images '
                           f"and instances, got '{tmp_path}'\n")


def test_real_nuclei_are_read_by_mmseg(tmp_path, monkeypatch):
    """Real files through the config's own data set."""
    monkeypatch.syspath_prepend(str(ROOT / 'tools/dataset_converters'))
    import instance_maps
    from mmengine.registry import DATASETS
    source, root = real_data('nuclei'), tmp_path / 'in'
    for path in source.glob('*/00?.png'):
        (root / path.parent.name).mkdir(parents=True, exist_ok=True)
        (root / path.parent.name / path.name).symlink_to(path)
    instance_maps.convert(root, tmp_path, 'nucleus', 5, 1)
    cfg = Config.fromfile(CONFIGS['pspnet_r18_relu'])
    init_default_scope('mmseg')
    config = copy.deepcopy(cfg.train_dataloader.dataset)
    config.data_root = str(tmp_path)
    dataset = DATASETS.build(config)
    assert len(dataset) == 8
    labels = dataset[0]['data_samples'].gt_sem_seg.data
    assert labels.shape == (1, 256, 256)
    assert labels.unique().tolist() == [0, 1, 2]
