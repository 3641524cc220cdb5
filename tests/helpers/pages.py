"""The fenced blocks of Markdown pages."""
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Iterator, Optional

import pytest

MarkdownIt = pytest.importorskip('markdown_it').MarkdownIt
ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Block:
    """A fenced block; ``line`` is that of its fence."""
    page: str
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f'{self.page}:{self.line}'

    @property
    def path(self) -> Optional[str]:
        """The file that it is, or changes, by its first line.

        Such as ``# mm_acon/ops/elu.py``, ``// ...`` or, of a diff, ``+++``.
        """
        found = re.match(r'(?:#|//|\+\+\+) (\w+/[\w./]+)\n', self.text)
        return found and found.group(1)


def read_blocks(*pages: Path) -> Iterator[Block]:
    for page in pages:
        for token in MarkdownIt().parse(page.read_text()):
            if token.type == 'fence':
                yield Block(
                    str(page.relative_to(ROOT)), token.map[0] + 1,
                    token.info.strip(), token.content)


def write(block: Block, root: Path) -> None:
    """Makes the block's file, or the diff's change to one, below root."""
    path = root / block.path
    head, _, body = block.text.partition('\n')
    if block.language != 'diff':
        assert not path.exists(), f'{block}: {block.path} is there already'
        path.write_text(body)
        return
    lines = body.splitlines(keepends=True)
    old = ''.join(line[1:] for line in lines if line[0] != '+')
    new = ''.join(line[1:] for line in lines if line[0] != '-')
    text = path.read_text()
    assert text.count(old) == 1, (
        f'{block}: {text.count(old)} times in {block.path}, not once:\n{old}')
    path.write_text(text.replace(old, new))
