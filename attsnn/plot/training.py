"""A training in pictures: its curves, its confusion, accuracy over time; and several runs together."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from .figures import AVERAGED, HELD, SLANTED, TRAIN, colours, picture

_FEW = 40  # up to so many classes, counts and names fit at full size


def curves(path: Path, rows: Sequence[Mapping[str, Any]]) -> list[Path]:
    """Draws loss and accuracy against the epoch, for training and held-out samples.

    Args:
        path: the file to write, .png or .svg.
        rows: the rows of a run, as `attsnn.engine.Run.rows` returns them.
    """
    rows = [row for row in rows if not row.get("final")]
    return _curves(path, rows, size=(6.4, 2.5)) if rows else []


def confusion(path: Path, matrix: Tensor, classes: Sequence[str]) -> list[Path]:
    """Draws the confusion matrix: for each true class (row), the share that is given to each predicted class.

    Args:
        path: the file to write, .png or .svg.
        matrix: counts `[classes, classes + 1]`, as in `attsnn.engine.Scores`.
        classes: the names of the classes.
    """
    side = 2.6 + (0.24 if len(classes) <= _FEW else 0.11) * len(classes)
    return _confusion(path, matrix, classes, size=(side, side))


def over_time(path: Path, accuracy: Sequence[float], known: int, *, step_ms: float | None) -> list[Path]:
    """Draws the accuracy after each step, and marks the step from which on it is known.

    Args:
        path: the file to write, .png or .svg.
        accuracy: the accuracy after each step, as in `attsnn.engine.OverTime`.
        known: the number of the step to mark.
        step_ms: the length of a step in milliseconds; None: steps are numbered.
    """
    return _over_time(path, accuracy, known, step_ms, size=(4.4, 2.6))


def _worth(row: Mapping[str, Any], name: str, scored: bool) -> float:
    """A number that is higher for a better row."""
    value = row.get(f"{name}_accuracy" if scored else f"{name}_error")
    return -math.inf if value is None else value if scored else -value


@picture
def _curves(figure: Any, rows: Sequence[Mapping[str, Any]]) -> None:
    left, right = figure.subplots(1, 2)
    held = _held(rows[-1:])
    series = (("train", TRAIN), *zip(held, (HELD, AVERAGED), strict=False))
    # A network that makes images has no accuracy.
    scored = not any(name.endswith("_error") for name in rows[-1])
    panels = (("loss", 1), ("accuracy", 100)) if scored else (("error", 1), ("distance", 1))
    for axes, (metric, scale) in zip((left, right), panels, strict=True):
        for which, color in series:
            points = [
                (r["epoch"], scale * r[f"{which}_{metric}"])
                for r in rows
                if r.get(f"{which}_{metric}") is not None
            ]
            if points:
                axes.plot(*zip(*points, strict=True), color=color, label=which, marker="o", markersize=2.2)
        axes.set_xlabel("epoch")
        axes.xaxis.get_major_locator().set_params(integer=True)
    left.set(ylabel=panels[0][0], title=panels[0][0].capitalize(), ylim=(0, None))
    right.set(ylabel="accuracy (%)" if scored else "distance", title=panels[1][0].capitalize())
    if held:  # the last decides: averaged weights come after the others
        best = max(rows, key=lambda row: _worth(row, held[-1], scored))
        label = f"chosen: epoch {best['epoch']}"
        right.axvline(best["epoch"], color=series[-1][1], linewidth=0.7, linestyle=":", label=label)
    left.legend()
    right.legend()


@picture
def _over_time(figure: Any, accuracy: Sequence[float], known: int, step_ms: float | None) -> None:
    axes = figure.subplots()
    length, unit = (1.0, "steps") if step_ms is None else (step_ms, "ms")
    times = [length * t for t in range(1, len(accuracy) + 1)]
    axes.plot(times, [100 * a for a in accuracy], color=HELD, marker="o", markersize=2.2)
    label = f"within a twentieth of the last: {known * length:g} {unit}"
    axes.axvline(known * length, color=AVERAGED, linewidth=0.7, linestyle=":", label=label)
    axes.set(xlabel=f"since the window began ({unit})", ylabel="accuracy (%)", xlim=(0, None), ylim=(0, 102))
    axes.set_title("Accuracy over time")
    axes.legend(loc="lower right")


@picture
def _confusion(figure: Any, matrix: Tensor, classes: Sequence[str]) -> None:
    counts = matrix.numpy()
    undecided = counts[:, -1].any()
    counts = counts if undecided else counts[:, :-1]
    share = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    axes = figure.subplots()
    axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    few = len(classes) <= _FEW
    for (i, j), count in np.ndenumerate(counts):
        if count and few:
            axes.text(
                j,
                i,
                count,
                ha="center",
                va="center",
                fontsize=6.5,
                color="white" if share[i, j] > 0.6 else "black",
            )
    names = [*classes, "no majority"] if undecided else list(classes)
    long = max(map(len, names)) > 3
    axes.set_xticks(range(len(names)), names, **(SLANTED if long else {}))
    axes.set_yticks(range(len(classes)), classes)
    axes.tick_params(length=0, **({} if few else {"labelsize": 4.5}))
    axes.spines[:].set_visible(False)
    accuracy = np.trace(counts) / max(counts.sum(), 1)
    axes.set(xlabel="predicted", ylabel="true", title=f"{accuracy:.1%} of {counts.sum()} recordings")


class Point(NamedTuple):
    """A network in the plot of energy and accuracy.

    Args:
        name: its name.
        accuracy: from 0 to 1.
        energy: in nJ per sample.
    """

    name: str
    accuracy: float
    energy: float


def compared(
    path: Path, runs: Mapping[str, Sequence[Mapping[str, Any]]], *, order: Sequence[str] | None = None
) -> list[Path]:
    """Draws loss and accuracy of several runs by epoch: held-out samples as a line, training dashed.

    Args:
        path: the file to write, .png or .svg.
        runs: {name: rows of the run}.
        order: the names of runs in the order that decides their colours.
    """
    runs = {name: [row for row in rows if not row.get("final")] for name, rows in runs.items()}
    runs = {name: rows for name, rows in runs.items() if rows}
    return _compared(path, runs, colours(runs, order), size=(6.4, 2.7)) if runs else []


def energy(
    path: Path, points: Sequence[Point], *, model: str = "papers", order: Sequence[str] | None = None
) -> list[Path]:
    """Draws accuracy against energy, one point per network; up and to the left is better.

    Args:
        path: the file to write, .png or .svg.
        points: the networks.
        model: the name of the energy model, for the axis.
        order: as for `compared`.
    """
    shades = colours([point.name for point in points], order)
    return _energy(path, points, model, shades, size=(3.8, 2.7)) if points else []


@picture
def _compared(
    figure: Any, runs: Mapping[str, Sequence[Mapping[str, Any]]], shades: Mapping[str, str]
) -> None:
    left, right = figure.subplots(1, 2)
    scored = any("train_accuracy" in row for rows in runs.values() for row in rows)
    # Next to networks that classify there is no place for the error of one that makes images.
    panels = ((left, "loss", 1), (right, "accuracy" if scored else "error", 100 if scored else 1))
    for name, rows in runs.items():
        for axes, metric, scale in panels:
            for which in ("train", *_held(rows)):
                points = [
                    (row["epoch"], scale * row[f"{which}_{metric}"])
                    for row in rows
                    if row.get(f"{which}_{metric}") is not None
                ]
                if points:
                    dashed = {"linestyle": (0, (3, 2)), "linewidth": 0.9} if which == "train" else {}
                    label = name if axes is left and which != "train" else None
                    axes.plot(*zip(*points, strict=True), color=shades[name], label=label, **dashed)
            axes.set_xlabel("epoch")
            axes.xaxis.get_major_locator().set_params(integer=True)
            axes.set(ylabel=f"{metric} (%)" if scale == 100 else metric, title=metric.capitalize())
    left.set_ylim(0, None)
    left.legend(title="line: held out; dashed: training", title_fontsize=7)


def _held(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The names of what is measured in addition to the training."""
    names = [
        name.removesuffix("_loss")
        for row in rows
        for name, v in row.items()
        if name.endswith("_loss") and v is not None
    ]
    return [name for name in dict.fromkeys(names) if name != "train"]


@picture
def _energy(figure: Any, points: Sequence[Point], model: str, shades: Mapping[str, str]) -> None:
    axes = figure.subplots()
    unit, letter = (1e6, "mJ") if min(p.energy for p in points) >= 1e5 else (1e3, "µJ")
    for point in points:
        shade = shades[point.name]
        axes.scatter(point.energy / unit, 100 * point.accuracy, color=shade, s=28, zorder=3)
        axes.annotate(
            point.name,
            (point.energy / unit, 100 * point.accuracy),
            xytext=(5, 4),
            textcoords="offset points",
            color=shade,
        )
    axes.margins(0.25)
    axes.set(xlabel=f"energy of a sample ({letter}), {model}", ylabel="accuracy (%)")
    axes.set_title("Energy and accuracy")
