"""What do the perturbation measures cost, beside the bare forward passes that they make, and beside Quantus and pytorch-grad-cam?

    python benchmarks/scorecard.py [--quick] [--stem auto] [--images 16] [--size 64] [--steps 64] [--repeats 3] [--threads 2] [--device cpu]

ResNet-18, RGB, the same model, images, targets and maps for every side, all in one run. A measure's cost is its time over the time of as many bare forward passes,
both at the batch size that suits the bare passes best; the passes are counted, not assumed. Bare passes are timed before and after every turn of every side, and
the ratio is taken within the turn, so that a busy machine slows both alike. Printed are medians over the turns; the last line is JSON.
With `--stem auto` the model is the one that xaimed trains at this size (64 pixels: the small stem). `--stem imagenet` makes its passes about 13 times cheaper, and so
shows overhead that the other hides. On two quiet cores the first takes about 25 minutes and the second 3.

The peers are not in xaimed's environment. To run both sides:
    pip install --no-deps quantus==0.6.0 grad-cam==1.5.7 ttach opencv-python-headless --target FOLDER && PYTHONPATH=FOLDER python benchmarks/scorecard.py
A peer that is not there is said and left out.

xaimed's side runs the network as `model_from_checkpoint` returns it, laid out channels last, and the bare passes, the faster for it, are those of that network. The peers get a
network with the same weights as torchvision makes it, which is what their users have, and are timed once more with xaimed's layout, so that what the layout gives and what the
rest gives can be told apart. "÷ bare" is over the bare passes of xaimed's layout for every side.

Quantus counts every channel of every pixel as a feature, and asks that the features of a step divide height times width. To take 64 whole pixels of 64×64 RGB at a
time, 192 features, is refused; the longest step that it allows and whose ends meet every one of ours is 64 features, so its curve takes 192 passes per image where
ours takes 65. Timed are both: Quantus as it is, every third point compared, and Quantus with that check switched off.
"""
# Predicted before the first measurement (2 threads, ResNet-18, 64×64 RGB, 16 images, 64 steps), as ratios to the bare passes: pixel flipping 1.05, both curves 1.05,
# region perturbation 1.05, average drop 1.10, infidelity and faithfulness correlation 1.05, ROAD 1.15 (a linear system per copy, solved by 3×3 convolutions: the one in
# doubt). Channels last, before it was measured in this script, with the small stem: Quantus as it is 3.2 times our time instead of 2.8, ROAD at most 1.1.
# Quantus's pixel flipping 3.3 times the bare passes, so 3.1 times ours. Grad-CAM: captum 1.1 times our time, pytorch-grad-cam 3 times.
import argparse
import copy
import json
import math
import platform
import statistics
import time
import warnings
from functools import cache
from importlib.metadata import PackageNotFoundError, version

import numpy as np
import torch
from gradcam import captum_grad_cam, other_grad_cam

from xaimed import scorecard as card
from xaimed.attribution import blur, grad_cam
from xaimed.models import build_model

# What the scorecard promises of the time of one side over another's; "no slower than captum" up to what a clock can tell
PROMISES = {"over bare": ("<=", 1.2), "Quantus, as it is, over xaimed": (">=", 3.0), "pytorch-grad-cam, over xaimed": (">=", 2.5), "captum, over xaimed": (">=", .95),
            "pytorch-grad-cam, channels last, over xaimed": (">=", 2.5), "captum, channels last, over xaimed": (">=", .95)}


