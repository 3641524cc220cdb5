import inspect
import re
from typing import Dict, List, Optional, Sequence, Tuple, Union

from mmengine.logging import print_log
from mmengine.registry import MODELS
from torch import nn

from ..activations import PWLU, LearnableActivation, keep_start
from ..activations.function import ElementWise
from .keys import listed
from .loading import watch_loading
from .probe import ACTIVATION_TYPES, Probed, Site, probe
from .proof import prove
from .replacement import Replacement
from .report import SwapReport, SwapRow
from .samples import SampleInput

Patterns = Union[str, Sequence[str], None]
_FROZEN_NOTE = "frozen; frozen='swap' if the checkpoint brings its activation"
# They scale something else; another function there is another network.
GATES = ('HSigmoid', 'Hardsigmoid', 'Sigmoid', 'Tanh')
# How the reason begins where the network would be another one.
CHANGES = 'with copies of it '


def swap_activations(module: nn.Module,
                     act_cfg: dict,
                     include: Patterns = None,
                     exclude: Patterns = None,
                     parts: Union[str, Sequence[str], None] = None,
                     replace: Union[str, Sequence[str]] = 'ReLU',
                     tiny_maps: bool = False,
                     frozen: str = 'keep',
                     sample_input: Optional[SampleInput] = None,
                     verify: bool = True) -> SwapReport:
    r"""Replaces activations of a built module, in place.

    A site is what an activation is called for behind one convolution, named
    after it: ``layer1.0.conv2``, stem ``conv1``. A module that is called at
    several sites is split into one per site. No key of the state dict
    changes; the new activations add theirs.

    Before the new activations go in, the module has to give the same outputs
    and gradients with the old ones at their places, in evaluation and in
    training. A site where it does not is left as it is, and the report says
    how it differs.

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
        parts (str or list of str, optional): Names of parts of the module,
            'neck' or 'roi_head.bbox_head' for example, wherever they are in
            it; only their sites are replaced.
        replace (str or list of str): Types of the activations to replace.
        tiny_maps (bool): Replace sites on 1x1 maps too, such as those in
            squeeze-and-excitation blocks.
        frozen (str): What to do where the feeding convolution is frozen:
            'keep' the old activation, or 'swap' it for one that is frozen
            too, which makes sense if the checkpoint brings it.
        sample_input: For the forward passes: shape of an input, the input
            tensors, a tuple or dict of arguments (shapes in place of tensors
            too), or a function that is given the module and calls it. None
            makes an image of 256 pixels or of another size, maps for a neck
            or head that says which it takes, and for a whole model of
            OpenMMLab images with data samples.
        verify (bool): Whether to compare the module with itself. It takes
            four small forward and backward passes, and four more with the
            old activations at the new places.

    Returns:
        SwapReport: One row per site; prints as a table.

    Raises:
        KeyError: ``act_cfg`` names an unknown type.
        TypeError: ``module`` is no module.
        ValueError: nothing matches or nothing can be replaced, with a list
            of what there is, or an argument is wrong.
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
    _check_types(replace, old_types, probed)
    wanted = _within(parts, _matching(probed.sites, include, exclude), module)
    report = SwapReport([
        SwapRow(site.name, site.type, None, site.width, site.map_size)
        for site in probed.sites
    ], probed.functional, [
        name for name, uncalled in probed.uncalled.items()
        if type(uncalled).__name__ in old_types
    ])
    rows = dict(zip(probed.sites, report.rows))
    for site, row in rows.items():
        if site not in wanted:
            row.reason = 'not included'
        elif site.type not in old_types:
            row.reason = f'no {" or ".join(sorted(old_types))}'
        else:
            row.reason = _reason_to_keep(site, tiny_maps, frozen)
    # All are built before the first is put in place: an error in act_cfg
    # leaves the module as it was.
    built: Dict[Site, nn.Module] = {}
    for site, row in rows.items():
        if not row.reason:
            new, row.reason = _build(module, site, new_type, act_cfg)
            if new is not None:
                built[site] = new
    replacements = _replacements(module, probed, rows)
    if verify and replacements:
        report.proof, refused = prove(module, replacements, sample_input)
        for replacement, difference in refused.items():
            replacements.remove(replacement)
            for site in replacement.chosen:
                rows[site].reason = f'{CHANGES}{difference}'
    if not replacements:
        raise ValueError(
            f'No activation of {type(module).__name__} was chosen for '
            f'replacement by {new_type.__name__}; the sites are:\n{report}\n'
            'Change include, exclude, replace, tiny_maps or frozen in swap; '
            'the tools take --act-include, --act-exclude, --act-replace and '
            '--cfg-options model.backbone.swap.tiny_maps=True.')
    # Fresh ones in place of the same function are alike.
    keeps: Dict[str, str] = {}
    for replacement in replacements:
        replacement.put(built)
        for site in replacement.chosen:
            row, new = rows[site], built[site]
            row.new = type(new).__name__
            row.parameters = sum(p.numel() for p in new.parameters())
            function = repr([site.module, list(site.module.parameters())])
            if function not in keeps:
                keeps[function] = _keeps(new, site.module)
            row.keeps = keeps[function]
            row.note = replacement.note(site)
    print_log(f'{type(module).__name__}: {report}', logger='current')
    watch_loading(module)
    keep_start(module)
    return report


def _reason_to_keep(site: Site, tiny_maps: bool, frozen: str) -> str:
    """Why an activation of a type to replace stays, empty if it does not."""
    if (not tiny_maps and site.map_size
            and all(size == 1 for size in site.map_size)):
        return '1x1 map'
    if frozen == 'keep' and site.is_frozen:
        return _FROZEN_NOTE
    return ''


def _replacements(root: nn.Module, probed: Probed,
                  rows: Dict[Site, SwapRow]) -> List[Replacement]:
    """One for each caller of a module; others' rows get a reason."""
    replacements = []
    for (caller, module), orders in probed.orders.items():
        met = {
            site
            for calls in orders.values()
            for one in calls
            for site in one
        }
        sites = [site for site in probed.sites if site in met]
        chosen = [site for site in sites if not rows[site].reason]
        if not chosen:
            continue
        places = _places(root, module, caller, probed)
        reason = ''
        if not places:
            reason = 'the module that calls it does not hold it'
        elif len(sites) > 1 and any(
                len(calls) > 1 for calls in orders.values()):
            reason = (f'{type(caller).__name__} calls it in another order '
                      'from forward to forward')
        elif (len(chosen) < len(sites)
              and any(True for _ in module.parameters())):
            # The calls left would no longer share them.
            reason = 'shares parameters with calls left'
        if reason:
            for site in chosen:
                rows[site].reason = reason
        else:
            replacements.append(Replacement(sites, chosen, places, orders))
    return replacements


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


