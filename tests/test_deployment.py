"""Folded activations, ONNX, torch.export, torch.compile, TorchScript."""
import copy
import pickle
import runpy
import sys
from functools import partial
from operator import getitem
from pathlib import Path
from types import SimpleNamespace

import onnx
import pytest
import torch
import torch._dynamo
import torch.nn.functional as F
import torchvision
from mmcv.cnn import build_conv_layer
from mmcv.cnn.utils import fuse_conv_bn
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.registry import MODELS, init_default_scope
from torch import nn

from mm_acon import ACONC, PWLU, LearnableActivation, swap_activations
from mm_acon.compat import strict_zip
from mm_acon.datasets import SHAPES
from mm_acon.deployment import (compare_onnx, count_operators, export_onnx,
                                fold_activations)
from mm_acon.deployment.export import _AdaptiveAvgPool
from tests.conftest import BUILT
from tests.utils import ACTIVATIONS, EXPORT, EXPORTS, FUNNELS, HALF_FUNCTIONS

ROOT = Path(__file__).parents[1]
CHANNELS = 6


def learnt(module, seed=0):
    """Parameters and statistics away from their start, in eval mode."""
    generator = torch.Generator().manual_seed(seed)
    module.train()
    for _ in range(2):
        module(
            torch.randn(2, 3, 32, 32, generator=generator
                        ) if isinstance(module, nn.Sequential) else torch.
            randn(2, CHANNELS, 8, 8, generator=generator))
    with torch.no_grad():
        for child in module.modules():
            if isinstance(child, LearnableActivation):
                for parameter in child.parameters():
                    parameter += .1 * torch.randn(
                        parameter.shape, generator=generator)
    return module.eval()


def activation(name):
    return learnt(MODELS.build(dict(ACTIVATIONS[name], num_channels=CHANNELS)))


def assert_near(result, expected, tolerance=1e-5):
    torch.testing.assert_close(
        result, expected, rtol=tolerance, atol=tolerance, equal_nan=True)


# Of these beta is a sigmoid in x's own dtype.
FOLDED = [
    pytest.param(
        name,
        marks=HALF_FUNCTIONS if name in ('MetaACON-layer',
                                         'MetaACON-pixel') else ())
    for name in ACTIVATIONS
]


@pytest.mark.parametrize('name', FOLDED)
def test_a_folded_activation_is_the_same_function(name):
    module = activation(name)
    folded = fold_activations(module)
    x = 3 * torch.randn(2, CHANNELS, 9, 7)
    assert_near(folded(x), module(x))
    if name not in FUNNELS:
        assert_near(folded(x.half()), module(x.half()), 5e-3)
        x[0, 0, 0, 0] = torch.nan
        assert_near(folded(x), module(x))
        assert_near(folded(x[..., 0, 1]), module(x[..., 0, 1]))


@EXPORT
@pytest.mark.parametrize('name', ACTIVATIONS)
def test_a_folded_activation_is_exported(name):
    x = torch.randn(2, CHANNELS, 9, 7)
    exported = torch.export.export(fold_activations(activation(name)), (x, ))
    assert namespaces(exported) == {'aten'}


def namespaces(exported):
    """Of operators; what takes a tuple apart is Python's."""
    return {
        str(node.target).partition('.')[0]
        for node in exported.graph.nodes
        if node.op == 'call_function' and node.target is not getitem
    }


@pytest.mark.parametrize('granularity', ('channel', 'layer'))
def test_every_piece_of_a_folded_pwlu(granularity):
    """Far outside, at the knots and in the middle of intervals."""
    module = PWLU(CHANNELS, granularity=granularity, num_intervals=4, bound=1.)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += .2 * torch.randn(parameter.shape)
    x = torch.cat([
        torch.tensor([-1e4, -torch.inf, 1e4, torch.inf, 0.]),
        torch.linspace(-3, 3, 601)
    ])
    x = x.expand(1, CHANNELS, -1)
    torch.testing.assert_close(
        fold_activations(module)(x), module(x), rtol=1e-5, atol=1e-5)


def test_pwlu_in_phase_1_is_folded_to_relu():
    module = PWLU(CHANNELS)
    module.start_phase1()
    assert type(fold_activations(module)) is nn.ReLU


def test_the_model_itself_stays_as_it_is():
    shared = ACONC(CHANNELS)
    model = nn.ModuleDict(
        dict(first=nn.Sequential(shared), second=nn.Sequential(shared)))
    folded = fold_activations(model)
    assert model['first'][0] is shared and model.training
    assert not isinstance(folded['first'][0], ACONC)
    assert folded['first'][0] is folded['second'][0]
    assert not folded['first'].training


