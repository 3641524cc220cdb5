"""swap_activations and SwapActivations: choices, errors, what is kept."""
import copy

import pytest
import torch
import torch.nn.functional as F
from mmdet.registry import MODELS as MMDET_MODELS
from mmengine.config import ConfigDict
from mmengine.registry import MODELS, DefaultScope
from torch import nn

from mm_acon import (ACONC, PWLU, LearnableActivation, MetaACON,
                     SwapActivations, SwapReport, swap_activations)
from mm_acon.swap.per_call import ActivationPerCall
from tests.helpers.backbones import SMALL, Block, build, images, small

ACON = dict(type='ACONC')


def replaced(report):
    return [row.site for row in report.replaced]


def reasons(report):
    return {row.site: row.reason for row in report.rows if not row.new}


class Toy(nn.Module):
    """A convolution, a Linear and what is given, in a forward."""

    def __init__(self, forward, **modules):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.fc = nn.Linear(4, 5)
        for name, module in modules.items():
            setattr(self, name, module)
        self.function = forward

    def forward(self, x):
        return self.function(self, x)


# Choosing.


@pytest.mark.parametrize('choice, sites', [
    (dict(), ['conv1', 'conv2']),
    (dict(include='conv2'), ['conv2']),
    (dict(include=['1$', '2$']), ['conv1', 'conv2']),
    (dict(exclude='conv2'), ['conv1']),
    (dict(include='conv', exclude=[r'\w1']), ['conv2']),
])
def test_include_and_exclude(choice, sites):
    model = Block()
    report = swap_activations(model, ACON, **choice)
    assert isinstance(report, SwapReport)
    assert replaced(report) == sites
    assert set(reasons(report).values()) <= {'not included'}
    kinds = [type(child) for child in model.relu]
    assert kinds == [
        ACONC if site in sites else nn.ReLU for site in ('conv1', 'conv2')
    ]
    assert [row.width for row in report.rows] == [4, 8]
    assert [row.parameters for row in report.rows
            ] == [12 * ('conv1' in sites), 24 * ('conv2' in sites)]


@pytest.mark.parametrize('replace, number', [
    ('ReLU6', 2),
    (['ReLU6'], 2),
    (['ReLU6', 'Tanh'], 3),
    ('SiLU', 1),
    ('Swish', 1),
    (['Swish', 'SiLU'], 2),
    ('HSwish', 1),
    ('Hardswish', 1),
])
def test_types_to_replace(replace, number):
    """Names of classes or of the registry: MMCV's HSwish is Hardswish."""
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU6(), nn.ReLU(), nn.ReLU6(), nn.Tanh(),
        nn.SiLU(), build(dict(type='Swish')), nn.Hardswish())
    report = swap_activations(model, ACON, replace=replace)
    assert len(report.replaced) == number
    assert sum(isinstance(m, ACONC) for m in model) == number
    left = set(reasons(report).values())
    assert all(reason.startswith('no ') for reason in left)


def test_types_that_only_the_user_knows():

    class Twice(nn.Module):

        def forward(self, x):
            return F.relu(2 * x)

    model = nn.Sequential(nn.Conv2d(3, 4, 3), Twice(), nn.ReLU())
    assert len(swap_activations(copy.deepcopy(model), ACON).rows) == 1
    report = swap_activations(model, ACON, replace='Twice')
    assert replaced(report) == ['0']
    assert not report.functional  # It is inside the module named.
    assert isinstance(model[1], ACONC)


def test_tiny_maps_are_left_alone_unless_wanted():
    """Those of squeeze-and-excitation, as in the PWLU paper."""
    config = dict(
        type='mmpretrain.SEResNet',
        depth=50,
        base_channels=16,
        stem_channels=16)
    report = swap_activations(build(config), ACON)
    assert len(report.replaced) == 49
    assert list(reasons(report).values()).count('1x1 map') == 16
    assert len(swap_activations(build(config), ACON,
                                tiny_maps=True).replaced) == 65


def test_channels_in_the_last_axis():
    model = Toy(
        lambda self, x: self.b(self.fc(self.a(self.conv(x)).flatten(2).mT)),
        a=nn.ReLU(),
        b=nn.ReLU())
    plain = copy.deepcopy(model)
    report = swap_activations(model, dict(type='PWLU'))
    assert replaced(report) == ['conv', 'fc']
    assert (model.a.channel_axis, model.b.channel_axis) == (1, -1)
    assert model.b.num_channels == 5
    x = images()
    assert torch.equal(model(x), plain(x))


