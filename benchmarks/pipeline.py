"""What does a stage cost beside the work it is for, and how long is the whole smoke pipeline?

    python benchmarks/pipeline.py [--repeats 3] [--config quick_smoke] [--stages data,models,train,eval,explain,report] [--set train.epochs=2 ...]

A stage is a notebook in a kernel of its own. Its time is taken apart by what papermill notes for each cell:
    render    the report's HTML page; no other stage has one
    start     the kernel's start and end, and storing the page: all else that lies outside the cells
    imports   cells that hold nothing but imports
    lessons   cells that are neither imports nor the stage's own call: the page's worked examples
    stage     the cell that calls the stage's function
The other side is a script: a fresh Python process that imports the stage's function (`idle`: the interpreter, the imports of torch and torchvision, the end) and calls it
(`call`). `overhead` is start + imports - idle: what a stage pays for being a notebook under papermill and not a script; `render` and `lessons`, which a script would not have,
stand beside it, and `stage` and `call`, the same work twice, show how much the clock wavers. Both sides run in turn, each time in an
empty folder. Seconds of the clock are doubled by a busy neighbour; seconds of the processor (`cpu`, the kernel's, of all its threads) are hardly touched, so both are
printed. Printed are medians over the turns; the last line is JSON.
Before the script side was there, overhead was start + imports, so it counted the imports of torch that a script pays as well, and missed 4 s: 5.7 to 8.9 s. Predicted for it as it is now: 2.5 to 3.5 s.
"""
import argparse
import ast
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

from xaimed.cli import to_pair
from xaimed.config import STAGES, load_options
from xaimed.pipeline import check_names, run_pipeline
from xaimed.report import render_report

FUNCTIONS = {"data": ("data", "run_data"), "models": ("models", "run_models"), "train": ("train", "run_training"), "eval": ("eval", "run_eval"), "explain": ("explain", "run_explain"), "report": ("report", "run_report")}
PROMISES = {"xaimed --help": 0.5, "overhead": 4.0}  # seconds, at most


def cpu(who) -> float:
    used = resource.getrusage(who)
    return used.ru_utime + used.ru_stime


def only_imports(source:str) -> bool:
    lines = "\n".join("" if line.startswith(("%", "!")) else line for line in source.splitlines())
    try: body = ast.parse(lines).body
    except SyntaxError: return False
    return bool(body) and all(isinstance(node, (ast.Import, ast.ImportFrom)) for node in body)


def parts(page:Path, stage:str, seconds:float) -> dict[str,float]:
    "Take a stage's time apart by its page; what `import` waits for inside the start-up lines counts as start."
    found = {"imports": 0.0, "lessons": 0.0, "stage": 0.0}
    for cell in json.loads(page.read_text())["cells"]:
        took = cell["metadata"].get("papermill", {}).get("duration") or 0.0 if cell["cell_type"] == "code" else 0.0
        source = "".join(cell["source"])
        kind = "imports" if only_imports(source) else "stage" if f"= {FUNCTIONS[stage][1]}(options" in source else "lessons"
        found[kind] += took
    return {"start": seconds - sum(found.values()), **found}


def timed_render(spent:list[float]):
    "The report's renderer, noting its seconds."
    def render(notebook:Path, html:Path) -> Path:
        began = time.perf_counter()
        try: return render_report(notebook, html)
        finally: spent.append(time.perf_counter() - began)
    return render


def notebooks(ask:dict, stages:list[str]) -> dict[str,dict[str,float]]:
    "Run the pipeline's stages as notebooks in an empty folder."
    measured = {}
    with tempfile.TemporaryDirectory() as folder:
        for stage in stages:
            before, spent = cpu(resource.RUSAGE_CHILDREN), []
            outcome = run_pipeline(**ask | {"overrides": ask["overrides"] | {"artifacts_dir": folder}}, stages=[stage], say=str, render=timed_render(spent))[0]
            used = cpu(resource.RUSAGE_CHILDREN) - before
            measured[stage] = {"seconds": outcome.seconds, "cpu": used, "render": sum(spent), **parts(outcome.notebook, stage, outcome.seconds - sum(spent))}
    return measured


SCRIPT = """import json, sys, time
from xaimed.config import load_options
from xaimed.{module} import {name}
options = load_options(**json.loads(sys.argv[1]))
began = time.perf_counter()
{name}(options)
print(time.perf_counter() - began)
"""


