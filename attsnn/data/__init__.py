"""Data: readers of events and images in their real formats, frames, and data that needs no file. No model.

`python -m attsnn.data` lists, prepares and verifies data sets; `attsnn.data.samples` makes small real ones.
"""

from attsnn.data.aedat import Recording, read, read_frames
from attsnn.data.dvs_gesture import DVSGesture
from attsnn.data.errors import DataError, DataFormatError, DataMissingError
from attsnn.data.events import Draw, Events, Selection, frames, make_events, select
from attsnn.data.folders import class_names
from attsnn.data.imagenet import ImageNet
from attsnn.data.images import BadImages, Sample, collate, open_image
from attsnn.data.textures import SyntheticImages
from attsnn.data.vision import eval_transform, mixes, train_transform

__all__ = [
    "BadImages",
    "DVSGesture",
    "DataError",
    "DataFormatError",
    "DataMissingError",
    "Draw",
    "Events",
    "ImageNet",
    "Recording",
    "Sample",
    "Selection",
    "SyntheticImages",
    "class_names",
    "collate",
    "eval_transform",
    "frames",
    "make_events",
    "mixes",
    "open_image",
    "read",
    "read_frames",
    "select",
    "train_transform",
]