def test_types_that_take_channels_in_axis_1_alone():
    """PReLU does; what has no channels at all goes everywhere."""
    model = Toy(
        lambda self, x: self.act(self.fc(self.conv(x).flatten(2).mT)),
        act=nn.ReLU())
    with pytest.raises(
            ValueError,
            match='(?s)channels in the last axis, PReLU takes them in axis 1'):
        swap_activations(model, dict(type='PReLU'))
    report = swap_activations(model, dict(type='SiLU'))
    assert replaced(report) == ['fc']


def test_layer_of_no_single_width():

    class Shared(nn.Module):

        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 1)
            self.block = nn.Sequential(nn.ReLU())

        def forward(self, x):
            return self.block(self.conv(x)).sum() + self.block(x).sum()

    with pytest.raises(ValueError, match='no single width'):
        swap_activations(Shared(), ACON)
    report = swap_activations(Shared(), dict(type='PWLU', granularity='layer'))
    assert len(report.replaced) == 1


def test_vectors_behind_a_linear_are_replaced_if_wanted():
    model = Toy(
        lambda self, x: self.act(self.fc(self.conv(x).mean((2, 3)))),
        act=nn.ReLU())
    report = swap_activations(model, ACON, tiny_maps=True)
    assert replaced(report) == ['fc']
    assert model.act.num_channels == 5


def test_report_lists_functions_and_modules_that_were_not_called():
    model = Toy(
        lambda self, x: F.relu(self.act(self.conv(x))),
        act=nn.ReLU(),
        aux=nn.ReLU(),
        gate=nn.Sigmoid())
    report = swap_activations(model, ACON)
    assert report.functional == ['relu in the forward']
    assert report.uncalled == ['aux']
    assert isinstance(model.aux, nn.ReLU)


def test_report_is_logged(log):
    report = swap_activations(Block(), ACON)
    assert f'Block: {report}' in log.of(20)


# Errors.


@pytest.mark.parametrize(
    'arguments, error, text',
    [
        (dict(act_cfg=dict(type='NoSuch')), KeyError,
         "'NoSuch' is not a registered activation; those that are known here: "
         '.*MetaACON.*PWLU.*go by themselves, for example type=torch.nn.Mish'),
        (dict(act_cfg=dict(type=3)), ValueError,
         'expects the type in act_cfg to be a name or a class, got 3'),
        (dict(act_cfg='PWLU'), ValueError,
         r"swap expects act_cfg=dict\(type='PWLU', ...\), got 'PWLU'"),
        (dict(act_cfg=dict(num_intervals=4)), ValueError,
         r"expects act_cfg=dict\(type='PWLU'.*got \{'num_intervals': 4\}"),
        (dict(include='nowhere'), ValueError,
         "include='nowhere' matches no activation site; the sites are: conv1, "
         'conv2'),
        (dict(exclude=['conv1', 'nowhere']), ValueError,
         "exclude='nowhere' matches no activation site"),
        (dict(include='*'), ValueError,
         r"expects include to be regular expressions, got '\*': nothing to"),
        (dict(exclude='('), ValueError,
         r"expects exclude to be regular expressions, got '\('"),
        (dict(include=3), ValueError,
         'expects include to be regular expressions, got 3: '),
        (dict(replace='GELU'), ValueError,
         r"expects replace to name activations of the module, got 'GELU'; "
         r"there are ReLU. Write replace=\['ReLU'\]"),
        *((dict(replace=replace), ValueError,
           'expects replace to be the name of a type, or several, such as '
           r"\['ReLU', 'SiLU'\], got ") for replace in (None, [], 3, nn.ReLU)),
        (dict(frozen='x'), ValueError,
         "swap expects frozen='keep' or 'swap', got 'x'"),
        (dict(include='conv1', exclude='conv1'), ValueError,
         '(?s)No activation of Block was chosen for replacement by ACONC; the '
         'sites are:.*conv1.*not included.*0 of 2 .*Change include, exclude'),
        (dict(act_cfg=dict(type='PWLU', num_intervals=3)), ValueError,
         'PWLU expects num_intervals to be an even number'),
        (dict(act_cfg=dict(type='ACONC', slope=1)), TypeError, 'slope'),
        # Would fit conv1's 4 channels, but not conv2's 8: neither is replaced.
        (dict(
            act_cfg=dict(type='FReLU', norm_cfg=dict(type='GN', num_groups=4)),
            include='conv1'), None, ''),
        (dict(
            act_cfg=dict(type='FReLU', norm_cfg=dict(
                type='GN', num_groups=3))), ValueError, 'divisible'),
        (dict(sample_input=(1, 9, 8, 8)), RuntimeError,
         r'Block could not be run .*\[\(1, 9, 8, 8\)\].*write sample_input='),
        *((dict(sample_input=sample), ValueError,
           r'sample_input expects the shape of an input, \(1, channels, '
           r'height, width\), or input tensors, a tuple or dict of arguments '
           r'.*, or a function that is given the module and calls it, got ')
          for sample in ('big', 7, (), (1, 3, -1, 8),
                         (1.5, 3, 8, 8), {}, dict(x=1))),
        (dict(sample_input=[torch.zeros(1, 3, 8, 8), 4]), RuntimeError,
         'Block could not be run .* takes 2 positional arguments but 3 were'),
    ])
