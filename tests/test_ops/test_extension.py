"""What only the compiled operators have to show."""
import shutil
import subprocess
import sys
import sysconfig
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
import torch._dynamo
import torch.nn.functional as F
from mmengine.analysis import get_model_complexity_info
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import mm_acon
from mm_acon import ACONA, ACONC, PWLU, MetaACON
from mm_acon.compat import counting_flops, packages_distributions
from mm_acon.ops import acon, extension, pwlu, pwlu_reference, use_reference
from tests.conftest import BUILT, COMPILED
from tests.utils import (EXPORT, FLOP_COUNTER, OPCHECK, assert_near,
                         needs_torch, torch_threads)

pytestmark = pytest.mark.skipif(not BUILT, reason='_ext is not built')
CHANNELS = 5


def pwlu_arguments(shape=(2, CHANNELS, 6, 7), intervals=16, dtype=None):
    torch.manual_seed(0)
    tensors = [
        torch.randn(shape, dtype=dtype) * 2,
        torch.randn(CHANNELS, intervals + 1), -1 - torch.rand(CHANNELS),
        1 + torch.rand(CHANNELS),
        torch.randn(CHANNELS),
        torch.randn(CHANNELS)
    ]
    return [tensor.requires_grad_() for tensor in tensors]


def acon_arguments(beta_shape, shape=(2, CHANNELS, 6, 7)):
    torch.manual_seed(0)
    tensors = [
        torch.randn(shape),
        torch.randn(CHANNELS),
        torch.randn(CHANNELS),
        torch.randn(beta_shape)
    ]
    return [tensor.requires_grad_() for tensor in tensors]


@pytest.mark.parametrize('which, shape, message', (
    (0, (7, ), 'x is not'),
    (1, (4, ), 'p1 of shape .4. does not fit x of shape .2, 5, 6, 7.'),
    (2, (5, 1), 'p2 of shape'),
    (3, (4, ), 'beta of shape .4. does not fit'),
    (3, (1, 5), 'beta of shape .1, 5. on cpu does not fit'),
    (3, (2, 5, 6, 1), 'beta of shape'),
))
def test_direct_call_of_acon(which, shape, message):
    """Where the checks of the public function are gone round."""
    arguments = acon_arguments((CHANNELS, ))
    arguments[which] = torch.zeros(shape)
    with pytest.raises(RuntimeError, match=message):
        torch.ops.mm_acon.acon(*arguments)
    with pytest.raises(RuntimeError, match=message):
        torch.ops.mm_acon.acon_backward(arguments[0], *arguments, [True] * 4)


@pytest.mark.parametrize('which, shape, message', (
    (0, (7, ), 'x is not'),
    (1, (4, 17), 'points of shape .4, 17. does not fit'),
    (1, (CHANNELS, 1), 'points of shape .5, 1. have no interval'),
    (2, (4, ), 'left_bound of shape'),
    (3, (4, ), 'right_bound of shape'),
    (4, (4, ), 'left_slope of shape'),
    (5, (0, ), 'right_slope of shape'),
))
def test_direct_call_of_pwlu(which, shape, message):
    arguments = pwlu_arguments()
    arguments[which] = torch.zeros(shape)
    with pytest.raises(RuntimeError, match=message):
        torch.ops.mm_acon.pwlu(*arguments)
    with pytest.raises(RuntimeError, match=message):
        torch.ops.mm_acon.pwlu_backward(arguments[0], *arguments, [True] * 6)


def test_direct_call_with_another_gradient():
    for operator, arguments in ((torch.ops.mm_acon.acon_backward,
                                 acon_arguments((CHANNELS, ))),
                                (torch.ops.mm_acon.pwlu_backward,
                                 pwlu_arguments())):
        with pytest.raises(RuntimeError, match='the gradient has shape .2, 5'):
            operator(
                torch.zeros(2, CHANNELS, 6), *arguments,
                [True] * len(arguments))


def on(device, arguments):
    return [a.detach().to(device).requires_grad_() for a in arguments]


@OPCHECK
@COMPILED
@pytest.mark.parametrize('layout',
                         (torch.contiguous_format, torch.channels_last))
@pytest.mark.parametrize('beta_shape', ((CHANNELS, ), (1, ), (2, CHANNELS),
                                        (2, 1), (2, CHANNELS, 6, 7)))
def test_opcheck_acon(layout, beta_shape, device):
    x, *rest = on(device, acon_arguments(beta_shape))
    x = x.detach().contiguous(memory_format=layout).requires_grad_()
    torch.library.opcheck(torch.ops.mm_acon.acon.default, (x, *rest))


@OPCHECK
@COMPILED
@pytest.mark.parametrize('dtype', (torch.float32, torch.bfloat16))
@pytest.mark.parametrize('layout',
                         (torch.contiguous_format, torch.channels_last))
def test_opcheck_pwlu(layout, dtype, device):
    x, *rest = on(device, pwlu_arguments(dtype=dtype))
    x = x.detach().contiguous(memory_format=layout).requires_grad_()
    torch.library.opcheck(torch.ops.mm_acon.pwlu.default, (x, *rest))


