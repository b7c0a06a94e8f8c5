"""The table of data sets. Each set is one file here (two twins share one); to add a set, add a line below."""

from attsnn.data.datasets.celeba import CELEBA
from attsnn.data.datasets.cifar import CIFAR_10, CIFAR_100
from attsnn.data.datasets.cifar10_dvs import CIFAR10_DVS
from attsnn.data.datasets.digits import DIGITS_SET
from attsnn.data.datasets.dvs_gait import DVS_GAIT
from attsnn.data.datasets.dvs_gesture import DVS_GESTURE
from attsnn.data.datasets.imagenet import IMAGENET
from attsnn.data.datasets.mnist import FASHION_SET, MNIST_SET
from attsnn.data.datasets.ncaltech101 import NCALTECH101
from attsnn.data.datasets.recordings import RECORDINGS

_EVENTS = (DVS_GESTURE, CIFAR10_DVS, NCALTECH101, DVS_GAIT, RECORDINGS)
_IMAGES = (IMAGENET, CIFAR_10, CIFAR_100, MNIST_SET, FASHION_SET, CELEBA, DIGITS_SET)
TABLE = {dataset.name: dataset for dataset in (*_EVENTS, *_IMAGES)}
