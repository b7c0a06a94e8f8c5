"""Which norm's output a neuron reads.

It is found by watching a run, so the network's own code decides it, be it containers, functions or loops.
Between the norm and the neuron, values may be moved, but neither changed nor read by anything else.
"""

import gc
from collections.abc import Callable, Iterable, MutableMapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakIdKeyDictionary

from attsnn._functions import Functions, tensors_of
from attsnn.layers.folding import FOLDABLE

VIEWS = {"view", "reshape", "flatten", "unflatten", "squeeze", "unsqueeze", "contiguous"}  # keep the order
MOVES = VIEWS | {"permute", "transpose", "swapaxes", "movedim", "moveaxis"}
QUESTIONS = {  # functions that ask about a tensor, not for its values
    *("__get__", "size", "dim", "ndimension", "numel", "nelement", "__len__", "__hash__"),
    *("stride", "storage_offset", "element_size", "is_contiguous"),
    *("is_floating_point", "is_complex", "get_device"),
}
Move = Callable[[Tensor], Tensor]


class Link(NamedTuple):
    """A norm, and how its output gets to the only neuron that reads it; `layer` is the layer whose
    output the norm reads.
    """

    layer: str | None
    norm: str
    moves: tuple[Move, ...]
    last: bool  # whether the channels are last in what the neuron reads
    sequences: bool  # whether the neuron takes sequences
    crossed: tuple[str, ...]  # the modules that this output leaves or enters

    def moved(self, x: Tensor) -> Tensor:
        for move in self.moves:
            x = move(x)
        return x


@dataclass
class _Origin:
    """A layer or norm whose output is followed, and the reason if nothing can be fused with it."""

    name: str
    norm: bool
    layer: str | None = None  # before a norm
    problem: str | None = None
    calls: int = 0
    given: Tensor | None = None  # what a norm was called with, which it would pass on unchanged
    version: int = 0  # of `given` at that time
    crossed: set[str] = field(default_factory=set)

    def refuse(self, problem: str) -> None:
        self.problem = self.problem or problem


@dataclass
class _Trail:
    """The way from an origin's output to a tensor: the moves, and the channel of each value."""

    origin: _Origin
    channels: Tensor | None
    moves: tuple[Move, ...] = ()
    reader: str | None = None


def find(
    network: nn.Module, norms: list[str], neurons: list[str], run: Callable[[], Any]
) -> dict[str, Link | str]:
    """For each of the neurons its `Link`, or in words why it has none. `run` runs the network once."""
    watch = _Watch(network, norms, neurons)
    handles = watch.hang()
    try:
        with watch, _OutOfSight(watch):
            watch.returned(run())
    finally:
        for handle in handles:
            handle.remove()
    return watch.links()


@dataclass
class _Found:
    """What a neuron was called with: how often, and from where."""

    calls: int = 0
    trail: _Trail | None = None
    last: bool | None = None


if TYPE_CHECKING:

    class _DispatchMode:
        """`TorchDispatchMode`, with types."""

        def __enter__(self) -> object: ...
        def __exit__(self, *error: object) -> None: ...

else:
    _DispatchMode = TorchDispatchMode


class _OutOfSight(_DispatchMode):
    """Tells a watch what reads tensors without a function of PyTorch: TorchScript, what runs in a `vmap`."""

    def __init__(self, watch: "_Watch"):
        super().__init__()
        self.watch = watch

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        for x in tensors_of((args, kwargs)):
            self.watch.computed(str(func), x)
        return func(*args, **(kwargs or {}))


