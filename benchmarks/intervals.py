"""What do bootstrap intervals cost? Two thousand resamples of macro-AUC, and of every metric; scikit-learn's AUC in a loop beside it.

    python benchmarks/intervals.py [--images 7000] [--classes 9] [--resamples 2000] [--repeats 3]

Both sides in one run, turn by turn, the first turn thrown away. First it is checked that both give the same values on the same 20 resamples; then the loop is timed on those 20, its time scaled up, and xaimed on all of
its own, the drawing included. Printed are medians; the last line is JSON.
"""
# Predicted before the first measurement (7,000 x 9, two cores): macro-AUC 1 s, of which the drawing .15; the loop 2 ms a class and resample, so 36 s; every metric with BCa 6 s.
import argparse
import json
import platform
import statistics
import time

import numpy as np
from sklearn.metrics import roc_auc_score

from xaimed.intervals import bootstrap_intervals, metric_values, resample_weights


def turns(sides, repeats):
    "Median seconds of each side."
    times = {name: [] for name in sides}
    for turn in range(repeats + 1):
        for name, side in sides.items():
            start = time.perf_counter()
            side()
            if turn: times[name].append(time.perf_counter() - start)
    return {name: statistics.median(took) for name, took in times.items()}


def loop(labels, probs, weights):
    "The same resamples, one call of scikit-learn per class."
    return [np.mean([roc_auc_score(np.repeat(labels == k, w), np.repeat(probs[:, k], w)) for k in range(probs.shape[1])]) for w in weights.astype(int)]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in (("images", 7000), ("classes", 9), ("resamples", 2000), ("repeats", 3)): parser.add_argument(f"--{name}", type=int, default=value)
    a = parser.parse_args()
    rng = np.random.default_rng(0)
    labels = rng.integers(a.classes, size=a.images)
    probs = rng.dirichlet(np.ones(a.classes), a.images) * .7 + .3 * np.eye(a.classes)[labels]
    few = next(resample_weights(labels, 20))
    ours = [float(metric_values(np.repeat(labels, w), np.repeat(probs, w, 0), "multi-class", metrics=["auc"])["auc"]) for w in few.astype(int)]
    far = np.abs(np.subtract(ours, loop(labels, probs, few))).max()
    if far > 1e-9: raise ValueError(f"the two sides differ by {far:.1e}, expected at most 1e-9: their times cannot be compared")
    sides = {"macro-AUC, percentile": lambda: bootstrap_intervals(labels, probs, "multi-class", metrics=["auc"], method="percentile", n_resamples=a.resamples),
             "macro-AUC, BCa": lambda: bootstrap_intervals(labels, probs, "multi-class", metrics=["auc"], n_resamples=a.resamples),
             "every metric, BCa": lambda: bootstrap_intervals(labels, probs, "multi-class", n_resamples=a.resamples),
             "scikit-learn in a loop, scaled up": lambda: loop(labels, probs, few)}
    found = {name: took * (a.resamples / 20 if "loop" in name else 1) for name, took in turns(sides, a.repeats).items()}
    print(f"{a.resamples} resamples of {a.images} images in {a.classes} classes; the two AUCs differ by at most {far:.0e}")
    for name, value in found.items(): print(f"{name:36s}{value:8.2f} s{value / found['macro-AUC, percentile']:8.1f} x")
    print(json.dumps({"machine": platform.machine(), "numpy": np.__version__, "options": vars(a), "seconds": found}))


if __name__ == "__main__": main()
