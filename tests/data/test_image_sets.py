"""CIFAR, MNIST, CelebA and the digits, where they lie; hostile files; what batches make of a bad image."""

import gzip
import io
import os
import shutil
import struct
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from imagenet_writers import encoded, spoil, write_folders
from torch.utils.data import DataLoader

from attsnn import data
from attsnn.data import (
    CIFAR10,
    CIFAR100,
    MNIST,
    CelebA,
    DataFormatError,
    DataMissingError,
    Digits,
    Draw,
    FashionMNIST,
    ImageNet,
)
from attsnn.data.__main__ import main
from attsnn.data.datasets import cifar as cifar_sets
from attsnn.data.datasets import digits as digits_set
from attsnn.data.datasets import mnist as mnist_sets
from attsnn.data.formats import cifar, idx
from attsnn.data.synthetic import samples, writers

KINDS = {10: CIFAR10, 100: CIFAR100}


def pictures(number: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    images = np.random.default_rng(seed).integers(0, 256, (number, 32, 32, 3), dtype=np.uint8)
    return images, np.arange(number)


def write_cifar(folder: Path, classes: int, binary: bool, number: int = 6) -> Path:
    """`number` images a file; the label of image k is k."""
    folder.mkdir(parents=True)
    write = writers.write_cifar_binary if binary else writers.write_cifar_pickled
    names = [*(f"data_batch_{k}" for k in range(1, 6)), "test_batch"] if classes == 10 else ["train", "test"]
    for seed, name in enumerate(names):
        write(folder / f"{name}{'.bin' * binary}", *pictures(number, seed), classes)
    return folder


def packed(folder: Path, path: Path, top: str) -> Path:
    with tarfile.open(path, "w:gz") as tar:
        tar.add(folder, top)
    return path


# CIFAR


@pytest.mark.parametrize("classes", [10, 100])
@pytest.mark.parametrize("binary", [True, False])
@pytest.mark.parametrize("place", ["itself", "above", "archive", "folder of the archive"])
def test_cifar_is_opened_where_it_lies(classes, binary, place, tmp_path):
    top = {(10, True): "cifar-10-batches-bin", (10, False): "cifar-10-batches-py"}
    top = top.get((classes, binary), f"cifar-100-{'binary' if binary else 'python'}")
    folder = write_cifar(tmp_path / top, classes, binary)
    root = {"itself": folder, "above": tmp_path}.get(place)
    if root is None:
        name = f"cifar-{classes}-{'binary' if binary else 'python'}.tar.gz"
        (tmp_path / "dir").mkdir()
        path = packed(folder, tmp_path / "dir" / name, top)
        root = path if place == "archive" else path.parent
    train, test = (KINDS[classes](root, split) for split in ("train", "test"))
    assert (len(train), len(test)) == (30 if classes == 10 else 6, 6) and len(train.classes) == classes
    last = 5 if classes == 10 else 1  # the file of the test set
    for index in range(6):
        image, label, bad = test[index]
        assert label == index and bad == {} and image.dtype == torch.uint8
        assert torch.equal(image, torch.from_numpy(pictures(6, last)[0][index]).permute(2, 0, 1))
    assert torch.equal(train[1].image, torch.from_numpy(pictures(6, 0)[0][1]).permute(2, 0, 1))
    assert train.identity != test.identity == KINDS[classes](root, "test").identity


def test_the_names_of_cifar100_are_a_hundred():
    assert len(set(cifar_sets.CLASSES_100)) == 100 and list(cifar_sets.CLASSES_100) == sorted(
        cifar_sets.CLASSES_100
    )


def pickled(content) -> bytes:
    """As Python 2 would."""
    file = io.BytesIO()
    writers._Python2(file, 2).dump(content)
    return file.getvalue()


class Evil:
    def __reduce__(self):
        return os.system, ("touch /tmp/attsnn-was-here",)


RECONSTRUCT = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
HOSTILE_PICKLES = {
    "a command": (pickled({b"data": Evil(), b"labels": []}), "asks for posix.system"),
    "a builtin": (b"c__builtin__\neval\nU\x011\x85R.", "asks for __builtin__.eval"),
    "a function of numpy": (b"cnumpy\nload\nU\x011\x85R.", "asks for numpy.load"),
    "an object array": (
        pickled({b"data": np.array([{}], object), b"labels": [1]}),
        "of another type than bytes",
    ),
    "pointers": (
        RECONSTRUCT + b"(K\x01M\x10\x27\x85cnumpy\ndtype\nU\x02O8\x85R\x89]tb.",
        "of another type than bytes",
    ),
    "fewer bytes": (
        RECONSTRUCT + b"(K\x01M\x10\x27\x85cnumpy\ndtype\nU\x02u1\x85R\x89U\x01atb.",
        r"\[10000\] in 1 bytes",
    ),
    "no state": (b"}(U\x04data" + RECONSTRUCT + b"U\x06labels]u.", r"wanted data, uint8 \[N, 3072\]"),
    "from elsewhere": (b"\x80\x02K\x01Q.", "the operation BINPERSID at byte 4"),
    "a place of the memory": (b"Nr\x00\x00\x00\x10.", "the place 268435456 of the memory"),
    "a length": (b"\x80\x02T\xff\xff\xff\x7fabc", "cannot be unpickled"),
    "a key without end": (
        b"}(" + b"K\x01" + b"\x85q\x00h\x00h\x00\x87" * 40 + b"K\x01u.",
        "a key that is not a string",
    ),
    "a label without end": (
        b"}(U\x06labels](" + b"K\x01" + b"\x85q\x00h\x00h\x00\x87" * 40 + b"eu.",
        "wanted data",
    ),
    "no dict": (pickled([1, 2]), "found a pickled list"),
    "other keys": (pickled({b"x": 1}), "wanted data, uint8"),
    "a label": (pickled({b"data": np.zeros((1, 3072), np.uint8), b"labels": [10]}), "the label 10"),
    "a large label": (
        pickled({b"data": np.zeros((1, 3072), np.uint8), b"labels": [1 << 70]}),
        "the label 118059",
    ),
    "a word": (pickled({b"data": np.zeros((1, 3072), np.uint8), b"labels": [b"a"]}), "the label a bytes"),
    "fewer labels": (pickled({b"data": np.zeros((2, 3072), np.uint8), b"labels": [1]}), "as many labels"),
    "nothing": (b"", "cannot be unpickled"),
}


@pytest.mark.parametrize("case", HOSTILE_PICKLES)
def test_hostile_pickles(case, tmp_path):
    content, words = HOSTILE_PICKLES[case]
    folder = write_cifar(tmp_path / "cifar-10-batches-py", 10, binary=False)
    (folder / "data_batch_2").write_bytes(content)
    with pytest.raises(DataFormatError, match=words) as caught:
        CIFAR10(tmp_path, "train")
    assert str(caught.value).startswith(f"{folder / 'data_batch_2'}: ")
    assert not Path("/tmp/attsnn-was-here").exists()


def test_mutated_pickles_raise_only_format_errors():
    whole, rng = (
        pickled({b"data": np.zeros((2, 3072), np.uint8), b"labels": [1, 2]}),
        np.random.default_rng(0),
    )
    refused = 0
    for _ in range(600):
        content = bytearray(whole)
        for at in rng.integers(0, 200, rng.integers(1, 4)):
            content[at] = rng.integers(0, 256)
        try:
            cifar.decode_pickled(np.frombuffer(bytes(content), np.uint8), 10)
        except DataFormatError:
            refused += 1
    assert 100 < refused < 600


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "wanted records of 3073"),
        (bytes(3073 + 5), "wanted records of 3073"),
        (b"\x0a" + bytes(3072), "label 10"),
    ],
)
def test_hostile_records(content, words, tmp_path):
    folder = write_cifar(tmp_path / "x", 10, binary=True)
    (folder / "test_batch.bin").write_bytes(content)
    with pytest.raises(DataFormatError, match=words):
        CIFAR10(folder, "test")
    (folder / "test_batch.bin").unlink()
    with pytest.raises(
        DataMissingError, match=r"x lacks test_batch.bin; run `python -m attsnn.data download cifar10"
    ):
        CIFAR10(folder, "test")


