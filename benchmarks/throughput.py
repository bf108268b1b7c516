"""How many images a second does training take, what bounds it, and how long is a whole training?

    python benchmarks/throughput.py [--dataset pneumoniamnist] [--batch-size 128] [--steps 10] [--precision auto] [--compile off] [--device auto] [--epochs 0]

ResNet-18 with a 3x3 stem, the recipe `medmnist`. First what the machine can do, measured in the precision of the training: floating-point operations a second in a matrix product, bytes a second in a copy.
Then what an image asks for: its operations, counted through forward and backward pass by torch's own counter; and its bytes, if every layer reads and writes main memory once in each direction
(forward: input and output; backward: input and the gradients of both; additions, weights and the optimizer's state, a few MB an image at this batch, are left out). The roofline is the larger of the two times;
a cache or a fused kernel may beat the bytes, nothing beats the operations. On a card float32 means TF32 where torch takes it for convolutions, and the matrix product is then measured in TF32 as well.
Then what training takes, from the loader to the optimizer: median over --repeats of the rate over --steps steps, and its share of the roofline. On CUDA the share of the time in which a kernel runs is printed too: the
rest waits for launches. With --epochs a whole training follows, the training stage of a run without the audit in this warm process: seconds from the file to the last checkpoint.

Predictions, written before the first run. Two CPU cores, bfloat16: operations bound it, about half of the matrix product's rate. H100, batch 128: 2.6 GFLOP and some 15 MB an image, so 400,000 images a second
by operations and 200,000 by bytes; the launches of about 400 small kernels bound it before either, 40,000 to 60,000 images a second, and three times that compiled with CUDA graphs.
"""
import argparse
import os
import statistics
import tempfile
import time

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from xaimed.config import device_name, load_options, resolve_device, resolve_path
from xaimed.data import build_transforms, load_medmnist_dataset, make_loader
from xaimed.models import build_model
from xaimed.train import RECIPES, kernel_choice, make_loss, make_optimizer, make_scaler, resolve_precision, run_training, train_one_epoch

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def timed(call, device) -> float:
    wait = (lambda: torch.cuda.synchronize(device)) if device.type == "cuda" else (lambda: None)
    wait()
    start = time.perf_counter()
    call()
    wait()
    return time.perf_counter() - start


def best(call, device, repeats=7) -> float:
    "Seconds of the fastest of several calls, after one that is thrown away."
    call()
    return min(timed(call, device) for _ in range(repeats))


def limits(device, dtype) -> tuple[float, float]:
    "Operations and bytes a second that this machine reaches."
    n = 8192 if device.type == "cuda" else 2048
    a, b = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))
    source = torch.ones(2**30 if device.type == "cuda" else 2**28, dtype=torch.uint8, device=device)    # written: pages that never were are all one page
    target, rounded = torch.empty_like(source), torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32                               # as the convolutions
    try: return 2 * n**3 / best(lambda: a @ b, device), 2 * source.numel() / best(lambda: target.copy_(source), device)
    finally: torch.backends.cuda.matmul.allow_tf32 = rounded


def needs(net, batch, precision) -> tuple[float, float]:
    "Operations and bytes of one training image."
    x, y = batch
    width, moved = DTYPES[precision].itemsize, []
    def count(module, given, made): moved.append(width * (3 * given[0].numel() + 2 * made.numel()))
    handles = [m.register_forward_hook(count) for m in net.modules() if not list(m.children()) and not isinstance(m, nn.Identity)]
    with FlopCounterMode(display=False) as counter: make_loss("multi-class")(net(x), y).backward()
    for handle in handles: handle.remove()
    net.zero_grad()
    return counter.get_total_flops() / len(x), sum(moved) / len(x)


