"""Activations that learn their width from the first input."""
import copy
import gc
from datetime import timedelta
from io import BytesIO

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from mmcv.cnn import ConvModule
from mmengine.model import BaseModule, ExponentialMovingAverage
from mmengine.registry import MODELS
from mmengine.runner.checkpoint import load_state_dict, weights_to_cpu
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from mm_acon import ACONA, ACONC, PWLU, LearnableActivation, MetaACON
from mm_acon.activations import keep_start
from mm_acon.activations.base import InnerConv, apply_norm
from mm_acon.activations.empty import UnknownWidthError
from tests.utils import ACTIVATIONS, ASSIGN, assert_near, images, moved

EVERY = pytest.mark.parametrize('name', ACTIVATIONS)
WIDTH_MATTERS = [
    name for name in ACTIVATIONS
    if name not in ('ACONC-layer', 'PWLU-layer', 'APL-layer', 'PAU-layer')
]
LAZY = pytest.mark.parametrize('name', WIDTH_MATTERS)


def lazy(name):
    return MODELS.build(ACTIVATIONS[name])


def trained(name):
    """Width 4, with parameters unlike those at the start."""
    return moved(name).eval()


@LAZY
def test_first_input_tells_the_width(name):
    activation = lazy(name)
    assert activation.is_lazy
    assert all(p.numel() == 0 for p in activation.parameters())
    activation(images(2, 4, 5, 5))
    assert not activation.is_lazy
    assert activation.num_channels == 4
    like = MODELS.build(dict(ACTIVATIONS[name], num_channels=4))
    assert ({
        k: v.shape
        for k, v in activation.state_dict().items()
    } == {
        k: v.shape
        for k, v in like.state_dict().items()
    })
    with pytest.raises(ValueError, match='expects 4 channels'):
        activation(images(2, 3, 5, 5))


@pytest.mark.parametrize(
    'name', ['ACONC-layer', 'PWLU-layer', 'APL-layer', 'PAU-layer'])
def test_layer_wise_needs_no_width(name):
    """One function serves maps of any width, also after loading it."""
    activation = lazy(name)
    assert not activation.is_lazy
    activation.load_state_dict(trained(name).state_dict())
    for width in (1, 4, 7):
        x = images(2, width, 5, 5)
        assert_near(activation(x)[:, :1], activation(x[:, :1]))


@EVERY
def test_an_earlier_optimizer_trains_it(name):
    """The parameters are filled in place, and stay the same objects."""
    torch.manual_seed(0)
    module = ConvModule(3, 4, 3, act_cfg=ACTIVATIONS[name])
    held = list(module.activate.parameters())
    optimizer = torch.optim.SGD(module.parameters(), lr=.1, momentum=.9)
    before = None
    for _ in range(2):
        loss = module(images(4, 3, 7, 7)).square().sum()
        optimizer.zero_grad()
        loss.backward()
        if before is None:
            before = [p.detach().clone() for p in held]
            largest = [0.] * len(held)
        largest = [
            max(size, float(p.grad.abs().max()))
            for size, p in zip(largest, held)
        ]
        optimizer.step()
    now = list(module.activate.parameters())
    assert [id(p) for p in now] == [id(p) for p in held]
    for parameter, old, size in zip(now, before, largest):
        moved = not torch.equal(parameter, old)
        assert parameter.numel() > 0
        # A bias in front of a norm has no gradient, but rounding, which may
        # be too little to move it.
        assert moved or size < 1e-6
        assert size > 0 or not moved
    assert any(p.grad.any() for p in now)


@LAZY
def test_state_dict_tells_the_width(name):
    """And an optimizer made before still holds the parameters."""
    source, activation = trained(name), lazy(name).eval()
    held = [id(p) for p in activation.parameters()]
    activation.load_state_dict(source.state_dict())
    assert activation.num_channels == 4
    assert [id(p) for p in activation.parameters()] == held
    x = images(2, 4, 5, 5)
    assert torch.equal(activation(x), source(x))


