"""How figures are written, and the tables of whole networks."""

import statistics
from collections.abc import Iterable, Sequence

from bench.networks import CONVOLUTIONS
from bench.peers import OURS

STALE = " (stale)"


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table, aligned so that it also reads well on a terminal."""
    cells = [list(map(str, row)) for row in (header, *rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    rule = ["-" * widths[0], *("-" * (w - 1) + ":" for w in widths[1:])]
    aligned = [
        [row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))]
        for row in cells
    ]
    return "\n".join("| " + " | ".join(row) + " |" for row in (aligned[0], rule, *aligned[1:]))


def ms(seconds: float) -> str:
    return f"{1e3 * seconds:.3g}" if seconds < 0.0995 else f"{1e3 * seconds:.0f}"


def mib(count: float | None) -> str:
    return "-" if count is None else f"{count / 2**20:.1f}"


def ratio(line: dict) -> str:
    if line["column"] == OURS or not line["ratio"]:
        return "1"
    low, middle, high = line["ratio"]
    return f"{middle:.2f}x ({low:.2f}-{high:.2f})"


def measured_thing(line: dict) -> tuple[str, str, str, str]:
    return line["device"], line["case"], line["dtype"], line["neuron"]


def where(device: str, lines: list[dict]) -> str:
    last = [line for line in lines if line["device"] == device][-1]
    return f"{device}, {last['threads']} threads, torch {last['torch']}, commit {last['commit']}:"


def model_table(lines: list[dict]) -> str:
    """A whole network: a table for each row, with images a second, what is left without the convolutions over
    the same of ours, and the time over that of the convolutions; that of the step with memory. Then the gaps,
    the notes and the limit that the convolutions set.
    """
    first = lines[0]
    title = "{case}, {dtype}, {neuron} neuron; {device}, {threads} threads".format_map(first)
    timed = {row: [line for line in lines if line["row"] == row] for row in ("forward", "step")}
    notes = [f"{x['column']}: {x['gap']}." for x in lines if x["row"] is None]
    notes += [f"{x['column']}: {x['note']}." for x in timed["step"] if x["note"]]
    if any(line.get("stale") for line in lines):
        notes.append("Stale: the kernels have changed since.")
    tables = [_model_rows(row, own) for row, own in timed.items() if own]
    return f"\n**{title}**\n\n" + "\n\n".join([*tables, "\n".join(notes + _limit(timed))])


def _model_rows(row: str, lines: list[dict]) -> str:
    found = {line["column"]: line for line in lines}
    ours, bare = found.get(OURS), found.get(CONVOLUTIONS)
    header = [f"{ {'forward': 'inference', 'step': 'training step'}[row] }, ms", "median", "q1-q3", "/ ours"]
    header += ["images/s", "outside / ours", "/ convolutions"]
    if row == "step":
        header += ["peak MiB", "/ ours", "kept MiB", f"batch in {lines[0]['memory_gib']:g} GiB", "logits off"]
    rows = []
    for name, line in found.items():
        low, median, high = line["seconds"]
        cells = [name + (STALE if line.get("stale") else ""), ms(median), f"{ms(low)}-{ms(high)}"]
        cells += [ratio(line) if ours else "-"]
        cells += ["-", "-"] if line is bare else [f"{line['images'] / median:.4g}", outside(line, ours, bare)]
        cells += [f"{median / bare['seconds'][1]:.2f}x" if bare else "-"]
        if row == "step" and line is bare:
            cells += ["-"] * 5
        elif row == "step":
            share = line["peak_bytes"] / ours["peak_bytes"] if ours else None
            cells += [mib(line["peak_bytes"]), f"{share:.2f}x" if share else "-", mib(line["kept_bytes"])]
            cells += [str(line.get("largest_batch") or "-"), f"{line['off']:.1g}"]
        rows.append(cells)
    return table(header, rows)


def outside(line: dict, ours: dict | None, bare: dict | None) -> str:
    """What a column takes without the convolutions over what we take without them, median and quartiles.

    By the profiler where it was asked, else the difference to the convolutions alone; where ours is in the
    noise, a dash.
    """
    if not ours or not bare or line is ours:
        return "1" if line is ours else "-"
    if "outside" in line and "outside" in ours:
        both = list(zip(line["outside"], ours["outside"], strict=True))
    else:
        both = [(t - b, o - b) for t, o, b in zip(line["runs"], ours["runs"], bare["runs"], strict=True)]
    if any(own <= 0 for _, own in both):
        return "-"
    ratios = [other / own for other, own in both]
    low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive") if ratios[1:] else 3 * ratios
    return f"{middle:.2f}x ({low:.2f}-{high:.2f})"


def _limit(timed: dict[str, list[dict]]) -> list[str]:
    """What the convolutions take, and what is the most that anything outside them could gain."""
    said = []
    for row, passes in (("forward", 1), ("step", 3)):
        found = {line["column"]: line for line in timed[row]}
        if CONVOLUTIONS not in found:
            continue
        seconds = found[CONVOLUTIONS]["seconds"][1]
        rate = 2e-9 * passes * found[CONVOLUTIONS]["multiplications"] / seconds
        name = {"forward": "inference", "step": "a step"}[row]
        words = f"{ms(seconds)} ms of {name} ({rate:.3g} GFLOP/s)"
        if other := found.get("composed"):
            words += (
                f", where nothing can be more than {other['seconds'][1] / seconds:.2f}x as fast as composed"
            )
        said.append(words)
    return [f"The convolutions alone take {'; '.join(said)}."] if said else []


def model_overview(lines: list[dict]) -> str:
    """The table of README: a training step of whole networks."""
    rows = []
    own = [line for line in lines if line["bench"] == "model" and line["row"] == "step"]
    for thing in dict.fromkeys(map(measured_thing, own)):
        found = {x["column"]: x for x in own if measured_thing(x) == thing}
        ours, bare, composed = (found.get(name) for name in (OURS, CONVOLUTIONS, "composed"))
        if None in (ours, bare, composed):
            continue
        cells = [f"{thing[1]}, {thing[2]}" + (STALE if ours["stale"] else ""), ms(ours["seconds"][1])]
        cells += [f"{ours['images'] / ours['seconds'][1]:.4g}", ms(bare["seconds"][1])]
        cells += [outside(composed, ours, bare).partition(" ")[0]]
        cells += [f"{100 * ours['peak_bytes'] / composed['peak_bytes']:.0f} %"]
        others = [
            found.get(name) for name in ("composed", "composed, published", "SpikingJelly", "torch.compile")
        ]
        cells += [ratio(x).partition(" ")[0] if x else "-" for x in others]
        rows.append((thing[0], cells))
    header = ("step of one network", "ours, ms", "images/s", "convolutions, ms", "outside: composed / ours")
    header += ("peak: ours / composed", "composed / ours", "published / ours", "SpikingJelly / ours")
    header += ("torch.compile / ours",)
    return (
        "\n\n".join(
            f"{where(device, own)}\n\n" + table(header, [cells for d, cells in rows if d == device])
            for device in dict.fromkeys(device for device, _ in rows)
        )
        or "Nothing has been measured yet."
    )
