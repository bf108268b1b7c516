"""Audit MedMNIST files and write what was found as figures: counts, places, AUC; no pictures.

    python benchmarks/audit.py DATA_DIR [--csv benchmarks/results/audit.csv]
"""
import argparse
import csv
import time
from pathlib import Path

import numpy as np

from xaimed.audit import audit

FILES = {"BreastMNIST, 28 px": "breastmnist", "BreastMNIST, 64 px": "breastmnist_64", "BreastMNIST, 128 px": "breastmnist_128", "PneumoniaMNIST, reassembled": "pneumoniamnist", "AdrenalMNIST3D": "adrenalmnist3d"}
COLUMNS = ("file", "exact_groups", "exact_across", "near_pairs", "near_across", "leaked_val", "n_val", "leaked_test", "n_test", "conflicts", "shift_val", "shift_test", "model_auc", "suspects", "seconds")


def row(title, path):
    with np.load(path) as f: splits = {s: (np.ascontiguousarray(images_of(f[f"{s}_images"])), f[f"{s}_labels"][:, 0].astype(int)) for s in ("train", "val", "test")}
    started = time.perf_counter()
    a = audit(splits, "binary", ["0", "1"])
    said = lambda s: f"{s['auc']:.2f} ({s['low']:.2f} to {s['high']:.2f})"
    return dict(zip(COLUMNS, (title, a["n_exact_groups"], a["n_exact_across"], a["n_near_pairs"], a["n_near_across"], a["n_leaked"]["val"], a["n"]["val"], a["n_leaked"]["test"], a["n"]["test"], a["n_conflicts"],
                              said(a["shift"]["val"]), said(a["shift"]["test"]), f"{a['scorer']['auc']:.3f}", a["n_suspects"], f"{time.perf_counter() - started:.1f}"))), a


def images_of(x):
    "Gray images and volumes with a channel axis."
    return x[:, None]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data_dir", type=Path)
    parser.add_argument("--csv", type=Path)
    asked = parser.parse_args()
    rows = []
    for title, stem in FILES.items():
        if not (path := asked.data_dir / f"{stem}.npz").is_file(): print(f"{title}: {path.name} is not there, left out"); continue
        found, a = row(title, path)
        rows.append(found)
        print(" | ".join(f"{k} {v}" for k, v in found.items()))
        for c in a["conflicts"]: print("   one image, two labels:", " ~ ".join(f"{s} {i} ({y})" for (s, i), y in zip(c["members"], c["labels"])), c["kind"])
    if asked.csv:
        with open(asked.csv, "w", newline="", encoding="utf-8") as f:
            out = csv.DictWriter(f, COLUMNS, lineterminator="\n"); out.writeheader(); out.writerows(rows)


if __name__ == "__main__": main()