class _Watch(Functions):
    def __init__(self, network: nn.Module, norms: list[str], neurons: list[str]):
        super().__init__()
        self.modules = dict(network.named_modules())
        self.origins = {name: _Origin(name, norm=True) for name in norms}
        self.found = {name: _Found() for name in neurons}
        self.trails: MutableMapping[Tensor, _Trail] = WeakIdKeyDictionary()
        self.inside = 0  # depth inside modules that are seen as a whole
        self.seen: set[int] = set()  # the tensors that a function which is running was called with

    # ---- events

    def hang(self) -> list[Any]:
        """Attaches the hooks by which modules are seen."""
        handles = []
        for name, module in self.modules.items():
            if name in self.origins or name in self.found or isinstance(module, FOLDABLE):
                handles += [
                    module.register_forward_pre_hook(self._entered(name), with_kwargs=True),
                    module.register_forward_hook(self._left(name), always_call=True),
                ]
            else:
                handles += [module.register_forward_hook(self._crossed(name), with_kwargs=True)]
        return handles

    def _entered(self, name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if not self.inside:
                self._read(name, args, kwargs)
            self.inside += 1

        return hook

    def _left(self, name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], out: Any) -> None:
            self.inside -= 1
            if not self.inside and isinstance(out, Tensor):
                self._returned_by(name, module, args, out)

        return hook

    def _crossed(self, name: str) -> Callable[..., None]:
        """Of a module around a norm or a neuron."""

        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
            for x in tensors_of((args, kwargs, out)):
                if not self.inside and x in self.trails:
                    self.trails[x].origin.crossed.add(name)

        return hook

    def call(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        self.seen = {id(x) for x in tensors_of((args, kwargs))}
        try:
            return super().call(func, args, kwargs)
        finally:
            self.seen = set()

    # ---- what they tell

    def computed(self, name: str, x: Tensor) -> None:
        """An operator reads x."""
        if not self.inside and id(x) not in self.seen and x in self.trails:
            self.trails[x].origin.refuse(f"{name} reads what {self.trails[x].origin.name} returns")

    def called(
        self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], out: Any
    ) -> None:
        if self.inside:
            return
        name = getattr(func, "__name__", str(func))
        given, outs = tensors_of((args, kwargs)), tensors_of(out)
        trails = [self.trails[x] for x in given if x in self.trails]
        if not trails or (not outs and name in QUESTIONS):
            return
        trail = trails[0]
        if name in MOVES and len(given) == 1 and args and args[0] is given[0] and out is not given[0]:
            self._use(trail, name)
            more = args[1:]  # not the tensor itself, which would be kept alive

            def move(x: Tensor) -> Tensor:
                moved: Tensor = func(x, *more, **kwargs)
                return moved

            channels = None if trail.channels is None else move(trail.channels)
            self.trails[out] = _Trail(trail.origin, channels, (*trail.moves, move))
            return
        if name in MOVES and out is given[0]:
            return
        for each in trails:
            each.origin.refuse(f"{name} reads what {each.origin.name} returns")
        if trail.origin.norm:
            for x in outs:
                self.trails.setdefault(x, replace(trail, channels=None))

    def _read(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """A norm, a neuron or a layer reads its arguments."""
        given = tensors_of((args, kwargs))
        for x in given:
            if x in self.trails:
                self._use(self.trails[x], name)
        first = self.trails.get(given[0]) if len(given) == 1 else None
        origin = self.origins.get(name)
        if origin is not None:
            origin.calls += 1
            origin.given = given[0] if given else None
            origin.version = 0 if origin.given is None else origin.given._version
            origin.layer = first.origin.name if first is not None and not first.origin.norm else None
        found = self.found.get(name)
        if found is None:
            for x in given:
                if x in self.trails:
                    self.trails[x].origin.refuse(f"{name} reads what {self.trails[x].origin.name} returns")
            return
        found.calls += 1
        if first is not None and first.origin.norm:
            source = first.origin
            if source.given is not None and source.given._version != source.version:
                source.refuse(f"something overwrites what {source.name} reads")
            source.given = None
            found.last = _last(first.channels, self.modules[name])
            found.trail = replace(first, channels=None)  # they would take as much memory as the activations

    def _returned_by(self, name: str, module: nn.Module, args: tuple[Any, ...], out: Tensor) -> None:
        origin = self.origins.get(name)
        if origin is not None and len(args) == 1 and out is not args[0]:
            at = 2 if getattr(module, "step_mode", "s") == "m" else 1
            shape = [1] * out.dim()
            shape[at] = -1
            channels = torch.empty_like(out, dtype=torch.int64)  # in the memory layout of the output
            channels.copy_(torch.arange(out.shape[at], device=out.device).view(shape))
            self.trails[out] = _Trail(origin, channels)
        elif isinstance(module, FOLDABLE):
            self.trails[out] = _Trail(_Origin(name, norm=False), None)

    def _use(self, trail: _Trail, reader: str) -> None:
        if trail.reader is not None:
            trail.origin.refuse(f"{trail.reader} and {reader} read what {trail.origin.name} returns")
        trail.reader = reader

    def returned(self, out: Any) -> None:
        """The network returns `out`."""
        for x in tensors_of(out):
            if x in self.trails:
                self.trails[x].origin.refuse(f"the network returns what {self.trails[x].origin.name} does")

    # ---- what it comes to

    def links(self) -> dict[str, Link | str]:
        if not torch.is_grad_enabled():  # else the graph of the neurons' states keeps it, too
            gc.collect()
            for trail in self.trails.values():
                trail.origin.refuse(f"something keeps what {trail.origin.name} returns")
        return {name: self._link(name, found) for name, found in self.found.items()}

    def _link(self, name: str, found: _Found) -> Link | str:
        if not found.calls:
            return "it did not run"
        if found.trail is None:
            return "it reads no batch norm's output"
        origin = found.trail.origin
        for what, calls in ((name, found.calls), (origin.name, origin.calls)):
            if calls > 1:
                return f"{what} runs {calls} times"
        if origin.problem is not None:
            return origin.problem
        if found.last is None:
            return f"it reads what {origin.name} returns in an order of its own"
        crossed = tuple(sorted(origin.crossed))
        sequences = self.modules[name].takes_sequences()
        return Link(origin.layer, origin.name, found.trail.moves, found.last, sequences, crossed)


def _last(channels: Tensor | None, neuron: Any) -> bool | None:
    """Whether the channels of what a neuron reads are its last dimension (True) or its
    third (False); None: neither.
    """
    if channels is None:
        return None
    sequence = channels if neuron.takes_sequences() else channels[None]
    if not 3 <= sequence.dim() <= 5:
        return None
    for last in (False, True):
        lying = sequence if last else sequence.movedim(2, -1)
        if torch.equal(lying, torch.arange(lying.shape[-1], device=lying.device).expand(lying.shape)):
            return last
    return None
