"""What a run directory continues from: which checkpoint is the last, which the best, and which are neither.

The files `last` and `best` only point. What counts is what the checkpoints themselves hold: each records what
was measured of it. If the two differ, files were damaged or moved; the difference is reported.
"""

import math
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from .environment import launched
from .errors import CheckpointError, UsageError
from .stored import (
    Checkpoint,
    NewerError,
    _step,
    check_place,
    entries,
    first_valid,
    pointed,
    pointed_name,
    read,
    read_state,
)

Measured = dict[str, Any]  # {"name", "value", "lowest"} of the number that chooses a checkpoint
UNSAID: Measured = {}


@dataclass
class Lineage:
    """What `survey` found."""

    last: Checkpoint | None
    best: Path | None = None
    aside: dict[Path, str] = field(default_factory=dict)  # what the run does not continue from, and why
    said: list[str] = field(default_factory=list)  # what is wrong with the pointers
    measured: Measured | None = None  # for the best; None: there is none, or an older version wrote it


def better(value: float | None, so_far: float | None, lowest: bool) -> bool:
    """Whether a measured number makes a checkpoint the best. The first one does, and so does
    any after a NaN.
    """
    if value is None:
        return False
    if so_far is None or math.isnan(so_far):
        return True
    return value < so_far if lowest else value > so_far


def survey(directory: Path, say: Callable[[str], None], start: Path | None = None) -> Lineage:
    """The checkpoints of a run directory, verified as far as the run needs them.

    Args:
        say: takes a sentence for each checkpoint that is skipped, and one for the checkpoint that is used
            instead.
        start: the checkpoint to continue from, in place of the last.

    Raises CheckpointError if there are checkpoints and none is valid, or if `start` is not valid.
    """
    named = pointed(directory, "last")
    known = sorted(_unique([*entries(directory), named]), key=_step, reverse=True)
    if start is None:
        # A kill may leave one newer than `last` names; older versions left those that a run went back from.
        states = measured_of(known)
        left = [p for p in known if named in states and _step(p) > _step(named) and states.get(p) == UNSAID]
        last, damaged = first_valid(directory, [path for path in known if path not in left], say)
    else:
        last, damaged, left = read(start), [], _unique([named])
        step = last.state.get("position", {}).get("step")
        if pointed_name(start) is None or (step is not None and _step(start)[0] != step):
            raise UsageError(
                f"--resume {start}: a run goes on from a checkpoint in its own folder, by its own name: call "
                f"it {directory / f'ckpt-{step}'}, or start a run from its weights with --init-from {start}."
            )
    found = Lineage(last, aside=dict.fromkeys(filter(os.path.lexists, damaged), "is of no use"))
    if last is None:
        return found
    if start is None and last.path != named and named not in damaged:
        found.said.append(f"`last` names {_called(directory, 'last')}: {last.path.name} is the last one.")
    for path in known:
        later = path in left or _step(path) > _step(last.path)
        if later and path not in damaged and path != last.path and os.path.lexists(path):
            found.aside[path] = f"is not what led to {last.path.name}"
    _find_best(directory, found, last.path, [path for path in known if path not in found.aside])
    return found


def _find_best(directory: Path, found: Lineage, last: Path, line: Sequence[Path]) -> None:
    """Finds the best checkpoint of `line`, and what is wrong with the pointer to it."""
    known = measured_of(_unique([*line, last]), partial(_set_aside, found))
    named = pointed(directory, "best")
    while True:
        unsaid = named is not None and known.get(named) == UNSAID
        right = named if unsaid else best_of(known, named)
        if right is None or right == last:
            break
        try:
            read(right)
            break
        except CheckpointError as error:
            _set_aside(found, right, error)
            del known[right]
    found.best, found.measured = right, None if right is None else known.get(right) or None
    if right != named or (right is None and os.path.lexists(directory / "best")):
        none = "no checkpoint says what was measured of it, so the next evaluation makes one the best"
        which = f"{right.name} is the best of what there is{_worth(found.measured)}" if right else none
        found.said.append(f"`best` names {_called(directory, 'best')}: {which}.")