def test_errors_leave_the_module_as_it_was(arguments, error, text):
    model = Block()
    arguments = dict(dict(act_cfg=ACON), **arguments)
    if error is None:
        swap_activations(model, **arguments)
        return
    with pytest.raises(error, match=text):
        swap_activations(model, **arguments)
    assert type(model.relu) is nn.ReLU
    assert model.training
    assert not model._forward_pre_hooks and not model._forward_hooks


def test_unknown_type_lists_what_there_is():
    """Every name that the message offers can be written."""
    with pytest.raises(KeyError) as error:
        swap_activations(Block(), dict(type='Mish'))
    names = str(error.value).partition('known here: ')[2].partition('.')[0]
    assert len(names.split(', ')) > 15
    for name in names.split(', '):
        assert MODELS.get(name) is not None, name
    swap_activations(Block(), dict(type=nn.Mish))


@pytest.mark.parametrize('module', [None, dict(type='ResNet'), nn.ReLU])
def test_what_is_no_module(module):
    with pytest.raises(
            TypeError, match='expects a torch.nn.Module that is built, got '):
        swap_activations(module, ACON)


def test_error_at_a_later_site_leaves_the_module_as_it_was():
    model = Block(channels=6)
    act_cfg = dict(
        type='FReLU', norm_cfg=dict(type='GN', num_groups=4))  # 6, 12
    model.other = nn.ReLU()
    with pytest.raises(ValueError, match='divisible'):
        swap_activations(model, act_cfg)
    assert type(model.relu) is nn.ReLU


def test_module_without_activations():
    with pytest.raises(ValueError, match='there are none'):
        swap_activations(nn.Sequential(nn.Conv2d(3, 3, 1)), ACON)


def test_transformer():
    model = build(dict(type='mmpretrain.ConvNeXt', arch='atto'))
    report = swap_activations(model, dict(type='PWLU'), replace='GELU')
    assert len(report.replaced) == len(report.rows) == 12
    assert {row.keeps
            for row in report.rows} == {'exact in Phase I, else 0.4% off'}
    model = build(dict(type='mmpretrain.ConvNeXt', arch='atto'))
    report = swap_activations(model, ACON, replace='GELU')
    assert {row.keeps for row in report.rows} == {'1.0% off'}


# Modules that are shared, or held elsewhere.


def test_second_swap_of_what_the_first_left():
    once, twice = small(), small()
    swap_activations(once, dict(type='PWLU'))
    first = swap_activations(twice, dict(type='PWLU'), include=r'\.conv2$')
    second = swap_activations(twice, dict(type='PWLU'))
    assert [row.site
            for row in second.rows] == [row.site for row in first.rows]
    assert len(first.replaced) + len(second.replaced) == len(first.rows) == 22
    assert list(twice.state_dict()) == list(once.state_dict())
    assert not any(isinstance(m, nn.ReLU) for m in twice.modules())
    assert all(not isinstance(child, ActivationPerCall)
               for m in twice.modules() if isinstance(m, ActivationPerCall)
               for child in m)
    for y, wanted in zip(twice(images()), small()(images())):
        assert torch.equal(y, wanted)


def test_our_own_activations_are_replaced_by_their_name():
    model = small(dict(type='PWLU'))
    report = swap_activations(model, ACON, replace='PWLU', include='conv2')
    assert len(report.replaced) == 7
    assert sum(isinstance(m, PWLU) for m in model.modules()) == 15


