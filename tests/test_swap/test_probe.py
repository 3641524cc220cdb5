"""What one forward pass shows, and that it leaves no trace."""
import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mm_acon.swap.probe import probe
from tests.helpers.backbones import Block, build


class Toy(nn.Module):
    """A convolution, norm, dropout and what is given, in a forward."""

    def __init__(self, forward, **modules):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        for name, module in modules.items():
            setattr(self, name, module)
        self.function = forward

    def forward(self, x):
        return self.function(self, x)


def names(module, *args):
    return [site.name for site in probe(module, *args).sites]


def test_module_flags_statistics_gradients_and_random_state_stay():
    model = nn.Sequential(Block(), nn.Dropout(),
                          nn.BatchNorm2d(8, momentum=.5), nn.ReLU())
    model[2].eval()
    model[3].training = False
    before = copy.deepcopy(model.state_dict())
    flags = [m.training for m in model.modules()]
    torch.manual_seed(5)
    state = torch.get_rng_state()
    probe(model)
    assert torch.equal(torch.get_rng_state(), state)
    assert [m.training for m in model.modules()] == flags
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key]), key
    assert all(p.grad is None for p in model.parameters())
    for module in model.modules():
        assert not module._forward_hooks
        assert not module._forward_pre_hooks


def test_random_forward_draws_from_a_copy_of_the_state():
    model = Toy(lambda self, x: self.conv(x + torch.randn_like(x)))
    torch.manual_seed(5)
    state = torch.get_rng_state()
    probe(model)
    assert torch.equal(torch.get_rng_state(), state)


def test_hooks_and_modes_are_gone_after_a_failure():
    model = Toy(lambda self, x: self.conv(x)[:, 99])
    with pytest.raises(RuntimeError):
        probe(model)
    assert model.training
    assert not nn.modules.module._global_forward_hooks
    assert not nn.modules.module._global_forward_pre_hooks
    assert torch.is_grad_enabled()
    assert not hasattr(torch.zeros(1) + 1, '_mm_acon_source')


def test_train_of_the_module_is_called():
    """LeViT makes there what its forward in eval mode needs."""

    class Cached(Toy):

        def train(self, mode=True):
            super().train(mode)
            self.cache = None if mode else 1
            return self

    model = Cached(
        lambda self, x: self.act(self.conv(x)) + self.cache, act=nn.ReLU())
    assert names(model) == ['conv']
    assert model.training and model.cache is None


@pytest.mark.parametrize(
    'forward',
    [
        lambda self, x, y: y + x,
        lambda self, x, y: x + y,  # The shortcut first, already activated.
        lambda self, x, y: y.add_(x),
        lambda self, x, y: torch.cat([x, y], 1),
        lambda self, x, y: torch.cat([self.conv(y[:, :3]), y], 1),
        lambda self, x, y: F.max_pool2d(y, 2).flatten(1),
    ])
def test_name_behind_a_sum_or_concatenation(forward):
    """The branch of a residual sum, the newest features of a dense block."""

    class Two(Toy):

        def forward(self, x):
            x = self.a(self.conv(x))
            return self.b(self.function(self, x, self.branch(x)))

    model = Two(forward, branch=nn.Conv2d(4, 4, 1), a=nn.ReLU(), b=nn.ReLU())
    assert names(model) == ['conv', 'branch']


def test_shortcut_with_a_convolution_is_not_the_branch():
    model = build(dict(type='mmdet.ResNet', depth=18, base_channels=8))
    assert names(model)[:7] == [
        'conv1', 'layer1.0.conv1', 'layer1.0.conv2', 'layer1.1.conv1',
        'layer1.1.conv2', 'layer2.0.conv1', 'layer2.0.conv2'
    ]


def test_second_site_behind_one_convolution_is_numbered():
    model = Toy(
        lambda self, x: self.a(self.conv(x)) + self.b(self.conv(x)),
        a=nn.ReLU(),
        b=nn.Tanh())
    assert names(model) == ['conv', 'conv#2']


def test_site_without_convolution_has_its_own_name():
    model = Toy(lambda self, x: self.conv(self.act(x)), act=nn.ReLU())
    (site, ) = probe(model).sites
    assert (site.name, site.feed, site.width) == ('act', None, 3)
    assert not site.is_frozen


@pytest.mark.parametrize('function, name', [
    (F.relu, 'relu'),
    (torch.relu, 'relu'),
    (lambda x: x.relu(), 'relu'),
    (lambda x: x.relu_(), 'relu_'),
    (lambda x: F.relu(x, inplace=True), 'relu'),
    (F.silu, 'silu'),
    (F.gelu, 'gelu'),
    (F.leaky_relu, 'leaky_relu'),
    (F.hardswish, 'hardswish'),
    (F.mish, 'mish'),
])
def test_functions_are_listed(function, name):
    inner = Toy(
        lambda self, x: self.act(function(self.conv(x))), act=nn.ReLU())
    probed = probe(nn.Sequential(inner))
    assert probed.functional == [f'{name} in 0']
    assert [site.name for site in probed.sites] == ['0.conv']
    assert probe(inner).functional == [f'{name} in the forward']


def test_functions_inside_activations_are_not_listed():
    assert not probe(Block()).functional