def _set_aside(found: Lineage, path: Path, error: CheckpointError) -> None:
    if isinstance(error, NewerError):
        raise error
    if os.path.lexists(path):
        found.aside[path] = "is of no use"
        found.said.append(str(error))


def measured_of(
    paths: Iterable[Path], damaged: Callable[[Path, CheckpointError], None] = lambda *_: None
) -> dict[Path, Measured | None]:
    """What was measured of the checkpoints that can be read.

    The value is None for a checkpoint within an epoch, where nothing was measured, and UNSAID if an older
    version wrote it.
    """
    known = {}
    for path in paths:
        try:
            state = read_state(path)
            check_place(path, state)
            known[path] = state.get("measured", UNSAID)
        except CheckpointError as error:
            damaged(path, error)
    return known


def best_of(known: dict[Path, Measured | None], named: Path | None = None) -> Path | None:
    """The best checkpoint by what was measured, as the loop chose it then; `named` if it is as good."""
    best, so_far = None, None
    for path in sorted(known, key=_step):
        measured = known[path]
        if measured and better(measured["value"], so_far, measured["lowest"]):
            best, so_far = path, measured["value"]
    own = None if named is None else known.get(named)
    as_good = best is not None and own and own["value"] == so_far
    return named if as_good else best


def say_once(sentence: str) -> None:
    """Prints on stderr, in the first process only."""
    if launched().rank == 0:
        print(sentence, file=sys.stderr, flush=True)


def find(path: Path, say: Callable[[str], None] = say_once) -> Checkpoint:
    """The checkpoint that `path` means: itself, or the `best` of a run directory, or else its `last`.

    If a pointer names no checkpoint, or not the best one, that is reported, and the pointer is not followed.

    Args:
        path: a checkpoint or a run directory.
        say: takes a sentence; default: prints it on stderr.

    Raises:
        UsageError: there is no checkpoint.
        CheckpointError: it is damaged.
    """
    if os.path.lexists(path / "manifest.json"):
        return read(path)
    for attempt in range(3):  # a run that is going on may replace it meanwhile
        chosen = _chosen(path, say if attempt == 0 else lambda _: None)
        if chosen.exists():
            break
    try:
        return read(chosen)
    except CheckpointError as error:
        others = [other.name for other in entries(path) if other != chosen and _is_whole(other)]
        hint = f" Whole ones there are {', '.join(others)}; --resume auto mends the run." if others else ""
        raise CheckpointError(f"{error}{hint}") from error


def _chosen(directory: Path, say: Callable[[str], None]) -> Path:
    best, last = (pointed(directory, name) for name in ("best", "last"))
    there = list(filter(os.path.lexists, _unique([*entries(directory), best, last])))
    known = measured_of(there)
    if best in there and known.get(best, UNSAID) == UNSAID:
        return best  # where it is damaged, reading it says so
    end = _step(last) if last in there else (math.inf,)
    line = {path: found for path, found in known.items() if _step(path) <= end or path == best}
    right = best_of(line, best)
    if right == best and right is not None:
        return right
    taken = right or (last if last in there else next(iter(there), None))
    if taken is None:
        raise UsageError(
            f"{directory} is neither a checkpoint (ckpt-...) nor a run directory that holds one."
        )
    if right or os.path.lexists(directory / "best"):
        which = f", the best of what there is{_worth(known[right])}" if right else ""
        say(f"`best` of {directory} names {_called(directory, 'best')}: taking {taken.name}{which}.")
    return taken


def _is_whole(path: Path) -> bool:
    try:
        read(path)
    except CheckpointError:
        return False
    return True


def _called(directory: Path, pointer: str) -> str:
    """What a pointer names, in words."""
    if not os.path.lexists(directory / pointer):
        return "nothing, for it is gone"
    path = pointed(directory, pointer)
    if path is None:
        return "no checkpoint"
    return path.name if path.exists() else f"{path.name}, which is not there"


def _worth(measured: Measured | None) -> str:
    if not measured:
        return ""
    value = measured["value"]
    text = f"{value:.2%}" if measured["name"].endswith("accuracy") else f"{value:.4g}"
    return f" ({measured['name']} {text})"


def _unique(paths: Iterable[Path | None]) -> list[Path]:
    return list(dict.fromkeys(path for path in paths if path is not None))
