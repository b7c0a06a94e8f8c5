"""The options of a training that do not depend on the task, which of them a stopped run may change, and what
is built from them.
"""

import warnings
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from .config import Range, as_json, check_ranges
from .errors import UsageError
from .setup import cosine, decayed, schedule, staircase
from .update import Update, ema_of

Schedule = Literal["constant", "cosine", "step", "plateau", "onecycle"]
Precision = Literal["auto", "fp32", "tf32", "bf16", "fp16"]
Layout = Literal["gpu", "auto", "yes", "no"]
AT_LEAST_1 = ("epochs", "batch", "accumulate", "limit_batches", "test_batch", "step_epochs")
AT_LEAST_0 = (
    *("lr", "lr_end", "warmup_epochs", "weight_decay", "save_minutes", "workers", "threads", "settle"),
)


@dataclass(frozen=True)
class Training:
    """The options of a training that do not depend on the task; they are flags of every training script.

    Recipes extend this class by the fields of their task, and may change its defaults. The methods build what
    the options mean. `--help` of a training script explains each option.
    """

    epochs: int = 100  # passes over the training samples
    batch: int = 128  # samples of a training step, over all processes
    accumulate: int = 1  # pieces that a process's share of a batch is cut into; gradients are added
    optimizer: Literal["sgd", "adam", "adamw"] = "adam"  # sgd: with momentum 0.9
    lr: float = 1e-3  # learning rate, the highest of the schedule
    lr_end: float = 0  # the lowest learning rate of a cosine
    schedule: Schedule = "cosine"  # of lr; plateau: x 0.1 after 5 stale epochs; onecycle: up and down again
    schedule_every: Literal["epoch", "step"] = "step"  # when a cosine changes lr; epoch: the last has lr_end
    step_epochs: int = 30  # for schedule step: multiply lr by 0.1 every so many epochs
    warmup_epochs: float = 0  # epochs in which lr rises to that of the schedule (cosine or step)
    weight_decay: float = 0  # of adamw and sgd; for adam it is added to the gradient
    decay_all: bool = True  # weight decay on norms, biases and gates too
    clip: float | None = None  # the largest gradient norm; longer gradients are scaled down to it
    ema: float | None = None  # decay of the averaged weights, which are also evaluated and saved
    precision: Precision = "fp32"  # fp16 scales its loss; auto: bf16 or fp32, whichever is faster here
    channels_last: Layout = "gpu"  # layout of images; gpu: only on a GPU; auto: if it is faster here
    compile: bool = False  # torch.compile the model
    sync_norm: bool = True  # take batch statistics over all processes
    settle: int = 0  # training batches that give norms their statistics for evaluation; 0: running ones
    init_from: Path | None = None  # weights to start from; takes what --checkpoint takes
    seed: int = 0  # of the initial weights, the order of the samples, and their augmentation
    name: str | None = None  # name of the run directory; default: the recipe's, numbered if taken
    runs_dir: Path = Path("runs")
    resume: str | None = None  # continue a run: auto, a checkpoint or a run directory
    save_minutes: float = 20  # minutes between checkpoints within an epoch
    limit_batches: int | None = None  # the most batches of an epoch, and of an evaluation
    test_batch: int = 100  # samples of an evaluation step, in each process
    dry_run: bool = False  # take a step on random input and print what a run takes; writes nothing
    eval: bool = False  # only measure the --checkpoint
    checkpoint: Path | None = None  # ours (ckpt-..., or a run: its best), a published file, or one converted
    device: Literal["auto", "cpu", "cuda"] = "auto"
    backend: Literal["auto", "fused", "reference"] = "auto"
    workers: int = 8  # processes that load data, for each training process
    threads: int = 0  # CPU threads; 0 leaves PyTorch's choice
    dist_timeout: float = 600  # seconds after which a process that does not answer ends the run

    if TYPE_CHECKING:

        @property
        def recipe(self) -> str:
            """Its name: a field of every recipe."""

    # Options that say where and how, not what is trained: they may change when a run continues.
    FREE: ClassVar[tuple[str, ...]] = (
        *("name", "init_from", "runs_dir", "resume", "save_minutes", "dry_run", "eval", "checkpoint"),
        *("test_batch", "device", "backend", "workers", "threads", "dist_timeout", "compile", "accumulate"),
    )
    RANGES: ClassVar[tuple[Range, ...]] = (
        Range("at least 1", lambda value: value >= 1, AT_LEAST_1),
        Range("at least 0", lambda value: value >= 0, AT_LEAST_0),
        Range("above 0", lambda value: value > 0, ("clip", "dist_timeout")),
        Range("at least 0 and below 1", lambda value: 0 <= value < 1, ("ema",)),
    )

    def check(self) -> None:
        """Raises UsageError for options that contradict each other, before anything is read or written."""
        check_ranges(self, self.RANGES)
        measuring = [flag for flag in self.COMMANDS if getattr(self, flag)]
        if len(measuring) > 1:
            flags = " and ".join(f"--{flag.replace('_', '-')}" for flag in measuring)
            raise UsageError(f"{flags} are different commands: give one of them.")
        if self.settle and (measuring or self.compile):
            flag = "compile" if self.compile else measuring[0].replace("_", "-")
            why = "norms are not seen in what torch.compile runs" if self.compile else "it is for training"
            raise UsageError(f"--settle does not go with --{flag}: {why}.")
        if measuring:
            return
        if self.checkpoint is not None:
            commands = " and ".join(f"--{flag}" for flag in self.COMMANDS if flag != "dry_run")
            raise UsageError(
                f"--checkpoint is for {commands}: --init-from starts a training from weights, --resume goes "
                "on with one."
            )
        if self.name and (self.name.startswith(("ckpt-", "aside-", ".")) or len(self.name.encode()) > 200):
            raise UsageError(
                f"--name {self.name[:60]}: a run is called otherwise than a checkpoint, in 200 letters."
            )
        if self.name and self.resume not in (None, "auto") and self.name not in Path(self.resume).parts:
            raise UsageError(f"--resume {self.resume} goes on in that run's directory: leave --name out.")
        if self.warmup_epochs and self.schedule not in ("cosine", "step"):
            raise UsageError(f"--warmup-epochs is for --schedule cosine and step, not {self.schedule}.")
        held = self.schedule == "cosine" and self.schedule_every == "epoch" and not self.lr_end
        if self.epochs == 1 and held and not getattr(self, "parity", ()):
            raise UsageError(
                "--epochs 1 would train at a rate of 0: that of the last epoch, where it changes by epoch as "
                "published. Add --schedule-every step."
            )
        if self.lr_end and self.schedule != "cosine":
            raise UsageError(f"--lr-end is for --schedule cosine, not {self.schedule}.")

    COMMANDS: ClassVar[tuple[str, ...]] = ("eval", "dry_run")  # flags of what is no training

    @classmethod
    def today(cls, recorded: Mapping[str, Any]) -> dict[str, Any]:
        """A recipe that an older version recorded, in today's fields. A missing field gets its default, which
        is what the older version did.
        """
        recipe = {**as_json(cls()), **recorded}
        if "lr_end" not in recorded and recipe["channels_last"] == "auto":
            recipe["channels_last"] = "gpu"  # what "auto" meant then
        return recipe

    def optimiser(self, model: nn.Module, exempt: Collection[str] = ()) -> Optimizer:
        """The optimizer for `model`. `exempt` names modules without weight decay, if `decay_all` is off."""
        groups = model.parameters() if self.decay_all else decayed(model, self.weight_decay, exempt)
        if self.optimizer == "sgd":
            return torch.optim.SGD(groups, self.lr, momentum=0.9, weight_decay=self.weight_decay)
        kind = torch.optim.Adam if self.optimizer == "adam" else torch.optim.AdamW
        return kind(groups, self.lr, weight_decay=self.weight_decay)

    def scheduler(self, optimizer: Optimizer, epoch: int, period: int | None = None) -> LRScheduler:
        """The learning-rate schedule for epochs of `epoch` steps. `period` is the number of epochs in which a
        cosine falls, if it rises again.
        """
        warmup = round(self.warmup_epochs * epoch)
        if self.schedule == "constant":
            return LambdaLR(optimizer, lambda step: 1.0)
        if self.schedule == "step":
            return staircase(optimizer, self.step_epochs * epoch, warmup=warmup)
        if self.schedule != "cosine":
            return schedule(self.schedule, optimizer, self.epochs * epoch)
        return cosine(
            optimizer,
            self.epochs * epoch,
            period=None if period is None else period * epoch,
            warmup=warmup,
            hold=epoch if self.schedule_every == "epoch" else 1,
            floor=self.lr_end / self.lr if self.lr else 0.0,
        )

    def update(self, model: nn.Module) -> Update:
        """How gradients become an update: accumulation, clipping, the scale of fp16, averaged weights."""
        device = next(model.parameters()).device
        scaler = torch.amp.GradScaler(device.type) if self.precision == "fp16" else None
        if scaler is not None:  # the rate moves on even if the first update overflows; that is no mistake
            warnings.filterwarnings("ignore", "Detected call of `lr_scheduler.step")
        return Update(
            self.accumulate, self.clip, scaler, None if self.ema is None else ema_of(model, self.ema)
        )

    def autocast(self, device: torch.device) -> torch.autocast:
        """The autocast context in which a forward pass runs."""
        dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(self.precision)
        return torch.autocast(device.type, dtype, enabled=dtype is not None)

    def layout(self, device: torch.device) -> torch.memory_format:
        """The memory format of kernels and inputs."""
        last = device.type == "cuda" if self.channels_last in ("gpu", "auto") else self.channels_last == "yes"
        return torch.channels_last if last else torch.contiguous_format

    def bits(self, device: torch.device) -> dict[str, Any]:
        """What affects the last bits of a run, in addition to its recipe and the number of processes."""
        return {
            "device": device.type if device.type == "cpu" else torch.cuda.get_device_name(device),
            "processor": torch.backends.cpu.get_cpu_capability(),
            "threads": torch.get_num_threads(),
            "backend": self.backend,
            "channels_last": self.layout(device) is torch.channels_last,
            "compile": self.compile,
            "accumulate": self.accumulate,
            "torch": torch.__version__,
        }

    def set_precision(self) -> None:
        """Sets whether float32 products may be rounded to TensorFloat-32."""
        torch.backends.cudnn.allow_tf32 = self.precision == "tf32"
        torch.set_float32_matmul_precision("high" if self.precision == "tf32" else "highest")
