"""How long does a training step take in float32, bfloat16 and (on CUDA) float16, as it is and compiled, here? From how many steps on does compiling pay?

    python benchmarks/train_precision.py [--device cpu] [--model resnet18] [--size 28] [--batch-size 32] [--steps 10] [--threads 2] [--compile]

Prints one line per way: median, fastest and slowest step in milliseconds (forward, loss, backward, AdamW), images per second, and the header that such a figure needs.
Weights and images are random: time does not depend on them. The first three steps are not counted.
With --compile each precision is also measured through torch.compile; the first three steps then say what compiling costs, and cost divided by what a step saves is the break-even: `BREAK_EVEN` of xaimed.train stands for it.
"""
import argparse
import os
import statistics
import time

import torch

from xaimed.config import device_name, resolve_device
from xaimed.models import build_model
from xaimed.train import RECIPES, kernel_choice, make_loss, make_optimizer, make_scaler, resolve_precision, train_one_epoch


def measure(args, precision: str, compiled: bool = False) -> list[float]:
    "Seconds of each step, the first three (warming up, compiling) among them."
    device = resolve_device(args.device)
    model = build_model(args.model, 4, image_size=args.size, seed=0).to(device, memory_format=torch.channels_last)
    generator = torch.Generator().manual_seed(0)
    batch = torch.randn(args.batch_size, 3, args.size, args.size, generator=generator).to(device), torch.zeros(args.batch_size, dtype=torch.long, device=device)
    optimizer, scaler, seconds = make_optimizer(model, RECIPES["modern"]), make_scaler(precision, device), []
    forward = torch.compile(model, dynamic=False, mode="reduce-overhead" if device.type == "cuda" else None) if compiled else None
    for _ in range(args.steps + 3):
        started = time.perf_counter()
        with kernel_choice(device, deterministic=False):  # as a training does
            train_one_epoch(model, [batch], make_loss("multi-class", 0.1), optimizer, device=device, precision=precision, scaler=scaler, forward=forward)  # reads the loss, and so waits for the device
        seconds.append(time.perf_counter() - started)
    return seconds


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("device", "auto"), ("model", "resnet18"), ("size", 28), ("batch-size", 32), ("steps", 10), ("threads", torch.get_num_threads())):
        parser.add_argument(f"--{name}", default=default, type=type(default))
    parser.add_argument("--compile", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    os.environ["TORCHINDUCTOR_FORCE_DISABLE_CACHES"] = "1"  # what an earlier run compiled would be taken from the disk
    print(f"torch {torch.__version__}, {device_name(args.device)}, {args.threads} threads, {args.model}, {args.batch_size} images of {args.size} pixels, {args.steps} steps")
    kind, plain = resolve_device(args.device).type, {}
    print(f"auto means {resolve_precision('auto', kind)} here")
    for compiled in (False, True) if args.compile else (False,):
        for precision in ("fp32", "bf16", "fp16") if kind == "cuda" else ("fp32", "bf16"):
            every = measure(args, precision, compiled)
            seconds, median = every[3:], statistics.median(every[3:])
            line = f"{precision}{', compiled' if compiled else ''}: {median * 1e3:.0f} ms a step ({min(seconds) * 1e3:.0f} to {max(seconds) * 1e3:.0f}), {args.batch_size / median:.0f} images/s"
            if compiled:
                cost, saved = sum(every[:3]) - 3 * median, plain[precision] - median
                line += f"; compiling {cost:.0f} s, " + (f"pays from {cost / saved:,.0f} steps" if saved > 0 else "never pays")
            else: plain[precision] = median
            print(line, flush=True)


if __name__ == "__main__": main()
