"""Metrics of generators: closed forms, hand-made cases, and the papers' protocol with stand-in networks."""

import dataclasses
import hashlib
import json
import math
import socket
import sys
import types
import urllib.request

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from attsnn.metrics import (
    PUBLISHED,
    Moments,
    Result,
    clean_inception,
    features_of,
    fid,
    frechet,
    frechet_distance,
    generated,
    imagenet_inception,
    inception_score,
)

room = sys.modules["attsnn.metrics.fid"]  # the package's `fid` is the function


@pytest.fixture(autouse=True)
def _no_network(monkeypatch, tmp_path):
    def refused(*args, **kwargs):
        raise AssertionError(f"something was to be fetched: {args}")

    for owner, name in (
        (socket.socket, "connect"),
        (urllib.request, "urlopen"),
        (torch.hub, "download_url_to_file"),
        (torch.hub, "urlopen"),
    ):
        monkeypatch.setattr(owner, name, refused)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))


def rows(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def rotation(size: int, seed: int = 0) -> torch.Tensor:
    return torch.linalg.qr(rows(size, size, seed=seed)).Q


def normal(mean, covariance) -> Moments:
    mean, covariance = (torch.as_tensor(x, dtype=torch.float64) for x in (mean, covariance))
    return Moments.given(mean, covariance)


def diagonal(mean, variances) -> Moments:
    return normal(mean, torch.diag(torch.tensor(variances, dtype=torch.float64)))


def of(*batches: torch.Tensor) -> Moments:
    moments = Moments()
    for batch in batches:
        moments.update(batch)
    return moments


# Moments


def test_moments_are_those_of_numpy():
    x = rows(50, 7)
    moments = of(x)
    assert (moments.count, moments.dimensions) == (50, 7)
    assert np.abs(moments.mean.numpy() - x.numpy().mean(0)).max() < 1e-14
    assert np.abs(moments.covariance.numpy() - np.cov(x.numpy(), rowvar=False)).max() < 1e-14
    half = x.bfloat16()
    assert torch.equal(of(half).mean, half.double().mean(0))  # gathered in float64 whatever comes


@pytest.mark.parametrize("sizes", [[1] * 40, [39, 1], [1, 0, 39], [7, 13, 20], [16, 16, 8]])
def test_any_batches_are_one(sizes):
    x = rows(40, 6) * torch.logspace(-2, 2, 6, dtype=torch.float64) + 5
    whole, parts = of(x), x.split(sizes)
    merged = Moments()
    for part in parts:
        merged.merge(of(part) if len(part) else Moments())
    for found in (of(*parts), of(*reversed(parts)), of(x[torch.randperm(40)]), merged):
        assert found.count == 40
        assert (found.mean - whole.mean).abs().max() < 1e-12
        assert ((found.covariance - whole.covariance).abs() / x.std(0).outer(x.std(0))).max() < 1e-12


def test_a_far_mean_costs_no_digits():
    """The mean of squares less the square of the mean would be wrong by 1e-4 here."""
    x = rows(200, 3)
    far = x + 2.0**20
    near = far - 2.0**20  # exact
    assert (of(*far.split(32)).covariance - of(near).covariance).abs().max() < 1e-9


def test_merging_leaves_the_other():
    a, b = of(rows(4, 2)), of(rows(5, 2, seed=1))
    before = b.mean, b.covariance
    empty = Moments()
    empty.merge(b)
    empty.update(rows(3, 2))
    a.merge(b)
    a.update(rows(3, 2))
    assert b.count == 5 and torch.equal(b.mean, before[0]) and torch.equal(b.covariance, before[1])
    twice = of(rows(4, 2))
    twice.merge(twice)
    torch.testing.assert_close(twice.covariance, of(rows(4, 2), rows(4, 2)).covariance)
    a.mean.zero_(), a.covariance.zero_()  # copies
    assert a.mean.abs().sum() > 0 and a.covariance.abs().sum() > 0


def test_moments_refuse():
    known = of(rows(4, 2))
    for features, said in (
        (rows(4), r"shape \[N, D\], got \[4\]"),
        (rows(4, 0), r"got \[4, 0\]"),
        (rows(4, 3), "are of 2 dimensions, got 3"),
        (rows(4, 2) * 1j, "real numbers"),
        (torch.tensor([[1.0, math.nan], [math.inf, 0.0]]), "features must be finite: 2 of 4 numbers"),
    ):
        with pytest.raises(ValueError, match=said):
            known.update(features)
    assert known.count == 4 and torch.equal(known.mean, of(rows(4, 2)).mean)
    unknown = normal([0.0], [[1.0]])
    with pytest.raises(ValueError, match="unknown number of samples take no more"):
        unknown.update(rows(2, 1))
    with pytest.raises(ValueError, match="unknown number of samples cannot be added"):
        of(rows(2, 1)).merge(unknown)
    with pytest.raises(ValueError, match="no samples to take a mean of"):
        _ = Moments().mean
    with pytest.raises(ValueError, match="2 samples at least, got 1"):
        _ = of(rows(1, 2)).covariance
    with pytest.raises(ValueError, match="are of 3 dimensions, got 2"):
        Moments(3).update(rows(4, 2))


@pytest.mark.parametrize(
    ("mean", "covariance", "said"),
    [
        ([[0.0]], [[1.0]], r"\[D\] and \[D, D\], got \[1, 1\] and \[1, 1\]"),
        ([0.0, 0.0], [[1.0]], r"got \[2\] and \[1, 1\]"),
        ([], torch.zeros(0, 0), r"got \[0\]"),
        ([0.0, 0.0], [[1.0, 0.5], [0.4, 1.0]], "symmetric"),
        ([math.nan], [[1.0]], "the mean must be finite"),
        ([0.0], [[math.inf]], "the covariance must be finite"),
    ],
)
def test_given_moments_refuse(mean, covariance, said):
    with pytest.raises(ValueError, match=said):
        normal(mean, covariance)
    with pytest.raises(ValueError, match="2 samples at least, got 1"):
        Moments.given(torch.zeros(1), torch.ones(1, 1), 1)


def test_given_moments_go_on():
    x = rows(30, 4)
    first = of(x[:20])
    found = Moments.given(first.mean, first.covariance, 20)
    found.update(x[20:])
    torch.testing.assert_close(found.covariance, of(x).covariance, rtol=0, atol=1e-13)


# Files


def test_a_file_and_back(tmp_path):
    path, x = tmp_path / "digits.npz", rows(30, 4)
    path.write_bytes(b"old")
    of(x).save(path)
    assert [p.name for p in tmp_path.iterdir()] == ["digits.npz"]
    with np.load(path) as content:
        assert sorted(content.files) == ["count", "mu", "sigma"]
        assert content["mu"].shape == (4,) and content["sigma"].shape == (4, 4)
        np.testing.assert_allclose(content["sigma"], np.cov(x.numpy(), rowvar=False), atol=1e-14)
    found = Moments.load(path)
    assert found.count == 30 and torch.equal(found.mean, of(x).mean)
    torch.testing.assert_close(found.covariance, of(x).covariance, rtol=1e-15, atol=1e-15)


def test_a_file_that_cannot_be_written_leaves_the_old_one(tmp_path, monkeypatch):
    path = tmp_path / "digits.npz"
    of(rows(30, 4)).save(path)
    before = path.read_bytes()

    def full(file, **arrays):
        file.write(b"half")
        raise OSError("no space left")

    monkeypatch.setattr(np, "savez", full)
    with pytest.raises(OSError, match="no space left"):
        of(rows(20, 4)).save(path)
    assert path.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ["digits.npz"]


def test_published_files(tmp_path):
    """mu in float32, sigma in float64, no count."""
    path, x = tmp_path / "mnist_test_64.npz", rows(30, 4).numpy()
    np.savez_compressed(path, mu=x.mean(0).astype(np.float32), sigma=np.cov(x, rowvar=False))
    found = Moments.load(path)
    assert found.count is None and found.dimensions == 4 and found.mean.dtype == torch.float64
    assert np.array_equal(found.mean.numpy(), x.mean(0).astype(np.float32))
    assert np.array_equal(found.covariance.numpy(), np.cov(x, rowvar=False))
    found.save(path)
    assert Moments.load(path).count is None
    for order in "<>":
        sigma = np.cov(x, rowvar=False).astype(f"{order}f4")
        np.savez(path, mu=x.mean(0).astype(f"{order}f4"), sigma=sigma)
        assert np.array_equal(Moments.load(path).covariance.numpy(), sigma.astype(np.float64))


class Hostile:
    def __reduce__(self):
        return pytest.fail, ("a pickle was run",)


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"mu": np.zeros(2)}, "no sigma, but mu"),
        ({"mean": np.zeros(2), "cov": np.eye(2)}, "no mu and no sigma, but mean, cov"),
        ({}, "no mu and no sigma, but nothing"),
        ({"mu": np.zeros(3), "sigma": np.eye(2)}, r"\[D\] and \[D, D\], got \[3\] and \[2, 2\]"),
        ({"mu": np.zeros(2), "sigma": np.eye(2) * np.nan}, "covariance must be finite: 4 of 4"),
        ({"mu": np.array(["a"]), "sigma": np.eye(1)}, "mu is of type <U1"),
        ({"mu": np.zeros(1), "sigma": np.eye(1) * 1j}, "sigma is of type complex128"),
        ({"mu": np.array([Hostile()]), "sigma": np.eye(1)}, "allow_pickle=False"),
        ({"mu": np.zeros(1), "sigma": np.eye(1), "count": np.float64(3)}, "count is of type float64"),
        ({"mu": np.zeros(1), "sigma": np.eye(1), "count": np.array([3, 4])}, r"count has shape \[2\]"),
        ({"mu": np.zeros(1), "sigma": np.eye(1), "count": np.int64(-3)}, "2 samples at least, got -3"),
    ],
)
def test_what_is_no_file_of_statistics(arrays, said, tmp_path):
    path = tmp_path / "odd.npz"
    np.savez(path, **arrays)
    with pytest.raises(
        ValueError, match=rf"odd\.npz: no statistics of features \(\.npz\): .*{said}"
    ) as error:
        Moments.load(path)
    assert "\n" not in str(error.value)


