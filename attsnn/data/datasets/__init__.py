"""The table of data sets. A set is one file here, or two twins are; adding one is a line below."""

from attsnn.data.datasets.cifar10_dvs import CIFAR10_DVS
from attsnn.data.datasets.dvs_gait import DVS_GAIT
from attsnn.data.datasets.dvs_gesture import DVS_GESTURE
from attsnn.data.datasets.imagenet import IMAGENET
from attsnn.data.datasets.ncaltech101 import NCALTECH101
from attsnn.data.datasets.recordings import RECORDINGS

_SETS = (DVS_GESTURE, CIFAR10_DVS, NCALTECH101, DVS_GAIT, RECORDINGS, IMAGENET)
TABLE = {dataset.name: dataset for dataset in _SETS}