# MNIST


def write_mnist(
    folder: Path, counts=None, *, packed: bool = True, dots: bool = False, number: int = 12
) -> Path:
    """Images of random grey; labels 0, 1, ..., or as many of each as `counts` says."""
    folder.mkdir(parents=True)
    for split, prefix in (("train", "train"), ("test", "t10k")):
        labels = np.arange(number) % 10 if counts is None else np.repeat(np.arange(10), counts[split])
        images = np.random.default_rng(len(prefix)).integers(0, 256, (len(labels), 28, 28), dtype=np.uint8)
        for kind, array in (("images-idx3", images), ("labels-idx1", labels.astype(np.uint8))):
            name = f"{prefix}-{kind}-ubyte{'.gz' * packed}"
            writers.write_idx(folder / (name.replace("-idx", ".idx") if dots else name), array)
    return folder


@pytest.mark.parametrize(("kind", "raw"), [(MNIST, "MNIST/raw"), (FashionMNIST, "FashionMNIST/raw")])
@pytest.mark.parametrize(("compressed", "dots"), [(True, False), (False, False), (False, True)])
def test_mnist_is_opened_where_it_lies(kind, raw, compressed, dots, tmp_path):
    folder = write_mnist(tmp_path / raw, packed=compressed, dots=dots)
    for root in (tmp_path, folder, folder.parent):
        train, test = kind(root, "train"), kind(root, "test")
        assert len(train) == len(test) == 12 and test.labels.tolist() == [k % 10 for k in range(12)]
        image = np.random.default_rng(5).integers(0, 256, (12, 28, 28), dtype=np.uint8)[3]
        assert torch.equal(train[3].image, torch.from_numpy(image)[None])
    assert len(kind(tmp_path, "test").classes) == 10