def test_broken_files_say_so(tmp_path):
    path = tmp_path / "odd.npz"
    with pytest.raises(FileNotFoundError, match=r"odd\.npz"):
        Moments.load(path)
    np.save(tmp_path / "one.npy", np.eye(2))
    with pytest.raises(ValueError, match="one array, wanted mu and sigma"):
        Moments.load(tmp_path / "one.npy")
    np.savez_compressed(path, mu=np.arange(3.0), sigma=np.eye(3))
    good, draw, read = path.read_bytes(), np.random.default_rng(0), 0
    for content in (b"", b"no arrays", good[: len(good) // 2]):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="no statistics of features"):
            Moments.load(path)
    for _ in range(400):
        broken = bytearray(good)
        for place in draw.integers(len(good), size=2):
            broken[place] = draw.integers(256)
        path.write_bytes(broken)
        try:
            Moments.load(path)
            read += 1
        except ValueError as error:
            assert "no statistics of features" in str(error)
    assert read < 300


# The distance


def test_of_one_dimension():
    """(m - n)^2 + (s - t)^2."""
    assert frechet_distance(normal([1.0], [[4.0]]), normal([-2.0], [[9.0]])) == pytest.approx(10, abs=1e-13)


def test_of_equal_covariances():
    half = rows(5, 9)
    covariance = half @ half.T
    found = frechet_distance(normal(torch.zeros(5), covariance), normal(torch.arange(5.0), covariance))
    assert found == pytest.approx(30, abs=1e-11)


def test_of_diagonal_covariances():
    """|m - n|^2 + the sum of (s_i - t_i)^2; zeros on the diagonal are no exception."""
    a, b = diagonal([1.0, 2.0, 3.0], [1.0, 16.0, 0.0]), diagonal([1.0, 0.0, 3.5], [25.0, 0.0, 0.0])
    assert frechet_distance(a, b) == pytest.approx(4.25 + 16 + 16, abs=1e-12)


def test_of_commuting_covariances():
    axes, means = rotation(6), rows(2, 6)
    s, t = rows(2, 6, seed=1).abs()
    a, b = (normal(m, axes @ torch.diag(v**2) @ axes.T) for m, v in zip(means, (s, t), strict=True))
    wanted = (means[0] - means[1]).square().sum() + (s - t).square().sum()
    assert frechet_distance(a, b) == pytest.approx(wanted.item(), abs=1e-12)


def random_pair(size: int, samples: int, seed: int) -> tuple[Moments, Moments]:
    return tuple(
        of(rows(samples, size, seed=s) @ rows(size, size, seed=s + 50) + s) for s in (seed, seed + 9)
    )


def by_scipy(a: Moments, b: Moments) -> float:
    sqrtm = pytest.importorskip("scipy.linalg", reason="extra fid: scipy is not installed").sqrtm
    root = sqrtm((a.covariance @ b.covariance).numpy())
    both = (a.covariance + b.covariance).trace().item() - 2 * np.trace(root).real
    return (a.mean - b.mean).square().sum().item() + both


@pytest.mark.parametrize("size", [1, 2, 5, 30])
def test_of_random_covariances_as_scipy(size):
    for seed in range(4):
        a, b = random_pair(size, 3 * size + 3, seed)
        assert frechet_distance(a, b) == pytest.approx(by_scipy(a, b), rel=1e-10)


def test_near_singular_as_scipy():
    """Eigenvalues from 1 to 1e-9: scipy's root of the product has 7 digits there."""
    spread = torch.diag(torch.logspace(0, -9, 10, dtype=torch.float64))
    a, b = (normal(torch.zeros(10), q @ spread @ q.T) for q in (rotation(10), rotation(10, seed=1)))
    assert frechet_distance(a, b) == pytest.approx(by_scipy(a, b), rel=1e-7)
    assert frechet_distance(a, b) > 0.1


def test_near_singular_by_hand():
    axes = rotation(40)
    s, t = torch.logspace(0, -6, 40).double(), torch.logspace(-6, 0, 40).double()
    a, b = (normal(torch.zeros(40), (axes * v**2) @ axes.T) for v in (s, t))
    assert frechet_distance(a, b) == pytest.approx((s - t).square().sum().item(), abs=1e-9)


def test_singular_by_hand():
    """Of rank one, u u^T and w w^T: |u|^2 + |w|^2 - 2 |u w|. The roots of what is zero to rounding in a
    product would add 1e-7.
    """
    u, w = rows(2, 60)
    a, b = (normal(torch.zeros(60), x.outer(x)) for x in (u, w))
    wanted = (u.square().sum() + w.square().sum() - 2 * (u @ w).abs()).item()
    assert frechet_distance(a, b) == pytest.approx(wanted, abs=2e-12)
    nothing = normal(torch.zeros(60), torch.zeros(60, 60))
    assert frechet_distance(a, nothing) == pytest.approx(u.square().sum().item(), abs=1e-12)
    assert frechet_distance(nothing, nothing) == 0


def test_fewer_samples_than_dimensions():
    """Features of 3 dimensions laid into 50 are as far apart as in 3."""
    x, y = rows(8, 3), rows(9, 3, seed=1) * 2 + 1
    wide = rotation(50)[:, :3].T
    wanted = frechet_distance(of(x), of(y))
    assert frechet_distance(of(x @ wide + 7), of(y @ wide + 7)) == pytest.approx(wanted, rel=1e-12)
    a, b = of(rows(5, 50)), of(rows(6, 50, seed=1))
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a), rel=1e-13)


