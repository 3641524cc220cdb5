"""PWLU's numbers for a function between given bounds."""
import functools
from typing import NamedTuple, Optional, Tuple

import torch
from torch import Tensor

from .function import ElementWise, normal_grid

# Units that are fitted at once.
_CHUNK = 128
# How far from the mean a corner gets a knot, in std.
_REACH = 12
# How far from a knot a corner may lie, in intervals: rounding.
_ON_KNOT = 1e-5


class Form(NamedTuple):
    """Y, K_L and K_R of some units, and which are the function exactly."""
    points: Tensor
    left_slope: Tensor
    right_slope: Tensor
    is_exact: Tensor


def form_of(function: ElementWise,
            num_intervals: int,
            left: Tensor,
            right: Tensor,
            slopes: Optional[Tensor] = None) -> Form:
    r"""The numbers with which a PWLU is a function, as well as it can be.

    Where all corners of a function of straight pieces lie on knots, or out
    of reach, and for ReLU always (arXiv 2104.03693, Eq. 6), Y are its values
    at the knots and :math:`K_L`, :math:`K_R` its slopes at the bounds.
    Otherwise they are its least-squares fit under a normal input whose mean
    -+ 3 std are the bounds, out to 6 std.

    Args:
        function (ElementWise): The function.
        num_intervals (int): N.
        left (Tensor): :math:`B_L`, (units,).
        right (Tensor): :math:`B_R`, (units,).
        slopes (Tensor, optional): Of a PReLU, (units,) or (1,).

    Returns:
        Form: Of left's dtype, on the CPU.
    """
    left, right = left.cpu(), right.cpu()
    slopes = slopes if slopes is None else slopes.cpu()
    steps = torch.arange(num_intervals + 1, device='cpu')
    length = (right - left) / num_intervals
    knots = left[:, None] + steps * length[:, None]
    if function.corners is None:
        return _fit(function, num_intervals, left, right, slopes)
    points = _values(function, knots.double(), slopes).to(left.dtype)
    interpolated, is_exact = True, True
    for corner in function.corners:
        place = (corner - left) / length
        on_knot = (place - place.round()).abs() <= _ON_KNOT
        # From the middle of the bounds, 6 std are N intervals.
        distance = (place - num_intervals / 2).abs()
        is_exact = is_exact & on_knot & (
            distance <= num_intervals / 2 + _ON_KNOT)
        interpolated = interpolated & (is_exact | (distance >= num_intervals))
    form = Form(points, *function.outer_slopes(left, right, slopes), is_exact)
    if function.is_relu or interpolated.all():
        return form
    fit = _fit(function, num_intervals, left, right, slopes)
    return Form(*(torch.where(
        interpolated.view(-1, *[1] * (mine.dim() - 1)), mine, fitted)
                  for mine, fitted in zip(form, fit)))


