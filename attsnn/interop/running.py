"""Copies of a network, and runs of them: in another type, from the same random numbers, without hooks."""

import copy
import random
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

from attsnn._functions import Functions, tensors_of

HOOKS = "_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks"


def copied(network: nn.Module, dtype: torch.dtype | None = None) -> nn.Module:
    """A copy of the network in that type. Its states have no graph, and it has no hooks but PyTorch's own."""
    memo: dict[int, Any] = {}
    for module in network.modules():
        for key, value in module.__dict__.items():
            if key in HOOKS:  # replaced, not copied: they may hold anything
                memo[id(value)] = type(value)((k, hook) for k, hook in value.items() if _of_torch(hook))
            elif key not in ("_parameters", "_modules"):
                tensors = [x for x in tensors_of(value) if not isinstance(x, nn.Parameter)]
                memo |= {id(x): held(x) for x in tensors}
    found = copy.deepcopy(network, memo)
    if dtype is None:
        return found
    for module in found.to(dtype).modules():
        memories = module.__dict__.get("_memories", {})
        memories.update({name: wide(value, dtype) for name, value in memories.items()})
    return found


def _of_torch(hook: Any) -> bool:
    """Whether a hook is one of PyTorch's own, by which pruning and the old weight_norm compute weights."""
    return getattr(hook, "__module__", type(hook).__module__).startswith("torch.")


def wide(value: Any, dtype: torch.dtype | None) -> Any:
    floating = isinstance(value, Tensor) and value.is_floating_point()
    return value.to(dtype) if floating and dtype is not None else value


# ---- runs
# ------------------------------------------------------------------------------------------


class _Widened(Functions):
    """Lets a network that asks for float32 have float64, so that all of it runs in float64."""

    def call(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        func = Tensor.double if func is Tensor.float else func
        args, kwargs = tree_map(lambda x: torch.float64 if x is torch.float32 else x, (args, kwargs))
        return super().call(func, args, kwargs)


def given(example: Any, dtype: torch.dtype | None) -> Any:
    """A copy of the example in that type."""
    return tree_map(lambda x: wide(x.clone().detach(), dtype) if isinstance(x, Tensor) else x, example)


def run(network: nn.Module, inputs: Any, dtype: torch.dtype | None) -> Any:
    """The network's output for these inputs, with the same draws at each call."""
    _seed(network)
    usual = torch.get_default_dtype()
    torch.set_default_dtype(usual if dtype is None else dtype)
    try:
        with _Widened() if dtype is torch.float64 else nullcontext():
            if isinstance(inputs, dict):
                return network(**inputs)
            return network(*inputs) if isinstance(inputs, tuple | list) else network(inputs)
    finally:
        torch.set_default_dtype(usual)


def _devices(network: nn.Module) -> list[torch.device]:
    return [*{p.device for p in network.parameters() if p.device.type == "cuda"}]


def _seed(network: nn.Module) -> None:
    """Seeds the generators that `own_random_numbers` restores; torch.manual_seed would seed all GPUs."""
    random.seed(0)
    np.random.seed(0)
    torch.default_generator.manual_seed(0)
    for device in _devices(network):
        with torch.cuda.device(device):
            torch.cuda.manual_seed(0)


@contextmanager
def own_random_numbers(network: nn.Module) -> Iterator[None]:
    """Leaves the generators of Python, NumPy and PyTorch as they were."""
    before = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=_devices(network)), torch.inference_mode(False):
            yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])


# ---- what neurons emit
# ------------------------------------------------------------------------------------------


def state_of(neuron: nn.Module) -> Any:
    return neuron.v if hasattr(neuron, "v") else neuron.mem


def set_state(neuron: nn.Module, value: Any) -> None:
    setattr(neuron, "v" if hasattr(neuron, "v") else "mem", held(value))


def held(value: Any) -> Any:
    return value.detach().clone() if isinstance(value, Tensor) else value


class Emission(NamedTuple):
    """What a neuron returned at a call, its spikes first, and its state after it."""

    name: str
    outs: list[Tensor]
    state: Any


@contextmanager
def emissions(
    network: nn.Module, names: list[str], instead: list[Emission] | None = None
) -> Iterator[tuple[list[Emission], Counter[str]]]:
    """What these neurons emit, call by call; and how many of each fire otherwise than in `instead`.

    Neurons that fire otherwise go on with the spikes and the state of `instead`. The hook is one of all
    modules: a hook on a neuron itself would separate it from its norm.
    """
    found: list[Emission] = []
    parted: Counter[str] = Counter()
    neurons = {id(module): name for name, module in network.named_modules() if name in names}

    def hook(module: nn.Module, args: tuple[Any, ...], out: Any) -> Any:
        name = neurons.get(id(module))
        if name is None:
            return None
        call = len(found)
        found.append(Emission(name, [held(x) for x in tensors_of(out)], held(state_of(module))))
        if instead is None:
            return None
        other, own = instead[call], found[call]
        differ = own.outs[0] != other.outs[0]
        if not differ.any():
            return None
        lost = differ.any(0) if differ.dim() > own.state.dim() else differ
        parted[name] += int(lost.sum())
        set_state(module, torch.where(lost, other.state, own.state))
        leaves, kind = tree_flatten(out)
        rest = iter(other.outs)
        leaves = [torch.where(lost, next(rest), x) if isinstance(x, Tensor) else x for x in leaves]
        return tree_unflatten(leaves, kind)

    handle = nn.modules.module.register_module_forward_hook(hook)
    try:
        yield found, parted
    finally:
        handle.remove()
