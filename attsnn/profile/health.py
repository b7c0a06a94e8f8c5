"""What new users of spiking networks meet first: layers that are silent or saturated, without any error."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attsnn.layers import SpikingLayer
from attsnn.layers.settling import AsItWas
from attsnn.neurons import LIF

from .listening import Listener, rates

ALWAYS = 0.98  # from this rate on, a layer fires "always"
APART = 3.0  # factor between rates in training and in evaluation
SOME = 0.001  # rate below which a factor says nothing
STUCK = 0.01  # a gate is stuck if all its scores are this close to 0 or to 1
NAMED = 4  # the most layers that a sentence names
SETTLE = (
    "the norms' running statistics are not those of the batches yet; train on, or take them from some "
    "batches (--settle 20, attsnn.layers.settle)"
)

Rates = Mapping[str, float]


class Finding(NamedTuple):
    """Something that is wrong with a network.

    Args:
        kind: "silent", "always", "apart", "gradient", "gate" or "not finite".
        layers: the names of the layers concerned.
        sentence: the finding in words.
    """

    kind: str
    layers: tuple[str, ...]
    sentence: str


def findings(training: Rates, evaluation: Rates) -> list[Finding]:
    """What the firing rates say about a network.

    Args:
        training: {layer: firing rate} in training.
        evaluation: the same in evaluation.

    Returns a list of findings of the kinds "silent", "always" and "apart", each with one sentence.
    """
    found, every = [], len(evaluation)
    silent = [name for name, rate in evaluation.items() if rate == 0]
    if silent:
        also = [name for name in silent if not training.get(name, 0)]
        if not also:
            said = f"{_of(silent, every)} fire in training and not in evaluation: {SETTLE}."
        else:
            those = "all" if len(also) == len(silent) else f"{len(also)} of them"
            said = (
                f"{_of(silent, every)} are silent in evaluation, and {those} in training too: their currents "
                "do not reach the threshold; lower it, or raise weights of layers or norms."
            )
        found.append(Finding("silent", tuple(silent), said))
    always = [name for name, rate in evaluation.items() if rate >= ALWAYS]
    if always:
        said = f"{_of(always, every)} fire at every step, and say nothing by that: raise the threshold."
        found.append(Finding("always", tuple(always), said))
    factors = {name: _factor(training.get(name), rate) for name, rate in evaluation.items()}
    if silent and not also:
        return found  # differing rates would have the same cause
    apart = sorted((name for name, f in factors.items() if f >= APART), key=factors.__getitem__, reverse=True)
    if apart:
        name = apart[0]
        said = (
            f"{_of(apart, every)} fire otherwise in evaluation than in training, {name} at "
            f"{evaluation[name]:.2%} and {training[name]:.2%}: augmentation or dropout changes what they "
            f"see, or {SETTLE}."
        )
        found.append(Finding("apart", tuple(apart), said))
    return found


def sentences(training: Rates, evaluation: Rates) -> dict[str, str]:
    """The sentences of `findings`, by their kind."""
    return {finding.kind: finding.sentence for finding in findings(training, evaluation)}


def _factor(one: float | None, other: float) -> float:
    """The factor between two rates; 1 if either is missing or 0, or if both are small."""
    if not one or not other or max(one, other) < SOME:
        return 1.0
    return max(one, other) / min(one, other)


def _of(names: Sequence[str], every: int, what: str = "layers") -> str:
    """How many of all, with the names of the first."""
    return f"{len(names)} of {every} {what} ({_first(names)})"


def _first(names: Sequence[str]) -> str:
    return ", ".join(names[:NAMED]) + (", ..." if len(names) > NAMED else "")


# ---- of any model
# ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Health:
    """What `health` found; print it for a report.

    Args:
        findings: what is wrong.
        training: {layer: firing rate} in training.
        evaluation: the same in evaluation.
        batches: the number of batches that were looked at.
    """

    findings: list[Finding]
    training: dict[str, float]
    evaluation: dict[str, float]
    batches: int

    @property
    def well(self) -> bool:
        """Whether nothing was found."""
        return not self.findings

    def __str__(self) -> str:
        head = f"{len(self.evaluation)} layers of neurons, {self.batches} batches: "
        if self.well:
            return head + "nothing found."
        return "\n".join(
            [head + f"{len(self.findings)} findings.", *(f"* {f.sentence}" for f in self.findings)]
        )


def health(
    model: nn.Module,
    data: Tensor | Iterable[Any],
    loss: Callable[[nn.Module, Any], Any] | None = None,
) -> Health:
    """Looks for what keeps a spiking network from learning, over some batches, in training
    and in evaluation mode.

    It finds layers without a spike, layers that always fire, rates that differ between training and
    evaluation, gates stuck at 0 or 1, layers whose current gets a gradient of exactly 0, and weights and
    buffers that are not finite. Afterwards weights, gradients, running statistics, modes and the random
    generators are as before.

    Args:
        model: the network.
        data: a batch as the model takes it, or several. A batch may be (inputs, labels).
        loss: (model, batch) -> the loss, or a tuple that begins with it. Default: cross-entropy if there are
            labels, otherwise the mean square of the output.

    Raises ValueError if there is no batch, and TypeError if no loss is known for what the model returns.
    """
    batches = [data] if isinstance(data, Tensor) else list(data)
    if not batches:
        raise ValueError("health: no batch was given")
    was, grads = AsItWas(model), [(p, p.grad) for p in model.parameters()]
    model.zero_grad(set_to_none=True)
    found, listener = _not_finite(model), _Gradients(model)
    devices = [p.device for p in model.parameters() if p.device.type == "cuda"][:1]
    try:
        with torch.random.fork_rng(devices=devices):
            model.train()
            with torch.enable_grad(), rates(model) as training, listener.listening():
                for batch in batches:
                    value = (loss or _loss)(model, batch)
                    value = value[0] if isinstance(value, tuple | list) else value
                    if value.requires_grad:
                        value.backward()
            model.eval()
            with torch.no_grad(), rates(model) as evaluation:
                for batch in batches:
                    (loss or _loss)(model, batch)
    finally:
        was.restore()
        for p, grad in grads:
            p.grad = grad
    found += findings(training, evaluation)
    return Health(found + listener.findings(), dict(training), dict(evaluation), len(batches))


def _loss(model: nn.Module, batch: Any) -> Tensor:
    x, labels = batch if isinstance(batch, tuple | list) else (batch, None)
    out = model(x)
    if not isinstance(out, Tensor):
        raise TypeError(
            f"health: the model returns {type(out).__name__}, and health does not know its loss: give "
            "loss=(model, batch) -> the loss"
        )
    return out.double().square().mean() if labels is None else F.cross_entropy(out, labels)


def _not_finite(model: nn.Module) -> list[Finding]:
    """Weights and buffers that are not finite. A neuron does not fire for NaN, which hides it."""
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    names = [name for name, x in tensors.items() if x.is_floating_point() and not x.isfinite().all()]
    if not names:
        return []
    said = f"{_first(names)}: not finite. A neuron fires nothing for NaN, so that nothing else shows it."
    return [Finding("not finite", tuple(names), said)]


class _Gradients(Listener):
    """Records whether any gradient reached a layer's current, and the least and greatest
    values of its gates.
    """

    def __init__(self, model: nn.Module):
        super().__init__(model, "health")
        self.reached: dict[str, bool] = {}
        self.gates: dict[str, list[float]] = {}

    def left(self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any) -> None:
        owner = self.owners.get(module)
        if isinstance(owner, SpikingLayer) and module is owner.current:
            self._hang(self.name_of(module), output)
        elif isinstance(module, LIF) and not isinstance(owner, SpikingLayer) and args:
            self._hang(self.name_of(module), args[0])

    def _hang(self, name: str, current: Any) -> None:
        if not isinstance(current, Tensor) or not current.requires_grad:
            return
        self.reached.setdefault(name, False)

        def see(grad: Tensor) -> None:
            self.reached[name] = self.reached[name] or bool((grad != 0).any())

        current.register_hook(see)  # type: ignore[no-untyped-call]

    def scored(self, name: str, kind: str, scores: Tensor | tuple[Tensor, ...]) -> None:
        parts = (
            {kind: scores} if isinstance(scores, Tensor) else {f"{kind} {k}": v for k, v in _named(scores)}
        )
        for part, values in parts.items():
            if values.numel():
                low, high = (float(v) for v in values.aminmax())
                known = self.gates.setdefault(f"{name}: {part}", [low, high])
                known[:] = [min(known[0], low), max(known[1], high)]

    def findings(self) -> list[Finding]:
        found = []
        still = [name for name, reached in self.reached.items() if not reached]
        if still:
            said = (
                f"The currents of {_of(still, len(self.reached))} get gradients of exactly 0. Either no "
                "membrane comes into the surrogate's window, in these layers or after them: take a wider "
                "one, or settle the norms. Or the layer before is silent, so a ReLU after gates passes "
                "nothing: lower its threshold."
            )
            found.append(Finding("gradient", tuple(still), said))
        stuck = {
            "0, and lose what they weigh": [name for name, (_, high) in self.gates.items() if high <= STUCK],
            "1, and weigh nothing": [name for name, (low, _) in self.gates.items() if low >= 1 - STUCK],
        }
        for where, names in stuck.items():
            if names:
                said = f"{_of(names, len(self.gates), 'gates')} are stuck at {where}."
                found.append(Finding("gate", tuple(names), said))
        return found


def _named(scores: tuple[Tensor, ...]) -> Iterable[tuple[str, Tensor]]:
    """The factors of a PFA by name."""
    return zip(getattr(scores, "_fields", range(len(scores))), scores, strict=True)
