"""Run the benchmarks one after the other and write what they print to benchmarks/RESULTS.md.

    python benchmarks/all.py [--only NAME ...] [--output benchmarks/RESULTS.md]

Each benchmark is a script of its own that runs both sides and prints the ratio; its head says what it measures, and what was predicted. Peers come with
`pip install xaimed[bench]` (pytorch-grad-cam) and, for Quantus, as the head of scorecard.py says; a peer that is not there is left out, and the result says so.
With --only, the other sections of the page stay as they are, each with its own date and machine. A benchmark that fails leaves its section as it was.
Nothing else should run on the machine: the ratios are medians taken in turn, but times are times.
"""
import argparse
import os
import platform
import re
import subprocess
import sys
import time
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from xaimed.config import atomic_write, unknown

HERE = Path(__file__).resolve().parent
BENCHMARKS = {  # name: (title, script and arguments)
    "training": ("A training epoch, beside the MedMNIST authors' recipe", ["training.py", "--train-images", "0", "--epochs", "6", "--seeds", "5"]),
    "train_precision": ("A training step in float32 and in bfloat16", ["train_precision.py", "--batch-size", "128"]),
    "throughput": ("Training beside the roofline of this machine", ["throughput.py"]),
    "evaluation": ("Evaluating a network on a split, beside the MedMNIST authors' loop", ["evaluation.py"]),
    "loader": ("Loading and preparing images, beside medmnist's data set and a DataLoader", ["loader.py"]),
    "gradcam": ("Grad-CAM and integrated gradients, beside captum and pytorch-grad-cam", ["gradcam.py"]),
    "scorecard": ("Measures of explanations, beside their bare passes and Quantus", ["scorecard.py", "--repeats", "2", "--batch-sizes", "8", "16", "32", "64"]),
    "scorecard_imagenet": ("The same with the stem of larger images, whose passes are some 13 times cheaper", ["scorecard.py", "--stem", "imagenet"]),
    "intervals": ("Bootstrap intervals, beside scikit-learn in a loop", ["intervals.py"]),
    "pipeline": ("The whole pipeline, and what a notebook costs", ["pipeline.py"]),
}
PACKAGES = ("xaimed", "torch", "torchvision", "numpy", "captum", "medmnist", "quantus", "grad-cam", "scikit-learn")


def machine() -> str:
    "Where the figures come from, in one line."
    import torch
    found = []
    for name in PACKAGES:
        try: found.append(f"{name} {version(name)}")
        except PackageNotFoundError: pass
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    return f"{platform.system()} {platform.machine()}, {_cpu()}, {os.cpu_count()} cores, {device}; Python {platform.python_version()}, {', '.join(found)}"


def _cpu() -> str:
    "The processor's name where the system tells."
    info = Path("/proc/cpuinfo")
    names = re.findall(r"model name\s*:\s*(.+)", info.read_text()) if info.exists() else []
    return names[0].strip() if names else platform.processor() or "unknown processor"


def run(name: str, script: str, *arguments: str) -> str:
    "What a benchmark prints, without the last line for machines; its errors go to the terminal."
    done = subprocess.run([sys.executable, str(HERE / script), *arguments], stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode: raise SystemExit(f"benchmark {name} ended with exit code {done.returncode}; its section was left as it was")
    lines = done.stdout.rstrip().splitlines()
    return "\n".join(line.rstrip() for line in lines if not line.startswith("{"))


def section(title: str, words: list[str], printed: str, seconds: float, where: str) -> str:
    "One benchmark's part of the page."
    command = f"python benchmarks/{' '.join(words)}"
    return f"## {title}\n\n`{command}`, {date.today()}, {seconds:.0f} s.\n\n{where}\n\n```text\n{printed}\n```\n"


def read_sections(text: str) -> dict[str, str]:
    "The parts of an earlier page by the benchmark's name."
    names = {title: name for name, (title, _) in BENCHMARKS.items()}
    parts = re.split(r"(?m)^(?=## )", text)[1:]
    return {names[title]: part.rstrip() + "\n" for part in parts if (title := part[3:].partition("\n")[0]) in names}


def page(sections: dict[str, str], order) -> str:
    "The whole page."
    head = ("# What the benchmarks measured\n\nWritten by `make bench`. A ratio compares two sides that ran in turn within one process or one call; times without a ratio hold for the machine "
            "named beside them. The head of each script says what it measures, how, and what was predicted.\n")
    return "\n".join([head, *(sections[name] for name in order if name in sections)])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", metavar="NAME", help=f"of {', '.join(BENCHMARKS)}")
    parser.add_argument("--output", type=Path, default=HERE / "RESULTS.md")
    a = parser.parse_args()
    for name in a.only or ():
        if name not in BENCHMARKS: parser.error(str(unknown("benchmark", name, BENCHMARKS)))
    sections, where = read_sections(a.output.read_text(encoding="utf-8")) if a.output.exists() else {}, machine()
    for name in a.only or BENCHMARKS:
        title, words = BENCHMARKS[name]
        started = time.perf_counter()
        print(f"{name}: {title}", flush=True)
        printed = run(name, *words)
        sections[name] = section(title, words, printed, time.perf_counter() - started, where)
        with atomic_write(a.output) as beside: beside.write_text(page(sections, BENCHMARKS), encoding="utf-8")
        print(printed, flush=True)


if __name__ == "__main__": main()
