"""Finds activation sites by running a module."""
from collections import Counter, defaultdict
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, Dict, List, Optional, Sequence, Set, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules import module as nn_module
from torch.nn.modules.conv import _ConvNd
from torch.overrides import TorchFunctionMode

from ..activations import LearnableActivation
from ..nested import tensors
from .samples import REMEDY, Sample, SampleInput, first_run, samples
from .state import in_mode, kept_state

# Element-wise activations of torch and MMCV by class name. Other types are
# sites only where the user names them.
ACTIVATION_TYPES = frozenset((
    'CELU', 'ELU', 'GELU', 'HSigmoid', 'HSwish', 'Hardsigmoid', 'Hardswish',
    'Hardtanh', 'LeakyReLU', 'Mish', 'PReLU', 'RReLU', 'ReLU', 'ReLU6', 'SELU',
    'SiLU', 'Sigmoid', 'Softplus', 'Swish', 'Tanh'))  # yapf: disable

FUNCTIONAL_ACTIVATIONS = {
    function: function.__name__
    for function in (torch.relu, torch.relu_, Tensor.relu, Tensor.relu_,
                     F.relu, F.relu_, F.relu6, F.leaky_relu, F.leaky_relu_,
                     F.elu, F.elu_, F.selu, F.celu, F.gelu, F.silu, F.mish,
                     F.hardswish, F.hardtanh, F.softplus)
}


@dataclass(eq=False)
class Site:
    """What one activation module is called for behind one layer.

    Attributes:
        name: Name of the convolution or fully connected layer that feeds it.
        module: The activation module that is called.
        caller: The module whose forward calls it.
        feed: The convolution or fully connected layer itself, if any.
        first_called: The module that the caller calls first, if it calls it
            once per forward.
        shapes: Of the inputs, each once, in the order that they came.
    """
    name: str
    module: nn.Module
    caller: nn.Module
    feed: Optional[nn.Module]
    first_called: Optional[nn.Module] = None
    shapes: Dict[Tuple[int, ...], None] = field(default_factory=dict)

    @property
    def type(self) -> str:
        return type(self.module).__name__

    @property
    def _shape(self) -> Tuple[int, ...]:
        return next(iter(self.shapes))

    @property
    def channel_axis(self) -> Optional[int]:
        """1, or -1 where x is (N, tokens, C) or (N, H, W, C).

        The channels are the axis whose size stays when that of the image
        changes, and it is as long as the layer before it is wide. None if
        their number differs from call to call.
        """
        axes = [
            axis for axis in (1, -1)
            if all(len(shape) > 1 for shape in self.shapes)
            and len({shape[axis]
                     for shape in self.shapes}) == 1
        ]
        if len(axes) < 2:
            return axes[0] if axes else None
        if len(self._shape) == 2:
            return 1
        width = getattr(self.feed, 'out_features',
                        getattr(self.feed, 'out_channels', None))
        axes = [axis for axis in axes if self._shape[axis] == width] or axes
        if len(axes) == 1:
            return axes[0]
        has_tokens = isinstance(
            self.feed, nn.Linear) or (isinstance(self.feed, nn.Conv2d)
                                      and len(self._shape) == 3)
        return -1 if has_tokens else 1

    @property
    def width(self) -> int:
        """Channels, 0 if their number differs from call to call."""
        axis = self.channel_axis
        return self._shape[axis] if axis else 0

    @property
    def map_size(self) -> Tuple[int, ...]:
        """Spatial axes of the first input, in pixels, or tokens."""
        if self.channel_axis == -1:
            return self._shape[1:-1]
        return self._shape[2:]

    @property
    def is_frozen(self) -> bool:
        """Whether nothing that feeds the site is trained."""
        parameters = list((self.feed or self.caller).parameters())
        return bool(parameters) and not any(p.requires_grad
                                            for p in parameters)


# For the mode, True in training, which sites the calls of one module in one
# forward of its caller go to, in their order. Several where that differs
# from forward to forward.
Orders = Dict[bool, Set[Tuple[Site, ...]]]


@dataclass
class Probed:
    """What the forward passes showed."""
    sites: List[Site]
    # By caller and activation module.
    orders: Dict[Tuple[nn.Module, nn.Module], Orders]
    # 'F.relu in layer1.0', in the order of the calls, each once.
    functional: List[str]
    # Activation modules that were not called, by name.
    uncalled: Dict[str, nn.Module]


