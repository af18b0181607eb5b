"""Training and validation images from two datasets of torch's."""

from typing import Any

from torch import Tensor
from torch.utils.data import Dataset, default_collate

from icnets.data.epochs import LARGEST_BATCH, EpochData
from icnets.data.images import Batch, Images, apart
from icnets.data.order import Key
from icnets.support.text import require_at_least


class _DatasetImages(Images):
    """A dataset's pairs (x, class), where what it draws at random depends on the seed, the epoch and the index."""

    mix = None

    def __init__(self, dataset: Any, seed: int) -> None:
        self.dataset, self.seed = dataset, seed

    def __len__(self) -> int:
        return len(self.dataset)

    def batch(self, keys: list[Key]) -> Batch:
        pairs = []
        for epoch, index, _ in keys:
            with apart(self.seed, epoch, index):
                pairs.append(self.dataset[index])
        x, target = default_collate(pairs)
        return x, target.long()


class PairData(EpochData):
    """A data module of two datasets, whose items are pairs (x, class); validation images serve as test images too.

    Args:
        train: the training images; ``train.classes``, as torchvision's datasets have it, names the classes.
        val: the validation images.
        num_classes: where ``train`` doesn't name its classes.
        seed: of order and augmentation.
        batch_size: images per step of one process; by default as for a folder.
        workers: processes that read images.

    Raises:
        ValueError: nothing says how many classes there are; an argument out of its range.

    Example:
        >>> import torch
        >>> from torch.utils.data import TensorDataset
        >>> images = TensorDataset(torch.zeros(20, 3, 8, 8), torch.arange(20) % 2)
        >>> PairData(images, images, num_classes=2).batch_size
        8
    """

    def __init__(
        self,
        train: Dataset[Any],
        val: Dataset[Any],
        *,
        num_classes: int | None = None,
        seed: int = 0,
        batch_size: int | None = None,
        workers: int = 0,
    ) -> None:
        super().__init__()
        self.seed, self.workers, self._batch_size = seed, workers, batch_size
        self.eval_batch_size = batch_size or LARGEST_BATCH
        require_at_least(self, _batch_size=1, workers=0, seed=0)
        names = getattr(train, "classes", None) or range(num_classes or 0)
        if not names:
            raise ValueError(f"the {type(train).__name__} has no attribute classes; give num_classes")
        self._names = [str(name) for name in names]
        self._splits = {name: _DatasetImages(images, seed) for name, images in (("train", train), ("val", val))}
        self._splits["test"] = self._splits["val"]
        x = self._splits["train"].batch([(0, 0, 0)])[0][0]
        if not isinstance(x, Tensor) or x.ndim < 2:
            what = f"the {type(train).__name__} gives a {type(x).__name__}"
            raise ValueError(f"{what}; its items must be (tensor, class)")
        self.in_chans, self.image_size = x.shape[0], x.shape[-1]
