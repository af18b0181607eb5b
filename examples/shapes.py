"""Made-up images for the examples: noise with one bright rectangle each, its box, its mask and its pixels' classes."""

import torch
from torch import Tensor

SIDE = 96


def batch(images: int, seed: int) -> tuple[list[Tensor], list[dict[str, Tensor]], Tensor]:
    """Images ``(3, 96, 96)`` in 0..1, a detection target for each, and classes of pixels ``(N, 96, 96)``: 0 or 1."""
    generator = torch.Generator().manual_seed(seed)
    pictures, targets = [], []
    masks = torch.zeros(images, SIDE, SIDE, dtype=torch.uint8)
    for i in range(images):
        x0, y0 = torch.randint(8, 40, (2,), generator=generator).tolist()
        width, height = torch.randint(24, 48, (2,), generator=generator).tolist()
        masks[i, y0 : y0 + height, x0 : x0 + width] = 1
        pictures.append((0.3 * torch.rand(3, SIDE, SIDE, generator=generator) + 0.6 * masks[i]).clamp(0, 1))
        box = torch.tensor([[x0, y0, x0 + width, y0 + height]], dtype=torch.float32)
        targets.append({"boxes": box, "labels": torch.ones(1, dtype=torch.int64), "masks": masks[i : i + 1]})
    return pictures, targets, masks.long()


def train_detector(model: torch.nn.Module, steps: int, lr: float = 0.01) -> list[float]:
    """Trains one of torchvision's detectors on new made-up images in each step; returns the sums of its losses."""
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr, momentum=0.9)
    losses = []
    model.train()
    for step in range(steps):
        pictures, targets, _ = batch(2, step)
        loss = sum(model(pictures, targets).values())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()
        losses.append(loss.item())
        print(f"step {step + 1}: loss {loss.item():.3f}", flush=True)
    return losses
