"""The report page: one HTML file that needs nothing else, made from run directories alone."""

import base64
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from attsnn._files import replace_file
from attsnn._text import amount

from . import spikes, training
from .figures import _matplotlib
from .reading import PICTURES, Read, finite, read
from .saying import base_of, energy, verdicts

# Options that say nothing about a result.
SAME = ("name", "runs_dir", "resume", "dry_run", "eval", "checkpoint")


class Cell(NamedTuple):
    """What a table shows, and the key that it is sorted by."""

    text: str
    key: str | float


class Table(NamedTuple):
    caption: str
    head: Sequence[str]
    rows: Sequence[Sequence[Cell]]


class Figure(NamedTuple):
    title: str
    alt: str
    source: str  # a data: address
    wide: bool = False


def report(paths: Sequence[Path], out: Path) -> list[Read]:
    """Writes the page of these run directories to `out`; returns what was read.

    Runs with the same name are called by their folders. Raises NoRunError for a folder that is not a run
    directory.
    """
    runs = [read(path) for path in paths]
    names = [run.name for run in runs]
    if len(set(names)) < len(names):
        runs = [_renamed(run) for run in runs]
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    page = environment.get_template("page.html").render(**contents(runs))
    replace_file(Path(out), page.encode())
    return runs


def _renamed(run: Read) -> Read:
    """The run, called by its folder."""
    return Read(**{**vars(run), "name": str(run.path)})


def contents(runs: Sequence[Read]) -> dict[str, Any]:
    """What the template of the page shows."""
    base = base_of(runs)
    return {
        "title": " and ".join(run.name for run in runs) if len(runs) < 4 else f"{len(runs)} runs",
        "runs": runs,
        "base": base,
        "cards": [_card(run) for run in runs],
        "verdicts": [(run, verdicts(run, base)) for run in runs if run is not base],
        "together": _together(runs),
        "options": _options(runs),
        "sections": [_section(run) for run in runs],
        "drawn": _matplotlib(),
    }


def _card(run: Read) -> dict[str, str]:
    """The numbers that readers look for first."""
    found, profile = run.result, run.profile
    card = {}
    if found is not None:
        shown = f"{found[1]:.2%}" if found[0].endswith("accuracy") else f"{found[1]:.4f}"
        card[found[0].replace("_", " ")] = shown
    if profile:
        total = profile["total"]
        card |= {
            "spikes a sample": f"{total['spikes']:,.0f}",
            "NASAR": "-" if profile["nasar"] is None else f"{profile['nasar']:.3f}",
            "energy, papers' model": energy(total["energy"]["papers"]),
            "with memory": energy(total["energy"]["memory"]),
            "parameters": f"{total['parameters']:,}",
        }
    return card


# ---- of all runs
# ------------------------------------------------------------------------------------------


def _together(runs: Sequence[Read]) -> list[Figure]:
    """The pictures that hold every run."""
    found, order = [], [run.name for run in runs]
    rows = {run.name: run.rows for run in runs if run.rows}
    profiles = {run.name: run.profile for run in runs if run.profile}
    points = [
        training.Point(run.name, run.accuracy, run.profile["total"]["energy"]["papers"])
        for run in runs
        if run.profile and run.accuracy is not None
    ]
    if len(points) > 1:
        alt = "; ".join(f"{p.name}: {p.accuracy:.2%} at {energy(p.energy)}" for p in points)
        found += _figure(
            "Energy and accuracy", alt, training.energy, points, model="papers' model", order=order
        )
    alt = "Loss and accuracy of each epoch, of training and of held-out samples."
    found += _figure("Training", alt, training.compared, rows, order=order)
    if profiles:
        rates = {name: _rates(profile) for name, profile in profiles.items()}
        steps = {name: profile["rate_by_step"] for name, profile in profiles.items()}
        alt = "Firing rates of each layer and over the steps; the tables below have the numbers."
        found += _figure("Firing rates", alt, spikes.rates, rates, steps, order=order, wide=True)
    return found


