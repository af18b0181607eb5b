"""Other projects' own tests, as they are, over IC networks and units.

    python benchmarks/upstream_tests.py PROJECT CHECKOUT [PYTEST'S OPTIONS]

PROJECT is timm, torchvision, torch, smp (segmentation-models-pytorch) or composer.

The tests aren't in the packages: CHECKOUT is a folder of the project's sources, of about the installed version.
Nothing in it is changed. What changes is where tests/test_models.py (timm) and test/test_models.py (torchvision) get
their networks from: ``timm.list_models`` gives the ``ic_`` networks in the place of the basic ones, and a test that
names its network itself gets that one's IC network; torchvision's ``get_model_builder`` gives builders whose networks
are converted with the warm start "gain", so that the outputs which torchvision has on record must come out all the
same. torch's are those of convolutions and linear layers; ``torch.nn.Conv2d`` and its kin make silent units there, with
a gain of 0, which must do all that torch's layers do. ``--basic`` among the options leaves all as it is, for what the
tests say without us. torchvision's need pytest-mock, torch's expecttest.

smp's networks and encoders, and what composer's ``replace_module_classes`` is given, are converted with "gain" as
well, linear layers too for the last. smp's have random weights. composer's need --noconftest, since its conftest.py
downloads.

Counts by test and the failures go to benchmarks/results/upstream_NAME.json. Debian's source packages have the sources.
"""

from __future__ import annotations

import functools
import json
import os
import re
import sys
import tempfile
from collections import Counter, defaultdict
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

RESULTS = Path(__file__).parent / "results"
TESTS = {
    "timm": ["tests/test_models.py"],
    "torchvision": ["test/test_models.py"],
    "torch": ["test/nn/test_convolution.py", "test/test_nn.py", "test/test_modules.py"],
    "smp": ["tests/base", "tests/models/test_unet.py", "tests/models/test_fpn.py"],
    "composer": ["tests/utils/test_module_surgery.py"],
}
CHOICE = {
    "torch": ["-k", "(conv or linear) and not bilinear"],
    "composer": ["-k", "not gpu"],
}
MARKERS = ("base", "cfg", "torchscript", "features", "fxforward", "fxbackward")  # timm's
PACKAGES = ("icnets", "timm", "torch", "torchvision")
OTHERS = {"smp": "segmentation-models-pytorch", "composer": "mosaicml"}


def patch_timm() -> None:
    """``list_models`` gives, for what its arguments choose, the IC networks of these names."""
    import timm

    from icnets.timm_models import NETWORKS

    original = timm.list_models

    def list_models(*args: Any, **kwargs: Any) -> list[str]:
        if kwargs.get("pretrained"):
            return []  # weights would be downloaded
        names = (name.split(".")[0] for name in original(*args, **kwargs))
        return list(dict.fromkeys(f"ic_{name}" for name in names if f"ic_{name}" in NETWORKS))

    timm.list_models = list_models
    timm.list_pretrained = lambda *args, **kwargs: []


def patch_torchvision() -> None:
    """``get_model_builder`` gives builders of IC networks of the same function; quantised ones stay what they are."""
    from importlib import import_module

    from icnets import ICConfig, convert_

    models: Any = import_module("torchvision.models")
    original = models.get_model_builder

    def get_model_builder(name: str) -> Callable[..., Any]:
        basic = original(name)
        if name.startswith("quantized_"):
            return basic

        @functools.wraps(basic)
        def build(*args: Any, **kwargs: Any) -> Any:
            model = basic(*args, **kwargs)
            convert_(model, ICConfig(layers="all", warm_start="gain"), optimizers=())
            return model

        return build

    models.get_model_builder = get_model_builder


def patch_torch() -> None:
    """``torch.nn`` makes silent units in the place of its layers; they are called the same, and found by pickle."""
    import torch
    from torch.nn.modules import conv, linear

    from icnets.unit.layers import IC_LAYERS

    for unit in IC_LAYERS:
        basic = unit.basic_type
        members = {
            "__init__": functools.partialmethod(unit.__init__, gain=0.0),  # type: ignore[misc]
            "__module__": basic.__module__,
            "__qualname__": basic.__qualname__,
            "__doc__": basic.__doc__,
        }
        silent = type(basic.__name__, (unit,), members)
        for module in (torch.nn, torch.nn.modules, conv, linear):
            if getattr(module, basic.__name__, None) is basic:
                setattr(module, basic.__name__, silent)
        basic.__qualname__ = f"Basic{basic.__name__}"  # by which pickle finds what torch's own modules made of it
        setattr(sys.modules[basic.__module__], basic.__qualname__, basic)


def patch_torch_testing() -> None:
    """Names that tests of an older torch import from today's."""
    if find_spec("expecttest") is None:
        return  # then today's can't be imported, and nothing that needs them
    from torch.testing._internal import common_cuda, common_mkldnn, common_nn

    gone: list[tuple[Any, str, Any]] = [
        (common_cuda, "tf32_is_not_fp32", lambda: False),
        (common_mkldnn, "bf32_on_and_off", lambda *_: lambda test: test),
        (common_nn, "new_module_tests", []),
    ]
    for module, name, value in gone:
        if not hasattr(module, name):
            setattr(module, name, value)


def _converting(function: Callable[..., Any]) -> Callable[..., Any]:
    """``function``, whose result is converted with "gain"."""
    from icnets import ICConfig, convert_

    @functools.wraps(function)
    def build(*args: Any, **kwargs: Any) -> Any:
        model = function(*args, **kwargs)
        convert_(model, ICConfig(layers="all", warm_start="gain"), optimizers=())
        return model

    return build