def _function_of(old: nn.Module) -> Optional[nn.Module]:
    """The function that stands there; None if another cannot keep it."""
    if isinstance(old, LearnableActivation):
        return old.function and old.function.module
    try:
        return ElementWise(old).module
    except ValueError:
        # RReLU, and what the user alone knows.
        return None


def _keeps(new: nn.Module, old: nn.Module) -> str:
    """How much of the function that was there a fresh activation keeps."""
    function = _function_of(old)
    if (function is None or not isinstance(new, LearnableActivation)
            or any(p.is_meta for p in new.parameters())):
        return '-'
    try:
        difference = new.difference_from(function)
    except ValueError:
        # It looks at more than one number.
        return 'another'
    if not difference:
        return 'exact'
    phase1 = 'exact in Phase I, else ' if isinstance(new, PWLU) else ''
    return f'{phase1}{difference:.1%} off'


def _check_types(replace, old_types: set, probed: Probed) -> None:
    there = sorted({site.type for site in probed.sites})
    if old_types.intersection(there):
        return
    useful = [name for name in there if name not in GATES]
    ours = sorted({
        site.type
        for site in probed.sites
        if isinstance(site.module, LearnableActivation)
    })
    remedy = ''
    if not there and probed.functional:
        remedy = (f' It calls functions: {listed(probed.functional)}. A swap '
                  'reaches modules only: write self.relu = nn.ReLU() in '
                  '__init__ and call that.')
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


def _within(parts: Union[str, Sequence[str], None], sites: List[Site],
            root: nn.Module) -> List[Site]:
    """The sites that are in one of the parts."""
    if parts is None:
        return sites
    parts = [parts] if isinstance(parts, str) else list(parts)
    names = {module: f'.{name}.' for name, module in root.named_modules()}
    for part in parts:
        if not any(f'.{part}.' in names[site.caller] for site in sites):
            there = sorted(
                {names[site.caller].split('.')[1]
                 for site in sites})
            raise ValueError(
                f'swap expects parts to name parts of {type(root).__name__} '
                f'that have activations to replace, got {part!r}; there are '
                f'{", ".join(filter(None, there)) or "none"}.')
    return [
        site for site in sites
        if any(f'.{part}.' in names[site.caller] for part in parts)
    ]


