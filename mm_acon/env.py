"""Prints what the package finds: ``python -m mm_acon.env``."""
import platform
from importlib.metadata import version

import torch

from .compat import packages_distributions
from .ops.extension import BUILD_COMMAND, DEVICES

_PACKAGES = ('mmengine', 'mmcv', 'mmdet', 'mmseg', 'mmpretrain')


def describe() -> str:
    """One line each on torch, GPUs, operators and OpenMMLab packages."""
    gpus = [
        torch.cuda.get_device_name(index)
        for index in range(torch.cuda.device_count())
    ]
    operators = ('compiled for ' + ', '.join(sorted(DEVICES)) if DEVICES else
                 f'plain PyTorch (build them with {BUILD_COMMAND})')
    rows = [('Python', platform.python_version()),
            ('torch', f'{torch.__version__}, CUDA {torch.version.cuda}'),
            ('GPUs', ', '.join(gpus) or 'none'),
            ('mm_acon', f'{version("mm_acon")}, operators: {operators}')]
    distributions = packages_distributions()
    for package in _PACKAGES:
        names = distributions.get(package)
        found = ', '.join(
            f'{version(name)} (from {name})'
            for name in sorted(set(names))) if names else 'not installed'
        rows.append((package, found))
    return '\n'.join(f'{name:11s}{text}' for name, text in rows)


if __name__ == '__main__':
    print(describe())