def _rates(profile: dict[str, Any]) -> dict[str, float]:
    return {row["layer"]: row["rate"] for row in profile["rows"] if row["rate"] is not None}


def _options(runs: Sequence[Read]) -> Table:
    """The options of the runs; those that differ come first."""
    names = list(dict.fromkeys(name for run in runs for name in run.recipe if name not in SAME))
    values = {name: [run.recipe.get(name) for run in runs] for name in names}
    names.sort(key=lambda name: len({repr(v) for v in values[name]}) == 1)
    rows = []
    for name in names:
        differs = len({repr(v) for v in values[name]}) > 1
        label = name + (" *" if differs and len(runs) > 1 else "")
        rows.append([Cell(label, name), *(_value(v) for v in values[name])])
    caption = "Options; * where the runs differ" if len(runs) > 1 else "Options"
    return Table(caption, ("option", *(run.name for run in runs)), rows)


def _value(value: Any) -> Cell:
    if value is None:
        return Cell("none", "")
    if isinstance(value, list | tuple):
        value = ", ".join(map(str, value)) or "none"
    return Cell(str(value), value if finite(value) else str(value))


# ---- of one run
# ------------------------------------------------------------------------------------------


def _section(run: Read) -> dict[str, Any]:
    tables = [table for table in (_layers(run), _classes(run), _epochs(run), _files(run)) if table.rows]
    pictures = [
        Figure(*PICTURES[name], f"data:image/png;base64,{base64.b64encode(data).decode()}", True)
        for name, data in run.pictures.items()
    ]
    if run.confusion:
        classes, counts = run.confusion["classes"], torch.tensor(run.confusion["counts"])
        alt = "Rows are true classes, columns what was predicted; the table below has the numbers."
        pictures = _figure("Confusion", alt, training.confusion, counts, classes) + pictures
    health = [(row["epoch"], row["health"]) for row in run.rows if row.get("health") and not row.get("final")]
    ended = run.ended or {}
    return {
        "run": run,
        "facts": _facts(run),
        "tables": tables,
        "pictures": pictures,
        "health": _spans(health),
        "last": max((row["epoch"] for row in run.rows), default=0),
        "ended": f"exit code {ended['code']}" + (f": {ended['said']}" if ended.get("said") else "")
        if "code" in ended
        else "",
        "energy": _energies(run),
    }


def _facts(run: Read) -> list[tuple[str, str]]:
    config = run.config
    versions = ", ".join(f"{name} {v}" for name, v in config.get("versions", {}).items())
    machine = config.get("machine", {})
    where = ", ".join(
        str(part)
        for part in (machine.get("system"), f"{machine.get('threads')} threads", *machine.get("gpus", ()))
        if part
    )
    facts = {
        "command": config.get("command"),
        "started": config.get("started"),
        "commit": config.get("commit"),
        "versions": versions,
        "machine": where if machine else "",
    }
    return [(name, value) for name, value in facts.items() if value]


def _layers(run: Read) -> Table:
    head = ("layer", "output", "parameters", "rate", "synaptic", "MACs", "additions", "mult.",
            "papers", "operations", "memory", "lemaire")  # fmt: skip
    rows = []
    for row in [*run.profile["rows"], run.profile["total"]] if run.profile else ():
        rate = row["rate"]
        counts = (row["synaptic"], row["macs"], row["additions"], row["multiplications"])
        rows.append(
            [
                Cell(row["layer"], row["layer"]),
                Cell(" × ".join(map(str, row["output"])) or "-", float(np.prod(row["output"] or [0]))),
                Cell(f"{row['parameters']:,}", row["parameters"]),
                Cell("-" if rate is None else f"{rate:.2%}", -1.0 if rate is None else rate),
                *(Cell(amount(value), value) for value in counts),
                *(Cell(energy(value), value) for value in row["energy"].values()),
            ]
        )
    return Table("Layers: rates, operations and energy of a sample", head, rows)


