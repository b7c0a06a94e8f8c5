"""What 16 bit cost over many blocks: spikes of Att-MS-ResNet-104 that differ from those of float64.

python bench/membrane.py

Random weights, random images of 64 x 64 pixels, T = 1; the norms' running statistics are the batch's own. The
convolutions compute in bfloat16, the residual stream (the membrane, which 51 blocks add to) in float32 or in
bfloat16 too.
"""

import sys
from pathlib import Path

# Also where attsnn is built but not installed.
sys.path[:0] = [str(Path(__file__).resolve().parent.parent)]

import torch
from torch import nn

from attsnn import models
from attsnn.layers import watch

MODEL = "att_ms_resnet104"
BLOCKS = (1, 10, 25, 40, 51)
ROWS = {
    "float32": (torch.float32, None),
    "bfloat16, membrane in float32": (torch.bfloat16, torch.float32),
    "bfloat16, membrane in bfloat16": (torch.bfloat16, None),
}


def spikes_of(state: dict, x: torch.Tensor, dtype: torch.dtype, membrane: torch.dtype | None) -> list:
    """What every block emits."""
    net = models.create(MODEL, dropout=0.0, membrane_dtype=membrane).eval()
    net.load_state_dict(state)
    if dtype is torch.float64:
        net, x = net.double(), x.double()
    cast = torch.autocast("cpu", dtype, enabled=dtype is torch.bfloat16)
    with torch.no_grad(), watch(net) as seen, cast:
        net(x)
    return [spikes.bool() for name, spikes in seen.items() if name.endswith(".second")]


def main() -> None:
    torch.manual_seed(0)
    net, x = models.create(MODEL, dropout=0.0).train(), torch.randn(8, 3, 64, 64)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    with torch.no_grad():
        net(x)
    state = net.state_dict()
    right = spikes_of(state, x, torch.float64, None)
    print(f"{'spikes that differ after block':32}", *(f"{b:>8}" for b in BLOCKS))
    for name, how in ROWS.items():
        found = spikes_of(state, x, *how)
        shares = [(found[b - 1] != right[b - 1]).double().mean().item() for b in BLOCKS]
        print(f"{name:32}", *(f"{share:8.3%}" for share in shares))


if __name__ == "__main__":
    main()
