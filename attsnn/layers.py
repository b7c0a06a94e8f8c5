"""Layers over [T, N, ...]: what lies between two convolutions as one op, read-out, folding for inference."""

import copy
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain, pairwise, repeat
from operator import contains
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval
from torch.nn.utils.parametrize import is_parametrized

from attsnn import ops
from attsnn._extension import Backend
from attsnn.attention import PFA, Attention, PrunedAttention, as_made
from attsnn.neurons import LIF
from attsnn.ops.registration import NotScripted


def over_time(layer: nn.Module, x: Tensor) -> Tensor:
    """A layer that knows no time, applied to x [T, N, ...] with T folded into the batch."""
    y = layer(x.flatten(0, 1))
    return y.view(*x.shape[:2], *y.shape[1:])  # `unflatten` is as much again of Python


def _check_input(current: nn.Module | None, x: Tensor) -> None:
    """Sentences for what a convolution or a linear layer would refuse in words of its own."""
    if not isinstance(x, Tensor):
        raise TypeError(f"x must be a tensor with time first, [T, N, ...], got {type(x).__name__}")
    dims = 5 if isinstance(current, nn.Conv2d) else 3 if isinstance(current, nn.Linear) else 0
    if x.dim() != dims and (dims or x.dim() < 3):
        want = {5: "[T, N, C, H, W]", 3: "[T, N, F]", 0: "[T, N, ...]"}[dims]
        raise ValueError(
            f"x must be {want}, steps before samples, got shape {tuple(x.shape)}: x[None] adds the steps, "
            "x[:, None] the samples"
        )
    weight = current._parameters.get("weight") if dims else None  # None, too, where it is computed
    if weight is None or weight.dtype == x.dtype:
        return
    asked = f"x must be {weight.dtype}, as the layer's weights are, got {x.dtype}"
    if not x.is_floating_point():
        raise TypeError(f"{asked}: x.float()")
    kind = x.device.type
    if not (torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)):
        raise TypeError(f"{asked}: convert either")


NORMS = nn.BatchNorm1d, nn.SyncBatchNorm  # whose forward a seam may stand for, of 2d the same


