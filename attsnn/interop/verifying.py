"""Verifies that an exchanged network computes what it did, before anyone relies on it."""

import itertools
from collections import Counter
from collections.abc import Callable
from enum import Enum
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from attsnn._functions import tensors_of

from .comparing import BOUNDS, Call, MismatchError, Unit, close, compare, random_sum
from .finding import Link, find
from .running import Emission, copied, emissions, given, held, own_random_numbers, run, state_of

CALLS = 64  # the most calls of a neuron that are compared
NOT_COMPARED = "Its gradients were not compared"

Exchange = Callable[[nn.Module, list[str], dict[str, Link]], Any]


class Wants(Enum):
    """Which gradients a network is asked for."""

    ALL = "of inputs and parameters"
    PARAMETERS = "of parameters"
    NOTHING = "none"


class _Results(NamedTuple):
    """What a network returned, and the gradients of its inputs and parameters, by name."""

    outs: list[Tensor]
    grads: dict[str, Tensor | None]


class Check:
    """Compares a network with its exchanged self, on copies in a type that tells rounding from real
    differences. The network is not touched.

    Args:
        network: the network.
        names: those of the neurons that are to be exchanged.
        example: an input of the network.
        exchange: exchanges the neurons of a network, and links them with norms.

    Raises:
        ValueError: the network cannot be copied, or does not run on the example.
    """

    def __init__(self, network: nn.Module, names: list[str], example: Any, exchange: Exchange):
        modules = dict(network.named_modules())
        narrow = any(hasattr(modules[name], "spike_grad") for name in names)  # snnTorch's spikes are float32
        self.dtype = torch.float32 if narrow else torch.float64
        self.network, self.names, self.example = network, names, example
        self.exchange, self.bounds = exchange, BOUNDS[self.dtype]
        self.links: dict[str, Link] = {}
        self.lost: Counter[str] = Counter()  # of each layer, the neurons with a value on the threshold
        self.more = False  # whether there are gradients that the original does not have
        with own_random_numbers(network):
            self._must_run()

    def _must_run(self) -> None:
        """Raises ValueError, in words, unless the network runs on a copy."""
        try:
            net = copied(self.network, self.dtype)
        except Exception as error:  # of whatever a module holds
            raise ValueError(
                f"accelerate: the network is verified on copies, and cannot be copied ({error})"
            ) from error
        try:
            with torch.no_grad():
                run(net, given(self.example, self.dtype), self.dtype)
        except Exception as error:
            where = f"in {_words(self.dtype)}, in which it is verified"
            try:
                with torch.no_grad():
                    run(copied(self.network), given(self.example, None), None)
            except Exception:  # it does not depend on the type
                where = "on the example"
            raise ValueError(
                f"accelerate: the network does not run {where} ({type(error).__name__}: {error})"
            ) from error

    def find(self, norms: list[str], neurons: list[str]) -> dict[str, Link | str]:
        """For each of the neurons its link to one of the norms, or in words why it has none.

        A norm is linked if it is in training and in evaluation: `train()` is not a change of the network,
        which may read it otherwise then.
        """
        found: dict[str, Link | str] = {}
        with own_random_numbers(self.network):
            # A network may do otherwise in each: without gradients, and in training.
            for other, grad in itertools.product((False, True), (False, True)):
                own = self.exchanged(self.dtype)
                if other:
                    own.train(not self.network.training)
                mode = "in training" if own.training else "in evaluation"
                try:
                    with torch.set_grad_enabled(grad):
                        links = find(own, norms, neurons, partial(self._run, own))
                except Exception as error:  # it runs in its own mode: see __init__
                    links = dict.fromkeys(neurons, f"the network does not run on the example ({error})")
                for name, link in links.items():
                    found[name] = _agreed(found.get(name), link, f"{mode}, " if other else "")
        return found

    def verify(self, links: dict[str, Link]) -> list[str]:
        """Verifies, and returns sentences that say how. Raises MismatchError."""
        self.links = links
        try:
            with own_random_numbers(self.network):
                return [self.neurons(), self.whole(), self.as_it_is()]
        except MismatchError:
            raise
        except Exception as error:  # the original runs: see __init__
            hint = ""
            if links:
                hint = " A fused norm returns its input, in that layout: use reshape for view, or fuse=False."
            raise MismatchError(
                f"The exchanged network does not run on the example ({type(error).__name__}: {error}).{hint}"
            ) from error

    def exchanged(self, dtype: torch.dtype | None) -> nn.Module:
        found = copied(self.network, dtype)
        self.exchange(found, self.names, self.links)
        return found

    def _run(self, net: nn.Module) -> Any:
        return run(net, given(self.example, self.dtype), self.dtype)

    def neurons(self) -> str:
        """Compares each neuron, with its norm, on the input that it is fed."""
        units = [Unit(name, self.links.get(name)) for name in self.names]
        fed, often = self._fed(units)
        theirs = dict(copied(self.network, self.dtype).named_modules())
        ours, near, values = dict(self.exchanged(self.dtype).named_modules()), 0, 0
        for unit in units:
            for call in fed[unit.name]:
                compared = compare(unit, theirs, ours, call, self.bounds)
                self.lost[unit.name] += compared.lost
                self.more |= compared.more
                near, values = near + compared.near, values + compared.values
        calls = sum(map(len, fed.values()))
        text = (
            f"Verified in {_words(self.dtype)} on the example: {_count(len(fed), 'neuron layer')} in "
            f"{_count(calls, 'call')}, each on what it was fed: all of {_count(values, 'spike')} are "
            f"equal, states and gradients to {self.bounds}"
        )
        if near:
            text += f", but for {_count(near, 'value')} on the threshold, where rounding decides"
        if max(often.values()) > CALLS:
            text += f". Of each layer's calls these are the first {CALLS}"
        idle = [name for name, found in fed.items() if not found]
        return text + (f". Not run on the example: {', '.join(idle)}." if idle else ".")

    def _fed(self, units: list[Unit]) -> tuple[dict[str, list[Call]], Counter[str]]:
        """What each of the units is called with, the first times; and how often it is called."""
        fed: dict[str, list[Call]] = {unit.name: [] for unit in units}
        often: Counter[str] = Counter()
        network = copied(self.network, self.dtype)
        modules = dict(network.named_modules())

        def remember(name: str) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], None]:
            def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
                often[name] += 1
                if len(fed[name]) < CALLS:
                    fed[name].append(Call(*tree_map(held, (args, kwargs, state_of(modules[name])))))

            return hook

        for unit in units:
            modules[unit.entry].register_forward_pre_hook(remember(unit.name), with_kwargs=True)
        with torch.no_grad():
            self._run(network)
        return fed, often

    def whole(self) -> str:
        """Compares outputs and gradients of both networks."""
        for wants in Wants:
            try:
                theirs, emitted, _ = self._results(copied(self.network, self.dtype), wants, None)
                break
            except Exception:  # an original that overwrites what its gradients need has fewer of them
                if wants is Wants.NOTHING:
                    raise
        ours, again, parted = self._results(self.exchanged(self.dtype), wants, emitted)
        calls = Counter(each.name for each in again)
        for name, count in parted.items():
            if count > self.lost[name] and calls[name] <= CALLS:
                many = _count(count - self.lost[name], "neuron")
                raise MismatchError(
                    f"{name}: in the whole network {many} fire otherwise than the original's."
                )
        for k, (a, b) in enumerate(zip(theirs.outs, ours.outs, strict=True)):
            what = f"Output {k} of the network" if k else "The network's output"
            close(what, a, b, self.bounds, scale=1.0)
        outputs = f"The whole network's outputs are equal to {self.bounds}"
        if parted:
            total = _count(sum(parted.values()), "neuron")
            return f"{outputs}, given the original's spikes of {total} on the threshold. {NOT_COMPARED}."
        if self.more:
            return f"{outputs}. {NOT_COMPARED}: the original's neurons have none in this mode, attsnn's have."
        if not theirs.grads:
            return f"{outputs}; it has no gradients in this mode."
        if not all(bool(x.isfinite().all()) for x in theirs.outs):
            return f"{outputs}. {NOT_COMPARED}: not all outputs are finite."
        # The sizes of the gradients, which are those of a sum with factors of about 1.
        sizes = [float(x.abs().max()) for x in theirs.grads.values() if x is not None and x.numel()]
        for what, x in theirs.grads.items():
            close(f"The gradient of {what}", x, ours.grads[what], self.bounds, scale=max([1e-3, *sizes]))
        return f"The whole network's outputs and gradients are equal to {self.bounds}."

    def _results(
        self, net: nn.Module, wants: Wants, instead: list[Emission] | None
    ) -> tuple[_Results, list[Emission], Counter[str]]:
        """Outputs and gradients of a network, what its neurons emit, and how many do otherwise."""
        net.zero_grad(set_to_none=True)
        inputs = given(self.example, self.dtype)
        floating = [x for x in tensors_of(inputs) if x.is_floating_point()]
        for x in floating:
            x.requires_grad_(wants is Wants.ALL)
        with torch.set_grad_enabled(wants is not Wants.NOTHING):
            with emissions(net, self.names, instead) as (emitted, parted):
                # Copies, which a network may overwrite.
                passed = tree_map(lambda x: x.clone() if isinstance(x, Tensor) else x, inputs)
                outs = tensors_of(run(net, passed, self.dtype))
            total = random_sum([x for x in outs if x.is_floating_point()])
            if isinstance(total, Tensor) and total.requires_grad:
                torch.autograd.backward(total)
        named = itertools.chain(((f"input {k}", x) for k, x in enumerate(floating)), net.named_parameters())
        grads = {name: x.grad for name, x in named}
        if not any(x is not None for x in grads.values()):
            grads = {}
        return _Results([x.detach() for x in outs], grads), emitted, parted

    def as_it_is(self) -> str:
        """Says how many spikes differ in the network's own type."""
        spikes = []
        for net in (copied(self.network), self.exchanged(None)):
            with torch.no_grad(), emissions(net, self.names) as (found, _):
                run(net, given(self.example, None), None)
            spikes.append([each.outs[0] for each in found])
        pairs = list(zip(*spikes, strict=True))
        different = sum(int((a != b).sum()) for a, b in pairs)
        kind = next((_words(p.dtype) for p in self.network.parameters()), "its own type")
        return f"In {kind} {different:,} of {_count(sum(a.numel() for a, _ in pairs), 'spike')} differ."


def _agreed(before: Link | str | None, now: Link | str, when: str) -> Link | str:
    """A link if both are one, to the same norm; otherwise the reason."""
    if isinstance(before, str):
        return before
    if isinstance(now, str):
        return when + now
    if before is None:
        return now
    if (before.norm, before.last) != (now.norm, now.last):
        return f"{when}it reads another norm's output"
    return before._replace(crossed=tuple(sorted({*before.crossed, *now.crossed})))


def _words(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}" if number == 1 else f"{number:,} {what}s"
