"""Grad-CAM (Selvaraju et al., arXiv 1610.02391): where in an image a network's answer comes from."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook

from icnets.data.protocol import EvaluationTransform
from icnets.predict.contact_sheet import as_image, heated, save_png, unnormalized
from icnets.predict.inference import Prediction
from icnets.support.hooks import removed_after


class GradCam:
    """Heat maps of a network, from the last maps (N, C, h, w) with more than one place that any of its modules gives.

    In a ResNet these are the last stage's. The maps' channels are weighted by the mean gradient of the class's logit in
    each, added up and cut off at 0; each image's map is then scaled to [0, 1].

    Args:
        network: in eval mode, (N, C, H, W) to logits (N, classes).
        example: one batch of images, on its device.

    Raises:
        ValueError: no module of the network gives such maps.
    """

    def __init__(self, network: nn.Module, example: Tensor) -> None:
        self.network = self._module = network

        def look(module: nn.Module, args: Any, output: Any) -> None:
            maps = isinstance(output, Tensor) and output.dim() == 4 and output.shape[-1] * output.shape[-2] > 1
            if maps and module is not network:
                self._module = module

        with removed_after([register_module_forward_hook(look)]), torch.no_grad():
            network(example)
        if self._module is network:
            size = f"{example.shape[-2]}×{example.shape[-1]}"
            what = f"no module of {type(network).__name__} gives maps larger than 1×1 for images of {size}"
            raise ValueError(f"{what}; --grad-cam needs them: give a larger --image-size")
        self.layer = next(name for name, module in network.named_modules() if module is self._module)

    def __call__(self, images: Tensor, classes: Tensor) -> Tensor:
        """Heat maps (N, H, W) in [0, 1], on the CPU, of ``images`` (N, C, H, W) for the class of each, (N,) int64."""
        maps: list[Tensor] = []

        def cut(module: nn.Module, args: Any, output: Tensor) -> Tensor:
            maps[:] = [output.detach().requires_grad_()]  # gradients go no further back
            return maps[0].clone()  # what follows may work in place

        with removed_after([self._module.register_forward_hook(cut)]), torch.enable_grad():
            logits = self.network(images).float()
            chosen = logits.gather(1, classes.to(logits.device)[:, None]).sum()
            (gradient,) = torch.autograd.grad(chosen, maps)
        weights = gradient.mean((2, 3), keepdim=True)
        heat = F.relu((weights * maps[0].detach()).sum(1, keepdim=True)).float()
        heat = heat / heat.amax((2, 3), keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)
        return F.interpolate(heat, size=images.shape[-2:], mode="bilinear", align_corners=False)[:, 0].cpu()


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