def test_shared_parameters_are_not_split():
    """One number of a PReLU serves both calls, with one key."""
    model = Block()
    model.relu = nn.PReLU(init=.1)
    keys = list(model.state_dict())
    model.act = nn.ReLU()
    forward = model.forward
    model.forward = lambda x: model.act(forward(x))
    report = swap_activations(
        model, ACON, replace=['PReLU', 'ReLU'], exclude='conv1')
    assert replaced(report) == ['conv2#2']
    assert reasons(report) == {
        'conv1': 'not included',
        'conv2': 'shares parameters with calls left'
    }
    assert [key for key in model.state_dict() if key in keys] == keys
    report = swap_activations(model, ACON, replace='PReLU')
    assert replaced(report) == ['conv1', 'conv2']
    assert 'relu.weight' not in model.state_dict()


def test_prelu_as_the_new_activation_gets_the_width():
    model = Block()
    swap_activations(model, dict(type='PReLU', init=.2))
    assert [act.num_parameters for act in model.relu] == [4, 8]


def test_slopes_of_a_prelu_that_is_split():
    """A checkpoint of the network that was there has them once."""

    def make(swap):
        model = Toy(
            lambda self, x: self.b(self.act(self.act(self.conv(x)))),
            act=nn.PReLU(),
            b=nn.Conv2d(4, 4, 1))
        if swap:
            swap_activations(model, dict(type='PWLU'), replace='PReLU')
        return model

    plain, model = make(False), make(True)
    nn.init.constant_(plain.act.weight, .125)
    model.load_state_dict(plain.state_dict())
    x = images()
    torch.testing.assert_close(model(x), plain(x))
    assert (model.act[0].left_slope == .125).all()


def test_one_module_of_several_callers():
    """Each caller gets its own; keys are the callers' names for it."""
    model = nn.Sequential(Block(), nn.Conv2d(8, 3, 1), Block())
    model[2].relu = model[0].relu
    report = swap_activations(model, ACON)
    assert len(report.replaced) == 4
    owned = [m for m in model.modules() if isinstance(m, ACONC)]
    assert len(owned) == 4
    assert model[0].relu is not model[2].relu
    assert [m.num_channels for m in owned] == [4, 8, 4, 8]


def test_module_that_only_its_caller_does_not_hold():
    """One caller: the replacement goes to the holder."""

    class Outer(nn.Module):

        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 1)
            self.box = nn.ModuleDict(dict(act=nn.ReLU()))

        def forward(self, x):
            return self.box['act'](self.conv(x))

    model = Outer()
    assert replaced(swap_activations(model, ACON)) == ['conv']
    assert isinstance(model.box['act'], ACONC)


@pytest.mark.parametrize('held', [False, True])
def test_module_of_several_callers_that_do_not_all_hold_it(held):
    """A replacement for one would be called by the other, unnoticed."""

    class Inner(nn.Module):

        def __init__(self, act):
            super().__init__()
            self.conv = nn.Conv2d(4, 4, 1)
            self.act = [act]  # Hidden from PyTorch.
            if held:
                self.held = act

        def forward(self, x):
            return self.act[0](self.conv(x))

    class Outer(nn.Module):

        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 1)
            self.own = nn.ReLU()
            self.act = nn.ReLU()
            self.a = Inner(self.act)
            self.b = Inner(self.act)
            del self.b._modules['held' if held else 'conv']
            self.b.conv = nn.Conv2d(4, 4, 1)

        def forward(self, x):
            return self.b(self.a(self.own(self.conv(x))))

    model = Outer()
    report = swap_activations(model, ACON)
    assert replaced(report) == ['conv']
    assert reasons(report) == {
        name: 'the module that calls it does not hold it'
        for name in ('a.conv', 'b.conv')
    }
    assert type(model.act) is nn.ReLU
    assert sum(isinstance(m, ACONC) for m in model.modules()) == 1


def test_forward_that_training_makes_longer():
    """TridentResNet: three branches in training, one in evaluation."""
    config = dict(
        type='mmdet.TridentResNet',
        depth=50,
        base_channels=8,
        num_stages=3,
        strides=(1, 2, 2),
        dilations=(1, 1, 1),
        trident_dilations=(1, 2, 3),
        out_indices=(2, ),
        num_branch=3,
        test_branch_idx=1)
    plain = build(config)
    for parameter in plain.parameters():
        if parameter.dim() > 1:  # Those of TridentConv are not initialised.
            nn.init.normal_(parameter, std=.1)
    model = copy.deepcopy(plain)
    report = swap_activations(model, dict(type='PWLU'))
    assert len(report.replaced) == len(report.rows) == 40
    assert len(model.layer3[0].relu) == 3
    for training in (True, False):
        model.train(training)
        plain.train(training)
        for y, wanted in zip(model(images()), plain(images())):
            assert torch.equal(y, wanted)


