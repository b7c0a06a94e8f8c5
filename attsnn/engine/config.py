"""Recipes as JSON, the difference between two recipes, and a record of where and with what a run was made."""

import dataclasses
import json
import platform
import shlex
import subprocess
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from .errors import UsageError


def as_json(recipe: Any) -> dict[str, Any]:
    """The fields of a dataclass as JSON would give them back: paths as text, tuples as lists."""
    fields: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(recipe), default=str))
    return fields


def inherit(recipe: Any, default: Any, saved: Mapping[str, Any], names: Collection[str]) -> Any:
    """`recipe` with some fields taken from `saved`: those of `names` in which it still equals `default`."""
    taken = {
        name: saved[name]
        for name in names
        if name in saved and getattr(recipe, name) == getattr(default, name)
    }
    return dataclasses.replace(
        recipe, **{k: tuple(v) if isinstance(v, list) else v for k, v in taken.items()}
    )


def difference(old: Mapping[str, Any], new: Mapping[str, Any], free: Collection[str] = ()) -> list[str]:
    """One line such as `lr: 0.1, now 0.2` for each field that differs between two recipes,
    but the `free` ones.
    """
    names = [name for name in dict.fromkeys([*old, *new]) if name not in free]
    return [
        f"{name}: {_show(old, name)}, now {_show(new, name)}"
        for name in names
        if old.get(name, _absent) != new.get(name, _absent)
    ]


_absent = object()
_LONGEST = 100  # characters of a value in a message


def _show(recipe: Mapping[str, Any], name: str) -> str:
    if name not in recipe:
        return "not a field"
    text = json.dumps(recipe[name])
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."


class Range(NamedTuple):
    """The values that make sense for some fields of a recipe. If a field is a tuple, each of its values is
    checked; None is not.

    Args:
        words: the range in words, such as "at least 1".
        holds: whether a number is in the range.
        fields: the names of the fields.
    """

    words: str
    holds: Callable[[float], bool]
    fields: tuple[str, ...]


def check_ranges(recipe: Any, ranges: Sequence[Range]) -> None:
    """Raises UsageError for the first field that is out of its range."""
    for words, holds, fields in ranges:
        for name in fields:
            value = getattr(recipe, name)
            values = value if isinstance(value, tuple) else () if value is None else (value,)
            if not all(map(holds, values)):
                raise UsageError(f"--{name.replace('_', '-')} must be {words}, got {value}.")


def surroundings() -> dict[str, Any]:
    """Command line, time, commit, versions and device names: what a reader needs to repeat the run."""
    package = sys.modules[__name__.partition(".")[0]]
    return {
        "command": shlex.join([Path(sys.executable).name, *sys.argv]),
        "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "commit": _commit(Path(package.__file__ or ".").parent),
        "versions": {
            package.__name__: getattr(package, "__version__", "unknown"),
            "torch": torch.__version__,
            "numpy": np.__version__,
            "python": platform.python_version(),
        },
        "machine": {
            "system": platform.platform(),
            "threads": torch.get_num_threads(),
            "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        },
    }


def _commit(directory: Path) -> str | None:
    """The commit of the checkout that holds `directory`, with "+" if it has changes; None without git."""
    try:
        _git(
            directory, "ls-files", "--error-unmatch", "__init__.py"
        )  # an installed copy belongs to no commit
        head = _git(directory, "rev-parse", "HEAD")
        return head + ("+" if _git(directory, "status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        return None


def _git(directory: Path, *arguments: str) -> str:
    run = subprocess.run(
        ["git", "-C", str(directory), *arguments], capture_output=True, text=True, timeout=10, check=True
    )
    return run.stdout.strip()
