"""Frames of stores: by time and by number, batches, splits, augmentation, loaders."""

from multiprocessing.reduction import ForkingPickler
from pathlib import Path

import numpy as np
import pytest
import torch
from events_writers import random_events
from torch.utils.data import DataLoader, Subset

from attsnn import _extension
from attsnn.data import (
    DataError,
    DataFormatError,
    Draw,
    EventAugment,
    Events,
    Framing,
    Recordings,
    collate_frames,
    frames,
    make_events,
    select,
    write_store,
)
from attsnn.data.core import augment, splits
from attsnn.data.core.events import COLUMNS

CLASSES = ("a", "b")


def clips(number: int = 6, events: int = 400, side: int = 16):
    """(events, label, name, split): a recording of each, the first without events."""
    for k in range(number):
        found = random_events(events * (k > 0), length=90_000, side=side, seed=k)
        yield found, k % 2, f"clip{k}", "test" if k == number - 1 else "train"


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Path:
    return write_store(tmp_path_factory.mktemp("frames") / "store", clips(), CLASSES, (16, 16))


def copied(data):
    """As a worker that is started anew gets it."""
    return ForkingPickler.loads(bytes(ForkingPickler.dumps(data)))


def by_hand(events: Events, steps: int) -> np.ndarray:
    counted = np.zeros((steps, 2, 16, 16), np.int64)
    share = len(events) // steps
    for i, (x, y, p) in enumerate(zip(events.x, events.y, events.p, strict=True)):
        counted[min(i // share, steps - 1) if share else steps - 1, p, y, x] += 1
    return counted


@pytest.mark.parametrize("number", [0, 1, 6, 7, 8, 13, 400])
def test_frames_by_number_count_as_by_hand(number, backend):
    events = random_events(number, side=16)
    got = frames(events, steps=7, dt=None, sensor=(16, 16), backend=backend)
    assert got.dtype == np.int32 and (got == by_hand(events, 7)).all()


@pytest.mark.parametrize("dt", [None, 20_000])
@pytest.mark.parametrize("axes", ["yx", "xy"])
@pytest.mark.parametrize("polarity", ["both", "collapsed"])
def test_both_paths_count_alike(dt, axes, polarity, fused):
    """Of several samples, in columns of 12 x 20 pixels, halved."""
    rng = np.random.default_rng(0)
    t = np.sort(rng.integers(0, 100_000, 3_000))
    columns = [t, *(rng.integers(0, n, 3_000) for n in (20, 12, 2))]
    columns = [c.astype(dtype) for c, dtype in zip(columns, COLUMNS.values(), strict=True)]
    first, last = [0, 5, 100, 2_000, 7], [0, 8, 2_000, 3_000, 3_000]
    origin = [0, int(t[5]), int(t[100]) - 7, int(t[2_000]), int(t[7]) + 40_000]
    fast, slow = (
        Framing(5, dt, (12, 20), 2, axes, polarity, backend).count(columns, first, last, origin)
        for backend in ("fused", "reference")
    )
    assert fast.shape == ((5, 5, 2, 10, 6) if axes == "xy" else (5, 5, 2, 6, 10))
    assert fast.dtype == slow.dtype == np.uint8 and (fast == slow).all() and fast.sum() > 2_000
    assert polarity == "both" or not fast[:, :, 0].any()
    turned = Framing(5, dt, (12, 20), 2, "yx" if axes == "xy" else "xy", polarity, "fused")
    assert (turned.count(columns, first, last, origin).swapaxes(3, 4) == fast).all()


@pytest.mark.parametrize(
    ("most", "kind"), [(255, np.uint8), (256, np.int16), (32_767, np.int16), (32_768, np.int32)]
)
def test_no_count_overflows(most, kind, backend):
    """All events of a step in one pixel; another sample of the batch has few."""
    zeros = np.zeros(most + 9)
    events = make_events(np.arange(most + 9), zeros, zeros, zeros)
    columns = [getattr(events, name) for name in COLUMNS]
    got = Framing(1, None, (4, 4), backend=backend).count(
        columns, [0, most], [most, most + 9], [0, 0], threads=2
    )
    assert got.dtype == kind and got[:, 0, 0, 0, 0].tolist() == [most, 9] and got.sum() == most + 9


def test_the_same_bits_for_any_number_of_threads(fused):
    rng = np.random.default_rng(0)
    columns = [np.sort(rng.integers(0, 9_000, 5_000)), *(rng.integers(0, n, 5_000) for n in (16, 16, 2))]
    columns = [c.astype(dtype) for c, dtype in zip(columns, COLUMNS.values(), strict=True)]
    bounds = np.sort(rng.integers(0, 5_000, (2, 40)), axis=0)
    framing = Framing(4, 1_000, (16, 16), backend="fused")
    one, *others = (framing.count(columns, *bounds, columns[0][bounds[0]], threads=n) for n in (1, 2, 3, 64))
    assert all((one == other).all() for other in others)


def test_an_event_outside_is_named(backend):
    events = random_events(50, side=16)
    columns = [getattr(events, name).copy() for name in COLUMNS]
    columns[1][33] = 16
    with pytest.raises(DataFormatError, match=r"event 33 has x = 16, .*wanted 0 <= x < 16"):
        Framing(2, None, (16, 16), backend=backend).count(columns, [0, 20], [20, 50], [0, 0])


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ({"steps": 0, "dt": 5}, "steps must be from 1"),
        ({"steps": 2, "dt": 0}, "dt must be from 1 to .*, a number of microseconds"),
        ({"steps": 2, "dt": 5, "sensor": (10, 9), "downsample": 2}, "downsample must divide"),
        ({"steps": 2, "dt": 5, "axes": "zz"}, "axes must be"),
        ({"steps": 2, "dt": 5, "polarity": "none"}, "polarity must be"),
    ],
)
def test_framing_refuses_what_makes_no_frames(how, words):
    with pytest.raises(ValueError, match=words):
        Framing(**how)


