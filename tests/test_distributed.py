"Two processes on the CPU train one model: the same curve as one process up to rounding, one writer, clear errors."
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from xaimed import cli
from xaimed.checkpoint import load_checkpoint
from xaimed.config import XaimedError, launched, load_options, read_manifest, run_stage, stage_dir, stages_under_way
from xaimed.pipeline import hold_run
from xaimed.train import ALONE, SharedBatchNorm2d, Team, join_team, run_training

pytest.importorskip("accelerate")


def options(folder, **overrides):
    "37 images in batches of 16: the last batch of 5 falls to two processes as 3 and 2. Augmentation on, batch norm in the network."
    return load_options("", run="t", overrides={"artifacts_dir": str(folder / "artifacts"), "data.data_dir": str(folder / "data"), "device": "cpu", "model.name": "resnet10", "data.size": 16,
                                                "data.batch_size": 16, "data.audit": False, "synthetic.n_train": 37, "synthetic.n_val": 15, "synthetic.n_test": 4, "synthetic.num_classes": 2,
                                                "train.epochs": 3, "train.precision": "fp32", **overrides})


def torchrun(folder, code, n=2):
    "Run code in n processes as torchrun starts them."
    script = folder / "script.py"
    script.write_text(f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\nfrom pathlib import Path\nimport torch; torch.set_num_threads(1)\nfrom test_distributed import options\nfolder = Path({str(folder)!r})\n{code}")
    return subprocess.run([sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={n}", script], capture_output=True, text=True, timeout=300, env={**os.environ, "OMP_NUM_THREADS": "1"})


RUN = """
import builtins, os
from xaimed.train import run_training
written, real = [], os.replace
os.replace = lambda a, b: (written.append(str(b)), real(a, b))
made = run_training(options(folder, run=sys.argv[1] if sys.argv[1:] else "t"))
assert made.name == "t"
rank = int(os.environ["RANK"])
assert (rank == 0) == bool(written), f"rank {rank} wrote {written}"
assert "torch.distributed" in sys.modules and torch.distributed.get_world_size() == 2
"""


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    "The same training by one process and by two."
    one, two = tmp_path_factory.mktemp("one"), tmp_path_factory.mktemp("two")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    run_training(options(one))
    torch.set_num_threads(threads)
    done = torchrun(two, RUN)
    assert done.returncode == 0, done.stderr[-3000:]
    return [stage_dir(options(folder), "train") for folder in (one, two)]


OPTIONS = ["--set", "run=t", "--device", "cpu", "--model.name", "resnet10", "--data.size", "16", "--data.audit", "false", "--synthetic.n_train", "12", "--synthetic.n_val", "6", "--synthetic.n_test", "4", "--train.epochs", "1"]


LAUNCHERS = {"torchrun": ["torch.distributed.run", "--standalone", "--nproc-per-node=2"],
             "accelerate": ["accelerate.commands.launch", "--multi_gpu", "--num_processes=2", "--num_machines=1", "--mixed_precision=no", "--dynamo_backend=no"]}


def command_line(folder, *words, launcher="torchrun"):
    "The command line in two processes, as the README tells to start it."
    done = subprocess.run([sys.executable, "-m", *LAUNCHERS[launcher], "-m", "xaimed.cli", *words, *OPTIONS], cwd=folder, capture_output=True, text=True, timeout=300,
                          env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent.parent), os.environ.get("PYTHONPATH", "")])})
    return done, [line for line in done.stderr.splitlines() if line.startswith("error: ")]


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_the_command_line_trains_in_two_processes(tmp_path, launcher):
    done, errors = command_line(tmp_path, "train", launcher=launcher)
    folder = tmp_path / "artifacts" / "train" / "t"
    assert done.returncode == 0 and not errors, done.stderr[-3000:]
    assert done.stdout.count("best.pt") == 1 and (folder / "best.pt").is_file() and read_manifest(folder)["facts"]["processes"] == 2


