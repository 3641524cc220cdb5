"""Shows that new activations at the chosen places leave a network as it is.

Before they go in, the network is run with the *same* activations at those
places, and has to give the outputs and gradients that it gave, exactly. They
are stand-ins that keep their input for the backward pass, as ACON and PWLU
do, and never work in place.
"""
import copy
import random
import time
from dataclasses import dataclass
from functools import partial
from typing import Dict, Iterable, List, Optional, Set, Tuple

import numpy as np
import torch
from torch import Tensor, nn

from ..nested import tensors
from .replacement import Replacement
from .report import Proof
from .samples import Sample, SampleInput, first_run, samples
from .state import in_mode, kept_state

_MODES = {False: 'evaluation', True: 'training'}


class _Recomputed(torch.autograd.Function):
    """Calls an activation; keeps its input and nothing else."""

    @staticmethod
    def forward(ctx, x: Tensor, activation: nn.Module, *parameters:
                Tensor) -> Tensor:
        ctx.activation = activation
        ctx.random_state = torch.get_rng_state()
        ctx.save_for_backward(x)
        return activation(x)

    @staticmethod
    def backward(ctx, grad: Tensor):
        x = ctx.saved_tensors[0].detach().requires_grad_()
        parameters = [
            p for p in ctx.activation.parameters() if p.requires_grad
        ]
        with torch.random.fork_rng(()), torch.enable_grad():
            # RReLU draws.
            torch.set_rng_state(ctx.random_state)
            y = ctx.activation(x)
        found = iter(
            torch.autograd.grad(y, [x, *parameters], grad, allow_unused=True))
        return (next(found), None, *(next(found) if p.requires_grad else None
                                     for p in ctx.activation.parameters()))


class StandIn(nn.Module):
    """The same activation, as one that keeps its input would work."""

    def __init__(self, old: nn.Module) -> None:
        super().__init__()
        # Not a deep copy: parameters are shared between its calls.
        self.activation = copy.copy(old)
        self.activation.inplace = False
        self.inputs: List[Tuple[Tensor, int]] = []

    def forward(self, x: Tensor) -> Tensor:
        if x.requires_grad:
            self.inputs.append((x, x._version))
        return _Recomputed.apply(x, self.activation,
                                 *self.activation.parameters())

    def input_was_changed(self) -> bool:
        """Whether its input is not any more what it was called with."""
        changed = any(x._version != version for x, version in self.inputs)
        self.inputs.clear()
        return changed


class _InputChanged(Exception):
    """Something writes to what an activation was given."""

    def __init__(self, changed: Set[StandIn]) -> None:
        super().__init__()
        self.changed = changed


_COMPARED = 'outputs', 'gradients', 'buffers'


def _no_gradients(root: nn.Module) -> str:
    """Why a backward pass would end the process; empty if it would not.

    With mmcv 2.1 it does so in DetectoRS as it ships, on the CPU: the kernel
    of a deformable convolution reads outside of its tensors.
    """
    for name, module in root.named_modules():
        if (type(module).__name__ == 'SAConv2d' and module.use_deform
                and not module.weight.is_cuda):
            return (f'a backward pass of {name}, an SAConv2d of MMCV with '
                    'use_deform, ends the process on the CPU')
    return ''


@dataclass
class _Observed:
    """What one pass gave."""
    outputs: List[Tensor]
    gradients: List[Optional[Tensor]]
    buffers: List[Tensor]

    def distance(self, other: '_Observed') -> float:
        return max(
            _largest_difference(getattr(self, what), getattr(other, what))
            for what in _COMPARED)

    def difference(self, other: '_Observed', tolerance: float) -> str:
        for what in _COMPARED:
            largest = _largest_difference(
                getattr(self, what), getattr(other, what))
            if not largest <= tolerance:
                return f'{what} differ by {largest:.2g} of their largest value'
        return ''


def _largest_difference(ours: list, others: list) -> float:
    """The largest difference over the largest value, NaN being the same."""
    if len(ours) != len(others):
        return float('inf')
    largest = 0.
    for one, other in zip(ours, others):
        if (one is None) != (other is None):
            return float('inf')
        if one is None:
            continue
        if one.shape != other.shape:
            return float('inf')
        if torch.equal(one, other):
            continue
        one, other = (x.detach().double().nan_to_num() for x in (one, other))
        scale = float(other.abs().max()) or 1.
        largest = max(largest, float((one - other).abs().max()) / scale)
    return largest


@dataclass
class _Case:
    """A pass of the old network that others have to equal."""
    training: bool
    sample: Sample
    reference: _Observed
    # Other than 0 if the network gives other numbers in a second pass.
    tolerance: float = 0.


