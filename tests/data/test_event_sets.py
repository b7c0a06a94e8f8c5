"""The sets of event recordings, as people have them, to stores; file systems that lack something."""

import errno
import fcntl
import os
import re
import runpy
import shutil
import subprocess
import sys
import tarfile
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from events_writers import random_events, write_dvs_gesture

from attsnn import data
from attsnn.data import (
    DATASETS,
    DataError,
    DataFormatError,
    DataMissingError,
    Events,
    Recordings,
    make_events,
)
from attsnn.data.__main__ import main
from attsnn.data.core import staging
from attsnn.data.core.events import COLUMNS
from attsnn.data.core.raw import Raw
from attsnn.data.core.store import Store, StoreWriter
from attsnn.data.datasets import cifar10_dvs, dvs_gait, ncaltech101
from attsnn.data.synthetic import writers

ROOT = Path(__file__).parent.parent.parent
PER_CLASS = 11  # nine tenths of it leave one for the test


def events_of(number: int, side: tuple[int, int] = (128, 128)) -> Events:
    rng = np.random.default_rng(number)
    x, y, p = rng.integers(0, (side[1], side[0], 2), (60, 3)).T
    return make_events(np.sort(rng.integers(0, 200_000, 60)), x, y, p)


def same(a: Store, b: Store) -> bool:
    def content(store):
        return sorted(
            (
                clip.recording,
                clip.label,
                clip.split,
                *(getattr(store.events(clip), n).tobytes() for n in COLUMNS),
            )
            for clip in store.clips
        )

    return content(a) == content(b) and a.classes == b.classes and a.sensor == b.sensor


def zipped(path: Path, folder: Path, top: str = "") -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(folder.rglob("*")):
            archive.write(file, f"{top}{file.relative_to(folder)}")
    return path


def prepared(name: str, raw: Path, out: Path, *words: str) -> Store:
    assert main(["prepare", name, str(raw), str(out), *words]) == 0
    assert main(["verify", name, str(out)]) == 0
    return Store(out)


# CIFAR10-DVS


@pytest.fixture(scope="module")
def cifar(tmp_path_factory) -> Path:
    """In AEDAT 2.0, as published."""
    root = tmp_path_factory.mktemp("cifar10_dvs")
    for label, name in enumerate(cifar10_dvs.CLASSES):
        (root / name).mkdir()
        for k in range(PER_CLASS):
            writers.write_aedat2(root / name / f"cifar10_{name}_{k}.aedat", events_of(100 * label + k))
    return root


@pytest.fixture(scope="module")
def cifar_store(cifar, tmp_path_factory) -> Store:
    out = tmp_path_factory.mktemp("cifar10_dvs") / "store"
    with pytest.warns(UserWarning, match="found 11 of airplane, .*; published are 1000 of each"):
        cifar10_dvs.prepare(cifar, out, progress=False)
    return Store(out)


def test_cifar10_dvs_is_upright_and_undivided(cifar_store):
    assert len(cifar_store.clips) == 110 and {clip.split for clip in cifar_store.clips} == {"all"}
    clip = next(c for c in cifar_store.clips if c.recording == "bird/cifar10_bird_7")
    written, stored = events_of(207), cifar_store.events(clip)
    assert clip.label == 2 and stored.t.tolist() == written.t.tolist()
    assert stored.x.tolist() == (127 - written.y).tolist() and stored.y.tolist() == (127 - written.x).tolist()
    assert stored.p.tolist() == (1 - written.p).tolist()
    train, test = (data.CIFAR10DVS(cifar_store.path, s, split_rule="name_order") for s in ("train", "test"))
    assert (len(train), len(test), train.framing.shape) == (100, 10, (20, 2, 128, 128))
    assert {clip.recording.rpartition("_")[2] for clip in test._clips} == {
        "9"
    }  # after "10" in the order of names


@pytest.mark.parametrize(("variable", "columns"), [("out", 6), ("out1", 4), ("res", 4)])
def test_matrices_become_the_same_store(variable, columns, cifar_store, tmp_path):
    pytest.importorskip("scipy.io", reason="extra mat")
    for label, name in enumerate(cifar10_dvs.CLASSES):
        (tmp_path / "data" / name).mkdir(parents=True)
        for k in range(PER_CLASS):
            path = tmp_path / "data" / name / f"{k}.mat"
            writers.write_mat(path, events_of(100 * label + k), variable=variable, columns=columns)
    store = prepared("cifar10_dvs", tmp_path, tmp_path / "store")
    frames = [
        data.CIFAR10DVS(s.path, "train", steps=4, dt_ms=None, split_rule="name_order")
        for s in (store, cifar_store)
    ]
    assert all(torch.equal(a.frames, b.frames) for a, b in zip(*frames, strict=True))