def test_verify_names_a_mix_up_of_the_two(tmp_path, capsys):
    for name, other in (("mnist", "fashion"), ("fashion", "mnist")):
        folder = write_mnist(tmp_path / name, mnist_sets.COUNTS[name], packed=False)
        assert main(["verify", name, str(folder)]) == 0
        assert "train: 60,000 images, 10 classes\ntest: 10,000 images, 10 classes" in capsys.readouterr().out
        assert main(["verify", other, str(folder)]) == 3
        err = capsys.readouterr().err
        assert f"train is that of {name}, not of {other}; test is that of {name}, not of {other}; run" in err
        shutil.rmtree(folder)
    wrong = write_mnist(tmp_path / "wrong", mnist_sets.COUNTS["mnist"])
    assert (
        main(["prepare", "fashion", str(wrong), str(tmp_path / "out")]) == 3
        and not (tmp_path / "out").exists()
    )
    assert "train is that of mnist, not of fashion" in capsys.readouterr().err
    folder = write_mnist(tmp_path / "few")
    assert main(["verify", "mnist", str(folder)]) == 3
    assert "train has 2 images of class 0, published are 5,923" in capsys.readouterr().err


def test_prepared_images_are_unpacked(tmp_path):
    folder = write_mnist(tmp_path / "x", dots=True)
    assert main(["prepare", "mnist", str(folder), str(tmp_path / "out")]) == 0
    names = sorted(p.name for p in (tmp_path / "out" / "MNIST" / "raw").iterdir())
    assert names == sorted(name for split in mnist_sets._NAMES.values() for name in split)
    assert MNIST(tmp_path / "out", "test").identity == MNIST(folder, "test").identity


