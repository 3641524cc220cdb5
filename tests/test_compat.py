"""What stands in for the newer Python and torch: used here in their place."""
from importlib import metadata

import pytest
import torch
import torch._dynamo
from torch import nn

from mm_acon import compat


@pytest.mark.parametrize('missing', ((), ('register_fake', 'impl_abstract')))
def test_register_fake(missing, monkeypatch):
    """Shapes of an operator that has a CPU kernel alone."""
    for name in missing:
        monkeypatch.delattr(torch.library, name, raising=False)
    namespace = f'mm_acon_test_{len(missing)}'
    library = torch.library.Library(namespace, 'DEF')
    library.define('halves(Tensor x) -> Tensor')
    compat.register_fake(f'{namespace}::halves')(
        lambda x: x.new_empty(x.shape[0] // 2))
    y = getattr(torch.ops, namespace).halves(torch.empty(6, device='meta'))
    assert (y.shape, y.device.type) == ((3, ), 'meta')


@pytest.mark.parametrize('public', (True, False))
def test_load_state_dict_pre_hook(public, monkeypatch):
    if not public:
        monkeypatch.delattr(
            nn.Module, 'register_load_state_dict_pre_hook', raising=False)
    module, calls = nn.Linear(2, 2), []
    handle = compat.register_load_state_dict_pre_hook(
        module, lambda *arguments: calls.append(arguments))
    state = module.state_dict()
    module.load_state_dict(state)
    (found, given, prefix, *_), = calls
    assert found is module and set(given) == set(state) and prefix == ''
    handle.remove()
    module.load_state_dict(state)
    assert len(calls) == 1


def test_packages_distributions(monkeypatch):
    monkeypatch.delattr(metadata, 'packages_distributions', raising=False)
    found = compat.packages_distributions()
    assert found['torch'] == ['torch']
    # A package whose distribution has another name.
    assert found['PIL'] in (['pillow'], ['Pillow'])
    assert 'no_such_package' not in found


def test_is_compiling():
    assert not compat.is_compiling()

    def where(x):
        return x + 1 if compat.is_compiling() else x

    torch._dynamo.reset()
    compiled = torch.compile(where, backend='eager', fullgraph=True)
    assert compiled(torch.zeros(1)) == 1


def test_strict_zip():
    assert list(compat.strict_zip([1, 2], 'ab', (3, 4))) == [(1, 'a', 3),
                                                             (2, 'b', 4)]
    with pytest.raises(ValueError, match=r'of one length, got \[2, 1\]'):
        compat.strict_zip([1, 2], [3])


@pytest.mark.parametrize('text, expected',
                         (('module.a', 'a'), ('a.module.b', 'a.module.b'),
                          ('module.', '')))
def test_removeprefix(text, expected):
    assert compat.removeprefix(text, 'module.') == expected
