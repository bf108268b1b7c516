"The pipeline: stand-in stages for its mechanism, and one run of the real six."
import fnmatch
import json
import logging
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import nbformat
import pytest

from nbclient.exceptions import DeadKernelError

from xaimed import pipeline
from xaimed.config import NOTEBOOKS, STAGES, XaimedError, load_options
from xaimed.pipeline import PipelineError, run_notebook, run_pipeline

from stand_ins import STAGE, stand_ins, write_notebook  # noqa: F401 (a fixture)

def render(page, html): Path(html).write_text("<html></html>")


def statuses(outcomes): return [o.status for o in outcomes]


def test_all_stages_then_skip_then_missing_then_force(stand_ins, tmp_path):
    lines = []
    assert statuses(run_pipeline(**stand_ins | {"say": lines.append}, render=render)) == ["made"] * 6
    assert [line.split()[0] for line in lines] == list(STAGES) and "made in" in lines[0] and "out/data/tiny" in lines[0]
    for stage in STAGES:
        assert (tmp_path / "out" / stage / "tiny" / f"{NOTEBOOKS[stage]}.ipynb").is_file()
    assert not list((tmp_path / "out").rglob(".*.ipynb"))
    lines.clear()
    assert statuses(run_pipeline(**stand_ins | {"say": lines.append}, render=render)) == ["unchanged"] * 6
    assert all("skipped: unchanged" in line for line in lines)
    before = (tmp_path / "out/eval/tiny/manifest.json").read_bytes()
    (tmp_path / "out/eval/tiny/03_eval.ipynb").unlink()
    (tmp_path / "out/report/tiny/report.html").unlink()
    assert statuses(run_pipeline(**stand_ins, render=render)) == ["unchanged", "unchanged", "unchanged", "made", "unchanged", "made"]
    assert (tmp_path / "out/eval/tiny/manifest.json").read_bytes() == before, "a missing page is made again; the result was current and is kept"
    forced = run_pipeline(**stand_ins, stages=("data", "models", "train"), force=["models"])
    assert statuses(forced) == ["unchanged", "made", "made"]


def test_a_failed_stage_names_cell_error_and_notebook(stand_ins, tmp_path):
    run_pipeline(**stand_ins, stages=("data",))
    result = (tmp_path / "out/data/tiny/manifest.json").read_bytes()
    with pytest.raises(PipelineError) as caught: run_pipeline(**stand_ins, run="tiny", overrides={"seed": 13}, stages=("data",))
    text = str(caught.value)
    assert "stage data failed in 00_data.ipynb, cell [3]" in text and "ValueError: unlucky seed 13: expected another" in text and "\n" not in text
    assert "out/data/tiny.failed/00_data.ipynb" in text and (tmp_path / "out/data/tiny.failed/00_data.ipynb").is_file()
    assert "Traceback" in caught.value.details and (tmp_path / "out/data/tiny/manifest.json").read_bytes() == result
    run_pipeline(**stand_ins, stages=("data",), force=True)
    assert not (tmp_path / "out/data/tiny.failed").exists()


def test_a_kernel_that_dies_is_an_error(stand_ins):
    with pytest.raises(PipelineError, match="stage data failed in 00_data.ipynb.*process ended"): run_pipeline(**stand_ins, overrides={"seed": 99}, stages=("data",))


def test_a_page_that_leaves_no_result_is_an_error(stand_ins, tmp_path):
    write_notebook(tmp_path / "books" / "00_data.ipynb", "1 + 1")
    with pytest.raises(PipelineError, match="cannot be used: not made yet"): run_pipeline(**stand_ins, stages=("data",))


def test_wrong_options_start_nothing(stand_ins, tmp_path):
    with pytest.raises(ValueError, match="Near: train.epochs"): run_pipeline(**stand_ins, overrides={"train.epoch": 3})
    assert not (tmp_path / "out").exists()


def test_unknown_parameters_are_refused(stand_ins, tmp_path):
    with pytest.raises(ValueError, match="Near: dataset"): run_notebook("books/00_data.ipynb", tmp_path / "o.ipynb", {"datset": "breastmnist"})


