"""The command line tools, as a user calls them."""
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mm_acon.ops.extension import DEVICES
from tests.helpers.counting import PARAMETERS
from tests.helpers.scripts import run_script
from tools.analysis.tables import table

ROOT = Path(__file__).parents[1]
RESNET_18 = 'mmpretrain::resnet/resnet18_8xb32_in1k.py'
FASTER_RCNN = 'mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py'
RETINANET = str(ROOT / 'configs' / 'retinanet_r50_metaacon.py')
# One epoch of two iterations, and an evaluation of four images.
SHORT = [
    'train_cfg.max_epochs=1', 'train_dataloader.dataset.indices=4',
    'train_dataloader.batch_size=2', 'val_dataloader.dataset.indices=4',
    'test_dataloader.dataset.indices=4'
]


def call(folder, *arguments, **environment):
    return subprocess.run([str(argument) for argument in arguments],
                          cwd=folder,
                          capture_output=True,
                          text=True,
                          env=dict(
                              os.environ, OMP_NUM_THREADS='1', **environment))


def tool(folder, name, *arguments):
    return run_script(ROOT / 'tools' / name, *arguments, cwd=folder)


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    """RetinaNet with meta-ACON, two iterations."""
    folder = tmp_path_factory.mktemp('trained')
    done = tool(folder, 'train.py', RETINANET, '--demo', '--cfg-options',
                *SHORT)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


def checkpoint_of(folder, name='retinanet_r50_metaacon-demo'):
    """The latest one."""
    work_dir = folder / 'work_dirs' / name
    return Path((work_dir / 'last_checkpoint').read_text())


def test_train_writes_a_checkpoint(trained):
    assert checkpoint_of(trained).is_file()


@pytest.mark.parametrize('checkpoint', ('trained', 'none'))
def test_test_prints_metrics_last(trained, checkpoint):
    if checkpoint == 'trained':
        checkpoint = checkpoint_of(trained)
    done = tool(trained, 'test.py', RETINANET, checkpoint, '--demo',
                '--cfg-options', *SHORT[3:])
    assert done.returncode == 0, done.stderr[-3000:]
    metrics = json.loads(done.stdout.splitlines()[-1])
    # Two iterations may leave a detector that detects nothing at all.
    if metrics or checkpoint == 'none':
        assert 0 <= metrics['coco/bbox_mAP_50'] <= 1


def test_resume_goes_on(trained):
    done = tool(trained, 'train.py', RETINANET, '--demo', '--resume',
                '--cfg-options', 'train_cfg.max_epochs=2', *SHORT[1:])
    assert done.returncode == 0, done.stderr[-3000:]
    log = done.stdout + done.stderr
    assert 'resumed epoch: 1, iter: 2' in log
    assert 'come from the checkpoint' in log
    assert 'Epoch(train) [2]' in log and 'Epoch(train) [1]' not in log


@pytest.mark.parametrize('plot', ('detections', 'activations'))
def test_plots(trained, plot):
    out = trained / 'pictures' / f'{plot}.png'
    done = tool(trained, f'analysis/plot_{plot}.py', RETINANET,
                checkpoint_of(trained), '--demo', '--out', out)
    assert done.returncode == 0, done.stderr[-3000:]
    assert out.read_bytes().startswith(b'\x89PNG')


def test_table():
    rows = [('a|b', 1, '-'), ('c', 2.5, '3')]
    assert table(('case', 'x', 'note'), rows, text=(0, 2)) == '''\
| case | x | note |
| --- | ---: | --- |
| a\\|b | 1 | - |
| c | 2.5 | 3 |'''


TINY = ('--rounds', '1', '--warmup', '0', '--threads', '1', '--json',
        'figures.json')


