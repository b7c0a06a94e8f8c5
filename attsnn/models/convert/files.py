"""Published state dicts and files to ours: the functions of `attsnn.models.convert`."""

import ast
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from . import att_vgg, fsvae, fsvae_autoencoder, ma_snn, ms_resnet, pfa
from .keys import Family, Keywords, unwrapped

FAMILIES: dict[str, Family] = {
    **ma_snn.FAMILIES,
    **ms_resnet.FAMILIES,
    **pfa.FAMILIES,
    **att_vgg.FAMILIES,
    **fsvae.FAMILIES,
    **fsvae_autoencoder.FAMILIES,
}


def from_published(state_dict: Mapping[str, Any], family: str) -> dict[str, Tensor]:
    """Renames a published state dict, or a part of one, to the names of attsnn, for a strict load.

    Args:
        state_dict: the bare dict, or a checkpoint with one inside ({"net": ...}, {"model": ...},
            {"state_dict": ...}, {"net_parameters": ...}). A `module.` prefix is dropped.
        family: one of `FAMILIES`.

    Raises:
        ValueError: for an unknown family or key, and for what is no state dict.
    """
    return _family(family).rename(unwrapped(state_dict, family))


def recognise(
    state_dict: Mapping[str, Any], family: str, *, scale: str | None = None, fusion: str | None = None
) -> tuple[dict[str, Tensor], Keywords]:
    """Renames the state dict of a whole network, and finds the keywords that build it.

    Args:
        state_dict, family: as in `from_published`.
        scale: of a PFA. It must be given if the PFA has no rank weight, except for "pfa_fmnist", where it is
            known.
        fusion: as scale.

    Returns:
        The state dict, as from `from_published`, and the keywords of `attsnn.models.create`, with the name.
        Family "pfa" is a module alone; its keywords are those of `attsnn.attention.PFA`.

    Raises:
        ValueError: as in `from_published`, and for a network that is incomplete or of no published form.
    """
    given = {k: v for k, v in {"scale": scale, "fusion": fusion}.items() if v is not None}
    found, theirs = _family(family), unwrapped(state_dict, family)
    ours = found.rename(theirs)
    try:
        keywords = found.infer(ours, theirs, given)
        with torch.device("meta"):
            wanted = found.make(**keywords).state_dict()
        for key, value in wanted.items():
            if ours[key].shape != value.shape:
                raise ValueError(f"{key!r} is {tuple(ours[key].shape)}, wanted {tuple(value.shape)}")
    except KeyError as error:
        raise ValueError(f"an incomplete {family} network, {error} is missing") from None
    for key in ours:
        if key not in wanted:
            raise ValueError(f"{key!r} is of no {_call(family, keywords)}")
    return ours, keywords


def _family(name: str) -> Family:
    if name not in FAMILIES:
        raise ValueError(f"family must be one of {', '.join(FAMILIES)}, got {name!r}")
    return FAMILIES[name]


def _call(family: str, keywords: Keywords) -> str:
    """The Python call that makes the module."""
    return f"{FAMILIES[family].make.__name__}({', '.join(f'{k}={v!r}' for k, v in keywords.items())})"


def load_published(
    path: str | Path, family: str = "ma_snn", *, scale: str | None = None, fusion: str | None = None
) -> tuple[dict[str, Tensor], Keywords]:
    """`recognise` for a published .t7 or .pth file.

    The file is read with `weights_only=True`. A file that needs more is refused, never executed.

    Args:
        path: the file.
        family, scale, fusion: as in `recognise`.

    Returns:
        A pair (state dict, keywords), as from `recognise`.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: for a file that cannot be read safely, and as in `recognise`.
    """
    allow = _family(family).allow
    try:
        with torch.serialization.safe_globals([*allow]):
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
    try:
        return recognise(published, family, scale=scale, fusion=fusion)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def load_any(path: str | Path, families: Sequence[str]) -> tuple[dict[str, Tensor], Keywords]:
    """Loads a network from a published file of one of the families, or a .safetensors that `main` wrote.

    Args:
        path: the file.
        families: are tried in this order; the first that takes the file is used.

    Returns:
        A pair (state dict, keywords), as from `recognise`.

    Raises:
        ValueError: if no family takes the file (the first family's error), or the file holds no network.
    """
    if Path(path).suffix != ".safetensors":
        refused: list[ValueError] = []
        for family in families:
            try:
                return load_published(path, family)
            except ValueError as error:
                refused.append(error)
        raise refused[0]
    try:
        with safe_open(path, "pt") as file:
            keywords = {k: ast.literal_eval(v) for k, v in (file.metadata() or {}).items()}
            state = {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118  (no mapping)
    except (SafetensorError, SyntaxError, ValueError) as error:
        raise ValueError(f"{path}: not a file that this module wrote: {error}") from None
    if "module" in keywords:
        raise ValueError(f"{path}: holds a {keywords['module']} alone, a part of a network; wanted a network")
    if "name" not in keywords:
        raise ValueError(f"{path}: does not say which network it holds; wanted a file that this module wrote")
    return state, keywords


def main(
    family: str, source: Path, target: Path, scale: str | None = None, fusion: str | None = None
) -> None:
    """Converts a published checkpoint to safetensors in the names of attsnn.

    Args:
        family: which published code wrote it (ma_snn, ms_resnet, att_ms_resnet, pfa, pfa_vgg, pfa_fmnist,
            att_vgg, fsvae, fsvae_autoencoder); pfa is the attention alone.
        source: the published file, .t7 or .pth.
        target: the .safetensors file to write.
        scale: of a PFA without a rank weight: mean or sum.
        fusion: of a PFA without a rank weight: multiply, add or residual.
    """
    from safetensors.torch import save_file

    try:
        state, keywords = load_published(source, family, scale=scale, fusion=fusion)
        FAMILIES[family].make(**keywords).load_state_dict(state, strict=True)
        metadata = {k: repr(v) for k, v in keywords.items()}
        if "name" not in keywords:
            metadata["module"] = repr(FAMILIES[family].make.__name__)
        beside = target.with_name(f".{target.name}.part")
        save_file({k: v.contiguous() for k, v in state.items()}, beside, metadata=metadata)
        beside.replace(target)
    except (OSError, ValueError, RuntimeError) as error:
        sys.exit(f"convert: {error}")
    print(f"{target}: {len(state)} tensors, {_call(family, keywords)}")
