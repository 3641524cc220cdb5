"""Every config that the libraries ship, through what --act does."""
import os
import signal
import sys
from pathlib import Path

import pytest

for library in ('mmdet', 'mmseg', 'mmpretrain'):
    pytest.importorskip(library)
sys.path.insert(0, str(Path(__file__).parents[1] / 'tools' / 'analysis'))
import zoo  # noqa: E402


def run(*args, **kwargs):
    *_, networks = zoo.run(*args, **kwargs)
    return networks


def test_backbones_of_some_configs():
    problems = {}
    found = run(['mmseg'], match='bisenetv2/', problems=problems)
    network, = found
    assert (network.type, network.outcome,
            len(network.configs)) == ('BiSeNetV2', 'equal', 4)
    assert network.replaced == network.sites - sum(network.left.values())
    assert not problems
    text = zoo.page(found, problems, 'PWLU', 100, False)
    assert '| equal | 1 | 4 |' in text


def test_a_run_goes_on(tmp_path, monkeypatch):
    """From what a file has, if nothing changed that decides the result."""
    path = tmp_path / 'zoo.json'
    options = dict(match='bisenetv2/', path=path)
    network, = run(['mmseg'], **options)

    def never(*args, **kwargs):
        raise AssertionError('it is run again')

    with monkeypatch.context() as patch:
        patch.setattr(zoo, 'swap', never)
        again, = run(['mmseg'], **options)
    assert again == network and network.seconds > 0
    monkeypatch.setattr(zoo, 'sources', lambda: 'others')
    assert not zoo.Found(path).networks


def test_whole_models():
    found = run(['mmseg'], match='bisenetv2/', whole=True, most=30)
    assert {network.outcome for network in found} == {'equal'}
    assert {network.type for network in found} == {'EncoderDecoder'}


def test_what_is_not_run_yet_is_counted_apart():
    networks = [
        zoo.Network('mmseg', 'A', {}, ['a.py'], 'equal'),
        zoo.Network('mmseg', 'B', {}, ['b.py', 'c.py'])
    ]
    text = zoo.page(networks, {}, 'PWLU', 100, False)
    assert '| not run yet | 1 | 2 |' in text and '| B |' not in text


def test_networks_that_differ_in_where_weights_come_from_are_one():
    one = dict(type='A', stem=dict(init_cfg=dict(type='Pretrained')))
    assert zoo.key_of(one) == zoo.key_of(dict(type='A', stem={}))
    assert zoo.key_of(one) != zoo.key_of(dict(type='A', stem=dict(depth=1)))


def test_a_misfit_is_broken():
    """What is none of the package's own refusals."""
    network = zoo.Network('mmseg', 'BiSeNetV2', dict(type='mmseg.BiSeNetV2'))
    zoo.swap(network, 'PWLU', .01)
    assert network.outcome == 'not run, over 0.01M parameters'
    zoo.swap(network, 'Nothing', 100)
    assert network.outcome == 'broken'
    assert 'not a registered activation' in network.detail


def test_a_process_that_ends_holds_nothing_up(monkeypatch):
    """DetectoRS's did, in a kernel of MMCV."""
    monkeypatch.setattr(zoo, 'swap',
                        lambda *_: os.kill(os.getpid(), signal.SIGSEGV))
    network, = run(['mmseg'], match='bisenetv2/')
    assert (network.type, network.outcome,
            network.detail) == ('BiSeNetV2', 'broken',
                                'its process ended with -11')


@pytest.mark.full
def test_every_config():
    """Of the smaller backbones; docs/zoo.md has the others, too."""
    problems = {}
    found = run(zoo.LIBRARIES, problems=problems, most=10)
    assert not [n for n in found if n.outcome in ('broken', zoo.CHANGED)]
    assert sum(len(n.configs) for n in found) > 1700
    assert all(zoo.NOT_READ in text or 'needs a model with a backbone' in text
               for text in problems.values())
