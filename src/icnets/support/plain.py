"""Networks whose weights are computed by pruning, a norm of the weight or another reparametrisation."""

import copy
from typing import Any

from torch import Tensor, nn
from torch.nn.utils import parametrize, prune
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm
from torch.utils._pytree import tree_leaves


def deepcopy(module: nn.Module, *more: Any) -> Any:
    """Copies as ``copy.deepcopy``, also modules that hold results of autograd (a pruned weight): these are detached.

    With ``more`` it returns a tuple of the copies, and what they share stays shared.
    """
    held = [leaf for m in module.modules() for leaf in tree_leaves(vars(m)) if isinstance(leaf, Tensor)]
    held += [leaf for leaf in tree_leaves(more) if isinstance(leaf, Tensor)]
    memo: dict[int, Any] = {id(t): t.detach().clone() for t in held if not t.is_leaf}
    return copy.deepcopy((module, *more), memo) if more else copy.deepcopy(module, memo)


def made_plain_(network: Any) -> Any:
    """Makes the computed weights of ``network`` plain Parameters with the same values, in place.

    In eval mode its function stays what it is: torch's parametrisations, pruning, and the weight and spectral norms of
    ``torch.nn.utils`` are removed; whatever else computes a weight stays.
    """
    for module in list(network.modules()):
        for key, hook in list(module._forward_pre_hooks.items()):
            if isinstance(hook, prune.BasePruningMethod):
                prune.remove(module, hook._tensor_name)
            elif isinstance(hook, WeightNorm | SpectralNorm):
                hook.remove(module)
                del module._forward_pre_hooks[key]
        if parametrize.is_parametrized(module):
            _give_own_class_(module)
            for name in list(module.parametrizations):
                parametrize.remove_parametrizations(module, name)
    return network


def _give_own_class_(module: Any) -> None:
    """Gives a parametrised module a class that no copy shares: torch takes its properties away with them."""
    cls = type(module)
    members = {name: value for name, value in vars(cls).items() if name not in ("__dict__", "__weakref__")}
    module.__class__ = type(cls.__name__, cls.__bases__, members)
