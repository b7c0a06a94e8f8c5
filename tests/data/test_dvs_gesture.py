"""DVS128 Gesture: raw files to store to frames, the published rules, hostile labels and archives, kill -9."""

import gzip
import io
import json
import pickle
import signal
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from events_writers import (
    GESTURES,
    TRIAL_US,
    aedat,
    random_events,
    write_csv,
    write_dvs_gesture,
    write_recording,
)
from torch.utils.data import DataLoader

from attsnn.data import DataError, DataFormatError, DataMissingError, Draw, DVSGesture, frames, select
from attsnn.data.__main__ import main
from attsnn.data.core.events import COLUMNS
from attsnn.data.core.raw import Archive
from attsnn.data.core.store import Store, StoreWriter
from attsnn.data.datasets.dvs_gesture import CLASSES, RAW_FILES, prepare

pytestmark = pytest.mark.filterwarnings(
    "ignore:found .* clips; the published", "ignore:attsnn runs the PyTorch"
)
SETTINGS = {"steps": 4, "dt_ms": 50.0}
US = 200_000  # of a sample with these


@pytest.fixture(scope="module")
def raw(tmp_path_factory) -> Path:
    return write_dvs_gesture(tmp_path_factory.mktemp("raw"))


@pytest.fixture(scope="module")
def store(raw) -> Path:
    return prepare(raw, raw.parent / "store", progress=False)


def archive(path: Path, raw: Path, *extra: tuple[tarfile.TarInfo, bytes]) -> Path:
    with tarfile.open(path, "w:gz") as tar:
        tar.add(raw, "DvsGesture")
        for member, data in extra:
            member.size = member.size or len(data)
            tar.addfile(member, io.BytesIO(data) if member.size == len(data) else None)
    return path


def assert_same_clips(one: Path, other: Path) -> None:
    for split in ("train", "test"):
        a, b = DVSGesture(one, split, **SETTINGS), DVSGesture(other, split, **SETTINGS)
        assert a.labels.tolist() == b.labels.tolist() and len(a) == len(b) > 0
        for index in range(len(a)):
            for name in COLUMNS:
                np.testing.assert_array_equal(getattr(a.events(index), name), getattr(b.events(index), name))


def test_clips_are_the_labelled_intervals(store, raw):
    train, test = DVSGesture(store, "train", **SETTINGS), DVSGesture(store, "test", **SETTINGS)
    assert (len(train), len(test)) == (24, 12)
    assert train.classes == CLASSES and train.labels.tolist() == [g - 1 for g in GESTURES] * 2
    written = write_recording(raw.parent, "again", seed=1)  # the second of the writer's recordings
    for k in range(12):
        start = 80_000_000 + k * TRIAL_US + 50_000
        inside = (written.t >= start) & (written.t < start + TRIAL_US - 100_000)
        for name in COLUMNS:
            np.testing.assert_array_equal(getattr(train.events(12 + k), name), getattr(written, name)[inside])


def test_samples_are_frames_of_a_window(store):
    data = DVSGesture(store, "train", **SETTINGS)
    sample, label = data[3]
    clip = data.events(3)
    first = clip.between(int(clip.t[0]), int(clip.t[0]) + US)
    wanted = frames(first, steps=4, dt=50_000, downsample=4, backend="reference")
    assert (
        sample.dtype == torch.float32 and sample.shape == (4, 2, 32, 32) and type(label) is int and label == 3
    )
    np.testing.assert_array_equal(sample.numpy(), wanted)
    turned = DVSGesture(store, "train", **SETTINGS, axes="xy")[3][0]
    assert torch.equal(turned, sample.transpose(2, 3)) and not torch.equal(turned, sample)
    assert torch.equal(DVSGesture(store, "train", **SETTINGS, binary=True)[3][0], (sample > 0).float())
    assert DVSGesture(store, "train", **SETTINGS, downsample=1)[0][0].shape == (4, 2, 128, 128)


@pytest.mark.parametrize(("dt_ms", "dt", "steps"), [(12.5, 12_500, 40), (1.001, 1001, 900)])
def test_steps_of_a_fraction_of_a_millisecond(store, dt_ms, dt, steps):
    """In whole microseconds, the nearest: 1000 times 1.001 is 1000.9999999999999."""
    data = DVSGesture(store, "train", steps=steps, dt_ms=dt_ms)
    clip = data.events(3)
    inside = clip.between(int(clip.t[0]), int(clip.t[0]) + steps * dt)
    np.testing.assert_array_equal(data[3][0], frames(inside, steps=steps, dt=dt, downsample=4))


