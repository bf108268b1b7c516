"Mechanism of xaimed.config: overrides, stage folders, locks, faults."
import json
import multiprocessing
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from xaimed import config
from xaimed.config import (STAGES, Interrupted, Options, XaimedError, atomic_write, find_config, list_configs, load_options, read_json, read_manifest,
                           refuse_unknown_parameters, resolve_device, resolve_path, run_stage, stage_dir, stage_state, write_json)


def options(tmp_path, **more): return Options(run="r", artifacts_dir=str(tmp_path / "artifacts"), **more)


def one_file(name="a.txt", text="x", facts=None):
    def make(folder):
        (folder / name).write_text(text)
        return facts
    return make


@pytest.mark.parametrize("overrides, says", [
    ({"train.epoch": 3}, "Near: train.epochs"),
    ({"trian.epochs": 3}, "unknown option 'trian'"),
    ({"train.epochs": "many"}, "option train.epochs: got 'many'"),
    ({"data.size": 4}, "option data.size: got 4"),
    ({"seed.x": 1}, "one option, not a section"),
    ({"model.stem": "large"}, "'auto', 'small' or 'imagenet'"),
    ({"explain.target": "worst"}, "expected `predicted`, `true`, or a class index"),
    ({"data.split_fractions": [0.5, 0.5, 0.5]}, "sum to 1"),
    ({"data.split_fractions": [float("nan"), 0.5, 0.5]}, "sum to 1"),
    ({"run": "mine.failed"}, "another ending than .failed"),
    ({"device": "gpu"}, "expected auto, cpu, cuda, cuda:1 or mps"),
    ({"seed": "x"}, "expected a whole number"),
    ({"explain.methods": "gradcam"}, "expected a list"),
    ({"run": "../elsewhere"}, "option run"),
])
def test_a_wrong_option_is_named(overrides, says):
    with pytest.raises(ValueError) as e: load_options("quick_smoke", overrides=overrides)
    assert says in str(e.value)


def test_overrides_dotted_and_nested_agree():
    assert load_options(overrides={"train.epochs": 2, "data.size": 64}) == load_options(overrides={"train": {"epochs": 2}, "data": {"size": 64}})


def test_another_data_set_gets_its_own_folder():
    assert load_options("quick_smoke").run == "quick_smoke"
    assert load_options("quick_smoke", dataset="synthetic").run == "quick_smoke"
    assert load_options("quick_smoke", dataset="breastmnist").run == "quick_smoke_breastmnist"
    assert load_options("quick_smoke", dataset="breastmnist", run="mine").run == "mine"


def test_another_size_or_seed_gets_its_own_folder():
    assert load_options("breastmnist", overrides={"data.size": 64, "seed": 1}).run == "breastmnist_64_s1"
    assert load_options("breastmnist", overrides={"data": {"size": 64}, "run": "mine"}).run == "mine"
    assert load_options("breastmnist", overrides={"train.epochs": 1}).run == "breastmnist"
    assert load_options("", dataset="x/mine.npz", overrides={"seed": 2}).run == "mine_s2"


def test_every_shipped_config_is_valid():
    assert {"quick_smoke", "breastmnist", "pneumoniamnist", "pathmnist"} <= set(list_configs())
    for name in list_configs(): load_options(name)


@pytest.mark.parametrize("text, says", [("a: [1", "not valid YAML"), ("- 1", "expected a mapping")])
def test_a_broken_config_is_named(tmp_path, text, says):
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(ValueError, match=says): load_options(tmp_path / "c.yaml")


def test_a_missing_config_file_lists_the_known(tmp_path):
    with pytest.raises(FileNotFoundError, match="quick_smoke"): find_config(tmp_path / "none.yaml")
    with pytest.raises(ValueError, match="Near: quick_smoke"): find_config("quick_smok")


def test_the_environment_names_folders(monkeypatch, tmp_path):
    monkeypatch.setenv("XAIMED_DATA_DIR", str(tmp_path / "d"))
    monkeypatch.setenv("XAIMED_ARTIFACTS", str(tmp_path / "a"))
    o = load_options()
    assert (o.data.data_dir, o.artifacts_dir) == (str(tmp_path / "d"), str(tmp_path / "a"))


