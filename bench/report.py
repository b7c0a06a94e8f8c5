"""Tables and pictures from the lines of bench/results, and from nothing else.

python bench/report.py          renders the tables of README.md and of pages of docs, and docs/*.png
python bench/report.py --check  says whether they are what the results give

A table stands between `<!-- bench: NAME -->` and `<!-- /bench -->`. Of lines that measure the same thing with
as many threads and the same instruction set the last counts; a figure is marked stale where what it is of,
kernels and the Python around them (bench/sources.py), is not today's.
"""

import argparse
import json
import re
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parent.parent)]

from bench import harness, sources
from bench.compositions import PFA_COLUMNS
from bench.networks import MODEL_COLUMNS
from bench.peers import COLUMNS, OURS, SEAM_COLUMNS
from bench.tables import (
    NOT_MEASURED,
    STALE,
    by_setting,
    caption,
    gap,
    measured_thing,
    mib,
    model_overview,
    model_table,
    ms,
    over_ours,
    parts_table,
    pfa_overview,
    ratio,
    remarks,
    setting,
    shipped_overview,
    stream_table,
    table,
    where,
)

PAGES = ("README.md", *(f"docs/{name}.md" for name in ("tasks", "attention_snn", "pfa", "performance")))
EAGER_AT_LEAST = 0.7  # of a copy's rate, in the bytes that its operators move
OVERVIEW = ("C0", "L1")  # the groups of cases in README
SEAM_OVERVIEW = ("B1", "G1")
NAMES = list(  # of columns, in their order
    dict.fromkeys((*COLUMNS, *SEAM_COLUMNS, *PFA_COLUMNS, *MODEL_COLUMNS))
)
ROWS = ("forward", "training forward", "step")


def case_table(lines: list[dict]) -> str:
    """One case: a row for each column that has figures, its ROWS; then the gaps and the notes."""
    timed = [row for row in ROWS if any(line["row"] == row for line in lines)]
    header = ["ms", *(word for row in timed for word in (row, "q1-q3", "/ ours")), "GB/s", "% copy"]
    hosts = any(line.get("host_seconds") for line in lines)
    header += ["host ms"] * hosts
    spikes = any("mismatches" in line for line in lines)
    header += ["moved MiB", "peak MiB", "kept MiB", *["wrong spikes"] * spikes]
    rows, notes = [], []
    for name in dict.fromkeys(line["column"] for line in lines):
        own = {line["row"]: line for line in lines if line["column"] == name}
        if None in own:
            notes.append(f"{name}: {own[None]['gap']}.")
            continue
        cells = [name + (STALE if any(line.get("stale") for line in own.values()) else "")]
        for row in timed:
            low, median, high = own[row]["seconds"]
            cells += [ms(median), f"{ms(low)}-{ms(high)}", ratio(own[row])]
        step = own["step"]
        if step["floor_bytes"]:
            rate = step["floor_bytes"] / step["seconds"][1] / 1e9
            cells += [f"{rate:.1f}", f"{100 * step['share_of_copy']:.0f}"]
        else:  # a whole network
            cells += ["-", "-"]
        host = step.get("host_seconds")
        cells += [ms(host) if host else "-"] * hosts
        cells += [mib(step["moved_bytes"])]
        cells += [mib(step["peak_bytes"]), mib(step["kept_bytes"])]
        cells += [str(step["mismatches"])] if spikes else []
        rows.append(cells)
        if step["note"]:
            notes.append(f"{name}: {step['note']}.")
    notes += remarks(lines) + _baseline(lines)
    copies = {line["row"]: line["copy_seconds"] for line in lines if line["row"]}
    if copies:
        notes.append(
            f"A copy of x takes {', '.join(f'{ms(s)} ms (beside {row})' for row, s in copies.items())}."
        )
    return f"\n**{caption(lines)}**\n\n{table(header, rows)}\n\n" + "\n".join(notes)


def _baseline(lines: list[dict]) -> list[str]:
    """Whether the eager loop is as fast as it can be: its operators stream, so that they move their bytes at
    about a copy's rate. Elsewhere, on two cores, it took 21, 22 and 36 ms for the C0 cases, 16 to 36 GB/s.
    """
    step = next((x for x in lines if (x["column"], x["row"]) == ("eager", "step")), None)
    if step is None:
        return []
    rate = step["moved_bytes"] / step["floor_bytes"] * step["share_of_copy"]
    smaller = not step["case"].startswith("C0")  # bound by its calls
    verdict = "" if rate >= EAGER_AT_LEAST or smaller else ": **the baseline is wrong**, it could be faster"
    return [f"The eager loop moves its bytes at {100 * rate:.0f} % of a copy's rate{verdict}."]


