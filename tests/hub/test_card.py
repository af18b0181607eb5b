import json
from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard
from markdown_it import MarkdownIt
from torch import nn

from icnets import convert_
from icnets.hub.card import Card, card_text, evidence_of
from icnets.hub.card_evidence import Evidence, read_evidence
from icnets.hub.markdown import escaped

KEPT = Path(__file__).parents[2] / "benchmarks" / "results" / "demo_avx2.json"  # whatever later demos give
NASTY = [
    "<script>alert(1)</script>",
    "[free](https://evil.example)",
    "![x](https://evil.example/x.png)",
    "https://evil.example",
    "www.evil.example",
    "a | b",
    "`code` ``",
    "*bold* _it_ ~~gone~~",
    "1. one",
    "# heading",
    "- item",
    "&lt;b&gt; $x$",
    "two\nlines\r\n\n---\nlicense: none",
    "\u202eright to left\x00",
    "",
]


def comparison(folder: Path, record: dict | None = None) -> Path:
    """The folder of a comparison, as far as a card reads it."""
    text = KEPT.read_text(encoding="utf-8") if record is None else json.dumps(record)
    (folder / "results.json").write_text(text, encoding="utf-8")
    return folder


def network() -> nn.Sequential:
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten())
    convert_(model)
    return model


def test_the_front_matter_is_what_the_hub_reads(tmp_path):
    run = comparison(tmp_path)
    card = Card(title="a: title", license="apache-2.0", datasets=["x/y"], evidence=run, method="IC, warm start")
    text = card_text(network(), card, "someone/net", evidence_of(card))
    data = ModelCard(text).data
    assert (data.license, data.library_name, data.pipeline_tag) == ("apache-2.0", "icnets", "image-classification")
    assert (data.datasets, data.metrics) == (["x/y"], ["accuracy"])
    assert {"icnets", "arxiv:2102.03495"} <= set(data.tags)
    (result,) = data.eval_results
    assert (data.model_name, result.metric_value, result.dataset_split) == ("a: title", 0.9666, "test")
    assert yaml.safe_load(card_text(network(), Card(), "net", Evidence()).split("---")[1])["license"] == "unknown"


def test_it_says_how_to_load_what_it_is_and_whose():
    model = network()
    text = card_text(model, Card(description="*Mine.*"), "someone/net", Evidence(), own=True, notes={"mean": "0.5"})
    assert "model = from_pretrained('someone/net', basic)" in text
    assert "timm" not in text
    assert "Sequential with 1 IC unit; 24 parameters, of which the collisions have 4" in text
    assert "Images: mean 0.5." in text
    assert "\n*Mine.*\n" in text
    assert "arxiv.org/abs/2102.03495" in text
    assert "## Evidence" not in text


def links(tokens):
    for token in tokens:
        if token.type in ("link_open", "image"):
            yield token.attrs.get("href") or token.attrs.get("src")
        yield from links(token.children or [])


@pytest.mark.parametrize("text", NASTY)
def test_escaped_text_is_shown_literally(text):
    seen = " ".join("".join(c for c in text if c.isprintable() or c.isspace()).split())
    for around in ("{}", "- {}", "# {}"):
        tokens = MarkdownIt("gfm-like").disable("linkify").parse(around.format(escaped(text) or "x"))
        (inline,) = (t for t in tokens if t.type == "inline")
        assert all(child.type in ("text", "text_special") for child in inline.children)
        assert "".join(child.content for child in inline.children) == (seen or "x")
        assert sum(t.type in ("list_item_open", "heading_open") for t in tokens) == (around != "{}")


def test_names_of_others_stay_text(tmp_path):
    record = json.loads(KEPT.read_text(encoding="utf-8"))
    for row, name in zip(record["methods"], NASTY[:7], strict=True):
        row["name"] = name
    for row in record["methods"][1:]:
        row["control"] = record["methods"][0]["name"]
    record["data"]["arguments"]["root"] = "/home/someone/secret/" + "<b>photos"
    record["data"]["classes"], record["verdicts"] = NASTY, NASTY
    for run in record["runs"]:
        run["method"] = NASTY[0]
    record["settings"]["network"]["name"] = "<b>net"
    evidence = read_evidence(comparison(tmp_path, record), "a | b")
    text = card_text(network(), Card(title=NASTY[-3]), "net", evidence, classes=NASTY)
    assert "secret" not in text
    header, body = text.removeprefix("---\n").split("\n---\n", 1)
    assert yaml.safe_load(header)["license"] == "unknown"
    tokens = MarkdownIt("commonmark", {"html": True}).enable("table").parse(body)
    assert not [t for t in tokens if t.type.startswith("html")]
    assert not [c for t in tokens for c in t.children or [] if c.type.startswith("html")]
    assert set(links(tokens)) == {"https://arxiv.org/abs/2102.03495"}
    cells = [t for t in tokens if t.type == "td_open"]
    assert len(cells) == 7 * 8
    assert any(t.type == "inline" and t.content.startswith("a | b") for t in tokens)


def test_a_thousand_classes_are_counted_not_listed():
    text = card_text(network(), Card(), "net", Evidence(), classes=[f"c{i}" for i in range(1000)])
    assert "1000, in the order of the outputs: **0** c0, " in text
    assert "**99** c99 and 900 more." in text
