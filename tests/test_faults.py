"Faults on purpose: kills, full and read-only disks, files cut and changed, clocks set back. Each ends in a clear error or a whole run, and the next call goes on."
import ast
import csv
import json
import os
import random
import shutil
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from xaimed import pipeline
from xaimed.checkpoint import NEEDED, load_checkpoint, save_checkpoint
from xaimed.config import STAGES, XaimedError, load_options, stage_dir, stage_state
from xaimed.pipeline import PipelineError, run_pipeline

from stand_ins import STAGE, stand_ins, write_notebook  # noqa: F401 (a fixture)

REAL = {"data": ("data", "run_data"), "models": ("models", "run_models"), "train": ("train", "run_training"), "eval": ("eval", "run_eval"), "explain": ("explain", "run_explain")}
TINY = {"synthetic.n_train": 64, "synthetic.n_val": 24, "synthetic.n_test": 32, "data.size": 16, "data.audit": False, "train.epochs": 3, "eval.n_resamples": 100,
        "eval.n_corrupted": 0, "eval.other_data": "", "eval.n_neighbours": 0, "eval.mc_dropout": 0, "eval.gallery_size": 2,
        "explain.n_random": 1, "explain.n_gallery": 1, "explain.n_steps": 2, "scorecard.budget": "none"}
PROGRAM = "import sys, json; from xaimed.pipeline import run_pipeline; run_pipeline('quick_smoke', run='t', notebooks='books', stages=json.loads(sys.argv[1]), overrides=json.loads(sys.argv[2]), say=str)"


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory):
    "Five real stages of a tiny run, made by one process without a fault."
    folder = tmp_path_factory.mktemp("whole")
    options = load_options("quick_smoke", run="t", overrides=TINY | {"artifacts_dir": str(folder / "artifacts")})
    from xaimed.explain import run_explain
    run_explain(options)
    return options


def lines(path):
    "A table without its times."
    with open(path, newline="") as f: return [{k: v for k, v in row.items() if k != "seconds"} for row in csv.DictReader(f)]


def same_results(one, other):
    "Whether two runs have equal bits in all that chance and time do not decide."
    import torch
    for stage, name in (("data", "card.json"), ("models", "model.json"), ("eval", "metrics.json"), ("eval", "predictions.csv"), ("explain", "explanations.csv")):
        assert (stage_dir(one, stage) / name).read_bytes() == (stage_dir(other, stage) / name).read_bytes(), name
    assert lines(stage_dir(one, "train") / "history.csv") == lines(stage_dir(other, "train") / "history.csv")
    a, b = (torch.load(stage_dir(o, "train") / "best.pt", weights_only=True)["state_dict"] for o in (one, other))
    assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
    with np.load(stage_dir(one, "explain") / "attributions.npz") as a, np.load(stage_dir(other, "explain") / "attributions.npz") as b:
        assert sorted(a.files) == sorted(b.files) and all(np.array_equal(a[k], b[k]) for k in a.files)


HELD = """
import pathlib, time, xaimed.config
finish = xaimed.config._write_manifest
def later(folder, options, stage, *rest):
    while pathlib.Path(f"hold_{stage}").exists(): time.sleep(0.02)
    return finish(folder, options, stage, *rest)
xaimed.config._write_manifest = later
"""


def test_kill_at_a_random_moment_of_each_stage(whole_run, tmp_path, monkeypatch):
    "kill -9 in the middle of data, train, eval and explain: each call goes on, and the results are those of a run nobody disturbed. The stage to be killed may not end, so that every kill hits it."
    monkeypatch.chdir(tmp_path)
    for stage, (module, function) in REAL.items():
        write_notebook(tmp_path / "books" / f"{pipeline.NOTEBOOKS[stage]}.ipynb", f"{HELD}from xaimed.config import load_options\nfrom xaimed.{module} import {function}\n"
                       f"{function}(load_options(config, dataset=dataset, run=run, overrides=overrides)).name")
    overrides, chance = TINY | {"artifacts_dir": str(tmp_path / "artifacts")}, random.Random(0)
    options = load_options("quick_smoke", run="t", overrides=overrides)
    for stage in ("data", "train", "eval", "explain"):
        folder = stage_dir(options, stage)
        (tmp_path / f"hold_{stage}").touch()
        process = subprocess.Popen([sys.executable, "-c", PROGRAM, json.dumps(list(REAL)), json.dumps(overrides)])
        while not (any(folder.parent.glob(".t~*")) or (folder.parent / ".t.part").exists()):
            assert process.poll() is None, f"{stage} was never begun"
            time.sleep(0.01)
        time.sleep(chance.uniform(0, 1))
        process.kill()
        assert process.wait() == -9 and not folder.exists(), f"{stage} was over before the kill"
        while (folder.parent / ".t.lock.held").exists() and _alive(_holder(folder)): time.sleep(0.05)  # its kernel follows
        (tmp_path / f"hold_{stage}").unlink()
    run_pipeline("quick_smoke", run="t", notebooks="books", stages=list(REAL), overrides=overrides, say=str)
    same_results(options, whole_run)


