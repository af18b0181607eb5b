"""From a CNN to an IC network and back, in place.

``convert_`` changes the class of the convolutions it finds and gives each the parameters of a collision. No module is
replaced: names, Parameters, shared modules, hooks, device, dtype, memory format and mode stay what they were.
"""

import gc
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from icnets import subclasses
from icnets.guards import guard_, unguard_
from icnets.layers import IC_LAYERS, ICLayer, ic_parameters, unit_of
from icnets.messages import few
from icnets.readers import declared, observed
from icnets.state_dicts import mismatch, shapes, with_versions
from icnets.subclasses import own_behaviour
from icnets.warm_start import calibrated

__all__ = ["ConversionReport", "ICConfig", "convert_", "load_basic_state_dict", "revert_"]

FilterFn = Callable[[nn.Module, str], bool]

_CHOICES = {
    "layers": ("all", "kxk", "no-stem"),
    "scale": ("sqrt", "sum", "mean"),
    "warm_start": ("none", "gain", "calibrate"),
}


@dataclass(frozen=True)
class ICConfig:
    """How a network is converted. Plain values only, so that it can be saved with a checkpoint.

    Args:
        layers: "all" convolutions (the paper's), only those with a kernel larger than 1 ("kxk"), or all but the first
            convolution ("no-stem"). Ours, as is every choice below unless it says otherwise.
        linear: convert ``nn.Linear`` as well (the paper converts convolutions).
        inner_bias: learn b1, the bias inside the rectifier (paper: arXiv 2011.11271).
        collision_weight: initial w' in the paper's units.
        scale: units in which w' is learned; see :class:`icnets.ICConv2d`.
        warm_start: how a trained network keeps its function. "none" starts at ``collision_weight``. "gain" puts a
            learned gain, from 0, on the branch: the function is exactly the same. "calibrate" stays inside the
            paper's form: w' (b1 where inputs can be negative) is set so that the branch fires in
            ``calibration_rate`` of all places: nearly the same function.
        calibration_rate: fraction of places, between 0 and 1, in which the branch fires after "calibrate".
        version: of this record's format.

    Raises:
        ValueError: for a value out of its range, naming the range.
    """

    layers: str = "all"
    linear: bool = False
    inner_bias: bool = True
    collision_weight: float = 0.0
    scale: str = "sqrt"
    warm_start: str = "none"
    calibration_rate: float = 0.01
    version: int = 1

    def __post_init__(self) -> None:
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} is {getattr(self, name)!r}; it must be one of {', '.join(choices)}")
        if not 0 < self.calibration_rate < 1:
            raise ValueError(f"calibration_rate is {self.calibration_rate}; it must lie between 0 and 1")
        if self.version != 1:
            raise ValueError(f"the configuration has version {self.version}; this icnets reads version 1")

    def to_dict(self) -> dict[str, Any]:
        """The fields as a dictionary of plain values."""
        return asdict(self)


def by_reason(word: str, skipped: Mapping[str, str]) -> list[str]:
    """A line for each reason in ``skipped`` (name: reason), with the first names that it holds for."""
    reasons: dict[str, list[str]] = {}
    for name, reason in skipped.items():
        reasons.setdefault(reason, []).append(name)
    return [f"  {word}, {reason}: {few(names)}" for reason, names in reasons.items()]


@dataclass(frozen=True)
class ConversionReport:
    """What ``convert_`` did: ``converted`` names, ``skipped`` names with the reason, parameter counts, the config."""

    converted: list[str]
    skipped: dict[str, str]
    parameters_before: int
    parameters_after: int
    config: ICConfig

    def __str__(self) -> str:
        added = self.parameters_after - self.parameters_before
        share = added / max(self.parameters_before, 1)
        lines = [
            f"converted {len(self.converted)} layers to IC units, skipped {len(self.skipped)}",
            f"parameters {self.parameters_before:,} -> {self.parameters_after:,} (+{added:,}, +{share:.2%})",
        ]
        lines += by_reason("skipped", self.skipped)
        return "\n".join(lines)


def _count(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters() if not isinstance(p, nn.parameter.UninitializedParameter))


