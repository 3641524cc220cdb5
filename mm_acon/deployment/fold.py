"""Trained activations as constants and PyTorch's own operators."""
import copy
from typing import Dict

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..activations import (ACONA, ACONB, ACONC, APL, PAU, PWLU, ACONFReLU,
                           FReLU, LearnableActivation, MetaACON)
from ..activations.apl import apl
from ..activations.pau import pau
from ..activations.pwlu import PHASE_1
from ..ops.checks import compute_dtype, per_channel, per_sample
from ..ops.pwlu import inference_table, look_up
from ..swap.in_place import carry_over

# torch.fx traces with stand-ins of tensors, which have no dtype and no number
# of axes. What asks for those is one node of a graph.
for _name in ('acon_curve', 'meta_acon_curve', 'look_up', 'apl', 'pau'):
    torch.fx.wrap(_name)


def fold_activations(model: nn.Module) -> nn.Module:
    r"""A copy of a model for export, with what does not change worked out.

    Every activation of the package becomes constants and PyTorch's own
    operators; :func:`mm_acon.ops.acon` and :func:`mm_acon.ops.pwlu` are
    operators that other runtimes do not have. The function stays the same
    but for rounding:

    - ACON: :math:`x (a \sigma(b x) + p_2)` with :math:`a = p_1 - p_2`,
      :math:`b = \beta a`. meta-ACON the same, with :math:`\beta` computed.
    - PWLU: the inference table of arXiv 2104.03693, Sec. 4.3, one look-up
      and one multiply-add. In Phase I: the function in whose place it
      stands, ReLU or another.

    - FReLU, APL, PAU and the others: as they are, without checks.

    ``torch.fx.symbolic_trace`` and ``torch.jit.script`` take the copy. In
    PyTorch itself the compiled operators are faster than this.

    Args:
        model (nn.Module): Any model, or one activation. It stays as it is.

    Returns:
        nn.Module: The copy, in eval mode. It cannot be trained.

    Raises:
        ValueError: An activation has met no input yet, and so has no width.
    """
    for name, module in model.named_modules():
        if isinstance(module, LearnableActivation) and module.is_lazy:
            raise ValueError(
                f'The activation {name!r}, a {type(module).__name__}, has no '
                'width yet. Load a checkpoint or run one forward pass before '
                'fold_activations, or write num_channels.')
    model = copy.deepcopy(model)
    # Some backbones' own eval() returns None.
    model.eval()
    # A module may be registered in several places.
    folded: Dict[nn.Module, nn.Module] = {}
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, LearnableActivation):
                if child not in folded:
                    folded[child] = _fold(child)
                    if folded[child] is not child:
                        carry_over(child, folded[child])
                setattr(parent, name, folded[child])
    return _fold(model)


def _fold(module: nn.Module) -> nn.Module:
    if isinstance(module, PWLU) and module.current_phase == PHASE_1:
        function = copy.deepcopy(module.function)
        if not function.is_prelu:
            return function.module  # It asks for no axis.
        function.slopes = module.left_slope
        folded = function.module.to(module.points)
    else:
        folded = _of_axis_1(module)
    if folded is module or module.channel_axis != -1:
        return folded
    return _LastAxis(folded)


def _of_axis_1(module: nn.Module) -> nn.Module:
    """The same for input of shape (N, C, ...)."""
    for types, folded in ((PWLU, _PWLU), (MetaACON, _MetaACON),
                          ((ACONA, ACONB, ACONC),
                           _ACON), ((FReLU, ACONFReLU),
                                    _Funnel), (APL, _APL), (PAU, _PAU)):
        if isinstance(module, types):
            return folded(module)
    return module


class _LastAxis(nn.Module):
    """A folded activation for input whose channels lie in the last axis."""

    def __init__(self, folded: nn.Module) -> None:
        super().__init__()
        self.folded = folded

    def forward(self, x: Tensor) -> Tensor:
        return self.folded(x.movedim(-1, 1)).movedim(1, -1)


class _Folded(nn.Module):
    """Holds constants, worked out in float64."""

    def constants(self, like: Tensor, **values: Tensor) -> None:
        for name, value in values.items():
            self.register_buffer(name, value.detach().to(like.dtype))


class _ACON(_Folded):

    def __init__(self, acon: nn.Module) -> None:
        super().__init__()
        p2 = acon.p2.double()
        slope = acon.p1.double() - p2
        self.constants(
            acon.p1, slope=slope, sharpness=acon.beta.double() * slope, p2=p2)

    def forward(self, x: Tensor) -> Tensor:
        return acon_curve(x, self.slope, self.sharpness, self.p2)


