import csv
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

from icnets.cli import main
from icnets.data import check as checking
from icnets.data.check import check
from icnets.data.image_files import Paths
from icnets.support.text import printable
from training.folders import write_classes, write_image

CASES = [
    ([], "the following arguments are required: check, DIR"),
    (["chek", "photos"], "argument check: invalid choice: 'chek' (choose from *"),
    (["check"], "the following arguments are required: DIR"),
    (["check", "nowhere"], "nowhere is not a folder: give one with train/ and val/, or with class folders"),
    (["check", "empty"], "empty holds no class folders; give the folder that does"),
    (["check", "photos", "--workers", "0"], "--workers is 0; it must be at least 1"),
    (["check", "photos", "--min-size", "8"], "unknown option --min-size"),
    (["check", "photos", "--csv", "no/p.csv"], "the folder no of --csv doesn't exist; create it first"),
]


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def problems(*argv: str) -> list[tuple[str, str]]:
    main(["data", "check", *argv, "--csv", "problems.csv", "--workers", "1"])
    with open("problems.csv", newline="", encoding="utf-8") as file:
        return [(row["path"], row["kind"]) for row in csv.DictReader(file)]


@pytest.mark.parametrize(("argv", "message"), CASES, ids=[" ".join(argv) or "-" for argv, _ in CASES])
def test_mistakes(capsys: pytest.CaptureFixture[str], argv: list[str], message: str) -> None:
    Path("empty").mkdir()
    write_classes(Path("photos"), ant=1, bee=1)
    assert main(["data", *argv]) == 2
    start, star, _ = message.partition("*")
    err = capsys.readouterr().err
    assert err.startswith(f"icnets: error: {start}" + ("" if star else "\n"))
    assert err.count("\n") == 1


def test_class_folders(capsys: pytest.CaptureFixture[str]) -> None:
    root = write_classes(Path("photos"), ant=2, bee=2)
    assert problems("photos") == []
    assert "photos: 4 images in 2 classes; 0 errors, 0 warnings" in capsys.readouterr().out
    (root / "bee" / "copy.png").write_bytes((root / "ant" / "000.png").read_bytes())
    (root / "bee" / "gone.png").symlink_to("nowhere")
    write_image(root / "ant" / "deeper" / "a\x1bb.png", seed=5)
    (root / "ant" / "deeper" / "a\x1bb.png").write_bytes(b"")
    write_image(root / "loose.png", seed=6)
    (root / "notes.txt").write_text("of no interest outside of class folders")
    (root / "ant" / "notes.txt").write_text("not read")
    (root / "ant" / ".hidden.png").write_bytes(b"not looked at, as in training")
    assert problems("photos") == [
        ("ant", "ignored"),
        ("ant/deeper/a\\x1bb.png", "unreadable"),
        ("bee", "ignored"),
        ("bee/copy.png", "duplicate-class"),
    ]
    assert "ant: left out: 1 .txt\n  bee: left out: 1 that are no files" in capsys.readouterr().out


def test_splits() -> None:
    for split, names in (("train", ("ant", "bee")), ("valid", ("ant", "cow")), ("val-old", ("ant",))):
        write_classes(Path("photos") / split, **dict.fromkeys(names, 1))
    for number, path in enumerate(sorted(Path("photos/valid").rglob("*.png"))):
        write_image(path, seed=5000 + number)
    assert problems("photos") == [
        ("train/bee", "class-difference"),
        ("valid/cow", "class-difference"),
    ]


def test_copies() -> None:
    for split in ("train", "val"):
        write_classes(Path("photos") / split, ant=2, bee=2)  # the same images in both
    (Path("photos/train/ant") / "copy.png").write_bytes(Path("photos/train/ant/000.png").read_bytes())
    (Path("photos/val/ant") / "moved.png").write_bytes(Path("photos/train/bee/000.png").read_bytes())
    found = problems("photos")
    assert found.count(("train/ant/copy.png", "duplicate")) == 1
    assert [kind for path, kind in found if path == "val/ant/moved.png"] == ["duplicate-class", "duplicate-split"]
    assert [kind for path, kind in found if path == "val/bee/001.png"] == ["duplicate-split"]


