"The command line: flags, errors, exit codes, speed, and the package without a checkout."
import json
import os
import re
import resource
import runpy
import shlex
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from xaimed import cli
from xaimed.config import STAGES, load_options, option_fields


def xaimed(*words, cwd=None, env=None):
    return subprocess.run([sys.executable, "-m", "xaimed.cli", *map(str, words)], cwd=cwd, capture_output=True, text=True, env={**os.environ, **(env or {})})


@pytest.fixture
def asked(monkeypatch, tmp_path):
    "What a command line asks of the pipeline, without running it."
    from xaimed import batch, pipeline
    calls = []

    def run_pipeline(**kwargs):
        calls.append(kwargs)
        load_options(kwargs["config"], dataset=kwargs.get("dataset", ""), run=kwargs.get("run", ""), overrides=kwargs.get("overrides"))
        return [pipeline.Outcome(s, "made", 0.1, tmp_path, tmp_path / "x.ipynb") for s in kwargs.get("stages", STAGES)]

    monkeypatch.setattr(pipeline, "run_pipeline", run_pipeline)
    monkeypatch.setattr(batch, "run_batch", lambda datasets, **kwargs: calls.append({"datasets": datasets, **kwargs}) or batch.Batch(tmp_path, ()))

    def ask(*words):
        calls.clear()
        assert cli.main(words) == 0
        return calls[0]

    ask.calls = calls
    return ask


def test_options_before_and_after_the_command_are_the_same(asked):
    expected = {"config": "quick_smoke", "overrides": {"train.epochs": 2, "seed": 3}, "run": "a"}
    for words in (["--config", "quick_smoke", "--train.epochs", "2", "--seed", "3", "--run", "a", "run"],
                  ["run", "--config", "quick_smoke", "--set", "train.epochs=2", "--seed", "3", "--run", "a"],
                  ["--config", "breastmnist", "--train.epochs", "7", "--run", "a", "run", "--config", "quick_smoke", "--train.epochs=2", "--set", "seed=3"]):
        assert {k: v for k, v in asked(*words).items() if k in expected} == expected


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_command_runs_up_to_its_stage(stage, asked):
    ask = asked("--config", "configs/experiments/quick_smoke.yaml", stage, "--force")
    assert ask["stages"][-1] == stage and ask["stages"] == STAGES[:len(ask["stages"])] and ask["force"] == [stage]


def test_the_config_follows_the_data_set(asked):
    assert asked("run")["config"] == asked("run", "--dataset", "synthetic")["config"] == "quick_smoke"
    assert asked("run", "--dataset", "breastmnist")["config"] == asked("run", "--data.dataset", "breastmnist")["config"] == "breastmnist"
    assert asked("run", "--dataset", "bloodmnist")["config"] == ""


def test_batch_arguments(asked):
    ask = asked("batch", "--datasets", "breastmnist,synthetic", "--seeds", "0-2", "--sizes", "28,64", "--jobs", "2", "--train.epochs", "3")
    assert ask["datasets"] == ["breastmnist", "synthetic"] and ask["seeds"] == [0, 1, 2] and ask["sizes"] == [28, 64] and ask["jobs"] == 2 and ask["scheduler"] == "local" and ask["overrides"] == {"train.epochs": 3}
    again = asked("batch", "--dataset", "breastmnist", "--datasets", "synthetic", "--seed", "0", "--seed", "1,2", "--size", "28", "--sizes", "64", "--jobs", "2", "--train.epochs", "3")
    assert again == ask
    assert asked("batch", "--dataset", "synthetic", "--scheduler", "tcp://node:8786")["scheduler"] == "tcp://node:8786"
    assert asked("--dataset", "synthetic", "batch")["datasets"] == ["synthetic"] and asked("batch", "--dataset", "synthetic")["seeds"] == [0]


