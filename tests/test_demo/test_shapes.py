"""The drawn data sets, as the libraries' own data set classes read them."""
import hashlib
import json

import cv2
import numpy as np
import pytest

from mm_acon.demo import (SHAPES, shapes, write_cityscapes_shapes,
                          write_coco_shapes, write_imagenet_shapes)

# Cityscapes' train ids and label ids of the classes drawn, by class name.
CITYSCAPES_IDS = {
    'road': (0, 7),
    'building': (2, 11),
    'traffic sign': (7, 20),
    'vegetation': (8, 21),
    'ignored': (255, 1),
}


@pytest.fixture(scope='module')
def coco(tmp_path_factory):
    return write_coco_shapes(tmp_path_factory.mktemp('shapes'))


@pytest.fixture(scope='module')
def cityscapes(tmp_path_factory):
    return write_cityscapes_shapes(tmp_path_factory.mktemp('shapes'))


@pytest.fixture(scope='module')
def imagenet(tmp_path_factory):
    return write_imagenet_shapes(tmp_path_factory.mktemp('shapes'))


def coco_dataset(folder, split):
    from mmdet.datasets import CocoDataset
    from mmdet.utils import register_all_modules
    register_all_modules(init_default_scope=True)
    return CocoDataset(
        data_root=str(folder),
        ann_file=f'annotations/instances_{split}.json',
        data_prefix=dict(img=f'{split}/'),
        metainfo=dict(classes=SHAPES),
        pipeline=[
            dict(type='LoadImageFromFile'),
            dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
        ])


@pytest.mark.parametrize('split, num_images', [('train', 512), ('val', 128)])
def test_coco_annotations_agree_with_the_pixels(coco, split, num_images):
    dataset = coco_dataset(coco, split)
    annotations = json.loads(
        (coco / f'annotations/instances_{split}.json').read_text())
    areas = {}
    for annotation in annotations['annotations']:
        assert annotation['iscrowd'] == 0
        areas.setdefault(annotation['image_id'], []).append(annotation['area'])

    assert len(dataset) == num_images
    for item in dataset:
        masks = item['gt_masks'].masks.astype(bool)
        assert item['img'].shape == (96, 96, 3)
        assert 1 <= len(masks) <= 3
        # The shapes are bright, the ground is dark, and no two overlap.
        assert (item['img'][masks.any(axis=0)] >= 128).all()
        assert (item['img'][~masks.any(axis=0)] < 64).all()
        assert masks.sum(axis=0).max() == 1
        assert areas[item['img_id']] == masks.sum(axis=(1, 2)).tolist()
        for mask, box, label in zip(masks, item['gt_bboxes'].numpy(),
                                    item['gt_bboxes_labels']):
            rows, columns = np.nonzero(mask)
            assert box.tolist() == [
                columns.min(),
                rows.min(),
                columns.max() + 1,
                rows.max() + 1
            ]
            side = box[2] - box[0]
            assert side == box[3] - box[1] and 16 <= side <= 48
            # How much of its square each shape fills: about pi / 4, all, and
            # half, with the pixels that the edge passes through.
            filled = dict(circle=0.785, square=1, triangle=0.53)
            assert mask.sum() / side**2 == pytest.approx(
                filled[SHAPES[label]], abs=0.04)


def test_every_shape_and_number_of_shapes_is_common(coco):
    dataset = coco_dataset(coco, 'val')
    labels = [item['gt_bboxes_labels'] for item in dataset]
    assert np.bincount(np.concatenate(labels)).min() > 50
    assert np.bincount([len(label) for label in labels])[1:].min() > 20


def test_cityscapes_labels_agree_with_the_pixels(cityscapes):
    from mmseg.datasets import CityscapesDataset
    from mmseg.utils import register_all_modules
    register_all_modules(init_default_scope=True)
    label_ids = np.zeros(256, int)
    for train_id, label_id in CITYSCAPES_IDS.values():
        label_ids[train_id] = label_id
    seen = set()
    for split, num_images in (('train', 256), ('val', 32)):
        dataset = CityscapesDataset(
            data_root=str(cityscapes),
            data_prefix=dict(
                img_path=f'leftImg8bit/{split}',
                seg_map_path=f'gtFine/{split}'),
            pipeline=[
                dict(type='LoadImageFromFile'),
                dict(type='LoadAnnotations')
            ])
        assert len(dataset) == num_images
        for item in dataset:
            labels = item['gt_seg_map']
            assert item['img'].shape == (96, 192, 3)
            bright = (item['img'] >= 128).all(axis=2)
            classes = [
                CITYSCAPES_IDS[name][0]
                for name in ('building', 'traffic sign', 'vegetation')
            ]
            assert (bright == np.isin(labels, classes)).all()
            border = np.ones(labels.shape, bool)
            border[1:-1, 1:-1] = False
            assert (border == (labels == 255)).all()
            path = item['seg_map_path'].replace('TrainIds', 'Ids')
            assert (cv2.imread(
                path, cv2.IMREAD_UNCHANGED) == label_ids[labels]).all()
            seen.update(np.unique(labels).tolist())
    assert seen == {train_id for train_id, _ in CITYSCAPES_IDS.values()}


