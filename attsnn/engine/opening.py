"""Opens a run directory: who may, with which recipe, from which checkpoint, and what is mended before."""

import contextlib
import itertools
import json
import os
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from attsnn._files import UNFINISHED, read_file, replace_file

from . import checkpoint, rows
from .config import difference, surroundings
from .errors import CheckpointError, UsageError, ending, undisturbed
from .lineage import Lineage, survey
from .lock import InUseError, Lock, take
from .sealed import parse, seal, unseal
from .stored import ASIDE, Checkpoint, set_aside

_EXIT = re.compile(r"exit(-rank\d+)?\.json")
WRITTEN = ("config.json", "metrics.jsonl", "metrics.csv", "exit.json", "last", "best", "curves.png")


@dataclass
class Opening:
    """The work of `Run.open` in the first process, with its arguments."""

    directory: Path
    name: str
    recipe: Mapping[str, Any]
    resume: str | None
    numbered: bool
    free: Collection[str]
    today: Callable[[Mapping[str, Any]], Mapping[str, Any]]
    data: Mapping[str, Any]
    bits: Mapping[str, Any]
    path: Path = Path()
    lock: Lock | None = None
    lineage: Lineage = field(default_factory=lambda: Lineage(None))
    made: bool = False

    def find(self) -> tuple[Path, Path | None]:
        """(Run directory, checkpoint to resume from.) Locks the directory and changes nothing else in it."""
        self._lock()
        path = self.path
        if self.resume:
            start = _named(self.resume) if _is_checkpoint(_named(self.resume)) else None
            self.lineage = survey(path, _say, start)
            if self.lineage.last is None:
                self._check_nothing_left()
        elif _holds_checkpoints(path) and not os.path.lexists(path / "config.json"):
            raise UsageError(
                f"{path} holds checkpoints of a run whose config.json is gone: choose another --name, or go "
                "on with it: --resume auto."
            )
        saved = self.lineage.last
        asked = saved.state.get("recipe") if saved else recipe_in(path, broken=self.resume is None)
        if asked is not None:
            self._check(asked)
        known = (saved.state.get("data") if saved else None) or self.data
        # What an older checkpoint does not say about its data is not compared.
        changed = difference(known, {name: value for name, value in self.data.items() if name in known})
        if changed:
            raise UsageError(f"{path} cannot be resumed with other data; these differ:{_listed(changed)}")
        return path, saved.path if saved else None

    def make(self) -> dict[str, Any]:
        """Writes what a continued run needs, and mends what is wrong.

        Returns what the loop must know about the best checkpoint: {"best": its number}, or nothing if only
        the last checkpoint knows it.
        """
        saved, path = self.lineage.last, self.path
        try:
            for leftover in path.glob(f"{UNFINISHED}*"):
                checkpoint.remove(leftover)
            strange = not self.resume and not os.path.lexists(path / "config.json")  # not a folder of ours
            for file in (path / name for name in WRITTEN):
                if os.path.lexists(file) and (strange or not file.is_file()):
                    why = "does not belong to a run of attsnn" if file.is_file() else "is not a regular file"
                    _say(f"{file} {why}: it is {_put_aside(file).name} now.")
            if saved:
                self._mend(saved)
            if self.resume:
                nothing = f"No checkpoint in {path}: starting from the beginning."
                _say(f"Resuming from {saved.path}." if saved else nothing)
            if is_spent(path):
                (path / "config.json").unlink()
            self.made = True
            self._describe()
            for earlier in filter(_EXIT.fullmatch, os.listdir(path)):  # a kill leaves none
                checkpoint.remove(path / earlier)
        except OSError as error:
            intact = f"; {saved.path} is intact" if saved else ""
            raise CheckpointError(
                f"Cannot write into {path} ({error.strerror or error}){intact}. Make room or make it "
                "writable, then start it again."
            ) from error
        if saved:
            self._compare_bits(saved)
        found = self.lineage
        if found.best is not None and found.measured is None:
            return {}
        return {"best": found.measured["value"] if found.measured else None} if saved else {}

    def abandon(self, error: BaseException) -> None:
        """Gives the directory up. If the run had begun, exit.json says what ended it."""
        if self.lock is None:
            return
        with undisturbed():
            if self.made:
                leave(self.path / "exit.json", *ending(error))
            self.lock.release()

    def _lock(self) -> None:
        if self.resume or not self.numbered:
            self.path = run_directory(self.directory, self.name, self.resume, self.numbered)
            if self.resume not in (None, "auto") and not self.path.is_dir():
                raise _no_checkpoint(self.resume)
            self.lock = take(self.path)
            return
        for path in itertools.filterfalse(_is_taken, _numbers(self.directory, self.name)):
            with contextlib.suppress(InUseError):
                self.path, self.lock = path, take(path)
                if not _is_taken(path):
                    return
                self.lock.release()  # another process made a run in it meanwhile
                self.lock = None

    def _check_nothing_left(self) -> None:
        """A run may start from the beginning if nothing of it is left, but not next to what was set aside."""
        if self.resume not in (None, "auto"):
            raise _no_checkpoint(self.resume)
        if hint := set_aside(self.path):
            raise CheckpointError(f"No checkpoint in {self.path} but what was set aside.{hint}")

    def _check(self, old: Mapping[str, Any]) -> None:
        changed, path = difference(self.today(old), self.recipe, self.free), self.path
        fields = _listed(changed)
        if changed and self.resume:
            longer = any(line.startswith("epochs:") for line in changed)
            more = f"\nMore epochs, at a schedule of their own, are a new run: --init-from {path}"
            hint = more if longer else ""
            raise UsageError(
                f"{path} cannot be resumed with another recipe; these fields differ:{fields}{hint}"
            )
        if not self.resume:
            raise UsageError(
                f"{path} holds another run; these fields differ:{fields}\nChoose another --name."
                if changed
                else f"{path} holds this run already: go on with it, --resume auto, or choose another --name."
            )

    def _mend(self, saved: Checkpoint) -> None:
        """Sets aside what the run does not continue from, and corrects pointers and rows."""
        path, found = self.path, self.lineage
        for sentence in found.said:
            _say(sentence)
        for old, why in found.aside.items():
            _say(f"{old.name} {why}: it is {_put_aside(old).name} now, which nothing deletes.")
        for pointer, named in (("best", found.best), ("last", saved.path)):
            if named is None:
                (path / pointer).unlink(missing_ok=True)
            elif checkpoint.pointed(path, pointer) != named:
                replace_file(path / pointer, f"{named.name}\n".encode())
        rows.mend(path, saved, _say)

    def _describe(self) -> None:
        """Writes config.json; a resumed run adds its own surroundings."""
        file, saved = self.path / "config.json", self.lineage.last
        config = None
        if os.path.lexists(file):
            try:
                config = _config(file)
                if saved and (changed := self._contradicts(config["recipe"], saved.state.get("recipe"))):
                    raise ValueError(f"it says {', '.join(changed)}")
                config["resumed"] = [*config.get("resumed", []), surroundings()]
            except (OSError, ValueError, TypeError) as error:
                source = "the checkpoint's recipe" if saved else "the recipe that was asked for"
                config, kept = None, _put_aside(file).name
                _say(f"{file} was changed or damaged ({error}): it is {kept} now, a new one holds {source}.")
        if config is None:
            recipe = saved.state.get("recipe") if saved else None
            config = {"recipe": self.recipe if recipe is None else recipe, **surroundings()}
        replace_file(file, seal(config))

    def _contradicts(self, config: Mapping[str, Any], saved: Mapping[str, Any] | None) -> list[str]:
        """How config.json's recipe differs from the checkpoint's."""
        return difference(self.today(config), self.today(saved), self.free) if saved is not None else []

    def _compare_bits(self, saved: Checkpoint) -> None:
        before = saved.state.get("bits") or {}
        changed = difference(before, {name: self.bits.get(name) for name in before})
        if changed:
            _say(
                "What follows has not the very bits of a run that was never stopped, for these differ:"
                f"{_listed(changed)}"
            )


