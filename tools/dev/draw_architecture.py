"""Draws which room of the package imports which, from the imports themselves.

    python tools/dev/draw_architecture.py

writes docs/figures/architecture.svg. A room is a folder or a file directly in
mm_acon; its ``__init__`` is the room ``mm_acon``; all tools together are one.
Imports inside functions count, too. A room stands above all that it imports.
"""
import ast
from pathlib import Path
from typing import Dict, Iterator, Set

ROOT = Path(__file__).resolve().parents[2]
PICTURE = ROOT / 'docs/figures/architecture.svg'
PACKAGE, TOOLS = 'mm_acon', 'tools'

Graph = Dict[str, Set[str]]

# In pixels.
WIDTH, HEIGHT, STEP, ROW, MARGIN = 118, 34, 160, 92, 20


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix('').parts
    return '.'.join(parts[:-1] if parts[-1] == '__init__' else parts)


def imported(path: Path) -> Iterator[str]:
    """Dotted names, those of a module's contents included."""
    package = path.relative_to(ROOT).parent.parts
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[:len(package) - node.level + 1]
            base = '.'.join([
                *(above if node.level else ()),
                *([node.module] if node.module else ())
            ])
            yield from (f'{base}.{alias.name}' for alias in node.names)


def module_imports() -> Graph:
    """Every file of the package and of the tools, and what it imports."""
    files = {
        module_name(path): path
        for folder in (PACKAGE, TOOLS)
        for path in sorted((ROOT / folder).rglob('*.py'))
        if '.mim' not in path.parts
    }
    graph = {}
    for name, path in files.items():
        graph[name] = found = set()
        for target in imported(path):
            # A name in a module, or the module itself.
            while target and target not in files:
                target = target.rpartition('.')[0]
            if target and target != name:
                found.add(target)
    return graph


def room(module: str) -> str:
    parts = module.split('.')
    if parts[0] == TOOLS or len(parts) == 1:
        return parts[0]
    file = ROOT / PACKAGE / f'{parts[1]}.py'
    return file.name if file.is_file() else parts[1]


def room_imports() -> Graph:
    graph = {}
    for module, targets in module_imports().items():
        graph.setdefault(room(module), set()).update(map(room, targets))
    return {name: targets - {name} for name, targets in graph.items()}


def heights(graph: Graph) -> Dict[str, int]:
    """How many imports one can follow downwards from each node.

    Raises:
        ValueError: imports go round in a circle.
    """
    found = {}

    def height(name: str, above: tuple) -> int:
        if name in above:
            circle = ' -> '.join([*above[above.index(name):], name])
            raise ValueError(f'Imports go one way only, and here is {circle}.')
        if name not in found:
            found[name] = 1 + max(
                (height(target, (*above, name)) for target in graph[name]),
                default=-1)
        return found[name]

    for name in graph:
        height(name, ())
    return found


def implied(graph: Graph, name: str, target: str) -> bool:
    """Whether the way from name to target leads through another room, too."""

    def reaches(start: str) -> bool:
        return start == target or any(map(reaches, graph[start]))

    return any(reaches(other) for other in graph[name] - {target})


def places(graph: Graph) -> Dict[str, tuple]:
    """The middle of each box."""
    level = heights(graph)
    rows = [[] for _ in range(max(level.values()) + 1)]
    for name in sorted(graph):
        rows[level[name]].append(name)
    widest = max(map(len, rows))
    x = {}
    for row in rows:
        # Above the middle of what it imports, boxes of a row side by side.
        middle = {}
        for index, name in enumerate(row):
            direct = [
                x[target] for target in sorted(graph[name])
                if not implied(graph, name, target)
            ]
            middle[name] = (
                sum(direct) / len(direct) if direct else
                (index + .5) * widest / len(row) * STEP)
        left = 0.
        for name in sorted(row, key=lambda name: (middle[name], name)):
            x[name] = left = max(middle[name], left + STEP)
    shift = MARGIN + WIDTH / 2 - min(x.values())
    bottom = MARGIN + HEIGHT / 2 + ROW * (len(rows) - 1)
    return {
        name: (x[name] + shift, bottom - ROW * level[name])
        for name in graph
    }


def svg(graph: Graph) -> str:
    place = places(graph)
    width = max(x for x, _ in place.values()) + WIDTH / 2 + MARGIN
    height = max(y for _, y in place.values()) + HEIGHT / 2 + MARGIN
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" '
        f'height="{height:.0f}" font-family="sans-serif" font-size="14">',
        '<title>Imports between the rooms of mm_acon and its tools</title>',
        '<rect width="100%" height="100%" fill="white"/>'
    ]
    for colour in ('#1f3a5f', '#b9c4d0'):
        lines.append(
            f'<marker id="m{colour[1:]}" viewBox="0 0 8 8" refX="7" refY="4" '
            'markerWidth="8" markerHeight="8" orient="auto" '
            'markerUnits="userSpaceOnUse">'
            f'<path d="M0 0L8 4L0 8z" fill="{colour}"/></marker>')

    def port(name: str, others: Set[str], other: str) -> float:
        """Where an arrow meets a box: in the order of the other ends."""
        order = sorted(others, key=lambda end: (place[end], end))
        share = (order.index(other) + 1) / (len(order) + 1)
        return place[name][0] + (share - .5) * WIDTH * .9

    arrows = sorted((not implied(graph, name, target), name, target)
                    for name in graph for target in graph[name])
    for direct, name, target in arrows:
        importers = {other for other in graph if target in graph[other]}
        x1, y1 = port(name, graph[name], target), place[name][1] + HEIGHT / 2
        x2, y2 = port(target, importers, name), place[target][1] - HEIGHT / 2
        bend = ROW * .45
        colour = '#1f3a5f' if direct else '#b9c4d0'
        lines.append(
            f'<path data-from="{name}" data-to="{target}" d="M{x1:.0f} '
            f'{y1:.0f}C{x1:.0f} {y1 + bend:.0f} {x2:.0f} {y2 - bend:.0f} '
            f'{x2:.0f} {y2:.0f}" fill="none" stroke="{colour}" '
            f'stroke-width="1.3" marker-end="url(#m{colour[1:]})"/>')
    for name, (x, y) in sorted(place.items()):
        lines += [
            f'<rect x="{x - WIDTH / 2:.0f}" y="{y - HEIGHT / 2:.0f}" '
            f'width="{WIDTH}" height="{HEIGHT}" rx="5" fill="#eef3f8" '
            'stroke="#1f3a5f"/>', f'<text x="{x:.0f}" y="{y + 5:.0f}" '
            f'text-anchor="middle" fill="#12233a">{name}</text>'
        ]
    return '\n'.join([*lines, '</svg>']) + '\n'


if __name__ == '__main__':
    PICTURE.write_text(svg(room_imports()))
    print(PICTURE.relative_to(ROOT))
