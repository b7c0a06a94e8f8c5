"""Projected full attention (RisingEntropy/PFA): the module alone, the event networks, Fashion-MNIST.

Checkpoints are {"net_parameters": ...} for the event networks and {"net": ...} for Fashion-MNIST. A PFA of
an event network also has a weight [R], which was never trained. Ours do without it, but its presence tells
that scale and fusion are those of the released code. Without it, nothing in the file tells them.
"""

from collections.abc import Mapping
from functools import partial

from torch import Tensor

from attsnn.attention import PFA
from attsnn.models.pfa_vgg import PARITY_RANK, VOTERS

from .keys import Family, Keywords, State, by_table, known, shape_of, side_of

RULES = {"scale": "mean", "fusion": "multiply"}  # of a PFA with a rank weight


def _module(theirs: str, ours: str) -> dict[str, str]:
    parts = {"TS_conv": "spatial", "TC_FC": "temporal", "SC_FC": "channel"}
    return {f"{theirs}{part}": f"{ours}{name}_" for part, name in parts.items()}


def _event_table(shift: int) -> dict[str, str | None]:
    """The table of the event networks, by place in their sequence.

    Places are one lower (`shift` -1) if no pool comes first.
    """
    table: dict[str, str | None] = {"fc.1.0": "classifier.current."}
    for i in range(5):
        place = f"conv.{1 + 6 * i + shift}"
        inside = _module(f"{place}.", f"stages.{i - 1}.attention." if i else "attention.")
        table |= {place: None, **inside}
    for i in range(8):
        place = f"conv.{2 + 6 * (i // 2) + 2 * (i % 2) + shift}"
        ours = f"stages.{i // 2}.{('first', 'second')[i % 2]}."
        table |= {f"{place}.0": f"{ours}current.", f"{place}.1": f"{ours}norm."}
    return table


EVENTS, GESTURE = _event_table(0), _event_table(-1)
FMNIST = {
    "static_conv.0": "stem.current.",
    "static_conv.1": "stem.norm.",
    "conv.1.1": "features.current.",
    "conv.1.2": "features.norm.",
    **_module("conv.2.", "features.attention."),
    "fc.1.0": "hidden.current.",
    "fc.4.0": "classifier.current.",
}
WHOLE = {"": None, **_module("", "")}


def _own_key(theirs: State, table: Mapping[str, str | None], other: Mapping[str, str | None]) -> str | None:
    """A key that only one kind of event networks has, as all but those of the linear layer are."""
    return next((key for key in theirs if known(key, table) and not known(key, other)), None)


def _rename_vgg(theirs: State) -> dict[str, Tensor]:
    event, gesture = _own_key(theirs, EVENTS, GESTURE), _own_key(theirs, GESTURE, EVENTS)
    if event and gesture:
        raise ValueError(
            f"{gesture!r} is a key of the published gesture network, {event!r} of the others: "
            f"these are parts of two"
        )
    return by_table(theirs, "pfa_vgg", GESTURE if gesture else EVENTS)


def of_module(ours: State, prefix: str) -> tuple[int, int, int]:
    """Rank, steps and channels of a PFA."""
    rank, steps, *_ = shape_of(ours, f"{prefix}spatial_weight", 4)
    return rank, steps, shape_of(ours, f"{prefix}temporal_weight", 2)[1]


def _rules(weighted: bool, given: Keywords) -> Keywords:
    """Scale and fusion, from the file or as given."""
    if not weighted:
        missing = [name for name in RULES if name not in given]
        if missing:
            raise ValueError(
                f"no PFA has a rank weight, so scale and fusion are not in the file: "
                f"give {' and '.join(missing)} (on the command line, --scale and --fusion)"
            )
        return given
    for name, value in given.items():
        if value != RULES[name]:
            raise ValueError(f"{name} is {RULES[name]!r} where a PFA has a rank weight, got {value!r}")
    return RULES


def _infer_module(ours: State, theirs: State, given: Keywords) -> Keywords:
    rank, steps, channels = of_module(ours, "")
    kernel = ours["spatial_weight"].shape[-1]
    sizes = {"steps": steps, "channels": channels, "rank": rank, "kernel": kernel}
    return sizes | _rules("weight" in theirs, given)


def _infer_vgg(ours: State, theirs: State, given: Keywords) -> Keywords:
    gesture = _own_key(theirs, GESTURE, EVENTS) is not None
    weights = [head for head, name in (GESTURE if gesture else EVENTS).items() if name is None]
    missing = [f"{head}.weight" for head in weights if f"{head}.weight" not in theirs]
    if 0 < len(missing) < len(weights):
        raise KeyError(missing[0])
    modules = [of_module(ours, p) for p in ("attention.", *(f"stages.{i}.attention." for i in range(4)))]
    ranks = [rank for rank, *_ in modules]
    layers = [f"stages.{i}.{part}" for i in range(4) for part in ("first", "second")]
    outputs, flat = shape_of(ours, "classifier.current.weight", 2)
    kwargs: Keywords = {
        "name": "pfa_vgg_ncaltech101" if outputs == 101 else "pfa_vgg_cifar10_dvs",
        "num_classes": outputs,
        "steps": modules[0][1],
        "rank": ranks[0],
        "channels": tuple(shape_of(ours, f"{layer}.current.weight", 4)[0] for layer in layers),
    }
    if gesture:
        kwargs |= _of_gesture(outputs, side_of(flat, kwargs["channels"][-1]), ranks)
    if len(set(ranks[:-1] if kwargs.get("parity") else ranks)) > 1:
        raise ValueError(f"the PFAs have ranks {ranks}: no published pfa_vgg network has")
    return kwargs | _rules(not missing, given)


def _of_gesture(outputs: int, side: int, ranks: list[int]) -> Keywords:
    if outputs % VOTERS:
        raise ValueError(f"{outputs} outputs are not a multiple of the {VOTERS} voters of a class")
    sizes = {"num_classes": outputs // VOTERS, "size": 16 * side}
    return {"name": "pfa_vgg_dvs_gesture", **sizes, "parity": ranks[-1] == PARITY_RANK}


def _infer_fmnist(ours: State, theirs: State, given: Keywords) -> Keywords:
    rank, steps, channels = of_module(ours, "features.attention.")
    classes, hidden = shape_of(ours, "classifier.current.weight", 2)
    sizes = {"steps": steps, "rank": rank, "num_classes": classes, "channels": channels, "hidden": hidden}
    return {"name": "pfa_fmnist", **sizes, **given}  # of the released code where not given


FAMILIES = {
    "pfa": Family(partial(by_table, family="pfa", table=WHOLE), _infer_module, PFA),
    "pfa_vgg": Family(_rename_vgg, _infer_vgg),
    "pfa_fmnist": Family(partial(by_table, family="pfa_fmnist", table=FMNIST), _infer_fmnist),
}
