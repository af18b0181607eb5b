"""Classification: a basic or an IC network, with or without weak logit distillation, as a LightningModule."""

import math
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics import MeanMetric
from torchmetrics.classification import MulticlassAccuracy

from icnets.checkpoint.weights_files import require_whole
from icnets.convert.config import ICConfig
from icnets.convert.state_dicts import mismatch, shapes
from icnets.convert.surgery import convert_
from icnets.data.images import IGNORED, seed_all
from icnets.distill.loss import Teacher, WeakLogitDistillation
from icnets.distill.teacher import require_independent
from icnets.support.hooks import modes_kept
from icnets.support.text import differing, few, first_line
from icnets.training.callbacks import validates_within_fit
from icnets.training.network import build_network, calibration_batches, was_trained, with_chosen_layers
from icnets.training.norm_statistics import FreshStatistics
from icnets.training.optimization import LossName, Optimization, make_criterion, make_optimizer, with_lr
from icnets.training.run_checkpoints import LastCheckpoints
from icnets.training.teachers import compare_start, make_teacher, open_teacher
from icnets.unit.layers import IC_LAYERS

_CLIP = 1.0  # the norm of gradients in fine-tuning
_LOOK_EVERY = 20  # steps between looks at the losses on a GPU, where each look waits for the queue


