"""The data set converters, on folders made here and on the real ones."""
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

cv2 = pytest.importorskip('cv2')
pytest.importorskip('mmcv')
pytest.importorskip('pycocotools')

from tests.utils import real_data  # noqa: E402

FOLDER = Path(__file__).parents[1] / 'tools' / 'dataset_converters'


@pytest.fixture
def tools(monkeypatch):
    """The converters by name."""
    monkeypatch.syspath_prepend(str(FOLDER))
    import conversion
    import instance_maps
    import pascal_voc
    yield dict(voc=pascal_voc, maps=instance_maps, conversion=conversion)
    for name in ('instance_maps', 'pascal_voc', 'conversion'):
        del sys.modules[name]


@pytest.fixture
def call(tools, monkeypatch, capsys):
    """Runs one as from the command line; what it prints behind the bar."""

    def run(name, *arguments):
        monkeypatch.setattr(sys, 'argv',
                            [f'{name}.py', *(str(word) for word in arguments)])
        tools[name].main()
        return capsys.readouterr().out.rpartition('\r')[2].partition('\n')[2]

    return run


def files_of(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob('*') if path.is_file()
    }


def error_of(call, *arguments):
    with pytest.raises(SystemExit) as left:
        call(*arguments)
    return str(left.value)


# --- Pascal VOC ---


def voc_object(name, *box, more=''):
    sides = ('xmin', 'ymin', 'xmax', 'ymax')
    numbers = ''.join(f'<{s}>{v}</{s}>' for s, v in zip(sides, box))
    return (f'<object><name>{name}</name>{more}<bndbox>{numbers}</bndbox>'
            '</object>')


def write_voc(root, images, splits, size=(20, 10)):
    """Images of 20x10 with these objects; None writes no XML."""
    for part in ('Annotations', 'JPEGImages', 'ImageSets/Main'):
        (root / part).mkdir(parents=True)
    for name, objects in images.items():
        picture = np.full((10, 20, 3), 128, np.uint8)
        cv2.imwrite(str(root / f'JPEGImages/{name}.jpg'), picture)
        if objects is not None:
            (root / f'Annotations/{name}.xml').write_text(
                f'<annotation><size><width>{size[0]}</width>'
                f'<height>{size[1]}</height></size>{"".join(objects)}'
                '</annotation>')
    for split, names in splits.items():
        (root / f'ImageSets/Main/{split}.txt').write_text('\n'.join(names))
    return root


def test_voc_boxes_by_hand(tmp_path, call):
    root = write_voc(
        tmp_path / 'voc',
        dict(
            a=[
                voc_object('cat', 1, 1, 20, 10),
                voc_object('dog', 5.5, 2, 8, 4)
            ],
            b=[voc_object('dog', 3, 3, 4, 6)]),
        dict(train=['a', 'b'], val=['b'], cat_train=['a  1', 'b -1']))
    printed = call('voc', root)
    assert sorted(files_of(
        root / 'coco')) == ['problems.txt', 'train.json', 'val.json']
    content = json.loads((root / 'coco/train.json').read_text())
    assert content['categories'] == [
        dict(id=1, name='cat'), dict(id=2, name='dog')
    ]  # yapf: disable
    assert content['images'] == [
        dict(id=1, file_name='a.jpg', width=20, height=10),
        dict(id=2, file_name='b.jpg', width=20, height=10)
    ]
    assert [(a['id'], a['image_id'], a['category_id'], a['bbox'], a['area'])
            for a in content['annotations']] == [
                (1, 1, 1, [0, 0, 19, 9], 171),
                (2, 1, 2, [4.5, 1, 2.5, 2], 5),
                (3, 2, 2, [2, 2, 1, 3], 3),
            ]
    assert 'train.json: 2 images, cat 1, dog 2\n' in printed
    assert 'nothing was left out or changed' in printed

    before = files_of(root)
    call('voc', root)
    assert files_of(root) == before
    # Labels in another order, one of them not asked for.
    call('voc', root, '--classes', 'dog', '--splits', 'val', '--out',
         tmp_path / 'other')
    content = json.loads((tmp_path / 'other/val.json').read_text())
    assert [a['category_id'] for a in content['annotations']] == [1]
    assert not (tmp_path / 'other/train.json').exists()