@pytest.mark.parametrize('intervals', (2, 16, 30, 32, 40))
@pytest.mark.parametrize('shape', ((1, CHANNELS, 3), (2, CHANNELS, 33, 31)))
def test_any_number_of_intervals(intervals, shape):
    """Up to 30 intervals lie in registers where there is AVX-512."""
    arguments = pwlu_arguments(shape, intervals)
    with torch.no_grad():
        # Lengths, inputs and gradients whose sums are exact in float32.
        arguments[0].mul_(16 * intervals).round_().div_(64)
        arguments[2].fill_(-intervals / 8)
        arguments[3].fill_(intervals / 8)
    grad = torch.randn(shape).mul_(8).round_().div_(8)
    for result, expected in zip(
            torch.autograd.grad(pwlu(*arguments), arguments, grad),
            torch.autograd.grad(
                pwlu_reference(*(a.double() for a in arguments)), arguments,
                grad.double())):
        assert_near(result, expected, backward=True)


@pytest.mark.parametrize(
    'operator, arguments',
    ((pwlu, pwlu_arguments((3, CHANNELS, 90, 70))),
     (acon, acon_arguments((CHANNELS, ), (3, CHANNELS, 90, 70)))))
def test_same_bits_with_any_number_of_threads(operator, arguments):
    grad = torch.randn_like(arguments[0])
    found = []
    for threads in (1, 2, 3, 2):
        with torch_threads(threads):
            found.append(
                torch.autograd.grad(operator(*arguments), arguments, grad))
    for other in found[1:]:
        assert all(map(torch.equal, found[0], other))


OPERATORS = pytest.mark.parametrize('operator, arguments', (
    (pwlu, pwlu_arguments()),
    (acon, acon_arguments((CHANNELS, ))),
    (acon, acon_arguments((2, CHANNELS))),
    (acon, acon_arguments((2, CHANNELS, 6, 7))),
))  # yapf: disable


class Calls(TorchDispatchMode):
    """Notes the last argument of every backward operator: what it is for."""

    def __init__(self):
        super().__init__()
        self.asked = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if 'backward' in str(function) and 'mm_acon' in str(function):
            self.asked.append(list(args[-1]))
        return function(*args, **(kwargs or {}))


@OPERATORS
def test_only_what_is_asked_for(operator, arguments):
    """One gradient alone: the same bits, and nothing else is computed."""
    grad = torch.randn_like(arguments[0])
    everything = torch.autograd.grad(operator(*arguments), arguments, grad)
    backward = getattr(torch.ops.mm_acon, f'{operator.__name__}_backward')
    for i in range(len(arguments)):
        asked = [i == j for j in range(len(arguments))]
        with Calls() as calls:
            found = torch.autograd.grad(
                operator(*arguments), arguments[i], grad)
        assert calls.asked == [asked]
        assert torch.equal(found[0], everything[i])
        with torch.no_grad():
            direct = backward(grad, *arguments, asked)
        assert [g is not None for g in direct] == asked
        assert torch.equal(direct[i], everything[i])


@OPERATORS
def test_frozen_parameters_get_no_node_and_no_sums(operator, arguments):
    x, *parameters = (a.detach() for a in arguments)
    y = operator(x.requires_grad_(), *parameters)
    into = [node for node, _ in y.grad_fn.next_functions]
    assert into[0] is not None and into[1:] == [None] * len(parameters)
    with Calls() as calls:
        y.sum().backward()
    assert calls.asked == [[True] + [False] * len(parameters)]


@pytest.mark.skipif(
    not hasattr(torch._C._autograd, '_get_sequence_nr'),
    reason='torch before 2.1 does not count its nodes')
@OPERATORS
def test_no_node_where_nothing_is_differentiated(operator, arguments):
    """Nodes of the graph are numbered, kept or not."""
    fixed = [a.detach() for a in arguments]
    number = torch._C._autograd._get_sequence_nr
    before = number()
    with torch.no_grad():
        operator(*arguments)
    operator(*fixed)
    with torch.inference_mode():
        operator(*fixed)
    assert number() == before
    operator(*arguments)
    assert number() == before + 1


@OPERATORS
def test_second_derivative_is_refused(operator, arguments):
    first, = torch.autograd.grad(
        operator(*arguments).sum(), arguments[0], create_graph=True)
    with pytest.raises(
            RuntimeError, match='has no second derivative. Run the plain-'):
        first.sum().backward()


def test_use_reference(recwarn):
    """It has a second derivative: of x sigmoid(x) at 0, 2 sigmoid'(0)."""
    module, x = mm_acon.ACONA(1), torch.zeros(1, 1, requires_grad=True)

    def second():
        first, = torch.autograd.grad(module(x), x, create_graph=True)
        return torch.autograd.grad(first, x)[0].item()

    with use_reference():
        assert second() == .5
        with pytest.raises(KeyError), use_reference():
            raise KeyError
        assert second() == .5
    assert not recwarn
    with pytest.raises(RuntimeError, match='has no second derivative'):
        second()