@EVERY
def test_state_dict_inside_a_model(name):
    """The keys then have a prefix."""
    torch.manual_seed(0)
    source = nn.Sequential(ConvModule(3, 4, 3, act_cfg=ACTIVATIONS[name]))
    source.eval()
    y = source(images(2, 3, 7, 7))
    model = nn.Sequential(ConvModule(3, 4, 3, act_cfg=ACTIVATIONS[name]))
    model.load_state_dict(source.state_dict())
    assert torch.equal(model.eval()(images(2, 3, 7, 7)), y)


@ASSIGN
@EVERY
def test_assigned_state_dict(name):
    source, activation = trained(name), lazy(name).eval()
    activation.load_state_dict(source.state_dict(), assign=True)
    x = images(2, 4, 5, 5)
    assert torch.equal(activation(x), source(x))


@LAZY
def test_a_checkpoint_without_it_leaves_it_lazy(name):
    activation = lazy(name)
    missing, unexpected = activation.load_state_dict({}, strict=False)
    names = {name for name, _ in activation.named_parameters()}
    assert set(missing) >= names and not unexpected
    assert activation.is_lazy


REMEDY = (r'.*an activation has met no input.*mm_acon\.find_widths\(model, '
          r'batch\).*ActivationSetupHook.*tools/train\.py')


@pytest.mark.parametrize(
    'load', (nn.Module.load_state_dict, load_state_dict),
    ids=('torch', 'mmengine'))
@pytest.mark.parametrize('width', (None, 4))
@LAZY
def test_an_empty_state_dict_is_not_loaded(name, width, load):
    """It was taken before the first input, and has nothing to give."""
    source = nn.Sequential(lazy(name))
    held = source.state_dict()
    source(images(2, 4, 5, 5))
    target = nn.Sequential(
        MODELS.build(dict(ACTIVATIONS[name], num_channels=width)))
    with pytest.raises(
            UnknownWidthError,
            match=r'0\.\S+ is empty in what is loaded' + REMEDY):
        load(target, held, strict=False)


@LAZY
def test_an_empty_state_dict_is_not_saved(name):
    """Nor after mmengine moved it to the CPU; once filled it is."""
    model = nn.Sequential(lazy(name))
    with pytest.raises(UnknownWidthError, match='cannot be saved' + REMEDY):
        torch.save(weights_to_cpu(model.state_dict()), BytesIO())
    model(images(2, 4, 5, 5))
    torch.save(weights_to_cpu(model.state_dict()), BytesIO())


@pytest.mark.parametrize('buffers', (False, True))
@LAZY
def test_an_average_of_what_has_no_width_is_refused(name, buffers):
    model = nn.Sequential(lazy(name))
    average = ExponentialMovingAverage(model, update_buffers=buffers)
    model(images(2, 4, 5, 5))
    with pytest.raises(
            UnknownWidthError,
            match=r'copy_\(\) of a tensor and of a parameter without a size' +
            REMEDY):
        average.update_parameters(model)
    # Made afterwards it follows.
    average = ExponentialMovingAverage(model, update_buffers=buffers)
    average.update_parameters(model)
    assert torch.equal(average(images(2, 4, 5, 5)), model(images(2, 4, 5, 5)))


@LAZY
def test_deepcopies_are_apart(name):
    first = lazy(name)
    second = copy.deepcopy(first)
    first(images(2, 4, 5, 5))
    second(images(2, 6, 5, 5))
    assert (first.num_channels, second.num_channels) == (4, 6)
    assert not set(map(id, first.parameters())) & set(
        map(id, second.parameters()))


