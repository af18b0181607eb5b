import pytest
import yaml
from huggingface_hub import ModelCard
from markdown_it import MarkdownIt
from torch import nn

from icnets import convert_
from icnets.hub.card import Card, card_text, escaped

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


def network() -> nn.Sequential:
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten())
    convert_(model)
    return model


def test_the_front_matter_is_what_the_hub_reads():
    card = Card(title="a: title", license="apache-2.0", datasets=["x/y"])
    data = ModelCard(card_text(network(), card, "someone/net", {})).data
    assert (data.license, data.library_name, data.pipeline_tag) == ("apache-2.0", "icnets", "image-classification")
    assert data.datasets == ["x/y"]
    assert {"icnets", "arxiv:2102.03495"} <= set(data.tags)
    assert yaml.safe_load(card_text(network(), Card(), "net", {}).split("---")[1])["license"] == "unknown"


def test_it_says_how_to_load_what_it_is_and_whose():
    model = network()
    text = card_text(model, Card(description="*Mine.*"), "someone/net", {"mean": "0.5"}, own=True)
    assert "model = from_pretrained('someone/net', basic)" in text
    assert "timm" not in text
    assert "Sequential with 1 IC unit; 24 parameters, of which the collisions have 4" in text
    assert "Images: mean 0.5." in text
    assert "\n*Mine.*\n" in text
    assert "arxiv.org/abs/2102.03495" in text


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


@pytest.mark.parametrize("title", NASTY)
def test_names_of_others_stay_text(title):
    text = card_text(network(), Card(title=title, classes=NASTY), "net", dict.fromkeys(("mean", "image_size"), title))
    header, body = text.removeprefix("---\n").split("\n---\n", 1)
    assert yaml.safe_load(header)["license"] == "unknown"
    tokens = MarkdownIt("commonmark", {"html": True}).enable("table").parse(body)
    assert not [t for t in tokens if t.type.startswith("html")]
    assert not [c for t in tokens for c in t.children or [] if c.type.startswith("html")]
    assert set(links(tokens)) == {"https://arxiv.org/abs/2102.03495"}
    assert sum(t.type == "heading_open" for t in tokens) == 4
    assert not [t for t in tokens if t.type == "td_open"]


def test_a_thousand_classes_are_counted_not_listed():
    text = card_text(network(), Card(classes=[f"c{i}" for i in range(1000)]), "net", {})
    assert "1000, in the order of the outputs: **0** c0, " in text
    assert "**99** c99 and 900 more." in text