def cold_table(lines: list[dict]) -> str:
    """Seconds to the first training step in a fresh process."""
    rows = [
        (x["column"], f"{x['seconds']:.1f}" if x["seconds"] else x["gap"] or "more than 120") for x in lines
    ]
    return table(
        ("first step in a fresh process", "s"),
        [("import torch alone", f"{lines[0]['torch_seconds']:.1f}"), *rows],
    )


def growth_table(lines: list[dict]) -> str:
    """Milliseconds (MiB at the peak) of a step against T, then against the number of neurons."""
    parts = []
    for against in dict.fromkeys(line["against"] for line in lines):
        own = [line for line in lines if line["against"] == against]
        names = _measured(own)
        found = {(line["steps"], line["neurons"], line["column"]): line for line in own}
        rows = []
        for steps, neurons in dict.fromkeys((line["steps"], line["neurons"]) for line in own):
            cells = [found.get((steps, neurons, name)) for name in names]
            rows.append((f"{steps} x {neurons}", *(_growth_cell(cell) for cell in cells)))
        parts.append(table(("T x neurons: ms (peak MiB)", *names), rows))
    return "\n\n".join(parts)


def _measured(lines: list[dict]) -> list[str]:
    """The columns that have any figure, in their order."""
    return [name for name in NAMES if any(x["column"] == name and not x["gap"] for x in lines)]


def _growth_cell(line: dict | None) -> str:
    if line is None or line["gap"]:
        return gap(line) if line else NOT_MEASURED
    return f"{ms(line['seconds'][1])} ({mib(line['peak_bytes'])})"


# ---- the pages


def latest() -> list[dict]:
    """Every line of the results that no later one replaces; `stale` where its sources have changed since.

    Lines of another setting stand beside each other, but a stale one yields to any later line.
    """
    now, found = {bench: sources.source_hash(bench) for bench in sources.BENCHES}, {}
    for path in sorted(harness.RESULTS.glob("*.jsonl")):
        for line in harness.read(path):
            line["stale"] = line.get("source") != now[line["bench"]]  # older lines have none
            names = ("bench", "device", "case", "dtype", "neuron", "column", "against", "steps", "neurons")
            key, row = tuple(line.get(name) for name in names), line.get("row")
            # A column's gap replaces its figures, and figures a gap.
            for other in dict.fromkeys((row, *(ROWS if line.get("row", 0) is None else (None,)))):
                lines = found.pop((*key, other), [])
                lines = [x for x in lines if not x["stale"] and setting(x) != setting(line)]
                found[(*key, other)] = lines + [line] * (other == row)
    return [line for lines in found.values() for line in lines]


def overview(lines: list[dict]) -> str:
    """The table of README: forward / copy, and the columns' training steps over ours; a row a case."""
    return _overview([line for line in lines if line["bench"] == "neuron"], "layer", OVERVIEW)


def seam_overview(lines: list[dict]) -> str:
    """The same of seams."""
    own = [line for line in lines if line["bench"] == "seams" and not line["case"].endswith("nhwc")]
    return _overview(own, "seam", SEAM_OVERVIEW)


def _overview(lines: list[dict], what: str, groups: Sequence[str]) -> str:
    rows = []
    names = [name for name in _measured(lines) if name != OURS]
    forward_row = "forward" if what == "layer" else "training forward"
    for thing in dict.fromkeys(map(measured_thing, lines)):
        _, case, dtype, neuron = thing
        about = [line for line in lines if measured_thing(line) == thing]
        ours = {line["row"]: line for line in about if line["column"] == OURS}
        forward, step = ours.get(forward_row), ours.get("step")
        if step is None or case.split()[0] not in groups:
            continue
        cells = [f"{case}, {dtype}, {neuron}" + (STALE if step["stale"] else ""), ms(step["seconds"][1])]
        cells.append(f"{forward['seconds'][1] / forward['copy_seconds']:.2f}x")
        cells.append(f"{100 * step['share_of_copy']:.0f} %")
        rows.append((about, cells + [over_ours(about, name, step) for name in names]))
    header = (f"step of one {what}", "ours, ms", "forward / copy", "of copy's GB/s")
    return by_setting((*header, *(f"{n} / ours" for n in names)), rows)


