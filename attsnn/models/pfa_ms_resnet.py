"""MS-ResNet-18 with projected full attention for 32 x 32 images, our design.

The paper (PFA; Deng et al., 2024) reports static images, but code and recipe of that network were never
released. This network follows what the paper says, and what its authors did elsewhere:

- The blocks are those of MS-ResNet, with a PFA after the second norm of each, before the shortcut.
- There are a 3x3 stem and three stages of 3, 3 and 2 blocks, without dropout.
- The neuron is that of gated attention coding (`neurons.gac`). Every gamma starts at its threshold, 1.
"""

import torch

from attsnn import neurons
from attsnn._extension import Backend
from attsnn.attention import check_counts

from .ms_resnet import MSResNet, Plan, build
from .registry import register
from .sizes import check_attention

ATTENTIONS = ("PFA", "CSA")
DOWNSAMPLES = ("stride", "max")
RANK, STEM_CHANNELS = 4, 64
PLAN = Plan(
    blocks=(3, 3, 2),
    first_stride=1,
    stem="3x3",
    stem_channels=STEM_CHANNELS,
    shortcut="stride",
    neuron=neurons.gac,
    gamma=1.0,
    dropout=0.0,
    attention="PFA",
    steps=4,
    classes=10,
    channels=(128, 256, 512),
    rank=RANK,
)


@register
def pfa_ms_resnet18(
    *,
    attention: str | None = PLAN.attention,
    steps: int = PLAN.steps,
    rank: int = RANK,
    num_classes: int = PLAN.classes,
    channels: tuple[int, ...] = PLAN.channels,
    stem_channels: int = STEM_CHANNELS,
    width: float = 1.0,
    downsample: str = PLAN.downsample,
    scale: str = PLAN.scale,
    fusion: str = PLAN.fusion,
    channel_ratio: int = PLAN.channel_ratio,
    membrane_dtype: torch.dtype | None = None,
    backend: Backend = "auto",
) -> MSResNet:
    """MS-ResNet-18 with PFA for small images: [N, 3, H, W], 32 x 32 as a rule, -> [N, 10].

    Args:
        attention: "PFA", "CSA" or None.
        steps: T, how often the image is shown. A PFA fixes it.
        rank: of every PFA, 1 to 64.
        num_classes, channels, stem_channels: the layer table itself; channels are given by stage.
        width: multiplies the channels, for small machines.
        downsample: where a stage halves the maps. "stride": in the first convolution; "max": in a 3x3
            maximum pool after its norm. The shortcut is a 1x1 convolution of stride 2 either way.
        scale, fusion: of the PFAs, as `attsnn.attention.PFA` documents them. With "mean" a block's branch
            starts at about an eighth, with "sum" at rank eighths.
        channel_ratio: of the MLPs of CSA.
        membrane_dtype: torch.float32 keeps the residual stream in float32 while the convolutions compute in
            16 bit.
        backend: "auto", "fused" or "reference".
    """
    check_attention(attention, ATTENTIONS)
    check_counts(rank=rank, stem_channels=stem_channels)
    if downsample not in DOWNSAMPLES:
        raise ValueError(f"downsample must be one of {', '.join(DOWNSAMPLES)}, got {downsample!r}")
    return build(
        PLAN,
        backend,
        width=width,
        attention=attention,
        steps=steps,
        rank=rank,
        classes=num_classes,
        channels=channels,
        stem_channels=stem_channels,
        downsample=downsample,
        scale=scale,
        fusion=fusion,
        channel_ratio=channel_ratio,
        membrane_dtype=membrane_dtype,
    )
