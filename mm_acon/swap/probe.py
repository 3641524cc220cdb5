"""Finds activation sites by one forward pass."""
from collections import Counter, defaultdict
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, Dict, Iterator, List, Optional, Sequence, Tuple, Union

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules import module as nn_module
from torch.nn.modules.conv import _ConvNd
from torch.overrides import TorchFunctionMode

from ..activations import LearnableActivation

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

SampleInput = Union[Tensor, Sequence[Tensor], Sequence[int]]

_REMEDY = ('write sample_input=(1, channels, height, width) in swap, with a '
           'shape that it takes (--cfg-options model.backbone.swap.'
           'sample_input="(1,3,64,64)"), or in Python pass the input tensors. '
           'Of a detector that takes more than images swap the backbone '
           'alone.')


@dataclass(eq=False)
class Site:
    """One activation call in a forward pass.

    Attributes:
        name: Name of the convolution or fully connected layer that feeds it.
        module: The activation module that is called.
        caller: The module whose forward calls it.
        call: 0 for the first call of ``module`` in the caller's forward.
        width: Channels, the size of axis 1.
        map_size: Spatial axes of the input, in pixels.
        has_tokens: x is (N, tokens, C): the channels lie in the last axis.
        feed: The convolution or fully connected layer itself, if any.
        first_called: The module that the caller calls first, if it calls it
            once per forward.
    """
    name: str
    module: nn.Module
    caller: nn.Module
    call: int
    width: int
    map_size: Tuple[int, ...]
    has_tokens: bool
    feed: Optional[nn.Module]
    first_called: Optional[nn.Module] = None

    @property
    def type(self) -> str:
        return type(self.module).__name__

    @property
    def is_frozen(self) -> bool:
        """Whether nothing that feeds the site is trained."""
        parameters = list((self.feed or self.caller).parameters())
        return bool(parameters) and not any(p.requires_grad
                                            for p in parameters)


@dataclass
class Probed:
    """What one forward pass showed."""
    sites: List[Site]
    # 'F.relu in layer1.0', in the order of the calls, each once.
    functional: List[str]
    # Activation modules that were not called, by name.
    uncalled: Dict[str, nn.Module]


@dataclass
class _Frame:
    """A module whose forward is running."""
    module: nn.Module
    children: Counter = field(default_factory=Counter)
    first_called: Optional[nn.Module] = None
    sites: List[Site] = field(default_factory=list)


@dataclass(frozen=True)
class _Source:
    """Where a tensor comes from: a layer, and whether activated since."""
    feed: nn.Module
    activated: bool


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _tensors(item)
    elif isinstance(value, dict):
        yield from _tensors(list(value.values()))


def _is_feed(module: nn.Module) -> bool:
    """Convolutions and fully connected layers, also those of MMCV's ops."""
    if isinstance(module, (_ConvNd, nn.Linear)):
        return True
    weight = module._parameters.get('weight')
    return weight is not None and weight.dim() > 1


def _has_tokens(shape: Sequence[int], feed: Optional[nn.Module]) -> bool:
    """Behind a Linear, or a convolution whose map was made into tokens."""
    if isinstance(feed, nn.Linear):
        return len(shape) > 2
    return (isinstance(feed, nn.Conv2d) and len(shape) == 3
            and shape[2] == feed.out_channels)


class _Tracer(TorchFunctionMode):
    """Follows tensors from convolutions to activations.

    A tensor carries its :class:`_Source` as a Python attribute. A function's
    result takes the source of its arguments: of those not yet activated the
    first (in a residual sum the branch, not the shortcut), for a
    concatenation the last (in a dense block the newest features).
    """

    def __init__(self, root: nn.Module, types: frozenset) -> None:
        super().__init__()
        self.names: Dict[nn.Module, str] = {
            module: name
            for name, module in root.named_modules()
        }
        self.types = types
        self.frames: List[_Frame] = []
        self.sites: Dict[Tuple[nn.Module, nn.Module, int], Site] = {}
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
            tensor._mm_acon_source for tensor in _tensors(arguments)
            if hasattr(tensor, '_mm_acon_source')
        ]
        fresh = [source for source in sources if not source.activated]
        candidates = fresh or sources
        return candidates[-1 if last else 0] if candidates else None

    @staticmethod
    def mark(value: Any, source: Optional[_Source]) -> None:
        if source is not None:
            for tensor in _tensors(value):
                tensor._mm_acon_source = source

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        source = self.source_of([args, kwargs],
                                last=function in (torch.cat, torch.stack))
        name = FUNCTIONAL_ACTIVATIONS.get(function)
        if name is not None and not self.inside_activation:
            where = self.names.get(self.frames[-1].module) or 'the forward'
            self.functional[f'{name} in {where}'] = None
            source = source and _Source(source.feed, True)
        result = function(*args, **kwargs)
        self.mark(result, source)
        return result

    def before(self, module: nn.Module, args: tuple) -> None:
        if module not in self.names:
            return
        self.uncalled.pop(self.names[module], None)
        if self.frames:
            frame = self.frames[-1]
            if frame.first_called is None:
                frame.first_called = module
            if self.is_activation(module) and not self.inside_activation:
                self.add_site(frame, module, args)
            frame.children[module] += 1
        self.frames.append(_Frame(module))

    def add_site(self, frame: _Frame, module: nn.Module, args: tuple) -> None:
        shape = next((x.shape for x in _tensors(args)), ())
        call = frame.children[module]
        source = self.source_of(args)
        feed = source and source.feed
        site = Site(
            name=self.names[feed if feed is not None else module],
            module=module,
            caller=frame.module,
            call=call,
            width=shape[1] if len(shape) > 1 else 0,
            map_size=tuple(shape[2:]),
            has_tokens=_has_tokens(shape, feed),
            feed=feed)
        known = self.sites.setdefault((frame.module, module, call), site)
        if known.width != site.width:
            known.width = 0
        frame.sites.append(known)

    def after(self, module: nn.Module, args: tuple, result: Any) -> None:
        if module not in self.names:
            return
        frame = self.frames.pop()
        if self.inside_activation:
            return
        if frame.children[frame.first_called] == 1:
            for site in frame.sites:
                if site.module is not frame.first_called:
                    site.first_called = frame.first_called
        if self.is_activation(module):
            source = self.source_of(args)
            self.mark(result, source and _Source(source.feed, True))
        elif _is_feed(module):
            self.mark(result, _Source(module, False))
        else:
            # Functions that torch's override protocol does not see.
            for tensor in _tensors(result):
                if not hasattr(tensor, '_mm_acon_source'):
                    self.mark(tensor, self.source_of(args))


