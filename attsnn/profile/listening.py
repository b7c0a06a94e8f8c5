"""Listens to a network while it runs, and changes nothing in it.

The neurons' counts and the gates' scores come from the ops (`ops.tally`). Global hooks on all modules, none
of them attached to the network, tell which layer they belong to.
"""

import math
import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn
from torch.nn.modules import module as every_module

from attsnn.layers import NormedLayer, SpikingLayer
from attsnn.layers.watching import refuse_compiled
from attsnn.neurons import LIF
from attsnn.ops import tally

from .gates import MODULES


class Listener:
    """Knows which layer runs. Subclasses override what they want to hear: `fired`, `scored`, `left`."""

    def __init__(self, model: nn.Module, what: str):
        refuse_compiled(model, what)
        if isinstance(model, nn.DataParallel):
            raise ValueError(f"{what}() does not see the copies of nn.DataParallel: {what} its `module`")
        if isinstance(model, nn.parallel.DistributedDataParallel):
            model = model.module
        self.model, self.thread = model, threading.get_ident()
        self.samples = 0
        self.names: dict[nn.Module, str] = {}
        self.owners: dict[nn.Module, nn.Module] = {}  # the SpikingLayer or NormedLayer around a module
        self.stack: list[nn.Module] = []  # the modules that are running
        self._fresh = False  # whether the network was called and none of its neurons has run since
        self._stepping: SpikingLayer | None = None  # the layer whose current ran last, called step by step
        for name, module in model.named_modules():
            self.names[module] = name
            if isinstance(module, SpikingLayer | NormedLayer):
                for part in module.modules():
                    self.owners.setdefault(part, module)

    # ---- what a subclass hears

    def fired(self, module: nn.Module | None, counts: tally.Counts, out: Tensor) -> None:
        """The neurons of that layer (None: of an unknown one) emitted `out`."""

    def scored(self, name: str, kind: str, scores: Tensor | tuple[Tensor, ...]) -> None:
        """The gates of the layer `name` gave these scores."""

    def left(self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any) -> None:
        """A module of the network returned."""

    # ----

    @contextmanager
    def listening(self) -> Iterator[None]:
        with ExitStack() as stack:
            before = every_module.register_module_forward_pre_hook(self._enter)
            stack.callback(before.remove)
            after = every_module.register_module_forward_hook(self._leave, with_kwargs=True)
            stack.callback(after.remove)
            # The handle leaves this entry behind, which torch.compile takes for a hook.
            stack.callback(every_module._global_forward_hooks_with_kwargs.pop, after.id, None)
            stack.enter_context(tally.telling(self._emitted))
            if type(self).scored is not Listener.scored:
                stack.enter_context(tally.telling_scores(self._scored))
            yield

    def name_of(self, module: nn.Module) -> str:
        """The name of the SpikingLayer or NormedLayer around a module, otherwise its own name."""
        owner = self.owners.get(module, module)
        return self.names[owner] or type(owner).__name__

    @property
    def here(self) -> bool:
        """Whether this is the thread that listens."""
        return threading.get_ident() == self.thread

    def _enter(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        if not self.here or module not in self.names:
            return
        if module is self.model:
            self._fresh = True
            self.stack.clear()  # a call may have ended in an exception
        owner = self.owners.get(module)
        if isinstance(owner, SpikingLayer) and owner is not module and owner not in self.stack:
            self._stepping = owner
        self.stack.append(module)

    def _leave(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        if not self.here or module not in self.stack:
            return
        while self.stack.pop() is not module:  # inner calls that ended in an exception
            pass
        self.left(module, args, kwargs, output)

    def _emitted(self, counts: tally.Counts, out: Tensor) -> None:
        if not self.here:
            return
        module, self._stepping = self._neuron(), None
        if self._fresh and module is not None:
            self._fresh = False
            self.samples += out.shape[1]
        self.fired(module, counts, out)

    def _neuron(self) -> nn.Module | None:
        """The layer whose neurons just fired.

        That is the layer that is running; for a single step, the layer whose convolution or linear layer ran
        last; or the module that called the op itself.
        """
        for module in reversed(self.stack):
            if isinstance(module, SpikingLayer):
                return module
            if isinstance(module, LIF):
                owner = self.owners.get(module)
                return owner if isinstance(owner, SpikingLayer) else module
        return self._stepping or (self.stack[-1] if self.stack else None)

    def _scored(self, kind: str, scores: Tensor | tuple[Tensor, ...]) -> None:
        gated = [m for m in self.stack if isinstance(m, (SpikingLayer, *MODULES))]
        if self.here and gated:
            self.scored(self.name_of(gated[0]), kind, scores)


class _Rates(Listener):
    def __init__(self, model: nn.Module):
        super().__init__(model, "rates")
        self.sums: dict[str, tuple[Tensor | int, int]] = {}

    def fired(self, module: nn.Module | None, counts: tally.Counts, out: Tensor) -> None:
        if module is not None:
            name = self.name_of(module)
            spikes, updates = self.sums.get(name, (0, 0))
            self.sums[name] = (spikes + counts.by_step.sum(), updates + out.numel())


@contextmanager
def rates(model: nn.Module) -> Iterator[dict[str, float]]:
    """Measures the firing rate of each layer of neurons: `with rates(model) as found: model(x)`.

    `found` maps layers to rates, in the order in which they ran first; it is filled when the block ends. The
    rates come from the kernels' counts; `profile` says more.
    """
    found: dict[str, float] = {}
    listener = _Rates(model)
    with listener.listening():
        yield found
    for name, (spikes, updates) in listener.sums.items():
        found[name] = float(spikes) / updates if updates else math.nan


class _Scores(Listener):
    def __init__(self, model: nn.Module):
        super().__init__(model, "scores")
        self.found: dict[str, dict[str, Any]] = {}

    def scored(self, name: str, kind: str, scores: Tensor | tuple[Tensor, ...]) -> None:
        self.found.setdefault(name, {})[kind] = scores


@contextmanager
def scores(model: nn.Module) -> Iterator[dict[str, dict[str, Any]]]:
    """Records what the gates give: `with scores(model) as found: model(x)`.

    `found` maps a layer's name and the gate's kind to the scores of the last call, without gradients: "TA"
    `[T, N]`, "CA" `[N, C]`, "SA" `[N, H, W]`, and "PFA" the factors of its map (`PFAScores`).
    """
    listener = _Scores(model)
    with listener.listening():
        yield listener.found