def test_papermill_alone_refuses_unknown_parameters(stand_ins, tmp_path):
    pages = tmp_path / "books" / "00_data.ipynb", tmp_path / "o.ipynb"
    done = subprocess.run([sys.executable, "-m", "papermill", *pages, "-p", "datset", "breastmnist"], capture_output=True, text=True)
    assert done.returncode != 0 and "unknown notebook parameter 'datset'. Near: dataset" in done.stderr


def test_papermill_alone_refuses_a_misspelt_parameter_of_a_real_stage(root, tmp_path):
    "The page's first own cell refuses it: nothing of the stage runs."
    done = subprocess.run([sys.executable, "-m", "papermill", "--kernel", "python3", root / "nbs" / "00_data.ipynb", tmp_path / "o.ipynb", "-p", "datset", "breastmnist"],
                          cwd=tmp_path, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(root)})
    assert done.returncode != 0 and "unknown notebook parameter 'datset'. Near: dataset" in done.stderr, done.stderr
    assert not (tmp_path / "artifacts").exists() and not (tmp_path / "data").exists()


def test_a_page_of_a_kernel_that_died_is_not_told_twice(stand_ins):
    record = logging.LogRecord("asyncio", logging.ERROR, "", 0, "Task exception was never retrieved", (), (DeadKernelError, DeadKernelError("Kernel died"), None))
    other = logging.LogRecord("asyncio", logging.ERROR, "", 0, "Task exception was never retrieved", (), (OSError, OSError(), None))
    assert not pipeline._not_our_kernel(record) and pipeline._not_our_kernel(other)


@pytest.mark.parametrize("overrides, words", [
    ({"data.download": False}, "there is no breastmnist.npz in .*data.download=true"),
    ({"data.download": True, "data.mirror": "./mirror"}, "the mirror folder .* holds no breastmnist.npz"),
    ({"data.dataset": "./mine.npz"}, "no file or folder .*mine.npz"),
    ({"data.size": 29}, "has no size 29"),
])
def test_a_missing_data_file_is_refused_before_a_kernel_starts(overrides, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(pipeline, "run_notebook", lambda *a, **k: pytest.fail("a kernel was started"))
    with pytest.raises(ValueError, match=words): run_pipeline("", overrides={"data.dataset": "breastmnist", "data.data_dir": str(tmp_path), **overrides})
    (tmp_path / "breastmnist.npz").write_bytes(b"PK cut short")
    if "data.dataset" not in overrides and "data.size" not in overrides:
        with pytest.raises(ValueError, match="not a whole .npz"): run_pipeline("", overrides={"data.dataset": "breastmnist", "data.data_dir": str(tmp_path), **overrides})
    assert not (tmp_path / "artifacts").exists()


def test_cell_not_run_is_noticed():
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("x = 1")])
    with pytest.raises(PipelineError, match="not run to its end"): pipeline._check_complete(notebook)


def test_no_output_is_lost(tmp_path):
    "With the kernel's usual limit of waiting messages, hundreds of these go missing without an error."
    book = write_notebook(tmp_path / "burst.ipynb", "from IPython.display import publish_display_data\nfor i in range(3000): publish_display_data({'text/plain': f'{i:05d}' + 'x' * 50_000})")
    cell = nbformat.read(run_notebook(book, tmp_path / "out.ipynb"), as_version=4).cells[-1]
    assert [int(o.data["text/plain"][:5]) for o in cell.outputs] == list(range(3000))


def test_a_kernel_that_keeps_its_limit_of_output_makes_no_page(tmp_path, monkeypatch):
    "With the limit on, papermill would lose output and report success."
    monkeypatch.setattr(pipeline, "_KEEP_ALL_OUTPUT", pipeline._KEEP_ALL_OUTPUT.replace("SNDHWM", "NO_SUCH_OPTION"))
    book = write_notebook(tmp_path / "book.ipynb", "1 + 1")
    with pytest.raises(PipelineError, match="book.ipynb, a cell: its process"): run_notebook(book, tmp_path / "out.ipynb")


LONGEST = 107 if sys.platform == "linux" else 103   # bytes of a socket's path


