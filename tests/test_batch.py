"A batch: rows, tables, Dask workers that die, cards that are shared out."
import csv
import os
import re
import signal
import subprocess
import sys
import time

import dask
import pytest

from xaimed import batch, cli
from xaimed.batch import run_batch
from xaimed.config import XaimedError

from stand_ins import STAGE, stand_ins, write_notebook  # noqa: F401 (a fixture)

ONCE = """
import os, pathlib, time
from xaimed.config import load_options
tries = pathlib.Path(f"tries_{load_options(config, dataset=dataset, run=run, overrides=overrides).seed}")
tries.write_text(tries.read_text() + "x" if tries.exists() else "x")
"""


def seeds_tried(folder): return {int(p.name[6:]): len(p.read_text()) for p in folder.glob("tries_*")}


def test_a_batch_keeps_the_traceback_for_debug(stand_ins, capsys, monkeypatch):
    done = run_batch(["synthetic"], **stand_ins, seeds=(13,), stages=("data",))
    assert "ValueError" in done.rows[0].details and "Traceback" in done.rows[0].details
    assert "Traceback" not in (done.folder / "summary.csv").read_text() + (done.folder / "summary.md").read_text()
    monkeypatch.setattr(batch, "run_batch", lambda *a, **k: done)
    assert cli.main(["batch", "--dataset", "synthetic"]) == 1 and "Traceback" not in capsys.readouterr().err
    assert cli.main(["batch", "--dataset", "synthetic", "--debug"]) == 1 and done.rows[0].details in capsys.readouterr().err


@pytest.mark.parametrize("jobs, stages", [(1, ("data", "models", "train", "eval")), (2, ("data",))])
def test_batch_goes_on_after_failures_and_interruptions(jobs, stages, stand_ins, tmp_path, monkeypatch):
    "Seed 13 raises, seed 99 takes its kernel down, seed 77 its worker, each time."
    pytest.importorskip("distributed")
    monkeypatch.setitem(dask.config.config["distributed"]["scheduler"], "allowed-failures", 1)
    lines, seeds = [], (0, 13, 99) if jobs == 1 else (0, 77, 13)
    ask = dict(stand_ins, sizes=(28,), stages=stages, jobs=jobs) | ({"say": lines.append} if jobs > 1 else {})
    done = run_batch(["synthetic"], **ask, seeds=seeds)
    assert [r.status for r in done.rows] == ["made", "failed", "failed"], done.rows
    assert [r.run for r in done.failed] == [f"synthetic_28_s{seeds[1]}", f"synthetic_28_s{seeds[2]}"]
    with open(done.folder / "summary.csv") as f: table = list(csv.DictReader(f))
    assert [int(r["seed"]) for r in table] == list(seeds) and "unlucky seed" in table[seeds.index(13)]["error"]
    if jobs > 1: assert table[1]["error"] == "its worker died 2 times while making it; memory may have run out" and lines[-1].startswith("# Batch batch")
    assert done.folder == tmp_path / "out" / "batch" / "batch"
    again = run_batch(["synthetic"], **ask, seeds=(0, 1))
    assert [r.status for r in again.rows] == ["unchanged", "made"] and again.rows[0].seconds == done.rows[0].seconds
    if "eval" in stages: assert "| synthetic | 28 | 2 | 0.900 ± 0.000 | 0.800 ± 0.000 | 0.100 ± 0.000 |" in (done.folder / "summary.md").read_text()


def test_batches_refuse_what_cannot_work(stand_ins):
    with pytest.raises(ValueError, match="share the folder"): run_batch(["a/x.npz", "b/x.npz"], **stand_ins)
    with pytest.raises(ValueError, match="set by the batch itself"): run_batch(["synthetic"], **stand_ins, overrides={"seed": 1})
    with pytest.raises(ValueError, match="jobs is 0"): run_batch(["synthetic"], **stand_ins, jobs=0)
    with pytest.raises(ValueError, match="workers of its own"): run_batch(["synthetic"], **stand_ins, jobs=2, scheduler="tcp://127.0.0.1:1")
    with pytest.raises(ValueError, match="say `device: cuda`"): run_batch(["synthetic"], **stand_ins, jobs=2, overrides={"device": "cuda:1"})


