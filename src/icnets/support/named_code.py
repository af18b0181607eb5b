"""Code that a text names: ``my_package.nets:MyCNN``, or ``my_file.py:make_model``. Importing it runs it."""

import importlib
import os
import re
import sys
from hashlib import sha256
from importlib.util import module_from_spec, spec_from_file_location
from operator import attrgetter
from pathlib import Path
from typing import Any

from icnets.support.text import first_line

_CODE = re.compile(r"(?!timm:)(.+\.py|[^\W\d]\w*(?:\.\w+)*):([^\W\d]\w*(?:\.\w+)*)")


def names_code(text: str) -> bool:
    """Returns whether ``text`` has the form MODULE:NAME or FILE.py:NAME; nothing is imported.

    Example:
        >>> [names_code(text) for text in ("nets:MyCNN", "my nets/a.py:make", "resnet18.a1_in1k", "hf-hub:me/net")]
        [True, True, False, False]
    """
    return _CODE.fullmatch(text) is not None


def imported(text: str) -> Any:
    """Imports what ``text`` names; each process that is given the same text can do so.

    A module is looked for in the working folder too. A file is imported once under a name made of its path, and may
    import what lies beside it.

    Raises:
        ValueError: there is no such file, module or name in it, or importing it fails.

    Example:
        >>> imported("math:gcd")(12, 18)
        6
    """
    found = _CODE.fullmatch(text)
    if found is None:
        raise ValueError(f"{text!r} names no code; write it as module:name or file.py:name")
    module, name = found.groups()
    try:
        return attrgetter(name)(_module_of_file(Path(module)) if module.endswith(".py") else _module(module))
    except Exception as error:  # whatever their code raises
        kind = "" if type(error) is ValueError else f"{type(error).__name__}: "
        raise ValueError(f"{text} can't be imported: {kind}{first_line(error)}") from error


def _module(name: str) -> Any:
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    return importlib.import_module(name)


def _module_of_file(path: Path) -> Any:
    path = path.resolve()
    name = f"{path.stem}_{sha256(os.fsencode(path)).hexdigest()[:8]}"
    if name in sys.modules:
        return sys.modules[name]
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))
    spec: Any = spec_from_file_location(name, path)
    module = sys.modules[name] = module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module
