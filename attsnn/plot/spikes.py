"""What neurons do, in pictures: a recording on its way through a network, and rates by layer and step."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .figures import HELD, colour, colours, picture

_OFF, _ON = (0.16, 0.35, 0.72), (0.85, 0.24, 0.16)
_RASTER_ROWS = 160  # the most neurons of a layer that its panel shows


def recording(
    path: Path, frames: Tensor, layers: Mapping[str, Tensor], *, step_ms: float | None, title: str
) -> list[Path]:
    """Draws one recording in the network: its events, the spikes of each layer, and the
    firing rate over time.

    Args:
        path: the file to write, .png or .svg.
        frames: event counts `[T, 2, H, W]`; channel 0 is OFF, 1 is ON.
        layers: {name: emitted tensor `[T, ...]` of this recording}; a non-zero value counts as a spike.
        step_ms: the length of a step in milliseconds; None: steps are numbered.
        title: the title of the figure.
    """
    return _recording(path, frames, layers, step_ms, title, size=(6.8, 1.5 + 0.95 * len(layers)))


@picture
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
        spikes = _scatter(raster, name, emitted, times)
        rate.plot(times, 100 * spikes.mean(1), color=HELD, drawstyle="steps-mid")
        rate.set(title=f"{spikes.mean():.1%} on average", ylim=(0, None), ylabel="firing (%)")
    for axes in panels[-1]:
        axes.set_xlabel(label)
    panels[0, 0].set_xlim(-step_ms, steps * step_ms)


def _scatter(axes: Any, name: str, emitted: Tensor, times: np.ndarray) -> np.ndarray:
    """Draws a tick for each spike, in a row for each neuron; returns the spikes [T, neurons]."""
    spikes = (emitted != 0).reshape(len(emitted), -1).cpu().numpy()
    count = spikes.shape[1]
    shown = np.unique(np.linspace(0, count - 1, min(count, _RASTER_ROWS)).round().astype(int))
    at, neuron = np.nonzero(spikes[:, shown])
    size = 16 if len(shown) < 20 else 2
    axes.scatter(times[at], neuron, s=size, marker="|", linewidths=0.6, color="black")
    title = f"{name}: {_shown(len(shown), count)}"
    axes.set(title=title, yticks=[], ylim=(-1, len(shown)), ylabel="neuron")
    return spikes


def _strip(figure: Any, frames: Tensor, names: Sequence[str]) -> None:
    """Draws eight equal stretches of the recording side by side, each with the name of its first step: ON
    events are red, OFF events blue.
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
    painted: np.ndarray = np.clip(1 - ink[0] - ink[1], 0, 1)
    return painted


def _shown(shown: int, count: int) -> str:
    return f"all {count} neurons" if shown == count else f"{shown} of {count:,} neurons"


def raster(path: Path, layers: Mapping[str, Tensor], *, title: str = "") -> list[Path]:
    """Draws the spikes of each layer against the step, one row per neuron.

    Args:
        path: the file to write, .png or .svg.
        layers: {name: emitted tensor `[T, ...]` of one sample}; a non-zero value counts as a spike.
        title: the title of the figure.
    """
    return _raster(path, layers, title, size=(5.0, 0.6 + 0.95 * len(layers))) if layers else []


def rates(
    path: Path,
    networks: Mapping[str, Mapping[str, float]],
    steps: Mapping[str, Mapping[str, Sequence[float]]] | None = None,
    *,
    order: Sequence[str] | None = None,
) -> list[Path]:
    """Draws firing rates by layer, for several networks side by side, and over the steps.

    Args:
        path: the file to write, .png or .svg.
        networks: {network: {layer: rate}}, as `Profile.rates` gives it.
        steps: {network: {layer: rate at every step}}, as `Profile.rate_by_step` gives it. For one network
            each layer is drawn, for several the mean over their layers.
        order: the names of networks in the order that decides their colours.
    """
    names = list(dict.fromkeys(name for found in networks.values() for name in found))
    if not names:
        return []
    height = 0.9 + max(0.16 * len(names) * max(len(networks), 1.4), 1.6)
    shades = colours(networks, order)
    return _rates(path, networks, steps or {}, names, shades, size=(6.8, min(height, 12)))


@picture
def _raster(figure: Any, layers: Mapping[str, Tensor], title: str) -> None:
    if title:
        figure.suptitle(title, x=0.01, ha="left", fontsize=9)
    panels = figure.subplots(len(layers), 1, sharex=True, squeeze=False)[:, 0]
    for axes, (name, emitted) in zip(panels, layers.items(), strict=True):
        _scatter(axes, name, emitted, np.arange(1, len(emitted) + 1))
    panels[-1].set_xlabel("step")


@picture
def _rates(
    figure: Any,
    networks: Mapping[str, Mapping[str, float]],
    steps: Mapping[str, Mapping[str, Sequence[float]]],
    names: list[str],
    shades: Mapping[str, str],
) -> None:
    left, right = figure.subplots(1, 2, width_ratios=(1.3, 1)) if steps else (figure.subplots(), None)
    width = 0.8 / len(networks)
    for i, (network, found) in enumerate(networks.items()):
        places = np.arange(len(names)) + (i - (len(networks) - 1) / 2) * width
        values = [100 * found.get(name, 0.0) for name in names]
        left.barh(places, values, height=width, color=shades[network], label=network)
    left.set_yticks(range(len(names)), names, fontsize=8 if len(names) <= 20 else 5)
    left.invert_yaxis()
    left.set(xlabel="rate (%)", title="Firing rate by layer")
    if len(networks) > 1:
        left.legend()
    if right is None:
        return
    lines: dict[str, tuple[Sequence[float] | np.ndarray, str]]
    if len(steps) == 1:
        (layers,) = steps.values()
        lines = {name: (curve, colour(i)) for i, (name, curve) in enumerate(layers.items())}
    else:
        lines = {name: (_mean(layers), shades[name]) for name, layers in steps.items()}
    for name, (curve, shade) in lines.items():
        times = np.arange(1, len(curve) + 1)
        right.plot(times, 100 * np.asarray(curve), color=shade, label=name, drawstyle="steps-mid")
    right.set(xlabel="step", ylabel="rate (%)", ylim=(0, None))
    right.set_title("Over the steps" if len(steps) == 1 else "Over the steps, mean of the layers")
    right.xaxis.get_major_locator().set_params(integer=True)
    if len(steps) == 1 and len(lines) <= 8:
        right.legend(fontsize=6.5)


def _mean(found: Mapping[str, Sequence[float]]) -> np.ndarray:
    """The mean of the layers that have the most steps."""
    longest = max(map(len, found.values()), default=0)
    mean: np.ndarray = np.mean(
        [values for values in found.values() if len(values) == longest] or [[]], axis=0
    )
    return mean
