"""Att-VGG (ridgerchu/SNN_Attention_VGG): checkpoints {"model": ..., "args": Namespace(...), ...}.

Published names are places in one sequence. A convolution takes four places with attention (itself, gates,
norm, neuron) and three without; a pool takes one. So a single key may fit several networks, but a whole
state dict fits one.
"""

import argparse
from collections.abc import Iterator
from itertools import product
from typing import NamedTuple

from torch import Tensor

from attsnn.models.att_vgg import PLANS, Plan

from .keys import Family, Keywords, State, by_table, infer_attention, known, none_asked, shape_of, unknown


class Candidate(NamedTuple):
    """A published network: the table of its names, and the channels of what has a place in the sequence."""

    table: dict[str, str]
    channels: dict[str, int]

    def fits(self, key: str, value: Tensor, exactly: bool) -> bool:
        if not known(key, self.table):
            return False
        head, _, leaf = key.rpartition(".")
        if head not in self.channels:
            return True
        norm = self.table[head].endswith("norm.")
        right = leaf != "weight" or value.dim() == (1 if norm else 4)
        return right and (not exactly or value.shape[:1] in ((), (self.channels[head],)))


def _layers(plan: Plan) -> list[str]:
    """How our names of the convolutions begin. Pools have places among `features`, too."""
    places = (i + sum(pool <= i for pool in plan.pools) for i in range(len(plan.channels) - 1))
    return ["stem.", *(f"features.{place}." for place in places)]


def _candidate(plan: Plan, gated: bool) -> Candidate:
    table: dict[str, str] = {}
    channels: dict[str, int] = {}
    place = 0
    for i, (ours, width) in enumerate(zip(_layers(plan), plan.channels, strict=True)):
        conv, gates, norm = f"features.{place}", f"features.{place + 1}", f"features.{place + 1 + gated}"
        table |= {conv: f"{ours}current." + "conv." * gated, norm: f"{ours}norm."}
        channels |= {conv: width, norm: width}
        if gated:
            table[f"{gates}.ca.sharedMLP.0"] = f"{ours}current.attention.channel.reduce."
            table[f"{gates}.ca.sharedMLP.2"] = f"{ours}current.attention.channel.expand."
            table[f"{gates}.sa.conv"] = f"{ours}current.attention.spatial.conv."
        place += 3 + gated + (i in plan.pools)
    return Candidate(table | {"classifier.0": "hidden.current.", "classifier.3": "classifier."}, channels)


CANDIDATES = [_candidate(plan, gated) for gated, plan in product((True, False), PLANS.values())]


def _fitting(theirs: State) -> Iterator[Candidate]:
    """The candidates that have all keys: first those of published widths, then any."""
    for exactly in (True, False):
        yield from (c for c in CANDIDATES if all(c.fits(k, v, exactly) for k, v in theirs.items()))


def _rename(theirs: State) -> dict[str, Tensor]:
    """Renames by the first network that has all keys; those with attention come first."""
    for key in theirs:
        if not any(known(key, candidate.table) for candidate in CANDIDATES):
            raise unknown(key, "att_vgg")
    candidate = next(_fitting(theirs), None)
    if candidate is None:
        raise ValueError(f"no att_vgg ({', '.join(PLANS)}) has all of these keys, in these shapes")
    return by_table(theirs, "att_vgg", candidate.table)


def _infer(ours: State, theirs: State, given: Keywords) -> Keywords:
    none_asked(given, "att_vgg")
    count = sum(key.endswith(".norm.weight") for key in ours)
    name = next((name for name, plan in PLANS.items() if len(plan.channels) == count), None)
    if name is None:
        known_counts = ", ".join(f"{len(plan.channels)} of {name}" for name, plan in PLANS.items())
        raise ValueError(f"no att_vgg has {count} norms; there are {known_counts}")
    layers = _layers(PLANS[name])
    attention, ratio = infer_attention(ours, "stem.current.attention.")
    classes, hidden = shape_of(ours, "classifier.weight", 2)
    channels = tuple(shape_of(ours, f"{layer}norm.weight", 1)[0] for layer in layers)
    sizes = {"num_classes": classes, "channels": channels, "hidden": hidden}
    return {"name": name, "attention": attention, **sizes, **ratio}


FAMILIES = {"att_vgg": Family(_rename, _infer, allow=(argparse.Namespace,))}
