"""The list of models: a function registers itself by its name."""

import difflib
import inspect
from collections.abc import Callable
from typing import Any

from torch import nn

_models: dict[str, Callable[..., nn.Module]] = {}


def register(builder: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
    """Makes the builder available as `create(builder.__name__)`."""
    _models[builder.__name__] = builder
    return builder


def names() -> list[str]:
    """The names that `create` knows, sorted."""
    return sorted(_models)


def builders() -> list[Callable[..., nn.Module]]:
    """The functions behind the names, in their order."""
    return [_models[name] for name in names()]


def keywords(name: str) -> tuple[str, ...]:
    """The keywords that `create(name, ...)` takes. Raises ValueError for an unknown name."""
    return tuple(inspect.signature(_builder(name)).parameters)


def create(name: str, **kwargs: Any) -> nn.Module:
    """Builds the model of that name, with fresh weights.

    Args:
        name: one of `names()`.
        kwargs: keywords of its builder. The module of its family documents them:
            `help(attsnn.models.ma_snn)`, or ms_resnet, att_vgg, pfa_vgg, pfa_fmnist, pfa_ms_resnet, fsvae,
            autoencoder.

    Raises:
        ValueError: for an unknown name, or a value that does not fit.
        TypeError: for a keyword that the model does not have.
    """
    builder, known = _builder(name), keywords(name)
    unknown = set(kwargs) - set(known)
    if unknown:
        raise TypeError(f"{name} has no keyword {', '.join(sorted(unknown))}; it takes {', '.join(known)}")
    return builder(**kwargs)


def _builder(name: str) -> Callable[..., nn.Module]:
    if name not in _models:
        close = difflib.get_close_matches(name, _models, 1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise ValueError(f"no model {name!r}{hint} (attsnn.models.names(): {', '.join(sorted(_models))})")
    return _models[name]