def test_a_worker_killed_in_the_middle_costs_no_row(stand_ins, tmp_path):
    "The models stage of seed 5 kills its worker, once; the data stage before it is not made again."
    data, kill = ONCE + STAGE.format(stage="data"), "if options.seed == 5 and not os.path.exists('killed'):\n    open('killed', 'w').close()\n    os.kill(os.getppid(), 9)\n"
    write_notebook(tmp_path / "books" / "00_data.ipynb", data)
    write_notebook(tmp_path / "books" / "01_models.ipynb", STAGE.format(stage="models").replace("run_stage(options", kill + "run_stage(options"))
    before = dict(os.environ)
    done = run_batch(["synthetic"], **stand_ins, seeds=(4, 5, 6), stages=("data", "models"), jobs=2)
    assert (tmp_path / "killed").exists() and [r.status for r in done.rows] == ["made"] * 3, done.rows
    assert seeds_tried(tmp_path) == {4: 1, 5: 1, 6: 1}
    assert dict(os.environ) == before, "Dask's settings stay with its workers"


@pytest.fixture
def scheduler(tmp_path):
    "A scheduler that runs already, with two workers as a cluster's nodes would start them: elsewhere, with another environment, in threads."
    distributed = pytest.importorskip("distributed")
    (tmp_path / "elsewhere").mkdir()
    options = {"nthreads": 2, "host": "127.0.0.1", "memory_limit": None, "local_directory": str(tmp_path / "elsewhere"), "silence_logs": 50}
    workers = {i: {"cls": distributed.Nanny, "options": {**options, **({"resources": {"GPU": 1}} if i else {})}} for i in range(2)}
    before = dict(os.environ)
    with distributed.SpecCluster(workers=workers, scheduler={"cls": distributed.Scheduler, "options": {"host": "127.0.0.1", "port": 0, "dashboard": False}}, silence_logs=50) as cluster: yield cluster
    os.environ.update(before)


def test_any_scheduler_by_its_address(scheduler, stand_ins, tmp_path):
    "Runs stand in the caller's folder; those on the CPU use every worker, those that may use a card ask for it."
    write_notebook(tmp_path / "books" / "00_data.ipynb", "import os, pathlib, time\npathlib.Path(f'on_{os.getppid()}').touch()\n" + STAGE.format(stage="data") + "\ntime.sleep(0.5)")
    ask = dict(stand_ins, stages=("data",), scheduler=scheduler.scheduler_address)
    done = run_batch(["synthetic"], **ask, seeds=range(2), overrides={"device": "cpu"})
    assert [r.status for r in done.rows] == ["made"] * 2 and done.rows[0].report == "out/data/synthetic_s0/report.html", done.rows
    assert len(list(tmp_path.glob("on_*"))) == 2
    for p in tmp_path.glob("on_*"): p.unlink()
    done = run_batch(["synthetic"], **ask, seeds=range(2, 4), overrides={"device": "auto"})
    assert [r.status for r in done.rows] == ["made"] * 2 and len(list(tmp_path.glob("on_*"))) == 1
    assert scheduler.scheduler_address and len(scheduler.scheduler.workers) == 2, "a cluster that was there before stays"


def test_only_the_row_that_kills_its_worker_fails_on_a_named_scheduler(scheduler, stand_ins, tmp_path, monkeypatch):
    "Seed 77 takes both workers down, one after the other; their threads, two each, hold no row that could be blamed with it."
    monkeypatch.setattr(scheduler.scheduler, "allowed_failures", 1)
    monkeypatch.setitem(dask.config.config["distributed"]["scheduler"], "allowed-failures", 1)
    write_notebook(tmp_path / "books" / "00_data.ipynb", ONCE + STAGE.format(stage="data"))
    done = run_batch(["synthetic"], **stand_ins, stages=("data",), scheduler=scheduler.scheduler_address, seeds=(77, 0, 1, 2), overrides={"device": "cpu"})
    assert [r.status for r in done.rows] == ["failed"] + ["made"] * 3 and "its worker died 2 times" in done.rows[0].error, done.rows
    assert seeds_tried(tmp_path) == {77: 2, 0: 1, 1: 1, 2: 1}


def test_a_folder_that_workers_do_not_share_is_a_row(scheduler, stand_ins):
    distributed = pytest.importorskip("distributed")
    with distributed.Client(scheduler, set_as_default=False) as client:
        row = client.submit(batch.run_on_worker, batch.batch_rows(["synthetic"])[0], "/nowhere/shared", {}, {}).result()
    assert row.status == "failed" and re.search("has no folder /nowhere/shared: start the batch in a folder that all workers share", row.error)


def test_each_worker_here_sees_one_card(stand_ins, tmp_path, monkeypatch):
    "Made-up cards: no run needs a real one here."
    monkeypatch.setattr(batch, "visible_gpus", lambda device: ["4", "7"])
    write_notebook(tmp_path / "books" / "00_data.ipynb", "import os, pathlib, time\nsee = os.environ['CUDA_VISIBLE_DEVICES']\nbusy = pathlib.Path(f'busy_{see}')\nbusy.touch(exist_ok=False)\n"
                   "pathlib.Path(f'saw_{see}').touch()\n" + STAGE.format(stage="data") + "\ntime.sleep(0.5)\nbusy.unlink()")
    done = run_batch(["synthetic"], **stand_ins, seeds=range(3), stages=("data",), jobs=4, overrides={"device": "cuda"})
    assert [r.status for r in done.rows] == ["made"] * 3, done.rows
    assert sorted(p.name for p in tmp_path.glob("saw_*")) == ["saw_4", "saw_7"]


