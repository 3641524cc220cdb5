"""Trained activations as constants and PyTorch's own operators."""
import copy
from typing import Dict

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..activations import (ACONA, ACONB, ACONC, PWLU, ACONFReLU,
                           LearnableActivation, MetaACON)
from ..activations.pwlu import PHASE_1
from ..ops.checks import (channels_first, channels_last, compute_dtype,
                          per_channel)
from ..ops.pwlu import inference_table, pwlu_table
from ..swap.in_place import carry_over


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

    In PyTorch itself the compiled operators are faster than this.

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
    if isinstance(module, PWLU):
        return _PWLU(module)
    if isinstance(module, MetaACON):
        return _MetaACON(module)
    if isinstance(module, (ACONA, ACONB, ACONC)):
        return _ACON(module)
    if isinstance(module, ACONFReLU):
        return _ACONFReLU(module)
    return module


class _LastAxis(nn.Module):
    """A folded activation for input whose channels lie in the last axis."""

    def __init__(self, folded: nn.Module) -> None:
        super().__init__()
        self.folded = folded

    def forward(self, x: Tensor) -> Tensor:
        if x.dim() == 2:
            return self.folded(x)
        return channels_last(self.folded(channels_first(x)), x)


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
        value = x.to(compute_dtype(x, self.slope))
        gate = torch.sigmoid(per_channel(self.sharpness, x) * value)
        y = value * (
            per_channel(self.slope, x) * gate + per_channel(self.p2, x))
        return y.to(x.dtype)


class _MetaACON(_Folded):

    def __init__(self, acon: MetaACON) -> None:
        super().__init__()
        self.acon = acon
        p2 = acon.p2.double()
        self.constants(acon.p1, slope=acon.p1.double() - p2)

    def forward(self, x: Tensor) -> Tensor:
        value = x.to(compute_dtype(x, self.slope))
        slope = per_channel(self.slope, x)
        # The mean is taken here: the module has an autograd.Function for it,
        # which TorchScript cannot save.
        pooled = self.acon.granularity != 'pixel' and x.dim() > 2
        beta = self.acon.switching_factor(
            x.flatten(2).mean(2) if pooled else x)
        if beta.dim() == 2:
            beta = beta.view(*beta.shape, *[1] * (x.dim() - 2))
        # What is small is multiplied first.
        gate = torch.sigmoid(beta.to(value.dtype) * slope * value)
        y = value * (slope * gate + per_channel(self.acon.p2, x))
        return y.to(x.dtype)


class _ACONFReLU(nn.Module):

    def __init__(self, acon: ACONFReLU) -> None:
        super().__init__()
        self.acon = acon

    def forward(self, x: Tensor) -> Tensor:
        identity, condition = self.acon.lines(x)
        return F.silu(identity - condition) + condition


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
        return pwlu_table(x, self.slope, self.offset, self.left,
                          self.inverse_length)
