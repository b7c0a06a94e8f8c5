"""`SpikingLayer`: a convolution or linear layer, and what lies between it and the next one as one op."""

from itertools import chain, repeat
from operator import contains
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from attsnn import ops
from attsnn.attention import PFA, Attention, PrunedAttention, SpatialAttention, as_made
from attsnn.neurons import LIF
from attsnn.ops.registration import NotScripted

from .normed import (
    NORMS,
    NormedLayer,
    check_input,
    check_norm,
    ends_in_linear,
    norm_of,
    normed,
    over_time,
    transposed,
    update,
    widened,
)

CALLED = "the neuron has hooks or a forward of its own, so that it is called, and hands on no state"


class SpikingLayer(NotScripted, nn.Module):
    """A convolution or linear layer and the seam after it, which is one op (`attsnn.ops.seam`).

    Args:
        current: `nn.Conv2d`, `nn.Conv1d` or `nn.Linear`, applied to every step; None: the layer starts with
            the norm.
        neuron: emits the spikes. Its `backend` is that of the whole op.
        norm: `nn.BatchNorm2d`, `nn.BatchNorm1d` or `nn.SyncBatchNorm`, or None. Statistics are taken over
            (T, N, H, W), and over all processes if the norm is synchronised (by `synchronise` or
            `nn.SyncBatchNorm.convert_sync_batchnorm`).
        pool: side and stride of an average pool; 1: no pool.
        attention: from `attsnn.attention.attention`, or a `PFA`, or None. A `PFA` or `PrunedAttention` runs
            by itself, between a seam that is the norm and one that is shortcut and neuron; `run` then
            returns no scores.
        membrane: let `forward` return (emitted, membrane). The membrane is the sum that the neuron reads,
            which a residual network passes on.
        membrane_dtype: the least type of shortcut and membrane, in which the whole op then computes. What is
            emitted keeps the convolution's type. None: everything has the convolution's type.
        norm_scale: multiplies the norm's weight when it is used; the learned weight itself is not changed.
            alpha times the threshold gives the threshold-dependent batch norm (tdBN; Zheng et al., 2021).
        tokens: whether a current of four dimensions is tokens [T, N, L, C] or a sequence [T, N, C, L]. The
            norm, gates and per-channel constants of tokens follow the last dimension. None: tokens if the
            last convolution or linear layer in `current` is an `nn.Linear`.

    A pool, SA and PFA are for maps, not for sequences and tokens.

    The op reads the tensors of norm, gates and neuron instead of calling the modules. A module with hooks
    (pruning, old weight_norm and spectral_norm are hooks) or a forward of its own is called instead: a norm
    on [T N, C, H, W] or [T N, F], the others on [T, N, ...].
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
        tokens: bool | None = None,
    ):
        super().__init__()
        check_norm(norm)
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
        self.tokens = ends_in_linear(current) if tokens is None else tokens

    def run(self, x: Tensor, shortcut: Tensor | None = None, v0: Tensor | None = None) -> ops.SeamOutput:
        """Runs the layer and returns all that the op returns.

        Args:
            x: [T, N, C, H, W], [T, N, C, L], [T, N, F] or tokens [T, N, L, F].
            shortcut: is added to what the neuron reads, and has the shape of the pooled maps.
            v0: the state [N, ...] that the chunk before left as `v`; None: at rest.

        Returns:
            An `attsnn.ops.SeamOutput`, with the gates' scores.
        """
        return self._through(x, shortcut, v0, final_state=True)

    def _through(
        self,
        x: Tensor,
        shortcut: Tensor | None,
        v0: Tensor | None,
        *,
        final_state: bool,
        given: bool = False,
    ) -> ops.SeamOutput:
        """`given`: use the running statistics in training too."""
        check_input(self.current, x)
        z = x if self.current is None else over_time(self.current, x)
        if z.dim() != 4 or not self.tokens:
            return self._seam(z, shortcut, v0, final_state, given)
        for name, other, shape in (("shortcut", shortcut, z.shape), ("v0", v0, z.shape[1:])):
            if isinstance(other, Tensor) and other.shape != shape:
                raise ValueError(f"{name} must be tokens {tuple(shape)}, got shape {tuple(other.shape)}")
        found = self._seam(transposed(z), transposed(shortcut), transposed(v0), final_state, given)
        membrane, v = map(transposed, (found.membrane, found.v))
        return found._replace(out=transposed(found.out), membrane=membrane, v=v)

    def _seam(
        self, z: Tensor, shortcut: Tensor | None, v0: Tensor | None, final_state: bool, given: bool
    ) -> ops.SeamOutput:
        emitted, z = z.dtype, widened(z, self.membrane_dtype)
        norm, pool, gates = self.norm, self.pool, None
        reads = self._reads()
        if not all(reads):
            z = normed(z, norm, self.neuron.backend, pool=pool, scale=self.norm_scale, given=given)
            norm, pool = None, 1
        attention = self.attention
        if isinstance(attention, Attention) and reads.gates and reads.neuron:
            gates = attention.gates(z)
        elif attention is not None:
            z = _attended(attention, z)
        if not reads.neuron:
            if v0 is not None:
                raise ValueError(f"v0: {CALLED}")
            z = z if shortcut is None else z + shortcut
            out = self.neuron(z).to(emitted)
            return ops.SeamOutput(out, z if self.membrane else None, None, None, ops.Scores(None, None, None))
        result = ops.seam(
            z,
            norm=None if norm is None else norm_of(norm, self.norm_scale, given),
            pool=pool,
            gates=gates,
            shortcut=shortcut,
            membrane=self.membrane,
            v0=v0,
            final_state=final_state,
            **self.neuron.arguments(),
        )
        update(norm, result, z, self.neuron.backend)
        return result if result.out.dtype == emitted else result._replace(out=result.out.to(emitted))

    def _reads(self) -> "_Reads":
        """Which children the op may read. It looks again if a child or a hook has changed."""
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

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_seen"}

    def forward(
        self,
        x: Tensor,
        shortcut: Tensor | None = None,
        *,
        steps: int | None = None,
        v0: Tensor | None = None,
        final_state: bool = False,
    ) -> Tensor | tuple[Tensor, ...]:
        """Runs the layer.

        Args:
            x, shortcut, v0: as in `run`.
            steps: T, if x [1, N, ...] is the same at every step. Everything but the neuron then runs once.
                Not with an attention, a shortcut or `membrane`.
            final_state: also return the neuron's state after the last step.

        Returns:
            What the neuron emits. With `membrane` or `final_state` it is a tuple, in which the membrane and
            then the state follow.

        Raises:
            TypeError, ValueError: for input, or a combination of arguments, that does not fit.
        """
        if steps is not None:
            if isinstance(steps, torch.fx.Proxy):
                raise TypeError(
                    "torch.fx: a SpikingLayer looks at sizes; trace with attsnn's layers as leaves "
                    "(Tracer.is_leaf_module)"
                )
            self._check_plain("steps", shortcut)
            check_input(self.current, x)
            charge = widened(over_time(self._current, x), self.membrane_dtype)
            tokens = self.tokens and charge.dim() == 4
            how: dict[str, Any] = {"pool": self.pool, "repeats": steps, "scale": self.norm_scale}
            charge = normed(transposed(charge) if tokens else charge, self.norm, self.neuron.backend, **how)
            how = {"steps": steps, "final_state": final_state}
            emitted: Tensor | tuple[Tensor, ...] = self.neuron(
                charge, transposed(v0) if tokens else v0, **how
            )
            if not tokens:
                return emitted
            return tuple(map(transposed, emitted)) if isinstance(emitted, tuple) else transposed(emitted)
        result = self._through(x, shortcut, v0, final_state=final_state)
        if final_state and result.v is None:
            raise ValueError(f"final_state: {CALLED}")
        found = (
            result.out,
            *((result.membrane,) if self.membrane else ()),
            *((result.v,) if final_state else ()),
        )
        return found if len(found) > 1 else result.out

    def step(self, x: Tensor, v: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Runs one step x [N, ...] of a sequence and returns (emitted, v).

        Give the v of the step before; None: at rest. The norm uses its running statistics, as in evaluation,
        and leaves them as they are. Raises ValueError with an attention or `membrane`, or if the neuron has
        hooks or a forward of its own.
        """
        self._check_plain("step()")
        if not as_made(self.neuron, LIF):
            raise ValueError(f"step(): {CALLED}")
        found = self._through(x[None], None, v, final_state=True, given=True)
        assert found.v is not None  # wanted, and the neuron is not called
        return found.out[0], found.v

    @property
    def _current(self) -> nn.Module:
        return nn.Identity() if self.current is None else self.current

    def _check_plain(self, what: str, shortcut: Tensor | None = None) -> None:
        if self.attention is not None or self.membrane or shortcut is not None:
            raise ValueError(f"{what} is for a layer without attention, shortcut and membrane")

    def extra_repr(self) -> str:
        """For `repr`: the settings of the layer."""
        knobs = ("pool", "membrane", *(("norm_scale",) if self.norm_scale != 1 else ()))
        return ", ".join(f"{k}={getattr(self, k)}" for k in knobs)


