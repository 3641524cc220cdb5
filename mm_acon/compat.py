"""What Python and torch have not had since the oldest that is supported.

Each entry says with which version it goes. Nothing else in the package asks
for a version, or whether a name exists; what differs in C++ is in
ops/csrc/compat.h.
"""
import _codecs
import _compat_pickle
import os
import pickle
import sys
from collections import Counter, OrderedDict
from contextlib import contextmanager
from importlib import metadata
from types import MethodType, SimpleNamespace
from typing import Any, Callable, Dict, Iterator, List, Sequence

import torch
from torch import nn
from torch.autograd import forward_ad
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

_LIBRARIES = []


def register_fake(operator: str) -> Callable:
    """``torch.library.register_fake``: shapes without arithmetic.

    Goes with torch 2.4; ``impl_abstract`` came with 2.1.
    """
    for name in ('register_fake', 'impl_abstract'):
        if hasattr(torch.library, name):
            return getattr(torch.library, name)(operator)

    def register(function: Callable) -> Callable:
        namespace, _, name = operator.partition('::')
        library = torch.library.Library(namespace, 'IMPL', 'Meta')
        library.impl(name, function)
        # It takes its kernels with it when it is deleted.
        _LIBRARIES.append(library)
        return function

    return register


def register_flop_formula(operator) -> Callable:
    """``torch.utils.flop_counter.register_flop_formula``.

    Goes with torch 2.4. 2.1 has a table that formulas are written into, 2.0
    no counter.
    """
    try:
        from torch.utils import flop_counter
    except ImportError:
        return lambda function: function
    if hasattr(flop_counter, 'register_flop_formula'):
        return flop_counter.register_flop_formula(operator)

    def register(function: Callable) -> Callable:
        flop_counter.flop_mapping[operator] = function
        return function

    return register


def counting_flops():
    """``torch.utils.flop_counter.FlopCounterMode``; goes with torch 2.1.

    Raises:
        ImportError: torch 2.0 has none.
    """
    try:
        from torch.utils.flop_counter import FlopCounterMode
    except ImportError as error:
        raise ImportError(
            'Counting multiply-adds needs torch 2.1 or newer, and this is '
            f'torch {torch.__version__}: count in an environment of '
            'tools/setup_env.sh --stack classic or openmmlab.') from error
    return FlopCounterMode(display=False)


try:
    # Goes with torch 2.3.
    from torch.compiler import is_compiling
except ImportError:
    from torch._utils import is_compiling  # noqa: F401


def is_transformed() -> bool:
    """Whether a transform of ``torch.func``, or forward-mode AD, is at work.

    Neither has a public question for it; the names are those of torch 2.0 to
    2.13. torch.compile before some version after 2.1 cannot follow them.
    """
    return (torch._C._are_functorch_transforms_active()
            or forward_ad._current_level >= 0)


try:
    # Goes with numpy 2.
    from numpy._core import multiarray as numpy_multiarray
except ImportError:
    from numpy.core import multiarray as numpy_multiarray  # noqa: F401


def free_size():
    """``torch.export.Dim.DYNAMIC``; goes with torch 2.6.

    Raises:
        NotImplementedError: there is none.
    """
    try:
        return torch.export.Dim.DYNAMIC
    except AttributeError as error:
        raise NotImplementedError(
            'Exporting a model for any size needs a newer torch than '
            f'{torch.__version__}: export in an environment of '
            'tools/setup_env.sh --stack openmmlab; checkpoints load there as '
            'they are.') from error


def register_load_state_dict_pre_hook(module: nn.Module,
                                      hook: Callable) -> RemovableHandle:
    """The method of ``nn.Module``; goes with torch 2.5."""
    if hasattr(module, 'register_load_state_dict_pre_hook'):
        return module.register_load_state_dict_pre_hook(hook)
    return module._register_load_state_dict_pre_hook(hook, with_module=True)


def register_step_pre_hook(optimizer: Optimizer,
                           hook: Callable) -> RemovableHandle:
    """The method of ``Optimizer``; goes with torch 2.3.

    Before, torch.compile takes the hooks away from every optimizer's class,
    whether it was called earlier or is called later.
    """
    if torch.__version__ >= (2, 3):
        return optimizer.register_step_pre_hook(hook)
    hooks, step = OrderedDict(), optimizer.step

    def hooked_step(self, *args, **kwargs):
        for function in hooks.values():
            function(self, args, kwargs)
        return step(*args, **kwargs)

    # Not of the class. Schedulers ask for a method.
    optimizer.step = MethodType(hooked_step, optimizer)
    handle = RemovableHandle(hooks)
    hooks[handle.id] = hook
    return handle


def forget_compiled() -> None:
    """Lets torch.compile look at modules again; goes with torch 2.5.

    What came before compiles in what a module inside of another holds, and
    does not compare it again.
    """
    if torch.__version__ < (2, 5) and 'torch._dynamo' in sys.modules:
        torch._dynamo.reset()


def packages_distributions() -> Dict[str, List[str]]:
    """``importlib.metadata.packages_distributions``; goes with Python 3.10."""
    if hasattr(metadata, 'packages_distributions'):
        return metadata.packages_distributions()  # novermin
    found = {}
    for distribution in metadata.distributions():
        for package in (distribution.read_text('top_level.txt') or '').split():
            found.setdefault(package, []).append(distribution.metadata['Name'])
    return found


def strict_zip(*sequences: Sequence) -> Iterator[tuple]:
    """``zip(..., strict=True)`` of sequences; goes with Python 3.10."""
    lengths = [len(sequence) for sequence in sequences]
    if len(set(lengths)) > 1:
        raise ValueError(f'Expected sequences of one length, got {lengths}.')
    return zip(*sequences)