@pytest.mark.parametrize("samples", [4, 200])
def test_equal_moments_are_at_zero(samples):
    x = rows(samples, 40) * torch.logspace(2, -4, 40, dtype=torch.float64)
    found = frechet_distance(of(x), of(*x.flip(0).split(3)))
    assert 0 <= found < 1e-12 * of(x).covariance.trace()


def test_shifts_and_rotations():
    x, y = rows(60, 8) @ rows(8, 8, seed=2), rows(70, 8, seed=1) * 3
    found = frechet_distance(of(x), of(y))
    assert frechet_distance(of(y), of(x)) == pytest.approx(found, rel=1e-13)
    assert frechet_distance(of(x + 11), of(y + 11)) == pytest.approx(found, rel=1e-11)
    axes = rotation(8)
    assert frechet_distance(of(x @ axes), of(y @ axes)) == pytest.approx(found, rel=1e-12)
    assert frechet_distance(of(5 * x), of(5 * y)) == pytest.approx(25 * found, rel=1e-12)
    assert frechet_distance(of(x), of(y @ axes)) != pytest.approx(found, rel=1e-3)
    centred, shift = y - y.mean(0) + x.mean(0), torch.arange(8.0).double()
    apart = frechet_distance(of(x), of(centred + shift)) - frechet_distance(of(x), of(centred))
    assert apart == pytest.approx(140, rel=1e-11)


