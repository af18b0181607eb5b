"""From a CNN to an IC network and back, in place.

``convert_`` changes the class of the convolutions it finds and gives each the parameters of a collision. No module is
replaced: names, Parameters, shared modules, hooks, device, dtype, memory format and mode stay what they were.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from icnets.convert.config import CHOICES, ICConfig
from icnets.convert.optimizers import checked, extend_
from icnets.convert.slowdown import Slowdown, beyond, within
from icnets.convert.state_dicts import mismatch, refuse_without_values, shapes, unloadable, whole_tensor
from icnets.convert.structure import vector_keys
from icnets.convert.warm_start import Calibration, calibrated
from icnets.deploy.fuse import own_input_size
from icnets.support.hooks import is_own_forward
from icnets.support.plain import deepcopy
from icnets.support.text import by_reason, few
from icnets.support.undo import remember_all
from icnets.support.wrapped import refuse_wrapped
from icnets.unit import subclasses
from icnets.unit.guards import Colliding, guard_, is_adapter, unguard_
from icnets.unit.layers import IC_LAYERS, unit_of
from icnets.unit.readers import declared

FilterFn = Callable[[nn.Module, str], bool]

_FEW_INPUTS = 2  # of a filter, whose s takes as long as the filter


@dataclass(frozen=True)
class ConversionReport:
    """What ``convert_`` did: ``converted`` names, ``skipped`` names with the reason, parameter counts, the config.

    ``untrained`` has those among the converted whose w', b1 and gain nothing will train as it is, with the reason.
    ``calibration`` says what "calibrate" chose and how much the network's output changed; else it is None.
    ``slowdown`` is what was measured for a ``max_slowdown``, whose choice is ``config.only``; else it is None.
    """

    converted: list[str]
    skipped: dict[str, str]
    parameters_before: int
    parameters_after: int
    config: ICConfig
    untrained: dict[str, str] = field(default_factory=dict)
    calibration: Calibration | None = None
    slowdown: Slowdown | None = None

    def __str__(self) -> str:
        before, after = self.parameters_before, self.parameters_after
        share = f"(+{after - before:,}, +{(after - before) / max(before, 1):.2%})"
        lines = [f"converted {len(self.converted)} layers to IC units, skipped {len(self.skipped)}"]
        lines += [f"parameters {before:,} -> {after:,} {share}"]
        lines += [str(found) for found in (self.slowdown, self.calibration) if found is not None]
        lines += by_reason("skipped", self.skipped) + by_reason("new parameters not trained", self.untrained)
        return "\n".join(lines)


def _count(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters() if not isinstance(p, nn.parameter.UninitializedParameter))


def obstacle(module: nn.Module) -> str | None:
    """Says why the module can't become an IC unit, or None; '' for what is no convolution or linear layer."""
    kind = type(module)
    if isinstance(module, IC_LAYERS):
        return "already an IC unit"
    if isinstance(module, Colliding):
        return f"{kind.__name__} has behaviour of its own: it is a deployed IC unit"
    if isinstance(module, nn.modules.lazy.LazyModuleMixin):
        return "lazy: run one batch through the model first"
    if "quantized" in kind.__module__ and ("Conv" in kind.__name__ or "Linear" in kind.__name__):
        return "quantised"
    unit = unit_of(module)
    if unit is None:
        convolves = "weight" in module._parameters and {"kernel_size", "in_channels"} <= module.__dict__.keys()
        return f"{kind.__name__} is no convolution of torch's" if convolves else ""
    weight = getattr(module, "weight", None)
    if not isinstance(weight, Tensor) or type(weight) not in (Tensor, nn.Parameter) or type(weight.data) is not Tensor:
        return f"its weight is a {type(weight).__name__}, not a plain Parameter"
    if weight.is_complex():
        return "complex weight"
    if not weight.is_floating_point() or weight.element_size() < 2:
        return f"its weight is {weight.dtype}, in which nothing can be learned"
    if "forward" in module.__dict__ and not is_own_forward(module):
        return "its forward was replaced on the instance"
    return subclasses.obstacle(module, unit.basic_type, unit)


