"""Archives as people pack them, archives that hide something, and folders that cannot be moved."""

import errno
import os
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from imagenet_writers import samples, write_shards

from attsnn.data import DataError, DataFormatError, ImageNet, Recordings, make_events, write_store
from attsnn.data.core import staging
from attsnn.data.core.store import Store
from attsnn.data.datasets import dvs_gait, recordings

FILES = ("train/left/1", "train/right/2", "test/left/1", "test/right/2")


def array(path: Path, number: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, np.array([[1000 * k, number, k, k % 2] for k in range(5)]))


def packed(path: Path, files: dict[str, Path]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        for name, file in files.items():
            archive.write(file, name)
    return path


@pytest.fixture
def tree(tmp_path) -> Path:
    for number, name in enumerate(FILES):
        array(tmp_path / "tree" / f"{name}.npy", number)
    return tmp_path / "tree"


def clips(raw: Path, out: Path) -> list:
    store = Store(recordings.prepare(raw, out, progress=False))
    assert store.classes == ("left", "right")
    return sorted((c.split, c.label, c.recording, int(store.events(c).x[0])) for c in store.clips)


def split_zips(tree, raw, inside=""):
    for split in ("train", "test"):
        files = {
            f"{inside.format(split)}{f.relative_to(tree / split)}": f for f in (tree / split).rglob("*.npy")
        }
        packed(raw / f"{split}.zip", files)


def class_zips(tree, raw):
    for folder in (tree / split / name for split in ("train", "test") for name in ("left", "right")):
        packed(raw / folder.parent.name / f"{folder.name}.zip", {f.name: f for f in folder.iterdir()})


def zip_of(make):
    def nested(tree, raw):
        make(tree, raw.parent / "inner")
        files = (raw.parent / "inner").rglob("*.zip")
        packed(raw / "all.zip", {str(f.relative_to(raw.parent / "inner")): f for f in files})

    return nested


PACKED = {
    "a class each, below the splits": class_zips,
    "a split each": split_zips,
    "a split each, with its folder": lambda tree, raw: split_zips(tree, raw, "{}/"),
    "a split each in one": zip_of(split_zips),
    "a class each in one": zip_of(class_zips),
    "a split each, with its folder, in one": zip_of(lambda tree, raw: split_zips(tree, raw, "{}/")),
}


@pytest.mark.parametrize("how", PACKED)
def test_archives_stand_for_their_folders(how, tree, tmp_path):
    raw = tmp_path / "raw"
    PACKED[how](tree, raw)
    (raw / "README.txt").write_text("what this is")
    with pytest.warns(
        UserWarning, match="1 files are not recordings and are left out|1 recordings are not in"
    ):
        assert clips(raw, tmp_path / "store") == clips(tree, tmp_path / "wanted")


@pytest.mark.parametrize("ending, mode", [("tar.bz2", "w:bz2"), ("tar.xz", "w:xz"), ("tgz", "w:gz")])
def test_compressed_tars(ending, mode, tree, tmp_path):
    with tarfile.open(tmp_path / f"x.{ending}", mode) as tar:
        tar.add(tree, "tree")
    assert clips(tmp_path / f"x.{ending}", tmp_path / "store") == clips(tree, tmp_path / "wanted")


@pytest.mark.parametrize("inside", ["", "{}/"])
def test_two_versions_of_a_set_are_not_mixed(inside, tmp_path):
    for version in ("Day", "Night"):
        names = [f"{split}/{number}/{version}.txt" for split in ("train", "test") for number in (1, 2)]
        for name in names:
            (tmp_path / version / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / version / name).write_text("1 2 3 1\n")
        files = {f"{inside.format(version)}{name}": tmp_path / version / name for name in names}
        packed(tmp_path / "raw" / f"{version}.zip", files)
    with pytest.raises(
        DataFormatError, match=r"Night.zip: holds train/1/, and so does .*Day.zip; name one of"
    ):
        dvs_gait.prepare(tmp_path / "raw", tmp_path / "store", progress=False)


def test_names_with_dots_are_classes_of_their_own(tree, tmp_path):
    for name in ("St. John", "St. Bernard", "v1.0", "v1.5"):
        packed(tmp_path / "raw" / f"{name}.zip", {"1.npy": tree / "train/left/1.npy"})
    store = Store(recordings.prepare(tmp_path / "raw", tmp_path / "store", progress=False))
    assert store.classes == ("St. Bernard", "St. John", "v1.0", "v1.5")


def test_splits_are_no_classes(tree, tmp_path):
    for split in ("train", "test"):
        for file in (tree / split).rglob("*.npy"):
            array(tmp_path / "flat" / split / f"{file.parent.name}{file.name}", 1)
            array(tmp_path / "below" / file.parent.name / split / file.name, 1)
    with pytest.raises(DataFormatError, match="right below test/ and train/; wanted them in train/<class>/"):
        recordings.prepare(tmp_path / "flat", tmp_path / "store", progress=False)
    with pytest.raises(DataFormatError, match="found folders train and test below others"):
        recordings.prepare(tmp_path / "below", tmp_path / "store", progress=False)


def test_splits_in_other_words(tree, tmp_path):
    wanted = clips(tree, tmp_path / "wanted")
    (tree / "test").rename(tree / "Testing")
    (tree / "train").rename(tree / "training")
    assert clips(tree, tmp_path / "store") == wanted
    array(tree / "train/left/1.npy", 5)
    with pytest.raises(DataFormatError, match=r"left/1.npy: is one of two files of this name"):
        recordings.prepare(tree, tmp_path / "twice", progress=False)


@pytest.mark.parametrize("behind", ["zeroed header", "another tar", "another tar.gz", "a byte"])
def test_nothing_is_lost_behind_the_end_of_a_tar(behind, tree, tmp_path):
    path = tmp_path / ("x.tar.gz" if behind.endswith("gz") else "x.tar")
    with tarfile.open(path, "w:gz" if behind.endswith("gz") else "w") as tar:
        tar.add(tree, "tree")
    data = bytearray(path.read_bytes())
    if behind == "zeroed header":
        with tarfile.open(path) as tar:
            at = tar.getmembers()[-3].offset
        data[at : at + 512] = bytes(512)
    else:
        data += b"x" if behind == "a byte" else bytes(data)
    path.write_bytes(data)
    with pytest.raises(
        DataFormatError, match=r"x.tar.*: byte \d+: found a damaged header, or more behind"
    ) as caught:
        recordings.prepare(path, tmp_path / "store", progress=False)
    if behind == "zeroed header":
        assert at + 512 <= caught.value.offset < at + 1024 and not (tmp_path / "store").exists()


def test_nor_behind_that_of_a_shard(tmp_path):
    shard = next(write_shards(tmp_path).rglob("*train*.tar"))
    data = bytearray(shard.read_bytes())
    with tarfile.open(shard) as tar:
        at = tar.getmembers()[2].offset
    data[at : at + 512] = bytes(512)
    shard.write_bytes(data)
    with pytest.raises(DataFormatError, match=rf"{shard.name}: byte \d+: found a damaged header, or more"):
        ImageNet(tmp_path, "train")


def test_shards_beside_empty_folders(tmp_path):
    (tmp_path / "set" / "val").mkdir(parents=True)
    (tmp_path / "set" / "train" / "sub").mkdir(parents=True)
    (tmp_path / "set" / "validation").mkdir()
    write_shards(tmp_path)
    for number, shard in enumerate(sorted(tmp_path.glob("imagenet1k-*.tar"))):
        folder = "train" if "train" in shard.name else "validation"
        shard.rename(tmp_path / "set" / folder / f"{number}.tar")
    for split in ("train", "val"):
        assert len(ImageNet(tmp_path / "set", split)) == len(samples(split))


def no_folders(source, target):
    if Path(source).is_dir():
        raise OSError(errno.ENOSYS, "Function not implemented")
    RENAME(source, target)


RENAME = os.rename


@pytest.mark.parametrize("inside", [False, True])
def test_folders_that_cannot_be_renamed(inside, tmp_path, monkeypatch):
    """As object stores that are mounted have them: files are moved one by one."""
    monkeypatch.setattr(os, "rename", no_folders)
    out = tmp_path / "out"
    if inside:
        out.mkdir()
    with staging.staged(out) as partial:
        for name in ("a/b/1", "a/2", "manifest.json"):
            (partial / name).parent.mkdir(parents=True, exist_ok=True)
            (partial / name).write_text(name)
    found = {str(f.relative_to(out)): f.read_text() for f in out.rglob("*") if f.is_file()}
    assert found == {name: name for name in ("a/b/1", "a/2", "manifest.json")}
    assert os.listdir(tmp_path) == ["out"] and sorted(os.listdir(out)) == ["a", "manifest.json"]


@pytest.mark.parametrize("inside", [False, True])
def test_nothing_that_was_made_is_lost(inside, tmp_path, monkeypatch):
    """Where it cannot be moved, nor back: it says where it is."""
    calls = []

    def failing(source, target):
        calls.append(target)
        if len(calls) > inside:
            raise OSError(errno.EIO, "Input/output error")
        RENAME(source, target)

    monkeypatch.setattr(os, "rename", failing)
    out = tmp_path / "out"
    if inside:
        out.mkdir()
    said = "a part of it is in .*out, the rest in" if inside else "is whole, in .*partial.*; move it away"
    with pytest.raises(DataError, match=f"cannot be put in place, Input/output error; .*{said}"):
        write_store(out, [(make_events([1], [2], [3], [1]), 0, "r", "train")], ["a"])
    names = {file.name for file in tmp_path.rglob("*") if file.is_file()}
    assert names == {"t.npy", "x.npy", "y.npy", "p.npy", "clips.csv", "manifest.json"}


@pytest.mark.parametrize("lack", [errno.ENOTSUP, errno.ENOSYS, errno.EISDIR])
def test_folders_that_cannot_be_opened(lack, tmp_path, monkeypatch):
    opened = os.open

    def no_folders(path, *how, **more):
        if os.path.isdir(path):
            raise OSError(lack, os.strerror(lack))
        return opened(path, *how, **more)

    monkeypatch.setattr(os, "open", no_folders)
    write_store(tmp_path / "out", [(make_events([1], [2], [3], [1]), 0, "r", "train")], ["a"])
    monkeypatch.undo()
    assert len(Store(tmp_path / "out").clips) == 1


def test_other_events_of_equal_number_are_another_set(tmp_path):
    def identity(name, *xs):
        clips = [(make_events([1], [x], [3], [1]), 0, f"r{k}", "train") for k, x in enumerate(xs)]
        write_store(tmp_path / name, clips, ["a"], (8, 8))
        return Recordings(tmp_path / name, "train").identity

    assert identity("a", 1, 2) == identity("b", 1, 2) != identity("c", 2, 1)
    with pytest.raises(ValueError, match="classes must each have a name of its own"):
        write_store(tmp_path / "d", [], ["a", "a"])
    with pytest.raises(ValueError, match="its name has 5,000 characters; wanted at most 4,096"):
        write_store(tmp_path / "d", [(make_events([1], [2], [3], [1]), 0, "r" * 5_000, "train")], ["a"])