def without_pretrained_weights() -> None:
    """smp's networks start from random weights, which aren't downloaded."""
    import segmentation_models_pytorch as smp

    original = smp.create_model
    smp.create_model = functools.wraps(original)(lambda *a, **kw: original(*a, **{"encoder_weights": None, **kw}))


def patch_smp() -> None:
    """Encoders, and networks by ``create_model``, are IC networks of the same function."""
    import segmentation_models_pytorch as smp

    smp.create_model = _converting(smp.create_model)
    smp.encoders.get_encoder = _converting(smp.encoders.get_encoder)


def patch_composer() -> None:
    """Networks are converted before composer's surgery, with the optimizers that it is given."""
    from importlib import import_module

    from icnets import ICConfig, convert_

    surgery: Any = import_module("composer.utils.module_surgery")
    original = surgery.replace_module_classes

    @functools.wraps(original)
    def replace_module_classes(module: Any, policies: Any, optimizers: Any = None, **kwargs: Any) -> Any:
        given = [] if optimizers is None else optimizers if isinstance(optimizers, list | tuple) else [optimizers]
        convert_(module, ICConfig(layers="all", linear=True, warm_start="gain"), optimizers=given)
        return original(module, policies, optimizers, **kwargs)

    surgery.replace_module_classes = replace_module_classes


# As a plugin of pytest, in each of its processes.

_outcomes: dict[str, Counter[str]] = defaultdict(Counter)
_failures: dict[str, str] = {}


def by_function(test: str) -> str:
    """The name of a test without its parameters; torch's write a device and a dtype behind it."""
    return re.sub(r"_cpu(_[a-z]+\d*)?$", "", test.partition("[")[0])


def pytest_configure(config: pytest.Config) -> None:
    """Before the tests are imported."""
    patches = {"timm": patch_timm, "torchvision": patch_torchvision, "torch": patch_torch}
    patches |= {"smp": patch_smp, "composer": patch_composer}
    project, basic = os.environ["ICNETS_UPSTREAM"].split()
    if project == "torch":
        patch_torch_testing()
    if project == "smp":
        without_pretrained_weights()
    if basic == "False":
        patches[project]()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A test of timm's that names its network itself gets the IC network as well."""
    if os.environ["ICNETS_UPSTREAM"] != "timm False":
        return
    from icnets.timm_models import NETWORKS

    for item in items:
        parameters = getattr(getattr(item, "callspec", None), "params", {})
        if f"ic_{parameters.get('model_name')}" in NETWORKS:
            parameters["model_name"] = f"ic_{parameters['model_name']}"


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Counts: a test is what its call says, or its set-up, where that skipped or failed it."""
    if report.when == "call" or (report.when == "setup" and report.outcome != "passed"):
        test = report.nodeid.rpartition("::")[2]
        _outcomes[by_function(test)][report.outcome] += 1
        if report.failed:
            told = str(report.longrepr).strip().splitlines()
            error = next((line[1:] for line in told if line.startswith("E  ")), told[-1])
            _failures[test] = re.sub(r" in /\S+.*", "", " ".join(error.split()))[:300]  # no folder of this machine


def main(argv: list[str]) -> int:
    """Runs the tests and writes the counts; pytest's exit status."""
    if len(argv) < 2 or argv[0] not in TESTS:
        raise SystemExit(__doc__)
    project, checkout, options = argv[0], Path(argv[1]), argv[2:]
    tests = [checkout / test for test in TESTS[project]]
    for test in tests:
        if not test.exists():
            raise SystemExit(f"there is no {test}; CHECKOUT must be a folder of {project}'s sources")
    basic = "--basic" in options
    os.environ["ICNETS_UPSTREAM"] = f"{project} {basic}"
    os.environ["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    sys.path[:0] = [str(Path(__file__).parent), str(checkout.resolve())]
    with tempfile.TemporaryDirectory() as folder:
        ours = Path(folder) / "pytest.ini"  # the project's own may ask for plugins
        ours.write_text("[pytest]\nmarkers =\n" + "".join(f"    {name}\n" for name in MARKERS))
        arguments = [*map(str, tests), "-c", str(ours), "--rootdir", str(checkout), "-p", "upstream_tests", "-q"]
        arguments += CHOICE.get(project, [])
        status = pytest.main([*arguments, *(option for option in options if option != "--basic")])
    plugin: Any = sys.modules["upstream_tests"]  # not this module, which is __main__
    _write(project, basic, plugin._outcomes, plugin._failures)
    return int(status)


def _write(project: str, basic: bool, outcomes: dict[str, Counter[str]], failures: dict[str, str]) -> None:
    from importlib.metadata import version

    total = sum(outcomes.values(), Counter())
    record = {
        "project": project,
        "networks": "basic" if basic else "IC",
        "versions": {package: version(package) for package in (*PACKAGES, *filter(None, [OTHERS.get(project)]))},
        "total": dict(total),
        "tests": {name: dict(counts) for name, counts in sorted(outcomes.items())},
        "failures": dict(sorted(failures.items())),
    }
    path, other = (RESULTS / f"upstream_{project}{'_basic' if b else ''}.json" for b in (basic, not basic))
    path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(f"{dict(total)}; wrote {path}")
    if other.is_file():
        known = json.loads(other.read_text(encoding="utf-8"))["failures"]
        for name, error in sorted(failures.items()):
            print(f"fails {'there too' if name in known else 'here only'}: {name}: {error}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