@dataclass(eq=False)
class _Frame:
    """A module whose forward is running."""
    module: nn.Module
    children: Counter = field(default_factory=Counter)
    first_called: Optional[nn.Module] = None
    # By activation module, the keys of the sites.
    calls: Dict[nn.Module,
                List[tuple]] = field(default_factory=lambda: defaultdict(list))
    # How often an activation was called behind one run of a layer.
    behind: Counter = field(default_factory=Counter)


@dataclass(eq=False)
class _Run:
    """One run of a layer, or what of it gave one of several results."""
    feed: nn.Module
    # The forwards that it is part of.
    frames: Tuple[_Frame, ...]


@dataclass(frozen=True)
class _Source:
    """Where a tensor comes from, and whether it was activated since."""
    run: _Run
    activated: bool


def _is_feed(module: nn.Module) -> bool:
    """Convolutions and fully connected layers, also those of MMCV's ops."""
    if isinstance(module, (_ConvNd, nn.Linear)):
        return True
    weight = module._parameters.get('weight')
    return weight is not None and weight.dim() > 1


class _Tracer(TorchFunctionMode):
    """Follows tensors from convolutions to activations.

    A tensor carries its :class:`_Source` as a Python attribute. A function's
    result takes the source of its arguments: of those not yet activated the
    first (in a residual sum the branch, not the shortcut), for a
    concatenation the last (in a dense block the newest features).

    Calls behind the same layer are one site, however often the layer runs:
    for the levels of a pyramid, or the branches that TridentNet has in
    training alone. A second call on the result of the same run is another.
    """

    def __init__(self, root: nn.Module, types: frozenset) -> None:
        super().__init__()
        self.names: Dict[nn.Module, str] = {
            module: name
            for name, module in root.named_modules()
        }
        self.types = types
        self.frames: List[_Frame] = []
        self.sites: Dict[tuple, Site] = {}
        self.orders: Dict[tuple, Set[tuple]] = defaultdict(set)
        self.functional: Dict[str, None] = {}
        self.uncalled = {
            name: module
            for module, name in self.names.items()
            if self.is_activation(module)
        }

    def is_activation(self, module: nn.Module) -> bool:
        return (isinstance(module, LearnableActivation)
                or type(module).__name__ in self.types)

    @property
    def inside_activation(self) -> bool:
        return any(self.is_activation(frame.module) for frame in self.frames)

    @staticmethod
    def source_of(arguments: Any, last: bool = False) -> Optional[_Source]:
        sources = [
            tensor._mm_acon_source for tensor in tensors(arguments)
            if hasattr(tensor, '_mm_acon_source')
        ]
        fresh = [source for source in sources if not source.activated]
        candidates = fresh or sources
        return candidates[-1 if last else 0] if candidates else None

    @staticmethod
    def mark(value: Any, source: Optional[_Source]) -> None:
        if source is not None:
            for tensor in tensors(value):
                tensor._mm_acon_source = source

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        source = self.source_of([args, kwargs],
                                last=function in (torch.cat, torch.stack))
        name = FUNCTIONAL_ACTIVATIONS.get(function)
        if name is not None and not self.inside_activation:
            self.note_unreached(name)
            source = source and _Source(source.run, True)
        result = function(*args, **kwargs)
        self.mark(result, source)
        return result

    def note_unreached(self, what: str) -> None:
        where = 'the forward'
        if self.frames:
            where = self.names.get(self.frames[-1].module) or where
        self.functional[f'{what} in {where}'] = None

    def before(self, module: nn.Module, args: tuple) -> None:
        if module not in self.names:
            # An attribute of a class, or an element of a plain list.
            if self.is_activation(module) and not self.inside_activation:
                self.note_unreached(f'{type(module).__name__} that no module '
                                    'holds')
            return
        self.uncalled.pop(self.names[module], None)
        if self.frames:
            frame = self.frames[-1]
            if frame.first_called is None:
                frame.first_called = module
            if self.is_activation(module) and not self.inside_activation:
                frame.calls[module].append(self.meet(frame, module, args))
            frame.children[module] += 1
        self.frames.append(_Frame(module))

    def meet(self, frame: _Frame, module: nn.Module, args: tuple) -> tuple:
        """The key of the site that a call belongs to."""
        source = self.source_of(args)
        feed = source and source.run.feed
        # What feeds a block from outside may be another layer each time.
        run = source.run if source and frame in source.run.frames else None
        number = frame.behind[module, run]
        frame.behind[module, run] += 1
        key = frame.module, module, run and feed, number
        if key not in self.sites:
            name = self.names[module if feed is None else feed]
            self.sites[key] = Site(name, module, frame.module, feed)
        shape = next((tuple(x.shape) for x in tensors(args)), ())
        self.sites[key].shapes[shape] = None
        return key

    def after(self, module: nn.Module, args: tuple, result: Any) -> None:
        if module not in self.names:
            return
        frame = self.frames.pop()
        if self.inside_activation:
            return
        once = frame.children[frame.first_called] == 1
        for activation, keys in frame.calls.items():
            self.orders[module, activation].add(tuple(keys))
            for key in keys:
                if once and activation is not frame.first_called:
                    self.sites[key].first_called = frame.first_called
        if self.is_activation(module):
            source = self.source_of(args)
            self.mark(result, source and _Source(source.run, True))
        elif _is_feed(module):
            # TridentNet's convolution gives a list.
            for tensor in tensors(result):
                self.mark(tensor,
                          _Source(_Run(module, tuple(self.frames)), False))
        else:
            # Functions that torch's override protocol does not see.
            for tensor in tensors(result):
                if not hasattr(tensor, '_mm_acon_source'):
                    self.mark(tensor, self.source_of(args))


