"""A run directory: what was asked, what came out, and where to continue.

runs/<name>/config.json     the resolved recipe, versions, command line, commit
            metrics.jsonl   a line for each evaluation; null where the test set was not measured. The line
                            with "final": true is the chosen checkpoint's, measured on the test set
            metrics.csv     the same as a table
            ckpt-<step>/    checkpoints; the files `last` and `best` name one each
            aside-...       what was damaged, or comes after the checkpoint that the run went on from
            .lock           while a process has the run
            exit.json       how the last command ended: {"code": the exit code, "said": its sentence}; if a
                            process other than the first failed, it writes exit-rank<r>.json
            profile.json    rates, operations and energy of the chosen checkpoint on the test set
            confusion.json  what the test recordings were taken for
            *.png           pictures
"""

import contextlib
import json
import math
import signal
import weakref
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from . import checkpoint, pictures, rows
from .environment import launched
from .errors import CheckpointError, UsageError, ending, undisturbed
from .lock import LOST, InUseError, Lock
from .opening import Opening, leave
from .processes import Processes
from .progress import duration
from .stored import Tensors


class Run:
    """An open run directory: config.json, metrics.jsonl, metrics.csv, checkpoints, exit.json, profile.json,
    pictures. `Run.open` makes one; `checkpoint` is what to resume from, or None.

    Use it as a context around what a command does with the run. When the context ends, exit.json says how it
    went, and other processes may have the directory. Without a context, they may when this object is gone.
    """

    def __init__(
        self,
        path: Path,
        recipe: Mapping[str, Any],
        resumed: checkpoint.Checkpoint | None = None,
        rank: int = 0,
        data: Mapping[str, Any] | None = None,
        build: Mapping[str, Any] | None = None,
        bits: Mapping[str, Any] | None = None,
        lock: Lock | None = None,
        known: Mapping[str, Any] | None = None,
    ) -> None:
        self.path, self.recipe, self.checkpoint, self.rank = path, dict(recipe), resumed, rank
        self.data, self.build, self.bits = dict(data or {}), dict(build or {}), dict(bits or {})
        self.known = dict(known or {})  # {"best": what the best checkpoint measured}, if it says that
        self._board = None if rank else _tensorboard(path, resumed)
        self._lock, self._covered = lock, False
        self._config = _signature(path)  # changes when another process opens the run
        self._recorded: list[dict[str, Any]] | None = None  # as this process knows it; None: as in the file
        self.close = weakref.finalize(self, lock.release) if lock else lambda: None

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
        today: Callable[[Mapping[str, Any]], Mapping[str, Any]] = lambda recipe: recipe,
        data: Mapping[str, Any] | None = None,
        build: Mapping[str, Any] | None = None,
        bits: Mapping[str, Any] | None = None,
        start: Callable[[], None] = lambda: None,
        processes: Processes | None = None,
    ) -> "Run":
        """Creates `directory/name`, or opens it to continue, for this process alone.

        If the run continues, `last` and `best` are compared with what the checkpoints hold, and metrics.jsonl
        with what the last one holds. What is wrong is mended and reported. A checkpoint that is damaged, or
        that comes after the one that `resume` names, is set aside under another name.

        Args:
            directory: the folder of all runs.
            name: the name of the run.
            recipe: JSON values. Only those named in `free` may differ when a run is resumed.
            resume: None: a new run. "auto": the last valid checkpoint of the run, or the start if there is
                none. A path: that checkpoint, or the last one of that run directory, in its own directory.
            numbered: a new run whose name is taken becomes name-2, name-3, ...; "auto" takes the highest. A
                run that ended without a checkpoint does not take a name.
            free: names of the fields of `recipe` that may differ.
            today: converts a recipe that an older version recorded into today's fields.
            data: JSON values that name the data. They must be those of the checkpoint, because other data
                would change the order of the samples and the schedule.
            build: JSON values from which `load` makes the model again; kept in the checkpoints.
            bits: JSON values that affect the last bits of the result, in addition to the recipe. If they are
                not those of the checkpoint, that is reported.
            start: called in every process if there is no checkpoint to continue from, before anything is
                written.
            processes: the first opens the run and alone writes; the others read the checkpoint that it found.

        Raises:
            UsageError: the directory holds another run, another process has it, or recipe or data are not the
                checkpoint's; the message says what differs.
            CheckpointError: there are checkpoints and none is usable, or the directory cannot be written.
        """
        if processes is None and launched().world > 1:
            raise UsageError("This program trains in one process: start it without torchrun.")
        processes = processes or Processes()
        values = [json.loads(json.dumps(given or {})) for given in (data, bits)]
        opening = Opening(directory, name, recipe, resume, numbered, free, today, *values)
        try:
            path, saved = processes.from_first(opening.find)
            if saved is None:
                start()
            known = processes.from_first(opening.make)
            resumed = checkpoint.read(saved) if saved else None
            return cls(path, recipe, resumed, processes.rank, data, build, values[1], opening.lock, known)
        except BaseException as error:
            opening.abandon(error)
            raise

    def __enter__(self) -> "Run":
        self._cover = self.outcome()
        self._cover.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._cover.__exit__(*error)
        self.close()

    def save(
        self,
        step: int,
        model: Tensors,
        optimizer: Mapping[str, Any],
        state: Mapping[str, Any],
        best: bool = False,
        ema: Tensors | None = None,
    ) -> None:
        """Writes a checkpoint that also holds the recipe and what was recorded; see checkpoint.write."""
        self._check()
        state = {**state, "recipe": self.recipe, "data": self.data, "build": self.build, "bits": self.bits}
        checkpoint.write(self.path, step, model, optimizer, state, best, ema, self.recorded())

    @contextlib.contextmanager
    def outcome(self) -> Iterator[None]:
        """Writes exit.json at the end of the block, because `torchrun` ends with 1 whatever the exit codes of
        its processes. Inside another such block it does nothing: the outer one records how all of it ended.
        """
        outermost = not self._covered
        with self.failing():
            yield
        if outermost:
            self._leave(0, "")

    @contextlib.contextmanager
    def failing(self) -> Iterator[None]:
        """As `outcome`, but only if an error ends the block."""
        if self._covered:
            yield
            return
        self._covered = True
        try:
            yield
        except BaseException as error:
            self._leave(*ending(error))
            raise
        finally:
            self._covered = False

    def _leave(self, code: int, said: str) -> None:
        if self.rank == 0 or code not in (0, 128 + signal.SIGTERM, 128 + signal.SIGINT):
            with contextlib.suppress(InUseError, CheckpointError), undisturbed():
                self._check()
                leave(self.path / (f"exit-rank{self.rank}.json" if self.rank else "exit.json"), code, said)

    def _check(self) -> None:
        if self._lock is not None and not self._lock.check() and _signature(self.path) != self._config:
            raise InUseError(f"{self.path} was in use by another process meanwhile. {LOST}")

    def last(self) -> Path | None:
        """The last checkpoint, if there is one."""
        named = checkpoint.pointed(self.path, "last")
        there = named is not None and named.exists()
        return named if there else next(iter(checkpoint.entries(self.path)), None)

    def rows(self) -> list[dict[str, Any]]:
        """The rows of metrics.jsonl; a line that a crash cut short is left out."""
        return rows.read(self.path)[0]

    def recorded(self) -> list[dict[str, Any]]:
        """The recorded rows as this process knows them, whatever happened to the file."""
        return self.rows() if self._recorded is None else list(self._recorded)

    def record(self, row: Mapping[str, Any], epochs: int | None = None, left: float | None = None) -> None:
        """Adds an evaluation to metrics.jsonl, metrics.csv, curves.png and TensorBoard, and prints it.

        Args:
            row: the evaluation.
            epochs: the number of epochs of the run, to be printed.
            left: the seconds that are left, to be printed.

        Raises CheckpointError if that fails (on a full disk, for example), as the checkpoint that follows
        would.
        """
        if self.rank:
            return
        with self.writing(f"record epoch {row['epoch']}"):
            if self._recorded is not None and not rows.holds(self.path, self._recorded):
                print(
                    f"{self.path / 'metrics.jsonl'} was changed: it is as it was recorded again.", flush=True
                )
            self._recorded = [*self.recorded(), dict(row)]
            rows.write(self.path, self._recorded)
            pictures.curves(self.path / "curves.png", self._recorded)
            for name, value in row.items():
                if self._board and isinstance(value, float):
                    self._board.add_scalar(name.replace("_", "/", 1), value, row["epoch"])
            if self._board:
                self._board.flush()
        print(_sentence(row, epochs, left), flush=True)

    @contextlib.contextmanager
    def writing(self, what: str) -> Iterator[None]:
        """Inside, the directory is this process's, and a full disk is a CheckpointError that names `what`."""
        self._check()
        try:
            yield
        except OSError as error:
            if not self.path.is_dir():
                raise CheckpointError(f"Cannot {what}: {self.path} is not there any more.") from error
            raise CheckpointError(
                f"Cannot {what} in {self.path} ({error.strerror or error}); the last checkpoint is "
                f"{self.last()}. Make room or make it writable, then go on with --resume auto."
            ) from error

    def conclusion(self, choose: str, lowest: bool = False) -> str:
        """What a finished run prints: the highest (or lowest) `choose`, and the checkpoint that has it."""
        if checkpoint.pointed(self.path, "best") is None:
            return f"{self.path} is done."
        best = checkpoint.find(self.path)
        epoch = best.state["position"]["epoch"]
        measured = [row.get(choose) for row in self.recorded() if row["epoch"] == epoch]
        value = (best.state.get("measured") or {"value": next(iter(measured), None)})["value"]
        if value is None or math.isnan(value):
            return f"{self.path} is done."
        text = f"{value:.2%}" if choose.endswith("accuracy") else f"{value:.4g}"
        return (
            f"{self.path} is done: its {'lowest' if lowest else 'highest'} {choose} is {text}, of epoch "
            f"{epoch}, the checkpoint that --checkpoint {self.path} means."
        )

    def rewind(self, epoch: int) -> None:
        """Forgets what was recorded after `epoch`, and the final row: a resumed run records them again."""
        kept = rows.before(self.recorded(), epoch)
        if self.rank == 0 and not rows.holds(self.path, kept):
            with self.writing(f"go back to epoch {epoch}"):
                rows.write(self.path, kept)
        self._recorded = kept


def _signature(path: Path) -> tuple[int, ...] | None:
    """Identifies a version of config.json, which every opening writes anew."""
    with contextlib.suppress(OSError):
        found = (path / "config.json").stat()
        return found.st_ino, found.st_size, found.st_mtime_ns
    return None


def _sentence(row: Mapping[str, Any], epochs: int | None, left: float | None) -> str:
    """The line that a reader sees after each epoch of a run."""
    parts = [f"epoch {row['epoch']}" + (f"/{epochs}" if epochs else "")]
    for name, value in row.items():
        if value is not None and name.endswith("_accuracy"):
            parts.append(f"{name.replace('_', ' ')} {value:.2%}")
        elif value is not None and name.endswith(("_loss", "_error", "_distance")):
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
    purge = resumed.state["position"]["epoch"] + 1 if resumed else None
    try:
        return SummaryWriter(str(path), purge_step=purge)
    except OSError as error:
        raise CheckpointError(f"Cannot write TensorBoard's events into {path} ({error}).") from error
