"The house rules: floors, imports without side effects, docstrings, clean outputs."
import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
MODULES = sorted(p.stem for p in (ROOT / "xaimed").glob("*.py") if not p.stem.startswith("_"))
NOTEBOOKS = sorted((ROOT / "nbs").glob("*.ipynb"))


def floors() -> dict[str, int]:
    "Read the table of rooms from the home page."
    text = "".join("".join(c["source"]) for c in json.loads((ROOT / "nbs" / "index.ipynb").read_text())["cells"])
    return {m: int(f) for f, m in re.findall(r"^\| (\d+) \| `\w+` \| `xaimed\.(\w+)`", text, re.M)}


def imported(module: str) -> set[str]:
    tree = ast.parse((ROOT / "xaimed" / f"{module}.py").read_text())
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            if node.level == 1: found.add(node.module.split(".")[0])
            elif node.module.startswith("xaimed."): found.add(node.module.split(".")[1])
    return found


def test_every_module_has_a_floor(): assert set(MODULES) == set(floors())


@pytest.mark.parametrize("module", MODULES)
def test_a_room_imports_only_from_lower_floors(module):
    upward = {m for m in imported(module) if floors()[m] >= floors()[module]}
    assert not upward, f"xaimed.{module} imports from its own floor or above: {upward}"


# The libraries that rooms use are imported once; then every room is imported in a fork of its own, as if by the first line of a program.
QUIET = """
import importlib, logging, os, random, sys, traceback, warnings
import matplotlib, numpy, torch, captum.attr, papermill, sklearn.metrics, torchvision
state = lambda: (list(warnings.filters), random.getstate(), numpy.random.get_state()[1].tolist(), torch.random.get_rng_state().tolist(),
                 dict(matplotlib.rcParams), logging.getLogger().handlers[:], torch.get_num_threads())
for module in sys.argv[1:]:
    if (child := os.fork()):
        if os.waitpid(child, 0)[1]: print(f"{module}: failed")
        continue
    try:
        before = state()
        importlib.import_module(f"xaimed.{module}")
        if state() != before: print(f"{module}: the import changed warning filters, a random generator, rcParams, logging or threads", flush=True)
    except BaseException: traceback.print_exc(); sys.stderr.flush(); os._exit(1)
    os._exit(0)
"""


def clean_import(code: str, folder: Path, *words: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-W", "error::UserWarning", "-c", code, *words], cwd=folder, capture_output=True, text=True)


def test_every_room_imports_alone_in_another_folder_and_changes_nothing(tmp_path):
    done = clean_import(QUIET, tmp_path, *MODULES)
    assert done.returncode == 0 and done.stdout == done.stderr == ""
    assert not any(tmp_path.iterdir()), "an import wrote files"


def test_that_check_can_fail(tmp_path):
    (tmp_path / "xaimed").mkdir()
    (tmp_path / "xaimed" / "__init__.py").touch()
    (tmp_path / "xaimed" / "loud.py").write_text("import random; random.seed(1)")
    (tmp_path / "xaimed" / "broken.py").write_text("1 / 0")
    done = clean_import(QUIET, tmp_path, "loud", "broken")
    assert "loud: the import changed" in done.stdout and "broken: failed" in done.stdout and "ZeroDivisionError" in done.stderr


@pytest.mark.parametrize("module", ["config", "cli"])
def test_no_torch_for_help(module, tmp_path):
    done = clean_import(f"import sys, xaimed.{module}; assert 'torch' not in sys.modules", tmp_path)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("module", MODULES)
def test_public_functions_say_what_they_do(module):
    tree = ast.parse((ROOT / "xaimed" / f"{module}.py").read_text())
    silent = [n.name for n in tree.body if isinstance(n, (ast.FunctionDef, ast.ClassDef)) and not n.name.startswith("_") and not ast.get_docstring(n)]
    assert not silent
    long = [n.name for n in ast.walk(tree) if isinstance(n, ast.FunctionDef) and n.end_lineno - n.lineno > 60]
    assert not long


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda p: p.stem)
def test_stored_outputs_are_fit_to_print(notebook):
    cells = json.loads(notebook.read_text())["cells"]
    assert len(cells) <= 150
    for cell in cells:
        out = json.dumps(cell.get("outputs", []))
        assert '"output_type": "error"' not in out, f"a stored error in {cell['id']}"
        assert "Warning" not in out, f"a stored warning in {cell['id']}"
        assert not re.search(r"(/root/|/home/|/tmp/|/Users/)\S+", out), f"a machine's path in {cell['id']}"


STAGES = ("00_data", "01_models", "02_train", "03_eval", "04_explain", "05_report")
PARAMETERS = '''config = "quick_smoke"   # a name under configs/experiments, or a path to a YAML file
dataset = ""             # another data set than the file names: a MedMNIST name, "synthetic", or a path
run = ""                 # the run's folder name; the config's own when empty
overrides = {}           # any option by its dotted name'''


@pytest.mark.parametrize("stem", STAGES)
def test_every_stage_has_the_same_parameters(stem):
    cells = json.loads((ROOT / "nbs" / f"{stem}.ipynb").read_text())["cells"]
    tagged = ["".join(c["source"]) for c in cells if "parameters" in c["metadata"].get("tags", [])]
    assert tagged == [PARAMETERS]


def test_every_file_that_the_front_pages_name_is_there():
    text = (ROOT / "README.md").read_text() + (ROOT / "artifacts" / "README.md").read_text() + (ROOT / "CONTRIBUTING.md").read_text()
    named = set(re.findall(r"`((?:nbs/|artifacts/showcase/|configs/|scripts/|tests/|benchmarks/)[\w./-]*)`", text))
    assert named and not [n for n in named if not (ROOT / n).exists()]
    pages = re.findall(r"[\w/]+\.ipynb", (ROOT / "_quarto.yml").read_text())
    assert sorted(pages) == sorted(p.name for p in NOTEBOOKS), "the sidebar lists every page once"
