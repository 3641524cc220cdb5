"""What grows, drifts or breaks in a long training run."""
import math

import pytest
import torch

from .launch import launch


@pytest.mark.parametrize('steps',
                         (100, pytest.param(2000, marks=pytest.mark.full)))
def test_detector_trains_on(steps, tmp_path, record_property):
    trouble = launch('train_detector', 1, tmp_path, steps=steps)
    assert trouble is None
    watched = torch.load(tmp_path / 'watched.pth', weights_only=True)
    samples, losses = watched['samples'], watched['losses']
    assert len(losses) == steps and len(samples) == 20
    # The first sample is of Phase I; by the second all is in place.
    second, last = samples[1], samples[-1]
    record_property(
        'long run', {
            'steps':
            steps,
            'losses not finite':
            sum(not math.isfinite(x) for x in losses),
            'mean loss, first and last tenth':
            ' and '.join(
                f'{10 * sum(part) / steps:.2f}'
                for part in (losses[:steps // 10], losses[-steps // 10:])),
            'narrowest and widest unit':
            '{:.3f} and {:.1f}'.format(
                min(sample['narrowest'] for sample in samples),
                max(sample['widest'] for sample in samples)),
            'MiB gained after the first tenth':
            round(last['mib'] - second['mib']),
            'files opened and left open':
            last['files'] - second['files']
        })
    assert all(map(math.isfinite, losses))
    assert all(sample['finite'] for sample in samples)
    # Bounds may cross, which the operator stands. They did learn, and so
    # did the detector.
    assert last['widest'] != second['widest']
    tenth = steps // 10
    assert sum(losses[-tenth:]) < sum(losses[:tenth])
    assert last['mib'] - second['mib'] < 2
    assert last['files'] == second['files']
