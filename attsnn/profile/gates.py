"""What attention costs: multiply-accumulates that generate the gates' weights, and values that they refine.

The papers' own counts are in a supplement that is not published with them (Attention SNN, TPAMI 2023, table
S2). The counts here are derived from the layers of a gate. They agree with what the paper does print: CA of
the three-layer network with T = 60, r = 16, computed at every step, takes 60 sum_C 2 C^2 / 16 = 276,480.
"""

from typing import cast

from torch import nn

from attsnn.attention import (
    PFA,
    Attention,
    ChannelAttention,
    PrunedAttention,
    SpatialAttention,
    TemporalAttention,
)

from .records import Gate

MODULES = (Attention, PrunedAttention, PFA, TemporalAttention, ChannelAttention, SpatialAttention)
GENERATION = {  # multiply-accumulates for a window; the MLP counts once, though it takes two descriptors
    "TA": "2 T (T // r)",
    "CA": "2 C (C // r)",
    "SA": "2 k^2 H W",
    "PFA": "R (T k^2 H W + 2 T C + T C H W) + T C R",
}


def gates_of(module: nn.Module, shape: tuple[int, ...]) -> list[Gate]:
    """The gates of an attention module that was applied to values of that shape, [T, N, C, H, W]
    or [T, N, F].
    """
    if isinstance(module, Attention | PrunedAttention):
        return [gate for part in module for gate in gates_of(part, shape)]
    steps, samples, *space = shape
    channels, *plane = space
    values = steps * samples * channels
    for side in plane:
        values *= side
    pixels = values // (steps * samples * channels) if values else 0
    if isinstance(module, PFA):
        rank = module.rank
        maps = rank * (steps * module.kernel**2 * pixels + 2 * steps * channels + steps * channels * pixels)
        count = samples * (maps + steps * channels * rank)
        added = module.fusion == "add"
        return [Gate("PFA", GENERATION["PFA"], count, count, 0 if added else values, 2 * values, added)]
    if isinstance(module, TemporalAttention):
        kind, count, each = "TA", 2 * module.reduce.weight.numel(), False
    elif isinstance(module, ChannelAttention):
        kind, count, each = "CA", 2 * module.reduce.weight.numel(), True
    else:
        kind, count, each = "SA", cast(SpatialAttention, module).conv.weight.numel() * pixels, True
    once = samples * count
    return [Gate(kind, GENERATION[kind], once, once * (steps if each else 1), values, values)]
