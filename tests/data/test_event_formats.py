"""AEDAT 2.0, ATIS, text, NumPy and MATLAB columns: what was written comes back by both paths, and a hostile
file is a DataFormatError and nothing else.
"""

import contextlib
import io
import zipfile
from pathlib import Path

import numpy as np
import on_host
import pytest
from events_writers import as_array, assert_equal, random_events

from attsnn.data import DataFormatError, make_events
from attsnn.data.core.events import COLUMNS
from attsnn.data.formats import aedat2, atis, columns, mat, text
from attsnn.data.synthetic import writers

MAGIC = b"#!AER-DAT2.0\r\n"


def bytes_of(path: Path) -> np.ndarray:
    return np.fromfile(path, np.uint8)


def record2(address: int, t: int) -> bytes:
    return address.to_bytes(4, "big") + t.to_bytes(4, "big")


def record5(x: int, y: int, p: int, t: int) -> bytes:
    return bytes([x, y, p << 7 | t >> 16, t >> 8 & 255, t & 255])


# AEDAT 2.0


@pytest.mark.parametrize(
    "header",
    [b"", b"# of jAER\r\n", b"# LF alone\n", b"#" + b"<node/>" * 9_000 + b"\r\n#</xml>\n"],
    ids=["none", "CRLF", "LF", "63 KiB of XML"],
)
def test_aedat2_reads_what_was_written(header, tmp_path, backend):
    events = random_events(5_000)
    writers.write_aedat2(tmp_path / "a.aedat", events, text=header)
    found = aedat2.read(tmp_path / "a.aedat", backend=backend)
    assert_equal(found.events, events)
    assert (found.disordered, found.restarts) == (0, 0)


def test_the_bits_of_an_aedat2_address(backend):
    data = (
        MAGIC
        + record2(1 | 5 << 1 | 9 << 8, 7)
        + record2(0x8000 | 3 << 1, 8)
        + record2(127 << 1 | 127 << 8, 9)
    )
    assert_equal(
        aedat2.decode(as_array(data), backend=backend).events, make_events([7, 9], [5, 127], [9, 127], [1, 0])
    )


HOSTILE2 = {
    "no magic": (b"#!AER-DAT3.1\r\n" + record2(0, 1), 0, "wanted #!AER-DAT2.0"),
    "nothing": (b"", 0, "wanted #!AER-DAT2.0"),
    "cut short": (
        MAGIC + record2(0, 1) + b"\0\0\0",
        len(MAGIC) + 8,
        "found 3 bytes after the last whole event",
    ),
    "another sensor": (
        MAGIC + record2(0, 1) + record2(1 << 20, 2),
        len(MAGIC) + 8,
        "found the address 1048576",
    ),
    "text for events": (MAGIC + b"#" + b"x" * 70_000, len(MAGIC), "found the address|bytes after"),
}


@pytest.mark.parametrize("case", HOSTILE2)
def test_hostile_aedat2(case, backend):
    data, offset, words = HOSTILE2[case]
    with pytest.raises(DataFormatError, match=words) as caught:
        aedat2.decode(as_array(data), path="x.aedat", backend=backend)
    assert case == "text for events" or caught.value.offset == offset
    assert str(caught.value).startswith("x.aedat: byte ")


def decoded2(times, backend="fused", **how):
    records = b"".join(record2((k & 63) << 1, t) for k, t in enumerate(times))
    return aedat2.decode(as_array(MAGIC + records), backend=backend, **how)


def test_a_clock_that_starts_again_goes_on(backend):
    """As dat2mat has it: times after it are added to the last one; a clock of 32 bits wraps. Order stays."""
    first = (1 << 32) - 30_000
    times = [first, first + 20_000, 3, 40_000, 50_000, 20, 60, 70, 90, 90_000]
    found = decoded2(times, backend)
    wanted = [0, 20_000, 30_003, 70_000, 80_000, 80_020, 80_060, 80_070, 80_090, 170_000]
    assert (found.events.t - first).tolist() == wanted
    assert found.events.x.tolist() == list(range(10)) and (found.restarts, found.disordered) == (2, 0)
    with pytest.raises(DataFormatError, match=r"none \(strict\)") as caught:
        decoded2([5, 4], backend, strict=True)
    assert caught.value.offset == len(MAGIC) + 8
    stale = decoded2([2_000_000_000, *range(0, 1_300_000, 1_000)], backend)
    assert stale.restarts == 1 and (np.diff(stale.events.t[1:]) == 1_000).all()