def test_activations_that_are_not_called_are_listed():
    """Of an auxiliary head, or called by their forward()."""
    model = Toy(
        lambda self, x: self.used(self.bypassed.forward(self.conv(x))),
        used=nn.ReLU(),
        bypassed=nn.ReLU(),
        head=nn.Sequential(nn.Conv2d(4, 4, 1), nn.ReLU6()))
    assert list(probe(model).uncalled) == ['bypassed', 'head.1']


@pytest.mark.parametrize(
    'forward, width, axis, map_size',
    [
        (lambda self, x: self.act(self.conv(x)), 4, 1, (256, 256)),
        (lambda self, x: self.act(self.conv(x).mean((2, 3))), 4, 1, ()),
        (lambda self, x: self.act(self.conv(x).flatten(2)), 4, 1, (65536, )),
        # Tokens of a map, as in Conformer.
        (lambda self, x: self.act(self.conv(x).flatten(2).mT), 4, -1,
         (65536, )),
        # No size is the convolution's.
        (lambda self, x: self.act(self.conv(x)[:, 1:]), 3, 1, (256, 256)),
        (lambda self, x: self.act(self.conv(x).movedim(1, -1)[..., 1:]), 3, -1,
         (256, 256)),
        (lambda self, x: self.act(self.fc(self.conv(x).mT)), 5, -1, (4, 256)),
        # A map behind a fully connected layer, as in HRFormer.
        (lambda self, x: self.act(
            self.fc3(self.conv(x).movedim(1, -1)).movedim(-1, 1)), 64, 1,
         (256, 256)),
        (lambda self, x: self.act(self.fc(x.mean((1, 2)))), 5, 1, ()),
        # Called with no tensor by position.
        (lambda self, x: self.act(input=self.conv(x)), 0, None, ()),
        (lambda self, x: self.act(self.act(self.conv(x)).mean()), 4, 1,
         (256, 256)),
    ])
def test_channels(forward, width, axis, map_size):
    model = Toy(
        forward, act=nn.ReLU(), fc=nn.Linear(256, 5), fc3=nn.Linear(4, 64))
    site = probe(model).sites[0]
    assert (site.width, site.channel_axis, site.map_size) == (width, axis,
                                                              map_size)


def test_widths_that_differ_from_call_to_call():
    """The block's own count is 0 both times: one site, of no width."""

    class Shared(Toy):

        def forward(self, x):
            return self.block(self.conv(x)).sum() + self.block(x).sum()

    model = Shared(None, block=nn.Sequential(nn.ReLU()))
    (site, ) = probe(model).sites
    assert site.width == 0


@pytest.mark.parametrize('conv, shape', [
    (nn.Conv1d(2, 4, 3), (4, 254)),
    (nn.Conv2d(2, 4, 3), (4, 254, 254)),
])
def test_sample_fits_the_first_convolution(conv, shape):
    (site, ) = probe(nn.Sequential(conv, nn.ReLU())).sites
    assert (site.width, *site.map_size) == shape


def test_sample_for_a_first_convolution_inside():
    """YOLOX's sees four slices of the image; 224 is the second try."""
    focus = build(
        dict(type='mmdet.CSPDarknet', deepen_factor=.33, widen_factor=.125))
    assert names(focus)[0] == 'stem.conv.conv'

    def forward(self, x):
        assert not torch.is_grad_enabled()
        assert x.shape[1:] == (3, 224, 224)
        return self.act(self.conv(x))

    assert names(Toy(forward, act=nn.ReLU())) == ['conv']


@pytest.mark.parametrize('sample', [
    torch.zeros(1, 3, 8, 6),
    (1, 3, 8, 6), [1, 3, 8, 6], [torch.zeros(1, 3, 8, 6)]
])
def test_sample_of_the_user(sample):
    model = Toy(lambda self, x: self.act(self.conv(x)), act=nn.ReLU())
    (site, ) = probe(model, (), sample).sites
    assert site.map_size == (8, 6)


def test_several_inputs():

    class Two(Toy):

        def forward(self, x, y):
            return self.act(self.conv(x) + y)

    model = Two(None, act=nn.ReLU())
    (site, ) = probe(
        model, (),
        [torch.zeros(1, 3, 8, 8), torch.zeros(1)]).sites
    assert site.map_size == (8, 8)


def test_sample_has_the_dtype_of_the_module():
    (site, ) = probe(Block().double()).sites[:1]
    assert site.width == 4


def test_module_that_cannot_be_run():
    model = Toy(lambda self, x: self.conv(x).view(7, 7))
    with pytest.raises(RuntimeError) as error:
        probe(model)
    text = str(error.value)
    assert text.startswith('Toy could not be run to find its activations. It '
                           'was tried with input of shape [(1, 3, 256, 256)]:')
    assert "shape '[7, 7]' is invalid" in text
    assert '[(1, 3, 224, 224)]' in text
    assert 'write sample_input=(1, channels, height, width)' in text


def test_module_without_convolution():
    with pytest.raises(
            RuntimeError,
            match=r'was tried with input of shape \[\(1, 3, 256, 256\)\]: .*'
            r'; write sample_input=\(1, channels'):
        probe(nn.Sequential(nn.Linear(3, 4), nn.ReLU()))
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU())
    assert names(model, (), (2, 3)) == ['0']