@pytest.mark.parametrize("dt_ms", [None, 15.0])
@pytest.mark.parametrize("how", [{}, {"binary": True}, {"compact": True}, {"axes": "xy", "downsample": 2}])
def test_a_batch_is_its_samples(dt_ms, how, store, backend):
    data = Recordings(store, "train", steps=6, dt_ms=dt_ms, backend=backend, **how)
    keys = [4, 0, Draw(2, 7), 1]
    batch = data.__getitems__(keys)
    assert batch.frames.dtype == (torch.uint8 if how.get("compact") else torch.float32)
    assert batch.labels.tolist() == [0, 0, 0, 1] and [s.label for s in batch] == [0, 0, 0, 1]
    for sample, key in zip(batch, keys, strict=True):
        one = data[key]
        assert torch.equal(sample.frames, one.frames) and one.label == sample.label
    whole = frames(
        data.events(4), steps=6, dt=None if dt_ms is None else 15_000, sensor=(16, 16), backend=backend
    )
    if not how:
        assert torch.equal(batch.frames[0], torch.from_numpy(whole).float())
    assert not batch.frames[1].any() and batch.frames[0].sum() > 100


def test_random_windows_and_votes_in_batches(store, backend):
    how = {"steps": 3, "dt_ms": 10.0, "backend": backend}
    data = Recordings(store, "train", window="random", **how)
    drawn = data.__getitems__([Draw(3, seed) for seed in range(8)])
    assert len({sample.frames.numpy().tobytes() for sample in drawn}) > 4
    assert torch.equal(data[Draw(3, 5)].frames, drawn.frames[5])
    assert torch.equal(data[3].frames, Recordings(store, "train", window="first", **how)[3].frames)
    votes = Recordings(store, "train", window="clips", clips=4, **how)
    assert votes.__getitems__([1, 0]).frames.shape == (2, 4, 3, 2, 16, 16) == (2, *votes[0].frames.shape)
    whole = Recordings(store, "train", window="clips", clips=1, steps=3, dt_ms=None, backend=backend)
    assert torch.equal(whole[2].frames[0], Recordings(store, "train", steps=3, dt_ms=None)[2].frames)
    for wrong in ({"window": "random"}, {"window": "clips"}):
        with pytest.raises(ValueError, match="steps of equally many events span the clip"):
            Recordings(store, "train", steps=3, dt_ms=None, **wrong)


def test_loaders_take_batches(store):
    data = Recordings(store, "train", steps=4)
    wanted = torch.stack([data[i].frames for i in range(5)])
    for dataset in (data, Subset(data, range(5)), select(data, range(5)), copied(data)):
        for workers in (0, 1):
            parts = list(DataLoader(dataset, 3, num_workers=workers))
            assert torch.equal(torch.cat([f for f, _ in parts]), wanted)
            assert torch.cat([labels for _, labels in parts]).tolist() == [0, 1, 0, 1, 0]
    batch = data.__getitems__(range(3))
    assert collate_frames(batch)[0].data_ptr() == batch.frames.data_ptr()  # no copy
    assert torch.equal(collate_frames([data[0], data[1]])[0], wanted[:2])


def test_a_subclass_that_changes_a_sample_is_heard(store):
    class Doubled(Recordings):
        def __getitem__(self, key):
            sample = super().__getitem__(key)
            return sample._replace(frames=2 * sample.frames)

    plain, doubled = (kind(store, "train", steps=4) for kind in (Recordings, Doubled))
    (got, _), *_ = DataLoader(doubled, 5)
    assert torch.equal(got, 2 * plain.__getitems__(range(5)).frames)


