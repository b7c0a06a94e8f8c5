"""Writes checkpoints such that a kill, a full disk or a flipped bit never causes a silent loss.

A checkpoint is written under a temporary name in the run directory, flushed to disk and renamed. So a
directory called `ckpt-...` was complete once. `last` and `best` are files of one line that name a checkpoint.
Nothing is pickled.
"""

import contextlib
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save as to_bytes
from torch import nn

from attsnn._files import UNFINISHED, sync_folder, unfinished
from attsnn._files import write_file as _write_file

from .errors import CheckpointError, NonFiniteError
from .lineage import UNSAID, best_of, find, measured_of
from .sealed import seal
from .stored import (
    AVERAGED,
    FILES,
    MANIFEST,
    ROWS,
    SCHEMA,
    Checkpoint,
    Tensors,
    _step,
    digest,
    entries,
    line_of,
    lines,
    not_finite,
    pointed,
    read,
    read_last,
    read_state,
)

__all__ = [
    "Checkpoint",
    "_step",
    "check_finite",
    "entries",
    "find",
    "load_weights",
    "pointed",
    "read",
    "read_last",
    "read_state",
    "remove",
    "weights_in",
    "write",
]


def write(
    directory: Path,
    step: int,
    model: Tensors,
    optimizer: Mapping[str, Any],
    state: Mapping[str, Any],
    best: bool,
    ema: Tensors | None = None,
    rows: Sequence[Mapping[str, Any]] | None = None,
) -> Path:
    """Writes `ckpt-<step>`, points `last` (and `best`) to it, then deletes checkpoints that nothing needs.

    `model`, `optimizer` and `ema` are state dicts, `state` holds JSON values, `rows` is what was recorded.
    Kept are this checkpoint, the one that `last` named before, and the one that `best` names. Raises
    CheckpointError, or NonFiniteError if a number is not finite; the older checkpoints stay intact.
    """
    previous = pointed(directory, "last")
    check_finite(directory, step, model, optimizer, ema)
    # Checkpoints that a user has put here are not the run's to delete.
    line = None if previous is None else line_of(previous)
    line = [path.name for path in entries(directory) if line is None or path.name in line]
    try:
        for leftover in directory.glob(f"{UNFINISHED}*"):
            remove(leftover)
        path = _write_files(directory, step, _encode(model, optimizer, state, ema, rows), line)
        read(path)
        # `best` before `last`: a resume from the old `last` repeats the epoch and sets `best` again.
        for pointer in ("best", "last") if best else ("last",):
            _point(directory, pointer, path.name)
        chosen = pointed(directory, "best")
        known = measured_of([*(directory / name for name in line), path])
        unsaid = chosen is not None and known.get(chosen) == UNSAID
        right = chosen if unsaid else best_of(known, chosen)
        if right is not None and right != chosen:  # it was changed meanwhile
            _point(directory, "best", right.name)
            print(f"`best` of {directory} was lost: it names {right.name} again.", flush=True)
    except OSError as error:
        previous = previous or next(iter(entries(directory)), None)
        older = f"the last one, {previous}, is intact" if previous else "there is no older one"
        raise CheckpointError(
            f"Cannot write the checkpoint of step {step} into {directory} ({error.strerror or error}); "
            f"{older}. Make room or make it writable, then go on with --resume auto."
        ) from error
    for old in (directory / name for name in line):
        if old not in {path, previous, right}:
            _drop(old)
    return path


def check_finite(
    directory: Path, step: int, model: Tensors, optimizer: Mapping[str, Any], ema: Tensors | None = None
) -> None:
    """Raises NonFiniteError if a number that a checkpoint would hold is infinite or NaN.

    The message names the number and the last good checkpoint.
    """
    name = not_finite(model, _flatten(optimizer)[0], ema)
    if name is None:
        return
    try:
        good = read_last(directory, say=lambda _: None)
    except CheckpointError:
        good = None
    raise NonFiniteError(
        f"After step {step} {name} is not finite, so nothing was saved. "
        + (f"The last good checkpoint is {good.path}. " if good else "There is no good checkpoint yet. ")
        + "Going on from there does the same again: start a run with a lower --lr, or with --clip"
        + (f", from those weights with --init-from {good.path}." if good else ".")
    )