@pytest.mark.parametrize(
    ("a", "b", "said"),
    [
        (of(rows(4, 2)), of(rows(4, 3)), "of [23] and [23] dimensions have no distance"),
        (of(rows(1, 2)), of(rows(4, 2)), "2 samples at least, got 1"),
        (of(rows(4, 2)), Moments(), "2 samples at least, got 0"),
        (of(rows(4, 2)), of(rows(4, 2) * 1e170), "covariance must be finite"),
        (of(rows(4, 2) * 1e-9), of(rows(4, 2) * 1e-9 + 1e200), "the distance is not finite"),
        (diagonal([0.0, 0.0], [1.0, -0.1]), of(rows(4, 2)), "no covariance: it has the eigenvalue -0.1"),
        (diagonal([0.0], [-1.0]), of(rows(4, 1)), "eigenvalue -1"),
    ],
)
def test_the_distance_refuses(a, b, said):
    for pair in ((a, b), (b, a)):
        with pytest.raises(ValueError, match=said) as error:
            frechet_distance(*pair)
        assert "\n" not in str(error.value)


# The Inception score


def test_score_of_uniform_and_of_certain():
    assert inception_score([torch.full((7, 5), 0.2)]) == pytest.approx((1, 0), abs=1e-12)
    certain = torch.eye(5).repeat(4, 1)
    assert inception_score([certain]) == pytest.approx((5, 0), abs=1e-12)
    assert inception_score([certain], splits=4) == pytest.approx((5, 0), abs=1e-12)
    same = torch.eye(5)[[2, 2, 2]]
    assert inception_score([same]) == pytest.approx((1, 0), abs=1e-12)


def kl_score(batch) -> float:
    marginal = [sum(column) / len(batch) for column in zip(*batch, strict=True)]
    each = [sum(p * math.log(p / q) for p, q in zip(row, marginal, strict=True) if p) for row in batch]
    return math.exp(sum(each) / len(each))


def test_score_by_hand():
    """Each batch a split, or equal stretches of all samples; the population's standard deviation."""
    batches = [rows(n, 4, seed=n).softmax(1) for n in (3, 6, 3)]
    scores = [kl_score(batch.tolist()) for batch in batches]
    mean = sum(scores) / 3
    std = math.sqrt(sum((s - mean) ** 2 for s in scores) / 3)
    assert inception_score(iter(batches)) == pytest.approx((mean, std), abs=1e-12)
    whole = torch.cat(batches).tolist()
    for splits, cuts in ((1, (0, 12)), (2, (0, 6, 12)), (5, (0, 2, 4, 7, 9, 12))):
        scores = [kl_score(whole[a:b]) for a, b in zip(cuts, cuts[1:], strict=False)]
        found = inception_score(iter(batches), splits)
        assert found.mean == pytest.approx(sum(scores) / splits, abs=1e-12)
        assert found.std == pytest.approx(np.std(scores), abs=1e-12)


def test_rows_are_brought_to_one():
    """As in half precision, where they miss it."""
    batch = rows(50, 100).softmax(1)
    found = inception_score([batch.bfloat16()]).mean
    coarse = batch.bfloat16().double()
    assert found == pytest.approx(kl_score((coarse / coarse.sum(1, keepdim=True)).tolist()), abs=1e-12)
    assert found != pytest.approx(kl_score(coarse.tolist()), abs=1e-7)


