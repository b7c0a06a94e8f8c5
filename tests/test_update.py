"""What an update does with its gradients, and the schedule of its rate."""

import math

import pytest
import torch
from test_engine import Net, stopping_at, train
from torch import nn

from attsnn import engine
from attsnn.engine import checkpoint

pytestmark = pytest.mark.usefixtures("without_curves")

PARTS = 4  # of the schedule: epochs of 5 steps


def rates(**how) -> list[float]:
    """The rates of 20 steps, from 0.4."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], 0.4)
    schedule = engine.cosine(optimizer, 20, **how)
    found = []
    for _ in range(20):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return found


def test_cosine_of_every_step():
    assert rates() == pytest.approx([0.2 * (1 + math.cos(math.pi * s / 20)) for s in range(20)], abs=1e-15)


def test_cosine_of_every_epoch_is_the_published_one():
    """In epoch e, from 1: lr (1 + cos(pi e / 4)) / 2, so that the last one has 0."""
    wanted = [0.2 * (1 + math.cos(math.pi * e / PARTS)) for e in range(1, 5) for _ in range(5)]
    assert rates(hold=5) == pytest.approx(wanted, abs=1e-15) and rates(hold=5)[-5:] == [0] * 5


def test_a_short_period_rises_again():
    """The published fine-tuning: 0 after the period, back at the rate after two."""
    wanted = [0.2 * (1 + math.cos(math.pi * e)) for e in range(1, 5) for _ in range(5)]
    assert rates(hold=5, period=5) == pytest.approx(wanted, abs=1e-15)
    assert rates(hold=5, period=5)[::5] == pytest.approx([0, 0.4, 0, 0.4], abs=1e-15)


def test_warm_up_meets_the_cosine():
    plain, warm = rates(), rates(warmup=4)
    assert warm[:4] == pytest.approx([plain[s] * (s + 1) / 5 for s in range(4)], abs=1e-15)
    assert warm[4:] == plain[4:] and all(a < b for a, b in zip(warm[:4], warm[1:5], strict=True))


def scaled(model: nn.Module, scale: float) -> tuple[engine.Update, torch.optim.Optimizer]:
    update = engine.Update(
        clip=1.0, scaler=torch.amp.GradScaler("cpu", init_scale=scale), ema=engine.ema_of(model, 0.9)
    )
    return update, torch.optim.SGD(model.parameters(), 0.1)


def step(update, optimizer, model, slope: float) -> tuple[float, bool]:
    """An update from a loss whose gradient is `slope` in every weight: its norm, whether it was accepted."""
    optimizer.zero_grad()
    update.backward(sum((slope * p).sum() for p in model.parameters()))
    norm = update.gradient_norm(optimizer, model).item()
    accepted = update.accepts(norm)
    if accepted:
        update.apply(optimizer, model, norm)
    return norm, accepted


def test_an_overflow_leaves_the_step_out_and_halves_the_scale():
    model = nn.Linear(2, 1, bias=False)
    update, optimizer = scaled(model, 8.0)
    before = model.weight.clone()
    steep = torch.finfo(torch.float32).max / 4  # times 8 it is infinite, times 4 it is not
    assert step(update, optimizer, model, steep) == (math.inf, True)
    assert torch.equal(model.weight, before) and update.scaler.get_scale() == 4
    assert torch.equal(update.ema.module.weight, before)
    norm, _ = step(update, optimizer, model, 3.0)
    assert norm == pytest.approx(3 * math.sqrt(2))  # at the loss's own scale
    clipped = before - 0.1 / math.sqrt(2)
    assert torch.allclose(model.weight, clipped, rtol=0, atol=1e-6) and update.scaler.get_scale() == 4


def test_a_scale_that_cannot_fall_ends_the_run():
    model = nn.Linear(2, 1, bias=False)
    update, optimizer = scaled(model, 4.0)
    before = model.weight.clone()
    accepted = [step(update, optimizer, model, math.nan)[1] for _ in range(3)]
    assert accepted == [True, True, False] and update.scaler.get_scale() == 1
    assert torch.equal(model.weight, before)


def test_a_loss_that_is_not_finite_ends_the_run_whatever_the_scale(tmp_path):
    model, calls = Net(), []

    def loss(model, batch):
        calls.append({k: v.clone() for k, v in model.named_parameters()})
        value, metrics = engine.one_hot_mse(model, batch)
        return value * (math.nan if len(calls) == 3 else 1), metrics

    with pytest.raises(engine.NonFiniteError, match="of step 3 .*the loss is nan"):
        train(
            tmp_path / "run", model=model, loss=loss, update=engine.Update(scaler=torch.amp.GradScaler("cpu"))
        )
    assert all(torch.equal(value, calls[-1][name]) for name, value in model.named_parameters())


def test_averaged_weights():
    """The first step's weights, then decay by at most (1 + n) / (10 + n); running statistics too."""
    model = nn.BatchNorm1d(1)
    averaged, wanted = engine.ema_of(model, 0.3), None
    for steps, value in enumerate((1.0, 3.0, 2.0, 7.0, 5.0)):
        with torch.no_grad():
            model.weight.fill_(value)
            model.running_mean.fill_(-value)
        averaged.update_parameters(model)
        decay = min(0.3, (1 + steps) / (10 + steps))
        wanted = value if steps == 0 else decay * wanted + (1 - decay) * value
        assert averaged.module.weight.item() == pytest.approx(wanted, rel=1e-6)
        assert averaged.module.running_mean.item() == pytest.approx(-wanted, rel=1e-6)


