"""Checkpoints of the ACON authors' networks, converted."""
import importlib.util
import re
import sys
from fractions import Fraction
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from torch import nn

import mm_acon  # noqa: F401  (registers)
from mm_acon.compat import load_weights
from tests.helpers.scripts import run_script

pytest.importorskip('mmpretrain.models')

TOOL = (
    Path(__file__).parents[1] / 'tools' / 'model_converters' / 'nmaac2mm.py')
spec = importlib.util.spec_from_file_location('nmaac2mm', TOOL)
nmaac2mm = importlib.util.module_from_spec(spec)
spec.loader.exec_module(nmaac2mm)


# The authors' networks, from their description: Sec. 3 and 4 of arXiv
# 2009.04759, and the names and layouts that their checkpoints have. All
# convolutions have a bias, all activations parameters of (1, C, 1, 1).
class ACON(nn.Module):
    """ACON-C, with r meta-ACON."""

    def __init__(self, width, r=None):
        super().__init__()
        self.p1 = nn.Parameter(torch.ones(1, width, 1, 1))
        self.p2 = nn.Parameter(torch.zeros(1, width, 1, 1))
        if r is None:
            self.beta = nn.Parameter(torch.ones(1, width, 1, 1))
        else:
            self.beta = None
            hidden = max(r, width // r)
            self.fc1 = nn.Conv2d(width, hidden, 1)
            self.bn1 = nn.BatchNorm2d(hidden)
            self.fc2 = nn.Conv2d(hidden, width, 1)
            self.bn2 = nn.BatchNorm2d(width)

    def forward(self, x):
        beta = self.beta
        if beta is None:
            mean = x.mean((2, 3), keepdim=True)
            beta = self.bn2(self.fc2(self.bn1(self.fc1(mean)))).sigmoid()
        difference = (self.p1 - self.p2) * x
        return difference * (beta * difference).sigmoid() + self.p2 * x


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions, or a bottleneck with its stride in front."""

    def __init__(self, width_in, width, stride, bottleneck, r):
        super().__init__()
        sizes, out = ((1, 3, 1), 4 * width) if bottleneck else ((3, 3), width)
        widths = [width_in] + [width] * (len(sizes) - 1) + [out]
        for n, size in enumerate(sizes, 1):
            conv = nn.Conv2d(
                widths[n - 1],
                widths[n],
                size,
                stride=stride if n == 1 else 1,
                padding=size // 2)
            self.add_module(f'conv{n}', conv)
            self.add_module(f'bn{n}', nn.BatchNorm2d(widths[n]))
        self.bottleneck = bottleneck
        if bottleneck:
            self.acon = ACON(width, r)
        else:
            self.acon1, self.acon2 = ACON(width, r), ACON(width, r)
        self.downsample = None
        if width_in != out or stride != 1:
            self.downsample = nn.Sequential(
                nn.Conv2d(width_in, out, 1, stride), nn.BatchNorm2d(out))

    def forward(self, x):
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.bn1(self.conv1(x))
        if self.bottleneck:
            x = self.acon(self.bn2(self.conv2(x.relu())))
            return (self.bn3(self.conv3(x)) + shortcut).relu()
        x = self.bn2(self.conv2(self.acon1(x)))
        return self.acon2(x + shortcut)


class ResNet(nn.Module):

    def __init__(self, blocks, bottleneck, r=None):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, stride=2, padding=3)
        self.bn1 = nn.BatchNorm2d(64)
        width_in = 64
        for stage, number in enumerate(blocks):
            width, layer = 64 * 2**stage, []
            for index in range(number):
                stride = 2 if stage and not index else 1
                layer.append(
                    ResidualBlock(width_in, width, stride, bottleneck, r))
                width_in = 4 * width if bottleneck else width
            self.add_module(f'layer{stage + 1}', nn.Sequential(*layer))
        self.fc = nn.Linear(width_in, 10)

    def forward(self, x):
        x = F.max_pool2d(self.bn1(self.conv1(x)).relu(), 3, 2, 1)
        for layer in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = layer(x)
        return x, self.fc(x.mean((2, 3)))


def unit(width_in, width, size=1, stride=1, groups=1):
    return [
        nn.Conv2d(width_in, width, size, stride, size // 2, groups=groups),
        nn.BatchNorm2d(width)
    ]


class ShuffleBlock(nn.Module):
    """With stride 1 every second channel, from the second on, is computed."""

    def __init__(self, width_in, width, stride, r):
        super().__init__()
        middle, self.stride = width // 2, stride
        fed = width_in if stride == 2 else width_in // 2
        out = width - fed
        self.branch_main = nn.Sequential(
            *unit(fed, middle), ACON(middle, r),
            *unit(middle, middle, 3, stride, middle), *unit(middle, out),
            ACON(out, r))
        if stride == 2:
            self.branch_proj = nn.Sequential(*unit(fed, fed, 3, 2, fed),
                                             *unit(fed, fed), ACON(fed, r))

    def forward(self, x):
        if self.stride == 2:
            kept, x = self.branch_proj(x), x
        else:
            kept, x = x[:, 0::2], x[:, 1::2]
        return torch.cat((kept, self.branch_main(x)), 1)


class ShuffleNetV2(nn.Module):

    def __init__(self, widths, r=None):
        super().__init__()
        self.first_conv = nn.Sequential(*unit(3, 24, 3, 2), ACON(24, r))
        width_in, blocks = 24, []
        for width, number in zip(widths, (4, 8, 4)):
            for index in range(number):
                blocks.append(
                    ShuffleBlock(width_in, width, 1 if index else 2, r))
                width_in = width
        self.features = nn.Sequential(*blocks)
        last = widths[-1]
        self.conv_last = nn.Sequential(*unit(width_in, last), ACON(last, r))
        self.classifier = nn.Sequential(nn.Linear(last, 10))

    def forward(self, x):
        x = F.max_pool2d(self.first_conv(x), 3, 2, 1)
        x = self.conv_last(self.features(x))
        return x, self.classifier(x.mean((2, 3)))


class Funnel(nn.Module):
    """ACON-FReLU, with a norm on its output."""

    def __init__(self, width, stride=1):
        super().__init__()
        self.stride = stride
        self.conv_frelu = nn.Conv2d(width, width, 3, stride, 1, groups=width)
        self.bn1, self.bn2 = nn.BatchNorm2d(width), nn.BatchNorm2d(width)

    def forward(self, x):
        condition = self.bn1(self.conv_frelu(x))
        if self.stride == 2:
            x = F.max_pool2d(x, 3, 2, 1)
        difference = x - condition
        return self.bn2(difference * difference.sigmoid() + condition)


class FunnelBlock(nn.Module):

    def __init__(self, width, stride):
        super().__init__()
        self.branch_main = nn.Sequential(*unit(width, width), Funnel(width),
                                         *unit(width, width))
        self.acon = Funnel(width * stride, stride)

    def forward(self, x):
        branch = self.branch_main(x)
        if self.acon.stride == 1:
            return self.acon(x + branch)
        return self.acon(torch.cat((x, branch), 1))


class TFNet(nn.Module):

    def __init__(self, size):
        super().__init__()
        width, blocks = int(16 * size), []
        self.first_conv = nn.Sequential(*unit(3, width, 3, 2), nn.ReLU())
        for number in (2, 3, 8, 3):
            for index in range(number):
                blocks.append(FunnelBlock(width, 1 if index else 2))
                width = width if index else 2 * width
        self.features = nn.Sequential(*blocks)
        self.conv_last = nn.Sequential(*unit(width, 1024), Funnel(1024))
        self.classifier = nn.Sequential(nn.Linear(1024, 10))

    def forward(self, x):
        x = self.conv_last(self.features(self.first_conv(x)))
        return x, self.classifier(x.mean((2, 3)))


NETWORKS = {
    'ResNet-50 ACON': (ResNet, ((3, 4, 6, 3), True)),
    'ResNet-50 meta-ACON': (ResNet, ((3, 4, 6, 3), True, 16)),
    'ResNet-18 ACON': (ResNet, ((2, 2, 2, 2), False)),
    'ResNet-18 meta-ACON': (ResNet, ((2, 2, 2, 2), False, 16)),
    'ShuffleNetV2 0.5x meta-ACON': (ShuffleNetV2, ((48, 96, 192, 1024), 8)),
    'ShuffleNetV2 0.5x ACON': (ShuffleNetV2, ((48, 96, 192, 1024), )),
    'ShuffleNetV2 1.5x meta-ACON': (ShuffleNetV2, ((176, 352, 704, 1024), 16)),
    'TFNet 0.5': (TFNet, (.5, )),
}


def random_network(name):
    """With weights, biases and running statistics that all matter."""
    torch.manual_seed(0)
    kind, arguments = NETWORKS[name]
    network = kind(*arguments)
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.uniform_(.3, 1)
                module.bias.normal_(0, .3)
                module.running_mean.normal_(0, .3)
                module.running_var.uniform_(.5, 2)
            elif isinstance(module, (nn.Conv2d, nn.Linear)):
                nn.init.kaiming_normal_(module.weight)
                module.bias.normal_(0, .3)
            elif isinstance(module, ACON):
                module.p1.normal_(1, .3)
                module.p2.normal_(0, .3)
    return network.eval()


def write(network, path, prefix='module.'):
    """As the authors' training writes it, under DataParallel."""
    state = {
        prefix + key: value
        for key, value in network.state_dict().items()
    }
    torch.save(dict(state_dict=state), path)
    return path


@pytest.mark.parametrize('name', NETWORKS)
def test_outputs_are_the_same(name, tmp_path):
    network = random_network(name)
    state, backbone = nmaac2mm.convert(
        nmaac2mm.load_state_dict(write(network, tmp_path / 'source.pth')))
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        classifier = MODELS.build(
            dict(
                type='ImageClassifier',
                backbone=backbone,
                neck=dict(type='GlobalAveragePooling'),
                head=dict(
                    type='LinearClsHead',
                    num_classes=10,
                    in_channels=state['head.fc.weight'].shape[1])))
    classifier.load_state_dict(state)
    classifier.eval()
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        results = classifier.backbone(x)[-1], classifier(x)
        for result, expected in zip(results, network(x)):
            scale = expected.abs().max().item()
            assert expected.std() > .05 * scale  # Not one dominant number.
            torch.testing.assert_close(
                result, expected, rtol=0, atol=1e-5 * scale)


def test_command_writes_what_its_config_loads(tmp_path):
    network = random_network('ResNet-18 ACON')
    source = write(network, tmp_path / 'res18.acon.pth')
    done = run_script(TOOL, source, tmp_path / 'out.pth', cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    text = done.stdout.split('\n\n')[1]
    model = Config.fromstring(text, '.py').model
    assert model.data_preprocessor == dict(
        mean=[0, 0, 0], std=[1, 1, 1], to_rgb=False)
    checkpoint = load_weights(tmp_path / 'out.pth')
    pretrained = model.backbone.pop('init_cfg')
    assert checkpoint['meta'] == dict(
        description='converted from github.com/nmaac/acon',
        source='res18.acon.pth',
        backbone=model.backbone.to_dict(),
        data_preprocessor=model.data_preprocessor.to_dict())
    # As the backbone of a detector, where the stem is frozen.
    model.backbone.update(init_cfg=pretrained, frozen_stages=1)
    with DefaultScope.overwrite_default_scope('mmdet'):
        backbone = MODELS.build(model.backbone)
    backbone.init_weights()
    backbone.eval()
    x = torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(
        backbone(x)[-1], network(x)[0], rtol=1e-4, atol=1e-4)


def refusal(monkeypatch, folder, content, out='out.pth'):
    """What the tool says of a file with that content."""
    if content is not None:
        torch.save(content, folder / 'source.pth')
    monkeypatch.setattr(
        sys, 'argv',
        ['nmaac2mm.py',
         str(folder / 'source.pth'),
         str(folder / out)])
    with pytest.raises(SystemExit) as error:
        nmaac2mm.main()
    assert not (folder / 'out.pth').exists()
    return str(error.value)


REFUSED = {
    'no file': (None, "There is no checkpoint '.*source.pth'"),
    'code': (dict(state_dict={}, args=Fraction(1, 3)),
             'holds objects beside tensors and plain Python values, .*write '
             'its state_dict alone into a new one.*fractions.Fraction'),
    'no tensors':
    (dict(epoch=3), r"expected a dict of tensors, or one as 'state_dict', got "
     r"dict \['epoch'\]"),
    'a list': ([1], 'expected a dict of tensors.*got list'),
    'plain ResNet': ({
        'conv1.weight': torch.zeros(64, 3, 7, 7),
        'fc.bias': torch.zeros(10)
    }, r'has one of layer1.0.conv1.bias \(ResNet\), '
                     r'features.0.branch_proj.0.weight \(ShuffleNetV2\), '
                     r'features.0.acon.conv_frelu.weight \(TFNet\); got 2 '
                     'keys, such as conv1.weight, fc.bias'),
}


@pytest.mark.parametrize('name', REFUSED)
def test_refused_file(name, monkeypatch, tmp_path):
    content, message = REFUSED[name]
    assert re.search(message, refusal(monkeypatch, tmp_path, content), re.S)


def test_existing_file_is_kept(monkeypatch, tmp_path):
    message = refusal(monkeypatch, tmp_path, {}, out='source.pth')
    assert "source.pth' is there already; remove it" in message


def without(state, *names):
    return {key: state[key] for key in state if not key.startswith(names)}


UNKNOWN = {
    'a block less': (lambda s: without(s, 'layer4.1.'),
                     r'Expected a ResNet of depth \[18, 34, 50, 101, 152\], '
                     r'got \[2, 2, 2, 1\] blocks with 2 convolutions each'),
    'no activation': (lambda s: without(s, 'layer3.1.acon2.'),
                      "has no 'layer3.1.acon2.p1', which a network of its "
                      'kind has'),
    'more': (lambda s: dict(s, se=torch.zeros(1)),
             r"1 keys of the checkpoint have no place in .*'depth': 18.*: se"),
    'another r': (lambda s: {
        **s, 'layer1.0.acon1.fc1.weight': torch.zeros(5, 64, 1, 1),
        'layer1.0.acon2.fc1.weight': torch.zeros(6, 64, 1, 1)
    }, r'the same r everywhere, got \(hidden, C\) = \[\(5, 64\), \(6, 64\)'),
}


@pytest.mark.parametrize('name', UNKNOWN)
def test_unknown_network(name):
    change, message = UNKNOWN[name]
    state = change(random_network('ResNet-18 ACON').state_dict())
    with pytest.raises(ValueError, match=message):
        nmaac2mm.convert(state)


@pytest.mark.parametrize('name, key, message', [
    ('ShuffleNetV2 0.5x ACON', 'features.0.branch_main.0.weight',
     r'one of \[24, 58, 88, 122\] channels inside, got 7'),
    ('TFNet 0.5', 'first_conv.0.weight',
     r'one of \[8, 16, 24, 32\] channels, got 7'),
])
def test_unknown_size(name, key, message):
    state = random_network(name).state_dict()
    with pytest.raises(ValueError, match=message):
        nmaac2mm.convert({**state, key: torch.zeros(7, 3, 1, 1)})
