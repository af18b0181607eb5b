"""A trained network as a teacher: frozen, always in eval mode, and no part of the student's checkpoint."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from icnets.distill.logits import check_logits
from icnets.support.hooks import modes_kept
from icnets.support.text import described, first_line

Normalization = Sequence[float] | Tensor


class Teacher(nn.Module):
    """Makes a teacher of any network ``(N, C_in, ...) -> (N, C, ...)`` logits.

    The network is taken as it is, not copied: its parameters stop requiring gradients, and it goes to eval mode and
    stays there, also when a parent calls ``train()``. It is hidden from the parent: ``state_dict``, ``parameters``,
    ``modules``, ``apply`` and ``requires_grad_`` don't see it, and loading skips keys that an older checkpoint may
    hold for it; only moves (``to``, ``cuda``, ``half``) reach it. Pickling and deep copies include it.

    Where its normalisation differs from the student's, give all four of ``mean``, ``std`` (what the teacher was trained
    with) and ``student_mean``, ``student_std`` (what the student's input comes with), one value per input channel:
    the input is then normalised anew for the teacher.

    Args:
        model: the network. Not the student itself: pass ``copy.deepcopy(model)`` where both start from one network.
        mean: the teacher's normalisation, a sequence or tensor of C_in values, like the three that follow.
        std: above 0.
        student_mean: normalisation of the images that arrive.
        student_std: above 0.
        classes: where the student's classes are among the teacher's, one position each: the logits are taken in that
            order, ``(N, len(classes), ...)``. None: as they are.

    Raises:
        TypeError: ``model`` is no nn.Module, or is a Teacher already.
        ValueError: some but not all of the four are given, their lengths differ, or a value is out of range.

    Example:
        >>> network = nn.Sequential(nn.Flatten(), nn.Linear(12, 1000))
        >>> teacher = Teacher(network, classes=[281, 207])  # of ImageNet's classes tabby and golden retriever
        >>> teacher(torch.randn(4, 3, 2, 2)).shape
        torch.Size([4, 2])
    """

    model: nn.Module

    def __init__(
        self,
        model: nn.Module,
        *,
        mean: Normalization | None = None,
        std: Normalization | None = None,
        student_mean: Normalization | None = None,
        student_std: Normalization | None = None,
        classes: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(model, nn.Module) or isinstance(model, Teacher):
            raise TypeError(f"a teacher is made from an nn.Module that is no Teacher yet, got {type(model).__name__}")
        self._affine = _renormalization(mean=mean, std=std, student_mean=student_mean, student_std=student_std)
        self.classes = None if classes is None else _class_positions(classes)
        self.__dict__["model"] = model  # not a submodule, so that nothing that walks the parent finds it
        self.training = False
        model.requires_grad_(False).eval()
        self._place(next((p.device for p in model.parameters()), torch.device("cpu")))

    def forward(self, x: Tensor) -> Tensor:
        """Returns the teacher's logits, without gradient.

        Args:
            x: input ``(N, C_in, ...)``, normalised for the student.

        Returns:
            What the network returns, ``(N, C, ...)``; of it the ``classes`` that were asked for.

        Raises:
            ValueError: ``x`` has another number of channels than the normalisation, or the logits have too few classes.
        """
        # Someone else may hold the network and call train() on it; a batch norm would then learn from this input.
        if any(module.training for module in self.model.modules()):
            self.model.eval()
        with torch.no_grad():  # not inference_mode: autograd refuses its tensors, and the loss is a function of these
            logits: Tensor = self.model(self.normalize(x))
        if self.classes is None:
            return logits
        if not isinstance(logits, Tensor) or logits.ndim < 2 or logits.shape[1] <= max(self.classes):
            found = tuple(logits.shape) if isinstance(logits, Tensor) else described(logits)
            raise ValueError(f"classes asks for class {max(self.classes)} of the teacher, which gives {found}")
        return logits[:, self._chosen]

    def normalize(self, x: Tensor) -> Tensor:
        """Normalises the student's input ``(N, C_in, ...)`` anew for the teacher; same shape and dtype."""
        if self._affine is None:
            return x
        channels = len(self._affine[0])
        if x.ndim < 2 or x.shape[1] != channels:
            raise ValueError(f"the normalisation has {channels} channels, but the input is {tuple(x.shape)}")
        dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
        scale, shift = (v.to(x.device, dtype).view(-1, *[1] * (x.ndim - 2)) for v in (self._scale, self._shift))
        return (x.to(dtype) * scale + shift).to(x.dtype)

    def check(self, student: nn.Module, sample: Tensor) -> None:
        """Says before training starts what would go wrong in it. Changes neither network, whatever their modes.

        Args:
            student: the network to be trained, on ``sample``'s device.
            sample: a batch ``(N, C_in, ...)``, normalised for the student.

        Raises:
            ValueError: the networks share parameters; an output is no tensor ``(N, C, ...)``; the numbers of classes
                (named) or the shapes differ; the teacher cannot process the sample, or its logits are not finite.
        """
        require_independent(self.model, student)
        with modes_kept(student), torch.no_grad():
            ours = student.eval()(sample)
        try:
            theirs = self(sample)
        except RuntimeError as error:
            what = f"the teacher cannot process the student's input {sample.dtype} {tuple(sample.shape)}"
            raise ValueError(f"{what}: {first_line(error)}") from error
        check_logits(ours, theirs)
        if not theirs.isfinite().all():
            raise ValueError("the teacher's logits are not finite on the sample: check its weights and normalisation")

    def train(self, mode: bool = True) -> Teacher:
        """Does nothing: a teacher stays in eval mode."""
        return self

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Teacher:
        self.model._apply(fn, recurse)
        self._place(fn(torch.empty(0, device=self._scale.device)).device)
        return self

    def _place(self, device: torch.device) -> None:
        # From the exact numbers, and not by moving tensors: half() must not round them.
        dtype = torch.float32 if device.type == "mps" else torch.float64
        scale, shift = self._affine or ((), ())
        self._scale = torch.tensor(scale, dtype=dtype, device=device)
        self._shift = torch.tensor(shift, dtype=dtype, device=device)
        self._chosen = torch.tensor(self.classes or (), dtype=torch.int64, device=device)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        """Nothing of a teacher is in a checkpoint, and what an older one holds is skipped, in strict mode as well."""


def require_independent(network: nn.Module, student: nn.Module) -> None:
    """Raises ValueError if the teaching ``network`` is the student or shares a parameter's memory with it."""
    if student is network:
        raise ValueError("the teacher is the student itself: teach by copy.deepcopy(model)")
    storages = {_storage(p) for p in network.parameters()} - {None}
    for name, parameter in student.named_parameters():
        if _storage(parameter) in storages:
            raise ValueError(f"teacher and student share the parameter {name!r}: teach by copy.deepcopy(model)")


def _storage(parameter: Tensor) -> tuple[torch.device, int] | None:
    """What two parameters that share memory have in common; None for empty ones, which have none to share."""
    if parameter.is_meta or isinstance(parameter, nn.parameter.UninitializedParameter):
        return (parameter.device, id(parameter))
    if hasattr(parameter, "to_local"):  # a sharded one has no memory but its shard's
        parameter = parameter.to_local()
    pointer = parameter.untyped_storage().data_ptr()
    return (parameter.device, pointer) if pointer else None


def _class_positions(classes: Sequence[int]) -> tuple[int, ...]:
    if not classes or not all(type(c) is int and c >= 0 for c in classes) or len(set(classes)) < len(classes):
        raise ValueError(f"classes must be different positions from 0, at least one, got {classes[:8]}")
    return tuple(classes)


def _channel_values(name: str, values: Normalization) -> tuple[float, ...]:
    result = tuple(torch.as_tensor(values, dtype=torch.float64).flatten().tolist())
    low, allowed = (0.0, "> 0") if name.endswith("std") else (-math.inf, "finite")
    if not result or not all(low < v < math.inf for v in result):
        raise ValueError(f"{name} must hold one number per input channel, each {allowed}, got {result}")
    return result


def _renormalization(**given: Normalization | None) -> tuple[list[float], list[float]] | None:
    """Scale and shift per channel from the student's normalisation to the teacher's; None where they agree."""
    values = {name: _channel_values(name, v) for name, v in given.items() if v is not None}
    if values and (missing := [name for name in given if name not in values]):
        raise ValueError(f"give all of {', '.join(given)} or none: {', '.join(missing)} missing")
    if len({len(v) for v in values.values()}) > 1:
        raise ValueError(f"the normalisations must have one number of channels, got {values}")
    channels = list(zip(*values.values(), strict=True))  # mean, std, student_mean, student_std
    if all(own[:2] == own[2:] for own in channels):
        return None
    return [ss / s for _, s, _, ss in channels], [(sm - m) / s for m, s, sm, _ in channels]
