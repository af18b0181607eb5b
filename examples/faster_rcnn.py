"""Faster R-CNN with IC units in backbone, pyramid and heads, trained for a few steps on made-up images.

python examples/faster_rcnn.py
"""

import torch
from torchvision.models.detection import fasterrcnn_mobilenet_v3_large_320_fpn

from icnets import ICConfig, convert_
from shapes import SIDE, train_detector


def main(steps: int = 30) -> list[float]:
    torch.manual_seed(0)
    size = {"min_size": SIDE, "max_size": SIDE}
    model = fasterrcnn_mobilenet_v3_large_320_fpn(weights=None, weights_backbone=None, num_classes=2, **size)
    # Not all of its convolutions have a norm behind them: it starts as the basic network, and stays in range.
    print(convert_(model, ICConfig(warm_start="gain")))
    return train_detector(model, steps)


if __name__ == "__main__":
    main()