@pytest.mark.skipif(os.name != "posix", reason="sockets with a path")
@pytest.mark.parametrize("length, spoken", [(LONGEST - 25, "ipc"), (LONGEST, "ipc"), (LONGEST + 1, "tcp")])
def test_a_kernel_listens_where_no_other_process_can_take_its_place(length, spoken, tmp_path, tmp_path_factory, monkeypatch):
    "A TCP port looked for and let go can be gone when the kernel binds it; where a path would be too long, TCP still serves."
    outer = tmp_path_factory.mktemp("s")
    home = outer / ("x" * (length - len(f"{outer}//xaimed-abcdefgh/k-0")) or pytest.skip("the folder for temporary files has a long name"))
    home.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(home))
    book = write_notebook(tmp_path / "book.ipynb", "import ipykernel\nprint(ipykernel.get_connection_info(unpack=True)['transport'])")
    cell = nbformat.read(run_notebook(book, tmp_path / "out.ipynb"), as_version=4).cells[-1]
    assert cell.outputs[0].text.strip() == spoken
    dies = write_notebook(tmp_path / "dies.ipynb", "import os; os._exit(9)")
    with pytest.raises(PipelineError, match="its process ended"): run_notebook(dies, tmp_path / "out2.ipynb")
    assert not list(home.glob("xaimed-*"))


def test_the_kernel_is_this_interpreter(tmp_path, monkeypatch):
    "Whatever python3 kernel the machine has, or none."
    for folder, kernel in (("somebody", {"argv": ["/bin/false"], "display_name": "Python 3", "language": "python"}), ("nobody", None)):
        home = tmp_path / folder
        (home / "kernels" / "python3").mkdir(parents=True)
        if kernel: (home / "kernels" / "python3" / "kernel.json").write_text(json.dumps(kernel))
        monkeypatch.setenv("JUPYTER_PATH", str(home))
        book = write_notebook(tmp_path / "who.ipynb", "import sys, os\nprint(sys.executable, os.environ['MARK'])")
        done = nbformat.read(run_notebook(book, tmp_path / "{braces}" / "out.ipynb", env={"MARK": "x1"}), as_version=4)
        assert done.cells[-1].outputs[0].text == f"{sys.executable} x1\n"
        assert done.metadata.kernelspec.name == "python3"


def test_kernels_work_where_the_caller_is(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    book = write_notebook(tmp_path / "books" / "where.ipynb", "import os\nprint(os.getcwd())")
    assert nbformat.read(run_notebook(book, "out.ipynb"), as_version=4).cells[-1].outputs[0].text.strip() == os.path.realpath(tmp_path)


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGTERM])
def test_an_ended_run_leaves_no_kernel(end, stand_ins, tmp_path):
    write_notebook(tmp_path / "books" / "00_data.ipynb", "import atexit, os, time\natexit.register(time.sleep, 2)\nopen('started', 'w').write(str(os.getpid()))\ntime.sleep(60)")
    code = ("from xaimed import cli, pipeline; import functools; "
            "pipeline.run_pipeline = functools.partial(pipeline.run_pipeline, notebooks='books'); cli.sys.exit(cli.main(['--config', 'tiny.yaml', 'data']))")
    process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True)
    kernel = int(wait_for(tmp_path / "started"))
    process.send_signal(end)
    _, err = process.communicate(timeout=30)
    assert process.returncode == {signal.SIGINT: 130, signal.SIGTERM: 143}[end]
    assert re.fullmatch(r"error: (interrupted|asked to end); finished stages are kept, .*\n", err), err
    for _ in range(50):
        if not _alive(kernel): break
        time.sleep(0.1)
    assert not _alive(kernel)
    assert not list((tmp_path / "out").rglob(".*.ipynb"))


def _alive(pid) -> bool:
    try: os.kill(pid, 0)
    except ProcessLookupError: return False
    return True


RUN_TINY = "from xaimed.pipeline import run_pipeline; print(run_pipeline('tiny.yaml', notebooks='books', stages=('data', 'models'), say=str)[-1].status)"
WAITING = "import os, pathlib, time\nopen('started', 'w').write(str(os.getpid()))\nwhile not pathlib.Path('go').exists(): time.sleep(0.1)\n"