@pytest.mark.parametrize("late", [200, 40_000])
def test_nor_is_one_that_is_early_in_a_recording_that_begins(late, backend):
    times = np.arange(20_000)
    times[5_000] = 100 * late
    found = decoded2(times.tolist(), backend)
    assert (found.restarts, found.disordered) == (0, 1) and found.events.t.tolist() == sorted(times.tolist())


@pytest.mark.parametrize("late", [200, 40_000])
def test_an_event_that_is_late_is_no_clock_that_starts_again(late, backend):
    times = 1_000_000_000 + 100 * np.arange(20_000)
    times[7_000] -= late
    times[0] = 1_000_000_000 - 7  # nor is one near the start
    times[1], times[2] = times[0] + 300, times[0] + 90
    found = decoded2(times.tolist(), backend)
    assert found.restarts == 0 and found.disordered == 2
    assert found.events.t.tolist() == sorted(times.tolist())
    few = times[6_990:7_010].tolist()  # one in 20 is too many to be sorted in silence
    with pytest.raises(DataFormatError, match="1 or more of 20 events out of order"):
        decoded2(few, backend)
    shuffled = np.random.default_rng(0).permutation(1_000_000)[:1_000].tolist()
    with pytest.raises(DataFormatError, match="found time decreasing.* Is another column the time"):
        decoded2(shuffled, backend)


def test_the_header_of_jaer(backend):
    """Of a real file: some lines more, that end with LF."""
    header = (
        b"# This is a raw AE data file - do not edit\n# Timestamps tick is 1 us\n# created Thu Jan 01 1970\n"
    )
    data = MAGIC.replace(b"\r", b"") + header + record2(0x0102, 77)
    assert aedat2.decode(as_array(data), backend=backend).events.t.tolist() == [77]


# ATIS


def test_atis_reads_what_was_written(tmp_path, backend):
    rng = np.random.default_rng(1)
    t = np.sort(rng.integers(0, 40_000_000, 3_000))  # beyond 23 bits: overflow records are in between
    events = make_events(
        t, rng.integers(0, 240, 3_000), rng.integers(0, 180, 3_000), rng.integers(0, 2, 3_000)
    )
    writers.write_atis(tmp_path / "a.bin", events)
    assert len(bytes_of(tmp_path / "a.bin")) > 5 * 3_000
    assert_equal(atis.read(tmp_path / "a.bin", backend=backend).events, events)


def test_the_overflow_of_atis(backend):
    """A row of 240 is no event; all later times are 2^13 more."""
    data = record5(1, 2, 1, 100) + record5(9, 240, 0, 5) + record5(3, 4, 0, 7) + record5(0, 240, 1, 0) * 2
    data += record5(5, 6, 1, 1)
    wanted = make_events([100, 8192 + 7, 3 * 8192 + 1], [1, 3, 5], [2, 4, 6], [1, 0, 1])
    assert_equal(atis.decode(as_array(data), backend=backend).events, wanted)


HOSTILE5 = {
    "cut short": (record5(0, 0, 0, 1) + b"\0\0\0\0", 5, "found 4 bytes after the last whole event"),
    "x outside": (record5(0, 0, 0, 1) + record5(240, 0, 0, 2), 5, "x = 240"),
    "y outside": (record5(0, 0, 0, 1) + record5(0, 180, 0, 2), 6, "y = 180"),
}


@pytest.mark.parametrize("case", HOSTILE5)
def test_hostile_atis(case, backend):
    data, offset, words = HOSTILE5[case]
    with pytest.raises(DataFormatError, match=words) as caught:
        atis.decode(as_array(data), backend=backend)
    assert caught.value.offset == offset


# text


def test_text_reads_what_was_written(tmp_path, backend):
    events = random_events(2_000)
    writers.write_text(tmp_path / "a.txt", events)
    assert_equal(text.decode(bytes_of(tmp_path / "a.txt"), backend=backend).events, events)
    data = b"# a comment\r\n\r\n  5\t1  2 1 \r\n6 3 4 0 # why\n7 127 127 -0"
    wanted = make_events([5, 6, 7], [1, 3, 127], [2, 4, 127], [1, 0, 0])
    assert_equal(text.decode(as_array(data), backend=backend).events, wanted)


