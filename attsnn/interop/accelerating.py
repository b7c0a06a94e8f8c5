"""`accelerate`: a network of SpikingJelly or snnTorch on our kernels, by one call that can be taken back."""

from dataclasses import dataclass, field
from typing import Any, NamedTuple

from torch import nn

from attsnn._text import table

from .exchange import KINDS, PEERS, Exchanged, exchanged, kind_of, name_of, reason_to_keep
from .verifying import verify


class Line(NamedTuple):
    """A neuron: its name, what it was, what it is, None where it was kept, and why."""

    name: str
    was: str
    now: str | None
    why: str


@dataclass
class Report:
    """What `accelerate` did: `lines`, one a neuron; `verified`, in words; `restore` takes it back."""

    network: nn.Module
    lines: list[Line]
    exchanged: dict[str, nn.Module] = field(default_factory=dict)
    verified: list[str] = field(default_factory=list)
    dry_run: bool = False

    @property
    def covered(self) -> int:
        """Neuron layers that are, or would be, exchanged."""
        return sum(line.now is not None for line in self.lines)

    def restore(self) -> nn.Module:
        """Gives every neuron its class back; returns the network."""
        for module in self.exchanged.values():
            if isinstance(module, Exchanged):
                module.__class__ = type(module)._theirs
        return self.network

    def __str__(self) -> str:
        rows = [(line.name or "the network", line.was, line.now or "kept", line.why) for line in self.lines]
        verb = "would be" if self.dry_run else "are"
        head = f"{self.covered} of {len(self.lines)} neuron layers {verb} exchanged."
        if not self.lines:
            head = "No neuron of SpikingJelly's or snnTorch's was found: nothing changed."
        parts = [table(("layer", "was", "is", "why"), rows)] if rows else []
        return "\n".join([*parts, head, *self.verified])

    def __repr__(self) -> str:
        return f"Report({self.covered} of {len(self.lines)} neuron layers)"


def accelerate(network: nn.Module, example: Any = None, *, dry_run: bool = False) -> Report:
    """Lets the neurons of a network of SpikingJelly (2.0, 0.0.0.0.14, and `clock_driven` of those and of
    0.0.0.0.12) compute with our kernels, in place, to the same results; of snnTorch's, whose steps are the
    user's, the reset is a comparison.

    A neuron stays the object that it is; its class becomes a subclass of its own, which overrides the steps.
    So the state dict, hooks, `isinstance`, `reset_net`, `set_step_mode` and `utils.reset` are as before, and
    a network that walks through time itself goes on doing so. Classes are known by their exact names: a
    subclass, or what has no counterpart, is kept, with the reason.

    Args:
        example: an input: a tensor, or a tuple or dict of arguments. On it copies of the network, before and
            after, are compared in float64 before this returns (of snnTorch, which has float32 alone, in
            that), in the mode that the network is in: each neuron on what it was fed, its spikes, gradients
            and state, then the whole. Hooks do not run on the copies. Not of a dry run.
        dry_run: only say what would be done.

    Returns a `Report`: print it. Raises ValueError without an example, and MismatchError, with everything as
    it was, where the results differ.
    """
    if example is None and not dry_run:
        raise ValueError(
            "accelerate: give an example of the network's input, on which it is verified; or dry_run=True"
        )
    lines, chosen = [], {}
    for name, module in network.named_modules():
        line = _look(name, module)
        if line is not None:
            lines.append(line)
            if line.now is not None:
                chosen[name] = module
    report = Report(network, lines, dry_run=dry_run)
    if dry_run or not chosen:
        return report
    report.verified = verify(network, [*chosen], example, _exchange)
    report.exchanged = chosen
    _exchange(network, [*chosen])
    return report


def _exchange(network: nn.Module, names: list[str]) -> None:
    """Gives those modules our class."""
    modules = dict(network.named_modules())
    for name in names:
        module = modules[name]
        module.__class__ = exchanged(type(module), kind_of(module))


def _look(name: str, module: nn.Module) -> Line | None:
    """What is to be done with a module; None of one that is no neuron of theirs."""
    kind, cls = kind_of(module), type(module)
    if isinstance(module, Exchanged):
        return Line(name, name_of(cls._theirs), None, "it has been exchanged before")
    if kind is not None:
        why = reason_to_keep(module)
        return Line(name, name_of(cls), None if why else f"attsnn {kind.shown}", why or "")
    parents = [parent for parent in cls.__mro__[1:] if (parent.__module__, parent.__qualname__) in KINDS]
    if parents:
        why = f"a subclass of {name_of(parents[0])}, whose code is its own"
        return Line(name, cls.__qualname__, None, why)
    package = cls.__module__.split(".")[0]
    if package in PEERS and _fires(module):
        why = "norse is not served" if package == "norse" else "no neuron of ours computes it"
        return Line(name, name_of(cls), None, why)
    return None


def _fires(module: nn.Module) -> bool:
    """Whether a module of theirs is a neuron."""
    where = type(module).__module__
    return ".neuron" in where or "._neurons" in where or where.startswith("norse.torch.module")
