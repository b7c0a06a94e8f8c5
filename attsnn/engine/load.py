"""Loads a trained network from its run directory, for use from Python."""

import importlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from .checkpoint import find, load_weights, weights_in
from .errors import CheckpointError

# What `build` of a checkpoint may name. It is imported by name when a checkpoint asks for it, as the engine
# knows no model and no data.
MAKERS = {"model": ("attsnn.models", "create"), "transform": ("attsnn.data", None)}


class Loaded(NamedTuple):
    """A trained network, ready for use.

    Args:
        model: the network, in evaluation mode.
        classes: the names of its classes.
        transform: turns a picture or a recording into the model's input, without the batch dimension.
    """

    model: nn.Module
    classes: Sequence[str]
    transform: Callable[..., Any]


def load(path: str | Path, **changes: Any) -> Loaded:
    """Loads the network of a run directory (its best checkpoint) or of a ckpt-..., with the averaged weights
    if there are some.

    Args:
        path: a run directory or a checkpoint.
        changes: keywords of the model that replace those it was trained with, such as `backend` or `steps`.

    Raises:
        UsageError: there is no checkpoint.
        CheckpointError: the checkpoint is damaged or does not fit.
    """
    saved = find(Path(path))
    build = saved.state.get("build") or {}
    if not {"model", "transform"} <= build.keys():
        raise CheckpointError(
            f"{saved.path} does not say how its network is made: an older version wrote it. Make the network "
            "yourself, by attsnn.models.create, and load engine.find_checkpoint(path).model."
        )
    try:
        model = _make(build["model"], MAKERS["model"], changes)
        transform = _make(build["transform"], MAKERS["transform"], {})
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{saved.path}: its network cannot be made again: {error}") from error
    load_weights(model, weights_in(saved), saved.path)
    return Loaded(model.eval(), tuple(saved.state.get("data", {}).get("classes", ())), transform)


def described(name: str, keywords: Mapping[str, Any]) -> dict[str, Any]:
    """What `build` holds for a function: its name and its keywords, with dtypes of tensors by name."""
    return {
        "name": name,
        "keywords": {k: str(v) if isinstance(v, torch.dtype) else v for k, v in keywords.items()},
    }


def _make(what: Mapping[str, Any], maker: tuple[str, str | None], changes: Mapping[str, Any]) -> Any:
    module, function = maker
    keywords = {k: _value(v) for k, v in {**what["keywords"], **changes}.items()}
    if function is not None:
        return getattr(importlib.import_module(module), function)(what["name"], **keywords)
    known = importlib.import_module(module)
    if what["name"] not in known.__all__:
        raise KeyError(f"{module} has no {what['name']}")
    return getattr(known, what["name"])(**keywords)


def _value(value: Any) -> Any:
    if isinstance(value, str) and value.startswith("torch."):
        return getattr(torch, value.removeprefix("torch."))
    return tuple(value) if isinstance(value, list) else value