@pytest.mark.parametrize(
    ("batches", "splits", "said"),
    [
        ([rows(4, 3)], None, "4 of 4 rows are not probabilities"),
        ([torch.tensor([[0.5, 0.5], [1.5, -0.5]])], None, "1 of 2 rows"),
        ([torch.tensor([[0.5, 0.5], [0.5, 0.4], [0.5, 0.6]])], None, "2 of 3 rows"),
        ([torch.tensor([[math.nan, 1.0]])], None, "1 of 1 rows"),
        ([torch.ones(3)], None, r"shape \[N, K\], got \[3\]"),
        ([torch.ones(3, 1, dtype=torch.long)], None, "int64"),
        ([torch.full((2, 2), 0.5), torch.full((2, 4), 0.25)], None, r"of \[2, 4\] classes"),
        ([], None, "0 samples cannot be divided into 1 splits"),
        ([torch.full((9, 2), 0.5)], 10, "9 samples cannot be divided into 10 splits"),
        ([torch.full((9, 2), 0.5)], 0, "at least 1, got 0"),
    ],
)
def test_the_score_refuses(batches, splits, said):
    with pytest.raises(ValueError, match=said):
        inception_score(batches, splits)


# The protocol


def pooled(images: torch.Tensor) -> torch.Tensor:
    """[N, C, H, W] to [N, 64 C]."""
    return F.adaptive_avg_pool2d(images, 8).flatten(1)


class Generator:
    """Draws images as a function of their number in the sequence."""

    def __init__(self, channels: int = 1, size: int = 16) -> None:
        self.asked: list[int] = []
        self.weight = torch.ones((), requires_grad=True)
        self.shape = (channels, size, size)

    def __call__(self, number: int) -> torch.Tensor:
        self.asked.append(number)
        return self.weight * rows(number, *self.shape, seed=len(self.asked)).float().tanh()


def test_generated_images():
    draw = Generator()
    images = generated(draw, 10, 4)
    assert draw.asked == []  # drawn when wanted
    batches = list(images)
    assert [len(b) for b in batches] == [4, 4, 2] and draw.asked == [4, 4, 4]
    assert not any(batch.requires_grad for batch in batches) and torch.is_grad_enabled()
    whole = list(generated(Generator(), 10, 4, whole=True))
    assert [len(b) for b in whole] == [4, 4, 4]
    assert all(torch.equal(a, b[: len(a)]) for a, b in zip(batches, whole, strict=True))
    counts = [sum(map(len, generated(lambda n: torch.zeros(n, 1), 5000, whole=w))) for w in (False, True)]
    assert counts == [5000, 5120]
    assert [len(b) for b in generated(draw, 8, 4)] == [4, 4]
    for count, batch in ((0, 4), (4, 0)):
        with pytest.raises(ValueError, match="at least 1"):
            generated(draw, count, batch)
    with pytest.raises(ValueError, match="asked for 4 images and made 3"):
        list(generated(lambda n: torch.zeros(n - 1, 1), 8, 4))


def test_features_of_images():
    images = rows(10, 1, 16, 16)
    weight = torch.ones((), dtype=torch.float64, requires_grad=True)
    seen = []

    def feature(batch):
        features = weight * pooled(batch)
        seen.append(features.requires_grad)
        return features

    found = features_of(images.split(4), feature)
    assert found.count == 10 and seen == [False] * 3
    by_hand = images.unflatten(2, (8, 2)).unflatten(4, (8, 2)).mean((3, 5)).flatten(1)
    torch.testing.assert_close(found.mean, by_hand.mean(0), rtol=0, atol=1e-14)
    torch.testing.assert_close(found.covariance, by_hand.T.cov(), rtol=0, atol=1e-14)
    with pytest.raises(ValueError, match="made 3 rows of 4 images"):
        features_of(images.split(4), lambda batch: pooled(batch)[1:])
    seen.clear()
    with pytest.raises(ValueError, match="are of 65 dimensions, got 64"):
        features_of(images.split(4), feature, dimensions=65)
    assert len(seen) == 1  # said after the first batch


def test_a_result():
    real, fake = rows(30, 1, 16, 16), rows(20, 1, 16, 16, seed=1) * 2 + 1
    found = frechet(pooled, real.split(7), fake.split(5))
    a, b = of(pooled(real)), of(pooled(fake))
    assert found.distance == pytest.approx(frechet_distance(a, b), rel=1e-12)
    assert found.relative == pytest.approx(found.distance / pooled(real).var(0).sum().item(), rel=1e-12)
    assert (found.real, found.fake) == (30, 20)
    assert frechet(pooled, a, b).distance == pytest.approx(found.distance, rel=1e-12)
    assert dataclasses.replace(found, distance=0.0).distance == 0
    with pytest.raises(dataclasses.FrozenInstanceError):
        found.distance = 0.0
    row = json.loads(json.dumps(dataclasses.asdict(found), allow_nan=False))
    assert Result(**row) == found
    flat = frechet(pooled, [torch.zeros(4, 1, 8, 8)], [torch.ones(4, 1, 8, 8)])
    assert flat.distance == pytest.approx(64) and flat.relative is None


