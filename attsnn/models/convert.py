"""Published checkpoints in our names: `from_published`, `load_published`, and a command line, file to file.

    python -m attsnn.models.convert ma_snn published.t7 ours.safetensors
    python -m attsnn.models.convert att_ms_resnet published.pth ours.safetensors

Tensors keep their values; 1x1 convolutions of the gates' MLPs become the matrices that they are.
"""

import ast
import math
import re
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from attsnn.neurons import MA_SNN_CONSTANTS as LEARNED

from .ma_snn import PLANS as MA_SNN_PLANS
from .ms_resnet import PLANS

_ATTENTION = [
    (r"\.attention\.ta\.sharedMLP\.0\.", ".attention.temporal.reduce."),
    (r"\.attention\.ta\.sharedMLP\.2\.", ".attention.temporal.expand."),
    (r"\.attention\.ca\.sharedMLP\.0\.", ".attention.channel.reduce."),
    (r"\.attention\.ca\.sharedMLP\.2\.", ".attention.channel.expand."),
    (r"\.attention\.sa\.conv\.", ".attention.spatial.conv."),
]
_MA_SNN = [
    (r"convAttLIF(\d+)\.", r"features.\1."),
    (r"FC(\d+)\.", r"classifier.\1."),
    (r"\.conv2d\.", ".current."),
    (r"\.linear\.", ".current."),
    (r"\.BNLayer\.", ".norm."),
    *_ATTENTION,
    (r"\.network\.(?:Conv)?IF\.alpha$", ".neuron.leak"),  # of neurons that learn (`pa_train_self`)
    (r"\.network\.(?:Conv)?IF\.beta$", ".neuron.bias"),
    (r"\.network\.(?:Conv)?IF\.Vthres$", ".neuron.threshold"),
]
_UNUSED = re.compile(r"\.network\.(?:Conv)?IF\.Vreset$")  # stored by the published neuron, never read
_MS_RESNET = [
    (r"^\.conv([2-5])_x\.", lambda match: f".stages.{int(match[1]) - 2}."),
    (r"\.residual_function\.1\.", ".first.current."),
    (r"\.residual_function\.2\.bn\.", ".first.norm."),
    (r"\.residual_function\.4\.", ".second.current."),
    (r"\.residual_function\.5\.bn\.", ".second.norm."),
    (r"^\.fc\.", ".classifier."),
]
FAMILIES = {
    "ma_snn": _MA_SNN,
    "ms_resnet": [
        *_MS_RESNET,
        (r"\.shortcut\.[01]\.(weight)$", r".shortcut.current.\1"),
        (r"\.shortcut\.[12]\.bn\.", ".shortcut.norm."),
        (r"^\.conv1\.[13]\.bn\.", ".stem.norm."),
        (r"^\.conv1\.([012])\.", r".stem.current.\1."),
    ],
    "att_ms_resnet": [
        *_MS_RESNET,
        (r"\.residual_function\.6\.", ".second."),
        *_ATTENTION,
        (r"\.shortcut\.1\.", ".shortcut.current."),
        (r"\.shortcut\.2\.bn\.", ".shortcut.norm."),
        (r"^\.conv1\.1\.bn\.", ".stem.norm."),
        (r"^\.conv1\.0\.", ".stem.current.0."),
    ],
}
# What only published names have: left over, it is unknown. And what our names look like.
_LEFT = re.compile(r"\.network\.|\.residual_function\.|\.sharedMLP\.|\.bn\.|\.shortcut\.\d|^\.conv\d")
_OURS = re.compile(
    r"\.(features|stem|stages|classifier)\.([\w.]+\.)?"
    r"(weight|bias|running_mean|running_var|num_batches_tracked|leak|threshold)"
)
_WRAPPERS = ("net", "model", "state_dict")


