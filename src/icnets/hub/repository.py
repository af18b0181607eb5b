"""The files of a repository: written to a folder, pushed by huggingface_hub, and loaded from either."""

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from torch import nn

from icnets.checkpoint.image_notes import as_text, read_notes
from icnets.checkpoint.safetensors_file import load, prepare, write
from icnets.convert.structure import unwrapped
from icnets.hub.card import Card, card_text
from icnets.support.files import atomic_write
from icnets.support.text import first_line

WEIGHTS, CARD = "model.safetensors", "README.md"


class HubError(ValueError):
    """A folder or repository that can't be used, with the reason and the remedy in one line."""


def save_pretrained(
    model: nn.Module,
    folder: str | os.PathLike[str],
    *,
    card: Card | None = None,
    architecture: Mapping[str, Any] | None = None,
    metadata: Mapping[str, str] | None = None,
    overwrite: bool = False,
) -> None:
    """Writes what :func:`push_to_hub` would push: model.safetensors and README.md.

    Args:
        model: any network, converted or not.
        folder: where to write; made if missing.
        card: what the model card says; default :class:`Card`.
        architecture, metadata: as for :func:`icnets.save`.
        overwrite: replace the network that the folder holds.

    Raises:
        HubError: the folder is a file or holds a network already.
        ValueError: classes or an architecture that can't be used.
        TypeError: a model that :func:`icnets.save` refuses: deployed, traced, without values.

    Example:
        >>> import icnets, tempfile
        >>> model = icnets.create_model("resnet18", num_classes=10)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_pretrained(model, f"{folder}/net", card=Card(license="mit"))
        ...     again = from_pretrained(f"{folder}/net")
        >>> type(again) is type(model)
        True
    """
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise HubError(f"{folder} is a file; give a folder")
    there = [name for name in (WEIGHTS, CARD) if (folder / name).exists()]
    if there and not overwrite:
        raise HubError(f"{folder} has a {there[0]} already; give another folder, or overwrite=True (--overwrite)")
    _write(model, folder, folder.resolve().name, card or Card(), architecture, metadata)


def _write(model: nn.Module, folder: Path, source: str, card: Card, architecture: Any, metadata: Any) -> None:
    """Everything that can fail for what was given fails before the first file."""
    model, notes = unwrapped(model), dict(metadata or {})
    card = replace(card, classes=_labels(model, card, notes))
    if card.classes:
        notes.setdefault("class_names", as_text(card.classes))
    tensors, strings, claim = prepare(model, architecture, notes)
    text = card_text(model, card, source, notes, own=claim is None)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").unlink(missing_ok=True)  # for timm, as earlier versions wrote it
    write(folder / WEIGHTS, tensors, strings)
    with atomic_write(folder / CARD) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _labels(model: nn.Module, card: Card, notes: Mapping[str, str]) -> list[str]:
    """The class labels, given or noted. Raises ValueError where another number than of outputs is given."""
    outputs: Any = getattr(model, "num_classes", None)
    if card.classes and isinstance(outputs, int) and len(card.classes) != outputs:
        raise ValueError(f"the card has {len(card.classes)} classes, the network {outputs} outputs; give its own")
    noted = read_notes({"class_names": notes["class_names"]}).class_names if "class_names" in notes else None
    return list(card.classes) or (noted if noted is not None and len(noted) == outputs else [])


def push_to_hub(
    model: nn.Module,
    repo_id: str,
    *,
    card: Card | None = None,
    architecture: Mapping[str, Any] | None = None,
    metadata: Mapping[str, str] | None = None,
    private: bool | None = None,
    token: str | None = None,
    **options: Any,
) -> str:
    """Pushes the network and its model card to the Hub, in one commit; the repository is made if missing.

    Args:
        model, card, architecture, metadata: as for :func:`save_pretrained`.
        repo_id: "owner/name", or "name" for your own.
        private: of a new repository; None: as is usual for its owner.
        token: of the Hub; default the one that ``hf auth login`` kept.
        **options: others of ``huggingface_hub.upload_folder``: revision (the branch), create_pr, commit_message, ...

    Returns:
        The address of the commit.

    Raises:
        HubError: no such repository, no access, or no connection.
        ValueError, TypeError: as for :func:`save_pretrained`.

    Example:
        >>> address = push_to_hub(model, "me/ic_resnet18")  # doctest: +SKIP
    """
    import huggingface_hub as hub

    with TemporaryDirectory() as temporary:
        folder = Path(temporary)
        _write(model, folder, repo_id, card or Card(), architecture, metadata)
        options.setdefault("commit_message", "Network and model card by icnets")
        try:
            api = hub.HfApi(token=token, library_name="icnets")
            own_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
            return str(api.upload_folder(repo_id=own_id, folder_path=folder, **options))
        except Exception as error:
            remedy = "check the name, the connection, and hf auth login"
            raise HubError(f"{repo_id} can't be pushed: {first_line(error).rstrip('.')}; {remedy}") from error


def from_pretrained(source: str | os.PathLike[str], model: nn.Module | None = None, **options: Any) -> nn.Module:
    """Rebuilds the network of a folder or of a repository on the Hub, on the CPU and in eval mode.

    Args:
        source: a folder that :func:`save_pretrained` wrote, or a repository's id.
        model: the basic network, for networks of your own; see :func:`icnets.load`.
        **options: of ``huggingface_hub.hf_hub_download`` for a repository: revision (branch, tag or commit), token (for
            a private one), cache_dir (where downloads are kept), local_files_only (what was downloaded before), ...

    Raises:
        HubError: no such folder or repository, no weights in it, no connection, options for a folder.
        CheckpointError: weights that ``icnets.save`` didn't write, damaged ones, or ones that don't fit ``model``.

    Example:
        >>> network = from_pretrained("me/ic_resnet18")  # doctest: +SKIP
    """
    folder, name = Path(source), os.fspath(source)
    if folder.exists():
        if not (folder / WEIGHTS).is_file():
            what = "is a file" if folder.is_file() else f"has no {WEIGHTS}"
            raise HubError(f"{folder} {what}; give a folder that save_pretrained wrote")
        if options:
            raise HubError(f"{folder} is a folder here, and {', '.join(options)} are for repositories; leave them out")
        return load(folder / WEIGHTS, model)
    import huggingface_hub as hub

    try:
        path = hub.hf_hub_download(name, WEIGHTS, library_name="icnets", **options)
    except Exception as error:
        what = f"{name} is no folder here, and can't be had from the Hub"
        raise HubError(f"{what}: {first_line(error).rstrip('.')}; check the name and the connection") from error
    return load(path, model)
