"""What a checkpoint is, and how it is read: `ckpt-<step>` in a run directory, verified by its manifest.

It holds `model.safetensors`, `optimizer.safetensors`, `state.json`, `ema.safetensors` if weights are
averaged, `metrics.jsonl` (what the run had recorded by then), and `manifest.json` (size and SHA-256 of the
others, and its own). No number in it is infinite or NaN.
"""

import contextlib
import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as from_bytes

from attsnn._files import read_file

from .errors import CheckpointError
from .sealed import SEAL, parse, unseal

SCHEMA = 2  # 1 was for one process, and its generators were not a list
MANIFEST = "manifest.json"
FILES = ("model.safetensors", "optimizer.safetensors", "state.json")
AVERAGED, ROWS = "ema.safetensors", "metrics.jsonl"
_OPTIONAL = {AVERAGED, ROWS}
_NAME = re.compile(r"ckpt-(\d{1,18})(?:\.(\d{1,18}))?")
_POINTED = re.compile(r"[\w.+-]{1,100}")
_PART = re.compile(r"[^.].*\.(safetensors|json|jsonl)")  # other files next to them are ignored
Tensors = Mapping[str, torch.Tensor]  # a state dict
ASIDE = "aside-"  # prefix of checkpoints that the run does not continue from; they are never deleted


class NewerError(CheckpointError):
    """A whole checkpoint, but of a later version of this package."""


@dataclass(frozen=True)
class Checkpoint:
    """A verified checkpoint.

    Args:
        path: its folder.
        model: the model's state dict.
        optimizer: the optimiser's state dict.
        state: scalars, as JSON values.
        ema: the state dict of the averaged model, with its count.
        rows: what the run had recorded; None: an older version wrote it.
    """

    path: Path
    model: dict[str, torch.Tensor]
    optimizer: dict[str, Any]
    state: dict[str, Any]
    ema: dict[str, torch.Tensor] | None = None
    rows: list[dict[str, Any]] | None = None


def read(path: Path) -> Checkpoint:
    """Reads a checkpoint. Raises CheckpointError if a file is missing, altered or of another schema, or if a
    number is not finite.
    """
    with _explained(path):
        data = _verified(path)
        model, slots = (from_bytes(data[name]) for name in FILES[:2])
        state = parse(data["state.json"])
        ema = from_bytes(data[AVERAGED]) if AVERAGED in data else None
        rows = [parse(line) for line in data[ROWS].splitlines()] if ROWS in data else None
        name = not_finite(model, slots, ema)
        if name is not None:
            raise CheckpointError(f"{path} is of no use: {name} is not finite.")
        return Checkpoint(path, model, _join(slots, state.pop("optimizer")), state, ema, rows)


def read_state(path: Path) -> dict[str, Any]:
    """The scalars alone, verified; raises CheckpointError."""
    with _explained(path):
        state: dict[str, Any] = parse(_verified(path, only="state.json")["state.json"])
        state.pop("optimizer")
        return state


def read_last(directory: Path, say: Callable[[str], None] = print) -> Checkpoint | None:
    """The last valid checkpoint of a run directory, or None if it holds none.

    Falls back to older ones and says so. Raises CheckpointError if there are some and none is valid.
    """
    last = pointed(directory, "last")
    return first_valid(directory, list(dict.fromkeys(([last] if last else []) + entries(directory))), say)[0]


def first_valid(
    directory: Path, queue: Sequence[Path], say: Callable[[str], None]
) -> tuple[Checkpoint | None, list[Path]]:
    """(The first of `queue` that is valid, those before it.) Reports and raises as `read_last` does."""
    damaged: list[Path] = []
    for path in queue:
        try:
            found = read(path)
            check_place(path, found.state)
        except NewerError:
            raise
        except CheckpointError as error:
            say(f"Skipped a checkpoint: {error}")
            damaged.append(path)
            continue
        if damaged:
            say(f"Falling back to {path}.")
        return found, damaged
    if queue:
        raise CheckpointError(
            f"No checkpoint in {directory} is usable; start anew with another --name.{set_aside(directory)}"
        )
    return None, damaged


def set_aside(directory: Path) -> str:
    """A sentence about the checkpoint that was set aside and could be continued from, if there is one."""
    left = max(directory.glob(f"{ASIDE}ckpt-*"), key=_step, default=None)
    return f" Set aside lies {left}: go on from it with --resume {left}." if left else ""


def entries(directory: Path) -> list[Path]:
    """The paths in a run directory that are called like checkpoints, the newest first."""
    found = (path for path in directory.glob("ckpt-*") if _NAME.fullmatch(path.name))
    return sorted(found, key=_step, reverse=True)


def pointed(directory: Path, pointer: str) -> Path | None:
    """The checkpoint that `last` or `best` names, or None if it names none."""
    with contextlib.suppress(OSError, UnicodeDecodeError):
        name = pointed_name(Path(read_file(directory / pointer)[:1000].decode().strip()))
        return None if name is None else directory / name
    return None


