"""Splits of sets that were published without one: each is a rule over the names of the recordings of a class.

first900     numbers 0 to 899 train (Attention SNN's code)
last900      numbers 100 and above train (TEBN; SpikingJelly's CIFAR10DVSTEBNSplit)
name_order   the first ceil(0.9 n) names, in string order, train (SpikingJelly, PFA)
random-SEED  a random ceil(0.9 n) train; "random" is random-0
"""

import re
from collections.abc import Sequence

import numpy as np

from attsnn.data.core.events import generator
from attsnn.data.errors import DataError

RULES = ("first900", "last900", "name_order", "random")
NUMBER = re.compile(r".*?([0-9]+)", re.DOTALL)
RANDOM = re.compile(r"random(?:-?([0-9]{1,18}))?")


def canonical(rule: str) -> str:
    """The rule's full name, as results give it. Raises ValueError for an unknown rule."""
    if match := RANDOM.fullmatch(rule):
        return f"random-{int(match.group(1) or 0)}"
    if rule not in RULES:
        raise ValueError(f"split_rule must be one of {', '.join(RULES)} or random-SEED, got {rule!r}")
    return rule


def in_train(rule: str, names: Sequence[str], labels: np.ndarray) -> np.ndarray:
    """Whether each recording is for training, bool `[N]`; the others are for the test.

    Classes are divided one by one, so that recordings of one class decide nothing for another. Raises
    DataError if a rule does not fit the names.
    """
    rule, labels, train = canonical(rule), np.asarray(labels), np.zeros(len(names), bool)
    if rule in ("first900", "last900"):
        numbers = np.array([_number(name, rule) for name in names], np.int64)
        train = numbers < 900 if rule == "first900" else numbers >= 100
    else:
        for label in np.unique(labels):
            found: list[int] = np.flatnonzero(labels == label).tolist()
            members: list[int] | np.ndarray = sorted(found, key=lambda i: names[i])
            if rule != "name_order":
                seed = int(rule.partition("-")[2])
                members = generator((seed, int(label))).permutation(members)
            train[members[: -(-9 * len(members) // 10)]] = True
    return train


def _number(name: str, rule: str) -> int:
    match = NUMBER.fullmatch(name)
    if match is None or len(match.group(1)) > 18:
        raise DataError(f"{rule} goes by numbers; the recording {name!r} does not end in one")
    return int(match.group(1))
