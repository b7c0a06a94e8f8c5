"""Reads run directories for a page: what is there, and in words what is missing."""

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

PARTS = {  # {file: what is missing without it}
    "metrics.jsonl": "no epoch was recorded",
    "profile.json": "rates and energy: the run was not finished, was compiled, or is older than they are",
    "confusion.json": "what was taken for what: the task has no classes, or the run is older than that",
}
PICTURES = {  # {file: (title, description for readers who cannot see it)}
    "recording.png": ("A recording on its way through the network",
                      "Events of a test recording over time, the spikes of each layer as ticks, and rates."),
    "attention.png": ("What the gates give",
                      "Scores of each layer's gates from 0 to 1, over time, channels and space."),
    "over_time.png": ("Accuracy over time", "Accuracy against the time since the window began."),
    "test.png": ("Images and their reconstructions", "Test images, their reconstructions, and samples."),
    "test_latents.png": ("Latents", "Spike trains of latent units, of images and of samples."),
}  # fmt: skip


class NoRunError(ValueError):
    """A folder that is not a run directory."""


@dataclass(frozen=True)
class Read:
    """A run: its name, the content of config.json, its rows, what else is in its directory,
    and what is missing.
    """

    name: str
    path: Path
    config: dict[str, Any]
    rows: list[dict[str, Any]]
    profile: dict[str, Any] | None
    confusion: dict[str, Any] | None
    ended: dict[str, Any] | None  # exit.json
    checkpoints: list[dict[str, Any]]  # name, epoch, whether best or last, data, files with size and hash
    pictures: dict[str, bytes]
    missing: list[str] = field(default_factory=list)

    @property
    def recipe(self) -> dict[str, Any]:
        recipe: dict[str, Any] = self.config.get("recipe", {})
        return recipe

    @property
    def chosen(self) -> dict[str, Any]:
        """The row of the checkpoint that is the result, which is the final row or else that
        of the best checkpoint.
        """
        final = [row for row in self.rows if row.get("final")]
        best = next((c["epoch"] for c in self.checkpoints if c["best"]), None)
        epochs = [row for row in self.rows if row["epoch"] == best]
        return next(iter(final[-1:] or epochs or self.rows[-1:]), {})

    @property
    def result(self) -> tuple[str, float] | None:
        """The name and value of the number that counts; it is that of the test set if it was measured."""
        for name in ("test_accuracy", "val_accuracy", "validation_accuracy", "test_error", "val_error"):
            value = self.chosen.get(name)
            if value is not None:
                return name, value
        return None

    @property
    def accuracy(self) -> float | None:
        found = self.result
        return found[1] if found is not None and found[0].endswith("accuracy") else None

    @property
    def data(self) -> Any:
        """What names the data that it was trained on, according to its checkpoints."""
        return next((saved["data"] for saved in self.checkpoints if saved["data"]), None)

    @property
    def plain(self) -> bool:
        """Whether it was trained without attention."""
        return self.recipe.get("attention", "?") in (None, "none", "None")


def read(path: Path) -> Read:
    """Reads a run directory. Raises NoRunError for any other folder."""
    path = Path(path)
    config = _json(path / "config.json")
    if not isinstance(config, dict):
        why = "it has no config.json that can be read" if path.is_dir() else "there is no such folder"
        raise NoRunError(
            f"{path} is not a run directory: {why}. A trainer writes them, runs/samples for example."
        )
    rows = _lines(path / "metrics.jsonl")
    found = {name: _json(path / name) for name in ("profile.json", "confusion.json", "exit.json")}
    missing = [
        what for name, what in PARTS.items() if (not rows if name == "metrics.jsonl" else found[name] is None)
    ]
    pictures = {name: (path / name).read_bytes() for name in PICTURES if (path / name).is_file()}
    return Read(
        path.resolve().name,
        path,
        config,
        rows,
        found["profile.json"],
        found["confusion.json"],
        found["exit.json"],
        _checkpoints(path),
        pictures,
        missing,
    )


def _checkpoints(path: Path) -> list[dict[str, Any]]:
    named = {which: _text(path / which) for which in ("best", "last")}
    found = []
    for folder in sorted(path.glob("ckpt-*"), key=lambda p: (len(p.name), p.name)):
        manifest, state = _json(folder / "manifest.json") or {}, _json(folder / "state.json") or {}
        files = manifest.get("files", {})
        found.append(
            {
                "name": folder.name,
                "epoch": state.get("position", {}).get("epoch"),
                "best": folder.name == named["best"],
                "last": folder.name == named["last"],
                "data": state.get("data"),
                "files": [
                    {"name": name, "bytes": about.get("bytes"), "sha256": about.get("sha256")}
                    for name, about in files.items()
                ],
            }
        )
    return found


def _json(path: Path) -> Any:
    """The values in a JSON file; None if there is none, or it cannot be read."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except (OSError, ValueError):
        return ""


def _lines(path: Path) -> list[dict[str, Any]]:
    """The rows of metrics.jsonl; a line that a crash cut short is left out."""
    rows = []
    for line in _text(path).splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict) and isinstance(row.get("epoch"), int):
            rows.append(row)
    return rows


def finite(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
