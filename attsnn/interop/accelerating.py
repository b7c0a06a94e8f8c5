"""`accelerate` runs a network of SpikingJelly or snnTorch on attsnn's kernels, by one call
that can be undone.
"""

from dataclasses import dataclass, field
from typing import Any, NamedTuple, cast

from torch import nn

from attsnn._text import table

from .exchange import (
    KINDS,
    NORMS,
    PEERS,
    Exchanged,
    HandsOn,
    Stateful,
    exchanged,
    kind_of,
    name_of,
    names_of,
    reason_to_keep,
)
from .finding import Link
from .fusing import Chain, reason_against
from .verifying import Check


class Line(NamedTuple):
    """What happened to one neuron layer.

    Args:
        name: the layer's name.
        was: its former class.
        now: what computes it now; None if it was kept.
        why: why it was kept or not fused; empty otherwise.
        chain: the names of the layers that are one op with it, and of the layer whose output they read.
    """

    name: str
    was: str
    now: str | None
    why: str
    chain: tuple[str, ...] = ()


@dataclass
class Report:
    """What `accelerate` did; print it.

    Args:
        network: the network.
        lines: one `Line` per neuron layer.
        exchanged: the modules whose class was exchanged; `restore` undoes that.
        verified: how the result was verified, in sentences.
        dry_run: whether nothing was changed.
        fuse: whether norms were to be fused.
    """

    network: nn.Module
    lines: list[Line]
    exchanged: list[nn.Module] = field(default_factory=list)
    verified: list[str] = field(default_factory=list)
    dry_run: bool = False
    fuse: bool = False

    @property
    def covered(self) -> int:
        """The number of neuron layers that are, or would be, exchanged."""
        return sum(line.now is not None for line in self.lines)

    @property
    def chains(self) -> list[tuple[str, ...]]:
        """The names of convolution or linear layer, norm and neuron that are, or would be, fused."""
        return [line.chain for line in self.lines if line.chain]

    def restore(self) -> nn.Module:
        """Gives every neuron and norm its former class back; returns the network."""
        for module in self.exchanged:
            if isinstance(module, Exchanged):
                module.give_back()
        return self.network

    def __str__(self) -> str:
        if not self.lines:
            return "No neuron of SpikingJelly's or snnTorch's was found: nothing changed."
        rows = [(line.name or "the network", line.was, line.now or "kept", line.why) for line in self.lines]
        verb = "would be" if self.dry_run else "are"
        parts = [table(("layer", "was", "is", "why"), rows)]
        parts += [f"{self.covered} of {len(self.lines)} neuron layers {verb} exchanged."]
        if self.fuse:
            parts += [f"{len(self.chains)} {verb} one op with the norm before it."]
        return "\n".join([*parts, *self.verified])

    def __repr__(self) -> str:
        return f"Report({self.covered} of {len(self.lines)} neuron layers, {len(self.chains)} fused)"


