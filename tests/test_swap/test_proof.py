"""A swap shows that it leaves the network as it is, or says where not."""
import copy

import pytest
import torch
import torchvision
from torch import nn

from mm_acon import PWLU, swap_activations
from mm_acon.deployment import fold_activations
from mm_acon.nested import tensors
from mm_acon.swap.proof import StandIn, prove
from tests.helpers.backbones import Block, build, images

PHASES = dict(type='PWLU')


class Toy(nn.Module):
    """Two convolutions, and a forward that is given."""

    def __init__(self, forward, **modules):
        super().__init__()
        self.a = nn.Conv2d(3, 4, 1)
        self.b = nn.Conv2d(4, 4, 1)
        self.relu = nn.ReLU()
        for name, module in modules.items():
            setattr(self, name, module)
        self.function = forward

    def forward(self, x):
        return self.function(self, x)


def changes_its_input(self, x):
    x = self.a(x)
    y = self.b(self.relu(x))
    x += y
    return x


def reads_its_input_again(self, x):
    x = self.a(x)
    return self.b(self.relu(x)) + x


def both(net, x):
    """Output and the gradient of the first weights."""
    y = net(x)
    grad, = torch.autograd.grad(y.square().sum(), net.a.weight)
    return y.detach(), grad


def test_what_is_compared_is_in_the_report():
    report = swap_activations(Block(), PHASES)
    assert report.proof.modes == ['evaluation', 'training']
    assert report.proof.tolerance == 0 and not report.proof.failures
    assert ('outputs and gradients stay exactly what they are, in evaluation '
            'and training') in str(report)


def test_no_backward_pass_where_it_would_end_the_process():
    """DetectoRS on the CPU, with MMCV's deformable convolutions."""
    config = dict(
        type='mmdet.DetectoRS_ResNet',
        depth=50,
        conv_cfg=dict(type='ConvAWS'),
        sac=dict(type='SAC', use_deform=True),
        stage_with_sac=(False, True, True, True))
    report = swap_activations(build(config), PHASES)
    assert len(report.replaced) == 49
    assert report.proof.modes == ['evaluation', 'training']
    assert str(report).endswith(
        '; gradients are not compared: a backward pass of layer2.0.conv2, an '
        'SAConv2d of MMCV with use_deform, ends the process on the CPU')


def test_what_nobody_has_filled_yet_spoils_no_proof():
    """DINO's matcher stops at the NaN that memory may hold."""

    def forward(self, x):
        y = self.relu(self.a(x)) + self.level
        if self.training and not y.isfinite().all():
            raise ValueError('matrix contains invalid numeric entries')
        return y

    net = Toy(forward)
    net.level = nn.Parameter(torch.tensor(float('nan')))
    report = swap_activations(net, PHASES)
    assert report.proof.modes == ['evaluation', 'training']
    assert net.level.isnan()


def test_it_can_be_turned_off():
    report = swap_activations(Block(), PHASES, verify=False)
    assert report.proof is None and len(report.replaced) == 2


@pytest.mark.parametrize('act', ['ACONC', 'MetaACON', 'PWLU'])
def test_input_that_is_changed_afterwards(act):
    """DDRNet's; ReLU keeps its output, these their input."""
    net, x = Toy(changes_its_input), torch.rand(2, 3, 8, 8)
    plain = copy.deepcopy(net)
    report = swap_activations(net, dict(type=act))
    assert 'its input is copied, because it is changed' in str(report)
    assert type(net.relu).__name__ == act
    both(net, x)
    if act == 'PWLU':
        for enter in (net.relu.start_phase1, net.relu.realign):
            enter()
            both(net, x)
        net = copy.deepcopy(plain)
        swap_activations(net, PHASES)
        for one, other in zip(both(net, x), both(plain, x)):
            assert torch.equal(one, other)