# What is kept.


def test_training_flags():
    model = nn.Sequential(Block(), Block(), nn.ReLU())
    model[1].conv1 = nn.Conv2d(8, 4, 3)
    model[1].eval()
    swap_activations(model, dict(type='MetaACON'), include='conv')
    assert all(m.training for m in model[0].modules())
    assert not any(m.training for m in model[1].modules())
    assert model.training and model[2].training


@pytest.mark.parametrize('dtype', [torch.float64, torch.bfloat16])
def test_dtype(dtype):
    model = Block().to(dtype)
    swap_activations(model, dict(type='MetaACON'))
    assert {p.dtype for p in model.parameters()} == {dtype}
    assert model(images().to(dtype)).dtype == dtype


def test_device():
    model = Block().to('meta')
    swap_activations(model, dict(type='MetaACON', norm_cfg=dict(type='BN')))
    assert {p.device.type for p in model.state_dict().values()} == {'meta'}


def test_every_other_module_keeps_its_name_and_type():
    model, plain = small(ACON), small()
    kept = [(name, type(m)) for name, m in model.named_modules()
            if '.relu.' not in name and not name.endswith('relu')]
    assert kept == [(name, type(m)) for name, m in plain.named_modules()
                    if not name.endswith('relu')]


# In configs.


@pytest.fixture
def mmdet_scope():
    scope = DefaultScope.get_current_instance()
    with DefaultScope.overwrite_default_scope('mmdet'):
        yield
    assert DefaultScope.get_current_instance() is scope


RULE = dict(act_cfg=dict(type='MetaACON'), include=r'\.conv2$')


class NeedsTwo(Block):

    def forward(self, x, metas):
        return super().forward(x)


@pytest.mark.parametrize(
    'make', [
        lambda: dict(
            SMALL, type='SwapActivations', backbone='ResNet', swap=RULE),
        lambda: dict(
            SMALL, type='SwapActivations', backbone='mmdet.ResNet', swap=RULE),
        lambda: dict(
            SMALL,
            type='SwapActivations',
            backbone=MODELS.get('mmdet.ResNet'),
            swap=RULE),
        lambda: dict(type='SwapActivations', backbone=dict(SMALL), swap=RULE),
        lambda: ConfigDict(type='SwapActivations', backbone=SMALL, swap=RULE),
        lambda: dict(type=SwapActivations, backbone=dict(SMALL), swap=RULE),
        lambda: dict(
            type='SwapActivations',
            backbone=dict(SMALL, depth=18),
            swap=RULE,
            depth=SMALL['depth']),
    ],
    ids=[
        'name', 'scoped name', 'class', 'dict', 'config', 'function',
        'key beside a dict'
    ])
def test_backbone_of_a_config(make, mmdet_scope):
    config = make()
    before = copy.deepcopy(config)
    model = MMDET_MODELS.build(config)
    assert config == before
    assert type(model).__name__ == 'ResNet'  # Itself, no wrapper.
    assert sum(isinstance(m, MetaACON) for m in model.modules()) == 7


@pytest.mark.parametrize(
    'arguments, error, text',
    [
        (dict(backbone=3), TypeError,
         'expects backbone to be a type name or a config, or model to be a '
         'type name, got 3 and None'),
        (dict(backbone=dict(SMALL),
              swap=dict(act_cfg='ReLU')), ValueError, 'expects act_cfg=dict'),
        (dict(backbone=dict(SMALL), swap='PWLU'), TypeError,
         r"SwapActivations expects swap=dict\(act_cfg=dict\(type='PWLU'\), "
         r"...\), got 'PWLU'"),
        (dict(SMALL, backbone='SwapActivations'), TypeError,
         r'SwapActivations expects swap=dict\(.*, got None'),
        # A second swap finds what the first one put there.
        (dict(
            backbone=dict(
                type='SwapActivations',
                backbone=dict(SMALL),
                swap=dict(act_cfg=dict(type='PWLU')))), ValueError,
         "got 'ReLU'; there are PWLU. PWLU came with an earlier swap, or with "
         r"an act_cfg: leave one of the two out, or write "
         r"replace=\['PWLU'\] in swap"),
        # A whole detector takes more than images.
        (dict(backbone=dict(type=NeedsTwo)), RuntimeError,
         r"NeedsTwo could not be run .* missing 1 required .* 'metas', and .*"
         r'write sample_input=\(1, channels, height, width\) in swap, with a '
         r'shape that it takes \(--cfg-options model.backbone.swap.'
         r'sample_input="\(1,3,64,64\)"\), or in Python pass the input '
         'tensors, a tuple or dict of arguments, or a function that is given '
         'the module and calls it. Of a detector that takes more than images '
         'swap the backbone alone'),
    ])