def _trace(root: nn.Module, sample: Sample, types: frozenset,
           training: bool) -> _Tracer:
    """Follows one pass, without gradient, which changes nothing."""
    tracer = _Tracer(root, types)
    with ExitStack() as stack:
        stack.enter_context(kept_state(root, sample.cuda_devices))
        stack.enter_context(in_mode(root, training))
        stack.enter_context(torch.no_grad())
        stack.enter_context(tracer)
        for handle in (nn_module.register_module_forward_pre_hook(
                tracer.before),
                       nn_module.register_module_forward_hook(tracer.after)):
            stack.callback(handle.remove)
        sample.run(root)
    return tracer


def probe(root: nn.Module,
          types: Sequence[str] = (),
          sample_input: Optional[SampleInput] = None) -> Probed:
    """Runs a module once in each mode and lists the activation calls.

    Both passes are without gradient; training flags, statistics and random
    state are afterwards what they were. The pass in training is on a small
    input. What it calls and evaluation does not (an auxiliary head) are
    sites, too.

    Args:
        root: The module to look into.
        types: Class names to count as activations beside the usual ones.
        sample_input: Shape of the input, the input tensors, a tuple or dict
            of arguments, or a function that calls the module. None makes one
            of 256 pixels for the first convolution, or of another size.

    Raises:
        ValueError: ``sample_input`` is none of these.
        RuntimeError: the forward pass failed.
    """
    types = ACTIVATION_TYPES.union(types)

    def trace(training: bool) -> tuple:
        return first_run(
            samples(root, sample_input, training, training),
            lambda sample: _trace(root, sample, types, training))

    seen, texts, cause = trace(False)
    if seen is None:
        raise RuntimeError(
            f'{type(root).__name__} could not be run to find its activations. '
            'It was tried with input of shape ' + ', and '.join(texts) +
            f'; {REMEDY}') from cause
    trained, _, _ = trace(True)
    for key, site in trained.sites.items() if trained else ():
        known = seen.sites.setdefault(key, site)
        known.shapes.update(site.shapes)
    sites = list(seen.sites.values())
    _make_names_unique(sites)
    orders = defaultdict(dict)
    for training, tracer in ((False, seen), (True, trained)):
        for pair, calls in tracer.orders.items() if tracer else ():
            orders[pair][training] = {
                tuple(seen.sites[key] for key in keys)
                for keys in calls
            }
    uncalled = seen.uncalled
    if trained:
        seen.functional.update(trained.functional)
        uncalled = {
            name: module
            for name, module in uncalled.items() if name in trained.uncalled
        }
    return Probed(sites, orders, list(seen.functional), uncalled)


def _make_names_unique(sites: List[Site]) -> None:
    """The second site behind one convolution is called 'name#2'."""
    seen: Dict[str, int] = defaultdict(int)
    for site in sites:
        seen[site.name] += 1
        if seen[site.name] > 1:
            site.name = f'{site.name}#{seen[site.name]}'