def removeprefix(text: str, prefix: str) -> str:
    """``text.removeprefix(prefix)``; goes with Python 3.9."""
    return text[len(prefix):] if text.startswith(prefix) else text


# Before torch 2.6 its own weights_only cannot be told what else is harmless
# (2.4: but by the name that an object has here). An unpickler of Python that
# knows the same names takes its place there; all below goes with torch 2.6.
_KNOWS_SAFE_GLOBALS = tuple(map(int,
                                torch.__version__.split('.')[:2])) >= (2, 6)
_SAFE_GLOBALS: Dict[str, Any] = {}
# What torch 2.6 knows and 2.0 does not yet.
_ALSO_SAFE = {
    '_codecs.encode': _codecs.encode,
    'torch.device': torch.device,
    **{
        f'{t.__module__}.{t.__name__}': t
        for t in (set, bytearray, complex, Counter)
    },
    **{
        str(t): t
        for t in vars(torch).values() if isinstance(t, torch.dtype)
    },
}
_torch_load = torch.load


def add_safe_globals(objects: List[Any]) -> None:
    """``torch.serialization.add_safe_globals``.

    Args:
        objects: Classes and functions, or pairs of one and the name under
            which files have it.
    """
    if _KNOWS_SAFE_GLOBALS:
        torch.serialization.add_safe_globals(objects)
        return
    for item in objects:
        value, name = item if isinstance(
            item, tuple) else (item, f'{item.__module__}.{item.__qualname__}')
        _SAFE_GLOBALS[name] = value


class _Unpickler(pickle._Unpickler):
    """Python's, which finds and calls only what is known to be harmless.

    Written in Python, so that calls and attributes can be checked, too: what
    torch's own refuses since 2.6 is refused here.
    """
    dispatch = dict(pickle._Unpickler.dispatch)

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self._known = {
            **torch._weights_only_unpickler._get_allowed_globals(),
            **_ALSO_SAFE,
            **_SAFE_GLOBALS,
        }

    def find_class(self, module: str, name: str) -> Any:
        # As Python renames what the protocol of torch.save is older than.
        module, name = _compat_pickle.NAME_MAPPING.get(
            (module, name),
            (_compat_pickle.IMPORT_MAPPING.get(module, module), name))
        full = f'{module}.{name}'
        if full not in self._known:
            raise pickle.UnpicklingError(
                f'Unsupported global: GLOBAL {full} was not an allowed global '
                'by default')
        return self._known[full]

    def _is_known(self, value: Any) -> bool:
        return any(value is known for known in self._known.values())

    def load_reduce(self) -> None:
        function = self.stack[-2]
        if not self._is_known(function):
            raise pickle.UnpicklingError(
                f'Trying to call reduce for unrecognized function {function}')
        super().load_reduce()

    def load_build(self) -> None:
        kind = type(self.stack[-2])
        # Not the attributes of a class or function.
        if not self._is_known(kind):
            raise pickle.UnpicklingError(
                f'Can only build what may be loaded, but got {kind}')
        super().load_build()

    def load_persid(self) -> None:
        # Of protocol 0, which torch.save never wrote.
        raise pickle.UnpicklingError('Unsupported operand PERSID')

    def load_binpersid(self) -> None:
        key = self.stack[-1]
        # Others make torch compare the sources of modules and write patches.
        if not (isinstance(key, tuple) and key and key[0] == 'storage'):
            raise pickle.UnpicklingError(
                f'Only persistent_load of storage is allowed, but got {key}')
        super().load_binpersid()

    dispatch[pickle.REDUCE[0]] = load_reduce
    dispatch[pickle.BUILD[0]] = load_build
    dispatch[pickle.PERSID[0]] = load_persid
    dispatch[pickle.BINPERSID[0]] = load_binpersid


_PICKLE = SimpleNamespace(
    __name__='pickle',
    Unpickler=_Unpickler,
    load=lambda *args, **kwargs: _Unpickler(*args, **kwargs).load())


def _load_restricted(file, map_location=None, *unused, **kwargs) -> Any:
    serialization = torch.serialization
    with serialization._open_file_like(file, 'rb') as opened:
        if serialization._is_zipfile(opened):
            start = opened.tell()
            with serialization._open_zipfile_reader(opened) as archive:
                if serialization._is_torchscript_zip(archive):
                    # torch.load would hand it on to torch.jit.load.
                    raise pickle.UnpicklingError('a TorchScript program')
            opened.seek(start)
    return _torch_load(file, map_location, _PICKLE)


def load_weights(file, map_location=None) -> Any:
    """``torch.load(file, map_location, weights_only=True)``."""
    if _KNOWS_SAFE_GLOBALS:
        return torch.load(file, map_location, weights_only=True)
    return _load_restricted(file, map_location)


@contextmanager
def only_weights() -> Iterator[None]:
    """Every ``torch.load`` in it unpickles only what is harmless.

    Whatever its callers pass, or do not pass, as ``weights_only``, and
    whatever torch's own environment variables say.
    """
    names = 'TORCH_FORCE_WEIGHTS_ONLY_LOAD', 'TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD'
    before = {name: os.environ.pop(name, None) for name in names}
    if _KNOWS_SAFE_GLOBALS:
        os.environ[names[0]] = '1'
    else:
        torch.load = _load_restricted
    try:
        yield
    finally:
        if _KNOWS_SAFE_GLOBALS:
            del os.environ[names[0]]
        else:
            torch.load = _torch_load
        os.environ.update({k: v for k, v in before.items() if v is not None})
