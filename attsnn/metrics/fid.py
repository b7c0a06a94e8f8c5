"""FID and Inception score as the spiking VAE papers measure them: FSVAE (Kamata et al., AAAI 2022) and PFA
(Deng et al., 2024).

    network = clean_inception("inception-2015-12-05.pt")
    fid(sample, "mnist_test_clean_custom_na.npz", network=network).distance
    inception_score(map(imagenet_inception("inception_v3_google-0cc3c7bd.pth"), generated(sample, 1024)))

Images are [N, 1 or 3, H, W] in [-1, 1]. This needs the extra `fid` (clean-fid, torchvision). Nothing is
downloaded unless a call says `fetch=True`, and nothing is written into another package's folder.
"""

import hashlib
import http.client
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from .frechet import Moments
from .protocol import Result, frechet, generated

CLEAN_NETWORK = "inception-2015-12-05.pt"  # the name by which clean-fid finds it
CLEAN_URL = f"https://nvlabs-fi-cdn.nvidia.com/stylegan2-ada-pytorch/pretrained/metrics/{CLEAN_NETWORK}"
IMAGENET_NETWORK = "inception_v3_google-0cc3c7bd.pth"  # torchvision's, with the start of its SHA-256
IMAGENET_URL = f"https://download.pytorch.org/models/{IMAGENET_NETWORK}"
# Statistics of real images, `<name>_clean_custom_na.npz` in metrics/stats_fid/ of the repository
# github.com/kamata1729/FullySpikingVAE, by their git blob ids.
PUBLISHED = {
    "mnist_test": "80685d7bc696a9285cf19109f199b258fee06450",
    "fashion_test": "957c2dd2b4ef195d1bcd9d6fbf5da4b20fd723a4",
    "cifar10_test": "a486ea4c91b88e9dfe44107bcc17260d8bf3a0b6",
    "celeba_valid": "aab04c0ac27b49aab6fb202a5b45bc89cd85f8f0",
}
_BEYOND = 1e-3  # how far an image may leave [-1, 1]


@dataclass(frozen=True)
class Network:
    """A published network, as a function from images `[N, 1 or 3, H, W]` in [-1, 1] to rows
    `[N, D]`, without gradients.

    Args:
        forward: the function.
        name: its name, for results.
        sha256: the SHA-256 of the file of its weights.
    """

    forward: Callable[[Tensor], Tensor]
    name: str
    sha256: str

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        return self.forward(images)


def fid(
    sample: Callable[[int], Tensor],
    statistics: str | os.PathLike[str],
    *,
    network: Network | str | os.PathLike[str] | None = None,
    fetch: bool = False,
    count: int = 5000,
    batch: int = 256,
    whole: bool = False,
    device: torch.device | str = "cpu",
) -> Result:
    """clean-fid's distance, mode "clean", of generated images from the statistics of real images.

    Args:
        sample: maps n to images `[n, 1 or 3, H, W]` in [-1, 1]. It is always called with `batch`.
        statistics: the file of `mu` `[2048]` and `sigma` `[2048, 2048]`; those of the papers are listed in
            `PUBLISHED`.
        network: what `clean_inception` returns, or the file that it takes.
        fetch: see `clean_inception`.
        count: the number of images.
        batch: images per call of `sample`.
        whole: keep all images of the last batch, 5120 for 5000. clean-fid did so before 0.1.24 (June 2022),
            and so when FSVAE was published; since then it keeps `count`.
        device: the device of the network.

    Raises:
        ImportError: there is no clean-fid.
        OSError: a file is missing.
        ValueError: a file or the images do not fit.
    """
    real = Moments.load(statistics)
    if not isinstance(network, Network):
        network = clean_inception(network, fetch=fetch, device=device)
    found = frechet(network, real, generated(sample, count, batch, whole=whole))
    sha256, blob = _digests(Path(statistics))
    names = [name for name, known in PUBLISHED.items() if known == blob]
    against = f"{names[0]} as published" if names else f"{Path(statistics).name}, not a published file"
    protocol = f"{network.name}, {found.fake} images in batches of {batch}, against {against}"
    return replace(found, protocol=protocol, network=network.sha256, statistics=sha256)


