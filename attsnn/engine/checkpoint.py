"""Checkpoints that a kill, a full disk or a flipped bit cannot turn into a silent loss.

A checkpoint is a directory `ckpt-<step>` of `model.safetensors`, `optimizer.safetensors`, `state.json`,
`ema.safetensors` where weights are averaged, and `manifest.json` (size and SHA-256 of the others). It is
written under a temporary name in the same directory, flushed to the disk and renamed, so a directory called
`ckpt-...` was complete once. `last` and `best` are files of one line that name one. Nothing is pickled.
"""

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as from_bytes
from safetensors.torch import save as to_bytes
from torch import nn

from attsnn._files import sync_folder
from attsnn._files import write_file as _write_file

from .errors import CheckpointError, UsageError

SCHEMA = 2  # 1: of one process, whose generators were no list
_FILES = ("model.safetensors", "optimizer.safetensors", "state.json")
_AVERAGED = "ema.safetensors"


@dataclass(frozen=True)
class Checkpoint:
    """A verified checkpoint: state dicts for `load_state_dict`, and the scalars in `state`."""

    path: Path
    model: dict[str, torch.Tensor]
    optimizer: dict[str, Any]
    state: dict[str, Any]
    ema: dict[str, torch.Tensor] | None = None  # of the averaged model, with its count


def write(
    directory: Path,
    step: int,
    model: Mapping,
    optimizer: Mapping,
    state: Mapping,
    best: bool,
    ema: Mapping | None = None,
) -> Path:
    """Writes `ckpt-<step>`, points (`best` and) `last` to it, then drops checkpoints that nothing needs.

    `model`, `optimizer` and `ema` are state dicts, `state` holds JSON values. Kept are this one, the one
    `last` named before, and the one `best` names. Raises CheckpointError, with the older checkpoints intact.
    """
    previous = pointed(directory, "last")
    try:
        for leftover in directory.glob(".tmp-*"):
            _remove(leftover)
        path = _write_files(directory, step, _encode(model, optimizer, state, ema))
        read(path)
        # `last` behind `best`: a kill between them repeats the epoch, which points to its own again.
        for pointer in ("best", "last") if best else ("last",):
            _point(directory, pointer, path.name)
    except OSError as error:
        older = f"the last one, {previous}, is intact" if previous else "there is no older one"
        raise CheckpointError(
            f"Cannot write the checkpoint of step {step} into {directory} ({error.strerror or error}); "
            f"{older}. Make room or make it writable, then go on with --resume auto."
        ) from error
    kept = {path, previous, pointed(directory, "best")}
    for old in directory.glob("ckpt-*"):
        if old not in kept:
            _remove(old)
    return path


def read(path: Path) -> Checkpoint:
    """Reads one checkpoint; raises CheckpointError if a file is missing, altered or of another schema."""
    try:
        manifest = json.loads((path / "manifest.json").read_bytes())
        if manifest["schema"] != SCHEMA:
            raise CheckpointError(
                f"{path} has schema {manifest['schema']}; this version reads schema {SCHEMA}."
            )
        names = [*_FILES, *({_AVERAGED} & set(manifest["files"]))]
        data = {name: (path / name).read_bytes() for name in names}
        for name, content in data.items():
            if manifest["files"][name] != _digest(content):
                raise CheckpointError(f"{path / name} is damaged: its size or SHA-256 is not the manifest's.")
        model, slots = (from_bytes(data[name]) for name in _FILES[:2])
        state = json.loads(data["state.json"])
        ema = from_bytes(data[_AVERAGED]) if _AVERAGED in data else None
        return Checkpoint(path, model, _join(slots, state.pop("optimizer")), state, ema)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError) as error:
        raise CheckpointError(
            f"{path} is not a whole checkpoint ({type(error).__name__}: {error})."
        ) from error


def read_last(directory: Path, say: Callable[[str], None] = print) -> Checkpoint | None:
    """The last valid checkpoint of a run directory, or None if it holds none.

    Falls back to older ones and says so; raises CheckpointError if there are some and none is valid.
    """
    newest = sorted(directory.glob("ckpt-*"), key=_step, reverse=True)
    last = pointed(directory, "last")
    queue = list(dict.fromkeys(([last] if last else []) + newest))
    for path in queue:
        try:
            found = read(path)
        except CheckpointError as error:
            say(f"Skipped a checkpoint: {error}")
            continue
        if path != queue[0]:
            say(f"Falling back to {path}.")
        return found
    if queue:
        raise CheckpointError(f"No checkpoint in {directory} is usable; start anew with another --name.")
    return None


