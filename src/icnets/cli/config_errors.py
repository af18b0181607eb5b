"""Errors of jsonargparse and YAML in one line: the option, the value that it was given, and what it must be."""

import re

from icnets.support.text import one_line

# Lines of jsonargparse's explanations that say how it searched, not what it found.
_SCAFFOLD = re.compile(
    r"^(Parser key |Does not validate against|Subtypes: |Errors:|Given value|Expected a path but |$)|NoneType"
)
_KINDS = {"int": "a whole number", "float": "a number", "bool": "true or false", "str": "a text"}
_KINDS["tuple"] = "a list of numbers, such as '[0.5, 0.5, 0.5]'"


def explained(error: BaseException) -> str:
    """The message of ``error`` in one line; of jsonargparse's what the user can mend."""
    text = str(error).strip()
    if "Original Traceback" not in text and ("Parser key " in text or "Does not validate against" in text):
        return " ".join(_parser_message(text).split())
    if text.startswith("Unexpected config:"):
        found = " ".join(text.removeprefix("Unexpected config:").split())
        return f"the configuration must be a mapping of options, not {found or 'empty'}"
    return one_line(error)


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
        if reason.endswith(":"):  # the next line says what it is
            reason = " ".join([reason, *lines[lines.index(reason) + 1 :][:1]]).removesuffix(":")
        return f"{key}: {reason}" if key and key not in reason else reason
    kinds = [_kind(name, alias) for name, alias in wanted]
    return f"{key or 'an option'} is {values[0]!r}; it must be {' or '.join(dict.fromkeys(kinds))}"


def _kind(name: str, alias: str) -> str:
    if alias.startswith("Literal["):
        return "one of " + alias.removeprefix("Literal[").removesuffix("]").replace("'", "")
    return _KINDS.get(name) or f"a {alias or name.rpartition('.')[2]}"
