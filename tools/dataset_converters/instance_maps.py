"""Converts images with instance maps, for detectors and for segmentors.

    python tools/dataset_converters/instance_maps.py data/nuclei

FOLDER has images/NAME.png and instances/NAME.png. A map is a PNG of one
channel, 8 or 16 bit, of the image's size; 0 is the ground, any other number
one instance. OUT gets

- coco/train.json, coco/val.json: boxes and masks (RLE), read and checked with
  pycocotools; the images stay where they are;
- leftImg8bit/SPLIT/NAME_leftImg8bit.png and
  gtFine/SPLIT/NAME_gtFine_labelTrainIds.png, as Cityscapes has them: 0 ground,
  1 inside, 2 border. Border is what is not farther than BORDER pixels from
  the ground or from another instance.

Images whose number, the last digits of NAME, is divisible by VAL_EVERY are
the split val, the others train. What was left out is counted on the screen
and named in OUT/problems.txt. A second run writes the same bytes.
"""
import argparse
import functools
import re
import shutil
from pathlib import Path
from typing import Dict, List, Optional, Sequence, Tuple

import cv2
import numpy as np
from conversion import (Problems, read_image, stop, write_bytes, write_split,
                        write_whole)
from mmengine.utils import track_progress
from pycocotools import mask as masks

SUFFIXES = ('.png', '.jpg', '.jpeg', '.bmp', '.tif', '.tiff')
KINDS = dict(
    no_map='images without an instance map: left out',
    no_image='instance maps without an image: left out',
    broken_image='images that cannot be read: left out',
    broken_map='instance maps that cannot be read: image left out',
    no_map_type='instance maps that are not whole numbers in one channel: '
    'image left out',
    size='instance maps of another size than their image: image left out',
    pieces='instances in more than one piece: kept as one',
    empty='images without an instance: kept')
CLASSES = ('ground', 'inside', 'border')


def find_pairs(folder: Path, problems: Problems) -> List[Tuple[Path, Path]]:
    """Images and their maps, by name.

    Raises:
        FileNotFoundError: there are none.
    """
    found = {}
    for part in ('images', 'instances'):
        if not (folder / part).is_dir():
            raise FileNotFoundError(
                'expected a folder with images and instances, there is no '
                f'{folder / part}.')
        found[part] = {
            path.stem: path
            for path in sorted((folder / part).iterdir())
            if path.suffix.lower() in SUFFIXES
        }
    images, maps = found['images'], found['instances']
    for kind, names in (('no_map', images.keys() - maps.keys()),
                        ('no_image', maps.keys() - images.keys())):
        for name in sorted(names):
            problems.add(kind, name)
    pairs = [(path, maps[name]) for name, path in images.items()
             if name in maps]
    if not pairs:
        raise FileNotFoundError(
            f'no image of {folder / "images"} has a map of the same name in '
            f'{folder / "instances"}.')
    return pairs


def split_of(path: Path, val_every: int) -> str:
    """Raises ValueError where the name has no number."""
    if not val_every:
        return 'train'
    digits = re.findall(r'\d+', path.stem)
    if not digits:
        raise ValueError(
            f'{path.name} has no number, by which the split is chosen; write '
            '--val-every 0, which puts all images into train.')
    return 'train' if int(digits[-1]) % val_every else 'val'


def semantic_files(out: Path, image: Path,
                   val_every: int) -> Tuple[Path, Path]:
    """Where an image and its semantic map go."""
    split = split_of(image, val_every)
    return (out / f'leftImg8bit/{split}/{image.stem}_leftImg8bit.png',
            out / f'gtFine/{split}/{image.stem}_gtFine_labelTrainIds.png')


def refuse_others(out: Path, expected: Sequence[Path]) -> None:
    """Raises FileExistsError where images of another conversion lie.

    With another split an image would be trained on and tested on.
    """
    there = {
        path
        for part in ('leftImg8bit', 'gtFine')
        for path in (out / part).glob('*/*.png')
    }
    others = sorted(there - set(expected))
    if others:
        raise FileExistsError(
            f'{out} holds {len(others)} files of another conversion, such as '
            f'{others[0]}; remove leftImg8bit and gtFine there, or write to '
            'another folder with --out.')


