"""Converts the ACON authors' checkpoints (github.com/nmaac/acon).

    python tools/model_converters/nmaac2mm.py res50.metaacon.pth OUT

OUT is a classifier's checkpoint for MMPretrain with the same outputs, whose
backbone MMDetection and MMSegmentation load with prefix='backbone.'. The
config of that backbone is printed, and kept in the checkpoint's meta.
"""
import argparse
import os
import os.path as osp
import pickle
import re
import sys
from typing import Dict, Sequence, Tuple, Union

import torch
from mmengine.config import Config
from torch import Tensor

from mm_acon.compat import load_weights, removeprefix
from mm_acon.models.shufflenet_v2 import longest_kept_first

# Depth: blocks per stage and convolutions per block.
RESNETS = {
    18: ([2, 2, 2, 2], 2),
    34: ([3, 4, 6, 3], 2),
    50: ([3, 4, 6, 3], 3),
    101: ([3, 4, 23, 3], 3),
    152: ([3, 8, 36, 3], 3),
}
# Half the channels of the first stage: widen_factor.
SHUFFLENETS = {24: 0.5, 58: 1.0, 88: 1.5, 122: 2.0}
SHUFFLENET_BLOCKS = (4, 8, 4)
# Channels of the first convolution: widen_factor.
TFNETS = {8: 0.5, 16: 1.0, 24: 1.5, 32: 2.0}
TFNET_BLOCKS = (2, 3, 8, 3)

# For each channel of a new layer, which one of the old layer it is.
Index = Union[Sequence[int], slice]
ALL = slice(None)


def load_state_dict(path: str) -> Dict[str, Tensor]:
    """The tensors of a checkpoint, without DataParallel's prefix.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is no checkpoint, or holds more than tensors.
    """
    if not osp.isfile(path):
        raise FileNotFoundError(
            f'There is no checkpoint {path!r} ({osp.abspath(path)}).')
    try:
        content = load_weights(path, map_location='cpu')
    except pickle.UnpicklingError as error:
        raise ValueError(
            f'{path} is not a PyTorch checkpoint, or holds objects beside '
            'tensors and plain Python values, and loading those could run '
            'code. If you trust the file, write its state_dict alone into a '
            f'new one and convert that. PyTorch says: {error}') from error
    if isinstance(content, dict):
        content = content.get('state_dict', content)
    if not isinstance(content, dict) or not all(
            isinstance(value, Tensor) for value in content.values()):
        raise ValueError(
            f"{path}: expected a dict of tensors, or one as 'state_dict', got "
            f'{type(content).__name__} {str(list(content))[:200]}.')
    return {removeprefix(key, 'module.'): content[key] for key in content}


class _Source(dict):

    def __missing__(self, key: str):
        raise ValueError(f'The checkpoint has no {key!r}, which a network of '
                         'its kind has.')