def test_one_archive_of_several_sets(tmp_path):
    """As of torchvision's whole root."""
    write_mnist(tmp_path / "r" / "MNIST" / "raw", packed=False)
    write_mnist(tmp_path / "r" / "FashionMNIST" / "raw", packed=False, number=15)
    with zipfile.ZipFile(tmp_path / "root.zip", "w") as archive:
        for path in sorted((tmp_path / "r").rglob("*")):
            archive.write(path, path.relative_to(tmp_path / "r"))
    assert len(MNIST(tmp_path / "root.zip", "train")) == 12
    assert len(FashionMNIST(tmp_path / "root.zip", "train")) == 15
    path = packed(write_cifar(tmp_path / "cifar-10-batches-bin", 10, True), tmp_path / "mine.tar.gz", "x")
    path.write_bytes(path.read_bytes()[:-2_000])
    with pytest.raises(DataMissingError, match=r"mine\.tar\.gz: not a sound \.tar\.gz"):
        CIFAR10(path, "train")


def idx_of(shape, kind: int = 8, body: bytes = b"") -> bytes:
    return struct.pack(">HBB", 0, kind, len(shape)) + struct.pack(f">{len(shape)}I", *shape) + body


HOSTILE_IDX = {
    "no magic": (b"\1\0\x08\1" + bytes(8), "wanted the magic of IDX"),
    "nothing": (b"", "wanted the magic of IDX"),
    "no type": (idx_of((2,), 7, bytes(2)), "wanted the magic of IDX"),
    "no dimensions": (idx_of(()), "wanted the magic of IDX"),
    "cut in the header": (idx_of((2, 3))[:9], "ends in its header"),
    "cut short": (idx_of((2, 3), body=bytes(5)), r"uint8\[2, 3\], 6 bytes, and 5 bytes after it"),
    "too long": (idx_of((2, 3), body=bytes(7)), "and 7 bytes after it"),
    "a claim": (idx_of((1 << 31, 1 << 31, 4), body=bytes(9)), "found sizes of"),
    "no numbers of a claim": (idx_of((0, (1 << 32) - 1, 9)), "found sizes of"),
    "gzip cut short": (gzip.compress(idx_of((9,), body=bytes(9)))[:-4], "not sound gzip"),
    "gzip of fewer": (gzip.compress(idx_of((9,), body=bytes(8))), "holds 1 bytes fewer"),
    "gzip of more": (gzip.compress(idx_of((9,), body=bytes(1 << 24))), "holds more bytes"),
    "gzip of a claim": (gzip.compress(idx_of((1 << 26, 9))), "bytes after it"),
    "gzip damaged": (gzip.compress(idx_of((9,), body=bytes(9)))[:-6] + bytes(6), "not sound gzip"),
}


@pytest.mark.parametrize("case", HOSTILE_IDX)
def test_hostile_idx(case):
    content, words = HOSTILE_IDX[case]
    with pytest.raises(DataFormatError, match=words):
        idx.decode(np.frombuffer(content, np.uint8), path="x")


@pytest.mark.parametrize("kind", ["u1", "i1", ">i2", ">i4", ">f4", ">f8"])
@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_idx_reads_every_type(kind, suffix, tmp_path):
    array = np.arange(-6, 18).reshape(2, 3, 4).astype(kind)
    writers.write_idx(tmp_path / f"a{suffix}", array)
    found = idx.decode(np.fromfile(tmp_path / f"a{suffix}", np.uint8))
    assert found.dtype == np.dtype(kind) and (found == array).all()


def test_mnist_of_other_shapes(tmp_path):
    folder = write_mnist(tmp_path / "x", packed=False)
    for name, array, words in (
        ("t10k-images-idx3-ubyte", np.zeros((12, 28, 27), np.uint8), r"found uint8\[12, 28, 27\]"),
        ("t10k-labels-idx1-ubyte", np.zeros(11, np.uint8), "wanted 12 labels from 0 to 9"),
        ("t10k-labels-idx1-ubyte", np.full(12, 10, np.uint8), "up to 10; wanted 12 labels"),
    ):
        kept = (folder / name).read_bytes()
        writers.write_idx(folder / name, array)
        with pytest.raises(DataFormatError, match=words) as caught:
            MNIST(folder, "test")
        assert str(folder / name) in str(caught.value)
        (folder / name).write_bytes(kept)


