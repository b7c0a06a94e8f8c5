"""Data: readers of events and images in their published formats, event frames, and data that needs no file.

`python -m attsnn.data` lists, downloads, prepares and verifies data sets. A "store" below is a folder of
prepared event recordings. This package knows no model. In it, `core/` defines recordings and images,
`formats/` reads the file formats, `datasets/` has one file for each data set, and `synthetic/` makes data
that needs no file.
"""

import importlib
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

from attsnn._deprecation import deprecated, moved
from attsnn.data.core.augment import EventAugment
from attsnn.data.core.decoding import Recording
from attsnn.data.core.events import Draw, Events, Selection, framed, frames, make_events, select
from attsnn.data.core.framing import Framing
from attsnn.data.core.images import BadImages, Sample, collate, open_image, unit
from attsnn.data.core.preparing import write_store
from attsnn.data.core.recordings import EventFrames, FrameSample, collate_frames
from attsnn.data.core.store import is_divided
from attsnn.data.core.transforms import (
    CIFAR_MEAN,
    CIFAR_STD,
    eval_transform,
    grey_transform,
    mixes,
    signed_transform,
    small_train_transform,
    train_transform,
)
from attsnn.data.datasets import TABLE as DATASETS
from attsnn.data.datasets.celeba import CelebA
from attsnn.data.datasets.cifar import CIFAR10, CIFAR100, open_cifar
from attsnn.data.datasets.cifar10_dvs import CIFAR10DVS
from attsnn.data.datasets.digits import Digits
from attsnn.data.datasets.dvs_gait import DVSGait
from attsnn.data.datasets.dvs_gesture import DVSGesture
from attsnn.data.datasets.imagenet import ImageNet
from attsnn.data.datasets.mnist import MNIST, FashionMNIST
from attsnn.data.datasets.ncaltech101 import NCaltech101
from attsnn.data.datasets.recordings import Recordings
from attsnn.data.errors import DataError, DataFormatError, DataMissingError
from attsnn.data.formats.aedat3 import read, read_frames
from attsnn.data.formats.folders import class_names, pictures
from attsnn.data.synthetic.sets import synthesise
from attsnn.data.synthetic.textures import SyntheticImages

__all__ = [
    "CIFAR10",
    "CIFAR100",
    "CIFAR10DVS",
    "CIFAR_MEAN",
    "CIFAR_STD",
    "DATASETS",
    "MNIST",
    "BadImages",
    "CelebA",
    "DVSGait",
    "DVSGesture",
    "DataError",
    "DataFormatError",
    "DataMissingError",
    "Digits",
    "Draw",
    "EventAugment",
    "EventFrames",
    "Events",
    "FashionMNIST",
    "FrameSample",
    "Framing",
    "ImageNet",
    "NCaltech101",
    "Recording",
    "Recordings",
    "Sample",
    "Selection",
    "SyntheticImages",
    "class_names",
    "collate",
    "collate_frames",
    "eval_transform",
    "framed",
    "frames",
    "grey_transform",
    "is_divided",
    "make_events",
    "mixes",
    "open_cifar",
    "open_image",
    "pictures",
    "read",
    "read_frames",
    "select",
    "signed_transform",
    "small_train_transform",
    "synthesise",
    "train_transform",
    "unit",
    "write_store",
]

# Modules that had other names before this package had subpackages: {former name: present name}.
MOVED = {
    "aedat": "formats.aedat3",
    "dvs_gesture": "datasets.dvs_gesture",
    "events": "core.events",
    "folders": "formats.folders",
    "imagenet": "datasets.imagenet",
    "imagenet_archives": "datasets.imagenet",
    "images": "core.images",
    "labels": "formats.labels",
    "raw": "core.raw",
    "samples": "synthetic.samples",
    "shards": "formats.shards",
    "staging": "core.staging",
    "store": "core.store",
    "textures": "synthetic.textures",
    "vision": "core.transforms",
}


_GONE = "0.2"  # the release without the former names


class _Finder(MetaPathFinder, Loader):
    """Imports a module by its former name."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        parent, _, name = fullname.rpartition(".")
        return ModuleSpec(fullname, self) if parent == __name__ and name in MOVED else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        now = f"{__name__}.{MOVED[spec.name.rpartition('.')[2]]}"
        deprecated(spec.name, now, gone=_GONE)
        module = importlib.import_module(now)
        spec.loader_state = module.__spec__  # Python is about to replace it
        return module

    def exec_module(self, module: ModuleType) -> None:
        assert module.__spec__ is not None  # `find_spec` has made it
        module.__spec__ = module.__spec__.loader_state


if not any(type(finder).__qualname__ == _Finder.__qualname__ for finder in sys.meta_path):  # unless reloaded
    sys.meta_path.append(_Finder())

__getattr__ = moved(__name__, {name: f"{__name__}.{now}" for name, now in MOVED.items()}, gone=_GONE)
