"""The fully spiking VAE: bare state dicts, with the PFA of the code of both papers if there is one."""

import re

from torch import Tensor

from .keys import Family, Keywords, State, shape_of, side_of, unknown
from .pfa import of_module

# Constants, which our network computes.
_CONSTANTS = re.compile(r"membrane_output_layer\.coef|(prior|posterior)\.initial_input")
_PATTERNS = (
    (re.compile(r"PFA\.(TS_conv)\.(weight|bias)"), r"attention.spatial_\2"),
    (re.compile(r"PFA\.(TC_FC)\.(weight|bias)"), r"attention.temporal_\2"),
    (re.compile(r"PFA\.(SC_FC)\.(weight|bias)"), r"attention.channel_\2"),
    (re.compile(r"final_layer\.1\.(weight|bias)"), r"final.\1"),
)
_LAYER = re.compile(
    r"((encoder|decoder)\.\d+|before_latent_layer|decoder_input|final_layer\.0|(prior|posterior)\.layers\.\d)"
    r"\.(bn\.)?(weight|bias|running_mean|running_var|num_batches_tracked)"
)


def _rename(theirs: State) -> dict[str, Tensor]:
    places = [int(key.split(".")[1]) for key in theirs if re.match(r"decoder\.\d", key)]
    ours, doubled = {}, 1 + max(places, default=-1)
    for key, value in theirs.items():
        if not _CONSTANTS.fullmatch(key):
            ours[_name(key, doubled)] = value.squeeze(-1) if value.dim() == 5 else value
    return ours


def _name(key: str, doubled: int) -> str:
    """Our name of a key.

    `doubled` is the place of the last layer that doubles the side, which our decoder includes.
    """
    for pattern, replacement in _PATTERNS:
        if pattern.fullmatch(key):
            return pattern.sub(replacement, key)
    found = _LAYER.fullmatch(key)
    leaf = found and found[5]
    if not found or (leaf not in ("weight", "bias") and not found[4]):
        raise unknown(key, "fsvae")
    layer = found[1].replace("before_latent_layer", "before_latent").replace(".layers.", ".")
    layer = layer.replace("final_layer.0", f"decoder.{doubled}")
    return f"{layer}.{'norm' if found[4] else 'current'}.{leaf}"


def _infer(ours: State, theirs: State, given: Keywords) -> Keywords:
    if given:
        raise ValueError(f"{' and '.join(given)} of a fsvae's PFA are known; leave them out")
    count = len([key for key in ours if re.fullmatch(r"encoder\.\d+\.current\.weight", key)])
    shapes = [shape_of(ours, f"encoder.{i}.current.weight", 4) for i in range(count)]
    if not shapes:
        raise KeyError("encoder.0.current.weight")
    widths = tuple(shape[0] for shape in shapes)
    latent, flat = shape_of(ours, "before_latent.current.weight", 2)
    side = side_of(flat, widths[-1])
    hidden = [shape_of(ours, f"prior.{i}.current.weight", 2)[0] for i in (0, 1)]
    outputs = shape_of(ours, "prior.2.current.weight", 2)[0]
    keywords: Keywords = {
        "name": "fsvae_large" if count > 4 else "fsvae",
        "in_channels": shapes[0][1],
        "size": side << count,
        "steps": _steps(theirs),
        "latent": latent,
        "k": outputs // latent,
        "widths": widths,
        "hidden": tuple(hidden),
    }
    if any(key.startswith("attention.") for key in ours):
        rank, steps, channels = of_module(ours, "attention.")
        keywords |= {"pfa": "published", "rank": rank, "steps": steps}
    return keywords


def _steps(theirs: State) -> int:
    """T, which follows from the constants of the read-out."""
    return theirs["membrane_output_layer.coef"].shape[-1]


FAMILIES = {"fsvae": Family(_rename, _infer)}