@contextlib.contextmanager
def reporting(directory: Path, name: str, resume: str | None, numbered: bool, rank: int) -> Iterator[None]:
    """Inside, an error before a run continues is also written to the exit.json of the run that `Run.open`
    would open with these arguments. It is not written while another process has that run.

    Args:
        directory, name, resume, numbered: see `Run.open`.
        rank: the rank of this process; only the first one writes.
    """
    try:
        yield
    except InUseError:
        raise
    except BaseException as error:
        path = run_directory(directory, name, resume, numbered)
        if resume and rank == 0 and _is_run(path):
            with contextlib.suppress(UsageError, CheckpointError), undisturbed():
                lock = take(path)
                leave(path / "exit.json", *ending(error))
                lock.release()
        raise


def recorded(directory: Path, name: str, resume: str | None, numbered: bool) -> dict[str, Any] | None:
    """The recipe of the run that `Run.open` would continue with these arguments; None for a new run."""
    if not resume:
        return None
    path = run_directory(directory, name, resume, numbered)
    found = recipe_in(path, broken=False)
    if found is not None:
        return found
    for saved in checkpoint.entries(path):
        with contextlib.suppress(CheckpointError):
            return checkpoint.read_state(saved).get("recipe")
    return None


def recipe_in(path: Path, broken: bool) -> dict[str, Any] | None:
    """The recipe in the run's config.json; None if there is none, or if nothing is left of the run.

    With `broken`, a damaged config.json is a UsageError; otherwise it gives None.
    """
    if is_spent(path):
        return None
    try:
        recipe: dict[str, Any] = _config(path / "config.json")["recipe"]
        return recipe
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        if not broken:
            return None
        raise UsageError(
            f"{path / 'config.json'} is not a run's config ({error}); choose another --name, or go on with "
            "the checkpoints beside it: --resume auto."
        ) from error


