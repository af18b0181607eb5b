"""Hugging Face datasets; the package isn't among ours, so these run where it is installed: pip install datasets."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from icnets.data.data_module import ImageData

pytest.importorskip("datasets", reason="the package datasets isn't installed")
pytestmark = pytest.mark.filterwarnings("ignore")  # of its own


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr("datasets.config.HF_CACHE_HOME", str(tmp_path / "cache"))
    root, rng = tmp_path / "set", np.random.default_rng(0)
    for split, count in (("train", 12), ("validation", 4)):
        for label, name in enumerate(("ant", "bee")):
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(0, 150, (20, 20, 3)) + 80 * label
                Image.fromarray(pixels.astype(np.uint8)).save(root / split / name / f"{i}.png")
    return root


def test_a_dataset_in_a_local_folder(folder: Path) -> None:
    data = ImageData(hf=str(folder), image_size=16, batch_size=8)
    assert (data.class_names, data.size("train"), data.size("val")) == (["ant", "bee"], 24, 8)
    names = [name for batch in range(3) for name in data.names_of_batch(0, batch)]
    assert sorted(names) == sorted(f"image {i} of {folder}, train" for i in range(24))
    for x, target in data.train_dataloader():
        assert x.shape == (8, 3, 16, 16)
        assert ((x.mean((1, 2, 3)) > 0).long() == target).all()  # bees are brighter
    assert sum(len(target) for _, target in data.val_dataloader()) == 8


def test_a_split_that_is_not_there(folder: Path) -> None:
    with pytest.raises(ValueError, match="can't read split 'test' of the dataset"):
        ImageData(hf=str(folder), hf_val="test").setup()
