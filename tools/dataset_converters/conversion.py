"""What the converters share: images, what was left out, whole files."""
import contextlib
import io
import json
import os
import sys
from collections import Counter, defaultdict
from pathlib import Path
from typing import Callable, Dict, List, NoReturn, Optional, Sequence

import mmcv
import numpy as np
from pycocotools.coco import COCO

# Printed of each kind of problem; the file has them all.
SHOWN = 3
REPORT = 'problems.txt'


class Problems:
    """What a conversion left out or changed, by kind.

    Args:
        kinds (dict): What is found, by a short name, and what becomes of it.
    """

    def __init__(self, kinds: Dict[str, str]) -> None:
        self.kinds = kinds
        self.found: Dict[str, List[str]] = defaultdict(list)

    def add(self, kind: str, where: str, detail: object = '') -> None:
        text = f'{where}: {detail}' if detail != '' else where
        # One line each, whatever a parser's message has.
        self.found[self.kinds[kind]].append(' '.join(text.split()))

    def report(self, shown: int = SHOWN) -> str:
        """Counts and names, the first few of each kind."""
        lines = []
        for kind in self.kinds.values():
            names = self.found[kind]
            if not names:
                continue
            lines.append(f'{len(names)} {kind}')
            lines += [f'    {name}' for name in names[:shown]]
            if len(names) > shown:
                lines.append(f'    and {len(names) - shown} more')
        return '\n'.join(lines or ['nothing was left out or changed'])

    def save(self, folder: Path) -> None:
        """Writes all names, and prints the first few."""
        path = folder / REPORT
        everything = self.report(max(map(len, self.found.values()), default=0))
        write_bytes(path, f'{everything}\n'.encode())
        print(f'{self.report()}\nall names are in {path}')


def read_image(path: Path) -> np.ndarray:
    """(H, W, 3), BGR, uint8, as training sees it: turned as its Exif says.

    Raises:
        OSError: it cannot be read, or is cut off.
    """
    # OpenCV, which training uses, takes half a file; Pillow takes some that
    # OpenCV does not.
    try:
        mmcv.imread(str(path), backend='pillow')
        image = mmcv.imread(str(path), backend='cv2')
    except (SyntaxError, ValueError) as error:
        # Pillow's words for a broken PNG, and for a broken header.
        raise OSError(str(error)) from error
    if image is None:
        raise OSError('OpenCV cannot read it')
    return image


def write_whole(path: Path, write: Callable[[Path], None]) -> None:
    """Lets ``write`` fill a file that gets its name when it is complete.

    What is interrupted leaves the old file, or none.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f'{path.name}.part')
    try:
        write(part)
        os.replace(part, path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            part.unlink()


def write_bytes(path: Path, content: bytes) -> None:
    write_whole(path, lambda part: part.write_bytes(content))


def write_split(path: Path, found: Sequence[Optional[dict]],
                classes: Sequence[str], description: str) -> None:
    """Writes a COCO file; ids are numbers from 1, in the order given.

    Args:
        path (Path): File to write.
        found (list): ``image`` and ``annotations`` of each image, without
            ids; None for one that was left out.
        classes (list of str): Names of the categories 1, 2, ...
        description (str): Where the data come from.

    Raises:
        ValueError: nothing is left, or pycocotools reads something else.
    """
    images: List[dict] = []
    annotations: List[dict] = []
    for item in found:
        if item is None:
            continue
        images.append(dict(id=len(images) + 1, **item['image']))
        annotations += [
            dict(
                id=len(annotations) + number,
                image_id=len(images),
                **annotation)
            for number, annotation in enumerate(item['annotations'], 1)
        ]
    if not annotations:
        raise ValueError(
            f'nothing is left for {path}: of {len(found)} images '
            f'{len(images)} could be read, and none has an object of the '
            f'classes {", ".join(classes) or "(none)"}.')
    categories = [
        dict(id=number, name=name) for number, name in enumerate(classes, 1)
    ]
    write_coco(
        path,
        dict(
            info=dict(description=description),
            images=images,
            annotations=annotations,
            categories=categories))
    numbers = Counter(item['category_id'] for item in annotations)
    counts = ', '.join(f'{item["name"]} {numbers[item["id"]]}'
                       for item in categories)
    print(f'{path}: {len(images)} images, {counts}')


def write_coco(path: Path, content: dict) -> None:
    """Writes a COCO file that pycocotools has read and found right.

    Raises:
        ValueError: it reads something else than was written.
    """

    def write(part: Path) -> None:
        part.write_text(json.dumps(content))
        check_coco(part, content)

    write_whole(path, write)


def check_coco(path: Path, content: dict) -> None:
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(str(path))
    wrong = []
    for key, found in (('images', coco.imgs), ('categories', coco.cats),
                       ('annotations', coco.anns)):
        if len(found) != len(content[key]):
            wrong.append(f'{len(content[key])} {key} with {len(found)} ids')
    for number, annotation in coco.anns.items():
        image = coco.imgs.get(annotation['image_id'])
        if image is None or annotation['category_id'] not in coco.cats:
            wrong.append(f'annotation {number} of no image or no category')
            continue
        x, y, width, height = annotation['bbox']
        if (min(x, y) < 0 or min(width, height) <= 0
                or x + width > image['width'] or y + height > image['height']):
            wrong.append(f'annotation {number} with the box '
                         f'{annotation["bbox"]} in {image["file_name"]}')
        if (annotation['segmentation']
                and coco.annToMask(annotation).sum() != annotation['area']):
            wrong.append(f'annotation {number} with another area than its '
                         'mask')
    if wrong:
        raise ValueError(f'pycocotools finds in {path}: ' +
                         '; '.join(wrong[:5]))


def stop(message: object) -> NoReturn:
    sys.exit(f'{Path(sys.argv[0]).name}: {message}')
