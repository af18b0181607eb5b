"""A network that teaches: where it comes from, and what its file says of classes and images beside the data's."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from timm.data.imagenet_info import ImageNetInfo, infer_imagenet_subset
from torch import nn

from icnets.checkpoint.image_notes import ImageNotes
from icnets.deploy.export.engines import SUFFIXES
from icnets.distill.teacher import Teacher
from icnets.open_network import network_file, notes_of_start, open_network
from icnets.support.named_code import names_code
from icnets.support.text import differing, few, tell

_VIEW = ("image_size", "crop_pct", "interpolation")


class TrainedNetwork(NamedTuple):
    """A trained network and what its source says of it.

    ``class_names``: what its classes may be called, in the order of its outputs; ImageNet's have several sets of names.
    """

    name: str
    network: nn.Module
    notes: ImageNotes
    class_names: tuple[list[str], ...] = ()


def open_teacher(source: str, in_chans: int, student: Any = None) -> TrainedNetwork:
    """A trained network to teach, and what is known of its classes and images.

    Args:
        source: path of a checkpoint of ours (.safetensors, .ckpt), a folder of ``save_pretrained``, or "timm:NAME" for
            timm's pretrained network, e.g. timm:resnet50.a2_in1k.
        in_chans: of the student's images.
        student: where that is code, such as my_cnn.py:MyCNN, it makes the network of a checkpoint that names none.

    Raises:
        ValueError: no such checkpoint or network, one without pretrained weights, or other channels.
    """
    name, file = source.removeprefix("timm:"), network_file(source)
    if name == source and (file is None or file.suffix in SUFFIXES):
        what = f"there is no checkpoint {source}" if file is None else f"{source} is an artifact of icnets export"
        known = "a .safetensors or .ckpt file, a folder of save_pretrained (of the Hub: download it), or timm:NAME"
        raise ValueError(f"{what}; give {known} for timm's pretrained network")
    try:
        network, notes, _, _ = open_network(name, pretrained=name != source)
    except ValueError:
        if file is None or not (isinstance(student, str) and names_code(student)):
            raise
        network, notes, _, _ = open_network(student, weights=file)
    if notes.in_chans not in (None, in_chans):
        what = f"in_chans is {in_chans}, but the teacher {source} was trained with {notes.in_chans}"
        raise ValueError(f"{what}: give --data.in_chans {notes.in_chans}, or another teacher")
    names = () if notes.class_names is None else (notes.class_names,)
    if name != source and (subset := infer_imagenet_subset(network)):
        info = ImageNetInfo(subset)
        names = (info.label_names(), *names, [str(i) for i in range(info.num_classes())])
    return TrainedNetwork(source, network, notes, names)


def class_positions(teacher: TrainedNetwork, class_names: Sequence[str] | None) -> list[int] | None:
    """Where among the teacher's classes the data's are, by their names. None: they are the same in the same order.

    Args:
        teacher: what it says of its classes, of which it may know more than the data has.
        class_names: the data's; None where it has no names.

    Raises:
        ValueError: the teacher doesn't know all of them.

    Example:
        >>> pets = TrainedNetwork("pets", nn.Identity(), ImageNotes(), (["cat", "dog", "eel"],))
        >>> class_positions(pets, ["eel", "cat"])
        [2, 0]
    """
    if not teacher.class_names or class_names is None:
        who = f"the teacher {teacher.name}" if class_names is not None else "the data"
        tell(f"{who} doesn't name its classes: the teacher's are taken in the order of the data's")
        return None
    ours = list(class_names)
    if ours in teacher.class_names:
        return None
    names = max(teacher.class_names[:2], key=lambda known: len(set(known) & set(ours)))  # numbers count whole only
    first, second = differing(names, ours)
    what = f"the teacher {teacher.name} knows {first}, the data has {second}"
    if lost := [name for name in ours if names.count(name) != 1]:
        why = "has several times" if lost[0] in names else "lacks"
        remedy = "if only their names differ, save it with the data's as class_names in the metadata of icnets.save"
        raise ValueError(f"{what}: it {why} {len(lost)} of the data's: {few(lost, 8)}; {remedy}")
    tell(f"{what}: its logits are taken by their names")
    return [names.index(name) for name in ours]


def make_teacher(teacher: nn.Module | TrainedNetwork | None, data: Any, *, distils: bool = False) -> Teacher | None:
    """The teacher of a training on ``data``: its logits in the order of the data's classes, its own normalisation.

    Args:
        teacher: a network, taken as it is; a Teacher, which is returned; or a network with what its source says. None:
            there is none.
        data: a data module, or None. What it doesn't know (``class_names``, ``mean``, ``std``) isn't compared.
        distils: whether the training is told how to distil.

    Raises:
        ValueError: other classes, half a normalisation, or no teacher where one is needed.
    """
    if teacher is None:
        if distils:
            raise ValueError("given: distillation, and no teacher; give --model.teacher FILE, or leave that out")
        return None
    if isinstance(teacher, nn.Module):  # which notes nothing
        return teacher if isinstance(teacher, Teacher) else Teacher(teacher)
    positions = class_positions(teacher, getattr(data, "class_names", None))
    if other := _other(teacher.notes, data, _VIEW):
        tell(f"the teacher {teacher.name} was evaluated with {other}; it gets the student's images as they are")
    try:
        return Teacher(teacher.network, classes=positions, **_noted_normalization(teacher, data))
    except ValueError as error:
        remedy = "save it with both, mean and std, in the metadata of icnets.save"
        raise ValueError(f"the normalisation of the teacher {teacher.name}: {error}; {remedy}") from error


def _noted_normalization(teacher: TrainedNetwork, data: Any) -> dict[str, Any]:
    """Mean and deviation that the teacher's source notes, and the data's; none, with a line, where either has none."""
    mean, std = teacher.notes.mean, teacher.notes.std
    if None not in (mean or std, getattr(data, "mean", None)):
        return {"mean": mean, "std": std, "student_mean": data.mean, "student_std": data.std}
    what = f"the teacher {teacher.name} or the data doesn't note its mean and std: it gets the images with the data's"
    tell(f"{what}; if it was trained with others, save it with them in the metadata of icnets.save")
    return {}


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
