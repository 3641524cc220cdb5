"""Converts a Pascal VOC folder to COCO files, one for each split.

    python tools/dataset_converters/pascal_voc.py data/bccd

FOLDER has Annotations, JPEGImages and ImageSets/Main. Every list of images in
ImageSets/Main becomes OUT/SPLIT.json; VOC's own lists of one class, with two
columns, are passed over. Nothing is lost in silence: what was left out or
changed is counted on the screen and named in OUT/problems.txt. A box (xmin,
ymin, xmax, ymax) becomes (xmin - 1, ymin - 1, xmax - xmin, ymax - ymin), as in
MMDetection's XMLDataset. A second run writes the same bytes.
"""
import argparse
import functools
from pathlib import Path
from typing import Dict, List, NamedTuple, Optional, Sequence
from xml.etree import ElementTree

from conversion import Problems, read_image, stop, write_split
from mmengine.utils import track_progress

SUFFIXES = ('.jpg', '.jpeg', '.png', '.bmp', '.tif', '.tiff')
KINDS = dict(
    twice='lines of a split name an image again: counted once',
    no_image='images without a file: left out',
    broken_image='images that cannot be read: left out',
    no_xml='images without an XML file: left out',
    broken_xml='XML files that cannot be read: image left out',
    size='images of another size than their XML says: that of the image is '
    'taken',
    broken_object='objects without a name or a box of four numbers: left out',
    unknown='objects whose name is not in the list of classes: left out',
    no_area='boxes without area: left out',
    outside='boxes outside their image: left out',
    beyond='boxes that reach beyond their image: cut off at its edge',
    duplicate='boxes that are there before, with the same name: left out',
    difficult='objects marked difficult: kept, with iscrowd',
    empty='images without a box: kept, without annotations')


class Box(NamedTuple):
    """A VOC box, in pixels from 1."""
    xmin: float
    ymin: float
    xmax: float
    ymax: float


def read_box(node: ElementTree.Element) -> Box:
    """Raises ValueError where a number is missing or is none."""
    numbers = []
    for side in Box._fields:
        text = node.findtext(f'bndbox/{side}')
        if text is None:
            raise ValueError(f'no {side}')
        number = float(text)
        if not abs(number) < float('inf'):
            raise ValueError(f'{side} is {text}')
        numbers.append(int(number) if number.is_integer() else number)
    return Box(*numbers)


def find_image(folder: Path, name: str,
               problems: Problems) -> Optional[Dict[str, object]]:
    """File name and size as training sees them, or None."""
    path = next(
        (folder / f'{name}{suffix}'
         for suffix in SUFFIXES if (folder / f'{name}{suffix}').is_file()),
        None)
    if path is None:
        problems.add('no_image', name)
        return None
    try:
        height, width = read_image(path).shape[:2]
    except OSError as error:
        problems.add('broken_image', path.name, error)
        return None
    return dict(file_name=path.name, width=width, height=height)


def read_xml(folder: Path, name: str,
             problems: Problems) -> Optional[ElementTree.Element]:
    path = folder / f'{name}.xml'
    if not path.is_file():
        problems.add('no_xml', name)
        return None
    try:
        return ElementTree.parse(path).getroot()
    except (ElementTree.ParseError, UnicodeDecodeError) as error:
        problems.add('broken_xml', path.name, error)
        return None


def cut_off(box: Box, image: dict, where: str,
            problems: Problems) -> Optional[Box]:
    """The part of a box that lies in its image, or None."""
    if box.xmin >= box.xmax or box.ymin >= box.ymax:
        problems.add('no_area', where, tuple(box))
        return None
    # The edges of the image are 1 and width + 1: VOC counts pixels from 1.
    right, bottom = image['width'] + 1, image['height'] + 1
    cut = Box(
        max(box.xmin, 1), max(box.ymin, 1), min(box.xmax, right),
        min(box.ymax, bottom))
    if cut.xmin >= cut.xmax or cut.ymin >= cut.ymax:
        problems.add('outside', where, tuple(box))
        return None
    if cut != box:
        problems.add('beyond', where, tuple(box))
    return cut