def test_other_commands_in_several_processes_are_refused(monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    monkeypatch.chdir(tmp_path)
    for command in ("run", "eval", "list"):
        assert cli.main([command]) == 1
        assert f"`xaimed {command}` was launched as 2 processes" in (said := capsys.readouterr().err) and "launch only `xaimed train`" in said
    assert not any(tmp_path.iterdir())


def test_several_processes_respect_a_run_as_one_does(monkeypatch, capsys, tmp_path):
    "Neither another data set's run nor one that another process works on is touched."
    (here := tmp_path / "here").mkdir()
    monkeypatch.chdir(here)
    run_stage(load_options("quick_smoke", dataset="breastmnist", run="mine"), "data", lambda folder: None)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    before = sorted(here.rglob("*"))
    assert cli.main(["train", "--run", "mine"]) == 1 and "run 'mine' holds the results of data set 'breastmnist'" in capsys.readouterr().err
    assert sorted(here.rglob("*")) == before
    with hold_run(load_options("quick_smoke", run="busy")): assert cli.main(["train", "--run", "busy"]) == 1
    assert "run 'busy'" in capsys.readouterr().err and not (here / "artifacts" / "train").exists()


DECIDED = """
def say(words):  # to a file of its own: two processes that print at once may share a line
    with open(folder / f"said{os.environ['RANK']}.txt", "a") as f: f.write(f"{words}\\n")
import os
from xaimed import config, train
rank, calls, real = int(os.environ["RANK"]), [], train.train_run
train.train_run = lambda *a: (calls.append(1), real(*a))[1]
if rank == 1:
    def unseen(*a): raise AssertionError("only the first process looks")
    config.stage_state = train.run_models = unseen
    os.environ.pop("XAIMED_FORCE", None)
for force in ("", "train", ""):
    if rank == 0: os.environ["XAIMED_FORCE"] = force
    train.run_training(options(folder, **{"train.epochs": 1}))
    say(f"trainings {len(calls)}")
if rank == 0: train.run_models = lambda options: (_ for _ in ()).throw(ValueError("no such data"))
try: train.run_training(options(folder, **{"train.epochs": 1}))
except (ValueError, config.XaimedError) as e: say(e)
"""


def test_the_first_process_decides_for_all(tmp_path):
    "XAIMED_FORCE is known to the first process alone; the second follows, three times, and hears why the fourth does not begin."
    done = torchrun(tmp_path, DECIDED)
    assert done.returncode == 0, done.stderr[-3000:]
    said = [(tmp_path / f"said{rank}.txt").read_text().splitlines() for rank in (0, 1)]
    trained = ["trainings 1", "trainings 2", "trainings 2"]
    assert said == [[*trained, "no such data"], [*trained, "the first process stopped before the training: ValueError: no such data"]]


def rows(folder): return load_checkpoint(folder / "last.pt")["training"]["history"]


def test_the_loss_curve_is_that_of_one_process(both):
    "Rounding in the first epoch (float32 has 7 digits); Adam divides by gradients near zero, so later epochs lose a digit each."
    one, two = map(rows, both)
    assert len(one) == len(two) == 3
    for a, b, rel in zip(one, two, (1e-5, 1e-3, 1e-2)):
        assert a["lr"] == b["lr"] and all(a[k] == pytest.approx(b[k], rel=rel) for k in ("train_loss", "val_loss")), (a, b)
    assert one[0]["train_accuracy"] == two[0]["train_accuracy"] and one[0]["val_auc"] == two[0]["val_auc"]


def test_batch_norm_saw_all_images(both):
    one, two = (load_checkpoint(folder / "last.pt")["state_dict"] for folder in both)
    assert one.keys() == two.keys() and two["bn1.num_batches_tracked"] == 9
    assert torch.allclose(one["bn1.running_mean"], two["bn1.running_mean"], atol=1e-4) and torch.allclose(one["bn1.running_var"], two["bn1.running_var"], rtol=1e-3)
    assert read_manifest(both[1])["facts"]["processes"] == 2


RESUME = """
import sys
from xaimed import train
calls, real = [], train.augment_batch
def interrupt(x, **how):
    calls.append(1)
    if len(calls) == 5 and FIRST: raise KeyboardInterrupt
    return real(x, **how)
train.augment_batch = interrupt
try: train.run_training(options(folder))
except KeyboardInterrupt: sys.exit(7)
print("steps", len(calls))
"""


def test_two_processes_go_on_where_two_were_stopped(both, tmp_path):
    "Stopped in the second of three epochs: two are left to do, and the bits are those of the two that were not stopped."
    stopped = torchrun(tmp_path, "FIRST = True\n" + RESUME)
    assert stopped.returncode != 0 and load_checkpoint(stage_dir(options(tmp_path), "train").with_name(".t.part") / "last.pt")["epoch"] == 1
    done = torchrun(tmp_path, "FIRST = False\n" + RESUME)
    assert done.returncode == 0 and done.stdout.split() == ["steps", "6"] * 2, done.stderr[-3000:]
    one, two = (load_checkpoint(folder / "last.pt")["state_dict"] for folder in (both[1], stage_dir(options(tmp_path), "train")))
    assert all(torch.equal(one[k], two[k]) for k in one)


def test_processes_without_accelerate_are_refused(monkeypatch):
    monkeypatch.setitem(sys.modules, "accelerate", None)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(XaimedError, match=r"launched as 2 processes.*pip install 'xaimed\[distributed\]'"): join_team("cpu")


def test_variables_of_a_launcher_without_its_processes_are_refused(monkeypatch, tmp_path):
    "As a program under mpirun has them whose processes never meet: nothing may be written as if it were the second of two."
    import accelerate
    monkeypatch.setattr(accelerate, "Accelerator", lambda **how: SimpleNamespace(process_index=0, num_processes=1))
    monkeypatch.setenv("OMPI_COMM_WORLD_RANK", "1")
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "2")
    with pytest.raises(XaimedError, match="say process 1 of 2, but the processes met as 0 of 1: start the training with torchrun"): run_training(options(tmp_path))
    assert not (tmp_path / "artifacts").exists()


