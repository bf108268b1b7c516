"""How long does it take to evaluate a network on a split, beside the MedMNIST authors' way?

    python benchmarks/evaluation.py [--dataset pneumoniamnist] [--split test] [--repeats 3] [--threads 2] [--device auto]

The same ResNet-18 (3x3 stem, random weights) on both sides, the same images, from the file to the figures (theirs opens it twice, data set and evaluator); float32 on a card means TF32 where torch takes it. Both give AUC and accuracy by the code of medmnist's own evaluator. Theirs, written here from the published description: `medmnist`
data read image by image through PIL, ToTensor and Normalize, batches of 128, float32, the loss read after every batch. Ours: the split as one array, batches of 256, once in float32 and once in the precision
that `auto` takes here. First it is checked that float32 gives the same two figures on both sides; then the sides take turns in one process, and the first turn is thrown away. Printed are medians and the ratios.
The last line is what a run asks for beyond that: every metric, per class, with intervals from 2,000 resamples. They have no other side here; `intervals.py` compares the bootstrap.

Prediction, written before the first run (two CPU cores, PneumoniaMNIST): the network's passes are nearly all of the time, 624 images of 0.9 GFLOP; float32 1.1 times as fast (channels-last, no PIL), bfloat16 2.3 times.
On a GPU, where the passes take milliseconds, more than 10 times. The intervals under 2 s.
"""
import argparse
import os
import statistics
import time
from contextlib import contextmanager
from functools import partial

import medmnist
import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader
from torchvision import transforms

from xaimed.config import device_name, resolve_device, resolve_path
from xaimed.data import build_transforms, load_medmnist_dataset, make_loader
from xaimed.eval import evaluate, medmnist_figures
from xaimed.models import build_model
from xaimed.train import predict_logits, resolve_precision
from xaimed.trust import probabilities


def theirs(net, args, device):
    "AUC and accuracy of the authors' loop."
    as_tensor = transforms.Compose([transforms.ToTensor(), transforms.Normalize(mean=[.5], std=[.5])])
    kind = getattr(medmnist, medmnist.INFO[args.dataset]["python_class"])
    data = kind(split=args.split, root=str(args.data), transform=as_tensor, as_rgb=True, download=False)
    loss, losses, scores = nn.CrossEntropyLoss(), [], []
    net.eval()
    with torch.no_grad():
        for x, y in DataLoader(data, batch_size=128):
            out = net(x.to(device))
            losses.append(loss(out, y.squeeze(1).long().to(device)).item())
            scores.append(out.softmax(1).cpu().numpy())
    return medmnist.Evaluator(args.dataset, args.split, root=str(args.data)).evaluate(np.concatenate(scores))


def ours(net, args, device, precision):
    "Labels and probabilities, and the two figures."
    data = load_medmnist_dataset(args.dataset, args.split, data_dir=args.data, transform=build_transforms(28, rgb=True), verify="form")
    logits, labels = predict_logits(net, make_loader(data, batch_size=256, device=device), device=device, precision=precision)
    probs = probabilities(logits.numpy(), data.spec.task)
    return labels.numpy(), probs, medmnist_figures(labels.numpy(), probs, data.spec.task)


@contextmanager
def exact():
    "Convolutions without TF32: random weights give near ties, which another rounding would decide otherwise."
    before, torch.backends.cudnn.allow_tf32 = torch.backends.cudnn.allow_tf32, False
    try: yield
    finally: torch.backends.cudnn.allow_tf32 = before


def timed(call, device) -> float:
    start = time.perf_counter()
    call()
    if device.type == "cuda": torch.cuda.synchronize(device)
    return time.perf_counter() - start


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("dataset", "pneumoniamnist"), ("split", "test"), ("repeats", 3), ("threads", torch.get_num_threads()), ("device", "auto"), ("data", os.environ.get("XAIMED_DATA_DIR", "data"))):
        parser.add_argument(f"--{name}", default=default, type=type(default))
    args = parser.parse_args()
    args.data, device = resolve_path(args.data), resolve_device(args.device)
    if medmnist.INFO[args.dataset]["task"].startswith("multi-label"): parser.error("data sets with several labels an image need another loss: take one with a single label")
    torch.set_num_threads(args.threads)
    auto, classes = resolve_precision("auto", device), list(medmnist.INFO[args.dataset]["label"].values())
    print(f"torch {torch.__version__}, {device_name(args.device)}, {args.threads} threads, {args.dataset} {args.split}, {args.repeats} repeats, load {os.getloadavg()[0]:.1f}", flush=True)
    net = build_model("resnet18", len(classes), image_size=28, seed=0).to(device, memory_format=torch.channels_last)
    other = build_model("resnet18", len(classes), image_size=28, seed=0).to(device)   # theirs keeps torch's own memory order
    with exact():
        labels, probs, found = ours(net, args, device, "fp32")
        asked = theirs(other, args, device)
    if max(abs(found["AUC"] - asked.AUC), abs(found["ACC"] - asked.ACC)) > 2e-3: raise SystemExit(f"the two sides do not give the same figures: {found} and {asked}")
    sides = {"medmnist, float32": partial(theirs, other, args, device), "xaimed, float32": partial(ours, net, args, device, "fp32")}
    if auto != "fp32": sides[f"xaimed, {auto}"] = partial(ours, net, args, device, auto)
    seconds = {name: [] for name in sides}
    for turn in range(args.repeats + 1):
        for name, call in sides.items():
            took = timed(call, device)
            if turn: seconds[name].append(took)
    first = statistics.median(seconds["medmnist, float32"])
    for name, took in seconds.items():
        print(f"{name:20s}{statistics.median(took):8.2f} s ({min(took):.2f} to {max(took):.2f}){len(labels) / statistics.median(took):9.0f} images/s   ratio {first / statistics.median(took):.2f}", flush=True)
    with_intervals = timed(lambda: evaluate(labels, probs, "binary" if len(classes) == 2 else "multi-class", classes), device)
    print(f"every metric with intervals from 2,000 resamples: {with_intervals:.2f} s more")


if __name__ == "__main__": main()
