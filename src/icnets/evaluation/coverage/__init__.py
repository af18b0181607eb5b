"""Every architecture of timm, torchvision and segmentation-models-pytorch, converted and checked."""
