"""Configurations, as jsonargparse reads them: which code they may name, and that no key stands twice in a mapping.

jsonargparse imports what a ``class_path`` names while it parses, and the import alone runs code. It has a policy for
that, which this module sets: nothing but these packages, both for the path that is given and for the place where the
object found there is defined, so that ``torch.os.system`` is no way round.
"""

import argparse
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import yaml
from jsonargparse import get_loader, set_loader, set_parsing_settings
from jsonargparse._common import parsing_settings  # the settings can be made in public, but not undone

from icnets.cli.config_errors import explained
from icnets.cli.parser import Parser, with_hint
from icnets.support.gone import without_gone
from icnets.support.named_code import names_code

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
    parser, choices = Parser(add_help=False), ["true", "false"]
    parser.add_argument(FLAG, dest="allowed", nargs="?", const="true", default="false", type=str.lower, choices=choices)
    found, rest = parser.parse_known_args(args)
    return rest, found.allowed == "true"


def require_named_code(model: Any, args: Sequence[str]) -> None:
    """Raises ValueError where ``model`` is code of the user's that a file has named, and nobody in ``args``."""
    if isinstance(model, str) and names_code(model) and not {model, f"--model.model={model}"} & set(args):
        what = f"{model} was not imported: it is code, and a configuration alone names it"
        raise ValueError(f"{what}; if you trust it, name it too, by --model {model}, or give {FLAG} true")


UNIQUE_KEYS = "yaml-unique-keys"  # a parser's ``parser_mode``

_yaml = get_loader("yaml")


def _load(text: str, path: str = "") -> Any:
    """jsonargparse's YAML, but a key that stands twice is an error: YAML takes the last one silently.

    Options of earlier versions are dropped, or an error: see :mod:`icnets.support.gone`.
    """
    nodes = [yaml.compose(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))]
    for node in nodes:  # which grows
        if isinstance(node, yaml.SequenceNode):
            nodes += node.value
        lines: dict[Any, int] = {}
        for key, value in node.value if isinstance(node, yaml.MappingNode) else ():
            nodes.append(value)
            line, name = key.start_mark.line + 1, key.value if isinstance(key, yaml.ScalarNode) else key
            if name in lines:
                where = f"{path or 'the configuration'} has {name!r} twice, in lines {lines[name]} and {line}"
                raise ValueError(f"{where}; leave one of them")
            lines[name] = line
    return without_gone(_yaml(text))


set_loader(UNIQUE_KEYS, _load, (yaml.YAMLError,))


@contextmanager
def of_configuration() -> Iterator[None]:
    """Makes a ValueError of what jsonargparse and YAML let through of a file that is no configuration."""
    try:
        yield
    except UnicodeDecodeError as error:
        raise ValueError(f"the configuration is no UTF-8 text: {error}") from error
    except RecursionError as error:
        raise ValueError("the configuration is nested too deeply; it must be a mapping of options") from error


def parse(parser: Any, argv: Sequence[str] | None) -> Any:
    """The namespace that jsonargparse's ``parser`` makes of ``argv``, dataclasses instantiated.

    ``--help`` prints and exits as usual.

    Raises:
        ValueError: an option or value that can't be parsed, a file that is no configuration, or a class that the
            configuration may not name.
    """
    parser.parser_mode, parser.allow_abbrev = UNIQUE_KEYS, False
    try:
        with allowed_imports(remedy="remove it"):
            with of_configuration():
                parsed = parser.parse_args(argv)
            return parser.instantiate(parsed)
    except argparse.ArgumentError as error:
        raise ValueError(with_hint(explained(error), parser)) from error
