"""The autoencoder whose latent is a feature (FSVAE's code): our names are the published ones."""

import re

from torch import Tensor

from .keys import Family, Keywords, State, none_asked, shape_of, side_of, unknown

_KEY = re.compile(r"(encoder|decoder)\.\d\.[01]\.\w+|(latent_layer|decoder_input|final_layer\.[013])\.\w+")


def _rename(theirs: State) -> dict[str, Tensor]:
    for key in theirs:
        if not _KEY.fullmatch(key):
            raise unknown(key, "fsvae_autoencoder")
    return dict(theirs)


def _infer(ours: State, theirs: State, given: Keywords) -> Keywords:
    none_asked(given, "fsvae_autoencoder")
    count = len([key for key in ours if re.fullmatch(r"encoder\.\d\.0\.weight", key)])
    shapes = [shape_of(ours, f"encoder.{i}.0.weight", 4) for i in range(max(count, 1))]
    widths = tuple(shape[0] for shape in shapes)
    latent, flat = shape_of(ours, "latent_layer.weight", 2)
    return {
        "name": "fsvae_autoencoder",
        "in_channels": shapes[0][1],
        "size": side_of(flat, widths[-1]) << count,
        "widths": widths,
        "latent": latent,
    }


FAMILIES = {"fsvae_autoencoder": Family(_rename, _infer)}
