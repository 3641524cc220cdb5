"""mm_acon.ops.spatial_mean against Tensor.mean in float64."""
import pytest
import torch

from mm_acon.ops import spatial_mean, use_reference
from mm_acon.ops.spatial_mean import _HAS_KERNEL
from tests.test_ops.test_views import COPIED, VIEWS
from tests.utils import DTYPES, OPCHECK, assert_near, torch_threads


def test_by_hand():
    x = torch.tensor([[[1., 2., 6.], [-1., 0., -2.]]], requires_grad=True)
    mean = spatial_mean(x)
    assert mean.tolist() == [[3., -1.]]
    mean.backward(torch.tensor([[6., 3.]]))
    assert x.grad.tolist() == [[[2., 2., 2.], [1., 1., 1.]]]


def check(x):
    mean = spatial_mean(x)
    assert mean.dtype == x.dtype and mean.is_contiguous()
    assert_near(mean, x.double().flatten(2).mean(2))


@pytest.mark.parametrize('dtype', DTYPES)
@pytest.mark.parametrize('shape', [(3, 5, 7, 3), (1, 1030, 3, 2),
                                   (1, 2, 130, 131)])
@pytest.mark.parametrize('layout', [*VIEWS, *COPIED])
def test_layouts(dtype, shape, layout):
    check({**VIEWS, **COPIED}[layout](torch.randn(shape).to(dtype) + 1))


@pytest.mark.parametrize('dtype', DTYPES)
def test_one_axis_and_three(dtype):
    check(torch.randn(2, 40, 37).to(dtype))
    check(torch.randn(2, 17, 9, 8, 4).to(dtype))


def test_half_is_added_up_in_float32():
    """65,536 ones: bfloat16 stays at 256, float16 is infinite."""
    for dtype in (torch.bfloat16, torch.float16):
        for format in (torch.contiguous_format, torch.channels_last):
            x = torch.ones(1, 2, 256, 512, dtype=dtype)
            x = x.contiguous(memory_format=format)
            assert spatial_mean(x).tolist() == [[1., 1.]]


def test_empty_nan_and_no_places():
    assert spatial_mean(torch.empty(0, 3, 2, 2)).shape == (0, 3)
    assert spatial_mean(torch.empty(2, 3, 0, 2)).isnan().all()
    x = torch.zeros(1, 2, 2, 2)
    x[0, 1, 1, 1] = torch.nan
    assert spatial_mean(x)[0, 0] == 0 and spatial_mean(x)[0, 1].isnan()
    vector = torch.randn(2, 3)
    assert spatial_mean(vector) is vector


def test_gradient_is_no_tensor_of_x_s_size():
    x = torch.randn(2, 3, 4, 5, dtype=torch.float64, requires_grad=True)
    y = spatial_mean(x)
    gradient, = torch.autograd.grad(y, x, torch.ones_like(y))
    assert gradient.untyped_storage().nbytes() == 6 * 8
    assert torch.autograd.gradcheck(spatial_mean, x)
    assert torch.autograd.gradgradcheck(spatial_mean, x)


@pytest.mark.skipif(not _HAS_KERNEL, reason='_ext is not built')
def test_no_second_map_is_made():
    with torch.profiler.profile() as profile:
        spatial_mean(torch.randn(2, 3, 8, 8))
    mean, = [e for e in profile.events() if e.name == 'mm_acon::spatial_mean']
    assert [child.name for child in mean.cpu_children] == ['aten::empty']


def test_any_number_of_threads_gives_the_same_bits():
    for format in (torch.contiguous_format, torch.channels_last):
        x = torch.randn(2, 70, 150, 150).contiguous(memory_format=format)
        with torch_threads(1):
            one = spatial_mean(x)
        with torch_threads(3):
            three = spatial_mean(x)
        assert torch.equal(one, three)


def test_reference_and_transforms():
    x = torch.randn(2, 3, 4, 5)
    expected = x.mean((2, 3))
    with use_reference():
        assert_near(spatial_mean(x), expected)
    assert_near(torch.func.vmap(spatial_mean)(x[None])[0], expected)
    assert spatial_mean(x.to('meta')).shape == (2, 3)


@OPCHECK
@pytest.mark.skipif(not _HAS_KERNEL, reason='no kernel for the CPU')
def test_operator():
    for x in (torch.randn(2, 3, 4, 5), torch.randn(2, 3, 7).bfloat16()):
        torch.library.opcheck(torch.ops.mm_acon.spatial_mean.default, (x, ))


def test_refuses():
    with pytest.raises(ValueError, match=r'spatial_mean expects .*\(3,\)'):
        spatial_mean(torch.randn(3))
    with pytest.raises(TypeError, match='spatial_mean expects .*int64'):
        spatial_mean(torch.ones(1, 2, 3, dtype=torch.int64))