@contextmanager
def _eval_mode(root: nn.Module) -> Iterator[None]:
    """As ``eval()``, and afterwards every module's own flag again.

    A backbone's ``train()`` may do more than set flags, and it is wanted:
    LeViT makes there what its eval forward needs, MobileNetV2 freezes its
    stages there and nowhere else.
    """
    training = {module: module.training for module in root.modules()}
    try:
        root.eval()
        yield
    finally:
        root.train(training[root])
        for module, flag in training.items():
            module.training = flag


def _samples(root: nn.Module,
             sample_input: Optional[SampleInput]) -> List[tuple]:
    """Arguments to try the forward with, in that order."""
    if isinstance(sample_input, Tensor):
        return [(sample_input, )]
    if sample_input is not None:
        items = (
            tuple(sample_input) if isinstance(sample_input, (list, tuple)) else
            ())
        if items and all(isinstance(item, Tensor) for item in items):
            return [items]
        if not items or not all(
                isinstance(item, int) and item > 0 for item in items):
            raise ValueError(
                'sample_input expects the shape of an input, (1, channels, '
                f'height, width), or input tensors, got {sample_input!r}.')
        shapes = [items]
    else:
        first = next((m for m in root.modules() if isinstance(m, _ConvNd)),
                     None)
        if first is None:
            raise ValueError(
                f'{type(root).__name__} has no convolution to tell the shape '
                f'of its input; {_REMEDY}')
        # 256 pixels: only pooled maps are then 1x1, since the strides of
        # HourglassNet go to 128. Some take 224 only. The first convolution
        # need not see the image itself (YOLOX slices it).
        axes = len(first.kernel_size)
        shapes = [(1, channels, *[pixels] * axes) for pixels in (256, 224)
                  for channels in dict.fromkeys((first.in_channels, 3))]
    like = next((p for p in root.parameters() if p.is_floating_point()),
                torch.empty(0))
    generator = torch.Generator().manual_seed(0)
    return [(torch.rand(*shape,
                        generator=generator).to(like.device, like.dtype), )
            for shape in shapes]


def probe(root: nn.Module,
          types: Sequence[str] = (),
          sample_input: Optional[SampleInput] = None) -> Probed:
    """Runs one forward pass and lists the activation calls in it.

    The pass is in eval mode and without gradient; training flags, statistics
    and random state are afterwards what they were.

    Args:
        root: The module to look into.
        types: Class names to count as activations beside the usual ones.
        sample_input: Shape of the input, or the input tensors. None makes
            one of 256 pixels for the first convolution, or else of 224.

    Raises:
        ValueError: ``sample_input`` is no shape and no tensors.
        RuntimeError: the forward pass failed.
    """
    failures = []
    for sample in _samples(root, sample_input):
        tracer = _Tracer(root, ACTIVATION_TYPES.union(types))
        try:
            _run(root, sample, tracer)
        except Exception as error:
            shapes = [tuple(tensor.shape) for tensor in sample]
            failures.append(f'{shapes}: {type(error).__name__}: {error}')
            cause = error
            continue
        sites = list(tracer.sites.values())
        _make_names_unique(sites)
        return Probed(sites, list(tracer.functional), tracer.uncalled)
    raise RuntimeError(
        f'{type(root).__name__} could not be run to find its activations. It '
        'was tried with input of shape ' + ', and '.join(failures) +
        f'; {_REMEDY}') from cause


def _run(root: nn.Module, sample: tuple, tracer: _Tracer) -> None:
    devices = {tensor.device for tensor in sample if tensor.is_cuda}
    with ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng(devices))
        stack.enter_context(_eval_mode(root))
        stack.enter_context(torch.no_grad())
        stack.enter_context(tracer)
        for handle in (nn_module.register_module_forward_pre_hook(
                tracer.before),
                       nn_module.register_module_forward_hook(tracer.after)):
            stack.callback(handle.remove)
        root(*sample)


def _make_names_unique(sites: List[Site]) -> None:
    """The second site behind one convolution is called 'name#2'."""
    seen: Dict[str, int] = defaultdict(int)
    for site in sites:
        seen[site.name] += 1
        if seen[site.name] > 1:
            site.name = f'{site.name}#{seen[site.name]}'
