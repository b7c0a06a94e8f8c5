"""`watch`: what the layers of a network emit."""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from attsnn.neurons import LIF

from .spiking import SpikingLayer


def refuse_compiled(model: nn.Module, what: str) -> None:
    """A sentence for a model, or a part of one, whose layers no hook sees."""
    for name, module in model.named_modules():
        if "_orig_mod" in module._modules or module._compiled_call_impl is not None:
            raise ValueError(
                f"{what}() sees nothing of what torch.compile runs ({name or 'the model'} is compiled): "
                f"{what} and call the original, `compiled._orig_mod`, or the model before `model.compile()`"
            )


@contextmanager
def watch(model: nn.Module) -> Iterator[dict[str, Tensor | list[Tensor]]]:
    """Collects what each `SpikingLayer`, and each LIF outside of one, emits, [T, N, ...], detached, by its
    name, in the order in which they run first; of one that runs more than once a list, run by run.

    `with watch(model) as seen: model(x)`; the firing rate of a layer is `(seen[name] > 0).float().mean()`.

    Raises ValueError for a compiled model, whose layers no hook sees; watch and call the original. Where
    nothing ran, a warning says so.
    """
    refuse_compiled(model, "watch")
    seen: dict[str, Tensor | list[Tensor]] = {}

    def remember(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            emitted: Tensor = (output[0] if isinstance(output, tuple) else output).detach()
            before = seen.get(name)
            if before is None:
                seen[name] = emitted
            else:
                seen[name] = [*(before if isinstance(before, list) else [before]), emitted]

        return hook

    inside = {m.neuron for m in model.modules() if isinstance(m, SpikingLayer)}
    emitting = {
        name: m for name, m in model.named_modules() if isinstance(m, LIF | SpikingLayer) and m not in inside
    }
    handles = [m.register_forward_hook(remember(name)) for name, m in emitting.items()]
    try:
        yield seen
        if emitting and not seen:
            warnings.warn(
                "watch() saw no layer run: call the watched model itself, not a compiled one, inside of it",
                RuntimeWarning,
                stacklevel=3,
            )
    finally:
        for handle in handles:
            handle.remove()