def read_objects(root: ElementTree.Element, image: dict,
                 classes: Sequence[str], problems: Problems) -> List[dict]:
    """Annotations without ids."""
    found, seen = [], set()
    for node in root.findall('object'):
        where = image['file_name']
        name = (node.findtext('name') or '').strip()
        try:
            if not name:
                raise ValueError('no name')
            box = read_box(node)
        except ValueError as error:
            problems.add('broken_object', where, error)
            continue
        if name not in classes:
            problems.add('unknown', where, name)
            continue
        where = f'{where}, {name}'
        box = cut_off(box, image, where, problems)
        if box is None:
            continue
        if (name, box) in seen:
            problems.add('duplicate', where, tuple(box))
            continue
        seen.add((name, box))
        difficult = (node.findtext('difficult') or '0').strip() == '1'
        if difficult:
            problems.add('difficult', where, tuple(box))
        width, height = box.xmax - box.xmin, box.ymax - box.ymin
        found.append(
            dict(
                category_id=classes.index(name) + 1,
                bbox=[box.xmin - 1, box.ymin - 1, width, height],
                area=width * height,
                iscrowd=int(difficult),
                segmentation=[]))
    if not found:
        problems.add('empty', image['file_name'])
    return found


def convert_image(name: str, folder: Path, classes: Sequence[str],
                  problems: Problems) -> Optional[dict]:
    """An image of COCO and its annotations, or None where it is left out."""
    image = find_image(folder / 'JPEGImages', name, problems)
    root = read_xml(folder / 'Annotations', name, problems)
    if image is None or root is None:
        return None
    size = [root.findtext(f'size/{side}') for side in ('width', 'height')]
    true = [str(image[side]) for side in ('width', 'height')]
    if None not in size and [text.strip() for text in size] != true:
        problems.add('size', image['file_name'],
                     f'{"x".join(size)} in the XML, is {"x".join(true)}')
    return dict(
        image=image, annotations=read_objects(root, image, classes, problems))


def read_splits(folder: Path, chosen: Optional[Sequence[str]],
                problems: Problems) -> Dict[str, List[str]]:
    """Names of the images of each split.

    Raises:
        FileNotFoundError: the folder is no VOC folder, or has no such split.
    """
    for part in ('Annotations', 'JPEGImages', 'ImageSets/Main'):
        if not (folder / part).is_dir():
            raise FileNotFoundError(
                f'expected a Pascal VOC folder with Annotations, JPEGImages '
                f'and ImageSets/Main, there is no {folder / part}.')
    lists = {
        path.stem: [line.split() for line in path.read_text().splitlines()]
        for path in sorted((folder / 'ImageSets/Main').glob('*.txt'))
    }
    splits = {}
    for split, lines in lists.items():
        lines = [words for words in lines if words]
        # Of one class: a second column says whether the image has it.
        if any(len(words) > 1 for words in lines):
            continue
        names = [name for name, in lines]
        splits[split] = list(dict.fromkeys(names))
        for name in splits[split]:
            if names.count(name) > 1:
                problems.add('twice', split, name)
    missing = [name for name in chosen or () if name not in splits]
    if missing or not splits:
        raise FileNotFoundError(
            f'there is no split {", ".join(missing) or "at all"} in '
            f'{folder / "ImageSets/Main"}, expected a file of image names, '
            f'one a line; there are {", ".join(splits) or "none"}.')
    return {split: splits[split] for split in chosen or splits}


def all_names(folder: Path, images: Sequence[str]) -> List[str]:
    """Every name that an object of these images has."""
    names, unread = set(), Problems(KINDS)
    for image in images:
        root = read_xml(folder / 'Annotations', image, unread)
        if root is not None:
            names.update((node.findtext('name') or '').strip()
                         for node in root.findall('object'))
    return sorted(names - {''})


def convert(folder: Path, out: Path, classes: Optional[Sequence[str]],
            chosen: Optional[Sequence[str]]) -> None:
    problems = Problems(KINDS)
    splits = read_splits(folder, chosen, problems)
    images = list(dict.fromkeys(sum(splits.values(), [])))
    classes = list(classes or all_names(folder, images))
    found = dict(
        zip(
            images,
            track_progress(
                functools.partial(
                    convert_image,
                    folder=folder,
                    classes=classes,
                    problems=problems), images)))
    print()
    problems.save(out)
    for split, names in splits.items():
        write_split(out / f'{split}.json', [found[name] for name in names],
                    classes, 'converted from Pascal VOC')


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument('folder', type=Path, help='Pascal VOC folder')
    parser.add_argument(
        '--out',
        type=Path,
        help='folder to write to; FOLDER/coco if not given')
    parser.add_argument(
        '--classes',
        nargs='+',
        metavar='NAME',
        help='in the order of the labels; all names there are, sorted, if not '
        'given')
    parser.add_argument(
        '--splits', nargs='+', metavar='SPLIT', help='only these; e.g. train')
    args = parser.parse_args()
    try:
        convert(args.folder, args.out or args.folder / 'coco', args.classes,
                args.splits)
    except (FileNotFoundError, ValueError) as error:
        stop(error)


if __name__ == '__main__':
    main()
