"""How fast do batches come, beside medmnist's own data set and torchvision's transforms in a DataLoader?

    python benchmarks/loader.py [--data-dir $XAIMED_DATA_DIR] [--repeats 7] [--threads 2] [--resize]

Prediction, written before the first run: 50 times or more at 28 pixels, where the other side spends 0.3 ms on every image in Python (PIL, ToTensor,
Normalize, collate) and this one 0.1 ms on 128 of them; 2.5 times or more at 224, where both sides are bound by writing 77 MB of floats a batch.
The first run (one thread of a busy machine) gave 147 at 28 and 1.2 at 224: right about what binds, wrong about how much. Nine tenths of xaimed's time
at 224 went to the first touch of fresh memory, page by page. Since the transform writes once, into large pages, it is about 7.

Both sides give the same batches, which is checked first: a shuffled pass over the training images in batches of 128, gray repeated to three channels,
floats normalised with mean and deviation 0.5, no worker processes. They take turns in one process, and the first turn is thrown away. Printed are
medians and the ratio of medians. `start` is the time from the file's path to a loader: opening, checks, unpacking or mapping.
With --resize the stored images are also brought to another size on both sides, bilinear with antialiasing. xaimed interpolates the floats; torchvision
resizes a PIL image to whole grey levels, so that the pixels may differ by one level.
"""
import argparse
import os
import platform
import statistics
import time
from importlib.metadata import version
from pathlib import Path

import medmnist
import torch
from torch.utils.data import DataLoader
from torchvision import transforms as T

from xaimed.data import build_transforms, load_medmnist_dataset, make_loader

CASES = ((28, "PneumoniaMNIST", 50), (224, "BreastMNIST", 2.5))   # size, medmnist's class, the ratio asked
RESIZED = ((28, "PneumoniaMNIST", 64), (224, "BreastMNIST", 128)) # stored size, class, size of the batch


def own(name: str, size: int, target: int, folder: Path, batch: int):
    "What `xaimed train` uses, but for the check of the file: only its form is checked here, where a run also compares the MD5, because that is read once and belongs to no batch."
    data = load_medmnist_dataset(name.lower(), "train", size=size, data_dir=folder, verify="form", transform=build_transforms(target))
    return make_loader(data, batch_size=batch, shuffle=True, seed=0)


def peer(name: str, size: int, target: int, folder: Path, batch: int):
    "What the MedMNIST authors' examples use."
    steps = [T.Resize((target, target), interpolation=T.InterpolationMode.BILINEAR, antialias=True)] if target != size else []
    data = getattr(medmnist, name)(split="train", root=str(folder), size=size, as_rgb=True, download=False, transform=T.Compose([*steps, T.ToTensor(), T.Normalize([.5], [.5])]))
    return DataLoader(data, batch, shuffle=True, generator=torch.Generator().manual_seed(0))


def walk(loader) -> None:
    for x, _ in loader: x.shape


def timed(call, *args) -> float:
    start = time.perf_counter()
    call(*args)
    return time.perf_counter() - start


def compare(name: str, size: int, target: int, asked: float | None, a) -> None:
    "Check that both sides give the same batches, time them in turns, print a line."
    sides = {"xaimed": own, "medmnist": peer}
    loaders = {side: make(name, size, target, a.data_dir, a.batch_size) for side, make in sides.items()}
    apart, n = 0., 0
    for (x, y), (other, label) in zip(*loaders.values(), strict=True):
        if not torch.equal(y, label[:, 0]): raise SystemExit("the two sides do not give the same images in the same order")
        apart, n = max(apart, (x - other).abs().max().item()), n + len(y)
    if apart > (1e-6 if target == size else 2.1 / 255 / .5): raise SystemExit(f"the images differ by up to {apart}")
    seconds, start = {side: [] for side in sides}, {side: [] for side in sides}
    for turn in range(a.repeats + 1):
        for side, make in sides.items():
            first, passed = timed(make, name, size, target, a.data_dir, a.batch_size), timed(walk, loaders[side])
            if turn: start[side].append(first), seconds[side].append(passed)
    mine, other = (statistics.median(seconds[side]) for side in sides)
    begun = [statistics.median(start[side]) for side in sides]
    what = f"{name} {size}" + (f" to {target}" if target != size else "")
    wanted = "" if asked is None else f", asked {asked:g}: {'reached' if other / mine >= asked else 'MISSED'}"
    print(f"{what:24s}{n:6d} images  xaimed {mine * 1e3:8.1f} ms  medmnist {other * 1e3:8.1f} ms  ratio {other / mine:6.1f}{wanted}"
          f"   [start {begun[0] * 1e3:.0f} and {begun[1] * 1e3:.0f} ms; images at most {apart:.1e} apart]", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, default=Path(os.environ.get("XAIMED_DATA_DIR", "data")))
    for name, default in (("repeats", 7), ("batch-size", 128), ("threads", torch.get_num_threads())): parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--resize", action="store_true")
    a = parser.parse_args()
    torch.set_num_threads(a.threads)
    print(f"{platform.machine()} CPU, {a.threads} threads; torch {torch.__version__}, torchvision {version('torchvision')}, medmnist {version('medmnist')}; batches of {a.batch_size}, no workers, {a.repeats} repeats, medians")
    for size, name, asked in CASES: compare(name, size, size, asked, a)
    for size, name, target in RESIZED if a.resize else (): compare(name, size, target, None, a)


if __name__ == "__main__": main()
