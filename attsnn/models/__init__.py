"""Models by name: `create(name, **kwargs)` builds one, `names()` lists them.

`watch` collects what their neurons emit. Every network has an attribute `averages_scores`. It is True if the
output is a mean of scores over time. Then `forward(x, every_step=True)` returns the scores of every step,
[T, N, classes], for losses on each step. It is False if the output is a mean of spikes, a firing rate, and
for VAEs and autoencoders, which have no scores.
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
