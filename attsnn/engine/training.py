"""The options of a training that hang on no task, which of them a stopped run may change, and what is built
from them.
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
    """Recipes extend this by the fields of their task, and may change its defaults."""

    epochs: int = 100  # times that every training sample is shown
    batch: int = 128  # samples of a training step, over all processes
    accumulate: int = 1  # pieces of a process's share, whose gradients are added
    optimizer: Literal["sgd", "adam", "adamw"] = "adam"  # sgd: with momentum 0.9
    lr: float = 1e-3  # the highest of the schedule
    lr_end: float = 0  # the lowest, of a cosine
    schedule: Schedule = "cosine"  # of lr; plateau: x 0.1 after 5 stale epochs; onecycle: up and down again
    schedule_every: Literal["epoch", "step"] = "step"  # when a cosine changes lr; epoch: the last has lr_end
    step_epochs: int = 30  # of schedule step: epochs between x 0.1
    warmup_epochs: float = 0  # in which lr rises to that of the schedule, a cosine or steps
    weight_decay: float = 0  # of adamw and of sgd; of adam it is added to the gradient
    decay_all: bool = True  # weight decay on norms, biases and gates too
    clip: float | None = None  # the gradient norm that longer ones are cut to
    ema: float | None = None  # decay of the averaged weights, which are evaluated and kept too
    precision: Precision = "fp32"  # fp16: its loss is scaled; auto: bf16 or fp32, what is faster here
    channels_last: Layout = "gpu"  # the layout of images; gpu: on one alone; auto: where it is faster here
    compile: bool = False  # torch.compile the model
    sync_norm: bool = True  # batch statistics over all processes
    settle: int = 0  # batches of training whose statistics norms evaluate with; 0: the running ones
    init_from: Path | None = None  # weights to start from: what --checkpoint takes
    seed: int = 0  # of the first weights, the order of the samples, and what augments them
    name: str | None = None  # of the run directory; default: the recipe's, or the next free number
    runs_dir: Path = Path("runs")
    resume: str | None = None  # auto, a checkpoint or a run directory
    save_minutes: float = 20  # between the checkpoints within an epoch
    limit_batches: int | None = None  # of an epoch, and of an evaluation
    test_batch: int = 100  # samples of an evaluation step, in each process
    dry_run: bool = False  # a step on random input, then what a run takes; writes nothing
    eval: bool = False  # only measure --checkpoint
    checkpoint: Path | None = None  # ours (ckpt-..., or a run: its best), a published file, or one converted
    device: Literal["auto", "cpu", "cuda"] = "auto"
    backend: Literal["auto", "fused", "reference"] = "auto"
    workers: int = 8  # processes that load data, for each training process
    threads: int = 0  # of the CPU; 0 leaves PyTorch's choice
    dist_timeout: float = 600  # seconds after which a process that does not answer ends the run

    if TYPE_CHECKING:

        @property
        def recipe(self) -> str:
            """Its name: a field of every recipe."""

    # What says where and how, not what is trained: it may change when a run goes on.
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
        """A UsageError for options that contradict each other, before anything is read or written."""
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
        """A recipe that an older version recorded, in today's fields: what it lacks has its default, by which
        nothing changed.
        """
        recipe = {**as_json(cls()), **recorded}
        if "lr_end" not in recorded and recipe["channels_last"] == "auto":
            recipe["channels_last"] = "gpu"  # what it meant
        return recipe

    def optimiser(self, model: nn.Module, exempt: Collection[str] = ()) -> Optimizer:
        """`exempt`: modules, by name, that take no weight decay where not all do."""
        groups = model.parameters() if self.decay_all else decayed(model, self.weight_decay, exempt)
        if self.optimizer == "sgd":
            return torch.optim.SGD(groups, self.lr, momentum=0.9, weight_decay=self.weight_decay)
        kind = torch.optim.Adam if self.optimizer == "adam" else torch.optim.AdamW
        return kind(groups, self.lr, weight_decay=self.weight_decay)

    def scheduler(self, optimizer: Optimizer, epoch: int, period: int | None = None) -> LRScheduler:
        """Of epochs of so many steps; `period`: the epochs in which a cosine falls, where it rises again."""
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
        """Accumulation, clipping, the scale of fp16, averaged weights."""
        device = next(model.parameters()).device
        scaler = torch.amp.GradScaler(device.type) if self.precision == "fp16" else None
        if scaler is not None:  # the rate moves on where the first update overflows, which is no mistake
            warnings.filterwarnings("ignore", "Detected call of `lr_scheduler.step")
        return Update(
            self.accumulate, self.clip, scaler, None if self.ema is None else ema_of(model, self.ema)
        )

    def autocast(self, device: torch.device) -> torch.autocast:
        """In which a forward pass runs."""
        dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(self.precision)
        return torch.autocast(device.type, dtype, enabled=dtype is not None)

    def layout(self, device: torch.device) -> torch.memory_format:
        """Of kernels and of what is fed."""
        last = device.type == "cuda" if self.channels_last in ("gpu", "auto") else self.channels_last == "yes"
        return torch.channels_last if last else torch.contiguous_format

    def bits(self, device: torch.device) -> dict[str, Any]:
        """What the last bits of a run hang on, beside its recipe and the number of processes."""
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
        """Whether float32 products may be rounded to TensorFloat-32."""
        torch.backends.cudnn.allow_tf32 = self.precision == "tf32"
        torch.set_float32_matmul_precision("high" if self.precision == "tf32" else "highest")