class ClassificationTask(L.LightningModule):
    """Train and evaluate an image classifier.

    Logged: train/loss; val/ and test/ loss, top1 and (beyond 5 classes) top5, as fractions. Checkpoints
    hold the student alone, never the teacher.

    Args:
        model: a timm name, with or without ic_ (resnet18, ic_resnet18), or any module (N, C, H, W) -> (N, classes).
        num_classes: number of classes; on the command line, the data's.
        in_chans: number of image channels; on the command line, the data's.
        ic: how to convert the network; without it, names that begin with ic_ are converted by the defaults and
            anything else stays basic.
        pretrained: start from timm's pretrained weights.
        init_from: start from this checkpoint, usually the trained basic network's; ic.warm_start says how an IC
            network takes them over ("gain" unless ic says otherwise).
        model_options: more arguments for timm's network, e.g. drop_path_rate.
        teacher: checkpoint of the trained basic network (or the network itself) for weak logit distillation, or
            timm:NAME for timm's pretrained network of that name; without it there is none. Its logits are taken by the
            names of the data's classes, and it gets images with its own normalisation, as its file notes them.
        distillation: the loss of weak logit distillation; with a teacher, the defaults if left out.
        loss: cross-entropy, or bce: binary cross-entropy, each class by itself (arXiv 2110.00476).
        label_smoothing: of hard labels; that of the distillation's loss, where one is given, must not contradict.
        bce_threshold: bce: mixed targets above it count as 1, the others as 0; without it they are taken as they are.
        compile: compile the network and its teacher by torch.compile.
        channels_last: keep images and weights with channels last, which GPUs' tensor cores want.
        optimization: the arguments of :class:`icnets.training.optimization.Optimization`: optimizer, lr, ...

    Raises:
        ValueError, TypeError: an argument out of its range, an unknown network, a checkpoint that doesn't fit; when
            training starts, a teacher with other classes, or images that the network can't take.

    Example:
        >>> task = ClassificationTask("ic_resnet18", num_classes=4, optimizer="adamw", weight_decay=0.02)
        >>> task(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 4])
    """

    def __init__(
        self,
        model: str | nn.Module,
        num_classes: int,
        in_chans: int = 3,
        ic: ICConfig | None = None,
        pretrained: bool = False,
        init_from: Path | None = None,
        model_options: dict[str, Any] | None = None,
        teacher: Path | nn.Module | None = None,
        distillation: WeakLogitDistillation | None = None,
        loss: LossName = "cross-entropy",
        label_smoothing: float = 0.0,
        bce_threshold: float | None = None,
        compile: bool = False,
        channels_last: bool = False,
        **optimization: Any,
    ) -> None:
        super().__init__()
        given = Optimization(**optimization)
        own = isinstance(model, nn.Module) and was_trained(model)
        origin = "timm's pretrained weights" if pretrained else "the weights it has" if own else "random weights"
        self.start = origin if init_from is None else f"weights of {init_from}"
        self.fine_tunes = given.lr is None and (own or pretrained or init_from is not None or teacher is not None)
        self.optimization = with_lr(given, fine_tunes=self.fine_tunes)
        if num_classes < 2:
            raise ValueError(f"num_classes is {num_classes}; classification needs at least 2")
        self.num_classes = num_classes
        self.criterion = make_criterion(distillation, loss, label_smoothing, bce_threshold)
        self._init_from = None if init_from is None else Path(init_from)
        start: dict[str, Any] = {"pretrained": pretrained, "init_from": self._init_from, "options": model_options}
        self.network, self._waiting = build_network(model, num_classes=num_classes, in_chans=in_chans, ic=ic, **start)
        taught: Any = open_teacher(str(teacher), in_chans, model) if isinstance(teacher, str | Path) else teacher
        # In a partial it is no submodule: nothing of it belongs into a checkpoint.
        self._make_teacher: Any = partial(make_teacher, taught, distils=distillation is not None)
        self.teacher: Teacher | None = None
        self._teacher_top1: float | None = None
        self._checked = False
        self._seed: int | None = None
        self.chosen_ic: ICConfig | None = None  # with the layers that were measured to fit
        self._losses: list[tuple[Tensor, int, int, int]] = []  # that weren't looked at, with step, epoch and batch
        self.channels_last, self._compiles = channels_last, compile
        # Metrics of an epoch. The mean doesn't search for NaN, which would wait for the device at every step.
        self.mean_loss: Any = MeanMetric(nan_strategy="disable")
        ranks = {"top1": 1, "top5": 5} if num_classes > 5 else {"top1": 1}
        accuracy = partial(MulticlassAccuracy, num_classes, average="micro", ignore_index=IGNORED)
        names = [(f"{stage}_{name}", k) for stage in ("val", "test", "teacher") for name, k in ranks.items()]
        self.metrics: Any = nn.ModuleDict({name: accuracy(top_k=k) for name, k in names})

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, classes) of images (N, C, H, W)."""
        return self.network(x)

    @property
    def _data(self) -> Any:
        """The data module, if there is one."""
        return getattr(self._trainer, "datamodule", None)

    # Before training: what waited for the data.

    def setup(self, stage: str) -> None:
        """Calibrates an IC network that waits for data, and makes the teacher ready."""
        fits, fresh = stage == "fit", self.trainer.ckpt_path is None
        if fresh:
            compare_start(self._init_from, self._data, trains=fits)
            if not fits and self._init_from is not None:
                require_whole(self.network, self._init_from)
        if self._waiting is not None:
            calibrates = fits and fresh  # otherwise weights follow from a checkpoint
            images = calibration_batches(self._data) if calibrates and self._data is not None else None
            config = self._waiting if calibrates else self._waiting.without_data()
            if config.measures:
                config = self.chosen_ic = self._with_layers(config)
            convert_(self.network, config, optimizers=(), calibration_data=images)
            self._waiting = None
            self.network.train()
        if fits and self.teacher is None:
            self.teacher = self._make_teacher(self._data)
            if self.teacher is not None:
                require_independent(self.teacher.model, self.network)  # before the optimizer finds frozen parameters

    def _with_layers(self, config: ICConfig) -> ICConfig:
        """Measures which layers fit, in the first process, for all of them."""
        if self.trainer.ckpt_path is not None:
            raise ValueError("which layers the checkpoint's network converts isn't known: give ic.only, their names")
        if self._data is None:
            raise ValueError("ic.max_slowdown is measured on images of a data module; convert the network before")
        strategy: Any = self.trainer.strategy
        if self.trainer.is_global_zero:
            options = {"device": strategy.root_device, "channels_last": self.channels_last}
            config, text = with_chosen_layers(self.network, config, self._data, **options)
            print(text, flush=True)
        return strategy.broadcast(config)  # type: ignore[no-any-return]

    def configure_model(self) -> None:
        """In place: memory format, compilation."""
        if self.device_mesh is not None:
            raise ValueError("the trainer's strategy shards the network, which isn't supported; use ddp")
        for network in [self.network, *([] if self.teacher is None else [self.teacher.model])]:
            if self.channels_last:
                network.to(memory_format=torch.channels_last)
            if self._compiles:
                network.compile()

    @property
    def global_batch(self) -> int | None:
        """Images per optimizer step: per device x devices x accumulated; None where the data module doesn't say."""
        size = getattr(self._data, "batch_size", None)
        return None if size is None else int(size) * self.trainer.world_size * self.trainer.accumulate_grad_batches

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
        optimizer, scheduler = make_optimizer(self.network, self.optimization, **options)
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
        if not self._checked:
            self._checked = True
            self._check_first_batch(self.images(batch[0][:2]))

    def _check_first_batch(self, x: Tensor) -> None:
        """Raises ValueError where network or teacher can't take ``x``; leaves them and random numbers as they are."""
        with torch.compiler.set_stance("force_eager"):  # two images are no reason to compile
            try:
                with modes_kept(self.network), torch.no_grad():
                    logits = self.network.eval()(x)
            except (RuntimeError, AttributeError) as error:  # the latter where options left out one of its layers
                shape = tuple(x.shape[1:])
                raise ValueError(f"the network can't take images of shape {shape}: {first_line(error)}") from error
            if not isinstance(logits, Tensor) or tuple(logits.shape) != (len(x), self.num_classes):
                found = f"shape {tuple(logits.shape)}" if isinstance(logits, Tensor) else f"a {type(logits).__name__}"
                raise ValueError(f"the network gives {found} for {len(x)} images of {self.num_classes} classes")
            if self.teacher is not None:
                self.teacher.check(self.network, x)

    # Training and evaluation.

    def images(self, x: Tensor) -> Tensor:
        """Images (N, C, H, W) in the memory format of the network."""
        return x.contiguous(memory_format=torch.channels_last) if self.channels_last and x.ndim == 4 else x

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """The loss of a batch: x (N, C, H, W); target (N,) int64, or (N, classes) where mixed."""
        x, target = self.images(batch[0]), batch[1]
        progress = min(self.global_step / self._total_steps(), 1.0)
        # The teacher goes first: afterwards the student's activations take up memory.
        taught = self.teacher(x) if self.teacher is not None and self.criterion.needs_teacher(progress) else None
        terms = self.criterion.terms(self.network(x), taught, target, progress)
        self._losses.append((terms.loss.detach(), self.global_step, self.current_epoch, batch_idx))
        if x.device.type == "cpu" or len(self._losses) >= _LOOK_EVERY:
            self._require_finite_losses()
        self.mean_loss.update(terms.loss.detach(), weight=len(x))
        self.log("train/loss", self.mean_loss, on_step=False, on_epoch=True, prog_bar=True)
        return terms.loss

    def _require_finite_losses(self) -> None:
        """Waits for the device, and raises FloatingPointError for the first bad loss since the last look."""
        waiting, self._losses = self._losses, []
        losses = torch.stack([loss for loss, *_ in waiting]).tolist() if waiting else []
        for loss, (_, step, epoch, batch) in zip(losses, waiting, strict=True):
            if not math.isfinite(loss):
                names = getattr(self._data, "names_of_batch", lambda epoch, batch: ["unknown"])
                callbacks = vars(self.trainer)["callbacks"]
                saved = next((c.newest for c in callbacks if isinstance(c, LastCheckpoints)), None)
                what = f"the loss is no finite number ({loss}) at step {step} (epoch {epoch}, batch {batch})"
                where = f"its images: {few(names(epoch, batch), 8)}; last good checkpoint: {saved}"
                raise FloatingPointError(f"{what}; {where}. Lower lr, lengthen warmup, or check the images' values")

    def _evaluate(self, batch: tuple[Tensor, Tensor], stage: str) -> tuple[Tensor, Tensor]:
        """Logs what images (N, C, H, W) with a label each, (N,), say; logits and labels."""
        logits, target = self.network(self.images(batch[0])).float(), batch[1]
        there = int((target != IGNORED).sum())
        loss = F.cross_entropy(logits, target, ignore_index=IGNORED, reduction="sum") / max(there, 1)
        self.log(f"{stage}/loss", loss, batch_size=there, sync_dist=True)
        for name, metric in self.metrics.items():
            if name.startswith(stage):
                metric.update(logits, target)
                key = name.replace("_", "/")
                self.log(key, metric, prog_bar=key == "val/top1", on_step=False, on_epoch=True)
        return logits, target

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> dict[str, Tensor]:
        """Updates val/loss, val/top1, val/top5; the answers and targets."""
        logits, target = self._evaluate(batch, "val")
        if self._watches_teacher and self._teacher_top1 is None and self.teacher is not None:
            self.metrics["teacher_top1"].update(self.teacher(self.images(batch[0])).float(), batch[1])
        return {"preds": logits.argmax(1), "target": target}

    @property
    def _watches_teacher(self) -> bool:
        surpasses = self.teacher is not None and self.criterion.surpass_patience is not None
        return surpasses and validates_within_fit(self.trainer)

    def on_validation_epoch_end(self) -> None:
        """Surpass-stop: compares the student with its teacher, whose accuracy is measured once."""
        if self._watches_teacher:
            if self._teacher_top1 is None:
                self._teacher_top1 = float(self.metrics["teacher_top1"].compute())
                self.metrics["teacher_top1"].reset()
            self.criterion.observe(self.metrics["val_top1"].compute(), self._teacher_top1)

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> dict[str, Tensor]:
        """Updates test/loss, test/top1, test/top5; the answers with their probabilities, and the targets."""
        logits, target = self._evaluate(batch, "test")
        best = logits.softmax(1).max(1)
        return {"preds": best.indices, "target": target, "confidence": best.values}

    # Checkpoints.

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Notes the class names (plain strings), so that nobody resumes with other classes, the seed, the mean."""
        self._require_finite_losses()
        names = getattr(self._data, "class_names", None)
        checkpoint["icnets"] = {"class_names": names and list(names), "seed": self._seed, "means": self._means()}

    def _means(self) -> dict[str, list[Tensor]]:
        """The mean loss's sum and weight over all processes, which must all call this; none where the epoch is over."""
        progress: Any = self.trainer.fit_loop.epoch_progress.current
        if progress.processed != progress.completed:
            return {}
        with self.mean_loss.sync_context():
            return {"loss": [self.mean_loss.mean_value.clone(), self.mean_loss.weight.clone()]}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Says in one line what a checkpoint of another network or other classes has that this one has not."""
        notes = checkpoint.get("icnets") or {}
        self._seed, trained = notes.get("seed"), notes.get("class_names")
        means = notes.get("means") or {}
        if "loss" in means and self.global_rank == 0:  # for all processes
            for value, saved in zip((self.mean_loss.mean_value, self.mean_loss.weight), means["loss"], strict=True):
                value.copy_(saved)
        epoch, limit = checkpoint.get("epoch", 0), self.trainer.max_epochs
        if self.trainer.state.fn == "fit" and limit not in (None, -1) and epoch >= limit:
            what = f"the checkpoint is of epoch {epoch + 1}, and trainer.max_epochs is {limit}"
            raise ValueError(f"{what}: nothing is left to train; give --trainer.max_epochs {epoch + 2} or more")
        names = getattr(self._data, "class_names", None)
        if trained and names and list(names) != list(trained):
            known, found = differing(trained, names)
            raise ValueError(f"the checkpoint was trained on {known}, but the data has {found}")
        if "state_dict" not in checkpoint:  # the strategy has loaded it already
            return
        if notes.get("weights_alone"):  # what isn't the network's stays as it is
            rest = {key: value for key, value in self.state_dict().items() if not key.startswith("network.")}
            checkpoint["state_dict"] = rest | checkpoint["state_dict"]
        problem = mismatch(shapes(self.state_dict()), shapes(checkpoint["state_dict"]))
        if problem is not None:
            kind = "an IC" if any(isinstance(m, IC_LAYERS) for m in self.network.modules()) else "a basic"
            network = f"this network, {kind} {type(self.network).__name__}"
            raise ValueError(f"the checkpoint doesn't fit {network}: {problem}")
