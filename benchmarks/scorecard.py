"""What do the perturbation measures cost, beside the bare forward passes that they make, and beside Quantus and pytorch-grad-cam?

    python benchmarks/scorecard.py [--quick] [--images 16] [--size 64] [--steps 64] [--repeats 7] [--threads 2] [--device cpu]

ResNet-18, RGB, the same model, images, targets and maps for every side, all in one run. A measure's cost is its time over the time of as many bare forward passes at
the batch size that suits them best; the passes are counted, not assumed. Bare passes are timed before and after every turn of every side, and the ratio is taken
within the turn, so that a busy machine slows both alike. Printed are medians over the turns; the last line is JSON.

The peers are not in xaimed's environment. To run both sides:
    pip install --no-deps quantus==0.6.0 grad-cam==1.5.7 ttach opencv-python-headless scikit-image --target FOLDER && PYTHONPATH=FOLDER python benchmarks/scorecard.py
A peer that is not there is said and left out.
"""
# Predicted before the first measurement (2 threads, ResNet-18, 64 x 64 x 3, 16 images, 64 steps), as ratios to the bare passes: pixel flipping 1.05, both curves 1.05,
# region perturbation 1.05, average drop 1.10, infidelity and faithfulness correlation 1.05, ROAD 1.15 (a linear system per copy, solved by 3 x 3 convolutions: the one in doubt).
# Quantus's pixel flipping 3.3 times the bare passes, so 3.1 times ours. Grad-CAM: captum 1.1 times our time, pytorch-grad-cam 3 times.
import argparse
import json
import platform
import statistics
import time
import warnings
from importlib.metadata import PackageNotFoundError, version

import numpy as np
import torch
from gradcam import captum_grad_cam, other_grad_cam

from xaimed import scorecard as card
from xaimed.attribution import grad_cam
from xaimed.models import build_model

# ratio: the time of a side over another's; limit: what the scorecard promises, at most ("<=") or at least (">=")
PROMISES = {"over bare": ("<=", 1.2), "quantus over xaimed": (">=", 3.0), "pytorch-grad-cam over xaimed": (">=", 2.5), "captum over xaimed": (">=", 1.0)}


class Question:
    "The model, images, targets and maps that every side gets, and the counted bare passes."
    def __init__(self, a, device):
        self.n_steps, self.device = a.steps, device
        self.model = build_model("resnet18", 4, image_size=a.size, seed=0).to(device).eval()
        generator = torch.Generator().manual_seed(0)
        self.x = torch.rand(a.images, 3, a.size, a.size, generator=generator).mul(2).sub(1).to(device)
        self.target = torch.randint(0, 4, (a.images,), generator=generator).to(device)
        self.maps = torch.randn(a.images, 1, a.size, a.size, generator=generator).to(device)
        self.copies = self.x.repeat(a.steps, 1, 1, 1)
        self.rows = 0
        self.counter = None

    @torch.no_grad()
    def bare(self, size, rows=None):
        for part in self.copies[:rows or len(self.copies)].split(size): self.model(part)

    def count(self, side):
        "Images that a side sends through the model."
        self.rows = 0
        handle = self.model.register_forward_pre_hook(lambda module, given: setattr(self, "rows", self.rows + len(given[0])))
        try: side()
        finally: handle.remove()
        return self.rows

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
    return {"pixel flipping": lambda size: card.pixel_flipping(*given, baseline=torch.zeros(1), n_steps=q.n_steps, batch_size=size),
            "deletion, insertion, AOPC, area": lambda size: card.curves(*given, baselines=("blur",), n_steps=half, batch_size=size),
            "region perturbation": lambda size: card.region_perturbation(*given, n_steps=q.n_steps, batch_size=size),
            "ROAD": lambda size: card.road(*given, shares=shares, batch_size=size),
            "ROAD, 5 shares": lambda size: card.road(*given, batch_size=size),
            "infidelity": lambda size: card.infidelity(*given, n_regions=q.n_steps, batch_size=size),
            "faithfulness correlation": lambda size: card.faithfulness_correlation(*given, n_regions=q.n_steps, batch_size=size),
            "average drop": lambda size: card.average_drop(*given, batch_size=size)}


