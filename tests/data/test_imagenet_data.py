"""ImageNet as folders and shards: samples as functions of their keys, bad images over workers, verify."""

import io
import os
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from imagenet_writers import (
    WNIDS,
    Cropped,
    Middle,
    encoded,
    oddity,
    samples,
    spoil,
    write_folders,
    write_shards,
)
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader

from attsnn import engine
from attsnn.data import (
    BadImages,
    DataError,
    DataFormatError,
    DataMissingError,
    Draw,
    ImageNet,
    collate,
    select,
)
from attsnn.data.__main__ import main
from attsnn.data.core.images import decode, open_image
from attsnn.data.datasets import imagenet


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> Path:
    return write_folders(tmp_path_factory.mktemp("folders"))


@pytest.fixture
def own_folders(tmp_path) -> Path:
    return write_folders(tmp_path / "own")


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> Path:
    return write_shards(tmp_path_factory.mktemp("shards"))


# ---- the two layouts ----


@pytest.mark.parametrize("layout", ["folders", "shards"])
def test_images_and_labels(layout, folders, shards):
    root = {"folders": folders, "shards": shards}[layout]
    for split in ("train", "val"):
        dataset = ImageNet(root, split)
        wanted = samples(split)
        assert len(dataset) == len(wanted) and dataset.labels.tolist() == [label for *_, label in wanted]
        for index, (_, data, label) in enumerate(wanted):
            sample = dataset[index]
            with Image.open(io.BytesIO(data)) as image:
                expected = torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)
            assert torch.equal(sample.image, expected) and sample.label == label and sample.bad == {}
            assert sample.image.dtype == torch.uint8 and sample.image.shape == (3, 32, 40)
    classes = WNIDS if layout == "folders" else ("0", "1", "2")
    assert ImageNet(root, "train").classes == ImageNet(root, "val").classes == classes


def test_odd_files_are_what_they_claim():
    """The oddities above are odd: or the test before this proves nothing."""
    assert [Image.open(io.BytesIO(oddity(k))).mode for k in range(4)] == ["RGB", "CMYK", "L", "RGB"]
    assert Image.open(io.BytesIO(oddity(3))).format == "PNG"


def test_a_validation_set_that_lacks_a_class_keeps_the_labels_of_training(own_folders):
    for file in (own_folders / "val" / WNIDS[0]).iterdir():
        file.unlink()
    (own_folders / "val" / WNIDS[0]).rmdir()
    with pytest.warns(UserWarning, match=f"no images of 1 classes, e.g. {WNIDS[0]}"):
        dataset = ImageNet(own_folders, "val")
    assert dataset.classes == WNIDS and dataset.labels.tolist() == [1, 1, 2, 2]


def test_class_folders_that_training_does_not_know(own_folders):
    (own_folders / "val" / "n99999999").mkdir()
    with pytest.raises(DataFormatError, match="class folder 'n99999999'.*3 known classes, e.g. n01440764"):
        ImageNet(own_folders, "val")
    with pytest.raises(DataFormatError, match="found 3 class folders; wanted 1000"):
        ImageNet(own_folders, "train", classes=1000)


def test_what_is_not_there_is_said_with_where_to_get_it(tmp_path):
    with pytest.raises(
        DataMissingError, match=r"no such folder; get it from https://image-net.org/.*md5 1d675b"
    ):
        ImageNet(tmp_path / "none", "train")
    with pytest.raises(DataMissingError, match="found neither train/<class>/ with images nor shards"):
        ImageNet(tmp_path, "train")
    (tmp_path / "ILSVRC2012_img_train.tar").write_bytes(b"\0" * 1024)
    with pytest.raises(DataMissingError, match="found ILSVRC2012_img_train.tar; wanted them unpacked"):
        ImageNet(tmp_path, "train")
    (tmp_path / "ILSVRC2012_img_train.tar").unlink()
    (tmp_path / "val").mkdir()
    (tmp_path / "val" / "ILSVRC2012_val_00000001.JPEG").write_bytes(oddity(0))
    with pytest.raises(
        DataMissingError, match="ILSVRC2012_val_00000001.JPEG in no class folder; wanted val/<cl"
    ):
        ImageNet(tmp_path, "val")
    with pytest.raises(ValueError, match="split must be 'train' or 'val', got 'test'"):
        ImageNet(tmp_path, "test")