def read_map(path: Path, shape: Sequence[int],
             problems: Problems) -> Optional[np.ndarray]:
    """(H, W), uint8 or uint16, or None where the image is left out."""
    instances = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    if instances is None:
        problems.add('broken_map', path.name)
    elif instances.ndim != 2 or instances.dtype not in (np.uint8, np.uint16):
        problems.add('no_map_type', path.name,
                     f'{instances.dtype} of shape {instances.shape}')
    elif instances.shape != tuple(shape):
        height, width = instances.shape
        problems.add('size', path.name,
                     f'{width}x{height}, image {shape[1]}x{shape[0]}')
    else:
        return instances
    return None


def encode(instances: np.ndarray, name: str, problems: Problems) -> List[dict]:
    """Annotations of COCO without ids, by the instance's number."""
    found = []
    for number in np.unique(instances[instances > 0]):
        mask = (instances == number).astype(np.uint8)
        pieces = cv2.connectedComponents(mask, connectivity=8)[0] - 1
        if pieces > 1:
            problems.add('pieces', name, f'number {number} in {pieces}')
        rle = masks.encode(np.asfortranarray(mask))
        found.append(
            dict(
                category_id=1,
                bbox=masks.toBbox(rle).tolist(),
                area=int(masks.area(rle)),
                iscrowd=0,
                # JSON has no bytes.
                segmentation=dict(
                    size=rle['size'], counts=str(rle['counts'], 'ascii'))))
    if not found:
        problems.add('empty', name)
    return found


def semantic_map(instances: np.ndarray, border: int) -> np.ndarray:
    """0 ground, 1 inside, 2 border, uint8."""
    window = np.ones((2 * border + 1, ) * 2, np.uint8)
    # What is beyond the edge of the image counts as nothing.
    lowest = cv2.erode(instances, window)
    highest = cv2.dilate(instances, window)
    inside = (lowest == instances) & (highest == instances)
    return np.where(instances == 0, 0, np.where(inside, 1, 2)).astype(np.uint8)


def convert_pair(pair: Tuple[Path, Path], out: Path, val_every: int,
                 border: int, problems: Problems) -> Optional[dict]:
    """Writes the segmentor's files; returns what COCO's have of the image."""
    image_path, map_path = pair
    try:
        image = read_image(image_path)
    except OSError as error:
        problems.add('broken_image', image_path.name, error)
        return None
    instances = read_map(map_path, image.shape[:2], problems)
    if instances is None:
        return None
    copy, semantic = semantic_files(out, image_path, val_every)
    if image_path.suffix.lower() == '.png':
        write_whole(copy, lambda part: shutil.copyfile(image_path, part))
    else:
        write_bytes(copy, cv2.imencode('.png', image)[1].tobytes())
    write_bytes(
        semantic,
        cv2.imencode('.png', semantic_map(instances, border))[1].tobytes())
    height, width = instances.shape
    return dict(
        image=dict(file_name=image_path.name, width=width, height=height),
        annotations=encode(instances, image_path.name, problems))


def convert(folder: Path, out: Path, name: str, val_every: int,
            border: int) -> None:
    problems = Problems(KINDS)
    pairs = find_pairs(folder, problems)
    refuse_others(out, [
        path for image, _ in pairs
        for path in semantic_files(out, image, val_every)
    ])
    found = track_progress(
        functools.partial(
            convert_pair,
            out=out,
            val_every=val_every,
            border=border,
            problems=problems), pairs)
    print()
    problems.save(out)
    splits: Dict[str, List[Optional[dict]]] = {}
    for (image, _), item in zip(pairs, found):
        splits.setdefault(split_of(image, val_every), []).append(item)
    for split in sorted(splits):
        write_split(out / f'coco/{split}.json', splits[split], [name],
                    'converted from instance maps')


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument('folder', type=Path)
    parser.add_argument(
        '--out', type=Path, help='folder to write to; FOLDER if not given')
    parser.add_argument(
        '--class-name',
        default='nucleus',
        help='of the instances; default: nucleus')
    parser.add_argument(
        '--val-every', type=int, default=5, help='0 for none; default: 5')
    parser.add_argument(
        '--border', type=int, default=1, help='in pixels; default: 1')
    args = parser.parse_args()
    if args.val_every < 0 or args.border < 1:
        parser.error('expected --val-every of at least 0 and --border of at '
                     f'least 1, got {args.val_every} and {args.border}.')
    try:
        convert(args.folder, args.out or args.folder, args.class_name,
                args.val_every, args.border)
    except (FileExistsError, FileNotFoundError, ValueError) as error:
        stop(error)


if __name__ == '__main__':
    main()
