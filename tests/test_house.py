"""What imports what: the core needs torch and safetensors alone, and help needs neither."""

import os
import subprocess
import sys
import textwrap

from icnets.cli.app import COMMANDS


def run(code: str) -> str:
    # Triton's interpreter, which tests use where there is no GPU, would ask for numpy.
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-c", textwrap.dedent(code)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_core_needs_torch_and_safetensors_alone() -> None:
    code = """
        import importlib, importlib.metadata, pkgutil, re, sys

        # The distributions that these two need, without their extras.
        needed, waiting = set(), ["torch", "safetensors"]
        while waiting:
            name = re.sub(r"[-_.]+", "-", waiting.pop()).lower()
            if name in needed:
                continue
            try:
                requires = importlib.metadata.requires(name) or []
            except importlib.metadata.PackageNotFoundError:  # of another platform
                continue
            needed.add(name)
            waiting += [re.match(r"[\\w.-]+", line)[0] for line in requires if "extra ==" not in line]

        blocked = {
            module
            for module, owners in importlib.metadata.packages_distributions().items()
            if not needed & {re.sub(r"[-_.]+", "-", owner).lower() for owner in owners}
        } - {"icnets"}

        class Blocked:
            def find_spec(self, name, path=None, target=None):
                if name.partition(".")[0] in blocked:
                    raise ModuleNotFoundError(f"{name} is blocked", name=name)

        sys.meta_path.insert(0, Blocked())
        names = ["icnets", "icnets.deploy.fuse", "icnets.functional"]
        for package in ("support", "unit", "convert", "distill", "checkpoint"):
            found = importlib.import_module(f"icnets.{package}")
            names += [module.name for module in pkgutil.walk_packages(found.__path__, found.__name__ + ".")]
        for name in names:
            importlib.import_module(name)
        print(len(names), "timm" in blocked, "numpy" in blocked, "torch" in blocked, *(blocked & sys.modules.keys()))
    """
    count, *rest = run(code).split()
    assert int(count) > 20
    assert rest == ["True", "True", "False"]


def test_help_imports_nothing_heavy() -> None:
    code = f"""
        import sys
        from icnets.cli import main

        for command in ([], {", ".join(f"[{command!r}]" for command in COMMANDS)}):
            assert main([*command, "--help"]) == 0
        heavy = ["torch", "lightning", "jsonargparse", "timm", "matplotlib", "numpy", "yaml"]
        print(*(name for name in heavy if name in sys.modules), file=sys.stderr)
        assert not sys.modules.keys() & set(heavy)
    """
    run(code)
