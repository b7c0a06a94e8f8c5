"""The public names of the package and their parameters are those of tests/public_api.txt.

python tests/test_public_api.py    writes that file, after a change that is meant, for the diff to show
"""

import importlib
import inspect
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT)]

import attsnn
from attsnn import layers

MODULES = (
    *("attsnn", "attsnn.neurons", "attsnn.layers", "attsnn.attention", "attsnn.ops", "attsnn.reference"),
    *("attsnn.models", "attsnn.models.convert", "attsnn.data", "attsnn.engine", "attsnn.metrics"),
    *("attsnn.profile", "attsnn.plot", "attsnn.interop", "attsnn.interop.nir"),
)


def names() -> Iterator[str]:
    """module.name(parameters), with = where there is a default; below a class its methods and properties."""
    for place in MODULES:
        module = importlib.import_module(place)
        for name in sorted(public(module)):
            value = getattr(module, name)
            yield f"{place}.{name}{parameters(value)}"
            if isinstance(value, type):
                yield from (f"    {member}" for member in members(value))


def members(kind: type) -> Iterator[str]:
    """What a class of ours adds to those that it is made from: public methods and properties."""
    ours = [base for base in kind.__mro__ if base.__module__.startswith("attsnn")]
    for name in sorted({name for base in ours for name in vars(base) if not name.startswith("_")}):
        value = inspect.getattr_static(kind, name)
        if isinstance(value, staticmethod | classmethod):
            yield f"{name}{parameters(getattr(kind, name))}"
        elif inspect.isfunction(value):
            yield f"{name}{parameters(value)}"
        elif isinstance(value, property):
            yield name


def public(module) -> list[str]:
    """What `__all__` lists; without it, what is defined there and has no underscore."""
    if hasattr(module, "__all__"):
        return list(module.__all__)
    return [n for n, v in vars(module).items() if not n.startswith("_") and _home(v) == module.__name__]


def _home(value: object) -> str | None:
    return getattr(value, "__module__", None) if callable(value) else None


def parameters(value: object) -> str:
    if not callable(value):
        return ""
    try:
        found = inspect.signature(value).parameters.values()
    except (TypeError, ValueError):
        return "(...)"
    stars = {inspect.Parameter.VAR_POSITIONAL: "*", inspect.Parameter.VAR_KEYWORD: "**"}
    shown, named = [], False
    for parameter in found:
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY and not named:
            shown.append("*")
        named = named or parameter.kind in (inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.VAR_POSITIONAL)
        default = "" if parameter.default is inspect.Parameter.empty else "="
        shown.append(stars.get(parameter.kind, "") + parameter.name + default)
    return f"({', '.join(shown)})"


MEANT = Path(__file__).with_name("public_api.txt")


def test_names_are_those_that_are_meant():
    assert [*names()] == MEANT.read_text(encoding="utf-8").splitlines()


def test_a_name_that_has_moved():
    with pytest.warns(
        DeprecationWarning, match=r"attsnn\.layers\.ops .* not be in attsnn \S+: use attsnn\.ops"
    ):
        assert layers.ops is attsnn.ops
    with pytest.raises(AttributeError, match="module 'attsnn.layers' has no attribute 'opps'"):
        _ = layers.opps


def test_what_is_deprecated_goes_in_time():
    """No release has what was to go before it."""
    text = "".join(path.read_text(encoding="utf-8") for path in ROOT.glob("attsnn/**/*.py"))
    releases = re.findall(r'(?:gone|_GONE) ?= ?"([\d.]+)"', text)
    assert releases and all(version(release) > version(attsnn.__version__) for release in releases)


def version(release: str) -> list[int]:
    return [int(number) for number in release.split(".")]


if __name__ == "__main__":
    MEANT.write_text("\n".join(names()) + "\n", encoding="utf-8")
