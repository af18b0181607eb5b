"""A network that teaches: where it comes from, and what its file says of classes and images beside the data's."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from timm.data.imagenet_info import ImageNetInfo, infer_imagenet_subset
from torch import nn

from icnets.checkpoint.image_notes import ImageNotes
from icnets.deploy.export.engines import SUFFIXES
from icnets.distill.teacher import Normalization, Teacher
from icnets.open_network import network_file, notes_of_start, open_network
from icnets.support.text import differing, few, tell

TeacherClasses = Literal["same", "by-name", "by-index"]

_VIEW = ("image_size", "crop_pct", "interpolation")


class TrainedNetwork(NamedTuple):
    """A trained network and what its source says of it.

    ``class_names``: what its classes may be called, in the order of its outputs; ImageNet's have several sets of names.
    """

    name: str
    network: nn.Module
    notes: ImageNotes
    class_names: tuple[list[str], ...] = ()


def open_teacher(source: str, in_chans: int) -> TrainedNetwork:
    """A trained network to teach, and what is known of its classes and images.

    Args:
        source: path of a checkpoint of ours (.safetensors, .ckpt), a folder of ``save_pretrained``, or "timm:NAME" for
            timm's pretrained network, e.g. timm:resnet50.a2_in1k.
        in_chans: of the student's images.

    Raises:
        ValueError: no such checkpoint or network, one without pretrained weights, or other channels.
    """
    name, file = source.removeprefix("timm:"), network_file(source)
    if name == source and (file is None or file.suffix in SUFFIXES):
        what = f"there is no checkpoint {source}" if file is None else f"{source} is an artifact of icnets export"
        known = "a .safetensors or .ckpt file, a folder of save_pretrained (of the Hub: download it), or timm:NAME"
        raise ValueError(f"{what}; give {known} for timm's pretrained network")
    network, notes, _, _ = open_network(name, pretrained=name != source)
    if notes.in_chans not in (None, in_chans):
        what = f"in_chans is {in_chans}, but the teacher {source} was trained with {notes.in_chans}"
        raise ValueError(f"{what}: give --data.in_chans {notes.in_chans}, or another teacher")
    names = () if notes.class_names is None else (notes.class_names,)
    if name != source and (subset := infer_imagenet_subset(network)):
        info = ImageNetInfo(subset)
        names = (info.label_names(), *names, [str(i) for i in range(info.num_classes())])
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
        first, second = differing(names, ours)
        remedy = ""
        if set(ours) <= set(names):
            remedy = "; --model.teacher_classes by-name takes its logits by their names"
        elif len(ours) == len(names) and all(a == b or a not in ours for a, b in zip(names, ours, strict=True)):
            remedy = "; if only their names differ, give --model.teacher_classes by-index"
        order = "distillation needs the same classes in the same order"
        raise ValueError(f"the teacher {teacher.name} knows {first}, the data has {second}; {order}{remedy}")
    if lost := [name for name in ours if names.count(name) != 1]:
        what = "has several times" if lost[0] in names else "lacks"
        raise ValueError(f"the teacher {teacher.name} {what} {len(lost)} of the data's classes: {few(lost, 8)}")
    return [names.index(name) for name in ours]


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
    if teacher is None or isinstance(teacher, Teacher):
        given += ["distillation"] * (distils and teacher is None)
        if given:
            what = "no teacher" if teacher is None else "a Teacher, which has its own mean, std and classes"
            raise ValueError(f"given: {', '.join(given)}, and {what}; give --model.teacher FILE, or leave that out")
        return teacher
    positions = None
    if isinstance(teacher, nn.Module):  # which notes nothing
        if classes == "by-name":
            raise ValueError("teacher_classes is by-name, but a network alone doesn't name its classes; give its file")
        teacher = TrainedNetwork(type(teacher).__name__, teacher, ImageNotes())
    else:
        positions = class_positions(teacher, getattr(data, "class_names", None), classes)
        if other := _other(teacher.notes, data, _VIEW):
            tell(f"the teacher {teacher.name} was evaluated with {other}; it gets the student's images as they are")
        if mean is None and std is None:
            mean, std = _noted_normalization(teacher, data)
    values: dict[str, Any] = {}
    if mean is not None or std is not None:
        ours = {f"student_{name}": getattr(data, name, None) for name in ("mean", "std")}
        values = {"mean": mean, "std": std, **ours}
    try:
        return Teacher(teacher.network, classes=positions, **values)
    except ValueError as error:
        remedy = "give both --model.teacher_mean and teacher_std"
        raise ValueError(f"the normalisation of the teacher {teacher.name}: {error}; {remedy}") from error


def _noted_normalization(teacher: TrainedNetwork, data: Any) -> Any:
    """Mean and deviation that the teacher's source notes; None and None, with a line, where either side has none."""
    mean, std = teacher.notes.mean, teacher.notes.std
    if None not in (mean or std, getattr(data, "mean", None)):
        return mean, std
    what = f"the teacher {teacher.name} or the data doesn't note its mean and std: it gets the images with the data's"
    tell(f"{what}; give --model.teacher_mean and teacher_std if it was trained with others")
    return None, None


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
    if other := _other(notes, data, ("mean", "std") if trains else ("mean", "std", *_VIEW)):
        tell(f"{path} was trained with {other}; give --data... as it was, if that isn't meant")