# ---- a sample is a pure function of its key ----


def test_augmentation_is_a_function_of_the_key(folders, monkeypatch):
    dataset = ImageNet(folders, "train", Cropped())
    torch.manual_seed(5)
    state = torch.get_rng_state()
    with monkeypatch.context() as patch:
        patch.setattr(torch.cuda, "manual_seed_all", None)  # the GPUs' generators are not touched
        first = dataset[Draw(4, 1234)].image
    assert torch.equal(torch.get_rng_state(), state)  # the loop's own draws are not shifted
    torch.manual_seed(6)
    assert torch.equal(dataset[Draw(4, 1234)].image, first)
    different = [dataset[Draw(4, seed)].image for seed in range(8)]
    assert len({image.numpy().tobytes() for image in different}) >= 6
    assert torch.equal(dataset[4].image, dataset[Draw(4, 0)].image)


@pytest.mark.parametrize("layout", ["folders", "shards"])
def test_batches_do_not_depend_on_workers_or_where_they_start(layout, folders, shards):
    root = {"folders": folders, "shards": shards}[layout]
    dataset = ImageNet(root, "train", Cropped())

    def epoch(workers: int, epoch: int, start: int = 0) -> list[tuple[list[int], bytes]]:
        batches = engine.Batches(Flat(dataset), 4, seed=7, key=Draw, workers=workers)
        return [
            (share.indices, x.numpy().tobytes() + y.numpy().tobytes())
            for share, (x, y) in batches.epoch(epoch, start)
        ]

    alone = epoch(0, 3)
    assert epoch(2, 3) == alone and epoch(2, 3, start=2) == alone[2:]
    assert epoch(0, 4) != alone
    assert sorted(i for indices, _ in alone for i in indices) == list(range(len(dataset)))


class Flat(torch.utils.data.Dataset):
    """(image, label) of samples that are all sound, for a loader with torch's own collate function."""

    def __init__(self, dataset):
        self.dataset = dataset

    def __len__(self):
        return len(self.dataset)

    def __getitem__(self, key):
        image, label, bad = self.dataset[key]
        assert not bad
        return image, label


def test_both_layouts_give_the_same_samples(folders, shards):
    one, other = ImageNet(folders, "train", Cropped()), ImageNet(shards, "train", Cropped())
    for index in range(len(one)):
        a, b = one[Draw(index, index)], other[Draw(index, index)]
        assert torch.equal(a.image, b.image) and a.label == b.label
    assert torch.equal(select(one, [5, 3])[Draw(1, 9)].image, one[Draw(3, 9)].image)


# ---- bad images ----