@pytest.mark.parametrize("mean", [0.0, 100.0])
def test_shared_batch_norm_is_batch_norm(monkeypatch, mean):
    "Of one process, whose sums are its own. At mean 100 and deviation 0.1 a variance taken as E[x^2] - E[x]^2 in float32 has no right digit."
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda value: None)
    x = mean + 0.1 * torch.randn(8, 3, 5, 5, generator=torch.Generator().manual_seed(0))
    ours, theirs, inputs, weight = SharedBatchNorm2d(3), torch.nn.BatchNorm2d(3), [x.clone().requires_grad_() for _ in range(2)], torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
    out = [layer(i) for layer, i in zip((ours, theirs), inputs)]
    for o in out: (o * weight).sum().backward()
    assert torch.allclose(*out, atol=1e-3) and torch.allclose(ours.running_var, theirs.running_var, rtol=1e-4) and torch.allclose(ours.running_mean, theirs.running_mean, rtol=1e-5)
    assert torch.allclose(inputs[0].grad, inputs[1].grad, atol=2e-2) and torch.allclose(ours.weight.grad, theirs.weight.grad, atol=2e-2)


def test_who_am_i():
    assert launched({"RANK": "3", "WORLD_SIZE": "8"}) == (3, 8) and launched({"OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "2"}) == (1, 2)
    assert launched({"WORLD_SIZE": "8"}) == (0, 1) == launched({}), "a number alone is no launch"


@pytest.mark.parametrize("n", [1, 2, 3, 5, 8])
@pytest.mark.parametrize("size", [2, 3])
def test_shares_make_the_whole_batch(n, size):
    team, batch = [Team(rank, size) for rank in range(size)], torch.rand(n, 2, dtype=torch.float64)
    shares = [t.share(batch) for t in team]
    if n >= size: assert sorted(torch.cat(shares)[:, 0].tolist()) == sorted(batch[:, 0].tolist()) and all(len(s) for s in shares)
    assert torch.allclose(sum(s.mean(0) * t.weight(n) for s, t in zip(shares, team)) / size, batch.mean(0))
    assert ALONE.share(batch) is batch and ALONE.weight(n) == 1


def test_a_training_that_another_stage_asks_for_waits_for_nobody(monkeypatch, tmp_path):
    "The evaluation runs in the first process only; its ensemble's trainings must not wait for the others."
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    seen = []
    run_stage(options(tmp_path), "data", lambda folder: seen.append((stages_under_way(), join_team("cpu"))))
    assert seen == [(("data",), ALONE)] and stages_under_way() == ()