def accelerate(
    network: nn.Module, example: Any = None, *, fuse: bool = False, dry_run: bool = False
) -> Report:
    """Lets the neurons of a SpikingJelly or snnTorch network compute with attsnn's kernels, in place,
    with the same results.

    This covers SpikingJelly 2.0, 0.0.0.0.13 and 14, and `clock_driven` of 0.0.0.0.10 to 14. For snnTorch,
    whose steps belong to the user, only the reset is replaced, by a comparison.

    A neuron stays the same object. Its class becomes a subclass of its own class that overrides only the
    steps. So the state dict, hooks, `isinstance`, `reset_net`, `set_step_mode` and `utils.reset` work as
    before, and a network that walks through time by itself goes on doing so. Classes are recognised by their
    exact names. A subclass, or a neuron without a counterpart here, is kept, and the report says why.

    Args:
        network: the network.
        example: an input of the network: a tensor, or a tuple or dict of arguments. Before this returns,
            copies of the network before and after are compared on it in float64 (for snnTorch, which has only
            float32, in float32), in the mode that the network is in. First each neuron is compared on the
            input that it was fed: its spikes, gradients and state; then the whole network. Hooks do not run
            on the copies.
        fuse: if only a neuron reads the output of a batch norm, the neuron computes the norm as well, in one
            op, and the norm passes its input on. The example shows which norms these are.
        dry_run: only report what would be done; change and verify nothing. An example is needed only to say
            what would be fused.

    Returns a `Report`; print it.

    Raises:
        ValueError: there is no example, and `dry_run` is off; or the network does not run on the example, or
            cannot be copied.
        MismatchError: the results differ. The network is as it was.
    """
    if example is None and not dry_run:
        raise ValueError(
            "accelerate: give an example of the network's input, on which it is verified; or dry_run=True"
        )
    network = getattr(network, "_orig_mod", network)  # torch.compile's wrapper computes by it
    lines = [line for line in (_look(*each) for each in network.named_modules()) if line is not None]
    chosen = [line.name for line in lines if line.now is not None]
    report = Report(network, lines, dry_run=dry_run, fuse=fuse)
    if example is None and fuse:
        report.verified = ["What is fused is seen on an example: give one."]
    if example is None or not chosen:
        return report
    links: dict[str, Link] = {}
    check = Check(network, chosen, example, _exchange)
    if fuse:
        report.lines, links = _linked(network, lines, chosen, check)
    if not dry_run:
        report.verified = check.verify(links)
        report.exchanged = _exchange(network, chosen, links)
    return report


def _exchange(network: nn.Module, neurons: list[str], links: dict[str, Link]) -> list[nn.Module]:
    """Gives these modules, and the norms that they are linked with, our classes; returns them."""
    modules: dict[str, nn.Module] = dict(network.named_modules())
    done: list[nn.Module] = []
    for name in neurons:
        module, kind = modules[name], kind_of(modules[name])
        assert kind is not None  # neurons that were chosen have a kind
        module.__class__ = exchanged(type(module), kind.steps)
        done.append(module)
    for name, link in links.items():
        norm, neuron = cast(Exchanged, modules[link.norm]), cast(Stateful, modules[name])
        norm.__class__ = exchanged(type(norm), HandsOn)
        chain = norm._chain = neuron._chain = Chain((link.norm, name), link.last)
        chain.join(norm)
        chain.join(neuron)
        chain.close(*(modules[each] for each in link.crossed))
        done.append(norm)
    return done


def _linked(
    network: nn.Module, lines: list[Line], chosen: list[str], check: Check
) -> tuple[list[Line], dict[str, Link]]:
    """The lines, with what is fused or why it is not, and the links."""
    modules: dict[str, nn.Module] = dict(network.named_modules())
    norms = [name for name, module in modules.items() if names_of(type(module)) in NORMS]
    kinds = {name: kind_of(modules[name]) for name in chosen}
    neurons = [name for name, kind in kinds.items() if kind is not None and issubclass(kind.steps, Stateful)]
    found = check.find(norms, neurons)
    links, told = {}, []
    for line in lines:
        link = found.get(line.name, "its loop over time is the user's")
        why = link if isinstance(link, str) else reason_against(link, modules, modules[line.name])
        if line.now is None:
            told.append(line)
        elif why is not None:
            told.append(line._replace(why=f"not fused: {why}"))
        else:
            links[line.name] = link = cast(Link, link)
            chain = (*([link.layer] if link.layer else []), link.norm, line.name)
            told.append(line._replace(now=f"{line.now}, with {link.norm}", chain=chain))
    return told, links


def _look(name: str, module: nn.Module) -> Line | None:
    """What is to be done with a module; None if it is not a neuron of these packages."""
    kind, cls = kind_of(module), type(module)
    if isinstance(module, Exchanged):
        return Line(name, name_of(module._theirs), None, "it has been exchanged before")
    if kind is not None:
        why = reason_to_keep(module, kind)
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
    """Whether a module of these packages is a neuron, not a container of some."""
    where = type(module).__module__
    inside = ".neuron" in where or "._neurons" in where or where.startswith("norse.torch.module")
    return inside and not isinstance(module, nn.Sequential)