def test_every_voc_problem_is_named(tmp_path, call):
    good = voc_object('cat', 2, 2, 5, 5)
    root = write_voc(
        tmp_path,
        dict(
            good=[good],
            no_xml=None,
            broken_xml=[good],
            no_image=[good],
            cut_image=[good],
            empty=[],
            boxes=[
                good,
                voc_object('bird', 2, 2, 5, 5),
                voc_object('cat', 4, 4, 4, 4),
                voc_object('cat', 9, 4, 5, 8),
                voc_object('cat', 30, 2, 40, 5),
                voc_object('cat', -3, 2, 25, 5),
                good,
                voc_object('cat', 3, 3, 6, 'x'),
                voc_object('cat', 3, 3, 6),
                voc_object('cat', 3, 3, 6, 'inf'),
                voc_object(' ', 3, 3, 6, 6),
                voc_object('cat', 3, 3, 6, 6, more='<difficult>1</difficult>'),
            ]),
        dict(train=[
            'good', 'no_xml', 'broken_xml', 'no_image', 'cut_image', 'empty',
            'boxes', 'good', 'never_there'
        ]))
    (root / 'Annotations/broken_xml.xml').write_text('<annotation><size>')
    (root / 'JPEGImages/no_image.jpg').unlink()
    picture = root / 'JPEGImages/cut_image.jpg'
    picture.write_bytes(picture.read_bytes()[:-10])

    printed = call('voc', root, '--classes', 'cat')
    report = (root / 'coco/problems.txt').read_text()
    for line in (
            '1 lines of a split name an image again: counted once\n'
            '    train: good\n',
            '2 images without a file: left out\n'
            '    no_image\n    never_there\n',
            '1 images that cannot be read: left out\n'
            '    cut_image.jpg: image file is truncated',
            '2 images without an XML file: left out\n'
            '    no_xml\n    never_there\n',
            '1 XML files that cannot be read: image left out\n'
            '    broken_xml.xml: no element found: line 1, column 18\n',
            '4 objects without a name or a box of four numbers: left out\n'
            "    boxes.jpg: could not convert string to float: 'x'\n"
            '    boxes.jpg: no ymax\n'
            '    boxes.jpg: ymax is inf\n'
            '    boxes.jpg: no name\n',
            '1 objects whose name is not in the list of classes: left out\n'
            '    boxes.jpg: bird\n',
            '2 boxes without area: left out\n'
            '    boxes.jpg, cat: (4, 4, 4, 4)\n'
            '    boxes.jpg, cat: (9, 4, 5, 8)\n',
            '1 boxes outside their image: left out\n'
            '    boxes.jpg, cat: (30, 2, 40, 5)\n',
            '1 boxes that reach beyond their image: cut off at its edge\n'
            '    boxes.jpg, cat: (-3, 2, 25, 5)\n',
            '1 boxes that are there before, with the same name: left out\n'
            '    boxes.jpg, cat: (2, 2, 5, 5)\n',
            '1 objects marked difficult: kept, with iscrowd\n'
            '    boxes.jpg, cat: (3, 3, 6, 6)\n',
            '1 images without a box: kept, without annotations\n'
            '    empty.jpg\n',
    ):
        assert line in report
    # On the screen the first three.
    assert 'ymax is inf\n    and 1 more\n' in printed
    assert 'no name' not in printed
    content = json.loads((root / 'coco/train.json').read_text())
    assert [item['file_name'] for item in content['images']] == [
        'good.jpg', 'empty.jpg', 'boxes.jpg'
    ]  # yapf: disable
    assert [(a['image_id'], a['bbox'], a['iscrowd'])
            for a in content['annotations']] == [
                (1, [1, 1, 3, 3], 0),
                (3, [1, 1, 3, 3], 0),
                (3, [0, 1, 20, 3], 0),
                (3, [2, 2, 3, 3], 1),
            ]


