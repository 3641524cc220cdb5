import copy
import inspect
import re
from collections import defaultdict
from typing import Dict, Iterable, List, Optional, Sequence, Tuple, Union

from mmengine.logging import print_log
from mmengine.registry import MODELS
from torch import nn

from ..activations import LearnableActivation, keep_start
from .loading import watch_loading
from .per_call import ActivationPerCall
from .probe import ACTIVATION_TYPES, SampleInput, Site, probe
from .report import SwapReport, SwapRow

Patterns = Union[str, Sequence[str], None]
_FROZEN_NOTE = "frozen; frozen='swap' if the checkpoint brings its activation"
# They scale something else; another function there is another network.
_GATES = ('HSigmoid', 'Hardsigmoid', 'Sigmoid', 'Tanh')


def swap_activations(module: nn.Module,
                     act_cfg: dict,
                     include: Patterns = None,
                     exclude: Patterns = None,
                     replace: Union[str, Sequence[str]] = 'ReLU',
                     tiny_maps: bool = False,
                     frozen: str = 'keep',
                     sample_input: Optional[SampleInput] = None) -> SwapReport:
    r"""Replaces activations of a built module, in place.

    A site is one activation call in the forward pass, named after the
    convolution that feeds it: ``layer1.0.conv2``, stem ``conv1``. A module
    that is called at several sites is split into one per call. No key of the
    state dict changes; the new activations add theirs.

    Args:
        module (nn.Module): Any module that runs on images, or on
            ``sample_input``.
        act_cfg (dict): The new activation as in any ``act_cfg``. The width
            is passed as ``num_channels``, or as ``num_parameters`` for
            types that call it so (PReLU).
        include (str or list of str, optional): Regular expressions, searched
            in the site names; only sites that match one are replaced.
            ``r'\.conv2$'`` is the ACON paper's rule for bottlenecks.
        exclude (str or list of str, optional): Likewise, to leave sites out.
        replace (str or list of str): Types of the activations to replace.
        tiny_maps (bool): Replace sites on 1x1 maps too, such as those in
            squeeze-and-excitation blocks.
        frozen (str): What to do where the feeding convolution is frozen:
            'keep' the old activation, or 'swap' it for one that is frozen
            too, which makes sense if the checkpoint brings it.
        sample_input: Shape of an input, or the input tensors, for the
            forward pass that finds the sites. None makes one of 256 pixels,
            or of 224 if the module does not take that.

    Returns:
        SwapReport: One row per site; prints as a table.

    Raises:
        KeyError: ``act_cfg`` names an unknown type.
        TypeError: ``module`` is no module.
        ValueError: nothing matches, with a list of what there is, or an
            argument is wrong.
        RuntimeError: the module could not be run on the sample input.
    """
    if not isinstance(module, nn.Module):
        raise TypeError(
            'swap_activations expects a torch.nn.Module that is built, got '
            f'{module!r}; MODELS.build(dict(...)) builds one of a config.')
    if frozen not in ('keep', 'swap'):
        raise ValueError(f"swap expects frozen='keep' or 'swap', got "
                         f'{frozen!r}.')
    new_type = _activation_class(act_cfg)
    old_types = _class_names(replace)
    probed = probe(module, old_types, sample_input)
    _check_types(replace, old_types, probed.sites)
    wanted = _matching(probed.sites, include, exclude)
    places = {
        site: _places(module, site, probed.sites)
        for site in probed.sites
    }

    report = SwapReport([], probed.functional, [
        name for name, uncalled in probed.uncalled.items()
        if type(uncalled).__name__ in old_types
    ])
    chosen: Dict[Site, SwapRow] = {}
    calls: Dict[Tuple[nn.Module, nn.Module], List[Site]] = defaultdict(list)
    for site in probed.sites:
        row = SwapRow(site.name, site.type, None, site.width, site.map_size)
        report.rows.append(row)
        if site not in wanted:
            row.reason = 'not included'
        elif site.type not in old_types:
            row.reason = f'no {" or ".join(sorted(old_types))}'
        else:
            row.reason = _reason_to_keep(site, tiny_maps, frozen)
        if not row.reason and not places[site]:
            row.reason = 'the module that calls it does not hold it'
        if not row.reason:
            chosen[site] = row
        calls[site.caller, site.module].append(site)
    _keep_shared_parameters(calls.values(), chosen)
    if not chosen:
        raise ValueError(
            f'No activation of {type(module).__name__} was chosen for '
            f'replacement by {new_type.__name__}; the sites are:\n{report}\n'
            'Change include, exclude, replace, tiny_maps or frozen in swap; '
            'the tools take --act-include, --act-exclude, --act-replace and '
            '--cfg-options model.backbone.swap.tiny_maps=True.')

    # All are built before the first is put in place: an error in act_cfg
    # leaves the module as it was.
    built: Dict[Site, nn.Module] = {}
    for site, row in chosen.items():
        new = built[site] = _build(module, site, new_type, act_cfg)
        row.new = type(new).__name__
        row.parameters = sum(p.numel() for p in new.parameters())
    replacements = [(places[sites[0]], _replacement(sites, built))
                    for sites in calls.values() if built.keys() & set(sites)]
    for holders, replacement in replacements:
        for holder, name in holders:
            holder._modules[name] = replacement
    print_log(f'{type(module).__name__}: {report}', logger='current')
    watch_loading(module)
    keep_start(module)
    return report