def weights_in(saved: Checkpoint) -> dict[str, torch.Tensor]:
    """The averaged weights of a checkpoint if it has some, otherwise the model's: a state dict."""
    averaged = {k.removeprefix("module."): v for k, v in (saved.ema or {}).items() if k != "n_averaged"}
    return averaged or saved.model


def load_weights(model: nn.Module, weights: Tensors, source: Path) -> None:
    """Loads a state dict strictly. Raises CheckpointError if it does not fit; `source` says in it where the
    weights come from.
    """
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        what = " ".join(str(error).split())  # lists every tensor
        raise CheckpointError(
            f"The weights of {source} do not fit this network: {what[:300]}{'...' * (len(what) > 300)}"
        ) from error


def _encode(
    model: Tensors,
    optimizer: Mapping[str, Any],
    state: Mapping[str, Any],
    ema: Tensors | None,
    rows: Sequence[Mapping[str, Any]] | None,
) -> dict[str, bytes]:
    slots, rest = _flatten(optimizer)
    scalars = json.dumps({**state, "optimizer": rest}, indent=1).encode()
    files = dict(zip(FILES, (to_bytes(_on_host(model)), to_bytes(_on_host(slots)), scalars), strict=True))
    if ema is not None:
        files[AVERAGED] = to_bytes(_on_host(ema))
    if rows is not None:
        files[ROWS] = lines(rows)
    return files


def _on_host(tensors: Tensors) -> dict[str, torch.Tensor]:
    """Contiguous copies, because safetensors refuses views and tensors that share memory."""
    return {
        name: tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
        for name, tensor in tensors.items()
    }


def _flatten(optimizer: Mapping[str, Any]) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """An optimizer's state dict as tensors named "<parameter>.<slot>", and the rest as JSON values."""
    tensors: dict[str, torch.Tensor] = {}
    values: dict[str, Any] = {}
    for parameter, slots in optimizer["state"].items():
        for name, value in slots.items():
            (tensors if torch.is_tensor(value) else values)[f"{parameter}.{name}"] = value
    return tensors, {"groups": optimizer["param_groups"], "values": values}


def _write_files(directory: Path, step: int, files: Mapping[str, bytes], line: Sequence[str]) -> Path:
    """Writes the files of a checkpoint; returns its path. `line` has the run's earlier checkpoints."""
    path, again = directory / f"ckpt-{step}", 1
    while os.path.lexists(path):  # the same step, saved before and after its evaluation
        path, again = directory / f"ckpt-{step}.{again}", again + 1
    digests = {name: digest(content) for name, content in files.items()}
    manifest = {"schema": SCHEMA, "files": digests, "line": [*line, path.name]}
    with unfinished(directory) as own:
        whole = own / "whole"
        whole.mkdir()
        for name, content in {**files, MANIFEST: seal(manifest)}.items():
            _write_file(whole / name, content)
        sync_folder(whole)
        os.rename(whole, path)
    sync_folder(directory)  # a renamed entry is on the disk only once its directory is
    return path


def _point(directory: Path, pointer: str, name: str) -> None:
    with unfinished(directory) as own:
        _write_file(own / pointer, f"{name}\n".encode())
        os.replace(own / pointer, directory / pointer)
    sync_folder(directory)


def _drop(path: Path) -> None:
    """Deletes a checkpoint; a reader sees it whole or not at all."""
    gone = path.with_name(f"{UNFINISHED}{path.name}")
    with contextlib.suppress(OSError):
        os.rename(path, gone)
        remove(gone)


def remove(path: Path) -> None:
    """Deletes a file or a folder, as far as possible."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink()
