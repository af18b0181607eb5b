import json
import re
import shutil
from html import escape
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import icnets
from icnets.cli import main
from icnets.cli.compare import main as compare
from icnets.comparison.run_files import read_run
from icnets.report.inspection import chosen_method, confusion_counts, disagreements, inspect

# Nothing that a name says may become markup, a formula or a link.
CLASSES = ["<script>alert(1)<", 'b & "c" $x^$']
FILE = '<img src=x onerror=alert({})>".png'

RECIPE = """
seeds: [0, 1]
workers: 1
latency_rounds: 2
confidence: 0.95
data: {image_size: 16, batch_size: 20, val_fraction: 0.5, test_fraction: 0.4, hflip: 0.0}
network: {name: resnet10t, options: {channels: [8, 8, 8, 8], stem_width: 8}}
training: {epochs: 2, extra_epochs: 2, extra_lr: 0.3}  # so that some answers differ
methods:
  - {name: basic}
  - {name: "basic, <b>on</b>", start: basic}
  - {name: IC, start: basic, ic: {warm_start: calibrate}, control: "basic, <b>on</b>"}
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    images = folder / "images"
    rng = np.random.default_rng(0)
    for label, name in enumerate(CLASSES):
        (images / name).mkdir(parents=True)
        for i in range(40):
            pixels = rng.integers(0, 180, (20, 20, 3)) + 20 * label
            Image.fromarray(pixels.astype(np.uint8)).save(images / name / FILE.format(i))
    (folder / "recipe.yaml").write_text(RECIPE)
    out = folder / "run"
    arguments = ["--config", str(folder / "recipe.yaml"), "--data.root", str(images), "--out", str(out)]
    assert compare(arguments) == 0
    return out


@pytest.fixture(scope="module")
def page(run: Path) -> str:
    assert main(["report", str(run)]) == 0
    return (run / "report.html").read_text(encoding="utf-8")


class Elements(HTMLParser):
    """Every element with its attributes, and the text outside style."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.mark.slow
def test_names_stay_names(page: str) -> None:
    found = Elements(page)
    assert not [tag for tag, _ in found.elements if tag in ("script", "b", "iframe")]
    assert not [a for _, attributes in found.elements for a in attributes if a.startswith("on")]
    assert escape(CLASSES[0]) in page
    assert CLASSES[1] in found.text
    words = found.text + "".join(attributes.get("alt") or "" for _, attributes in found.elements)
    assert re.search(r'<img src=x onerror=alert\(\d+\)>"\.png', words)


def test_nothing_is_loaded_from_elsewhere(page: str) -> None:
    for tag, attributes in Elements(page).elements:
        for name in ("src", "href", "xlink:href", "data"):
            value = attributes.get(name)
            assert value is None or value.startswith(("data:", "#")), (tag, name, value)
    assert not re.search(r"url\((?!#)", page)
    assert "@import" not in page


def test_every_picture_has_words(page: str) -> None:
    elements = Elements(page).elements
    images = [attributes for tag, attributes in elements if tag == "img"]
    figures = [attributes for _, attributes in elements if attributes.get("role") == "img"]
    assert len(figures) == 4  # two of training, cost, confusions
    assert len(images) > 3
    assert all(attributes.get("alt") for attributes in images)
    assert all(len(attributes["aria-label"] or "") > 20 for attributes in figures)


def test_ids_are_unique(page: str) -> None:
    ids = [attributes["id"] for _, attributes in Elements(page).elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'(?:url\(#|href="#)([^)"]+)', page)) <= set(ids)


def test_the_table_is_the_comparisons(run: Path, page: str) -> None:
    text = Elements(page).text
    for row in json.loads((run / "results.json").read_text())["methods"]:
        assert f"{row['error']['mean']:.2f} (" in text  # of two seeds
    assert "basic, <b>on</b>" in text
    assert "icnets compare --config" in text


def test_what_it_shows_is_what_the_networks_answer(run: Path) -> None:
    comparison = read_run(run)
    look = inspect(comparison, chosen_method(comparison))
    answers = {}
    for name in ("basic-b-on-b-seed0", "ic-seed0"):
        network = icnets.load(run / "checkpoints" / f"{name}.safetensors").eval()
        right, said = 0, []
        for x, target in look.data.test_dataloader():
            with torch.no_grad():
                said.append(network(x).argmax(1))
            right += int((said[-1] == target).sum())
        answers[name] = torch.cat(said)
        seeds = [r for r in comparison.runs["IC" if name[0] == "i" else "basic, <b>on</b>"] if r.seed == 0]
        assert 100 * (1 - right / len(answers[name])) == pytest.approx(seeds[0].error)
    control, chosen = answers.values()
    counts = confusion_counts(look.chosen, look.target, 2)
    for i in range(2):
        for j in range(2):
            assert counts[i][j] == int(((look.target == i) & (chosen == j)).sum())
    shown, kinds = disagreements(look, images=5)
    assert sum(kinds.values()) == int((control != chosen).sum())
    assert kinds["chosen"] == int(((control != chosen) & (chosen == look.target)).sum())
    assert len(shown) == min(5, sum(kinds.values()))


