"""AEDAT 3.1 and frames: both paths against each other and against counting by hand, hostile files, speed."""

import math
import struct
import time
import warnings

import numpy as np
import pytest
from events_writers import TEXT, aedat, as_array, assert_equal, other_packet, packet, random_events

from attsnn import _extension
from attsnn.data import (
    DataFormatError,
    DataMissingError,
    Draw,
    Events,
    frames,
    make_events,
    read,
    read_frames,
    select,
)
from attsnn.data.core.events import COLUMNS, clip_starts, generator, random_start
from attsnn.data.formats.aedat3 import decode, write

HEADER, MOST = len(TEXT), 2**31 - 1


def test_decode_reads_what_was_written(backend, tmp_path):
    events = random_events(10_000)
    (tmp_path / "a.aedat").write_bytes(aedat(events))
    recording = read(tmp_path / "a.aedat", backend=backend)
    assert_equal(recording.events, events)
    assert recording.disordered == 0


def test_own_writer_is_read_back_across_time_overflows(backend, tmp_path):
    events = random_events(5000, start=(1 << 31) - 500_000, length=1 << 32)
    write(tmp_path / "a.aedat", events, per_packet=700)
    assert (tmp_path / "a.aedat").read_bytes().count(b"#!END-HEADER\r\n") == 1
    assert_equal(read(tmp_path / "a.aedat", backend=backend).events, events)
    assert_equal(decode(as_array(aedat(events, 700)), backend=backend).events, events)


def test_other_packets_and_invalid_events_are_left_out(backend):
    events, valid = random_events(1000), np.random.default_rng(1).integers(0, 2, 1000)
    far = make_events([1 << 31], [300], [300], [1])  # out of the sensor and of time, but invalid
    parts = (
        other_packet(),
        packet(events, valid=valid),
        other_packet(b"", kind=-3),
        packet(far, valid=0, overflow=0),
    )
    got = decode(as_array(TEXT + b"".join(parts)), backend=backend).events
    assert_equal(got, make_events(*(getattr(events, name)[valid == 1] for name in COLUMNS)))


def test_only_the_number_of_events_counts_not_the_capacity(backend):
    data = (
        TEXT
        + packet(random_events(5), capacity=900)
        + packet(random_events(7, start=2_000_000), valid_number=-1)
    )
    assert len(decode(as_array(data), backend=backend).events) == 12


@pytest.mark.parametrize("data", [TEXT, TEXT + packet(random_events(0)), TEXT + other_packet()])
def test_a_file_without_events_is_one(backend, data):
    assert len(decode(as_array(data), backend=backend).events) == 0


@pytest.mark.parametrize(
    "lines", [b"#!AER-DAT3.1\n#!END-HEADER\n", b"#!AER-DAT3.1\r\n" + 20 * b"# note\r\n" + b"#!END-HEADER\r\n"]
)
def test_text_lines_are_not_counted(backend, lines):
    assert len(decode(as_array(lines + packet(random_events(3))), backend=backend).events) == 3


