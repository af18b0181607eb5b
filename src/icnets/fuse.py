"""Shipping a network: ``fuse_`` folds its batch norms and puts its IC units into their deployed form, in place."""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from icnets.convert import by_reason, is_plain, refuse_wrapped
from icnets.deploy import FUSED_LAYERS, deploy_, fold_, obstacle_to_deploying, weight_growth
from icnets.folding import Consumers, affine_of, is_norm, obstacle_to_folding, remove_norm_
from icnets.layers import IC_LAYERS, ICLayer
from icnets.messages import few, first_line
from icnets.undo import Undo

__all__ = ["FuseReport", "fuse_", "random_like"]


@dataclass(frozen=True)
class FuseReport:
    """What ``fuse_`` did.

    Attributes:
        fused: names of the IC units now in their deployed form.
        folded: name of each batch norm that is gone, and of the layer that it was folded into.
        skipped: names of the units and batch norms left as they were, with the reason.
        max_error: largest absolute difference of the outputs, before and after, on the example and on a random batch.
        max_relative_error: the same, relative to the largest output.
        weight_growth: how much wider than the learned weights' range the deployed one is, per IC unit; int8 suffers
            beyond about 4.
    """

    fused: list[str]
    folded: dict[str, str]
    skipped: dict[str, str]
    max_error: float
    max_relative_error: float
    weight_growth: dict[str, float] = field(default_factory=dict)

    def __str__(self) -> str:
        if not self.fused and not self.folded:
            lines = ["nothing to fuse: no IC unit, and no batch norm that could be folded"]
        else:
            lines = [
                f"fused {len(self.fused)} IC units, folded {len(self.folded)} batch norms",
                f"largest error {self.max_error:.3g}, {self.max_relative_error:.3g} of the largest output",
            ]
        if self.weight_growth:
            worst = max(self.weight_growth, key=lambda name: self.weight_growth[name])
            lines.append(f"weight range grew at most {self.weight_growth[worst]:.3g}-fold, in {worst or 'the unit'}")
        lines += by_reason("left", self.skipped)
        return "\n".join(lines)


# -- the surgery -----------------------------------------------------------------------------------------------------


def _refuse(model: nn.Module) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(f"model is a {type(model).__name__}; fuse_ takes an nn.Module")
    refuse_wrapped(model, "fuse")
    kinds = (*IC_LAYERS, nn.modules.dropout._DropoutNd)
    training = [n for n, m in model.named_modules() if m.training and (isinstance(m, kinds) or is_norm(m))]
    if training:
        where = few([n or type(model).__name__ for n in training])
        raise ValueError(f"the model is in training mode ({where}); call model.eval() before fuse_")


def _example(model: nn.Module, given: Any) -> tuple[Any, ...]:
    if isinstance(given, Tensor):
        return (given,)
    if isinstance(given, tuple | list):
        return tuple(given)
    if given is not None:
        raise TypeError(
            f"example_input is a {type(given).__name__}; pass a tensor, or a tuple of the model's arguments"
        )
    cfg: Any = getattr(model, "pretrained_cfg", None) or getattr(model, "default_cfg", None) or {}
    size = cfg.get("input_size") if isinstance(cfg, dict) else getattr(cfg, "input_size", None)
    if size is None:
        raise ValueError(
            "example_input is None and the model names no input size; pass a batch, e.g. torch.rand(1, 3, 224, 224)"
        )
    like = next((p for p in model.parameters() if p.is_floating_point()), torch.empty(0))
    generator = torch.Generator().manual_seed(1)
    return (torch.rand(1, *size, generator=generator).to(like.device, like.dtype),)


def random_like(args: tuple[Any, ...]) -> tuple[Any, ...]:
    """The noise on which outputs are compared too; what is no floating-point tensor stays."""
    generator = torch.Generator().manual_seed(0)

    def draw(value: Any) -> Any:
        if not isinstance(value, Tensor) or not value.is_floating_point():
            return value
        return torch.randn(value.shape, generator=generator).to(value.device, value.dtype)

    return tuple(draw(value) for value in args)


def _outputs(model: nn.Module, args: tuple[Any, ...]) -> list[Tensor]:
    args = tuple(a.clone() if isinstance(a, Tensor) else a for a in args)  # a model may work in place on its input
    leaves = [leaf for leaf in tree_leaves(model(*args)) if isinstance(leaf, Tensor) and leaf.is_floating_point()]
    if not leaves:
        raise ValueError("the model returns no floating-point tensor; there is nothing to compare before and after")
    return [leaf.detach().double().clone() if leaf.device.type != "mps" else leaf.detach().clone() for leaf in leaves]


def _difference(before: list[Tensor], after: list[Tensor]) -> tuple[float, float]:
    """Largest absolute difference, and the largest relative to the output's own maximum; infinite if not finite."""
    largest, relative = 0.0, 0.0
    for old, new in zip(before, after, strict=True):
        if old.numel():
            error = (new - old).abs().nan_to_num(torch.inf).max().item()
            size = old.abs().max().item()
            largest = max(largest, error)
            relative = max(relative, error / size if size > 0 else error)
    return largest, relative