def refuse_wrapped(model: nn.Module, verb: str = "convert") -> None:
    """Raises TypeError: a wrapper has already copied, hooked or compiled what we'd change."""
    wrappers: tuple[type[nn.Module], ...] = (nn.parallel.DistributedDataParallel, nn.DataParallel)
    for name, module in model.named_modules():
        where = f"{type(module).__name__}{f' at {name!r}' if name else ''}"
        if isinstance(module, wrappers) or type(module).__name__ in ("FullyShardedDataParallel", "FSDPModule"):
            raise TypeError(f"the model is wrapped by {where}; {verb} its .module first, then wrap it")
        if hasattr(module, "_get_fsdp_state"):
            raise TypeError(f"the model is sharded by fully_shard ({where}); {verb} it first, then shard it")
        if hasattr(module, "_orig_mod") or module.__dict__.get("_compiled_call_impl") is not None:
            raise TypeError(f"the model is compiled ({where}); {verb} it first, then compile it")
        if isinstance(module, torch.jit.ScriptModule | torch.fx.GraphModule):
            raise TypeError(f"the model holds a traced graph ({where}); {verb} the nn.Module that it was made from")


def obstacle(module: nn.Module) -> str | None:
    """Why the module can't become an IC unit, or None; for what is no convolution or linear layer, ''."""
    kind = type(module)
    if isinstance(module, IC_LAYERS):
        return "already an IC unit"
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
    if "forward" in module.__dict__:
        return "its forward was replaced on the instance"
    return subclasses.obstacle(module, unit.basic_type, unit)


def is_plain(module: nn.Module) -> bool:
    """Whether the module is torch's own convolution (not transposed) or linear layer, in class and in behaviour."""
    unit = unit_of(module)
    if unit is None or isinstance(module, (*IC_LAYERS, nn.modules.conv._ConvTransposeNd)) or obstacle(module):
        return False
    return type(module._parameters.get("weight")) is nn.Parameter and not own_behaviour(module, unit.basic_type)


def _choose(
    model: nn.Module, config: ICConfig, filter_fn: FilterFn | None, example_input: Any
) -> tuple[dict[str, nn.Module], dict[str, str]]:
    """Splits the convolutions (and linear layers, if wanted) into those to convert and those left, with reasons."""
    chosen: dict[str, nn.Module] = {}
    skipped: dict[str, str] = {}
    stem_seen = False
    for name, module in model.named_modules():
        reason = obstacle(module)
        if reason == "" or (isinstance(module, nn.Linear) and not config.linear):
            continue
        is_stem = not stem_seen and not isinstance(module, nn.Linear)
        stem_seen = stem_seen or is_stem
        kernel: Any = getattr(module, "kernel_size", ())
        if reason is not None:
            skipped[name] = reason
        elif config.layers == "kxk" and kernel and all(k == 1 for k in kernel):
            skipped[name] = "its kernel is 1 (layers='kxk')"
        elif config.layers == "no-stem" and is_stem:
            skipped[name] = "it is the stem (layers='no-stem')"
        elif filter_fn is not None and not filter_fn(module, name):
            skipped[name] = "filter_fn said no"
        else:
            chosen[name] = module
    readers = declared(model)
    if example_input is not None and chosen:
        args = tuple(example_input) if isinstance(example_input, tuple | list) else (example_input,)
        readers = observed(model, chosen, args)
    for name in [n for n, m in chosen.items() if m in readers]:
        skipped[name] = f"{readers[chosen.pop(name)]} reads its weight without calling it"
    return chosen, skipped


def _built_optimizers(model: nn.Module) -> list[torch.optim.Optimizer]:
    ours = {id(p) for p in model.parameters()}
    # Only the type is looked at: isinstance would wake lazy proxies among the collector's objects.
    found = [o for o in gc.get_objects() if issubclass(type(o), torch.optim.Optimizer)]
    return [o for o in found if any(id(p) in ours for g in o.param_groups for p in g["params"])]


def _extend(optimizers: Iterable[torch.optim.Optimizer], layers: Iterable[ICLayer]) -> None:
    """Gives each optimizer that trains a layer's weight its new parameters: same options, no weight decay."""
    layers = list(layers)
    for optimizer in optimizers:
        for group in list(optimizer.param_groups):
            members = {id(p) for p in group["params"]}
            trained = [layer for layer in layers if any(id(p) in members for p in layer.parameters())]
            new = [p for layer in trained for _, p in ic_parameters(layer)]
            if new:
                options = {k: v for k, v in group.items() if k not in ("params", "param_names", "weight_decay")}
                names = {"param_names": [f"ic.{i}" for i in range(len(new))]} if "param_names" in group else {}
                decay = {"weight_decay": 0.0} if "weight_decay" in group else {}
                optimizer.add_param_group({"params": new, **options, **names, **decay})