def choose(
    model: nn.Module, config: ICConfig, filter_fn: FilterFn | None
) -> tuple[dict[str, nn.Module], dict[str, str]]:
    """Splits the convolutions (and linear layers, if wanted) into those to convert and those left, with reasons."""
    chosen: dict[str, nn.Module] = {}
    skipped: dict[str, str] = {}
    adapted = {m for adapter in model.modules() if is_adapter(adapter) for m in adapter.modules()}
    stem: nn.Module | None = None
    for name, module in model.named_modules():
        reason, is_linear = obstacle(module), isinstance(module, nn.Linear)
        if reason == "" or (is_linear and not config.linear):
            continue
        stem = module if stem is None and not is_linear else stem
        kernel: Any = getattr(module, "kernel_size", ())
        if config.only is not None:
            beyond_it = "config.only doesn't name it" if config.max_slowdown is None else beyond(config)
            reason = reason or (None if name in config.only else beyond_it)
        elif config.layers == "kxk" and kernel and all(k == 1 for k in kernel):
            reason = reason or "its kernel is 1 (layers='kxk')"
        elif config.layers == "auto" and getattr(module, "groups", 1) > 1 and _inputs(module) <= _FEW_INPUTS:
            reason = reason or f"s would cost as much as its {_inputs(module)} inputs a group (layers='auto')"
        elif config.layers == "no-stem" and module is stem:
            reason = reason or "it is the stem (layers='no-stem')"
        reason = "it belongs to an adapter" if module in adapted else reason
        if reason is None and filter_fn is not None and not filter_fn(module, name):
            reason = "filter_fn said no"
        if reason is None:
            chosen[name] = module
        else:
            skipped[name] = reason
    if unknown := sorted({*(config.only or ())} - {*chosen, *skipped}):
        raise ValueError(f"config.only names {few(unknown)}, which the network has no layer of to convert")
    readers = declared(model)
    for name in [n for n, m in chosen.items() if m in readers]:
        skipped[name] = f"{readers[chosen.pop(name)]} reads its weight without calling it"
    return chosen, skipped