@pytest.mark.parametrize('training', [True, False])
def test_input_that_is_read_again(training):
    """A shortcut that is relu(x), since ReLU worked in place."""
    net = Toy(
        lambda self, x: reads_its_input_again(self, x),
        relu=nn.ReLU(inplace=True))
    plain, x = copy.deepcopy(net), torch.randn(2, 3, 8, 8)
    report = swap_activations(net, PHASES)
    assert 'its output goes back into its input' in str(report)
    for copied in (net, copy.deepcopy(net)):
        copied.train(training)
        for one, other in zip(both(copied, x), both(plain, x)):
            assert torch.equal(one, other)
    with torch.no_grad():
        torch.testing.assert_close(
            fold_activations(net)(x), plain(x), rtol=1e-5, atol=1e-6)


def test_fold_of_what_is_not_folded_keeps_its_copy():
    """FReLU has nothing to work out."""
    net, x = Toy(changes_its_input), torch.rand(2, 3, 8, 8)
    swap_activations(net, dict(type='FReLU'))
    folded = fold_activations(net)
    assert len(folded.relu._forward_pre_hooks) == 1
    assert torch.equal(folded(x), net.eval()(x))


def test_in_place_that_nobody_relies_on_costs_nothing():
    net = Toy(
        lambda self, x: self.b(self.relu(self.a(x))),
        relu=nn.ReLU(inplace=True))
    report = swap_activations(net, PHASES)
    assert [row.note for row in report.rows] == ['']
    assert not net.relu._forward_pre_hooks


@pytest.mark.parametrize('again', [False, True])
def test_element_of_a_list_that_the_forward_walks_through(again):
    """ERFNet's activation is an attribute, too."""

    class Walker(nn.Module):

        def __init__(self):
            super().__init__()
            self.act = nn.ReLU()
            self.layers = nn.ModuleList(
                [nn.Conv2d(3, 8, 3), self.act,
                 nn.Conv2d(8, 8, 3)])

        def forward(self, x):
            for layer in self.layers:
                x = layer(x)
            return self.act(x) if again else x

    net, x = Walker(), torch.randn(2, 3, 8, 8)
    plain = copy.deepcopy(net)
    report = swap_activations(net, PHASES)
    assert len(report.replaced) == 1 + again
    net(x).sum().backward()
    assert all(p.grad is not None for p in net.parameters())
    assert torch.equal(net(x), plain(x))


def test_site_that_would_be_another_network_is_left():
    """What asks for the class of its activation."""

    def forward(self, x):
        x = self.relu(self.a(x))
        x = self.b(x)
        return self.odd(x) if isinstance(self.odd, nn.ReLU) else x * 2

    net = Toy(forward, odd=nn.ReLU())
    report = swap_activations(net, PHASES)
    assert isinstance(net.relu, PWLU) and type(net.odd) is nn.ReLU
    row = report.rows[1]
    assert row.new is None
    assert 'with copies of it in evaluation outputs differ by' in row.reason


def test_nothing_is_left_to_replace():
    net = Toy(lambda self, x: self.relu(self.a(x))
              if isinstance(self.relu, nn.ReLU) else x.new_zeros(1))
    with pytest.raises(ValueError, match='(?s)was chosen.*outputs differ by'):
        swap_activations(net, PHASES)
    assert type(net.relu) is nn.ReLU and not net._forward_hooks


def test_statistics_flags_gradients_and_random_state_stay():
    net = nn.Sequential(Block(), nn.Dropout(), nn.BatchNorm2d(8))
    net[2].weight.requires_grad_(False)
    net[2].eval()
    before = copy.deepcopy(net.state_dict())
    flags = [p.requires_grad for p in net.parameters()]
    torch.manual_seed(5)
    state = torch.get_rng_state()
    report = swap_activations(net, dict(type='SiLU'))
    assert report.proof.modes == ['evaluation', 'training']
    assert torch.equal(torch.get_rng_state(), state)
    assert [p.requires_grad for p in net.parameters()] == flags
    assert net[1].training and not net[2].training
    for key, value in net.state_dict().items():
        assert torch.equal(value, before[key]), key
    assert all(p.grad is None for p in net.parameters())