def from_published(state_dict: Mapping, family: str) -> dict[str, Tensor]:
    """A published state dict in our names, for a strict load.

    Takes the bare dict, or one inside a checkpoint ({"net": ...}, {"model": ...}, {"state_dict": ...}); a
    `module.` prefix is dropped. Raises ValueError for a family or a key that it does not know, and for what
    is no state dict.
    """
    if family not in FAMILIES:
        raise ValueError(f"family must be one of {', '.join(FAMILIES)}, got {family!r}")
    if not isinstance(state_dict, Mapping):
        raise ValueError(f"a state dict of {family} is wanted, got {type(state_dict).__name__}")
    while wrapper := next((w for w in _WRAPPERS if isinstance(state_dict.get(w), Mapping)), None):
        state_dict = state_dict[wrapper]
    ours, pools, single = {}, False, False
    for key, value in state_dict.items():
        if not isinstance(value, Tensor):
            raise ValueError(
                f"{key!r} holds {type(value).__name__}, not a tensor: this is no state dict of {family}"
            )
        name = bare = "." + str(key).removeprefix("module.")
        for pattern, replacement in FAMILIES[family]:
            name = re.sub(pattern, replacement, name)
        if _UNUSED.search(name):
            continue
        if name == bare or _LEFT.search(name) or not _OURS.fullmatch(name):
            raise ValueError(f"{key!r} is no key of a published {family} network")
        if name.endswith(".stem.current.0.weight") and value.shape[-1:] == (7,):
            name, single = ".stem.current.weight", True
        pools |= key.endswith(".shortcut.1.weight")
        matrix = ".reduce." in name or ".expand." in name
        vector = ".neuron." in name  # one value a channel, published as [C, 1, 1] or [1, F]
        if matrix and (value.dim() < 2 or value.numel() == 0):
            raise ValueError(f"{key!r} must be the matrix of a gate, got shape {tuple(value.shape)}")
        if name.removeprefix(".") in ours:
            raise ValueError(f"{key!r} is there twice, with and without its prefix")
        ours[name.removeprefix(".")] = value.flatten(1) if matrix else value.flatten() if vector else value
    if family == "ms_resnet" and pools and single:
        raise ValueError(
            "a 7x7 stem with shortcuts that pool first: the published att_ms_resnet, not ms_resnet"
        )
    return ours


