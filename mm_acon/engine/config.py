"""What the command line tools do to a config."""
import os
import os.path as osp
import sys
from argparse import ArgumentParser, Namespace
from typing import Iterator, List, Optional, Tuple

import torch
import torch.distributed as dist
from mmengine.config import Config, ConfigDict, DictAction
from mmengine.hub import get_config
from mmengine.registry import RUNNERS
from mmengine.runner import Runner

from ..datasets.demo import demo_config
from .package_configs import SCOPE, package_config


def add_config_options(parser: ArgumentParser) -> None:
    """Declares the config and the options that change it."""
    parser.add_argument(
        'config',
        help='config file, or mm_acon::, mmdet::, mmseg::, mmpretrain:: path')
    parser.add_argument(
        '--act',
        metavar='TYPE',
        help="replace the backbone's ReLUs by this activation, e.g. PWLU; "
        'of a checkpoint the one that it was trained with')
    parser.add_argument(
        '--act-include',
        metavar='REGEX',
        help='only at sites whose name matches, e.g. "\\.conv2$"')
    parser.add_argument(
        '--demo',
        action='store_true',
        help='drawn shapes instead of the data set, small and short, without '
        'pretrained weights')
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=DictAction,
        help='override settings, key=value; lists as key="[a,b]"')
    # A tool that declares these itself overrides the values.
    parser.set_defaults(
        checkpoint='none', work_dir=None, launcher='none', local_rank=0)


def add_run_options(parser: ArgumentParser) -> None:
    """Declares what training and testing have besides, after the config's."""
    parser.add_argument(
        '--work-dir', help='folder for logs, checkpoints and metrics')
    parser.add_argument(
        '--launcher',
        choices=['none', 'pytorch', 'slurm', 'mpi'],
        help='job launcher')
    # torch.distributed.launch passes it with a dash.
    parser.add_argument('--local_rank', '--local-rank', type=int)


def prepare_config(args: Namespace, *loaders: str) -> Config:
    """Loads the config that the options name, as they change it.

    A mistake in them ends the tool with a message.

    Args:
        args (Namespace): Of :func:`add_config_options`.
        loaders (str): Dataloaders that the tool reads. With any, their data
            and the model's pretrained weights must be there.
    """
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    try:
        if args.act_include and not args.act:
            raise ValueError('--act-include goes with --act')
        cfg = load_config(args.config)
        cfg.launcher = args.launcher
        if args.act:
            use_activation(cfg, args.act, args.act_include)
        if args.demo:
            demo_config(cfg)
        if args.cfg_options:
            cfg.merge_from_dict(args.cfg_options)
        if args.checkpoint != 'none':
            cfg.load_from = find_checkpoint(args.checkpoint)
        if loaders:
            check_files(cfg, loaders)
    except (FileNotFoundError, ValueError) as error:
        sys.exit(f'{osp.basename(sys.argv[0])}: {error}')
    if args.work_dir:
        cfg.work_dir = args.work_dir
    elif cfg.get('work_dir') is None:
        cfg.work_dir = default_work_dir(cfg.filename, args.act,
                                        'demo' if args.demo else None)
    return cfg


def build_runner(cfg: Config) -> Runner:
    """The config's Runner with this package's checks, also over CPUs."""
    use_ranks_without_gpu(cfg)
    use_checks(cfg)
    return RUNNERS.build(cfg) if 'runner_type' in cfg else Runner.from_cfg(cfg)


def use_checks(cfg: Config) -> None:
    """Puts SafeCheckpointHook and ClassCountHook into a config.

    And the import that other tools need to run the config that Runner writes
    into the work dir. A user's own checkpoint hook stays.
    """
    hooks = cfg.setdefault('default_hooks', ConfigDict())
    checkpoint = hooks.setdefault(
        'checkpoint', ConfigDict(type='CheckpointHook', interval=1))
    if checkpoint and checkpoint.type == 'CheckpointHook':
        checkpoint.type = 'SafeCheckpointHook'
    hooks = list(cfg.get('custom_hooks') or [])
    if not any(hook['type'] == 'ClassCountHook' for hook in hooks):
        cfg.custom_hooks = hooks + [dict(type='ClassCountHook')]
    imports = cfg.setdefault(
        'custom_imports',
        ConfigDict(imports=[], allow_failed_imports=False))
    if 'mm_acon' not in imports.imports:
        imports.imports = [*imports.imports, 'mm_acon']


def load_config(name: str) -> Config:
    """Reads a config file, or one of an installed package (``mmdet::...``).

    Raises:
        FileNotFoundError: there is no such file.
    """
    if name.startswith(SCOPE):
        name = package_config(name)
    if '::' in name:
        return get_config(name)
    if not osp.isfile(name):
        raise FileNotFoundError(
            f'There is no config {name!r} (looked for {osp.abspath(name)}). '
            'Write a path, or mm_acon::, mmdet::, mmseg:: or mmpretrain:: '
            'and the config as the package ships it.')
    return Config.fromfile(name)


def find_checkpoint(path: str) -> str:
    """The path of a file that is there, or a URL.

    Raises:
        FileNotFoundError: there is no such file.
    """
    if '://' not in path and not osp.isfile(path):
        raise FileNotFoundError(
            f'There is no checkpoint {path!r} ({osp.abspath(path)}).')
    return path