def test_a_reference_of_other_features_is_found_at_once():
    draw = Generator()
    with pytest.raises(ValueError, match="are of 2 dimensions, got 64"):
        frechet(pooled, normal([0.0, 0.0], torch.eye(2)), generated(draw, 100, 4))
    assert draw.asked == [4]


# The papers' FID


def resized(image: np.ndarray) -> np.ndarray:
    """clean-fid's definition: [H, W, 3] in 0..255, each channel by Pillow in float32."""
    channels = [Image.fromarray(np.ascontiguousarray(image[..., c]).astype(np.float32)) for c in range(3)]
    large = [np.asarray(c.resize((299, 299), Image.Resampling.BICUBIC)) for c in channels]
    return np.stack(large, 2).clip(0, 255).astype(np.float32)


class Stand(torch.nn.Module):
    """In place of clean-fid's InceptionV3W: some pixels of each channel."""

    def __init__(self, path, download=True, resize_inside=True):
        super().__init__()
        assert not download and not resize_inside
        with open(f"{path}/{room.CLEAN_NETWORK}") as file:
            self.scale = float(file.read())

    def forward(self, x):
        assert x.shape[1:] == (3, 299, 299) and x.dtype == torch.float32 and not self.training
        return x[:, :, 7::90, 31::130].flatten(1) * self.scale


@pytest.fixture
def stand(monkeypatch, tmp_path):
    """A clean-fid of the test's own; the path of its network."""

    def build_resizer(mode):
        assert mode == "clean"
        return resized

    for name, content in (
        ("cleanfid", {}),
        ("cleanfid.resize", {"build_resizer": build_resizer}),
        ("cleanfid.inception_torchscript", {"InceptionV3W": Stand}),
    ):
        module = types.ModuleType(name)
        vars(module).update(content)
        monkeypatch.setitem(sys.modules, name, module)
    path = tmp_path / room.CLEAN_NETWORK
    path.write_text("0.5")
    return path


def features_by_hand(images: torch.Tensor) -> torch.Tensor:
    pictures = ((images.double() + 1) / 2 * 255).float().expand(-1, 3, -1, -1).permute(0, 2, 3, 1).numpy()
    large = torch.from_numpy(np.stack([resized(picture) for picture in pictures]))
    return large.permute(0, 3, 1, 2)[:, :, 7::90, 31::130].flatten(1) * 0.5


@pytest.mark.parametrize("channels", [1, 3])
def test_fid_by_hand(channels, stand, tmp_path):
    images = torch.cat(list(generated(Generator(channels), 10, 4)))
    features = features_by_hand(images)
    real = tmp_path / "mine_clean_custom_na.npz"
    reference = of(rows(60, features.shape[1]) * 20 + 100)
    reference.save(real)
    draw = Generator(channels)
    found = fid(draw, real, network=stand, count=10, batch=4)
    assert draw.asked == [4, 4, 4]
    assert found.distance == pytest.approx(frechet_distance(reference, of(features)), rel=1e-6)
    assert found.relative == pytest.approx(found.distance / reference.covariance.trace().item(), rel=1e-12)
    assert (found.real, found.fake) == (60, 10)
    assert found.network == hashlib.sha256(b"0.5").hexdigest()
    assert found.statistics == hashlib.sha256(real.read_bytes()).hexdigest()
    assert "mode clean, 10 images in batches of 4, against mine_clean_custom_na.npz, not a" in found.protocol
    whole = fid(Generator(channels), real, network=clean_inception(stand), count=10, batch=4, whole=True)
    assert whole.fake == 12 and "12 images" in whole.protocol and whole.distance != found.distance


def test_fid_in_the_papers_numbers(stand, tmp_path):
    """5000 images in batches of 256, with a network of the test's own in place of the resizing."""
    network = room.Network(lambda images: pooled(images)[:, ::9], "pooled", "0" * 64)
    of(rows(60, 8)).save(tmp_path / "real.npz")
    draw = Generator(size=8)
    assert fid(draw, tmp_path / "real.npz", network=network).fake == 5000 and draw.asked == [256] * 20
    assert fid(Generator(size=8), tmp_path / "real.npz", network=network, whole=True).fake == 5120


def test_published_statistics_are_known(stand, tmp_path, monkeypatch):
    assert sorted(PUBLISHED) == ["celeba_valid", "cifar10_test", "fashion_test", "mnist_test"]
    assert [len(blob) for blob in PUBLISHED.values()] == [40] * 4
    path = tmp_path / "hello"
    path.write_bytes(b"hello\n")
    sha256, blob = room._digests(path)
    assert blob == "ce013625030ba8dba906f756967f9e9ca394464a"  # what `git hash-object` says of it
    assert sha256 == "5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03"
    real = tmp_path / "any.npz"
    of(rows(60, 36)).save(real)
    monkeypatch.setitem(PUBLISHED, "fashion_test", room._digests(real)[1])
    found = fid(Generator(), real, network=stand, count=4, batch=4)
    assert found.protocol.endswith("against fashion_test as published")


