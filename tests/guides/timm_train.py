"""Stands for timm's train.py, which isn't in its package: what that script does with a network's name, and no more."""

import argparse
import importlib
from pathlib import Path

import torch
from timm import create_model
from timm.utils import ParseKwargs

parser = argparse.ArgumentParser(allow_abbrev=False)
parser.add_argument("--model")
parser.add_argument("--device-modules", nargs="+")
parser.add_argument("--model-kwargs", nargs="*", default={}, action=ParseKwargs)
for name in ("--num-classes", "--img-size", "--batch-size"):
    parser.add_argument(name, type=int)
for name in ("--output", "--experiment", "--data-dir"):
    parser.add_argument(name, type=Path)
args, _ = parser.parse_known_args()

for module in args.device_modules:
    importlib.import_module(module)
model = create_model(args.model, num_classes=args.num_classes, **args.model_kwargs)
optimizer = torch.optim.SGD(model.parameters(), 0.01)
classes = len(list((args.data_dir / "train").iterdir()))
x, y = torch.randn(args.batch_size, 3, args.img_size, args.img_size), torch.arange(args.batch_size) % classes
torch.nn.functional.cross_entropy(model(x), y).backward()
optimizer.step()
folder = args.output / args.experiment
folder.mkdir(parents=True)
torch.save({"state_dict": model.state_dict()}, folder / "last.pth.tar")
