"""Models by name: `create(name, **kwargs)`, `names()`. `watch` sees what their neurons emit.

Every network has `averages_scores`: True where its output is a mean of scores over time, and
`forward(x, every_step=True)` gives those of every step, [T, N, classes], as losses of each step want them;
False where it is a mean of spikes, a firing rate, and of the VAEs, which have none.
"""

from attsnn.layers import watch

from . import (  # noqa: F401  (they register their models)
    att_vgg,
    autoencoder,
    fsvae,
    ma_snn,
    ms_resnet,
    pfa_fmnist,
    pfa_ms_resnet,
    pfa_vgg,
)
from .registry import create, keywords, names

__all__ = ["create", "fsvae", "keywords", "names", "watch"]
