"""What several runs say side by side: is one better, is it sparser, where, and why."""

import math
from collections.abc import Sequence
from typing import NamedTuple

from attsnn._text import joules

from .reading import Read


class Verdict(NamedTuple):
    """One question about a run compared with another, the answer, and the numbers."""

    question: str
    answer: str
    because: str


def base_of(runs: Sequence[Read]) -> Read:
    """The run that the others are compared with: the only one without attention, otherwise the first."""
    plain = [run for run in runs if run.plain]
    return plain[0] if len(plain) == 1 else runs[0]


def verdicts(run: Read, base: Read) -> list[Verdict]:
    """The verdicts on a run, compared with the base."""
    return [v for v in (_better(run, base), _sparser(run, base), _where(run, base), _why(run, base)) if v]


def _better(run: Read, base: Read) -> Verdict | None:
    ours, theirs = run.result, base.result
    if ours is None or theirs is None or ours[0] != theirs[0]:
        return None
    name, what = ours[0], ours[0].replace("_", " ")
    if not name.endswith("accuracy"):
        word = "yes" if ours[1] < theirs[1] else "no" if ours[1] > theirs[1] else "equal"
        return Verdict("Is it better?", word, f"{what} {ours[1]:.4f}, {base.name} {theirs[1]:.4f}.")
    points = 100 * (ours[1] - theirs[1])
    count = _tested(run)
    word = "equal" if points == 0 else "yes" if points > 0 else "no"
    said = f"{what} {ours[1]:.2%}, {base.name} {theirs[1]:.2%}: {points:+.2f} points"
    if count and _tested(base) == count:
        # The standard error of the difference of two shares of the same count.
        error = 100 * math.sqrt(sum(p * (1 - p) for p in (ours[1], theirs[1])) / count)
        said += f", {abs(round(points * count / 100))} of {count:,} samples"
        if points and abs(points) < 2 * error:
            word = f"{word}, but by no more than chance"
            said += f" (two standard errors are {2 * error:.2f} points)"
    return Verdict("Is it better?", word, said + ".")


def _tested(run: Read) -> int | None:
    """The number of test samples, if it was kept."""
    return sum(map(sum, run.confusion["counts"])) if run.confusion else None


def _sparser(run: Read, base: Read) -> Verdict | None:
    if not (run.profile and base.profile):
        return None
    ours, theirs = run.profile, base.profile
    spikes, before = ours["total"]["spikes"], theirs["total"]["spikes"]
    if not before:
        return None
    change = spikes / before - 1
    word = "yes" if change < 0 else "no" if change > 0 else "equal"
    said = (
        f"{spikes:,.0f} spikes a sample, {base.name} {before:,.0f}: {change:+.0%}; "
        f"NASAR {ours['nasar']:.3f} against {theirs['nasar']:.3f}."
    )
    return Verdict("Is it sparser?", word, said)


def _where(run: Read, base: Read) -> Verdict | None:
    if not (run.profile and base.profile):
        return None
    rates = {row["layer"]: row["rate"] for row in run.profile["rows"] if row["rate"] is not None}
    before = {row["layer"]: row["rate"] for row in base.profile["rows"] if row["rate"] is not None}
    changes = {name: rate / before[name] - 1 for name, rate in rates.items() if before.get(name)}
    if not changes:
        return None
    least, most = min(changes, key=changes.__getitem__), max(changes, key=changes.__getitem__)

    def one(name: str) -> str:
        return f"{name} from {before[name]:.1%} to {rates[name]:.1%}"

    fewer = sum(change < 0 for change in changes.values())
    said = f"{one(least)} ({changes[least]:+.0%})"
    if most != least:
        said += f"; least in {one(most)} ({changes[most]:+.0%})"
    return Verdict("Where?", f"{fewer} of {len(changes)} layers fire less", said + ".")


def _why(run: Read, base: Read) -> Verdict | None:
    if not (run.profile and base.profile):
        return None
    ours, theirs = (p["total"]["energy"]["papers"] for p in (run.profile, base.profile))
    if not ours:
        return None
    e_mac = run.profile["costs_pj"]["e_mac"]
    gates = 1e-3 * e_mac * run.profile["gate_macs"] - 1e-3 * e_mac * base.profile["gate_macs"]
    saved = theirs - (ours - gates)
    moved = "save" if saved >= 0 else "cost"
    said = (
        f"{energy(ours)} a sample, {base.name} {energy(theirs)}, by the papers' model: the gates add "
        f"{energy(gates)}, the spikes {moved} {energy(abs(saved))}."
    )
    return Verdict("Why?", f"r_EE {theirs / ours:.2f} over {base.name}", said)


def energy(nj: float | None) -> str:
    """An energy as a page writes it."""
    return joules(nj, micro="µ")
