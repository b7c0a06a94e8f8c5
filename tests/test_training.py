"""`engine.Training`: options that contradict each other, what they build, what "auto" means, which checkpoint
is chosen, and a run that is loaded again.
"""

import math
import runpy
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from test_engine import Net, Recordings
from torch import nn

from attsnn import engine, models
from attsnn.engine import trial

pytestmark = pytest.mark.usefixtures("without_curves")


@dataclass(frozen=True)
class Options(engine.Training):
    recipe: str = "options"
    knob: int = 3


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"lr": -1}, "--lr must be at least 0, got -1"),
        ({"step_epochs": 0}, "--step-epochs must be at least 1, got 0"),
        ({"ema": 1.0}, "--ema must be at least 0 and below 1"),
        ({"clip": 0.0}, "--clip must be above 0"),
        ({"eval": True, "dry_run": True}, "--eval and --dry-run are different commands"),
        ({"checkpoint": "x"}, "--checkpoint is for --eval: --init-from starts"),
        ({"name": "a", "resume": "runs/b"}, "leave --name out"),
        (
            {"schedule": "plateau", "warmup_epochs": 2},
            "--warmup-epochs is for --schedule cosine and step, not",
        ),
        ({"schedule": "step", "lr_end": 1e-5}, "--lr-end is for --schedule cosine, not step"),
        ({"epochs": 1, "schedule_every": "epoch"}, "rate of 0.*--schedule-every step"),
    ],
)
def test_options_that_cannot_be(given, says):
    with pytest.raises(engine.UsageError, match=says):
        Options(**given).check()
    Options().check()


def rates(t: Options, epochs: int, steps: int, period: int | None = None) -> list[float]:
    optimizer = torch.optim.SGD(nn.Linear(1, 1).parameters(), t.lr)
    schedule, found = t.scheduler(optimizer, steps, period), []
    for _ in range(epochs * steps):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return found


def test_a_cosine_ends_where_asked():
    found = rates(Options(epochs=4, lr=0.4, lr_end=0.1), 4, 5)
    assert found == pytest.approx([0.1 + 0.15 * (1 + math.cos(math.pi * s / 20)) for s in range(20)])
    held = rates(Options(epochs=4, lr=0.4, lr_end=0.1, schedule_every="epoch"), 4, 5)
    assert held[-5:] == pytest.approx([0.1] * 5) and held[0] == pytest.approx(held[4]) != held[5]


def test_steps_of_a_staircase():
    """x 0.1 behind every 2 of 5 epochs; warmed up in the first."""
    found = rates(Options(epochs=5, lr=1.0, schedule="step", step_epochs=2, warmup_epochs=1), 5, 3)
    assert found == pytest.approx([0.25, 0.5, 0.75] + [1.0] * 3 + [0.1] * 6 + [0.01] * 3)


def test_a_rate_that_stays():
    assert rates(Options(epochs=3, lr=0.5, schedule="constant"), 3, 4) == [0.5] * 12


def test_a_shorter_period_rises_again():
    found = rates(Options(epochs=4, lr=1.0, schedule_every="epoch"), 4, 2, period=2)
    assert found == pytest.approx([0.5, 0.5, 0.0, 0.0, 0.5, 0.5, 1.0, 1.0], abs=1e-12)


@pytest.mark.parametrize(("name", "kind"), [("sgd", "SGD"), ("adam", "Adam"), ("adamw", "AdamW")])
def test_optimisers(name, kind):
    optimizer = Options(optimizer=name, lr=0.03, weight_decay=0.2).optimiser(Net())
    assert type(optimizer).__name__ == kind
    assert [(g["lr"], g["weight_decay"]) for g in optimizer.param_groups] == [(0.03, 0.2)]


def test_recipes_of_older_versions_mean_what_they_meant():
    """What was no option then has its default, by which nothing changed; "auto" of a layout was a GPU's."""
    old = {"lr": 0.5, "channels_last": "auto", "gone": 1}
    today = Options.today(old)
    assert today["lr"] == 0.5 and today["knob"] == 3 and today["gone"] == 1
    assert today["channels_last"] == "gpu" and today["lr_end"] == 0
    assert Options.today({**old, "lr_end": 0})["channels_last"] == "auto"


# ---- auto
# ------------------------------------------------------------------------------------------


def seconds_of(times: dict):
    """A trial whose steps take what `times` says of (precision, channels_last)."""
    asked = []

    def make(t):
        asked.append((t.precision, t.channels_last))
        return engine.Step(None, lambda: (times[t.precision, t.channels_last], 0.0))

    return make, asked


