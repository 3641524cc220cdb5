"""Data sets of bright shapes on a dark noisy ground, drawn, not downloaded.

They are written in the formats that OpenMMLab's own data set classes read, so
that a config can be tried without any data at hand. Everything is drawn with
integers, hence the same pixels on every machine.
"""
import json
import os
import tempfile
from pathlib import Path
from typing import Callable, Iterator, List, Tuple, Union

import cv2
import numpy as np

SHAPES = ('circle', 'square', 'triangle')

# Part of the folder names: raise it when what is drawn or written changes, so
# that no folder of an older generator is taken for the new data.
VERSION = 1

# Every split draws from a stream of its own.
SPLIT_SEEDS = dict(train=1, val=2)

# An image and its shapes, each an index in SHAPES and a mask.
_Drawing = Tuple[np.ndarray, List[Tuple[int, np.ndarray]]]


def write_coco_shapes(data_root: Union[str, Path] = 'data/shapes') -> Path:
    """Write the shapes as a COCO detection and instance segmentation data set.

    The folder holds ``train/`` and ``val/`` (512 and 128 PNG images of 96 by
    96 pixels) and ``annotations/instances_{train,val}.json``. The polygons
    run along pixel edges and the shapes do not overlap, so that box
    ``[x, y, width, height]``, ``area`` and mask agree with the drawn pixels
    exactly, all in pixels. Category ``i + 1`` is ``SHAPES[i]``.

    A folder that exists is not written again: it appears only when complete.

    Args:
        data_root (str or Path): Folder that the data set's own folder is
            created in. Defaults to 'data/shapes'.

    Returns:
        Path: The data set's folder, ``<data_root>/coco_v<VERSION>``.

    Raises:
        OSError: The folder cannot be written.
    """

    def write(folder: Path) -> None:
        for split, num_images in dict(train=512, val=128).items():
            _write_coco_split(folder, split, num_images, size=96)

    return _write_once(Path(data_root) / f'coco_v{VERSION}', write)


def write_cityscapes_shapes(
        data_root: Union[str, Path] = 'data/shapes') -> Path:
    """Write the shapes as a semantic segmentation data set like Cityscapes.

    The folder holds, for the splits train and val (256 and 32 images of 192
    by 96 pixels, of the one city "shapes")::

        leftImg8bit/<split>/shapes/shapes_<number>_000000_leftImg8bit.png
        gtFine/<split>/shapes/shapes_<number>_000000_gtFine_labelTrainIds.png
        gtFine/<split>/shapes/shapes_<number>_000000_gtFine_labelIds.png

    The ground is labelled as road, a circle as traffic sign, a square as
    building, and a triangle as vegetation. The outermost pixels of the image
    belong to no class, as the ego vehicle does in Cityscapes: train id 255,
    label id 1.

    A folder that exists is not written again: it appears only when complete.

    Args:
        data_root (str or Path): Folder that the data set's own folder is
            created in. Defaults to 'data/shapes'.

    Returns:
        Path: The data set's folder, ``<data_root>/cityscapes_v<VERSION>``.

    Raises:
        OSError: The folder cannot be written.
    """

    def write(folder: Path) -> None:
        for split, num_images in dict(train=256, val=32).items():
            _write_cityscapes_split(folder, split, num_images)

    return _write_once(Path(data_root) / f'cityscapes_v{VERSION}', write)


def write_imagenet_shapes(data_root: Union[str, Path] = 'data/shapes') -> Path:
    """Write the shapes as a classification data set like ImageNet.

    The folder holds ``<split>/<class>/<number>.png`` for the splits train and
    val (512 and 128 images of 64 by 64 pixels) and the classes ``SHAPES``.
    Each image shows one shape.

    A folder that exists is not written again: it appears only when complete.

    Args:
        data_root (str or Path): Folder that the data set's own folder is
            created in. Defaults to 'data/shapes'.

    Returns:
        Path: The data set's folder, ``<data_root>/imagenet_v<VERSION>``.

    Raises:
        OSError: The folder cannot be written.
    """

    def write(folder: Path) -> None:
        for split, num_images in dict(train=512, val=128).items():
            drawings = draw_shapes(
                split, num_images, size=(64, 64), max_shapes=1)
            for number, (image, [(category, _)]) in enumerate(drawings):
                _write_png(
                    folder / split / SHAPES[category] / f'{number:06d}.png',
                    image)

    return _write_once(Path(data_root) / f'imagenet_v{VERSION}', write)


def _write_once(folder: Path, write: Callable[[Path], None]) -> Path:
    """Let ``write`` fill a temporary sibling, then rename it to ``folder``.

    Renaming is atomic: no one ever sees half a data set, and of several ranks
    that write the same data at once the first to finish wins.
    """
    if folder.exists():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(
            prefix=f'.{folder.name}_', dir=folder.parent) as temporary:
        filled = Path(temporary) / folder.name
        filled.mkdir()
        write(filled)
        try:
            os.rename(filled, folder)
        except OSError:
            if not folder.exists():
                raise
    return folder


