"""What the studies share: finished runs, differences, PWLU's alignment."""
import json
import os
import statistics
from pathlib import Path
from typing import Dict, Iterable, List, Tuple

import torch
from torch import Tensor, nn

from mm_acon import PWLU

# Student's t, two-sided 95 %, by the number of differences less one.
STUDENT = (12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26, 2.23, 2.20)


class Results:
    """What is finished, in a JSON file.

    Args:
        folder (str): Where results.json lies, or will.
        setting (dict): What all runs have in common.

    Raises:
        ValueError: the file holds runs of another setting.
    """

    def __init__(self, folder: str, setting: dict) -> None:
        self.path = Path(folder) / 'results.json'
        self.content = dict(setting=setting, runs={}, costs={}, machine={})
        if self.path.exists():
            self.content = json.loads(self.path.read_text())
            if self.content['setting'] != setting:
                raise ValueError(
                    f'{self.path} holds runs of another setting, '
                    f'{self.content["setting"]}, expected {setting}; write '
                    'another --work-dir, or remove the file.')

    def __getitem__(self, key: str) -> dict:
        return self.content[key]

    def save(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        partial = self.path.with_suffix('.partial')
        partial.write_text(json.dumps(self.content))
        # Atomic: an interruption leaves the old file or the new one.
        os.replace(partial, self.path)


def compare(better: List[float], worse: List[float]) -> Tuple[float, float]:
    """Mean of the differences by seed, and its standard error."""
    differences = [b - w for b, w in zip(better, worse)]
    error = statistics.stdev(differences) / len(differences)**0.5
    return statistics.fmean(differences), error


def student(seeds: int) -> float:
    return STUDENT[min(seeds - 1, len(STUDENT)) - 1]


def verdict(difference: float, error: float, seeds: int) -> str:
    if abs(difference) <= student(seeds) * error:
        return 'not decided'
    return 'shows' if difference > 0 else 'reversed'


@torch.no_grad()
def alignment(model: nn.Module, batches: Iterable) -> List[float]:
    """IOU (Eq. 7 of arXiv 2104.03693) of every unit, on the given batches.

    Of the bounds at the end of training and the distribution that a unit's
    input has there. A unit whose input never varies has none.
    """
    modules = [m for m in model.modules() if isinstance(m, PWLU)]
    inputs: Dict[PWLU, List[Tensor]] = {module: [] for module in modules}
    handles = [
        module.register_forward_pre_hook(
            lambda module, x: inputs[module].append(x[0]))
        for module in modules
    ]
    model.eval()
    for batch in batches:
        model.test_step(batch)
    for handle in handles:
        handle.remove()
    found: List[float] = []
    for module in modules:
        iou = module.alignment_iou(torch.cat(inputs[module]))
        found += iou[~iou.isnan()].tolist()
    return found
