"""jsonargparse's YAML, but a key that stands twice in one mapping is an error: YAML takes the last one silently.

Options of earlier versions are dropped, or an error: see :mod:`icnets.support.gone`.
"""

from typing import Any

import yaml
from jsonargparse import get_loader, set_loader

from icnets.support.gone import without_gone

UNIQUE_KEYS = "yaml-unique-keys"  # a parser's ``parser_mode``

_yaml = get_loader("yaml")


def _load(text: str, path: str = "") -> Any:
    pending = [yaml.compose(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))]
    while pending:
        node = pending.pop()
        if isinstance(node, yaml.SequenceNode):
            pending += node.value
        if not isinstance(node, yaml.MappingNode):
            continue
        lines: dict[Any, int] = {}
        for key, value in node.value:
            pending.append(value)
            line, name = key.start_mark.line + 1, key.value if isinstance(key, yaml.ScalarNode) else key
            if name in lines:
                where = f"{path or 'the configuration'} has {name!r} twice, in lines {lines[name]} and {line}"
                raise ValueError(f"{where}; leave one of them")
            lines[name] = line
    return without_gone(_yaml(text))


set_loader(UNIQUE_KEYS, _load, (yaml.YAMLError,))
