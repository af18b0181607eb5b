"""What ``icnets fit`` and its kin understand in short: ``icnets fit photos --model resnet18 --weights start.pth``."""

import os
from collections.abc import Sequence

SHORT = {"--model": "--model.model", "--weights": "--model.init_from"}
MISSING = "which network? Give --model NAME, such as resnet18 or my_cnn.py:MyCNN, or --config FILE"
_NAME_IT = ("--model.model", "--config", "--ckpt_path", "--help", "--print_config")


def written_out(command: str, args: Sequence[str]) -> list[str]:
    """The arguments by their long names, those of fit with a folder in front as ``--data.root``.

    Raises:
        ValueError: fit is told no network, which is said before anything is imported.

    Example:
        >>> written_out("fit", ["photos", "--model", "resnet18"])
        ['--data.root', 'photos', '--model.model', 'resnet18']
    """
    words = []
    for word in args:
        name, equals, value = word.partition("=")
        words.append(f"{SHORT.get(name, name)}{equals}{value}")
    if command != "fit":
        return words
    first = next((i for i in range(0, len(words), 2) if words[i] != "--config"), len(words))
    if first < len(words) and not words[first].startswith("-"):
        words.insert(first, "--data.root")
    named = any(word.startswith(_NAME_IT) or ".help" in word for word in words)
    if not named and "JSONARGPARSE_DEFAULT_ENV" not in os.environ:
        raise ValueError(MISSING)
    return words
