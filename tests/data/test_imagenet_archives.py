"""The official archives of ImageNet to folders, and what hostile ones do."""

import io
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
from imagenet_writers import WNIDS, add, oddity

from attsnn.data import DataFormatError, DataMissingError, ImageNet
from attsnn.data.__main__ import main
from attsnn.data.datasets.imagenet import prepare

pytestmark = pytest.mark.filterwarnings("ignore:.*; published are")
IDS = {WNIDS[0]: 3, WNIDS[1]: 1, WNIDS[2]: 2}  # not in the order of the wnids
TRUTH = [2, 2, 3, 1, 1, 3]
TRAIN, VAL, DEVKIT = "ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar", "ILSVRC2012_devkit_t12.tar.gz"


def inner(members: list[tuple[str, bytes]], **fields) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, data in members:
            add(tar, name, data, **fields)
    return buffer.getvalue()


def write_train(raw: Path) -> None:
    with tarfile.open(raw / TRAIN, "w") as tar:
        for label, wnid in enumerate(WNIDS):
            images = [(f"{wnid}_{k}.JPEG", oddity(10 * label + k)) for k in range(4)]
            add(tar, f"{wnid}.tar", inner(images))


def write_val(raw: Path) -> None:
    with tarfile.open(raw / VAL, "w") as tar:
        for number in range(len(TRUTH), 0, -1):  # in any order
            add(tar, f"ILSVRC2012_val_{number:08d}.JPEG", oddity(100 + number))


def write_devkit(raw: Path) -> None:
    savemat = pytest.importorskip("scipy.io", reason="extra imagenet: scipy is not installed").savemat
    fields = [(name, "O") for name in ("ILSVRC2012_ID", "WNID", "words", "num_children", "children")]
    rows = [(float(n), wnid, "a, b", 0.0, np.zeros(0)) for wnid, n in IDS.items()]
    rows.append((1001.0, "n00001740", "entity", 3.0, np.array([1.0, 2.0, 3.0])))
    meta = io.BytesIO()
    savemat(meta, {"synsets": np.array(rows, dtype=fields)[:, None]})
    truth = "\n".join(map(str, TRUTH)).encode() + b"\n"
    with tarfile.open(raw / DEVKIT, "w:gz") as tar:
        add(tar, "ILSVRC2012_devkit_t12/readme.txt", b"read me")
        add(tar, "ILSVRC2012_devkit_t12/data/meta.mat", meta.getvalue())
        add(tar, "ILSVRC2012_devkit_t12/data/ILSVRC2012_validation_ground_truth.txt", truth)


def write_labels(raw: Path) -> Path:
    wnid_of = {number: wnid for wnid, number in IDS.items()}
    (raw / "labels.txt").write_text("\n".join(wnid_of[n] for n in TRUTH) + "\n")
    return raw / "labels.txt"


