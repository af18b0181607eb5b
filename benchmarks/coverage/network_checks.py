"""What a converted network must do, whatever it is: one function for each check, each raising AssertionError."""

from __future__ import annotations

import copy
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._pytree import tree_leaves, tree_map

from architectures import Prepared
from icnets.checkpoint.safetensors_file import load, save
from icnets.convert.config import ICConfig
from icnets.convert.surgery import convert_, revert_
from icnets.deploy.batch_norm import is_norm
from icnets.deploy.fuse import FuseReport, fuse_, random_like
from icnets.support.text import first_line
from icnets.unit.layers import IC_LAYERS, ic_parameters

__all__ = ["CHECKS", "SAMPLED", "run_checks"]

_ROUNDING = 1e-15  # of a weight, in double precision
_TOLERANCE = 1e-3  # of the largest output; single precision adds up over a hundred layers


def _outputs(model: Callable[..., Any], args: tuple[Any, ...]) -> list[Tensor]:
    torch.manual_seed(1)
    with torch.no_grad():
        leaves = tree_leaves(model(*_fresh(args)))
    return [leaf.clone() for leaf in leaves if isinstance(leaf, Tensor) and leaf.is_floating_point()]


def _fresh(args: tuple[Any, ...]) -> tuple[Any, ...]:
    return copy.deepcopy(args)  # some work in place on what they get


def _difference(a: list[Tensor], b: list[Tensor]) -> float:
    """Largest difference, relative to the largest value of its tensor; infinite for other shapes."""
    if [t.shape for t in a] != [t.shape for t in b]:
        return float("inf")
    worst = 0.0
    for x, y in zip(a, b, strict=True):
        if x.numel():
            size = max(x.abs().max().item(), 1e-30)
            worst = max(worst, ((x - y).abs().nan_to_num(torch.inf).max() / size).item())
    return worst


def _assert_close(a: list[Tensor], b: list[Tensor], what: str) -> None:
    found = _difference(a, b)
    assert found <= _TOLERANCE, f"{what} differs by {found:.2g} of the largest output"


def _wake(model: nn.Module) -> None:
    """Random collisions, small enough for the network to stay in range, so that none is silent."""
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, p in ic_parameters(model):
            noise = torch.randn(p.shape, generator=generator, dtype=torch.float64).to(p)
            p.copy_(0.1 + 0.02 * noise if name.endswith("gain") else 0.05 * noise)


