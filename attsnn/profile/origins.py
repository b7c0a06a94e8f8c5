"""Where values come from: for each storage the layers that made it, and whether by spikes or by currents."""

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

Origin = Mapping[str, bool]  # {layer: whether its spikes went in, not its current}


class Origins:
    """Storages are known while they exist; no tensor is kept alive."""

    def __init__(self) -> None:
        self._known: dict[int, tuple[StorageWeakRef, Origin]] = {}

    def of(self, x: Tensor) -> Origin:
        """The origin of x; empty if it is unknown."""
        if not self._known:
            return {}
        try:
            found = self._known.get(x.untyped_storage()._cdata)
        except NotImplementedError:  # no storage: sparse, or of a compiler
            return {}
        if found is None or found[0].expired():  # type: ignore[no-untyped-call]
            return {}
        return found[1]

    def tag(self, x: Tensor, origin: Origin) -> None:
        """Records that x comes from there."""
        try:
            storage = x.untyped_storage()
        except NotImplementedError:
            return
        reference = StorageWeakRef(storage)  # type: ignore[no-untyped-call]
        self._known[storage._cdata] = (reference, origin)

    def passed(self, args: tuple[Any, ...], out: Any) -> None:
        """What a function returns comes from where its arguments do, unless its origin is known already."""
        origin: dict[str, bool] = {}
        for part in tensors(args):
            for name, spikes in self.of(part).items():
                origin[name] = origin.get(name, True) and spikes
        for part in tensors(out) if origin else ():
            if not self.of(part):
                self.tag(part, origin)


def tensors(values: Any) -> Iterator[Tensor]:
    """The tensors in a value, in lists and tuples of any depth."""
    if isinstance(values, Tensor):
        yield values
    elif isinstance(values, tuple | list):
        for value in values:
            yield from tensors(value)