# CelebA


def write_celeba(root: Path, number: int = 9) -> Path:
    (root / "celeba" / "img_align_celeba").mkdir(parents=True)
    names = [f"{k + 1:06d}.jpg" for k in range(number)]
    for k, name in enumerate(names):
        (root / "celeba" / "img_align_celeba" / name).write_bytes(encoded(k))
    rows = "".join(f"{name} {k % 3}\n" for k, name in enumerate(names))
    (root / "celeba" / "list_eval_partition.txt").write_text(rows)
    return root


@pytest.mark.parametrize("zipped", [False, True])
def test_celeba_is_opened_where_it_lies(zipped, tmp_path):
    folder = write_celeba(tmp_path) / "celeba"
    if zipped:
        with zipfile.ZipFile(folder / "img_align_celeba.zip", "w") as archive:
            for path in sorted((folder / "img_align_celeba").iterdir()):
                archive.write(path, f"img_align_celeba/{path.name}")
        shutil.rmtree(folder / "img_align_celeba")
    inside = folder / f"img_align_celeba{'.zip' * zipped}"
    for root in (tmp_path, folder, inside):
        for number, split in enumerate(("train", "val", "test")):
            faces = CelebA(root, split)
            assert len(faces) == 3 and faces.labels.tolist() == [0, 0, 0]
            assert faces.source.read(1) == encoded(number + 3)
    images, labels, bad = next(iter(DataLoader(CelebA(tmp_path, "test"), 3, num_workers=1)))
    assert images.shape[0] == 3 and labels.tolist() == [0] * 3 and bad == {}
    assert main(["verify", "celeba", str(tmp_path), "--subset", "--decode"]) == 0
    assert main(["prepare", "celeba", str(tmp_path), str(tmp_path / "out")]) == 0
    assert CelebA(tmp_path / "out", "val").source.read(2) == encoded(7)
    (tmp_path / "drive").mkdir()  # as Google Drive has it
    for part, name in (("Img", inside.name), ("Eval", "list_eval_partition.txt")):
        (tmp_path / "drive" / part).mkdir()
        (folder / name).rename(tmp_path / "drive" / part / name)
    partition = tmp_path / "drive" / "Eval" / "list_eval_partition.txt"
    partition.write_bytes(b"\xef\xbb\xbf" + partition.read_bytes())
    assert len(CelebA(tmp_path / "drive", "train")) == 3


def test_hostile_celeba(tmp_path, capsys):
    root = write_celeba(tmp_path)
    partition = root / "celeba" / "list_eval_partition.txt"
    (root / "celeba" / "img_align_celeba" / "000004.jpg").unlink()
    train = CelebA(root, "train")
    assert list(train[1].bad) == [str(root / "celeba" / "img_align_celeba" / "000004.jpg")]
    assert train[1].image is not None and CelebA(root, "train", substitute=False)[1].image is None
    assert main(["verify", "celeba", str(root), "--subset"]) == 3
    assert "1 train images are missing or corrupt" in capsys.readouterr().err
    whole = partition.read_text()
    for text, words in (
        ("000001.jpg 3\n", ":1: found b'000001.jpg 3'; wanted the name"),
        ("000001.jpg 0\n000001.jpg 1\n", ":2: "),
        ("../../etc/passwd.jpg 0\n", ":1: "),
        ("000001.jpg 0\n", "names no image of test"),
        ("\0" * 90, ":1: "),
        ("a\0b.jpg 0", ":1: "),
        ("000001.jpg " + "9" * 5_000, ":1: "),
    ):
        partition.write_text(text)
        with pytest.raises(DataFormatError, match=words):
            CelebA(root, "test")
    partition.write_text(whole)
    shutil.rmtree(root / "celeba" / "img_align_celeba")
    (root / "celeba" / "img_align_celeba").mkdir()
    with pytest.raises(DataMissingError, match="does not hold .*img_align_celeba with images"):
        CelebA(root, "train")
    (root / "celeba" / "img_align_celeba").rmdir()
    with zipfile.ZipFile(root / "celeba" / "img_align_celeba.zip", "w") as archive:
        archive.writestr("other.jpg", b"")
    with pytest.raises(DataFormatError, match="holds no 000001.jpg"):
        CelebA(root, "train")
    (root / "celeba" / "img_align_celeba.zip").write_bytes(b"PK no zip")
    with pytest.raises(DataFormatError, match=r"not a sound \.zip"):
        CelebA(root, "train")
    partition.unlink()
    with pytest.raises(
        DataMissingError, match="does not hold list_eval_partition.txt; by hand, from https://mmlab"
    ):
        CelebA(root, "train")