def test_images_that_do_not_fit(stand):
    network = clean_inception(stand)
    for images, said in (
        (torch.zeros(2, 2, 8, 8), r"\[N, 1 or 3, H, W\], got \[2, 2, 8, 8\]"),
        (torch.zeros(3, 8, 8), r"got \[3, 8, 8\]"),
        (torch.zeros(2, 1, 8, 8, dtype=torch.uint8), "uint8"),
        (torch.full((2, 1, 8, 8), 255.0), r"in \[-1, 1\], got 255 to 255"),
        (torch.full((2, 1, 8, 8), math.nan), r"in \[-1, 1\], got nan"),
    ):
        with pytest.raises(ValueError, match=said):
            network(images)
    assert network(torch.zeros(2, 1, 8, 8, dtype=torch.bfloat16)).shape == (2, 36)
    assert len(network(torch.zeros(0, 1, 8, 8))) == 0
    scale = torch.tensor(0.5, requires_grad=True)
    assert not network(scale * torch.ones(2, 1, 8, 8)).requires_grad


def test_pixels():
    images = torch.tensor([-1.0, -0.5, 0.25, 1.0]).reshape(1, 1, 2, 2)
    wanted = torch.tensor([0.0, 63.75, 159.375, 255.0]).reshape(1, 1, 2, 2)
    assert torch.equal(room.pixels(images), wanted.expand(1, 3, 2, 2))
    colour = rows(2, 3, 4, 4).tanh().float()
    torch.testing.assert_close(room.pixels(colour), (colour + 1) * 127.5)


def test_files_that_are_missing(stand, tmp_path):
    """A sentence each; nothing is fetched, and no generator asked."""
    real, draw = tmp_path / "real.npz", Generator()
    with pytest.raises(FileNotFoundError, match=r"real\.npz"):
        fid(draw, real, network=stand)
    of(rows(60, 36)).save(real)
    with pytest.raises(
        FileNotFoundError, match=r"nothing is fetched unasked: .*fetch=True for https://nvlabs"
    ):
        fid(draw, real)
    with pytest.raises(FileNotFoundError, match="there is no such file; it is published at https://nvlabs"):
        fid(draw, real, network=tmp_path / "elsewhere" / room.CLEAN_NETWORK, fetch=True)
    stand.rename(tmp_path / "inception.pt")
    with pytest.raises(ValueError, match=f"by the name {room.CLEAN_NETWORK} alone"):
        fid(draw, real, network=tmp_path / "inception.pt")
    stand.write_text("no number")
    with pytest.raises(ValueError, match="cannot be read as the network of clean-fid: could not convert"):
        fid(draw, real, network=stand)
    assert draw.asked == [] and not (tmp_path / "torch").exists()


def test_fetched_when_asked_alone(stand, tmp_path, monkeypatch):
    asked = []

    def fetched(url, path, hash_prefix=None, progress=True):
        asked.append((url, hash_prefix, progress))
        with open(path, "w") as file:
            file.write("2")

    monkeypatch.setattr(torch.hub, "download_url_to_file", fetched)
    network = clean_inception(fetch=True)
    assert asked == [(room.CLEAN_URL, None, False)]
    assert (tmp_path / "torch/hub/checkpoints" / room.CLEAN_NETWORK).read_text() == "2"
    assert network.sha256 == hashlib.sha256(b"2").hexdigest()
    clean_inception(fetch=True), clean_inception()  # it is there
    assert len(asked) == 1

    def broken(*_, **__):
        raise urllib.error.URLError("no way\nout")

    monkeypatch.setattr(torch.hub, "download_url_to_file", broken)
    (tmp_path / "torch/hub/checkpoints" / room.CLEAN_NETWORK).unlink()
    with pytest.raises(OSError, match=r"^https://nvlabs.*cannot be fetched: <urlopen error no way$"):
        clean_inception(fetch=True)


