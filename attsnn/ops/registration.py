"""What the dispatcher learns of an op beside its kernels: shape rule (fake), gradient, and sentences for what
it does not do.
"""

import functools
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NoReturn, ParamSpec, TypeVar

import torch
from torch._C import _functorch
from torch.autograd import forward_ad

TWICE = "{}: no double backward (create_graph=True); backend='reference' has one"
VMAPPED = "{}: no vmap; N is the batch dimension, or use backend='reference'"
FORWARD = "{}: the fused kernels have no forward-mode derivative; backend='reference' has one"
BATCHED = "{}: no is_grads_batched; ask for one gradient after the other, or use backend='reference'"
TRANSFORMED = "{}: the fused kernels take no part in torch.func; backend='reference' does"
TRACED = "{}: torch.jit.trace and script (and so add_graph) are not served; use torch.export or compile"
NO_MEMORY = "CUDA out of memory."  # how csrc/tensor/neuron_op.h begins to say it

P = ParamSpec("P")
R = TypeVar("R")


def register_shape(op: str, shape: Callable[..., object], name: str) -> None:
    """Registers the shape rule of the op `attsnn::op`, and that `name`, as users know it, has no vmap."""
    torch.library.register_fake(f"attsnn::{op}", shape)
    torch.library.register_vmap(f"attsnn::{op}", _refuse(VMAPPED.format(name)))


def register_gradient(
    forward: str,
    backward: str,
    *,
    shapes: tuple[Callable[..., object], Callable[..., object]],
    setup_context: Callable[..., None],
    gradient: Callable[..., Any],
    name: str,
    more: Mapping[str, Callable[..., object]] = MappingProxyType({}),
) -> None:
    """Registers an op and the op that is its gradient, which has none itself.

    Args:
        shapes: the rules of both.
        setup_context, gradient: as `torch.library.register_autograd` takes them; `gradient` calls `backward`.
        name: what users call the op.
        more: other ops that have the same gradient, with their rules.
    """
    for op, shape in {**dict(zip((forward, backward), shapes, strict=True)), **more}.items():
        register_shape(op, shape, name)
    gradient = telling_of_memory(gradient)
    for op in (forward, *more):
        torch.library.register_autograd(f"attsnn::{op}", gradient, setup_context=setup_context)
    torch.library.register_autograd(f"attsnn::{backward}", _refuse(TWICE.format(name)))


def _refuse(sentence: str) -> Callable[..., NoReturn]:
    def raise_it(*_: object, **__: object) -> NoReturn:
        raise NotImplementedError(sentence)

    return raise_it


def telling_of_memory(function: Callable[P, R]) -> Callable[P, R]:
    """The function, whose error where a GPU's memory does not suffice is PyTorch's: the stable ABI hands on
    that an allocation failed, and not of which class the error was.
    """

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return function(*args, **kwargs)
        except RuntimeError as error:
            if str(error).startswith(NO_MEMORY) and not isinstance(error, torch.OutOfMemoryError):
                raise torch.OutOfMemoryError(str(error)) from None
            raise

    return call


def beyond(*tensors: object) -> str | None:
    """The sentence, with a place for the op's name, of what the fused ops have no rule for and would lose or
    fail at: a dual tensor of forward-mode AD, a gradient or a vmap of torch.func. None, at the cost of two
    comparisons, where there is none.
    """
    if forward_ad._current_level >= 0:
        given = (t for t in tensors if isinstance(t, torch.Tensor))
        if any(forward_ad.unpack_dual(t).tangent is not None for t in given):  # type: ignore[no-untyped-call]
            return FORWARD
    if torch.compiler.is_compiling() or (top := _functorch.peek_interpreter_stack()) is None:
        return None
    return VMAPPED if top.key() == _functorch.TransformType.Vmap else TRANSFORMED


def refuse_beyond(name: str, *tensors: object) -> None:
    """Raises that sentence."""
    sentence = beyond(*tensors)
    if sentence is not None:
        raise NotImplementedError(sentence.format(name))


def refuse_tracing(name: str) -> None:
    """Raises where torch.jit.trace records: it would keep what of a call was decided, by sizes and by whether
    there are gradients, and check itself against another decision.
    """
    if torch._C._get_tracing_state() is not None:
        raise NotImplementedError(TRACED.format(name))


def refuse_recorded(name: str, keep: str) -> None:
    """Raises where a graph that was recorded without gradients is asked for some."""
    if keep == "nothing":
        raise RuntimeError(
            f"{name}: this was exported under torch.no_grad() and has no gradient; export it in grad mode"
        )


def refuse_batched(name: str, *grads: torch.Tensor | None) -> None:
    """Raises where several gradients are asked for at once (`torch.autograd.grad(is_grads_batched=True)`)."""
    if any(grad is not None and _functorch.is_legacy_batchedtensor(grad) for grad in grads):
        raise NotImplementedError(BATCHED.format(name))


class NotScripted:
    """A module that torch.jit.script refuses in words."""

    def __prepare_scriptable__(self) -> None:
        raise NotImplementedError(TRACED.format(type(self).__name__))