def test_empty_classes() -> None:
    root = write_classes(Path("photos"), ant=1, bee=1)
    (root / "cow").mkdir()
    assert problems("photos") == [("cow", "empty-class")]


def test_every_cut_is_noticed() -> None:
    root = write_classes(Path("photos"), ant=1, bee=1)
    for kind in ("JPEG", "PNG", "WEBP"):
        picture(kind).save(root / "ant" / f"a.{kind}", kind)
        whole = (root / "ant" / f"a.{kind}").read_bytes()
        (root / "ant" / f"a.{kind}").unlink()
        for part in (0.02, 0.3, 0.6, 0.9):
            (root / "ant" / f"{part}.{kind}").write_bytes(whole[: int(part * len(whole))])
    assert problems("photos") == [
        (f"ant/{part}.{kind}", "unreadable") for part in (0.02, 0.3, 0.6, 0.9) for kind in ("JPEG", "PNG", "WEBP")
    ]


def picture(kind: str) -> Image.Image:
    return Image.effect_noise((40, 30), 80).convert("RGB" if kind != "WEBP" else "RGBA")


def test_the_list_is_short_and_the_file_is_whole(capsys: pytest.CaptureFixture[str]) -> None:
    root = write_classes(Path("photos"), ant=9, bee=2)
    for path in (root / "ant").iterdir():
        path.write_bytes(b"")
    assert len(problems("photos")) == 9
    out = capsys.readouterr().out
    assert "error: unreadable (9): files that are no image, a damaged one, or one that training refuses" in out
    assert out.count("it is no image by its content") == 5
    assert "  and 4 more" in out
    assert out.endswith("all problems: problems.csv\n")


def test_progress(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    write_classes(Path("photos"), ant=2, bee=2)
    monkeypatch.setattr("icnets.cli.data._SECONDS", 0)
    problems("photos")
    assert capsys.readouterr().err == "2 of 4 images\n4 of 4 images\n"


class Deadly(Paths):
    """Images of which one ends the process that reads it."""

    def open(self, index: int) -> Path:
        return os._exit(1) if self.paths[index].name == "001.png" else self.paths[index]  # type: ignore[return-value]


@pytest.mark.parametrize("workers", [1, 2])
def test_a_decoder_that_dies(monkeypatch: pytest.MonkeyPatch, workers: int) -> None:
    write_classes(Path("photos"), ant=3, bee=1)
    monkeypatch.setattr(checking, "Paths", Deadly)
    with pytest.raises(
        ValueError, match=r"a process that decodes images died, perhaps .*; --workers 1 takes the least"
    ):
        check(Path("photos"), workers)


def test_names_of_strangers() -> None:
    assert printable("é 1\x1b[31m\n\udc80") == "é 1\\x1b[31m\\n\\udc80"


@pytest.mark.skipif(os.name != "posix", reason="sends SIGINT to a process group")
def test_interrupted() -> None:
    root = write_classes(Path("photos"), ant=1, bee=1)
    os.mkfifo(root / "ant" / "fifo.png")  # is no file, and not listed
    code = (
        "import signal, sys; from icnets.cli import main; from icnets.cli import data\n"
        "def progress(self, done, total):\n"
        "    print('begun', flush=True); __import__('time').sleep(60)\n"
        "data.CheckProgress.__call__ = progress\n"
        # Where tests run in the background of a shell, SIGINT is ignored, and so in what they start.
        "if __name__ == '__main__':\n"
        "    signal.signal(signal.SIGINT, signal.default_int_handler); sys.exit(main(sys.argv[1:]))"
    )
    Path("program.py").write_text(code)
    command = [sys.executable, "program.py", "data", "check", "photos", "--csv", "problems.csv"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        assert process.stdout.readline() == "begun\n"
        time.sleep(0.5)
        os.killpg(process.pid, signal.SIGINT)
        try:
            out, err = process.communicate(timeout=60)
        finally:
            process.kill()
    assert (process.returncode, out, err) == (130, "", "icnets: interrupted\n")
    assert not Path("problems.csv").exists()
