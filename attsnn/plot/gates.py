"""Attention in pictures: what each gate gave over time, channels and space, and the factors of a PFA."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .figures import HEAT, HELD, picture

KINDS = ("TA", "CA", "SA", "PFA time", "PFA channels", "PFA map")
_TITLES = {
    "TA": "time (TA)",
    "CA": "channels (CA)",
    "SA": "space (SA)",
    "PFA time": "time, by rank",
    "PFA channels": "channels, by rank",
    "PFA map": "map over pixels",
}
_WIDTHS = {kind: 1.2 if kind in ("SA", "PFA map") else 2.1 for kind in KINDS}  # inches; a map is square
_UNITS = {"TA": "step", "CA": "channel", "PFA time": "step", "PFA channels": "channel"}

Scores = Mapping[str, Mapping[str, Any]]


def gates(path: Path, scores: Scores, *, frames: Tensor | None = None, title: str = "") -> list[Path]:
    """Draws the scores of every layer's gates, one row per layer.

    Scores over time are a line, with a band from the lowest to the highest sample. Scores of channels are one
    bar each, the mean over the samples. Scores of pixels are a map for the first sample, over its input if
    `frames` are given. For a PFA, the panels show the first sample: its factors over time and over channels,
    with a row per rank, and its map over the pixels.

    Args:
        path: the file to write, .png or .svg.
        scores: as `attsnn.profile.scores` gives them: "TA" `[T, N]`, "CA" `[N, C]`, "SA" `[N, H, W]`, "PFA"
            (spatial `[N, R, H, W]`, temporal `[N, T, R]`, channel `[N, C, R]`).
        frames: `[T, C, H, W]`, of the first sample.
        title: the title of the figure.
    """
    parts = {name: by_kind(found) for name, found in scores.items()}
    kinds = [kind for kind in KINDS if any(kind in part for part in parts.values())]
    if not kinds:
        return []
    size = max(3.1, 1.0 + sum(_WIDTHS[kind] for kind in kinds)), 0.55 + 1.15 * len(parts)
    return _gates(path, parts, kinds, frames, title, size=size)


def by_kind(found: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The scores of a layer, by the panels that show them."""
    parts = {kind: _array(found[kind]) for kind in ("TA", "CA", "SA") if kind in found}
    if "PFA" in found:
        spatial, temporal, channel = (_array(factor) for factor in found["PFA"])
        parts |= {
            "PFA time": temporal[0].T,
            "PFA channels": channel[0].T,
            "PFA map": np.einsum("nrhw,ntr,ncr->nhw", spatial, temporal, channel)
            / (spatial.shape[1] * temporal.shape[1] * channel.shape[1]),
        }
    return parts


def _array(values: Any) -> np.ndarray:
    return np.asarray(torch.as_tensor(values).detach().float().cpu())


@picture
def _gates(
    figure: Any,
    parts: Mapping[str, Mapping[str, np.ndarray]],
    kinds: list[str],
    frames: Tensor | None,
    title: str,
) -> None:
    if title:
        figure.suptitle(title, x=0.01, ha="left", fontsize=9)
    widths = [_WIDTHS[kind] for kind in kinds]
    panels = figure.subplots(len(parts), len(kinds), squeeze=False, width_ratios=widths)
    for row, (name, found) in zip(panels, parts.items(), strict=True):
        row[0].set_ylabel(name, rotation=0, ha="right", va="center")
        for axes, kind in zip(row, kinds, strict=True):
            if kind in found:
                _PANELS[kind](axes, found[kind], frames)
            else:
                axes.axis("off")
                if axes is row[0]:  # the layer's name stays
                    axes.axis("on")
                    axes.set(xticks=[], yticks=[])
                    axes.spines[:].set_visible(False)
    for i, kind in enumerate(kinds):
        panels[0, i].set_title(_TITLES[kind])
        last = max(k for k, found in enumerate(parts.values()) if kind in found)
        panels[last, i].set_xlabel(_UNITS.get(kind, ""))


def _time(axes: Any, scores: np.ndarray, _: Tensor | None) -> None:  # [T, N]
    steps = np.arange(1, len(scores) + 1)
    axes.fill_between(steps, scores.min(1), scores.max(1), color=HELD, alpha=0.2, linewidth=0)
    axes.plot(steps, scores.mean(1), color=HELD)
    axes.set(ylim=(0, 1), yticks=[0, 0.5, 1], xlim=(1, max(len(scores), 2)))
    axes.xaxis.get_major_locator().set_params(integer=True)


def _channels(axes: Any, scores: np.ndarray, _: Tensor | None) -> None:  # [N, C]
    count = scores.shape[1]
    axes.bar(np.arange(1, count + 1), scores.mean(0), width=1.0, color=HELD)
    axes.set(ylim=(0, 1), yticks=[0, 0.5, 1], xlim=(0.5, count + 0.5))
    axes.xaxis.get_major_locator().set_params(integer=True)


def _space(axes: Any, scores: np.ndarray, frames: Tensor | None) -> None:  # [N, H, W]
    height, width = scores.shape[1:]
    extent = (0, width, height, 0)
    if frames is not None:
        seen = frames.abs().sum((0, 1)).cpu().numpy()
        axes.imshow(seen / max(seen.max(), 1e-9), cmap="gray_r", extent=extent, aspect="equal")
    shown = axes.imshow(
        scores[0], cmap=HEAT, vmin=0, vmax=1, extent=extent, alpha=1.0 if frames is None else 0.6
    )
    axes.set(xticks=[], yticks=[])
    axes.figure.colorbar(shown, ax=axes, ticks=[0, 0.5, 1], fraction=0.08)


def _map(axes: Any, scores: np.ndarray, _: Tensor | None) -> None:  # [N, H, W], small: products
    shown = axes.imshow(scores[0], cmap=HEAT, vmin=0, aspect="equal", interpolation="nearest")
    axes.set(xticks=[], yticks=[])
    axes.figure.colorbar(shown, ax=axes, fraction=0.08)


def _factor(axes: Any, scores: np.ndarray, _: Tensor | None) -> None:  # [R, T] or [R, C]
    extent = (0.5, scores.shape[1] + 0.5, scores.shape[0], 0)
    look = {"cmap": HEAT, "vmin": 0, "vmax": 1, "aspect": "auto", "interpolation": "nearest"}
    shown = axes.imshow(scores, extent=extent, **look)
    axes.set(yticks=[])
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.figure.colorbar(shown, ax=axes, ticks=[0, 0.5, 1], fraction=0.08)


_PANELS = {
    "TA": _time,
    "CA": _channels,
    "SA": _space,
    "PFA time": _factor,
    "PFA channels": _factor,
    "PFA map": _map,
}
