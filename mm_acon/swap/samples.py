"""Input to run a module with, where nobody says what it takes."""
import copy
import inspect
import re
from contextlib import contextmanager
from typing import (Any, Callable, Iterator, List, Optional, Sequence, Tuple,
                    TypeVar, Union)

import numpy as np
import torch
from mmengine.model import BaseModel
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from ..nested import tensors

SampleInput = Union[Tensor, Sequence, dict, Callable]
Result = TypeVar('Result')

REMEDY = ('write sample_input=(1, channels, height, width) in swap, with a '
          'shape that it takes (--cfg-options model.backbone.swap.'
          'sample_input="(1,3,64,64)"), or in Python pass the input tensors, '
          'a tuple or dict of arguments, or a function that is given the '
          'module and calls it. Of a detector that takes more than images '
          'swap the backbone alone.')


def _mapped(value: Any, function: Callable[[Tensor], Tensor]) -> Any:
    """The same nest with every tensor replaced; what else there is stays."""
    if isinstance(value, Tensor):
        return function(value)
    if type(value) in (list, tuple):
        return type(value)(_mapped(item, function) for item in value)
    if isinstance(value, dict):
        return {key: _mapped(item, function) for key, item in value.items()}
    # A module may write into its arguments.
    return copy.deepcopy(value)


class Sample:
    """Arguments that a module can be called with.

    Args:
        args (tuple): Positional arguments.
        kwargs (dict, optional): Keyword arguments.
        call (Callable, optional): Is given the module and calls it, in place
            of the two.
        text (str, optional): What an error message calls it.
    """

    def __init__(self,
                 args: tuple = (),
                 kwargs: Optional[dict] = None,
                 call: Optional[Callable] = None,
                 text: str = '') -> None:
        self.args, self.kwargs, self.call = args, kwargs or {}, call
        self.text = text or str(
            [tuple(tensor.shape) for tensor in tensors([args, self.kwargs])])

    @property
    def cuda_devices(self) -> set:
        return {
            tensor.device
            for tensor in tensors([self.args, self.kwargs]) if tensor.is_cuda
        }

    def run(self, root: nn.Module) -> Tuple[Any, List[Tensor]]:
        """What comes out, and the inputs that a gradient reaches."""
        if self.call is not None:
            return self.call(root), []
        leaves = []

        def follow(tensor: Tensor) -> Tensor:
            if not tensor.is_floating_point():
                return tensor.clone()
            leaves.append(tensor.detach().clone().requires_grad_())
            # A leaf could not be changed in place.
            return leaves[-1] * 1

        args, kwargs = _mapped((self.args, self.kwargs), follow)
        with few_proposals(root):
            return root(*args, **kwargs), leaves


@contextmanager
def few_proposals(root: nn.Module, most: int = 16) -> Iterator[None]:
    """An untrained RPN proposes 1000 boxes, for a mask head to work on."""
    changed = []
    for module in root.modules():
        cfg = getattr(module, 'test_cfg', None)
        if isinstance(cfg, dict) and (cfg.get('max_per_img') or 0) > most:
            changed.append((module, cfg))
            module.test_cfg = copy.copy(cfg)
            module.test_cfg['max_per_img'] = most
    try:
        yield
    finally:
        for module, cfg in changed:
            module.test_cfg = cfg


def samples(root: nn.Module,
            given: Optional[SampleInput] = None,
            small: bool = False,
            training: bool = False) -> Iterator[Sample]:
    """What to try to run a module with, in that order.

    Args:
        root (nn.Module): The module.
        given: What the user says about its input.
        small (bool): A batch of two, which norms need in training, and of
            the sizes the smallest first.
        training (bool): Of a whole model the losses, which come by its
            auxiliary heads, and what 'tensor' gives where they fail.
    """
    batch = 2 if small else 1
    if given is not None:
        yield from _given(root, given, small)
    elif isinstance(root, BaseModel):
        sizes = (64, 128, 256) if small else (256, 224)
        for mode in ('loss', 'tensor') if training else ('tensor', ):
            for pixels in sizes:
                yield of_model(root, pixels, mode)
                if mode == 'loss' and _library(root) == 'mmdet':
                    # RTMDet takes no masks where it finds boxes alone.
                    yield of_model(root, pixels, mode, masks=False)
    else:
        for args in _made(root, batch, small):
            yield Sample(args, _nothing(root))