class Question:
    "The model, images, targets and maps that every side gets, and the counted bare passes."
    def __init__(self, a, device):
        self.n_steps, self.device = a.steps, device
        self.plain = build_model("resnet18", 4, stem=a.stem, image_size=a.size, seed=0).to(device).eval()  # for the peers
        self.model = copy.deepcopy(self.plain).to(memory_format=torch.channels_last)                        # as xaimed loads it
        generator = torch.Generator().manual_seed(0)
        self.x = torch.rand(a.images, 3, a.size, a.size, generator=generator).mul(2).sub(1).to(device)
        self.target = torch.randint(0, 4, (a.images,), generator=generator).to(device)
        # as smooth as a CAM: large holes are the slow ones to fill
        self.maps = blur(torch.randn(a.images, 1, a.size, a.size, generator=generator), a.size / 10).to(device)
        self.copies = self.x.repeat(a.steps, 1, 1, 1)

    @torch.no_grad()
    def bare(self, size, rows):
        for part in self.copies[:rows].split(size): self.model(part)

    def count(self, side):
        "What a side gives, and how many images it sends through the model."
        seen = []
        handles = [m.register_forward_pre_hook(lambda module, given: seen.append(len(given[0]))) for m in (self.model, self.plain)]
        try: return side(), sum(seen)
        finally:
            for handle in handles: handle.remove()

    def seconds(self, side):
        if self.device == "cuda": torch.cuda.synchronize()
        start = time.perf_counter()
        side()
        if self.device == "cuda": torch.cuda.synchronize()
        return time.perf_counter() - start


def measures(q: Question) -> dict:
    "Each perturbation measure as a function of the batch size, with about as many copies of each image as there are steps."
    given, half = (q.model, q.x, q.target, q.maps), q.n_steps // 2
    shares = tuple((k + .5) / half for k in range(half))
    grey = q.x[:, :1].repeat(1, 3, 1, 1)                # as radiographs and most of MedMNIST come: one picture to fill, not three
    return {"pixel flipping": lambda size: card.pixel_flipping(*given, baseline=torch.zeros(1), n_steps=q.n_steps, batch_size=size),
            "deletion, insertion, AOPC, area": lambda size: card.curves(*given, baselines=("blur",), n_steps=half, batch_size=size),
            "region perturbation": lambda size: card.region_perturbation(*given, n_steps=q.n_steps, batch_size=size),
            "ROAD": lambda size: card.road(*given, shares=shares, batch_size=size),
            "ROAD, 5 shares": lambda size: card.road(*given, batch_size=size),
            "ROAD, grey in 3 channels": lambda size: card.road(q.model, grey, *given[2:], shares=shares, batch_size=size),
            "infidelity": lambda size: card.infidelity(*given, n_regions=q.n_steps, batch_size=size),
            "faithfulness correlation": lambda size: card.faithfulness_correlation(*given, n_regions=q.n_steps, batch_size=size),
            "average drop": lambda size: card.average_drop(*given, batch_size=size)}


def quantus_flipping(q: Question, model: torch.nn.Module, shipped: bool):
    "Quantus's pixel flipping, in steps that end where ours end: as it is, or with its check of the step switched off."
    import quantus
    pixels, features = q.x[0, 0].numel(), q.x[0].numel() // q.n_steps
    metric = quantus.PixelFlipping(features_in_step=math.gcd(pixels, features) if shipped else features, perturb_baseline=0., abs=False, normalise=False,
                                   disable_warnings=True, display_progressbar=False)
    if not shipped: metric.custom_preprocess = lambda **_: None
    x, y, maps = q.x.cpu().numpy(), q.target.cpu().numpy(), q.maps.cpu().numpy()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        curve = np.asarray(metric(model=model, x_batch=x, y_batch=y, a_batch=maps, softmax=True, device=q.device, batch_size=len(x)))
    every = curve.shape[1] // q.n_steps
    return curve[:, every - 1::every]


def best_size(q: Question, sizes) -> int:
    "The batch size that suits the bare passes best: 256 images, each size three times in turns."
    trials, rows = {size: [] for size in sizes}, min(256, len(q.copies))
    q.bare(sizes[0], rows)
    for _ in range(3):
        for size in sizes: trials[size].append(q.seconds(lambda: q.bare(size, rows)))
    return min(trials, key=lambda size: min(trials[size]))


def counted(q: Question, sides: dict) -> tuple[dict, dict]:
    "What each side gives, and its passes; their first run, so they are warm after it."
    both = {name: q.count(side) for name, side in sides.items()}
    return {name: result for name, (result, _) in both.items()}, {name: rows for name, (_, rows) in both.items()}


