"""Activations in a tree of configs: where backbones stand, how they swap."""
from typing import Iterator, List, NamedTuple, Sequence, Union

from mmengine.config import Config, ConfigDict
from mmengine.logging import print_log

from .swap import Patterns

# Keys that end in 'backbone' and hold what a swap has no business with.
_OTHERS = dict(
    teacher_backbone='a teacher is not trained',
    text_backbone='it reads text, not images',
    multimodal_backbone='it reads text, not images')


class Place(NamedTuple):
    """Where a config has a backbone: ``owner[key]``, and its path."""
    owner: dict
    key: str
    path: str

    @property
    def config(self) -> ConfigDict:
        """What stands there, a ``SwapActivations`` for example."""
        return self.owner[self.key]

    @property
    def arguments(self) -> ConfigDict:
        """The backbone's own arguments, inside SwapActivations too."""
        inner = self.config.get('backbone')
        swapped = type_name(self.config) == 'SwapActivations'
        return inner if swapped and isinstance(inner, dict) else self.config

    @property
    def type(self) -> Union[str, type, None]:
        """The backbone's own type, inside SwapActivations too."""
        arguments = self.arguments
        if type_name(arguments) == 'SwapActivations':
            return arguments.get('backbone')
        return arguments.get('type')


def type_name(node: dict) -> str:
    """The type of a config without its scope; it may be the class itself."""
    node_type = node.get('type')
    return getattr(node_type, '__name__', str(node_type)).split('.')[-1]


def dicts(node) -> Iterator[dict]:
    """All dicts in a nested config, the outer before the inner ones."""
    if isinstance(node, dict):
        yield node
        # By item access: pure-Python configs resolve their names there.
        node = [node[key] for key in list(node)]
    if isinstance(node, (list, tuple)):
        for child in node:
            yield from dicts(child)


def without_weights(model, keep_sync: bool = False) -> None:
    """Takes names of checkpoints out of a model's config, in place.

    And SyncBN, which needs a process group and GPUs, unless it is kept.
    """
    for node in dicts(model):
        if isinstance(node.get('pretrained'), (str, bool)):
            node['pretrained'] = None
        init_cfg = node.get('init_cfg') or ()
        if isinstance(init_cfg, list):
            node['init_cfg'] = [
                init for init in init_cfg if 'checkpoint' not in init
            ]
        elif 'checkpoint' in init_cfg:
            node['init_cfg'] = None
        if type_name(node) in ('SyncBN', 'SyncBatchNorm') and not keep_sync:
            node['type'] = 'BN'


def find_backbones(model, path: str = 'model') -> Iterator[Place]:
    """Every backbone of a model: keys that end in ``backbone``.

    Backbones of teachers and of texts stand under such keys too and are
    found; :func:`use_activation` leaves them alone.
    """
    if isinstance(model, (list, tuple)):
        for index, child in enumerate(model):
            yield from find_backbones(child, f'{path}.{index}')
    if not isinstance(model, dict):
        return
    for key in list(model):
        child, place = model[key], f'{path}.{key}'
        if key.endswith('backbone') and isinstance(child, dict):
            yield Place(model, key, place)
        else:
            yield from find_backbones(child, place)


