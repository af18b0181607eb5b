"""Methods that would lose the collisions without a word, refused while there are some (ours).

Blocks that merge their branches for inference have a method that reads their convolutions' weights and makes one plain
convolution of them. On IC units that would be another function. So the method is shadowed, on the instance, until
``revert_``.
"""

import inspect
from typing import Any, NoReturn

from torch import nn

from icnets.layers import IC_LAYERS

__all__ = ["guard_", "unguard_"]

# What RepVGG and those after it, timm's helpers included, call such a method.
MERGING = ("fuse", "reparameterize", "switch_to_deploy", "merge_kernel")


class Refusal:
    """Stands in for a method and raises TypeError; it can be copied and pickled with its module."""

    def __init__(self, where: str, method: str) -> None:
        self.where, self.method = where, method

    def __call__(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise TypeError(
            f"{self.method} of {self.where} reads the weights of convolutions that are IC units, and would lose their "
            "collisions; call icnets.fuse_(model), or icnets.revert_(model) before it"
        )


def _takes_nothing(function: Any) -> bool:
    # A method of the same name with arguments does something else: it fuses features, as a rule.
    if not inspect.isfunction(function):
        return False
    parameters = list(inspect.signature(function).parameters.values())[1:]
    return all(p.default is not p.empty or p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD) for p in parameters)


def guard_(model: nn.Module) -> list[str]:
    """Shadows the merging methods of every module of ``model`` with an IC unit below it; returns "name.method"."""
    guarded = []
    for name, module in model.named_modules():
        if isinstance(module, IC_LAYERS):
            continue
        if not any(isinstance(m, IC_LAYERS) for m in module.modules()):
            continue
        for method in MERGING:
            if method not in module.__dict__ and _takes_nothing(getattr(type(module), method, None)):
                where = f"{type(module).__name__}{f' at {name!r}' if name else ''}"
                module.__dict__[method] = Refusal(where, method)
                guarded.append(f"{name}.{method}" if name else method)
    return guarded


def unguard_(model: nn.Module) -> None:
    """Gives every module its own methods back."""
    for module in model.modules():
        for method in MERGING:
            if isinstance(module.__dict__.get(method), Refusal):
                del module.__dict__[method]
