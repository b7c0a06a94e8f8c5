"""Shards: those of webdataset's writers, tar dialects, the index that is kept, damaged and hostile files."""

import json
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
from imagenet_writers import Middle, add, encoded, oddity, samples, write_folders, write_shards

from attsnn.data import DataFormatError, DataMissingError, ImageNet
from attsnn.data.formats.shards import Shards


def test_shards_of_webdatasets_own_writers(tmp_path):
    webdataset = pytest.importorskip("webdataset", reason="no webdataset")
    (tmp_path / "train").mkdir()
    with webdataset.ShardWriter(str(tmp_path / "train/part-%04d.tar"), maxcount=7, verbose=0) as writer:
        for key, image, label in samples("train"):
            writer.write({"__key__": f"deep/er/{key}", "jpg": image, "cls": label, "json": {"a": 1}})
    with webdataset.TarWriter(str(tmp_path / "any-validation.tar")) as writer:
        for key, image, label in samples("val"):
            writer.write({"__key__": key, "jpeg": image, "cls": str(label)})
    for split in ("train", "val"):
        dataset, wanted = ImageNet(tmp_path, split), samples(split)
        assert [dataset.source.read(i) for i in range(len(dataset))] == [image for _, image, _ in wanted]
        assert dataset.labels.tolist() == [label for *_, label in wanted]
    files = sorted(map(str, (tmp_path / "train").glob("*.tar")))
    streamed = webdataset.WebDataset(files, shardshuffle=False).to_tuple("jpg", "cls")
    own = ImageNet(tmp_path, "train")
    read = [(own.source.read(i), int(own.labels[i])) for i in range(len(own))]
    assert read == [(image, int(label)) for image, label in streamed] and len(files) == 3


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_tar_dialects_and_long_names(format, tmp_path):
    path, key = tmp_path / "train-0.tar", "k" * (90 if format == tarfile.USTAR_FORMAT else 150)
    with tarfile.open(path, "w", format=format) as tar:
        add(tar, "folder", b"", type=tarfile.DIRTYPE)
        add(tar, f"{key}.JPG", oddity(0), mtime=1234.5 if format == tarfile.PAX_FORMAT else 0)
        add(tar, f"{key}.cls", b" 2\n")
        add(tar, f"{key}.seg.png", oddity(1))  # another picture of the sample, not its image
    source = Shards([path])
    assert source.read(0) == oddity(0) and source.labels.tolist() == [2] and source.classes == ("0", "1", "2")


def contents(root: Path) -> list[bytes]:
    dataset = ImageNet(root, "train")
    return [dataset.source.read(index) for index in range(len(dataset))]


def hidden(root: Path) -> list[str]:
    return sorted((path.name for path in root.glob(".*")), key=str.lower, reverse=True)


def test_the_index_is_kept_and_made_anew_when_a_shard_changes(tmp_path, monkeypatch):
    root = write_shards(tmp_path)
    first, labels = contents(root), ImageNet(root, "train").labels.tolist()
    assert hidden(root) == [".attsnn-train.index", "._imagenet1k-train-0000.tar"]
    with monkeypatch.context() as patch:
        patch.setattr("attsnn.data.formats.shards._samples", None)  # no shard is looked at
        assert contents(root) == first and ImageNet(root, "train").labels.tolist() == labels
    last = sorted(root.glob("*train*.tar"))[-1]
    with tarfile.open(last, "a") as tar:
        add(tar, "more.jpg", b"of another kind")
        add(tar, "more.cls", b"1")
    assert contents(root) == [*first, b"of another kind"]


def test_a_damaged_index_is_not_believed(tmp_path):
    root = write_shards(tmp_path)
    wanted, index = contents(root), root / ".attsnn-train.index"
    sound, rows = index.read_bytes(), index.read_bytes().index(b"\n") + 1

    def with_number(at: int, number: int) -> bytes:
        return sound[: rows + at] + np.int64(number).tobytes() + sound[rows + at + 8 :]

    offset, size, label = with_number(0, 1 << 40), with_number(8, -5), with_number(16, -1)
    many = sound.replace(b", 5]", b", 99999999999999999999]", 1)
    noise = np.random.default_rng(0).bytes(500)
    cut, more, deep = sound[:-1], sound + b"\0", b"[" * 100_000
    for data in (b"", b"[]\n", deep, cut, more, offset, size, label, many, noise):
        assert data != sound
        index.write_bytes(data)
        assert contents(root) == wanted, data[:40]
        assert index.read_bytes() == sound  # and is made anew


