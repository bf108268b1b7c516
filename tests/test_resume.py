"A training that is killed, at any moment and again, ends at the same bits as one that was left alone."
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import rich.style  # noqa: F401 (draws a number from Python's generator when it is first imported, by the bar of a training)
import torch
from torch import nn

from xaimed import train
from xaimed.checkpoint import load_checkpoint, save_checkpoint
from xaimed.config import load_options, stage_dir, stage_state
from xaimed.train import read_last, run_training

EPOCHS = 3


def shake(patch=setattr):
    "Let every training draw from the generators that Python, numpy and torch share: noise on its input, dropout before its last layer."
    build = train.model_from_options
    def noisy(model, inputs):
        if model.training: return inputs[0] + random.random() + np.random.rand()
    def shaken(*args):
        model = build(*args)
        model.fc = nn.Sequential(nn.Dropout(0.5), model.fc)
        model.register_forward_pre_hook(noisy)
        return model
    patch(train, "model_from_options", shaken)


@pytest.fixture(autouse=True)
def shaken(monkeypatch): shake(monkeypatch.setattr)


def options(folder, **overrides):
    "A training of seconds with all that must be kept: augmentation, shuffling, a moving learning rate."
    return load_options("", run="t", overrides={"artifacts_dir": str(folder / "artifacts"), "data.data_dir": str(folder.parent / "data"), "device": "cpu", "model.name": "resnet10", "data.size": 16,
                                                "data.batch_size": 8, "data.audit": False, "synthetic.n_train": 16, "synthetic.n_val": 8, "synthetic.n_test": 4, "synthetic.num_classes": 2,
                                                "train.epochs": EPOCHS, "train.precision": "fp16", **overrides})


def weights(folder):
    "All of both checkpoints that chance or time could change, by its place, and the figures of every epoch but its seconds: weights, optimizer, schedule, scaler, every random generator."
    kept = {name: load_checkpoint(folder / f"{name}.pt") for name in ("best", "last")}
    state = kept["last"]["training"]
    history = [{k: v for k, v in row.items() if k != "seconds"} for row in state["history"]]
    return dict(flat({"state": {**state, "history": None}, **{name: c["state_dict"] for name, c in kept.items()}})), history


def flat(value, name=""):
    "Every part of a nested value, with its place."
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, (list, tuple)) else None
    if inside is None: yield name, value
    else:
        for k, v in inside: yield from flat(v, f"{name}.{k}")


def assert_same(one, two):
    (a, rows_a), (b, rows_b) = one, two
    assert rows_a == rows_b and a.keys() == b.keys()
    assert not [k for k in a if not (torch.equal(a[k], b[k]) if isinstance(a[k], torch.Tensor) else a[k] == b[k])]