def _attended(attention: nn.Module, z: Tensor) -> Tensor:
    """Calls the attention on z."""
    if z.dim() != 4:
        weighed: Tensor = attention(z)
        return weighed
    if any(isinstance(part, SpatialAttention | PFA) for part in attention.modules()):
        raise ValueError("attention: SA and PFA weigh the pixels of maps, and [T, N, C, L] has none")
    maps: Tensor = attention(z.unsqueeze(-2))
    return maps.squeeze(-2)


class _Reads(NamedTuple):
    norm: bool
    gates: bool
    neuron: bool


class _Seen:
    """What `_Reads` was derived from, which hardly ever changes and is cheap to compare.

    It is a cache, not state of the layer: it is not copied, saved or searched for modules.
    """

    __slots__ = ("children", "hooks", "own", "places", "reads")

    def __init__(self, layer: SpikingLayer):
        inner = [] if layer.attention is None else [*layer.attention.modules()]
        read = [m for m in (layer.norm, layer.neuron, *inner) if m is not None]
        of_each = (
            (m._forward_pre_hooks, m._forward_hooks, m._backward_pre_hooks, m._backward_hooks) for m in read
        )
        self.hooks = tuple(chain.from_iterable(of_each))
        self.own = tuple(m.__dict__ for m in read)  # where a forward of its own would be
        self.places = (layer._modules, *(m._modules for m in inner if m._modules))
        self.children = self.standing()
        self.reads = layer._look()

    def standing(self) -> list[nn.Module | None]:
        """The children, in order."""
        return [*chain.from_iterable(map(dict.values, self.places))]

    def still(self) -> bool:
        """Whether the children are the same, and nothing has a hook or a forward of its own."""
        same = not any(self.hooks) and self.standing() == self.children
        return same and not any(map(contains, self.own, repeat("forward")))


def synchronise(model: nn.Module) -> nn.Module:
    """Makes the batch norms of a model share their statistics over all processes. Returns the model.

    It changes the norms of every `SpikingLayer` and `NormedLayer` in place; other norms stay as they are. It
    does what `nn.SyncBatchNorm.convert_sync_batchnorm` does, and also works on the CPU, where
    `DistributedDataParallel` refuses that.
    """
    for module in model.modules():
        if isinstance(module, SpikingLayer | NormedLayer) and module.norm is not None:
            module.norm.over_processes = True  # type: ignore[assignment]  # no tensor, no module
    return model
