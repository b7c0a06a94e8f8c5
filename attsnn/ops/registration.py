"""What an op registers with the dispatcher besides its kernels.

That is its shape rule (fake), its gradient, and error messages for what it does not support.
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
NO_MEMORY = "CUDA out of memory."  # how the message of csrc/tensor/neuron_op.h begins

P = ParamSpec("P")
R = TypeVar("R")


def register_shape(op: str, shape: Callable[..., object], name: str) -> None:
    """Registers the shape rule of `attsnn::op`, and an error for vmap that calls the op `name`."""
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
    """Registers an op and the op that computes its gradient; the latter has no gradient itself.

    Args:
        forward, backward: the names of the two ops.
        shapes: the shape rules of both.
        setup_context, gradient: as `torch.library.register_autograd` takes them; `gradient` calls
            `backward`.
        name: the public name, for error messages.
        more: other ops that have the same gradient, with their shape rules.
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
    """Wraps a function so that it raises PyTorch's own error if a GPU runs out of memory.

    The stable ABI only reports that an allocation failed, not the class of the error.
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
    """Returns the error message for tensors that the fused ops have no rule for, or None.

    Such tensors are dual tensors of forward-mode AD, and those inside a gradient or vmap of torch.func: the
    ops would lose the tangent, or fail. The message has a placeholder for the op's name. In the usual case
    the check costs two comparisons.
    """
    if forward_ad._current_level >= 0:
        given = (t for t in tensors if isinstance(t, torch.Tensor))
        if any(forward_ad.unpack_dual(t).tangent is not None for t in given):  # type: ignore[no-untyped-call]
            return FORWARD
    if torch.compiler.is_compiling() or (top := _functorch.peek_interpreter_stack()) is None:
        return None
    return VMAPPED if top.key() == _functorch.TransformType.Vmap else TRANSFORMED


def refuse_beyond(name: str, *tensors: object) -> None:
    """Raises the message of `beyond`, if there is one."""
    sentence = beyond(*tensors)
    if sentence is not None:
        raise NotImplementedError(sentence.format(name))


def refuse_tracing(name: str) -> None:
    """Raises while torch.jit.trace records.

    A trace would freeze what a call decides from sizes and from whether there are gradients, and would check
    itself against a call that decides otherwise.
    """
    if torch._C._get_tracing_state() is not None:
        raise NotImplementedError(TRACED.format(name))


def refuse_recorded(name: str, keep: str) -> None:
    """Raises if a graph that was recorded without gradients is asked for some."""
    if keep == "nothing":
        raise RuntimeError(
            f"{name}: this was exported under torch.no_grad() and has no gradient; export it in grad mode"
        )


def refuse_batched(name: str, *grads: torch.Tensor | None) -> None:
    """Raises if several gradients are asked for at once (`torch.autograd.grad(is_grads_batched=True)`)."""
    if any(grad is not None and _functorch.is_legacy_batchedtensor(grad) for grad in grads):
        raise NotImplementedError(BATCHED.format(name))


class NotScripted:
    """A mixin for modules: torch.jit.script raises an error that says what to use instead."""

    def __prepare_scriptable__(self) -> None:
        raise NotImplementedError(TRACED.format(type(self).__name__))
