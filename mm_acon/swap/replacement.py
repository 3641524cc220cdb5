"""Puts activations in the place of one module, and takes them away."""
import copy
from typing import Dict, List, Sequence, Set, Tuple

from torch import nn

from .in_place import InputCopied, WrittenBack
from .per_call import ActivationPerCall
from .probe import Orders, Site


class Replacement:
    """What takes the place of one module for the calls of one caller.

    Args:
        sites (Sequence[Site]): Those that the calls go to.
        chosen (Sequence[Site]): Those of them that get another activation.
        places (list): Where the module is held: (holder, attribute) pairs.
        orders (Orders): Of the calls.
    """

    def __init__(self, sites: Sequence[Site], chosen: Sequence[Site],
                 places: List[Tuple[nn.Module, str]], orders: Orders) -> None:
        self.sites = list(sites)
        self.chosen = list(chosen)
        self.places = places
        # One per mode: others are refused before.
        self.orders = {
            training: next(iter(order))
            for training, order in orders.items()
        }
        self.old = sites[0].module
        self.caller = sites[0].caller
        # Sites whose input is changed in place afterwards.
        self.copied: Set[Site] = set()
        # Whether the caller reads the input again and expects the output.
        self.written_back = False
        self.there: nn.Module = self.old

    def put(self, activations: Dict[Site, nn.Module]) -> None:
        """Puts them in place, and copies of the old one at other calls."""
        children = [self._child(site, activations) for site in self.sites]
        if len(children) == 1:
            self.there, = children
        else:
            index = {site: i for i, site in enumerate(self.sites)}
            order = {
                training: [index[site] for site in calls]
                for training, calls in self.orders.items()
            }
            self.there = ActivationPerCall(children, self.caller,
                                           self.sites[0].first_called,
                                           order.get(False, order.get(True)),
                                           order.get(True))
            self.there.training = self.old.training
        for holder, name in self.places:
            holder._modules[name] = self.there

    def _child(self, site: Site, activations: Dict[Site,
                                                   nn.Module]) -> nn.Module:
        if site not in self.chosen:
            # Its own copy, so that a second swap can tell the calls apart.
            return copy.deepcopy(self.old)
        child = activations[site]
        if self.written_back:
            WrittenBack().apply_to(child)
        elif site in self.copied:
            InputCopied().apply_to(child)
        return child

    def take_away(self) -> None:
        """Puts the old module back."""
        for holder, name in self.places:
            holder._modules[name] = self.old
        if isinstance(self.there, ActivationPerCall):
            self.there.remove_hooks(self.caller)
        self.there = self.old

    def note(self, site: Site) -> str:
        """What the report says of a site that is replaced."""
        if self.written_back:
            return 'its output goes back into its input, which is read again'
        if site in self.copied:
            return 'its input is copied, because it is changed afterwards'
        return ''
