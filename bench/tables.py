"""How figures are written, and the tables of whole networks."""

import statistics
from collections.abc import Iterable, Sequence

from bench.compositions import CLEANED, PFA_COLUMNS
from bench.networks import CONVOLUTIONS, MODEL_COLUMNS
from bench.peers import COLUMNS, OURS, SEAM_COLUMNS
from bench.shipped import AS_SHIPPED, SHIPPED_COLUMNS

STALE = " (stale)"
NOT_MEASURED = "not measured"  # nobody tried; a dash: it does not apply
VAE_COLUMNS = (OURS, "attsnn, running", "published")
STREAM_COLUMNS = (OURS, "whole window")
COLUMNS_OF = {
    "neuron": COLUMNS,
    "seams": SEAM_COLUMNS,
    "model": MODEL_COLUMNS,
    "pfa": PFA_COLUMNS,
    "vae": dict.fromkeys(VAE_COLUMNS),
    "stream": dict.fromkeys(STREAM_COLUMNS),
    "shipped": SHIPPED_COLUMNS,
}


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
    if line["column"] == OURS:
        return "1"
    return _times(*line["ratio"]) if line["ratio"] else "not beside ours"


def _times(low: float, middle: float, high: float) -> str:
    return f"{middle:.2f}x ({low:.2f}-{high:.2f})"


def over_ours(found: Iterable[dict], name: str, ours: dict) -> str:
    """A column's row over ours among the lines of one thing; where it has none, why."""
    if not serves(name, ours):
        return "-"
    own = {line["row"]: line for line in found if line["column"] == name}
    line = own.get(ours["row"]) or own.get(None)
    if line is None:
        return NOT_MEASURED
    cell = gap(line) if line["gap"] else ratio(line).partition(" (")[0]
    return cell + (STALE if line["stale"] > ours["stale"] else "")


def serves(name: str, line: dict) -> bool:
    """Whether a column has what the line measures; in a whole network another neuron stands in."""
    what = line["case"].split()[0] if line["bench"] == "seams" else line["neuron"]
    return (
        line["bench"] in ("model", "vae", "stream", "shipped")
        or what in COLUMNS_OF[line["bench"]][name].serves
    )


def gap(line: dict) -> str:
    """Why a column has no figure, in a few words."""
    return line["gap"].partition(":")[0].partition(" (")[0]


def setting(line: dict) -> tuple:
    """Where a line was measured: device, threads and instruction set. Others are other figures."""
    return line["device"], line.get("threads"), line.get("isa")


def measured_thing(line: dict) -> tuple:
    return setting(line), line["case"], line["dtype"], line["neuron"]


def place(line: dict) -> str:
    """The setting of a line in words."""
    device, threads, isa = setting(line)
    return ", ".join(filter(None, (device, threads and f"{threads} threads", isa)))


def where(lines: list[dict]) -> str:
    """What stands above the figures of one setting."""
    commits = dict.fromkeys(f"{x['commit']}{' with changes' if x.get('dirty') else ''}" for x in lines)
    return f"{place(lines[0])}, torch {lines[-1]['torch']}, commit {', '.join(commits)}:"


def caption(lines: list[dict]) -> str:
    """What stands above a table of one thing."""
    kind = "" if lines[0]["bench"] == "pfa" else " neuron"
    return "{case}, {dtype}, {neuron}".format_map(lines[0]) + f"{kind}; {place(lines[0])}"


def remarks(lines: list[dict]) -> list[str]:
    """What must be known of the lines of one thing: what nobody measured, how often the rest, and of what."""
    tried, first = {line["column"] for line in lines}, lines[0]
    missing = [name for name in COLUMNS_OF[first["bench"]] if name not in tried and serves(name, first)]
    said = [f"Not measured: {'; '.join(missing)}."] if missing else []
    rows = dict.fromkeys(line["row"] for line in lines if line["row"])
    counts = [f"{_between([x['calls'] for x in lines if x['row'] == row])} of {row}" for row in rows]
    if asked := [len(line["outside"]) for line in lines if "outside" in line]:
        counts.append(f"{_between(asked)} under the profiler")
    said += [f"Calls of each column: {', '.join(counts)}."] if rows else []
    if any(line.get("dirty") for line in lines):
        said.append("Measured with changes that are in no commit.")
    if any(line.get("stale") for line in lines):
        said.append("Stale: what is measured has changed since.")
    return said


def _between(counts: Sequence[int]) -> str:
    least, most = min(counts), max(counts)
    return f"{least}" if least == most else f"{least} to {most}"


def model_table(lines: list[dict]) -> str:
    """A whole network: a table for each row, with images a second, what is left without the convolutions, by
    the profiler and by the clock, and the time over that of the convolutions; that of the step with memory.
    Then the gaps, the notes and the limit that the convolutions set.
    """
    timed = {row: [line for line in lines if line["row"] == row] for row in ("forward", "step")}
    notes = [f"{x['column']}: {x['gap']}." for x in lines if x["row"] is None]
    notes += [f"{x['column']}: {x['note']}." for x in timed["step"] if x["note"]]
    tables = [_model_rows(row, own) for row, own in timed.items() if own]
    notes += remarks(lines) + _limit(timed)
    return f"\n**{caption(lines)}**\n\n" + "\n\n".join([*tables, "\n".join(notes)])


