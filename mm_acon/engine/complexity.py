"""Tells the FLOP counters of torch and mmengine what the operators cost."""
import torch
from mmengine.analysis import complexity_analysis
from mmengine.analysis.jit_handles import elementwise_flop_counter

from ..ops.extension import DEVICES
from ..versions import register_flop_formula

# Multiply-adds per element, as MMEngine counts; a sigmoid counts as one.
_COST = dict(acon=4, pwlu=2)


def register_costs() -> None:
    for name, cost in _COST.items():
        complexity_analysis._DEFAULT_SUPPORTED_FLOP_OPS[f'mm_acon::{name}'] = (
            elementwise_flop_counter(cost, 0))
        if not DEVICES:
            continue
        operator = getattr(torch.ops.mm_acon, name)

        # torch counts a multiply-add as two.
        def count(x_shape, *args, cost=cost, **kwargs) -> int:
            return 2 * cost * x_shape.numel()

        register_flop_formula(operator)(count)