def test_no_width_is_an_error():
    with pytest.raises(
            ValueError,
            match="activation '1', a PWLU, has no width yet. Load a "
            'checkpoint or run one forward pass before fold_activations, or '
            'write num_channels'):
        fold_activations(nn.Sequential(nn.Conv2d(3, 4, 1), PWLU()))


BATCHES = ((1, 3, 20, 16), (3, 3, 17, 29))


def all_activations():
    """A network with every activation, pools and a strided convolution."""
    torch.manual_seed(0)
    acts = [
        MODELS.build(dict(config, num_channels=CHANNELS))
        for config in ACTIVATIONS.values()
    ]
    model = nn.Sequential(
        nn.Conv2d(3, CHANNELS, 3, stride=2), nn.BatchNorm2d(CHANNELS), *acts,
        nn.AdaptiveAvgPool2d((3, 2)))
    return learnt(model)


@EXPORTS
def test_onnx_of_adaptive_padding(tmp_path):
    """Even sizes are padded behind alone, odd ones on both sides."""
    torch.manual_seed(0)
    layer = partial(
        build_conv_layer, dict(type='Conv2dAdaptivePadding'), stride=2)
    model = nn.Sequential(
        layer(3, 8, 3), layer(8, 8, 5, groups=8), layer(8, 4, 3))
    path = tmp_path / 'model.onnx'
    export_onnx(model, torch.randn(2, 3, 24, 28), path)
    for shape in ((1, 3, 20, 16), (3, 3, 17, 29), (1, 3, 22, 27)):
        difference, largest = compare_onnx(model, path, torch.randn(shape))
        assert difference < 1e-5 * max(1, largest) and largest > .1


@EXPORTS
def test_onnx_of_every_activation(tmp_path):
    model, path = all_activations(), tmp_path / 'model.onnx'
    export_onnx(model, torch.randn(2, 3, 24, 28), path)
    operators = count_operators(path)
    assert operators['Gather'] == 2 * 2  # a slope and an offset
    for shape in BATCHES:
        x = 4 * torch.randn(shape)
        difference, largest = compare_onnx(model, path, x)
        assert difference < 1e-5 * max(1, largest) and largest > .1
    x[0, 0, 4] = torch.nan
    assert compare_onnx(model, path, x)[0] == float('inf')
    with torch.no_grad():
        model[-2].norm.bias += 1
    assert compare_onnx(model, path, torch.randn(1, 3, 20, 20))[0] > 1e-3


def test_onnx_of_a_batch_of_one_is_an_error(tmp_path):
    with pytest.raises(
            ValueError, match=r'with N of at least 2, got \(1, 3, 8, 8\)'):
        export_onnx(nn.ReLU(), torch.ones(1, 3, 8, 8), tmp_path / 'a.onnx')


def test_onnx_on_an_old_torch(tmp_path, monkeypatch):
    monkeypatch.setattr(torch, 'export', SimpleNamespace(), raising=False)
    with pytest.raises(
            NotImplementedError,
            match='needs a newer torch than .* --stack openmmlab'):
        export_onnx(nn.ReLU(), torch.ones(2, 3, 8, 8), tmp_path / 'a.onnx')
    assert not (tmp_path / 'a.onnx').exists()


def write_onnx(path, domain, operator, version=20):
    tensor = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node(operator, ['x'], ['y'], domain=domain)], 'g',
        [tensor('x', 1, [1])], [tensor('y', 1, [1])])
    opsets = [onnx.helper.make_opsetid('', version)]
    if domain:
        opsets.append(onnx.helper.make_opsetid(domain, 1))
    onnx.save(onnx.helper.make_model(graph, opset_imports=opsets), path)


def test_other_operators_are_an_error(tmp_path):
    path = tmp_path / 'model.onnx'
    write_onnx(path, '', 'Relu')
    assert count_operators(path) == {'Relu': 1}
    write_onnx(path, 'mm_acon', 'pwlu')
    with pytest.raises(
            ValueError,
            match="ONNX's own operators only, it has also "
            'mm_acon::pwlu'):
        count_operators(path)
    write_onnx(path, '', 'NoSuchOperator')
    with pytest.raises(ValueError, match='is not valid ONNX: .*NoSuchOp'):
        count_operators(path)


