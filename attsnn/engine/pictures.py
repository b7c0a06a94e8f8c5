"""Pictures of a run, as PNG. Needs matplotlib (the extra `plot`); without it one sentence says so."""

import contextlib
import functools
import io
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from attsnn._files import replace_file

_STYLE = {
    "font.size": 8,
    "axes.titlesize": 8.5,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "legend.frameon": False,
    "lines.linewidth": 1.4,
    "savefig.dpi": 200,
}
_TRAIN, _HELD, _AVERAGED = "#8a8a8a", "#1f5fa8", "#c2570c"
_OFF, _ON = (0.16, 0.35, 0.72), (0.85, 0.24, 0.16)
_SLANTED = {"rotation": 45, "ha": "right", "rotation_mode": "anchor"}
_FEW = 40  # classes whose counts and names fit at full size
_RASTER_ROWS = 160  # neurons of a layer that fit into its panel


@functools.cache
def _matplotlib() -> bool:
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        print("No pictures: matplotlib is not installed (pip install matplotlib).")
        return False
    return True


def _picture(draw: Callable[..., Any]) -> Callable[..., list[Path]]:
    """Makes draw(figure, ...) into f(path, ..., size=inches), which writes a PNG and returns [path] or []."""

    @functools.wraps(draw)
    def write(path: Path, *args: Any, size: tuple[float, float], **kwargs: Any) -> list[Path]:
        if not _matplotlib():
            return []
        with _figure(size) as figure:
            draw(figure, *args, **kwargs)
            png = io.BytesIO()
            figure.savefig(png, format="png")
        replace_file(path, png.getvalue())
        return [path]

    return write


