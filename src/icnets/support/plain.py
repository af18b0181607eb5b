"""Networks whose weights are computed by pruning, a norm of the weight or another reparametrisation."""

import copy
from collections import OrderedDict
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
        without_parametrizations_(module)
    return network


def without_parametrizations_(module: Any) -> None:
    """Makes Parameters of what torch's parametrisations compute, and leaves the class to the copies that share it."""
    if parametrize.is_parametrized(module):
        values = {name: getattr(module, name).detach() for name in module.parametrizations}
        module.__class__ = type(module).__bases__[0]  # torch puts one of its own in front
        del module._modules["parametrizations"]
        module._load_state_dict_pre_hooks = OrderedDict()  # weight_norm's, which can't be pickled
        module._parameters |= {name: nn.Parameter(value, requires_grad=False) for name, value in values.items()}