def quantus_flipping(q: Question):
    "Quantus's pixel flipping in as many steps; its check counts pixels where its steps count channels too, and is switched off for images in colour."
    import quantus
    metric = quantus.PixelFlipping(features_in_step=q.x[0].numel() // q.n_steps, perturb_baseline=0., abs=False, normalise=False, disable_warnings=True, display_progressbar=False)
    metric.custom_preprocess = lambda **_: None
    x, y, maps = q.x.cpu().numpy(), q.target.cpu().numpy(), q.maps.cpu().numpy()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return np.asarray(metric(model=q.model, x_batch=x, y_batch=y, a_batch=maps, softmax=True, device=q.device, batch_size=len(x)))


def best_sizes(q: Question, sizes, sides) -> tuple[int, dict]:
    "The batch size that suits the bare passes best, and the one that suits each side, each tried twice in turns."
    def fastest(function):
        trials = {size: [] for size in sizes}
        for _ in range(2):
            for size in sizes: trials[size].append(q.seconds(lambda: function(size)))
        return min(trials, key=lambda size: min(trials[size]))
    q.bare(sizes[0], 2 * sizes[0])
    return fastest(lambda size: q.bare(size)), {name: fastest(side) for name, side in sides.items()}


def turns(q: Question, size: int, sides: dict, repeats: int) -> dict[str, list[tuple[float, float]]]:
    "Per side and turn: its seconds, and the seconds of the bare passes around it, per image; the first turn is thrown away."
    found = {name: [] for name in sides}
    for turn in range(repeats + 1):
        before = q.seconds(lambda: q.bare(size))
        for name, side in sides.items():
            own = q.seconds(side)
            after = q.seconds(lambda: q.bare(size))
            if turn: found[name].append((own, (before + after) / 2 / len(q.copies)))
            before = after
    return found


def perturbation(a, device) -> list[dict]:
    q = Question(a, device)
    ours = measures(q)
    size, sizes = best_sizes(q, a.batch_sizes, ours)
    sides = {name: lambda side=side, size=sizes[name]: side(size) for name, side in ours.items()}
    passes = {name: q.count(side) for name, side in sides.items()}
    quantus = available("quantus")
    if quantus:
        far = np.abs(quantus_flipping(q) - sides["pixel flipping"]()[:, 1:].cpu().numpy()).max()
        if far > 1e-4: raise ValueError(f"the curves of Quantus and xaimed differ by {far:.1e}, expected at most 1e-4: their times cannot be compared")
        sides["Quantus pixel flipping"] = lambda: quantus_flipping(q)
        passes["Quantus pixel flipping"] = q.count(sides["Quantus pixel flipping"])
    found = turns(q, size, sides, a.repeats)
    bare = statistics.median(b for times in found.values() for _, b in times)
    print(f"\nPerturbation measures, {device}: {a.images} images of 3×{a.size}×{a.size}, {a.steps} steps; bare passes {1000 * bare:.3f} ms per image in batches of {size}")
    if quantus: print(f"largest difference of the curves from Quantus's: {far:.1e}")
    print(f"{'':34s}{'batch':>6s}{'passes':>8s}{'median s':>10s}{'÷ bare':>8s}{'lowest':>8s}{'highest':>9s}")
    rows = []
    for name, times in found.items():
        ratios = [own / (b * passes[name]) for own, b in times]
        rows.append({"device": device, "side": name, "batch": sizes.get(name, a.images), "passes": passes[name], "seconds": statistics.median(own for own, _ in times),
                     "over bare": statistics.median(ratios), "lowest": min(ratios), "highest": max(ratios)})
        r = rows[-1]
        print(f"{name:34s}{r['batch']:6d}{r['passes']:8d}{r['seconds']:10.3f}{r['over bare']:8.2f}{r['lowest']:8.2f}{r['highest']:9.2f}{verdict('over bare', r['over bare']) if name in ours else ''}")
    if quantus:
        pairs = [(theirs / b_theirs) / (own / b_own) for (theirs, b_theirs), (own, b_own) in zip(found["Quantus pixel flipping"], found["pixel flipping"])]
        rows.append(compared("quantus over xaimed", pairs, device))
    if device == "cuda": print(f"peak memory {torch.cuda.max_memory_allocated() / 2**20:.0f} MiB")
    return rows


def cams(a, device) -> list[dict]:
    "Grad-CAM at 64 images: seconds per turn beside captum and pytorch-grad-cam."
    a = argparse.Namespace(**{**vars(a), "images": a.cam_images, "steps": 1})
    q = Question(a, device)
    sides = {"xaimed": lambda size: grad_cam(q.model, q.x, q.target, batch_size=size).map, "captum": lambda size: captum_grad_cam(q.model, q.x, q.target, size)}
    if available("grad-cam"): sides["pytorch-grad-cam"] = lambda size: other_grad_cam(q.model, q.x, q.target, size)
    size, sizes = best_sizes(q, [s for s in a.batch_sizes if s <= a.images], sides)
    maps = {name: torch.as_tensor(side(sizes[name])).cpu() for name, side in sides.items()}
    far = (maps["captum"] - maps["xaimed"]).abs().max() / maps["xaimed"].abs().max()
    if far > 1e-4: raise ValueError(f"the maps of captum and xaimed differ by {far:.1e} of their range, expected at most 1e-4: their times cannot be compared")
    found = turns(q, size, {name: lambda side=side, size=sizes[name]: side(size) for name, side in sides.items()}, a.repeats)
    print(f"\nGrad-CAM, {device}: {a.images} images of 3×{a.size}×{a.size}; largest difference from captum {far:.1e} of the range")
    rows = []
    for name, times in found.items():
        seconds, pairs = statistics.median(own for own, _ in times), [(other / b) / (own / b_own) for (other, b), (own, b_own) in zip(times, found["xaimed"])]
        print(f"{name:34s}{sizes[name]:6d}{'':8s}{seconds:10.3f}   {a.images / seconds:.1f} images/s")
        rows.append({"device": device, "side": f"Grad-CAM, {name}", "batch": sizes[name], "seconds": seconds})
        if name != "xaimed": rows.append(compared(f"{name} over xaimed", pairs, device))
    return rows


def compared(what, pairs, device) -> dict:
    value = statistics.median(pairs)
    print(f"{what:34s}{'':24s}{value:8.2f}{min(pairs):8.2f}{max(pairs):9.2f}{verdict(what, value)}")
    return {"device": device, "ratio": what, "value": value, "lowest": min(pairs), "highest": max(pairs)}


def verdict(what, value) -> str:
    sign, limit = PROMISES[what]
    return f"   {'kept' if (value <= limit if sign == '<=' else value >= limit) else 'MISSED'}: {sign} {limit}"


def available(name: str) -> str:
    "A peer's version, or nothing and a line that says so."
    try: return version(name)
    except PackageNotFoundError:
        print(f"{name} is not installed: left out (the head of this script says how to get it)")
        return ""


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in (("images", 16), ("size", 64), ("steps", 64), ("repeats", 7), ("threads", 2), ("cam-images", 64)): parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[8, 16, 32, 64, 128, 256])
    parser.add_argument("--device", choices=("cpu", "cuda", "all"), default="all", help="all: the CPU, and the GPU where there is one")
    parser.add_argument("--quick", action="store_true", help="4 images, 16 steps, 3 turns, batches of 16 and 32: to see that it runs")
    a = parser.parse_args()
    if a.quick: a.images, a.steps, a.repeats, a.batch_sizes, a.cam_images = 4, 16, 3, [16, 32], 32
    torch.set_num_threads(a.threads)
    devices = [d for d in ("cpu", "cuda") if a.device in (d, "all") and (d == "cpu" or torch.cuda.is_available())]
    if not devices: parser.error("no CUDA device here")
    where = {"machine": platform.machine(), "threads": a.threads, "gpu": torch.cuda.get_device_name() if "cuda" in devices else None,
             **{name: available(name) for name in ("torch", "captum", "quantus", "grad-cam", "numpy")}}
    print(", ".join(f"{k} {v}" for k, v in where.items() if v))
    rows = [row for device in devices for part in (perturbation, cams) for row in part(a, device)]
    print(json.dumps({"versions": where, "options": vars(a), "rows": rows}))


if __name__ == "__main__": main()