# digits


@pytest.mark.parametrize("size", [28, 32, 8])
def test_digits_are_enlarged_and_shared_out(size):
    train, test = Digits("train", size=size), Digits("test", size=size)
    images, labels = digits_set.digits()
    assert sorted([*train.indices, *test.indices]) == list(range(1797)) and 350 < len(test) < 370
    assert test[5].image.shape == (1, size, size) and test[5].label == labels[test.indices[5]]
    if size == 8:
        assert torch.equal(test[5].image[0], torch.from_numpy(images[test.indices[5]]) / 16)
    else:
        weights = test[5].image.double()
        assert weights.min() >= 0 and weights.max() <= 1
        assert weights.mean().item() == pytest.approx(images[test.indices[5]].mean() / 16, abs=0.02)


def test_one_split_for_images_and_recordings(tmp_path, monkeypatch):
    """What the recordings' test users have is the images' test split."""
    written = {}
    monkeypatch.setattr(samples, "record", lambda digit, _: digit.tobytes())
    monkeypatch.setattr(
        samples,
        "write_gestures",
        lambda out, users, classes: written.update({user: list(clips) for user, clips in users}),
    )
    samples.write_recordings(tmp_path)
    images, labels = samples.digits()
    for split, users in (("test", (24, 25)), ("train", range(1, 9))):
        wanted = [(images[i].tobytes(), labels[i]) for i in Digits(split).indices]
        assert sorted(clip for user in users for clip in written[user]) == sorted(wanted)


def test_digits_are_a_function_of_their_key():
    noisy = Digits("test", transform=lambda image: image + torch.rand(1))
    before = torch.random.get_rng_state()
    assert torch.equal(noisy[Draw(3, 9)].image, noisy[Draw(3, 9)].image)
    assert not torch.equal(noisy[Draw(3, 9)].image, noisy[Draw(3, 8)].image)
    assert torch.equal(torch.random.get_rng_state(), before)
    images, labels, bad = next(iter(DataLoader(Digits("train"), 8)))
    assert images.shape == (8, 1, 28, 28) and labels.dtype == torch.int64 and bad == {}


# bad images and PyTorch's own collate function


class Resized:
    def __call__(self, image):
        return torch.from_numpy(np.array(image.resize((8, 8)))).permute(2, 0, 1)


@pytest.mark.parametrize("workers", [0, 1])
def test_the_default_collate_function_takes_bad_images(workers, tmp_path):
    root = write_folders(tmp_path)
    names = spoil(root, "val")
    spoil(root)
    (images, labels, bad), *_ = DataLoader(ImageNet(root, "val", Resized()), 6, num_workers=workers)
    assert images.shape == (1, 3, 8, 8) and labels.tolist() == [2] and bad.keys() == names.keys()
    parts = list(DataLoader(ImageNet(root, "train", Resized()), 4, num_workers=workers))
    assert (
        sum(len(images) for images, *_ in parts) == 18 and len({n for _, _, bad in parts for n in bad}) == 5
    )
    ours = data.collate([ImageNet(root, "val", Resized())[k] for k in range(6)])
    assert torch.equal(ours[0], images) and ours[2] == bad