def scripts(ask:dict, stages:list[str]) -> dict[str,dict[str,float]]:
    "Call each stage's function in a fresh process, in an empty folder: seconds of the call, and of all that is not the call."
    measured = {}
    with tempfile.TemporaryDirectory() as folder:
        given = json.dumps(ask | {"overrides": ask["overrides"] | {"artifacts_dir": folder}})
        for stage in stages:
            module, name = FUNCTIONS[stage]
            began = time.perf_counter()
            out = subprocess.run([sys.executable, "-c", SCRIPT.format(module=module, name=name), given], check=True, capture_output=True, text=True).stdout
            call = float(out.split()[-1])
            measured[stage] = {"call": call, "idle": time.perf_counter() - began - call}
    return measured


def start_up(n:int) -> dict[str,float]:
    "Time `xaimed --help`, and name what it must not import."
    clock, processor = [], []
    for _ in range(n):
        before, began = cpu(resource.RUSAGE_CHILDREN), time.perf_counter()
        subprocess.run([sys.executable, "-m", "xaimed.cli", "--help"], check=True, capture_output=True)
        clock.append(time.perf_counter() - began)
        processor.append(cpu(resource.RUSAGE_CHILDREN) - before)
    heavy = subprocess.run([sys.executable, "-c", "import sys, xaimed.cli; print(*sorted({'torch', 'numpy', 'matplotlib', 'pandas', 'papermill', 'distributed'} & set(sys.modules)))"], check=True, capture_output=True, text=True).stdout.split()
    return {"seconds": statistics.median(clock), "cpu": statistics.median(processor), "heavy imports": heavy}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--config", default="quick_smoke")
    parser.add_argument("--stages", default=",".join(STAGES))
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE")
    a = parser.parse_args()
    stages = a.stages.split(",")
    os.environ["XAIMED_PROGRESS"] = ""
    ask = {"config": a.config, "overrides": dict(map(to_pair, a.set))}
    print(f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}; Python {platform.python_version()}, torch {version('torch')}, papermill {version('papermill')}; {a.repeats} turns")
    helped = start_up(7)
    print(f"xaimed --help: {helped['seconds']:.2f} s, cpu {helped['cpu']:.2f} s (promised: at most {PROMISES['xaimed --help']} s); heavy imports: {' '.join(helped['heavy imports']) or 'none'}")
    began = time.perf_counter()
    import papermill  # noqa: F401
    check_names(load_options(**ask), stages)
    print(f"once, before the first stage: papermill, torch and the check of every name in the pipeline's own process, {time.perf_counter() - began:.1f} s")
    turns = [(notebooks(ask, stages), scripts(ask, stages)) for _ in range(a.repeats)]
    table = {}
    print(f"{'stage':<8}{'seconds':>9}{'cpu':>8}{'render':>8}{'start':>8}{'imports':>9}{'lessons':>9}{'stage':>8}{'call':>8}{'idle':>8}{'overhead':>10}")
    for stage in stages:
        median = {k: statistics.median(books[stage][k] for books, _ in turns) for k in turns[0][0][stage]}
        median |= {k: statistics.median(script[stage][k] for _, script in turns) for k in ("call", "idle")}
        median["overhead"] = statistics.median(books[stage]["start"] + books[stage]["imports"] - script[stage]["idle"] for books, script in turns)
        table[stage] = {k: round(v, 2) for k, v in median.items()}
        print(f"{stage:<8}" + "".join(f"{median[k]:>{w}.2f}" for k, w in (("seconds", 9), ("cpu", 8), ("render", 8), ("start", 8), ("imports", 9), ("lessons", 9), ("stage", 8), ("call", 8), ("idle", 8), ("overhead", 10))))
    whole = statistics.median(sum(stage["seconds"] for stage in books.values()) for books, _ in turns)
    worst = max(row["overhead"] for row in table.values())
    print(f"whole pipeline: {whole:.1f} s; overhead of a stage at most {worst:.1f} s (promised: at most {PROMISES['overhead']:.0f} s)")
    print(json.dumps({"help": helped, "stages": table, "pipeline": round(whole, 1)}))


if __name__ == "__main__": main()