def _model_rows(row: str, lines: list[dict]) -> str:
    found = {line["column"]: line for line in lines}
    ours, bare = found.get(OURS), found.get(CONVOLUTIONS)
    header = [f"{ {'forward': 'inference', 'step': 'training step'}[row] }, ms", "median", "q1-q3", "/ ours"]
    header += ["images/s", "outside, ms", "/ ours", "outside by the clock, ms", "/ ours", "/ convolutions"]
    if row == "step":
        header += ["peak MiB", "/ ours", "kept MiB", f"batch in {lines[0]['memory_gib']:g} GiB", "logits off"]
    rows = []
    for name, line in found.items():
        low, median, high = line["seconds"]
        cells = [name + (STALE if line.get("stale") else ""), ms(median), f"{ms(low)}-{ms(high)}"]
        cells += [ratio(line) if ours else "-"]
        if line is bare:
            cells += ["-"] * 5
        else:
            cells += [f"{line['images'] / median:.4g}", *outside(line, ours), *by_the_clock(line, ours, bare)]
        cells += [f"{median / bare['seconds'][1]:.2f}x" if bare else "-"]
        if row == "step" and line is bare:
            cells += ["-"] * 5
        elif row == "step":
            share = line["peak_bytes"] / ours["peak_bytes"] if ours else None
            cells += [mib(line["peak_bytes"]), f"{share:.2f}x" if share else "-", mib(line["kept_bytes"])]
            cells += [str(line.get("largest_batch") or "-"), f"{line['off']:.1g}"]
        rows.append(cells)
    return table(header, rows)


