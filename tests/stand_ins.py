"Stand-in notebooks for the six stages: the pipeline's mechanism without a training."
import nbformat
import pytest

from xaimed.config import NOTEBOOKS, STAGES

PARAMETERS = 'config = "quick_smoke"\ndataset = ""\nrun = ""\noverrides = {}'
STAGE = '''
import os, xaimed.config
from xaimed.config import load_options, run_stage
xaimed.config.device_name = lambda name: "none"  # a stand-in needs no torch
options = load_options(config, dataset=dataset, run=run, overrides=overrides)
def make(folder): (folder / "metrics.json").write_text('{{"auc": 0.9, "accuracy": 0.8, "ece": 0.1}}')
if options.seed == 13: raise ValueError("unlucky seed 13:\\nexpected another")
if options.seed == 99: os._exit(3)
if options.seed == 77: os.kill(os.getppid(), 9)
run_stage(options, "{stage}", make)
'''


def write_notebook(path, *cells):
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(PARAMETERS, metadata={"tags": ["parameters"]}), *map(nbformat.v4.new_code_cell, cells)])
    notebook.metadata["kernelspec"] = {"name": "python3", "language": "python", "display_name": "python3"}
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(notebook, path)
    return path


@pytest.fixture
def stand_ins(tmp_path, monkeypatch):
    "Stand-in notebooks for all six stages and a config; the folder we are in is empty but for them."
    monkeypatch.chdir(tmp_path)
    for stage in STAGES: write_notebook(tmp_path / "books" / f"{NOTEBOOKS[stage]}.ipynb", STAGE.format(stage=stage))
    (tmp_path / "tiny.yaml").write_text("artifacts_dir: out\n")
    return {"config": "tiny.yaml", "notebooks": "books", "say": lambda line: None}
