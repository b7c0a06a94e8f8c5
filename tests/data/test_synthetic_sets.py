"""Synthetic sets in published formats: what is in them, through the classes that open them; and how they are
put in place.
"""

import gzip
import json
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from attsnn import data
from attsnn.data import DATASETS, DataError, DataFormatError, Digits, DVSGesture, Recordings, synthesise
from attsnn.data.core.events import generator
from attsnn.data.core.store import StoreWriter
from attsnn.data.datasets import cifar10_dvs, dvs_gesture, ncaltech101
from attsnn.data.datasets.digits import NAMES, digits
from attsnn.data.synthetic import samples, sets, writers
from attsnn.data.synthetic.textures import texture

COUNT, SEED = 20, 3
UNDIVIDED = ("cifar10_dvs", "ncaltech101")
SHAPES = {
    "dvs_gesture": (60, 2, 32, 32),
    "cifar10_dvs": (20, 2, 128, 128),
    "ncaltech101": (14, 2, 180, 240),
    "dvs_gait": (8, 2, 128, 128),
    "recordings": (10, 2, 128, 128),
}
CLASSES = {  # of the labels 0 to 9
    "dvs_gesture": dvs_gesture.CLASSES[:10],
    "cifar10_dvs": cifar10_dvs.CLASSES,
    "ncaltech101": ncaltech101.CLASSES[:10],
    "dvs_gait": tuple("0123456789"),
    "recordings": NAMES,
}


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> dict[str, Path]:
    """All sets, without a warning."""
    folder = tmp_path_factory.mktemp("sets")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return {name: synthesise(name, folder, COUNT, SEED) for name in (*sets.NAMED, *sets.UNLABELLED)}


def opened(name: str, path: Path, split: str):
    how = {"split_rule": "first900"} if name in UNDIVIDED else {}
    return DATASETS[name].open(path, split, **how)


def columns(t, x, y, p) -> bytes:
    """Of a recording, from its first event on."""
    return np.stack([t - t[0], x, y, p]).astype(np.int64).tobytes()


def content(path: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(path.iterdir())}


def test_the_sets_are_those_asked_for(made):
    assert set(made) == {*SHAPES, "cifar10", "cifar100", "mnist", "fashion", "celeba"}
    assert all(path.name == f"{name}-v{samples.VERSION}-20-seed3" for name, path in made.items())


@pytest.mark.parametrize("name", SHAPES)
def test_event_sets_open_as_real_ones(name, made):
    train, test = (opened(name, made[name], split) for split in ("train", "test"))
    assert (len(train), len(test)) == (20, 10) and train.classes == test.classes
    assert train[0].frames.shape == SHAPES[name] and train[0].frames.sum() > 1000
    assert type(train).__name__ == DATASETS[name].kind
    per_class = [
        {train.classes[k]: n for k, n in enumerate(np.bincount(x.labels)) if n} for x in (train, test)
    ]
    assert per_class == [dict.fromkeys(CLASSES[name], 2), dict.fromkeys(CLASSES[name], 1)]
    manifest = json.loads((made[name] / "manifest.json").read_text())
    assert manifest["dataset"] == name and manifest["source"] == made[name].name
    assert manifest["sorted_events"] == 0 and manifest.get("clock_restarts", 0) == 0
    if name != "ncaltech101":  # which names all of its classes
        assert sorted(train.classes) == sorted(CLASSES[name])


@pytest.mark.parametrize("name", SHAPES)
def test_event_sets_hold_what_the_sensor_saw(name, made):
    """Upright, of ON and OFF as recorded, in the class and the split of the digit."""
    right, down = (56, 26) if name == "ncaltech101" else (0, 0)
    wanted = {"train": [], "test": []}
    for take in sets._takes(COUNT, SEED):
        seen = samples.record(digits()[0][take.digit], generator(take.seeds))
        assert digits()[1][take.digit] == take.label and take.digit in Digits(take.split).indices
        placed = columns(seen.t, seen.x + right, seen.y + down, seen.p)
        wanted[take.split].append((CLASSES[name][take.label], placed))
    for split, recordings in wanted.items():
        found = opened(name, made[name], split)
        events = [found.events(i) for i in range(len(found))]
        got = [
            (found.classes[label], columns(e.t, e.x, e.y, e.p))
            for label, e in zip(found.labels, events, strict=True)
        ]
        assert sorted(got) == sorted(recordings), split
        assert found.store.sensor == ((180, 240) if right else (128, 128))