def _places(root: nn.Module, module: nn.Module, caller: nn.Module,
            probed: Probed) -> List[Tuple[nn.Module, str]]:
    """Where to put a replacement: (holder, attribute) pairs.

    All holders, where there is one caller: it may walk through a list that
    holds the module, too. Of several callers each one's own attribute and
    the lists inside it, and nowhere if one has none: another caller's
    replacement would reach it.
    """
    holders = [(parent, name) for parent in root.modules()
               for name, child in parent._modules.items() if child is module]
    callers = [caller for caller, called in probed.orders if called is module]
    if len(callers) == 1:
        return holders
    # An inner caller comes after the one that it is in.
    owners = {
        part: caller
        for caller in sorted(
            callers, key=lambda c: -sum(1 for _ in c.modules()))
        for part in caller.modules()
    }
    owned = [place for place in holders if owners.get(place[0]) is caller]
    return owned if {owners.get(parent)
                     for parent, _ in holders}.issuperset(callers) else []


def _build(root: nn.Module, site: Site, new_type,
           act_cfg: dict) -> Tuple[Optional[nn.Module], str]:
    """The new activation, or why there can be none at the site."""
    arguments = dict(act_cfg)
    accepted = inspect.signature(new_type).parameters
    if 'channel_axis' in accepted and site.channel_axis:
        arguments.setdefault('channel_axis', site.channel_axis)
    width_name = next((name for name in ('num_channels', 'num_parameters')
                       if name in accepted and name not in arguments), None)
    if width_name and site.width:
        if site.channel_axis == -1 and 'channel_axis' not in accepted:
            return None, f'channels in the last axis, {new_type.__name__} '\
                         'takes them in axis 1'
        arguments[width_name] = site.width
    if 'function' in accepted and 'function' not in arguments:
        arguments['function'] = _function_of(site.module)
    new = MODELS.build(arguments)
    if width_name and not site.width and (getattr(new, 'is_lazy', True)):
        return None, 'no single width'
    like = next((site.feed or root).parameters(), None)
    if like is not None:
        new.to(like.device, like.dtype)
    new.train(site.module.training)
    if site.is_frozen:
        new.requires_grad_(False)
        # A frozen stage keeps its norms in eval mode.
        new.eval()
    return new, ''


@MODELS.register_module()
def SwapActivations(backbone: Union[str, type, dict, None] = None,
                    swap: Optional[dict] = None,
                    model: Union[str, type, None] = None,
                    **kwargs) -> nn.Module:
    r"""Builds a backbone, or another module, and replaces its activations.

    .. code-block:: python

        backbone=dict(
            type='SwapActivations',
            backbone='ResNet',
            swap=dict(act_cfg=dict(type='MetaACON'), include=r'\.conv2$'),
            depth=50)

    A neck or head in the same way. What those of a detector take is only
    known in the detector, so that for them rather the whole model is built
    here; its other keys stay where they are:

    .. code-block:: python

        model=dict(
            type='SwapActivations',
            model='RetinaNet',
            swap=dict(act_cfg=dict(type='PWLU'), parts=['neck', 'bbox_head']),
            backbone=dict(type='ResNet', depth=50), ...)

    Args:
        backbone (str, type or dict): Type of the backbone, whose arguments
            are the remaining keys, or its whole config. Of the latter the
            remaining keys change arguments, as a model does that hands its
            own ``pretrained`` to its backbone.
        swap (dict): Arguments of :func:`swap_activations`.
        model (str or type, optional): Type of a model. All keys but ``swap``
            are its arguments then.

    Returns:
        nn.Module: The backbone or model itself, not a wrapper: its state
        dict has the keys of the plain one and those of the new activations.

    Raises:
        TypeError: backbone, model or swap is missing or of another kind.
        KeyError: no registry that is searched knows the type.
    """
    if not isinstance(swap, dict):
        raise TypeError(
            "SwapActivations expects swap=dict(act_cfg=dict(type='PWLU'), "
            f'...), got {swap!r}.')
    if isinstance(model, (str, type)):
        arguments = dict(kwargs, type=model)
        if backbone is not None:
            arguments['backbone'] = backbone
    elif isinstance(backbone, dict):
        arguments = {**backbone, **kwargs}
    elif isinstance(backbone, (str, type)):
        arguments = dict(kwargs, type=backbone)
    else:
        raise TypeError('SwapActivations expects backbone to be a type name '
                        'or a config, or model to be a type name, got '
                        f'{backbone!r} and {model!r}.')
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