def assert_prepared(out: Path) -> None:
    train, val = ImageNet(out, "train"), ImageNet(out, "val")
    assert train.classes == WNIDS and train.labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    for index in range(12):
        assert train.source.read(index) == oddity(10 * (index // 4) + index % 4)
    by_class = [
        (label, n) for n, i in enumerate(TRUTH, start=1) for label in range(3) if IDS[WNIDS[label]] == i
    ]
    assert val.labels.tolist() == [label for label, _ in sorted(by_class)]
    for index, (_, number) in enumerate(sorted(by_class)):
        assert val.source.read(index) == oddity(100 + number)


@pytest.mark.parametrize("kind", ["devkit", "labels"])
def test_archives_to_folders(kind, tmp_path, capsys):
    raw, out = tmp_path / "raw", tmp_path / "out"
    raw.mkdir()
    write_train(raw)
    write_val(raw)
    words = [] if kind == "devkit" else ["--val-labels", str(write_labels(raw))]
    if kind == "devkit":
        write_devkit(raw)
    assert main(["prepare", "imagenet", str(raw), str(out), *words]) == 0
    assert f"{out}: 12 train images and 6 val images; now run" in capsys.readouterr().out
    assert_prepared(out)
    assert main(["verify", "imagenet", str(out), "--subset", "--decode"]) == 0
    assert main(["prepare", "imagenet", str(raw), str(out), *words]) == 3
    assert "is there already" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("member", "data", "sentence"),
    [
        ("meta.mat", b"MATLAB 5.0 MAT-file" + b"\0" * 200, r"meta.mat\): cannot be read as MATLAB's synsets"),
        (
            "ILSVRC2012_validation_ground_truth.txt",
            b"3\n1001\n",
            r"truth.txt\):2: found b'1001'; wanted",
        ),
        ("ILSVRC2012_validation_ground_truth.txt", None, r"truth.txt\): is missing"),
    ],
)
def test_damaged_development_kits(member, data, sentence, tmp_path):
    write_val(tmp_path)
    write_devkit(tmp_path)
    with tarfile.open(tmp_path / DEVKIT) as tar:
        files = {m.name: tar.extractfile(m).read() for m in tar}
    files[f"ILSVRC2012_devkit_t12/data/{member}"] = data
    with tarfile.open(tmp_path / DEVKIT, "w:gz") as tar:
        for name, content in files.items():
            if content is not None:
                add(tar, name, content)
    with pytest.raises(DataFormatError, match=sentence):
        prepare(tmp_path, tmp_path / "out")


def test_one_archive_alone(tmp_path):
    write_train(tmp_path)
    with pytest.warns(UserWarning, match=f"{VAL}: found 0 bytes; published are 6,744,924,160"):
        assert prepare(tmp_path, tmp_path / "out") == {"train": 12}
    assert len(ImageNet(tmp_path / "out", "train")) == 12


def test_what_is_missing(tmp_path):
    with pytest.raises(DataMissingError, match=f"holds neither {TRAIN} nor {VAL}; get it from https://"):
        prepare(tmp_path, tmp_path / "out")
    write_val(tmp_path)
    with pytest.raises(DataMissingError, match=f"{DEVKIT}: is missing; .*--val-labels"):
        prepare(tmp_path, tmp_path / "out")
    (tmp_path / "labels.txt").write_text(f"{WNIDS[0]}\ncat\n")
    with pytest.raises(DataFormatError, match="labels.txt:2: found 'cat'; wanted a wnid"):
        prepare(tmp_path, tmp_path / "out", val_labels=tmp_path / "labels.txt")
    (tmp_path / "labels.txt").write_text(f"{WNIDS[0]}\n")
    with pytest.raises(DataFormatError, match="val_00000006.JPEG; classes are known of 1 to 1"):
        prepare(tmp_path, tmp_path / "out", val_labels=tmp_path / "labels.txt")


W, X = WNIDS[0], f"{WNIDS[0]}_1.JPEG"
INSIDE, OUTSIDE = "wanted the images of the class, each once", "wanted each <wnid>.tar once"
HOSTILE = {  # members of the outer archive, part of the sentence
    "a path": ([(f"{W}.tar", inner([(f"../../{X}", b"x")]))], INSIDE),
    "an absolute path": ([(f"{W}.tar", inner([(f"/tmp/{X}", b"x")]))], INSIDE),
    "another class": ([(f"{W}.tar", inner([(f"{WNIDS[1]}_1.JPEG", b"x")]))], INSIDE),
    "an image twice": ([(f"{W}.tar", inner([(X, b"x"), (X, b"y")]))], INSIDE),
    "a link": ([(f"{W}.tar", inner([(X, b"")], type=tarfile.SYMTYPE, linkname="/etc/passwd"))], INSIDE),
    "an outer path": ([(f"../{W}.tar", inner([]))], OUTSIDE),
    "an outer stranger": ([("run.sh", b"#!/bin/sh")], OUTSIDE),
    "a class twice": ([(f"{W}.tar", inner([(X, b"x")]))] * 2, OUTSIDE),
    "no tar inside": ([(f"{W}.tar", b"<html>" * 400)], "not a sound .tar file"),
    "cut inside": ([(f"{W}.tar", inner([(X, b"x" * 2000)])[:1024])], "more than the file has left"),
}


@pytest.mark.parametrize("attack", HOSTILE)
def test_hostile_archives_leave_nothing(attack, tmp_path):
    members, sentence = HOSTILE[attack]
    raw = tmp_path / "raw"
    raw.mkdir()
    with tarfile.open(raw / TRAIN, "w") as tar:
        for name, data in members:
            add(tar, name, data)
    with pytest.raises(DataFormatError, match=sentence):
        prepare(raw, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.rglob("*")) == [TRAIN, "raw"]


def test_without_scipy_one_sentence_says_what_to_do(tmp_path, monkeypatch, capsys):
    with tarfile.open(tmp_path / DEVKIT, "w:gz") as tar:
        add(tar, "ILSVRC2012_devkit_t12/data/meta.mat", b"MATLAB")
        add(tar, "ILSVRC2012_devkit_t12/data/ILSVRC2012_validation_ground_truth.txt", b"1\n")
    write_val(tmp_path)
    monkeypatch.setitem(sys.modules, "scipy.io", None)
    assert main(["prepare", "imagenet", str(tmp_path), str(tmp_path / "out")]) == 3
    last = capsys.readouterr().err.splitlines()[-1]
    assert "meta.mat) needs scipy (" in last and "pip install scipy, or pass --val-labels" in last