@LAZY
def test_init_weights_before_the_first_input(name):
    """As MMEngine's Runner calls it: nothing to fill yet, no error."""

    class Backbone(BaseModule):

        def __init__(self):
            super().__init__(
                init_cfg=dict(type='Constant', layer='Conv2d', val=.5))
            self.conv = ConvModule(3, 4, 3, act_cfg=ACTIVATIONS[name])

    backbone = Backbone()
    backbone.init_weights()
    activation = backbone.conv.activate
    assert activation.is_lazy
    torch.manual_seed(1)
    backbone.conv(images(2, 3, 7, 7))
    # Then the start of its own, not what the owner gives convolutions.
    for key, parameter in activation.named_parameters():
        if key.endswith(('fc1.weight', 'fc2.weight', 'conv.weight')):
            assert not (parameter == .5).any()


def careless(module, value=.5):
    """An owner's loop over all that it has, as heads and backbones do it."""
    for child in module.modules():
        if isinstance(child, (nn.Conv2d, nn.Linear)):
            nn.init.constant_(child.weight, value)
        elif isinstance(child, (nn.BatchNorm2d, nn.GroupNorm)):
            nn.init.constant_(child.weight, value)
            nn.init.constant_(child.bias, 1e-4)
    for parameter in module.parameters():
        if parameter.dim() > 1:
            nn.init.constant_(parameter, value)


RULES = [
    dict(type='Constant', layer=['Conv2d', 'BatchNorm2d'], val=.5, bias=.5),
    dict(type='Normal', layer=['MetaACON', 'FReLU', 'PWLU', 'InnerConv'])
]


class Owner(BaseModule):
    """Rules before, rules in a part of its own, and a loop afterwards."""

    def __init__(self, name, loop, init_cfg=RULES):
        super().__init__(init_cfg)
        self.conv = nn.Conv2d(3, 4, 1)
        # Neither is a module that MMEngine goes on from.
        self.inner = nn.Sequential(
            ConvModule(
                4, 4, 1, act_cfg=dict(ACTIVATIONS[name], num_channels=4)),
            nn.ModuleDict(
                dict(
                    act=MODELS.build(dict(ACTIVATIONS[name],
                                          num_channels=4)))))
        self.loop = loop

    def init_weights(self):
        if self.loop == 'alone':
            careless(self)
            return
        super().init_weights()
        if self.loop == 'after':
            careless(self)


def state(model):
    return {
        f'{prefix}.{name}': value.clone()
        for prefix, module in model.named_modules()
        if isinstance(module, LearnableActivation)
        for name, value in module.state_dict().items()
    }


def assert_equal(first, second):
    assert first.keys() == second.keys() and first
    for key, value in first.items():
        assert torch.equal(value, second[key]), key


@pytest.mark.parametrize('loop', (None, 'after', 'alone'))
@EVERY
def test_init_weights_of_an_owner_leaves_it_alone(name, loop):
    """Rules of its config, loops, an owner around it, and all that twice."""

    class Model(BaseModule):

        def __init__(self):
            super().__init__(dict(type='Constant', layer='Conv2d', val=.5))
            self.owner = Owner(name, loop)

    model = Model()
    before = state(model)
    for _ in range(2):
        model.init_weights()
        assert_equal(state(model), before)
    assert (model.owner.conv.weight == .5).all()
    # Its own call gives the start again.
    activation = model.owner.inner[1]['act']
    with torch.no_grad():
        for parameter in activation.parameters():
            parameter.fill_(7.)
    activation.init_weights()
    assert not any((p == 7).any() for p in activation.parameters())


@EVERY
def test_keep_start_of_an_owner_that_is_called_itself(name):
    """Its loop runs when MMEngine's part is over; and copies keep to it."""
    owner = Owner(name, 'after')
    keep_start(owner)
    keep_start(owner)
    before = state(owner)
    for model in (owner, copy.deepcopy(owner)):
        model.init_weights()
        assert_equal(state(model), before)
        assert (model.conv.weight == .5).all()
    # Without a loop over norms and parameters nothing is needed: what is
    # inside is no layer that a rule names.
    plain = Owner('MetaACON', 'after')
    weights = [
        m.weight.clone() for m in plain.modules() if isinstance(m, InnerConv)
    ]
    for module in plain.modules():
        if isinstance(module, nn.Conv2d):
            module.reset_parameters()
    assert all(
        torch.equal(m.weight, weight)
        for m, weight in zip((m for m in plain.modules()
                              if isinstance(m, InnerConv)), weights))