def test_random_windows_are_pure_functions_of_their_key(store):
    data = DVSGesture(store, "train", **SETTINGS, window="random")
    clip = data.events(5)
    again, other = (data[Draw(5, seed)][0] for seed in (7, 8))
    assert torch.equal(data[Draw(5, 7)][0], again) and not torch.equal(again, other)
    assert torch.equal(data[5][0], DVSGesture(store, "train", **SETTINGS)[5][0])  # without a seed: the first
    rng = np.random.Generator(np.random.Philox(7))
    start = int(rng.integers(clip.t[0], clip.t[-1] - US))
    np.testing.assert_array_equal(
        again, frames(clip.between(start, start + US), steps=4, dt=50_000, downsample=4)
    )
    longer = DVSGesture(store, "train", steps=40, dt_ms=50, window="random")  # two seconds of a clip of one
    assert longer[Draw(5, 7)][0].sum() == len(clip)


def test_workers_and_selections_take_keys(store):
    data = DVSGesture(store, "train", **SETTINGS, window="random")
    data[0]  # maps the columns, which must not travel
    data = pickle.loads(pickle.dumps(data))  # noqa: S301 (as a spawned worker gets it)
    assert data.store._columns is None
    part = select(data, range(12, 24))
    keys = [Draw(index, 100 + index) for index in (3, 0, 11, 5, 2, 7)]
    batches = list(DataLoader(part, sampler=keys, batch_size=2, num_workers=2))
    got = torch.cat([batch for batch, _ in batches])
    assert torch.equal(got, torch.stack([data[Draw(12 + index, seed)][0] for index, seed in keys]))
    assert (
        part.labels[[index for index, _ in keys]].tolist()
        == torch.cat([labels for _, labels in batches]).tolist()
    )
    assert len(pickle.dumps(data)) < 20_000


def test_published_clips(store):
    data = DVSGesture(store, "test", **SETTINGS, window="clips", clips=6)
    sample, _ = data[2]
    clip = data.events(2)
    first, duration = int(clip.t[0]), int(clip.t[-1] - clip.t[0])
    assert sample.shape == (6, 4, 2, 32, 32) and 6 * US > duration > US
    step = US - (6 * US - duration) // 6
    for k in range(6):
        start = first + min(k * step, duration - US)
        wanted = frames(clip.between(start, start + US), steps=4, dt=50_000, downsample=4)
        np.testing.assert_array_equal(sample[k], wanted)


def test_folder_parent_and_archive_give_the_same_clips(store, raw, tmp_path):
    for source in (raw.parent, archive(tmp_path / "DvsGesture.tar.gz", raw), tmp_path):
        out = tmp_path / f"store{len(list(tmp_path.iterdir()))}"
        prepare(source, out, progress=False)
        assert_same_clips(store, out)


def test_without_trial_lists_users_decide(store, tmp_path):
    raw = write_dvs_gesture(tmp_path, lists=False)
    assert_same_clips(store, prepare(raw, tmp_path / "store", progress=False))


def test_the_manifest_says_what_is_in_the_store(store):
    opened = Store(store)
    opened.verify()
    manifest = opened.manifest
    assert manifest["version"] == 1 and manifest["source"] == "DvsGesture" and manifest["sorted_events"] == 0
    assert manifest["clips_of_each_class"]["train"] == [2, 2, 2, 2, 2, 2, 2, 4, 2, 2, 2]
    assert sum(len(opened.events(clip)) for clip in opened.clips) == manifest["events"]
    assert {entry["size"] for entry in manifest["files"].values()} == {
        p.stat().st_size for p in store.iterdir()
    } - {(store / "manifest.json").stat().st_size}