def test_a_path_that_climbs_is_found_from_another_folder(root, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    beside = Path("..") / root.name
    assert resolve_path(beside) == root.resolve()
    assert resolve_path("data") == tmp_path / "data"


def test_a_stage_is_kept_until_something_changes(tmp_path):
    o = options(tmp_path)
    run_stage(o, "data", one_file())
    first = read_manifest(stage_dir(o, "data"))["build"]
    run_stage(o, "data", one_file())
    assert read_manifest(stage_dir(o, "data"))["build"] == first
    run_stage(options(tmp_path, seed=1), "data", one_file())
    assert read_manifest(stage_dir(o, "data"))["build"] != first


def test_a_remade_stage_makes_the_next_one_stale(tmp_path):
    o = options(tmp_path)
    for stage in STAGES[:2]: run_stage(o, stage, one_file())
    assert stage_state(o, "models") == (True, "unchanged")
    run_stage(o, "data", one_file(), force=True)
    assert stage_state(o, "models") == (False, "data was made again")


def test_a_missing_output_or_a_broken_manifest_makes_it_stale(tmp_path):
    o = options(tmp_path)
    folder = run_stage(o, "data", one_file())
    (folder / "a.txt").unlink()
    assert stage_state(o, "data") == (False, "a.txt is missing")
    run_stage(o, "data", one_file())
    (folder / "a.txt").write_text("damaged")
    assert stage_state(o, "data") == (False, "a.txt is not as it was written")
    run_stage(o, "data", one_file())
    assert (folder / "a.txt").read_text() == "x"
    (folder / "manifest.json").write_text("{")
    assert stage_state(o, "data") == (False, "its manifest is broken")
    run_stage(o, "data", one_file())
    assert stage_state(o, "data")[0]


def test_a_copied_source_with_the_same_content_is_no_change(tmp_path):
    source, o = tmp_path / "s", options(tmp_path)
    source.write_text("same")
    run_stage(o, "data", one_file(facts={"watched": [source]}))
    os.utime(source, (1, 1))
    assert stage_state(o, "data")[0]
    source.write_text("gone")
    assert stage_state(o, "data") == (False, "s changed")


def test_a_source_edited_while_the_stage_works_is_noticed(tmp_path):
    "A maker that notes what it reads before reading it cannot pass off the edited file as what it read."
    source, o = tmp_path / "s", options(tmp_path)
    source.write_text("read")
    def make(folder):
        noted = config.watch(source)
        source.write_text("edit")
        return one_file(facts={"watched": [noted]})(folder)
    run_stage(o, "data", make)
    assert stage_state(o, "data") == (False, "s changed")


def test_a_file_that_appears_beside_is_a_change(tmp_path):
    names, o = tmp_path / "mine.json", options(tmp_path)
    run_stage(o, "data", one_file(facts={"watched": [names]}))
    assert stage_state(o, "data")[0]
    names.write_text("{}")
    assert stage_state(o, "data") == (False, "mine.json changed")


def test_another_file_of_the_same_name_in_another_data_folder_is_a_change(tmp_path):
    for folder, text in (("a", "one"), ("b", "two"), ("c", "one")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "set.npz").write_text(text)
    at = lambda folder: options(tmp_path, data={"dataset": "set", "data_dir": str(tmp_path / folder)})
    run_stage(at("a"), "data", one_file(facts={"watched": [tmp_path / "a" / "set.npz"]}))
    assert stage_state(at("c"), "data")[0], "the same content elsewhere is no change"
    assert stage_state(at("b"), "data") == (False, "set.npz changed")


def test_a_relative_path_seen_from_another_folder_is_another_file(tmp_path, monkeypatch):
    o = options(tmp_path, data={"dataset": "set.npz"})
    for folder, text in (("a", "one"), ("b", "two"), ("c", "one")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "set.npz").write_text(text)
    def seen_from(folder):
        monkeypatch.chdir(tmp_path / folder)
        return stage_state(o, "data")
    monkeypatch.chdir(tmp_path / "a")
    run_stage(o, "data", one_file(facts={"watched": [tmp_path / "a" / "set.npz"]}))
    assert seen_from("a") == seen_from("c") == (True, "unchanged") and seen_from("b") == (False, "set.npz changed")


def test_other_bytes_with_the_size_and_time_of_before_are_a_change(tmp_path):
    source, o = tmp_path / "s", options(tmp_path)
    source.write_text("one")
    before = source.stat()
    run_stage(o, "data", one_file(facts={"watched": [source]}))
    source.write_text("two")
    os.utime(source, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert stage_state(o, "data") == (False, "s changed")


def test_a_file_behind_a_linked_folder_is_watched(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "set").mkdir()
    (tmp_path / "set/healthy").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "set/loop").symlink_to(tmp_path / "set")
    (tmp_path / "elsewhere/1.png").write_text("one")
    o = options(tmp_path)
    run_stage(o, "data", one_file(facts={"watched": [tmp_path / "set"]}))
    assert stage_state(o, "data")[0]
    (tmp_path / "elsewhere/2.png").write_text("two")
    assert stage_state(o, "data") == (False, "set changed")


def test_what_changes_while_a_stage_is_made_is_not_taken_for_what_it_was_made_from(tmp_path, monkeypatch):
    "The code on the disk, and the result that the stage had read, are replaced while it is at work."
    o, code = options(tmp_path), ["old"]
    monkeypatch.setattr(config, "code_of", lambda stage: code[0])
    def replaced_by_another_process(folder):
        run_stage(o, "data", one_file())
        seen = dict(config._BUILDS)
        run_stage(o, "data", one_file(), force=True)
        config._BUILDS.clear()
        config._BUILDS.update(seen)                            # of another process this one knows nothing
    run_stage(o, "models", replaced_by_another_process)
    assert stage_state(o, "models") == (False, "data was made again")
    def edited(folder):
        run_stage(o, "data", one_file())
        code[0] = "new"
    run_stage(o, "models", edited, force=True)
    assert stage_state(o, "models") == (False, "options or code changed")


def test_a_name_that_stands_twice_is_refused(tmp_path):
    (tmp_path / "c.yaml").write_text("train:\n  epochs: 100\nseed: 1\ntrain:\n  batch_size: 8\n")
    with pytest.raises(ValueError, match="'train' stands twice .line 1.: join the two"): load_options(tmp_path / "c.yaml")


def test_a_full_disk_says_what_to_do(tmp_path):
    o, log = options(tmp_path), []
    with pytest.raises(Interrupted, match="data: No space left on device in .* MB free.: make room there, or set artifacts_dir"):
        run_stage(o, "data", _two_steps(log, "two", OSError(28, "No space left on device")), resume=True)
    run_stage(o, "data", _two_steps(log), resume=True)
    assert log == ["one", "two"], "it goes on"


def test_what_a_killed_process_left_is_kept_by_name(tmp_path):
    code = f"""
import os, signal
from xaimed.config import Options, run_stage
def make(folder):
    (folder / "best.pt").write_text("epoch 89")
    os.kill(os.getpid(), signal.SIGKILL)
run_stage(Options(run="r", artifacts_dir={str(tmp_path / 'artifacts')!r}), "data", make)
"""
    assert subprocess.run([sys.executable, "-c", code]).returncode == -9
    folder = run_stage(options(tmp_path), "data", one_file())
    assert (folder.with_name("r.failed") / "best.pt").read_text() == "epoch 89"
    assert sorted(p.name for p in folder.parent.iterdir()) == [".r.lock", "r", "r.failed"]


@pytest.mark.parametrize("error", [RuntimeError("NaN"), KeyboardInterrupt()])
def test_a_failed_stage_loses_nothing(tmp_path, error):
    o = options(tmp_path)
    run_stage(o, "data", one_file(text="good"))

    def fail(folder):
        (folder / "a.txt").write_text("half")
        raise error

    with pytest.raises(type(error)): run_stage(o, "data", fail, force=True)
    assert (stage_dir(o, "data") / "a.txt").read_text() == "good"
    assert (stage_dir(o, "data").with_name("r.failed") / "a.txt").read_text() == "half"
    assert stage_state(o, "data")[0]


def test_a_crash_between_the_two_renames_is_mended(tmp_path):
    o = options(tmp_path)
    folder = run_stage(o, "data", one_file(text="good"))
    folder.rename(folder.with_name(".r.old"))
    run_stage(o, "data", one_file(text="new"))
    assert (folder / "a.txt").read_text() == "good"


def _slow(folder_and_log):
    folder, log = folder_and_log
    o = Options(run="r", artifacts_dir=folder)

    def make(into):
        with open(log, "a") as f: f.write("made\n")
        time.sleep(0.5)
        (into / "a.txt").write_text("x")

    run_stage(o, "data", make)


def test_two_processes_make_a_stage_once(tmp_path):
    log = tmp_path / "log"
    with multiprocessing.get_context("spawn").Pool(2) as pool: pool.map(_slow, [(str(tmp_path / "artifacts"), str(log))] * 2)
    assert log.read_text() == "made\n"


def test_atomic_write_keeps_the_old_file(tmp_path):
    target = write_json(tmp_path / "a.json", {"v": 1})
    with pytest.raises(OSError):
        with atomic_write(target) as beside:
            beside.write_text("{")
            raise OSError("disk full")
    assert read_json(target) == {"v": 1} and os.listdir(tmp_path) == ["a.json"]


def test_a_full_disk_stops_the_stage_and_keeps_the_old_result(tmp_path):
    "The half-made folder cannot grow; the earlier result stays."
    o = options(tmp_path)
    run_stage(o, "data", one_file(text="good"))
    code = f"""
import resource, signal
from xaimed.config import Options, run_stage
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
def make(folder): (folder / "a.txt").write_text("x" * 100_000)
run_stage(Options(run="r", artifacts_dir={str(tmp_path / 'artifacts')!r}), "data", make, force=True)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode != 0 and "File too large" in done.stderr
    assert (stage_dir(o, "data") / "a.txt").read_text() == "good"


def test_a_read_only_place_is_named(tmp_path):
    (tmp_path / "artifacts").write_text("a file where a folder should be")
    with pytest.raises(XaimedError, match="set artifacts_dir"): run_stage(options(tmp_path), "data", one_file())


def test_cuda_asked_for_and_absent():
    import torch
    if torch.cuda.is_available(): pytest.skip("there is a CUDA device here")
    with pytest.raises(ValueError, match="set `device: auto`"): resolve_device("cuda")


def test_a_misspelt_notebook_parameter_is_refused(monkeypatch):
    class Shell: user_ns = {"In": ["run = ''", "# Parameters\ndatset = \"breastmnist\"\n"]}
    ipython = type(sys)("IPython")
    ipython.get_ipython = lambda: Shell
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    with pytest.raises(ValueError, match="unknown notebook parameter 'datset'. Near: dataset"): refuse_unknown_parameters()
    Shell.user_ns["In"][1] = "# Parameters\ndataset = \"breastmnist\"\n"
    refuse_unknown_parameters()


def test_what_is_not_a_number_becomes_null(tmp_path):
    import numpy as np
    write_json(tmp_path / "a.json", {"a": np.float32("nan"), "b": np.arange(2), "c": float("inf"), "d": Path("x")})
    assert json.loads((tmp_path / "a.json").read_text()) == {"a": None, "b": [0, 1], "c": None, "d": "x"}


def _two_steps(log, stop_at=None, error=None):
    "A stage of two steps that goes on where it was stopped."
    def make(folder):
        for name in ("one", "two"):
            if (folder / name).exists(): continue
            if name == stop_at: raise error
            log.append(name)
            (folder / name).write_text(name)
    return make


@pytest.mark.parametrize("error", [KeyboardInterrupt(), MemoryError(), OSError("disk full")])
def test_the_next_call_goes_on_in_what_an_attempt_left(tmp_path, error):
    o, log = options(tmp_path), []
    with pytest.raises(type(error)): run_stage(o, "data", _two_steps(log, "two", error), resume=True)
    folder = run_stage(o, "data", _two_steps(log), resume=True)
    assert log == ["one", "two"] and sorted(p.name for p in folder.iterdir()) == ["manifest.json", "one", "two"]
    assert sorted(p.name for p in folder.parent.iterdir()) == [".r.lock", "r"], "nothing of the attempt is left"


@pytest.mark.parametrize("change", ["options", "force", "error the user mends", "broken note", "upstream made again"])
def test_an_attempt_at_something_else_is_set_aside(tmp_path, change):
    o, log, stage = options(tmp_path), [], "models"
    run_stage(o, "data", one_file())
    error = XaimedError("diverged") if change == "error the user mends" else KeyboardInterrupt()
    with pytest.raises(type(error)): run_stage(o, stage, _two_steps(log, "two", error), resume=True)
    if change == "options": o = options(tmp_path, model={"name": "resnet50"})
    if change == "broken note": stage_dir(o, stage).with_name(".r.part.json").write_text("{")
    if change == "upstream made again": run_stage(o, "data", one_file(), force=True)
    folder = run_stage(o, stage, _two_steps(log), resume=True, force=change == "force")
    assert log == ["one", "one", "two"] and (folder.with_name("r.failed") / "one").exists()
    assert not list(folder.parent.glob(".r.part*"))


def test_a_killed_attempt_is_gone_on_with(tmp_path):
    code = f"""
import os, signal
from xaimed.config import Options, run_stage
def make(folder):
    (folder / "one").write_text("one")
    os.kill(os.getpid(), signal.SIGKILL)
run_stage(Options(run="r", artifacts_dir={str(tmp_path / 'artifacts')!r}), "data", make, resume=True)
"""
    assert subprocess.run([sys.executable, "-c", code]).returncode == -9
    log = []
    run_stage(options(tmp_path), "data", _two_steps(log), resume=True)
    assert log == ["two"]


HOLD = """
import sys, time
from xaimed.config import Options, run_stage
def make(folder):
    (folder / "a.txt").write_text("x")
    print("at it", flush=True)
    sys.stdin.readline()
run_stage(Options(run="r", artifacts_dir=sys.argv[1]), "data", make)
"""


@pytest.fixture
def another_process(tmp_path):
    "A process in the middle of making the stage; a line to its standard input lets it end."
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path / "artifacts")], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "at it\n"
    yield process
    process.kill()
    process.communicate()


def test_the_second_says_who_is_at_it_and_stops(tmp_path, another_process):
    with pytest.raises(XaimedError, match=rf"data of run r: process {another_process.pid} on \S+, since \d\d:\d\d is at it now"): run_stage(options(tmp_path), "data", one_file(), wait=False)
    another_process.kill()
    another_process.wait()
    assert run_stage(options(tmp_path), "data", one_file(text="mine"), wait=False).joinpath("a.txt").read_text() == "mine", "a dead process holds nothing"


def test_who_waits_says_for_whom_and_finds_it_made(tmp_path, another_process, caplog):
    import threading
    threading.Timer(3, lambda: (another_process.stdin.write("go on\n"), another_process.stdin.flush())).start()
    folder = run_stage(options(tmp_path), "data", one_file(text="mine"))
    assert (folder / "a.txt").read_text() == "x" and f"process {another_process.pid} on" in caplog.text and "waiting" in caplog.text


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="needs /proc to tell a folder from a file")
def test_bytes_reach_the_disk_before_the_name(tmp_path, monkeypatch):
    "The order of a write that a power cut cannot spoil: the file synced, renamed, the folder synced."
    order = []
    monkeypatch.setattr(os, "fsync", lambda handle, sync=os.fsync: (order.append("folder" if os.path.isdir(f"/proc/self/fd/{handle}") else "file"), sync(handle)))
    monkeypatch.setattr(os, "replace", lambda a, b, replace=os.replace: (order.append("rename"), replace(a, b)))
    write_json(tmp_path / "a.json", {})
    assert order == ["file", "rename", "folder"]


@pytest.mark.skipif(os.name != "posix", reason="a folder cannot be opened there")
def test_a_folder_that_cannot_be_synced_stops_nothing(tmp_path, monkeypatch):
    "As on some network file systems. A file that cannot be synced is an error all the same."
    import errno, stat
    def refuses(kind, sync=os.fsync):
        def fsync(handle):
            if kind(os.fstat(handle).st_mode): raise OSError(errno.EINVAL, "Invalid argument")
            sync(handle)
        return fsync
    monkeypatch.setattr(os, "fsync", refuses(stat.S_ISDIR))
    assert read_json(write_json(tmp_path / "a.json", {"v": 1})) == {"v": 1}
    assert (run_stage(options(tmp_path), "data", one_file(text="made")) / "a.txt").read_text() == "made"
    monkeypatch.setattr(os, "fsync", refuses(stat.S_ISREG))
    with pytest.raises(OSError, match="Invalid argument"): write_json(tmp_path / "a.json", {"v": 2})
    assert read_json(tmp_path / "a.json") == {"v": 1}


def test_a_lock_is_let_go_even_when_its_note_stays(tmp_path, monkeypatch):
    from xaimed.config import claim
    def fails(self, missing_ok=False): raise PermissionError(13, "Permission denied", str(self))
    with monkeypatch.context() as patch:
        patch.setattr("pathlib.Path.unlink", fails)
        with claim(tmp_path / "a.lock", "a"): pass
    done = subprocess.run([sys.executable, "-c", "import sys; from filelock import FileLock; FileLock(sys.argv[1]).acquire(timeout=0)", str(tmp_path / "a.lock")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
