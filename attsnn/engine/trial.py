"""A training step on random input: how long it takes, and which precision and layout are faster here."""

import statistics
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from itertools import product
from typing import Any, NamedTuple, TypeVar

import torch
from torch import nn

from . import rng
from .loop import Loss
from .processes import Processes
from .progress import duration
from .training import Training

T = TypeVar("T", bound=Training)


class Step(NamedTuple):
    """A training step to try out.

    Args:
        model: the network.
        take: takes a step; returns (seconds, loss).
    """

    model: nn.Module
    take: Callable[[], tuple[float, float]]


def step_of(t: Training, model: nn.Module, loss: Loss, batch: Any, exempt: Collection[str] = ()) -> Step:
    """A training step of the model with the options `t`.

    It takes `batch`, one piece of a process's share, `t.accumulate` times.

    Args:
        t: the options.
        model: the network.
        loss: see `fit`.
        batch: a piece of a process's share of a batch, of `piece_of` samples.
        exempt: names of modules without weight decay, if `decay_all` is off.
    """
    optimizer, update = t.optimiser(model, exempt), t.update(model)
    device = next(model.parameters()).device

    def take() -> tuple[float, float]:
        began = time.perf_counter()
        optimizer.zero_grad(set_to_none=True)
        for _ in range(t.accumulate):
            value, _ = loss(model, batch)
            update.backward(value / t.accumulate)
        update.apply(optimizer, model, update.gradient_norm(optimizer, model).item())
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - began, value.item()

    return Step(model, take)


def piece_of(t: Training, processes: Processes) -> int:
    """The number of samples in a piece of a process's share of a batch."""
    return max(1, max(1, t.batch // processes.world) // t.accumulate)


def rows_of_trial(
    t: Training,
    step: Step,
    processes: Processes,
    name: str,
    samples: int,
    called: str,
) -> list[tuple[str, str]]:
    """The rows of a table that says what a run takes, measured on the second of two steps.

    Args:
        t: the options.
        step: a training step.
        processes: the processes of the run.
        name: the name of the data set.
        samples: the number of samples in its epoch.
        called: what a sample is called, such as "images".
    """
    step.take()  # sets up
    seconds, loss = step.take()
    own, steps = piece_of(t, processes) * t.accumulate, samples // t.batch
    if t.limit_batches is not None:
        steps = min(steps, t.limit_batches)
    rows = [
        ("parameters", f"{sum(p.numel() for p in step.model.parameters()):,}"),
        (f"{called} of a step, in one process", f"{own:,}"),
        ("its time", f"{seconds:.2f} s: {own / seconds:.1f} {called}/s"),
        ("its loss", f"{loss:.3f}"),
        (f"steps of an epoch of {name}", f"{steps:,}"),
        ("steps of the run", f"{t.epochs * steps:,}"),
        ("their time, if nothing waits for data", duration(t.epochs * steps * seconds)),
    ]
    if processes.device.type == "cuda":
        memory = torch.cuda.max_memory_allocated(processes.device) / 2**30
        rows.append(("memory", f"{memory:.1f} GiB"))
    return rows


def native_bf16(device: torch.device) -> bool:
    """Whether the device has instructions for bfloat16: those of a GPU, AMX or AVX512-BF16."""
    if device.type == "cuda":
        native: bool = torch.cuda.is_bf16_supported(including_emulation=False)
        return native
    asked = (
        getattr(torch.cpu, f"_is_{name}_supported", lambda: False) for name in ("amx_tile", "avx512_bf16")
    )
    return any(has() for has in asked)


def settled(
    t: T,
    processes: Processes,
    recorded: Mapping[str, Any] | None,
    trial: Callable[[T], Step] | None = None,
) -> T:
    """The options `t` with "auto" replaced by what it stands for.

    A run that continues keeps what it has recorded. A GPU with bfloat16 gets bf16 and channels-last. On a
    CPU, the first process measures a few steps and takes the fastest of what the CPU has instructions for.

    Args:
        t: the options.
        processes: the processes of the run.
        recorded: the recipe of the run that continues, if there is one.
        trial: makes a step with options, as `step_of` does; not needed if everything is recorded.
    """
    names = [name for name in ("precision", "channels_last") if getattr(t, name) == "auto"]
    kept = {name: recorded[name] for name in names if recorded and recorded.get(name, "auto") != "auto"}
    if not names or len(kept) == len(names):
        return replace(t, **kept)
    t, names = replace(t, **kept), [name for name in names if name not in kept]
    native = native_bf16(processes.device)
    choices = {"precision": ("fp32", "bf16") if native else ("fp32",), "channels_last": ("no", "yes")}
    if processes.device.type == "cuda":
        precision = choices["precision"][-1] if "precision" in names else t.precision
        found: dict[str, Any] = {
            "precision": precision,
            "channels_last": "yes" if precision in ("bf16", "fp16") else "no",
        }
        return replace(t, **{name: found[name] for name in names})
    options: list[dict[str, Any]] = [
        dict(zip(names, values, strict=True)) for values in product(*(choices[name] for name in names))
    ]
    assert trial is not None
    with rng.kept():
        best, said = processes.from_first(lambda: _fastest(options, lambda o: trial(replace(t, **o))))
    if processes.first:
        print(f"auto: {said}", flush=True)
    return replace(t, **best)


def _fastest(
    options: list[dict[str, Any]], make: Callable[[dict[str, Any]], Step]
) -> tuple[dict[str, Any], str]:
    """The option with the fastest step, and a sentence. The steps take turns; times are medians of three."""
    steps = [make(option) for option in options]
    for step in steps:  # the first one sets up
        step.take()
    times = list(zip(*([step.take()[0] for step in steps] for _ in range(3)), strict=True))
    seconds = [statistics.median(values) for values in times]
    best = seconds.index(min(seconds))
    words = [
        f"{', '.join(f'{name} {value}' for name, value in option.items())}: {1e3 * s:.0f} ms a step"
        for option, s in zip(options, seconds, strict=True)
    ]
    chosen = ", ".join(f"{name} {value}" for name, value in options[best].items())
    return options[best], f"{chosen} ({'; '.join(words)})"