def wait_for(path):
    for _ in range(300):
        if path.exists() and path.read_text(): return path.read_text()
        time.sleep(0.1)
    raise TimeoutError(path)


def test_a_second_process_on_a_run_says_who_has_it_and_stops(stand_ins, tmp_path, request):
    write_notebook(tmp_path / "books" / "00_data.ipynb", WAITING + STAGE.format(stage="data"))
    first = subprocess.Popen([sys.executable, "-c", RUN_TINY], stdout=subprocess.PIPE, text=True)
    request.addfinalizer(first.kill)
    wait_for(tmp_path / "started")
    for force in (False, True):
        with pytest.raises(XaimedError, match=rf"run 'tiny': process {first.pid} on .*, since .* is at it now. Wait until it has ended, end it, or give this run another name"):
            run_pipeline(**stand_ins, stages=("data",), force=force)
    with pipeline.hold_run(load_options("tiny.yaml", run="other")): pass  # another run is free
    (tmp_path / "go").touch()
    assert first.communicate(timeout=60)[0].strip() == "made"
    assert statuses(run_pipeline(**stand_ins, stages=("data", "models"))) == ["unchanged"] * 2
    assert not (tmp_path / "out/data/.~tiny.pipeline.lock.held").exists()


def test_the_lock_of_a_pipeline_is_no_stages_lock(stand_ins):
    "The run `tiny.pipeline` is another run than `tiny`, whatever its data stage calls its lock."
    with pipeline.hold_run(load_options("tiny.yaml")):
        assert statuses(run_pipeline(**stand_ins, run="tiny.pipeline", stages=("data",))) == ["made"]