def _holder(folder) -> int: return int((folder.parent / ".t.lock.held").read_text().split()[1])


def _alive(pid) -> bool:
    try: os.kill(pid, 0)
    except ProcessLookupError: return False
    return True


def test_a_kernel_killed_from_outside(stand_ins, tmp_path):
    write_notebook(tmp_path / "books" / "01_models.ipynb", "import os, pathlib, signal\nif not pathlib.Path('killed').exists():\n    pathlib.Path('killed').touch()\n    os.kill(os.getpid(), signal.SIGKILL)\n" + STAGE.format(stage="models"))
    with pytest.raises(PipelineError, match="stage models failed in 01_models.ipynb, cell .*process ended; memory may have run out.*Page: out/models/tiny.failed"): run_pipeline(**stand_ins, stages=("data", "models"))
    assert [o.status for o in run_pipeline(**stand_ins, stages=("data", "models"))] == ["unchanged", "made"]


BIG = "make_small = make\ndef make(folder):\n    make_small(folder)\n    (folder / 'big.bin').write_bytes(bytes(2_000_000))\n"


def big_stage(stage): return STAGE.format(stage=stage).replace("run_stage(options", BIG + "run_stage(options")


def mounted(path, *words):
    "Mount a small disk in memory, or skip."
    path.mkdir(exist_ok=True)
    if not shutil.which("mount") or subprocess.run(["mount", *words, str(path)], capture_output=True).returncode: pytest.skip("this system lets us mount nothing")


@pytest.fixture
def small_disk(stand_ins, tmp_path):
    "A disk of 1 MB under the artifacts."
    mounted(tmp_path / "out", "-t", "tmpfs", "-o", "size=1m", "tmpfs")
    yield tmp_path / "out"
    subprocess.run(["umount", "--lazy", str(tmp_path / "out")], check=True)


def test_a_full_disk(small_disk, stand_ins, tmp_path):
    "The second stage does not fit. The first stays, nothing half is taken for a result, and with room again the run goes on."
    write_notebook(tmp_path / "books" / "01_models.ipynb", big_stage("models"))
    for _ in range(2):
        with pytest.raises((PipelineError, OSError), match="No space left on device"): run_pipeline(**stand_ins, stages=("data", "models"))
    assert stage_state(load_options("tiny.yaml", run="tiny"), "data")[0] and not (small_disk / "models" / "tiny").exists()
    mounted(small_disk, "-o", "remount,size=20m")
    assert [o.status for o in run_pipeline(**stand_ins, stages=("data", "models"))] == ["unchanged", "made"]
    assert (small_disk / "models/tiny/big.bin").stat().st_size == 2_000_000


def test_a_disk_so_full_that_no_page_can_be_written(small_disk, stand_ins, tmp_path):
    run_pipeline(**stand_ins, stages=("data",))
    filled = small_disk / "filled"
    with open(filled, "wb", buffering=0) as f, pytest.raises(OSError):
        while True: f.write(bytes(4096))
    with pytest.raises((XaimedError, OSError), match="No space left on device"): run_pipeline(**stand_ins, stages=("data", "models"))
    filled.unlink()
    assert [o.status for o in run_pipeline(**stand_ins, stages=("data", "models"))] == ["unchanged", "made"]


def test_a_checkpoint_that_does_not_fit(small_disk):
    "The largest file of a run is the likeliest to meet a full disk; torch's own words for it name a position in a file."
    checkpoint = {k: kind() for k, kind in NEEDED.items()} | {"state_dict": {"weight": torch.ones(100)}}
    save_checkpoint(small_disk / "best.pt", checkpoint)
    with pytest.raises(OSError, match="No space left on device"): save_checkpoint(small_disk / "best.pt", checkpoint | {"state_dict": {"weight": torch.zeros(1_000_000)}})
    assert load_checkpoint(small_disk / "best.pt")["state_dict"]["weight"].sum() == 100 and [p.name for p in small_disk.iterdir()] == ["best.pt"], "the one before is whole"