def find(path: Path) -> Checkpoint:
    """The checkpoint that `path` means: itself, or the `best`, else the `last`, of a run directory."""
    if not (path / "manifest.json").is_file():
        found = pointed(path, "best") or pointed(path, "last")
        if found is None:
            raise UsageError(f"{path} is neither a checkpoint (ckpt-...) nor a run directory that holds one.")
        path = found
    return read(path)


def weights_in(saved: Checkpoint) -> dict[str, torch.Tensor]:
    """The averaged weights of a checkpoint where there are some, else the model's."""
    averaged = {k.removeprefix("module."): v for k, v in (saved.ema or {}).items() if k != "n_averaged"}
    return averaged or saved.model


def load_weights(model: nn.Module, weights: Mapping[str, torch.Tensor], source: Path) -> None:
    """A strict load; raises CheckpointError, in which `source` names where the weights come from."""
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        what = " ".join(str(error).split())  # lists every tensor
        raise CheckpointError(
            f"The weights of {source} do not fit this network: {what[:300]}{'...' * (len(what) > 300)}"
        ) from error


def pointed(directory: Path, pointer: str) -> Path | None:
    """The checkpoint that `last` or `best` names, or None."""
    with contextlib.suppress(OSError):
        return directory / Path((directory / pointer).read_text().strip()).name
    return None


def _encode(model: Mapping, optimizer: Mapping, state: Mapping, ema: Mapping | None) -> dict[str, bytes]:
    slots, rest = _flatten(optimizer)
    scalars = json.dumps({**state, "optimizer": rest}, indent=1).encode()
    files = dict(zip(_FILES, (to_bytes(_on_host(model)), to_bytes(_on_host(slots)), scalars), strict=True))
    if ema is not None:
        files[_AVERAGED] = to_bytes(_on_host(ema))
    manifest = {"schema": SCHEMA, "files": {name: _digest(content) for name, content in files.items()}}
    return {**files, "manifest.json": json.dumps(manifest, indent=1).encode()}


def _on_host(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Contiguous copies, because safetensors refuses views and tensors that share memory."""
    return {
        name: tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
        for name, tensor in tensors.items()
    }


def _flatten(optimizer: Mapping) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """An optimizer's state dict as tensors named "<parameter>.<slot>" and the rest as JSON values."""
    tensors, values = {}, {}
    for parameter, slots in optimizer["state"].items():
        for name, value in slots.items():
            (tensors if torch.is_tensor(value) else values)[f"{parameter}.{name}"] = value
    return tensors, {"groups": optimizer["param_groups"], "values": values}


def _join(tensors: Mapping[str, torch.Tensor], rest: Mapping[str, Any]) -> dict[str, Any]:
    state: dict[int, dict[str, Any]] = {}
    for key, value in {**tensors, **rest["values"]}.items():
        parameter, _, name = key.partition(".")
        state.setdefault(int(parameter), {})[name] = value
    return {"state": dict(sorted(state.items())), "param_groups": rest["groups"]}


def _digest(content: bytes) -> dict[str, Any]:
    return {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def _write_files(directory: Path, step: int, files: Mapping[str, bytes]) -> Path:
    temporary = directory / f".tmp-{step}-{os.getpid()}"
    try:
        temporary.mkdir()
        for name, content in files.items():
            _write_file(temporary / name, content)
        sync_folder(temporary)
        path, again = directory / f"ckpt-{step}", 1
        while path.exists():  # the same step, saved before and after its evaluation
            path, again = directory / f"ckpt-{step}.{again}", again + 1
        os.rename(temporary, path)
        sync_folder(directory)  # a renamed entry is on the disk only once its directory is
        return path
    except OSError:
        _remove(temporary)
        raise


def _point(directory: Path, pointer: str, name: str) -> None:
    temporary = directory / f".tmp-{pointer}-{os.getpid()}"
    _write_file(temporary, f"{name}\n".encode())
    os.replace(temporary, directory / pointer)
    sync_folder(directory)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink()


def _step(path: Path) -> tuple[int, ...]:
    """(step, repetition) of `ckpt-12.1`; anything else comes last."""
    parts = path.name.removeprefix("ckpt-").split(".")
    return tuple(int(part) for part in parts) if all(part.isdigit() for part in parts) else (-1,)
