"""Figures, and the report page: what it says, and what a browser makes of it."""

import base64
import json
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from browsing import fetched, wide

from attsnn import plot
from attsnn.__main__ import main
from attsnn._text import amount, joules
from attsnn.plot import page, reading, saying
from attsnn.plot.figures import colours
from attsnn.reference import PFAScores

pytest.importorskip("matplotlib", reason="extra plot")

LAYERS = ("features.0", "classifier")


def drawn(function, *args, **how):
    """The figure that a function of `plot` draws, by whose axes one can see what is in it."""
    from matplotlib.figure import Figure

    figure = Figure()
    function.__wrapped__(figure, *args, **how)
    return figure


def rows(epochs=3, start=0.5):
    return [
        {"epoch": e + 1, "train_loss": 1 / (e + 1), "train_accuracy": 0.9, "val_loss": 1.2 / (e + 1),
         "val_accuracy": start + 0.1 * e, "seconds": 1.5}
        for e in range(epochs)
    ]  # fmt: skip


def gate_scores():
    draw = torch.Generator().manual_seed(0)

    def some(*shape):
        return torch.rand(shape, generator=draw)

    return {
        "features.0": {"TA": some(5, 3), "CA": some(3, 8), "SA": some(3, 6, 7)},
        "classifier": {"TA": some(5, 3)},
        "maps": {"PFA": PFAScores(some(3, 2, 4, 4), some(3, 5, 2), some(3, 6, 2))},
    }


# ---- figures
# ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["png", "svg"])
def test_every_figure(tmp_path, form):
    """Written in both formats, the same bytes twice; nothing to draw is no file."""
    emitted = {"a": torch.rand(9, 4, 3, 3).round(), "b": torch.rand(9, 5).round()}
    steps = {"one": {"a": [0.1, 0.3], "b": [0.2, 0.2]}}
    how = {
        "curves": (rows(),),
        "compared": ({"one": rows(), "two": rows(5)},),
        "confusion": (torch.randint(0, 9, (4, 5)), list("abcd")),
        "energy": ([plot.Point("one", 0.9, 4e3), plot.Point("two", 0.8, 9e3)],),
        "gates": (gate_scores(),),
        "raster": (emitted,),
        "rates": ({"one": {"a": 0.2, "b": 0.2}}, steps),
    }
    for name, args in how.items():
        files = [getattr(plot, name)(tmp_path / f"{name}{i}.{form}", *args) for i in (1, 2)]
        data = [path.read_bytes() for (path,) in files]
        assert data[0] == data[1] and data[0][:4] == (b"\x89PNG" if form == "png" else b"<?xm"), name
    for name in ("compared", "energy", "gates", "raster", "rates"):
        assert getattr(plot, name)(tmp_path / f"none.{form}", {}) == []
    assert not list(tmp_path.glob("none.*"))
    with pytest.raises(ValueError, match=r"path must end in \.png or \.svg, got 'a\.pdf'"):
        plot.energy(tmp_path / "a.pdf", how["energy"][0])


def test_gates_hold_the_scores():
    from attsnn.plot.gates import KINDS, _gates, by_kind

    found = gate_scores()
    parts = {name: by_kind(scores) for name, scores in found.items()}
    kinds = [kind for kind in KINDS if any(kind in part for part in parts.values())]
    figure = drawn(_gates, parts, kinds, torch.rand(5, 2, 12, 14), "what")
    places = [(row, kind) for row in range(3) for kind in kinds]
    shown = dict(zip(places, figure.axes, strict=False))  # behind them stand the colour bars
    line = shown[0, "TA"].get_lines()[0].get_ydata()
    assert np.allclose(line, found["features.0"]["TA"].mean(1))
    bars = [bar.get_height() for bar in shown[0, "CA"].patches]
    assert np.allclose(bars, found["features.0"]["CA"].mean(0))
    seen, space = shown[0, "SA"].get_images()
    assert np.allclose(space.get_array(), found["features.0"]["SA"][0]) and seen.get_array().shape == (12, 14)
    spatial, temporal, channel = (factor[0] for factor in found["maps"]["PFA"])
    assert np.allclose(shown[2, "PFA time"].get_images()[0].get_array(), temporal.T)
    whole = torch.einsum("rhw,tr,cr->tchw", spatial, temporal, channel) / 2
    assert np.allclose(shown[2, "PFA map"].get_images()[0].get_array(), whole.mean((0, 1)), atol=1e-6)
    assert not shown[1, "SA"].get_images()