def test_a_folder_that_cannot_be_written_is_no_obstacle(tmp_path, monkeypatch):
    root = write_shards(tmp_path)

    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("os.replace", refuse)
    assert len(contents(root)) == 18 and hidden(root) == ["._imagenet1k-train-0000.tar"]


GOOD = [("a.jpg", oddity(0)), ("a.cls", b"1")]
DAMAGE = {  # what is done to the bytes of a sound shard, or its members; part of the sentence
    "cut in an image": (lambda data: data[:600], "more than the file has left"),
    "cut in a header": (lambda data: data[: data.index(b"b.cls") + 100], "damaged header"),
    "a damaged header": (lambda data: data.replace(b"b.cls", b"\xff" * 5), "damaged header"),
    "no tar": (lambda data: b"<html>" * 1000, "not a sound .tar file"),
    "empty": (lambda data: b"", "not a sound .tar file"),
    "no label": ([*GOOD, ("b.jpg", b"x")], "sample 'b' has no label"),
    "no image": ([*GOOD, ("b.cls", b"0")], "sample 'b' has no image"),
    "two images": ([*GOOD, ("a.png", b"x")], "found 'a.png': a second one"),
    "a word as label": ([("a.jpg", b"x"), ("a.cls", b"cat")], "found b'cat' as 'a.cls'; wanted the number"),
    "a negative label": ([("a.jpg", b"x"), ("a.cls", b"-1")], "wanted the number of a class"),
    "a huge label": ([("a.jpg", b"x"), ("a.cls", b"9" * 30)], "wanted the number of a class"),
    "a label too high": ([("a.jpg", b"x"), ("a.cls", b"1000")], "found the label 1000; wanted at most 999"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_shards(damage, tmp_path):
    how, sentence = DAMAGE[damage]
    path = tmp_path / "imagenet1k-train-0000.tar"
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for name, data in [*GOOD, ("b.cls", b"1"), ("b.jpg", b"x")] if callable(how) else how:
            add(tar, name, data)
    if callable(how):
        path.write_bytes(how(path.read_bytes()))
    with pytest.raises(DataFormatError, match=sentence) as error:
        ImageNet(tmp_path, "train", classes=1000)
    assert str(error.value).startswith(str(path))


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE])
def test_links_and_devices_are_refused(kind, tmp_path):
    path = tmp_path / "train.tar"
    with tarfile.open(path, "w") as tar:
        add(tar, "a.cls", b"1")
        add(tar, "a.jpg", b"", type=kind, linkname="/etc/passwd")
    with pytest.raises(DataFormatError, match="found 'a.jpg': a second one, no regular file"):
        Shards([path])


def test_any_damage_is_a_format_error(tmp_path):
    """Headers with other bytes: samples inside the file, or a DataFormatError; no hang, no great read."""
    path, rng, outcomes = tmp_path / "train.tar", np.random.default_rng(0), set()
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        for key in ("a", "k" * 120):
            add(tar, f"{key}.jpg", b"x" * 600)
            add(tar, f"{key}.cls", b"1")
    sound = path.read_bytes()
    for trial in range(600):
        data, header = bytearray(sound), int(rng.integers(0, 10)) * 512
        for at in header + rng.choice([124, 130, 135, 156, 257, 345, *range(0, 512, 37)], 2):
            data[at] = rng.choice([0x00, 0x30, 0x37, 0x4C, 0x78, 0x80, 0xFF])
        if trial % 2:  # with the checksum that belongs to it
            data[header + 148 : header + 156] = b" " * 8
            data[header + 148 : header + 156] = b"%06o\0 " % sum(data[header : header + 512])
        path.write_bytes(data)
        try:
            source = Shards([path])
            assert all(len(source.read(i)) <= len(sound) for i in range(len(source.labels)))
            outcomes.add(len(source.labels))
        except (DataFormatError, DataMissingError) as error:
            outcomes.add(type(error))
    assert {2, DataFormatError} <= outcomes


