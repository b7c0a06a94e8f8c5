"""How good a generator's images are: Frechet distance and Inception score. Knows no model and no data set.

A metric takes any function from images to features. `fid` and `clean_inception` are those of clean-fid, in
the protocol of the spiking VAE papers.
"""

from .fid import PUBLISHED, Network, clean_inception, fid, imagenet_inception
from .frechet import Moments, frechet_distance
from .inception import Score, inception_score
from .protocol import Result, features_of, frechet, generated

__all__ = [
    "PUBLISHED",
    "Moments",
    "Network",
    "Result",
    "Score",
    "clean_inception",
    "features_of",
    "fid",
    "frechet",
    "frechet_distance",
    "generated",
    "imagenet_inception",
    "inception_score",
]