def readme_lines():
    text = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
    blocks = "\n".join(re.findall(r"^```[a-z]*\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL))
    found = re.findall(r"^xaimed [^#\n]*", blocks, flags=re.MULTILINE) + re.findall(r"`(xaimed [^`\n]*)`", text)
    assert len(found) > 5
    return sorted({line.strip() for line in found})


@pytest.mark.parametrize("line", readme_lines())
def test_every_line_of_the_readme_works(line, asked, monkeypatch):
    "It parses and reaches its function with what it says."
    from xaimed import data, eval as evaluation
    report = {"file": "x.npz", "status": "present", "bytes": 1, "md5": "0", "splits": {}}
    reached = []
    monkeypatch.setattr(data, "download_medmnist", lambda name, **kwargs: reached.append(name) or report)
    monkeypatch.setattr(cli, "LISTS", {"configs": lambda: reached.append("list") or []})
    monkeypatch.setattr(evaluation, "compare_runs", lambda *folders, **kwargs: reached.append([f.name for f in folders]) or [])
    monkeypatch.setattr(evaluation, "comparison_table", lambda rows: "")
    _, *words = shlex.split(line)
    if not {"download-data", "list", "compare"} & set(words): reached.append(asked(*words))
    else: assert cli.main(words) == 0
    assert reached
    if "batch" in words: assert reached[0]["datasets"] == [b for a, b in zip(words, words[1:]) if a == "--dataset"] and reached[0]["seeds"] == ([0, 1, 2, 3, 4] if "0-4" in words else [0, 1, 2])
    if "--scheduler" in words: assert reached[0]["scheduler"] == "tcp://host:8786"
    if "compare" in words: assert reached == [words[1:]]
    if "download-data" in words: assert reached == ["breastmnist"]
    if "--train.epochs" in words: assert reached[0]["overrides"] == {"train.epochs": 5, "seed": 1}


WORDS = {int: "9", float: "0.5", bool: "true", str: "x"}


@pytest.mark.parametrize("name", [n for n in option_fields() if n != "run"])
def test_every_option_has_a_flag_that_reaches_it(name):
    "The flag exists, and its value is the one YAML would have given."
    field = option_fields()[name]
    default = field.get_default(call_default_factory=True)
    word = ",".join(map(str, default)) if isinstance(default, tuple) else "null" if default is None else str(default)
    values = {}
    flag = cli._flag(name, field, hidden=False)
    assert f"--{name}" in flag.default.param_decls and field.description.replace("`", "").replace("[", "(").replace("]", ")") in flag.default.help
    options = load_options("", overrides={name: cli.to_value(name, word)})
    for part in name.split("."): values = options = getattr(options, part)
    assert values == default


@pytest.mark.parametrize("words, code, text", [
    (["trian"], 2, "No such command 'trian'.*train"),
    (["train", "--train.epoch", "2"], 2, "No such option.*--train.epochs"),
    (["--train.epoch", "2", "train"], 2, "No such option.*--train.epochs"),
    (["run", "--set", "epochs"], 2, "expected name=value"),
    (["batch"], 2, "at least one data set"),
    (["batch", "--datasets", "synthetic", "--seeds", "a"], 2, "expected whole numbers"),
    (["--config", "quick_smok", "train"], 1, "unknown config 'quick_smok'. Near: quick_smoke"),
    (["--config", "nowhere/x.yaml", "train"], 1, "no config file 'nowhere/x.yaml'"),
    (["run", "--set", "train.epoch=2"], 1, "unknown option 'train.epoch'. Near: train.epochs"),
    (["run", "--train.epochs", "0"], 1, "train.epochs: got 0; expected"),
    (["run", "--train.epochs", "many"], 1, "train.epochs: got 'many'; expected"),
    (["run", "--run", "../x"], 1, "run: got '../x'"),
    (["list", "modles"], 1, "Near: models"),
    (["run", "--seed", "0", "--seed", "1"], 2, "--seed: given 2 times, expected once; .*batch"),
    (["run", "--dataset", "synthetic", "--dataset", "breastmnist"], 2, "--dataset: given 2 times"),
    (["--config", "a", "--config", "b", "train"], 2, "--config: given 2 times"),
    (["batch", "--dataset", "synthetic", "--jobs", "1", "--jobs", "2"], 2, "--jobs: given 2 times"),
])
def test_mistakes_are_one_line_with_the_mend(words, code, text, capsys):
    assert cli.main(words) == code
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and re.match(f"error: .*{text}", err), err


@pytest.mark.parametrize("words, text", [
    (["--dataset", "brestmnist"], "unknown data set 'brestmnist'. Near: .*breastmnist"),
    (["--dataset", "./nowhere.npz"], "no file or folder .*nowhere.npz"),
    (["--model.name", "resnet19"], "unknown model 'resnet19'. Near: .*resnet18"),
    (["--model.weights", "IMAGENET1K_V9"], "IMAGENET1K_V9"),
    (["--train.recipe", "modren"], "unknown recipe 'modren'. Near: modern"),
    (["--explain.methods", "gradcan"], "unknown attribution method 'gradcan'. Near: gradcam"),
])
def test_unknown_names_are_refused_before_anything_runs(words, text, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["run", *words]) == 1
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and re.search(text, err), err
    assert not (tmp_path / "artifacts").exists()


def test_the_traceback_comes_with_debug_only(capsys):
    assert cli.main(["run", "--train.epochs", "0"]) == cli.main(["run", "--train.epochs", "0", "--debug"]) == cli.main(["--debug", "run", "--train.epochs", "0"]) == 1
    err = capsys.readouterr().err
    assert err.count("Traceback") == 2 and err.count("\nerror: ") == 2


def test_a_read_only_artifacts_folder(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("pathlib.Path.mkdir", lambda self, *a, **k: (_ for _ in ()).throw(OSError(30, "Read-only file system", str(self))))
    assert cli.main(["data", "--artifacts_dir", str(tmp_path / "out")]) == 1
    assert re.match("error: artifacts_dir: nothing can be written in .*out.*Read-only file system", capsys.readouterr().err)


def cpu_of_children():
    "Seconds of processor time that ended child processes have used; other work on the machine does not count."
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def test_help_is_quick_and_imports_no_torch(tmp_path):
    seconds = []
    for _ in range(5):
        before = cpu_of_children()
        done = xaimed("--help", cwd=tmp_path)
        seconds.append(cpu_of_children() - before)
    assert done.returncode == 0 and all(word in done.stdout for word in ("run", "batch", "download-data", *STAGES))
    assert min(seconds) < 0.5, seconds
    done = subprocess.run([sys.executable, "-X", "importtime", "-m", "xaimed.cli", "--help"], cwd=tmp_path, capture_output=True, text=True)
    assert not re.search(r"\| +(torch|numpy|matplotlib|pandas|papermill)\b", done.stderr)
    assert not any(tmp_path.iterdir())


def test_help_of_a_command_names_every_option():
    text = xaimed("train", "--help", env={"COLUMNS": "300"}).stdout
    assert all(f"--{name}" in text for name in option_fields()), [n for n in option_fields() if f"--{n}" not in text]
    assert all(f"{title} options" in text for title in ("Data", "Model", "Train", "Eval", "Explain", "Report"))


def test_version_and_bare_call(capsys):
    assert cli.main(["--version"]) == 0 and cli.main([]) == 0
    out = capsys.readouterr().out
    assert out.startswith("xaimed 0.") and "Usage: xaimed" in out


def test_list_names_everything():
    done = xaimed("list")
    assert done.returncode == 0, done.stderr
    for name in ("breastmnist", "pathmnist", "resnet18", "resnet101", "gradcam", "integrated_gradients", "quick_smoke"): assert name in done.stdout


def test_a_closed_pipe_is_silent():
    done = subprocess.run(f"{sys.executable} -m xaimed.cli list options | head -1", shell=True, capture_output=True, text=True)
    assert done.stderr == "" and done.stdout.count("\n") == 1


@pytest.mark.parametrize("script, stage", [("train", "train"), ("eval", "eval"), ("explain", "explain"), ("make_report", "report")])
def test_scripts_reach_their_own_stage(script, stage, asked, root, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [f"{script}.py", "--config", "quick_smoke", "--seed", "3"])
    with pytest.raises(SystemExit) as ended: runpy.run_path(str(root / "scripts" / f"{script}.py"), run_name="__main__")
    assert ended.value.code == 0, capsys.readouterr().err
    assert [(c["stages"][-1], c["config"], c["overrides"]) for c in asked.calls] == [(stage, "quick_smoke", {"seed": 3})]


def test_the_download_script_reaches_the_download(root, monkeypatch):
    from xaimed import data
    calls = []
    monkeypatch.setattr(data, "download_medmnist", lambda name, **kwargs: calls.append((name, kwargs["size"])) or {"file": "x.npz", "status": "present", "bytes": 1, "md5": "0", "splits": {}})
    monkeypatch.setattr(sys, "argv", ["download_data.py", "--dataset", "breastmnist,pathmnist", "--dataset", "octmnist", "--size", "64"])
    with pytest.raises(SystemExit) as ended: runpy.run_path(str(root / "scripts" / "download_data.py"), run_name="__main__")
    assert ended.value.code == 0 and calls == [("breastmnist", 64), ("pathmnist", 64), ("octmnist", 64)]


def test_a_script_runs_as_a_program(root, tmp_path):
    done = subprocess.run([sys.executable, root / "scripts" / "train.py", "--config", "nope"], cwd=tmp_path, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(root)})
    assert done.returncode == 1 and "unknown config 'nope'" in done.stderr


def test_download_data_from_a_local_folder(real_data, tmp_path):
    done = xaimed("download-data", "--dataset", "breastmnist", "--data-dir", tmp_path / "data", "--mirror", real_data)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "data" / "breastmnist.npz").stat().st_size == (real_data / "breastmnist.npz").stat().st_size
    assert all(str(n) in done.stdout for n in (546, 78, 156)), done.stdout


def test_download_data_of_an_unknown_set(tmp_path):
    done = xaimed("download-data", "--dataset", "brestmnist", "--data-dir", tmp_path)
    assert done.returncode == 1 and done.stderr.count("\n") == 1 and "breastmnist" in done.stderr


@pytest.fixture(scope="module")
def wheel_folder(root, tmp_path_factory):
    "The wheel as it is installed, and nothing of the checkout."
    folder = tmp_path_factory.mktemp("wheel")
    copy = folder / "source"
    names = subprocess.run(["git", "ls-files", "nbs", "xaimed", "configs", "setup.py", "settings.ini", "pyproject.toml", "README.md", "MANIFEST.in", "LICENSE"], cwd=root, capture_output=True, text=True).stdout.split()
    if not names: pytest.skip("not a git checkout")
    for name in names:
        if not (root / name).is_file(): continue
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        (copy / name).write_bytes((root / name).read_bytes())
    done = subprocess.run([sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", folder, copy], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    installed = folder / "installed"
    zipfile.ZipFile(next(folder.glob("*.whl"))).extractall(installed)
    return installed


def test_the_wheel_brings_notebooks_and_configs(wheel_folder, tmp_path):
    env = {"PYTHONPATH": str(wheel_folder)}
    done = xaimed("list", "configs", cwd=tmp_path, env=env)
    assert done.returncode == 0 and str(wheel_folder) in done.stdout and "quick_smoke" in done.stdout, done.stderr
    code = "import json; from xaimed.config import STAGES; from xaimed.pipeline import find_notebook; print(json.dumps([str(find_notebook(s)) for s in STAGES]))"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, env={**os.environ, **env})
    assert all(p.startswith(str(wheel_folder)) for p in json.loads(done.stdout)), done.stderr


def test_the_wheel_runs_a_stage_in_an_empty_folder(wheel_folder, tmp_path):
    done = xaimed("data", "--dataset", "synthetic", cwd=tmp_path, env={"PYTHONPATH": str(wheel_folder)})
    assert done.returncode == 0, done.stderr
    assert {"00_data.ipynb", "card.json", "manifest.json"} <= {p.name for p in (tmp_path / "artifacts" / "data" / "quick_smoke").iterdir()}
