"""MS-ResNet (Ariande1/MS-ResNet) and Att-MS-ResNet (BICLab/Attention-SNN): bare state dicts."""

from functools import partial

from torch import Tensor

from attsnn.models.ms_resnet import PLANS

from .keys import Family, Keywords, State, infer_attention, none_asked, shape_of
from .patterns import ATTENTION, Patterns, by_patterns

_BOTH: Patterns = [
    (r"^\.conv([2-5])_x\.", lambda match: f".stages.{int(match[1]) - 2}."),
    (r"\.residual_function\.1\.", ".first.current."),
    (r"\.residual_function\.2\.bn\.", ".first.norm."),
    (r"\.residual_function\.4\.", ".second.current."),
    (r"\.residual_function\.5\.bn\.", ".second.norm."),
    (r"^\.fc\.", ".classifier."),
]
_PATTERNS: dict[str, Patterns] = {
    "ms_resnet": [
        *_BOTH,
        (r"\.shortcut\.[01]\.(weight)$", r".shortcut.current.\1"),
        (r"\.shortcut\.[12]\.bn\.", ".shortcut.norm."),
        (r"^\.conv1\.[13]\.bn\.", ".stem.norm."),
        (r"^\.conv1\.([012])\.", r".stem.current.\1."),
    ],
    "att_ms_resnet": [
        *_BOTH,
        (r"\.residual_function\.6\.", ".second."),
        *ATTENTION,
        (r"\.shortcut\.1\.", ".shortcut.current."),
        (r"\.shortcut\.2\.bn\.", ".shortcut.norm."),
        (r"^\.conv1\.1\.bn\.", ".stem.norm."),
        (r"^\.conv1\.0\.", ".stem.current.0."),
    ],
}


def _rename(theirs: State, family: str) -> dict[str, Tensor]:
    def named(key: str, value: Tensor) -> str:
        """A stem of one convolution is not a sequence."""
        alone = key == "stem.current.0.weight" and value.shape[-1:] == (7,)
        return "stem.current.weight" if alone else key

    ours = {named(k, v): v for k, v in by_patterns(theirs, family, _PATTERNS[family]).items()}
    pools = any(key.endswith(".shortcut.1.weight") for key in theirs)
    if family == "ms_resnet" and pools and "stem.current.weight" in ours:
        raise ValueError(
            "a 7x7 stem with shortcuts that pool first: the published att_ms_resnet, not ms_resnet"
        )
    return ours


def infer_ms_resnet(state: State, family: str = "ms_resnet") -> Keywords:
    """The name and keywords of `attsnn.models.create` that fit converted weights of a family.

    `steps` is in the file only if the attention is temporal. Raises ValueError or KeyError for the weights
    of no published network.
    """
    places = {tuple(map(int, key.split(".")[1:3])) for key in state if key.startswith("stages.")}
    stages = sorted({stage for stage, _ in places})
    blocks = tuple(sum(stage == s for s, _ in places) for stage in stages)
    names = [n for n, p in PLANS.items() if n.startswith(family) and p.blocks == blocks]
    if not names:
        known = ", ".join(f"{p.blocks} of {n}" for n, p in PLANS.items() if n.startswith(family))
        raise ValueError(f"no {family} has {blocks} blocks by stage; there are {known}")
    kwargs: Keywords = {"name": names[0], "num_classes": shape_of(state, "classifier.weight", 2)[0]}
    kwargs["channels"] = tuple(shape_of(state, f"stages.{i}.0.first.current.weight", 4)[0] for i in stages)
    kwargs["attention"], ratios = infer_attention(state, "stages.0.0.second.attention.")
    return kwargs | ratios


def _infer(ours: State, theirs: State, given: Keywords, family: str) -> Keywords:
    none_asked(given, family)
    return infer_ms_resnet(ours, family)


FAMILIES = {
    family: Family(partial(_rename, family=family), partial(_infer, family=family)) for family in _PATTERNS
}