def test_averaged_weights_and_scale_are_restored(tmp_path):
    """A run that is stopped in the second epoch, in which the scale has grown."""

    def update_of(model):
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0, growth_interval=5)
        return engine.Update(scaler=scaler, ema=engine.ema_of(model, 0.9))

    def run(name, **how):
        engine.seed_all(0)
        model = Net()
        train(tmp_path / name, model=model, update=update_of(model), **how)

    run("whole")
    with pytest.raises(engine.StoppedError):
        run("run", loss=stopping_at(12))
    run("run", resume="auto")
    whole, again = (checkpoint.read_last(tmp_path / name) for name in ("whole", "run"))
    assert again.state["scaler"] == whole.state["scaler"] and whole.state["scaler"]["scale"] == 2.0 * 2**3
    assert again.ema.keys() == whole.ema.keys() and whole.ema["n_averaged"] == 18
    assert all(torch.equal(again.ema[name], value) for name, value in whole.ema.items())
    assert all(torch.equal(again.model[name], value) for name, value in whole.model.items())
    assert (whole.path / "ema.safetensors").is_file()


def test_plateau_forgives_five_stale_epochs():
    """The published patience of 5: at the sixth epoch without a lower loss, and again six epochs later."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], 0.4)
    schedule, found = engine.schedule("plateau", optimizer, 100), []
    for loss in [3.0, 2.0] + 13 * [1.0]:
        schedule.step(loss)
        found.append(optimizer.param_groups[0]["lr"])
    assert found == pytest.approx(8 * [0.4] + 6 * [0.04] + [0.004])


def test_plateau_looks_at_the_mean_training_loss_of_an_epoch(tmp_path, monkeypatch):
    """A constant one, while the measured one falls: the seventh epoch is the sixth stale one."""
    losses = iter(range(8, 0, -1))
    measured = lambda *_: {"test_accuracy": 0.5, "test_loss": next(losses)}  # noqa: E731
    monkeypatch.setattr(engine.Measure, "__call__", measured)

    def loss(model, batch):
        value, metrics = engine.one_hot_mse(model, batch)
        return 0 * value + 1, metrics

    _, run = train(tmp_path / "run", schedule="plateau", loss=loss, epochs=8)
    assert [row["lr"] for row in run.rows()] == pytest.approx(7 * [0.01] + [0.001])


@pytest.mark.parametrize(
    "wrong", [{"accumulate": 0}, {"accumulate": -1}, {"clip": 0.0}, {"clip": -1.0}, {"clip": math.nan}]
)
def test_updates_that_cannot_be(wrong):
    with pytest.raises(ValueError, match="accumulate must be at least 1 and clip above 0, or None; got"):
        engine.Update(**wrong)


def test_a_schedule_of_an_unknown_name():
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], 0.4)
    with pytest.raises(ValueError, match="schedule must be plateau, onecycle or cosine, got 'one_cycle'"):
        engine.schedule("one_cycle", optimizer, 100)