# Parameters: 21 for each of PWLU's 3,904 channels; meta-ACON as the paper
# counts it, for both convolutions of basic blocks and the 3x3 of bottlenecks.
@pytest.mark.parametrize('arguments, added', (
    ((RESNET_18, '--activations', 'PWLU', 'MetaACON', '--layout',
      'channels_last', '--dtype', 'bfloat16'), {
          'ReLU': (0, 0),
          'PWLU': (17, 81_984),
          'MetaACON': (16, 200_256)
      }),
    ((RETINANET, ), {
        'ReLU': (0, 0),
        'MetaACON':
        (16, PARAMETERS['resnet50_metaacon'] - PARAMETERS['resnet50_relu'])
    }),
))
def test_benchmark_of_models(tmp_path, arguments, added):
    done = tool(tmp_path, 'analysis/benchmark_model.py', *arguments, *TINY,
                '--batch', 2, '--size', 64)
    assert done.returncode == 0, done.stderr[-3000:]
    assert 'activation sites replaced' not in done.stdout + done.stderr
    figures = json.loads((tmp_path / 'figures.json').read_text())
    assert figures['versions'].keys() >= {'torch', 'mm_acon', 'mmcv'}
    rows = {row.pop('case'): row for row in figures['rows']}
    assert {
        name: (row['sites'], row['parameters_added'])
        for name, row in rows.items()
    } == added
    for name, row in rows.items():
        assert f'| {name} | {row["sites"]} |' in done.stdout
        for phase in ('forward', 'backward', 'optimizer', 'inference'):
            assert row[f'{phase}_ms'] > 0
        assert row['train_ms'] == pytest.approx(row['forward_ms'] +
                                                row['backward_ms'] +
                                                row['optimizer_ms'])
        for phase in ('train', 'inference'):
            assert row[f'{phase}_ratio'] == pytest.approx(
                row[f'{phase}_ms'] / rows['ReLU'][f'{phase}_ms'])
            assert row[f'{phase}_peak_mib'] is None


def test_benchmark_of_whole_models(tmp_path):
    done = tool(tmp_path, 'analysis/benchmark_model.py', RESNET_18, '--whole',
                '--activations', 'ACONC', *TINY, '--size', 64)
    assert done.returncode == 0, done.stderr[-3000:]
    assert f'{RESNET_18}, whole model, batch 4, 64 pixels' in done.stdout
    row = json.loads((tmp_path / 'figures.json').read_text())['rows'][1]
    # Three numbers for each of its 3,904 channels.
    assert (row['case'], row['sites'], row['parameters_added']) == ('ACONC',
                                                                    17, 11_712)
    assert min(row['train_ms'], row['inference_ms']) > 0


@pytest.mark.parametrize('arguments, message', (
    ((RESNET_18, ), 'it is ResNet in mmpretrain::resnet/resnet18_8xb32_in1k'
     '.py; write --activations TYPE [TYPE ...] or --act TYPE.'),
    ((RESNET_18, '--act', 'PLU'), "'PLU' is not a registered activation"),
))
def test_errors_of_the_benchmark_of_models(tmp_path, arguments, message):
    done = tool(tmp_path, 'analysis/benchmark_model.py', *arguments)
    assert done.returncode != 0
    assert message in done.stderr
    assert 'Traceback' not in done.stderr


def test_benchmark_of_operators(tmp_path):
    done = tool(tmp_path, 'analysis/benchmark_ops.py', *TINY, '--shapes',
                '2x16x8x8', '--activations', 'PWLU', '--forms', 'reference')
    assert done.returncode == 0, done.stderr[-3000:]
    figures = json.loads((tmp_path / 'figures.json').read_text())
    assert [row['case'] for row in figures['rows']
            ] == ['copy', 'ReLU', 'ReLU inplace', 'SiLU', 'PWLU reference']
    assert all(row['both_ms'] > 0 for row in figures['rows'])


@pytest.mark.skipif('cpu' not in DEVICES, reason='not built')
def test_benchmark_of_tokens(tmp_path):
    """Beside the map of the same bytes."""
    done = tool(tmp_path, 'analysis/benchmark_ops.py', *TINY, '--shapes',
                '2x16x8x8', '--activations', 'PWLU', 'FReLU', '--forms',
                'compiled', '--layouts', 'channels_last')
    assert done.returncode == 0, done.stderr[-3000:]
    rows = json.loads((tmp_path / 'figures.json').read_text())['rows']
    assert [row['case'] for row in rows[4:]
            ] == ['PWLU compiled', 'PWLU compiled, tokens', 'FReLU compiled']
    assert [row['kept'] for row in rows[4:6]] == [1, 1]
    assert rows[5]['both_over_map'] > 0
    assert '| both / map |' in done.stdout