def test_network_that_does_not_run_in_training():

    def forward(self, x):
        if self.training:
            raise RuntimeError('no targets')
        return self.relu(self.a(x))

    report = swap_activations(Toy(forward), PHASES)
    assert report.proof.modes == ['evaluation']
    assert 'no targets' in report.proof.failures['training']
    assert 'not compared in training, where it does not run:' in str(report)


def test_network_that_is_random_by_a_generator_of_its_own():
    generator = torch.Generator()

    def forward(self, x):
        noise = torch.rand(1, generator=generator) * 1e-3
        return self.relu(self.a(x)) + noise

    report = swap_activations(Toy(forward), PHASES)
    assert 0 < report.proof.tolerance < .1
    assert len(report.replaced) == 1


def test_parameters_of_the_old_activation_stay_its_own():
    """Those of a PReLU that is left, and of one that is called twice."""
    net = Toy(
        lambda self, x: self.relu(self.b(self.prelu(self.prelu(self.a(x))))),
        prelu=nn.PReLU())
    weight = net.prelu.weight
    swap_activations(net, PHASES)
    assert net.prelu.weight is weight
    net = Toy(
        lambda self, x: self.b(self.prelu(self.prelu(self.a(x)))),
        prelu=nn.PReLU())
    report = swap_activations(net, PHASES, replace='PReLU')
    assert report.proof.tolerance == 0 and len(report.replaced) == 2


def test_random_activation():
    net = Toy(lambda self, x: self.b(self.rrelu(self.a(x))), rrelu=nn.RReLU())
    report = swap_activations(net, dict(type='SiLU'), replace='RReLU')
    assert report.proof.tolerance == 0


def test_stand_in_has_the_gradient_of_the_old_one():
    old = nn.PReLU(4)
    x = torch.randn(2, 4, 5, requires_grad=True)
    for stand_in in (StandIn(old), old):
        stand_in(x).square().sum().backward()
        gradients = x.grad.clone(), old.weight.grad.clone()
        x.grad = old.weight.grad = None
    for one, other in zip(gradients, gradients):
        assert torch.equal(one, other)


def test_functions_are_named():
    with pytest.raises(
            ValueError,
            match='there are none. It calls functions: relu in conv1, .* A '
            r'swap reaches modules only: write self.relu = nn.ReLU\(\)'):
        swap_activations(
            torchvision.models.googlenet(init_weights=False), PHASES)


def test_video_network_is_probed_at_a_small_size():
    net = torchvision.models.video.r3d_18()
    report = swap_activations(net, PHASES)
    assert len(report.replaced) == 17
    assert report.rows[0].map_size == (32, 16, 16)


@pytest.mark.parametrize('config, number, copied', [
    (dict(type='mmseg.ERFNet'), 73, 0),
    (dict(type='mmseg.DDRNet', in_channels=3, channels=8,
          ppm_channels=8), 43, 4),
])
def test_backbones_that_broke(config, number, copied):
    net = build(config)
    plain = copy.deepcopy(net)
    report = swap_activations(net, PHASES)
    assert len(report.replaced) == number
    assert sum('copied' in row.note for row in report.rows) == copied
    for training in (True, False):
        outputs = []
        for network in (net, plain):
            torch.manual_seed(0)  # Dropout.
            y = network.train(training)(images())
            outputs.append(list(tensors(y)))
        for one, other in zip(*outputs):
            assert torch.equal(one, other)


def test_gradients_through_reentrant_checkpoints():
    report = swap_activations(
        build(dict(type='mmdet.ResNet', depth=18, with_cp=True)), PHASES)
    assert report.proof.modes == ['evaluation', 'training']


def test_gradients_that_were_there_stay():
    net = Block()
    net.norm1.weight.grad = grad = torch.ones(4)
    swap_activations(net, PHASES)
    assert net.norm1.weight.grad is grad


def test_nothing_to_compare_on_the_meta_device():
    proof, refused = prove(nn.Conv2d(1, 1, 1).to('meta'), [], None)
    assert not proof.modes and not refused
    assert proof.failures['training'] == 'on the meta device'