def infer_ma_snn(state: Mapping[str, Tensor]) -> dict:
    """The name and keywords of `create` that fit converted weights; emit and dt are not in the file."""
    layers = sum(re.fullmatch(r"features\.\d+\.current\.weight", k) is not None for k in state)
    conv = [f"features.{i}.current.weight" for i in range(layers)]
    attention, ratios = _infer_attention(state, "features.0.attention.")
    classes = state["classifier.1.current.weight"].shape[0]
    widths = tuple(state[k].shape[0] for k in conv or ["features.0.current.weight"])
    fitting = [n for n, plan in MA_SNN_PLANS.items() if len(plan.channels) == layers]
    if not fitting:
        raise ValueError(f"no ma_snn has {layers} convolutions; published ones have 3 or 5")
    # Two have five: Gait's recordings are of 20 people and more, CIFAR10-DVS's of 10 classes.
    model = max(fitting, key=lambda n: (classes > 11) == (MA_SNN_PLANS[n].classes > 11))
    kwargs = {"name": model, "attention": attention, "num_classes": classes}
    kwargs["channels"] = widths
    flat = state["classifier.0.current.weight"].shape[1]
    kwargs["size"] = math.isqrt(flat // widths[-1]) * math.prod(MA_SNN_PLANS[model].pools)
    kwargs["hidden"] = state["classifier.0.current.weight"].shape[0]
    kwargs["learn"] = tuple(n for n, ours in LEARNED.items() if f"features.0.neuron.{ours}" in state)
    return kwargs | ratios


def infer_ms_resnet(state: Mapping[str, Tensor], family: str = "ms_resnet") -> dict:
    """The name and keywords of `create` that fit converted weights of a family; steps are not in the file,
    but where the attention is temporal.
    """
    places = {tuple(map(int, key.split(".")[1:3])) for key in state if key.startswith("stages.")}
    stages = sorted({stage for stage, _ in places})
    blocks = tuple(sum(stage == s for s, _ in places) for stage in stages)
    names = [n for n, p in PLANS.items() if n.startswith(family) and p.blocks == blocks]
    if not names:
        known = ", ".join(f"{p.blocks} of {n}" for n, p in PLANS.items() if n.startswith(family))
        raise ValueError(f"no {family} has {blocks} blocks by stage; there are {known}")
    kwargs = {"name": names[0], "num_classes": state["classifier.weight"].shape[0]}
    kwargs["channels"] = tuple(state[f"stages.{i}.0.first.current.weight"].shape[0] for i in stages)
    kwargs["attention"], ratios = _infer_attention(state, "stages.0.0.second.attention.")
    return kwargs | ratios


def _infer_attention(state: Mapping[str, Tensor], gate: str) -> tuple[str | None, dict]:
    """The attention's name, and the keywords that its weights fix."""
    letters = "".join(
        x[0].upper() for x in ("temporal", "channel", "spatial") if any(gate + x in k for k in state)
    )
    kwargs = {}
    if "T" in letters:
        kwargs["steps"] = state[gate + "temporal.reduce.weight"].shape[1]
        kwargs["temporal_ratio"] = _infer_ratio(state, "temporal")
    if "C" in letters:
        kwargs["channel_ratio"] = _infer_ratio(state, "channel")
    return letters + "A" if letters else None, kwargs


def _infer_ratio(state: Mapping[str, Tensor], gate: str) -> int:
    """The reduction of which all gates of a kind, size -> size // ratio, are."""
    shapes = {v.shape for k, v in state.items() if k.endswith(f".attention.{gate}.reduce.weight")}
    ratios = range(1, max(size for _, size in shapes) + 1)
    ratio = next((r for r in ratios if all(size // r == hidden for hidden, size in shapes)), None)
    if ratio is None:
        raise ValueError(f"the {gate} gates have no ratio in common: {sorted(map(tuple, shapes))}")
    return ratio


_INFER = {
    "ma_snn": infer_ma_snn,
    "ms_resnet": infer_ms_resnet,
    "att_ms_resnet": partial(infer_ms_resnet, family="att_ms_resnet"),
}


def load_published(path: str | Path, family: str = "ma_snn") -> tuple[dict[str, Tensor], dict]:
    """(state dict in our names, keywords of `create` with its name) of a published .t7 or .pth file.

    Reads with `weights_only=True`: a file that needs more is refused, never executed.
    """
    try:
        published = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: no such file; give a published checkpoint (.t7, .pth)") from None
    except Exception as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ValueError(
            f"{path}: not a checkpoint that can be read safely (weights only): {reason}"
        ) from None
    if not isinstance(published, Mapping):
        raise ValueError(f"{path}: holds {type(published).__name__}, wanted a state dict")
    state = from_published(published, family)
    try:
        return state, _INFER[family](state)
    except KeyError as error:
        raise ValueError(f"{path}: an incomplete {family} network, {error} is missing") from None


def load_any(path: str | Path, families: Sequence[str]) -> tuple[dict[str, Tensor], dict]:
    """`load_published` of the first family that takes the file; or a .safetensors that `main` wrote."""
    if Path(path).suffix != ".safetensors":
        refused = None
        for family in families:
            try:
                return load_published(path, family)
            except ValueError as error:
                refused = refused or error
        raise refused
    try:
        with safe_open(path, "pt") as file:
            keywords = {k: ast.literal_eval(v) for k, v in (file.metadata() or {}).items()}
            state = {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118  (no mapping)
    except (SafetensorError, SyntaxError, ValueError) as error:
        raise ValueError(f"{path}: not a file that this module wrote: {error}") from None
    if "name" not in keywords:
        raise ValueError(f"{path}: does not say which network it holds; wanted a file that this module wrote")
    return state, keywords


def main(family: str, source: Path, target: Path) -> None:
    """Converts a published checkpoint to safetensors in the names of attsnn.

    Args:
        family: which published code wrote it (ma_snn, ms_resnet, att_ms_resnet).
        source: the published file, .t7 or .pth.
        target: the .safetensors file to write.
    """
    from safetensors.torch import save_file

    from attsnn.models import create

    try:
        state, kwargs = load_published(source, family)
        create(**kwargs).load_state_dict(state, strict=True)
        metadata = {k: repr(v) for k, v in kwargs.items()}
        beside = target.with_name(f".{target.name}.part")
        save_file({k: v.contiguous() for k, v in state.items()}, beside, metadata=metadata)
        beside.replace(target)
    except (OSError, ValueError, RuntimeError) as error:
        sys.exit(f"convert: {error}")
    print(f"{target}: {len(state)} tensors, create({', '.join(f'{k}={v!r}' for k, v in kwargs.items())})")


if __name__ == "__main__":
    import tyro

    tyro.cli(tyro.conf.configure(tyro.conf.PositionalRequiredArgs)(main))
