"""Every study in recipes/ can be parsed and planned, and each of its networks trains a step."""

import hashlib
import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from icnets import convert_
from icnets.cli.study import _parse
from icnets.compare.networks import create
from icnets.compare.runs import distillation
from icnets.compare.study.planned_runs import plan

RECIPES = sorted((Path(__file__).parents[3] / "recipes" / "studies").glob("*.yaml"))
SHAPES = {"mnist1d": (1, 40), "solar": (1, 32, 32), "glyphs": (1, 32, 32), "cifar10": (3, 32, 32)}


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_every_network_trains_a_step(path: Path) -> None:
    study = _parse(["--config", str(path)])
    assert study.name == path.stem
    shape = SHAPES.get(study.data.get("kind", ""), (1, 16, 16) if path.stem == "smoke" else (3, 32, 32))
    for network in study.networks:
        model = create(study.network(network), num_classes=4, in_chans=shape[0])
        if network.ic is not None:
            report = convert_(model, network.ic, optimizers=())
            assert report.converted
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        loss = F.cross_entropy(model(torch.randn(4, *shape)), torch.arange(4))
        loss.backward()
        optimizer.step()
        assert loss.isfinite()
        assert model(torch.randn(2, *shape)).isfinite().all()


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_the_plan_is_whole(path: Path) -> None:
    study = _parse(["--config", str(path)])
    planned = plan(study)
    assert len({p.id for p in planned}) == len({p.labels for p in planned}) == len(planned)
    saved = set()
    for each in planned:
        distillation(each.job.wld, each.job.training)
        assert each.job.needs <= saved, "what a run needs comes before it"
        saved |= {each.job.keep} - {None}
    assert {p.labels.recipe for p in planned} <= {recipe.name for recipe in study.recipes}
    basic = {p.labels.seed for p in planned if p.labels.network == "basic" and p.labels.method == "scratch"}
    assert basic == {p.labels.seed for p in planned}, "every seed has its basic network to be paired with"


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_ids_are_those_that_finished_runs_have(path: Path) -> None:
    """An id that changed would let every finished run of a study be run again."""
    known = json.loads(Path(__file__).with_name("planned_ids.json").read_text())[path.stem]
    ids = [planned.id for planned in plan(_parse(["--config", str(path)]))]
    found = {"runs": len(ids), "first": ids[0], "last": ids[-1]}
    assert {**found, "sha256": hashlib.sha256("\n".join(ids).encode()).hexdigest()} == known


def test_the_evidence_has_enough_seeds() -> None:
    (path,) = (p for p in RECIPES if p.stem == "mnist1d")
    study = _parse(["--config", str(path)])
    seeds: dict[str, set[int]] = {}
    for each in plan(study):
        if (each.labels.method, each.labels.recipe, each.labels.budget) == ("scratch", "plain", 1.0):
            seeds.setdefault(each.labels.network, set()).add(each.labels.seed)
    assert seeds.keys() == {network.name for network in study.networks}
    assert min(len(own) for own in seeds.values()) >= 10
