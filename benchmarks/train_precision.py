"""How long does a training step take in float32 and in bfloat16, here?

    python benchmarks/train_precision.py [--device cpu] [--model resnet18] [--size 28] [--batch-size 32] [--steps 10] [--threads 2]

Prints one line per precision: median, fastest and slowest step in milliseconds (forward, loss, backward, AdamW), images per second, and the header that such a figure needs.
Weights and images are random: time does not depend on them. The first three steps are not counted.
"""
import argparse
import statistics
import time

import torch

from xaimed.config import device_name, resolve_device
from xaimed.models import build_model
from xaimed.train import RECIPES, make_loss, make_optimizer, train_one_epoch


def measure(args, precision: str) -> list[float]:
    "Seconds of each counted step."
    device = resolve_device(args.device)
    model = build_model(args.model, 4, image_size=args.size, seed=0).to(device, memory_format=torch.channels_last)
    generator = torch.Generator().manual_seed(0)
    batch = torch.randn(args.batch_size, 3, args.size, args.size, generator=generator).to(device), torch.zeros(args.batch_size, dtype=torch.long, device=device)
    optimizer, seconds = make_optimizer(model, RECIPES["modern"]), []
    for _ in range(args.steps + 3):
        started = time.perf_counter()
        train_one_epoch(model, [batch], make_loss("multi-class", 0.1), optimizer, device=device, precision=precision)  # reads the loss, and so waits for the device
        seconds.append(time.perf_counter() - started)
    return seconds[3:]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("device", "auto"), ("model", "resnet18"), ("size", 28), ("batch-size", 32), ("steps", 10), ("threads", torch.get_num_threads())):
        parser.add_argument(f"--{name}", default=default, type=type(default))
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    print(f"torch {torch.__version__}, {device_name(args.device)}, {args.threads} threads, {args.model}, {args.batch_size} images of {args.size} pixels, {args.steps} steps")
    for precision in ("fp32", "bf16"):
        seconds = measure(args, precision)
        median = statistics.median(seconds)
        print(f"{precision}: {median * 1e3:.0f} ms a step ({min(seconds) * 1e3:.0f} to {max(seconds) * 1e3:.0f}), {args.batch_size / median:.0f} images/s")


if __name__ == "__main__": main()
