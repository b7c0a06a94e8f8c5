"""Networks of the papers as SpikingJelly 2.0 ships them, which is what a user would take instead, beside ours
of as many parameters. `bench/model.py` measures them, as the cases S1.

They do not compute quite the same: SpikingJelly's MA-SNN resets to 0, not to the threshold, and its ResNets
fire at the threshold, not above it. Their surrogate, `Rect`, is none of those that its GPU kernels know; with
`ATan` these run.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib import import_module

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attsnn import accelerate, models
from bench import harness
from bench.cases import ShippedCase
from bench.harness import Ready
from bench.peers import OURS, Column, GapError

AS_SHIPPED, WITH_ATAN, ACCELERATED = (
    "SpikingJelly, as shipped", "SpikingJelly with ATan", "SpikingJelly, accelerated",
)  # fmt: skip


def _ours(case: ShippedCase) -> nn.Module:
    if case.frames:
        how = {"channels": (8, 8, 8), "hidden": 16} if case.small else {}
        return models.create("ma_snn_dvs_gesture", attention="TCSA", steps=case.steps, **how)
    return models.create("att_ms_resnet18", steps=case.steps, dropout=0.0, attention="CSA")


def _theirs(case: ShippedCase, **how) -> nn.Module:
    masnn = import_module("spikingjelly.activation_based.model.masnn")
    if not case.frames:
        return masnn.att_ms_resnet18(T=case.steps, num_classes=1000, **how)
    if case.small:
        return masnn.MASNN(T=case.steps, channels=(8, 8, 8), fc_hidden=16, **how)
    return masnn.masnn_dvs128_gesture(T=case.steps, **how)


def _with_atan(case: ShippedCase) -> nn.Module:
    surrogate = import_module("spikingjelly.activation_based.surrogate")
    return _theirs(case, surrogate_function=surrogate.ATan())


@dataclass(frozen=True)
class ShippedColumn(Column):
    """`make`: the network of a case; `accelerated`: by `attsnn.accelerate`; `gpu`: for a GPU alone."""

    accelerated: bool = False
    gpu: bool = False


SHIPPED_COLUMNS = {
    column.name: column
    for column in (
        ShippedColumn(OURS, _ours),
        ShippedColumn(AS_SHIPPED, _theirs, "spikingjelly"),
        ShippedColumn(WITH_ATAN, _with_atan, "spikingjelly", gpu=True),
        ShippedColumn(ACCELERATED, _theirs, "spikingjelly", accelerated=True),
    )
}


def prepare(
    column: ShippedColumn, case: ShippedCase, kind: torch.dtype, device: str, cast: Callable
) -> Ready:
    """The network of a column, ready to be timed. Raises GapError where it has not as many parameters as
    ours.
    """
    if column.gpu and device == "cpu":
        raise GapError("the surrogate changes nothing without a GPU")
    torch.manual_seed(0)
    net = column.make(case).to(device, kind)
    counts = [sum(p.numel() for p in each.parameters()) for each in (net, _ours(case))]
    if counts[0] != counts[1]:
        raise GapError(f"refused: {counts[0]:,} parameters, ours has {counts[1]:,}")
    x, reset = case.inputs(kind, device), None
    labels = torch.arange(case.step[0], device=device)
    if column.name != OURS:
        reset = import_module("spikingjelly.activation_based.functional").reset_net
    if column.accelerated:
        accelerate(net, x[:, :2] if case.frames else x[:2], fuse=True)

    def call(training: bool) -> Tensor:
        if reset is not None:
            reset(net)
        with cast():
            return net.train(training)(x)

    def forward() -> None:
        with torch.no_grad():
            call(False)

    def step() -> None:
        net.zero_grad()
        F.cross_entropy(call(True).float(), labels).backward()

    for function in (forward, step):
        function()
    about = {"mismatches": None, "note": column.note}
    kept = [*net.parameters(), x]
    return Ready(lambda: {"forward": forward, "step": step}, partial(call, True), kept, about, counts=False)


def measure_case(
    case: ShippedCase, dtype: str, columns: list[str], device: str, ready: float, **how
) -> list[dict]:
    """The lines of one case."""
    about = harness.surroundings("shipped", device) | {"case": case.name, "dtype": dtype}
    about |= {"neuron": case.neuron}
    kind, cast = harness.narrow(dtype, device)
    lines, found = [], {}
    for name in columns:
        column = SHIPPED_COLUMNS[name]
        try:
            found[name] = column.ready(partial(prepare, column, case, kind, device, cast), ready)
        except GapError as gap:
            lines.append({**about, "column": name, "row": None, "gap": str(gap)})
    how |= {"ahead": False, "copy": case.inputs(kind, device), "floors": dict.fromkeys(("forward", "step"))}
    return lines + harness.figures(about, found, OURS, device, **how)