class Conversion:
    """Moves tensors from the authors' names to those of OpenMMLab."""

    def __init__(self, source: Dict[str, Tensor]) -> None:
        self.source = _Source(source)
        self.result: Dict[str, Tensor] = {}

    def take(self, key: str) -> Tensor:
        value = self.source[key]
        del self.source[key]
        return value

    def module(self, old: str, new: str, outputs: Index = ALL) -> None:
        """All of a norm or a fully connected layer, or what is left of it."""
        for key in [key for key in self.source if key.startswith(f'{old}.')]:
            value = self.take(key)
            # A norm's number of batches is one for all channels.
            self.result[new + key[len(old):]] = (
                value[outputs] if value.dim() else value)

    def conv_norm(self,
                  conv: str,
                  norm: str,
                  new_conv: str,
                  new_norm: str,
                  inputs: Index = ALL,
                  outputs: Index = ALL) -> None:
        """A convolution, and the BatchNorm that takes over its bias."""
        weight = self.take(f'{conv}.weight')[outputs][:, inputs]
        self.result[f'{new_conv}.weight'] = weight
        # norm(y + bias) subtracts the mean: norm(y) with mean - bias.
        mean = self.take(f'{norm}.running_mean') - self.take(f'{conv}.bias')
        self.result[f'{new_norm}.running_mean'] = mean[outputs]
        self.module(norm, new_norm, outputs)

    def activation(self, old: str, new: str, outputs: Index = ALL) -> None:
        """ACON-C, or meta-ACON, whose layers are called the same here."""
        for name in ('p1', 'p2', 'beta'):
            if name != 'beta' or f'{old}.fc1.weight' not in self.source:
                value = self.take(f'{old}.{name}')
                self.result[f'{new}.{name}'] = value.flatten()[outputs]
        if f'{old}.fc1.weight' in self.source:
            weight = self.take(f'{old}.fc1.weight')
            self.result[f'{new}.fc1.weight'] = weight[:, outputs]
            for name in ('fc1', 'bn1'):
                self.module(f'{old}.{name}', f'{new}.{name}')
            for name in ('fc2', 'bn2'):
                self.module(f'{old}.{name}', f'{new}.{name}', outputs)

    def funnel(self, old: str, new: str) -> None:
        """ACON-FReLU and the norm behind it."""
        self.conv_norm(f'{old}.conv_frelu', f'{old}.bn1', f'{new}.act.conv',
                       f'{new}.act.norm')
        self.module(f'{old}.bn2', f'{new}.norm')


