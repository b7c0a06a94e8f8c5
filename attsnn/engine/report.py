"""The end of a run: the chosen checkpoint, measured once on the test set, as a table and pictures."""

from collections.abc import Sequence

import torch
from torch import nn
from torch.utils.data import DataLoader

from . import checkpoint, pictures
from .classify import Observe, evaluate, summary
from .record import Run


def conclude(
    run: Run, model: nn.Module, test: DataLoader, classes: Sequence[str], observe: Observe, step_ms: float
) -> None:
    """Loads the best checkpoint into `model`, records and prints its scores, and draws the pictures.

    `test`, `classes` and `observe` are those of `evaluate`; a step of the recordings lasts `step_ms`.
    """
    best = checkpoint.find(run.path)
    checkpoint.load_weights(model, best.model, best.path)
    scores = evaluate(model, test, len(classes), observe)
    epoch = best.state["position"]["epoch"]
    row = next(row for row in run.rows() if row["epoch"] == epoch)
    run.rewind(epoch=run.rows()[-1]["epoch"])
    run.record({**row, "test_loss": scores.loss, "test_accuracy": scores.accuracy, "final": True})
    paths = [
        run.path / "curves.png",
        *pictures.confusion(run.path / "confusion.png", scores.confusion, classes),
        *_example(run, model, test, classes, observe, step_ms),
    ]
    print(f"\n{scores.per_class(classes)}\n\n{summary(scores, model)}\n")
    print("\n".join(f"picture: {path}" for path in paths if path.exists()), flush=True)


@torch.no_grad()
def _example(
    run: Run, model: nn.Module, test: DataLoader, classes: Sequence[str], observe: Observe, step_ms: float
) -> list:
    """The first window of the first test recording, on its way through the network."""
    windows, label = test.dataset[0]
    frames = windows[0]
    with observe(model) as seen:
        out = model(frames[:, None].to(next(model.parameters()).device))
    layers = {name: emitted[:, 0] for name, emitted in seen.items()}
    title = f"A test recording of {classes[label]}, taken for {classes[out.argmax(1).item()]}"
    return pictures.recording(run.path / "recording.png", frames, layers, step_ms=step_ms, title=title)