def first_run(
    candidates: Iterator[Sample], run: Callable[[Sample], Result]
) -> Tuple[Optional[Result], List[str], Optional[Exception]]:
    """Of the first sample that does not fail.

    Returns:
        tuple: What ``run`` gives, None if all failed; what the errors before
        say, and the last of them.
    """
    texts, last = [], None
    for sample in candidates:
        try:
            return run(sample), texts, last
        except Exception as error:
            last = error
            texts.append(f'{sample.text}: {type(error).__name__}: {error}')
    return None, texts, last


def _tensor(shape: Sequence[int], root: nn.Module) -> Tensor:
    like = next((p for p in root.parameters() if p.is_floating_point()),
                torch.empty(0))
    generator = torch.Generator().manual_seed(0)
    value = torch.rand(*shape, generator=generator)
    return value.to(like.device, like.dtype)


def _is_shape(value: Any) -> bool:
    return (isinstance(value, (list, tuple)) and len(value) > 0 and all(
        isinstance(item, int) and not isinstance(item, bool) and item > 0
        for item in value))


def _given(root: nn.Module, given: SampleInput,
           small: bool) -> Iterator[Sample]:
    if callable(given) and not isinstance(given, Tensor):
        yield Sample(call=given, text='the call of sample_input')
    elif isinstance(given, Tensor):
        yield Sample((given, ))
    elif _is_shape(given):
        if small and given[0] == 1:
            yield Sample((_tensor((2, *given[1:]), root), ))
        yield Sample((_tensor(given, root), ))
    else:
        arguments = _with_shapes_filled(given, root)
        if not any(True for _ in tensors(arguments)):
            raise ValueError(
                'sample_input expects the shape of an input, (1, channels, '
                'height, width), or input tensors, a tuple or dict of '
                'arguments with tensors or shapes among them, or a function '
                f'that is given the module and calls it, got {given!r}.')
        if isinstance(arguments, dict):
            yield Sample(kwargs=arguments)
        else:
            yield Sample(tuple(arguments))
            # A neck takes one list of maps.
            yield Sample((arguments, ))


def _with_shapes_filled(value: Any, root: nn.Module) -> Any:
    if _is_shape(value):
        return _tensor(value, root)
    if isinstance(value, (list, tuple)):
        return type(value)(_with_shapes_filled(item, root) for item in value)
    if isinstance(value, dict):
        return {
            key: _with_shapes_filled(item, root)
            for key, item in value.items()
        }
    return value


def _nothing(root: nn.Module) -> dict:
    """None for what may be None and has no default: a mask of MIM."""
    return {
        name: None
        for name, parameter in inspect.signature(
            root.forward).parameters.items()
        if parameter.default is parameter.empty
        and re.search(r'\bNone|Optional', str(parameter.annotation))
    }


def _made(root: nn.Module, batch: int, small: bool) -> Iterator[tuple]:
    """Images, or maps for a part that says which channels it takes."""
    channels = getattr(root, 'in_channels', None)
    sizes = (32, 64, 128) if small else (128, 64)
    if isinstance(channels, int):
        # MMDetection's dense heads have a map per stride.
        generator = getattr(root, 'prior_generator', None)
        channels = [channels] * len(getattr(generator, 'strides', ()))
    if _is_shape(channels):
        for pixels in sizes:
            maps = [(batch, c, *[max(1, pixels >> i)] * 2)
                    for i, c in enumerate(channels)]
            yield ([_tensor(shape, root) for shape in maps], )
    first = next((m for m in root.modules() if isinstance(m, _ConvNd)), None)
    # T2T-ViT has none, and takes images.
    axes, width = (len(first.kernel_size), first.in_channels) if first else (2,
                                                                             3)
    for pixels in _sizes(root, axes, small):
        # The first convolution need not see the image itself (YOLOX slices
        # it).
        for c in dict.fromkeys((width, 3)):
            yield (_tensor((batch, c, *[pixels] * axes), root), )


