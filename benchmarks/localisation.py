"""Do the maps lie on the lesion? Every method and control map against BreastMNIST's lesion masks.

    python benchmarks/localisation.py ARTIFACTS SIZE [SIZE ...] [--seed 0] [--training WORDS]     after `xaimed --config breastmnist train --data.size SIZE --seed SEED`

Reads the trained runs below ARTIFACTS, explains the predicted class of every test image whose lesion lies whole in the image,
and writes benchmarks/results/localisation.csv: mean, bootstrap 95 % interval and chance level by training, method and measure.
"""
import argparse
import csv
import time
from pathlib import Path

import numpy as np
from xaimed.attribution import METHODS
from xaimed.config import atomic_write, load_options
from xaimed.data import load_split
from xaimed.explain import ask, explainer
from xaimed.models import transforms_for
from xaimed.scorecard import MEASURES, chance_levels, score
from xaimed.train import load_trained_model
from xaimed.verdict import interval

LOCALISATION = [m.name for m in MEASURES.values() if m.family == "localisation"]
SETTINGS = dict(n_steps=16, batch_size=32, seed=0)     # of the methods that take them
DRAWS = {64: dict(n_samples=8, n_masks=64)}             # with the small stem a pass at 64 pixels costs five times one at 128 with the ImageNet stem


def rows_of(artifacts, size, seed, training, methods):
    options = load_options("breastmnist", overrides={"artifacts_dir": artifacts, "data.size": size, "seed": seed})
    model, _ = load_trained_model(options, "best")
    transform = transforms_for(options)
    data = load_split(options, "test", transform)
    index = data.index[data.mask_valid & data.masks.flatten(1).any(1)].tolist()
    asked = ask(model, data, index)
    chance = {k: v.numpy() for k, v in chance_levels(asked.masks).items()}
    settings = SETTINGS | DRAWS.get(size, dict(n_samples=16, n_masks=128)) | dict(mean=transform.mean, std=transform.std)
    right = float((asked.logits.argmax(1) == data.labels[asked.rows]).float().mean())
    print(f"{size} pixels, seed {seed}: {len(index)} images with a whole lesion, accuracy on them {right:.3f}", flush=True)
    for name, method in ((n, METHODS[n]) for n in methods):
        started = time.process_time()
        maps = explainer(name, **settings)(model, asked.x, asked.target).map
        scores = score(model, asked.x, asked.target, maps, masks=asked.masks, measures=LOCALISATION)
        line = []
        for measure, values in scores.items():
            mean, low, high, n = interval(values.numpy())
            level = float(np.nanmean(chance[measure]))
            line.append(f"{mean:.3f} [{low:.3f}, {high:.3f}] chance {level:.3f}")
            yield [size, training, name, method.title, int(method.control), measure, f"{mean:.4f}", f"{low:.4f}", f"{high:.4f}", n, f"{level:.4f}", f"{right:.4f}"]
        print(f"  {method.title:24s} {time.process_time() - started:6.0f} s   " + "   ".join(line), flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("artifacts", help="folder that holds train/<run>")
    parser.add_argument("sizes", type=int, nargs="+")
    parser.add_argument("--seed", type=int, default=0, help="of the training")
    parser.add_argument("--training", default="one thread", help="what sets this training apart from others at its size; rows of the same words are replaced")
    parser.add_argument("--methods", nargs="+", default=list(METHODS), help="only these; the rows of the others stay as they are in the file")
    asked = parser.parse_args()
    target = Path(__file__).parent / "results" / "localisation.csv"
    head = ["size", "training", "method", "title", "control", "measure", "mean", "low", "high", "n", "chance", "accuracy"]
    def key(row): return (str(row[0]), str(row[1]), row[2], row[5])                 # a row of the same size, training, method and measure is replaced
    fresh = {key(row): row for size in asked.sizes for row in rows_of(asked.artifacts, size, asked.seed, asked.training, asked.methods)}
    kept = list(csv.reader(target.read_text(encoding="utf-8").splitlines()))[1:] if target.exists() else []
    known = {key(row): row for row in kept} | fresh
    order = {name: k for k, name in enumerate(METHODS)}
    with atomic_write(target) as beside, open(beside, "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([head, *sorted(known.values(), key=lambda row: (-int(row[0]), row[1], order[row[2]]))])
    print(f"{len(fresh)} rows made, {len(known)} in {target.parent.name}/{target.name}")