def pointed_name(path: Path) -> str | None:
    """The name of a checkpoint as a pointer may hold it; None for other names."""
    return path.name if _POINTED.fullmatch(path.name) and _NAME.search(path.name) else None


def check_place(path: Path, state: Mapping[str, Any]) -> None:
    """Raises CheckpointError if the name of a checkpoint in a run directory has another step than its
    content: a copy, for example.
    """
    step = state.get("position", {}).get("step")
    if step is not None and _step(path)[0] != step:
        raise CheckpointError(f"{path} holds step {step}: it is not where the run has put it.")


def _step(path: Path) -> tuple[int, ...]:
    """(step, repetition) of `ckpt-12.1`; anything else sorts last."""
    found = _NAME.search(path.name)
    return tuple(int(part) for part in found.groups() if part is not None) if found else (-1,)


@contextlib.contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Inside, every error of an incomplete checkpoint becomes a CheckpointError."""
    try:
        yield
    except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError) as error:
        raise CheckpointError(
            f"{path} is not a whole checkpoint ({type(error).__name__}: {error})."
        ) from error


def _verified(path: Path, only: str | None = None) -> dict[str, bytes]:
    """The content of the files of a checkpoint, or of one of them, compared with its manifest."""
    files = _manifest(path)["files"]
    named = {*FILES, *(_OPTIONAL & files.keys())}
    there = {found.name for found in path.iterdir() if _PART.fullmatch(found.name)} - {MANIFEST}
    if wrong := sorted((files.keys() ^ named) | (there ^ named)):
        raise CheckpointError(f"{path} does not hold what its manifest names: see {', '.join(wrong)}.")
    data = {name: read_file(path / name) for name in ([only] if only else sorted(named))}
    for name, content in data.items():
        if files[name] != digest(content):
            raise CheckpointError(f"{path / name} is damaged: its size or SHA-256 is not the manifest's.")
    return data


def line_of(path: Path) -> list[str] | None:
    """The names of the run's own checkpoints when this one was written, itself among them; None if it does
    not say so.
    """
    with contextlib.suppress(CheckpointError), _explained(path):
        return _manifest(path).get("line")
    return None


def _manifest(path: Path) -> dict[str, Any]:
    """{"schema", "files": {file: its digest}}, and perhaps "line"."""
    content = read_file(path / MANIFEST)
    try:
        manifest = unseal(content)
        if manifest.keys() - {"line"} != {"schema", "files"} or not isinstance(manifest["files"], dict):
            raise ValueError("it does not hold schema and files")
    except ValueError as error:
        other = re.search(rb'"schema": *(\d{1,9})', content)
        schema = int(other[1]) if other else SCHEMA
        says = f" It says schema {schema}; this version reads {SCHEMA}." if schema != SCHEMA else ""
        raise CheckpointError(f"{path / MANIFEST} is damaged: {error}.{says}") from error
    if (schema := manifest["schema"]) != SCHEMA:
        whole = SEAL in parse(content)  # without a seal it may be a flipped bit
        newer = whole and isinstance(schema, int) and schema > SCHEMA
        raise (NewerError if newer else CheckpointError)(
            f"{path} has schema {schema}; this version reads schema {SCHEMA}: go on with the version that "
            "wrote it."
        )
    return manifest


def not_finite(model: Tensors, slots: Tensors, ema: Tensors | None) -> str | None:
    """The place of a number that is infinite or NaN, in words; None if there is none."""
    groups = (("the weight or statistic", model), ("the optimiser's", slots), ("the averaged", ema or {}))
    tensors = {
        f"{what} {name}": tensor
        for what, group in groups
        for name, tensor in group.items()
        if tensor.dtype.itemsize > 1 and (tensor.is_floating_point() or tensor.is_complex())
    }
    devices = {tensor.device for tensor in tensors.values()}
    for device in devices:  # waits for each once
        names = [name for name, tensor in tensors.items() if tensor.device == device]
        finite = torch.stack([torch.isfinite(tensors[name].detach()).all() for name in names]).tolist()
        if not all(finite):
            return names[finite.index(False)]
    return None


def _join(tensors: Tensors, rest: Mapping[str, Any]) -> dict[str, Any]:
    state: dict[int, dict[str, Any]] = {}
    for key, value in {**tensors, **rest["values"]}.items():
        parameter, _, name = key.partition(".")
        state.setdefault(int(parameter), {})[name] = value
    return {"state": dict(sorted(state.items())), "param_groups": rest["groups"]}


def digest(content: bytes) -> dict[str, Any]:
    return {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def lines(rows: Iterable[Mapping[str, Any]]) -> bytes:
    """The content of metrics.jsonl."""
    return "".join(json.dumps(row) + "\n" for row in rows).encode()
