"""A run directory: what was asked, what came out, and where to go on.

runs/<name>/config.json     the resolved recipe, versions, command line, commit
            metrics.jsonl   a line for each evaluation; null where the test set was not measured. The line
                            with "final": true is the chosen checkpoint's, measured on the test set
            metrics.csv     the same as a table
            ckpt-<step>/    checkpoints; the files `last` and `best` name one each
            exit.json       how the last command ended: {"code": the exit code, "said": its sentence}; of a
                            process but the first, where it failed, exit-rank<r>.json
            *.png           pictures
"""

import contextlib
import csv
import io
import json
import math
import os
import signal
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from . import checkpoint, pictures
from .config import difference, surroundings
from .errors import CheckpointError, UsageError
from .processes import Processes
from .progress import duration


class Run:
    """An open run directory. `checkpoint` is what to resume from, or None."""

    def __init__(
        self,
        path: Path,
        recipe: Mapping[str, Any],
        resumed: checkpoint.Checkpoint | None = None,
        rank: int = 0,
        data: Mapping[str, Any] | None = None,
        build: Mapping[str, Any] | None = None,
    ) -> None:
        self.path, self.recipe, self.checkpoint, self.rank = path, dict(recipe), resumed, rank
        self.data, self.build = dict(data or {}), dict(build or {})
        self._board = None if rank else _tensorboard(path, resumed)

    @classmethod
    def open(
        cls,
        directory: Path,
        name: str,
        recipe: Mapping[str, Any],
        *,
        resume: str | None = None,
        numbered: bool = False,
        free: Collection[str] = (),
        today: Callable[[Mapping], Mapping] = lambda recipe: recipe,
        data: Mapping[str, Any] | None = None,
        build: Mapping[str, Any] | None = None,
        start: Callable[[], None] = lambda: None,
        processes: Processes | None = None,
    ) -> "Run":
        """Creates `directory/name`, or opens it to go on.

        Args:
            recipe: JSON values, of which `free` may differ when a run is resumed.
            resume: None: a new run. "auto": the last valid checkpoint of the run, or the start if there is
                none. A path: that checkpoint, or the last one of that run directory, in its own directory.
            numbered: a new run whose name is taken becomes name-2, name-3, ...; "auto" takes the highest. A
                run that ended without a checkpoint takes no name.
            today: makes of a recipe that an older version recorded one of today's.
            build: JSON values from which `load` makes the model again; kept in the checkpoints.
            data: JSON values that name the data, which must be the checkpoint's: of others the order of
                the samples, and the schedule, would be another.
            start: called in every process where there is no checkpoint to go on from, before anything is
                written.
            processes: the first opens it and alone writes; the others read the checkpoint that it found.

        Raises UsageError if the directory holds another run, or recipe or data are not the checkpoint's, with
        what differs; CheckpointError if there are checkpoints and none is usable.
        """
        if processes is None and int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise UsageError("This program trains in one process: start it without torchrun.")
        processes = processes or Processes()
        data = json.loads(json.dumps(data or {}))
        rules = free, today
        found = lambda: cls._find(directory, name, recipe, resume, numbered, rules, data)  # noqa: E731
        path, saved = processes.from_first(found)
        if saved is None:
            start()
        processes.from_first(lambda: cls._make(path, saved, recipe, resume))
        return cls(path, recipe, checkpoint.read(saved) if saved else None, processes.rank, data, build)

    @staticmethod
    def _find(directory, name, recipe, resume, numbered, rules, data) -> tuple[Path, Path | None]:
        """(run directory, checkpoint to resume from)."""
        path = _path(directory, name, resume, numbered)
        if resume in (None, "auto"):
            saved = checkpoint.read_last(path) if resume else None
        else:
            saved = _resume_from(Path(resume))
        asked = saved.state["recipe"] if saved else _recipe(path)
        if asked is not None:
            _check(path, asked, recipe, *rules, resumed=resume is not None)
        known = (saved.state.get("data") if saved else None) or data or {}
        # What an older checkpoint does not say of its data is not compared.
        changed = difference(known, {name: value for name, value in (data or {}).items() if name in known})
        if changed:
            raise UsageError(f"{path} cannot be resumed with other data; these differ:{_listed(changed)}")
        return path, saved.path if saved else None

    @staticmethod
    def _make(path: Path, saved: Path | None, recipe, resume) -> None:
        path.mkdir(parents=True, exist_ok=True)
        if resume:
            print(
                f"Resuming from {saved}."
                if saved
                else f"No checkpoint in {path}: starting from the beginning."
            )
        if _spent(path):
            (path / "config.json").unlink()
        _describe(path, recipe)
        for earlier in path.glob("exit*.json"):  # a kill leaves none
            earlier.unlink()

    def save(
        self,
        step: int,
        model: Mapping,
        optimizer: Mapping,
        state: Mapping,
        best: bool = False,
        ema: Mapping | None = None,
    ) -> None:
        """Writes a checkpoint that also holds the recipe; see checkpoint.write."""
        state = {**state, "recipe": self.recipe, "data": self.data, "build": self.build}
        checkpoint.write(self.path, step, model, optimizer, state, best, ema)

    @contextlib.contextmanager
    def outcome(self) -> Iterator[None]:
        """Leaves exit.json behind: `torchrun` ends with 1 whatever the exit codes of its processes."""
        try:
            yield
        except BaseException as error:
            self._leave(*_ending(error))
            raise
        self._leave(0, "")

    def _leave(self, code: int, said: str) -> None:
        if self.rank == 0 or code not in (0, 128 + signal.SIGTERM, 128 + signal.SIGINT):
            _leave(self.path / (f"exit-rank{self.rank}.json" if self.rank else "exit.json"), code, said)

    def last(self) -> Path | None:
        """The last checkpoint, if there is one."""
        return checkpoint.pointed(self.path, "last")

    def rows(self) -> list[dict[str, Any]]:
        """What was recorded; a line that a crash cut short is left out."""
        return [row for row in map(_parse, _lines(self.path / "metrics.jsonl")) if row is not None]

    def record(self, row: Mapping[str, Any], epochs: int | None = None, left: float | None = None) -> None:
        """Adds an evaluation to metrics.jsonl, metrics.csv, curves.png and TensorBoard, and prints it, with
        the seconds that are left of so many epochs.

        Raises CheckpointError, as a checkpoint would that were written next, if the disk is full, say.
        """
        if self.rank:
            return
        try:
            rows = [*self.rows(), dict(row)]
            self._write_rows(rows)
            pictures.curves(self.path / "curves.png", rows)
            for name, value in row.items():
                if self._board and isinstance(value, float):
                    self._board.add_scalar(name.replace("_", "/", 1), value, row["epoch"])
            if self._board:
                self._board.flush()
        except OSError as error:
            raise CheckpointError(
                f"Cannot record epoch {row['epoch']} in {self.path} ({error.strerror or error}); the last "
                f"checkpoint is {self.last()}. Make room or make it writable, then go on with --resume auto."
            ) from error
        print(_sentence(row, epochs, left), flush=True)

    def conclusion(self, choose: str, lowest: bool = False) -> str:
        """What a run that is done says: its highest (or lowest) `choose`, and where that is."""
        measured = {row["epoch"]: row[choose] for row in self.rows() if row.get(choose) is not None}
        numbers = {epoch: value for epoch, value in measured.items() if not math.isnan(value)}
        if not numbers:
            return f"{self.path} is done."
        best = (min if lowest else max)(numbers, key=numbers.get)
        value = f"{numbers[best]:.2%}" if choose.endswith("accuracy") else f"{numbers[best]:.4g}"
        return (
            f"{self.path} is done: its {'lowest' if lowest else 'highest'} {choose} is {value}, of epoch "
            f"{best}, the checkpoint that --checkpoint {self.path} means."
        )

    def rewind(self, epoch: int) -> None:
        """Forgets what was recorded after `epoch` and the final row: a resumed run records them again."""
        kept = [row for row in self.rows() if row["epoch"] <= epoch and not row.get("final")]
        if self.rank == 0 and kept != self.rows():
            self._write_rows(kept)

    def _write_rows(self, rows: Sequence[Mapping[str, Any]]) -> None:
        columns = list(dict.fromkeys(name for row in rows for name in row))
        _replace(self.path / "metrics.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
        text = io.StringIO(newline="")
        table = csv.DictWriter(text, columns, lineterminator="\n")
        table.writeheader()
        table.writerows(rows)
        _replace(self.path / "metrics.csv", text.getvalue())


def table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A table for the terminal: the first column to the left, the others to the right."""
    texts = [[str(cell) for cell in row] for row in (header, *rows)]
    widths = [max(len(row[i]) for row in texts) for i in range(len(header))]
    lines = [
        "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip() for row in texts
    ]
    return "\n".join([lines[0], "  ".join("-" * width for width in widths), *lines[1:]])


def _leave(path: Path, code: int, said: str) -> None:
    with contextlib.suppress(OSError):  # a full disc has ended the run, say
        _replace(path, json.dumps({"code": code, "said": said}) + "\n")


def _ending(error: BaseException) -> tuple[int, str]:
    """The exit code that an error means, and what it says."""
    interrupted = 128 + signal.SIGINT if isinstance(error, KeyboardInterrupt) else 1
    return getattr(error, "code", interrupted), str(error) or type(error).__name__


@contextlib.contextmanager
def reporting(directory: Path, name: str, resume: str | None, numbered: bool, rank: int) -> Iterator[None]:
    """Inside, what goes wrong before a run goes on, as `Run.open` would with these arguments, is left in its
    exit.json too.
    """
    try:
        yield
    except Exception as error:
        if resume and rank == 0 and (path := _path(directory, name, resume, numbered)).is_dir():
            _leave(path / "exit.json", *_ending(error))
        raise


def recorded(directory: Path, name: str, resume: str | None, numbered: bool) -> dict[str, Any] | None:
    """The recipe of the run that goes on, as `Run.open` would with these arguments; None of a new one."""
    return _recipe(_path(directory, name, resume, numbered)) if resume else None


def _path(directory: Path, name: str, resume: str | None, numbered: bool) -> Path:
    """The run directory that these mean."""
    if resume not in (None, "auto"):
        path = Path(resume)
        return path.parent if (path / "manifest.json").exists() else path
    return _numbered(directory, name, resume is None) if numbered else directory / name


def _resume_from(path: Path) -> checkpoint.Checkpoint:
    """The checkpoint that `path` is, or the last one of the run directory that it is."""
    if (path / "manifest.json").exists():
        return checkpoint.read(path)
    saved = checkpoint.read_last(path)
    if saved is None:
        raise UsageError(
            f"--resume {path}: neither a checkpoint (ckpt-...) nor a run directory that holds one."
        )
    return saved


def _spent(path: Path) -> bool:
    """Whether a run ended there without a checkpoint, of a wrong path to the data, say: nothing is lost."""
    ended = (path / "config.json").exists() and (path / "exit.json").exists()
    return ended and next(path.glob("ckpt-*"), None) is None


def _numbered(directory: Path, name: str, new: bool) -> Path:
    """The first free directory of name, name-2, name-3, ...; or the last taken one, if there is one."""
    number, path, taken = 1, directory / name, directory / name
    while (path / "config.json").exists() and not _spent(path):
        number, taken = number + 1, path
        path = directory / f"{name}-{number}"
    return path if new else taken


def _listed(lines: Sequence[str]) -> str:
    return "".join(f"\n  {line}" for line in lines)


def _check(
    path: Path, old: Mapping, new: Mapping, free: Collection[str], today: Callable, resumed: bool
) -> None:
    changed = difference(today(old), new, free)
    fields = _listed(changed)
    if changed and resumed:
        longer = any(line.startswith("epochs:") for line in changed)
        hint = (
            f"\nMore epochs, at a schedule of their own, are a new run: --init-from {path}" if longer else ""
        )
        raise UsageError(f"{path} cannot be resumed with another recipe; these fields differ:{fields}{hint}")
    if not resumed:
        what = f"another run; these fields differ:{fields}\nChoose" if changed else "this run already; choose"
        raise UsageError(f"{path} holds {what} another --name, or go on with it: --resume auto.")


def _describe(directory: Path, recipe: Mapping[str, Any]) -> None:
    """Writes config.json; a resumed run adds its own surroundings to it."""
    path = directory / "config.json"
    earlier = json.loads(path.read_text()) if path.exists() else None
    config = {**(earlier or {"recipe": recipe, **surroundings()})}
    if earlier:
        config["resumed"] = [*earlier.get("resumed", []), surroundings()]
    _replace(path, json.dumps(config, indent=2) + "\n")


def _recipe(path: Path) -> dict[str, Any] | None:
    """That of the run there; None where there is none, or nothing is left of it."""
    if _spent(path):
        return None
    try:
        return json.loads((path / "config.json").read_text())["recipe"]
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{path / 'config.json'} is not a run's config; choose another --name.") from error


def _replace(path: Path, text: str) -> None:
    temporary = path.with_name(f".tmp-{path.name}")
    temporary.write_text(text)
    os.replace(temporary, path)


def _lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


def _parse(line: str) -> dict[str, Any] | None:
    try:
        return json.loads(line)
    except ValueError:
        return None


def _sentence(row: Mapping[str, Any], epochs: int | None, left: float | None) -> str:
    """One line of what a reader looks at while a run goes on."""
    parts = [f"epoch {row['epoch']}" + (f"/{epochs}" if epochs else "")]
    for name, value in row.items():
        if value is not None and name.endswith("_accuracy"):
            parts.append(f"{name.replace('_', ' ')} {value:.2%}")
        elif value is not None and name.endswith("_loss"):
            parts.append(f"{name.replace('_', ' ')} {value:.4f}")
    if epochs and "seconds" in row:
        parts.append(f"{row['samples_per_second']:.0f} samples/s")
        parts.append(f"data wait {row['waiting_for_data']:.0%}")
    if left is not None:
        parts.append(f"about {duration(left)} left")
    return "  ".join(parts)


def _tensorboard(path: Path, resumed: checkpoint.Checkpoint | None) -> Any:
    """A SummaryWriter if TensorBoard is installed; steps after the resumed epoch are purged."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(path), purge_step=resumed.state["position"]["epoch"] + 1 if resumed else None)
