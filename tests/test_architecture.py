"""What imports what, and the picture of it."""
import importlib.util
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
spec = importlib.util.spec_from_file_location(
    'draw_architecture', ROOT / 'tools/dev/draw_architecture.py')
architecture = importlib.util.module_from_spec(spec)
spec.loader.exec_module(architecture)


def test_picture_is_of_this_code():
    assert architecture.PICTURE.read_text() == architecture.svg(
        architecture.room_imports()), (
            'run python tools/dev/draw_architecture.py')


def test_picture_has_every_import():
    graph = architecture.room_imports()
    drawn = re.findall('data-from="(.*?)" data-to="(.*?)"',
                       architecture.PICTURE.read_text())
    assert sorted(drawn) == sorted(
        (name, target) for name in graph for target in graph[name])
    assert ('swap', 'activations') in drawn and ('activations', 'ops') in drawn


def test_imports_go_one_way():
    """Between files, and between rooms."""
    level = architecture.heights(architecture.module_imports())
    assert level['mm_acon.ops.checks'] == 0 < level['mm_acon.ops.acon']
    level = architecture.heights(architecture.room_imports())
    # Of the package, ops imports what older versions of torch lack, alone.
    assert level['compat.py'] == 0 and level['ops'] == 1
    assert level['tools'] == max(level.values())


def test_circle_is_named():
    graph = dict(a={'b'}, b={'c'}, c={'b'})
    with pytest.raises(ValueError, match='here is b -> c -> b.'):
        architecture.heights(graph)


def test_implied_imports():
    graph = dict(a={'b', 'c'}, b={'c'}, c=set())
    assert architecture.implied(graph, 'a', 'c')
    assert not architecture.implied(graph, 'a', 'b')


def test_only_the_foundation_is_imported_by_ops():
    """A user may have none of the libraries that have models."""
    for path in (ROOT / 'mm_acon/ops').glob('*.py'):
        names = {name.split('.')[0] for name in architecture.imported(path)}
        assert names.isdisjoint({'mmengine', 'mmcv', 'mmdet', 'mmseg'})