def test_sorted_events_are_counted_and_strict_refuses_them(tmp_path):
    raw = write_dvs_gesture(tmp_path)
    events = random_events(20_000, start=80_000_000, length=12 * TRIAL_US)
    events.t[9000] -= 100_000
    (raw / "user01_led.aedat").write_bytes(aedat(events))
    assert Store(prepare(raw, tmp_path / "store", progress=False)).manifest["sorted_events"] == 1
    with pytest.raises(DataFormatError, match=r"user01_led\.aedat: byte \d+: .*strict"):
        prepare(raw, tmp_path / "strict", strict=True, progress=False)
    assert main(["prepare", "dvs_gesture", str(raw), str(tmp_path / "strict"), "--strict"]) == 3
    assert not (tmp_path / "strict").exists()


def test_the_published_recordings_give_1176_and_288_clips(tmp_path, recwarn):
    lights = ("fluorescent", "fluorescent_led", "lab", "led", "natural")
    names = [f"user{user:02d}_{light}" for light in lights for user in range(1, 30)]
    train = [name for name in names if int(name[4:6]) <= 23][:98]
    test = [name for name in names if int(name[4:6]) >= 24][:24]
    raw = write_dvs_gesture(tmp_path, train=train, test=test, lists=False, number=20)
    out = prepare(raw, tmp_path / "store", progress=False)
    assert (len(DVSGesture(out, "train")), len(DVSGesture(out, "test"))) == (1176, 288)
    assert not [warning for warning in recwarn if "published" in str(warning.message)]


def test_other_counts_than_published_are_warned_of(raw, tmp_path):
    with pytest.warns(UserWarning, match="found 24 train clips; the published data set has 1176"):
        prepare(raw, tmp_path / "store", progress=False)


def test_the_known_label_is_fixed_on_request(tmp_path):
    raw = write_dvs_gesture(tmp_path, train=("user22_led",))
    rows = [(9, 100_000_000, 110_590_564), (10, 105_000_000, 111_000_000)]
    (raw / "user22_led.aedat").write_bytes(aedat(random_events(2000, start=99_000_000, length=12_000_000)))
    write_csv(raw / "user22_led_labels.csv", rows)
    lengths = {}
    for fix in (False, True):
        with pytest.warns(UserWarning, match=r"user22_led_labels\.csv:3: starts at 105000000, before"):
            out = prepare(raw, tmp_path / f"store{fix}", fix_known_labels=fix, progress=False)
        lengths[fix] = int(np.ptp(DVSGesture(out, "train").events(0).t)) // 1_000_000
    assert lengths == {False: 10, True: 3}


HEADER = "class,startTime_usec,endTime_usec\n"
BAD_LABELS = {  # text of the CSV, line, words
    "no header": ("1,2,3\n", 1, "wanted"),
    "empty": ("", 1, "wanted"),
    "no rows": (HEADER, 1, "no rows"),
    "short row": (HEADER + "1,5,9\n2,5\n", 3, "2 fields"),
    "long row": (HEADER + "1,5,9,4\n", 2, "4 fields"),
    "not a number": (HEADER + "1,5,nine\n", 2, "endTime_usec = 'nine'"),
    "a fraction": (HEADER + "1,5.0,9\n", 2, "startTime_usec = '5.0'"),
    "python's spelling": (HEADER + "1,1_0,90\n", 2, "'1_0'"),
    "huge": (HEADER + f"1,5,{10**30}\n", 2, "integer"),
    "class 0": (HEADER + "0,5,9\n", 2, "class 0"),
    "class 12": (HEADER + "\n12,5,9\n", 3, "class 12"),
    "end before start": (HEADER + "1,9,5\n", 2, "end of 5"),
    "end at start": (HEADER + "1,9,9\n", 2, "end of 9"),
    "not text": (HEADER + "1,5,\udcff\n", 2, "UTF-8"),
}


@pytest.mark.parametrize("case", BAD_LABELS)
def test_bad_labels_are_named_with_file_and_line(case, tmp_path):
    text, line, words = BAD_LABELS[case]
    raw = write_dvs_gesture(tmp_path)
    path = raw / "user02_lab_labels.csv"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(DataFormatError, match=words) as caught:
        prepare(raw, tmp_path / "store", progress=False)
    assert caught.value.line == line and str(caught.value).startswith(f"{path}:{line}: ")
    assert caught.value.offset is not None and not (tmp_path / "store").exists()