def _shake(model: nn.Module) -> None:
    """Random values for parameters that start at zero: they would hide what comes before them."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for p in model.parameters():
            if p.is_floating_point() and not p.any():
                p.copy_(0.1 * torch.randn(p.shape, generator=generator).to(p))


class Subject:
    """A network before and after conversion, and the outputs that the checks compare."""

    def __init__(self, prepared: Prepared) -> None:
        self.args, self.train_args = prepared.args, prepared.train_args
        self.basic = prepared.model
        _shake(self.basic)
        self.basic_state = copy.deepcopy(self.basic.state_dict())
        self.before = _outputs(self.basic, self.args)
        self.model = copy.deepcopy(self.basic)
        self.report = convert_(self.model, ICConfig(layers="all", warm_start="gain"), optimizers=())
        self.warm = _outputs(self.model, self.args)
        _wake(self.model)
        self.awake = _outputs(self.model, self.args)
        self.fused: FuseReport | None = None


def gain(subject: Subject) -> None:
    """The warm start keeps the function, and the collisions do change it once they are awake."""
    _assert_close(subject.before, subject.warm, "the warm start")
    assert all(t.isfinite().all() for t in subject.awake), "the outputs are not finite"
    if subject.report.converted:
        assert _difference(subject.before, subject.awake) > 0, "the collisions change nothing"


def backward(subject: Subject) -> None:
    """Whatever has a gradient in the basic network has a finite one, and so has every unit that takes part."""
    model = copy.deepcopy(subject.model).train()
    torch.manual_seed(1)
    leaves = [t for t in tree_leaves(model(*_fresh(subject.train_args))) if isinstance(t, Tensor) and t.requires_grad]
    if leaves:
        torch.stack([t.abs().square().mean() for t in leaves]).sum().backward()
    bad = [n for n, p in model.named_parameters() if p.grad is not None and not p.grad.isfinite().all()]
    assert not bad, f"the gradient of {bad[0]} is not finite"
    for name, unit in model.named_modules():
        if isinstance(unit, IC_LAYERS):
            own = set(unit.vector_names)
            weights = [p for n, p in unit.named_parameters() if n not in own and "bias" not in n]
            used = any(p.grad is not None for p in weights)
            idle = [n for n in sorted(own) if (p := unit._parameters[n]) is not None and p.grad is None]
            assert not (used and idle), f"{name} gives its weight a gradient, but not {idle[0]}"


def rebuild(subject: Subject) -> None:
    """A checkpoint rebuilds the network from the basic one."""
    twin = copy.deepcopy(subject.basic)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "network.safetensors"
        save(subject.model, path)
        twin = load(path, twin)
    assert _difference(subject.awake, _outputs(twin, subject.args)) == 0, "the network that was loaded differs"


def revert(subject: Subject) -> None:
    """``revert_`` gives the basic network back: classes, state dict and outputs."""
    twin = copy.deepcopy(subject.model)
    revert_(twin)
    state = twin.state_dict()
    assert state.keys() == subject.basic_state.keys(), "the state dict has other keys"
    kinds = [type(m) for m in twin.modules()]
    assert kinds == [type(m) for m in subject.basic.modules()], "the modules have other classes"
    assert _difference(subject.before, _outputs(twin, subject.args)) == 0, "the outputs differ"


def _noise(args: tuple[Any, ...]) -> tuple[Any, ...]:
    """Noise for each tensor among the arguments; boxes and labels of a detector, which lie deeper, must stay sound."""
    return tuple(random_like(a) if isinstance(a, torch.Tensor) else a for a in args)


def fuse(subject: Subject) -> None:
    """``fuse_`` keeps the outputs, with batch norms that aren't the identity; it compares them itself.

    Some networks, untrained as they are, amplify rounding a billionfold. Those must be exact in double precision, with
    the statistics of batch norms as of their input, and collisions so small that rounding stays small.
    """
    try:
        model = copy.deepcopy(subject.model)
        _unsettle(model)
        subject.fused = fuse_(model, _fresh(subject.args))
    except RuntimeError as error:
        model = copy.deepcopy(subject.model).double()
        args, train_args = (_noise(tree_map(_doubled, _fresh(a))) for a in (subject.args, subject.train_args))
        for _ in range(3):
            _settle(model, train_args)
            if (rounding := _rounding(model, args)) < 1e-10:
                break
            with torch.no_grad():
                for _, p in ic_parameters(model):
                    p.mul_(0.1)
        else:
            raise AssertionError(
                f"nothing can be said: random changes of the weights by {_ROUNDING:g} change the outputs by "
                f"{rounding:.2g} of the largest, in double precision"
            ) from error
        subject.fused = fuse_(model, args)
        exact = subject.fused.max_relative_error
        assert exact < 1e-9, f"the deployed network differs by {exact:.2g} of the largest output in double precision"


def _unsettle(model: nn.Module) -> None:
    """Statistics, weights and biases of batch norms that aren't those of the identity."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for norm in filter(is_norm, model.modules()):
            for name in ("running_mean", "running_var", "weight", "bias"):
                if (vector := getattr(norm, name, None)) is not None:
                    noise = 0.2 * torch.randn(vector.shape, generator=generator).to(vector)
                    vector.copy_(vector * noise.exp() if name in ("running_var", "weight") else vector + noise)


def _settle(model: nn.Module, train_args: tuple[Any, ...]) -> None:
    """Takes the statistics of these arguments for those of batch norms."""
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            module.momentum = 1.0
    torch.manual_seed(1)
    with torch.no_grad():
        model.train()(*_fresh(train_args))
    model.eval()