def test_spikingjellys_arrays_become_the_same_store(cifar_store, tmp_path, recwarn):
    for clip in cifar_store.clips:
        path = tmp_path / "CIFAR10DVS" / "events_np" / f"{clip.recording}.npz"
        path.parent.mkdir(parents=True, exist_ok=True)
        writers.write_arrays(path, cifar_store.events(clip))
    frames = tmp_path / "CIFAR10DVS" / "frames_number_10_split_by_number" / "airplane"
    frames.mkdir(parents=True)
    np.savez(frames / "cifar10_airplane_0.npz", frames=np.zeros((10, 2, 4, 4)))
    cifar10_dvs.prepare(tmp_path / "CIFAR10DVS", tmp_path / "store", progress=False)
    assert same(Store(tmp_path / "store"), cifar_store)
    said = [str(w.message) for w in recwarn]
    assert any(
        "1 files below another folder are left out, e.g. frames_number_10_split" in words for words in said
    )


def test_archives_are_read_in_place(cifar, cifar_store, tmp_path, recwarn):
    raw = tmp_path / "raw"
    raw.mkdir()
    for name in cifar10_dvs.CLASSES:
        zipped(raw / f"{name}.zip", cifar / name, f"{name}/")
    (raw / "airplane.zip.part").write_bytes(b"PK")
    cifar10_dvs.prepare(raw, tmp_path / "store", progress=False)
    assert same(Store(tmp_path / "store"), cifar_store)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["raw", "store"]
    with tarfile.open(tmp_path / "all.tar.gz", "w:gz") as tar:
        tar.add(cifar, "some/where")
    cifar10_dvs.prepare(tmp_path / "all.tar.gz", tmp_path / "again", progress=False)
    assert same(Store(tmp_path / "again"), cifar_store)