def test_identity_tells_stores_and_splits_apart(store, tmp_path):
    other = write_store(tmp_path / "other", clips(events=401), CLASSES, (16, 16))
    again = write_store(tmp_path / "again", clips(), CLASSES, (16, 16))
    train, test, changed, copied = (
        Recordings(root, split).identity
        for root, split in ((store, "train"), (store, "test"), (other, "train"), (again, "train"))
    )
    assert train == copied and len({train, test, changed}) == 3


# splits


def named(number: int, first: int = 0) -> tuple[list[str], np.ndarray]:
    names = [f"{c}/cifar10_{c}_{k}" for c in CLASSES for k in range(first, first + number)]
    return names, np.repeat([0, 1], number)


def test_the_published_splits():
    names, labels = named(1_000)
    number = np.array([int(name.rpartition("_")[2]) for name in names])
    assert (splits.in_train("first900", names, labels) == (number < 900)).all()
    assert (splits.in_train("last900", names, labels) == (number >= 100)).all()
    ordered = splits.in_train("name_order", names, labels)
    for label in range(2):
        mine = sorted(name for name, of in zip(names, labels, strict=True) if of == label)
        assert {n for n, t in zip(names, ordered, strict=True) if t and n in set(mine)} == set(mine[:900])
    assert ordered[names.index("a/cifar10_a_99")] == False  # noqa: E712  "99" comes after "989"
    drawn = splits.in_train("random-3", names, labels)
    assert drawn[:1_000].sum() == drawn[1_000:].sum() == 900
    assert (drawn == splits.in_train("random-3", names, labels)).all()
    assert (drawn != splits.in_train("random-4", names, labels)).any()
    assert (drawn[:1_000] != drawn[1_000:]).any()


def test_nine_tenths_are_rounded_up_by_class():
    names, labels = named(11)
    for rule in ("name_order", "random"):
        train = splits.in_train(rule, names, labels)
        assert train[:11].sum() == train[11:].sum() == 10
    order = np.random.default_rng(0).permutation(22)  # the order of the recordings decides nothing
    shuffled = splits.in_train("random", [names[i] for i in order], labels[order])
    assert (shuffled == splits.in_train("random", names, labels)[order]).all()


def test_rules_have_names():
    assert [splits.canonical(rule) for rule in ("random", "random-7", "name_order")] == [
        "random-0",
        "random-7",
        "name_order",
    ]
    with pytest.raises(ValueError, match="split_rule must be one of first900.*got 'half'"):
        splits.canonical("half")
    with pytest.raises(DataError, match="'x' does not end in one"):
        splits.in_train("first900", ["x"], np.array([0]))


def test_the_split_is_chosen_at_opening_and_is_told(tmp_path):
    undivided = [(events, label, f"{k}", "all") for k, (events, label, *_) in enumerate(clips(22, 50))]
    path = write_store(tmp_path / "store", undivided, CLASSES, (16, 16))
    with pytest.raises(DataError, match="has no split of its own; name one, as split_rule='name_order'"):
        Recordings(path, "train")
    for rule in ("name_order", "random", "random-5"):
        train, test = (Recordings(path, split, split_rule=rule) for split in ("train", "test"))
        assert len(train) == 20 and len(test) == 2 and train.split_rule == splits.canonical(rule)
        assert train.identity != test.identity
    with pytest.raises(DataError, match="first900 leaves the test split of its 22 recordings empty"):
        Recordings(path, "test", split_rule="first900")
    divided = write_store(tmp_path / "divided", clips(), CLASSES)
    assert Recordings(divided, "train").split_rule is None
    with pytest.raises(DataError, match="has a split of its own"):
        Recordings(divided, "train", split_rule="random")


# augmentation