@pytest.mark.parametrize("name", UNDIVIDED)
def test_sets_without_a_split_are_parted_as_published(name, tmp_path):
    """By the rules that the two classes have by default."""
    path = synthesise(name, tmp_path, 100)
    kind = DATASETS[name].open
    assert [len(kind(path, split)) for split in ("train", "test")] == (
        [100, 20] if name == "cifar10_dvs" else [110, 10]
    )
    assert [len(kind(path, split, split_rule="first900")) for split in ("train", "test")] == [100, 20]


@pytest.mark.parametrize(("count", "first"), [(10, 900), (9_000, 900), (9_011, 902)])
def test_no_two_recordings_have_one_name(count, first):
    takes = sets._takes(count, 0)
    assert len({(take.label, take.number) for take in takes}) == count + max(count // 5, 10)
    assert min(take.number for take in takes if take.split == "test") == first
    assert [take.user for take in takes] == sorted(take.user for take in takes)


def test_digits_and_what_moves_them_differ_from_take_to_take():
    takes, others = sets._takes(2_000, 0), sets._takes(2_000, 1)
    assert len({take.seeds for take in takes}) == len(takes) == 2_400
    shown = [[take.digit for take in takes if take.split == split] for split in ("train", "test")]
    assert [len(set(part)) for part in shown] == [len(Digits("train")), len(Digits("test"))]
    assert not set(shown[0]) & set(shown[1])
    first = [take.digit for take in takes if take.split == "train" and take.number < 100]
    assert len(set(first)) == len(first) == 1_000  # none again before all of its class were shown
    assert [take.digit for take in takes] != [take.digit for take in others]
    assert not {take.seeds for take in takes} & {take.seeds for take in others}


# Who moves


def test_whole_people_can_be_held_out(made):
    train, test = (opened("dvs_gesture", made["dvs_gesture"], split) for split in ("train", "test"))
    assert train.people.dtype == np.int64 and train.people.shape == (20,)
    assert sorted(set(train.people.tolist())) == [1, 2, 3, 4, 5, 6, 7, 8]
    assert sorted(set(test.people.tolist())) == [24, 25]
    by_user = {}
    for take in sets._takes(80, 0):
        by_user.setdefault((take.split, take.user), []).append(take.label)
    trained = [sorted(labels) for (split, _), labels in by_user.items() if split == "train"]
    assert trained == [[*range(10)]] * 8  # each makes every gesture
    assert len({user for split, user in by_user if split == "test"}) == 2


@pytest.mark.parametrize("name", [name for name in SHAPES if name != "dvs_gesture"])
def test_other_sets_do_not_know_who_moves(name, made):
    assert opened(name, made[name], "train").people is None


def test_people_are_in_the_names_of_gestures(tmp_path):
    """Of recordings as published and of SpikingJelly's arrays; in the order of the clips."""
    events = samples.record(digits()[0][0], generator(0))
    names = ["user07_led", "user007_lab", "user12_fluorescent_led_3", "user24_natural_0"]
    path = data.write_store(
        tmp_path / "store", ((events, 0, n, "test" if n[4] == "2" else "train") for n in names), ["a"]
    )
    train = DVSGesture(path, "train", downsample=1)
    assert [clip.recording for clip in train._clips] == [
        "user007_lab",
        "user07_led",
        "user12_fluorescent_led_3",
    ]
    assert train.people.tolist() == [7, 7, 12]
    assert DVSGesture(path, "test", downsample=1).people.tolist() == [24]
    assert Recordings(path, "train").people is None
    for split, name in (("train", "user09_lab_0"), ("test", "user29_led_4")):
        file = tmp_path / "events_np" / split / "3" / f"{name}.npz"
        file.parent.mkdir(parents=True)
        writers.write_arrays(file, events)
    with pytest.warns(UserWarning, match="the published data set has"):
        dvs_gesture.prepare(tmp_path / "events_np", tmp_path / "arrays", progress=False)
    assert [DVSGesture(tmp_path / "arrays", s).people.tolist() for s in ("train", "test")] == [[9], [29]]


@pytest.mark.parametrize("name", ["clip3", "user7_led", "user07", "my_user07_led"])
def test_one_name_without_a_person_leaves_all_unknown(name, tmp_path):
    events = samples.record(digits()[0][0], generator(0))
    clips = [(events, 0, n, "train") for n in ("user07_led", name)]
    path = data.write_store(tmp_path / "store", clips, ["a"])
    assert DVSGesture(path, "train", downsample=1).people is None


# Images


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_textures_open_as_cifar(name, made):
    train, test = (opened(name, made[name], split) for split in ("train", "test"))
    assert type(train).__name__ == DATASETS[name].kind and train.classes == DATASETS[name].classes
    for part, images in enumerate((train, test)):
        assert images.labels.tolist() == [i % 10 for i in range((20, 10)[part])]
        for i, label in enumerate(images.labels):
            drawn = np.rint(255 * texture(int(label), 32, generator((SEED, part, i + 1))))
            assert images[i].image.dtype == torch.uint8 and (images[i].image.numpy() == drawn).all()
    files = {file.name: file.stat().st_size for file in made[name].iterdir()}
    if name == "cifar10":
        assert files == {
            **{f"data_batch_{k}.bin": 4 * 3073 for k in range(1, 6)},
            "test_batch.bin": 10 * 3073,
        }
    else:
        assert files == {"train.bin": 20 * 3074, "test.bin": 10 * 3074}


@pytest.mark.parametrize("name", ["mnist", "fashion"])
def test_digits_open_as_mnist(name, made):
    for split in ("train", "test"):
        images, known = opened(name, made[name], split), Digits(split)
        assert type(images).__name__ == DATASETS[name].kind and images.classes == DATASETS[name].classes
        assert images.labels.tolist() == [*range(10)] * (2 if split == "train" else 1)
        grey = np.rint(255 * known.images.numpy()).astype(np.uint8)
        places = [
            np.flatnonzero((grey == images[i].image.numpy()).all((1, 2, 3))) for i in range(len(images))
        ]
        assert [known.labels[place].tolist() for place in places] == [[label] for label in images.labels]
        assert len({place.item() for place in places}) == len(images) and images[0].image.shape == (1, 28, 28)
    for file in made[name].iterdir():
        head = file.read_bytes()
        assert file.name.endswith("-ubyte.gz") and head[4:8] == bytes(4)  # no time of writing
        assert gzip.decompress(head)[:2] == b"\0\0"


def test_more_images_than_fit_a_byte(tmp_path):
    path = synthesise("cifar10", tmp_path, 303)
    train, test = (data.CIFAR10(path, split) for split in ("train", "test"))
    assert train.labels.tolist() == [i % 10 for i in range(303)]
    assert test.labels.tolist() == [i % 10 for i in range(60)]
    images = [x[i].image.numpy().tobytes() for x in (train, test) for i in range(len(x))]
    assert len(set(images)) == 363


def test_a_digit_that_is_shown_again_is_shifted():
    written = Digits("test")
    number = len(written) + 40
    images, shown = sets._enlarged(1, number, 0), sets._shown(written.labels, number, generator((0, 1)))
    grey, shifts, seen = np.rint(255 * written.images[:, 0].numpy()), [], set()
    for image, place in zip(images, shown.tolist(), strict=True):
        padded = np.pad(grey[place], sets.SHIFT)
        found = [
            (y, x)
            for y in range(-sets.SHIFT, sets.SHIFT + 1)
            for x in range(-sets.SHIFT, sets.SHIFT + 1)
            if (padded[sets.SHIFT + y :, sets.SHIFT + x :][:28, :28] == image).all()
        ]
        assert len(found) == 1
        if place in seen:
            shifts += found
        else:
            assert found == [(0, 0)]
        seen.add(place)
    assert len(seen) == len(written) or len(shifts) >= 40
    assert {y for y, _ in shifts} == {x for _, x in shifts} == {-2, -1, 0, 1, 2}


# In place


def test_faces_of_nobody(made):
    """Of the published size, in each of the three splits, all of them sound."""
    DATASETS["celeba"].verify(made["celeba"], decode=True, subset=True)
    for split, count in (("train", COUNT), ("val", 10), ("test", 10)):
        images = opened("celeba", made["celeba"], split)
        assert len(images) == count and set(images.labels) == {0}
        assert images[0][0].shape[-2:] == (218, 178)


@pytest.mark.parametrize("name", [*sets.NAMED, *sets.UNLABELLED])
def test_content_is_a_function_of_name_count_and_seed(name, made, tmp_path):
    """Byte for byte; a set that is there is used as it is."""
    path = synthesise(name, tmp_path / "a" / "b", COUNT, SEED)
    assert content(path) == content(made[name])
    before = {file: file.stat().st_mtime_ns for file in path.iterdir()}
    assert synthesise(name, str(tmp_path / "a" / "b"), COUNT, SEED) == path
    assert {file: file.stat().st_mtime_ns for file in path.iterdir()} == before
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


def test_other_seeds_and_counts_give_other_sets(made, tmp_path):
    for name in ("recordings", "cifar10", "mnist"):
        seeded, longer = synthesise(name, tmp_path, COUNT, 4), synthesise(name, tmp_path, COUNT + 1, SEED)
        one, two, three = (content(path) for path in (made[name], seeded, longer))
        images = [file for file in one if "label" not in file]
        assert all(one[file] != two[file] for file in images)
        assert len({made[name].name, seeded.name, longer.name}) == 3 and one != three


def test_what_is_there_is_verified(made, tmp_path):
    store, images = (synthesise(name, tmp_path, COUNT, SEED) for name in ("recordings", "cifar10"))
    damaged = bytearray((store / "x.npy").read_bytes())
    damaged[-1] ^= 1
    (store / "x.npy").write_bytes(damaged)
    with pytest.raises(DataFormatError, match="SHA-256"):
        synthesise("recordings", tmp_path, COUNT, SEED)
    (images / "test_batch.bin").write_bytes((images / "test_batch.bin").read_bytes()[:-1])
    with pytest.raises(DataFormatError, match="wanted records of 3073"):
        synthesise("cifar10", tmp_path, COUNT, SEED)


@pytest.mark.parametrize(
    ("name", "where", "part", "calls"),
    [
        ("dvs_gait", sets, "record", 7),
        ("dvs_gait", StoreWriter, "append", 7),
        ("cifar10", writers, "write_cifar_binary", 5),
    ],
)
def test_a_set_appears_as_a_whole_or_not_at_all(name, where, part, calls, tmp_path, monkeypatch):
    original, made = getattr(where, part), []

    def failing(*args, **how):
        made.append(args)
        if len(made) > calls:
            raise OSError("the disc is gone")
        return original(*args, **how)

    with monkeypatch.context() as patch:
        patch.setattr(where, part, failing)
        with pytest.raises(OSError, match="the disc is gone"):
            synthesise(name, tmp_path, COUNT)
    assert not list(tmp_path.iterdir())
    assert synthesise(name, tmp_path, COUNT).is_dir()


@pytest.mark.parametrize(
    ("name", "where", "part"),
    [
        ("recordings", sets, "record"),
        ("cifar10", sets, "texture"),
        ("cifar10", writers, "write_cifar_binary"),
    ],
)
def test_who_is_slower_uses_what_is_there(name, where, part, tmp_path, monkeypatch):
    """Another process makes the same set meanwhile: before its files are written, or while they are."""
    original, inside = getattr(where, part), []

    def call(*args):
        if not inside:
            inside.append(None)
            inside[0] = synthesise(name, tmp_path, COUNT)
            inside.append(inside[0].stat().st_ino)
        return original(*args)

    monkeypatch.setattr(where, part, call)
    path = synthesise(name, tmp_path, COUNT)
    assert [path, path.stat().st_ino] == inside
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]
    assert len(opened(name, path, "train")) == COUNT


