"""What the program does, in Python: one call for a training, one for a comparison."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from difflib import get_close_matches
from inspect import signature
from pathlib import Path
from typing import Any

import lightning as L
from torch import nn

from icnets.comparison.engine import Comparison, run_comparison
from icnets.comparison.own_images import over, own_recipe
from icnets.comparison.run_files import rebuilt
from icnets.comparison.settings import Settings
from icnets.convert.config import ICConfig
from icnets.data.data_module import ImageData
from icnets.data.pairs import PairData
from icnets.report.run_pictures import SampleBatch, save_pictures
from icnets.support.quiet import quiet
from icnets.support.undo import remember_all
from icnets.training.by_class import ValidationCounts
from icnets.training.callbacks import progress_bar
from icnets.training.fitting import TRAINER_DEFAULTS, FitResult, RunOptions, free_name, result_of
from icnets.training.network import start_statistics
from icnets.training.optimization import Optimization
from icnets.training.run_checkpoints import AtomicCheckpointIO
from icnets.training.task import ClassificationTask


def fit(
    model: str | nn.Module,
    data: Any = None,
    *,
    name: str | None = None,
    runs: str | Path = "runs",
    seed: int = 0,
    overwrite: bool = False,
    **options: Any,
) -> FitResult:
    """Train a network as ``icnets fit`` does, with the same defaults and to the same numbers.

    Args:
        model: a module, which is trained in place, or a name: timm's, or code such as ``my_cnn.py:MyCNN``.
        data: a folder of images; a pair of torch datasets, to train and to validate; a data module; or None for
            scikit-learn's digits.
        name: the run's, whose files are in ``runs/name``; the network's by default.
        runs: folder of all runs.
        seed: of everything random.
        overwrite: whether a run of this name is begun anew.
        **options: ema, save_every, keep and patience, as of ``icnets fit``; and arguments of
            :class:`icnets.data.data_module.ImageData` (image_size, batch_size, ...),
            :class:`icnets.training.task.ClassificationTask` (ic, init_from, lr, ...) and Lightning's Trainer
            (max_epochs, accelerator, devices, ...).

    Returns:
        The best validation accuracy and the files.

    Raises:
        ValueError, TypeError: an unknown option, or what ``icnets fit`` refuses.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as runs:
        ...     options = {"train_size": 40, "image_size": 32, "max_epochs": 1, "enable_progress_bar": False}
        ...     result = fit("lcnet_050", runs=runs, name="digits", **options)
        basic MobileNetV3, ... parameters, random weights; images: 40 train, 150 val, 797 test; 8 images a step, ...
        >>> result.weights.name
        'best.safetensors'
    """
    quiet()
    label = model.rpartition(":")[2] if isinstance(model, str) else type(model).__name__
    of_data, of_task, of_trainer, of_run = _sorted(options)
    run = RunOptions(name or free_name(label, runs), str(runs), **of_run)
    if not overwrite:
        run.require_empty()
    L.seed_everything(seed, workers=True, verbose=False)
    if isinstance(data, str | Path):
        of_data |= start_statistics({"model": model, **of_task}, {"root": data, **of_data})
    source = _data(data, {"seed": seed, **of_data}, of_task.get("num_classes"))
    found = {key: value for key in ("num_classes", "in_chans") if (value := getattr(source, key, None)) is not None}
    if "num_classes" not in {**found, **of_task}:
        raise ValueError(f"the {type(source).__name__} has no num_classes; give num_classes=N")
    chosen = {"seed_everything": seed, **asdict(run), "model": {"model": model, **of_task}, "trainer": dict(of_trainer)}
    chosen["data"] = {"root": data if isinstance(source, ImageData) else source, **of_data}
    with ExitStack() as undo:  # until the first step is done, a module that was given stays as it was
        if isinstance(model, nn.Module):
            remember_all(undo, model, values=True)
        task = ClassificationTask(model, **{**of_task, **found})
        trainer = _trainer(run, of_trainer, _plain(chosen))
        if trainer.is_global_zero:
            run.make_room(trainer, task)
        try:
            trainer.fit(task, datamodule=source)
        finally:
            if trainer.global_step:
                undo.pop_all()
    if trainer.is_global_zero:
        save_pictures(trainer, run.folder)
    return result_of(trainer, run.folder)


def _trainer(run: RunOptions, options: dict[str, Any], config: dict[str, Any]) -> L.Trainer:
    """Lightning's trainer with what ``icnets fit`` gives it; its options by name go before."""
    callbacks: list[Any] = [] if options.get("enable_progress_bar") is False else [progress_bar()]
    callbacks += run.callbacks(config, options, ValidationCounts(), SampleBatch(run.folder))
    own: dict[str, Any] = {"default_root_dir": str(run.folder), "logger": run.logger(), **options}
    own["callbacks"] = [*callbacks, *(options.get("callbacks") or [])]
    own["plugins"] = [AtomicCheckpointIO(), *(options.get("plugins") or [])]
    return L.Trainer(**{**TRAINER_DEFAULTS, **own})