def test_without_its_images_it_says_so(run: Path, tmp_path: Path) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(run, moved)
    record = json.loads((moved / "results.json").read_text())
    record["data"]["arguments"]["root"] = str(tmp_path / "gone")
    (moved / "results.json").write_text(json.dumps(record))
    assert main(["report", str(moved)]) == 0
    text = Elements((moved / "report.html").read_text(encoding="utf-8")).text
    assert "Not shown: " in text
    assert "gone" in text
    assert "How to repeat it" in text


def test_with_images_of_other_classes_it_says_so(run: Path, tmp_path: Path) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(run, moved)
    record = json.loads((moved / "results.json").read_text())
    record["data"]["classes"].reverse()
    (moved / "results.json").write_text(json.dumps(record))
    assert main(["report", str(moved)]) == 0
    text = Elements((moved / "report.html").read_text(encoding="utf-8")).text
    assert re.search(r"Not shown: .*the networks were trained on 2 classes \(b & .*, and the images are of 2", text)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "there is no folder nowhere; give the folder of a run"),
        (["empty"], "empty holds no run"),
        (["damaged"], "damaged/results.json is no record of icnets compare, or damaged"),
        (["later"], "has schema 99, and this version reads 1"),
        (["RUN", "--out", "there.html"], "there.html exists already; give another --out, or --force"),
        (["RUN", "--out", "no/page.html"], "the folder no of --out doesn't exist; create it first"),
        (["RUN", "--images", "-1"], "--images is -1; it must be at least 0"),
    ],
)
def test_mistakes(
    run: Path, arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, file, content in [
        ("damaged", "results.json", '{"schema": 1'),
        ("later", "results.json", '{"schema": 99}'),
    ]:
        Path(name).mkdir()
        Path(name, file).write_text(content)
    Path("empty").mkdir()
    Path("there.html").touch()
    assert main(["report", *(str(run) if a == "RUN" else a for a in arguments)]) == 2
    assert message in capsys.readouterr().err
    assert not Path("new.html").exists()


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api")
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if chromium is None:
        pytest.skip("needs chromium")
    with playwright.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.mark.parametrize("width", [390, 1440])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_in_a_browser(browser, run: Path, page: str, width: int, scheme: str) -> None:
    view = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    messages, requests = [], []
    view.on("console", lambda message: messages.append(message.text))
    view.on("pageerror", lambda error: messages.append(str(error)))
    view.on("request", lambda request: requests.append(request.url))
    view.on("dialog", lambda dialog: messages.append("a dialog"))
    view.goto((run / "report.html").as_uri())
    assert messages == []
    assert [url for url in requests if not url.startswith(("data:", "file:"))] == []
    assert len([url for url in requests if url.startswith("file:")]) == 1
    size = view.evaluate("[document.documentElement.scrollWidth, document.documentElement.clientWidth]")
    assert size[0] <= size[1]
    cells = [cell.bounding_box() for cell in view.locator(".stacked tbody tr:last-child td").all()]
    assert sum(cell is not None for cell in cells) >= 6  # empty ones aren't shown on a phone
    assert all(cell["x"] >= 0 and cell["x"] + cell["width"] <= width for cell in cells if cell)  # also the last column
    figures = view.locator("figure")
    assert figures.count() >= 6  # five charts, and images
    for figure in figures.all():
        assert figure.is_visible()
        box = figure.bounding_box()
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= width
        assert min(box["width"], box["height"]) >= 30
    assert view.evaluate("[...document.images].every(i => i.complete && i.naturalWidth > 0)")
    ink, paper = view.evaluate(
        "[getComputedStyle(document.querySelector('svg text')).fill, getComputedStyle(document.body).backgroundColor]"
    )
    light = [sum(map(int, re.findall(r"\d+", colour)[:3])) for colour in (ink, paper)]
    assert (light[0] < 200 < 600 < light[1]) if scheme == "light" else (light[1] < 200 < 600 < light[0])
    view.close()
