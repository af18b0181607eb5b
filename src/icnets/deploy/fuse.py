"""Shipping a network: ``fuse_`` folds its batch norms and puts its IC units into their deployed form, in place."""

from collections.abc import Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from icnets.deploy.batch_norm import Consumers, affine_of, is_norm, obstacle_to_folding, remove_norm_
from icnets.support.hooks import floating_tensors
from icnets.support.text import by_reason, few, first_line
from icnets.support.undo import remember
from icnets.support.wrapped import refuse_wrapped
from icnets.unit.deployed import FUSED_LAYERS, deploy_, obstacle_to_deploying
from icnets.unit.layers import IC_LAYERS, ICLayer, unit_of


@dataclass(frozen=True)
class FuseReport:
    """What ``fuse_`` did.

    Attributes:
        fused: names of the IC units now in their deployed form.
        folded: name of each batch norm that is gone, and of the layer that it was folded into.
        skipped: names of the units and batch norms left as they were, with the reason.
        max_error: largest absolute difference of the outputs, before and after, on the example and on a random batch.
        max_relative_error: the same, relative to the largest output.
    """

    fused: list[str]
    folded: dict[str, str]
    skipped: dict[str, str]
    max_error: float
    max_relative_error: float

    def __str__(self) -> str:
        lines = [f"fused {len(self.fused)} IC units, folded {len(self.folded)} batch norms"]
        lines += [f"largest error {self.max_error:.3g}, {self.max_relative_error:.3g} of the largest output"]
        return "\n".join([*lines, *by_reason("left", self.skipped)])


# -- the surgery -----------------------------------------------------------------------------------------------------


def _refuse(model: nn.Module) -> None:
    refuse_wrapped(model, "fuse")
    if (empty := next((n for n, t in model.state_dict(keep_vars=True).items() if t.is_meta), None)) is not None:
        raise ValueError(f"{empty} is on the meta device, without values; load the model's weights before fuse_")
    kinds = (*IC_LAYERS, nn.modules.dropout._DropoutNd)
    if training := [n for n, m in model.named_modules() if m.training and (isinstance(m, kinds) or is_norm(m))]:
        raise ValueError(f"the model is in training mode ({few(training)}); call model.eval() before fuse_")


Call = tuple[tuple[Any, ...], dict[str, Any]]  # positional arguments of a model, and those by keyword


def own_input_size(model: nn.Module) -> tuple[int, ...] | None:
    """(C, H, W) as timm notes it, with the channels that the first convolution really has; None for other networks."""
    cfg = getattr(model, "pretrained_cfg", None)
    if not isinstance(cfg, Mapping) or "input_size" not in cfg:
        return None
    size = tuple(int(n) for n in cfg["input_size"])
    first = next((m for m in model.modules() if isinstance(m, nn.Conv2d)), None)
    return size if first is None else (first.in_channels, *size[1:])


def _example(model: nn.Module, given: Any) -> Call:
    if isinstance(given, dict):
        return (), given
    if given is not None:
        return tuple(given) if isinstance(given, tuple | list) else (given,), {}
    if (size := own_input_size(model)) is None:
        raise ValueError("the model names no input size; pass a batch, e.g. torch.rand(1, 3, 224, 224)")
    like = next((p for p in model.parameters() if p.is_floating_point()), torch.empty(0))
    generator = torch.Generator().manual_seed(1)
    return (torch.rand(1, *size, generator=generator, device="cpu").to(like.device, like.dtype),), {}


def random_like(arguments: Any) -> Any:
    """Draws the noise on which outputs are compared too; what is no floating-point tensor stays."""
    generator = torch.Generator().manual_seed(0)

    def draw(value: Tensor) -> Tensor:
        if not value.is_floating_point():
            return value
        return torch.randn(value.shape, generator=generator, device="cpu").to(value.device, value.dtype)

    return tree_map_only(Tensor, draw, arguments)


def _outputs(model: nn.Module, call: Call) -> list[Tensor]:
    args, kwargs = tree_map_only(Tensor, torch.clone, call)  # a model may work in place on its input
    leaves = floating_tensors(model(*args, **kwargs))
    if not leaves:
        raise ValueError("the model returns no floating-point tensor; there is nothing to compare before and after")
    return [leaf.detach().double().clone() if leaf.device.type != "mps" else leaf.detach().clone() for leaf in leaves]


def _outputs_before(model: nn.Module, example: Call) -> list[tuple[Call, list[Tensor]]]:
    """What the model gives for the example and, if it takes that, for noise like it; ValueError if it is of no use."""
    try:
        found = [(example, _outputs(model, example))]
    except Exception as error:  # whatever the model raises
        tensors = [a for a in tree_leaves(example) if isinstance(a, Tensor)]
        shapes = ", ".join(f"{tuple(a.shape)} ({a.dtype}, {a.device})" for a in tensors)
        what = f"the model fails on an example input of shape {shapes}: {first_line(error)}"
        raise ValueError(f"{what}; pass another example_input, one that is a list or dict as (batch,)") from error
    if any(t.isnan().any() or (t.numel() > 0 and not t.isfinite().any()) for t in found[0][1]):
        raise ValueError("the model's outputs are not finite, before anything is fused; check weights and example")
    with suppress(Exception):  # it may want images in [0, 1]
        noise = random_like(example)
        found.append((noise, _outputs(model, noise)))
    return found


