"""Writes docs/evidence.md and its figures from the lines in benchmarks/results/studies, and from nothing else.

python benchmarks/evidence/write_evidence.py            # or: make evidence
python benchmarks/evidence/write_evidence.py --check    # say whether the page is what the lines give
python benchmarks/evidence/write_evidence.py runs/digits  # take the digits' results from that run first
"""

import shutil
import sys
import tempfile
from pathlib import Path

import digits_table
from evidence_page import Question, page
from icnets.comparison import lines
from study_results import Cell, Results
from ten_lines import Claim, answer

ROOT = Path(__file__).resolve().parents[2]
LINES = ROOT / "benchmarks" / "results" / "studies"
PAGE = ROOT / "docs" / "evidence.md"
IMAGES = ROOT / "docs" / "images"
ORDER = ("mnist1d", "glyphs", "solar")  # whatever else there is comes behind

CONTROL = Cell("no collision term")
PEERS = ("basic, wider", "basic, deeper", "SE", "ECA", "CBAM", "LeakyReLU before BN", "PReLU before BN")
FORMS = ("IC", "IC, k×k only", "IC, without b1", "IC, sum", "IC, mean", "IC, sum, w' = 1")
FAST = ("scratch", "WLD", "WLD, constant", "start gain", "start calibrate")
SCHEDULES = (
    *("scratch", "WLD", "WLD, constant", "WLD, cosine", "WLD, off at 20 %", "WLD, off at 50 %"),
    *("WLD, surpass-stop", "WLD, weight 0.3", "WLD, weight 3", "WLD, T = 2"),
)
TEACHERS = ("WLD", "WLD, teacher at 50 %", "WLD, teacher at 25 %")
GAIN = ("start gain", "start gain, lr 0.02", "start gain + WLD", "start gain + WLD, lr 0.02")
WARM = (*GAIN, *(name.replace("gain", "calibrate") for name in GAIN))
WIDER = ("basic, wider ×1.1", "basic, wider ×1.25", "basic, wider ×1.5")
SUMS = ("one learned sum", "four learned sums", "own piece, rank 1", "own piece, rank 4")
FAMILY = ("basic", *WIDER, "no collision term", "PReLU before BN", "IC", *SUMS, "FReLU", "maxout of 2")
BUDGETS = (0.05, 0.1, 0.25, 0.5, 1.0)