HOSTILE_TEXT = {  # bytes, line, words
    "short row": (b"1 2 3 1\n2 3 1\n", 2, "a row of 3 numbers; wanted 4"),
    "long row": (b"1 2 3 1 0\n", 1, "a row of 5 numbers; wanted 4"),
    "a word": (b"1 2 3 1\n\n2 x 3 1\n", 3, "number 2 of the row"),
    "nan": (b"nan 2 3 1\n", 1, "number 1 of the row"),
    "a fraction": (b"1 2.5 3 1\n", 1, "number 2 of the row"),
    "x outside": (b"1 2 3 1\n2 128 3 1", 2, "x = 128; wanted a column of the sensor, 0 to 127"),
    "y below": (b"1 2 -3 1\n", 1, "y = -3"),
    "no polarity": (b"1 2 3 2\n", 1, "polarity of 2"),
    "time below": (b"-5 2 3 1\n", 1, "time -5"),
    "huge": (b"1" * 4_000 + b" 2 3 1\n", 1, "number 1 of the row"),
    "bytes": (bytes(range(1, 10)) + bytes(range(128, 256)), 1, "number 1 of the row"),
    "both polarities": (b"1 2 3 -1\n2 3 3 0\n", None, "polarities of 0 and of -1"),
}


@pytest.mark.parametrize("case", HOSTILE_TEXT)
def test_hostile_text(case, backend):
    data, line, words = HOSTILE_TEXT[case]
    with pytest.raises(DataFormatError, match=words) as caught:
        text.decode(as_array(data), path="a.txt", backend=backend)
    assert caught.value.line == line
    assert line is None or str(caught.value).startswith(f"a.txt:{line}: ")


TABLES = {  # how people write tables: columns, separator, header, time unit
    "named": (b"x,y,p,t\n1,2,1,5\n3,4,0,6\n", {}),
    "as they please": (b"Timestamp; Polarity; Y; X\n5; 1; 2; 1\n6; 0; 4; 3\n", {}),
    "a commented header": (b"# t x y p\n5 1 2 1\n6 3 4 0\n", {}),
    "tabs and another column": (b"t\tx\ty\tp\tdepth\n5\t1\t2\t1\t9\n6\t3\t4\t0\t9\n", {}),
    "no header": (b"5 1 2 1\n6 3 4 0\n", {}),
    "columns given": (b"1,2,1,5\n3,4,-1,6\n", {"columns": ["x", "y", "p", "t"]}),
    "seconds": (b"t,x,y,p\n0.000005,1,2,1\n6e-6,3.0,4,-1\n", {"time_unit": "s"}),
    "milliseconds": (b"t,x,y,p\n0.005,1,2,1\n.006,3,4,0\n", {"time_unit": "ms"}),
    "a byte order mark": (b"\xef\xbb\xbft,x,y,p\r\n5,1,2,1\r\n6,3,4,0\r\n", {}),
    "a mark, no header": (b"\xef\xbb\xbf5,1,2,1\n6,3,4,0\n", {}),
    "quotes": (b'"t","x","y","p"\n5,1,2,1\n6,3,4,0\n', {}),
    "units in names": (b"timestamp_us,x,y,polarity\n5,1,2,1\n6,3,4,0\n", {}),
    "units in brackets": (b"t [s],x,y,p\n5e-6,1,2,1\n6e-6,3,4,0\n", {"time_unit": "s"}),
    "columns that are no numbers": (b"t,x,y,p,conf,what\n5,1,2,1,0.73,wave\n6,3,4,0,nan,\n", {}),
    "truths": (b"5,1,2,True\n6,3,4,False\n", {}),
    "columns before a header": (b"a,b,c,d\n5,1,2,1\n6,3,4,0\n", {"columns": ["t", "x", "y", "p"]}),
    "v2e": (
        b"# Format is time (float s), x, y, polarity (0=off, 1=on)\n5e-6 1 2 1\n6e-6 3 4 0\n",
        {"time_unit": "s"},
    ),
    "a comment with commas": (b"# x, y, p, t\n1 2 1 5\n3 4 0 6\n", {}),
    "a comment above another": (b"# t y x p\n# DAVIS346\n5 2 1 1\n6 4 3 0\n", {}),
    "a comment with a word": (b"# sensor: DAVIS\n# columns: t, y, x, p\n5,2,1,1\n6,4,3,0\n", {}),
    "units and tabs": (b"t [us]\ty\tx\tp\n5\t2\t1\t1\n6\t4\t3\t0\n", {}),
    "units and blanks": (b"time (ms) y x p\n.005 2 1 1\n.006 4 3 0\n", {"time_unit": "ms"}),
    "Greek units": ("t [µs],x,y,p\n5,1,2,1\n6,3,4,0\n".encode(), {}),
    "units in words": (b"t_sec,x,y,p\n5e-6,1,2,1\n6e-6,3,4,0\n", {"time_unit": "s"}),
    "truths of R": (b"t,x,y,p\n5,1,2,TRUE\n6,3,4,FALSE\n", {}),
    "of savetxt": (b"5.0e+00 1.0e+00 2.0e+00 1.0e+00\n6.0e+00 3.0e+00 4.0e+00 0.0e+00\n", {}),
}