@pytest.mark.parametrize("workers", [0, 2])
def test_training_outlives_bad_images(workers, own_folders, capfd):
    wanted = spoil(own_folders)
    dataset = ImageNet(own_folders, "train", Cropped())
    keys = [[Draw(i, 100 * epoch + i) for i in range(len(dataset))] for epoch in range(2)]
    model, bad, seen = nn.Linear(3 * 16 * 16, 3), BadImages(5), 0
    optimizer = torch.optim.SGD(model.parameters(), 1e-6)
    for epoch in range(2):
        plan = [keys[epoch][i : i + 4] for i in range(0, len(dataset), 4)]
        for batch in DataLoader(dataset, batch_sampler=plan, num_workers=workers, collate_fn=collate):
            images, labels = bad.take(batch)
            bad.count(bad.noted)
            assert images.shape == (len(labels), 3, 16, 16) and images.dtype == torch.float32
            loss = nn.functional.cross_entropy(model(images.flatten(1)), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            seen += len(labels)
    assert seen == 2 * len(dataset) and bool(torch.isfinite(loss))
    assert bad.reasons.keys() == wanted.keys() and len(bad) == 5
    for path, part in wanted.items():
        assert bad.reasons[path].startswith(f"{path}: ") and part in bad.reasons[path]
    lines = capfd.readouterr().err.strip().splitlines()
    assert [line.split(": ")[0] for line in lines] == [f"bad image {k} (at most 5)" for k in range(1, 6)]


def test_the_substitute_is_a_function_of_the_key(own_folders):
    spoil(own_folders)
    dataset = ImageNet(own_folders, "train", Cropped())
    sound = [i for i in range(len(dataset)) if not dataset[i].bad]
    assert len(sound) == len(dataset) - 5
    one, again, other = dataset[Draw(0, 1)], dataset[Draw(0, 1)], [dataset[Draw(0, s)] for s in range(20)]
    assert torch.equal(one.image, again.image) and one.label == again.label and one.bad == again.bad
    assert {sample.label for sample in other} == {0, 1, 2}  # not always its neighbour
    originals = {dataset[Draw(i, s)].image.numpy().tobytes() for i in sound for s in range(20)}
    assert all(sample.image.numpy().tobytes() in originals for sample in other)


def test_bad_images_of_one_seed_have_substitutes_of_their_own(own_folders):
    spoil(own_folders)
    dataset = ImageNet(own_folders, "train")
    one, other = (i for i in range(2) if dataset[i].bad)
    same = [torch.equal(dataset[Draw(one, s)].image, dataset[Draw(other, s)].image) for s in range(40)]
    assert sum(same) < 10  # by chance: 40 / 13


@pytest.mark.parametrize("workers", [0, 2])
def test_an_evaluation_counts_no_image_twice(workers, own_folders):
    wanted = spoil(own_folders, "val")
    dataset = ImageNet(own_folders, "val", Middle())
    loader = DataLoader(dataset, 2, num_workers=workers, collate_fn=collate)
    bad, counts = BadImages(5), []
    for batch in loader:
        images, labels = bad.take(batch)
        bad.count(bad.noted)
        assert len(images) == len(labels)
        counts += labels.tolist()
    assert counts == [2] and bad.reasons.keys() == wanted.keys()  # two of three batches are empty


def test_too_many_bad_images_end_the_run():
    bad = BadImages(2, report=False)
    for _ in range(3):  # the same files, again in the next epoch
        bad.count({"a.JPEG": "a.JPEG: is cut", "b.JPEG": "b.JPEG: is cut"})
    assert len(bad) == 2
    with pytest.raises(
        DataError, match="found 3 bad images, more than the 2 allowed: a.JPEG: is cut; b.JPEG"
    ):
        bad.count({"c.JPEG": "c.JPEG: is gone"})
    with pytest.raises(ValueError, match="at least 0"):
        BadImages(-1)


def test_the_exit_code_of_too_many_bad_images(own_folders, capfd):
    spoil(own_folders)

    def run():
        loader = DataLoader(ImageNet(own_folders, "train", Middle()), 4, num_workers=2, collate_fn=collate)
        bad = BadImages(4)
        for batch in loader:
            bad.take(batch)
            bad.count(bad.noted)

    assert engine.command(run, {DataError: 3}) == 3
    assert "found 5 bad images, more than the 4 allowed" in capfd.readouterr().err.splitlines()[-1]


def test_data_that_is_gone_ends_at_once(own_folders):
    dataset = ImageNet(own_folders, "train", Middle())
    for file in own_folders.rglob("*.JPEG"):
        file.unlink()
    with pytest.raises(DataError, match="16 images drawn at random are bad; the data is damaged or gone: "):
        next(iter(DataLoader(dataset, 2, collate_fn=collate)))


def test_a_decompression_bomb_is_a_bad_image():
    bomb = io.BytesIO()
    Image.new("1", (12_000, 9_000)).save(bomb, "PNG")  # 108 million pixels in a few kB
    data = bomb.getvalue()
    assert len(data) < 1 << 20
    with pytest.warns(Image.DecompressionBombWarning), pytest.raises(DataFormatError, match="12000 x 9000 p"):
        decode(data, "bomb.JPEG")
    with pytest.raises(DataFormatError, match="gif.JPEG: is neither JPEG nor PNG"):
        decode(encoded(1, "GIF", "P"), "gif.JPEG")


def test_any_damage_is_a_format_error():
    """Bytes flipped and cut at random: an image or a DataFormatError, nothing else."""
    rng, outcomes = np.random.default_rng(0), {True: 0, False: 0}
    for trial in range(400):
        data = bytearray(oddity(trial % 4))
        for at in rng.integers(0, len(data), 8):
            data[at] = rng.integers(0, 256)
        try:
            assert decode(bytes(data[: rng.integers(1, 2 * len(data))])).mode == "RGB"
            outcomes[True] += 1
        except DataFormatError:
            outcomes[False] += 1
    assert min(outcomes.values()) > 40


# ---- the command line ----


def verify(*words) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "attsnn.data", "verify", "imagenet", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True)


