"""A network that teaches: where it comes from, and what its file says of classes and images beside the data's."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from timm.data.imagenet_info import ImageNetInfo, infer_imagenet_subset
from timm.models import get_pretrained_cfg, is_model
from torch import nn

from icnets.checkpoint.image_notes import ImageNotes, notes_of_cfg
from icnets.distill.teacher import Normalization, Teacher
from icnets.open_network import notes_of_start, open_network
from icnets.support.text import differing, few, tell
from icnets.timm_models import create_model

TeacherClasses = Literal["same", "by-name", "by-index"]

_NORMALIZATION = ("mean", "std")
_VIEW = ("image_size", "crop_pct", "interpolation")
_ORDER = "distillation needs the same classes in the same order"


class TrainedNetwork(NamedTuple):
    """A trained network and what its source says of it.

    ``class_names``: what its classes may be called, in the order of its outputs; ImageNet's have several sets of names.
    """

    name: str
    network: nn.Module
    notes: ImageNotes
    class_names: tuple[list[str], ...] = ()


def open_teacher(
    source: str, *, num_classes: int, in_chans: int, classes: TeacherClasses = "same", weights: bool = True
) -> TrainedNetwork:
    """A trained network to teach, and what is known of its classes and images.

    Args:
        source: path of a checkpoint of ours (.safetensors, .ckpt), a folder of ``save_pretrained``, or "timm:NAME" for
            timm's pretrained network, e.g. timm:resnet50.a2_in1k.
        num_classes, in_chans: of the student.
        classes: "by-name" lets the teacher have other classes beside the student's.
        weights: False: timm's network without its weights, which aren't downloaded then.

    Raises:
        ValueError: no such checkpoint or network, one without pretrained weights, or other classes or channels.
    """
    if source.startswith("timm:"):
        return _of_timm(source, num_classes, in_chans, classes, weights)
    from icnets.deploy.export.engines import SUFFIXES  # which imports torch.export

    path = Path(source)
    if path.suffix in SUFFIXES and path.is_file():
        raise ValueError(
            f"the teacher {source} is an artifact of icnets export; give the checkpoint that it was made of"
        )
    if not path.exists() and is_model(source.split(".")[0]):
        raise ValueError(f"there is no checkpoint {source}; timm's pretrained network is called timm:{source}")
    if not (path.exists() or path.suffix in (".safetensors", ".ckpt")):
        raise ValueError(
            f"there is no checkpoint {source}; give a .safetensors or .ckpt file, a folder of save_pretrained "
            "(download a repository of the Hub first), or timm:NAME"
        )
    network, notes, _, _ = open_network(path)
    _require_channels(source, notes, in_chans)
    return TrainedNetwork(source, network, notes, () if notes.class_names is None else (notes.class_names,))


def _require_channels(source: str, notes: ImageNotes, in_chans: int) -> None:
    if notes.in_chans not in (None, in_chans):
        raise ValueError(
            f"in_chans is {in_chans}, but the teacher {source} was trained with {notes.in_chans}: "
            f"give --data.in_chans {notes.in_chans}, or another teacher"
        )


def _of_timm(source: str, num_classes: int, in_chans: int, classes: TeacherClasses, weights: bool) -> TrainedNetwork:
    name = source.removeprefix("timm:")
    cfg = get_pretrained_cfg(name) if is_model(name.split(".")[0]) else None
    if cfg is None or not cfg.has_weights:
        raise ValueError(
            f"teacher is {source!r}, but timm has no pretrained network {name!r}; see timm.list_pretrained()"
        )
    if cfg.num_classes != num_classes and classes != "by-name":
        raise ValueError(
            f"the student has {num_classes} classes and the teacher {source} {cfg.num_classes}: {_ORDER}; "
            "--model.teacher_classes by-name takes those of the data's names"
        )
    notes = notes_of_cfg(cfg.to_dict())
    _require_channels(source, notes, in_chans)
    network = create_model(name, pretrained=weights, ic=None, num_classes=cfg.num_classes)
    subset = infer_imagenet_subset(cfg.to_dict())
    names: tuple[list[str], ...] = ()
    if subset and (info := ImageNetInfo(subset)).num_classes() == cfg.num_classes:
        numbers = range(cfg.num_classes)
        names = (info.label_names(), [info.index_to_description(i) for i in numbers], [str(i) for i in numbers])
    return TrainedNetwork(source, network, notes, names)


def class_positions(
    teacher: TrainedNetwork, class_names: Sequence[str] | None, classes: TeacherClasses
) -> list[int] | None:
    """Where among the teacher's classes the data's are. None: they are the same in the same order.

    Args:
        teacher: what it says of its classes.
        class_names: the data's; None where it has no names.
        classes: "same" demands the same names in the same order, "by-name" finds them, "by-index" doesn't ask.

    Raises:
        ValueError: classes that differ, with both lists, and what to do.

    Example:
        >>> pets = TrainedNetwork("pets", nn.Identity(), ImageNotes(), (["cat", "dog", "eel"],))
        >>> class_positions(pets, ["eel", "cat"], "by-name")
        [2, 0]
    """
    if classes == "by-index":
        return None
    if not teacher.class_names or class_names is None:
        who = f"the teacher {teacher.name}" if class_names is not None else "the data"
        if classes == "by-name":
            raise ValueError(f"teacher_classes is by-name, but {who} doesn't name its classes; leave it out")
        tell(f"{who} doesn't name its classes: the teacher's are taken in the order of the data's")
        return None
    ours = list(class_names)
    names = max(teacher.class_names, key=lambda known: len(set(known) & set(ours)))
    if names == ours:
        return None
    if classes == "same":
        raise ValueError(_disagreement(teacher.name, names, ours))
    if lost := [name for name in ours if names.count(name) != 1]:
        what = "has several times" if lost[0] in names else "lacks"
        raise ValueError(f"the teacher {teacher.name} {what} {len(lost)} of the data's classes: {few(lost, 8)}")
    return [names.index(name) for name in ours]


def _disagreement(name: str, theirs: list[str], ours: list[str]) -> str:
    first, second = differing(theirs, ours)
    counts = remedy = ""
    if len(ours) != len(theirs):
        counts = f"the student has {len(ours)} classes and the teacher {len(theirs)}: "
    if set(ours) <= set(theirs):
        remedy = "; --model.teacher_classes by-name takes its logits by their names"
    elif not counts and all(a == b or a not in ours for a, b in zip(theirs, ours, strict=True)):
        remedy = "; if only their names differ, give --model.teacher_classes by-index"
    return f"{counts}the teacher {name} knows {first}, the data has {second}; {_ORDER}{remedy}"


def make_teacher(
    teacher: nn.Module | TrainedNetwork | None,
    data: Any,
    *,
    mean: Normalization | None = None,
    std: Normalization | None = None,
    classes: TeacherClasses = "same",
    distils: bool = False,
) -> Teacher | None:
    """The teacher of a training on ``data``: its logits in the order of the data's classes, its own normalisation.

    Args:
        teacher: a network, taken as it is; a Teacher, which is returned; or a network with what its source says. None:
            there is none.
        data: a data module, or None. What it doesn't know (``class_names``, ``mean``, ``std``) isn't compared.
        mean, std: the teacher's normalisation, where its source is to be overruled.
        classes: see :func:`class_positions`.
        distils: whether the training is told how to distil.

    Raises:
        ValueError: other classes, half a normalisation, options beside a Teacher, which has its own, or without one.
    """
    options = {"teacher_mean": mean, "teacher_std": std, "teacher_classes": None if classes == "same" else classes}
    given = [name for name, value in options.items() if value is not None]
    if teacher is None:
        _require_none([*given, *["distillation"] * distils])
        return None
    if isinstance(teacher, Teacher):
        if given:
            raise ValueError("a Teacher has its own mean, std and classes; leave teacher_mean, _std, _classes out")
        return teacher
    if isinstance(teacher, nn.Module):
        if classes == "by-name":
            raise ValueError("teacher_classes is by-name, but a network alone doesn't name its classes; give its file")
        return _normalized(TrainedNetwork(type(teacher).__name__, teacher, ImageNotes()), data, mean, std, None)
    positions = class_positions(teacher, getattr(data, "class_names", None), classes)
    if other := _other(teacher.notes, data, _VIEW):
        tell(f"the teacher {teacher.name} was evaluated with {other}; it gets the student's images as they are")
    known = [mean, std, teacher.notes.mean, teacher.notes.std]
    if known == [None] * 4 and getattr(data, "mean", None) is not None:
        tell(
            f"the teacher {teacher.name} doesn't note its mean and std: it gets the images with the data's; "
            "give --model.teacher_mean and teacher_std if it was trained with others"
        )
    return _normalized(teacher, data, mean, std, positions)


def _require_none(given: list[str]) -> None:
    """ValueError where a training without a teacher is told how to be taught: it would be another training."""
    if given:
        verb = "is" if len(given) == 1 else "are"
        raise ValueError(
            f"{', '.join(given)} {verb} given, but no teacher; give --model.teacher FILE too, or leave that out"
        )


def _normalized(teacher: TrainedNetwork, data: Any, mean: Any, std: Any, positions: list[int] | None) -> Teacher:
    ours = {f"student_{name}": getattr(data, name, None) for name in _NORMALIZATION}
    if mean is None and std is None:
        mean, std = teacher.notes.mean, teacher.notes.std
        if (mean, std) != (None, None) and None in ours.values():
            tell(f"the teacher {teacher.name} notes mean and std, the data none: its images are taken as they are")
            mean = std = None
    given: dict[str, Any] = {} if mean is None and std is None else {"mean": mean, "std": std, **ours}
    try:
        return Teacher(teacher.network, classes=positions, **given)
    except ValueError as error:
        remedy = "give both --model.teacher_mean and teacher_std"
        raise ValueError(f"the normalisation of the teacher {teacher.name}: {error}; {remedy}") from error


def _other(notes: ImageNotes, data: Any, keys: Sequence[str]) -> str:
    """What is noted of images otherwise than the data has it: "image_size 224 (here 64)"."""
    pairs = [(key, getattr(notes, key), getattr(data, key, None)) for key in keys]
    return ", ".join(f"{key} {a} (here {b})" for key, a, b in pairs if None not in (a, b) and a != b)


def compare_start(path: Path | None, data: Any, *, trains: bool) -> None:
    """What weights to begin with, or to evaluate, say of classes and images beside the data's: a line where it differs.

    Args:
        path: a checkpoint, or any file of weights, most of which say nothing.
        data: the data module, or None.
        trains: whether the weights are a start only.

    Raises:
        ValueError: they are to be evaluated on other classes, or in another order.
    """
    notes = ImageNotes() if path is None or data is None else notes_of_start(path)
    theirs, ours = notes.class_names, getattr(data, "class_names", None)
    if theirs is not None and ours is not None and theirs != list(ours):
        first, second = differing(theirs, ours)
        if not trains:
            raise ValueError(f"{path} was trained on {first}, the data has {second}; give images of the same classes")
        what = "what the last layer knows is of other classes" if len(theirs) == len(ours) else "the last layer is new"
        tell(f"{path} was trained on {first}, the data has {second}: {what}")
    if other := _other(notes, data, _NORMALIZATION if trains else (*_NORMALIZATION, *_VIEW)):
        tell(f"{path} was trained with {other}; give --data... as it was, if that isn't meant")