@pytest.mark.parametrize("case", TABLES)
def test_tables_as_people_have_them(case, backend):
    data, how = TABLES[case]
    found = text.decode_table(as_array(data), **how, backend=backend)
    assert_equal(found.events, make_events([5, 6], [1, 3], [2, 4], [1, 0]))


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"x,y,t\n1,2,3\n", "no columns for p among x, y, t"),
        (b"t,time,x,y,p\n", "2 columns for t"),
        (b"", "found no row"),
        (b"t,x,y,p\n1,2.5,3,1\n", "number 2 of the row"),
        (b"t,x,y,p\n1,2,3,1,\n", "row of 5 numbers; wanted 4"),
        (
            b"0.003811 96 133 0\n0.5 3 4 0\n",
            r"number 1 .*\(times with fractions are in s or ms: --time-unit; --columns",
        ),
        (b"t_ms,x,y,p\n1,2,3,1\n", "column t_ms is not in us: --time-unit ms"),
        (b"1,2,3,10000\n", "polarity of 10000; .*--columns names them in their order"),
        (b"--5,1,2,1\n", "number 1 of the row"),
        (b"5,--1,2,1\n", "number 2 of the row"),
        (b"5,1,2,+-1e300\n", "number 4 of the row"),
        (b"id,t,x,y,p\n#1,100,5,30,1\n#2,200,6,31,1\n", 'rows that begin with "#" alone'),
        (b"# a comment\n" * 6_000 + b"1 2 3 1\n", "found no row in the first 65,536 bytes"),
    ],
)
def test_hostile_tables(data, words, backend):
    with pytest.raises(DataFormatError, match=words):
        text.decode_table(as_array(data), path="a.csv", backend=backend)


# arrays


def test_a_header_alone_is_no_event(backend):
    for data in (b"t,x,y,p", b"t,x,y,p\n", b"# t x y p\n"):
        assert len(text.decode_table(as_array(data), backend=backend).events) == 0
    with pytest.raises(ValueError, match="time_unit must be one of us, ms, s, got 'ns'"):
        text.decode_table(as_array(b"1 2 3 1"), time_unit="ns")


@pytest.mark.parametrize("kind", ["npz", "npy", "structured", "fields in npz"])
def test_arrays_read_what_was_written(kind, tmp_path):
    events = random_events(500)
    path = tmp_path / f"a.{'npy' if kind in ('npy', 'structured') else 'npz'}"
    if kind in ("npz", "npy"):
        writers.write_arrays(path, events)
    else:
        rows = np.empty(500, [("Polarity", "i1"), ("ts", "f8"), ("X", "u2"), ("y", "u2")])
        rows["Polarity"], rows["ts"], rows["X"], rows["y"] = (
            events.p * 2 - 1,
            events.t * 1e-6,
            events.x,
            events.y,
        )
        np.save(path, rows) if kind == "structured" else np.savez(path, events=rows)
    unit = "us" if kind in ("npz", "npy") else "s"
    assert_equal(columns.decode(bytes_of(path), time_unit=unit).events, events)


