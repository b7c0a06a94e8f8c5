"""What functions of PyTorch a network calls."""

from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves


def tensors_of(values: Any) -> list[Tensor]:
    """The tensors in nested tuples, lists and dicts."""
    return [x for x in tree_leaves(values) if isinstance(x, Tensor)]


class Functions(TorchFunctionMode):
    """While it is entered, each function of PyTorch is called by `call`, and then told to `called`."""

    def call(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return func(*args, **kwargs)

    def called(
        self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], out: Any
    ) -> None:
        """A function has returned `out`."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        out = self.call(func, args, kwargs)
        self.called(func, args, kwargs, out)
        return out
