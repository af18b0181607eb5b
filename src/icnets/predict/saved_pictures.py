"""Pictures beside predictions: heat maps in a folder."""

import re
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import nn

from icnets.data.protocol import EvaluationTransform
from icnets.predict.contact_sheet import as_image, heated, save_png, unnormalized
from icnets.predict.grad_cam import GradCam
from icnets.predict.inference import Prediction


def with_heat_maps(
    found: Iterator[Prediction], network: nn.Module, view: EvaluationTransform, folder: Path, device: str
) -> Iterator[Prediction]:
    """Yields ``found``, and saves each image with the heat map of its class in ``folder``, by the number of its row.

    Raises:
        ValueError: at once, the network has no maps for Grad-CAM.
    """
    cam = GradCam(network, torch.zeros(1, view.in_chans, view.image_size, view.image_size, device=device))
    folder.mkdir(exist_ok=True)

    def saved() -> Iterator[Prediction]:
        for number, prediction in enumerate(found, 1):
            yield prediction
            if prediction.error is None and prediction.image is not None:
                heat = cam(prediction.image[None].to(device), torch.tensor(prediction.classes[:1]))[0]
                pixels = unnormalized(prediction.image, view.mean, view.std)
                stem = re.sub(r"[^A-Za-z0-9._-]", "_", prediction.path.stem)[:80]
                save_png(as_image(heated(pixels, heat)), folder / f"{number:06d}-{stem}.png")

    return saved()