@EVERY
def test_what_init_weights_loads_stays(name, tmp_path):
    trained_owner = Owner(name, None)
    with torch.no_grad():
        for parameter in trained_owner.parameters():
            parameter.normal_()
    path = str(tmp_path / 'weights.pth')
    torch.save(trained_owner.state_dict(), path)
    owner = Owner(name, None,
                  [*RULES, dict(type='Pretrained', checkpoint=path)])
    owner.init_weights()
    assert_equal(state(owner), state(trained_owner))


def test_realigned_bounds_stay():
    owner = Owner('PWLU', 'after')
    keep_start(owner)
    unit = owner.inner[0].activate
    unit.start_phase1()
    unit(images(2, 4, 5, 5))
    assert unit.realign().all()
    before = state(owner)
    owner.init_weights()
    assert_equal(state(owner), before)


@pytest.mark.parametrize('init', (
    lambda p: nn.init.kaiming_normal_(p.weight),
    lambda p: nn.init.constant_(p.weight, 1),
    lambda p: p.reset_parameters(),
))
@LAZY
def test_loops_over_what_has_no_size(name, init):
    """A backbone's own init walks over convolutions, and over parameters."""
    module = nn.Sequential(nn.Conv2d(3, 4, 1), lazy(name))
    for child in module.modules():
        if isinstance(child, nn.Conv2d):
            init(child)
    careless(module, 7.)
    assert module(images(2, 3, 5, 5)).shape == (2, 4, 5, 5)
    for parameter in module[1].parameters():
        assert not (parameter == 7).any()


@pytest.mark.parametrize(
    'options',
    (dict(), dict(groups=4), dict(stride=2), dict(groups=2, bias=False)))
def test_inner_conv_starts_as_a_convolution(options):
    inner = InnerConv(4, 8, 3, **options)
    torch.manual_seed(0)
    inner.reset_parameters()
    torch.manual_seed(0)
    conv = nn.Conv2d(4, 8, 3, padding=1, **options)
    assert inner.state_dict().keys() == conv.state_dict().keys()
    for mine, true in zip(inner.parameters(), conv.parameters()):
        torch.testing.assert_close(mine, true)
    x = images(2, 4, 5, 5)
    torch.testing.assert_close(inner(x), conv(x))


@pytest.mark.parametrize('dtype', [torch.float64, torch.bfloat16], ids=str)
@LAZY
def test_keeps_dtype_device_and_mode(name, dtype, device):
    activation = lazy(name).to(device, dtype).eval()
    for parameter in activation.parameters():
        parameter.requires_grad_(False)
    activation(images(2, 4, 5, 5).to(device, dtype))
    for parameter in activation.parameters():
        assert parameter.dtype == dtype
        assert parameter.device.type == device
        assert not parameter.requires_grad
    assert not any(module.training for module in activation.modules())


@pytest.mark.parametrize('mode', [torch.no_grad, torch.inference_mode])
@LAZY
def test_trains_after_a_first_input_without_gradients(name, mode):
    """A warm-up pass must not leave parameters that never learn."""
    activation = lazy(name)
    with mode():
        activation(images(2, 4, 5, 5))
    activation(images(2, 4, 5, 5)).sum().backward()
    assert all(p.grad is not None for p in activation.parameters())