def _inputs(module: Any) -> int:
    return int(module.in_channels // module.groups)


def _refuse_arguments(model: Any, config: Any, calibration_data: Any) -> None:
    if not isinstance(config, ICConfig):
        raise TypeError(f"config is a {type(config).__name__}; pass an ICConfig, of a dict ICConfig(**config)")
    if config.warm_start == "calibrate" and calibration_data is None:
        raise ValueError('warm_start is "calibrate" and calibration_data is None; pass a few batches of inputs')
    if config.warm_start == "calibrate" and any(p.is_meta for p in model.parameters()):
        raise ValueError('warm_start is "calibrate" and the model is on meta, without values; load its weights first')
    if isinstance(calibration_data, Tensor):
        raise TypeError("calibration_data is a Tensor; it must be a list of batches: calibration_data=[batch]")


def convert_(
    model: nn.Module,
    config: ICConfig | None = None,
    filter_fn: FilterFn | None = None,
    *,
    optimizers: Iterable[torch.optim.Optimizer] | None = None,
    calibration_data: Iterable[Any] | None = None,
    example_input: Tensor | None = None,
) -> ConversionReport:
    """Turns the convolutions of ``model`` into IC units, in place (paper: arXiv 2102.03495).

    Args:
        model: any ``nn.Module``: from timm, torchvision or your own; a single convolution too.
        config: what to convert and how it starts; default :class:`ICConfig`.
        filter_fn: ``filter_fn(module, name) -> bool`` chooses among what the config would convert. A layer whose weight
            a forward pass reads without calling the layer (``F.conv2d(x, self.conv.weight)``) is skipped by itself,
            where the source of that shows it.
        optimizers: optimizers built earlier over this model: each that trains a layer's weight gets the layer's new
            parameters, with the options of the weight's group but without weight decay, and so do the schedules of
            torch.optim that run on it. By default none may exist; pass ``()`` if those that do are not used.
        calibration_data: for ``warm_start="calibrate"``: a few batches, each an input tensor ``(N, ...)``, or a tuple
            or list that begins with one. Half of them only measure the change; of a single batch, half of its samples.
        example_input: for ``max_slowdown``: the batch ``(N, C, *L)`` whose time is measured, on the model's device. By
            default one image of noise, of the input size that the model names (timm's do).

    Returns:
        What was converted, what was not and why, and the parameter counts. Converting twice changes nothing.

    Raises:
        TypeError: ``model`` is wrapped (DDP, FSDP), compiled, scripted or traced, or an argument is of another type.
        RuntimeError: an optimizer that trains this model exists and wasn't passed; or it, or a schedule that runs on
            it, can't take the new parameters.
        ValueError: "calibrate" without data, with data that it can't use, or where it can't keep ``max_change``;
            ``max_slowdown`` without an example, with one that the model can't take, or less than any unit costs.

    Whatever is raised, the model, the optimizers and their schedules are then as they were.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 1))
        >>> print(convert_(model, ICConfig(warm_start="gain")))
        converted 2 layers to IC units, skipped 0
        parameters 296 -> 344 (+48, +16.22%)
    """
    config = ICConfig() if config is None else config
    refuse_wrapped(model)
    _refuse_arguments(model, config, calibration_data)
    given = checked(optimizers)
    chosen, skipped = choose(model, config, filter_fn)
    slowdown = None
    if config.measures and any(isinstance(m, IC_LAYERS) for m in model.modules()):
        raise ValueError("the model has IC units, and max_slowdown is measured beside the basic one; revert_ it first")
    if config.measures and chosen:
        presets = [choose(model, replace(config, layers=name), filter_fn)[0] for name in CHOICES["layers"]]
        names, slowdown = within(partial(trial, model, config), presets, chosen, config, _example(model, example_input))
        config = replace(config, only=names)
        chosen, skipped = choose(model, config, filter_fn)
    before = _count(model)
    starts: dict[str, dict[str, Tensor]] = {}
    calibration = None
    if config.warm_start == "calibrate" and calibration_data is not None and chosen:
        limits = (config.calibration_rate, config.inner_bias, config.max_change)
        starts, calibration = calibrated(model, chosen, calibration_data, *limits)
    with ExitStack() as undo:
        remember_all(undo, model)
        for name, module in chosen.items():
            _install(module, config, starts.get(name, {}), calibration)
        guard_(model)
        untrained = extend_(model, chosen, given, undo)
        undo.pop_all()
    return ConversionReport(list(chosen), skipped, before, _count(model), config, untrained, calibration, slowdown)


def trial(model: nn.Module, config: ICConfig, names: Sequence[str]) -> nn.Module:
    """A copy of ``model`` in which the layers of these names are IC units."""
    copy: nn.Module = deepcopy(model)
    if names:
        convert_(copy, replace(config.without_data(), only=tuple(names)), optimizers=())
    return copy


def _example(model: nn.Module, given: Any) -> Tensor:
    if given is None:
        if (size := own_input_size(model)) is None:
            raise ValueError(
                "max_slowdown is measured on a batch, and the model names no input size; give example_input"
            )
        like = next(model.parameters())
        return torch.randn(1, *size, generator=torch.Generator().manual_seed(0)).to(like.device, like.dtype)
    if not isinstance(given, Tensor):
        raise TypeError(f"example_input is a {type(given).__name__}; it must be a batch, a tensor (N, C, *L)")
    return given


def _install(module: nn.Module, config: ICConfig, start: Mapping[str, Tensor], calibration: Calibration | None) -> None:
    target: Any = unit_of(module)
    options = {name: getattr(config, name) for name in ("inner_bias", "gain", "collision_weight", "scale")}
    layer = target.take_over_(module, **options)
    if "collision_weight" in start:
        layer.collision_weight = start["collision_weight"]
    _, inner_bias, gain = layer.vectors()
    with torch.no_grad():
        if "inner_bias" in start and inner_bias is not None:
            inner_bias.copy_(start["inner_bias"])
        if calibration is not None and gain is not None:
            gain.fill_(calibration.gain)


def revert_(model: nn.Module) -> list[str]:
    """Gives the basic network back, in place: every IC unit is torch's layer again, with the same weight and bias.

    What the collisions learned is lost, so the function changes unless they were still silent (gain 0).
    Returns the names of the layers that were reverted. Parametrisations and pruning of weight and bias stay.

    Raises:
        TypeError: ``model`` is no module, or a wrapped one, as for ``convert_``; nothing is changed then.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU())
        >>> report = convert_(model)
        >>> revert_(model)
        ['0']
    """
    refuse_wrapped(model, "revert")
    units = {name: module for name, module in model.named_modules() if isinstance(module, IC_LAYERS)}
    with ExitStack() as undo:
        remember_all(undo, model)
        for layer in units.values():
            layer.give_back_()
        unguard_(model)
        undo.pop_all()
    return list(units)


def load_basic_state_dict(model: nn.Module, state_dict: Mapping[str, Tensor]) -> None:
    """Loads the basic network's state dict into an IC network; its new parameters keep their values.

    Raises:
        TypeError: ``state_dict`` isn't a mapping of names to tensors; or ``model`` is wrapped (DDP, FSDP), compiled,
            scripted or traced, so that no key fits.
        ValueError: anything but the new parameters is missing, or a key, shape or type doesn't fit.

    Whatever is raised, ``model`` is then as it was.

    Example:
        >>> basic, model = nn.Conv2d(3, 8, 3), nn.Conv2d(3, 8, 3)
        >>> report = convert_(model, ICConfig(warm_start="gain"))
        >>> load_basic_state_dict(model, basic.state_dict())
        >>> x = torch.randn(1, 3, 8, 8)
        >>> torch.equal(model(x), basic(x))
        True
    """
    if not isinstance(state_dict, Mapping):
        raise TypeError(f"state_dict is a {type(state_dict).__name__}; pass what torch.load or state_dict() returns")
    own, new = model.state_dict(), vector_keys(model)
    expected = {k: shape for k, shape in shapes(own).items() if k not in new or k in state_dict}
    if (problem := mismatch(expected, shapes(state_dict))) is not None:
        refuse_wrapped(model, "load into")  # a wrapper would explain it
        raise ValueError(f"the state dict is not the basic network's: {problem}")
    refuse_without_values(model)
    for key, value in state_dict.items():
        if isinstance(own[key], Tensor):
            whole_tensor(key, value)
    if (problem := unloadable(model, state_dict)) is not None:
        raise ValueError(f"the state dict is not the basic network's: {problem}")
    whole = model.state_dict()  # with the versions of its modules: some refuse a state dict that has none
    whole.update(state_dict)
    with ExitStack() as undo:
        remember_all(undo, model, values=True)
        model.load_state_dict(whole)
        undo.pop_all()