def _write_coco_split(folder: Path, split: str, num_images: int,
                      size: int) -> None:
    images, annotations = [], []
    drawings = draw_shapes(split, num_images, size=(size, size))
    for image_id, (image, shapes) in enumerate(drawings, start=1):
        name = f'{image_id:06d}.png'
        _write_png(folder / split / name, image)
        images.append(
            dict(id=image_id, file_name=name, width=size, height=size))
        for category, mask in shapes:
            rows, columns = np.nonzero(mask)
            x, y = int(columns.min()), int(rows.min())
            annotations.append(
                dict(
                    id=len(annotations) + 1,
                    image_id=image_id,
                    category_id=category + 1,
                    bbox=[
                        x, y,
                        int(columns.max()) + 1 - x,
                        int(rows.max()) + 1 - y
                    ],
                    segmentation=[_outline(mask)],
                    area=int(mask.sum()),
                    iscrowd=0))
    categories = [
        dict(id=i, name=name, supercategory='shape')
        for i, name in enumerate(SHAPES, start=1)
    ]
    path = folder / 'annotations' / f'instances_{split}.json'
    path.parent.mkdir(exist_ok=True)
    path.write_text(
        json.dumps(
            dict(
                images=images, annotations=annotations,
                categories=categories)))


def _write_cityscapes_split(folder: Path, split: str, num_images: int) -> None:
    # Cityscapes' ids of the ground and, in SHAPES' order, of the shapes.
    road, classes = (0, 7), ((7, 20), (2, 11), (8, 21))
    drawings = draw_shapes(split, num_images, size=(96, 192))
    for number, (image, shapes) in enumerate(drawings):
        stem = f'{split}/shapes/shapes_{number:06d}_000000'
        _write_png(folder / f'leftImg8bit/{stem}_leftImg8bit.png', image)
        for suffix, column, unlabelled in (('labelTrainIds', 0, 255),
                                           ('labelIds', 1, 1)):
            labels = np.full(image.shape[:2], unlabelled, np.uint8)
            labels[1:-1, 1:-1] = road[column]
            for category, mask in shapes:
                labels[mask] = classes[category][column]
            _write_png(folder / f'gtFine/{stem}_gtFine_{suffix}.png', labels)


def draw_shapes(split: str,
                num_images: int,
                size: Tuple[int, int],
                max_shapes: int = 3) -> Iterator[_Drawing]:
    """Draw images of ``size`` (height, width) with one shape or more."""
    rng = np.random.Generator(np.random.PCG64(SPLIT_SEEDS[split]))
    height, width = size
    for _ in range(num_images):
        image = rng.integers(0, 64, (height, width, 3), dtype=np.uint8)
        occupied = np.zeros((height, width), bool)
        shapes = []
        wanted = rng.integers(1, max_shapes + 1)
        # No two shapes touch, so a place may be taken: a few tries for each.
        for _ in range(8 * wanted):
            if len(shapes) == wanted:
                break
            category = int(rng.integers(len(SHAPES)))
            side = int(rng.integers(16, 49))
            top = int(rng.integers(1, height - side))
            left = int(rng.integers(1, width - side))
            colour = rng.integers(128, 256, 3, dtype=np.uint8)
            if occupied[top - 1:top + side + 1,
                        left - 1:left + side + 1].any():
                continue
            mask = np.zeros((height, width), bool)
            mask[top:top + side,
                 left:left + side] = _shape(SHAPES[category], side)
            image[mask] = colour
            occupied |= mask
            shapes.append((category, mask))
        yield image, shapes


def _shape(name: str, side: int) -> np.ndarray:
    """Draw a shape that touches all four sides of a square of ``side``."""
    # Twice the coordinates of the pixel centres, to stay with integers.
    y, x = np.mgrid[1:2 * side:2, 1:2 * side:2]
    if name == 'circle':
        return (x - side)**2 + (y - side)**2 <= side**2
    if name == 'triangle':
        # The apex lies in the middle of the upper side.
        return 2 * abs(x - side) <= y + 1
    return np.ones((side, side), bool)


def _outline(mask: np.ndarray) -> List[int]:
    """Follow a mask's outer pixel edges: ``[x0, y0, x1, y1, ...]``.

    Every row of the mask must be one run of pixels, as in all our shapes.
    """
    rows = np.flatnonzero(mask.any(axis=1))
    left = mask.argmax(axis=1)[rows]
    right = mask.shape[1] - mask[:, ::-1].argmax(axis=1)[rows]
    down = [(x, y + step) for x, y in zip(left, rows) for step in (0, 1)]
    up = [(x, y + step) for x, y in zip(right, rows) for step in (0, 1)][::-1]
    return [int(value) for point in down + up for value in point]


def _write_png(path: Path, pixels: np.ndarray) -> None:
    # Not cv2.imwrite, which answers a full disk with False.
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(cv2.imencode('.png', pixels)[1].tobytes())