def outside(line: dict, ours: dict | None) -> tuple[str, str]:
    """What a column takes without its convolutions by the profiler, and over the same of ours, median and
    quartiles of the rounds; dashes where the profiler was not asked.
    """
    if "outside" not in line:
        return "-", "-"
    taken = ms(statistics.median(line["outside"]))
    if not ours or line is ours or "outside" not in ours:
        return taken, "1" if line is ours else "-"
    ratios = [other / own for other, own in zip(line["outside"], ours["outside"], strict=False)]
    if len(ratios) > 1:
        ratios = statistics.quantiles(ratios, n=4, method="inclusive")
    return taken, _times(ratios[0], ratios[len(ratios) // 2], ratios[-1])


def by_the_clock(line: dict, ours: dict | None, bare: dict | None) -> tuple[str, str]:
    """A column's median less that of the convolutions alone; that of each run over the same of ours, which is
    a dash where ours is in the noise.
    """
    if not bare:
        return "-", "-"
    taken = ms(line["seconds"][1] - bare["seconds"][1])
    if not ours or line is ours:
        return taken, "1" if line is ours else "-"
    runs = [(t - b, o - b) for t, o, b in zip(line["runs"], ours["runs"], bare["runs"], strict=True)]
    return taken, _times(*sorted(t / o for t, o in runs)) if all(o > 0 for _, o in runs) else "-"


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
    own = [line for line in lines if line["bench"] == "model" and line["row"] in ("step", None)]
    for thing in dict.fromkeys(map(measured_thing, own)):
        about = [line for line in own if measured_thing(line) == thing]
        found = {line["column"]: line for line in about if line["row"]}
        ours, bare, composed = (found.get(name) for name in (OURS, CONVOLUTIONS, "composed"))
        if None in (ours, bare, composed):
            continue
        cells = [f"{thing[1]}, {thing[2]}" + (STALE if ours["stale"] else ""), ms(ours["seconds"][1])]
        cells += [f"{ours['images'] / ours['seconds'][1]:.4g}", ms(bare["seconds"][1])]
        both = outside(composed, ours), by_the_clock(composed, ours, bare)
        cells += [times.partition(" ")[0] for _, times in both]
        cells += [f"{100 * ours['peak_bytes'] / composed['peak_bytes']:.0f} %"]
        others = ("composed", "composed, published", "SpikingJelly", "torch.compile")
        cells += [over_ours(about, name, ours) for name in others]
        rows.append((about, cells))
    header = ("step of one network", "ours, ms", "images/s", "convolutions, ms", "outside: composed / ours")
    header += ("outside by the clock: composed / ours", "peak: ours / composed", "composed / ours")
    header += ("published / ours", "SpikingJelly / ours", "torch.compile / ours")
    return by_setting(header, rows)


def shipped_overview(lines: list[dict]) -> str:
    """The first table of README: networks of the papers, ours and as SpikingJelly ships them. Stale figures
    stand there only until there are others; docs/performance.md has them all.
    """
    own = [line for line in lines if line["bench"] == "shipped"]
    own = [line for line in own if not line["stale"]] or own
    others = [n for n in SHIPPED_COLUMNS if n != OURS and any(x["column"] == n and x["row"] for x in own)]
    names, rows = {"step": "step", "forward": "inference"}, []
    for thing in dict.fromkeys(map(measured_thing, own)):
        about = [line for line in own if measured_thing(line) == thing]
        found = {(line["column"], line["row"]): line for line in about if line["row"]}
        if any((OURS, row) not in found for row in names):
            continue
        cells = [f"{thing[1]}, {thing[2]}" + (STALE if found[OURS, "step"]["stale"] else "")]
        for row in names:
            cells.append(ms(found[OURS, row]["seconds"][1]))
            cells += [over_ours(about, name, found[OURS, row]) for name in others]
        theirs, ours = found.get((AS_SHIPPED, "step")), found[OURS, "step"]
        cells.append(f"{100 * ours['peak_bytes'] / theirs['peak_bytes']:.0f} %" if theirs else "-")
        rows.append((about, cells))
    header = [f"{what}{of}" for what in names.values() for of in (", ms", *(f": {n} / ours" for n in others))]
    return by_setting(("network", *header, "peak of a step: ours / as shipped"), rows)


def pfa_overview(lines: list[dict]) -> str:
    """Projected full attention by layer and rank: ours, and the times of others over ours, forward / step. Of
    the cleaned compositions the faster counts in each.
    """
    rows = []
    own = [line for line in lines if line["bench"] == "pfa"]
    for thing in dict.fromkeys(map(measured_thing, own)):
        about = [line for line in own if measured_thing(line) == thing]
        found = {(line["column"], line["row"]): line for line in about if line["row"]}
        ours = [found.get((OURS, row)) for row in ("forward", "step")]
        if None in ours:
            continue
        cells = [f"{thing[1]}, {thing[2]}" + (STALE if ours[0]["stale"] else "")]
        cells.append(" / ".join(ms(line["seconds"][1]) for line in ours))
        for names in (("published",), CLEANED, ("torch.compile",)):
            ratios = [
                min(
                    (found[n, line["row"]]["ratio"][1] for n in names if (n, line["row"]) in found),
                    default=None,
                )
                for line in ours
            ]
            cells.append(NOT_MEASURED if None in ratios else " / ".join(f"{r:.3g}x" for r in ratios))
        rows.append((about, [*cells, f"{100 * ours[1]['share_of_copy']:.0f} %"]))
    header = ("forward / forward + backward", "ours, ms", "published / ours", "composed / ours")
    return by_setting((*header, "torch.compile / ours", "step: of copy's GB/s"), rows)


def by_setting(header: Sequence[str], rows: list[tuple[list[dict], list[str]]]) -> str:
    """A table for each setting, of rows that come with the lines they are of."""
    parts = []
    for here in dict.fromkeys(setting(about[0]) for about, _ in rows):
        own = [(about, cells) for about, cells in rows if setting(about[0]) == here]
        lines = [line for about, _ in own for line in about]
        parts.append(f"{where(lines)}\n\n{table(header, [cells for _, cells in own])}")
    return "\n\n".join(parts) or "Nothing has been measured yet."


def parts_table(lines: list[dict]) -> str:
    """One network: a row for each of its parts, a column for each way to compute it."""
    columns = dict.fromkeys(line["column"] for line in lines if line["row"])
    timed = {(line["column"], line["row"]): line for line in lines if line["row"]}
    header = ["ms", *(word for name in columns for word in (name, "/ ours"))]
    rows = []
    for row in dict.fromkeys(row for _, row in timed):
        found = [timed.get((name, row)) for name in columns]
        cells = [(ms(line["seconds"][1]), ratio(line)) if line else ("-", "-") for line in found]
        rows.append([row, *(cell for pair in cells for cell in pair)])
    peaks = [timed.get((name, "step")) for name in columns]
    rows.append(["step, peak MiB", *(c for line in peaks for c in (mib(line and line["peak_bytes"]), ""))])
    notes = [f"{line['column']}: {line['gap']}." for line in lines if line["gap"]]
    return f"\n**{caption(lines)}**\n\n{table(header, rows)}\n\n" + "\n".join(notes + remarks(lines))


def stream_table(lines: list[dict]) -> str:
    """One network that streams: a row for each number of steps before, time and memory of each column."""
    columns = dict.fromkeys(line["column"] for line in lines)
    timed = {(line["column"], line["row"]): line for line in lines}
    header = ["", *(f"{name}, {what}" for name in columns for what in ("ms", "peak MiB"))]
    if len(columns) > 1:
        header.append("window / step")
    rows = []
    for row in dict.fromkeys(line["row"] for line in lines):
        found = [timed[name, row] for name in columns]
        cells = [cell for line in found for cell in (ms(line["seconds"][1]), mib(line["peak_bytes"]))]
        rows.append([row, *cells, *(ratio(line) for line in found[1:])])
    state = f"The state takes {lines[0]['state_bytes'] / 1024:.0f} KiB."
    said = "\n".join([state, *remarks(lines)])
    return f"\n**{caption(lines)}**\n\n{table(header, rows)}\n\n{said}"