def test_a_kernel_is_no_member_of_a_team(tmp_path, monkeypatch):
    "A Dask worker that mpirun or srun started has a rank; a stage's kernel that inherits it would wait for others."
    for name in ("RANK", "LOCAL_RANK", "OMPI_COMM_WORLD_RANK", "PMI_RANK"): monkeypatch.setenv(name, "1")
    for name in ("WORLD_SIZE", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE"): monkeypatch.setenv(name, "2")
    monkeypatch.setenv("KEPT", "as it was")
    book = write_notebook(tmp_path / "a.ipynb", "import os; from xaimed.config import launched; print(launched(), os.environ.get('LOCAL_RANK'), os.environ['KEPT'], os.environ['ADDED'])")
    out = run_notebook(book, tmp_path / "out.ipynb", env={"ADDED": "too"})
    assert nbformat.read(out, as_version=4).cells[-1].outputs[0].text.strip() == "(0, 1) None as it was too"


def test_a_process_that_was_killed_holds_nothing(stand_ins, tmp_path):
    write_notebook(tmp_path / "books" / "00_data.ipynb", WAITING + STAGE.format(stage="data"))
    first = subprocess.Popen([sys.executable, "-c", RUN_TINY])
    kernel = int(wait_for(tmp_path / "started"))
    first.kill()
    first.wait()
    (tmp_path / "go").touch()
    assert statuses(run_pipeline(**stand_ins, stages=("data", "models"))) == ["made"] * 2
    for _ in range(50):
        if not _alive(kernel): break
        time.sleep(0.1)
    assert not _alive(kernel), "the kernel has followed its pipeline"


def test_a_run_that_is_whole_can_be_read_where_nothing_can_be_written(stand_ins, monkeypatch):
    run_pipeline(**stand_ins, stages=("data", "models"))
    monkeypatch.setattr(pipeline, "make_room", lambda folder: pytest.fail("something would be written"))
    assert statuses(run_pipeline(**stand_ins, stages=("data", "models"))) == ["unchanged"] * 2


@pytest.mark.parametrize("page", ["03_eval.ipynb", "05_report.ipynb", "report.html"])
def test_a_page_that_is_cut_short_is_made_again(page, stand_ins, tmp_path):
    stage = "eval" if "eval" in page else "report"
    ask = stand_ins | {"render": lambda notebook, html: Path(html).write_text("<html><body>all of it</body></html>\n")}
    run_pipeline(**ask)
    path = tmp_path / "out" / stage / "tiny" / page
    for share in (0, 0.5, 0.9):
        path.write_bytes(path.read_bytes()[:int(share * path.stat().st_size)])
        outcomes = {o.stage: o.status for o in run_pipeline(**ask)}
        assert outcomes.pop(stage) == "made" and set(outcomes.values()) == {"unchanged"}
        assert pipeline._is_whole(path)


@pytest.fixture(scope="session")
def smoke_run(tmp_path_factory):
    "The real six stages on the smoke config, in an empty folder, through the command line."
    folder = tmp_path_factory.mktemp("smoke")
    return folder, subprocess.run([sys.executable, "-m", "xaimed.cli", "run", "--dataset", "synthetic"], cwd=folder, capture_output=True, text=True)


FILES = {
    "data": ["card.json", "samples.png"], "models": ["model.json", "summary.txt"], "train": ["best.pt", "last.pt", "history.csv", "curves.png"],
    "eval": ["predictions.csv", "metrics.json", "confusion_matrix.png", "reliability.png", "failure_gallery_selection.csv", "high_confidence_wrongs_grid.png", "low_confidence_corrects_grid.png"],
    "explain": ["sample_*_gradcam.png", "sample_*_integrated_gradients.png", "attributions.npz", "explanations.csv", "scorecard.csv", "verdict.json"], "report": ["report.html", "results.json", "model_card.md"]}


def missing_files(folder, stage):
    "The files a stage promises and has not left."
    return [n for n in [*FILES[stage], "manifest.json", f"{NOTEBOOKS[stage]}.ipynb"] if not any(p.stat().st_size for p in (folder / "artifacts" / stage / "quick_smoke").glob(n))]


def test_smoke_run_ends_with_its_report(smoke_run):
    folder, done = smoke_run
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "artifacts/report/quick_smoke/report.html" and (folder / done.stdout.splitlines()[-1]).stat().st_size > 50_000
    assert done.stderr == ""
    for stage in STAGES: assert not missing_files(folder, stage), stage
    assert json.loads((folder / "artifacts/eval/quick_smoke/metrics.json").read_text())["auc"] >= 0.95


def test_smoke_run_again_skips_everything(smoke_run):
    folder, _ = smoke_run
    done = subprocess.run([sys.executable, "-m", "xaimed.cli", "report"], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.count("skipped: unchanged") == 6, done.stdout + done.stderr
    assert "report.html" in done.stdout.split()


@pytest.mark.parametrize("stage", ["train", "eval", "explain", "report"])
def test_stage_commands_on_the_smoke_config_leave_their_files(stage, smoke_run):
    "Named by its file, the config means the run that `--dataset synthetic` made: everything is current, and there."
    folder, _ = smoke_run
    done = subprocess.run([sys.executable, "-m", "xaimed.cli", "--config", "configs/experiments/quick_smoke.yaml", stage], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    assert done.stdout.count("skipped: unchanged") == STAGES.index(stage) + 1 and "made in" not in done.stdout, done.stdout
    assert f"artifacts/{stage}/quick_smoke/" in done.stdout.splitlines()
    assert not missing_files(folder, stage) and all(fnmatch.filter(done.stdout.split(), n) for n in FILES[stage])


def test_executed_pages_are_whole_and_quiet(smoke_run):
    folder, _ = smoke_run
    for stage in STAGES:
        page = nbformat.read(folder / "artifacts" / stage / "quick_smoke" / f"{NOTEBOOKS[stage]}.ipynb", as_version=4)
        pipeline._check_complete(page)
        errors = [o.text for c in page.cells if c.cell_type == "code" for o in c.outputs if o.output_type == "stream" and o.name == "stderr"]
        assert not errors, (stage, errors)


def test_a_run_of_one_data_set_is_not_written_over_by_another(stand_ins, tmp_path):
    run_pipeline(**stand_ins, dataset="breastmnist", run="mine", stages=("data",))
    with pytest.raises(XaimedError, match="run 'mine' holds the results of data set 'breastmnist', and this call would write those of 'synthetic' over them: name the data set"):
        run_pipeline(**stand_ins, run="mine", stages=("data",))
    assert statuses(run_pipeline(**stand_ins, dataset="breastmnist", run="mine", stages=("data",))) == ["unchanged"]