def exact_bound(function: ElementWise, num_intervals: int) -> float:
    """The bound nearest to 3 with which a fresh unit is the function.

    3 where there is no such bound.
    """
    corners = [corner for corner in function.corners or () if corner]
    if not corners:
        return 3.
    # The outermost corner k intervals from the middle.
    furthest = max(map(abs, corners))
    found = [
        furthest * num_intervals / (2 * k)
        for k in range(1, num_intervals // 2 + 1)
    ]

    def error(bound: float) -> float:
        """Of the knots, which are computed in float32, in intervals."""
        length = torch.tensor(2 * bound / num_intervals, device='cpu').item()
        places = [corner / length for corner in corners]
        return max(abs(place - round(place)) for place in places)

    # Without rounding if there is one; of two as near the wider one.
    return min((bound for bound in found if error(bound) <= _ON_KNOT),
               key=lambda bound: (error(bound) > 0, abs(bound - 3), -bound),
               default=3.)


def corner_is_near(function: ElementWise, left: Tensor,
                   right: Tensor) -> Tensor:
    """Whether a corner lies within 12 std of the mean, (units,)."""
    reach = (_REACH - 3) * (right - left) / 6
    near = [(left - reach < corner) & (corner < right + reach)
            for corner in function.corners]
    return torch.stack(near).any(0)


def with_knots_at_corners(function: ElementWise, num_intervals: int,
                          left: Tensor,
                          right: Tensor) -> Tuple[Tensor, Tensor]:
    """Bounds near those given, with a knot at every corner within 12 std.

    A bound beyond which a corner lies moves there, by 9 std at most: what is
    rare counts where nearly all of the output is 0. Around
    one corner both move by half an interval at most. Around two their
    distance changes too; a unit whose bounds would come to less than half of
    what they span stays as it is. So does ReLU, for which Eq. 6 has the
    bounds as they are.

    Args:
        function (ElementWise): The function.
        num_intervals (int): N.
        left (Tensor): :math:`B_L`, mean - 3 std, (units,).
        right (Tensor): :math:`B_R`, mean + 3 std, (units,).
    """
    if function.corners is None or function.is_relu:
        return left, right
    first, last = function.corners[0], function.corners[-1]
    low, high = left.double(), right.double()
    reach = (_REACH - 3) * (high - low) / 6
    for corner in (first, last):
        low, high = (torch.where((low - reach < corner) & (corner < low),
                                 corner, low),
                     torch.where((high < corner) & (corner < high + reach),
                                 corner, high))
    has_first = (low <= first) & (first <= high)
    has_last = (low <= last) & (last <= high)
    length = (high - low) / num_intervals
    # As many whole intervals between the two corners as fit best.
    between = ((last - first) / length).round().clamp(min=1)
    new_length = torch.where(has_first & has_last & (first < last),
                             (last - first) / between, length)
    middle = (low + high) / 2
    anchor = torch.where(has_first, first, last)
    index = ((anchor - middle) / new_length).round() + num_intervals // 2
    new_left = anchor - index * new_length
    moved = (has_first | has_last) & (new_length >= length / 2)
    return (torch.where(moved, new_left.to(left), left),
            torch.where(moved,
                        (new_left + num_intervals * new_length).to(right),
                        right))


def _values(function: ElementWise, x: Tensor,
            slopes: Optional[Tensor]) -> Tensor:
    """The function of (units, L)."""
    return function(x[None], None if slopes is None else slopes.to(x))[0]


@functools.lru_cache(maxsize=None)
def _projection(num_intervals: int) -> Tensor:
    """(N + 3, L): from a function's values on a grid to its best fit.

    In units of the input's std, so that it is the same for every unit. The
    columns of the design are the hats of N + 1 knots, the first and the last
    going on beyond, and what the two slopes add.
    """
    (t, ), weight = normal_grid(1)
    place = (t + 3) * num_intervals / 6
    knots = torch.arange(num_intervals + 1, dtype=t.dtype, device='cpu')
    inside = place.clamp(0, num_intervals)
    hats = (1 - (inside[:, None] - knots).abs()).clamp(min=0)
    outside = torch.stack([(t + 3).clamp(max=0), (t - 3).clamp(min=0)], 1)
    root = weight.sqrt()[:, None]
    design = torch.cat([hats, outside], 1)
    return torch.linalg.pinv(design * root) * root.T


def _fit(function: ElementWise, num_intervals: int, left: Tensor,
         right: Tensor, slopes: Optional[Tensor]) -> Form:
    mean, std = (left.double() + right) / 2, (right.double() - left) / 6
    slopes = slopes if slopes is None else slopes.expand_as(mean)
    projection, found = _projection(num_intervals), []
    for start in range(0, len(mean), _CHUNK):
        part = slice(start, start + _CHUNK)
        x, _ = normal_grid(len(mean[part]), mean[part], std[part])
        values = _values(function, x,
                         slopes if slopes is None else slopes[part])
        found.append(values @ projection.T)
    found = torch.cat(found)
    numbers = (found[:, :-2], found[:, -2] / std, found[:, -1] / std)
    return Form(*(number.to(left) for number in numbers),
                torch.zeros_like(left, dtype=torch.bool))
