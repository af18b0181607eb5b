"""Writes the recipes of the ImageNet experiment, one file for each network, method and recipe, from the tables below.

python recipes/imagenet/generate.py            # write them
python recipes/imagenet/generate.py --check    # exit status 1 if a file is not what this program writes
"""

import sys
from pathlib import Path
from typing import Any

import yaml

FOLDER = Path(__file__).resolve().parent

# The basic network, and timm's weights of it that were trained with a recipe like ours: teachers and warm starts.
NETWORKS: dict[str, dict[str, str]] = {
    "resnet50": {"plain": "tv_in1k", "strong": "a2_in1k"},
    "resnet101": {"plain": "tv_in1k", "strong": "a2_in1k"},
    "resnext50_32x4d": {"plain": "tv_in1k", "strong": "a2_in1k"},
    "mobilenetv2_100": {"plain": "ra_in1k", "strong": "ra_in1k"},
}

METHODS = {
    "basic": "the basic network",
    "ic": "its IC network from scratch",
    "ic_wld": "its IC network from scratch, under weak logit distillation from the basic network",
    "ic_warm": "its IC network from the basic network's trained weights (a tenth of lr, a third of the epochs: ours)",
}

RECIPES = {
    "plain": "SGD, 90 epochs, random crops and flips (arXiv 1512.03385, 1706.02677)",
    "strong": "A2 of arXiv 2110.00476 (ResNet strikes back): LAMB, binary cross-entropy, 300 epochs; no average",
}

MEAN_OVER = 1000  # binary cross-entropy is a mean over so many classes, while the distillation's KL is a sum


def trainer(epochs: int) -> dict[str, Any]:
    return {"max_epochs": epochs, "precision": "bf16-mixed", "deterministic": False, "benchmark": True,
            "log_every_n_steps": 50}  # fmt: skip


def data(**options: Any) -> dict[str, Any]:
    return {"root": "imagenet", "image_size": 224, "batch_size": 256, "eval_batch_size": 256, "workers": 12,
            "min_scale": 0.08, "hflip": 0.5, **options}  # fmt: skip


def plain(network: str) -> dict[str, Any]:
    """With warm-up, as larger batches need it. MobileNetV2 has its paper's weight decay, and a cosine."""
    mobile = network.startswith("mobilenet")
    course: dict[str, Any] = {"schedule": "cosine"} if mobile else {"schedule": "step", "milestones": [0.3333, 0.6667]}
    model = {"optimizer": "sgd", "momentum": 0.9, "lr": 0.1, "lr_batch": 256, "lr_scaling": "linear",
             "weight_decay": 4.0e-5 if mobile else 1.0e-4, **course, "warmup": 0.0556,
             "channels_last": True}  # fmt: skip
    return {"trainer": trainer(90), "model": model, "data": data(crop_pct=0.875)}


def strong(network: str) -> dict[str, Any]:
    model = {"optimizer": "lamb", "lr": 0.005, "lr_batch": 2048, "lr_scaling": "sqrt", "weight_decay": 0.02,
             "schedule": "cosine", "min_lr": 0.0002, "warmup": 0.0167, "loss": "bce", "bce_threshold": 0.2,
             "model_options": {"drop_path_rate": 0.05}, "channels_last": True}  # fmt: skip
    augmented = {"auto_augment": "rand-m7-mstd0.5-inc1", "mixup": 0.1, "cutmix": 1.0, "repeats": 3}
    return {"trainer": trainer(300), "model": model, "data": data(**augmented, crop_pct=0.95, interpolation="bicubic")}


def options(network: str, method: str, recipe: str) -> dict[str, Any]:
    """The options of one file."""
    found = plain(network) if recipe == "plain" else strong(network)
    weights = NETWORKS[network][recipe]
    name = network if method == "basic" else f"ic_{network}"
    model = {"model": f"{name}.{weights}" if method == "ic_warm" else name}
    if method == "ic_warm":
        model["pretrained"] = True  # type: ignore[assignment]
        found["model"]["lr"] = round(found["model"]["lr"] / 10, 6)
        found["trainer"]["max_epochs"] //= 3
    if method == "ic_wld":
        model["teacher"] = f"timm:{network}.{weights}"
        weight = 1.0 if recipe == "plain" else 1.0 / MEAN_OVER
        schedule = {"kind": "hold-cosine", "weight": weight, "hold": 0.4}
        arguments = {"temperature": 4.0, "schedule": schedule}
        found["model"]["distillation"] = {"class_path": "icnets.WeakLogitDistillation", "init_args": arguments}
    return {
        "seed_everything": 0,
        "trainer": found["trainer"],
        "model": {**model, **found["model"]},
        "data": found["data"],
    }


def header(network: str, method: str, recipe: str) -> str:
    name = f"{network}-{method}-{recipe}"
    lines = [
        "Written by recipes/imagenet/generate.py: change that. See docs/imagenet.md.",
        "",
        f"ImageNet, {network}: {METHODS[method]}.",
        f"Recipe {recipe}: {RECIPES[recipe]}.",
        "DIR holds train/ and val/, each with the 1,000 class folders. Look first at what would run: add --plan.",
        "",
        f'  RUN="--config recipes/imagenet/{name}.yaml --name {name} --data.root DIR"',
        "",
        "One GPU:",
        "  icnets fit $RUN",
        "Eight GPUs; batch_size is each one's, and lr follows:",
        "  torchrun --nproc-per-node 8 -m icnets.cli fit $RUN --trainer.devices 8",
        "Four nodes of eight, by SLURM:",
        "  sbatch --nodes 4 --ntasks-per-node 8 --gpus-per-node 8 --cpus-per-task 12 \\",
        '    --wrap "srun icnets fit $RUN --trainer.devices 8 --trainer.num_nodes 4"',
    ]
    if method == "ic_wld":
        lines += [
            "",
            "The teacher is timm's pretrained network (downloaded once). One of your own:",
            f"  --model.teacher runs/{network}-basic-{recipe}/checkpoints/best.safetensors",
        ]
    if method == "ic_warm":
        lines += [
            "",
            "The weights are timm's (downloaded once). Your own basic network's:",
            f"  --model.pretrained false --model.init_from runs/{network}-basic-{recipe}/checkpoints/best.safetensors",
        ]
    return "".join(f"# {line}".rstrip() + "\n" for line in lines)


def files() -> dict[str, str]:
    """The text of every file by its name."""
    found = {}
    for network in NETWORKS:
        for method in METHODS:
            for recipe in RECIPES:
                text = yaml.safe_dump(options(network, method, recipe), sort_keys=False, default_flow_style=False)
                found[f"{network}-{method}-{recipe}.yaml"] = f"{header(network, method, recipe)}\n{text}"
    return found


def main(argv: list[str]) -> int:
    wanted = files()
    if "--check" in argv:
        present = {path.name: path.read_text(encoding="utf-8") for path in FOLDER.glob("*.yaml")}
        wrong = sorted(name for name in wanted.keys() | present.keys() if wanted.get(name) != present.get(name))
        for name in wrong:
            print(f"{name} is not what generate.py writes; run it again", file=sys.stderr)
        return int(bool(wrong))
    for name, text in wanted.items():
        (FOLDER / name).write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