def _energies(run: Read) -> list[str]:
    """The sentences below the table of layers."""
    if not run.profile:
        return []
    profile, twin = run.profile, run.profile["r_ee_twin"]
    said = [
        f"The mean of {profile['samples']:,} samples. Energy by the papers' model, by all operations, with "
        "memory, and by Lemaire's: docs/energy.md has the formulas."
    ]
    if twin is not None:
        said.append(f"r_EE against the non-spiking twin, papers' model: {twin:.2f}.")
    if profile["gate_macs"]:
        said.append(f"The gates take {amount(profile['gate_macs'])} MACs by formula.")
    return said


def _classes(run: Read) -> Table:
    rows = []
    if run.confusion:
        names = [*run.confusion["classes"], "no majority"]
        for i, (name, counts) in enumerate(zip(names, run.confusion["counts"], strict=False)):
            total = sum(counts)
            share = counts[i] / total if total else 0.0
            wrong = max((c, names[j]) for j, c in enumerate(counts) if j != i)
            most = f"{wrong[1]} ({wrong[0]})" if wrong[0] else "-"
            cells = Cell(name, name), Cell(f"{total:,}", total), Cell(f"{counts[i]:,}", counts[i])
            rows.append([*cells, Cell(f"{share:.2%}" if total else "-", share), Cell(most, wrong[0])])
    head = ("class", "samples", "correct", "accuracy", "most often taken for")
    return Table("Classes of the test set", head, rows)


def _epochs(run: Read) -> Table:
    rows = [row for row in run.rows if not row.get("final")]
    names = [name for name in dict.fromkeys(n for row in rows for n in row) if name != "health"]
    names = [name for name in names if any(finite(row.get(name)) for row in rows)]
    cells = [[_number(name, row.get(name)) for name in names] for row in rows]
    return Table("Epochs", [name.replace("_", " ") for name in names], cells)


def _number(name: str, value: Any) -> Cell:
    if not finite(value):
        return Cell("-", -1.0)
    if name.endswith("accuracy"):
        return Cell(f"{value:.2%}", value)
    return Cell(f"{value:,}" if isinstance(value, int) else f"{value:.4g}", value)


def _files(run: Read) -> Table:
    rows = []
    for saved in run.checkpoints:
        marks = [mark for mark in ("best", "last") if saved[mark]]
        name = saved["name"] + (f" ({', '.join(marks)})" if marks else "")
        epoch = "-" if saved["epoch"] is None else str(saved["epoch"])
        for file in saved["files"]:
            rows.append(
                [
                    Cell(name, saved["name"]),
                    Cell(epoch, saved["epoch"] or 0),
                    Cell(file["name"], file["name"]),
                    Cell(f"{file['bytes']:,}", file["bytes"]),
                    Cell(file["sha256"], file["sha256"]),
                ]
            )
    return Table("Checkpoints and their checksums", ("checkpoint", "epoch", "file", "bytes", "SHA-256"), rows)


def _spans(found: Sequence[tuple[int, str]]) -> list[tuple[str, str]]:
    """(Epochs, what was wrong in them); epochs with the same sentence are put together."""
    spans: list[list[Any]] = []
    for epoch, said in found:
        if spans and spans[-1][2] == said and spans[-1][1] == epoch - 1:
            spans[-1][1] = epoch
        else:
            spans.append([epoch, epoch, said])
    return [(f"epoch {a}" if a == b else f"epochs {a} to {b}", said) for a, b, said in spans]


def _figure(
    title: str, alt: str, draw: Callable[..., list[Path]], *args: Any, wide: bool = False, **how: Any
) -> list[Figure]:
    """A picture that is drawn for the page; none if there is nothing to draw, or no matplotlib."""
    with tempfile.TemporaryDirectory() as folder:
        paths = draw(Path(folder, "figure.svg"), *args, **how)
        sources = [base64.b64encode(path.read_bytes()).decode() for path in paths]
    return [Figure(title, alt, f"data:image/svg+xml;base64,{source}", wide) for source in sources]