@EVERY
def test_start_does_not_depend_on_being_lazy(name):
    first = lazy(name).eval()
    torch.manual_seed(1)
    y = first(images(2, 4, 5, 5))
    torch.manual_seed(1)
    second = MODELS.build(dict(ACTIVATIONS[name], num_channels=4)).eval()
    assert torch.equal(y, second(images(2, 4, 5, 5)))


def test_apply_norm():
    """One value per channel uses the running statistics, two do not."""
    norm = nn.BatchNorm2d(2, eps=1e-12)
    norm.running_mean += torch.tensor([1., 2.])
    x = torch.tensor([3., 6.])[None, :, None, None]
    y = apply_norm(norm, x)
    torch.testing.assert_close(y.flatten(), torch.tensor([2., 4.]))
    assert norm.num_batches_tracked == 0
    assert norm.running_mean.tolist() == [1, 2]
    apply_norm(norm, torch.cat([x, 2 * x]))
    assert norm.num_batches_tracked == 1
    # Other norms have no use for the batch.
    group = nn.GroupNorm(1, 2)
    assert torch.equal(apply_norm(group, x), group(x))


def two_processes(rank, file):
    dist.init_process_group(
        'gloo',
        init_method=f'file://{file}',
        rank=rank,
        world_size=2,
        timeout=timedelta(seconds=60))
    train_in_two_processes(rank)
    # A DDP that outlives its process group can block when it is freed: it
    # then waits, with Python's lock, for a thread that waits for that lock.
    gc.collect()
    dist.destroy_process_group()


def train_in_two_processes(rank):
    torch.manual_seed(0)
    x = torch.randn(2, 3, 5, 5, generator=torch.Generator().manual_seed(rank))

    for kind in (ACONA, ACONC, MetaACON, PWLU):
        model = DistributedDataParallel(
            nn.Sequential(nn.Conv2d(3, 4, 1), kind()))
        with pytest.raises(
                RuntimeError,
                match=f'{kind.__name__} meets its first input inside a '
                f'distributed run.*find_widths.*SwapActivations.*num_channels='
        ):
            model(x)

    # What the message advises: a width, or a pass without gradients before.
    warm = nn.Sequential(nn.Conv2d(3, 4, 1), ACONC())
    with torch.no_grad():
        warm(x)
    layer_wise = ACONC(granularity='layer')
    for model in (warm, nn.Sequential(nn.Conv2d(3, 4, 1), ACONC(4)),
                  nn.Sequential(nn.Conv2d(3, 4, 1), layer_wise)):
        alone = copy.deepcopy(model)
        alone(x).square().mean().backward()
        model = DistributedDataParallel(model)
        model(x).square().mean().backward()
        for mine, own in zip(model.parameters(), alone.parameters()):
            mean = own.grad.clone()
            dist.all_reduce(mean)
            torch.testing.assert_close(mine.grad, mean / 2)

    # Phase I: parameters that the output ignores must not stop DDP, which
    # reports them in the iteration that follows.
    unit = PWLU(4)
    unit.start_phase1()
    model = DistributedDataParallel(nn.Sequential(nn.Conv2d(3, 4, 1), unit))
    for _ in range(3):
        model(x).sum().backward()
        assert not any(p.grad.any() for p in unit.parameters())
    assert unit.num_batches.tolist() == [3] * 4


@pytest.mark.skipif(not dist.is_available(), reason='needs torch.distributed')
def test_distributed_training(tmp_path):
    mp.spawn(two_processes, args=(tmp_path / 'rendezvous', ), nprocs=2)


@pytest.mark.parametrize('name', ['MetaACON', 'MetaACON-pixel', 'FReLU'])
def test_no_curve(name):
    """An output depends on more than one number of the input."""
    with pytest.raises(ValueError, match='is no function of one number: its'):
        trained(name).difference_from()


def test_difference_of_what_is_relu():
    unit = MODELS.build(dict(type='APL', num_channels=4))
    assert unit.difference_from() == 0
    assert unit.difference_from('SiLU') > .1
