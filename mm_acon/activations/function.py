"""The element-wise function in whose place a learnable activation stands."""
import copy
import math
from typing import Optional, Tuple, Union

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# How a function is named in a config: MMCV's act_cfg, a name, or itself.
FunctionLike = Union[None, str, type, dict, nn.Module]


class ElementWise:
    """An element-wise function, as it was before a learned one.

    No nn.Module, so that an activation can have it without a change of its
    state dict's keys and of ``named_modules``.

    Args:
        function (optional): A config as MMCV's ``act_cfg``, a name of a type
            of MMCV or ``torch.nn``, a class, or a module, of which a copy is
            made. None is ReLU.
        owner (str): Whose it is, for messages.

    Attributes:
        module (nn.Module): The copy, never in place.
        corners (tuple[float], optional): Where the slope jumps, from left to
            right, None where the function is not made of straight pieces.

    Raises:
        ValueError: the function has parameters, PReLU's slopes apart, or is
            not element-wise, or not the same at every call.
    """

    def __init__(self,
                 function: FunctionLike = None,
                 owner: str = 'ElementWise') -> None:
        self.module = _build(function, owner)
        for module in self.module.modules():
            if hasattr(module, 'inplace'):
                module.inplace = False
        self.module.requires_grad_(False)
        self.corners, self._slopes = _pieces(self.module)
        if not self.is_prelu:
            self._refuse_what_is_not_element_wise(owner)
        self.module.eval()

    @property
    def name(self) -> str:
        return type(self.module).__name__

    @property
    def is_relu(self) -> bool:
        return type(self.module) is nn.ReLU

    @property
    def is_prelu(self) -> bool:
        return type(self.module) is nn.PReLU

    @property
    def slopes(self) -> Optional[Tensor]:
        """PReLU's slopes left of 0, (C,) or (1,); None for others."""
        return self.module.weight.data if self.is_prelu else None

    @slopes.setter
    def slopes(self, value: Tensor) -> None:
        self.module.num_parameters = value.numel()
        self.module.weight.data = value.detach().flatten().to(
            self.module.weight, copy=True)

    def __call__(self, x: Tensor, slopes: Optional[Tensor] = None) -> Tensor:
        """The function of x.

        Args:
            x (Tensor): Any shape; (N, C, ...) for a PReLU.
            slopes (Tensor, optional): PReLU's slopes, those that it has if
                None.
        """
        if self.is_prelu:
            slopes = self.slopes if slopes is None else slopes
            return F.prelu(x, slopes.to(x))
        # No call of a module: hooks on it, and tracers, are for others.
        return self.module.forward(x)

    def outer_slopes(self, left: Tensor, right: Tensor,
                     slopes: Optional[Tensor]) -> Tuple[Tensor, Tensor]:
        """Slopes just left of one place and just right of another.

        For functions of straight pieces, exactly. All are of one shape.
        """
        pieces = [
            torch.full_like(left, slope) if slopes is None
            or not math.isnan(slope) else slopes.to(left).expand_as(left)
            for slope in self._slopes
        ]
        left_slope, right_slope = pieces[0], pieces[0]
        for corner, slope in zip(self.corners, pieces[1:]):
            left_slope = torch.where(left > corner, slope, left_slope)
            right_slope = torch.where(right >= corner, slope, right_slope)
        return left_slope, right_slope

    def far_slopes(self) -> Optional[Tuple[float, float]]:
        """Slopes far left and far right, None where they go on changing.

        Of a PReLU those of its first channel.
        """
        x = torch.tensor([[-60., -59., -30., -29., 29., 30., 59., 60.]],
                         dtype=torch.float64,
                         device='cpu')
        y = self(x, None if self.slopes is None else self.slopes[:1])
        found = y[0, 1::2] - y[0, ::2]
        left, right = found[:2], found[2:]
        if (left.diff().abs() > 1e-3) or (right.diff().abs() > 1e-3):
            return None
        # Plus 0, so that none is -0.
        return round(left[0].item(), 6) + 0., round(right[1].item(), 6) + 0.

    def _refuse_what_is_not_element_wise(self, owner: str) -> None:
        about = f'{owner} stands in place of an element-wise function, and '
        held = [name for name, _ in self.module.named_parameters()]
        held += [name for name, _ in self.module.named_buffers()]
        if held:
            raise ValueError(
                f'{about}{self.name} has numbers of its own '
                f'({", ".join(held)}), which would be lost; of functions with '
                'parameters it takes PReLU alone. Write function=None, or '
                'leave this site out.')
        generator = torch.Generator().manual_seed(0)
        x, other = 16 * torch.rand(
            2, 2, 3, 4, 5, generator=generator, device='cpu') - 8
        some = torch.rand(x.shape, generator=generator, device='cpu') < .5
        before = x.clone()
        self.module.train()
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            try:
                y, again = self(x.clone()), self(x)
                mixed = self(torch.where(some, x, other))
                turned = self(x.flip(0, 1, 2, 3)).flip(0, 1, 2, 3)
            except Exception as error:
                raise ValueError(
                    f'{about}{self.name} is none: it fails on a tensor of '
                    f'shape {tuple(x.shape)} ({type(error).__name__}: '
                    f'{error}).') from error
        if isinstance(y, Tensor) and not y.isfinite().all():
            raise ValueError(f'{about}{self.name} has no value for some '
                             'numbers from -8 to 8.')
        if isinstance(y, Tensor) and not torch.equal(y, again):
            raise ValueError(
                f'{about}{self.name} gives the same number another value in '
                'another call of training.')
        if (not isinstance(y, Tensor) or y.shape != x.shape
                or not torch.equal(x, before)
                or not torch.allclose(mixed[some], y[some])
                or not torch.allclose(turned, y)):
            raise ValueError(
                f'{about}{self.name} is none: a number of its output depends '
                'on more than one of the input.')