def test_label_columns_are_found_by_their_header(store, tmp_path):
    raw = write_dvs_gesture(tmp_path)
    for path in raw.glob("*_labels.csv"):
        rows = [line.split(",")[::-1] for line in path.read_text().split()]
        path.write_text("\ufeff" + "".join(", ".join(row) + "\r\n" for row in rows) + "\r\n", newline="")
    assert_same_clips(store, prepare(raw, tmp_path / "store", progress=False))


@pytest.mark.parametrize(
    "file, content, words",
    [
        ("user02_lab_labels.csv", None, r"user02_lab_labels\.csv: is missing"),
        ("user02_lab.aedat", None, r"trials_to_train\.txt:2: .*user02_lab"),
        ("user02_lab.aedat", b"", r"user02_lab\.aedat: byte 0"),
        ("trials_to_test.txt", None, "one of trials_to_train.txt and trials_to_test.txt is missing"),
        ("trials_to_test.txt", b"user01_led.aedat\n", "user01_led is also in"),
        ("trials_to_test.txt", b"user24_led.aedat\n\nuser24_led.aedat\n", r"trials_to_test\.txt:3"),
        ("gesture_mapping.csv", b"action,label\nwave,2\n", "wanted 1, 2, 3"),
        ("gesture_mapping.csv", b"action,label\nwave,1\nwave\n", r"gesture_mapping\.csv:3"),
    ],
)
def test_missing_and_contradicting_files(file, content, words, tmp_path):
    raw = write_dvs_gesture(tmp_path)
    (raw / file).unlink(missing_ok=True)
    if content is not None:
        (raw / file).write_bytes(content)
    with pytest.raises(DataFormatError, match=words):
        prepare(raw, tmp_path / "store", progress=False)
    assert [p.name for p in tmp_path.iterdir()] == ["DvsGesture"]


def test_a_folder_in_a_files_place(tmp_path):
    raw = write_dvs_gesture(tmp_path)
    (raw / "user01_led.aedat").unlink()
    (raw / "user01_led.aedat").mkdir()
    with pytest.raises(DataFormatError, match="found a folder"):
        prepare(raw, tmp_path / "store", progress=False)


def test_labels_beyond_the_recording_are_warned_of(tmp_path):
    raw = write_dvs_gesture(tmp_path)
    write_csv(raw / "user24_led_labels.csv", [(4, 10, 20)])
    with pytest.warns(UserWarning, match="no events from 10 to 20"):
        out = prepare(raw, tmp_path / "store", progress=False)
    for window in ("first", "random", "clips"):
        sample, label = DVSGesture(out, "test", **SETTINGS, window=window)[Draw(0, 1)]
        assert sample.sum() == 0 and label == 3


def member(name: str, **fields) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    for field, value in fields.items():
        setattr(info, field, value)
    return info