def _rounding(model: nn.Module, args: tuple[Any, ...]) -> float:
    """How far a double network's outputs change, if its weights do as they would by rounding."""
    changed, generator = copy.deepcopy(model), torch.Generator().manual_seed(4)
    with torch.no_grad():
        for p in changed.parameters():
            p.mul_(1 + _ROUNDING * torch.randn(p.shape, generator=generator, dtype=p.dtype))
    return _difference(_outputs(model, args), _outputs(changed, args))


def _doubled(value: Any) -> Any:
    return value.double() if isinstance(value, Tensor) and value.is_floating_point() else value


def compiled(subject: Subject) -> None:
    """``torch.compile`` in one graph or several, without Inductor, gives the same outputs."""
    _assert_close(subject.awake, _or_basic(_compiled, subject), "the compiled network")


def onnx(subject: Subject) -> None:
    """The ONNX graph gives the same outputs in ONNX Runtime."""
    outputs = _or_basic(_in_onnxruntime, subject)
    _assert_close(subject.awake, [t for t in outputs if t.is_floating_point()], "the ONNX network")


def _or_basic(run: Callable[[nn.Module, tuple[Any, ...]], list[Tensor]], subject: Subject) -> list[Tensor]:
    """The outputs of the converted network; where it fails, whether the basic one does so too."""
    try:
        return run(subject.model, subject.args)
    except Exception as error:
        try:
            run(subject.basic, subject.args)
        except Exception as own:
            cause: BaseException = own
            while cause.__cause__ is not None:  # exporters wrap what went wrong in advice
                cause = cause.__cause__
            raise AssertionError(f"the basic network fails too: {type(cause).__name__}: {first_line(cause)}") from error
        raise


def _compiled(model: nn.Module, args: tuple[Any, ...]) -> list[Tensor]:
    torch._dynamo.reset()
    return _outputs(torch.compile(copy.deepcopy(model), backend="aot_eager"), args)


def _in_onnxruntime(model: nn.Module, args: tuple[Any, ...]) -> list[Tensor]:
    import onnxruntime

    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        path = Path(folder) / "network.onnx"
        torch.onnx.export(copy.deepcopy(model), _fresh(args), path, dynamo=True, verbose=False)
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        given = [t for t in tree_leaves(args) if isinstance(t, Tensor)]
        names = [i.name for i in session.get_inputs()]
        found = session.run(None, {n: t.numpy() for n, t in zip(names, given, strict=True)})
    return [torch.from_numpy(f) for f in found]


CHECKS: dict[str, Callable[[Subject], None]] = {
    "gain": gain,
    "backward": backward,
    "rebuild": rebuild,
    "revert": revert,
    "fuse": fuse,
}
SAMPLED: dict[str, Callable[[Subject], None]] = {"compile": compiled, "onnx": onnx}


def run_checks(prepared: Prepared, sampled: bool = False) -> dict[str, Any]:
    """Converts the network and runs every check, those on a sample only where asked.

    Returns:
        ``converted`` (a count), ``skipped`` (how many for each reason) and ``checks``: "ok" or what went wrong. Where
        ``fuse_`` ran, also ``fused`` and ``folded``, counts of units and batch norms, and ``left``: how many of
        either for each reason.
    """
    found: dict[str, str] = {}
    try:
        subject = Subject(prepared)
    except Exception as error:
        return {"converted": 0, "skipped": {}, "checks": {"convert": _reason(error)}}
    found["convert"] = "ok"
    for name, check in {**CHECKS, **(SAMPLED if sampled else {})}.items():
        try:
            check(subject)
            found[name] = "ok"
        except Exception as error:
            found[name] = _reason(error)
    counts: dict[str, Any] = {"converted": len(subject.report.converted), "skipped": _counts(subject.report.skipped)}
    if (fused := subject.fused) is not None:
        counts |= {"fused": len(fused.fused), "folded": len(fused.folded), "left": _counts(fused.skipped)}
    return {**counts, "checks": found}


def _counts(reasons: Mapping[str, str]) -> dict[str, int]:
    return dict(Counter(reasons.values()))


def _reason(error: Exception) -> str:
    return f"{'' if isinstance(error, AssertionError) else type(error).__name__ + ': '}{first_line(error)}"[:300]
