"""The table of data sets. A set is one file here, or two twins are; adding one is a line below."""

from attsnn.data.datasets.dvs_gesture import DVS_GESTURE
from attsnn.data.datasets.imagenet import IMAGENET

TABLE = {dataset.name: dataset for dataset in (DVS_GESTURE, IMAGENET)}