def test_hostile_recordings_name_file_and_offset(cifar, tmp_path):
    shutil.copytree(cifar, tmp_path / "raw")
    bad = tmp_path / "raw" / "cat" / "cifar10_cat_3.aedat"
    bad.write_bytes(bad.read_bytes()[:-3])
    with warnings.catch_warnings(), pytest.raises(DataFormatError, match="found 5 bytes after") as caught:
        warnings.simplefilter("ignore")
        cifar10_dvs.prepare(tmp_path / "raw", tmp_path / "store", progress=False)
    assert str(caught.value).startswith(f"{bad}: byte ") and not (tmp_path / "store").exists()
    data = bytearray(zipped(tmp_path / "x.zip", cifar).read_bytes())
    data[len(data) // 3] ^= 0x55
    (tmp_path / "x.zip").write_bytes(data)
    with warnings.catch_warnings(), pytest.raises(DataFormatError, match=r"x\.zip"):
        warnings.simplefilter("ignore")
        cifar10_dvs.prepare(tmp_path / "x.zip", tmp_path / "store", progress=False)


# N-Caltech101


def test_ncaltech101_as_people_have_it(tmp_path, capsys):
    folder = tmp_path / "unpacked" / "Caltech101"
    for number, name in enumerate(("BACKGROUND_Google", "Faces", "Faces_easy", "yin_yang")):
        (folder / name).mkdir(parents=True)
        for k in range(3):
            events = events_of(10 * number + k, (180, 240))
            writers.write_atis(folder / name / f"image_{k + 1:04d}.bin", events)
    (folder / "yin_yang" / "._image_0001.bin").write_bytes(b"of a Mac")
    store = prepared("ncaltech101", tmp_path / "unpacked", tmp_path / "store")
    assert len(ncaltech101.CLASSES) == 101 and list(ncaltech101.CLASSES) == sorted(ncaltech101.CLASSES)
    assert "Faces" not in ncaltech101.CLASSES
    assert (len(store.clips), store.sensor, len(store.classes)) == (9, (180, 240), 101)
    assert {clip.label for clip in store.clips} == {0, 1, 100}
    err = capsys.readouterr().err
    assert "3 recordings are left out, of no class of this set: Faces" in err and "published are 8709" in err
    inner = zipped(tmp_path / "Caltech101.zip", folder, "Caltech101/")
    with zipfile.ZipFile(tmp_path / "N-Caltech101-archive.zip", "w") as archive:
        archive.write(inner, "N-Caltech101/Caltech101.zip")
        archive.writestr("__MACOSX/N-Caltech101/._Caltech101.zip", b"of a Mac")
    again = prepared("ncaltech101", tmp_path / "N-Caltech101-archive.zip", tmp_path / "again")
    assert same(store, again)
    frames = data.NCaltech101(store.path, "train")[0].frames
    assert frames.shape == (14, 2, 180, 240) and frames.sum() == 60


# DVS128 Gait


@pytest.mark.parametrize(
    ("people", "known"), [(20, "TPAMI 2021"), (21, "CVPR 2019"), (3, "warning: .*neither 20 nor 21")]
)
def test_gait_counts_its_people(people, known, tmp_path, capsys):
    numbers = [7 * k + 2 for k in range(people)]  # not 0, 1, 2, ..., and not in the order of their strings
    for split in ("train", "test"):
        for number in numbers:
            folder = tmp_path / "DVS128-Gait-Day" / "origin" / split / str(number)
            folder.mkdir(parents=True)
            writers.write_text(folder / "00001.txt", events_of(number))
    prepared("dvs_gait", tmp_path, tmp_path / "store")
    shown = capsys.readouterr()
    assert re.search(known, shown.err) and ("warning" in shown.err) == (people == 3)
    assert f"{people} people" in shown.err and f"{people} classes" in shown.out
    found = data.DVSGait(tmp_path / "store", "test")
    assert found.classes == tuple(map(str, numbers)) and sorted(found.labels) == list(range(people))
    clip = next(k for k in range(people) if found.labels[k] == 1)
    assert found.events(clip).t.tolist() == events_of(9).t.tolist()
    assert found[0].frames.shape == (8, 2, 128, 128)


def test_a_damaged_text_is_named_with_its_line(tmp_path):
    for split in ("train", "test"):
        folder = tmp_path / split / "1"
        folder.mkdir(parents=True)
        (folder / "a.txt").write_text("1 2 3 1\n2 3 4 1\n3 x 3 1\n")
    with pytest.warns(UserWarning), pytest.raises(DataFormatError, match=r"a\.txt:3: cannot read number 2"):
        dvs_gait.prepare(tmp_path, tmp_path / "store", progress=False)


# DVS128 Gesture


@pytest.mark.parametrize("top", ["DVS128Gesture", "data/DvsGesture", "a/b/c"])
@pytest.mark.parametrize("kind", ["folder", "tar.gz", "zip"])
def test_recordings_under_any_folder(top, kind, tmp_path):
    raw = write_dvs_gesture(tmp_path / "written")
    wanted = prepared("dvs_gesture", raw, tmp_path / "wanted")
    place = tmp_path / "place"
    place.mkdir()
    if kind == "folder":
        shutil.copytree(raw, place / top)
    elif kind == "zip":
        zipped(place / "DVS128Gesture.zip", raw, f"{top}/")
    else:
        with tarfile.open(place / "gesture.tar.gz", "w:gz") as tar:
            tar.add(raw, top)
    assert same(wanted, prepared("dvs_gesture", place, tmp_path / "store"))


def test_two_copies_are_not_mixed(tmp_path):
    raw = write_dvs_gesture(tmp_path)
    shutil.copytree(raw, tmp_path / "copy")
    store = prepared("dvs_gesture", tmp_path, tmp_path / "out" / "store")  # DvsGesture is its usual name
    assert len(store.clips) == 36
    raw.rename(tmp_path / "another")
    with pytest.raises(DataFormatError, match="found files of this set below 'another', 'copy'; name one"):
        data.DATASETS["dvs_gesture"].prepare(tmp_path, tmp_path / "x")


def test_spikingjellys_arrays_of_gesture(tmp_path):
    wanted = prepared("dvs_gesture", write_dvs_gesture(tmp_path), tmp_path / "wanted")
    for number, clip in enumerate(wanted.clips):
        path = tmp_path / "sj" / "events_np" / clip.split / str(clip.label) / f"{clip.recording}_{number}.npz"
        path.parent.mkdir(parents=True, exist_ok=True)
        writers.write_arrays(path, wanted.events(clip))
    found = prepared("dvs_gesture", tmp_path / "sj", tmp_path / "store")
    assert sorted((c.label, c.split, c.stop - c.start) for c in found.clips) == sorted(
        (c.label, c.split, c.stop - c.start) for c in wanted.clips
    )
    assert found.classes == wanted.classes


# one's own


def write_own(root: Path, *folders: str) -> Path:
    """The same four recordings in each folder, each in another format."""
    for folder in folders:
        for number, name in enumerate(("cat", "dog")):
            place = root / folder / name / "monday"
            place.mkdir(parents=True)
            for k, kind in enumerate((".npz", ".npy", ".csv", ".txt")):
                events = events_of(10 * number + k, (40, 64))
                if kind in (".npz", ".npy"):
                    writers.write_arrays(place / f"{k}{kind}", events)
                else:
                    how = {"columns": "xypt", "separator": ",", "header": "x,y,p,t"} if kind == ".csv" else {}
                    writers.write_text(place / f"{k}{kind}", events, **how)
    return root


@pytest.mark.parametrize("kind", ["folder", "zip"])
@pytest.mark.parametrize("folders", [("train", "test"), ("",)])
def test_recordings_of_ones_own(folders, kind, tmp_path, capsys):
    raw = write_own(tmp_path / "raw", *folders)
    (raw / "notes.md").write_text("why")
    if kind == "zip":
        raw = zipped(tmp_path / "mine.zip", raw, "mine/")
    store = prepared("recordings", raw, tmp_path / "store", "--sensor", "48x64")
    captured = capsys.readouterr()
    assert "1 files are not recordings and are left out, e.g. " in captured.err and "notes.md" in captured.err
    assert store.classes == ("cat", "dog") and store.sensor == (48, 64)
    assert "sensor 48 x 64" in captured.out
    for clip in store.clips:
        written = events_of(10 * clip.label + int(clip.recording[-1]), (40, 64))
        assert store.events(clip).t.tolist() == written.t.tolist()
    if folders == ("",):
        assert {clip.split for clip in store.clips} == {"all"}
        found = Recordings(store.path, "train", split_rule="random-1", steps=3)
    else:
        assert [sum(c.split == s for c in store.clips) for s in folders] == [8, 8]
        found = Recordings(store.path, "train", steps=3)
    assert found[0].frames.shape == (3, 2, 48, 64)


def test_own_recordings_in_both_aedats_and_other_units(tmp_path):
    events = events_of(1)
    for name in ("a", "b"):
        (tmp_path / "raw" / name).mkdir(parents=True)
        writers.write_aedat2(tmp_path / "raw" / name / "2.aedat", events)
        writers.write_aedat3(tmp_path / "raw" / name / "3.aedat", events)
        np.savez(
            tmp_path / "raw" / name / "s.npz", t=events.t / 1e6, x=events.x, y=events.y, p=events.p * 2.0 - 1
        )
    store = prepared("recordings", tmp_path / "raw", tmp_path / "store", "--time-unit", "s")
    assert store.sensor == (int(events.y.max()) + 1, int(events.x.max()) + 1)  # as found
    for clip in store.clips:
        for name in COLUMNS:
            assert getattr(store.events(clip), name).tolist() == getattr(events, name).tolist()


@pytest.mark.parametrize(
    ("change", "words", "sentence"),
    [
        (lambda raw: None, ["--sensor", "64"], "the sensor is '64'; wanted HEIGHTxWIDTH"),
        (lambda raw: None, ["--sensor", "20x64"], r"wanted (a row of the sensor|an integer from 0 to 19)"),
        (lambda raw: shutil.rmtree(raw / "test"), [], "found train/ alone; wanted train/ and test/"),
        (
            lambda raw: shutil.rmtree(raw / "train") or shutil.rmtree(raw / "test"),
            [],
            "there are no recordings",
        ),
    ],
)
def test_own_recordings_that_do_not_fit(change, words, sentence, tmp_path, capsys):
    raw = write_own(tmp_path / "raw", "train", "test")
    change(raw)
    assert main(["prepare", "recordings", str(raw), str(tmp_path / "store"), *words]) == 3
    err = capsys.readouterr().err
    assert re.search(sentence, err) and "Traceback" not in err
    assert not (tmp_path / "store").exists()


# places


def test_hostile_zip_files_are_refused(tmp_path):
    pattern = re.compile(r".*\.bin")
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in ("../up.bin", "/abs.bin", "a//b.bin", "ok/x.bin"):
            archive.writestr(name, bytes(100))
    assert Raw(path, pattern).names == ["x.bin"]
    data = bytearray(path.read_bytes())
    at = data.rindex(b"PK\x01\x02")
    data[at + 24 : at + 28] = (200).to_bytes(4, "little")  # claims more than it holds
    path.write_bytes(data)
    with pytest.raises(DataFormatError, match=r"not a sound \.zip"):
        dict(Raw(path, pattern).read(["x.bin"]))
    data[at + 24 : at + 28] = ((1 << 31) + 1).to_bytes(4, "little")
    path.write_bytes(data)
    with pytest.raises(DataFormatError, match="wanted at most"):
        Raw(path, pattern)


def test_a_folder_that_links_to_itself_ends(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x.bin").write_bytes(b"1")
    (tmp_path / "a" / "again").symlink_to(tmp_path)
    assert Raw(tmp_path, re.compile(r".*\.bin")).names == ["x.bin"]


# file systems


def write(path: Path) -> None:
    with StoreWriter(path, classes=("a",), sensor=(128, 128), about={}) as writer:
        writer.append(random_events(5), label=0, recording="r", split="train")


def test_an_empty_folder_is_filled_where_it_is(tmp_path, monkeypatch):
    """It may be a mount point, which nothing can be renamed to."""
    out, rename = tmp_path / "volume", os.rename
    out.mkdir()
    (out / "lost+found").mkdir()

    def busy(source, target):
        if Path(target) == out:
            raise OSError(errno.EBUSY, "Device or resource busy")
        rename(source, target)

    monkeypatch.setattr(os, "rename", busy)
    inode = out.stat().st_ino
    write(out)
    assert out.stat().st_ino == inode and len(Store(out).clips) == 1
    assert not [p.name for p in out.iterdir() if "partial" in p.name] and [
        p.name for p in tmp_path.iterdir()
    ] == ["volume"]
    with pytest.raises(DataError, match="is there already"):
        write(out)


def test_a_folder_that_only_itself_can_be_written(tmp_path):
    """What is made lies within it, and nothing beside: root may write anywhere, so that is looked at, too."""
    (tmp_path / "out").mkdir()
    with staging.staged(tmp_path / "out") as partial:
        assert partial.parent == tmp_path / "out" and os.listdir(tmp_path) == ["out"]
    tmp_path.chmod(0o555)
    write(tmp_path / "out")
    tmp_path.chmod(0o755)
    assert len(Store(tmp_path / "out").clips) == 1


@pytest.mark.parametrize("lack", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_no_locks_no_maps_no_sync(lack, tmp_path, monkeypatch):
    """What only protects is done without; what is needed is done in a slower way."""

    def fail(*_, **__):
        raise OSError(lack, os.strerror(lack))

    def no_maps(*_, **__):
        raise OSError(errno.ENODEV, "No such device")

    monkeypatch.setattr(fcntl, "flock", fail)
    monkeypatch.setattr(os, "fsync", fail)
    monkeypatch.setattr(np, "memmap", no_maps)
    (tmp_path / ".store.partial-1234").mkdir()
    with pytest.warns(UserWarning, match="no locks that would tell"):
        write(tmp_path / "store")
    assert (tmp_path / ".store.partial-1234").is_dir()  # of whoever it is
    (clip,) = Store(tmp_path / "store").clips
    assert Store(tmp_path / "store").events(clip).t.tolist() == random_events(5).t.tolist()
    raw = write_dvs_gesture(tmp_path)
    assert main(["prepare", "dvs_gesture", str(raw), str(tmp_path / "gesture")]) == 0


def test_a_disc_that_is_full_is_no_lack(tmp_path, monkeypatch):
    def fail(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="No space left"):
        write(tmp_path / "store")
    assert list(tmp_path.iterdir()) == []


def test_a_disc_too_small_is_refused_before_the_work(cifar, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 5, 1_000))
    monkeypatch.setattr(cifar10_dvs.aedat2, "decode", None)  # no work is done
    assert main(["prepare", "cifar10_dvs", str(cifar), str(tmp_path / "store")]) == 3
    err = capsys.readouterr().err
    assert (
        "its disc has 1,000 bytes free; about 90,090 are needed" in err
    )  # 110 files of 60 events, and headers
    assert "110 recordings, about 90,090 bytes" in err
    assert list(tmp_path.iterdir()) == []


def test_names_that_are_no_text(tmp_path):
    """In a terminal that knows ASCII alone."""
    raw = write_dvs_gesture(tmp_path)
    out = os.fsencode(tmp_path) + b"/caf\xe9"
    env = {**os.environ, "PYTHONIOENCODING": "ascii:strict", "PYTHONPATH": str(ROOT), "LC_ALL": "C"}
    command = [sys.executable, "-m", "attsnn.data"]
    for words in (["prepare", "dvs_gesture", str(raw), out], ["verify", "dvs_gesture", out]):
        done = subprocess.run([*command, *words], env=env, capture_output=True, text=True, errors="replace")
        assert done.returncode == 0, done.stderr
        assert r"caf\udce9: 24 train and 12 test clips" in done.stdout
    done = subprocess.run([*command, *words[:2], out + b"\xfc"], env=env, capture_output=True, text=True)
    assert done.returncode == 3 and r"caf\udce9\udcfc/manifest.json: No such file" in done.stderr


# the table


def test_every_set_is_in_the_table():
    names = "dvs_gesture cifar10_dvs ncaltech101 dvs_gait recordings imagenet "
    names += "cifar10 cifar100 mnist fashion celeba digits"
    assert list(DATASETS) == names.split()
    for name, dataset in DATASETS.items():
        assert dataset.name == name and dataset.title and dataset.licence and dataset.splits
        what = "download" if dataset.downloadable else "(prepare|verify)"
        assert dataset.path is None or re.search(rf"`python -m attsnn.data {what} {name} ", dataset.where)
        for file in dataset.files:
            assert file.md5 or file.sha256
            assert all(url.startswith("https://") for url in file.urls)
        for command in filter(None, (dataset.prepare, dataset.verify)):
            assert all(text for _, text in dataset.flags_of(command))
    assert {n for n, d in DATASETS.items() if d.downloadable} == {
        *("dvs_gesture", "cifar10_dvs", "ncaltech101", "cifar10", "cifar100", "mnist", "fashion")
    }


@pytest.mark.parametrize("name", [n for n, d in DATASETS.items() if d.path is not None])
def test_every_set_says_what_to_do_where_there_is_nothing(name, tmp_path, capsys):
    dataset = DATASETS[name]
    (tmp_path / "empty").mkdir()
    for place in (tmp_path / "empty", tmp_path / "nowhere"):
        with pytest.raises(DataMissingError) as caught:
            dataset.open(place, dataset.splits[0])
        assert str(place) in str(caught.value) and dataset.where in str(caught.value)
        if dataset.prepare is not None:
            assert main(["prepare", name, str(place), str(tmp_path / "out")]) == 3
        assert main(["verify", name, str(place)]) == 3
        assert "Traceback" not in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_table_of_the_docs_is_that_of_the_package(capsys):
    assert main(["list", "--markdown"]) == 0
    table = capsys.readouterr().out
    assert all(f"| `{name}`, `{dataset.kind}` |" in table for name, dataset in DATASETS.items())
    assert f"<!-- data -->\n{table}<!-- /data -->" in (ROOT / "docs" / "data.md").read_text(encoding="utf-8")


def test_the_list_names_every_set(capsys):
    assert main(["list"]) == 0
    out = capsys.readouterr().out
    for name, dataset in DATASETS.items():
        told = f"licence: {dataset.licence}; splits: {', '.join(dataset.splits)}"
        assert f"{name}: {dataset.title}\n  {told}\n  {dataset.where}\n" in out


def test_the_program_of_the_docs_runs(cifar, tmp_path, monkeypatch, recwarn):
    text = (ROOT / "docs" / "data.md").read_text(encoding="utf-8")
    program = "\n".join(re.findall(r"```python\n(.*?)```", text, re.DOTALL))
    prepared("cifar10_dvs", cifar, tmp_path / "STORE")
    monkeypatch.chdir(tmp_path)
    recwarn.clear()
    Path("program.py").write_text(program, encoding="utf-8")
    names = runpy.run_path("program.py")
    assert names["frames"].shape[1:] == (10, 2, 128, 128)
    assert names["mine"][0].frames.sum() == 3 and len(names["test"].dataset) == len(cifar10_dvs.CLASSES)
    assert names["bad"] == {} and names["images"].shape[1:] == (1, 28, 28) and not recwarn.list


# what people really have


def test_a_store_of_another_set_is_no_sound_one(cifar, tmp_path, capsys):
    prepared("cifar10_dvs", cifar, tmp_path / "store")
    assert "published are 10,000 undivided" in capsys.readouterr().out
    assert main(["verify", "ncaltech101", str(tmp_path / "store")]) == 3
    assert "was prepared from cifar10_dvs; wanted ncaltech101" in capsys.readouterr().err
    assert main(["verify", "recordings", str(tmp_path / "store")]) == 0


@pytest.mark.parametrize("how", [{"window": "random"}, {"augment": data.EventAugment()}])
def test_plain_indices_draw_nothing_and_that_is_said_once(how, tmp_path, recwarn):
    clips = [(random_events(50), 0, f"r{k}", "train") for k in range(4)]
    data.write_store(tmp_path / "store", clips, ["a"], (128, 128))
    found = Recordings(tmp_path / "store", "train", steps=4, dt_ms=10, **how)
    found[data.Draw(1, 2)], found[0], found[1]
    (said,) = recwarn
    assert "ask for data.Draw(index, seed)" in str(said.message) and said.filename == __file__


def test_any_tar_of_recordings(tmp_path):
    """With entries for its folders, one of them called mr.bean."""
    raw = write_own(tmp_path / "raw", "train", "test")
    for split in ("train", "test"):
        (raw / split / "dog").rename(raw / split / "mr.bean")
    (raw.parent / "README.txt").write_text("what this is")
    wanted = prepared("recordings", raw, tmp_path / "wanted")
    assert wanted.classes == ("cat", "mr.bean")
    for name, mode in (("x.tar", "w"), ("x.tar.gz", "w:gz")):
        with tarfile.open(tmp_path / name, mode) as tar:
            tar.add(raw, "mine")
            tar.add(raw.parent / "README.txt", "README.txt")
        assert same(wanted, prepared("recordings", tmp_path / name, tmp_path / f"{name}.store"))
    (tmp_path / "above").mkdir()
    raw.rename(tmp_path / "above" / "mine")
    (raw.parent / "README.txt").rename(tmp_path / "above" / "README.txt")
    (tmp_path / "above" / "mine" / "train").rename(tmp_path / "above" / "mine" / "Train")
    assert same(wanted, prepared("recordings", tmp_path / "above", tmp_path / "again"))


@pytest.mark.parametrize("damage", ["header", "cut", "end"])
def test_a_damaged_tar_loses_nothing_in_silence(damage, tmp_path, capsys):
    raw = write_own(tmp_path / "raw", "train", "test")
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        tar.add(raw, "mine")
    with tarfile.open(tmp_path / "x.tar") as tar:
        offset = tar.getmembers()[-3].offset
    data = bytearray((tmp_path / "x.tar").read_bytes())
    if damage == "header":
        data[offset + 5] ^= 1
    else:
        del data[offset if damage == "cut" else data.rindex(b"\n") // 512 * 512 + 512 :]
    (tmp_path / "x.tar").write_bytes(data)
    assert main(["prepare", "recordings", str(tmp_path / "x.tar"), str(tmp_path / "store")]) == 3
    assert "found no end mark; it is cut short or damaged" in capsys.readouterr().err


def test_headers_without_end_are_refused(tmp_path):
    header = tarfile.TarInfo("././@LongLink")
    header.type, header.size = tarfile.GNUTYPE_LONGNAME, 5
    block = header.tobuf(tarfile.GNU_FORMAT) + b"name\0".ljust(512, b"\0")
    (tmp_path / "x.tar").write_bytes(block * 3_000)
    with pytest.raises(DataFormatError, match="not a sound .tar"):
        Raw(tmp_path / "x.tar", re.compile(".*"))


@pytest.mark.parametrize("packing", [zipfile.ZIP_LZMA, zipfile.ZIP_BZIP2, zipfile.ZIP_DEFLATED])
def test_a_zip_with_one_byte_changed(packing, tmp_path):
    with zipfile.ZipFile(tmp_path / "x.zip", "w", packing) as archive:
        archive.writestr("a.bin", content := np.random.default_rng(0).bytes(500))
    whole = (tmp_path / "x.zip").read_bytes()
    refused = 0
    for at in range(0, len(whole), 3):
        (tmp_path / "x.zip").write_bytes(whole[:at] + bytes([whole[at] ^ 0x41]) + whole[at + 1 :])
        try:
            raw = Raw(tmp_path / "x.zip", re.compile(r".*\.bin"))
            assert all(data.tobytes() == content for _, data in raw.read(raw.names))
        except DataFormatError as error:
            assert "x.zip" in str(error)
            refused += 1
    assert refused > len(whole) // 6


def test_a_folder_that_cannot_be_listed_is_said(tmp_path, monkeypatch, capsys):
    raw, scandir = write_own(tmp_path / "raw", "train", "test"), os.scandir

    def failing(path):
        if os.fspath(path).endswith("dog"):
            raise OSError(errno.EIO, "Input/output error", os.fspath(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", failing)
    assert main(["prepare", "recordings", str(raw), str(tmp_path / "store")]) == 3
    assert f"{raw}/test/dog: cannot be read, Input/output error" in capsys.readouterr().err


def test_linked_folders_are_folders(tmp_path):
    raw = write_own(tmp_path / "raw", "")
    (raw / "wolf").symlink_to(raw / "dog")
    (raw / "dog" / "all").symlink_to(raw)  # a loop
    store = prepared("recordings", raw, tmp_path / "store")
    assert store.classes == ("cat", "dog", "wolf") and len(store.clips) == 12


@pytest.mark.parametrize("error", [errno.EXDEV, errno.EBUSY, errno.EPERM])
@pytest.mark.parametrize("there", [False, True])
def test_work_that_cannot_be_put_in_place_is_kept(error, there, tmp_path, monkeypatch):
    out, rename = tmp_path / "out", os.rename
    if there:
        out.mkdir()

    def failing(source, target):
        if Path(target) == out or Path(target) == out / "p.npy":
            raise OSError(error, os.strerror(error))
        rename(source, target)

    monkeypatch.setattr(os, "rename", failing)
    with pytest.raises(DataError, match="nothing was replaced. What was made is whole, in ") as caught:
        write(out)
    kept = Path(str(caught.value).rpartition(" in ")[2])
    assert len(Store(kept).clips) == 1 and (not there or not (out / "manifest.json").exists())


@pytest.mark.parametrize("usage", [(0, 0, 0), OSError(errno.ENOSYS, "Function not implemented")])
def test_a_disc_that_does_not_say_what_is_free(usage, cifar, tmp_path, monkeypatch):
    def answer(_):
        if isinstance(usage, OSError):
            raise usage
        return shutil._ntuple_diskusage(*usage)

    monkeypatch.setattr(shutil, "disk_usage", answer)
    assert main(["prepare", "cifar10_dvs", str(cifar), str(tmp_path / "store")]) == 0


@pytest.mark.parametrize("kind", ["below", "flat", "Windows", "upper case"])
def test_archives_as_people_have_them(kind, cifar, cifar_store, tmp_path):
    raw = tmp_path / "CIFAR10DVS" / ("download" if kind == "below" else "")
    raw.mkdir(parents=True)
    for name in cifar10_dvs.CLASSES:
        if kind == "upper case":
            (raw / name).mkdir()
            for path in (cifar / name).iterdir():
                shutil.copy(path, raw / name / f"{path.stem}.AEDAT")
        else:
            zipped(
                raw / f"{name}.zip", cifar / name, {"flat": "", "Windows": f"{name}!"}.get(kind, f"{name}/")
            )
        if kind == "Windows":
            path = raw / f"{name}.zip"
            path.write_bytes(path.read_bytes().replace(f"{name}!".encode(), f"{name}\\".encode()))
    assert same(cifar_store, prepared("cifar10_dvs", tmp_path / "CIFAR10DVS", tmp_path / "store"))


def test_what_is_not_read_is_counted(cifar, tmp_path, capsys):
    raw = tmp_path / "raw"
    shutil.copytree(cifar / "cat", raw / "cat")
    shutil.copy(raw / "cat" / "cifar10_cat_0.aedat", raw / "stray.aedat")
    (raw / "cat" / "cifar10_cat_1.aedat").write_bytes(b"#!AER-DAT2.0\r\n")
    zipped(raw / "dog.zip", cifar / "dog", "dog/")
    prepared("cifar10_dvs", raw, tmp_path / "store")
    err = capsys.readouterr().err
    assert "1 archives, beside files that lie unpacked, are left out, e.g. dog.zip" in err
    assert "1 .aedat and .mat and .npz files of other names are left out, e.g. stray.aedat" in err
    assert "1 recordings hold no event, e.g. " in err and "cifar10_cat_1.aedat" in err
    (tmp_path / "box.zip").write_bytes(b"")
    with zipfile.ZipFile(tmp_path / "box.zip", "w") as archive:
        archive.writestr("DvsGesture.tar.gz", b"")
    assert main(["prepare", "dvs_gesture", str(tmp_path / "box.zip"), str(tmp_path / "x")]) == 3
    assert "there are no recordings (it holds DvsGesture.tar.gz: unpack that)" in capsys.readouterr().err


def test_two_files_of_one_name_are_refused(tmp_path, capsys):
    raw = write_own(tmp_path / "raw", "")
    writers.write_arrays(raw / "cat" / "monday" / "1.npz", events_of(3))
    assert main(["prepare", "recordings", str(raw), str(tmp_path / "store")]) == 3
    assert "is one of two files of this name" in capsys.readouterr().err


def test_splits_without_recordings(tmp_path, capsys):
    (tmp_path / "train" / "1").mkdir(parents=True)
    writers.write_text(tmp_path / "train" / "1" / "a.txt", events_of(1))
    assert main(["prepare", "dvs_gait", str(tmp_path), str(tmp_path / "store")]) == 3
    assert "found train/ alone; wanted train/ and test/" in capsys.readouterr().err
    path = data.write_store(tmp_path / "mine", [(events_of(1), "a", "x", "train")], ["a"])
    with pytest.raises(DataError, match="holds no recording of the test split"):
        Recordings(path, "test")


def test_a_store_of_damaged_parts_is_refused(tmp_path):
    path = data.write_store(tmp_path / "mine", [(events_of(1), "a", "x\r\n", "train")], ["a"], (180, 240))
    assert Recordings(path, "train").store.clips[0].recording == r"x\r\n"
    whole, rng, refused = (path / "t.npy").read_bytes(), np.random.default_rng(0), 0
    for _ in range(300):
        changed = bytearray(whole)
        changed[rng.integers(128)] = rng.integers(256)
        (path / "t.npy").write_bytes(changed)
        try:
            Recordings(path, "train")[0]
        except DataFormatError as error:
            assert "t.npy: not a column of a store" in str(error)
            refused += 1
    assert refused > 100
    (path / "t.npy").write_bytes(whole)
    manifest = (path / "manifest.json").read_text()
    for old, new in (('"events": 60', f'"events": {"9" * 5_000}'), ("180,", "40000,"), ("180,", "-1,")):
        (path / "manifest.json").write_text(manifest.replace(old, new, 1))
        with pytest.raises(DataFormatError, match="manifest.json"):
            Store(path)


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ({"classes": "walk"}, "classes must be a sequence of names, got 'walk'"),
        ({"classes": [0, 1]}, "classes must be a sequence of names"),
        ({"sensor": "128x128"}, r"sensor must be \(height, width\)"),
        ({"sensor": (40_000, 5)}, r"sensor must be \(height, width\)"),
        ({"sensor": (128.0, 128.0)}, r"sensor must be \(height, width\)"),
    ],
)
def test_write_store_looks_at_its_arguments_first(how, words, tmp_path):
    arguments = {"classes": ["a"], "sensor": None} | how
    with pytest.raises(ValueError, match=words):
        data.write_store(tmp_path / "x", iter(()), **arguments)
    sides = np.array([180, 240])
    path = data.write_store(tmp_path / "y", [(events_of(1), np.int64(0), "x", "train")], ["a"], tuple(sides))
    assert Store(path).sensor == (180, 240)


def test_a_set_is_known_again_from_another_archive(cifar, cifar_store, tmp_path):
    again = prepared("cifar10_dvs", zipped(tmp_path / "all.zip", cifar), tmp_path / "store")
    one, two = (data.CIFAR10DVS(s.path, "train", split_rule="name_order") for s in (cifar_store, again))
    assert one.identity == two.identity
    part = data.select(one, [3, 1])
    assert part.identity not in (one.identity, data.select(one, [1, 3]).identity)
    assert torch.equal(part.__getitems__([1, 0]).frames, one.__getitems__([1, 3]).frames)
    with pytest.raises(ValueError, match="a mask: pass np.flatnonzero"):
        data.select(one, np.ones(100, bool))
