"""What the command line tools share: options, config, Runner."""
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

from .adapt import SCOPE, adapt_mmengine, package_config
from .demo import demo_config
from .engine.widths import finding_widths
from .swap.config import add_hook, dicts, type_name, use_activation


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
        '--act-exclude',
        metavar='REGEX',
        help='not at sites whose name matches')
    parser.add_argument(
        '--act-parts',
        metavar='PART',
        nargs='+',
        help='in these parts of the model, e.g. backbone neck bbox_head; '
        'default: backbone')
    parser.add_argument(
        '--act-replace',
        metavar='TYPE',
        nargs='+',
        help='replace activations of these types in place of ReLU, e.g. SiLU')
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

    A mistake in them ends the tool with a message. mmengine is adapted, see
    :func:`mm_acon.adapt_mmengine`.

    Args:
        args (Namespace): Of :func:`add_config_options`.
        loaders (str): Dataloaders that the tool reads. Their data must be
            there, and for training the model's pretrained weights.
    """
    adapt_mmengine()
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    swap = dict(
        include=args.act_include,
        exclude=args.act_exclude,
        parts=args.act_parts,
        replace=args.act_replace)
    try:
        for name, value in swap.items():
            if value and not args.act:
                raise ValueError(f'--act-{name} goes with --act')
        cfg = load_config(args.config)
        cfg.launcher = args.launcher
        if args.act:
            use_activation(cfg, args.act, **swap)
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


def build_runner(cfg: Config, training: bool = False) -> Runner:
    """The config's Runner with this package's checks, also over CPUs.

    For training, activations get their widths before the model is wrapped.
    """
    use_ranks_without_gpu(cfg)
    use_checks(cfg)
    runner_type = cfg.get('runner_type', 'Runner')
    if isinstance(runner_type, str):
        runner_type = RUNNERS.get(runner_type)
    if training:
        runner_type = finding_widths(runner_type)
    return runner_type.from_cfg(cfg)


def use_checks(cfg: Config) -> None:
    """Puts this package's checks into a config.

    SafeCheckpointHook, ClassCountHook and ActivationSetupHook.

    And the import that other tools need to run the config that Runner writes
    into the work dir. A user's own checkpoint hook stays.
    """
    hooks = cfg.get('default_hooks')
    if hooks is None:
        hooks = cfg.default_hooks = ConfigDict()
    if 'checkpoint' not in hooks:
        hooks.checkpoint = dict(type='CheckpointHook', interval=1)
    if hooks.checkpoint and type_name(hooks.checkpoint) == 'CheckpointHook':
        hooks.checkpoint.type = 'SafeCheckpointHook'
    for name in ('ClassCountHook', 'ActivationSetupHook'):
        add_hook(cfg, dict(type=name))
    given = cfg.get('custom_imports') or {}
    names = given.get('imports') or []
    names = [names] if isinstance(names, str) else list(names)
    if 'mm_acon' not in names:
        names.append('mm_acon')
    cfg.custom_imports = dict(
        imports=names,
        allow_failed_imports=given.get('allow_failed_imports', False))


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

    Weights are read where training starts; who tests a checkpoint, maybe on
    another machine, does without.

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
                    f'{type_name(dataset)} of {loader} looks for its data in '
                    f'{root!r}, and there is no such folder '
                    f'({osp.abspath(root)}). Put or link the data there, '
                    f'write --cfg-options {key}.data_root=FOLDER, or try '
                    'the config on drawn data with --demo.')
    if 'train_dataloader' not in loaders:
        return
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
    for node in dicts(model):
        if type_name(node) in ('Pretrained', 'PretrainedInit'):
            files.append(node['checkpoint'])
        elif isinstance(node.get('pretrained'), str):
            files.append(node['pretrained'])
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