def test_size_of_the_image_counts(tmp_path, call):
    root = write_voc(
        tmp_path,
        dict(a=[voc_object('cat', 2, 2, 15, 5)]),
        dict(train=['a']),
        size=(10, 10))
    printed = call('voc', root)
    assert ('1 images of another size than their XML says: that of the image '
            'is taken\n    a.jpg: 10x10 in the XML, is 20x10\n') in printed
    content = json.loads((root / 'coco/train.json').read_text())
    assert content['annotations'][0]['bbox'] == [1, 1, 13, 3]


def test_errors_of_voc(tmp_path, call):
    assert error_of(call, 'voc', tmp_path / 'none') == (
        'voc.py: expected a Pascal VOC folder with Annotations, JPEGImages '
        f'and ImageSets/Main, there is no {tmp_path}/none/Annotations.')
    root = write_voc(tmp_path / 'voc', dict(a=[voc_object('cat', 2, 2, 5, 5)]),
                     dict(train=['a'], cat_val=['a 1']))
    message = error_of(call, 'voc', root, '--splits', 'val')
    assert message.endswith(
        f'there is no split val in {root}/ImageSets/Main, expected a file of '
        'image names, one a line; there are train.')
    message = error_of(call, 'voc', root, '--classes', 'bird')
    assert message.endswith(
        f'nothing is left for {root}/coco/train.json: of 1 images 1 could be '
        'read, and none has an object of the classes bird.')
    # What was left out is named all the same.
    assert 'a.jpg: cat' in (root / 'coco/problems.txt').read_text()
    assert not list(root.rglob('*.json*'))


@pytest.mark.parametrize('change, message', (
    (dict(bbox=[15, 0, 9, 5]), 'with the box [15, 0, 9, 5] in a.png'),
    (dict(bbox=[1, 1, 0, 5]), 'with the box [1, 1, 0, 5] in a.png'),
    (dict(image_id=2), 'annotation 1 of no image or no category'),
    (dict(area=7), 'annotation 1 with another area than its mask'),
))
def test_pycocotools_has_the_last_word(tools, tmp_path, change, message):
    """A fault of a converter would leave no file."""
    annotation = dict(
        id=1,
        image_id=1,
        category_id=1,
        bbox=[0, 0, 4, 5],
        area=20,
        iscrowd=0,
        segmentation=[[0, 0, 4, 0, 4, 5, 0, 5]])
    content = dict(
        images=[dict(id=1, file_name='a.png', width=20, height=10)],
        categories=[dict(id=1, name='cat')],
        annotations=[annotation])
    path = tmp_path / 'a.json'
    tools['conversion'].write_coco(path, content)
    before = path.read_bytes()
    annotation.update(change)
    with pytest.raises(ValueError, match='pycocotools finds in') as caught:
        tools['conversion'].write_coco(path, content)
    assert message in str(caught.value)
    assert files_of(tmp_path) == {'a.json': before}


def test_interrupted_writing_leaves_the_old_file(tools, tmp_path):
    path = tmp_path / 'a.txt'

    def stops(part):
        part.write_text('half')
        raise KeyboardInterrupt

    for before in ({}, {'a.txt': b'old'}):
        for name, content in before.items():
            (tmp_path / name).write_bytes(content)
        with pytest.raises(KeyboardInterrupt):
            tools['conversion'].write_whole(path, stops)
        assert files_of(tmp_path) == before


# --- Instance maps ---