FIVE = random_events(5)
HOSTILE = {  # data, offset, words of the sentence
    "empty file": (b"", 0, "wanted #!AER-DAT3.1"),
    "another format": (b"#!AER-DAT2.0\r\n", 0, "AER-DAT2.0"),
    "no END-HEADER": (TEXT[:-14] + packet(FIVE), HEADER - 14, "END-HEADER"),
    "cut in the text": (TEXT[:20], 14, "END-HEADER"),
    "endless text": (TEXT[:-14] + 9000 * b"# more\r\n", None, "END-HEADER"),
    "compressed events": (TEXT.replace(b"RAW", b"PNG"), 14, "RAW"),
    "cut packet header": (TEXT + packet(FIVE)[:11], HEADER, "found 11 bytes"),
    "cut payload": (TEXT + packet(FIVE)[:-1], HEADER + 20, "claims 40 bytes"),
    "absurd number": (TEXT + packet(FIVE, number=MOST, capacity=MOST), HEADER + 20, "claims"),
    "absurd numbers of others": (
        TEXT + struct.pack("<hhiiiiii", 2, 1, MOST, 4, 0, MOST, MOST, MOST),
        HEADER + 20,
        "claims",
    ),
    "negative number": (TEXT + packet(FIVE, number=-5), HEADER + 20, "found -5 events"),
    "number above capacity": (TEXT + packet(FIVE, capacity=4), HEADER + 16, "capacity"),
    "event size 0": (TEXT + packet(FIVE, size=0), HEADER + 4, "0 bytes"),
    "negative event size": (TEXT + packet(FIVE, size=-8), HEADER + 4, "-8 bytes"),
    "other packet of size 0": (TEXT + packet(FIVE, kind=2, size=0), HEADER + 4, "0 bytes"),
    "polarity events of 16 bytes": (TEXT + packet(FIVE, size=16, number=2), HEADER + 4, "16 bytes"),
    "time elsewhere": (TEXT + packet(FIVE, time_offset=0), HEADER + 8, "its byte 0"),
    "negative overflow": (TEXT + packet(FIVE, overflow=-1), HEADER + 12, "-1"),
    "negative time": (TEXT + packet(FIVE)[:-1] + b"\xff", HEADER + 28 + 4 * 8 + 4, "time -"),
    "x outside": (TEXT + packet(make_events([1, 2], [5, 128], [0, 0], [0, 0])), HEADER + 36, "x = 128"),
    "y outside": (TEXT + packet(make_events([1, 2], [5, 5], [32767, 0], [0, 0])), HEADER + 28, "y = 32767"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_bytes_get_a_sentence_with_file_and_offset(backend, case, tmp_path):
    data, offset, words = HOSTILE[case]
    path = tmp_path / "a.aedat"
    path.write_bytes(data)
    with pytest.raises(DataFormatError) as caught:
        read(path, backend=backend)
    assert caught.value.path == path and str(path) in str(caught.value)
    assert words in str(caught.value)
    assert offset is None or (caught.value.offset == offset and f"byte {offset}:" in str(caught.value))
    with pytest.raises(DataFormatError, match=str(caught.value.offset)):
        read_frames(path, steps=2, dt=1000, backend=backend)


def test_a_folder_or_nothing_instead_of_a_file(tmp_path):
    with pytest.raises(DataFormatError, match="folder"):
        read(tmp_path)
    with pytest.raises(DataMissingError, match="No such file"):
        read(tmp_path / "absent.aedat")


def unordered(t, x, y, p) -> Events:
    """Events as they come, also out of the order of time."""
    return Events(*(np.asarray(c, dtype) for c, dtype in zip((t, x, y, p), COLUMNS.values(), strict=True)))


def disordered(number: int, late: int) -> tuple[Events, Events]:
    """Events of which `late` come too early, and the same in order."""
    events = make_events(
        10 * np.arange(number), np.arange(number) % 128, np.arange(number) // 128 % 128, np.zeros(number)
    )
    t = events.t.copy()
    t[100 + 50 * np.arange(late)] -= 400
    events = Events(t, events.x, events.y, events.p)
    order = np.argsort(t, kind="stable")
    return events, make_events(*(getattr(events, name)[order] for name in COLUMNS))


def test_one_event_in_ten_thousand_is_sorted_and_counted(backend, tmp_path):
    events, ordered = disordered(20_000, 2)
    data = as_array(aedat(events))
    recording = decode(data, backend=backend)
    assert recording.disordered == 2
    assert_equal(recording.events, ordered)
    with pytest.raises(DataFormatError, match="strict") as caught:
        decode(data, strict=True, backend=backend)
    assert caught.value.offset == HEADER + 28 + 8 * 100
    (tmp_path / "a.aedat").write_bytes(data.tobytes())
    wanted = frames(ordered, steps=4, dt=50_000, backend="reference")
    np.testing.assert_array_equal(
        read_frames(tmp_path / "a.aedat", steps=4, dt=50_000, backend=backend), wanted
    )


@pytest.mark.parametrize("number, late", [(20_000, 3), (9_999, 1), (20_000, 200)])
def test_more_disorder_is_an_error(backend, number, late):
    with pytest.raises(DataFormatError, match="out of order"):
        decode(as_array(aedat(disordered(number, late)[0])), backend=backend)


def test_disorder_is_what_must_move_not_what_follows(backend):
    t = 10 * np.arange(20_000)
    t[50] = 150_000  # one event is late: it alone is out of order, not the 15,000 after it
    late = unordered(t, t % 128, t % 128, t % 2)
    assert decode(as_array(aedat(late)), backend=backend).disordered == 1
    halves = np.roll(10 * np.arange(20_000), 10_000)  # decreases only once, but half of the events must move
    with pytest.raises(DataFormatError, match="10,000 or more of 20,000"):
        decode(as_array(aedat(unordered(halves, t % 128, t % 128, t % 2))), backend=backend)


def outcome(data: np.ndarray, backend: str):
    try:
        recording = decode(data, backend=backend)
        return recording.disordered, [getattr(recording.events, name).tobytes() for name in COLUMNS]
    except DataFormatError as error:
        return str(error), error.offset


def mutate(data: bytes, rng: np.random.Generator) -> bytes:
    mutated = bytearray(data)
    for _ in range(rng.integers(1, 4)):
        at = int(rng.integers(0, len(mutated) + 1))
        if at < HEADER and rng.random() < 0.8:
            at = HEADER + at % 60
        word = struct.pack(
            "<i", int(rng.choice([0, 1, -1, 2, 8, 28, 255, MOST, -MOST - 1, rng.integers(0, 999)]))
        )
        kind = rng.integers(0, 5)
        if kind == 0:
            mutated[at:] = b""
        elif kind == 1:
            mutated[at:at] = word
        elif kind == 2:
            del mutated[at : at + int(rng.integers(1, 30))]
        elif kind == 3:
            mutated[at : at + 4] = word
        elif at < len(mutated):
            mutated[at] ^= 1 << int(rng.integers(0, 8))
    return bytes(mutated)


def test_mutated_files_raise_only_format_errors_and_both_paths_agree():
    events = random_events(12, side=128)
    data = TEXT + packet(events[:5]) + other_packet() + packet(events[5:6]) + packet(events[6:])
    rng, kinds = np.random.default_rng(0), {}
    for _ in range(4000):
        mutated = as_array(mutate(data, rng))
        wanted = outcome(mutated, "reference")
        kind = "sound" if isinstance(wanted[0], int) else wanted[0].split("found")[-1].split()[-1]
        kinds[kind] = kinds.get(kind, 0) + 1
        if _extension.compiled() is not None:
            assert outcome(mutated, "fused") == wanted, mutated.tobytes()
    assert len(kinds) > 8 and kinds["sound"] > 100, kinds


def count_by_hand(events: Events, steps: int, dt: int, side: int, downsample: int) -> np.ndarray:
    counts = np.zeros((steps, 2, side // downsample, side // downsample), np.int32)
    for t, x, y, p in zip(events.t, events.x, events.y, events.p, strict=True):
        k = (int(t) - int(events.t[0])) // dt
        if k < steps:
            counts[k, p, y // downsample, x // downsample] += 1
    return counts


@pytest.mark.parametrize(
    "steps, dt, side, downsample", [(60, 15_000, 128, 4), (1, 1, 128, 128), (7, 33_333, 36, 3)]
)
def test_frames_count_events(backend, steps, dt, side, downsample):
    events = random_events(3000, start=5_000_000, side=side)
    got = frames(events, steps=steps, dt=dt, sensor=(side, side), downsample=downsample, backend=backend)
    assert got.dtype == np.int32
    np.testing.assert_array_equal(got, count_by_hand(events, steps, dt, side, downsample))
    turned = frames(
        events, steps=steps, dt=dt, sensor=(side, side), downsample=downsample, axes="xy", backend=backend
    )
    np.testing.assert_array_equal(turned, got.transpose(0, 1, 3, 2))


def test_frames_are_half_open_upright_and_start_at_the_first_event(backend):
    events = make_events([100, 109, 110, 119, 120], [7, 7, 7, 7, 7], [2, 2, 2, 2, 2], [1, 1, 0, 0, 1])
    got = frames(events, steps=2, dt=10, sensor=(4, 8), backend=backend)
    assert got.shape == (2, 2, 4, 8) and got.sum() == 4
    assert got[0, 1, 2, 7] == 2 and got[1, 0, 2, 7] == 2


def test_frames_of_no_events_and_of_unordered_ones(backend):
    assert frames(make_events([], [], [], []), steps=3, dt=5, backend=backend).sum() == 0
    mixed = unordered([50, 40, 61, 50, 79, 80], [0] * 6, [0] * 6, [0] * 6)  # before the first: left out
    assert frames(mixed, steps=3, dt=10, backend=backend)[:, 0, 0, 0].tolist() == [2, 1, 1]


@pytest.mark.parametrize("column, value", [("x", 128), ("x", -1), ("y", 128), ("y", -32768), ("p", 2)])
def test_frames_refuse_an_event_outside_the_sensor(backend, column, value):
    events = random_events(9)
    getattr(events, column)[4] = value
    with pytest.raises(DataFormatError, match=rf"event 4 has .*{column} = {value}"):
        frames(events, steps=2, dt=10, backend=backend)


def test_frames_of_strided_columns(backend):
    events = random_events(1000)
    got = frames(events[::3], steps=5, dt=200_000, backend=backend)
    assert got.sum() == 334


@pytest.mark.parametrize(
    "bad", [{"steps": 0}, {"dt": 0}, {"downsample": 3}, {"sensor": (0, 4)}, {"axes": "zz"}]
)
def test_frames_name_the_bad_argument(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        frames(random_events(3), **({"steps": 2, "dt": 10} | bad))


def test_columns_of_another_type_are_refused():
    with pytest.raises(ValueError, match="column x is int64"):
        Events(np.zeros(2, np.int64), np.zeros(2, np.int64), np.zeros(2, np.int16), np.zeros(2, np.uint8))
    with pytest.raises(ValueError, match="column p"):
        Events(np.zeros(2, np.int64), np.zeros(2, np.int16), np.zeros(2, np.int16), np.zeros(3, np.uint8))


@pytest.mark.parametrize(
    ("column", "value"),
    [("t", 2**63), ("t", math.nan), ("x", 65_539), ("x", 2.7), ("y", -32_769), ("p", 257), ("p", -1)],
)
@pytest.mark.filterwarnings("ignore:invalid value encountered in cast")
def test_numbers_that_a_column_cannot_hold_are_refused(column, value):
    with pytest.raises(ValueError, match=rf"column {column} holds {COLUMNS[column]}, which {value} is not"):
        make_events(**{name: [1] for name in COLUMNS} | {column: [value]})
    assert make_events([2**40], [32_767], [2.0], [True]).y.tolist() == [2]


def test_a_polarity_is_off_or_on():
    for p in (2, -1):
        with pytest.raises(ValueError, match=rf"which {p} is not; wanted 0 \(OFF\) or 1 \(ON\): pass p > 0"):
            make_events([1, 2], [0, 0], [0, 0], [1, p])


def test_make_events_refuses_times_that_decrease_or_sorts():
    events = random_events(3_775)
    backwards = [getattr(events, name)[::-1] for name in COLUMNS]
    late = int(np.count_nonzero(np.diff(events.t[::-1]) < 0))
    with pytest.raises(ValueError, match=f"{late:,} of 3,775 events are earlier .*sort=True"):
        make_events(*backwards)
    assert make_events(*backwards, sort=True).t.tolist() == events.t.tolist()
    twice = make_events([5, 5, 1], [1, 2, 3], [0, 0, 0], [0, 0, 0], sort=True)
    assert twice.x.tolist() == [3, 1, 2]  # stable


def test_frames_warn_where_most_events_are_in_none(tmp_path, backend):
    events = random_events(3_775)
    with pytest.warns(UserWarning, match=r"of 3,775 events lie in the bins, 60 of 15 us .*microseconds\?"):
        assert frames(events, steps=60, dt=15, backend=backend).sum() < 10
    (tmp_path / "x.aedat").write_bytes(aedat(events))
    with pytest.warns(UserWarning, match="of 3,775 events lie in the bins"):
        read_frames(tmp_path / "x.aedat", steps=60, dt=15, backend=backend)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        frames(events, steps=60, dt=17_000, backend=backend)
        read_frames(tmp_path / "x.aedat", steps=60, dt=17_000, backend=backend)


@pytest.mark.parametrize("dt", [30e3, "15", 15.5])
def test_dt_is_an_integer(dt):
    with pytest.raises(ValueError, match=r"dt must be an integer, a number of microseconds; got .*: int\("):
        frames(random_events(9), steps=2, dt=dt)


def test_between_is_half_open():
    events = make_events([1, 2, 2, 3, 4], range(5), range(5), [0] * 5)
    assert events.between(2, 4).x.tolist() == [1, 2, 3]
    assert len(events) == 5 and len(events[1:3]) == 2


@pytest.mark.parametrize(
    "duration, window, clips, wanted",
    [  # the published examples, in milliseconds
        (6500, 900, 10, [0, 650, 1300, 1950, 2600, 3250, 3900, 4550, 5200, 5600]),
        (6500, 1500, 10, [0, 650, 1300, 1950, 2600, 3250, 3900, 4550, 5000, 5000]),
        (18000, 900, 10, [1800 * k for k in range(10)]),
        (500, 900, 3, [0, 0, 0]),
        (6500, 900, 1, [0]),
    ],
)
def test_clips_start_where_the_published_rule_says(duration, window, clips, wanted):
    assert clip_starts(duration * 1000, window * 1000, clips) == [1000 * start for start in wanted]


def test_clip_starts_round_as_published():
    assert clip_starts(100, 33, 4) == [0, 25, 50, 67]  # overlap floor(32 / 4) = 8
    assert clip_starts(1003, 100, 3) == [0, 334, 668]  # gap floor(703 / 3) = 234


def test_random_starts_are_uniform_between_their_bounds():
    starts = [random_start(50, 160, 100, generator(seed)) for seed in range(400)]
    assert set(starts) == set(range(50, 60))  # first .. last - window - 1
    assert random_start(50, 160, 100, generator(3)) == starts[3]
    assert random_start(50, 150, 100, generator(0)) == random_start(50, 60, 100, generator(0)) == 50


class Counting:
    classes, labels = ("a", "b"), np.array([0, 1, 0, 1])

    def __len__(self):
        return 4

    def __getitem__(self, key):
        return key


def test_a_selection_passes_keys_on():
    part = select(Counting(), np.array([3, 1]))
    assert len(part) == 2 and part.classes == ("a", "b") and part.labels.tolist() == [1, 1]
    assert part[0] == 3 and part[Draw(1, 77)] == Draw(1, 77) and part[Draw(0, 5)] == Draw(3, 5)
    with pytest.raises(IndexError, match="index 4"):
        select(Counting(), [4])


def events_per_second(path, number: int, repeats: int = 5) -> float:
    """Decoding and integration of a mapped file together, a second of one core: the median of `repeats`.

    The time of this thread on its core, which equals the wall clock's unless others take the core away.
    """
    seconds = []
    for _ in range(repeats):
        start = time.thread_time()
        counts = read_frames(path, steps=60, dt=100_000, downsample=4, backend="fused")
        seconds.append(time.thread_time() - start)
        assert counts.sum() == number
    return number / sorted(seconds)[repeats // 2]


@pytest.mark.slow
def test_fifty_million_events_a_second(tmp_path, capsys, fused):
    number = 20_000_000
    rng = np.random.default_rng(0)
    x, y, p = (
        rng.integers(0, 128, number, np.int16),
        rng.integers(0, 128, number, np.int16),
        rng.integers(0, 2, number, np.uint8),
    )
    write(tmp_path / "big.aedat", Events(np.arange(number) * 3 // 10, x, y, p))
    best = 0.0
    for _ in range(4):  # others may be at work on this machine: the best median counts
        best = max(best, events_per_second(tmp_path / "big.aedat", number))
        if best >= 50e6:
            break
    with capsys.disabled():
        print(f" {best / 1e6:.0f} million events/s ", end="")
    assert best >= 50e6
