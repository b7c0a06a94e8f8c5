"""The embedded recordings: real digits, what a sensor would see of them, and their way through `prepare`."""

import gzip
from pathlib import Path

import numpy as np
import pytest

import attsnn.data
from attsnn.data import DataFormatError, DVSGesture, frames
from attsnn.data.__main__ import main
from attsnn.data.core.store import Store
from attsnn.data.datasets.dvs_gesture import prepare
from attsnn.data.synthetic import samples

FEW = range(0, 200)


@pytest.fixture(scope="module")
def raw(tmp_path_factory) -> Path:
    return samples.write_recordings(tmp_path_factory.mktemp("raw"), seed=3, indices=FEW)


def test_digits_are_those_of_uci():
    images, labels = samples.digits()
    assert images.shape == (1797, 8, 8) and images.dtype == np.uint8 and images.max() == 16
    assert np.bincount(labels).tolist() == [
        178,
        182,
        177,
        183,
        181,
        182,
        181,
        179,
        174,
        180,
    ]  # as load_digits
    assert images[0, 0].tolist() == [0, 0, 5, 13, 9, 1, 0, 0] and labels[:10].tolist() == list(range(10))
    assert int(images.sum()) == 561_718


def test_digits_carry_their_attribution():
    folder = Path(attsnn.data.__file__).parent / "datasets"
    head = gzip.decompress((folder / "digits.csv.gz").read_bytes())[:400].decode()
    for text in (head, (folder / "digits.md").read_text()):
        assert "Alpaydin" in text and "CC BY 4.0" in text and "10.24432/C50P49" in text
    assert (folder / "digits.csv.gz").stat().st_size < 60_000


def test_a_recording_is_what_the_threshold_model_says():
    """Replayed event by event: a pixel's memory never strays from what it sees by more than a threshold."""
    image, rng = samples.digits()[0][5], samples.generator(1)
    path = samples._path(rng)
    seen = samples._log_intensity(image, path)
    memory, start = seen[0].copy(), seen[0].copy()
    for step in range(samples.STEPS):
        t, pixel, polarity = samples._crossings(seen[step], seen[step + 1], memory, step * samples.STEP_US)
        assert ((t >= step * samples.STEP_US) & (t < (step + 1) * samples.STEP_US)).all()
        np.add.at(start, pixel, np.where(polarity, samples.THRESHOLD, -samples.THRESHOLD))
        np.testing.assert_allclose(start, memory, atol=1e-4)
        assert np.abs(memory - seen[step + 1]).max() < samples.THRESHOLD + 1e-5


def test_a_step_crosses_several_thresholds_at_interpolated_times():
    before, after, memory = (
        np.array(row, np.float32) for row in ([0, 0, 1.0], [1.0, -0.5, 1.4], [0, 0, 1.0])
    )
    t, pixel, polarity = samples._crossings(before, after, memory, 1000)
    assert pixel.tolist() == [0, 0, 1] and polarity.tolist() == [True, True, False]
    last = samples.STEP_US - 1
    assert t.tolist() == [1000 + int(last * share) for share in (0.45, 0.9, 0.9)]
    np.testing.assert_allclose(memory, [0.9, -0.45, 1.0], atol=1e-6)


def test_digits_fill_the_frame_and_move():
    events = samples.record(samples.digits()[0][0], samples.generator(0))
    assert 1000 < len(events) < 10_000 and (np.diff(events.t) >= 0).all()
    assert events.t[0] >= 0 and events.t[-1] < samples.LENGTH_US
    counts = frames(events, steps=1, dt=samples.LENGTH_US, downsample=4)[0].sum(0)
    rows, columns = np.nonzero(counts > 5)
    assert np.ptp(rows) >= 18 and np.ptp(columns) >= 8
    assert 0.2 < events.p.mean() < 0.8  # both edges of each stroke