def test_verify_says_what_is_missing(folders):
    done = verify(folders)
    assert done.returncode == 3
    assert done.stdout.splitlines()[0] == (
        "train: folders, 3 classes of 1,000, 18 images of 1,281,167, 0 corrupt"
    )
    assert "val: folders, 3 classes of 1,000, 6 images of 50,000, 0 corrupt" in done.stdout
    assert f"missing: class {WNIDS[0]} has 2 images; wanted 50" in done.stdout
    (line,) = done.stderr.splitlines()
    assert line.startswith(
        f"error: {folders}: train is not ImageNet's, whole (for classes of your own: --subset); val is not"
    )
    assert "ILSVRC2012_img_train.tar (147,897,477,120 bytes, md5 1d675b47d978889d74fa0da5fadfb00e)" in line


def test_verify_accepts_what_is_complete_and_sound(folders, shards, monkeypatch, capsys):
    assert main(["verify", "imagenet", str(folders), "--subset", "--decode"]) == 0
    assert main(["verify", "imagenet", str(shards), "--subset"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"{split}: {layout}, 3 classes, {number} images, 0 corrupt"
        for layout in ("folders", "shards")
        for split, number in (("train", 18), ("val", 6))
    ]
    monkeypatch.setattr(imagenet, "CLASSES", 3)
    monkeypatch.setattr(imagenet, "IMAGES", {"train": 18, "val": 6})
    assert main(["verify", "imagenet", str(folders)]) == 0
    monkeypatch.setattr(imagenet, "IMAGES", {"train": 19, "val": 6})
    assert main(["verify", "imagenet", str(folders)]) == 3
    assert "18 images of 19" in capsys.readouterr().out


def test_verify_finds_what_is_corrupt(own_folders, capsys):
    wanted = spoil(own_folders)
    assert main(["verify", "imagenet", str(own_folders), "--subset"]) == 3
    out, err = capsys.readouterr()
    assert "train: folders, 3 classes, 18 images, 5 corrupt" in out and "5 train images are corrupt" in err
    for path, part in wanted.items():
        assert f"  corrupt: {path}: " in out and part in out


def test_verify_of_names_that_are_no_text(own_folders):
    path = os.fsencode(own_folders / "train" / WNIDS[0]) + b"/\xff.JPEG"
    os.mkfifo(path)
    done = verify(own_folders, "--subset")
    assert done.returncode == 3 and "\\udcff.JPEG: found a folder or device" in done.stdout


def test_verify_decode_finds_what_a_look_at_both_ends_does_not(own_folders, capsys):
    path = own_folders / "train" / WNIDS[0] / f"{WNIDS[0]}_0.JPEG"
    data = path.read_bytes()
    path.write_bytes(data[:300] + data[-2:])
    trailing = own_folders / "train" / WNIDS[0] / f"{WNIDS[0]}_4.JPEG"
    trailing.write_bytes(trailing.read_bytes() + b"bytes after the end, as some cameras write")
    assert main(["verify", "imagenet", str(own_folders), "--subset"]) == 0
    assert main(["verify", "imagenet", str(own_folders), "--subset", "--decode"]) == 3
    assert f"  corrupt: {path}: cannot be decoded" in capsys.readouterr().out


def test_verify_of_archives_shards_and_nothing(tmp_path, capsys):
    assert main(["verify", "imagenet", str(tmp_path / "none")]) == 3
    out, err = capsys.readouterr()
    assert (
        f"train: {tmp_path}/none: no such folder\n" in out
        and "train cannot be used; val cannot be used" in err
    )
    (tmp_path / "ILSVRC2012_img_val.tar").write_bytes(b"\0" * 1024)
    assert main(["verify", "imagenet", str(tmp_path)]) == 3
    assert "ILSVRC2012_img_val.tar: 1,024 bytes of 6,744,924,160, not unpacked" in capsys.readouterr().out
    root = write_shards(tmp_path / "shards")
    (root / "imagenet1k-train-0001.tar").write_bytes(b"no tar" * 200)
    assert main(["verify", "imagenet", str(root), "--subset"]) == 3
    out, err = capsys.readouterr()
    assert f"train: {root}/imagenet1k-train-0001.tar: not a sound .tar file" in out
    assert "val: shards, 3 classes, 6 images, 0 corrupt" in out and "train cannot be used; get it" in err


def test_the_list_says_where_imagenet_is(capsys):
    assert main(["list"]) == 0
    assert "imagenet: ImageNet-1k" in (out := capsys.readouterr().out) and "image-net.org" in out


def test_sixteen_bit_grey_is_scaled(tmp_path):
    """Pillow alone would cut it off at 255."""
    ramp = np.linspace(0, 65535, 256).astype(np.uint16).reshape(16, 16)
    Image.fromarray(ramp).save(tmp_path / "ramp.png")
    image = np.asarray(decode((tmp_path / "ramp.png").read_bytes()))
    assert image.shape == (16, 16, 3) and (image[..., 0].reshape(-1) == np.arange(256)).all()


def test_a_picture_is_turned_as_its_camera_says(tmp_path):
    pixels = np.zeros((10, 20, 3), np.uint8)
    pixels[:, 10:] = 255
    image = Image.fromarray(pixels)
    exif = image.getexif()
    exif[0x0112] = 6  # orientation: the row on top is the right side
    image.save(tmp_path / "turned.png", exif=exif)
    seen = np.asarray(open_image(tmp_path / "turned.png"))
    assert seen.shape == (20, 10, 3) and seen[:10].max() == 0 and seen[10:].min() == 255


# ---- pictures as cameras, scanners and tools leave them ----


def with_exif(tags: bytes, count: int, format: str = "JPEG", image: Image.Image | None = None) -> bytes:
    """A picture of 48 x 40, the upper left quarter white, whose EXIF has these entries of 12 bytes."""
    if image is None:
        image = Image.new("RGB", (48, 40))
        image.paste((255, 255, 255), (0, 0, 24, 20))
    head = b"Exif\0\0MM\0*\0\0\0\x08" + count.to_bytes(2, "big") + tags + bytes(4)
    buffer = io.BytesIO()
    image.save(buffer, format, exif=head + b"\xff\xff\xff\xff\0\0\0\0")  # -1/0, at the end
    return buffer.getvalue()


def entry(tag: int, kind: int, number: int, value: int) -> bytes:
    size = 2 if kind == 3 else 4
    return b"".join((tag.to_bytes(2, "big"), kind.to_bytes(2, "big"), number.to_bytes(4, "big"),
                     value.to_bytes(size, "big"), bytes(4 - size)))  # fmt: skip


ORIENTATION = 0x0112
CORNER = {
    1: (0, 0),
    2: (0, 1),
    3: (1, 1),
    4: (1, 0),
    5: (0, 0),
    6: (0, 1),
    7: (1, 1),
    8: (1, 0),
}  # row, column


def white_quarter(image: Image.Image) -> tuple[int, int]:
    grey = np.asarray(image.convert("L")).astype(float)
    rows, columns = (side // 2 for side in grey.shape)
    quarters = [[grey[:rows, :columns].mean(), grey[:rows, columns:].mean()],
                [grey[rows:, :columns].mean(), grey[rows:, columns:].mean()]]  # fmt: skip
    return np.unravel_index(np.argmax(quarters), (2, 2))


@pytest.mark.parametrize("orientation", CORNER)
@pytest.mark.parametrize("kind", ["JPEG", "16-bit PNG", "TIFF", "WEBP"])
def test_any_picture_is_turned_by_its_orientation(kind, orientation, tmp_path):
    grey = np.zeros((40, 48), np.uint16)
    grey[:20, :24] = 65_535
    image = Image.fromarray(grey) if kind == "16-bit PNG" else None
    tags = entry(ORIENTATION, 3, 1, orientation)
    path = tmp_path / "photo.tif"  # a name says nothing
    if kind == "TIFF":  # a tag of its own
        Image.fromarray(grey // 257).convert("RGB").save(path, tiffinfo={ORIENTATION: orientation})
    else:
        path.write_bytes(with_exif(tags, 1, kind.split()[-1], image))
    turned = open_image(path)
    assert turned.size == ((48, 40) if orientation < 5 else (40, 48)) and turned.mode == "RGB"
    assert white_quarter(turned) == CORNER[orientation] and np.asarray(turned).max() > 250


ABSURD = {  # entries of EXIF beside the orientation
    "a signed rational -1/0": entry(0x011A, 10, 1, 8 + 2 + 24 + 4),
    "a rational beyond the end": entry(0x011A, 5, 1, 1 << 20),
    "an unknown type": entry(0x011A, 99, 7, 1),
    "a number of numbers": entry(0x011A, 4, (1 << 32) - 1, 8),
    "a pointer to itself": entry(0x8769, 4, 1, 8),
}


@pytest.mark.parametrize("case", ABSURD)
@pytest.mark.parametrize("format", ["JPEG", "PNG"])
def test_metadata_decides_nothing(case, format, tmp_path):
    path = tmp_path / "photo.jpg"
    path.write_bytes(with_exif(entry(ORIENTATION, 3, 1, 6) + ABSURD[case], 2, format))
    turned = open_image(path)
    assert turned.size == (40, 48) and white_quarter(turned) == CORNER[6]
    assert decode(path.read_bytes()).size == (48, 40)  # a data set's are taken as they lie


def chunk(kind: bytes, content: bytes, crc: int | None = None) -> bytes:
    crc = zlib.crc32(kind + content) if crc is None else crc
    return len(content).to_bytes(4, "big") + kind + content + crc.to_bytes(4, "big")


SPOILT_CHUNKS = {
    "a text that grows": chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(80_000_000))),
    "a text with another checksum": chunk(b"tEXt", b"a\0b", 1),
    "a profile that is none": chunk(b"iCCP", b"icc\0\0" + b"no zlib"),
    "a text that is cut short": chunk(b"iTXt", b"a\0\1"),
    "pixels of a size": chunk(b"pHYs", b"\1"),
}


@pytest.mark.parametrize("case", SPOILT_CHUNKS)
def test_the_chunks_of_a_png_that_say_nothing_of_its_pixels(case):
    whole = encoded(1, "PNG")
    at = 8 + 25  # behind the header's chunk
    spoilt = whole[:at] + SPOILT_CHUNKS[case] + whole[at:]
    assert np.array_equal(np.asarray(decode(spoilt)), np.asarray(decode(whole)))


def test_the_segments_of_a_jpeg_that_say_nothing_of_its_pixels():
    whole = encoded(1)
    for content in (
        b"Exif\0\0garbage",
        b"http://ns.adobe.com/xap/1.0/\0<",
        b"Photoshop 3.0\x008BIM\4\4",
        b"MPF\0II*\0",
        b"",
    ):
        for marker in range(0xE1, 0xEE):
            segment = bytes([0xFF, marker]) + (len(content) + 2).to_bytes(2, "big") + content
            spoilt = whole[:2] + segment + whole[2:]
            assert np.array_equal(np.asarray(decode(spoilt)), np.asarray(decode(whole))), (content, marker)


def test_orientation_outlives_what_ends_the_decoder(tmp_path):
    """A short profile, JFIF and Adobe segment of a JPEG; a chunk of a PNG with another checksum."""
    tags = entry(ORIENTATION, 3, 1, 6)
    jpeg, png = with_exif(tags, 1), with_exif(tags, 1, "PNG")
    for segment in (b"\xff\xe2\x00\x0eICC_PROFILE\0", b"\xff\xe0\x00\x07JFIF\0", b"\xff\xee\x00\x07Adobe"):
        (tmp_path / "a.jpg").write_bytes(jpeg[:2] + segment + jpeg[2:])
        assert open_image(tmp_path / "a.jpg").size == (40, 48)
    at = png.index(b"eXIf")
    length = int.from_bytes(png[at - 4 : at], "big")
    (tmp_path / "a.png").write_bytes(png[: at + 4 + length] + b"\1\2\3\4" + png[at + 8 + length :])
    assert open_image(tmp_path / "a.png").size == (40, 48)


@pytest.mark.parametrize("orientation", CORNER)
def test_pictures_of_a_set_are_taken_as_they_lie(orientation):
    buffer, image = io.BytesIO(), Image.new("RGB", (48, 40))
    image.paste((255, 255, 255), (0, 0, 24, 20))
    image.save(buffer, "TIFF", tiffinfo={ORIENTATION: orientation})
    found = decode(buffer.getvalue())
    assert found.size == (48, 40) and white_quarter(found) == (0, 0)


def tiff(values: np.ndarray, **tags: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(values).save(
        buffer, "TIFF", tiffinfo={int(tag[1:]): value for tag, value in tags.items()}
    )
    return buffer.getvalue()


def test_numbers_of_more_bits_are_scaled_or_refused():
    ramp = np.array([[0, 257, 65_535]], np.uint16)
    assert np.asarray(decode(tiff(ramp)))[0, :, 0].tolist() == [0, 1, 255]
    assert np.asarray(decode(tiff(ramp.astype(np.int32))))[0, :, 0].tolist() == [0, 1, 255]
    shares = np.array([[0, 0.5, 1]], np.float32)
    assert np.asarray(decode(tiff(shares)))[0, :, 0].tolist() == [0, 128, 255]
    for values in ([[70_000, 0]], [[-257, 0]]):
        with pytest.raises(DataFormatError, match="grey values from .*; wanted 0 to 65535"):
            decode(tiff(np.array(values, np.int32)))
    with pytest.raises(DataFormatError, match="grey values from nan to nan|wanted 0 to 1"):
        decode(tiff(np.array([[np.nan, 0.5]], np.float32)))


def test_pictures_that_take_the_machine_are_bad():
    buffer = io.BytesIO()
    Image.new("1", (1, 300_000)).save(buffer, "PNG")
    with pytest.raises(DataFormatError, match="1 x 300000 pixels, more than .* or 262144 a side"):
        decode(buffer.getvalue())
    picture_bytes = encoded(1)
    scan = picture_bytes.index(b"\xff\xda")
    with pytest.raises(DataFormatError, match="601 scans, more than 500"):
        decode(picture_bytes[:-2] + picture_bytes[scan : scan + 14] * 600 + picture_bytes[-2:])
    with pytest.raises(DataFormatError, match="cannot be decoded"):
        decode(encoded(1, "PNG")[:20])


@pytest.mark.parametrize("make", [lambda p: p.mkdir(), lambda p: p.symlink_to(p), lambda p: os.mkfifo(p)])
def test_what_is_no_file_is_a_sentence(make, tmp_path):
    make(tmp_path / "x")
    with pytest.raises(DataError, match="x: (found a folder or device|cannot be read)"):
        open_image(tmp_path / "x")


# ---- what lies in a folder ----


def test_other_kinds_of_images_are_read_or_counted(own_folders):
    folder = own_folders / "train" / WNIDS[0]
    for suffix, format in (
        (".webp", "WEBP"),
        (".bmp", "BMP"),
        (".tif", "TIFF"),
        (".TIFF", "TIFF"),
        (".jfif", "JPEG"),
    ):
        (folder / f"x{suffix}").write_bytes(encoded(9, format))
    (folder / "y.gif").write_bytes(encoded(9, "GIF", "P"))
    (folder / "z.heic").write_bytes(b"?")
    with pytest.warns(
        UserWarning, match=rf"2 files are left out, of kinds that are not read, e.g. {WNIDS[0]}/y.gif"
    ):
        train = ImageNet(own_folders, "train", Middle())
    assert len(train) == 18 + 5 and all(not train[k].bad for k in range(len(train)))


def test_what_systems_leave_is_no_class(own_folders, recwarn):
    for name in (
        "@eaDir",
        "__MACOSX",
        "lost+found",
        "$RECYCLE.BIN",
        "System Volume Information",
        ".Trash-1000",
    ):
        (own_folders / "train" / name).mkdir()
    (own_folders / "train" / WNIDS[0] / "@eaDir").mkdir()
    assert ImageNet(own_folders, "train").classes == WNIDS and not recwarn
    assert main(["verify", "imagenet", str(own_folders), "--subset"]) == 0


@pytest.mark.parametrize(
    ("empty", "words"),
    [
        (["b"], "1 val class has no images: b"),
        (["b", "c"], "2 val classes have no images: b, c"),
        (["a", "b", "c"], "val cannot be used: DIR/val: 3 classes have no images: a, b, c"),
    ],
)
def test_the_advice_fits_what_was_asked(empty, words, tmp_path, capsys):
    for split in ("train", "val"):
        for name in ("a", "b", "c"):
            (tmp_path / split / name).mkdir(parents=True)
            if split == "train" or name not in empty:
                (tmp_path / split / name / "1.jpg").write_bytes(encoded(1))
    assert main(["verify", "imagenet", str(tmp_path), "--subset"]) == 3
    line = capsys.readouterr().err.splitlines()[-1]
    assert line == f"error: {tmp_path}: {words.replace('DIR', str(tmp_path))}"


def test_images_of_equal_names_are_told_apart(folders, own_folders):
    one, two = ImageNet(folders, "train"), ImageNet(own_folders, "train")
    assert one.identity == two.identity  # a copy
    path = own_folders / "train" / WNIDS[1] / f"{WNIDS[1]}_2.JPEG"
    path.write_bytes(path.read_bytes() + b"\0")
    assert one.identity != ImageNet(own_folders, "train").identity
    assert one.identity != ImageNet(folders, "val").identity
    Image.new("RGB", (9, 9)).save(path, "BMP")
    black = ImageNet(own_folders, "train").identity
    Image.new("RGB", (9, 9), (1, 1, 1)).save(path, "BMP")  # as long
    assert black != ImageNet(own_folders, "train").identity