@contextlib.contextmanager
def _figure(size: tuple[float, float]) -> Iterator[Any]:
    """A figure drawn by Agg, whatever display or backend the user has."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=size, layout="constrained")
        FigureCanvasAgg(figure)
        yield figure


def curves(path: Path, rows: Sequence[Mapping[str, Any]]) -> list[Path]:
    """Loss and accuracy against the epoch, training and held-out; `rows` are those of Run.rows()."""
    rows = [row for row in rows if not row.get("final")]
    return _curves(path, rows, size=(6.4, 2.5)) if rows else []


def confusion(path: Path, matrix: Tensor, classes: Sequence[str]) -> list[Path]:
    """Share of each true class (row) given to each predicted class; `matrix` is Scores.confusion."""
    side = 2.6 + (0.24 if len(classes) <= _FEW else 0.11) * len(classes)
    return _confusion(path, matrix, classes, size=(side, side))


def recording(
    path: Path, frames: Tensor, layers: Mapping[str, Tensor], *, step_ms: float | None, title: str
) -> list[Path]:
    """One recording through the network: its events, the spikes of each layer, and the firing rate over time.

    Args:
        step_ms: length of a step; None: steps are numbered.
        frames: event counts [T, 2, H, W], channel 0 OFF, 1 ON.
        layers: name: emitted tensor [T, ...] of this recording; non-zero counts as a spike.
    """
    return _recording(path, frames, layers, step_ms, title, size=(6.8, 1.5 + 0.95 * len(layers)))


def over_time(path: Path, accuracy: Sequence[float], known: int, *, step_ms: float | None) -> list[Path]:
    """Accuracy after each step, with the step from which on it is known; `accuracy`, `known` are those of
    `OverTime`. step_ms: length of a step; None: steps are numbered.
    """
    return _over_time(path, accuracy, known, step_ms, size=(4.4, 2.6))


def grid(
    path: Path, rows: Sequence[Tensor], *, gap: int = 2, scale: int = 2, fill: float = 1.0
) -> list[Path]:
    """Rows of images [n, C, h, w] from -1 to 1 as one PNG with gaps of so many pixels; C is 1 or 3, and a row
    may have images of another size. `fill`: the grey of the gaps. Needs no matplotlib.
    """
    lines = [
        torch.cat(
            [F.pad(image, (gap, 0), value=fill) for image in row.detach().cpu().float().clamp(-1, 1)], 2
        )
        for row in rows
    ]
    width, channels = max(line.shape[2] for line in lines), max(line.shape[0] for line in lines)
    lines = [
        F.pad(x.expand(channels, -1, -1), (0, width + gap - x.shape[2], gap, 0), value=fill) for x in lines
    ]
    whole = F.pad(torch.cat(lines, 1), (0, 0, 0, gap), value=fill)
    pixels = ((whole + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()
    image = Image.fromarray(pixels[..., 0] if channels == 1 else pixels)
    png = io.BytesIO()
    image.resize((scale * image.width, scale * image.height), Image.Resampling.NEAREST).save(png, "PNG")
    replace_file(path, png.getvalue())
    return [path]


def _worth(row: Mapping[str, Any], name: str, scored: bool) -> float:
    """The higher, the better."""
    value = row.get(f"{name}_accuracy" if scored else f"{name}_error")
    return -math.inf if value is None else value if scored else -value


@_picture
def _curves(figure: Any, rows: Sequence[Mapping[str, Any]]) -> None:
    left, right = figure.subplots(1, 2)
    losses = [name for name, value in rows[-1].items() if name.endswith("_loss") and value is not None]
    held = [name.removesuffix("_loss") for name in losses if name != "train_loss"]
    series = (("train", _TRAIN), *zip(held, (_HELD, _AVERAGED), strict=False))
    scored = not any(name.endswith("_error") for name in rows[-1])  # else a network that makes images
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
    if held:  # by the last: averaged weights stand behind the others
        best = max(rows, key=lambda row: _worth(row, held[-1], scored))
        label = f"chosen: epoch {best['epoch']}"
        right.axvline(best["epoch"], color=series[-1][1], linewidth=0.7, linestyle=":", label=label)
    left.legend()
    right.legend()


@_picture
def _over_time(figure: Any, accuracy: Sequence[float], known: int, step_ms: float | None) -> None:
    axes = figure.subplots()
    length, unit = (1.0, "steps") if step_ms is None else (step_ms, "ms")
    times = [length * t for t in range(1, len(accuracy) + 1)]
    axes.plot(times, [100 * a for a in accuracy], color=_HELD, marker="o", markersize=2.2)
    label = f"within a twentieth of the last: {known * length:g} {unit}"
    axes.axvline(known * length, color=_AVERAGED, linewidth=0.7, linestyle=":", label=label)
    axes.set(xlabel=f"since the window began ({unit})", ylabel="accuracy (%)", xlim=(0, None), ylim=(0, 102))
    axes.set_title("Accuracy over time")
    axes.legend(loc="lower right")


@_picture
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
    axes.set_xticks(range(len(names)), names, **(_SLANTED if long else {}))
    axes.set_yticks(range(len(classes)), classes)
    axes.tick_params(length=0, **({} if few else {"labelsize": 4.5}))
    axes.spines[:].set_visible(False)
    accuracy = np.trace(counts) / max(counts.sum(), 1)
    axes.set(xlabel="predicted", ylabel="true", title=f"{accuracy:.1%} of {counts.sum()} recordings")


@_picture
def _recording(
    figure: Any, frames: Tensor, layers: Mapping[str, Tensor], step_ms: float | None, title: str
) -> None:
    steps, label = len(frames), "step" if step_ms is None else "time (ms)"
    names = [f"step {t}" if step_ms is None else f"{t * step_ms:.0f} ms" for t in range(steps)]
    step_ms = 1.0 if step_ms is None else step_ms
    figure.suptitle(title, x=0.01, ha="left", fontsize=9)
    top, below = figure.subfigures(2, 1, height_ratios=(1.15, 0.95 * len(layers)))
    _strip(top, frames, names)
    panels = below.subplots(len(layers), 2, sharex=True, squeeze=False, width_ratios=(3, 1.4))
    times = np.arange(steps) * step_ms
    for (raster, rate), (name, emitted) in zip(panels, layers.items(), strict=True):
        spikes = (emitted != 0).reshape(steps, -1).cpu().numpy()
        count = spikes.shape[1]
        shown = np.unique(np.linspace(0, count - 1, min(count, _RASTER_ROWS)).round().astype(int))
        at, neuron = np.nonzero(spikes[:, shown])
        raster.scatter(
            times[at], neuron, s=16 if len(shown) < 20 else 2, marker="|", linewidths=0.6, color="black"
        )
        raster.set(
            title=f"{name}: {_shown(len(shown), count)}", yticks=[], ylim=(-1, len(shown)), ylabel="neuron"
        )
        rate.plot(times, 100 * spikes.mean(1), color=_HELD, drawstyle="steps-mid")
        rate.set(title=f"{spikes.mean():.1%} on average", ylim=(0, None), ylabel="firing (%)")
    for axes in panels[-1]:
        axes.set_xlabel(label)
    panels[0, 0].set_xlim(-step_ms, steps * step_ms)


def _strip(figure: Any, frames: Tensor, names: Sequence[str]) -> None:
    """Eight equal stretches of the recording side by side, each with its first step's name: ON events red,
    OFF events blue.
    """
    stretches = [part.sum(0).cpu() for part in torch.tensor_split(frames, min(8, len(frames)))]
    full = max(part.max().item() for part in stretches) or 1
    start = 0
    for axes, part, stretch in zip(
        figure.subplots(1, len(stretches)), stretches, torch.tensor_split(frames, len(stretches)), strict=True
    ):
        axes.imshow(_paint((part / full).clamp(0, 1).sqrt().numpy()), interpolation="nearest")
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_visible(True)
        axes.set_title(names[start], fontsize=7, loc="center")
        start += len(stretch)


def _paint(part: np.ndarray) -> np.ndarray:
    """RGB [H, W, 3] of OFF and ON strengths [2, H, W] from 0 to 1, on white."""
    ink = [
        strength[..., None] * (1 - np.array(color)) for strength, color in zip(part, (_OFF, _ON), strict=True)
    ]
    return np.clip(1 - ink[0] - ink[1], 0, 1)


def _shown(shown: int, count: int) -> str:
    return f"all {count} neurons" if shown == count else f"{shown} of {count:,} neurons"