def test_a_read_only_disk(small_disk, stand_ins):
    run_pipeline(**stand_ins, stages=("data",))
    mounted(small_disk, "-o", "remount,ro")
    assert [o.status for o in run_pipeline(**stand_ins, stages=("data",))] == ["unchanged"], "what is there can be read"
    with pytest.raises(XaimedError, match="artifacts_dir: nothing can be written in .*Read-only file system.*set artifacts_dir"): run_pipeline(**stand_ins, stages=("data", "models"))
    mounted(small_disk, "-o", "remount,rw")
    assert [o.status for o in run_pipeline(**stand_ins, stages=("data", "models"))] == ["unchanged", "made"]


def test_a_limit_on_the_size_of_files(stand_ins, tmp_path):
    "Where nothing can be mounted: the system refuses the second megabyte of a file."
    write_notebook(tmp_path / "books" / "00_data.ipynb", big_stage("data"))
    code = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, resource.RLIM_INFINITY)); from xaimed import pipeline; pipeline.run_pipeline('tiny.yaml', notebooks='books', stages=('data',))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1 and "stage data failed in 00_data.ipynb" in done.stderr and "File too large" in done.stderr
    assert not (tmp_path / "out/data/tiny").exists()
    assert run_pipeline(**stand_ins, stages=("data",))[0].status == "made"


def test_a_checkpoint_that_does_not_fit(whole_run, tmp_path):
    "The training stops at the write, leaves no half checkpoint as a result, and the next call ends it."
    code = ("import resource, sys; from xaimed.config import load_options; import json; from xaimed.train import run_training\n"
            "resource.setrlimit(resource.RLIMIT_FSIZE, (10_000_000, resource.RLIM_INFINITY)); run_training(load_options('quick_smoke', run='t', overrides=json.loads(sys.argv[1])))")
    overrides = TINY | {"train.epochs": 1, "artifacts_dir": str(tmp_path / "artifacts")}
    done = subprocess.run([sys.executable, "-c", code, json.dumps(overrides)], capture_output=True, text=True)
    options = load_options("quick_smoke", run="t", overrides=overrides)
    assert done.returncode == 1 and "save_checkpoint" in done.stderr, done.stderr
    assert not stage_dir(options, "train").exists() and not stage_state(options, "train")[0]
    from xaimed.train import run_training
    assert (run_training(options) / "best.pt").stat().st_size > 10_000_000


FILES = [("eval", "manifest.json"), ("train", "manifest.json"), ("data", "manifest.json"), ("eval", "metrics.json"), ("eval", "predictions.csv"), ("train", "best.pt"), ("explain", "attributions.npz")]


def same_json(before, after):
    "Whether only blanks differ."
    try: return json.loads(before) == json.loads(after)
    except ValueError: return False


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(which=st.sampled_from(FILES), place=st.floats(0, 1, exclude_max=True), byte=st.integers(0, 255), cut=st.booleans())
@example(which=FILES[0], place=0.0, byte=0, cut=True)
@example(which=FILES[5], place=0.999999, byte=7, cut=False)
def test_a_file_cut_or_changed_at_any_byte_is_noticed(which, place, byte, cut, whole_run):
    "Neither the stage nor one that builds on it passes for current; when the file is as it was, both do."
    stage, name = which
    path = stage_dir(whole_run, stage) / name
    before, stat = path.read_bytes(), path.stat()
    at = int(place * len(before))
    after = before[:at] if cut else before[:at] + bytes([byte]) + before[at + 1:]
    if after == before or (name.endswith(".json") and same_json(before, after)): return
    try:
        path.write_bytes(after)
        for above in STAGES[STAGES.index(stage):STAGES.index("explain") + 1]:
            current, why = stage_state(whole_run, above)
            assert not current and why, (above, at)
    finally:
        path.write_bytes(before)
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert stage_state(whole_run, "explain") == (True, "unchanged")


@pytest.mark.parametrize("text", ["", "{}", "[]", "null", "7", '{"outputs": {}}', "\x00" * 100])
def test_a_manifest_of_another_form_is_no_result(text, stand_ins, tmp_path):
    run_pipeline(**stand_ins, stages=("data",))
    (tmp_path / "out/data/tiny/manifest.json").write_text(text)
    assert run_pipeline(**stand_ins, stages=("data",))[0].status == "made"


