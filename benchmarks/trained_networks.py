"""What becomes of trained networks: writes benchmarks/results/trained.jsonl, a line each, which docs/convert.md quotes.

Needs the packages of requirements-trained.txt. Calibrated on every second input; all figures are of the other half.

python benchmarks/trained_networks.py                  # every network; about ten minutes on two cores
python benchmarks/trained_networks.py lite0 crepe      # measure these anew, keep the other lines
python benchmarks/trained_networks.py --table          # only rewrite the table in docs/convert.md
"""

import argparse
import copy
import importlib
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from icnets import ICConfig, convert_, fuse_, ic_parameters
from icnets.unit.layers import IC_LAYERS

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "trained.jsonl"
PAGE = ROOT / "docs" / "convert.md"
START = "<!-- trained table: written by benchmarks/trained_networks.py from benchmarks/results/trained.jsonl -->"
END = "<!-- end of trained table -->"

sys.path.insert(0, str(ROOT / "tests"))
networks = importlib.import_module("trained.networks")


def units(model: nn.Module) -> list[nn.Module]:
    """The IC units of a network."""
    return [m for m in model.modules() if isinstance(m, IC_LAYERS)]


@torch.no_grad()
def change(model: nn.Module, basic: nn.Module, x: Tensor) -> tuple[float, float]:
    """Relative L2 change of the outputs, and the share of inputs whose largest output stays the largest."""
    a, b = networks.values(model(x)), networks.values(basic(x))
    return float((a - b).norm() / b.norm()), float((a.argmax(1) == b.argmax(1)).float().mean())


def warm_start(basic: nn.Module, config: ICConfig, x: Tensor) -> dict[str, Any]:
    """What one warm start does to the function."""
    model = copy.deepcopy(basic)
    found = convert_(model, config, calibration_data=[x[::2]]).calibration
    moved, agreement = change(model, basic, x[1::2])
    networks.values(model(x[::2])).square().sum().backward()
    learn = [any(p.grad is not None and bool(p.grad.any()) for _, p in ic_parameters(u)) for u in units(model)]
    row = {"change": moved, "agreement": agreement, "learn": sum(learn) / len(learn)}
    return row if found is None else row | {"gain": found.gain, "rate": found.rate, "held_back": found.change}


def awake(basic: nn.Module) -> nn.Module:
    """Converted by "gain", every new parameter moved a little, as a training would."""
    model = copy.deepcopy(basic)
    convert_(model, ICConfig(layers="all", warm_start="gain"))
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for _, p in ic_parameters(model):
            p.add_(0.02 * torch.randn(p.shape, generator=generator))
    return model.eval()


def int8(model: nn.Module, x: Tensor) -> float | str | None:
    """Share of inputs that ONNX Runtime's int8 gives the same largest output, or why there is none."""
    from icnets.export import export

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "net.onnx")
        data: dict[str, Any] = {"calibration_data": [x[::2]], "evaluation_data": [x], "max_loss": 1.0}
        try:
            report = export(model, path, "onnx", x[:1], int8=True, **data)
        except ValueError as error:
            return f"refused: {error}"
    return None if report.agreement is None else report.agreement.same_class


def measure(name: str) -> dict[str, Any]:
    """The line of one network."""
    torch.manual_seed(0)
    basic, x = networks.ALL[name]()
    row: dict[str, Any] = {"network": name, "units": len(units(awake(basic))), "inputs": list(x.shape)}
    row["gain"] = warm_start(basic, ICConfig(layers="all", warm_start="gain"), x)
    row["calibrate"] = warm_start(basic, ICConfig(layers="all", warm_start="calibrate"), x)
    row["rate_alone"] = warm_start(basic, ICConfig(layers="all", warm_start="calibrate", max_change=None), x)
    model = awake(basic)
    fused = copy.deepcopy(model)
    fuse_(fused, example_input=x[:2])
    row["fuse"] = {"error": change(fused, model, x[1::2])[0], "left": len(units(fused))}
    if name in ("lite0", "foreign", "mobilenet", "crepe"):
        calibrated = copy.deepcopy(basic)
        convert_(calibrated, ICConfig(layers="all", warm_start="calibrate"), calibration_data=[x[::2]])
        row["int8"] = {"basic": int8(basic, x), "ic": int8(calibrated.eval(), x)}
    return row | {"torch": torch.__version__}


def read() -> dict[str, dict[str, Any]]:
    """The lines by network."""
    lines = RESULTS.read_text(encoding="utf-8").splitlines() if RESULTS.exists() else []
    return {row["network"]: row for row in map(json.loads, lines)}


def table(rows: dict[str, dict[str, Any]]) -> str:
    """The lines as a Markdown table."""
    lines = [
        "| network | units | gain | calibrate | by its rate alone | units that learn | int8 agreement, basic → IC |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for row in rows.values():
        starts = (row[k] for k in ("gain", "calibrate", "rate_alone"))
        cells = [f"{s['change']:.2g} / {s['agreement']:.0%}" for s in starts]
        quantised = " → ".join(f"{v:.0%}" if isinstance(v, float) else "refused" for v in row.get("int8", {}).values())
        cells += [f"{row['calibrate']['learn']:.0%}", quantised]
        lines.append(f"| {row['network']} | {row['units']} | {' | '.join(cells)} |")
    return "\n".join(lines)


def updated(page: str) -> str:
    """docs/convert.md with its table made of the lines."""
    from update_docs import between

    return between(page, START, END, table(read()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="networks; all by default")
    parser.add_argument("--table", action="store_true", help="only rewrite the table")
    args = parser.parse_args()
    rows = read()
    for name in [] if args.table else args.names or list(networks.ALL):
        rows[name] = measure(name)
        print(json.dumps(rows[name]), flush=True)
        ordered = [rows[n] for n in networks.ALL if n in rows]
        RESULTS.write_text("".join(json.dumps(row) + "\n" for row in ordered), encoding="utf-8")
    PAGE.write_text(updated(PAGE.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