def test_errors_in_configs(arguments, error, text):
    config = dict(dict(type='SwapActivations', swap=RULE), **arguments)
    config['type'] = 'SwapActivations'
    with pytest.raises(error, match=text):
        MODELS.build(config)


@pytest.mark.parametrize('backbone', [
    dict(type='SwapActivations', backbone='mmpretrain.ResNet', depth=18,
         base_channels=8, stem_channels=8, out_indices=(1, 2, 3),
         swap=dict(act_cfg=dict(type='PWLU'))),
    dict(type='SwapActivations', backbone='mmpretrain.MobileNetV2',
         widen_factor=.25, out_indices=(2, 4, 7),
         swap=dict(act_cfg=dict(type='PWLU'), replace='ReLU6')),
], ids=['ResNet', 'MobileNetV2'])  # yapf: disable
def test_backbone_of_another_library_in_a_detector(backbone, mmdet_scope):
    widths = (16, 32,
              64) if backbone['backbone'].endswith('ResNet') else (8, 24, 1280)
    model = MMDET_MODELS.build(
        dict(
            type='RetinaNet',
            backbone=backbone,
            neck=dict(
                type='FPN', in_channels=list(widths), out_channels=8,
                num_outs=5, add_extra_convs='on_input'),
            bbox_head=dict(
                type='RetinaHead', num_classes=2, in_channels=8,
                feat_channels=8, stacked_convs=1)))  # yapf: disable
    model.init_weights()
    assert type(model.backbone).__module__.startswith('mmpretrain')
    classes, boxes = model(images(size=128))
    assert len(classes) == len(boxes) == 5
    sum(y.sum() for y in classes).backward()
    activations = [
        m for m in model.modules() if isinstance(m, LearnableActivation)
    ]
    assert len(activations) in (17, 35)
    # init_weights leaves them at their start, and all are trained.
    assert all(m.is_fresh() for m in activations)
    assert all(p.grad is not None for m in activations for p in m.parameters())


RETINANET = dict(
    backbone=dict(SMALL, type='ResNet'),
    neck=dict(type='FPN', in_channels=[32, 64], out_channels=8,
              num_outs=2),
    bbox_head=dict(
        type='RetinaHead', num_classes=2, in_channels=8,
        feat_channels=16, stacked_convs=1,
        anchor_generator=dict(
            type='AnchorGenerator', scales=[1], ratios=[1.],
            strides=[4, 8])))  # yapf: disable
HEAD = ['bbox_head.cls_convs.0.conv', 'bbox_head.reg_convs.0.conv']


def test_swap_of_a_whole_detector(mmdet_scope):
    """A head's site is one for all levels."""
    model = MMDET_MODELS.build(dict(RETINANET, type='RetinaNet'))
    report = swap_activations(model, ACON)
    assert replaced(report)[-2:] == HEAD
    assert len(report.replaced) == 24
    assert model.bbox_head.cls_convs[0].activate.num_channels == 16


def test_parts_of_a_model_in_a_config(mmdet_scope):
    model = MODELS.build(
        dict(
            RETINANET,
            type='SwapActivations',
            model='RetinaNet',
            swap=dict(act_cfg=dict(type='PWLU'), parts=['bbox_head'])))
    assert type(model).__name__ == 'RetinaNet'
    found = [n for n, m in model.named_modules() if isinstance(m, PWLU)]
    assert found == [
        f'bbox_head.{kind}_convs.0.activate' for kind in ('cls', 'reg')
    ]
    with pytest.raises(
            ValueError,
            match="parts to name parts of RetinaNet that have activations to "
            "replace, got 'neck'; there are backbone, bbox_head"):
        swap_activations(model, ACON, parts=['neck'])
