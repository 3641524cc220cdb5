"""What an import changes, and what asking for it changes."""
import os
import subprocess
import sys

import pytest
from mmengine.config import Config

from mm_acon import adapt

# Prints what of mmengine and torch is another object after the import.
WATCH = '''
import functools, os, sys
import torch
import mmengine.runner.checkpoint
from mmengine.config import Config, ConfigDict
from mmengine.config.utils import MODULE2PACKAGE
from mmengine.fileio import backends
from mmengine.fileio.backends import registry_utils
from mmengine.analysis import complexity_analysis
from mmengine.registry import root
from mmengine.runner import CheckpointLoader, Runner
from mmengine import registry
from torch import nn

def whole(owner):
    return {f'{owner.__module__}.{owner.__qualname__}.{k}': v
            for k, v in vars(owner).items()}

def state():
    found = {}
    for owner in (Config, ConfigDict, CheckpointLoader, Runner, nn.Module,
                  torch.Tensor):
        found.update(whole(owner))
    for module in (mmengine.runner.checkpoint, torch, torch.serialization,
                   mmengine.config.config, mmengine.config.utils,
                   mmengine.fileio, mmengine.fileio.io):
        found.update({f'{module.__name__}.{k}': v
                      for k, v in vars(module).items()
                      if not k.startswith('__')})
    found.update({f'scheme {k}': v
                  for k, v in CheckpointLoader._schemes.items()})
    found.update({f'package {k}': v for k, v in MODULE2PACKAGE.items()})
    found.update({f'environment {k}': v for k, v in os.environ.items()})
    for name in registry.__all__:
        one = getattr(registry, name)
        if isinstance(one, registry.Registry):
            found.update({f'{name} {k}': v
                          for k, v in one.module_dict.items()})
    found.update({f'backend {k}': v
                  for k, v in registry_utils.backends.items()})
    found.update({f'cost {k}': v for k, v in
                  complexity_analysis._DEFAULT_SUPPORTED_FLOP_OPS.items()})
    return found

before = state()
import mm_acon
if 'adapt' in sys.argv:
    mm_acon.adapt_mmengine()
after = state()
for name, value in before.items():
    if name not in after or after[name] is not value and after[name] != value:
        print('CHANGED', name)
for name in sorted(set(after) - set(before)):
    print('ADDED', name)
'''


def watch(*arguments):
    done = subprocess.run([sys.executable, '-c', WATCH, *arguments],
                          capture_output=True,
                          text=True,
                          env=dict(
                              os.environ,
                              TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD='1'))
    assert done.returncode == 0, done.stderr
    lines = [line.split(maxsplit=1) for line in done.stdout.splitlines()]
    return [[name for kind, name in lines if kind == wanted]
            for wanted in ('CHANGED', 'ADDED')]


def test_import_changes_nothing():
    changed, added = watch()
    assert changed == []
    # All that docs/import.md lists, and nothing else.
    kinds = {name.split()[0] for name in added}
    assert kinds == {
        'MODELS', 'HOOKS', 'OPTIM_WRAPPER_CONSTRUCTORS', 'backend', 'cost'
    }
    assert [name for name in added
            if name.startswith('backend')] == ['backend complete_files']


def test_asking_for_it_changes_what_it_says():
    changed, _ = watch('adapt')
    kinds = {name.split()[0] for name in changed}
    # The last two are of the maintained fork.
    assert kinds - {
        'package', 'mmengine.runner.checkpoint.get_torch_safe_globals'
    } == {
        'scheme', 'mmengine.runner.checkpoint.CheckpointLoader._schemes',
        'WEIGHT_INITIALIZERS', 'mmengine.config.config.Config._get_cfg_path'
    }
    # The user's decision is overruled while a file is read, no longer.
    assert 'environment TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD' not in changed


def test_second_call_changes_nothing():
    adapt.adapt_mmengine()
    find = Config._get_cfg_path
    adapt.adapt_mmengine()
    assert Config._get_cfg_path is find


USE = '''
import os, sys
os.environ['TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD'] = '1'
import torch
import mm_acon
from mmengine.runner import load_checkpoint

class Mine:
    pass

torch.save(dict(state_dict={}, mine=Mine()), 'file.pth')
load_checkpoint(torch.nn.Linear(1, 1), 'file.pth')
'''


def test_a_user_who_trusts_his_files_still_can(tmp_path):
    """The variable is torch's own; nothing but the tools overrules it."""
    done = subprocess.run([sys.executable, '-c', USE],
                          cwd=tmp_path,
                          capture_output=True,
                          text=True)
    assert done.returncode == 0, done.stderr


def test_prefix_that_the_file_lacks(tmp_path):
    import torch
    from mmengine.model import BaseModule
    adapt.adapt_mmengine()
    path = str(tmp_path / 'file.pth')
    torch.save(dict(state_dict={'backbone.weight': torch.ones(1)}), path)
    module = BaseModule(
        dict(type='Pretrained', checkpoint=path, prefix='neck.'))
    with pytest.raises(
            ValueError,
            match=f"{path} has no key that begins with 'neck.', the prefix"):
        module.init_weights()