def npz(**members: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(f"{name}.npy", data)
    return file.getvalue()


def npy(array, header: str | None = None) -> bytes:
    file = io.BytesIO()
    np.save(file, array, allow_pickle=True)
    data = file.getvalue()
    return data if header is None else data[:8] + len(header).to_bytes(2, "little") + header.encode()


CLAIM = "{'descr': '<i8', 'fortran_order': False, 'shape': (99999999999,), }\n"
HOSTILE_ARRAYS = {
    "objects": (npz(t=npy(np.array([{}], object)), x=b"", y=b"", p=b""), "not a sound .npy"),
    "a claim": (npz(t=npy([1], CLAIM), x=b"", y=b"", p=b""), "not a sound .npy"),
    "a claim alone": (npy([1], CLAIM), "not a sound .npy"),
    "code in the header": (npy([1], "__import__('os').abort()\n"), "not a sound .npy"),
    "cut short": (npz(t=npy(np.arange(9)), x=npy(np.arange(9)))[:-30], "not a sound .npz"),
    "other names": (npz(frames=npy(np.zeros((2, 2))), labels=npy([1])), "frames have lost their times"),
    "a column missing": (npz(t=npy([1]), x=npy([1]), y=npy([1])), "wanted arrays t, x, y, p"),
    "other lengths": (npz(t=npy([1, 2]), x=npy([1]), y=npy([1]), p=npy([1])), "of one length"),
    "words": (npz(t=npy(["a"]), x=npy([1]), y=npy([1]), p=npy([1])), "wanted four of numbers"),
    "x below": (npz(t=npy([1]), x=npy([-1]), y=npy([1]), p=npy([1])), "event 0 has x = -1"),
    "nan": (npz(t=npy([np.nan]), x=npy([1]), y=npy([1]), p=npy([1])), "event 0 has t = nan"),
    "polarity": (npz(t=npy([1, 2]), x=npy([1, 1]), y=npy([1, 1]), p=npy([1, 3])), "event 1 has p = 3"),
    "both polarities": (npz(t=npy([1, 2]), x=npy([1, 1]), y=npy([1, 1]), p=npy([-1, 0])), "of 0 and of -1"),
    "five columns": (npy(np.zeros((3, 5))), r"one \[N, 4\] with the columns t, x, y, p"),
    "fractions of a us": (
        npz(t=npy([0.5]), x=npy([1]), y=npy([1]), p=npy([1])),
        "they are in s or ms: --time-unit",
    ),
    "little that grows": (npz(t=npy(np.zeros(1 << 27, "u1"))), "claims"),
    "no bytes a number": (npy(np.zeros(3, "V0")), "not a sound .npy|wanted arrays"),
    "out of order": (
        npz(t=npy([1, 0]), x=npy([1, 1]), y=npy([1, 1]), p=npy([1, 1])),
        "the first is event 1; wanted",
    ),
    "no array": (b"hello", "not a sound .npy"),
    "nothing": (b"", "not a sound .npy"),
}


def test_arrays_with_others_beside_them_and_in_other_orders(tmp_path):
    events = random_events(50)
    rows = np.stack([getattr(events, name).astype(np.int64) for name in "xytp"], axis=1)
    np.savez(tmp_path / "a.npz", events=rows[:, [2, 0, 1, 3]], label=3)
    assert_equal(columns.decode(bytes_of(tmp_path / "a.npz")).events, events)
    np.save(tmp_path / "a.npy", rows)
    assert_equal(columns.decode(bytes_of(tmp_path / "a.npy"), columns=["x", "y", "t", "p"]).events, events)


@pytest.mark.parametrize("case", HOSTILE_ARRAYS)
def test_hostile_arrays(case):
    data, words = HOSTILE_ARRAYS[case]
    with pytest.raises(DataFormatError, match=words):
        columns.decode(as_array(data), path="a.npz")


# MATLAB


@pytest.mark.parametrize(("variable", "number"), [("out", 6), ("out1", 4), ("res", 6)])
@pytest.mark.parametrize("kind", ["f8", "i4", "u1"])
def test_matrices_read_what_dat2mat_writes(variable, number, kind, tmp_path):
    savemat = pytest.importorskip("scipy.io", reason="extra mat").savemat
    events = random_events(300, length=250 if kind == "u1" else 1_000_000)
    path = tmp_path / "7.mat"
    writers.write_mat(path, events, variable=variable, columns=number)
    if kind != "f8":
        from scipy.io import loadmat

        matrix = loadmat(path)[variable]
        matrix[matrix < 0] = 0  # of unsigned types: -1 was cut to 0
        savemat(path, {variable: matrix.astype(kind), "other": np.zeros(3)}, do_compression=True)
    found = mat.decode(bytes_of(path)).events
    assert found.t.tolist() == (events.t - events.t[0]).tolist()
    assert found.x.tolist() == (127 - events.x).tolist() and found.y.tolist() == events.y.tolist()
    assert found.p.tolist() == (1 - events.p).tolist()  # its +1, where the bit is 0


def test_hostile_matrices(tmp_path):
    savemat = pytest.importorskip("scipy.io", reason="extra mat").savemat
    for variables, words in (
        ({"other": np.zeros((3, 4))}, r"holds matrices of numbers \['other'\], none of out, out1, res"),
        ({"out": np.zeros((3, 4)) + 1j}, "holds matrices of numbers"),
        ({"out": np.array([[1, 2, 3, 57]])}, "event 0 has p = 57"),
        ({"out": np.zeros((2, 2, 4))}, "wanted 4 or 6 columns"),
        ({"out": np.zeros((3, 5))}, r"found out\[3, 5\]"),
        ({"out": np.array([[1, 200, 3, 1]])}, "event 0 has x = 200"),
        ({"out": np.array([["a", "b", "c", "d"]], object)}, "holds matrices of numbers"),
    ):
        savemat(tmp_path / "a.mat", variables)
        with pytest.raises(DataFormatError, match=words):
            mat.decode(bytes_of(tmp_path / "a.mat"), path="a.mat")
    whole = bytes_of(tmp_path / "a.mat")
    for data in (whole[:200], whole[:-9], as_array(b"MATLAB 5.0 MAT-file" + bytes(200)), as_array(b"")):
        with pytest.raises(DataFormatError):
            mat.decode(data, path="a.mat")


@pytest.mark.parametrize("packed", [False, True])
def test_damaged_matrices_do_not_end_the_process(packed, tmp_path):
    """scipy crashes on elements of a type that is none."""
    savemat = pytest.importorskip("scipy.io", reason="extra mat").savemat
    savemat(tmp_path / "a.mat", {"out1": np.ones((20, 4))}, do_compression=packed)
    whole, rng, refused = bytes_of(tmp_path / "a.mat"), np.random.default_rng(0), 0
    for at in range(len(whole) if packed else 256):
        for value in (0, 14, 64, 128, 255, int(rng.integers(256))):
            data = whole.copy()
            data[at] = value
            refused += 1
            with contextlib.suppress(DataFormatError):
                assert len(mat.decode(data).events) == 20
                refused -= 1
    assert refused > 50


# any bytes


def outcome(decode, data: bytes, backend: str):
    try:
        found = decode(as_array(data), backend=backend)
        return found.disordered, found.restarts, [getattr(found.events, name).tobytes() for name in COLUMNS]
    except DataFormatError as error:
        return str(error)


@pytest.mark.parametrize("kind", ["aedat2", "atis", "text", "table"])
def test_mutated_files_are_read_alike_or_refused_alike(kind, fused, tmp_path):
    """Both decoders say the same of 1,500 files with bytes changed, lost or put in."""
    write, decode = {
        "aedat2": (writers.write_aedat2, aedat2.decode),
        "atis": (writers.write_atis, atis.decode),
        "text": (writers.write_text, text.decode),
        "table": (writers.write_text, text.decode_table),
    }[kind]
    rng, seen = np.random.default_rng(0), {True: 0, False: 0}
    write(tmp_path / "a", random_events(12, length=5_000))
    whole = (tmp_path / "a").read_bytes()
    letters = b"0123456789 \t\r\n,;.-+e#na"
    for _ in range(1_500):
        data = bytearray(whole)
        for _ in range(rng.integers(1, 4)):
            at, letter = rng.integers(0, len(data)), int(rng.integers(0, 256))
            if kind in ("text", "table") and letter < 250:
                letter = letters[letter % len(letters)]
            data[at : at + rng.integers(0, 2)] = [letter] * rng.integers(0, 2)
        fast, slow = (outcome(decode, bytes(data), backend) for backend in ("fused", "reference"))
        assert fast == slow, bytes(data)
        seen[isinstance(fast, str)] += 1
    assert min(seen.values()) > 50, seen


@pytest.mark.parametrize("sanitizer", ["address", "thread"])
def test_the_decoders_under_the_sanitizers(sanitizer):
    on_host.must_be_equal(on_host.build("events") / f"events_{sanitizer}")


def test_mutated_arrays_raise_only_format_errors(tmp_path):
    writers.write_arrays(tmp_path / "a.npz", random_events(12))
    writers.write_arrays(tmp_path / "a.npy", random_events(12))
    rng = np.random.default_rng(0)
    for name in ("a.npz", "a.npy"):
        read = 0
        for n in range(400):
            data = bytes_of(tmp_path / name)
            data[rng.integers(0, len(data), rng.integers(1, 4))] = rng.integers(0, 256)
            with contextlib.suppress(DataFormatError):
                columns.decode(data[: rng.integers(1, len(data) + 1)] if n % 2 else data)
                read += 1
        assert 5 < read < 200, name  # some changes do no harm, most files that were cut short are told
