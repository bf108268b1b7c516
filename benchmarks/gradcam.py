"""Grad-CAM and Integrated Gradients: xaimed beside captum, and pytorch-grad-cam where it is installed.

    python benchmarks/gradcam.py [--images 64] [--size 64] [--repeats 9] [--threads 2] [--device cpu] [--methods]

All sides see the same ResNet, images and targets, in turn within one run, so that a busy machine slows them alike. Printed are the median
times, images per second, the ratio of medians to xaimed's, and the largest difference of the raw maps.
pytorch-grad-cam (`pip install grad-cam`, in an environment of its own) scales its maps to 0..1 per image: its values are compared by correlation.
With --methods: instead, the time of every registered method with its default options, as a multiple of one forward pass without gradients.
"""
import argparse
import platform
import statistics
import time
from importlib.metadata import version

import numpy as np
import torch
import torch.nn.functional as F
from captum.attr import IntegratedGradients, LayerGradCam

from xaimed.attribution import METHODS, attribute, grad_cam, integrated_gradients
from xaimed.models import build_model


def captum_grad_cam(model, x, target, size):
    "What a user of captum writes: the layer's map, with ReLU, enlarged."
    method = LayerGradCam(model, model.layer4)
    return torch.cat([F.interpolate(method.attribute(p, t, relu_attributions=True).detach(), size=x.shape[2:], mode="bilinear", align_corners=False)
                      for p, t in zip(x.split(size), target.split(size))])


def captum_integrated_gradients(model, x, target, size, n_steps):
    "What a user of captum writes, with the gap, in the same pieces."
    method, maps = IntegratedGradients(model), []
    for p, t in zip(x.split(size), target.split(size)):
        maps.append(method.attribute(p, torch.full_like(p, -1), t, n_steps=n_steps, internal_batch_size=max(size, len(p)), return_convergence_delta=True)[0].detach())
    return torch.cat(maps)


def other_grad_cam(model, x, target, size):
    "pytorch-grad-cam's GradCAM, in the same batches; arrays on the CPU, scaled to 0..1 per image."
    from pytorch_grad_cam import GradCAM
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
    with GradCAM(model=model, target_layers=[model.layer4]) as method:
        return np.concatenate([method(input_tensor=p, targets=[ClassifierOutputTarget(int(c)) for c in t]) for p, t in zip(x.split(size), target.split(size))])


def measure(sides, repeats, device):
    "Median seconds and last result of each side, the sides taking turns and the first turn thrown away."
    seconds, results = {name: [] for name in sides}, {}
    for turn in range(repeats + 1):
        for name, side in sides.items():
            if device == "cuda": torch.cuda.synchronize()
            start = time.perf_counter()
            results[name] = side()
            if device == "cuda": torch.cuda.synchronize()
            if turn: seconds[name].append(time.perf_counter() - start)
    return seconds, results


def report(title, sides, images, repeats, device):
    seconds, results = measure(sides, repeats, device)
    own = statistics.median(seconds["xaimed"])
    reference = results["xaimed"].cpu()
    print(f"\n{title}\n{'':18s}{'median s':>10s}{'min s':>9s}{'images/s':>10s}{'time ÷ xaimed':>15s}   maps")
    for name, times in seconds.items():
        median = statistics.median(times)
        result = results[name]
        if isinstance(result, torch.Tensor): same = f"largest difference {(result.cpu() - reference).abs().max():.1e} of {reference.abs().max():.1e}"
        else: same = "correlation, lowest " + f"{min(np.corrcoef(a.ravel(), b.numpy().ravel())[0, 1] for a, b in zip(result, reference) if b.max() > b.min()):.4f}, scaled per image"
        print(f"{name:18s}{median:10.4f}{min(times):9.4f}{images / median:10.1f}{median / own:15.2f}   {same}")


def report_methods(model, x, target, size, repeats, device):
    "Every registered method beside one forward pass."
    def forward():
        with torch.no_grad(): return torch.cat([model(p) for p in x.split(size)])
    def side(name, entry): return lambda: attribute(name, model, x, target, **({"batch_size": size} if "batch_size" in entry.options else {})).map
    seconds, _ = measure({"forward pass": forward, **{name: side(name, entry) for name, entry in METHODS.items()}}, repeats, device)
    one = statistics.median(seconds["forward pass"])
    print(f"\n{'':22s}{'median s':>10s}{'images/s':>10s}{'forward passes':>16s}")
    for name, times in seconds.items(): print(f"{name:22s}{statistics.median(times):10.4f}{len(x) / statistics.median(times):10.1f}{statistics.median(times) / one:16.1f}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in (("images", 64), ("size", 64), ("batch-size", 32), ("repeats", 9), ("threads", 2), ("steps", 16), ("seed", 0)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--model", default="resnet18")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--methods", action="store_true")
    a = parser.parse_args()
    torch.set_num_threads(a.threads)
    torch.manual_seed(a.seed)
    model = build_model(a.model, 4, image_size=a.size, seed=a.seed).to(a.device).eval()
    x = torch.rand(a.images, 3, a.size, a.size).mul_(2).sub_(1).to(a.device)
    target = torch.randint(0, 4, (a.images,)).to(a.device)
    where = torch.cuda.get_device_name() if a.device == "cuda" else f"{platform.machine()} CPU, {a.threads} threads"
    print(f"{a.model}, {a.images} images of 3×{a.size}×{a.size}, batches of {a.batch_size}, {a.repeats} repeats; {where}; torch {torch.__version__}, captum {version('captum')}")

    if a.methods: return report_methods(model, x, target, a.batch_size, a.repeats, a.device)

    sides = {"xaimed": lambda: grad_cam(model, x, target, batch_size=a.batch_size).map,
             "captum": lambda: captum_grad_cam(model, x, target, a.batch_size)}
    try:
        print(f"pytorch-grad-cam {version('grad-cam')}")
        sides["pytorch-grad-cam"] = lambda: other_grad_cam(model, x, target, a.batch_size)
    except ImportError: print("pytorch-grad-cam is not installed: left out")
    report("Grad-CAM", sides, a.images, a.repeats, a.device)

    few = x[:max(1, a.images // 8)]
    report(f"Integrated Gradients, {len(few)} images, {a.steps} steps",
           {"xaimed": lambda: integrated_gradients(model, few, target[:len(few)], n_steps=a.steps, batch_size=a.batch_size).map,
            "captum": lambda: captum_integrated_gradients(model, few, target[:len(few)], a.batch_size, a.steps)}, len(few), max(3, a.repeats // 3), a.device)


if __name__ == "__main__": main()
