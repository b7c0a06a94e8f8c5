"""The engine in two processes, against one with the whole batch; what is left of a run that is killed.

One `torchrun` does all checks of tests/two_processes.py and leaves what each process saw; a second one hangs.
"""

import importlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import NamedTuple

import pytest
import test_engine
import torch
import two_processes
from close import close64
from two_processes import EPOCHS, STEPS_AN_EPOCH, Numbers

from attsnn import engine
from attsnn.engine import checkpoint, pictures, sampling

HERE = Path(__file__).parent
KILLS = int(os.environ.get("ATTSNN_KILLS", 5))
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


class Seen(NamedTuple):
    """What the checks saw, a dict for each process, and where their runs are."""

    ranks: list[dict]
    folder: Path

    def of(self, check: str) -> list:
        return [rank[check] for rank in self.ranks]


def launch(*words) -> subprocess.Popen:
    words = [*TORCHRUN, HERE / "two_processes.py", *words]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def stopped(path: Path, step: int) -> list[int]:
    """A run of one process that SIGTERM ends after that step; the samples that it loaded."""
    numbers = Numbers()
    loss = two_processes.at_call(step, lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(engine.StoppedError, match=f"after step {step}"):
        two_processes.train(path, engine.Processes(), loss=loss, numbers=numbers)
    return numbers.loaded


@pytest.fixture(scope="module")
def hung(tmp_path_factory):
    """Started here, so that it waits while the others work; (exit code, what it said, folder)."""
    folder = tmp_path_factory.mktemp("hung")
    process = launch(folder, "hang")
    yield lambda: (*process.communicate(timeout=120), process.returncode, folder)
    process.kill()


@pytest.fixture(scope="module")
def seen(tmp_path_factory, hung):
    folder = tmp_path_factory.mktemp("two")
    stopped(folder / "one", 7)
    process = launch(folder)
    _, said = process.communicate(timeout=300)
    assert process.returncode == 0, said
    return Seen([json.loads((folder / f"{rank}.json").read_text()) for rank in (0, 1)], folder)


def test_profiles_add_up(seen):
    """Of both processes: each count, rate and energy is that of one process with all samples."""
    for found, whole, _ in seen.of("profiled"):
        assert found["counts"] == whole["counts"] and found["samples"] == 7
        assert found["total"] == whole["total"] and found["rate_by_step"] == whole["rate_by_step"]
    assert [samples for *_, samples in seen.of("profiled")] == [5, 2]


def test_settled_statistics_are_those_of_all_processes(seen):
    """Every value weighs the same, whoever has it, and both processes hold the same bits; of norms that meet
    in each batch the variance is exact where shares are equal, and here they are 3 and 2 images.
    """
    first, second = seen.of("settled")
    assert first == second
    assert max(*first["own"][:2], first["shared"][0]) < 1e-12 < first["shared"][1] < 1e-4


@pytest.mark.parametrize("check", ["equal_shares", "unequal_shares", "unequal_shares_in_pieces"])
def test_a_step_is_that_of_one_process(seen, check):
    """Att-MS-ResNet-18 in float64, T = 2: gradients, weights, running statistics, loss and accuracy."""
    first, second = seen.of(check)
    assert first == second
    assert first.keys() == {"gradients", "weights", "statistics", "metrics"}
    assert max(first.values()) <= 1e-12, first


@pytest.mark.parametrize("check", ["accumulated", "pieces_of_a_small_share"])
def test_accumulated_gradients_are_those_of_the_batch(seen, check):
    assert all(error <= 1e-15 for error in seen.of(check)), seen.of(check)


@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_not_finite_in_one_stops_both_before_the_update(seen, what):
    for rank, found in enumerate(seen.of("not_finite")):
        error = found[what]
        assert (error["type"], error["code"], error["kept"]) == ("NonFiniteError", 4, True)
        assert "the gradient norm nan" in error["said"] and ("the loss is nan" in error["said"]) == (
            what == "loss"
        )
        assert f"the training samples {rank}, {rank + 2}, {rank + 4}." in error["said"]


@pytest.mark.parametrize(("moment", "step"), [("before", 3), ("after", 4)])
def test_a_signal_to_one_stops_both_at_the_same_step(seen, moment, step):
    """Where it comes after the flags of a step were summed, both stop one step later."""
    for found in seen.of("stops"):
        error = found[moment]
        assert (error["type"], error["code"]) == ("StoppedError", 143) and f"after step {step};" in error[
            "said"
        ]
    assert engine.find_checkpoint(seen.folder / moment).state["position"]["step"] == step
    assert json.loads((seen.folder / moment / "exit.json").read_text())["code"] == 143
    assert not (seen.folder / moment / "exit-rank1.json").exists()


@pytest.mark.parametrize(("evaluation", "epochs"), [("asked", 0), ("not asked", 1)])
def test_a_signal_to_one_in_the_evaluation(seen, evaluation, epochs):
    """It is given up where it asks; else it is the epoch's, and both stop behind it."""
    for found in seen.of("stops_in_the_evaluation"):
        assert found[evaluation]["code"] == 143
        assert f"after step {STEPS_AN_EPOCH};" in found[evaluation]["said"]
    saved = engine.find_checkpoint(seen.folder / evaluation).state["position"]
    assert (saved["epoch"], saved["step"]) == (epochs, STEPS_AN_EPOCH)


def test_only_the_first_writes(seen):
    first, second = seen.of("writes")
    assert second == [] and {"model.safetensors", "manifest.json", ".tmp-metrics.jsonl"} <= set(first)
    left = {path.name for path in (seen.folder / "writes").iterdir()}
    assert {"last", "best", "config.json", "metrics.jsonl", "exit.json"} <= left


def test_statistics_that_are_not_synchronised_are_those_of_the_first(seen):
    first, second = seen.of("statistics_of_the_first")
    assert first["trained"] != second["trained"]
    assert second["evaluated"] == first["evaluated"] == first["trained"]


def test_a_full_disk_ends_both(seen):
    for found in seen.of("full_disk"):
        assert found["saving"]["code"] == found["recording"]["code"] == 5
        assert "step 3" in found["saving"]["said"] and "ckpt-2, is intact" in found["saving"]["said"]
        assert "epoch 2" in found["recording"]["said"] and "ckpt-5" in found["recording"]["said"]
    for name, step in (("saving", 2), ("recording", 5)):
        saved = checkpoint.read_last(seen.folder / name, lambda text: pytest.fail(text))
        assert saved.state["position"]["step"] == step


def batches() -> list[list[int]]:
    """The samples of every step of the two epochs."""
    orders = [sampling.order(32, 0, epoch).tolist() for epoch in range(EPOCHS)]
    return [order[i : i + 7] for order in orders for i in range(0, 32, 7)]


def test_a_run_of_one_goes_on_with_two(seen, tmp_path):
    found = seen.of("goes_on_from_one_process")
    rest = batches()[7:]
    for rank, process in enumerate(found):
        assert process["loaded"] == [i for batch in rest for i in batch[rank::2]]
    assert found[0]["weights"] == found[1]["weights"]
    whole = two_processes.train(tmp_path / "whole", engine.Processes())
    for parameter, values in zip(whole.parameters(), found[0]["weights"], strict=True):
        close64(torch.tensor(values, dtype=torch.float64), parameter.detach().flatten(), 1e-14)


def test_a_run_of_two_goes_on_with_one(seen, tmp_path, capsys):
    for rank, found in enumerate(seen.of("stopped_for_one_process")):
        assert "after step 7;" in found["said"]
        assert found["loaded"] == [i for batch in batches()[:7] for i in batch[rank::2]]
    numbers = Numbers()
    model = two_processes.train(seen.folder / "two", engine.Processes(), resume="auto", numbers=numbers)
    assert "had 2 processes and goes on with 1" in capsys.readouterr().out
    assert numbers.loaded == [i for batch in batches()[7:] for i in batch]
    whole = two_processes.train(tmp_path / "whole", engine.Processes())
    for a, b in zip(model.parameters(), whole.parameters(), strict=True):
        close64(a.detach(), b.detach(), 1e-14)


def test_validation_counts_each_sample_once(seen):
    """Seven samples, one of them bad, in shares of two batches and one."""
    first, second = seen.of("counts")
    assert first == second and first["together"]["samples"] == 6
    for name in ("top1", "top5", "samples"):
        assert first["together"][name] == first["alone"][name]
    assert abs(first["together"]["loss"] - first["alone"]["loss"]) <= 1e-14
    assert 0 < first["together"]["top1"] < 1 and first["bad"] == {"five": "five: is cut short"}
    assert first["limited"] == 3 + 2  # a batch in each


def test_errors_of_the_first_are_those_of_all(seen):
    first, second = seen.of("errors_of_the_first")
    assert first == second and first.pop("value") == 0
    codes = {name: (error["type"], error["code"]) for name, error in first.items()}
    assert codes == {
        "data": ("DataError", 3),
        "format": ("DataFormatError", 3),
        "checkpoint": ("CheckpointError", 5),
        "usage": ("UsageError", 2),
        "stopped": ("StoppedError", 143),
        "stopped in the set-up": ("StoppedError", 143),
        "system": ("OSError", None),
    }
    assert first["format"]["said"] == "b.JPEG: byte 7: is cut short"
    assert first["stopped in the set-up"]["said"] == "Stopped by SIGTERM."


def test_a_bad_sample_is_counted_once(seen):
    for found in seen.of("faults"):
        assert found["3"] == {"type": None, "names": ["a", "b", "c"]}
        assert found["2"]["code"] == 3 and "found 3 bad images, more than the 2 allowed" in found["2"]["said"]


def test_a_process_that_hangs_ends_the_run(hung):
    """After --dist-timeout, here 4 seconds; torchrun's own exit code is 1."""
    _, said, code, folder = hung()
    assert code == 1 and "Process 0 of 2 lost another one" in said and "Timed out" in said, said
    assert "go on with --resume auto" in said
    ends = [json.loads((folder / "hangs" / name).read_text()) for name in ("exit.json", "exit-rank1.json")]
    assert ends[0]["code"] == ends[1]["code"] == 1 and "Timed out" in ends[0]["said"]


@pytest.mark.parametrize(
    ("said", "lost"),
    [
        ("[gloo/transport/tcp/pair.cc:537] Read error [127.0.0.1]:948: Connection reset by peer", True),
        ("[gloo/transport/tcp/unbound_buffer.cc:78] Timed out waiting 4000ms for recv operation", True),
        ("Application timeout caused pair closure", True),
        ("mat1 and mat2 shapes cannot be multiplied (2x3 and 4x5)", False),
    ],
)
def test_what_a_lost_process_is_known_by(said, lost):
    """Sentences of torch 2.13; any other error is a defect and keeps its traceback."""
    known = importlib.import_module("attsnn.engine.processes")._LOST
    assert bool(known.search(said)) == lost


# kill -9. A fresh process forks the runs that are killed: no thread has started there.


def killed(folder: Path, kills: int) -> None:
    """A run that saves every step is killed again and again, at a random moment or in the middle of writing
    a random file; each time the checkpoint that `last` named, or a later one, is whole.
    """
    torch.set_num_threads(1)
    pictures.curves = lambda *_: []  # half of the time; the other: what an optimiser loads
    importlib.import_module("torch._dynamo")
    draw, path, epochs = random.Random(7), folder / "run", 2 * kills
    train = partial(test_engine.train, epochs=epochs)
    step = (0,)
    for kill in range(kills):
        saving, moment = kill % 2, draw.randint(1, 4)
        write, delay = draw.randint(7, 24), draw.uniform(0, 0.03)
        child = os.fork()
        if child == 0:
            if saving:
                checkpoint._write_file = dies_in(write)
            train(path, resume="auto", save_every=0)
            os._exit(0)
        named = None
        while (ended := os.waitpid(child, os.WNOHANG)) == (0, 0):
            time.sleep(0.002)
            named = checkpoint.pointed(path, "last") or named
            if named and not saving and checkpoint._step(named) >= (step[0] + moment,):
                time.sleep(delay)
                named = checkpoint.pointed(path, "last")
                os.kill(child, signal.SIGKILL)
                ended = os.waitpid(child, 0)
                break
        assert ended[1] == signal.SIGKILL, f"ended by itself: {ended}"
        saved = checkpoint.read_last(path, lambda text: pytest.fail(text))
        assert checkpoint._step(saved.path) >= checkpoint._step(named) > step
        step = checkpoint._step(saved.path)
    assert step[0] < epochs * test_engine.STEPS_AN_EPOCH
    model, run = train(path, resume="auto")
    whole, whole_run = train(folder / "whole")
    assert test_engine.equal(model, whole)
    optimizers = [engine.checkpoint.read(r.last()).optimizer["state"] for r in (run, whole_run)]
    for a, b in zip(*(slots.values() for slots in optimizers), strict=True):
        assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
    print(f"killed {kills} times, the last time after step {step[0]}")


def dies_in(number: int):
    """Writes files; of the `number`-th only a half."""
    count = 0

    def write(path, content):
        nonlocal count
        count += 1
        if count == number:
            path.write_bytes(content[: len(content) // 2])
            os.kill(os.getpid(), signal.SIGKILL)
        write_file(path, content)

    write_file = checkpoint._write_file
    return write


def test_kill_loses_no_checkpoint_and_no_bit(tmp_path):
    words = f"import sys, test_processes as t; t.killed(t.Path(sys.argv[1]), {KILLS})"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE), os.environ["PYTHONPATH"]])}
    done = subprocess.run(
        [sys.executable, "-c", words, tmp_path],
        env=environment, capture_output=True, text=True, timeout=60 + 20 * KILLS,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert f"killed {KILLS} times" in done.stdout
