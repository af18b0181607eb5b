"""Draws docs/images/house.svg: the packages of icnets, what each is for, and which imports which.

Order and floors come from the contract in pyproject.toml, the arrows from the imports, the words from the docstrings.

python benchmarks/house.py
"""

import ast
import tomllib
from html import escape
from pathlib import Path

import grimp

ROOT = Path(__file__).resolve().parent.parent
PICTURE = ROOT / "docs" / "images" / "house.svg"
ROW, HEIGHT, LEFT, WIDTH, LANE = 62, 44, 20, 640, 13
STYLE = """
  text { font: 13px sans-serif; fill: #1f2328 } .name { font: bold 15px monospace }
  rect { fill: #f6f8fa; stroke: #57606a } path { fill: none; stroke: #57606a; stroke-width: 1.2 }
  @media (prefers-color-scheme: dark) {
    text { fill: #e6edf3 } rect { fill: #161b22; stroke: #8b949e } path { stroke: #8b949e } .tip { fill: #8b949e }
  }
  .tip { fill: #57606a; stroke: none }
"""


def floors() -> list[list[str]]:
    """The packages from top to bottom; those on one floor don't import each other."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"]
    layers = next(c["layers"] for c in contracts["contracts"] if c["type"] == "layers")
    return [[name.strip("() ").removeprefix("icnets.") for name in layer.split("|")] for layer in layers]


def imports(rooms: list[str]) -> set[tuple[str, str]]:
    """Pairs (importer, imported) of packages, without those that follow from others."""
    graph = grimp.build_graph("icnets", exclude_type_checking_imports=True, cache_dir=None)
    names = {room: f"icnets.{room}" for room in rooms}
    direct = {
        (a, b)
        for a in rooms
        for b in rooms
        if a != b and graph.direct_import_exists(importer=names[a], imported=names[b], as_packages=True)
    }
    reached = set(direct)
    for middle in rooms:
        reached |= {(a, b) for a in rooms for b in rooms if {(a, middle), (middle, b)} <= reached}
    return {(a, b) for a, b in direct if not any({(a, m), (m, b)} <= reached for m in rooms)}


def summary(room: str) -> str:
    """The first sentence of a package's or module's docstring."""
    folder = ROOT / "src" / "icnets" / room
    source = folder / "__init__.py" if folder.is_dir() else folder.with_suffix(".py")
    docstring = ast.get_docstring(ast.parse(source.read_text(encoding="utf-8"))) or ""
    return docstring.split("\n\n")[0].replace("\n", " ").replace("``", "")


def _box(room: str, left: int, top: int, width: int) -> str:
    said = summary(room) if width == WIDTH else summary(room).split(":")[0]
    words, lines = said.split(), [""]
    for word in words:
        if len(lines[-1]) + len(word) > (width - 130) / 6.4:
            lines.append("")
        lines[-1] += f"{word} "
    middle = top + HEIGHT // 2 + 5 - 8 * (len(lines) - 1)
    text = [f'<text x="{left + 118}" y="{middle + 16 * i}">{escape(t.strip())}</text>' for i, t in enumerate(lines)]
    box = f'<rect x="{left}" y="{top}" width="{width}" height="{HEIGHT}" rx="5"/>'
    return "\n".join([box, f'<text class="name" x="{left + 10}" y="{top + HEIGHT // 2 + 5}">{room}</text>', *text])


def drawing() -> str:
    """The picture as SVG."""
    rows = floors()
    places = {room: (i, j, len(row)) for i, row in enumerate(rows) for j, room in enumerate(row)}
    parts, lanes = [], 0
    for room, (i, j, beside) in places.items():
        width = (WIDTH - 10 * (beside - 1)) // beside
        parts.append(_box(room, LEFT + j * (width + 10), 10 + i * ROW, width))
    for a, b in sorted(imports(list(places)), key=lambda edge: (places[edge[1]][0] - places[edge[0]][0], edge)):
        (top, *above), (bottom, *below) = places[a], places[b]
        if bottom == top + 1:
            j, beside = max(above, below, key=lambda place: place[1])  # the middle of the narrower box
            x = LEFT + int((j + 0.5) * WIDTH / beside)
            y0, y1 = 10 + top * ROW + HEIGHT, 10 + bottom * ROW
            line = f"M{x} {y0} V{y1 - 6}"
            tip = f"M{x} {y1} l-4 -7 h8 z"
        else:  # beside the boxes
            lanes += 1
            right, x = LEFT + WIDTH, LEFT + WIDTH + lanes * LANE + 8
            y0, y1 = 10 + top * ROW + HEIGHT - 12, 10 + bottom * ROW + 8 + 3 * (lanes % 9)
            line, tip = f"M{right} {y0} H{x} V{y1} H{right + 6}", f"M{right} {y1} l7 -4 v8 z"
        parts.append(f'<path d="{line}"/><path class="tip" d="{tip}"/>')
    size = (LEFT + WIDTH + (lanes + 2) * LANE, 10 + len(rows) * ROW)
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {size[0]} {size[1]}" width="{size[0]}">'
    return "\n".join(
        [head, f"<title>The packages of icnets and what they import</title><style>{STYLE}</style>", *parts, "</svg>\n"]
    )


if __name__ == "__main__":
    PICTURE.write_text(drawing(), encoding="utf-8")