def test_without_the_extra(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "cleanfid", None)
    for name in ("cleanfid.resize", "cleanfid.inception_torchscript"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    with pytest.raises(ImportError, match=r"FID needs clean-fid .*pip install 'attsnn\[fid\]'"):
        clean_inception(tmp_path / room.CLEAN_NETWORK)
    monkeypatch.setitem(sys.modules, "torchvision.models", None)
    with pytest.raises(ImportError, match=r"network needs a torchvision that fits torch .*attsnn\[fid\]"):
        imagenet_inception()


def test_as_clean_fid_itself(tmp_path):
    """Its own generator loop, of a TorchScript that stands in for its network: the same features."""
    theirs = pytest.importorskip("cleanfid.fid", reason="extra fid: clean-fid is not installed")
    script = torch.jit.script(Script().eval())
    script.save(tmp_path / room.CLEAN_NETWORK)
    network = clean_inception(tmp_path / room.CLEAN_NETWORK)
    model = sys.modules["cleanfid.inception_torchscript"].InceptionV3W(str(tmp_path), download=False)
    for channels, size in ((1, 28), (3, 64)):
        draw = Generator(channels, size)

        def images(z, draw=draw):
            return (draw(len(z)).detach().expand(-1, 3, -1, -1) + 1) / 2 * 255

        wanted = theirs.get_model_features(
            images, model, "clean", 2, num_gen=5, batch_size=4, device="cpu", verbose=False
        )
        found = torch.cat([network(x) for x in generated(Generator(channels, size), 5, 4)])
        assert found.shape == (5, 2048) and np.abs(wanted).max() > 1e-2
        np.testing.assert_allclose(found.numpy(), wanted, rtol=0, atol=1e-5 * np.abs(wanted).max())
    assert "mode clean" in network.name and "unknown" not in network.name


class Script(torch.nn.Module):
    """As large as NVIDIA's in what it takes and gives."""

    def __init__(self):
        super().__init__()
        self.layers = torch.nn.Sequential(
            torch.nn.AvgPool2d(23), torch.nn.Flatten(), torch.nn.Linear(507, 2048)
        )

    def forward(self, x: torch.Tensor, return_features: bool = False) -> torch.Tensor:
        return self.layers(x)


# The papers' Inception score


class Small(torch.nn.Module):
    """In place of torchvision's Inception-v3."""

    def __init__(self, *, weights, transform_input, init_weights):
        super().__init__()
        assert weights is None and not transform_input and not init_weights
        self.weight = torch.nn.Parameter(torch.zeros(12, 1000))

    def forward(self, x):
        assert x.shape[1:] == (3, 299, 299) and not self.training
        return x[:, :, 3::150, 60::170].flatten(1) @ self.weight / 100


@pytest.fixture
def small(monkeypatch, tmp_path):
    """A torchvision of the test's own; the path of its network's weights."""
    models = types.ModuleType("torchvision.models")
    models.inception_v3 = Small
    monkeypatch.setitem(sys.modules, "torchvision", types.ModuleType("torchvision"))
    monkeypatch.setitem(sys.modules, "torchvision.models", models)
    path = tmp_path / room.IMAGENET_NETWORK
    torch.save({"weight": rows(12, 1000).float()}, path)
    return path


def test_the_papers_score(small):
    network = imagenet_inception(small)
    assert network.sha256 == hashlib.sha256(small.read_bytes()).hexdigest()
    for channels in (1, 3):
        images = torch.cat(list(generated(Generator(channels), 8, 4)))
        large = F.interpolate((images + 1) * 127.5, (299, 299), mode="bilinear", align_corners=False)
        taken = large.expand(-1, 3, -1, -1)[:, :, 3::150, 60::170].flatten(1)
        wanted = (taken @ rows(12, 1000).float() / 100).softmax(1)
        found = torch.cat([network(x) for x in images.split(4)])
        assert not found.requires_grad
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-8)
        score = inception_score(map(network, generated(Generator(channels), 8, 4)))
        assert score.mean == pytest.approx(sum(kl_score(x.tolist()) for x in wanted.split(4)) / 2, rel=1e-5)
        assert score.mean > 1.1 and score.std > 1e-3


def test_weights_that_are_none(small):
    for content in (b"no weights", b""):
        small.write_bytes(content)
        with pytest.raises(ValueError, match="no weights of torchvision's Inception-v3: ."):
            imagenet_inception(small)
    torch.save({"a": torch.zeros(1)}, small)
    with pytest.raises(
        ValueError, match="no weights of torchvision's Inception-v3: Error.* in loading"
    ) as error:
        imagenet_inception(small)
    assert "\n" not in str(error.value)
    torch.save({"weight": Hostile()}, small)
    with pytest.raises(ValueError, match="no weights of torchvision's Inception-v3: Weights only"):
        imagenet_inception(small)


def test_torchvision_has_that_network():
    """Its arguments, its address, and the names of its weights, which are those of the published file."""
    models = pytest.importorskip("torchvision.models", reason="extra vision: torchvision is not installed")
    assert models.Inception_V3_Weights.IMAGENET1K_V1.url == room.IMAGENET_URL
    with torch.device("meta"):
        model = models.inception_v3(weights=None, transform_input=False, init_weights=False)
    names = set(model.state_dict())
    assert {"Conv2d_1a_3x3.conv.weight", "AuxLogits.fc.weight", "fc.bias"} <= names
    assert model.fc.weight.shape == (1000, 2048) and not model.transform_input


def test_the_weights_are_not_fetched_unasked(small, monkeypatch):
    with pytest.raises(FileNotFoundError, match=r"fetch=True for https://download\.pytorch\.org"):
        imagenet_inception()
    asked = []

    def fetched(url, path, hash_prefix=None, progress=True):
        asked.append((url, hash_prefix))
        raise RuntimeError('invalid hash value (expected "0cc3c7bd", got "00")')

    monkeypatch.setattr(torch.hub, "download_url_to_file", fetched)
    with pytest.raises(OSError, match="cannot be fetched: invalid hash value"):
        imagenet_inception(fetch=True)
    assert asked == [(room.IMAGENET_URL, "0cc3c7bd")]