def details(lines: list[dict], bench: str = "neuron", show: Callable[[list[dict]], str] = case_table) -> str:
    """Every case's table."""
    groups: dict[tuple, list[dict]] = {}
    for line in lines:
        if line["bench"] == bench:
            groups.setdefault(measured_thing(line), []).append(line)
    return "\n".join(map(show, groups.values())) or "Nothing has been measured yet."


def _of(bench: str, show):
    def render(lines: list[dict]) -> str:
        own = [line for line in lines if line["bench"] == bench]
        parts = []
        for here in dict.fromkeys(map(setting, own)):
            mine = [line for line in own if setting(line) == here]
            parts.append(where(mine) + (STALE if any(x["stale"] for x in mine) else "") + "\n\n" + show(mine))
        return "\n\n".join(parts) or "Nothing has been measured yet."

    return render


def _tasks() -> list[dict]:
    """docs/results.json: what the papers report, what was trained here, and the command of both."""
    return json.loads((harness.ROOT / "docs" / "results.json").read_text(encoding="utf-8"))


def results(lines: list[dict], paper: str | None = None) -> str:
    """Every task of docs/tasks.md, or those of a paper."""
    rows = []
    for row in [row for row in _tasks() if paper in (None, row["paper"])]:
        commit = f", commit {row['commit']}" if row["commit"] else ""
        shown = f"{row['ours']}{commit}", f"{row['parameters']:,}", f"`{row['command']}`"
        rows.append([row["task"], row["network"], row["published"], *shown])
    return _markdown(["task", "network", "published", "ours", "parameters", "command"], rows)


def tasks(lines: list[dict]) -> str:
    """The table of README: the tasks that have a figure, published or ours."""
    rows = [
        [row["task"], row["network"], row["published"], row["ours"], f"`{row['command']}`"]
        for row in _tasks()
        if row["published"] != "-" or row["commit"]
    ]
    return _markdown(["task", "network", "published", "ours", "python ..."], rows)


def _markdown(header: list[str], rows: list[list[str]]) -> str:
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (header, ["---"] * len(header), *rows))


TABLES = {
    "results": results,
    "results attention_snn": partial(results, paper="attention_snn"),
    "results pfa": partial(results, paper="pfa"),
    "tasks": tasks,
    "shipped overview": shipped_overview,
    "shipped": partial(details, bench="shipped", show=parts_table),
    "overview": overview,
    "details": details,
    "seams": partial(details, bench="seams"),
    "seam overview": seam_overview,
    "pfa": partial(details, bench="pfa"),
    "pfa overview": pfa_overview,
    "vae": partial(details, bench="vae", show=parts_table),
    "stream": partial(details, bench="stream", show=stream_table),
    "models": partial(details, bench="model", show=model_table),
    "model overview": model_overview,
    "cold start": _of("cold start", cold_table),
    "growth": _of("growth", growth_table),
}


def render(text: str, lines: list[dict]) -> str:
    """The page with every table between its marks made anew."""

    def fill(match: re.Match) -> str:
        return f"{match[1]}\n{TABLES[match[2]](lines)}\n{match[3]}"

    return re.sub(r"(<!-- bench: ([\w ]+) -->)\n.*?(<!-- /bench -->)", fill, text, flags=re.DOTALL)


# ---- pictures