class _Prover:

    def __init__(self, root: nn.Module,
                 sample_input: Optional[SampleInput]) -> None:
        self.root = root
        self.no_gradients = _no_gradients(root)
        # Those of convolutions and fully connected layers follow from these
        # and from what comes in, and would take the room of the weights.
        self.small = [p for p in root.parameters() if p.dim() < 2]
        self.cases: List[_Case] = []
        self.failures: Dict[str, str] = {}
        for training, mode in _MODES.items():
            case, texts, _ = first_run(
                samples(root, sample_input, True, training),
                partial(self.reference, training))
            if case is None:
                self.failures[mode] = texts[-1]
            else:
                self.cases.append(case)

    def reference(self, training: bool, sample: Sample) -> _Case:
        return _Case(training, sample, self.observe(sample, training))

    def observe(
        self,
        sample: Sample,
        training: bool,
        stand_ins: Iterable[StandIn] = ()) -> _Observed:
        """One pass.

        Raises:
            _InputChanged: the input of a stand-in is changed in place.
        """
        root = self.root
        wanted = {p: p.requires_grad for p in root.parameters()}
        buffers = [b for b in root.buffers() if b.is_floating_point()]
        with kept_state(root, sample.cuda_devices), in_mode(
                root, training), torch.enable_grad():
            torch.manual_seed(0)
            np.random.seed(0)
            random.seed(0)
            try:
                for parameter in wanted:
                    parameter.requires_grad_(parameter.is_floating_point()
                                             and parameter.dim() < 2)
                result, leaves = sample.run(root)
                changed = {s for s in stand_ins if s.input_was_changed()}
                if changed:
                    raise _InputChanged(changed)
                outputs = list(tensors(result))
                gradients = [] if self.no_gradients else _gradients(
                    outputs, [*leaves, *self.small])
            finally:
                for parameter, flag in wanted.items():
                    parameter.requires_grad_(flag)
            return _Observed([t.detach() for t in outputs], gradients,
                             [b.clone() for b in buffers])

    def measure_noise(self) -> None:
        """Some networks give other numbers in a second pass."""
        for case in self.cases:
            again = self.observe(case.sample, case.training)
            case.tolerance = 10 * again.distance(case.reference)

    def check(self, replacements: Iterable[Replacement]) -> str:
        """How the network differs with stand-ins there; empty if it does not.

        A site whose input turns out to be changed gets a copy of it.
        """
        replacements = list(replacements)
        for case in self.cases:
            difference = self._check_case(case, replacements)
            if difference:
                return f'in {_MODES[case.training]} {difference}'
        return ''

    def _check_case(self, case: _Case, replacements: List[Replacement]) -> str:
        stand_ins = {
            site: StandIn(site.module)
            for replacement in replacements
            for site in replacement.chosen
        }
        try:
            for replacement in replacements:
                replacement.put(stand_ins)
            observed = self.observe(case.sample, case.training,
                                    stand_ins.values())
        except _InputChanged as error:
            for replacement in replacements:
                replacement.copied.update(site for site in replacement.chosen
                                          if stand_ins[site] in error.changed)
        except Exception as error:
            return f'{type(error).__name__}: {error}'
        else:
            return observed.difference(case.reference, case.tolerance)
        finally:
            for replacement in replacements:
                replacement.take_away()
        # What has a copy is not changed any more, so this comes to an end.
        return self._check_case(case, replacements)

    def faulty(self,
               replacements: List[Replacement]) -> Dict[Replacement, str]:
        """Those that change the network, each for itself."""
        difference = self.check(replacements)
        if not difference:
            return {}
        if len(replacements) == 1:
            return {replacements[0]: difference}
        middle = len(replacements) // 2
        found = {
            **self.faulty(replacements[:middle]),
            **self.faulty(replacements[middle:])
        }
        # Each half may be right without the other.
        return found or dict.fromkeys(replacements, difference)


def _gradients(outputs: List[Tensor],
               inputs: List[Tensor]) -> List[Optional[Tensor]]:
    outputs = [t for t in outputs if t.requires_grad]
    inputs = [t for t in inputs if t.requires_grad]
    if not outputs or not inputs:
        return []
    generator = torch.Generator().manual_seed(0)
    weights = [
        torch.rand(t.shape, generator=generator).to(t.device, t.dtype)
        for t in outputs
    ]
    held = [t.grad for t in inputs]
    for tensor in inputs:
        tensor.grad = None
    try:
        # Not autograd.grad, which stops at reentrant checkpoints (with_cp).
        torch.autograd.backward(outputs, weights)
        return [t.grad for t in inputs]
    finally:
        for tensor, grad in zip(inputs, held):
            tensor.grad = grad


def prove(
    root: nn.Module, replacements: List[Replacement],
    sample_input: Optional[SampleInput]
) -> Tuple[Proof, Dict[Replacement, str]]:
    """Compares a network with itself, with stand-ins at the chosen places.

    Outputs, buffers and the gradients of the input and of all parameters of
    one axis, in evaluation and in training. Where the input of an activation
    is changed in place afterwards, or read again by a block that relies on
    ``inplace=True``, the replacement is told so.

    Returns:
        tuple: What was compared, and the replacements that would change the
        network, each with how.
    """
    start = time.perf_counter()
    if any(p.is_meta for p in root.parameters()):
        meta = dict.fromkeys(_MODES.values(), 'on the meta device')
        return Proof([], meta), {}
    prover = _Prover(root, sample_input)
    refused: Dict[Replacement, str] = {}
    left = list(replacements)
    if prover.check(left):
        prover.measure_noise()
        for replacement, difference in prover.faulty(left).items():
            if getattr(replacement.old, 'inplace', False):
                replacement.written_back = True
                if not prover.check([replacement]):
                    continue
                replacement.written_back = False
            refused[replacement] = difference
        left = [r for r in left if r not in refused]
        difference = prover.check(left)
        if difference:
            refused.update(dict.fromkeys(left, difference))
    proof = Proof([_MODES[case.training] for case in prover.cases],
                  prover.failures,
                  max((case.tolerance for case in prover.cases), default=0.),
                  time.perf_counter() - start, prover.no_gradients)
    return proof, refused
