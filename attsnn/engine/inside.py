"""What looks into a network. The engine knows no layer: the recipe gives the functions, those of
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
    """rates: in the block, the firing rate of each layer, filled when it ends; sentences: what is wrong by
    the rates in training and in evaluation, by its kind; settle: (model, batches, forward) gives the norms
    the statistics of the batches; profile: in the block, rates and energy, an `attsnn.profile.Profile`;
    scores: in the block, what the gates give, by the layer's name and the gate's kind.
    """

    rates: Callable[[nn.Module], AbstractContextManager[Rates]]
    sentences: Callable[[Rates, Rates], Mapping[str, str]]
    settle: Callable[[nn.Module, Iterable[Any], Callable[[nn.Module, Any], Any]], Any]
    profile: Callable[[nn.Module], AbstractContextManager[Any]]
    scores: Callable[[nn.Module], AbstractContextManager[Mapping[str, Mapping[str, Any]]]]


def profiled(
    inside: Inside | None, model: nn.Module, measure: Callable[[nn.Module], T], processes: Processes
) -> tuple[T, Any]:
    """(what `measure` finds of the model, its profile meanwhile, of all processes; None without `inside`)."""
    if inside is None:
        return measure(model), None
    with inside.profile(model) as profile:
        found = measure(model)
    return found, profile.sum_over_processes() if processes.world > 1 else profile
