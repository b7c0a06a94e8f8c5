"""Functions that look into a network. The engine knows no layers, so the recipe passes them: those of
`attsnn.profile` and `attsnn.layers.settle`.
"""

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from typing import Any, NamedTuple, TypeVar

from torch import nn

from .processes import Processes

T = TypeVar("T")
Rates = Mapping[str, float]


class Inside(NamedTuple):
    """Functions that look into a network: those of `attsnn.profile` and `attsnn.layers.settle`.

    Args:
        rates: (model) -> a context that yields the firing rate of each layer, filled when the block ends.
        sentences: (rates in training, rates in evaluation) -> {kind: sentence} about what is wrong.
        settle: (model, batches, forward) gives the norms the statistics of the batches.
        profile: (model) -> a context that yields rates and energy, an `attsnn.profile.Profile`.
        scores: (model) -> a context that yields the gates' weights, by the layer's name and the gate's kind.
    """

    rates: Callable[[nn.Module], AbstractContextManager[Rates]]
    sentences: Callable[[Rates, Rates], Mapping[str, str]]
    settle: Callable[[nn.Module, Iterable[Any], Callable[[nn.Module, Any], Any]], Any]
    profile: Callable[[nn.Module], AbstractContextManager[Any]]
    scores: Callable[[nn.Module], AbstractContextManager[Mapping[str, Mapping[str, Any]]]]


def profiled(
    inside: Inside | None, model: nn.Module, measure: Callable[[nn.Module], T], processes: Processes
) -> tuple[T, Any]:
    """Returns (what `measure` finds of the model, the profile meanwhile).

    The profile is that of all processes; None without `inside`.
    """
    if inside is None:
        return measure(model), None
    with inside.profile(model) as profile:
        found = measure(model)
    return found, profile.sum_over_processes() if processes.world > 1 else profile