@pytest.mark.parametrize('size', (1, 2, 7, 12, 31))
@pytest.mark.parametrize('output', ((1, 6), (6, 3), (8, 2)))
def test_adaptive_pool_as_matrix_products(output, size):
    x = torch.randn(2, 3, size, 13)
    assert_near(_AdaptiveAvgPool(output)(x), F.adaptive_avg_pool2d(x, output))


def swapped_resnet(library):
    """A ResNet with PWLU in its first stage, ACON-C and meta-ACON behind."""
    torch.manual_seed(0)
    backbone = MODELS.build(
        dict(
            type=f'{library}.ResNet',
            depth=18,
            base_channels=4,
            stem_channels=4,
            num_stages=3,
            strides=(1, 2, 2),
            dilations=(1, 1, 1),
            out_indices=(0, 1, 2)))
    for number, act in enumerate(('PWLU', 'ACONC', 'MetaACON'), 1):
        swap_activations(
            backbone, dict(type=act), include=rf'^layer{number}\.')
    for child in backbone.modules():
        if isinstance(child, LearnableActivation):
            learnt_parameters(child)
    backbone.eval()
    return backbone


def learnt_parameters(module):
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += .05 * torch.randn_like(parameter)


# Three copies of one network.
LIBRARIES = pytest.mark.parametrize(
    'library', ('mmdet', *(pytest.param(name, marks=pytest.mark.full)
                           for name in ('mmseg', 'mmpretrain'))))


@EXPORTS
@LIBRARIES
def test_torch_export_and_compile_of_backbones(library):
    backbone = swapped_resnet(library)
    x, other = torch.randn(2, 3, 32, 32), torch.randn(3, 3, 40, 52)
    dynamic = torch.export.Dim.DYNAMIC
    exported = torch.export.export(
        backbone, (x, ),
        dynamic_shapes=({
            0: dynamic,
            2: dynamic,
            3: dynamic
        }, ))
    if BUILT:
        assert namespaces(exported) == {'aten', 'mm_acon'}
    for y, wanted in strict_zip(exported.module()(other), backbone(other)):
        assert_near(y, wanted)

    torch._dynamo.reset()
    for model in (backbone, fold_activations(backbone)):
        compiled = torch.compile(model, fullgraph=True, backend='aot_eager')
        with torch.no_grad():
            for y, wanted in strict_zip(compiled(x), backbone(x)):
                assert_near(y, wanted)


def test_torchscript_traces_of_fused_and_folded_backbones(tmp_path):
    """The traced module takes other sizes and needs no operator of ours."""
    backbone, path = swapped_resnet('mmdet'), tmp_path / 'traced.pt'
    model = fold_activations(fuse_conv_bn(copy.deepcopy(backbone)))
    torch.jit.save(torch.jit.trace(model, torch.randn(2, 3, 32, 32)), path)
    loaded = torch.jit.load(path)
    assert 'mm_acon::' not in str(loaded.inlined_graph)
    other = torch.randn(3, 3, 40, 52)
    for y, wanted in strict_zip(loaded(other), backbone(other)):
        assert_near(y, wanted, 1e-4)


def traced(folded):
    """Every form that PyTorch makes of a folded model."""
    graph = torch.fx.symbolic_trace(folded)
    return dict(
        fx=graph,
        fx_copy=pickle.loads(pickle.dumps(graph)),
        script=torch.jit.script(folded),
        fx_then_script=torch.jit.script(graph))


@pytest.mark.filterwarnings('ignore:The TorchScript type system')
@pytest.mark.parametrize('channel_axis', [1, -1])
@pytest.mark.parametrize('name', FOLDED)
def test_fx_and_script_of_a_folded_activation(name, channel_axis):
    """Neither asks for a size, a dtype or an example of the input."""
    module = activation(name)
    module.channel_axis = channel_axis
    folded = fold_activations(module)
    inputs = [torch.randn(2, CHANNELS, 9, 7)]
    if name not in FUNNELS:
        inputs += [inputs[0][..., 0, 0], inputs[0].double(), inputs[0].half()]
    for form, made in traced(folded).items():
        for x in inputs:
            if channel_axis == -1:
                x = x.movedim(1, -1).contiguous()
            y = made(x)
            assert y.dtype == x.dtype, form
            torch.testing.assert_close(y, folded(x))


