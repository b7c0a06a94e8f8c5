"""`fold`: merges batch norms into the layers before them, for inference."""

import copy
from itertools import pairwise
from typing import cast

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval
from torch.nn.utils.parametrize import is_parametrized

from attsnn.attention import as_made

from .normed import NORMS, NormedLayer, weight_of
from .spiking import SpikingLayer

FOLDABLE = (nn.Linear, nn.Conv1d, nn.Conv2d)


def fold(model: nn.Module) -> nn.Module:
    """Returns a copy of the model for inference, with each batch norm folded into the layer before it.

    The copy is in evaluation mode and computes the same numbers up to rounding. Parametrised weights become
    plain ones. A norm can be folded into an `nn.Linear`, `nn.Conv1d` or `nn.Conv2d`. Norms are found

    - in every `SpikingLayer` and `NormedLayer`, whose `current` may be an `nn.Sequential` that ends in such
      a layer;
    - directly after such a layer in any `nn.Sequential`, where an `nn.Identity` takes its place.

    Raises:
        ValueError: for a norm that has no running statistics, or whose layer cannot take it. Also if
            something would be lost: hooks (old weight_norm, spectral_norm and pruning are hooks), or a
            forward of its own.
    """
    _refuse_computed(model)
    folded = copy.deepcopy(model).eval()
    for place, module in list(folded.named_modules()):
        if (
            isinstance(module, SpikingLayer | NormedLayer)
            and module.current is not None
            and module.norm is not None
        ):
            scale = getattr(module, "norm_scale", 1.0)
            name = f"{place}.norm".lstrip(".")
            if isinstance(module.current, nn.Sequential):
                module.current[-1] = _folded(module.current[-1], module.norm, name, scale)
            else:
                module.current = _folded(module.current, module.norm, name, scale)
            module.norm = None
        if not isinstance(module, nn.Sequential):
            continue
        # Not `named_children`: it skips a module's second place, so that other modules would look adjacent.
        for (name, layer), (norm_name, norm) in pairwise(list(module._modules.items())):
            if isinstance(norm, _BatchNorm) and isinstance(layer, FOLDABLE):
                setattr(module, name, _folded(layer, norm, f"{place}.{norm_name}".lstrip(".")))
                setattr(module, norm_name, nn.Identity())
    return folded


def _folded(layer: nn.Module, norm: _BatchNorm, name: str, scale: float = 1.0) -> nn.Module:
    if norm.running_mean is None:
        raise ValueError(f"{name} has no running statistics (track_running_stats=False) to fold")
    if not isinstance(layer, FOLDABLE):
        known = ", ".join(kind.__name__ for kind in FOLDABLE)
        raise ValueError(f"{name} follows {type(layer).__name__}; it can only be folded into {known}")
    for what, part, kinds in ((name, norm, NORMS), (f"the layer before {name}", layer, FOLDABLE)):
        if not as_made(part, *kinds):
            raise ValueError(
                f"{what} ({type(part).__name__}) has hooks or a forward of its own, which a folded copy "
                "would lose: take them away, or fold before you add them"
            )
        if is_parametrized(part):
            _settle(part)
    if scale != 1:  # `norm` is a copy
        norm.weight = nn.Parameter(cast(Tensor, weight_of(norm, scale)))
    if isinstance(layer, nn.Linear):
        return fuse_linear_bn_eval(layer, norm)
    return fuse_conv_bn_eval(layer, norm)


def _settle(part: nn.Module) -> None:
    """Gives a parametrised copy plain weights.

    `remove_parametrizations` would change the class, which the copy shares with its original.
    """
    computed = part.parametrizations
    assert isinstance(computed, nn.ModuleDict)
    values = {name: getattr(part, name).detach() for name in computed}
    part.__class__ = type(part).__bases__[0]  # the class before it was parametrised
    del part.parametrizations
    for name, value in values.items():
        part.register_parameter(name, nn.Parameter(value))


def _refuse_computed(model: nn.Module) -> None:
    """Raises if a hook has left a tensor with a graph, which PyTorch does not copy."""
    for place, module in model.named_modules():
        for name, value in vars(module).items():
            if isinstance(value, Tensor) and not value.is_leaf:
                where = f"{place}.{name}".lstrip(".")
                raise ValueError(
                    f"{where} is computed by a hook (pruning, old weight_norm or spectral_norm), and cannot "
                    "be copied: make it permanent first (prune.remove, remove_weight_norm, "
                    "remove_spectral_norm)"
                )
