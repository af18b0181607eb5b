"""Text of others inside Markdown: names, files and class labels that can't become links, HTML or table cells."""

import re
import unicodedata

# Markdown's punctuation anywhere, and the addresses that become links without it; what opens a list or heading, only
# at the start.
_ANYWHERE = re.compile(r"([\\`*_{}\[\]<>|~&$@]|(?<=www)\.|:(?=/))", re.IGNORECASE)
_AT_START = re.compile(r"^(\d+(?=[.)](?:\s|$))|(?=[-+#=]))")


def _one_line(text: str, longest: int) -> str:
    """``text`` on one line, without control and invisible formatting characters, cut to ``longest`` characters."""
    visible = "".join(" " if c.isspace() else c for c in text if c.isspace() or unicodedata.category(c)[0] != "C")
    line = " ".join(visible.split())
    return line if len(line) <= longest else line[: longest - 1] + "…"


def escaped(text: str, longest: int = 120) -> str:
    """``text`` as Markdown that shows it literally, on one line of at most ``longest`` characters before escaping."""
    return _AT_START.sub(r"\1\\", _ANYWHERE.sub(r"\\\1", _one_line(text, longest)))