def test_rates_hold_the_numbers():
    from attsnn.plot.spikes import _rates

    networks = {"plain": {"a": 0.25, "b": 0.5}, "gated": {"a": 0.125}}
    steps = {"plain": {"a": [0.2, 0.3], "b": [0.4, 0.6]}, "gated": {"a": [0.1, 0.15]}}
    left, right = drawn(_rates, networks, steps, ["a", "b"], colours(networks)).axes
    assert [bar.get_width() for bar in left.patches] == [25, 50, 12.5, 0]
    lines = {line.get_label(): line.get_ydata().tolist() for line in right.get_lines()}
    assert lines["plain"] == pytest.approx([30, 45]) and lines["gated"] == pytest.approx([10, 15])
    shades = {line.get_label(): line.get_color() for line in right.get_lines()}
    assert shades["plain"] == "#0072b2" and shades["gated"] == "#d55e00"


def test_a_network_has_one_colour_in_every_figure():
    assert colours(["b"], ["a", "b"]) == {"b": "#d55e00"} and colours(["b"])["b"] == "#0072b2"


def test_several_trainings():
    from attsnn.plot.training import _compared, _energy

    left, right = drawn(_compared, {"one": rows(), "two": rows(4, 0.2)}, colours(["one", "two"])).axes
    assert [line.get_label() for line in left.get_lines()][1::2] == ["one", "two"]
    assert right.get_lines()[3].get_ydata().tolist() == pytest.approx([20, 30, 40, 50])
    images = [{"epoch": 1, "train_loss": 1.0, "train_error": 0.5, "val_loss": 1.0, "val_error": 0.6}]
    left, right = drawn(_compared, {"one": rows(), "vae": images}, colours(["one", "vae"])).axes
    assert len(left.get_lines()) == 4 and len(right.get_lines()) == 2
    points = [plot.Point("one", 0.9, 4e3), plot.Point("two", 0.8, 9e3)]
    (axes,) = drawn(_energy, points, "papers", colours(["one", "two"])).axes
    assert [point.get_offsets().tolist() for point in axes.collections] == [[[4.0, 90.0]], [[9.0, 80.0]]]
    assert [text.get_text() for text in axes.texts] == ["one", "two"]


# ---- the page
# ------------------------------------------------------------------------------------------


def profile_of(rate, gates=0.0):
    def layer(name, share):
        energy = {"papers": 2e3 * share, "operations": 3e3 * share, "memory": 4e5 * share, "lemaire": 1e5}
        return {"layer": name, "output": [4, 3, 3], "parameters": 120, "neurons": 36, "spikes": 360 * share,
                "rate": share, "dense": 9e5, "synaptic": 9e5 * share, "macs": 10.0, "additions": 1e6,
                "multiplications": 2e3, "energy": energy}  # fmt: skip

    found = [layer(name, rate * (i + 1)) for i, name in enumerate(LAYERS)]
    total = {**layer("total", 1.5 * rate), "output": [], "spikes": sum(row["spikes"] for row in found)}
    total["energy"] = {k: sum(row["energy"][k] for row in found) for k in total["energy"]}
    return {"samples": 40, "nasar": 1.5 * rate, "r_ee_twin": 12.5, "gate_macs": gates,
            "costs_pj": {"e_mac": 4.6, "e_ac": 0.9}, "rows": found, "total": total,
            "rate_by_step": {name: [rate, rate * 2] for name in LAYERS}}  # fmt: skip


@pytest.fixture(scope="module")
def attention_png(tmp_path_factory):
    (path,) = plot.gates(tmp_path_factory.mktemp("gates") / "attention.png", gate_scores())
    return path.read_bytes()


@pytest.fixture
def runs(tmp_path, attention_png):
    """Two of them, as trainers leave them, and what is hostile to a page in their words."""

    def make(name, attention, accuracy, rate, gates, correct):
        run = tmp_path / name
        saved = run / "ckpt-20"
        saved.mkdir(parents=True)
        recipe = {"attention": attention, "lr": 0.1, "name": name, "note": "<script>alert('no')</script>"}
        machine = {"system": "Linux", "threads": 2, "gpus": []}
        config = {"recipe": recipe, "versions": {"torch": "2.13.0"}, "machine": machine}
        config["command"] = f"python train/dvs.py samples --name '{name}' & <b>"
        (run / "config.json").write_text(json.dumps(config))
        found = rows()
        found[0]["health"] = found[1]["health"] = "2 of 2 layers are silent."
        found.append({**found[-1], "test_accuracy": accuracy, "test_loss": 0.3, "final": True})
        (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in found) + '{"cut')
        (run / "profile.json").write_text(json.dumps(profile_of(rate, gates)))
        counts = [[correct, 20 - correct, 0], [1, 19, 0]]
        (run / "confusion.json").write_text(json.dumps({"classes": ["left", "<right>"], "counts": counts}))
        (run / "exit.json").write_text('{"code": 0, "said": ""}')
        (run / "best").write_text("ckpt-20")
        files = {"model.safetensors": {"bytes": 1234, "sha256": "ab" * 32}}
        (saved / "manifest.json").write_text(json.dumps({"files": files}))
        data = {"identity": "the same"}
        (saved / "state.json").write_text(json.dumps({"position": {"epoch": 3}, "data": data}))
        (run / "attention.png").write_bytes(attention_png)
        return run

    return [make("plain", None, 0.9, 0.3, 0.0, 17), make("samples", "TCSA", 0.925, 0.1, 1e5, 18)]