def _difference(before: list[Tensor], after: list[Tensor]) -> tuple[float, float]:
    """Largest absolute difference, and the largest relative to the output's own maximum; infinite if not finite.

    Where both are the same infinity, as masked logits are, or both are nan, as noise may make them, there is none.
    """
    largest, relative = 0.0, 0.0
    for old, new in zip(before, after, strict=True):
        if old.shape != new.shape:
            return torch.inf, torch.inf
        if old.numel():
            same = (old == new) | (old.isnan() & new.isnan())
            error = (new - old).abs().nan_to_num(torch.inf, torch.inf).masked_fill(same, 0).max().item()
            size = old.abs().nan_to_num(0, 0, 0).max().item()
            largest = max(largest, error)
            relative = max(relative, error / size if size > 0 else error)
    return largest, relative


@dataclass
class _Plan:
    names: dict[nn.Module, str]
    units: list[ICLayer]
    folds: dict[nn.Module, nn.Module]  # layer: the norm behind it
    skipped: dict[str, str]


def _plan(model: nn.Module, call: Call) -> _Plan:
    """Runs the example once and decides what to fuse and to fold, without changing anything."""
    names = {module: name for name, module in model.named_modules()}
    skipped = {n: why for m, n in names.items() if isinstance(m, IC_LAYERS) and (why := obstacle_to_deploying(m))}
    skipped |= {n: "already deployed" for m, n in names.items() if isinstance(m, FUSED_LAYERS)}
    units = [m for m, n in names.items() if isinstance(m, IC_LAYERS) and n not in skipped]
    norms = [m for m in names if is_norm(m)]
    layers = [m for m in names if unit_of(m) is not None]
    folds: dict[nn.Module, nn.Module] = {}
    record = Consumers()
    with record.watch(layers, norms):
        _outputs(model, call)
    kept = record.kept()
    for norm in norms:
        found = obstacle_to_folding(norm) or record.partner(norm, kept)
        if isinstance(found, nn.Module) and found._forward_hooks:
            found = "the layer before it has forward hooks"
        if isinstance(found, nn.Module) and (stays := obstacle_to_deploying(found)):
            found = f"the layer before it can't take it: {stays}"
        if isinstance(found, str):
            skipped[names[norm]] = found
        else:
            folds[found] = norm
    return _Plan(names, units, folds, skipped)


def _apply(plan: _Plan, undo: ExitStack) -> None:
    for layer in dict.fromkeys([*plan.units, *plan.folds]):
        norm = plan.folds.get(layer)
        remember(undo, layer)
        affine: Any = None if norm is None else affine_of(norm)
        deploy_(layer, affine)
        if norm is not None:
            remember(undo, norm)
            remove_norm_(norm)


@torch.no_grad()
def fuse_(model: nn.Module, example_input: Any = None) -> FuseReport:
    """Puts ``model`` into its deployed form, in place: the same function, faster, for inference only.

    Every IC unit becomes a convolution followed by PReLU (or LeakyReLU) plus a rank-one term; every batch norm that
    reads exactly one layer's output, alone, is folded into that layer, whether IC or plain. Anything else stays.

    Args:
        model: in eval mode. Save it before: a deployed model can't be trained, and is shipped by exporting it.
        example_input: a batch, a tuple of the model's arguments, or a dict of those by keyword; one pass with it
            shows who reads what. By default noise of the input size that the model names (timm's do).

    Returns:
        What was done and left, with the measured error. Fusing twice changes nothing more.

    Raises:
        ValueError: the model is in training mode, no example input is known or usable, or the outputs for it are not
            finite.
        TypeError: the model is wrapped (DDP, FSDP), compiled, scripted or traced.
        RuntimeError: the outputs differ by more than 1e-3 of the largest (64 roundings in half precision). A network
            that amplifies rounding beyond that can be fused as ``model.double()``. Whatever is raised, the model is as
            it was.

    Example:
        >>> from icnets import ICConv2d
        >>> model = nn.Sequential(ICConv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU()).eval()
        >>> report = fuse_(model, torch.randn(1, 3, 8, 8))
        >>> report.fused, report.folded
        (['0'], {'1': '0'})
    """
    _refuse(model)
    before = _outputs_before(model, _example(model, example_input))
    plan = _plan(model, before[0][0])
    allowed = max([1e-3, *(64 * torch.finfo(p.dtype).eps for p in model.parameters() if p.is_floating_point())])
    with ExitStack() as undo:
        _apply(plan, undo)
        errors = [_difference(outputs, _outputs(model, call)) for call, outputs in before]
        largest, relative = map(max, zip(*errors, strict=True))
        if relative > allowed:
            what = f"the deployed model's outputs differ by {relative:.3g} of the largest, above {allowed:.3g}"
            why = "is its output random, does it depend on values, does it amplify rounding (then use a wider dtype)?"
            raise RuntimeError(f"{what}; it was left as it was: {why}")
        undo.pop_all()
    folded = {plan.names[norm]: plan.names[layer] for layer, norm in plan.folds.items()}
    return FuseReport([plan.names[u] for u in plan.units], folded, plan.skipped, largest, relative)
