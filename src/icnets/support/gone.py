"""Options of earlier versions, which stand in the configurations and records of their runs with their defaults."""

from typing import Any

from icnets.support.text import tell

_FOLDERS = "folders are read: unpack tar shards into one folder per class, or give icnets.fit a pair of datasets"
_HUB = "folders are read; in Python, icnets.fit takes a pair of datasets, such as the hub's"

# By group, if there is one, and name: the default, which is dropped where it is read (...: any value; a line says so
# where there is no group), and what to do instead of another.
_GONE: dict[str, tuple[Any, str]] = {
    "data.cache": (None, "nothing is kept of the images; leave it out"),
    "data.check_limit": (20_000, "training names images that can't be read; leave it out"),
    "data.hf": (None, _HUB),
    "data.hf_val": ("validation", _HUB),
    "data.predict_root": (None, "icnets predict MODEL PATHS reads folders"),
    "data.prefetch": (2, "each worker reads two batches ahead; leave it out"),
    "data.real_labels": (None, "count right answers in the CSV file of icnets predict MODEL PATHS"),
    "data.shuffle_shards": (64, "all images are shuffled at once; leave it out"),
    "data.test_crops": (1, "the centre crop is tested; leave it out"),
    "model.activation_checkpointing": (False, "call set_grad_checkpointing of timm's network, then icnets.fit"),
    "model.check_teacher": (..., "nothing asks whether a teacher guesses; leave it out"),
    "data.train_shards": (None, _FOLDERS),
    "data.val_shards": (None, _FOLDERS),
    "model.teacher_classes": ("same", "logits are taken by the names that the teacher's file has as class_names"),
    "model.teacher_mean": (None, "the teacher's file has it, by the metadata of icnets.save"),
    "model.teacher_std": (None, "the teacher's file has it, by the metadata of icnets.save"),
    "cost_rounds": (..., "training steps aren't timed; leave it out"),
    "folder": (..., "icnets compare FOLDER --model NAME has a recipe of its own; leave it out"),
    "save_checkpoints": (..., "every trained network is kept; leave it out"),
    "data.test_root": (None, "give a data.root whose test/ holds the images, with class folders named as in train/"),
}


def instead_of(option: str) -> str | None:
    """Says what to do instead of giving an option, such as ``--data.test_crops``, that is gone; None: it isn't.

    Example:
        >>> instead_of("--data.predict_root")
        'there is no option data.predict_root any more: icnets predict MODEL PATHS reads folders'
    """
    name = option.removeprefix("--").partition("=")[0]
    return f"there is no option {name} any more: {_GONE[name][1]}" if name in _GONE else None


def without_gone(options: Any) -> Any:
    """Returns options, which are mappings by group, without those that are gone.

    Raises:
        ValueError: one of them has another value than its default.

    Example:
        >>> without_gone({"data": {"root": "photos", "test_crops": 1}})
        {'data': {'root': 'photos'}}
    """
    kept = options
    for option, (default, _) in _GONE.items():
        group, _, name = option.rpartition(".")
        values = kept.get(group) if group and isinstance(kept, dict) else kept
        if isinstance(values, dict) and name in values:
            if default not in (..., values[name]):
                raise ValueError(f"{option} is {values[name]!r}, but {instead_of(option)}")
            if not group:
                tell(f"{option} is left out: {instead_of(option)}")
            rest = {key: value for key, value in values.items() if key != name}
            kept = {**kept, group: rest} if group else rest
    return kept