def convert_(
    model: nn.Module,
    config: ICConfig | None = None,
    filter_fn: FilterFn | None = None,
    *,
    optimizers: Iterable[torch.optim.Optimizer] | None = None,
    calibration_data: Iterable[Any] | None = None,
    example_input: Any = None,
) -> ConversionReport:
    """Turns the convolutions of ``model`` into IC units, in place (paper: arXiv 2102.03495; the surgery is ours).

    Args:
        model: any ``nn.Module``: from timm, torchvision or your own; a single convolution too.
        config: what to convert and how it starts; default :class:`ICConfig`.
        filter_fn: ``filter_fn(module, name) -> bool`` chooses among what the config would convert.
        optimizers: optimizers built earlier over this model: they get the new parameters, without weight decay.
            By default none may exist; pass ``()`` if those that do are not used any more.
        calibration_data: for ``warm_start="calibrate"``: a few batches, each an input tensor, or a tuple or list that
            begins with one.
        example_input: a batch, or a tuple of the model's arguments. A layer whose weight something reads without
            calling the layer (``F.conv2d(x, self.conv.weight)``) is skipped. The source of the forward passes shows
            most such places; with an example the model is run once, which shows them all.

    Returns:
        What was converted, what was not and why, and the parameter counts. Converting twice changes nothing.

    Raises:
        TypeError: ``model`` is wrapped (DDP, FSDP), compiled, scripted or traced.
        RuntimeError: an optimizer that trains this model exists and wasn't passed.
        ValueError: "calibrate" without data, or data that calibration can't use.
    """
    config = config or ICConfig()
    if not isinstance(model, nn.Module):
        raise TypeError(f"model is a {type(model).__name__}; convert_ takes an nn.Module")
    refuse_wrapped(model)
    if config.warm_start == "calibrate" and calibration_data is None:
        raise ValueError('warm_start is "calibrate" and calibration_data is None; pass a few batches of inputs')
    chosen, skipped = _choose(model, config, filter_fn, example_input)
    if chosen and optimizers is None and _built_optimizers(model):
        raise RuntimeError(
            "an optimizer that trains this model was built before the conversion and would miss the new parameters; "
            "build it after convert_, or pass it as optimizers=[...], or optimizers=() if it is not used any more"
        )
    before = _count(model)
    starts: dict[str, dict[str, Tensor]] = {}
    if config.warm_start == "calibrate" and calibration_data is not None and chosen:
        starts = calibrated(model, chosen, calibration_data, config.calibration_rate, config.inner_bias)
    _install(chosen, config, starts)
    guard_(model)
    _extend(optimizers or (), [m for m in chosen.values() if isinstance(m, IC_LAYERS)])
    return ConversionReport(list(chosen), skipped, before, _count(model), config)


def _install(chosen: Mapping[str, nn.Module], config: ICConfig, starts: Mapping[str, Mapping[str, Tensor]]) -> None:
    gain = 0.0 if config.warm_start == "gain" else None
    for name, module in chosen.items():
        target = unit_of(module)
        assert target is not None
        layer = target.take_over_(
            module,
            inner_bias=config.inner_bias,
            gain=gain,
            collision_weight=config.collision_weight,
            scale=config.scale,
        )
        start = starts.get(name, {})
        if "collision_weight" in start:
            layer.collision_weight = start["collision_weight"]
        inner_bias = layer.vectors()[1]
        if "inner_bias" in start and inner_bias is not None:
            with torch.no_grad():
                inner_bias.copy_(start["inner_bias"])


def revert_(model: nn.Module) -> list[str]:
    """Gives the basic network back, in place: every IC unit is torch's layer again, with the same weight and bias.

    What the collisions learned is lost, so the function changes unless they were still silent (gain 0).
    Returns the names of the layers that were reverted. Raises TypeError for a wrapped model, as ``convert_`` does.
    """
    refuse_wrapped(model, "revert")
    names = [name for name, module in model.named_modules() if isinstance(module, IC_LAYERS)]
    for name in names:
        layer = model.get_submodule(name)
        assert isinstance(layer, IC_LAYERS)
        layer.give_back_()
    unguard_(model)
    return names


def load_basic_state_dict(model: nn.Module, state_dict: Mapping[str, Tensor]) -> None:
    """Loads the basic network's state dict into an IC network; its new parameters keep their values.

    Raises:
        ValueError: anything but the new parameters is missing, or a key or shape doesn't fit; nothing is loaded then.
    """
    new = {name for name, _ in ic_parameters(model, remove_duplicate=False)}
    own = model.state_dict()
    expected = {k: shape for k, shape in shapes(own).items() if k not in new or k in state_dict}
    problem = mismatch(expected, shapes(state_dict))
    if problem is not None:
        raise ValueError(f"the state dict is not the basic network's: {problem}")
    model.load_state_dict(with_versions({**{k: own[k] for k in own.keys() & new}, **state_dict}, own))
