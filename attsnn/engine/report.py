"""The end of a run: measures the chosen checkpoint once on the test set; a table and pictures."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from attsnn._files import replace_file

from . import checkpoint, pictures
from .classify import Observe, evaluate, summary
from .inside import Inside, profiled
from .processes import Processes
from .record import Run

T = TypeVar("T")


def final(
    run: Run,
    model: nn.Module,
    measure: Callable[[nn.Module], Mapping[str, Any]],
    inside: Inside | None = None,
    processes: Processes | None = None,
    profiles: Callable[[Any], None] = lambda profile: None,
) -> Mapping[str, Any]:
    """Loads the best checkpoint into `model` (its averaged weights if it has some), measures it, and records
    the result as the final row. Call it in every process.

    Args:
        run: the run.
        model: the network.
        measure: (model) -> the numbers to record, which are returned.
        inside: if given, rates and energy during `measure` are printed and kept as profile.json.
        processes: the processes of the run.
        profiles: called with that profile.
    """
    best = load_best(run, model)
    found = keep_profile(run, model, measure, inside, processes, profiles)
    epoch, step = (best.state["position"][name] for name in ("epoch", "step"))
    row = next((row for row in run.recorded() if row["epoch"] == epoch), {"epoch": epoch, "step": step})
    run.rewind(epoch=max((row["epoch"] for row in run.recorded()), default=epoch))
    run.record({**row, **found, "final": True})
    return found


def load_best(run: Run, model: nn.Module) -> checkpoint.Checkpoint:
    """Loads the weights of the best checkpoint into `model`; returns the checkpoint."""
    best = checkpoint.find(run.path)
    checkpoint.load_weights(model, checkpoint.weights_in(best), best.path)
    return best


def keep_profile(
    run: Run,
    model: nn.Module,
    measure: Callable[[nn.Module], T],
    inside: Inside | None,
    processes: Processes | None = None,
    profiles: Callable[[Any], None] = lambda profile: None,
) -> T:
    """Returns what `measure` finds of the model. With `inside`, rates and energy meanwhile are printed, kept
    as profile.json, and passed to `profiles`.
    """
    processes = processes or Processes()
    found, profile = profiled(inside, model, measure, processes)
    if profile is not None and profile.counted and processes.first:
        with run.writing("keep the profile"):
            profile.save(run.path / "profile.json")
        print(f"\n{profile.summary()}", flush=True)
        profiles(profile)
    return found


def conclude(
    run: Run,
    model: nn.Module,
    test: DataLoader[Any],
    classes: Sequence[str],
    observe: Observe,
    step_ms: float | None,
    processes: Processes | None = None,
    inside: Inside | None = None,
    **how: Any,
) -> None:
    """Records and prints the scores of the best checkpoint on the test set, and draws the pictures.

    Args:
        run: the run.
        model: the network.
        test: the test set, as `evaluate` takes it.
        classes: the names of the classes.
        observe: see `evaluate`. With `inside` it sees only the one recording of a picture.
        step_ms: milliseconds of a step; None if steps are equally many events.
        processes: the processes of the run.
        inside: see `final`; the rates then come from its profile.
        how: further keywords of `evaluate`.
    """
    processes = processes or Processes()
    scores = []

    def measure(model: nn.Module) -> dict[str, float]:
        watching = observe if inside is None else None
        scores.append(evaluate(model, test, len(classes), watching, processes=processes, **how))
        return {"test_loss": scores[0].loss, "test_accuracy": scores[0].accuracy}

    final(run, model, measure, inside, processes, lambda profile: scores[0].rates.update(profile.rates()))
    if not processes.first:
        return
    with run.writing("draw the pictures"):
        found = {"classes": list(classes), "counts": scores[0].confusion.tolist()}
        replace_file(run.path / "confusion.json", json.dumps(found).encode())
        confusion = pictures.confusion(run.path / "confusion.png", scores[0].confusion, classes)
    paths = [
        run.path / "curves.png",
        *confusion,
        *_example(run, model, test, classes, observe, step_ms, inside),
    ]
    print(f"\n{scores[0].per_class(classes)}\n\n{summary(scores[0], model)}\n")
    print("\n".join(f"picture: {path}" for path in paths if path.exists()), flush=True)


@torch.no_grad()
def _example(
    run: Run,
    model: nn.Module,
    test: DataLoader[Any],
    classes: Sequence[str],
    observe: Observe,
    step_ms: float | None,
    inside: Inside | None,
) -> list[Path]:
    """Draws the first window of the first test recording in the network, and what the gates give."""
    windows, label = test.dataset[0]
    frames = windows[0]
    x = frames[:, None].to(next(model.parameters()).device)
    with observe(model) as seen:
        out = model(x)
    layers = {name: emitted[:, 0] for name, emitted in seen.items()}
    title = f"A test recording of {classes[label]}, taken for {classes[out.argmax(1).item()]}"
    with run.writing("draw the pictures"):
        drawn = pictures.recording(run.path / "recording.png", frames, layers, step_ms=step_ms, title=title)
    if inside is None:
        return drawn
    return drawn + draw_gates(run, model, nn.Module.__call__, x, inside, frames)


@torch.no_grad()
def draw_gates(
    run: Run,
    model: nn.Module,
    forward: Callable[[nn.Module, Tensor], Any],
    x: Tensor,
    inside: Inside,
    frames: Tensor | None = None,
) -> list[Path]:
    """Draws the weights that the network's gates give for some samples as attention.png; returns the paths,
    none for a network without gates.

    Args:
        run: the run.
        model: the network.
        forward: (model, x) runs the network.
        x: the samples.
        inside: its `scores` gives the gates' weights.
        frames: see `attsnn.plot.gates`.
    """
    with inside.scores(model.eval()) as scores:
        forward(model, x)
    title = f"What the gates give, {'a test sample' if frames is not None else f'{len(x)} samples'}"
    with run.writing("draw the pictures"):
        return pictures.gates(run.path / "attention.png", scores, frames=frames, title=title)