def pictures(lines: list[dict], folder: Path) -> None:
    """peers.png, share.png, growth.png of each device, in the setting that most was measured in; seam.png,
    which needs no results.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    plt.rcParams.update({"axes.spines.top": False, "axes.spines.right": False, "figure.dpi": 110})
    lines = _usual(lines)
    steps = [x for x in lines if x["bench"] == "neuron" and x["row"] == "step"]
    for device in dict.fromkeys(line["device"] for line in steps):
        own = [line for line in steps if line["device"] == device and line["neuron"] == "leaky"]
        _bars(plt, own, device, folder / f"peers-{_slug(device)}.png")
        both = [
            x
            for x in lines
            if x["bench"] == "neuron" and x["column"] == OURS and x["row"] and x["device"] == device
        ]
        _shares(plt, both, device, folder / f"share-{_slug(device)}.png")
    grown = [line for line in lines if line["bench"] == "growth" and not line["gap"]]
    for device in dict.fromkeys(line["device"] for line in grown):
        own = [line for line in grown if line["device"] == device]
        _growth(plt, own, device, folder / f"growth-{_slug(device)}.png")
    _seam_picture(plt, folder / "seam.png")
    plt.close("all")


def _usual(lines: list[dict]) -> list[dict]:
    """The lines of the setting that each device has most of."""
    often = Counter(map(setting, lines)).most_common()
    of = {here[0]: here for here, _ in reversed(often)}
    return [line for line in lines if setting(line) == of[line["device"]]]


# The passes over the maps of one MA-SNN layer, TCSA without pool, forward and backward: what each does, and
# the bytes of float32 that it reads and writes, a neuron and step.
PLAIN = (
    (
        ("batch norm: statistics", 4, 0),
        ("batch norm: apply", 4, 4),
        ("time: mean, maximum", 8, 0),
        ("time: times gate", 4, 4),
        ("channels: mean, maximum", 8, 0),
        ("channels: times gate", 4, 4),
        ("space: mean, maximum", 8, 0),
        ("space: times gate", 4, 4),
        ("ReLU", 4, 4),
        ("LIF: ten operators a step", 49, 37),
    ),
    (("all of them, backward", 204, 149),),
)
FUSED = (
    (
        ("statistics: moments, maxima\nfor norm, time, channels", 4, 0),
        ("space: mean, maximum", 4, 0),
        ("apply: norm, gates, ReLU, LIF", 4, 4),
    ),
    (
        ("A: LIF and ReLU, all sums", 8, 4),
        ("B: sums that the space gate adds", 4, 0),
        ("C: norm, gates; gradient of z", 8, 4),
    ),
)


def _seam_picture(plt, path: Path) -> None:
    """Every pass beside the memory that it reads and writes: plain PyTorch, and the seam."""
    figure, axes = plt.subplots(1, 2, figsize=(10.5, 6.6), layout="constrained")
    for ax, title, passes in zip(axes, ("plain PyTorch", "one seam"), (PLAIN, FUSED), strict=True):
        top = 0.0
        for name, some in zip(("forward", "backward"), passes, strict=True):
            total = sum(read + written for _, read, written in some)
            ax.text(0, top, f"{name}: {total} bytes", weight="bold", fontsize=11, va="center")
            for what, read, written in some:
                top -= 1
                _pass(ax, top, what, read, written)
            top -= 1.2
        total = sum(read + written for some in passes for _, read, written in some)
        ax.set_title(f"{title}: {total} bytes", fontsize=14, loc="left")
        ax.add_patch(plt.Rectangle((8.6, -13.8), 0.9, 14.2, color="#e5e5e5"))
        ax.text(
            9.05, -7, "maps in memory", rotation=90, ha="center", va="center", color="#555555", fontsize=11
        )
        ax.set(xlim=(-0.2, 9.6), ylim=(-13.9, 0.6))
        ax.axis("off")
    small = (
        "Between the passes: the gates' MLPs and convolution,\n"
        "the norm's statistics; a few values a map.\n"
        "On CUDA the sums of A read 8 bytes more."
    )
    axes[1].text(0, -10.4, small, fontsize=10, va="center", color="#555555")
    figure.suptitle("TCSA + batch norm + LIF, float32: bytes a neuron and step, read (blue), written (red)")
    figure.savefig(path)


def _pass(ax, y: float, what: str, read: int, written: int) -> None:
    ax.text(2.9, y, what, ha="center", va="center", fontsize=9.5, linespacing=0.95)
    ax.plot([-0.1, 5.9, 5.9, -0.1, -0.1], [y - 0.4, y - 0.4, y + 0.4, y + 0.4, y - 0.4], "#555555", lw=0.8)
    for size, shift, ends, color in (
        (read, 0.2 if written else 0, (8.55, 5.95), "#00798c"),
        (written, -0.2, (5.95, 8.55), "#d1495b"),
    ):
        if size:
            tip = {"arrowstyle": "-|>", "color": color, "lw": 1.2, "shrinkA": 0, "shrinkB": 0}
            ax.annotate("", (ends[1], y + shift), (ends[0], y + shift), arrowprops=tip)
            box = {"facecolor": "white", "edgecolor": "none", "pad": 0.8}
            ax.text(7.25, y + shift, f"{size}", color=color, ha="center", va="center", fontsize=9.5, bbox=box)


def _slug(device: str) -> str:
    return re.sub(r"\W+", "-", device).strip("-").lower()


def _mark(line: dict) -> str:
    return "*" if line["stale"] else ""


def _bars(plt, lines: list[dict], device: str, path: Path) -> None:
    labels = list(dict.fromkeys((x["case"], x["dtype"]) for x in lines))
    names = [name for name in COLUMNS if any(x["column"] == name for x in lines)]
    figure, axes = plt.subplots(figsize=(10, 1.6 + 0.22 * len(labels) * len(names)), layout="constrained")
    height = 0.85 / len(names)
    for i, name in enumerate(names):
        own = {(x["case"], x["dtype"]): x for x in lines if x["column"] == name}
        at = [k + i * height for k, label in enumerate(labels) if label in own]
        values = [1e3 * own[label]["seconds"][1] for label in labels if label in own]
        color = "#d1495b" if name == OURS else plt.cm.Blues(0.9 - 0.6 * i / len(names))
        bars = axes.barh(at, values, height, label=name, color=color)
        axes.bar_label(bars, [f" {v:.3g}" for v in values], fontsize=7)
    stale = {(x["case"], x["dtype"]): _mark(x) for x in lines}
    axes.set_yticks(
        [k + 0.4 for k in range(len(labels))], [f"{c}\n{d}{stale[c, d]}" for c, d in labels], fontsize=8
    )
    axes.invert_yaxis()
    axes.set(xscale="log", xlabel="ms, forward + backward (log scale)", title=f"One LIF layer, {device}")
    axes.legend(frameon=False, fontsize=8)
    figure.savefig(path)


def _shares(plt, lines: list[dict], device: str, path: Path) -> None:
    labels = list(dict.fromkeys((x["case"], x["dtype"], x["neuron"], x["row"]) for x in lines))
    figure, axes = plt.subplots(figsize=(9, 1.4 + 0.2 * len(labels)), layout="constrained")
    values = [
        100
        * next(x for x in lines if (x["case"], x["dtype"], x["neuron"], x["row"]) == label)["share_of_copy"]
        for label in labels
    ]
    colors = ["#00798c" if label[3] == "forward" else "#d1495b" for label in labels]
    bars = axes.barh(range(len(labels)), values, color=colors)
    axes.bar_label(bars, [f" {v:.0f}" for v in values], fontsize=7)
    axes.set_yticks(range(len(labels)), [f"{c}, {d}, {n}, {r}" for c, d, n, r in labels], fontsize=7)
    axes.invert_yaxis()
    axes.axvline(100, color="grey", linewidth=0.8)
    axes.set(
        xlabel="% of a copy's bandwidth, in the bytes that the step must move", title=f"attsnn, {device}"
    )
    figure.savefig(path)


def _growth(plt, lines: list[dict], device: str, path: Path) -> None:
    figure, axes = plt.subplots(2, 2, figsize=(10, 7), layout="constrained", sharex="col")
    for column, (against, key) in enumerate((("T", "steps"), ("neurons", "neurons"))):
        for name in _measured(lines):
            own = sorted(
                (x for x in lines if x["column"] == name and x["against"] == against), key=lambda x: x[key]
            )
            style = {"marker": "o", "label": name, "linewidth": 2.4 if name == OURS else 1.2}
            axes[0, column].plot([x[key] for x in own], [1e3 * x["seconds"][1] for x in own], **style)
            axes[1, column].plot([x[key] for x in own], [x["peak_bytes"] / 2**20 for x in own], **style)
        axes[1, column].set(
            xscale="log", yscale="log", xlabel={"T": "T", "neurons": "neurons, T = 16"}[against]
        )
        axes[0, column].set(yscale="log")
    axes[0, 0].set(ylabel="ms, forward + backward")
    axes[1, 0].set(ylabel="MiB at the peak")
    axes[0, 0].legend(frameon=False, fontsize=8)
    figure.suptitle(f"One LIF layer, {device}")
    figure.savefig(path)


def main(arguments: list[str] | None = None) -> int:
    """Renders, or with --check compares; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--check", action="store_true", help="write nothing; exit 1 where a page is out of date"
    )
    check = parser.parse_args(arguments).check
    lines, behind = latest(), []
    for name in PAGES:
        path = harness.ROOT / name
        text = path.read_text()
        new = render(text, lines)
        if new != text:
            behind.append(name)
            if not check:
                path.write_text(new)
    if check:
        print(f"out of date: {', '.join(behind)}; run python bench/report.py" if behind else "up to date")
        return int(bool(behind))
    pictures(lines, harness.ROOT / "docs")
    return 0


if __name__ == "__main__":
    sys.exit(main())