def _reason_to_keep(site: Site, tiny_maps: bool, frozen: str) -> str:
    """Why an activation of a type to replace stays, empty if it does not."""
    if site.has_tokens:
        return 'channels in the last axis'
    if site.width == 0:
        return 'no single width in axis 1'
    if not tiny_maps and all(size == 1 for size in site.map_size):
        return '1x1 map'
    if frozen == 'keep' and site.is_frozen:
        return _FROZEN_NOTE
    return ''


def _keep_shared_parameters(calls: Iterable[List[Site]],
                            chosen: Dict[Site, SwapRow]) -> None:
    """Leaves a PReLU of which not all calls are chosen.

    The calls left would no longer share their parameters.
    """
    for sites in calls:
        if (not chosen.keys() >= set(sites)
                and any(True for _ in sites[0].module.parameters())):
            for site in chosen.keys() & set(sites):
                chosen.pop(site).reason = 'shares parameters with calls left'


def _activation_class(act_cfg: dict):
    """The class that ``act_cfg`` names."""
    if not isinstance(act_cfg, dict) or 'type' not in act_cfg:
        raise ValueError("swap expects act_cfg=dict(type='PWLU', ...), got "
                         f'{act_cfg!r}.')
    if 'num_channels' in act_cfg:
        raise ValueError(
            'swap finds the width of every site itself; leave num_channels='
            f'{act_cfg["num_channels"]!r} out of its act_cfg.')
    name = act_cfg['type']
    if inspect.isclass(name):
        return name
    if not isinstance(name, str):
        raise ValueError('swap expects the type in act_cfg to be a name or a '
                         f'class, got {name!r}.')
    with MODELS.switch_scope_and_registry(None) as registry:
        found = registry.get(name)
        if found is None:
            known = sorted(
                known for known in ACTIVATION_TYPES.union(_own_types())
                if registry.get(known) is not None)
            raise KeyError(
                f'{name!r} is not a registered activation; those that are '
                f'known here: {", ".join(known)}. Classes of PyTorch that '
                'are not among them go by themselves, for example '
                'type=torch.nn.Mish.')
    return found


def _own_types() -> List[str]:
    return [
        name for name, found in MODELS.module_dict.items()
        if found.__module__.startswith('mm_acon.activations')
    ]


def _class_names(types: Union[str, Sequence[str]]) -> set:
    """Class names of the types, which may be registry names ('HSwish')."""
    names = types if isinstance(types, (list, tuple)) else [types]
    if not names or not all(isinstance(name, str) for name in names):
        raise ValueError('swap expects replace to be the name of a type, or '
                         f"several, such as ['ReLU', 'SiLU'], got {types!r}.")
    registered = (MODELS.get(name) for name in names)
    return {*names, *(found.__name__ for found in registered if found)}


def _check_types(replace, old_types: set, sites: List[Site]) -> None:
    there = sorted({site.type for site in sites})
    if old_types.intersection(there):
        return
    useful = [name for name in there if name not in _GATES]
    ours = sorted({
        site.type
        for site in sites if isinstance(site.module, LearnableActivation)
    })
    remedy = ''
    if useful:
        remedy = (f' Write replace={useful!r} in swap (--act-replace '
                  f'{" ".join(useful)} of the tools).')
    if ours:
        remedy = (f' {" and ".join(ours)} came with an earlier swap, or with '
                  'an act_cfg: leave one of the two out, or write '
                  f'replace={ours!r} in swap to replace them again.')
    raise ValueError(
        f'swap expects replace to name activations of the module, got '
        f'{replace!r}; there are {", ".join(there) or "none"}.{remedy}')


def _compile(patterns: Patterns, name: str) -> List[re.Pattern]:
    if patterns is None:
        patterns = []
    elif not isinstance(patterns, (list, tuple)):
        patterns = [patterns]
    compiled = []
    for pattern in patterns:
        try:
            compiled.append(re.compile(pattern))
        except (re.error, TypeError) as error:
            raise ValueError(f'swap expects {name} to be regular expressions, '
                             f'got {pattern!r}: {error}.') from error
    return compiled