QUESTIONS = (
    Question(
        "Does the unit help?",
        [Cell(name) for name in ("basic", "basic, wider", CONTROL.network, "IC")],
        against=(None, CONTROL, Cell("basic, wider")),
        subjects=[Cell("IC")],
        note="The same network with plain convolutions, with IC units, and with IC units without their collision term "
        "(w′ = 0, b₁ learned): what the last two share is a bend in every filter, and only IC has the sum s. `basic, "
        "wider` is as wide as its training step takes about IC's time.",
    ),
    Question(
        "What else would the same cost buy?",
        [Cell(name) for name in ("basic", *PEERS, CONTROL.network, "IC")],
        costs=True,
        figure="evidence-networks",
    ),
    Question(
        "Which form of the unit?",
        [Cell(name) for name in FORMS],
        against=(None, Cell("IC")),
        note="`IC` converts every convolution, with b₁, and learns w′ from 0 in units of 1/√n. `sum` is the paper's "
        "scale, `mean` that of s/n.",
    ),
    Question(
        "Does distillation from the basic network make training faster?",
        [Cell(network, method, budget=b) for network in ("basic", "IC") for method in FAST for b in BUDGETS],
        budgets=True,
        figure="evidence-budgets",
        note="Each budget is a training of its own, with its learning rate brought down to 0 at its end. The teacher "
        "is the basic network with its whole budget, whose own time is not counted; `basic` under the same "
        "distillation is the control that separates distillation from the unit.",
    ),
    Question(
        "Does IC gain more from distillation than the basic network?",
        [
            Cell(network, method)
            for network in ("basic", "IC")
            for method in ("scratch", "WLD", "start calibrate, lr 0.02")
        ],
        against=(None, Cell("basic", "WLD"), Cell("basic", "start calibrate, lr 0.02")),
        subjects=[Cell("IC", "WLD"), Cell("IC", "start calibrate, lr 0.02")],
    ),
    Question(
        "Which distillation?",
        [Cell("IC", method, budget=0.25) for method in SCHEDULES],
        against=(Cell("IC", "WLD", budget=0.25),),
        note="At a quarter of the epochs, where it matters. `WLD` is held for 40 % of training and then follows a "
        "cosine to 0, with weight 1 and T = 4; the others differ from it in what their names say.",
    ),
    Question(
        "How well must the teacher be trained?",
        [Cell("IC", method, budget=0.25) for method in TEACHERS],
        against=(Cell("IC", "WLD", budget=0.25),),
        note="A teacher at 25 % is the basic network with a quarter of the epochs.",
    ),
    Question(
        "Which warm start?",
        [Cell(network, method, budget=0.25) for network in ("basic", "IC") for method in WARM],
        against=(Cell("basic", "start gain", budget=0.25), Cell("IC", "start calibrate", budget=0.25)),
        note="Every row starts from the trained basic network and trains for a quarter of its epochs more; the basic "
        "network trained on is the control.",
    ),
    Question(
        "And under a strong recipe?",
        [Cell(name, recipe="strong") for name in ("basic", "basic, wider", "SE", CONTROL.network, "IC")]
        + [Cell(name, "WLD", "strong") for name in ("basic", "IC")],
        against=(None, Cell(CONTROL.network, recipe="strong")),
        note="AdamW, mixup, label smoothing and an average of the weights (and RandAugment for images).",
    ),
    Question(
        "How is a trained network fine-tuned?",
        [
            *(Cell("basic", recipe=f"lr {lr}") for lr in ("0.0005", "0.001", "0.002")),
            Cell("IC, gain", recipe="lr 0.001"),
            *(Cell("IC, gain", recipe=f"new {factor}") for factor in ("0.03", "0.3", "1")),
            *(Cell(f"IC, {kind}", recipe="lr 0.001") for kind in ("gain, all layers", "gain, k×k only", "calibrate")),
            *(Cell("basic", f"WLD {weight}", "lr 0.001") for weight in ("0.25", "1")),
        ],
        against=(Cell("basic", recipe="lr 0.001"),),
        studies=("solar_finetune_search",),
        note="EfficientNet-Lite0 with ImageNet weights on the solar cells, 96 pixels, 5 epochs, AdamW: a search on two "
        "folds, which tells settings that spoil a training and no more. `lr 0.001` has a tenth of it for what IC adds; "
        "`new 0.3` has 0.3 of it.",
    ),
    Question(
        "Does it help a trained network that is fine-tuned?",
        [
            *(Cell("basic", recipe=recipe) for recipe in ("plain", "longer")),
            *(Cell(name) for name in ("SE", "no collision term", "IC, gain", "IC, calibrate", "IC, new from none")),
            *(Cell(network, "WLD") for network in ("basic", "IC, gain")),
        ],
        against=(Cell("basic"), Cell("basic", "WLD")),
        studies=("solar_finetune",),
        costs=True,
        note="EfficientNet-Lite0 with ImageNet weights on the solar cells, 96 pixels, 5 epochs; `longer` is the basic "
        "network for 6. How they are trained was chosen on two folds (below) and fixed before; the folds of the first "
        "repetition contain these two.",
    ),
    Question(
        "What lies between IC and maxout?",
        [Cell(name) for name in FAMILY],
        against=(None, Cell("IC"), Cell("basic, wider ×1.25")),
        studies=("mnist1d_family",),
        costs=True,
        note="Units whose second piece has learned sums in the place of the one fixed sum (*learned sums*), or is made "
        "of learned sums alone (*own piece*), with FReLU and maxout, beside the basic network made wider: "
        "`studies/family.py` has the formulas. `mnist1d_family` has 16 channels, the others as many as their names "
        "say. The rule by which one of them becomes an option of the unit stands in "
        "`recipes/studies/mnist1d_family.yaml`, written before the first run.",
    ),
)

CLAIMS = (
    Claim("Does the unit help a network that is trained from scratch?", [(Cell("IC"), Cell("basic"))], ORDER),
    Claim("More than the same network made wider for the same time?", [(Cell("IC"), Cell("basic, wider"))], ORDER),
    Claim("Is it the sum s that helps, or the bend alone?", [(Cell("IC"), CONTROL)], ORDER),
    Claim(
        "Does it help a trained network that is fine-tuned, beside the basic one?",
        [(Cell("IC, gain"), Cell("basic")), (Cell("basic", recipe="longer"), Cell("basic"))],
        ("solar_finetune",),
    ),
    Claim(
        "Is distillation from the basic network worth it, at a quarter of the epochs?",
        [
            (Cell("basic", "WLD", budget=0.25), Cell("basic", budget=0.25)),
            (Cell("IC", "WLD", budget=0.25), Cell("basic", "WLD", budget=0.25)),
        ],
        ORDER,
    ),
    Claim(
        "And in fine-tuning?",
        [(Cell("basic", "WLD"), Cell("basic")), (Cell("IC, gain", "WLD"), Cell("basic", "WLD"))],
        ("solar_finetune",),
    ),
    Claim(
        "Does another unit of the family do better?",
        [(Cell(name), Cell("IC")) for name in ("own piece, rank 4", "maxout of 2", "basic, wider ×1.5")],
        ("mnist1d_family", "mnist1d_family_8", "mnist1d_family_25"),
    ),
)