def _build(function: FunctionLike, owner: str) -> nn.Module:
    if function is None:
        return nn.ReLU()
    if isinstance(function, nn.Module):
        return copy.deepcopy(function)
    if isinstance(function, (str, type)):
        function = dict(type=function)
    if not isinstance(function, dict) or 'type' not in function:
        raise ValueError(
            f'{owner} expects function to be the activation in whose place '
            "it stands, as dict(type='SiLU'), 'SiLU' or torch.nn.SiLU(), got "
            f'{function!r}.')
    # MMCV's registry has not all of torch's, and its SiLU is torch's.
    kind = getattr(nn, str(function['type']), function['type'])
    with torch.device('cpu'):
        if isinstance(kind, type):
            return kind(**{k: function[k] for k in function if k != 'type'})
        from mmcv.cnn import build_activation_layer
        return build_activation_layer(dict(function))


def _pieces(module: nn.Module):
    """Corners and slopes of a function of straight pieces, or None twice.

    NaN stands for PReLU's slopes.
    """
    kind = type(module)
    if kind is nn.ReLU:
        return (0., ), (0., 1.)
    if kind in (nn.ReLU6, nn.Hardtanh):
        return (float(module.min_val), float(module.max_val)), (0., 1., 0.)
    if kind is nn.LeakyReLU:
        return (0., ), (float(module.negative_slope), 1.)
    if kind is nn.PReLU:
        return (0., ), (math.nan, 1.)
    return None, None


def normal_grid(units: int,
                mean: Union[float, Tensor] = 0.,
                std: Union[float, Tensor] = 1.,
                steps: int = 2401) -> Tuple[Tensor, Tensor]:
    """Inputs from mean - 6 std to mean + 6 std, and the normal's weights.

    Returns:
        tuple[Tensor]: (units, steps) and (steps,), float64, on the CPU.
    """
    t = torch.linspace(-6, 6, steps, dtype=torch.float64, device='cpu')
    mean, std = (
        torch.as_tensor(value, dtype=torch.float64,
                        device='cpu').expand(units)[:, None]
        for value in (mean, std))
    return mean + std * t, torch.exp(-t.square() / 2)