class Tags(HTMLParser):
    """What a page holds: its tags with their attributes, and its text."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.text = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text.append(data)


def words(text):
    return re.sub(r"\s+", " ", " ".join(Tags(re.sub(r"<(style|script)>.*?</\1>", "", text, flags=re.S)).text))


def test_what_the_page_says(runs, capsys):
    assert main(["report", *map(str, runs)]) == 0
    out = runs[1] / "report.html"
    assert capsys.readouterr().out == f"report: {out}\n"
    text = out.read_text()
    said = words(text)
    for part in (
        "samples against plain",
        "Is it better? yes, but by no more than chance test accuracy 92.50%, plain 90.00%: +2.50 points",
        "Is it sparser? yes 108 spikes a sample, plain 324: -67%; NASAR 0.150 against 0.450",
        "Where? 2 of 2 layers fire less",
        "Why? r_EE 3.00 over plain 600 nJ a sample, plain 1.8 µJ, by the papers' model: the gates add 460 nJ",
        "epochs 1 to 2 of 3: 2 of 2 layers are silent.",
        "attention *",
        "most often taken for",
        "ckpt-20 (best)",
        "ab" * 32,
        "exit code 0",
        "python train/dvs.py samples --name 'samples' & <b>",
    ):
        assert part in said, part
    assert "different data" not in said
    page_of = Tags(text)
    sources = [attrs["src"] for tag, attrs in page_of.tags if tag == "img"]
    assert len(sources) == 7 and all(source.startswith("data:image/") for source in sources)
    assert all(attrs.get("alt") for tag, attrs in page_of.tags if tag == "img")
    assert "<script>alert" not in text and not re.search(r'(src|href)="(https?:)?//', text)
    assert sum(tag == "script" for tag, _ in page_of.tags) == 1
    for source in sources:
        assert base64.b64decode(source.split(",")[1])[:4] in (b"\x89PNG", b"<?xm")


def test_what_is_not_there_is_named(runs, tmp_path, capsys):
    """One run, unfinished, without a profile; two of one name; folders that are none."""
    for name in ("profile.json", "confusion.json", "exit.json", "attention.png", "metrics.jsonl"):
        (runs[0] / name).unlink()
    assert main(["report", str(runs[0]), "--out", str(tmp_path / "one.html")]) == 0
    said = words((tmp_path / "one.html").read_text())
    assert said.count("Not here:") == 3 and "nothing was measured yet" in said
    assert "Side by side" not in said
    twin = tmp_path / "other" / "samples"
    shutil.copytree(runs[1], twin)
    (twin / "ckpt-20" / "state.json").write_text('{"data": {"identity": "another"}}')
    assert main(["report", str(runs[1]), str(twin), "--out", str(tmp_path / "two.html")]) == 0
    said = words((tmp_path / "two.html").read_text())
    assert str(twin) in said and "They were trained on different data" in said
    capsys.readouterr()
    assert main(["report", str(tmp_path)]) == 2
    assert "is not a run directory: it has no config.json that can be read" in capsys.readouterr().err
    assert main(["report", str(tmp_path / "nowhere")]) == 2
    assert "there is no such folder" in capsys.readouterr().err
    assert main(["report", str(runs[1]), "--out", str(tmp_path / "no" / "folder.html")]) == 1
    assert "Cannot write" in capsys.readouterr().err


def test_answers(runs):
    """Better and worse, by more than chance and by less; equal; sparser and not; errors of images."""
    base, run = (reading.read(path) for path in runs)
    assert saying.base_of([run, base]) is base

    def better(one, other, count=None):
        mine = reading.Read(**{**vars(run), "rows": [{"epoch": 1, "final": True, **one}]})
        theirs = reading.Read(**{**vars(base), "rows": [{"epoch": 1, "final": True, **other}]})
        if count:
            big = {"classes": ["a"], "counts": [[count, 0]]}
            mine, theirs = (reading.Read(**{**vars(r), "confusion": big}) for r in (mine, theirs))
        found = [v for v in saying.verdicts(mine, theirs) if v.question == "Is it better?"]
        return found[0].answer if found else None

    assert better({"test_accuracy": 0.9}, {"test_accuracy": 0.8}, 10_000) == "yes"
    assert better({"test_accuracy": 0.8}, {"test_accuracy": 0.9}, 10_000) == "no"
    assert better({"test_accuracy": 0.9}, {"test_accuracy": 0.9}) == "equal"
    assert better({"test_accuracy": 0.85}, {"test_accuracy": 0.9}, 40) == "no, but by no more than chance"
    assert better({"test_error": 0.1}, {"test_error": 0.2}) == "yes"
    assert better({"test_error": 0.1}, {"test_accuracy": 0.2}) is None
    denser = saying.verdicts(base, run)
    assert {v.question: v.answer for v in denser}["Is it sparser?"] == "no"
    assert saying.energy(2.5e6) == "2.5 mJ" and amount(1234.0) == "1.23 k"
    assert saying.energy(-1500.0) == "-1.5 µJ" and joules(1500.0) == "1.5 uJ"  # a terminal may know no µ
    assert saying.energy(None) == joules(float("nan")) == amount(None) == "-" and amount(0) == "0"


def test_epochs_with_one_sentence_stand_together():
    found = page._spans([(1, "a"), (2, "a"), (3, "b"), (5, "b")])
    assert found == [("epochs 1 to 2", "a"), ("epoch 3", "b"), ("epoch 5", "b")]


def test_without_matplotlib(runs, tmp_path):
    """Tables and the pictures that there are; one sentence says what is missing."""
    code = "import sys; sys.modules['matplotlib'] = None; from attsnn.__main__ import main; sys.exit(main())"
    words_of = [sys.executable, "-c", code, "report", *map(str, runs), "--out", str(tmp_path / "a.html")]
    subprocess.run(words_of, check=True, capture_output=True)
    said = words((tmp_path / "a.html").read_text())
    assert "matplotlib is not installed" in said and "Is it sparser? yes" in said


# ---- in a browser
# ------------------------------------------------------------------------------------------


def test_in_a_browser(runs, browser, tmp_path):
    """Nothing fails and nothing is fetched; tables sort by mouse and by keyboard; no width spills over."""
    out = tmp_path / "report.html"
    page.report(runs, out)
    browser.get(out.as_uri())
    ask = browser.execute_script
    assert ask("return [...document.images].every(i => i.complete && i.naturalWidth > 0)")

    find = "[...document.querySelectorAll('table')].find(t => t.caption.textContent.startsWith('Layers'))"

    def column(place):
        return ask(f"return [...{find}.tBodies[0].rows].map(r => r.cells[{place}].textContent)")

    assert column(3) == ["30.00%", "60.00%", "45.00%"] and column(0)[-1] == "total"
    button = ask(f"return {find}.tHead.rows[0].cells[3].firstElementChild")
    button.click()
    assert column(0) == ["features.0", "classifier", "total"]
    assert ask("return arguments[0].parentElement.getAttribute('aria-sort')", button) == "ascending"
    button.send_keys("\n")  # the keyboard's Enter
    assert column(0) == ["classifier", "features.0", "total"]
    assert ask("return arguments[0].parentElement.getAttribute('aria-sort')", button) == "descending"
    name = ask(f"return {find}.tHead.rows[0].cells[0].firstElementChild")
    name.click()
    assert column(0) == ["classifier", "features.0", "total"]  # by letters
    assert ask("return arguments[0].parentElement.getAttribute('aria-sort')", button) == "none"

    grounds = {}
    for width, dark in ((1200, False), (1200, True), (390, False)):
        wide(browser, width, dark)
        assert ask("return document.documentElement.scrollWidth") <= width
        grounds[dark] = ask("return getComputedStyle(document.body).backgroundColor")
        browser.save_screenshot(str(tmp_path / f"{width}-{dark}.png"))
        assert (tmp_path / f"{width}-{dark}.png").stat().st_size > 20_000
    assert grounds[False] == "rgb(255, 255, 255)" and grounds[True] != grounds[False]
    wide(browser, 800, dark=True, media="print")
    assert ask("return getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert ask("return getComputedStyle(document.querySelector('nav')).display") == "none"
    wide(browser, 1200)

    assert browser.get_log("browser") == []
    assert fetched(browser) == []
    assert ask("return document.documentElement.lang") == "en"
    assert ask("return document.querySelectorAll('h1').length") == 1
    assert ask("return [...document.querySelectorAll('.scroll')].every(e => e.tabIndex === 0 && e.ariaLabel)")


def test_the_page_is_in_the_package():
    assert (Path(page.__file__).parent / "page.html").is_file()