@pytest.fixture
def picture() -> torch.Tensor:
    return torch.rand(3, 2, 14, 20, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("degrees", [-15, -7, 0, 3, 8, 15])
def test_rotation_and_shear_are_torchvisions(degrees, picture):
    functional = pytest.importorskip("torchvision.transforms.v2.functional", reason="extra vision")
    assert torch.equal(augment.rotate(picture, degrees), functional.rotate(picture, degrees))
    sheared = functional.affine(picture, angle=0, translate=[0, 0], scale=1, shear=[degrees, 0])
    assert torch.equal(augment.shear(picture, degrees), sheared)


@pytest.mark.parametrize("name", augment.OPERATIONS)
def test_one_draw_serves_all_steps(name, picture):
    same = picture[:1].expand(3, 2, 14, 20)[:, :1].expand(3, 2, 14, 20)
    operation = EventAugment(operations=(name,))
    seen = {operation(same, seed).numpy().tobytes() for seed in range(20)}
    assert len(seen) > 5
    for seed in range(20):
        got = operation(same, seed)
        assert torch.equal(got, operation(same, seed)) and got.shape == same.shape
        assert all(torch.equal(got[0, 0], got[t, c]) for t in range(3) for c in range(2))


def test_the_ranges_are_the_published_ones(picture):
    ones = torch.ones(1, 2, 32, 32)
    cut = EventAugment(operations=("cutout",), flip=0)
    holes = [(cut(ones, seed)[0, 0] == 0) for seed in range(300)]
    sides = {int(hole.any(0).sum()) for hole in holes}
    assert sides == set(range(1, 9)) and all(h.sum() == h.any(0).sum() * h.any(1).sum() for h in holes)
    roll = EventAugment(operations=("roll",), flip=0)
    dot = torch.zeros(1, 2, 32, 32)
    dot[..., 10, 20] = 1
    moved = {
        tuple((roll(dot, seed)[0, 0].nonzero()[0] - torch.tensor([10, 20])).tolist()) for seed in range(900)
    }
    assert {y for y, _ in moved} == {x for _, x in moved} == set(range(-5, 6))
    flip = EventAugment(pick=0)
    flipped = [torch.equal(flip(picture, seed), picture.flip(-1)) for seed in range(400)]
    assert 150 < sum(flipped) < 250
    assert all(f or torch.equal(flip(picture, s), picture) for s, f in enumerate(flipped))


@pytest.mark.parametrize(
    "how", [{"operations": ("blur",)}, {"pick": 5}, {"flip": 2}, {"shift": -1}, {"cutout": 0}]
)
def test_augmentation_refuses_what_it_cannot_do(how):
    with pytest.raises(ValueError, match="wanted operations|must be at least"):
        EventAugment(**how)


def test_only_keys_of_the_training_split_are_augmented(store):
    mine = EventAugment()
    plain, train = (Recordings(store, "train", steps=4, augment=a) for a in (None, mine))
    test, held = (Recordings(store, "test", steps=4, augment=a) for a in (None, mine))
    keys = [Draw(index, 11) for index in range(5)]
    got = train.__getitems__(keys).frames
    assert torch.equal(got, torch.stack([mine(plain[i].frames, 11) for i in range(5)]))
    assert not torch.equal(got, plain.__getitems__(keys).frames)
    assert torch.equal(train.__getitems__(range(5)).frames, plain.__getitems__(range(5)).frames)
    assert torch.equal(held[Draw(0, 11)].frames, test[0].frames)


# writing


def test_write_store_says_what_does_not_fit(tmp_path):
    sound = random_events(9, side=16)
    cases = [
        ((sound, 2, "x", "train"), "recording 1, 'x': its label is 2; wanted 0 to 1"),
        ((sound, "c", "x", "train"), "its class 'c' is none of a, b"),
        ((sound, 0, "x", "val"), "its split is 'val'; wanted train or test"),
        ((sound, 0, "x", "all"), "or all for every recording"),
        ((([2, 1], [0, 0], [0, 0], [0, 0]), 0, "x", "train"), "1 of 2 events are earlier"),
        ((Events(sound.t[::-1].copy(), sound.x, sound.y, sound.p), 0, "x", "train"), "its times decrease"),
        ((make_events([1], [16], [0], [0]), 0, "x", "train"), "x up to 16.*wanted 0 <= x < 16"),
        ((make_events([1], [0], [-1], [0]), 0, "x", "train"), "at least -1"),
    ]
    for wrong, words in cases:
        with pytest.raises(ValueError, match=words):
            write_store(tmp_path / "store", [(sound, "a", "y", "test"), wrong], CLASSES, (16, 16))
        assert list(tmp_path.iterdir()) == []
    path = write_store(tmp_path / "store", [(sound, "b", "caf\udce9", "all")], CLASSES)
    found = Recordings(path, "train", split_rule="name_order")
    assert found.labels.tolist() == [1] and found.store.clips[0].recording == "caf\\udce9"
    assert found.store.sensor == (int(sound.y.max()) + 1, int(sound.x.max()) + 1)


def test_the_reference_needs_no_build(store, monkeypatch):
    monkeypatch.setattr(_extension, "_C", None)
    monkeypatch.setattr(_extension, "_obstacles", {})
    with pytest.warns(RuntimeWarning, match="attsnn runs the PyTorch reference"):
        monkeypatch.setattr(_extension, "_said", set())
        got = Recordings(store, "train", steps=4)[3].frames
    monkeypatch.undo()
    assert torch.equal(got, Recordings(store, "train", steps=4)[3].frames)