@pytest.mark.parametrize('split, num_images', [('train', 512), ('val', 128)])
def test_imagenet_folders_tell_the_shape(imagenet, split, num_images):
    pytest.importorskip('mmpretrain')
    from mmpretrain.datasets import ImageNet
    from mmpretrain.utils import register_all_modules
    register_all_modules(init_default_scope=True)
    dataset = ImageNet(
        data_root=str(imagenet),
        split=split,
        metainfo=dict(classes=SHAPES),
        pipeline=[dict(type='LoadImageFromFile')])
    assert len(dataset) == num_images
    labels = [item['gt_label'] for item in dataset]
    assert np.bincount(labels).min() > num_images / 4
    for item in dataset:
        image, name = item['img'], SHAPES[item['gt_label']]
        assert image.shape == (64, 64, 3)
        assert f'/{split}/{name}/' in item['img_path']
        bright = (image >= 128).all(axis=2)
        assert ((image < 64).all(axis=2) == ~bright).all()
        rows, columns = np.nonzero(bright)
        side = np.ptp(rows) + 1
        assert side == np.ptp(columns) + 1 and 16 <= side <= 48
        filled = dict(circle=0.785, square=1, triangle=0.53)
        assert bright.sum() / side**2 == pytest.approx(filled[name], abs=0.04)


@pytest.mark.parametrize('name', ['coco', 'imagenet'])
def test_train_and_val_have_no_image_in_common(name, request):
    folder = request.getfixturevalue(name)
    digests = {
        split: {path.read_bytes()
                for path in (folder / split).rglob('*.png')}
        for split in ('train', 'val')
    }
    assert len(digests['train']) == 512 and len(digests['val']) == 128
    assert not digests['train'] & digests['val']


@pytest.mark.parametrize(
    'write',
    [write_coco_shapes, write_cityscapes_shapes, write_imagenet_shapes])
def test_the_same_bytes_every_time(write, request, tmp_path):
    name = write.__name__.split('_')[1]
    first, second = request.getfixturevalue(name), write(tmp_path)
    files = sorted(path.relative_to(first) for path in first.rglob('*'))
    assert files == sorted(
        path.relative_to(second) for path in second.rglob('*'))
    for file in files:
        if (first / file).is_file():
            assert (first / file).read_bytes() == (second / file).read_bytes()


# What is compared is decoded: PNG files may differ with the zlib in use.
@pytest.mark.parametrize('name, digest', [('coco', '5f581ca79cca35c2'),
                                          ('cityscapes', 'fc5ec4a493614cac'),
                                          ('imagenet', '793f52619bcaa504')])
def test_a_changed_generator_has_a_new_version(name, digest, request):
    folder = request.getfixturevalue(name)
    state = hashlib.sha256()
    for path in sorted(folder.rglob('*.*')):
        state.update(str(path.relative_to(folder)).encode())
        if path.suffix == '.png':
            state.update(cv2.imread(str(path), cv2.IMREAD_UNCHANGED).data)
        else:
            state.update(path.read_bytes())
    assert (shapes.VERSION, state.hexdigest()[:16]) == (1, digest), (
        'The generator has changed: raise shapes.VERSION, then note the new '
        'version and digests here.')


@pytest.mark.parametrize('error', [KeyboardInterrupt, OSError])
def test_an_interruption_leaves_nothing(error, monkeypatch, tmp_path):
    written = []

    def fail_at_the_tenth(path, pixels):
        written.append(path)
        if len(written) == 10:
            raise error('no more')

    with monkeypatch.context() as patch:
        patch.setattr(shapes, '_write_png', fail_at_the_tenth)
        with pytest.raises(error, match='no more'):
            write_coco_shapes(tmp_path)
    assert len(written) == 10
    assert list(tmp_path.iterdir()) == []
    assert len(list((write_coco_shapes(tmp_path) / 'train').iterdir())) == 512


def test_of_two_writers_the_first_to_finish_wins(tmp_path):
    target = tmp_path / 'data'

    def write(folder):
        (folder / 'file').write_text('second')
        # Meanwhile the other writer finishes.
        target.mkdir()
        (target / 'file').write_text('first')

    assert shapes._write_once(target, write) == target
    assert (target / 'file').read_text() == 'first'
    assert list(tmp_path.iterdir()) == [target]


def test_nothing_is_visible_before_it_is_complete(tmp_path):
    target = tmp_path / 'data'

    def write(folder):
        (folder / 'file').write_text('half')
        assert not target.exists()

    shapes._write_once(target, write)
    assert (target / 'file').read_text() == 'half'


def test_a_complete_folder_is_not_written_again(coco, monkeypatch):

    def refuse(path, pixels):
        raise AssertionError(f'{path} is written again')

    monkeypatch.setattr(shapes, '_write_png', refuse)
    assert write_coco_shapes(coco.parent) == coco


def test_a_folder_that_cannot_be_made_is_an_os_error(tmp_path):
    file = tmp_path / 'file'
    file.touch()
    with pytest.raises(OSError, match='file'):
        write_coco_shapes(file)