def run_directory(directory: Path, name: str, resume: str | None, numbered: bool) -> Path:
    """The run directory that these arguments mean; for a numbered name the last one that is taken."""
    if resume not in (None, "auto"):
        path = _named(resume)
        return path.parent if _is_checkpoint(path) else path
    if not numbered:
        return directory / name
    taken = list(itertools.takewhile(_is_taken, _numbers(directory, name)))
    return taken[-1] if taken else directory / name


def is_spent(path: Path) -> bool:
    """Whether a run failed there without a checkpoint, because of a wrong path to the data for example:
    nothing is lost.
    """
    if _holds_checkpoints(path):
        return False
    try:
        _config(path / "config.json")
        failed: bool = parse(read_file(path / "exit.json"))["code"] != 0
        return failed
    except (OSError, ValueError, KeyError, TypeError):
        return False


def leave(path: Path, code: int, said: str) -> None:
    """Writes an exit.json."""
    with contextlib.suppress(OSError):  # perhaps a full disk has ended the run
        replace_file(path, (json.dumps({"code": code, "said": said}) + "\n").encode())


def _numbers(directory: Path, name: str) -> Iterator[Path]:
    yield directory / name
    yield from (directory / f"{name}-{number}" for number in itertools.count(2))


def _is_taken(path: Path) -> bool:
    config = os.path.lexists(path / "config.json") and not is_spent(path)
    return config or _holds_checkpoints(path)


def _holds_checkpoints(path: Path) -> bool:
    return bool(checkpoint.entries(path)) or next(path.glob(f"{ASIDE}ckpt-*"), None) is not None


def _is_run(path: Path) -> bool:
    """Whether there is a run of ours, to which an exit.json would belong."""
    if os.path.lexists(path / "manifest.json"):
        return False
    with contextlib.suppress(OSError, ValueError):
        return bool(_config(path / "config.json"))
    return bool(checkpoint.entries(path))


def _named(resume: str) -> Path:
    """The path that --resume names. For "." this is the full path, which has a name."""
    path = Path(resume)
    return path if path.name not in ("", "..") else Path(os.path.abspath(path))


def _is_checkpoint(path: Path) -> bool:
    return os.path.lexists(path / "manifest.json") or (path in checkpoint.entries(path.parent))


def _config(file: Path) -> dict[str, Any]:
    """The content of config.json. Raises ValueError if it is not a run's."""
    config = unseal(read_file(file))
    if not isinstance(config.get("recipe"), dict):
        raise ValueError("it holds no recipe")
    return config


def _put_aside(path: Path) -> Path:
    """Renames what the run does not continue with; returns the new path."""
    name = ASIDE + path.name.removeprefix(ASIDE)
    new = next(new for new in _numbers(path.parent, name) if not os.path.lexists(new))
    return path.rename(new)


def _no_checkpoint(resume: str) -> UsageError:
    return UsageError(
        f"--resume {resume}: neither a checkpoint (ckpt-...) nor a run directory that holds one."
    )


def _listed(lines: Sequence[str]) -> str:
    return "".join(f"\n  {line}" for line in lines)


def _say(sentence: str) -> None:
    print(sentence, flush=True)