def compare(
    model: str | nn.Module,
    data: str | Path | Mapping[str, Any],
    *,
    minutes: float | None = 20,
    weights: str | Path | None = None,
    out: str | Path | None = None,
    **settings: Any,
) -> Comparison:
    """Fine-tunes a trained network on your images, as it is and as an IC network, and says which to keep.

    The rows, and how they are trained, are those of ``icnets compare FOLDER --model NAME``. It is done in this process,
    by one thread, and gives the command's numbers; with more ``workers`` it is faster, and then a script needs
    ``if __name__ == "__main__":``, as always with processes.

    Args:
        model: a name that the commands take, such as resnet50, or a network with a head for the classes of ``data``,
            which stays as it is.
        data: folder of images, or options of :class:`icnets.data.data_module.ImageData`.
        minutes: that it may take; None: epochs and seeds are those of ``settings``.
        weights: file of the weights to start from; timm's pretrained ones by default. A network has its own.
        out: folder of the results; by default a folder in ``runs``, named after both.
        **settings: others of :class:`icnets.comparison.settings.Settings`, such as ``training={"epochs": 5}``.

    Returns:
        What prints the table and the verdict, and knows its files.

    Raises:
        ValueError: as for the command: a network, images, weights or settings that can't be used.

    Example:
        >>> import tempfile
        >>> found = compare(
        ...     "resnet10t", {"image_size": 16, "train_size": 50}, minutes=None, out=tempfile.mkdtemp(), seeds=[0],
        ...     network={"weights": None, "options": {"channels": [8, 8, 8, 8], "stem_width": 8}},
        ...     training={"epochs": 1, "extra_epochs": 1},
        ... )  # doctest: +ELLIPSIS
        measuring 5 networks...
        >>> found.runs
        5
    """
    images = dict(data) if isinstance(data, Mapping) else {"root": str(data)}
    recipe = own_recipe(model, None if weights is None else str(weights), images)
    recipe |= {"minutes": minutes, "workers": 1} | ({} if out is None else {"out": str(out)})
    chosen = rebuilt(Settings, over(recipe, settings), strict=True)
    return run_comparison(chosen, f"icnets.compare({chosen.network.name!r}, {str(data)!r})")


def _sorted(options: Mapping[str, Any]) -> Sequence[dict[str, Any]]:
    """The options of the images, of the task, of the trainer and of the run."""
    names = [set(signature(kind).parameters) for kind in (ImageData, ClassificationTask, L.Trainer, RunOptions)]
    names[1] = (names[1] | set(signature(Optimization).parameters)) - {"optimization"}
    found: list[dict[str, Any]] = [{}, {}, {}, {}]
    for name, value in options.items():
        place = next((place for place, known in zip(found, names, strict=True) if name in known), None)
        if place is None:
            near = get_close_matches(name, set().union(*names), n=1)
            raise TypeError(f"unknown option {name}" + (f"; did you mean {near[0]}?" if near else ""))
        place[name] = value
    return found


def _data(data: Any, options: dict[str, Any], num_classes: int | None) -> Any:
    if data is None or isinstance(data, str | Path):
        return ImageData(None if data is None else Path(data), **options)
    pair = isinstance(data, tuple | list) and len(data) == 2
    if not (pair or isinstance(data, L.LightningDataModule)):
        what = f"data is a {type(data).__name__}"
        raise TypeError(f"{what}; give a folder, a pair of datasets to train and to validate, or a data module")
    taken = {"seed", "batch_size", "workers"} if pair else {"seed"}
    if unknown := options.keys() - taken:
        raise TypeError(f"{min(unknown)} is an option of a folder of images, but the data is a {type(data).__name__}")
    return PairData(*data, num_classes=num_classes, **options) if pair else data


def _plain(value: Any) -> Any:
    """What YAML can hold of the options, by which ``icnets fit`` and ``test`` go on; of an object, what it is."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, ICConfig):
        return value.to_dict()
    named = value is not None and not isinstance(value, str | int | float | Path)
    return type(value).__name__ if named else str(value) if isinstance(value, Path) else value