@pytest.mark.filterwarnings('ignore:The TorchScript type system')
def test_fx_and_script_of_folded_networks(unverified):
    """A ResNet calls its ReLUs twice: fx unrolls what each call goes to."""
    torch.manual_seed(0)
    mobile = torchvision.models.mobilenet_v2(width_mult=.25, num_classes=3)
    resnet = torchvision.models.resnet18(num_classes=3)
    x = torch.randn(2, 3, 64, 64)
    for model, replace, first, forms in ((mobile, 'ReLU6',
                                          r'features\.[1-9]\.',
                                          (torch.fx.symbolic_trace,
                                           torch.jit.script)),
                                         (resnet, 'ReLU', 'layer[12]',
                                          (torch.fx.symbolic_trace, ))):
        model.eval()
        swap_activations(
            model, dict(type='PWLU'), replace=replace, include=first)
        swap_activations(model, dict(type='MetaACON'), replace=replace)
        folded = fold_activations(model)
        for form in forms:
            assert_near(form(folded)(x), folded(x))


def test_what_does_not_work(tmp_path):
    """As docs/deployment.md says; it has to be changed if this fails."""
    meta = activation('MetaACON')
    x = torch.randn(2, CHANNELS, 8, 8)
    with pytest.raises(RuntimeError, match="function call '_SpatialMean'"):
        torch.jit.save(torch.jit.trace(meta, x), tmp_path / 'traced.pt')
    with pytest.raises((RuntimeError, torch.jit.frontend.FrontendError)):
        torch.jit.script(PWLU(CHANNELS))
    with pytest.raises(torch.fx.proxy.TraceError):
        torch.fx.symbolic_trace(PWLU(CHANNELS))


@EXPORTS
@pytest.mark.skipif(not BUILT, reason='_ext is not built')
def test_what_is_not_exported():
    """As docs/deployment.md says; it has to be changed if this fails."""
    x = torch.randn(2, CHANNELS, 8, 8)
    with pytest.raises(
            torch.onnx.errors.OnnxExporterError, match='mm_acon.pwlu'):
        torch.onnx.export(PWLU(CHANNELS).eval(), (x, ), dynamo=True)


@pytest.fixture
def export(monkeypatch, tmp_path, capsys):
    """Runs the tool here, where its imports are done; its exit and output."""
    path = ROOT / 'tools' / 'deployment' / 'export_onnx.py'
    monkeypatch.chdir(tmp_path)
    logger = MMLogger.get_current_instance()
    level = logger.level

    def call(*arguments):
        monkeypatch.setattr(sys, 'argv', [path.name, *map(str, arguments)])
        try:
            runpy.run_path(str(path), run_name='__main__')
        except SystemExit as error:
            return error.code, capsys.readouterr().out
        return 0, capsys.readouterr().out

    yield call
    logger.setLevel(level)


NARROW = {
    'model.backbone.depth': 18,
    'model.backbone.base_channels': 8,
    'model.backbone.stem_channels': 8,
}
DEMO = ('--demo', '--shape', 64, 64)


def as_options(changes):
    return [f'{key}={value}' for key, value in changes.items()]


SMALL = (*DEMO, '--cfg-options', *as_options(NARROW))
CONFIGS = ROOT / 'configs'
PSPNET = CONFIGS / 'pspnet_r50_metaacon.py'


@EXPORTS
@pytest.mark.full
def test_tool_on_a_segmentor(export, tmp_path):
    code, out = export(PSPNET, *SMALL, 'model.decode_head.in_channels=64')
    assert code == 0
    work_dir = tmp_path / 'work_dirs' / 'pspnet_r50_metaacon-demo'
    operators = count_operators(work_dir / 'model.onnx')
    assert f"{sum(operators.values())} nodes, all of ONNX's own" in out
    assert out.count('maximum difference') == 3
    assert 'batch of 3, 48x83' in out
    assert 'the weights are random' in out


@EXPORTS
@pytest.mark.full
def test_tool_on_a_detector_above_the_tolerance(export, tmp_path):
    """The whole of a one-stage detector."""
    code, out = export(CONFIGS / 'retinanet_r50_metaacon.py', '--tolerance',
                       -1, '--out', 'detector.onnx', *SMALL,
                       'model.neck.in_channels=[8,16,32,64]')
    assert code == 'export_onnx.py: the outputs differ by more than -1.'
    outputs = onnx.load(tmp_path / 'detector.onnx').graph.output
    assert [y.name for y in outputs] == [f'output{i}' for i in range(10)]