def test_a_place_that_is_taken_is_refused(tmp_path):
    for name in ("recordings", "mnist"):
        (tmp_path / f"{name}-v{samples.VERSION}-10-seed0").write_text("")
        with pytest.raises(DataError, match="is there already"):
            synthesise(name, tmp_path, 10)


# What is said


def test_only_the_warning_of_counts_is_silenced(tmp_path, monkeypatch):
    """A recording without events is still told of, and the filters are put back."""
    record, calls = sets.record, []

    def third_without(*args):
        calls.append(args)
        return record(*args)[: 0 if len(calls) == 3 else None]

    monkeypatch.setattr(sets, "record", third_without)
    with pytest.warns(UserWarning) as said:
        before = list(warnings.filters)
        synthesise("cifar10_dvs", tmp_path, 10)
        after = list(warnings.filters)
    assert ["1 recordings hold no event" in str(w.message) for w in said] == [True]
    assert after == before


@pytest.mark.parametrize("progress", [False, True])
def test_progress_is_told_when_it_is_asked_for(progress, tmp_path, capsys):
    synthesise("dvs_gait", tmp_path, 10, progress=progress)
    out, err = capsys.readouterr()
    assert out == "" and ("20 recordings, about" in err) == progress and (err != "") == progress


@pytest.mark.parametrize(
    ("name", "count", "seed", "words"),
    [
        ("imagenet", 10, 0, "no synthetic set is called 'imagenet'; there are dvs_gesture, .*, fashion$"),
        ("mnist", 9, 0, "count must be from 10 to 60000 training samples, got 9"),
        ("dvs_gait", 60_001, 0, "count must be from 10 to 60000 training samples, got 60001"),
        ("mnist", 10, -1, "seed must be at least 0, got -1"),
    ],
)
def test_what_cannot_be_is_refused(name, count, seed, words, tmp_path):
    with pytest.raises(ValueError, match=words):
        synthesise(name, tmp_path, count, seed)
    assert not list(tmp_path.iterdir())


def test_sixteen_recordings_take_no_time(tmp_path):
    """Of the set whose files are the longest."""
    start = time.process_time()
    synthesise("dvs_gait", tmp_path, 16)
    assert time.process_time() - start < 3
