"""Gather finished runs into benchmarks/results/real_data.csv, the table behind the page of measured figures.

    python benchmarks/collect_runs.py ARTIFACTS [RUN ...]

Reads each run's report/<run>/results.json; figures only, no images. All of the folder's runs when none is named.
"""
import csv
import json
import sys
from pathlib import Path

TARGET = Path(__file__).resolve().parent / "results" / "real_data.csv"


def row(results: dict) -> dict:
    training, metrics, origin = results["training"], results["metrics"], results["provenance"]
    train = next(s for s in origin["stages"] if s["stage"] == "train")
    return {
        "dataset": results["dataset"]["title"], "size": results["dataset"]["size"],
        "model": results["model"]["name"], "recipe": training["recipe"], "epochs": training["epochs"], "precision": training["settings"]["precision"],
        "seed": origin["seed"], "best_epoch": metrics["checkpoint"]["epoch"], "n": metrics["n"], "auc": f"{metrics['auc']:.4f}",
        "accuracy": f"{metrics['accuracy']:.4f}", "ece": f"{metrics['ece']:.4f}", "train_seconds": round(train["wall_seconds"]),
        "device": origin["device"], "machine": origin["platform"], "torch": origin["versions"]["torch"], "commit": origin["commit"], "date": train["started"][:10]}


def main(artifacts: str, *runs: str) -> None:
    files = sorted(Path(artifacts).glob("report/*/results.json"))
    rows = [row(json.loads(f.read_text(encoding="utf-8"))) for f in files if not runs or f.parent.name in runs]
    if not rows: raise SystemExit(f"no report/<run>/results.json in {artifacts}: run `xaimed run` first")
    rows.sort(key=lambda r: (r["dataset"], r["size"], r["recipe"], r["seed"]))
    TARGET.parent.mkdir(exist_ok=True)
    with open(TARGET, "w", newline="", encoding="utf-8") as f:
        out = csv.DictWriter(f, rows[0], lineterminator="\n")
        out.writeheader()
        out.writerows(rows)
    print(f"{len(rows)} runs")


if __name__ == "__main__":
    if len(sys.argv) < 2: raise SystemExit(__doc__)
    main(*sys.argv[1:])