@COMPILED
@pytest.mark.parametrize('activation', (ACONC, PWLU))
@pytest.mark.parametrize('autocast', (False, True))
def test_keeps_one_input_for_backward(activation, autocast, device):
    module = activation(64).to(device)
    own = {p.untyped_storage().data_ptr() for p in module.parameters()}
    x = torch.randn(2, 64, 20, 20, device=device)
    if autocast:
        x = x.bfloat16()
    kept = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        with torch.autocast(device, torch.bfloat16, enabled=autocast):
            module(x.requires_grad_())
    constants = 3 * 4  # numbers of ACON that are not learnt
    assert sum(kept.values()) <= x.numel() * x.element_size() + constants


@COMPILED
@pytest.mark.parametrize('activation', (
    ACONA, ACONC, PWLU,
    pytest.param(MetaACON, marks=needs_torch(
        '2.1', 'compiles no autograd.Function that has a gradient'))
))  # yapf: disable
@pytest.mark.parametrize('frozen', (False, True))
def test_compile(activation, frozen, device):
    model = nn.Sequential(nn.Conv2d(3, 8, 3), activation(8)).to(device)
    model[1].requires_grad_(not frozen)
    x = torch.randn(2, 3, 12, 12, device=device)
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend='aot_eager')
    compiled(x).sum().backward()
    trained = [p for p in model.parameters() if p.requires_grad]
    gradients = [p.grad.clone() for p in trained]
    model.zero_grad()
    model(x).sum().backward()
    for parameter, gradient in zip(trained, gradients):
        assert_near(gradient, parameter.grad, backward=True)


@EXPORT
@pytest.mark.parametrize('activation', (ACONC, PWLU, MetaACON))
def test_export(activation):
    model = nn.Sequential(nn.Conv2d(3, 8, 3), activation(8))
    x = torch.randn(2, 3, 12, 12)
    exported = torch.export.export(model.eval(), (x, ))
    assert_near(exported.module()(x), model(x))


@FLOP_COUNTER
@pytest.mark.parametrize('activation, cost', ((ACONC, 4), (PWLU, 2)))
def test_flop_counter_of_torch_knows_the_operators(activation, cost):
    """It counts a multiply-add as two operations."""
    with counting_flops() as counter:
        activation(4)(torch.randn(2, 4, 5, 5))
    assert counter.get_total_flops() == 2 * cost * 200


@pytest.mark.parametrize('activation, cost', ((ACONC, 4), (PWLU, 2)))
def test_flop_counter_of_mmengine_knows_the_operators(activation, cost,
                                                      caplog):
    module = activation(4)
    found = get_model_complexity_info(module, (4, 5, 5))
    assert found['flops'] == cost * 100
    assert 'Unsupported operator mm_acon' not in caplog.text


def test_layouts_are_kept_without_a_copy():
    x = torch.randn(2, 8, 5, 5).contiguous(memory_format=torch.channels_last)
    for module in (ACONC(8), PWLU(8)):
        assert module(x).is_contiguous(memory_format=torch.channels_last)


def python(code, path):
    return subprocess.run([sys.executable, '-W', 'always', '-c', code],
                          capture_output=True,
                          text=True,
                          cwd=path)


@pytest.fixture
def package(tmp_path):
    """A copy of the package without its extension."""
    shutil.copytree(
        Path(mm_acon.__file__).parent,
        tmp_path / 'mm_acon',
        ignore=shutil.ignore_patterns('_ext*', 'csrc', '__pycache__'))
    return tmp_path


def test_without_extension_one_warning(package):
    done = python(
        'import torch, mm_acon\n'
        'm = mm_acon.PWLU(2)\n'
        'for _ in range(3): m(torch.ones(1, 2)), '
        'mm_acon.ACONC(2)(torch.ones(1, 2))', package)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count('has no compiled operators') == 1
    assert 'has no compiled operators for cpu' in done.stderr
    assert 'pip install --no-build-isolation -e .' in done.stderr


def test_warning_of_missing_cuda_operators():
    with pytest.warns(UserWarning) as caught:
        extension._warn_of_reference.__wrapped__('cuda')
    assert 'has no compiled operators for cuda' in str(caught[0].message)
    assert str(caught[0].message).endswith(
        'Build them in the source folder: FORCE_CUDA=1 pip install '
        '--no-build-isolation -e . (needs nvcc)')


def test_broken_extension_is_an_error(package):
    name = '_ext' + sysconfig.get_config_var('EXT_SUFFIX')
    (package / 'mm_acon' / name).write_bytes(b'no library')
    done = python('import mm_acon', package)
    assert done.returncode != 0
    assert 'is there but cannot be loaded' in done.stderr
    assert 'invalid ELF header' in done.stderr or 'too short' in done.stderr


def test_environment_report():
    done = python(
        'import runpy; runpy.run_module("mm_acon.env", '
        'run_name="__main__")', None)
    assert 'operators: compiled for cpu' in done.stdout
    distribution, = set(packages_distributions()['mmengine'])
    assert (f'mmengine   {version(distribution)} (from {distribution})'
            in done.stdout)


def test_silu_is_acon_a():
    x = torch.randn(3, 4, 50)
    assert_near(mm_acon.ACONA(4)(x), F.silu(x))