ADVICE = """\
**What to use when.** Distil: it costs one pass of the network that you have anyway, and helps most in few epochs. If
there is time to spare in the trained network, a wider or deeper one is the safe way to use it. Convert to IC units
where `icnets compare` says on your images that it helps: the conversion keeps the weights and, by `gain`, the function,
so trying it costs minutes, and taking it back nothing. Leave depthwise layers basic, as `compare` does: converting them
costs most (EfficientNet-Lite0: `IC, gain, all layers` beside `IC, gain` below).
"""

START = """\
# Does it help? The evidence

<!-- Written by benchmarks/evidence from benchmarks/results/studies/*.jsonl; don't edit: make evidence. -->

Every number here comes from lines in `benchmarks/results/studies`, one for each training (those of the digits, at the
end, from `benchmarks/results/demo.json`). A seed decides the data's
draw or fold, the initial weights and the order of the examples; differences are paired by seed. An answer is read off
the table by a rule: *better* or *worse* means p < 0.05 by the paired t test after Holm's correction for all rows that
are compared with the same reference, *not distinguishable* everything else.
"""

END = """\
## What the paper claims, and what is measured here

| the paper | here |
|---|---|
| IC-ResNet-50 on ImageNet: top-1 error 22.38 % → 21.75 % | not measured: no ImageNet here, small networks only |
| equal to ResNet-101 at nearly half the FLOPs | `basic, deeper` in the tables above, with its measured time |
| distillation from the basic network speeds training up | the budgets above, beside the same for the basic network |

## How to repeat it

    make evidence                                            # this page, from the lines
    icnets compare --config recipes/studies/mnist1d.yaml --allow-imports    # goes on where it was stopped
    icnets compare --config recipes/studies/solar.yaml --allow-imports
    icnets compare --config recipes/studies/glyphs.yaml --allow-imports     # the file says where fonts come from

They need `pip install 'icnets[study]'`. The same studies of CIFAR, Imagenette and ImageNet are in `recipes/studies`.
"""


def _size(study: Results) -> str:
    header = study.header
    sizes, runs = header["sizes"], sum(len(own) for own in study.runs.values())
    hours = sum(sum(study.values(cell, "seconds").values()) for cell in study.runs) / 3600
    versions = f"torch {header['versions']['torch']}, {'GPU' if header['machine']['cuda'] else 'CPU'}"
    return (
        f"- **{study.name}**: {header['classes']} classes, {sizes['train']:,} training, {sizes['val']:,} validation "
        f"and {sizes['test']:,} test examples; {runs} trainings in {hours:.1f} hours of one process; {versions}."
    )


def evidence(folder: Path, images: Path) -> str:
    """The page for the lines in ``folder``; writes the figures to ``images``."""
    found = {study.name: study for study in (Results(lines.read(path)) for path in sorted(folder.glob("*.jsonl")))}
    studies = sorted(found.values(), key=lambda s: (ORDER.index(s.name) if s.name in ORDER else len(ORDER), s.name))
    sizes = "\n".join(_size(study) for study in studies) or "No study has been run yet."
    short = answer(CLAIMS, studies, ADVICE)
    answers = page(studies, QUESTIONS, images, "images")
    return f"{START}\n{short}\n\n## The studies\n\n{sizes}\n\n{answers}\n{digits_table.section()}\n{END}"


def main(argv: list[str]) -> int:
    if argv == ["--check"]:
        with tempfile.TemporaryDirectory() as images:
            same = evidence(LINES, Path(images)) == PAGE.read_text(encoding="utf-8")
        print("docs/evidence.md is what the lines give" if same else "docs/evidence.md is out of date: make evidence")
        return int(not same)
    if argv:
        shutil.copyfile(Path(argv[0]) / "results.json", digits_table.RESULTS)
    PAGE.write_text(evidence(LINES, IMAGES), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
