"""Stands for torchvision's references/classification/train.py: what it does with a network's name, and no more."""

import argparse
from pathlib import Path

import torch
import torchvision


def get_args_parser():
    parser = argparse.ArgumentParser()
    parser.add_argument("--model")
    parser.add_argument("--weights")
    for name in ("--data-path", "--output-dir"):
        parser.add_argument(name, type=Path)
    for name in ("--train-crop-size", "--val-resize-size", "--val-crop-size", "--batch-size", "--epochs", "--workers"):
        parser.add_argument(name, type=int)
    parser.add_argument("--device")
    return parser


def main(args):
    classes = len(list((args.data_path / "train").iterdir()))
    model = torchvision.models.get_model(args.model, weights=args.weights, num_classes=classes)
    x = torch.randn(args.batch_size, 3, args.train_crop_size, args.train_crop_size)
    torch.nn.functional.cross_entropy(model(x), torch.arange(args.batch_size) % classes).backward()
    torch.optim.SGD(model.parameters(), 0.01).step()
    args.output_dir.mkdir()
    torch.save({"model": model.state_dict(), "args": args}, args.output_dir / "checkpoint.pth")