@EXPORTS
def test_tool_on_a_checkpoint(export, tmp_path):
    """Of a classifier: the file computes what its weights compute."""
    config = CONFIGS / 'resnet18_pwlu.py'
    # A few sites: every one of them takes its time to export.
    narrow = {
        **NARROW, 'model.head.in_channels': 64,
        'model.backbone.swap.include': 'layer4'
    }
    options = [*DEMO, '--cfg-options', *as_options(narrow)]
    torch.save(dict(state_dict={}), tmp_path / 'other.pth')
    code, _ = export(config, 'other.pth', *options)
    assert code.startswith('export_onnx.py: other.pth is no checkpoint of the '
                           f'model in {config}. ')
    assert 'missing keys' in code

    cfg = Config.fromfile(config)
    cfg.merge_from_dict(narrow)
    cfg.model.head.num_classes = len(SHAPES)
    cfg.model.head.topk = (1, )
    init_default_scope('mmpretrain')
    model = MODELS.build(cfg.model)
    for child in model.modules():
        if isinstance(child, LearnableActivation):
            learnt_parameters(child)
    model.eval()
    torch.save(dict(state_dict=model.state_dict()), tmp_path / 'model.pth')
    code, out = export(config, 'model.pth', '--out', 'model.onnx', *options)
    assert code == 0 and 'random' not in out
    x = torch.randn(2, 3, 50, 70)
    assert compare_onnx(model, tmp_path / 'model.onnx', x)[0] < 1e-5


def test_two_stage_detectors_are_an_error_of_the_tool(export):
    code, _ = export('mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py',
                     '--act', 'ACON', *DEMO)
    assert code.startswith('export_onnx.py: the model of ')
    assert 'does not run on a bare batch of shape (2, 3, 64, 64)' in code
    assert code.endswith('write --part features.')


@EXPORTS
@pytest.mark.full
@pytest.mark.parametrize(
    'arguments',
    ((PSPNET, '--demo'),
     (CONFIGS / 'retinanet_r50_pwlu.py', '--demo', '--part', 'backbone')))
def test_tool_on_the_papers_networks(export, arguments):
    code, out = export(*arguments)
    assert code == 0
    differences = [
        float(line.split('maximum difference ')[1].split(',')[0])
        for line in out.splitlines() if 'maximum difference' in line
    ]
    assert len(differences) == 3 and max(differences) < 1e-4


# Functions that were there, and channels in the last axis.


@pytest.mark.parametrize(
    'function',
    ['SiLU', 'GELU', dict(type='LeakyReLU', negative_slope=.2)])
def test_pwlu_in_phase_1_is_folded_to_its_function(function):
    module = PWLU(CHANNELS, function=function, channel_axis=-1)
    module.start_phase1()
    folded = fold_activations(module)
    assert type(folded) is type(module.function.module)
    assert folded is not module.function.module
    x = torch.randn(2, 9, CHANNELS)
    assert torch.equal(folded(x), module.eval()(x))


@pytest.mark.parametrize('channel_axis', [1, -1])
def test_prelu_in_phase_1(channel_axis):
    module = PWLU(
        CHANNELS, function=nn.PReLU(CHANNELS), channel_axis=channel_axis)
    with torch.no_grad():
        module.left_slope.copy_(torch.rand(CHANNELS))
    module.start_phase1()
    x = torch.randn(2, CHANNELS, 9, 7)
    x = x if channel_axis == 1 else x.permute(0, 2, 3, 1).contiguous()
    assert_near(fold_activations(module)(x), module.eval()(x))


def of_last_axis(name):
    module = activation(name)
    module.channel_axis = -1
    return module, fold_activations(module)


# An axis of places is what a funnel has none of.
LAST_AXIS = [(name, shape) for name in ACTIVATIONS
             for shape in ((2, 9, CHANNELS), (2, 9, 7, CHANNELS))
             if name not in FUNNELS or len(shape) == 4]


@pytest.mark.parametrize('name, shape', LAST_AXIS)
def test_fold_of_the_last_axis(name, shape):
    (module, folded), x = of_last_axis(name), torch.randn(shape)
    assert_near(folded(x), module(x))
    if name not in FUNNELS:
        assert_near(
            folded(x[:, 0, ..., :].flatten(0, -2)),
            module(x[:, 0, ..., :].flatten(0, -2)))


@EXPORT
@pytest.mark.parametrize('name, shape', LAST_AXIS)
def test_fold_of_the_last_axis_is_exported(name, shape):
    exported = torch.export.export(
        of_last_axis(name)[1], (torch.randn(shape), ))
    assert namespaces(exported) == {'aten'}