def test_page_of_the_cpu_benchmarks(tmp_path):
    """What is measured is not run again; one run over its bar is a miss."""

    def rows(ratio):
        operators = [
            dict(
                shape='8x256x56x56',
                dtype=dtype,
                layout=layout,
                case=f'{name} compiled',
                forward_over_SiLU=ratio,
                both_over_SiLU=ratio,
                forward_over_ReLU=ratio) for dtype in ('float32', 'bfloat16')
            for layout in ('contiguous', 'channels_last')
            for name in ('ACONC', 'MetaACON', 'PWLU')
        ]
        alone = operators[:3]
        model = [
            dict(case=name, train_ratio=ratio, inference_ratio=ratio)
            for name in ('PWLU', 'ACONC', 'MetaACON')
        ]
        return dict(
            ops=alone, kinds=operators, avx2=alone, host=alone, model=model)

    for number, ratio in enumerate((0.5, 1.2, 0.7), 1):
        for name, found in rows(ratio).items():
            content = dict(
                device='a processor',
                date='today',
                versions=dict(torch='2'),
                rows=found,
                printed=f'figures {name} {number}\n')
            (tmp_path / f'{name}_{number}.json').write_text(
                json.dumps(content))
    done = tool(tmp_path, 'analysis/benchmark_cpu.py', tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    figures = '0.500, 1.200, 0.700'
    head = 'Operators: PWLU compiled | both / SiLU | 1.15'
    for line in (
            'a processor; torch 2, today. 7 of 29 bars are kept in every run.',
            f'| {head} | **{figures}** |',
            f'MetaACON compiled | forward / SiLU | 1.40 | {figures} |',
            f'| A backbone: PWLU | train / ReLU | 1.05 | **{figures}** |',
            'figures ops 1\n\nfigures ops 2\n\nfigures ops 3\n\n## bfloat16',
            'ATEN_CPU_CAPABILITY=avx2 python tools/analysis/benchmark_ops.py '
            '--shapes'):
        assert line in done.stdout


def test_act_on_an_installed_config(tmp_path):
    """The activation of a config that nobody edited; PWLU realigns."""
    done = tool(tmp_path, 'train.py', FASTER_RCNN, '--act', 'PWLU',
                '--act-include', r'layer[34].*\.conv2$', '--demo',
                '--cfg-options', 'train_cfg.max_epochs=2', *SHORT[1:])
    assert done.returncode == 0, done.stderr[-3000:]
    log = done.stdout + done.stderr
    assert '9 of 49 activation sites replaced' in log
    assert 'PWLU: Phase II starts at iteration 2.' in log
    assert checkpoint_of(tmp_path,
                         'faster-rcnn_r50_fpn_1x_coco-PWLU-demo').is_file()


def test_two_ranks_without_gpu(tmp_path):
    """dist_train.sh over gloo; both ranks train one model."""
    done = call(
        tmp_path,
        'bash',
        ROOT / 'tools' / 'dist_train.sh',
        RESNET_18,
        2,
        '--act',
        'PWLU',
        '--act-include',
        r'layer4.*\.conv2$',
        '--demo',
        '--cfg-options',
        'train_cfg.max_epochs=2',
        'train_dataloader.dataset.indices=8',
        *SHORT[2:],
        PATH=f'{Path(sys.executable).parent}:{os.environ["PATH"]}',
        PORT='29517')
    assert done.returncode == 0, done.stderr[-3000:]
    assert 'Phase II starts at iteration 2.' in done.stdout + done.stderr


@pytest.mark.parametrize('arguments, message', (
    (('nothing.py', ), "There is no config 'nothing.py'"),
    ((RETINANET, ), "looks for its data in 'data/coco/', and there is no "
     'such folder'),
    ((FASTER_RCNN, '--act-include', 'x'), '--act-include goes with --act'),
    ((RETINANET, '--act', 'PWLU', '--demo'),
     'whose backbone is SwapActivations already'),
    (('mmdet::openimages/faster-rcnn_r50_fpn_32xb2-1x_openimages.py',
      '--demo'), 'Expected a config on data of type CocoDataset'),
))
def test_errors_of_train(tmp_path, arguments, message):
    done = tool(tmp_path, 'train.py', *arguments)
    assert done.returncode != 0
    assert message in done.stderr
    assert 'Traceback' not in done.stderr


def test_missing_checkpoint_of_test(tmp_path):
    done = tool(tmp_path, 'test.py', RETINANET, 'no.pth', '--demo')
    assert done.returncode != 0
    assert "There is no checkpoint 'no.pth'" in done.stderr
    assert 'Traceback' not in done.stderr


@pytest.mark.parametrize('script', ('dist_train.sh', 'dist_test.sh'))
def test_usage_of_scripts(tmp_path, script):
    done = call(tmp_path, 'bash', ROOT / 'tools' / script)
    assert done.returncode == 2
    assert 'usage: bash tools/' in done.stderr