def repeated(side, passes: int):
    "A side that makes few passes, several times over: a clock reads a moment badly."
    times = max(1, 256 // max(1, passes))
    def run():
        for _ in range(times): side()
    return run, times


def turns(q: Question, size: int, sides: dict, passes: dict, repeats: int) -> dict[str, list[tuple[float, float]]]:
    "Per side and turn: its seconds, and the seconds of one bare pass around it."
    found, rows = {name: [] for name in sides}, min(256, len(q.copies))
    rows -= rows % size if rows > size else 0           # whole batches
    for _ in range(repeats):
        before = q.seconds(lambda: q.bare(size, rows))
        for name, side in sides.items():
            run, times = repeated(side, passes[name])
            own = q.seconds(run) / times
            after = q.seconds(lambda: q.bare(size, rows))
            found[name].append((own, (before + after) / 2 / rows))
            before = after
    return found


def perturbation(a, device) -> list[dict]:
    "Every measure against the bare passes, and pixel flipping against Quantus's."
    q = Question(a, device)
    size = best_size(q, a.batch_sizes)
    sides = {name: lambda side=side: side(size) for name, side in measures(q).items()}
    ours, peers = set(sides), {"Quantus, as it is": (q.plain, True), "Quantus, channels last": (q.model, True), "Quantus, its check off": (q.plain, False)} if available("quantus") else {}
    for name, given in peers.items(): sides[name] = lambda given=given: quantus_flipping(q, *given)
    results, passes = counted(q, sides)
    far = max((np.abs(results[name] - results["pixel flipping"][:, 1:].cpu().numpy()).max() for name in peers), default=0.)
    if far > 1e-4: raise ValueError(f"the curves of Quantus and xaimed differ by {far:.1e}, expected at most 1e-4: their times cannot be compared")
    found = turns(q, size, sides, passes, a.repeats)
    bare = statistics.median(b for times in found.values() for _, b in times)
    print(f"\nPerturbation measures, {device}: {a.images} images of 3×{a.size}×{a.size}, {a.steps} steps; stem {q.model.spec.stem}")
    print(f"bare passes: {1000 * bare:.3f} ms per image in batches of {size}")
    if peers: print(f"largest difference of the curves from Quantus's: {far:.1e}")
    print(f"{'':34s}{'passes':>8s}{'median s':>10s}{'÷ bare':>8s}{'lowest':>8s}{'highest':>9s}")
    rows = []
    for name, times in found.items():
        ratios, seconds = [own / (b * passes[name]) for own, b in times], statistics.median(own for own, _ in times)
        rows.append({"device": device, "stem": q.model.spec.stem, "side": name, "batch": size if name in ours else a.images, "passes": passes[name],
                     "seconds": seconds, "over bare": statistics.median(ratios), "lowest": min(ratios), "highest": max(ratios)})
        r = rows[-1]
        kept = verdict("over bare", r["over bare"]) if name in ours else ""
        print(f"{name:34s}{r['passes']:8d}{seconds:10.3f}{r['over bare']:8.2f}{r['lowest']:8.2f}{r['highest']:9.2f}{kept}")
    for name in peers: rows.append(compared(f"{name}, over xaimed", found[name], found["pixel flipping"], device))
    if device == "cuda": print(f"peak memory {torch.cuda.max_memory_allocated() / 2**20:.0f} MiB")
    return rows


def cams(a, device) -> list[dict]:
    "Grad-CAM at 64 images: seconds per turn beside captum and pytorch-grad-cam."
    q = Question(argparse.Namespace(**{**vars(a), "images": a.cam_images, "steps": 4}), device)
    size = best_size(q, [s for s in a.batch_sizes if s <= a.cam_images])
    sides = {"xaimed": lambda: grad_cam(q.model, q.x, q.target, batch_size=size).map, "captum": lambda: captum_grad_cam(q.plain, q.x, q.target, size), "captum, channels last": lambda: captum_grad_cam(q.model, q.x, q.target, size)}
    if available("grad-cam"): sides |= {"pytorch-grad-cam": lambda: other_grad_cam(q.plain, q.x, q.target, size), "pytorch-grad-cam, channels last": lambda: other_grad_cam(q.model, q.x, q.target, size)}
    maps, passes = counted(q, sides)
    far = (maps["captum"] - maps["xaimed"]).abs().max() / maps["xaimed"].abs().max()
    if far > 1e-4: raise ValueError(f"the maps of captum and xaimed differ by {far:.1e} of their range, expected at most 1e-4: their times cannot be compared")
    found = turns(q, size, sides, passes, 2 * a.repeats + 1)
    print(f"\nGrad-CAM, {device}: {a.cam_images} images of 3×{a.size}×{a.size}, stem {q.model.spec.stem}, batches of {size}; largest difference from captum {far:.1e} of the range")
    rows = []
    for name, times in found.items():
        seconds = statistics.median(own for own, _ in times)
        print(f"{name:42s}{seconds:10.3f}   {a.cam_images / seconds:.1f} images/s")
        rows.append({"device": device, "stem": q.model.spec.stem, "side": f"Grad-CAM, {name}", "batch": size, "seconds": seconds})
    return rows + [compared(f"{name}, over xaimed", found[name], found["xaimed"], device) for name in sides if name != "xaimed"]


def compared(what, theirs, ours, device) -> dict:
    "The ratio of two sides, each in units of the bare passes of its own moment."
    pairs = [(other / b) / (own / b_own) for (other, b), (own, b_own) in zip(theirs, ours)]
    value = statistics.median(pairs)
    print(f"{what:52s}{value:8.2f}{min(pairs):8.2f}{max(pairs):9.2f}{verdict(what, value)}")
    return {"device": device, "ratio": what, "value": value, "lowest": min(pairs), "highest": max(pairs)}


def verdict(what, value) -> str:
    "Whether a promise is kept, where there is one."
    if what not in PROMISES: return ""
    sign, limit = PROMISES[what]
    return f"   {'kept' if (value <= limit if sign == '<=' else value >= limit) else 'MISSED'}: {sign} {limit}"


@cache
def available(name: str) -> str:
    "A peer's version, or nothing and a line that says so."
    try: return version(name)
    except PackageNotFoundError:
        print(f"{name} is not installed: left out (the head of this script says how to get it)")
        return ""


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in (("images", 16), ("size", 64), ("steps", 64), ("repeats", 3), ("threads", 2), ("cam-images", 64)): parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[4, 8, 16, 32, 64, 128, 256])
    parser.add_argument("--stem", choices=("auto", "small", "imagenet"), default="auto", help="of the ResNet; auto: small up to 64 pixels, as xaimed trains it")
    parser.add_argument("--device", choices=("cpu", "cuda", "all"), default="all", help="all: the CPU, and the GPU where there is one")
    parser.add_argument("--quick", action="store_true", help="4 images, 16 steps, 2 turns, the stem of larger images: to see that it runs")
    a = parser.parse_args()
    if a.quick: a.images, a.steps, a.repeats, a.batch_sizes, a.cam_images, a.stem = 4, 16, 2, [16, 32], 32, "imagenet"
    torch.set_num_threads(a.threads)
    devices = [d for d in ("cpu", "cuda") if a.device in (d, "all") and (d == "cpu" or torch.cuda.is_available())]
    if not devices: parser.error("no CUDA device here")
    where = {"machine": platform.machine(), "threads": a.threads, "gpu": torch.cuda.get_device_name() if "cuda" in devices else None,
             **{name: available(name) for name in ("torch", "captum", "quantus", "grad-cam", "numpy")}}
    print(", ".join(f"{k} {v}" for k, v in where.items() if v))
    rows = [row for device in devices for part in (perturbation, cams) for row in part(a, device)]
    print(json.dumps({"versions": where, "options": vars(a), "rows": rows}))


if __name__ == "__main__": main()
