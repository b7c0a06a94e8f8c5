"""MA-SNN (BICLab/Attention-SNN): checkpoints {"net": ...}."""

import math
import re
from functools import partial

from attsnn.models.ma_snn import PLANS
from attsnn.neurons import MA_SNN_CONSTANTS as LEARNED

from .keys import Family, Keywords, State, infer_attention, none_asked, shape_of, side_of
from .patterns import ATTENTION, by_patterns

_PATTERNS = [
    (r"convAttLIF(\d+)\.", r"features.\1."),
    (r"FC(\d+)\.", r"classifier.\1."),
    (r"\.conv2d\.", ".current."),
    (r"\.linear\.", ".current."),
    (r"\.BNLayer\.", ".norm."),
    *ATTENTION,
    (r"\.network\.(?:Conv)?IF\.alpha$", ".neuron.leak"),  # of neurons that learn (`pa_train_self`)
    (r"\.network\.(?:Conv)?IF\.beta$", ".neuron.bias"),
    (r"\.network\.(?:Conv)?IF\.Vthres$", ".neuron.threshold"),
]
_UNUSED = re.compile(r"\.network\.(?:Conv)?IF\.Vreset$")  # stored by the published neuron, never read


def infer_ma_snn(state: State) -> Keywords:
    """The name and keywords of `attsnn.models.create` that fit converted weights.

    `emit` is not in the file, and `steps` only if the attention is temporal. Raises ValueError or KeyError
    for the weights of no published network.
    """
    layers = sum(re.fullmatch(r"features\.\d+\.current\.weight", k) is not None for k in state)
    conv = [f"features.{i}.current.weight" for i in range(layers)]
    attention, ratios = infer_attention(state, "features.0.attention.")
    classes = shape_of(state, "classifier.1.current.weight", 2)[0]
    widths = tuple(shape_of(state, k, 4)[0] for k in conv or ["features.0.current.weight"])
    fitting = [n for n, plan in PLANS.items() if len(plan.channels) == layers]
    if not fitting:
        raise ValueError(f"no ma_snn has {layers} convolutions; published ones have 3 or 5")
    # Two networks have five: Gait's recordings are of 20 people and more, CIFAR10-DVS's of 10 classes.
    model = max(fitting, key=lambda n: (classes > 11) == (PLANS[n].classes > 11))
    kwargs: Keywords = {"name": model, "attention": attention, "num_classes": classes}
    kwargs["channels"] = widths
    kwargs["hidden"], flat = shape_of(state, "classifier.0.current.weight", 2)
    kwargs["size"] = side_of(flat, widths[-1]) * math.prod(PLANS[model].pools)
    kwargs["learn"] = tuple(n for n, ours in LEARNED.items() if f"features.0.neuron.{ours}" in state)
    return kwargs | ratios


def _infer(ours: State, theirs: State, given: Keywords) -> Keywords:
    none_asked(given, "ma_snn")
    return infer_ma_snn(ours)


FAMILIES = {
    "ma_snn": Family(partial(by_patterns, family="ma_snn", patterns=_PATTERNS, unused=_UNUSED), _infer)
}