def _tolerance(model: nn.Module) -> float:
    coarsest = max((torch.finfo(p.dtype).eps for p in model.parameters() if p.is_floating_point()), default=0.0)
    return max(1e-3, 64 * coarsest)


@dataclass
class _Plan:
    names: dict[nn.Module, str]
    units: list[ICLayer]
    folds: dict[nn.Module, nn.Module]  # layer: the norm behind it
    skipped: dict[str, str]


def _plan(model: nn.Module, args: tuple[Any, ...], fold_batch_norm: bool) -> _Plan:
    """Runs the example once and decides what to fuse and to fold, without changing anything."""
    names = {module: name for name, module in model.named_modules()}
    skipped = {n: why for m, n in names.items() if isinstance(m, IC_LAYERS) and (why := obstacle_to_deploying(m))}
    skipped |= {n: "already deployed" for m, n in names.items() if isinstance(m, FUSED_LAYERS)}
    units = [m for m, n in names.items() if isinstance(m, IC_LAYERS) and n not in skipped]
    plain = [m for m in names if not isinstance(m, FUSED_LAYERS) and is_plain(m)]
    norms = [m for m in names if is_norm(m)] if fold_batch_norm else []
    hooked = {m for m in [*units, *plain] if m._forward_hooks}
    folds: dict[nn.Module, nn.Module] = {}
    why_not = {m: obstacle_to_folding(m) for m in norms}
    record = Consumers()
    with record.watch([*units, *plain], norms):
        _outputs(model, args)
    kept = record.kept()
    for norm, reason in why_not.items():
        found = reason or record.partner(norm, kept)
        if isinstance(found, nn.Module) and found in hooked:
            found = "the layer before it has forward hooks"
        if isinstance(found, str):
            skipped[names[norm]] = found
        else:
            folds[found] = norm
    return _Plan(names, units, folds, skipped)


def _apply(plan: _Plan, undo: Undo) -> None:
    for layer in dict.fromkeys([*plan.units, *plan.folds]):
        norm = plan.folds.get(layer)
        undo.remember(layer)
        affine = None if norm is None else affine_of(norm)
        assert not isinstance(affine, str)
        if isinstance(layer, IC_LAYERS):
            deploy_(layer, affine)
        elif affine is not None:
            fold_(layer, affine)
        if norm is not None:
            undo.remember(norm)
            remove_norm_(norm)


@torch.no_grad()
def fuse_(model: nn.Module, example_input: Any = None, *, fold_batch_norm: bool = True) -> FuseReport:
    """Puts ``model`` into its deployed form, in place: the same function, faster, for inference only (ours).

    Every IC unit becomes a convolution followed by PReLU (or LeakyReLU) plus a rank-one term; every batch norm that
    reads exactly one layer's output, alone, is folded into that layer, whether IC or plain. Anything else stays.

    Args:
        model: in eval mode. Save it before: a deployed model can't be trained, and is shipped by exporting it.
        example_input: a batch, or a tuple of the model's arguments; one pass with it shows who reads what. By
            default noise of the input size that the model names (timm's do).
        fold_batch_norm: False leaves every batch norm where it is.

    Returns:
        What was done and left, with the measured error. Fusing twice changes nothing more.

    Raises:
        ValueError: the model is in training mode, or no example input is known or usable.
        TypeError: the model is wrapped (DDP, FSDP), compiled, scripted or traced.
        RuntimeError: the outputs differ by more than 1e-3 of the largest (64 roundings in half precision); the model is
            then as it was.
    """
    _refuse(model)
    args = _example(model, example_input)
    random = random_like(args)
    try:
        before = [_outputs(model, args), _outputs(model, random)]
    except RuntimeError as error:
        shapes = ", ".join(str(tuple(a.shape)) for a in args if isinstance(a, Tensor))
        raise ValueError(
            f"the model fails on an example input of shape {shapes} ({first_line(error)}); pass another example_input"
        ) from error
    plan = _plan(model, args, fold_batch_norm)
    growth = {plan.names[u]: weight_growth(u) for u in plan.units}
    undo = Undo()
    try:
        _apply(plan, undo)
        differences = [_difference(b, _outputs(model, a)) for b, a in zip(before, (args, random), strict=True)]
        largest, relative = (max(d[i] for d in differences) for i in (0, 1))
        if relative > _tolerance(model):
            raise RuntimeError(
                f"the deployed model's outputs differ by {relative:.3g} of the largest, above {_tolerance(model):.3g}; "
                "it was left as it was: is its output random, does its forward pass depend on values, or is it so "
                "sensitive to rounding that it needs model.double()?"
            )
    except BaseException:
        undo.undo()
        raise
    folded = {plan.names[norm]: plan.names[layer] for layer, norm in plan.folds.items()}
    return FuseReport([plan.names[u] for u in plan.units], folded, plan.skipped, largest, relative, growth)
