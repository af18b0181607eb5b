"""DeepLabV3 on MobileNetV3 with IC units, the dilated ones included, trained for a few steps on made-up images.

python examples/deeplabv3.py
"""

import torch
from torch.nn.functional import cross_entropy
from torchvision.models.segmentation import deeplabv3_mobilenet_v3_large

from icnets import convert_
from shapes import batch


def main(steps: int = 30) -> list[float]:
    torch.manual_seed(0)
    model = deeplabv3_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=2)
    print(convert_(model))
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
    losses = []
    model.train()
    for step in range(steps):
        pictures, _, classes = batch(4, step)
        loss = cross_entropy(model(torch.stack(pictures))["out"], classes)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        print(f"step {step + 1}: loss {loss.item():.3f}", flush=True)
    return losses


if __name__ == "__main__":
    main()
