"""What a compiler makes of unchanged sources is made once."""
import hashlib
import os
import shutil
import time
from pathlib import Path

CACHE = Path(os.getenv('XDG_CACHE_HOME')
             or Path.home() / '.cache') / 'mm_acon' / 'tests'
WEEK = 7 * 24 * 3600


def made_once(name, parts, make):
    """The folder that ``make(folder)`` filled, of the same parts.

    Args:
        name (str): The folder's, in the cache.
        parts (Iterable): All that the result depends on; of a path, its name
            and content.
        make (Callable[[Path], None]): Fills an empty folder.
    """
    key = hashlib.sha256()
    for part in parts:
        data = part.read_bytes() if isinstance(part, Path) else b''
        label = part.name if isinstance(part, Path) else str(part)
        key.update(f'{label}\0{len(data)}\0'.encode() + data)
    folder = CACHE / name / key.hexdigest()
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        for other in folder.parent.iterdir():
            if time.time() - other.stat().st_mtime > WEEK:
                shutil.rmtree(other, ignore_errors=True)
        # Moved when complete.
        unfinished = folder.with_name(f'{folder.name}-{os.getpid()}')
        unfinished.mkdir()
        make(unfinished)
        try:
            unfinished.rename(folder)
        except OSError:
            # Another process made the same meanwhile.
            if not folder.is_dir():
                raise
            shutil.rmtree(unfinished)
    return folder