def clean_inception(
    file: str | os.PathLike[str] | None = None, *, fetch: bool = False, device: torch.device | str = "cpu"
) -> Network:
    """clean-fid's features `[N, 2048]`, from the Inception-v3 of TensorFlow's FID.

    Pixels are from 0 to 255, and Pillow resizes each channel to 299 x 299 (bicubic, not rounded).

    Args:
        file: NVIDIA's TorchScript from `CLEAN_URL`. It is a program, which is run. None: the file in torch's
            cache (TORCH_HOME).
        fetch: download the file into torch's cache if it is missing there.
        device: the device of the network.

    Raises as `fid` does.
    """
    try:
        from cleanfid.inception_torchscript import InceptionV3W
        from cleanfid.resize import build_resizer
    except ImportError as error:
        raise ImportError(f"FID needs clean-fid ({error}): pip install 'attsnn[fid]'") from None
    path = _file(file, CLEAN_URL, None, fetch)
    if path.name != CLEAN_NETWORK:
        raise ValueError(f"{path}: clean-fid finds its network by the name {CLEAN_NETWORK} alone")
    try:
        model = InceptionV3W(str(path.parent), download=False, resize_inside=False).to(device).eval()
    except Exception as error:
        raise ValueError(f"{path}: cannot be read as the network of clean-fid: {_line(error)}") from error
    resize = build_resizer("clean")

    def forward(images: Tensor) -> Tensor:
        resized = [resize(image) for image in pixels(images).cpu().permute(0, 2, 3, 1).numpy()]
        if not resized:
            return torch.zeros(0, 2048)
        stacked = torch.stack([torch.from_numpy(x) for x in resized]).permute(0, 3, 1, 2).to(device)
        features: Tensor = model(stacked)
        return features

    return Network(forward, f"clean-fid {_version('clean-fid')}, mode clean", _digests(path)[0])


def imagenet_inception(
    file: str | os.PathLike[str] | None = None, *, fetch: bool = False, device: torch.device | str = "cpu"
) -> Network:
    """The class probabilities `[N, 1000]` from which the papers take the Inception score:
    torchvision's Inception-v3 of ImageNet.

    It reads pixels from 0 to 255, not normalised, resized to 299 x 299 (bilinear). That is not the usual
    input of this network.

    Args:
        file: its weights, `IMAGENET_URL`. None: the file in torch's cache (TORCH_HOME).
        fetch: download the file into torch's cache if it is missing there.
        device: the device of the network.

    Raises:
        ImportError: there is no torchvision that fits.
        OSError: the file is missing.
        ValueError: the file does not fit.
    """
    try:
        from torchvision.models import inception_v3
    except (ImportError, RuntimeError) as error:  # RuntimeError: its operators are built for another torch
        raise ImportError(
            f"The Inception score's network needs a torchvision that fits torch {torch.__version__} "
            f"({_line(error)}): pip install 'attsnn[fid]'"
        ) from None
    path = _file(file, IMAGENET_URL, IMAGENET_NETWORK.partition("-")[2][:8], fetch)
    model = inception_v3(weights=None, transform_input=False, init_weights=False)
    try:
        model.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    except Exception as error:
        raise ValueError(f"{path}: no weights of torchvision's Inception-v3: {_line(error)}") from error
    model = model.to(device).eval()

    def forward(images: Tensor) -> Tensor:
        large = F.interpolate(pixels(images).to(device), (299, 299), mode="bilinear", align_corners=False)
        probabilities: Tensor = model(large).softmax(1)
        return probabilities

    return Network(forward, f"torchvision {_version('torchvision')}, Inception-v3", _digests(path)[0])


def pixels(images: Tensor) -> Tensor:
    """Images [N, 1 or 3, H, W] in [-1, 1] as float32 [N, 3, H, W] from 0 to 255, not rounded."""
    if images.dim() != 4 or images.shape[1] not in (1, 3) or not images.is_floating_point():
        raise ValueError(f"images have shape [N, 1 or 3, H, W], got {list(images.shape)} of {images.dtype}")
    images = images.float()
    if not (images.abs() <= 1 + _BEYOND).all():
        raise ValueError(f"images are in [-1, 1], got {images.min().item():g} to {images.max().item():g}")
    return ((images + 1) / 2 * 255).expand(-1, 3, -1, -1)


def _file(file: str | os.PathLike[str] | None, url: str, hashed: str | None, fetch: bool) -> Path:
    """The file, or the one in torch's cache, which is downloaded if that is allowed and needed."""
    cached = Path(torch.hub.get_dir()) / "checkpoints" / url.rpartition("/")[2]
    path = cached if file is None else Path(file)
    if path.is_file():
        return path
    if file is not None:
        raise FileNotFoundError(f"{path}: there is no such file; it is published at {url}")
    if not fetch:
        raise FileNotFoundError(
            f"The network {path.name} is not at {path}, and nothing is fetched unasked: "
            f"give the file, or fetch=True for {url}"
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        torch.hub.download_url_to_file(url, str(path), hashed, progress=False)
    except (OSError, http.client.HTTPException, RuntimeError) as error:
        raise OSError(f"{url}: cannot be fetched: {_line(error)}") from error
    return path


def _digests(path: Path) -> tuple[str, str]:
    """(SHA-256 of a file, the id that git gives its content.)"""
    content = path.read_bytes()
    blob = hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False)
    return hashlib.sha256(content).hexdigest(), blob.hexdigest()


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "of unknown version"


def _line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
