"""Published checkpoints in our names: `from_published`, `load_published`, and a command line, file to file.

    python -m attsnn.models.convert ma_snn published.t7 ours.safetensors
    python -m attsnn.models.convert att_ms_resnet published.pth ours.safetensors
    python -m attsnn.models.convert pfa published.pth ours.safetensors --scale sum --fusion multiply

Tensors keep their values; 1x1 convolutions of the gates' MLPs become the matrices that they are. A file of a
family per published code: which names it has, and what of the network follows from its tensors.
`from_spikingjelly` takes a state dict of a network that was written for SpikingJelly.
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