def _matching(sites: List[Site], include: Patterns,
              exclude: Patterns) -> List[Site]:
    included, excluded = (_compile(include,
                                   'include'), _compile(exclude, 'exclude'))
    for name, patterns in (('include', included), ('exclude', excluded)):
        for pattern in patterns:
            if not any(pattern.search(site.name) for site in sites):
                raise ValueError(
                    f'{name}={pattern.pattern!r} matches no activation site; '
                    'the sites are: ' + ', '.join(site.name for site in sites))
    return [
        site for site in sites
        if (not included or any(p.search(site.name)
                                for p in included)) and not any(
                                    p.search(site.name) for p in excluded)
    ]


def _places(root: nn.Module, site: Site,
            sites: List[Site]) -> List[Tuple[nn.Module, str]]:
    """Where to put a replacement: (holder, attribute) pairs.

    Every caller itself where all of them hold the module. The holder, where
    there is only one and only one caller. Else nowhere: one caller's
    replacement would reach another caller.
    """
    holders = [(parent, name) for parent in root.modules()
               for name, child in parent._modules.items()
               if child is site.module]
    callers = {other.caller for other in sites if other.module is site.module}
    if callers.issubset(holder for holder, _ in holders):
        return [place for place in holders if place[0] is site.caller]
    return holders if len(holders) == len(callers) == 1 else []


def _replacement(sites: List[Site], built: Dict[Site, nn.Module]) -> nn.Module:
    """What takes the place of one module for the calls of one caller."""
    old = sites[0].module
    # Each call that keeps the old activation has its own copy, so that a
    # second swap can tell them apart.
    activations = [
        built[site] if site in built else copy.deepcopy(old)
        for site in sorted(sites, key=lambda site: site.call)
    ]
    if len(activations) == 1:
        return activations[0]
    replacement = ActivationPerCall(activations, sites[0].caller,
                                    sites[0].first_called)
    replacement.training = old.training
    return replacement


def _build(root: nn.Module, site: Site, new_type, act_cfg: dict) -> nn.Module:
    arguments = dict(act_cfg)
    accepted = inspect.signature(new_type).parameters
    for name in ('num_channels', 'num_parameters'):
        if name in accepted:
            arguments.setdefault(name, site.width)
    new = MODELS.build(arguments)
    like = next((site.feed or root).parameters(), None)
    if like is not None:
        new.to(like.device, like.dtype)
    new.train(site.module.training)
    if site.is_frozen:
        new.requires_grad_(False)
        # A frozen stage keeps its norms in eval mode.
        new.eval()
    return new


@MODELS.register_module()
def SwapActivations(backbone: Union[str, type, dict, None] = None,
                    swap: Optional[dict] = None,
                    **kwargs) -> nn.Module:
    r"""Builds a backbone and replaces its activations.

    .. code-block:: python

        backbone=dict(
            type='SwapActivations',
            backbone='ResNet',
            swap=dict(act_cfg=dict(type='MetaACON'), include=r'\.conv2$'),
            depth=50)

    Args:
        backbone (str, type or dict): Type of the backbone, whose arguments
            are the remaining keys, or its whole config. Of the latter the
            remaining keys change arguments, as a model does that hands its
            own ``pretrained`` to its backbone.
        swap (dict): Arguments of :func:`swap_activations`.

    Returns:
        nn.Module: The backbone itself, not a wrapper: its state dict has the
        keys of the plain backbone and those of the new activations.

    Raises:
        TypeError: backbone or swap is missing or of another kind.
        KeyError: no registry that is searched knows the backbone's type.
    """
    if not isinstance(swap, dict):
        raise TypeError(
            "SwapActivations expects swap=dict(act_cfg=dict(type='PWLU'), "
            f'...), got {swap!r}.')
    if isinstance(backbone, dict):
        arguments = {**backbone, **kwargs}
    elif isinstance(backbone, (str, type)):
        arguments = dict(kwargs, type=backbone)
    else:
        raise TypeError('SwapActivations expects backbone to be a type name '
                        f'or a config, got {backbone!r}.')
    _check_scope(arguments)
    built = MODELS.build(arguments)
    swap_activations(built, **swap)
    return built


def _check_scope(arguments: dict) -> None:
    """Refuses a name that only libraries have which are not searched."""
    name = arguments.get('type')
    if not isinstance(name, str) or '.' in name:
        return
    with MODELS.switch_scope_and_registry(
            arguments.get('_scope_')) as registry:
        if registry.get(name) is not None:
            return
    there = [
        f'{library}.{name}' for library, registry in MODELS.children.items()
        if name in registry.module_dict
    ]
    if there:
        raise KeyError(
            f'SwapActivations finds no backbone {name!r}, because the config '
            'has no default_scope, or one of another library. Write '
            f'backbone={there[0]!r}' +
            (f' (or {", ".join(map(repr, there[1:]))}).' if there[1:] else '.')
        )
