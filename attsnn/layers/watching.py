"""`watch`: what the layers of a network emit."""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from attsnn.neurons import LIF

from .spiking import SpikingLayer


def refuse_compiled(model: nn.Module, what: str) -> None:
    """Raises for a model that is compiled, wholly or in part: no hook sees its layers."""
    for name, module in model.named_modules():
        if "_orig_mod" in module._modules or module._compiled_call_impl is not None:
            raise ValueError(
                f"{what}() sees nothing of what torch.compile runs ({name or 'the model'} is compiled): "
                f"{what} and call the original, `compiled._orig_mod`, or the model before `model.compile()`"
            )


@contextmanager
def watch(model: nn.Module) -> Iterator[dict[str, Tensor | list[Tensor]]]:
    """A context that collects what each layer of neurons emits: `with watch(model) as seen: model(x)`.

    `seen` maps the name of each `SpikingLayer`, and of each LIF outside of one, to what it emitted:
    [T, N, ...], detached. The names are in the order in which the layers first ran. A layer that ran more
    than once has a list, one tensor a run. The firing rate of a layer is `(seen[name] > 0).float().mean()`.
    If nothing ran, a RuntimeWarning says so.

    Raises:
        ValueError: for a compiled model, whose layers no hook sees. Watch and call the original.
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
