"""Published checkpoints in the names of attsnn.

`from_published` converts a state dict and `load_published` a file. The command line converts file to file::

    python -m attsnn.models.convert ma_snn published.t7 ours.safetensors
    python -m attsnn.models.convert att_ms_resnet published.pth ours.safetensors
    python -m attsnn.models.convert pfa published.pth ours.safetensors --scale sum --fusion multiply

Tensors keep their values; the 1x1 convolutions in the gates' MLPs become plain matrices. A family is one
published code. Its file here knows which names it has, and what its tensors tell about the network.
`from_spikingjelly` converts the state dict of a network that was written for SpikingJelly.
"""

from .files import FAMILIES, from_published, load_any, load_published, main, recognise
from .ma_snn import infer_ma_snn
from .ms_resnet import infer_ms_resnet
from .spikingjelly import from_spikingjelly

__all__ = [
    "FAMILIES",
    "from_published",
    "from_spikingjelly",
    "infer_ma_snn",
    "infer_ms_resnet",
    "load_any",
    "load_published",
    "main",
    "recognise",
]