# Trainings in forks of one process. Each counts what it does (steps, files half written, syncs, renames) and kills itself, as kill -9 would, before the event of a given number.
FORKS = """
import json, os, signal, sys
from pathlib import Path
sys.path.insert(0, str(Path(sys.argv[1])))
import torch
from test_resume import options, shake
from xaimed import train
shake()

def count_and_kill(at):
    seen = []
    def event(kind, file=None):
        seen.append(kind)
        if len(seen) != at: return
        if kind == "save": file.write(b"PK half of a checkpoint"), file.flush()
        os.kill(os.getpid(), signal.SIGKILL)
    def before(owner, name, kind):
        real = getattr(owner, name)
        def call(*args, **kwargs):
            event(kind, args[1] if kind == "save" else None)
            return real(*args, **kwargs)
        setattr(owner, name, call)
    def begin(*args):                                      # what comes before the training is another test's
        for owner, name, kind in ((train, "augment_batch", "step"), (torch, "save", "save"), (os, "fsync", "sync"), (os, "replace", "replace"), (os, "rename", "rename")): before(owner, name, kind)
        return run(*args)
    run, train.train_run = train.train_run, begin
    return seen

for line in sys.stdin:
    folder, at = json.loads(line)
    child = os.fork()
    if child == 0:
        code = 1
        try:
            torch.set_num_threads(1)
            seen = count_and_kill(at)
            train.run_training(options(Path(folder)))
            Path(folder, "events").write_text(json.dumps(seen))
            code = 0
        except BaseException:
            import traceback; traceback.print_exc()
        os._exit(code)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@pytest.fixture(scope="module")
def forks():
    "Train in a fork: (folder, event to die before, or 0) to the exit code."
    process = subprocess.Popen([sys.executable, "-c", FORKS, str(Path(__file__).parent)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    def train(folder, at):
        process.stdin.write(json.dumps([str(folder), at]) + "\n")
        process.stdin.flush()
        return int(process.stdout.readline())
    yield train
    process.stdin.close()
    process.wait()


@pytest.fixture(scope="module")
def undisturbed(forks, tmp_path_factory):
    "Its checkpoints, and what it did from beginning to end."
    folder = tmp_path_factory.mktemp("runs") / "whole"
    folder.mkdir()
    assert forks(folder, 0) == 0
    return folder, weights(stage_dir(options(folder), "train")), json.loads((folder / "events").read_text())


def test_killed_at_random_points_and_in_every_kind_of_moment(forks, undisturbed):
    whole, expected, events = undisturbed
    draw = random.Random(0)
    last = {kind: max(i for i, e in enumerate(events) if e == kind) for kind in ("step", "save", "replace", "rename")}
    points = sorted({i + 1 for i in last.values()} | set(draw.sample(range(1, len(events)), 2)))
    for at in points:
        folder = whole.parent / f"at{at}"
        folder.mkdir()
        assert forks(folder, at) == -signal.SIGKILL, f"event {at}, {events[at - 1]}, was not reached"
        again = forks(folder, draw.randrange(1, 25))            # killed a second time, unless it has ended by then
        assert again in (0, -signal.SIGKILL) and (again == 0 or forks(folder, 0) == 0)
        made = stage_dir(options(folder), "train")
        assert_same(expected, weights(made))
        assert sorted(p.name for p in made.iterdir()) == ["best.pt", "curves.png", "history.csv", "last.pt", "manifest.json"]
        assert stage_state(options(folder), "train") == (True, "unchanged"), "the next call would train again"
        assert not list(made.parent.glob(".t.part*")), "something is left of the attempt"


def test_a_finished_epoch_is_not_trained_again(forks, undisturbed):
    whole, _, events = undisturbed
    folder = whole.parent / "counted"
    folder.mkdir()
    steps = [i for i, e in enumerate(events) if e == "step"]
    assert len(steps) == 2 * EPOCHS
    assert forks(folder, steps[3] + 1) == -signal.SIGKILL        # the second step of the second epoch
    assert forks(folder, 0) == 0
    assert json.loads((folder / "events").read_text()).count("step") == 4, "two epochs of two steps were left to do"


def test_killed_from_outside(undisturbed, tmp_path):
    "A real kill -9 of a process of its own, as soon as its second epoch is on the disk."
    whole, expected, _ = undisturbed
    code = f"import sys, torch; sys.path.insert(0, {str(Path(__file__).parent)!r}); torch.set_num_threads(1); from pathlib import Path; from test_resume import options, shake; from xaimed.train import run_training; shake(); run_training(options(Path({str(whole.parent / 'outside')!r})))"
    folder = whole.parent / "outside"
    folder.mkdir()
    history = stage_dir(options(folder), "train").with_name(".t.part") / "history.csv"
    process = subprocess.Popen([sys.executable, "-c", code])
    deadline = time.monotonic() + 120
    while not (history.exists() and history.read_text().count("\n") > 2):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    subprocess.run([sys.executable, "-c", code], check=True)
    assert_same(expected, weights(stage_dir(options(folder), "train")))


# The rest in this process: what is left, is spoilt.
@pytest.fixture
def stopped(tmp_path, monkeypatch):
    "A training that was interrupted in its third epoch; its options and its working folder."
    threads, run, real, calls = torch.get_num_threads(), options(tmp_path), train.augment_batch, []
    torch.set_num_threads(1)
    def interrupt(x, **how):
        calls.append(1)
        if len(calls) == 6: raise KeyboardInterrupt
        return real(x, **how)
    with monkeypatch.context() as patch:
        patch.setattr(train, "augment_batch", interrupt)
        with pytest.raises(KeyboardInterrupt): run_training(run)
    yield run, stage_dir(run, "train").with_name(".t.part")
    torch.set_num_threads(threads)


@pytest.mark.parametrize("damage", ["last truncated", "best missing", "best of another epoch"])
def test_what_cannot_be_gone_on_with_exactly_starts_again_and_says_so(stopped, undisturbed, caplog, damage):
    run, part = stopped
    last = load_checkpoint(part / "last.pt")
    assert last["epoch"] == 2
    if damage == "last truncated": (part / "last.pt").write_bytes((part / "last.pt").read_bytes()[:-1000])
    else:
        last["training"]["history"][0].update(val_loss=-1.0)                 # as if the first epoch had been the best
        torch.save(last, part / "last.pt")
        (part / "best.pt").unlink() if damage == "best missing" else torch.save({**last, "epoch": 9}, part / "best.pt")
    folder = run_training(run)
    assert "starting again from the first epoch, because" in caplog.text
    assert_same(undisturbed[1], weights(folder))


@pytest.mark.parametrize("before", [None, b"of an earlier epoch"])
def test_a_best_epoch_lost_between_the_two_files_is_made_of_the_last(tmp_path, before):
    "last.pt is written first. Its epoch 2 is the best; the process died before best.pt followed."
    history = [{"epoch": 1, "val_loss": 0.5}, {"epoch": 2, "val_loss": 0.4}]
    about = {"model": {}, "dataset": "toy", "task": "binary", "classes": [], "options": {}, "metrics": {}}
    save_checkpoint(tmp_path / "last.pt", {**about, "epoch": 2, "state_dict": {"w": torch.ones(2)}, "training": {"history": history}})
    if before: (tmp_path / "best.pt").write_bytes(before)
    assert read_last(tmp_path, "val_loss")["epoch"] == 2
    best = load_checkpoint(tmp_path / "best.pt")
    assert best["epoch"] == 2 and torch.equal(best["state_dict"]["w"], torch.ones(2)) and "training" not in best


@pytest.mark.parametrize("part, change", [("train", {"lr": 1e-3}), ("data", {"seed": 5, "max_train": 12}), ("synthetic", {"seed": 5})], ids=["options", "images drawn", "data"])
def test_other_options_or_data_start_again(stopped, undisturbed, part, change):
    run, unfinished = stopped
    other = run.model_copy(update={part: getattr(run, part).model_copy(update=change)})
    found = weights(folder := run_training(other))
    assert [row["epoch"] for row in found[1]] == list(range(1, EPOCHS + 1)) and found[1][0]["train_loss"] != undisturbed[1][1][0]["train_loss"]
    assert load_checkpoint(folder.with_name("t.failed") / "last.pt")["epoch"] == 2, "what was done before is kept"