HOSTILE = {
    "a link": (
        member("DvsGesture/user03_led.aedat", type=tarfile.SYMTYPE, linkname="/etc/passwd"),
        b"",
        "link",
    ),
    "a hard link": (
        member("user03_led.aedat", type=tarfile.LNKTYPE, linkname="user01_led.aedat"),
        b"",
        "link",
    ),
    "a second file of a name": (member("./DvsGesture/user01_led.aedat"), b"x", "second"),
    "too large": (member("DvsGesture/note.txt", size=1 << 40), b"", "wanted at most"),
    "a large text": (member("DvsGesture/gesture_mapping.csv"), bytes(2 << 20), "at most"),
    "a large extra header": (member("DvsGesture/" + "n" * (3 << 20)), b"", "a header asks for"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_archives_are_refused(case, raw, tmp_path):
    info, data, words = HOSTILE[case]
    path = archive(tmp_path / "a.tar.gz", raw, (info, data))
    with pytest.raises(DataFormatError, match=words):
        prepare(path, tmp_path / "store", progress=False)
    assert [p.name for p in tmp_path.iterdir()] == ["a.tar.gz"]


def test_names_in_archives_are_never_paths(store, raw, tmp_path):
    stray = ("../user09_led.aedat", "/tmp/user09_led.aedat", "other/user09_led.aedat", "user09_led.aedat\n")
    path = archive(tmp_path / "a.tar.gz", raw, *((member(name), b"hostile") for name in stray))
    assert_same_clips(store, prepare(path, tmp_path / "store", progress=False))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.tar.gz", "store"]


@pytest.mark.parametrize("cut", [0, 10, 2000, -20])
def test_cut_archives_are_refused(cut, raw, tmp_path):
    path = archive(tmp_path / "a.tar.gz", raw)
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(DataError):
        prepare(path, tmp_path / "store", progress=False)
    assert not (tmp_path / "store").exists()


def test_archives_are_checked_to_their_last_byte(raw, tmp_path):
    path = archive(tmp_path / "a.tar.gz", raw)
    data = bytearray(path.read_bytes())
    data[-6] ^= 1  # of gzip's checksum
    path.write_bytes(data)
    with pytest.raises(DataFormatError, match="CRC"):
        prepare(path, tmp_path / "store", progress=False)


def test_mutated_archives_raise_only_format_errors():
    buffer, rng, outcomes = io.BytesIO(), np.random.default_rng(0), {"read": 0, "refused": 0}
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name in ("user01_led.aedat", "user01_led_labels.csv", "user02_led.aedat"):
            tar.addfile(
                member(f"DvsGesture/{name}", size=700, pax_headers={"comment": "x" * 20}),
                io.BytesIO(bytes(700)),
            )
    for _ in range(400):
        data = bytearray(buffer.getvalue())
        for at in rng.integers(0, 6000, rng.integers(1, 6)):
            data[at] = rng.integers(0, 256) if at % 2 else rng.choice([48, 49, 55, 83, 120, 128, 255])
        with tempfile.NamedTemporaryFile(suffix=".tar.gz") as file:
            file.write(gzip.compress(bytes(data), 1))
            file.flush()
            try:
                source = Archive(file.name, RAW_FILES, "DvsGesture")
                assert all(len(content) <= 6000 for _, content in source.recordings(source.names))
                outcomes["read"] += 1
            except DataFormatError:
                outcomes["refused"] += 1
    assert min(outcomes.values()) > 20, outcomes


KILLED = """
import os, signal, sys
from attsnn.data.core import store
from attsnn.data.datasets import dvs_gesture
calls = 0
def killing(function, nth):
    def wrapped(*args, **kwargs):
        global calls
        calls += 1
        if calls == nth:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*args, **kwargs)
    return wrapped
where, nth = sys.argv[3], int(sys.argv[4])
if where == "append":
    store.StoreWriter.append = killing(store.StoreWriter.append, nth)
elif where == "manifest":
    store._write_text = killing(store._write_text, nth)
else:
    os.rename = killing(os.rename, nth)
dvs_gesture.prepare(sys.argv[1], sys.argv[2], progress=False)
"""


@pytest.mark.parametrize("where, nth", [("append", 7), ("manifest", 2), ("rename", 1)])
def test_killed_half_way_nothing_looks_complete(where, nth, raw, store, tmp_path):
    out = tmp_path / "store"
    command = [sys.executable, "-W", "ignore", "-c", KILLED, raw, out, where, str(nth)]
    root = Path(__file__).parent.parent.parent
    done = subprocess.run(command, cwd=root, timeout=60, check=False)
    assert done.returncode == -signal.SIGKILL
    assert not out.exists() and len(list(tmp_path.iterdir())) == 1  # what it left has another name
    with pytest.raises(DataMissingError, match="python -m attsnn.data prepare dvs_gesture"):
        DVSGesture(out, "train")
    assert_same_clips(store, prepare(raw, out, progress=False))
    assert [p.name for p in tmp_path.iterdir()] == ["store"]  # and is swept away


def test_a_living_writer_is_left_alone_and_the_first_store_stays(raw, tmp_path):
    writer = StoreWriter(tmp_path / "store", classes=CLASSES, sensor=(128, 128), about={})
    with pytest.raises(DataError, match="cannot be put in place"), writer:
        prepare(raw, tmp_path / "store", progress=False)
    assert len(DVSGesture(tmp_path / "store", "train")) == 24
    with pytest.raises(DataError, match="is there already"):
        prepare(raw, tmp_path / "store", progress=False)


@pytest.fixture
def broken(raw, tmp_path) -> Path:
    return prepare(raw, tmp_path / "store", progress=False)


def test_opening_checks_sizes_and_verify_checks_sums(broken, capsys):
    column = broken / "x.npy"
    data = bytearray(column.read_bytes())
    data[-3] ^= 1
    column.write_bytes(data)
    DVSGesture(broken, "train")
    with pytest.raises(DataFormatError, match=r"x\.npy: found another SHA-256"):
        Store(broken).verify()
    assert main(["verify", "dvs_gesture", str(broken)]) == 3
    assert "x.npy" in capsys.readouterr().err
    column.write_bytes(data[:-1])
    with pytest.raises(DataFormatError, match=r"x\.npy: found \d+ bytes; wanted"):
        DVSGesture(broken, "train")
    column.unlink()
    with pytest.raises(DataFormatError, match=r"x\.npy: found nothing"):
        DVSGesture(broken, "train")


@pytest.mark.parametrize(
    "file, old, new, words",
    [
        ("manifest.json", b'"version": 1', b'"version": 9', "prepare it again"),
        ("manifest.json", b"{", b"[", "not JSON"),
        ("manifest.json", b'"events": ', b'"events": -', "another type"),
        ("clips.csv", b"train", b"drain", r"clips.csv:2"),
        ("clips.csv", b"start,", b"begin,", r"clips.csv:1"),
        ("x.npy", b"'<i2'", b"'<i4'", "x.npy"),
        ("t.npy", b"\x93NUMPY", b"\x93PICKL", "not a column"),
        ("t.npy", b"'<i8'", b"'|O8'", "t.npy"),
    ],
)
def test_damaged_stores_are_refused(broken, file, old, new, words):
    data = (broken / file).read_bytes()
    assert old in data
    (broken / file).write_bytes(data.replace(old, new, 1))
    with pytest.raises(DataFormatError, match=words):
        DVSGesture(broken, "train")[0]


def test_an_index_that_is_no_table_is_refused(broken):
    (broken / "clips.csv").write_bytes(b"a" * 200_000)
    manifest = json.loads((broken / "manifest.json").read_text())
    manifest["files"]["clips.csv"]["size"] = 200_000
    (broken / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(DataFormatError, match="clips.csv: not a table"):
        DVSGesture(broken, "train")


@pytest.mark.parametrize(
    "bad",
    [{"split": "val"}, {"window": "last"}, {"clips": 0}, {"steps": 0}, {"downsample": 5}, {"axes": "zz"}],
)
def test_bad_settings_are_named(store, bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        DVSGesture(store, **({"split": "train"} | bad))


def test_missing_data_says_where_to_get_it(tmp_path):
    wanted = "https://research.ibm.com/interactive/dvsgesture.*python -m attsnn.data prepare dvs_gesture"
    with pytest.raises(DataMissingError, match=wanted):
        DVSGesture(tmp_path, "train")
    with pytest.raises(DataMissingError, match=wanted):
        prepare(tmp_path, tmp_path / "store")
    with pytest.raises(DataMissingError, match=wanted):
        prepare(tmp_path / "absent", tmp_path / "store")


def test_command_line(raw, tmp_path, capsys):
    out = tmp_path / "store"
    assert main(["list"]) == 0
    assert "dvs_gesture" in capsys.readouterr().out
    assert main(["prepare", "dvs_gesture", str(raw), str(out)]) == 0
    shown = capsys.readouterr()
    assert "24 train and 12 test clips" in shown.out and "100%" in shown.err
    assert main(["verify", "dvs_gesture", str(out)]) == 0
    assert main(["verify", "dvs_gesture", str(raw)]) == 3
    assert main(["prepare", "dvs_gesture", str(raw), str(out)]) == 3
    assert len(capsys.readouterr().err.splitlines()) == 2


UNKNOWN = (["prepair", "dvs_gesture"], ["prepare", "dvs_gestures", "a", "b"], ["list", "--loud"], [])


@pytest.mark.parametrize("words", UNKNOWN)
def test_unknown_words_exit_2(words, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(words)
    assert "error:" in capsys.readouterr().err


def test_the_module_runs_and_prints_no_traceback(tmp_path):
    command = [sys.executable, "-m", "attsnn.data", "verify", "dvs_gesture", tmp_path]
    root = Path(__file__).parent.parent.parent
    done = subprocess.run(command, capture_output=True, text=True, cwd=root, check=False)
    assert done.returncode == 3 and done.stderr.startswith("error:") and len(done.stderr.splitlines()) == 1
