"""The compiled operators under random calls, right and wrong, in processes of their own: see fuzz_operators.py."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from icnets.unit.kernels import native

SANITIZERS = "-fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer -g1"


@pytest.fixture(scope="module", autouse=True)
def kernels():
    """Once, in the place of the folder's fixture."""
    try:
        native.build()
    except ValueError as error:
        pytest.skip(str(error))


def fuzz(first, count, **environment):
    command = [
        sys.executable,
        "-W",
        "ignore",
        str(Path(__file__).with_name("fuzz_operators.py")),
        str(first),
        str(count),
    ]
    done = subprocess.run(
        command, env={**os.environ, **environment}, capture_output=True, text=True, timeout=280, check=False
    )
    last = done.stdout.splitlines()[-1:]
    assert done.returncode == 0, f"exit {done.returncode} at {last}: {done.stderr[-1500:]}"
    assert last[0].startswith("all done")
    for name in native._NAMES:  # calls of both kinds were made
        assert f"{name} right" in last[0]
        assert f"{name} refused" in last[0]


@pytest.mark.slow
def test_random_calls():
    fuzz(0, 100)


@pytest.mark.slow
def test_many_random_calls():
    fuzz(100, 1500)


@pytest.mark.slow
def test_random_calls_under_sanitizers(tmp_path, monkeypatch):
    libraries = [found_by_compiler(name) for name in ("libasan.so", "libubsan.so")]
    if not all(libraries):
        pytest.skip("the compiler has no libasan and libubsan")
    environment = {"ICNETS_CACHE": str(tmp_path), "ICNETS_CXXFLAGS": SANITIZERS}
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(native, "load", lambda: False)  # this process has no sanitizers
    native._digest.cache_clear()
    try:
        library = native.build().read_bytes()
    finally:
        native._digest.cache_clear()
    assert b"__asan_report" in library
    assert b"__ubsan_handle" in library
    options = {"ASAN_OPTIONS": "detect_leaks=0:allocator_may_return_null=1", "UBSAN_OPTIONS": "print_stacktrace=1"}
    fuzz(2000, 400, LD_PRELOAD=":".join(libraries), **environment, **options)


def found_by_compiler(library):
    compiler = shutil.which(os.environ.get("CXX", "g++"))
    path = subprocess.run(
        [compiler, f"-print-file-name={library}"], capture_output=True, text=True, check=True
    ).stdout.strip()
    return path if os.path.isabs(path) else ""
