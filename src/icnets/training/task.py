"""Classification: a basic or an IC network, with or without weak logit distillation, as a LightningModule."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import lightning as L
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics.classification import MulticlassAccuracy

from icnets.convert.state_dicts import mismatch, shapes
from icnets.convert.surgery import ICConfig
from icnets.data.images import IGNORED, seed_all
from icnets.data.protocol import average_crops, best_label
from icnets.distill.loss import Teacher, WeakLogitDistillation
from icnets.distill.teacher import require_independent
from icnets.support.text import differing
from icnets.training import engine
from icnets.training.epoch_means import EpochMeans
from icnets.training.first_batch import check_first_batch
from icnets.training.loss_watch import LossWatch, explain
from icnets.training.network import build_network, calibrate, calibration_batches
from icnets.training.norm_statistics import FreshStatistics
from icnets.training.optimization import (
    LossName,
    Optimization,
    OptimizerName,
    ScalingName,
    ScheduleName,
    make_criterion,
    make_optimizer,
    with_lr,
)
from icnets.training.run_checkpoints import LastCheckpoints
from icnets.training.teachers import TeacherClasses, compare_start, make_teacher, open_teacher, require_no_options
from icnets.unit.layers import IC_LAYERS

__all__ = ["ClassificationTask", "Prediction"]

_CLIP = 1.0  # the norm of gradients in fine-tuning


class Prediction(NamedTuple):
    """``probabilities`` (N, classes), float32, and ``class_index`` (N,), int64, of the most probable."""

    probabilities: Tensor
    class_index: Tensor


class ClassificationTask(L.LightningModule):
    """Train and evaluate an image classifier.

    Logged: train/loss; val/ and test/ loss, top1 and (beyond 5 classes) top5, as fractions; and the distillation's
    weight. Checkpoints hold the student alone, never the teacher.

    Args:
        model: a timm name, with or without ic_ (resnet18, ic_resnet18), or any module (N, C, H, W) -> (N, classes).
        num_classes: number of classes; on the command line, the data's.
        in_chans: number of image channels; on the command line, the data's.
        ic: how to convert the network; without it, names that begin with ic_ are converted by the defaults and
            anything else stays basic.
        pretrained: start from timm's pretrained weights.
        init_from: start from this checkpoint, usually the trained basic network's; ic.warm_start says how an IC
            network takes them over ("gain" unless ic says otherwise).
        teacher: checkpoint of the trained basic network (or the network itself) for weak logit distillation, or
            timm:NAME for timm's pretrained network of that name; without it there is none.
        teacher_mean: normalisation that the teacher was trained with; left out, what its file notes, or timm.
        teacher_std: likewise; both or neither.
        teacher_classes: same: the teacher's file must name the data's classes in the same order; by-name: its logits
            are taken by the names of the data's classes, of which it may know more; by-index: as they are.
        distillation: the loss of weak logit distillation; with a teacher, the defaults if left out.
        optimizer: sgd (Nesterov momentum), adamw or lamb (timm's, arXiv 1904.00962).
        lr: the largest learning rate. None: 0.1 (adamw 0.001, lamb 0.005), less in batches of fewer than
            64 images; and where training begins with trained weights or has a teacher, fine-tuning: a tenth of that,
            gradients clipped to a norm of 1 unless the trainer clips them.
        weight_decay: of weights; biases, norms and the parameters of collisions have none.
        momentum: of SGD.
        schedule: course of the learning rate: one-cycle (linear) and cosine fall to min_lr, step to a tenth at each
            of the milestones.
        warmup: fraction of the training over which the learning rate rises.
        label_smoothing: of hard labels; that of the distillation's loss, where one is given, must not contradict.
        model_options: more arguments for timm's network, e.g. drop_path_rate.
        min_lr: where the learning rate ends, as a fraction of lr.
        milestones: fractions of the training, for step.
        lr_batch: the global batch (per device x devices x accumulated) that lr is meant for; lr is scaled to the one
            in use. None: lr is taken as it is.
        lr_scaling: linear or sqrt, in the global batch.
        loss: cross-entropy, or bce: binary cross-entropy, each class by itself (arXiv 2110.00476).
        bce_threshold: bce: mixed targets above it count as 1, the others as 0; without it they are taken as they are.
        compile: compile the network and its teacher by torch.compile.
        channels_last: keep images and weights with channels last, which GPUs' tensor cores want.
        activation_checkpointing: compute activations anew in backward: less memory, about a third more time.
        check_teacher: refuse a teacher that isn't better than guessing on the first batches.

    Raises:
        ValueError, TypeError: an argument out of its range, an unknown network, a checkpoint that doesn't fit; when
            training starts, a teacher with other classes, or images that the network can't take.
    """

    def __init__(
        self,
        model: str | nn.Module,
        num_classes: int,
        in_chans: int = 3,
        ic: ICConfig | None = None,
        pretrained: bool = False,
        init_from: Path | None = None,
        teacher: Path | nn.Module | None = None,
        teacher_mean: tuple[float, ...] | None = None,
        teacher_std: tuple[float, ...] | None = None,
        teacher_classes: TeacherClasses = "same",
        distillation: WeakLogitDistillation | None = None,
        optimizer: OptimizerName = "sgd",
        lr: float | None = None,
        weight_decay: float = 5e-4,
        momentum: float = 0.9,
        schedule: ScheduleName = "one-cycle",
        warmup: float = 0.2,
        label_smoothing: float = 0.0,
        model_options: dict[str, Any] | None = None,
        min_lr: float = 0.0,
        milestones: tuple[float, ...] = (0.5, 0.75),
        lr_batch: int | None = None,
        lr_scaling: ScalingName = "linear",
        loss: LossName = "cross-entropy",
        bce_threshold: float | None = None,
        compile: bool = False,
        channels_last: bool = False,
        activation_checkpointing: bool = False,
        check_teacher: bool = True,
    ) -> None:
        super().__init__()
        self.optimization = Optimization(
            optimizer, lr, weight_decay, momentum, schedule, warmup, min_lr, tuple(milestones), lr_batch, lr_scaling
        )
        self.fine_tunes = lr is None and (pretrained or init_from is not None or teacher is not None)
        if num_classes < 2:
            raise ValueError(f"num_classes is {num_classes}; classification needs at least 2")
        self.num_classes = num_classes
        self.criterion = make_criterion(distillation, loss, label_smoothing, bce_threshold)
        self.network, self._waiting = build_network(
            model,
            num_classes=num_classes,
            in_chans=in_chans,
            ic=ic,
            pretrained=pretrained,
            init_from=init_from,
            options=model_options,
        )
        taught: Any = teacher
        if isinstance(teacher, str | Path):
            taught = open_teacher(str(teacher), num_classes=num_classes, in_chans=in_chans, classes=teacher_classes)
        self._init_from, self._distils = init_from, distillation is not None
        self._teacher_options: dict[str, Any] = {"mean": teacher_mean, "std": teacher_std, "classes": teacher_classes}
        self._teacher_network = (taught,)  # in a tuple, no submodule: nothing of it belongs into a checkpoint
        self.teacher: Teacher | None = None
        self._check_teacher = check_teacher
        self._teacher_top1: float | None = None
        self._checked = False
        self._seed: int | None = None
        self._watch = LossWatch(math.log(num_classes))
        self.channels_last = channels_last
        self._engine = {"compile": compile, "activation_checkpointing": activation_checkpointing}
        self._make_metrics(num_classes)

    def _make_metrics(self, classes: int) -> None:
        self.means = EpochMeans("loss", "distillation_weight")
        ranks = {"top1": 1, "top5": 5} if classes > 5 else {"top1": 1}
        self.metrics = nn.ModuleDict(
            {
                f"{stage}_{name}": MulticlassAccuracy(
                    num_classes=classes, top_k=k, average="micro", ignore_index=IGNORED
                )
                for stage in ("val", "test", "teacher")
                for name, k in ranks.items()
            }
        )

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, classes) of images (N, C, H, W)."""
        logits: Tensor = self.network(x)
        return logits

    # Before training: what waited for the data.

    def setup(self, stage: str) -> None:
        """Calibrates an IC network that waits for data, and makes the teacher ready."""
        data = getattr(self.trainer, "datamodule", None)
        if self.trainer.ckpt_path is None:
            compare_start(self._init_from, data, trains=stage == "fit")
        taught = self._teacher_network[0]
        if stage == "fit" and taught is None:
            require_no_options(self._teacher_options, self._distils)
        begins = stage == "fit" and self.teacher is None and taught is not None
        if begins:
            self.teacher = make_teacher(taught, data, **self._teacher_options)
        if self._waiting is not None:
            fresh = stage == "fit" and self.trainer.ckpt_path is None
            calibrate(self.network, self._waiting, self._calibration_batches() if fresh else None)
            self._waiting = None
            self.network.train()
        if begins and self.teacher is not None:
            require_independent(self.teacher.model, self.network)  # while it can be seen: sharding copies

    def _calibration_batches(self) -> Iterator[Tensor]:
        data = getattr(self.trainer, "datamodule", None)
        if data is None:
            raise ValueError('warm_start is "calibrate", which needs a data module; convert the network yourself first')
        return calibration_batches(data)

    def configure_model(self) -> None:
        """Once, in place: recomputed activations, memory format, sharding over the strategy's mesh, compilation."""
        options, self._engine = self._engine, {}
        networks = [self.network, *([] if self.teacher is None else [self.teacher.model])]
        if options.get("activation_checkpointing"):
            engine.recompute_activations_(self.network)
        for network in networks if options else []:
            if self.channels_last:
                network.to(memory_format=torch.channels_last)
            if self.device_mesh is not None:
                engine.shard_(network, self.device_mesh["data_parallel"])
            if options["compile"]:
                engine.compile_(network)

    @property
    def global_batch(self) -> int | None:
        """Images per optimizer step: per device x devices x accumulated; None where the data module doesn't say."""
        size = getattr(getattr(self.trainer, "datamodule", None), "batch_size", None)
        if size is None:
            return None
        return int(size) * self.trainer.world_size * self.trainer.accumulate_grad_batches

    def settled(self) -> Optimization:
        """How the network is optimised, with the learning rate that the batch gives where none was given."""
        return with_lr(self.optimization, fine_tunes=self.fine_tunes)

    @property
    def gradient_clip_val(self) -> float | None:
        """The norm to which gradients are clipped: the trainer's, or fine-tuning's own."""
        given: float | None = self.trainer.gradient_clip_val
        return _CLIP if given is None and self.fine_tunes else given

    def configure_gradient_clipping(
        self, optimizer: Any, gradient_clip_val: float | None = None, gradient_clip_algorithm: str | None = None
    ) -> None:
        """As the trainer says; where it says nothing, fine-tuning clips."""
        self.clip_gradients(optimizer, self.gradient_clip_val, gradient_clip_algorithm)

    def configure_callbacks(self) -> list[Any]:
        """Statistics of batch norms that belong to the weights."""
        return [FreshStatistics()]

    def configure_optimizers(self) -> Any:
        """The optimizer, and its schedule by steps."""
        options: dict[str, Any] = {"total": self._total_steps(), "global_batch": self.global_batch}
        optimizer, scheduler = make_optimizer(self.network, self.settled(), **options)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def _total_steps(self) -> int:
        total = self.trainer.estimated_stepping_batches
        if not math.isfinite(total):
            raise ValueError("training has no end: give trainer.max_epochs or trainer.max_steps")
        return int(total)

    def on_train_start(self) -> None:
        """Notes the seed of the run, if it is no resumed one."""
        self._seed = torch.initial_seed() if self._seed is None else self._seed

    def on_train_batch_start(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Seeds the step; at the very first: can the network take the images, does the teacher fit the student?"""
        # What dropout and stochastic depth draw: the same again where a training is resumed.
        seed_all(self._seed or 0, self.current_epoch, batch_idx, self.global_rank)
        if self._checked:
            return
        self._checked = True
        check_first_batch(self, batch, check_teacher=self._check_teacher)

    # Training and evaluation.

    def images(self, x: Tensor) -> Tensor:
        """Images (N, C, H, W) in the memory format of the network."""
        return x.contiguous(memory_format=torch.channels_last) if self.channels_last and x.ndim == 4 else x

    @property
    def progress(self) -> float:
        """Fraction of the training that is done, in [0, 1]: optimizer steps done over steps in total."""
        return min(self.global_step / self._total_steps(), 1.0)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """The loss of a batch: x (N, C, H, W); target (N,) int64, or (N, classes) where mixed."""
        x, target = self.images(batch[0]), batch[1]
        progress = self.progress
        taught = self.teacher is not None and self.criterion.needs_teacher(progress)
        logits_of_teacher = self.teacher(x) if taught and self.teacher is not None else None
        terms = self.criterion.terms(self.network(x), logits_of_teacher, target, progress)
        self._require_finite(self._watch.update(terms.loss, self.global_step, self.current_epoch, batch_idx))
        self.means.log(self, "loss", terms.loss.detach(), len(x), prog_bar=True)
        if self.teacher is not None:
            self.means.log(self, "distillation_weight", terms.weight, len(x))
        return terms.loss

    def _require_finite(self, found: tuple[int, int, int, str] | None) -> None:
        if found is None:
            return
        names = getattr(getattr(self.trainer, "datamodule", None), "names_of_batch", None)
        saved = [c.newest for c in vars(self.trainer)["callbacks"] if isinstance(c, LastCheckpoints)]
        images = names(found[1], found[2]) if names is not None else ()
        raise FloatingPointError(explain(found, images, str(saved[0]) if saved and saved[0] else None))

    def _logits(self, x: Tensor) -> Tensor:
        """Logits (N, classes), float32, of images (N, C, H, W), or of their crops (N, C, crops, H, W)."""
        if x.ndim != 5:
            return self.network(self.images(x)).float()
        return average_crops(self.network(self.images(x.movedim(2, 1).flatten(0, 1))), len(x))

    def _evaluate(self, batch: tuple[Tensor, Tensor], stage: str) -> tuple[Tensor, Tensor]:
        x, target = batch
        logits = self._logits(x)
        if target.dtype == torch.bool:
            logits, target = best_label(logits, target)
        else:
            there = int((target != IGNORED).sum())
            loss = F.cross_entropy(logits, target, ignore_index=IGNORED, reduction="sum") / max(there, 1)
            self.log(f"{stage}/loss", loss, batch_size=there, sync_dist=True)
        for name, metric in self.metrics.items():
            if isinstance(metric, MulticlassAccuracy) and name.startswith(stage):
                metric.update(logits, target)
                key = name.replace("_", "/")
                self.log(key, metric, prog_bar=key == "val/top1", on_step=False, on_epoch=True)
        return logits, target

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Updates val/loss, val/top1, val/top5."""
        self._evaluate(batch, "val")
        if self._watches_teacher and self._teacher_top1 is None and self.teacher is not None:
            metric = self.metrics["teacher_top1"]
            assert isinstance(metric, MulticlassAccuracy)
            metric.update(self.teacher(self.images(batch[0])).float(), batch[1])

    @property
    def _watches_teacher(self) -> bool:
        fitting = self.trainer.state.fn == "fit" and not self.trainer.sanity_checking
        return fitting and self.teacher is not None and self.criterion.surpass_patience is not None

    def on_validation_epoch_end(self) -> None:
        """Surpass-stop: compares the student with its teacher, whose accuracy is measured once."""
        if not self._watches_teacher:
            return
        student, teacher = self.metrics["val_top1"], self.metrics["teacher_top1"]
        assert isinstance(student, MulticlassAccuracy)
        assert isinstance(teacher, MulticlassAccuracy)
        if self._teacher_top1 is None:
            self._teacher_top1 = float(teacher.compute())
            teacher.reset()
        self.criterion.observe(student.compute(), self._teacher_top1)

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> dict[str, Tensor]:
        """Updates test/top1, test/top5 and, where each image has one label, test/loss; the answers and targets."""
        logits, target = self._evaluate(batch, "test")
        return {"preds": logits.argmax(1), "target": target}

    def predict_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Prediction:
        """Probabilities and the most probable class of each image of the batch."""
        probabilities = self._logits(batch[0]).softmax(dim=1)
        return Prediction(probabilities, probabilities.argmax(dim=1))

    # Checkpoints.

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Notes the class names (plain strings), so that nobody resumes with other classes, the seed, the means."""
        self._require_finite(self._watch.look())
        names = getattr(getattr(self.trainer, "datamodule", None), "class_names", None)
        means = self.means.sums(self.trainer)
        checkpoint["icnets"] = {"class_names": names and list(names), "seed": self._seed, "means": means}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Says in one line what a checkpoint of another network or other classes has that this one has not."""
        notes = checkpoint.get("icnets") or {}
        self._seed, trained = notes.get("seed"), notes.get("class_names")
        self.means.resume(notes.get("means") or {}, self.global_rank)
        names = getattr(getattr(self._trainer, "datamodule", None), "class_names", None)
        if trained and names and list(names) != list(trained):
            known, found = differing(trained, names)
            raise ValueError(f"the checkpoint was trained on {known}, but the data has {found}")
        if "state_dict" not in checkpoint:  # the strategy has loaded it already
            return
        problem = mismatch(shapes(self.state_dict()), shapes(checkpoint["state_dict"]))
        if problem is not None:
            converted = any(isinstance(m, IC_LAYERS) for m in self.network.modules())
            kind = "an IC" if converted else "a basic"
            raise ValueError(
                f"the checkpoint doesn't fit this network, {kind} {type(self.network).__name__}: {problem}"
            )
