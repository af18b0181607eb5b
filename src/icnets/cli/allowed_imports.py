"""Which code a configuration may name: that of the packages here, unless the command line allows any.

jsonargparse imports what a ``class_path`` names while it parses, and the import alone runs code. It has a policy for
that, which this module sets: nothing but these packages, both for the path that is given and for the place where the
object found there is defined, so that ``torch.os.system`` is no way round.
"""

import argparse
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from jsonargparse import set_parsing_settings
from jsonargparse._common import parsing_settings  # the settings can be made in public, but not undone

ALLOWED = ("icnets", "lightning", "timm", "torch", "torchvision")
FLAG = "--allow-imports"

# What in these packages runs or unpickles code of others by design.
_LOADERS = [
    *("torch._inductor", "torch.distributed.elastic", "torch.hub", "torch.jit.load", "torch.load"),
    *("torch.multiprocessing", "torch.package", "torch.serialization", "torch.testing"),
    *("torch.utils.cpp_extension", "torch.utils.model_zoo"),
]


@contextmanager
def allowed_imports(*, everything: bool = False, remedy: str = f"if you trust it, give {FLAG} true") -> Iterator[None]:
    """Lets jsonargparse parse and instantiate objects of ``ALLOWED`` only, while the block runs.

    Values of no particular type, such as those of ``model_options``, stay plain: no class is made of them.

    Args:
        everything: lift the guard.
        remedy: how the message for a refused name ends.

    Raises:
        ValueError: a name outside of these packages; it was not imported.
    """
    if everything:
        yield
        return
    before = dict(parsing_settings)
    set_parsing_settings(
        import_path_denylist=["*", *_LOADERS],
        import_path_allowlist=list(ALLOWED),
        validate_subclass_spec_in_any=True,  # otherwise a refused one would pass as a mere dict
        instantiate_subclass_spec_in_any=False,
    )
    try:
        yield
    except Exception as error:
        refused = re.search(r"Importing '([\w.]+)' is not allowed, denied by", str(error))
        if refused is None:
            raise
        reason = f"a configuration may name classes of {', '.join(ALLOWED[:-1])} and {ALLOWED[-1]} only"
        if refused[1].partition(".")[0] in ALLOWED:
            reason = "it loads or runs code from elsewhere"
        raise ValueError(f"{refused[1]} was not imported: {reason}; {remedy}") from error
    finally:
        parsing_settings.clear()
        parsing_settings.update(before)


def take_flag(args: Sequence[str]) -> tuple[list[str], bool]:
    """The arguments without ``--allow-imports [true|false]``, and whether it was given; the last one counts.

    The parser of the configuration never hears of it, so that no configuration can grant itself the right.

    Raises:
        ValueError: another value than true or false.

    Example:
        >>> take_flag(["fit", "--allow-imports", "--name", "a"])
        (['fit', '--name', 'a'], True)
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument(FLAG, dest="allowed", nargs="?", const="true", default="false")
    found, rest = parser.parse_known_args(args)
    if found.allowed.lower() not in ("true", "false"):
        raise ValueError(f"{FLAG} is {found.allowed!r}; it must be true or false")
    return rest, found.allowed.lower() == "true"
