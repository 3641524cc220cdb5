"""Every config that the libraries ship, through what --act does."""
import sys
from pathlib import Path

import pytest

for library in ('mmdet', 'mmseg', 'mmpretrain'):
    pytest.importorskip(library)
sys.path.insert(0, str(Path(__file__).parents[1] / 'tools' / 'analysis'))
import zoo  # noqa: E402


def test_backbones_of_some_configs():
    problems = {}
    found = zoo.run(['mmseg'], match='bisenetv2/', problems=problems)
    assert [(b.type, b.outcome, len(b.configs))
            for b in found] == [('BiSeNetV2', 'swapped', 4)]
    assert not problems
    text = zoo.page(found, problems, 'PWLU', 100)
    assert '| swapped | 1 | 4 |' in text


def test_a_misfit_is_broken():
    """What is none of the package's own refusals."""
    backbone = zoo.Backbone('mmseg', 'BiSeNetV2', dict(type='mmseg.BiSeNetV2'))
    zoo.swap(backbone, 'PWLU', .01)
    assert backbone.outcome == 'not run, over 0.01M parameters'
    zoo.swap(backbone, 'Nothing', 100)
    assert backbone.outcome == 'broken'
    assert 'not a registered activation' in backbone.detail


@pytest.mark.full
def test_every_config():
    """Of the smaller backbones; docs/zoo.md has the others, too."""
    problems = {}
    found = zoo.run(zoo.LIBRARIES, problems=problems, most=10)
    assert not [b for b in found if b.outcome == 'broken']
    assert sum(len(b.configs) for b in found) > 1700
    assert all(zoo.NOT_READ in text or 'needs a model with a backbone' in text
               for text in problems.values())