TIMES = {("fp32", "no"): 4.0, ("fp32", "yes"): 3.0, ("bf16", "no"): 2.0, ("bf16", "yes"): 1.0}


@pytest.mark.parametrize(
    ("native", "given", "wanted"),
    [
        (True, ("auto", "auto"), ("bf16", "yes")),
        (True, ("auto", "no"), ("bf16", "no")),
        (True, ("fp32", "auto"), ("fp32", "yes")),
        (False, ("auto", "auto"), ("fp32", "yes")),
        (False, ("auto", "no"), ("fp32", "no")),
    ],
)
def test_auto_is_the_fastest_of_what_the_processor_has(monkeypatch, capsys, native, given, wanted):
    monkeypatch.setattr(trial, "native_bf16", lambda device: native)
    make, asked = seconds_of(TIMES)
    torch.manual_seed(3)
    t = engine.settled(Options(precision=given[0], channels_last=given[1]), engine.Processes(), None, make)
    assert (t.precision, t.channels_last) == wanted
    assert native or all(precision == "fp32" for precision, _ in asked)
    assert "ms a step" in capsys.readouterr().out
    after = torch.rand(3)
    torch.manual_seed(3)
    assert torch.equal(after, torch.rand(3))  # what was drawn for it changes nothing


def test_a_run_that_goes_on_keeps_what_was_settled():
    def never(t):
        raise AssertionError("measured again")

    recorded = {"precision": "bf16", "channels_last": "no"}
    t = Options(precision="auto", channels_last="auto")
    t = engine.settled(t, engine.Processes(), recorded, never)
    assert (t.precision, t.channels_last) == ("bf16", "no")
    given = Options(precision="fp16", channels_last="gpu")
    assert engine.settled(given, engine.Processes(), recorded, never) == given


@pytest.mark.parametrize(("native", "wanted"), [(True, ("bf16", "yes")), (False, ("fp32", "no"))])
def test_auto_on_a_gpu_measures_nothing(monkeypatch, native, wanted):
    monkeypatch.setattr(trial, "native_bf16", lambda device: native)
    gpu = engine.Processes(device=torch.device("cuda"))
    t = engine.settled(Options(precision="auto", channels_last="auto"), gpu, None, lambda t: None)
    assert (t.precision, t.channels_last) == wanted


# ---- validation
# ------------------------------------------------------------------------------------------


def test_held_out_by_class():
    """The same share of each class, and of one that has a single sample nothing."""
    labels = np.array([0] * 20 + [1] * 10 + [2])
    kept, held = engine.held_out(labels, 0.2, 5)
    assert sorted([*kept, *held]) == [*range(31)] and np.bincount(labels[held], minlength=3).tolist() == [
        4,
        2,
        0,
    ]
    assert [a.tolist() for a in engine.held_out(labels, 0.2, 5)] == [kept.tolist(), held.tolist()]
    assert engine.held_out(labels, 0.2, 6)[1].tolist() != held.tolist()
    assert engine.held_out(labels, 0, 5)[1].size == 0


def test_held_out_by_person():
    """Whole ones; at least one, though it is more than the share."""
    people = np.repeat([4, 7, 9, 11], [5, 3, 6, 2])
    for fraction, count in ((0.1, 1), (0.5, 2)):
        kept, held = engine.held_out(np.arange(16) % 2, fraction, 1, people)
        assert len(set(people[held])) == count and not set(people[held]) & set(people[kept])
        assert sorted([*kept, *held]) == [*range(16)]


@pytest.mark.parametrize("fraction", [1.0, -0.1, math.nan])
def test_held_out_of_no_share(fraction):
    with pytest.raises(ValueError, match="at least 0 and below 1"):
        engine.held_out(np.zeros(9, int), fraction, 0)


# ---- a run
# ------------------------------------------------------------------------------------------


def begun(path, **given):
    """A run of `Options` on noisy signals, as a task prepares it."""
    t = Options(
        **{
            "epochs": 3,
            "batch": 8,
            "workers": 0,
            "lr": 0.01,
            "name": path.name,
            "runs_dir": path.parent,
            **given,
        }
    )
    epochs: list[int] = []

    def prepare(t):
        engine.seed_all(t.seed)
        model = Net()
        measure = engine.Measure("test", engine.in_order(Recordings(40, windows=3), 16), "abcd")
        batches = engine.Batches(Recordings(), t.batch, t.seed, key=lambda i, s: (i, s))
        data, build = {"identity": "signals"}, {}
        parts = model, batches, engine.one_hot_mse, measure, "test_loss", data, build
        return engine.Prepared(*parts, lowest=True, on_epoch=epochs.append)

    return engine.begin(t, engine.Processes(), prepare, lambda t: None), epochs


