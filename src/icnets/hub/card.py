"""The model card: YAML for the Hub, then how to load the network, what you say of it, and whose idea it is."""

import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from string import Template

from torch import nn

from icnets import __version__
from icnets.support.text import counted
from icnets.unit.layers import IC_LAYERS, ic_parameters

_SHOWN_CLASSES = 100
_LONGEST = 120  # characters of a name

_TEMPLATE = Template(Path(__file__).with_name("model_card.md").read_text(encoding="utf-8"))
# Markdown's punctuation anywhere, and the addresses that become links without it; what opens a list or heading, only
# at the start.
_ANYWHERE = re.compile(r"([\\`*_{}\[\]<>|~&$@]|(?<=www)\.|:(?=/))", re.IGNORECASE)
_AT_START = re.compile(r"^(\d+(?=[.)](?:\s|$))|(?=[-+#=]))")


@dataclass(frozen=True)
class Card:
    """What a model card says beyond what the network itself shows.

    Args:
        title: of the page; by default the name of the folder or repository.
        license: of the weights, one of the Hub's identifiers ("mit", "apache-2.0", ...). What they were trained from
            decides, so nothing is assumed.
        datasets: ids on the Hub of what it was trained on.
        classes: labels in the order of the outputs; by default those that ``metadata`` notes.
        pipeline_tag: the task, in the Hub's words.
        description: Markdown of your own, such as the text of the results.md that ``icnets compare`` wrote.

    Example:
        >>> Card(license="mit", classes=["ant", "bee"]).pipeline_tag
        'image-classification'
    """

    title: str | None = None
    license: str = "unknown"
    datasets: Sequence[str] = ()
    classes: Sequence[str] = ()
    pipeline_tag: str | None = "image-classification"
    description: str = ""


def card_text(model: nn.Module, card: Card, source: str, notes: Mapping[str, str], *, own: bool = False) -> str:
    """The README.md of a network.

    Args:
        model: the network.
        card: what to say.
        source: the folder or repository that it is loaded from.
        notes: of the checkpoint: mean, std, image_size, where known.
        own: whether whoever loads it must bring the basic network.
    """
    from huggingface_hub import ModelCardData

    header = ModelCardData(
        license=card.license,
        library_name="icnets",
        tags=["icnets", "inter-layer-collision", "arxiv:2102.03495"],
        pipeline_tag=card.pipeline_tag,
        datasets=list(card.datasets) or None,
    )
    sides = {"size": "image_size", "channels": "in_chans", "mean": "mean", "standard deviation": "std"}
    images = "; ".join(f"{word} {escaped(notes[key])}" for word, key in sides.items() if key in notes)
    return _TEMPLATE.substitute(
        header=header.to_yaml(),
        title=escaped(card.title or source),
        summary=_summary(model),
        description=f"\n{card.description.strip()}\n" if card.description else "",
        source=repr(source),
        basic=", basic" if own else "",
        comment="  # your basic network: the module that convert_ was called on" if own else "",
        images=f"\nImages: {images}.\n" if images else "",
        classes=_listed(card.classes),
    )


def _summary(model: nn.Module) -> str:
    units, name = sum(isinstance(m, IC_LAYERS) for m in model.modules()), escaped(type(model).__name__)
    total, new = sum(p.numel() for p in model.parameters()), sum(p.numel() for _, p in ic_parameters(model))
    kind = f"A basic network: {name} without IC units"
    if units:
        kind = f"An Inter-layer Collision (IC) network: {name} with {counted(units, 'IC unit')}"
    return f"{kind}; {total:,} parameters, of which the collisions have {new:,}. Saved by icnets {__version__}."


def _listed(classes: Sequence[str]) -> str:
    if not classes:
        return ""
    more = f" and {len(classes) - _SHOWN_CLASSES} more" if len(classes) > _SHOWN_CLASSES else ""
    shown = ", ".join(f"**{i}** {escaped(name)}" for i, name in enumerate(classes[:_SHOWN_CLASSES]))
    return f"\n## Classes\n\n{len(classes)}, in the order of the outputs: {shown}{more}.\n"


def escaped(text: str) -> str:
    """``text`` as Markdown that shows it literally, on one line of at most 120 characters before escaping.

    Control characters and invisible ones that format are left out.
    """
    visible = "".join(c for c in text if c.isspace() or unicodedata.category(c)[0] != "C")
    line = " ".join(visible.split())
    line = line if len(line) <= _LONGEST else line[: _LONGEST - 1] + "…"
    return _AT_START.sub(r"\1\\", _ANYWHERE.sub(r"\\\1", line))