def swapped(source: Dict[str, Tensor],
            include: str = None,
            **backbone) -> dict:
    """Config of a backbone with the activation that the keys belong to."""
    hidden = sorted({
        tuple(value.shape[:2])
        for key, value in source.items() if key.endswith('.fc1.weight')
    })
    swap = dict(act_cfg=dict(type='ACONC'))
    if hidden:
        reduction = hidden[0][0]
        if any(size != max(reduction, width // reduction)
               for size, width in hidden):
            raise ValueError(
                'Expected meta-ACON with max(r, C // r) hidden numbers for C '
                f'channels and the same r everywhere, got (hidden, C) = '
                f'{hidden}.')
        swap['act_cfg'] = dict(
            type='MetaACON', reduction=reduction, norm_cfg=dict(type='BN'))
    if include:
        swap['include'] = include
    # Where a detector freezes stages, the file brings their activations.
    return dict(
        type='SwapActivations', **backbone, swap=dict(swap, frozen='swap'))


def convert_resnet(conversion: Conversion) -> dict:
    """Torchvision's names are OpenMMLab's, but for the activations."""
    source = conversion.source
    found = sorted({
        tuple(map(int, match.groups()))
        for match in map(re.compile(r'layer(\d)\.(\d+)\.').match, source)
        if match
    })
    num_blocks = [sum(stage == n for stage, _ in found) for n in range(1, 5)]
    num_convs = 3 if 'layer1.0.conv3.weight' in source else 2
    depth = next((depth for depth, known in RESNETS.items()
                  if known == (num_blocks, num_convs)), None)
    shape = tuple(source['layer1.0.conv2.weight'].shape)
    if depth is None or shape != (64, 64, 3, 3):
        raise ValueError(
            f'Expected a ResNet of depth {sorted(RESNETS)}, got {num_blocks} '
            f'blocks with {num_convs} convolutions each, the second one of '
            f'shape {shape}.')
    if num_convs == 3:
        # Of a block's three calls of ReLU, the swap's number 1 is replaced.
        activations = {'acon': 1}
        config = swapped(
            source, r'\.conv2$', backbone='ResNet', depth=depth, style='caffe')
    else:
        activations = {'acon1': 0, 'acon2': 1}
        config = swapped(
            source, r'\.conv[12]$', backbone='ResNet', depth=depth)

    layers = [('conv1', 'bn1')]
    for stage, index in found:
        block = f'layer{stage}.{index}'
        layers += [(f'{block}.conv{n}', f'{block}.bn{n}')
                   for n in range(1, num_convs + 1)]
        if f'{block}.downsample.0.weight' in source:
            layers += [(f'{block}.downsample.0', f'{block}.downsample.1')]
        for name, call in activations.items():
            conversion.activation(f'{block}.{name}',
                                  f'backbone.{block}.relu.{call}')
    for conv, norm in layers:
        conversion.conv_norm(conv, norm, f'backbone.{conv}',
                             f'backbone.{norm}')
    conversion.module('fc', 'head.fc')
    return config


def convert_shufflenet_v2(conversion: Conversion) -> dict:
    """Channels are put where MMPretrain's channel shuffle wants them."""
    source = conversion.source
    half = len(source['features.0.branch_main.0.weight'])
    if half not in SHUFFLENETS:
        raise ValueError(
            'Expected a ShuffleNetV2 whose first block has one of '
            f'{sorted(SHUFFLENETS)} channels inside, got {half}.')
    factor = SHUFFLENETS[half]
    config = swapped(
        source,
        # At 0.5x the two are the same.
        backbone='mmpretrain.ShuffleNetV2'
        if factor == 0.5 else 'MegviiShuffleNetV2',
        widen_factor=factor)

    def layer(old, first, new, inputs=ALL, outputs=ALL, activated=True):
        """ConvModule from three or two entries of a Sequential."""
        conversion.conv_norm(f'{old}.{first}', f'{old}.{first + 1}',
                             f'backbone.{new}.conv', f'backbone.{new}.bn',
                             inputs, outputs)
        if activated:
            conversion.activation(f'{old}.{first + 2}',
                                  f'backbone.{new}.activate', outputs)

    layer('first_conv', 0, 'conv1')
    # Which of their channels stands at each place here.
    order: Index = ALL
    blocks = [(stage, index) for stage, number in enumerate(SHUFFLENET_BLOCKS)
              for index in range(number)]
    for number, (stage, index) in enumerate(blocks):
        old, new = f'features.{number}', f'layers.{stage}.{index}'
        half = len(source[f'{old}.branch_main.0.weight'])
        uneven = number == 0 and factor != 0.5
        main = longest_kept_first(range(half, 2 * half))
        if index == 0:
            kept, inputs = longest_kept_first(range(half)), order
            layer(
                f'{old}.branch_proj',
                0,
                f'{new}.branch1.0',
                outputs=order,
                activated=False)
            layer(f'{old}.branch_proj', 2, f'{new}.branch1.1', order,
                  ALL if uneven else kept)
        else:
            # Even places are kept there, and the others computed.
            kept, inputs = ([place // 2 for place in part]
                            for part in (order[:half], order[half:]))
        layer(f'{old}.branch_main', 0, f'{new}.branch2.0', inputs)
        layer(f'{old}.branch_main', 3, f'{new}.branch2.1', activated=False)
        layer(
            f'{old}.branch_main',
            5,
            f'{new}.branch2.2',
            outputs=ALL if uneven else [place - half for place in main])
        order = longest_kept_first(range(2 * half)) if uneven else [
            place for pair in zip(kept, main) for place in pair
        ]
    layer('conv_last', 0, f'layers.{len(SHUFFLENET_BLOCKS)}', order)
    conversion.module('classifier.0', 'head.fc')
    return config


def convert_tfnet(conversion: Conversion) -> dict:
    """Stages of blocks instead of one sequence of them."""
    channels = len(conversion.source['first_conv.0.weight'])
    if channels not in TFNETS:
        raise ValueError('Expected a TFNet whose first convolution has one of '
                         f'{sorted(TFNETS)} channels, got {channels}.')
    conversion.conv_norm('first_conv.0', 'first_conv.1', 'backbone.stem.conv',
                         'backbone.stem.bn')
    blocks = [
        f'backbone.layer{stage}.{index}'
        for stage, number in enumerate(TFNET_BLOCKS, 1)
        for index in range(number)
    ]
    for number, new in enumerate(blocks):
        old = f'features.{number}'
        for first, conv in ((0, 'conv1'), (3, 'conv2')):
            conversion.conv_norm(f'{old}.branch_main.{first}',
                                 f'{old}.branch_main.{first + 1}',
                                 f'{new}.{conv}.conv', f'{new}.{conv}.bn')
        conversion.funnel(f'{old}.branch_main.2', f'{new}.funnel1')
        conversion.funnel(f'{old}.acon', f'{new}.funnel2')
    last = f'backbone.layer{len(TFNET_BLOCKS) + 1}'
    conversion.conv_norm('conv_last.0', 'conv_last.1', f'{last}.conv.conv',
                         f'{last}.conv.bn')
    conversion.funnel('conv_last.2', f'{last}.funnel')
    conversion.module('classifier.0', 'head.fc')
    return dict(type='TFNet', widen_factor=TFNETS[channels])


# Network: a key that only it has, and the function that converts it.
NETWORKS = {
    'ResNet': ('layer1.0.conv1.bias', convert_resnet),
    'ShuffleNetV2': ('features.0.branch_proj.0.weight', convert_shufflenet_v2),
    'TFNet': ('features.0.acon.conv_frelu.weight', convert_tfnet),
}


def convert(source: Dict[str, Tensor]) -> Tuple[Dict[str, Tensor], dict]:
    """OpenMMLab's tensors, and the config of their backbone.

    Args:
        source (dict): Tensors of one of the authors' networks by name.

    Raises:
        ValueError: the names or shapes are those of another network.
    """
    functions = [
        function for marker, function in NETWORKS.values() if marker in source
    ]
    if not functions:
        wanted = ', '.join(f'{marker} ({name})'
                           for name, (marker, _) in NETWORKS.items())
        raise ValueError(
            'Expected a checkpoint of github.com/nmaac/acon, which has one '
            f'of {wanted}; got {len(source)} keys, such as '
            f'{", ".join(list(source)[:4])}.')
    conversion = Conversion(source)
    backbone = functions[0](conversion)
    if conversion.source:
        raise ValueError(
            f'{len(conversion.source)} keys of the checkpoint have no place '
            f'in {backbone}: {", ".join(conversion.source)}.')
    return conversion.result, backbone


def check_free(path: str) -> None:
    """Raises FileExistsError where there is a file already."""
    if osp.exists(path):
        raise FileExistsError(
            f'{path!r} is there already; remove it, or write to another file.')


def write(path: str, meta: dict, state_dict: Dict[str, Tensor],
          model: dict) -> None:
    """Writes a whole checkpoint or none, and prints its model's config."""
    os.makedirs(osp.dirname(path) or '.', exist_ok=True)
    part = f'{path}.part'
    torch.save(dict(meta=meta, state_dict=state_dict), part)
    os.replace(part, path)
    print(f'wrote {path}. In a config of MMPretrain:\n')
    print(Config(dict(model=model)).pretty_text)
    print('In MMDetection and MMSegmentation to_rgb is called bgr_to_rgb.')


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('source', help="the authors' checkpoint")
    parser.add_argument('out', help='file to write')
    args = parser.parse_args()
    try:
        check_free(args.out)
        state, backbone = convert(load_state_dict(args.source))
    except (FileExistsError, FileNotFoundError, ValueError) as error:
        sys.exit(f'nmaac2mm.py: {error}')
    # Their images are as cv2 reads them: BGR, 0 to 255.
    preprocessor = dict(mean=[0, 0, 0], std=[1, 1, 1], to_rgb=False)
    pretrained = dict(
        type='Pretrained', checkpoint=args.out, prefix='backbone.')
    model = dict(
        data_preprocessor=preprocessor,
        backbone=dict(backbone, init_cfg=pretrained))
    meta = dict(
        description='converted from github.com/nmaac/acon',
        source=osp.basename(args.source),
        backbone=backbone,
        data_preprocessor=preprocessor)
    write(args.out, meta, state, model)


if __name__ == '__main__':
    main()