class Steps:
    "A training, stepped batch by batch as an epoch does it."
    def __init__(self, args, device, precision):
        data = load_medmnist_dataset(args.dataset, "train", data_dir=args.data, transform=build_transforms(28, rgb=True), verify="form")
        if len(data) < args.batch_size: raise SystemExit(f"{args.dataset} has {len(data)} training images, fewer than a batch of {args.batch_size}: take a smaller --batch-size")
        self.loader = make_loader(data, batch_size=args.batch_size, shuffle=True, seed=0, device=device)
        self.net = build_model("resnet18", len(data.spec.classes), image_size=28, seed=0).to(device, memory_format=torch.channels_last)
        self.loss, self.optimizer = make_loss(data.spec.task), make_optimizer(self.net, RECIPES["medmnist"])
        self.how = {"device": device, "precision": precision, "scaler": make_scaler(precision, device)}
        if args.compile == "on": self.how["forward"] = torch.compile(self.net, dynamic=False, mode="reduce-overhead" if device.type == "cuda" else None)

    def first(self):
        x, y = next(iter(self.loader))
        return x.to(self.how["device"]), y.to(self.how["device"])

    def batches(self, n):
        "n full batches, epoch after epoch."
        while n:
            for batch in self.loader:
                if len(batch[1]) < self.loader.batch_size: continue
                n -= 1
                yield batch
                if not n: return

    def run(self, n) -> int:
        "Train on n batches, from the loader to the optimizer; the images seen."
        return train_one_epoch(self.net, self.batches(n), self.loss, self.optimizer, **self.how)["n"]


def kernel_seconds(call, device) -> float:
    "Seconds in which kernels run on the card, copies left out; the operators that launched them carry the same time and are not counted."
    from torch.autograd import DeviceType
    from torch.profiler import ProfilerActivity, profile
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as seen: timed(call, device)
    kernels = [e for e in seen.key_averages() if e.device_type == DeviceType.CUDA and not e.is_user_annotation and not e.key.startswith(("Memcpy", "Memset"))]
    return sum(e.self_device_time_total for e in kernels) / 1e6


def whole(args) -> float:
    "Seconds of the training stage, and what comes before it but for the audit, in an empty folder."
    with tempfile.TemporaryDirectory() as folder:
        options = load_options("", run="benchmark", overrides={"artifacts_dir": folder, "device": args.device, "data.dataset": args.dataset, "data.data_dir": str(args.data), "data.batch_size": args.batch_size, "data.audit": False,
                                                               "train.epochs": args.epochs, "train.recipe": "medmnist", "train.precision": args.precision, "train.compile": args.compile})
        return timed(lambda: run_training(options), resolve_device(args.device))


def measured(args, device, precision):
    "Print the limits, the needs and the rate."
    steps = Steps(args, device, precision)
    operations, moved = needs(steps.net, steps.first(), precision)
    per_second, bytes_per_second = limits(device, DTYPES[precision])
    by_operations, by_bytes = per_second / operations, bytes_per_second / moved
    print(f"machine: {per_second / 1e12:.2f} TFLOP/s in a matrix product, {bytes_per_second / 1e9:.0f} GB/s in a copy")
    print(f"an image: {operations / 1e9:.2f} GFLOP, {moved / 1e6:.1f} MB; at most {by_operations:,.0f} images/s by operations, {by_bytes:,.0f} by bytes: bound by {'operations' if by_operations < by_bytes else 'bytes'}", flush=True)
    steps.run(3)
    rates = []
    for _ in range(args.repeats):
        seen = []
        took = timed(lambda: seen.append(steps.run(args.steps)), device)
        rates.append(seen[0] / took)
    rate = statistics.median(rates)
    print(f"training: {rate:,.0f} images/s ({min(rates):,.0f} to {max(rates):,.0f}), {rate * operations / 1e12:.2f} TFLOP/s, {rate * moved / 1e9:.0f} GB/s: {rate / min(by_operations, by_bytes):.0%} of the roofline")
    if device.type == "cuda": print(f"a kernel runs {kernel_seconds(lambda: steps.run(args.steps), device) * rate / (args.steps * args.batch_size):.0%} of the time")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("dataset", "pneumoniamnist"), ("batch-size", 128), ("steps", 10), ("repeats", 3), ("epochs", 0), ("precision", "auto"), ("compile", "off"), ("device", "auto"), ("threads", torch.get_num_threads()), ("data", os.environ.get("XAIMED_DATA_DIR", "data"))):
        parser.add_argument(f"--{name}", default=default, type=type(default))
    args = parser.parse_args()
    args.data, device = resolve_path(args.data), resolve_device(args.device)
    torch.set_num_threads(args.threads)
    precision = resolve_precision(args.precision, device)
    print(f"torch {torch.__version__}, {device_name(args.device)}, {args.threads} threads, resnet18, {args.dataset}, batches of {args.batch_size}, {precision}{', compiled' if args.compile == 'on' else ''}, load {os.getloadavg()[0]:.1f}", flush=True)
    with kernel_choice(device, deterministic=False): measured(args, device, precision)      # as a training does
    if args.epochs: print(f"whole training, {args.epochs} epochs with validation and checkpoints: {whole(args):.1f} s")


if __name__ == "__main__": main()
