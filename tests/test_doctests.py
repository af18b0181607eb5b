"""The examples in docstrings run, and everything public has one."""

import doctest
import importlib
import inspect
import pkgutil

import pytest

import icnets
import icnets.export
import icnets.functional
import icnets.hub
import icnets.timm_models

MODULES = sorted(
    m.name
    for m in pkgutil.walk_packages(icnets.__path__, "icnets.")
    if "gpu" not in m.name and "__main__" not in m.name
)
PUBLIC = {
    f"{module.__name__}.{name}": getattr(module, name)
    for module in (icnets, icnets.functional, icnets.timm_models, icnets.hub, icnets.export)
    for name in module.__all__
    if not name.startswith("ic_") or module is icnets.functional  # the networks of timm's names have one text
}
RESULTS = (icnets.ConversionReport, icnets.FuseReport, icnets.export.ExportReport, icnets.export.Parity)


@pytest.mark.parametrize("name", MODULES)
def test_examples_of_docstrings_run(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # some write files
    found = doctest.testmod(importlib.import_module(name), optionflags=doctest.ELLIPSIS)
    assert found.failed == 0


def test_some_docstrings_have_examples():
    finder = doctest.DocTestFinder(exclude_empty=True)
    tests = [t for name in MODULES for t in finder.find(importlib.import_module(name))]
    assert sum(bool(t.examples) for t in tests) >= 20


def test_public_names_have_an_example():
    used = {name: value for name, value in PUBLIC.items() if callable(value) and value not in RESULTS}
    used = {n: v for n, v in used.items() if not (inspect.isclass(v) and issubclass(v, Exception))}
    assert [name for name, value in used.items() if ">>>" not in (inspect.getdoc(value) or "")] == []
