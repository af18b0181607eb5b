"""Mask R-CNN with IC units, its transposed convolution included, trained for a few steps on made-up images.

python examples/mask_rcnn.py
"""

import torch
from torch import nn
from torchvision.models.detection import MaskRCNN
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone

from icnets import ICConfig, convert_
from shapes import SIDE, train_detector


def main(steps: int = 30) -> list[float]:
    torch.manual_seed(0)
    backbone = resnet_fpn_backbone(
        backbone_name="resnet18", weights=None, norm_layer=nn.BatchNorm2d, trainable_layers=5
    )
    model = MaskRCNN(backbone, num_classes=2, min_size=SIDE, max_size=SIDE)
    # Not all of its convolutions have a norm behind them: it starts as the basic network, and stays in range.
    print(convert_(model, ICConfig(warm_start="gain")))
    return train_detector(model, steps)


if __name__ == "__main__":
    main()