def test_the_lowest_loss_is_chosen(tmp_path, capsys):
    run, epochs = begun(tmp_path / "run")
    engine.fit(*run.parts, **run.rules)
    losses = [row["test_loss"] for row in run.run.rows()]
    best = engine.find_checkpoint(tmp_path / "run").state["position"]
    assert best["best"] == min(losses) and epochs == [0, 1, 2]
    assert losses[best["epoch"] - 1] == min(losses) < max(losses)
    said = capsys.readouterr().out
    assert "the checkpoint of the lowest test_loss is the result" in said
    assert f"its lowest test_loss is {min(losses):.4g}, of epoch {best['epoch']}" in said


def test_more_epochs_are_refused_with_the_way(tmp_path):
    run, _ = begun(tmp_path / "run")
    engine.fit(*run.parts, **run.rules)
    with pytest.raises(engine.UsageError, match=r"epochs: 3, now 9\nMore epochs, .*--init-from .*run"):
        begun(tmp_path / "run", resume="auto", epochs=9)
    with pytest.raises(engine.UsageError) as refused:
        begun(tmp_path / "run", resume="auto", knob=4)
    assert "--init-from" not in str(refused.value)


def test_a_run_is_loaded_from_python(tmp_path):
    """With its averaged weights, in evaluation mode; keywords of the model may be others."""
    keywords = {
        "num_classes": 3,
        "width": 0.125,
        "membrane_dtype": torch.float32,
        "channels": [16, 16, 16, 16],
    }
    model = models.create("att_ms_resnet18", **keywords)
    averaged = {f"module.{k}": v + 1 if v.is_floating_point() else v for k, v in model.state_dict().items()}
    run = engine.Run.open(
        tmp_path,
        "run",
        {},
        data={"classes": ["cat", "dog", "cow"]},
        build={
            "model": engine.described("att_ms_resnet18", keywords),
            "transform": engine.described("grey_transform", {"size": 28}),
        },
    )
    run.save(1, model.state_dict(), {"state": {}, "param_groups": []}, {}, True, averaged)
    found = engine.load(tmp_path / "run")
    assert found.classes == ("cat", "dog", "cow") and not found.model.training
    for name, value in found.model.state_dict().items():
        assert torch.equal(value, averaged[f"module.{name}"])
    assert found.model.plan.membrane_dtype is torch.float32 and found.transform.__name__ == "transform"
    assert engine.load(tmp_path / "run", steps=3).model.plan.steps == 3
    with pytest.raises(engine.CheckpointError, match="cannot be made again: .*no keyword depth"):
        engine.load(tmp_path / "run", depth=3)
    with pytest.raises(engine.UsageError, match="neither a checkpoint"):
        engine.load(tmp_path)


@pytest.mark.parametrize(
    ("build", "says"),
    [
        ({}, "an older version wrote it"),
        ({"model": {"name": "x", "keywords": {}}, "transform": {}}, "no model 'x'"),
        (
            {
                "model": {"name": "fmnist_baseline", "keywords": {}},
                "transform": {"name": "os", "keywords": {}},
            },
            "attsnn.data has no os",
        ),
    ],
)
def test_what_cannot_be_loaded_says_so(tmp_path, build, says):
    """A checkpoint names functions of attsnn alone: it may come from anywhere."""
    run = engine.Run.open(tmp_path, "run", {}, build=build)
    run.save(1, {"a": torch.zeros(1)}, {"state": {}, "param_groups": []}, {})
    with pytest.raises(engine.CheckpointError, match=says):
        engine.load(tmp_path / "run")


def test_the_example_of_the_documentation_trains(tmp_path, monkeypatch, capsys):
    """docs/own_training.py, and once more with RESUME."""
    monkeypatch.chdir(tmp_path)
    example = runpy.run_path(str(Path(__file__).parent.parent / "docs" / "own_training.py"))
    example["main"]()
    assert engine.Run(tmp_path / "runs" / "own", {}).rows()[-1]["val_accuracy"] > 0.8
    example["main"].__globals__["RESUME"] = "auto"
    example["main"]()
    assert "Resuming from" in capsys.readouterr().out