@pytest.mark.parametrize("days", [-400, 400])
def test_a_clock_that_jumps_changes_no_verdict(days, stand_ins, tmp_path):
    "Results are told apart by content and build, never by which time is later."
    run_pipeline(**stand_ins, stages=("data", "models"))
    for p in (tmp_path / "out").rglob("*"): os.utime(p, (p.stat().st_mtime + days * 86_400,) * 2)
    assert [o.status for o in run_pipeline(**stand_ins, stages=("data", "models"))] == ["unchanged"] * 2
    changed = tmp_path / "out/data/tiny/metrics.json"
    changed.write_text(changed.read_text().replace("0.9", "0.8"))  # of the same size
    os.utime(changed, (time.time() + 2 * days * 86_400,) * 2)
    assert [o.status for o in run_pipeline(**stand_ins, stages=("data", "models"))] == ["made"] * 2
    os.utime(tmp_path / "out/data/tiny/metrics.json", (time.time() + days * 86_400,) * 2)
    assert [o.status for o in run_pipeline(**stand_ins, stages=("data", "models"), force=["data"])] == ["made"] * 2, "the data are new, whatever the clock says"


def test_memory_that_runs_out_once_in_the_scorecard(whole_run, monkeypatch, caplog):
    "A batch of explanations is halved and made again; its figures are those of a run with room."
    import torch
    from xaimed.models import build_model
    from xaimed.explain import explainer
    torch.manual_seed(0)
    model, x, target = build_model("resnet10", 4, 3, image_size=16).eval(), torch.rand(8, 3, 16, 16), torch.zeros(8, dtype=torch.long)
    enough = explainer("integrated_gradients", n_steps=4, batch_size=8)(model, x, target).map
    failed, forward = [], model.forward

    def once(images):
        if not failed:
            failed.append(len(images))
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return forward(images)

    monkeypatch.setattr(model, "forward", once)
    with caplog.at_level("WARNING", logger="xaimed"): halved = explainer("integrated_gradients", n_steps=4, batch_size=8)(model, x, target).map
    assert failed and "out of memory, going on with 4 images at once" in caplog.text
    assert torch.allclose(enough, halved, atol=1e-6)


def test_html_in_the_name_of_a_data_set(tmp_path, root):
    "Class names and titles are in test_report; here is a file somebody has named, in the page, the card and the table of a batch."
    from markdown_it import MarkdownIt
    from made_run import make_run
    from test_report import executed
    from xaimed import report
    from xaimed.batch import Row, summary_markdown
    evil = "<img src=x onerror=alert(1)><b>"
    results = report.load_results(make_run(tmp_path, dataset=evil))
    page = report.render_report(executed(root, results, tmp_path / "nb.ipynb"), tmp_path / "r.html").read_text()
    card, table = (MarkdownIt("commonmark").enable("table").render(text) for text in (report.model_card(results), summary_markdown([Row(evil, 28, 0, "x", error=f"no file {evil}")])))
    for html in (page, card, table): assert "<img src=x" not in html and "&lt;img src=x onerror=alert(1)&gt;" in html


FORBIDDEN = {"eval", "exec", "os.system", "os.popen", "pickle.load", "pickle.loads", "subprocess.getoutput", "yaml.load", "yaml.unsafe_load", "yaml.full_load"}


def calls(source):
    "Every call of a module as its dotted name, with the names of its keyword arguments that are not a plain False."
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call): continue
        yield ast.unparse(node.func), {k.arg: ast.unparse(k.value) for k in node.keywords}, node.lineno


def risky(source):
    return [(name, line) for name, words, line in calls(source) if name in FORBIDDEN or words.get("shell", "False") != "False" or words.get("allow_pickle", "False") != "False"
            or (name == "torch.load" and words.get("weights_only") != "True")]


def test_no_shell_no_eval_no_pickle(root):
    found = {p.name: bad for p in sorted((root / "xaimed").glob("*.py")) if (bad := risky(p.read_text()))}
    assert not found
    for line in ("eval(word)", "exec(word)", "subprocess.run(word, shell=True)", "os.system(word)", "pickle.load(f)", "torch.load(p)", "np.load(p, allow_pickle=True)", "yaml.load(f)"): assert risky(line), line


def test_an_option_is_never_run_as_code(tmp_path, monkeypatch, capsys):
    from xaimed import cli
    monkeypatch.chdir(tmp_path)
    trap = "__import__('pathlib').Path('caught').touch()"
    for words in (["--seed", trap], ["--train.epochs", f"$(touch caught)"], ["--explain.methods", f"[{trap}]"], ["--set", f"report.title=!!python/object/apply:os.system ['touch caught']", "--train.epochs", "0"], ["--dataset", "; touch caught"]):
        assert cli.main(["run", *words]) in (1, 2)
    assert not list(tmp_path.glob("caught")) and "Traceback" not in capsys.readouterr().err