class SpikingLayer(NotScripted, nn.Module):
    """A convolution or linear layer and what lies between it and the next one, which is one op (`ops.seam`).

    Args:
        current: `nn.Conv2d` or `nn.Linear`, applied to every step; None: the layer starts with the norm.
        neuron: what emits the spikes; its `backend` is that of the whole op.
        norm: `nn.BatchNorm2d`, `nn.BatchNorm1d` or `nn.SyncBatchNorm`, or None. Statistics are taken over
            (T, N, H, W), and over all processes where it is synchronised
            (`synchronise` makes it so, and `nn.SyncBatchNorm.convert_sync_batchnorm`).
        pool: side and stride of an average pool.
        attention: from `attsnn.attention.attention`, or a `PFA`, or None. A `PFA` and a `PrunedAttention`
            are composed, between a seam that is a norm and one that is shortcut and neuron; `run` returns no
            scores of them.
        membrane: whether `forward` returns (emitted, membrane), the sum that the neuron reads, which a
            residual network hands on.
        membrane_dtype: at least the type of shortcut and membrane, in which then the whole op computes; what
            is emitted keeps the convolution's type. None: all have the convolution's type.
        norm_scale: multiplies the norm's weight where it is used, not where it is learned; alpha times the
            threshold is the threshold-dependent batch norm (tdBN; Zheng et al., 2021).

    Norm, gates and neuron are read by the op instead of called, as long as they are as they were made. One
    that has a forward of its own, or hooks (pruning, old weight_norm and spectral_norm among them), is called
    in its place, on [T N, C, H, W] or [T N, F] the norm, on [T, N, ...] the others.
    """

    def __init__(
        self,
        current: nn.Module | None,
        neuron: LIF,
        *,
        norm: _BatchNorm | None = None,
        pool: int = 1,
        attention: Attention | PrunedAttention | PFA | nn.Identity | None = None,
        membrane: bool = False,
        membrane_dtype: torch.dtype | None = None,
        norm_scale: float = 1.0,
    ):
        super().__init__()
        _check_norm(norm)
        if not isinstance(neuron, LIF):
            raise TypeError(f"neuron must be an attsnn.neurons.LIF, got {type(neuron).__name__}")
        if not isinstance(attention, Attention | PrunedAttention | PFA | nn.Identity | None):
            kind = type(attention).__name__
            raise TypeError(
                f"attention must come from attsnn.attention.attention, be a PFA, or None, got {kind}"
            )
        self.current, self.norm = current, norm
        self.attention = None if isinstance(attention, nn.Identity) else attention
        self.neuron, self.pool, self.membrane = neuron, pool, membrane
        self.membrane_dtype, self.norm_scale = membrane_dtype, norm_scale

    def run(self, x: Tensor, shortcut: Tensor | None = None) -> ops.SeamOutput:
        """x [T, N, C, H, W] or [T, N, F], a shortcut of the pooled maps' shape; all that the op returns, the
        gates' scores among it.
        """
        _check_input(self.current, x)
        z = x if self.current is None else over_time(self.current, x)
        emitted, z = z.dtype, _widened(z, self.membrane_dtype)
        norm, pool, gates = self.norm, self.pool, None
        reads = self._reads()
        if not all(reads):
            z = _normed(z, norm, self.neuron.backend, pool=pool, scale=self.norm_scale)
            norm, pool = None, 1
        if self.attention is not None:
            if reads.gates and reads.neuron:
                gates = self.attention.gates(z)
            else:
                z = self.attention(z)
        if not reads.neuron:
            z = z if shortcut is None else z + shortcut
            out = self.neuron(z).to(emitted)
            return ops.SeamOutput(out, z if self.membrane else None, None, None, ops.Scores(None, None, None))
        result = ops.seam(
            z,
            norm=None if norm is None else _norm_of(norm, self.norm_scale),
            pool=pool,
            gates=gates,
            shortcut=shortcut,
            membrane=self.membrane,
            **self.neuron.arguments(),
        )
        _update(norm, result, self.neuron.backend)
        return result if result.out.dtype == emitted else result._replace(out=result.out.to(emitted))

    def _reads(self) -> "_Reads":
        """What of the children the op may read; looked at anew where a child or a hook is another one."""
        if torch.compiler.is_compiling():
            return self._look()
        seen = self.__dict__.get("_seen")
        if seen is None or not seen.still():
            seen = _Seen(self)
            self.__dict__["_seen"] = seen
        return seen.reads

    def _look(self) -> "_Reads":
        norm, gates = self.norm, self.attention
        return _Reads(
            norm is None or as_made(norm, *NORMS),
            gates is None or (isinstance(gates, Attention) and gates.read()),
            as_made(self.neuron, LIF),
        )

    def __getstate__(self) -> dict:
        return {name: value for name, value in self.__dict__.items() if name != "_seen"}

    def forward(
        self, x: Tensor, shortcut: Tensor | None = None, *, steps: int | None = None
    ) -> Tensor | tuple[Tensor, Tensor]:
        """What the neuron emits; with `membrane`, (emitted, membrane).

        steps: how many, where x [1, N, ...] is the same at each: all but the neuron runs once. Not with an
        attention, a shortcut or `membrane`.
        """
        if steps is not None:
            if isinstance(steps, torch.fx.Proxy):
                raise TypeError(
                    "torch.fx: a SpikingLayer looks at sizes; trace with attsnn's layers as leaves "
                    "(Tracer.is_leaf_module)"
                )
            self._check_plain("steps", shortcut)
            _check_input(self.current, x)
            charge = _widened(over_time(self._current, x), self.membrane_dtype)
            how = {"pool": self.pool, "repeats": steps, "scale": self.norm_scale}
            return self.neuron(_normed(charge, self.norm, self.neuron.backend, **how), steps=steps)
        result = self.run(x, shortcut)
        return (result.out, result.membrane) if self.membrane else result.out

    def step(self, x: Tensor, v: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """One step [N, ...] of a sequence, from the state v that the step before returned: (emitted, v).

        The norm takes its running statistics, as in evaluation, and leaves them as they are. Not with an
        attention or `membrane`.
        """
        self._check_plain("step()")
        if not as_made(self.neuron, LIF):
            raise ValueError(
                "step() asks the neuron for its state (run), where hooks and a forward of its own do not run"
            )
        z = _widened(self._current(x), self.membrane_dtype)
        how = {"pool": self.pool, "scale": self.norm_scale, "given": True}
        emitted, v = self.neuron.run(_normed(z[None], self.norm, self.neuron.backend, **how), v)
        return emitted[0], v

    @property
    def _current(self) -> nn.Module:
        return nn.Identity() if self.current is None else self.current

    def _check_plain(self, what: str, shortcut: Tensor | None = None) -> None:
        if self.attention is not None or self.membrane or shortcut is not None:
            raise ValueError(f"{what} is for a layer without attention, shortcut and membrane")

    def extra_repr(self) -> str:
        knobs = ("pool", "membrane", *(("norm_scale",) if self.norm_scale != 1 else ()))
        return ", ".join(f"{k}={getattr(self, k)}" for k in knobs)


class _Reads(NamedTuple):
    norm: bool
    gates: bool
    neuron: bool


class _Seen:
    """What `_Reads` was made of, which hardly ever changes and is cheap to compare. No state of the layer:
    it is not copied, saved or looked through.
    """

    __slots__ = ("children", "hooks", "own", "places", "reads")

    def __init__(self, layer: SpikingLayer):
        inner = [] if layer.attention is None else [*layer.attention.modules()]
        read = [m for m in (layer.norm, layer.neuron, *inner) if m is not None]
        of_each = (
            (m._forward_pre_hooks, m._forward_hooks, m._backward_pre_hooks, m._backward_hooks) for m in read
        )
        self.hooks = tuple(chain.from_iterable(of_each))
        self.own = tuple(m.__dict__ for m in read)  # where a forward of one's own may stand
        self.places = (layer._modules, *(m._modules for m in inner if m._modules))
        self.children = self.standing()
        self.reads = layer._look()

    def standing(self) -> list[nn.Module | None]:
        """The children in their places."""
        return [*chain.from_iterable(map(dict.values, self.places))]

    def still(self) -> bool:
        """Whether all is as it was, and no hook anywhere."""
        same = not any(self.hooks) and self.standing() == self.children
        return same and not any(map(contains, self.own, repeat("forward")))


class AveragePool(NotScripted, nn.Module):
    """`nn.AvgPool2d(pool)` of every step: [T, N, C, H, W] -> [T, N, C, H/pool, W/pool]."""

    def __init__(self, pool: int, *, backend: Backend = "auto"):
        super().__init__()
        self.pool, self.backend = pool, backend

    def forward(self, x: Tensor) -> Tensor:
        return ops.average_pool(x, self.pool, backend=self.backend)

    def extra_repr(self) -> str:
        return str(self.pool)


class NormedLayer(NotScripted, nn.Module):
    """A convolution, or a linear layer, and its batch norm, without a neuron: [T, N, ...] -> [T, N, ...].

    The norm is that of the seams: over (T, N, H, W), and over all processes where it is synchronised;
    `backend` and `membrane_dtype` are as in `SpikingLayer`.
    """

    def __init__(
        self,
        current: nn.Module,
        norm: _BatchNorm | None,
        *,
        membrane_dtype: torch.dtype | None = None,
        backend: Backend = "auto",
    ):
        super().__init__()
        _check_norm(norm)
        self.current, self.norm, self.membrane_dtype, self.backend = current, norm, membrane_dtype, backend

    def forward(self, x: Tensor, repeats: int = 1) -> Tensor:
        """`repeats`: how many equal inputs x stands for, T where a static image is given once; they count in
        the running variance.
        """
        _check_input(self.current, x)
        z = _widened(over_time(self.current, x), self.membrane_dtype)
        return _normed(z, self.norm, self.backend, repeats=repeats)


def _check_norm(norm: _BatchNorm | None) -> None:
    if not isinstance(norm, _BatchNorm | None):
        raise TypeError(f"norm must be a batch norm of torch.nn, or None, got {type(norm).__name__}")


def _widened(z: Tensor, dtype: torch.dtype | None) -> Tensor:
    return z if dtype is None else z.to(torch.promote_types(z.dtype, dtype))


def _normed(
    z: Tensor,
    norm: _BatchNorm | None,
    backend: Backend,
    *,
    pool: int = 1,
    repeats: int = 1,
    scale: float = 1.0,
    given: bool = False,
) -> Tensor:
    """Norm and pool alone: a seam of one step, T folded into N, that emits its neuron's first charge, which
    is what the neuron reads. `given`: with the running statistics in training, too.
    """
    if norm is not None and not as_made(norm, *NORMS):
        z, norm = _called(z, norm, repeats, scale, given), None
    if norm is None and pool == 1:
        return z
    asked = None if norm is None else _norm_of(norm, scale, given)._replace(repeats=repeats)
    result = ops.seam(z.flatten(0, 1)[None], norm=asked, pool=pool, emit="membrane", backend=backend)
    _update(norm, result, backend)
    return result.out.squeeze(0).unflatten(0, z.shape[:2])


def _called(z: Tensor, norm: _BatchNorm, repeats: int, scale: float, given: bool) -> Tensor:
    """z through a norm that is not as PyTorch made it."""
    what = f"{type(norm).__name__} has hooks or a forward of its own, so that it is called, and"
    if given and norm.training:
        raise ValueError(f"{what} takes the batch's statistics in training; step() wants the running ones")
    if getattr(norm, "over_processes", False) and dist.is_initialized() and norm.training:
        raise ValueError(f"{what} knows its own process alone: its statistics cannot be those of all")
    if scale != 1 and not any(type(norm).forward is kind.forward for kind in NORMS):
        raise ValueError(f"{what} norm_scale has no weight to multiply: let its forward do so")
    normed = over_time(norm, z if repeats == 1 else z.expand(repeats, *z.shape[1:]))
    if scale == 1:
        return normed
    bias = 0.0 if norm.bias is None else norm.bias.view(-1, *[1] * (normed.dim() - 3))
    return (normed - bias) * scale + bias


def _norm_of(norm: _BatchNorm, scale: float = 1.0, given: bool = False) -> ops.Norm:
    given = (given or not norm.training) and norm.running_mean is not None
    mean, var = (norm.running_mean, norm.running_var) if given else (None, None)
    group = _group_of(norm) if norm.training and not given else None
    return ops.Norm(_weight_of(norm, scale), norm.bias, mean, var, norm.eps, group)


def _weight_of(norm: _BatchNorm, scale: float) -> Tensor | None:
    """What a norm multiplies by; of one that learns nothing only the scale, where there is one."""
    if scale == 1:
        return norm.weight
    return torch.full_like(norm.running_mean, scale) if norm.weight is None else norm.weight * scale


def _group_of(norm: _BatchNorm) -> "dist.ProcessGroup | None":
    """The processes that share the norm's statistics; None: this one has its own."""
    if not (dist.is_available() and dist.is_initialized()):
        return None
    if not (isinstance(norm, nn.SyncBatchNorm) or getattr(norm, "over_processes", False)):
        return None
    group = getattr(norm, "process_group", None) or dist.group.WORLD
    return group if dist.get_world_size(group) > 1 else None


def _update(norm: _BatchNorm | None, found: ops.SeamOutput, backend: Backend) -> None:
    """The running statistics, as PyTorch's batch norm keeps them, where the batch has any."""
    if found.batch_mean is None or not norm.training or norm.running_mean is None:
        return
    running = norm.running_mean, norm.running_var, norm.num_batches_tracked
    ops.update_running(*running, found.batch_mean, found.batch_var, norm.momentum, backend=backend)


def synchronise(model: nn.Module) -> nn.Module:
    """The model, its batch norms' statistics from now on those of all processes; norms outside of a
    `SpikingLayer` or `NormedLayer` stay as they are.

    As `nn.SyncBatchNorm.convert_sync_batchnorm`, but also where `DistributedDataParallel` refuses that: on
    the CPU.
    """
    for module in model.modules():
        if isinstance(module, SpikingLayer | NormedLayer) and module.norm is not None:
            module.norm.over_processes = True
    return model


class Rate(nn.Module):
    """Read-out: the mean over T, [T, N, K] -> [N, K]; of spikes, the firing rate."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean(0)


FOLDABLE = (nn.Linear, nn.Conv1d, nn.Conv2d)


def fold(model: nn.Module) -> nn.Module:
    """A copy of the model for inference, each batch norm put into the convolution or linear layer before it.

    The copy is in evaluation mode and computes the same numbers but for rounding. Norms are found in every
    `SpikingLayer` and `NormedLayer`, where `current` may be an `nn.Sequential` that ends in such a layer, and
    behind their layer in any `nn.Sequential`, where an `nn.Identity` takes their place. Parametrised weights
    become plain ones.

    Raises ValueError for a norm that has no running statistics, or whose layer cannot take it, and for what
    would be lost: hooks, old weight_norm, spectral_norm and pruning among them, and a forward of one's own.
    """
    _refuse_computed(model)
    folded = copy.deepcopy(model).eval()
    for place, module in list(folded.named_modules()):
        if isinstance(module, SpikingLayer | NormedLayer) and None not in (module.current, module.norm):
            scale = getattr(module, "norm_scale", 1.0)
            name = f"{place}.norm".lstrip(".")
            if isinstance(module.current, nn.Sequential):
                module.current[-1] = _folded(module.current[-1], module.norm, name, scale)
            else:
                module.current = _folded(module.current, module.norm, name, scale)
            module.norm = None
        if not isinstance(module, nn.Sequential):
            continue
        # Not `named_children`: that leaves out a module's second place, and with it what lies between.
        for (name, layer), (norm_name, norm) in pairwise(list(module._modules.items())):
            if isinstance(norm, _BatchNorm) and isinstance(layer, FOLDABLE):
                setattr(module, name, _folded(layer, norm, f"{place}.{norm_name}".lstrip(".")))
                setattr(module, norm_name, nn.Identity())
    return folded


def _folded(layer: nn.Module, norm: _BatchNorm, name: str, scale: float = 1.0) -> nn.Module:
    if norm.running_mean is None:
        raise ValueError(f"{name} has no running statistics (track_running_stats=False) to fold")
    if not isinstance(layer, FOLDABLE):
        kinds = ", ".join(kind.__name__ for kind in FOLDABLE)
        raise ValueError(f"{name} stands behind {type(layer).__name__}; it can be put into {kinds}")
    for what, part, kinds in ((name, norm, NORMS), (f"the layer before {name}", layer, FOLDABLE)):
        if not as_made(part, *kinds):
            raise ValueError(
                f"{what} ({type(part).__name__}) has hooks or a forward of its own, which a folded copy "
                "would lose: take them away, or fold before you add them"
            )
        if is_parametrized(part):
            _settle(part)
    if scale != 1:  # of a copy
        norm.weight = nn.Parameter(_weight_of(norm, scale))
    fuse = fuse_linear_bn_eval if isinstance(layer, nn.Linear) else fuse_conv_bn_eval
    return fuse(layer, norm)


def _settle(part: nn.Module) -> None:
    """Gives a parametrised copy plain weights. Not `remove_parametrizations`: it changes the class, which the
    copy and its original share.
    """
    values = {name: getattr(part, name).detach() for name in part.parametrizations}
    part.__class__ = type(part).__bases__[0]  # behind the class that parametrising makes
    del part.parametrizations
    for name, value in values.items():
        part.register_parameter(name, nn.Parameter(value))


def _refuse_computed(model: nn.Module) -> None:
    """A sentence where a hook has left a tensor with a graph, which PyTorch does not copy."""
    for place, module in model.named_modules():
        for name, value in vars(module).items():
            if isinstance(value, Tensor) and not value.is_leaf:
                where = f"{place}.{name}".lstrip(".")
                raise ValueError(
                    f"{where} is computed by a hook (pruning, old weight_norm or spectral_norm), and cannot "
                    "be copied: make it permanent first (prune.remove, remove_weight_norm, "
                    "remove_spectral_norm)"
                )


@contextmanager
def watch(model: nn.Module) -> Iterator[dict[str, Tensor | list[Tensor]]]:
    """Collects what each `SpikingLayer`, and each LIF outside of one, emits, [T, N, ...], detached, by its
    name, in the order in which they run first; of one that runs more than once a list, run by run.

    `with watch(model) as seen: model(x)`; the firing rate of a layer is `(seen[name] > 0).float().mean()`.

    Raises ValueError for a compiled model, whose layers no hook sees; watch and call the original. Where
    nothing ran, a warning says so.
    """
    for name, module in model.named_modules():
        if "_orig_mod" in module._modules or module._compiled_call_impl is not None:
            raise ValueError(
                f"watch() sees nothing of what torch.compile runs ({name or 'the model'} is compiled): watch "
                "and call the original, `compiled._orig_mod`, or the model before `model.compile()`"
            )
    seen: dict[str, Tensor | list[Tensor]] = {}

    def remember(name: str):
        def hook(module, args, output):
            emitted = (output[0] if isinstance(output, tuple) else output).detach()
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
