import csv
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from icnets.cli import main
from icnets.data.check import checks as checking
from training.folders import write_classes, write_image

CASES = [
    ([], "the following arguments are required: check, DIR"),
    (["chek", "photos"], "argument check: invalid choice: 'chek' (choose from *"),
    (["check"], "the following arguments are required: DIR"),
    (["check", "nowhere"], "nowhere is not a folder: give one with train/ and val/, with class folders, or with *"),
    (["check", "empty"], "empty holds neither class folders nor tar shards; give the folder that does"),
    (["check", "photos", "--workers", "0"], "--workers is 0; it must be at least 1"),
    (["check", "photos", "--min-size", "-1"], "--min-size is -1; it must be at least 0"),
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
    (root / "ant" / ".hidden.png").write_bytes(b"not looked at, as in training")
    assert problems("photos") == [
        ("ant/deeper/a\\x1bb.png", "empty-file"),
        ("bee/copy.png", "duplicate-class"),
        ("bee/gone.png", "unreadable"),
        ("loose.png", "outside-class"),
    ]


def test_splits() -> None:
    for split, names in (("train", ("ant", "bee")), ("valid", ("ant", "cow")), ("val-old", ("ant",))):
        write_classes(Path("photos") / split, **dict.fromkeys(names, 1))
    for number, path in enumerate(sorted(Path("photos/valid").rglob("*.png"))):
        write_image(path, seed=5000 + number)
    assert problems("photos") == [
        ("train/bee", "class-difference"),
        ("val-old/ant/000.png", "outside-class"),
        ("valid/cow", "class-difference"),
    ]


def test_the_list_is_short_and_the_file_is_whole(capsys: pytest.CaptureFixture[str]) -> None:
    root = write_classes(Path("photos"), ant=9, bee=2)
    for path in (root / "ant").iterdir():
        path.write_bytes(b"")
    assert len(problems("photos")) == 9
    out = capsys.readouterr().out
    assert "error: empty-file (9): files of zero bytes" in out
    assert out.count("0 bytes") == 5
    assert "  and 4 more" in out
    assert out.endswith("all problems: problems.csv\n")


def test_progress(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    write_classes(Path("photos"), ant=2, bee=2)
    monkeypatch.setattr("icnets.cli.data._SECONDS", 0)
    problems("photos")
    assert "4 of 4 files, 0 problems; about 0 s to go\n" in capsys.readouterr().err


def test_a_decoder_that_dies(monkeypatch: pytest.MonkeyPatch) -> None:
    real = checking.each

    def each(function, items, workers):
        for index, result in real(function, items, workers):
            yield index, None if items[index].name.endswith("001.png") else result

    monkeypatch.setattr(checking, "each", each)
    write_classes(Path("photos"), ant=2, bee=1)
    assert problems("photos") == [("ant/001.png", "crash")]


@pytest.mark.skipif(os.name != "posix", reason="sends SIGINT to a process group")
def test_interrupted() -> None:
    root = write_classes(Path("photos"), ant=1, bee=1)
    os.mkfifo(root / "ant" / "fifo.png")  # is no file, and not listed
    code = (
        # Where tests run in the background of a shell, SIGINT is ignored, and so in what they start.
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "import sys; from icnets.cli import main; from icnets.cli import data\n"
        "def progress(self, done, total, problems):\n"
        "    __import__('time').sleep(60) if done else print('begun', flush=True)\n"
        "data.CheckProgress.__call__ = progress\n"
        "if __name__ == '__main__': sys.exit(main(sys.argv[1:]))"
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
