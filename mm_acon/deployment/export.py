"""ONNX of models with these activations, and what it computes."""
from collections import Counter
from pathlib import Path
from typing import List, Tuple, Union

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten

from ..compat import free_size, removeprefix, strict_zip
from .fold import fold_activations


def export_onnx(model: nn.Module, inputs: Tensor, path: Union[str,
                                                              Path]) -> None:
    """Writes a model as ONNX, for any batch size and image size.

    The model is :func:`fold_activations`' copy. The input is called
    ``input``, the outputs ``output0``, ``output1``, ... in the order in which
    the model nests them. Needs onnx and onnxscript.

    Args:
        model (nn.Module): Takes one tensor and returns tensors, in any
            nesting.
        inputs (Tensor): An example, (N, 3, H, W) with N > 1; it is run once.
        path (str or Path): File to write.

    Raises:
        ValueError: inputs is no (N, C, H, W) with N > 1.
        NotImplementedError: torch is too old to export free sizes.
    """
    if inputs.dim() != 4 or len(inputs) < 2:
        raise ValueError(
            'export_onnx expects an example of shape (N, C, H, W) with N of '
            f'at least 2, got {tuple(inputs.shape)}: from a batch of one '
            'torch.export concludes that every batch has one image.')
    dynamic = free_size()
    model = _for_any_size(fold_activations(model))
    with torch.no_grad():
        number = len(_tensors(model(inputs)))
    torch.onnx.export(
        model, (inputs, ),
        str(path),
        dynamo=True,
        dynamic_shapes=({
            0: dynamic,
            2: dynamic,
            3: dynamic
        }, ),
        input_names=['input'],
        output_names=[f'output{i}' for i in range(number)],
        external_data=False,
        verbose=False)


def count_operators(path: Union[str, Path]) -> Counter:
    """The operators of an ONNX file and how often each occurs.

    Raises:
        ValueError: One is not of ONNX's own, or the file is not valid.
    """
    import onnx
    model = onnx.load(path)
    try:
        onnx.checker.check_model(model, full_check=True)
    except onnx.checker.ValidationError as error:
        raise ValueError(f'{path} is not valid ONNX: {error}') from error
    found: Counter = Counter()
    graphs = [model.graph, *model.functions]
    while graphs:
        for node in graphs.pop().node:
            name = f'{node.domain}::{node.op_type}'
            found[removeprefix(name, '::')] += 1
            graphs += [
                attribute.g for attribute in node.attribute
                if attribute.HasField('g')
            ]
    custom = sorted(name for name in found if '::' in name)
    if custom:
        raise ValueError(
            f"{path} should have ONNX's own operators only, it has also "
            f'{", ".join(custom)}.')
    return found


@torch.no_grad()
def compare_onnx(model: nn.Module, path: Union[str, Path],
                 inputs: Tensor) -> Tuple[float, float]:
    """Runs an ONNX file with onnxruntime, on the CPU, and the model.

    Args:
        model (nn.Module): The model, in eval mode.
        path (str or Path): The file that was written from it.
        inputs (Tensor): Any batch.

    Returns:
        tuple[float]: The largest difference between the outputs, infinite
        where one of them has NaN or another shape, and the largest absolute
        value of the model's.
    """
    import onnxruntime
    session = onnxruntime.InferenceSession(
        str(path), providers=['CPUExecutionProvider'])
    results = session.run(None, {'input': inputs.numpy()})
    expected = _tensors(model(inputs))
    difference, largest = 0., 0.
    for result, wanted in strict_zip(results, expected):
        result = torch.from_numpy(result)
        if result.shape != wanted.shape:
            return float('inf'), float(wanted.abs().max())
        error = float((result - wanted).abs().max())
        difference = max(difference, error if error == error else float('inf'))
        largest = max(largest, float(wanted.abs().max()))
    return difference, largest


def _tensors(outputs) -> List[Tensor]:
    return [leaf for leaf in tree_flatten(outputs)[0] if leaf is not None]


class _AdaptiveAvgPool(nn.Module):
    """nn.AdaptiveAvgPool2d as two matrix products, for maps of any size.

    torch.export writes the windows of one size down as constants.
    """

    def __init__(self, output_size: Tuple[int, int]) -> None:
        super().__init__()
        self.output_size = output_size

    def forward(self, x: Tensor) -> Tensor:
        rows, columns = (self.windows(x, axis, number)
                         for axis, number in zip((2, 3), self.output_size))
        return rows @ x @ columns.T

    @staticmethod
    def windows(x: Tensor, axis: int, number: int) -> Tensor:
        """Weights of shape (number, size of the axis); rows sum to 1."""
        size = x.shape[axis]
        index = torch.arange(number, device=x.device)[:, None]
        start = index * size // number
        end = ((index + 1) * size + number - 1) // number
        place = torch.arange(size, device=x.device)
        inside = (place >= start) & (place < end)
        return inside.to(x.dtype) / (end - start)


class _AdaptivePaddingConv(nn.Module):
    """MMCV's Conv2dAdaptivePadding with a stride of 2, for any size.

    Its output has half the pixels, rounded up; if their number is even, one
    pixel less is padded in front. MMCV's own sums are nested by torch.export
    from layer to layer, until they take minutes.
    """

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.conv = conv

    @staticmethod
    def fits(conv: nn.Module) -> bool:
        return (type(conv).__name__ == 'Conv2dAdaptivePadding'
                and conv.stride == (2, 2) and conv.dilation == (1, 1)
                and all(size % 2 and size > 1 for size in conv.kernel_size))

    def forward(self, x: Tensor) -> Tensor:
        conv = self.conv
        for axis, kernel in zip((2, 3), conv.kernel_size):
            size = x.shape[axis]
            padding = [0, 0] * (3 - axis) + [kernel // 2, kernel // 2 + 1]
            x = nn.functional.pad(x, padding)
            place = torch.arange(size + kernel - 1, device=x.device)
            x = x.index_select(axis, place + (size + 1) % 2)
        return nn.functional.conv2d(
            x, conv.weight, conv.bias, 2, groups=conv.groups)


def _for_any_size(model: nn.Module) -> nn.Module:
    """Replaces layers that torch.export only follows for one size."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if _AdaptivePaddingConv.fits(child):
                setattr(parent, name, _AdaptivePaddingConv(child))
            elif type(child) is nn.AdaptiveAvgPool2d:
                size = child.output_size
                size = (size, size) if isinstance(size, int) else size
                # One window is followed as it is.
                if None not in size and max(size) > 1:
                    setattr(parent, name, _AdaptiveAvgPool(size))
    return model