def use_activation(cfg: Config,
                   act: str,
                   include: Optional[str] = None) -> None:
    """Swaps the activations of every backbone in a config, in place.

    Each ``backbone=dict(type=..., ...)`` becomes a ``SwapActivations`` of
    it. The optimizer gets no weight decay on activation parameters, and PWLU
    its two phases.

    Args:
        cfg (Config): Config of any OpenMMLab library.
        act (str): Type of the activation, for example 'PWLU'.
        include (str, optional): Regular expression over the site names.

    Raises:
        ValueError: the model has no backbone, or one that swaps already.
    """
    backbones = list(find_backbones(cfg.model))
    if not backbones:
        raise ValueError(
            f'--act {act} needs a model with a backbone; {cfg.filename} has '
            f'a model of type {cfg.model.type} with the keys '
            f'{sorted(cfg.model)}.')
    for owner in backbones:
        plain = owner.backbone
        if plain.type == 'SwapActivations':
            raise ValueError(
                f'--act {act} on a config whose backbone is SwapActivations '
                'already; write --cfg-options '
                f'model.backbone.swap.act_cfg.type={act} instead.')
        swap = dict(act_cfg=dict(type=act))
        if include is not None:
            swap['include'] = include
        # What a config inherits from is no longer needed here, so the whole
        # backbone can stand in one key, whatever its arguments are called.
        owner.backbone = ConfigDict(
            type='SwapActivations', backbone=plain, swap=swap)
    if 'optim_wrapper' in cfg:
        cfg.optim_wrapper.setdefault('constructor',
                                     'ActivationOptimWrapperConstructor')
    hooks = list(cfg.get('custom_hooks') or [])
    if act == 'PWLU' and not any(hook['type'] == 'PWLURealignHook'
                                 for hook in hooks):
        cfg.custom_hooks = hooks + [_realign_hook(cfg.get('train_cfg') or {})]


def _realign_hook(train_cfg: dict) -> dict:
    """Phase I as the paper's 5 of 100 epochs, and never longer than 5."""
    if train_cfg.get('max_epochs'):
        epochs = round(train_cfg['max_epochs'] / 20)
        return dict(
            type='PWLURealignHook', phase1_epochs=max(1, min(5, epochs)))
    return dict(
        type='PWLURealignHook',
        phase1_iters=max(1, train_cfg.get('max_iters', 0) // 20))


def find_backbones(model: ConfigDict) -> Iterator[ConfigDict]:
    """Every dict in a model config that has a ``backbone``."""
    if isinstance(model.get('backbone'), dict):
        yield model
        return
    for value in model.values():
        if isinstance(value, dict):
            yield from find_backbones(value)


def _datasets(dataset: ConfigDict, key: str) -> Iterator[Tuple[str, dict]]:
    """The innermost data sets of a dataloader, with their config keys."""
    if isinstance(dataset.get('dataset'), dict):
        yield from _datasets(dataset.dataset, f'{key}.dataset')
    elif isinstance(dataset.get('datasets'), (list, tuple)):
        for index, item in enumerate(dataset.datasets):
            yield from _datasets(item, f'{key}.datasets.{index}')
    else:
        yield key, dataset


def check_files(cfg: Config, loaders: Tuple[str, ...]) -> None:
    """Refuses a config whose data or pretrained weights are not there.

    Raises:
        FileNotFoundError: names the folder or file that was looked for, the
            key to set and the ``--demo`` switch.
    """
    for loader in loaders:
        if not isinstance(cfg.get(loader), dict):
            continue
        for key, dataset in _datasets(cfg[loader].dataset,
                                      f'{loader}.dataset'):
            root = dataset.get('data_root')
            if root and not osp.isdir(root):
                raise FileNotFoundError(
                    f'{dataset.type} of {loader} looks for its data in '
                    f'{root!r}, and there is no such folder '
                    f'({osp.abspath(root)}). Put or link the data there, '
                    f'write --cfg-options {key}.data_root=FOLDER, or try '
                    'the config on drawn data with --demo.')
    for path in _pretrained_files(cfg.model):
        if not osp.isfile(path):
            raise FileNotFoundError(
                f'The config starts from the weights in {path!r}, and there '
                f'is no such file ({osp.abspath(path)}). configs/README.md '
                'says where such weights come from; --demo trains without '
                'any.')


def _pretrained_files(model: ConfigDict) -> List[str]:
    """Local checkpoints that the model's parts are initialised from."""
    files = []
    for value in model.values():
        if isinstance(value, dict):
            if value.get('type') == 'Pretrained':
                files.append(value['checkpoint'])
            files.extend(_pretrained_files(value))
    return [path for path in files if '://' not in path]


def default_work_dir(config: str, *marks: Optional[str]) -> str:
    """``work_dirs/<config>[-<mark>...]``, as MMDetection's tools."""
    name = osp.splitext(osp.basename(config))[0]
    return osp.join('work_dirs', '-'.join([name, *filter(None, marks)]))


def use_ranks_without_gpu(cfg: Config) -> None:
    """Lets ``--launcher pytorch`` run on CPUs, over gloo.

    mmengine's own start of the process group sets a CUDA device, and its
    wrapper hands one to DDP; neither works without a GPU.
    """
    if cfg.launcher != 'pytorch' or torch.cuda.is_available():
        return
    dist.init_process_group('gloo')
    wrapper = cfg.setdefault('model_wrapper_cfg', ConfigDict())
    wrapper.setdefault('type', 'MMDistributedDataParallel')
    wrapper.setdefault('broadcast_buffers', False)
    wrapper.setdefault('find_unused_parameters',
                       cfg.get('find_unused_parameters', False))
    wrapper.device_ids = None
