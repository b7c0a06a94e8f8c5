"""Event data: readers of real formats, a verified store, frames, and embedded recordings. Knows no model.

`python -m attsnn.data` lists, prepares and verifies data sets; `attsnn.data.samples` makes small real ones.
"""

from attsnn.data.aedat import Recording, read, read_frames
from attsnn.data.dvs_gesture import DVSGesture, vote
from attsnn.data.errors import DataError, DataFormatError, DataMissingError
from attsnn.data.events import Draw, Events, Selection, frames, make_events, select

__all__ = [
    "DVSGesture",
    "DataError",
    "DataFormatError",
    "DataMissingError",
    "Draw",
    "Events",
    "Recording",
    "Selection",
    "frames",
    "make_events",
    "read",
    "read_frames",
    "select",
    "vote",
]
