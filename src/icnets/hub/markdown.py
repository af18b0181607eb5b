"""Text of others inside Markdown: names, files and class labels that can't become links, HTML or table cells."""

import re
import unicodedata

# Markdown's punctuation anywhere, and the addresses that become links without it; what opens a list or heading, only
# at the start.
_ANYWHERE = re.compile(r"([\\`*_{}\[\]<>|~&$@]|(?<=www)\.|:(?=/))", re.IGNORECASE)
_AT_START = re.compile(r"^(\d+(?=[.)](?:\s|$))|(?=[-+#=]))")


def escaped(text: str, longest: int = 120) -> str:
    """``text`` as Markdown that shows it literally, on one line of at most ``longest`` characters before escaping.

    Control characters and invisible ones that format are left out.
    """
    visible = "".join(c for c in text if c.isspace() or unicodedata.category(c)[0] != "C")
    line = " ".join(visible.split())
    line = line if len(line) <= longest else line[: longest - 1] + "…"
    return _AT_START.sub(r"\1\\", _ANYWHERE.sub(r"\\\1", line))
