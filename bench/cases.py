"""The shapes that are measured, named after the layers they come from."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

DTYPES = {"fp64": torch.float64, "fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Case:
    """One neuron layer: T steps of a batch of feature maps."""

    group: str  # L1 ... L6, S1: which network
    steps: int
    step: tuple[int, ...]  # N, C, H, W; or the neurons alone
    order: str = "nchw"  # how a step lies in memory: "nchw", "nhwc", or "t_last", a view of [N, C, H, W, T]

    @property
    def name(self) -> str:
        order = "" if self.order == "nchw" else f" {self.order}"
        return f"{self.group} {self.steps}x{'x'.join(map(str, self.step))}{order}"

    @property
    def elements(self) -> int:
        """Element-steps."""
        return self.steps * math.prod(self.step)

    def normal(self, dtype: torch.dtype, device: str, seed: int = 0) -> Tensor:
        """Random normal values of this shape, in its order."""
        generator = torch.Generator(device).manual_seed(seed)
        shape = (self.steps, *self.step)
        if self.order == "t_last":
            return torch.randn(
                *self.step, self.steps, generator=generator, device=device, dtype=dtype
            ).movedim(-1, 0)
        x = torch.randn(shape, generator=generator, device=device, dtype=dtype)
        if self.order == "nhwc":
            x = x.flatten(0, 1).contiguous(memory_format=torch.channels_last).unflatten(0, shape[:2])
        return x


@dataclass(frozen=True)
class PfaCase(Case):
    """Projected full attention over the maps x; P1: of event networks, P2: of the one for Fashion-MNIST."""

    rank: int = 4

    @property
    def fusion(self) -> str:
        return "add" if self.group == "P2" else "multiply"

    @property
    def name(self) -> str:
        group, *rest = super().name.split(" ")
        return " ".join([group, f"R{self.rank}", *rest])


@dataclass(frozen=True)
class SeamCase(Case):
    """What lies between two convolutions, over the maps z that the first hands on; M1: a whole network."""

    pool: int = 1

    @property
    def neuron(self) -> str:
        """The preset of the network that the seam is from; B1: the one that peers have too."""
        return {"B1": "leaky", "G2": "ms_resnet"}.get(self.group, "ma_snn")

    @property
    def attention(self) -> str | None:
        return {"B1": None, "G2": "CSA"}.get(self.group, "TCSA")

    @property
    def residual(self) -> bool:
        """Whether a shortcut is added and the sum is wanted too, which the next block adds."""
        return self.group == "G2"

    @property
    def neurons(self) -> int:
        """Neurons times steps: elements behind the pool."""
        n, c, *sides = self.step
        return self.steps * n * c * math.prod(side // self.pool for side in sides)

    @property
    def name(self) -> str:
        words = super().name.split(" ")
        words[1:1] = [self.attention] if self.attention else []
        return " ".join([*words, f"pool {self.pool}"] if self.pool > 1 else words)


@dataclass(frozen=True)
class ModelCase(Case):
    """Att-MS-ResNet with CSA for images `step` = (N, 3, H, W), each shown `steps` times."""

    depth: int = 18
    width: float = 1.0

    @property
    def model(self) -> str:
        return f"att_ms_resnet{self.depth}"

    @property
    def neuron(self) -> str:
        return "ms_resnet"

    @property
    def name(self) -> str:
        group, shape = super().name.split(" ", 1)
        return f"{group} MS-ResNet-{self.depth} CSA {shape}"

    def images(self, dtype: torch.dtype, device: str, batch: int | None = None) -> Tensor:
        """Random normal images, N of them or `batch`."""
        n, *maps = self.step
        return replace(self, steps=1, step=(batch or n, *maps)).normal(dtype, device)[0]


@dataclass(frozen=True)
class ShippedCase(Case):
    """A network of the papers, ours and the one that SpikingJelly ships: frames [T, N, C, H, W], or images
    `step` = (N, C, H, W), each shown T times. `small`: of few channels.
    """

    small: bool = False

    @property
    def neuron(self) -> str:
        return "ma_snn" if self.frames else "ms_resnet"

    @property
    def frames(self) -> bool:
        return self.step[1] == 2  # of events

    @property
    def name(self) -> str:
        group, shape = super().name.split(" ", 1)
        return f"{group} {'MA-SNN TCSA' if self.frames else 'Att-MS-ResNet-18'} {shape}"

    def inputs(self, dtype: torch.dtype, device: str) -> Tensor:
        shape = (self.steps, *self.step) if self.frames else self.step
        return torch.rand(shape, generator=torch.Generator(device).manual_seed(0), device=device, dtype=dtype)


def _both(group: str, steps: int, *step: int) -> list[Case]:
    return [Case(group, steps, step), Case(group, steps, step, "nhwc")]


GESTURE = [(64, 32, 32), (128, 16, 16), (128, 8, 8)]
IMAGENET = [(64, 112, 112), (64, 56, 56), (128, 28, 28), (256, 14, 14), (512, 7, 7)]

# For a GPU.
L1 = [case for n in (16, 128) for maps in GESTURE for case in _both("L1", 60, n, *maps)]
L2 = [Case("L2", 20, (32, *maps)) for maps in ((32, 64, 64), (64, 32, 32))]
L3 = [case for t in (1, 4, 6) for maps in IMAGENET for case in _both("L3", t, 32, *maps)]
L4 = [Case("L4", t, (128, c, 32, 32)) for t in (4, 6) for c in (64, 128)]
L5 = [Case("L5", 16, (250, *maps), "t_last") for maps in ((32, 16, 16), (64, 8, 8))]
L6 = [Case("L6", t, (2**20,)) for t in (128, 256, 500, 1024)]
S1 = [Case("S1", t, (64, 65536)) for t in (4, 8, 16, 32)]

# For two cores: the three sizes, and layers of L1 and L4 in small batches.
C0 = [Case("C0", t, (n,)) for t, n in ((4, 524_288), (16, 262_144), (60, 131_072))]
C1 = [Case("C1", 60, (4, *maps)) for maps in GESTURE[1:]] + _both("C1", 4, 8, 64, 32, 32)

NEURON = {"cpu": [*C0, *C1], "cuda": [*L1, *L2, *L3, *L4, *L5, *L6, *S1]}
# `make gpu`: what must be seen of a change, in minutes.
QUICK_GROUPS = ("L1", "L3", "S1")
SMOKE = [
    Case("smoke", 4, (3, 5, 4, 4), "nhwc"),
    Case("smoke", 70, (33,)),
    Case("smoke", 3, (2, 4, 3, 3), "t_last"),
]

# Seams: B1 is BN + LIF, G1 TCSA + BN + LIF of MA-SNN, G2 CSA + BN + shortcut + LIF of MS-ResNet, M1 MA-SNN.
GATED = [(64, 32, 32, 1), (128, 32, 32, 2), (128, 16, 16, 2)]  # z of the gesture layers, and the pool


def _seams(group: str, steps: int, n: int, layers: Sequence[tuple[int, ...]], order: str = "nchw"):
    return [SeamCase(group, steps, (n, *maps[:3]), order, *maps[3:]) for maps in layers]


SEAMS = {
    "cpu": [
        *_seams("B1", 60, 2, GESTURE),
        *_seams("G1", 60, 2, GATED),
        *_seams("G2", 1, 4, IMAGENET[1:2]),
        *_seams("G2", 4, 2, IMAGENET[1:4:2]),
        SeamCase("M1", 60, (2, 2, 32, 32)),
    ],
    "cuda": [
        *(case for n in (16, 128) for case in _seams("B1", 60, n, GESTURE)),
        *_seams("B1", 60, 16, GESTURE, "nhwc"),
        *(case for n in (16, 128) for case in _seams("G1", 60, n, GATED)),
        *_seams("G1", 60, 16, GATED, "nhwc"),
        *(case for t in (1, 4) for o in ("nchw", "nhwc") for case in _seams("G2", t, 32, IMAGENET[1:], o)),
        SeamCase("M1", 60, (16, 2, 32, 32)),
    ],
}
QUICK_SEAMS = ("B1 60x128x64x32x32", "G1 TCSA 60x128x128x32x32", "G1 TCSA 60x128x64x32x32")
SEAM_SMOKE = [
    SeamCase("B1", 4, (2, 8, 6, 6), "nhwc"),
    SeamCase("G1", 10, (2, 16, 8, 8), "nchw", 2),
    SeamCase("G2", 1, (2, 8, 6, 6)),
    SeamCase("M1", 10, (2, 2, 8, 8)),
]

# PFA: the layers of the event networks by rank, that of Fashion-MNIST, one out of cache, two without a bar.
EVENT = [(128, 24, 24), (256, 12, 12), (512, 6, 6)]
RANKS = (4, 8, 16, 32, 64)


def _pfas(n: int, layers: Sequence[tuple[int, ...]], ranks: Sequence[int], order: str = "nchw"):
    return [PfaCase("P1", 12, (n, *maps), order, r) for maps in layers for r in ranks]


PFA = {
    "cpu": [
        *_pfas(4, EVENT, RANKS),
        *_pfas(4, [(2, 48, 48), (512, 3, 3)], (8,)),
        *_pfas(16, EVENT[:1], (8,)),
        PfaCase("P2", 4, (32, 128, 14, 14), rank=4),
    ],
    "cuda": [
        *_pfas(32, [(2, 48, 48), *EVENT, (512, 3, 3)], RANKS),
        *_pfas(32, EVENT, (8,), "nhwc"),
        PfaCase("P1", 20, (16, 2, 128, 128), rank=32),
        PfaCase("P2", 4, (256, 128, 14, 14), rank=4),
    ],
}
QUICK_PFA = ("R8 12x32x128x24x24", "R64 12x32x128x24x24", "R8 12x32x512x6x6", "P2")
PFA_SMOKE = [
    PfaCase("P1", 3, (2, 8, 6, 6), "nhwc", 3),
    PfaCase("P1", 3, (2, 2, 9, 9), rank=9),
    PfaCase("P2", 2, (3, 5, 4, 4)),
]

# Whole residual networks.
N1 = {
    "cpu": [ModelCase("N1", t, (32, 3, 64, 64)) for t in (4, 1)],
    "cuda": [ModelCase("N1", t, (32, 3, 224, 224), "nhwc", depth) for depth in (18, 34, 104) for t in (4, 1)],
}
# Networks of the papers as SpikingJelly ships them.
SHIPPED = {
    "cpu": [ShippedCase("S1", 60, (2, 2, 32, 32)), *(ShippedCase("S1", t, (16, 3, 64, 64)) for t in (4, 1))],
    "cuda": [
        ShippedCase("S1", 60, (32, 2, 32, 32)),
        *(ShippedCase("S1", t, (64, 3, 224, 224)) for t in (4, 1)),
    ],
}
SHIPPED_SMOKE = [ShippedCase("S1", 10, (2, 2, 32, 32), small=True), ShippedCase("S1", 2, (2, 3, 32, 32))]
QUICK_MODELS = ("MS-ResNet-18 CSA 4x", "MS-ResNet-104 CSA 1x")
MODEL_SMOKE = [ModelCase("N1", t, (4, 3, 32, 32), width=0.125) for t in (4, 1)]

GROWTH_STEPS = (1, 4, 16, 64, 256, 1024)  # at GROWTH_NEURONS[device][0] neurons
GROWTH_NEURONS = {
    "cpu": (2**13, 2**15, 2**17, 2**19),
    "cuda": (2**14, 2**16, 2**18, 2**20, 2**22),
}  # at 16 steps


def select(cases: Sequence[Case], words: list[str]) -> list[Case]:
    """The cases whose name contains one of the words; all of them without a word."""
    chosen = [case for case in cases if not words or any(word.lower() in case.name.lower() for word in words)]
    if not chosen:
        raise SystemExit(
            f"--case {' '.join(words)}: no such case; there are\n  " + "\n  ".join(c.name for c in cases)
        )
    return chosen