def use_activation(
    cfg: Config,
    act: str,
    include: Patterns = None,
    exclude: Patterns = None,
    replace: Patterns = None,
    parts: Sequence[str] = ('backbone', )) -> None:
    """Swaps the activations of every backbone in a config, in place.

    Each ``backbone=dict(type=..., ...)``, or another key that ends in
    ``backbone``, becomes a ``SwapActivations`` of it. With other parts the
    model itself does, since only it can tell what they take. The optimizer
    gets no weight decay on activation parameters, and PWLU its two phases.

    Args:
        cfg (Config): Config of any OpenMMLab library.
        act (str): Type of the activation, for example 'PWLU'.
        include (str or list of str, optional): Regular expressions over the
            site names.
        exclude (str or list of str, optional): Likewise, to leave sites out.
        replace (str or list of str, optional): Types of the activations to
            replace, 'ReLU' if not given.
        parts (list of str): 'backbone' for all backbones, and parts of the
            model such as 'neck', 'roi_head.bbox_head'.

    Raises:
        ValueError: the model has no such part, or one that swaps already.
    """
    model = cfg.get('model') or {}
    found = list(find_backbones(model))
    places = [place for place in found if place.key not in _OTHERS]
    parts = list(parts or ('backbone', ))
    for part in parts:
        # What lies deeper, roi_head.bbox_head, the swap looks for itself.
        if part != 'backbone' and not any(
                part.split('.')[0] in node for node in dicts(model)):
            raise ValueError(
                f'--act-parts {part}: the model in {cfg.filename} has no '
                f'{part!r}; it has {sorted(model)}.')
    if not places and 'backbone' in parts:
        raise ValueError(
            f'--act {act} needs a model with a backbone; {cfg.filename} has '
            f'a model of type {type_name(model)} with the keys '
            f'{sorted(model)}. In Python: mm_acon.swap_activations(module, '
            f"dict(type='{act}')).")
    if type_name(model) == 'SwapActivations':
        raise ValueError(
            f'--act {act} on a config whose model is SwapActivations already; '
            f'write --cfg-options model.swap.act_cfg.type={act} instead.')
    for place in places:
        if type_name(place.config) == 'SwapActivations':
            raise ValueError(
                f'--act {act} on a config whose backbone is SwapActivations '
                'already; write --cfg-options '
                f'{place.path}.swap.act_cfg.type={act} instead.')
    for place in found:
        if place.key in _OTHERS:
            print_log(
                f'--act {act} leaves {place.path} as it is: '
                f'{_OTHERS[place.key]}',
                logger='current')
    swap = dict(act_cfg=dict(type=act))
    for name, value in (('include', include), ('exclude', exclude), ('replace',
                                                                     replace)):
        if value:
            swap[name] = value
    if parts != ['backbone']:
        _swap_in_model(cfg, swap, parts, places)
        places = []
    for place in places:
        # What a config inherits from is no longer needed here, so the whole
        # backbone can stand in one key, whatever its arguments are called.
        place.owner[place.key] = ConfigDict(
            type='SwapActivations', backbone=place.config, swap=dict(swap))
    if cfg.get('optim_wrapper'):
        _wrap_constructor(cfg.optim_wrapper)
    if act == 'PWLU':
        add_hook(cfg, _realign_hook(cfg.get('train_cfg') or {}))


def _swap_in_model(cfg: Config, swap: dict, parts: List[str],
                   places: List[Place]) -> None:
    """The model stays flat, so that keys are still under their names."""
    swap['parts'] = [part for part in parts if part != 'backbone']
    if 'backbone' in parts:
        swap['parts'] += dict.fromkeys(place.key for place in places)
    cfg.model['model'] = cfg.model['type']
    cfg.model['type'] = 'SwapActivations'
    cfg.model['swap'] = swap


def _wrap_constructor(optim_wrapper: ConfigDict) -> None:
    """Puts our constructor around the one that a config has, if any."""
    ours = 'ActivationOptimWrapperConstructor'
    base = optim_wrapper.get('constructor')
    if base is None:
        optim_wrapper['constructor'] = ours
    elif type_name(dict(type=base)) != ours:
        optim_wrapper.update(constructor=ours, base_constructor=base)


def hook_types(cfg: Config) -> List[str]:
    """Names of the types of a config's hooks."""
    default = cfg.get('default_hooks') or {}
    hooks = [default[key] for key in default]
    hooks += cfg.get('custom_hooks') or []
    return [type_name(hook) for hook in hooks if hook]


def add_hook(cfg: Config, hook: dict) -> None:
    """Puts a hook behind the config's own, unless it has one of the type."""
    if type_name(hook) not in hook_types(cfg):
        cfg.custom_hooks = [*(cfg.get('custom_hooks') or []), hook]


def _realign_hook(train_cfg: dict) -> dict:
    """Phase I as the paper's 5 of 100 epochs, and never longer than 5."""
    if train_cfg.get('max_epochs'):
        epochs = round(train_cfg['max_epochs'] / 20)
        return dict(
            type='PWLURealignHook', phase1_epochs=max(1, min(5, epochs)))
    return dict(
        type='PWLURealignHook',
        phase1_iters=max(1,
                         train_cfg.get('max_iters', 0) // 20))
