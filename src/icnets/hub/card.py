"""The model card: YAML for the Hub, then how to load the network, its evidence, and whose idea it is."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from string import Template
from typing import Any

from torch import nn

from icnets import __version__
from icnets.hub.card_evidence import Evidence, read_evidence
from icnets.hub.markdown import escaped
from icnets.support.text import counted
from icnets.unit.layers import IC_LAYERS, ic_parameters

_SHOWN_CLASSES = 100

_TEMPLATE = Template(Path(__file__).with_name("model_card.md").read_text(encoding="utf-8"))


@dataclass(frozen=True)
class Card:
    """What a model card says beyond what the network itself shows.

    Args:
        title: of the page; by default the name of the folder or repository.
        license: of the weights, one of the Hub's identifiers ("mit", "apache-2.0", ...). What they were trained from
            decides, so nothing is assumed.
        datasets: ids on the Hub of what it was trained on.
        classes: labels in the order of the outputs; by default those of the evidence.
        pipeline_tag: the task, in the Hub's words.
        description: a paragraph of your own, as Markdown.
        evidence: folder of ``icnets compare``, or its results.json.
        method: of a comparison, the row that this network is of.

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
    evidence: str | Path | None = None
    method: str | None = None


def evidence_of(card: Card) -> Evidence:
    """The evidence that a card names, read; empty without any. Raises ValueError for what isn't any."""
    if card.evidence is not None:
        return read_evidence(Path(card.evidence), card.method)
    if card.method is not None:
        raise ValueError(f"method is {card.method!r} and evidence is None; give the comparison that it is a row of")
    return Evidence()


def card_text(
    model: nn.Module,
    card: Card,
    source: str,
    evidence: Evidence,
    *,
    classes: Sequence[str] = (),
    notes: Mapping[str, str] | None = None,
    own: bool = False,
) -> str:
    """The README.md of a network.

    Args:
        model: the network.
        card: what to say.
        source: the folder or repository that it is loaded from.
        evidence: from :func:`evidence_of`.
        classes: the labels.
        notes: of the checkpoint: mean, std, image_size, where known.
        own: whether whoever loads it must bring the basic network.
    """
    title = card.title or source
    return _TEMPLATE.substitute(
        header=_header(card, title, evidence),
        title=escaped(title),
        summary=_summary(model),
        description=f"\n{card.description.strip()}\n" if card.description else "",
        source=repr(source),
        basic=", basic" if own else "",
        comment="  # your basic network: the module that convert_ was called on" if own else "",
        images=_images(notes or {}),
        evidence=evidence.markdown and f"\n## Evidence\n\n{evidence.markdown}\n",
        classes=_listed(classes),
    )


def _header(card: Card, title: str, evidence: Evidence) -> str:
    from huggingface_hub import EvalResult, ModelCardData

    found: dict[str, Any] = {}
    if evidence.accuracy is not None and card.pipeline_tag is not None:
        result = EvalResult(
            task_type=card.pipeline_tag,
            dataset_type=card.datasets[0] if card.datasets else "imagefolder",
            dataset_name=evidence.data,
            dataset_split="test",
            metric_type="accuracy",
            metric_name=evidence.metric,
            metric_value=round(evidence.accuracy, 4),
        )
        found = {"metrics": ["accuracy"], "model_name": title, "eval_results": [result]}
    tags = ["icnets", "inter-layer-collision", "arxiv:2102.03495"]
    found |= {"tags": tags, "pipeline_tag": card.pipeline_tag, "datasets": list(card.datasets) or None}
    return ModelCardData(license=card.license, library_name="icnets", **found).to_yaml()


def _summary(model: nn.Module) -> str:
    units, name = sum(isinstance(m, IC_LAYERS) for m in model.modules()), escaped(type(model).__name__)
    total, new = sum(p.numel() for p in model.parameters()), sum(p.numel() for _, p in ic_parameters(model))
    kind = f"A basic network: {name} without IC units"
    if units:
        kind = f"An Inter-layer Collision (IC) network: {name} with {counted(units, 'IC unit')}"
    return f"{kind}; {total:,} parameters, of which the collisions have {new:,}. Saved by icnets {__version__}."


def _images(notes: Mapping[str, str]) -> str:
    """What is noted of the network's images."""
    sides = {"size": "image_size", "channels": "in_chans", "mean": "mean", "standard deviation": "std"}
    known = [f"{word} {escaped(notes[key])}" for word, key in sides.items() if key in notes]
    return f"\nImages: {'; '.join(known)}.\n" if known else ""


def _listed(classes: Sequence[str]) -> str:
    if not classes:
        return ""
    more = f" and {len(classes) - _SHOWN_CLASSES} more" if len(classes) > _SHOWN_CLASSES else ""
    shown = ", ".join(f"**{i}** {escaped(name)}" for i, name in enumerate(classes[:_SHOWN_CLASSES]))
    return f"\n## Classes\n\n{len(classes)}, in the order of the outputs: {shown}{more}.\n"
