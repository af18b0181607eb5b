"""The house as CONTRIBUTING.md describes it. `make lint` checks who imports whom."""

import ast
from collections import Counter
from pathlib import Path

import house

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "src" / "icnets"
FILES = sorted(PACKAGE.rglob("*.py"))


def twice(names):
    return sorted(name for name, count in Counter(names).items() if count > 1)


def test_few_modules_beside_the_packages():
    assert len(list(PACKAGE.glob("*.py"))) <= 6


def test_no_module_has_another_ones_name():
    named = [p for p in FILES if not p.stem.startswith("__") and p.parent.name != "cli"]
    aliases = {PACKAGE / "functional.py"}  # of unit/functional.py: a public import path
    assert twice(p.stem for p in named if p not in aliases) == []


def test_no_public_class_has_another_ones_name():
    classes = [node.name for p in FILES for node in ast.parse(p.read_text()).body if isinstance(node, ast.ClassDef)]
    assert twice(name for name in classes if not name.startswith("_")) == []


def test_no_file_is_longer_than_400_lines():
    assert {str(p): n for p in FILES if (n := len(p.read_text().splitlines())) > 400} == {}


def test_every_room_of_the_picture_is_there():
    rooms = {room for floor in house.floors() for room in floor}
    found = {p.name for p in PACKAGE.iterdir() if p.is_dir()} - {"__pycache__"}
    found |= {p.stem for p in PACKAGE.glob("*.py")} - {"__init__", "functional", "export"}
    assert rooms == found


def test_the_picture_is_up_to_date():
    assert house.PICTURE.read_text(encoding="utf-8") == house.drawing()
