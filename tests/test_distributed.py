"Two processes on the CPU train one model: the same curve as one process up to rounding, one writer, clear errors."
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from xaimed.checkpoint import load_checkpoint
from xaimed.config import XaimedError, launched, load_options, read_manifest, run_stage, stage_dir, stages_under_way
from xaimed.train import ALONE, Team, join_team, run_training

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