def acon_curve(x: Tensor, slope: Tensor, sharpness: Tensor,
               p2: Tensor) -> Tensor:
    value = x.to(compute_dtype(x))
    gate = torch.sigmoid(per_channel(sharpness, x) * value)
    y = value * (per_channel(slope, x) * gate + per_channel(p2, x))
    return y.to(x.dtype)


class _MetaACON(_Folded):

    def __init__(self, acon: MetaACON) -> None:
        super().__init__()
        p2 = acon.p2.double()
        self.constants(acon.p1, slope=acon.p1.double() - p2, p2=p2)
        self.beta = {
            'channel': _ChannelBeta,
            'layer': _LayerBeta,
            'pixel': _PixelBeta
        }[acon.granularity](
            acon)

    def forward(self, x: Tensor) -> Tensor:
        return meta_acon_curve(x, self.beta(x), self.slope, self.p2)


def meta_acon_curve(x: Tensor, beta: Tensor, slope: Tensor,
                    p2: Tensor) -> Tensor:
    value = x.to(compute_dtype(x))
    slope = per_channel(slope, x)
    if beta.dim() == 2:
        beta = per_sample(beta, x)
    # What is small is multiplied first.
    gate = torch.sigmoid(beta.to(value.dtype) * slope * value)
    return (value * (slope * gate + per_channel(p2, x))).to(x.dtype)


def _mean(x: Tensor) -> Tensor:
    """Over the map: (N, C). That of (N, C) is x, for which it has one axis."""
    return x.unsqueeze(-1).flatten(2).mean(2)


class _PixelBeta(nn.Module):

    def __init__(self, acon: MetaACON) -> None:
        super().__init__()

    def forward(self, x: Tensor) -> Tensor:
        return torch.sigmoid(x)


class _LayerBeta(nn.Module):

    def __init__(self, acon: MetaACON) -> None:
        super().__init__()

    def forward(self, x: Tensor) -> Tensor:
        return torch.sigmoid(_mean(x).sum(1, keepdim=True))


class _ChannelBeta(nn.Module):

    def __init__(self, acon: MetaACON) -> None:
        super().__init__()
        self.layers = nn.Sequential(_Connected(acon, 1), _Connected(acon, 2))

    def forward(self, x: Tensor) -> Tensor:
        return torch.sigmoid(self.layers(_mean(x)))


class _Connected(_Folded):
    """A fully connected layer of a meta-ACON, and its norm."""

    def __init__(self, acon: MetaACON, index: int) -> None:
        super().__init__()
        layer = getattr(acon, f'fc{index}')
        self.depthwise = acon.depthwise
        self.constants(
            layer.weight, weight=layer.weight.flatten(1), bias=layer.bias)
        self.norm = getattr(acon, f'bn{index}', nn.Identity())

    def forward(self, x: Tensor) -> Tensor:
        x = x.to(self.weight.dtype)
        if self.depthwise:
            y = x * self.weight.squeeze(1) + self.bias
        else:
            y = F.linear(x, self.weight, self.bias)
        return self.norm(y[:, :, None, None]).flatten(1)


class _Funnel(nn.Module):

    def __init__(self, funnel: nn.Module) -> None:
        super().__init__()
        self.is_smooth = isinstance(funnel, ACONFReLU)
        self.stride, self.conv, self.norm = (funnel.stride, funnel.conv,
                                             funnel.norm)

    def forward(self, x: Tensor) -> Tensor:
        condition = self.norm(self.conv(x))
        if self.stride == 2:
            x = F.max_pool2d(x, 3, stride=2, padding=1)
        if self.is_smooth:
            return F.silu(x - condition) + condition
        return torch.maximum(x, condition)


class _APL(_Folded):

    def __init__(self, activation: APL) -> None:
        super().__init__()
        self.constants(activation.a, a=activation.a, b=activation.b)

    def forward(self, x: Tensor) -> Tensor:
        return apl(x, self.a, self.b)


class _PAU(_Folded):

    def __init__(self, activation: PAU) -> None:
        super().__init__()
        self.constants(activation.a, a=activation.a, b=activation.b)

    def forward(self, x: Tensor) -> Tensor:
        return pau(x, self.a, self.b)


class _PWLU(_Folded):

    def __init__(self, pwlu: PWLU) -> None:
        super().__init__()
        slope, offset, left, inverse_length = inference_table(
            *(p.detach().double() for p in pwlu.parameters()))
        self.constants(
            pwlu.points,
            slope=slope,
            offset=offset,
            left=left,
            inverse_length=inverse_length)

    def forward(self, x: Tensor) -> Tensor:
        return look_up(x, self.slope, self.offset, self.left,
                       self.inverse_length)