def write_maps(root, maps):
    """Grey images and maps of these arrays."""
    for part in ('images', 'instances'):
        (root / part).mkdir(parents=True)
    for name, instances in maps.items():
        instances = np.asarray(instances, np.uint16)
        height, width = instances.shape
        cv2.imwrite(
            str(root / f'images/{name}.png'),
            np.full((height, width, 3), 128, np.uint8))
        cv2.imwrite(str(root / f'instances/{name}.png'), instances)
    return root


# A square, a neighbour that touches it, and one of two pieces far away.
MAP = np.zeros((8, 12), np.uint16)
MAP[1:6, 1:6] = 3
MAP[1:6, 6:9] = 1000
MAP[0, 11] = MAP[7, 11] = 70


def test_instances_by_hand(tmp_path, call):
    from pycocotools import mask as masks
    root = write_maps(tmp_path, {'a05': MAP, 'a06': MAP, 'a07': 0 * MAP})
    printed = call('maps', root)
    content = json.loads((root / 'coco/train.json').read_text())
    assert [item['file_name'] for item in content['images']] == [
        'a06.png', 'a07.png'
    ]  # yapf: disable
    assert [(a['bbox'], a['area'])
            for a in content['annotations']] == [([1, 1, 5, 5], 25),
                                                 ([11, 0, 1, 8], 2),
                                                 ([6, 1, 3, 5], 15)]
    for number, annotation in zip((3, 70, 1000), content['annotations']):
        mask = masks.decode(annotation['segmentation'])
        assert (mask == (MAP == number)).all()
    assert (root / 'coco/val.json').exists()
    assert ('2 instances in more than one piece: kept as one\n'
            '    a05.png: number 70 in 2\n') in printed
    assert '1 images without an instance: kept\n    a07.png\n' in printed


def test_semantic_map_by_hand(tmp_path, call):
    root = write_maps(tmp_path / 'in', {'5': MAP, '6': MAP})
    call('maps', root, '--out', tmp_path / 'out')
    out = tmp_path / 'out'
    assert (out / 'leftImg8bit/val/5_leftImg8bit.png').read_bytes() == (
        root / 'images/5.png').read_bytes()
    semantic = cv2.imread(
        str(out / 'gtFine/train/6_gtFine_labelTrainIds.png'),
        cv2.IMREAD_UNCHANGED)
    expected = np.where(MAP > 0, 2, 0)
    expected[2:5, 2:5] = expected[2:5, 7] = 1
    assert semantic.dtype == np.uint8 and (semantic == expected).all()
    assert not list(root.rglob('*.json'))

    before = files_of(out)
    call('maps', root, '--out', out)
    assert files_of(out) == before
    call('maps', root, '--out', tmp_path / 'wide', '--border', 2)
    semantic = cv2.imread(
        str(tmp_path / 'wide/gtFine/train/6_gtFine_labelTrainIds.png'),
        cv2.IMREAD_UNCHANGED)
    # The innermost pixel of the square, and it alone, is 3 from the ground.
    assert list(zip(*np.nonzero(semantic == 1))) == [(3, 3)]


def test_border_stops_at_the_edge_of_the_image(tools):
    semantic = tools['maps'].semantic_map(np.full((3, 4), 9, np.uint8), 1)
    assert (semantic == 1).all()


def test_every_problem_of_maps_is_named(tmp_path, call):
    names = [
        f'{kind}1' for kind in ('good', 'nomap', 'noimage', 'cut', 'notimage',
                                'colour', 'size')
    ]
    root = write_maps(tmp_path, dict.fromkeys(names, MAP))
    (root / 'instances/nomap1.png').unlink()
    (root / 'images/noimage1.png').unlink()
    picture = root / 'images/cut1.png'
    # Pillow takes it, OpenCV does not.
    picture.write_bytes(picture.read_bytes()[:-20])
    (root / 'instances/notimage1.png').write_text('no picture')
    cv2.imwrite(
        str(root / 'instances/colour1.png'), np.zeros((8, 12, 3), np.uint8))
    cv2.imwrite(str(root / 'instances/size1.png'), MAP[:, :5])
    call('maps', root)
    report = (root / 'problems.txt').read_text()
    for line in (
            '1 images without an instance map: left out\n    nomap1\n',
            '1 instance maps without an image: left out\n    noimage1\n',
            '1 images that cannot be read: left out\n    cut1.png: OpenCV '
            'cannot read it\n',
            '1 instance maps that cannot be read: image left out\n'
            '    notimage1.png\n',
            '1 instance maps that are not whole numbers in one channel: image '
            'left out\n    colour1.png: uint8 of shape (8, 12, 3)\n',
            '1 instance maps of another size than their image: image left '
            'out\n    size1.png: 5x8, image 12x8\n',
    ):
        assert line in report
    content = json.loads((root / 'coco/train.json').read_text())
    assert [item['file_name'] for item in content['images']] == ['good1.png']
    assert len(list((root / 'gtFine').rglob('*.png'))) == 1