def _sizes(root: nn.Module, axes: int, small: bool) -> List[int]:
    """Pixels along an axis, in the order to try.

    256: only pooled maps are then 1x1, since the strides of HourglassNet go
    to 128. Some take 224 only, or the size that they state, LeNet-5 32, and
    Swin of larger windows 384. A volume of 256 would take 8 GB.
    """
    if axes == 3:
        return [32, 64, 128]
    stated = [s for s in (_stated_size(root), ) if s]
    usual = [*[s for s in stated if s < 256], 256, 224, *stated, 32, 384]
    return list(dict.fromkeys([64, 128, *usual] if small else usual))


def _stated_size(root: nn.Module) -> Optional[int]:
    """The side of the images that a network with position embeddings is of."""
    for module in root.modules():
        for name in ('img_size', 'image_size'):
            size = getattr(module, name, None)
            if isinstance(size, (list, tuple)) and size:
                size = size[0]
            if isinstance(size, int) and size > 0:
                return size
    return None


def _library(model: BaseModel) -> Optional[str]:
    return next(
        (kind.__module__.partition('.')[0] for kind in type(model).__mro__
         if kind.__module__.startswith(('mmdet.', 'mmseg.', 'mmpretrain.'))),
        None)


def of_model(model: BaseModel,
             pixels: int,
             mode: str,
             masks: bool = True,
             batch: int = 2) -> Sample:
    """Images with what MMDetection and the others put beside them."""
    shape = (pixels, pixels)
    metainfo = dict(
        img_shape=shape,
        ori_shape=shape,
        pad_shape=shape,
        batch_input_shape=shape,
        scale_factor=(1., 1.),
        img_id=0,
        flip=False,
        flip_direction=None)
    images = _tensor((batch, 3, *shape), model)
    make = dict(
        mmdet=_detection_sample,
        mmseg=_segmentation_sample,
        mmpretrain=_classification_sample).get(_library(model))
    data_samples = make and [
        make(metainfo, images.device) for _ in range(batch)
    ]
    if not masks:
        for sample in data_samples:
            del sample.gt_instances.masks
    return Sample((images, data_samples),
                  dict(mode=mode),
                  text=f'{batch} images of {pixels} pixels, mode={mode!r}')


def _detection_sample(metainfo: dict, device: torch.device):
    """One object with its mask."""
    from mmdet.structures import DetDataSample
    from mmdet.structures.mask import BitmapMasks
    from mmengine.structures import InstanceData, PixelData
    sample = DetDataSample(metainfo=metainfo)
    height, width = metainfo['img_shape']
    mask = np.zeros((1, height, width), np.uint8)
    mask[:, :height // 2, :width // 2] = 1
    sample.gt_instances = InstanceData(
        bboxes=torch.tensor([[0., 0., width / 2, height / 2]], device=device),
        labels=torch.zeros(1, dtype=torch.long, device=device),
        masks=BitmapMasks(mask, height, width))
    sample.ignored_instances = InstanceData(
        bboxes=torch.zeros(0, 4, device=device))
    sample.gt_sem_seg = PixelData(
        sem_seg=torch.zeros(1, height, width, dtype=torch.long, device=device))
    return sample


def _segmentation_sample(metainfo: dict, device: torch.device):
    from mmengine.structures import PixelData
    from mmseg.structures import SegDataSample
    sample = SegDataSample(metainfo=metainfo)
    sample.gt_sem_seg = PixelData(
        data=torch.zeros(
            1, *metainfo['img_shape'], dtype=torch.long, device=device))
    return sample


def _classification_sample(metainfo: dict, device: torch.device):
    from mmpretrain.structures import DataSample
    return DataSample(metainfo=metainfo).set_gt_label(0).to(device)
