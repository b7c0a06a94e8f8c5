"""Writes small ImageNets in the real formats, folders and shards, and breaks them."""

import io
import os
import tarfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from attsnn.data.core.images import pixels

WNIDS = ("n01440764", "n01443537", "n02105855")
TRAIN, VAL = 6, 2  # images of a class


def picture(seed: int, mode: str = "RGB", size: tuple[int, int] = (40, 32)) -> Image.Image:
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC).convert(mode)


def encoded(seed: int, format: str = "JPEG", mode: str = "RGB") -> bytes:
    buffer = io.BytesIO()
    picture(seed, mode).save(buffer, format)
    return buffer.getvalue()


def oddity(number: int) -> bytes:
    """What real ImageNet holds: CMYK, grey, a PNG named .JPEG; else a plain JPEG."""
    odd = {1: ("JPEG", "CMYK"), 2: ("JPEG", "L"), 3: ("PNG", "RGB")}
    return encoded(number, *odd.get(number, ("JPEG", "RGB")))


def write_folders(root: Path) -> Path:
    for split, number in (("train", TRAIN), ("val", VAL)):
        for label, wnid in enumerate(WNIDS):
            folder = root / split / wnid
            folder.mkdir(parents=True)
            for k in range(number):
                (folder / f"{wnid}_{k}.JPEG").write_bytes(oddity(10 * label + k))
    (root / "train" / WNIDS[0] / "._hidden.JPEG").write_bytes(b"of a Mac")
    (root / "train" / WNIDS[0] / "notes.txt").write_bytes(b"no image")
    return root


def samples(split: str) -> list[tuple[str, bytes, int]]:
    number = TRAIN if split == "train" else VAL
    return [
        (f"{wnid}_{k}", oddity(10 * label + k), label)
        for label, wnid in enumerate(WNIDS)
        for k in range(number)
    ]


def add(tar: tarfile.TarFile, name: str, data: bytes, **fields) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    for field, value in fields.items():
        setattr(member, field, value)
    tar.addfile(member, io.BytesIO(data))


def write_shards(root: Path, per_shard: int = 5, format: int = tarfile.PAX_FORMAT) -> Path:
    root.mkdir(exist_ok=True)
    for split, name in (
        ("train", "imagenet1k-train-{:04d}.tar"),
        ("val", "imagenet1k-validation-{:02d}.tar"),
    ):
        all_samples = samples(split)
        for shard, first in enumerate(range(0, len(all_samples), per_shard)):
            with tarfile.open(root / name.format(shard), "w", format=format) as tar:
                for key, image, label in all_samples[first : first + per_shard]:
                    add(tar, f"{key}.cls", str(label).encode())
                    add(tar, f"{key}.jpg", image)
                    add(tar, f"{key}.json", b'{"height": 32}')
                    add(tar, f"{key}.pth", b"would have to be unpickled")
    (root / "._imagenet1k-train-0000.tar").write_bytes(b"of a Mac")
    return root


def spoil(root: Path, split: str = "train") -> dict[str, str]:
    """Breaks five images; {path: part of the sentence}."""
    first, second, third = (root / split / wnid for wnid in WNIDS)
    number = TRAIN if split == "train" else VAL
    cut, empty, text = (
        first / f"{WNIDS[0]}_0.JPEG",
        first / f"{WNIDS[0]}_1.JPEG",
        second / f"{WNIDS[1]}_0.JPEG",
    )
    gone, pipe = second / f"{WNIDS[1]}_1.JPEG", third / f"{WNIDS[2]}_{number - 1}.JPEG"
    cut.write_bytes(cut.read_bytes()[:-200])
    empty.write_bytes(b"")
    text.write_text("<html>404 Not Found</html>")
    gone.unlink()
    gone.symlink_to("nowhere")  # is listed, cannot be read
    pipe.unlink()
    os.mkfifo(pipe)  # would be waited for
    return {
        str(cut): "cannot be decoded (image file is truncated",
        str(empty): "found 0 bytes",
        str(text): "is neither JPEG nor PNG",
        str(gone): "cannot be read (No such file",
        str(pipe): "wanted a regular file",
    }


class Cropped:
    """A random transform that needs no extra, drawing as torchvision's do."""

    def __call__(self, image: Image.Image) -> torch.Tensor:
        y, x = torch.randint(0, 16, (2,)).tolist()
        return pixels(image)[:, y : y + 16, x : x + 16].float()


class Middle:
    def __call__(self, image: Image.Image) -> torch.Tensor:
        return pixels(image)[:, 8:24, 8:24].float()