def test_errors_of_maps(tmp_path, call, capsys):
    assert error_of(call, 'maps', tmp_path / 'none') == (
        'maps.py: expected a folder with images and instances, there is no '
        f'{tmp_path}/none/images.')
    root = write_maps(tmp_path / 'a', {'cell': MAP, '1': MAP})
    message = error_of(call, 'maps', root)
    assert message.endswith(
        'cell.png has no number, by which the split is chosen; write '
        '--val-every 0, which puts all images into train.')
    call('maps', root, '--val-every', 0)
    assert sorted(path.name for path in root.glob('coco/*')) == ['train.json']

    (root / 'images/cell.png').unlink()
    message = error_of(call, 'maps', root, '--val-every', 1)
    assert message.startswith(f'maps.py: {root} holds 4 files of another '
                              f'conversion, such as {root}/gtFine/train/1_gt')
    assert 'or write to another folder with --out.' in message
    (root / 'instances/1.png').unlink()
    message = error_of(call, 'maps', root)
    assert message.endswith(
        f'no image of {root}/images has a map of the same name in '
        f'{root}/instances.')
    empty = write_maps(tmp_path / 'b', {'1': 0 * MAP})
    assert 'none has an object of the classes nucleus.' in error_of(
        call, 'maps', empty)
    assert '1.png' in (empty / 'problems.txt').read_text()
    capsys.readouterr()
    error_of(call, 'maps', root, '--border', 0)
    assert ('expected --val-every of at least 0 and --border of at least 1, '
            'got 5 and 0.') in capsys.readouterr().err


# --- The real ones ---


def test_blood_cells(tmp_path, call):
    printed = call('voc', real_data('bccd'), '--out', tmp_path, '--splits',
                   'test', '--classes', 'RBC', 'WBC', 'Platelets')
    assert 'test.json: 72 images, RBC 805, WBC 71, Platelets 69\n' in printed


def test_killed_conversion_goes_on(tmp_path, call):
    """As a user would do it: killed in the midst, started again."""
    root = tmp_path / 'in'
    for path in real_data('nuclei').glob('*/0[0-4]?.png'):
        (root / path.parent.name).mkdir(parents=True, exist_ok=True)
        shutil.copy(path, root / path.parent.name)
    killed, whole = tmp_path / 'killed', tmp_path / 'whole'
    process = subprocess.Popen(
        [sys.executable, FOLDER / 'instance_maps.py', root, '--out', killed],
        stdout=subprocess.DEVNULL)
    while len(list(killed.glob('gtFine/*/*.png'))) < 2:
        assert process.poll() is None
    process.kill()
    process.wait()
    for path in killed.glob('gtFine/*/*.png'):
        assert cv2.imread(str(path), cv2.IMREAD_UNCHANGED).shape == (256, 256)
    assert not list(killed.rglob('*.json'))
    call('maps', root, '--out', killed)
    printed = call('maps', root, '--out', whole)
    assert 'train.json: 40 images, nucleus ' in printed
    assert files_of(killed) == files_of(whole)
    assert len(files_of(whole)) == 2 * 50 + 3