def test_no_card_here_is_said_at_once(stand_ins, monkeypatch, tmp_path):
    monkeypatch.setattr(batch, "visible_gpus", lambda device: [])
    with pytest.raises(XaimedError, match="device is cuda, and no card is visible.*expected one or more: set device to cpu"):
        run_batch(["synthetic"], **stand_ins, seeds=range(2), stages=("data",), jobs=2, overrides={"device": "cuda"})
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("n,words", [(1, "none of the scheduler's 1 workers has announced a card \\(tcp:.*--resources GPU=1"), (0, "no worker yet: the runs wait for one.*--resources GPU=1")])
def test_no_card_on_any_worker_is_said_at_once(stand_ins, monkeypatch, tmp_path, n, words):
    "With workers that have none it is an error; without a worker, what is waited for is said."
    distributed = pytest.importorskip("distributed")
    def tell(said, *parts): raise XaimedError(said % parts)     # the waiting itself has no end
    monkeypatch.setattr(batch.log, "warning", tell)
    worker = {"cls": distributed.Nanny, "options": {"nthreads": 1, "host": "127.0.0.1", "memory_limit": None, "local_directory": str(tmp_path), "silence_logs": 50}}
    before = dict(os.environ)
    with distributed.SpecCluster(workers=dict.fromkeys(range(n), worker), scheduler={"cls": distributed.Scheduler, "options": {"host": "127.0.0.1", "port": 0, "dashboard": False}}, silence_logs=50) as cluster:
        with pytest.raises(XaimedError, match=words): run_batch(["synthetic"], **stand_ins, stages=("data",), overrides={"device": "cuda"}, scheduler=cluster.scheduler_address)
    os.environ.update(before)


def test_cards_that_are_hidden_are_not_shared_out(monkeypatch):
    import torch
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3, 5")
    assert batch.visible_gpus("cuda") == batch.visible_gpus("auto") == ["3", "5"] and batch.visible_gpus("cpu") == batch.visible_gpus("mps") == []
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert batch.visible_gpus("auto") == ["0", "1"]
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert batch.visible_gpus("auto") == []


def test_mistakes_about_dask_are_one_line(stand_ins, monkeypatch, capsys, tmp_path):
    words = ["batch", "--config", "tiny.yaml", "--dataset", "synthetic"]
    assert cli.main([*words, "--scheduler", str(tmp_path / "none.json")]) == 1
    assert "no Dask scheduler answers at" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "distributed", None)
    for more in (["--jobs", "2"], ["--scheduler", "tcp://127.0.0.1:1"]):
        assert cli.main([*words, *more]) == 1
        err = capsys.readouterr().err
        assert err.count("\n") == 1 and "pip install 'xaimed[distributed]'" in err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGTERM])
def test_an_ended_batch_leaves_no_worker_and_no_kernel(end, stand_ins, tmp_path):
    write_notebook(tmp_path / "books" / "00_data.ipynb", "import os, pathlib, time\npathlib.Path(f'started_{os.getpid()}_{os.getppid()}').touch()\ntime.sleep(60)")
    code = ("from xaimed import batch, cli; import functools; "
            "batch.run_batch = functools.partial(batch.run_batch, notebooks='books'); cli.sys.exit(cli.main(['batch', '--config', 'tiny.yaml', '--dataset', 'synthetic', '--seeds', '0-3', '--jobs', '2']))")
    process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True, start_new_session=True)
    for _ in range(300):
        if len(found := list(tmp_path.glob("started_*"))) == 2: break
        time.sleep(0.1)
    pids = [int(n) for p in found for n in p.name.split("_")[1:]]
    assert len(set(pids)) == 4
    os.killpg(process.pid, end) if end == signal.SIGINT else process.send_signal(end)  # Ctrl-C reaches the workers too
    _, err = process.communicate(timeout=60)
    assert process.returncode == {signal.SIGINT: 130, signal.SIGTERM: 143}[end]
    assert re.fullmatch(r"error: (interrupted|asked to end); finished stages are kept, .*\n", err), err
    for _ in range(50):
        if not any(map(_alive, pids)): break
        time.sleep(0.1)
    assert not any(map(_alive, pids))


def _alive(pid) -> bool:
    try: os.kill(pid, 0)
    except ProcessLookupError: return False
    return True
