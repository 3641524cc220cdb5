"""Where version 0.1 had what is in mm_acon.cli and mm_acon.swap.config now."""
from ..cli import (add_config_options, add_run_options, build_runner,
                   check_files, default_work_dir, find_checkpoint, load_config,
                   prepare_config, use_checks, use_ranks_without_gpu)
from ..swap.config import find_backbones, use_activation

__all__ = [
    'add_config_options', 'add_run_options', 'build_runner', 'check_files',
    'default_work_dir', 'find_backbones', 'find_checkpoint', 'load_config',
    'prepare_config', 'use_activation', 'use_checks', 'use_ranks_without_gpu'
]