def test_paths_differ_by_their_corners_and_as_a_whole():
    corners = np.stack([samples._path(samples.generator(seed))[::8] for seed in range(400)])
    away = corners - corners.mean(0)
    whole = away.mean(1, keepdims=True)
    assert np.ptp(corners.mean(0), axis=0) == pytest.approx([12, 8], abs=0.2)
    assert (away - whole).std() == pytest.approx(samples.JITTER * (3 / 4) ** 0.5, rel=0.05)
    assert whole.std() == pytest.approx(samples.JITTER * (2**2 + 1 / 4) ** 0.5, rel=0.1)


def test_noise_is_a_little():
    blank = samples.record(np.zeros((8, 8), np.uint8), samples.generator(0))
    expected = samples.NOISE_HZ * samples.SIDE**2 * samples.LENGTH_US * 1e-6
    assert abs(len(blank) - expected) < 6 * expected**0.5


def test_recordings_are_seeded_and_laid_out_as_dvs_gesture(raw, tmp_path):
    again = samples.write_recordings(tmp_path / "again", seed=3, indices=FEW)
    other = samples.write_recordings(tmp_path / "other", seed=4, indices=FEW)
    names = sorted(path.name for path in raw.iterdir())
    assert len(names) == 2 * 10 + 3 and "user24_led_labels.csv" in names and "trials_to_test.txt" in names
    assert all((again / name).read_bytes() == (raw / name).read_bytes() for name in names)
    assert all(
        (other / f"user0{user}_led.aedat").read_bytes() != (raw / f"user0{user}_led.aedat").read_bytes()
        for user in range(1, 9)
    )
    classes = [int(row.split(",")[0]) for row in (raw / "user01_led_labels.csv").read_text().split()[1:]]
    assert set(classes) <= set(range(1, 11)) and len(classes) == 20


def test_recordings_are_read_back_like_real_data(raw, tmp_path, recwarn):
    store = prepare(raw, tmp_path / "store", progress=False)
    assert not [w for w in recwarn if "published" in str(w.message)]
    train, test = (DVSGesture(store, split, steps=10, dt_ms=30) for split in ("train", "test"))
    assert (len(train), len(test)) == (160, 40) and train.classes == samples.NAMES
    assert (
        np.bincount(np.concatenate([train.labels, test.labels])).tolist()
        == np.bincount(samples.digits()[1][FEW.start : FEW.stop]).tolist()
    )
    sample, label = train[0]
    assert sample.shape == (10, 2, 32, 32) and 0 <= label < 10 and sample.sum() > 1000


def test_a_template_knows_the_digits(raw, tmp_path):
    """Frames and labels belong together: the nearest training recording is mostly right."""
    store = prepare(raw, tmp_path / "store", progress=False)
    data = [DVSGesture(store, split, steps=3, dt_ms=100) for split in ("train", "test")]
    train, test = (np.stack([d[i][0].numpy().ravel() ** 0.5 for i in range(len(d))]) for d in data)
    nearest = ((test[:, None] - train) ** 2).sum(axis=2).argmin(axis=1)
    assert (data[0].labels[nearest] == data[1].labels).mean() >= 0.8


def test_prepare_samples_is_cached_by_seed(tmp_path, monkeypatch):
    write = samples.write_recordings
    monkeypatch.setattr(samples, "write_recordings", lambda out, seed: write(out, seed, FEW))
    path = samples.prepare_samples(tmp_path, seed=5, progress=False)
    before = (path / "manifest.json").stat().st_mtime_ns
    assert samples.prepare_samples(tmp_path, seed=5, progress=False) == path
    assert (path / "manifest.json").stat().st_mtime_ns == before
    assert Store(path).manifest["source"] == f"samples {samples.VERSION}, seed 5"
    assert samples.prepare_samples(tmp_path, seed=6, progress=False) != path
    data = bytearray((path / "t.npy").read_bytes())
    data[-1] ^= 1
    (path / "t.npy").write_bytes(data)
    with pytest.raises(DataFormatError, match="SHA-256"):
        samples.prepare_samples(tmp_path, seed=5)


def test_command_line_writes_recordings(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(samples, "write_recordings", lambda out, seed: Path(out) / str(seed))
    assert main(["samples", str(tmp_path / "out"), "--seed", "7"]) == 0
    assert "out/7" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="2"):
        main(["samples", str(tmp_path), "--seed", "-7"])
