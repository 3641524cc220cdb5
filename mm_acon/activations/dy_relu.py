from mmengine.registry import MODELS
from torch import nn


@MODELS.register_module(name='DyReLU')
def build_dy_relu(num_channels: int,
                  ratio: int = 4,
                  inplace: bool = False) -> nn.Module:
    r"""Dynamic ReLU (arXiv 2003.10027), MMDetection's.

    .. math:: f(x) = \max(a_1 x + b_1, a_2 x + b_2)

    with the four coefficients computed per sample and channel from the
    input's mean over the map. MMDetection has the class without a name for
    ``act_cfg``; this gives it one.

    Args:
        num_channels (int): C, the size of axis 1 of the input.
        ratio (int): C over the number of hidden units.
        inplace (bool): Accepted, no effect.

    Returns:
        nn.Module: From (N, C, H, W) to the same shape.
    """
    try:
        from mmdet.models.layers import DyReLU
    except ImportError as error:
        raise ImportError(
            'DyReLU is the one of MMDetection, which cannot be imported '
            f'({error}); install mmdet.') from error
    return DyReLU(num_channels, ratio)