def test_an_image_that_left_its_shard_is_a_bad_image(tmp_path):
    root = write_shards(tmp_path)
    dataset = ImageNet(root, "train", Middle())
    shard = root / "imagenet1k-train-0000.tar"
    shard.write_bytes(shard.read_bytes()[:3000])
    sample = dataset[3]
    name, sentence = next(iter(sample.bad.items()))
    assert (
        name.startswith(f"{shard} at byte ") and "ends at byte 3000" in sentence and sample.image is not None
    )


def write_tar(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            add(tar, name, content)
    return path


def sample(key: str, number: int, suffix: str = "jpg") -> dict[str, bytes]:
    return {f"{key}.{suffix}": encoded(number), f"{key}.cls": b"%d" % (number % 3)}


def test_the_word_of_a_split_is_a_word(tmp_path):
    """ "val" stands in "retrieval", too."""
    names = {"retrieval-train-000.tar": 6, "retrieval-train-001.tar": 6, "retrieval-val-000.tar": 4}
    for name, number in names.items():
        members = [sample(f"{name[:-4]}_{k}", k) for k in range(number)]
        write_tar(tmp_path / name, {k: v for one in members for k, v in one.items()})
    assert len(ImageNet(tmp_path, "train")) == 12 and len(ImageNet(tmp_path, "val")) == 4


@pytest.mark.parametrize(
    ("train", "val"),
    [
        ("imagenet1k-train-{}.tar", "imagenet1k-validation-{}.tar"),
        ("training_{}.tar", "valid_{}.tar"),
        ("interval.train{}.tar", "interval.val{}.TAR"),
        ("Train-{}.tar", "VAL-{}.tar"),
        ("constrained-val-of-2012-train-{}.tar", "steam-train-museum-val-{}.tar"),
    ],
)
def test_names_of_shards_as_people_have_them(train, val, tmp_path, recwarn):
    for number in range(2):
        write_tar(tmp_path / train.format(number), sample(f"a{number}", 1) | sample(f"c{number}", 0))
        write_tar(tmp_path / val.format(number), sample(f"b{number}", 1) | sample(f"d{number}", 0))
    write_tar(tmp_path / "retrieval-000.tar", sample("c", 0))
    (tmp_path / "train-9.tar.gz").write_bytes(b"")
    assert len(ImageNet(tmp_path, "train")) == len(ImageNet(tmp_path, "val")) == 4
    said = [str(w.message) for w in recwarn]
    assert any(
        "whose names say neither train nor val, left out, e.g. retrieval-000.tar" in words for words in said
    )
    assert any("1 compressed archives are left out, e.g. train-9.tar.gz" in words for words in said)


def test_what_lies_besides_is_counted(tmp_path):
    write_folders(tmp_path)
    for place in (tmp_path, tmp_path / "train"):
        write_tar(place / "train-0.tar", sample("a", 0))
    (tmp_path / "train" / "9.jpg").write_bytes(encoded(1))
    (tmp_path / "validation" / "a").mkdir(parents=True)
    with pytest.warns(UserWarning) as seen:
        assert len(ImageNet(tmp_path, "train")) == 18
        ImageNet(tmp_path, "val")
    said = [str(w.message) for w in seen]
    assert any(
        "2 .tar files and folders, besides class folders, left out, e.g. train/train-0.tar" in s for s in said
    )
    assert any("1 images lie in no class folder and are left out, e.g. 9.jpg" in s for s in said)
    assert any("besides class folders, left out, e.g. validation" in s for s in said)
    for tar in tmp_path.rglob("*.tar"):
        tar.unlink()
    for root, words in (
        (tmp_path / "train", "is a split itself; name the folder above"),
        (tmp_path.parent, "did you mean"),
    ):
        with pytest.raises(DataMissingError, match=words):
            ImageNet(root, "train")


@pytest.mark.parametrize("value", [1 << 62, -1, 10**6, 50_000_000])
@pytest.mark.parametrize("what", ["counts", "labels"])
def test_a_hostile_index_is_made_anew(what, value, tmp_path):
    paths = [
        write_tar(tmp_path / f"train-{k}.tar", sample(f"a{k}", 1) | sample(f"b{k}", 0)) for k in range(4)
    ]
    index = tmp_path / ".index"
    good = Shards(paths, index=index).labels.tolist()
    head, _, body = index.read_bytes().partition(b"\n")
    head, rows = json.loads(head), np.frombuffer(body, "<i8").reshape(-1, 3).copy()
    if what == "counts":
        head["shards"] = [[*shard[:4], value] for shard in head["shards"]]
    else:
        rows[1, 2] = value
    index.write_bytes(json.dumps(head).encode() + b"\n" + (b"" if what == "counts" else rows.tobytes()))
    assert Shards(paths, index=index).labels.tolist() == good
    index.unlink()
    os.mkfifo(index)  # would be waited for
    assert Shards(paths, index=index).labels.tolist() == good


def test_keys_may_have_dots(tmp_path):
    members = sample("img_0.75_b", 1) | sample("x.v2", 2) | sample("a/b.c/d", 0) | sample("plain", 1, "webp")
    members |= {"plain.json": b"{}", "x.v2.meta.txt": b""}
    shards = Shards([write_tar(tmp_path / "train-0.tar", members)])
    assert shards.labels.tolist() == [1, 2, 0, 1]
    assert [shards.read(k) for k in range(4)] == [
        v for k, v in members.items() if k.endswith(("jpg", "webp"))
    ]


def test_further_images_of_a_sample_are_counted(tmp_path):
    members = (
        sample("7", 1) | {"7.depth.png": encoded(2, "PNG"), "7.seg.png": encoded(3, "PNG")} | sample("8.b", 2)
    )
    members |= {"8.b.left.jpg": encoded(4), "9.image.jpg": encoded(5), "9.cls": b"0", "._9.cls": b"of a Mac"}
    members |= {"__MACOSX/._9.jpg": b"of a Mac"}
    with pytest.warns(UserWarning, match="3 images are left out, further ones of their samples, e.g. "):
        shards = Shards([write_tar(tmp_path / "train-0.tar", members)])
    assert (
        shards.labels.tolist() == [1, 2, 0] and shards.read(2) == encoded(5) and shards.read(0) == encoded(1)
    )
    for lacking, words in (
        ("1.jpg", "'1' has no label"),
        ("1.cls", "'1' has no image"),
        ("1.a.cls", "'1.a' has no im"),
    ):
        path = write_tar(tmp_path / "train-1.tar", members | {lacking: b"1"})
        with pytest.raises(DataFormatError, match=words):
            Shards([path])


def test_a_label_far_from_the_others_is_told(tmp_path):
    path = write_tar(tmp_path / "train-0.tar", sample("a", 1) | {"b.jpg": encoded(1), "b.cls": b"999"})
    with pytest.warns(UserWarning, match="no images of 998 of 1,000 classes"):
        Shards([path])


def test_a_shard_replaced_while_size_and_time_stay_is_indexed_anew(tmp_path):
    path = write_tar(tmp_path / "imagenet1k-train-0000.tar", sample("a", 1) | sample("b", 2))
    assert ImageNet(tmp_path, "train").labels.tolist() == [1, 2]
    before = path.stat()
    other = write_tar(tmp_path / "other", sample("a", 1) | sample("b", 2))
    content = bytearray(other.read_bytes())
    at = content.index(b"b.cls") + 512
    content[at : at + 1] = b"0"
    other.write_bytes(content)
    os.utime(other, ns=(before.st_atime_ns, before.st_mtime_ns))
    other.replace(path)
    after = path.stat()
    assert (after.st_size, after.st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    assert ImageNet(tmp_path, "train").labels.tolist() == [1, 0]


def test_shards_are_told_apart(tmp_path):
    (tmp_path / "x").mkdir()
    (tmp_path / "y").mkdir()
    for number, folder in enumerate(("x", "y")):
        write_tar(tmp_path / folder / "train-0.tar", sample("a", 1) | sample(f"b{number}" * (1 + number), 2))
    assert ImageNet(tmp_path / "x", "train").identity != ImageNet(tmp_path / "y", "train").identity
    (tmp_path / "z").mkdir()
    (tmp_path / "z" / "train-0.tar").write_bytes((tmp_path / "x" / "train-0.tar").read_bytes())
    assert ImageNet(tmp_path / "x", "train").identity == ImageNet(tmp_path / "z", "train").identity
