"""What went wrong, in one line: messages without their decoration, lists without their length."""

import logging
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

__all__ = ["described", "differing", "few", "first_line", "of_configuration", "one_line", "tell"]

_logger = logging.getLogger(__name__)

# Lines of jsonargparse's explanations that say how it looked, not what it found.
_SCAFFOLD = re.compile(
    r"^(Parser key |Does not validate against|Subtypes: |Errors:|Given value|Expected a path but |$)|NoneType"
)


def one_line(error: BaseException) -> str:
    """The message of ``error`` on one line."""
    text = str(error) or type(error).__name__
    if isinstance(error, OSError) and error.strerror:
        text = f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    if "Original Traceback" in text:  # from a process that reads images
        text = re.sub(r"^\w*(Error|Exception): ", "", text.strip().splitlines()[-1])
    elif "Parser key " in text or "Does not validate against" in text:
        text = _parser_message(text)
    else:
        text = _shorter(text)
    return re.sub(r"\s+", " ", text).strip()


def first_line(error: BaseException) -> str:
    """The first line of the message of ``error`` that isn't empty: torch's errors go on for a page."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


@contextmanager
def of_configuration() -> Iterator[None]:
    """What jsonargparse and YAML let through of a file that is no configuration becomes a ValueError."""
    try:
        yield
    except UnicodeDecodeError as error:
        raise ValueError(f"the configuration is no UTF-8 text: {error}") from error
    except RecursionError as error:
        raise ValueError("the configuration is nested too deeply; it must be a mapping of options") from error


def few(names: Sequence[str], shown: int = 3) -> str:
    """The first names of a list that may be long: "a, b, c and 4 more"."""
    return ", ".join(names[:shown]) + (f" and {len(names) - shown} more" if len(names) > shown else "")


def tell(line: str) -> None:
    """Log a line that the user should read, in the first of a training's processes only."""
    if all(os.environ.get(rank, "0") == "0" for rank in ("RANK", "LOCAL_RANK", "SLURM_PROCID")):
        _logger.warning("%s", line)


def described(value: object) -> str:
    """What a value that should have been a tensor is: "a tuple of 2", "a dict of 3", "int"."""
    if isinstance(value, tuple | list | dict):
        return f"a {type(value).__name__} of {len(value)}"
    return "None" if value is None else f"a value of type {type(value).__name__}"


def differing(first: Sequence[str], second: Sequence[str], shown: int = 12) -> tuple[str, str]:
    """Two lists of classes, whole where they are short, else from where they first differ.

    Returns:
        Each as "3 classes (cat, dog, eel)"; where longer, "1000 classes (from 8 on: crane, drake, eel and 990 more)".
    """
    shortest = min(len(first), len(second))
    at = next((i for i in range(shortest) if first[i] != second[i]), shortest)
    if max(len(first), len(second)) <= shown:
        return tuple(f"{len(names)} classes ({', '.join(names)})" for names in (first, second))  # type: ignore[return-value]

    def around(names: Sequence[str]) -> str:
        rest = few(names[at:]) or "none"
        return f"{len(names)} classes ({f'from {at} on: ' if at else ''}{rest})"

    return around(first), around(second)


def _shorter(text: str) -> str:
    for pattern, replacement in (
        (r"unrecognized arguments: (--\S+).*", r"unknown option \1"),
        (r"Subcommand '(\w+)' does not accept option '(.+)'", r"unknown option \2 for \1"),
        (
            r"the following arguments are required: (?:fit|validate|test|predict)\.(\S+)",
            r"\1 is missing; give --\1 or --config",
        ),
        (r"Problems parsing config: (.*)", r"the configuration is not valid YAML: \1"),
        (r"Unexpected config: ?", r"the configuration is empty; it must be a mapping of options"),
        (r"Unexpected config: (.*)", r"the configuration must be a mapping of options, not \1"),
    ):
        match = re.fullmatch(pattern, text.strip(), flags=re.DOTALL)
        if match:
            return match.expand(replacement)
    return text


def _parser_message(text: str) -> str:
    """From "Parser key "K": ... Expected a T. Got value: V" to "K is 'V'; it must be a T"."""
    key = ".".join(dict.fromkeys(re.findall(r'Parser key "([^"]+)"', text)))
    lines = [re.sub(r'^(- )?(Parser key "[^"]+": ?)?', "", line.strip()) for line in text.splitlines()]
    found = [line for line in lines if not _SCAFFOLD.search(line)]
    values = re.findall(r"(?:Got value|Given value): (.*)", text)
    options = [option for line in found for option in re.findall(r"Option '(.+)' is not accepted", line)]
    if options:
        return f"unknown option {key}.{options[0]}" if key else f"unknown option {options[0]}"
    if values and "class_path" in values[0]:
        # A class was given. Why it can't be made says more than what else could stand there.
        found = [line for line in found if not line.startswith("Expected a ")] or found
    wanted = [t for line in found for t in re.findall(r"Expected a (?:<class '([\w.]+)'>|typing\.(\w+\[.*\]))", line)]
    if not wanted or not values:
        reason = found[0] if found else " ".join(lines)
        if reason.endswith(":"):  # what it is, is in the next line
            reason = " ".join([reason, *lines[lines.index(reason) + 1 :][:1]]).removesuffix(":")
        return f"{key}: {reason}" if key and key not in reason else reason
    kinds = [_kind(name, alias) for name, alias in wanted]
    return f"{key or 'an option'} is {values[0]!r}; it must be {' or '.join(dict.fromkeys(kinds))}"


def _kind(name: str, alias: str) -> str:
    if alias.startswith("Literal["):
        return "one of " + alias[len("Literal[") : -1].replace("'", "")
    plain = {"int": "a whole number", "float": "a number", "bool": "true or false", "str": "a text"}
    plain["tuple"] = "a list of numbers, such as '[0.5, 0.5, 0.5]'"
    return plain.get(name) or f"a {alias or name.rpartition('.')[2]}"
