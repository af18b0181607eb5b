"""Every study in recipes/ can be parsed and planned, and each of its networks trains a step."""

import hashlib
import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from icnets import convert_
from icnets.cli.compare import read_settings
from icnets.comparison import lines
from icnets.comparison.planned_runs import plan
from icnets.comparison.runs import create, distillation
from icnets.comparison.settings import Settings

RECIPES = sorted((Path(__file__).parents[2] / "recipes" / "studies").glob("*.yaml"))
RESULTS = Path(__file__).parents[2] / "benchmarks" / "results" / "studies"
SHAPES = {"mnist1d": (1, 40), "solar": (1, 32, 32), "glyphs": (1, 32, 32), "cifar10": (3, 32, 32)}


def _read(path: Path) -> Settings:
    return read_settings(["--config", str(path), "--allow-imports"])


@pytest.mark.slow
@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_every_network_trains_a_step(path: Path) -> None:
    study = _read(path)
    assert study.name == path.stem
    shape = SHAPES.get(study.data.get("kind", ""), (1, 16, 16) if path.stem == "smoke" else (3, 32, 32))
    jobs = {job.cell.network: job for job in plan(study) if job.start is None}
    assert jobs.keys() == {network.name for network in study.networks}
    for job in jobs.values():
        model = create(job.network, num_classes=4, in_chans=shape[0], imports=study.imports)
        if job.ic is not None:
            report = convert_(model, job.ic, optimizers=(), calibration_data=[torch.randn(8, *shape)])
            assert report.converted
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        loss = F.cross_entropy(model(torch.randn(4, *shape)), torch.arange(4))
        loss.backward()
        optimizer.step()
        assert loss.isfinite()
        assert model(torch.randn(2, *shape)).isfinite().all()


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_the_plan_is_whole(path: Path) -> None:
    study = _read(path)
    planned = plan(study)
    assert len({p.id for p in planned}) == len({(p.cell, p.seed) for p in planned}) == len(planned)
    saved = set()
    for each in planned:
        distillation(each.wld, each.training)
        assert each.needs <= saved, "what a run needs comes before it"
        saved |= {each.keep} - {None}
    assert {p.cell.recipe for p in planned} <= {recipe.name for recipe in study.recipes}
    basic = {p.seed for p in planned if p.cell.network == "basic" and p.cell.method == "scratch"}
    assert basic == {p.seed for p in planned}, "every seed has its basic network to be paired with"


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_ids_are_those_that_finished_runs_have(path: Path) -> None:
    """An id that changed would let every finished run of a study be run again."""
    known = json.loads(Path(__file__).with_name("planned_ids.json").read_text())[path.stem]
    ids = [planned.id for planned in plan(_read(path))]
    found = {"runs": len(ids), "first": ids[0], "last": ids[-1]}
    assert {**found, "sha256": hashlib.sha256("\n".join(ids).encode()).hexdigest()} == known


@pytest.mark.parametrize("name", ["glyphs", "mnist1d", "solar"])
def test_every_committed_run_is_known(name: str) -> None:
    """Also those of before ICConfig's version 2."""
    (path,) = (p for p in RECIPES if p.stem == name)
    known = {old for planned in plan(_read(path)) for old in planned.ids}
    assert {line["id"] for line in lines.read(RESULTS / f"{name}.jsonl") if line["kind"] == "run"} <= known


def test_the_evidence_has_enough_seeds() -> None:
    (path,) = (p for p in RECIPES if p.stem == "mnist1d")
    study = _read(path)
    seeds: dict[str, set[int]] = {}
    for each in plan(study):
        if (each.cell.method, each.cell.recipe, each.cell.budget) == ("scratch", "plain", 1.0):
            seeds.setdefault(each.cell.network, set()).add(each.seed)
    assert seeds.keys() == {network.name for network in study.networks}
    assert min(len(own) for own in seeds.values()) >= 10
