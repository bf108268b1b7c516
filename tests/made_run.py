"A finished run without running anything: its files, written by hand as the stages' contract has them."
from functools import lru_cache
from pathlib import Path

import numpy as np

from xaimed import schema
from xaimed.config import STAGES, load_options, stage_dir, write_json

TASKS = {"multi-class": 9, "binary": 2, "multi-label": 14, "ordinal": 5}
METHODS = ("gradcam", "integrated_gradients")
EXAMINED = ("audit.png", "robustness.png", "neighbours_grid.png")


def draw(path:Path, shape=(60, 90)) -> None:
    import matplotlib.pyplot as plt
    plt.imsave(path, np.linspace(0, 1, shape[0] * shape[1]).reshape(shape), cmap="gray")


def write_csv(path:Path, columns:list[str], rows) -> None:
    import csv
    with open(path, "w", newline="") as f:
        out = csv.writer(f)
        out.writerow(columns)
        out.writerows(rows)


def metric_rows(k):
    "Figures with intervals as an evaluation writes them; the last class has no image."
    whole = [("auc", "AUC", .981, "BCa"), ("accuracy", "Accuracy", .91, "Wilson"), ("macro_f1", "Macro F1", .88, "BCa"), ("kappa", "Cohen's kappa", .87, "BCa")]
    rows = [{"name": n, "title": t, "better": "higher", "class": None, "value": v, "low": v - .03, "high": v + .015, "interval": by} for n, t, v, by in whole]
    for n in ("sensitivity", "specificity", "ppv", "npv", "auc_per_class"):
        rows += [{"name": n, "title": n, "better": "higher", "class": i, "value": None if i == k - 1 else .9, "low": None if i == k - 1 else .8, "high": None if i == k - 1 else .95, "interval": "Wilson"} for i in range(k)]
    return rows


def held_out(k, n, many):
    "What an evaluation writes of calibration, conformal sets and selective prediction; the last class has no image."
    summary = dict(ece=.04, ece_mass=.05, mce=.2, classwise_ece=.03, brier=.12, nll=.3, n=n, n_bins=15)
    def covered(v): return dict(n=n // k, coverage=v, low=None if v is None else v - .03, high=None if v is None else v + .02)
    def sets(v, limit): return dict(covered(v), thresholds=[.7] * (k - 1) + [limit], target=.9, mean_size=1.3, sizes=[], empty=.01, single=.7, full=.1, by_class=[covered(v - .4)] + [covered(.95)] * (k - 2) + [covered(None)])
    return {"held_out": dict(split="val", n=100), "calibration": dict(method="temperature", notes=[], temperature=None if many else 1.4, before=summary, after=dict(summary, ece=.02, nll=.28), gain=dict(mean=.02, low=.01, high=.03)),
            "conformal": dict(alpha=.1, score="lac", n_held_out=100, marginal=sets(.9, .7), by_class=sets(.93, None)),
            "selective": dict(aurc=.02, best=.004, excess=.016, error=.09, at=[dict(target=t, coverage=t, threshold=.6, n=int(t * n), accuracy=.97, low=.94, high=.99) for t in (.8, .9, .95)])}


@lru_cache(maxsize=None)
def against(task, k):
    "What speaks against the figures, by the functions that the stages call, on 60 small images: parts of metrics.json, and audit.json."
    import torch
    from xaimed import audit, curves, ensemble, features, robustness, slices, stress
    from xaimed.trust import probabilities
    rng, names = np.random.default_rng(0), [f"class {i}" for i in range(k)]
    labels = rng.integers(0, 2, (60, k)) if task == "multi-label" else np.arange(60) % k
    logits = rng.normal(size=(60, k)) + 2 * (labels if labels.ndim == 2 else np.eye(k)[labels])
    images, probs = rng.integers(0, 256, (60, 1, 12, 12), dtype=np.uint8), probabilities(logits, task)
    parts = {"operating": curves.operating_report(labels, probs, labels, probs, task, names), "leaks": stress.leak_effect(labels, probs, task, np.arange(60) < 6, n_resamples=100)}
    parts["slices"] = slices.slice_report(labels, probs, task, slices.quality_slices(slices.image_quality(images)), n_resamples=100)
    parts["slices"]["words"] = slices.slices_words(parts["slices"])
    tried = robustness.robustness_report(lambda x: probs[:len(x)], torch.from_numpy(images[:8]), labels[:8], task, corruptions=["pixelate", "gaussian_noise"], severities=(1, 5))
    parts["robustness"] = tried | {"words": robustness.robustness_words(tried)}
    f = rng.normal(size=(60, 4))
    told = features.ood_report({"energy": f[:, 0], "brightness": f[:, 1]}, {"energy": f[:, 2] - 2, "brightness": f[:, 3]}, n_resamples=200)
    parts["strangers"] = dict(name="scrambled", title="scrambled phases", description="Made of the evaluated images.", n_inside=60, n_outside=60, scores=told, words=features.ood_words(told, "the test images", "scrambled phases"))
    said = (probs > .5).astype(int) if task == "multi-label" else probs.argmax(1)
    parts["neighbours"] = features.knn_agreement(f, labels, said, f + .01, labels, names, task, k=3) | {"n_strangers": 2}
    together = ensemble.ensemble_report(labels, np.stack([probs, probabilities(logits + rng.normal(size=logits.shape), task)]), task, [0, 1], n_resamples=100)
    parts["ensemble"] = together | {"words": ensemble.ensemble_words(together)}
    dropped = ensemble.dropout_report(labels, logits, ensemble.dropout_logits(f, rng.normal(size=(k, 4)), n_passes=3), task, p=.2, trained_with_dropout=False, n_resamples=100)
    parts["dropout"] = dropped | {"words": ensemble.dropout_words(dropped)}
    copied = np.concatenate([images[:2], images[2:40]])
    found = audit.audit({"train": (images[:40], labels[:40]), "val": (images[40:50], labels[40:50]), "test": (copied[:20], labels[:20][::-1])}, task, names)
    return parts, found | {"words": audit.audit_words(found)}


def make_run(root:Path, task="multi-class", *, dataset="pathmnist", classes=None, failures=True, masks=False, official=True, size=28, stem="small", draw=draw, n_test=200, native=None, model=None, verdict=None, examined=True, **overrides):
    "Write the files of a finished run, as the stages' contract has them."
    native = native or size  # side of the images in the file
    many, k = task == "multi-label", len(classes) if classes else TASKS[task]
    classes = classes or [f"class {i}, of {k}" for i in range(k)]
    options = load_options("quick_smoke", dataset=dataset, run="fixture", overrides={"artifacts_dir": str(root / "artifacts"), "data.data_dir": str(root / "private" / "data"), "data.size": size, **overrides})
    at = {s: stage_dir(options, s) for s in STAGES[:5]}
    for folder in at.values(): folder.mkdir(parents=True)
    counts = {s: {"total": n, "per_class": [n // k] * k} for s, n in dict(train=1000, val=100, test=n_test).items()}
    write_json(at["data"] / "card.json", {
        "name": dataset, "title": "PathMNIST" if dataset == "pathmnist" else dataset, "task": task, "classes": classes, "channels": 3, "ndim": 2, "size": size, "image_shape": [native, native, 3], "counts": counts,
        "licence": "CC BY 4.0", "source": "https://medmnist.com/", "citation": "Yang et al. 2023", "known_defects": ["JPEG traces leak the class"], "flips": "all", "masks": masks,
        "file": {"name": f"{dataset}.npz", "bytes": 205615438, "md5": "a" * 32, "sha256": "b" * 64, "official": official}, "description": f"Read from {root}/private/data/{dataset}.npz."})
    write_json(at["models"] / "model.json", {
        "name": "resnet18", "stem": stem, "num_classes": k, "in_channels": 3, "image_size": size, "pretrained": False, "weights": None, "parameters": 11173962, "cam_layer": "layer4", "cam_map_size": [4, 4],
        "layers": [{"name": f"layer{i}", "type": "Sequential", "output_shape": [64 * 2**i, 28 // 2**i, 28 // 2**i], "parameters": 147968 * i} for i in range(1, 5)], "normalise": {"mean": [0.5], "std": [0.5], "interpolation": "bilinear"}, **(model or {})})
    write_csv(at["train"] / "history.csv", list(schema.Epoch.model_fields), [[e, 1e-3, 1 / e, 0.5 + e / 20, 1.1 / e, 0.5 + e / 21, 0.6 + e / 30, 1.5] for e in range(1, 9)])
    write_json(at["eval"] / "metrics.json", {
        "accuracy": 0.91, "macro_f1": 0.88, "ece": 0.041, "auc": 0.981, "n": n_test, "split": "test", "task": task, "classes": classes, "dataset": dataset, "checkpoint": {"which": "best", "epoch": 7},
        "per_class": [{"class": c, "precision": 0.9, "recall": 0.8, "f1": 0.85, "auc": None if i == k - 1 else 0.97, "support": 0 if i == k - 1 else n_test // k} for i, c in enumerate(classes)], "medmnist": {"AUC": 0.981, "ACC": 0.91},
        "intervals": {"level": 0.95, "n_resamples": 2000, "seed": 0, "rows": metric_rows(k)}, **held_out(k, n_test, many), **(against(task, k)[0] if examined else {})})
    if examined: write_json(at["data"] / "audit.json", against(task, k)[1])
    label, predicted = (";".join(["1"] + ["0"] * (k - 1)), ";".join(["0"] * k)) if many else ("0", "1")
    rows = [(group, rank, 10 * rank + j, label, predicted, 0.99 - rank / 50, classes[0], "none" if many else classes[1]) for j, group in enumerate(("high_confidence_wrong", "low_confidence_correct")) for rank in range(1, 7)]
    write_csv(at["eval"] / "failure_gallery_selection.csv", list(schema.Failure.model_fields), rows if failures else [])
    shown = [("random", 100 + i) for i in range(3)] + ([(r[0], r[2]) for r in rows if r[1] <= 2] if failures else [])
    write_csv(at["explain"] / "explanations.csv", list(schema.Explained.model_fields), [
        (i, group, m, 1, classes[1], 0.93, label, "" if m == "gradcam" else "-0.0213", f"sample_{i:05d}_{m}.png") for group, i in shown for m in METHODS])
    for stage, name in schema.FIGURES.values():
        if (failures or "grid" not in name) and (examined or name not in EXAMINED): draw(at[stage] / name)
    if examined:
        write_csv(at["eval"] / "neighbours.csv", ["index", "rank", "case", "label", "label_name", "similarity", "typicality"], [(i, r, 7 * i + r, label, classes[1], 0.9 - r / 50, 0.03) for _, i in shown for r in (1, 2, 3)])
        for _, i in shown: draw(at["explain"] / f"sample_{i:05d}_neighbours.png")
    for _, i in shown:
        for m in METHODS: draw(at["explain"] / f"sample_{i:05d}_{m}.png")
    if verdict: write_json(at["explain"] / "verdict.json", verdict)
    recipe = {"title": "AdamW, one-cycle", "source": "somebody 2019", "optimizer": "adamw", "lr": 2e-3, "weight_decay": 0.05, "schedule": "one_cycle", "label_smoothing": 0.1, "augment": True, "select": "val_loss"}
    for i, stage in enumerate(at):
        write_json(at[stage] / "manifest.json", {
            "stage": stage, "build": stage, "options": options, "watched": [{"path": str(root / "private")}], "outputs": [], "facts": {"recipe": recipe, "precision": "fp32"} if stage == "train" else {},
            "started": "2026-01-02T03:04:05+00:00", "wall_seconds": 10.0 * i + 1.25, "peak_memory_mb": 812, "versions": {"xaimed": "0.1.0", "python": "3.11", "torch": "2.9"}, "commit": "0123456789ab",
            "platform": "Linux x86_64, 2 cores", "device": "cpu", "seed": 0})
    return options


JUDGED = {"gradcam": ("Grad-CAM", "better"), "integrated_gradients": ("Integrated Gradients", "some"), "gradcam_plus_plus": ("Grad-CAM++", "better"), "layercam": ("Layer-CAM", "some"), "saliency": ("Saliency", "none"),
          "input_x_gradient": ("Input × Gradient", "none"), "smoothgrad": ("SmoothGrad", "some"), "guided_backprop": ("Guided Backprop", "randomisation"), "occlusion": ("Occlusion", "better"),
          "gradient_shap": ("Expected Gradients (GradientSHAP)", "none"), "rise": ("RISE", "unjudged")}
CONTROLS = {"random": "Random", "smoothed_random": "Smoothed random", "edges": "Edge detector", "centred_gaussian": "Centred Gaussian"}
VERDICTS = {"better": "better than every control", "some": "better than every control on 2 of 3 measures", "none": "no better than an edge detector", "randomisation": "fails the randomisation test", "unjudged": "not judged"}
MEASURES = {"faithfulness": ["deletion_blur", "deletion_mean", "insertion_blur", "insertion_mean", "aopc_blur", "aopc_mean", "flipping_area_blur", "flipping_area_mean", "road", "average_drop", "infidelity"],
            "robustness": ["max_sensitivity", "average_sensitivity"], "complexity": ["sparseness", "entropy"], "axioms": ["completeness"], "randomisation": ["mprt_top_down", "mprt_last", "efficient_mprt"],
            "localisation": ["pointing_game", "relevance_mass", "top_k_iou"]}
LOWER = ("deletion_blur", "deletion_mean", "average_drop", "infidelity", "max_sensitivity", "average_sensitivity", "entropy", "completeness", "mprt_top_down", "mprt_last")


def make_verdict(*, judged=JUDGED, measures=MEASURES, masks=True, regions=True, recommended=True, seed=0, n=12) -> dict:
    "A verdict by hand, as the contract of verdict.json has it; the figures are invented."
    rng = np.random.default_rng(seed)
    families = {f: m for f, m in measures.items() if masks or f != "localisation"}
    titles = {name: name.replace("_", " ").capitalize().replace("Road", "ROAD").replace("Mprt", "MPRT") for names in families.values() for name in names}
    def score(name, family, control):
        mean = float(rng.uniform(0, 0.5)) * {"infidelity": 1e-4, "entropy": 10}.get(name, 1)
        found = {"mean": mean, "low": mean * 0.8, "high": mean * 1.3, "n": n, "chance": 0.08 if family == "localisation" else None}
        if name == "completeness" and control: found |= {"mean": None, "low": None, "high": None, "n": 0}
        return found if control else found | {"control": "edges", "difference": 0.1, "p": 0.001, "p_corrected": (p := float(rng.uniform(0, 0.1))), "better": p < 0.05}
    def scores(control): return {name: score(name, family, control) for family, names in families.items() for name in names}
    methods = [{"name": k, "title": t, "control": False, "kind": kind, "verdict": VERDICTS[kind], "reason": f"ROAD 0.12 better than an edge detector (corrected p 0.020); {t} has more to say.", "scores": scores(False)} for k, (t, kind) in judged.items()]
    methods += [{"name": k, "title": t, "control": True, "kind": "control", "verdict": None, "reason": None, "scores": scores(True)} for k, t in CONTROLS.items()]
    names = list(titles)
    matrix = np.clip(rng.normal(0.3, 0.4, (len(names),) * 2), -1, 1)
    matrix = (matrix + matrix.T) / 2
    np.fill_diagonal(matrix, 1)
    matrix = [[None if i == 2 and j == 4 or i == 4 and j == 2 else float(v) for j, v in enumerate(row)] for i, row in enumerate(matrix)]
    first = next(iter(judged))
    interval = lambda mean: {"mean": mean, "low": mean - 0.05, "high": mean + 0.05, "n": 40}
    return {
        "format": "xaimed-verdict", "version": 1, "budget": {"measures": "full", "n_images": n, "n_steps": 8, "output": "probability", "batch_size": 32, "seed": 0, "seconds": 21.3, "passes": 12345},
        "measures": [{"name": k, "title": t, "family": next(f for f, m in families.items() if k in m), "better": "lower" if k in LOWER else "higher", "passes": "2 n", "budget": "cheap", "source": "Somebody et al. 2020, arXiv:2001.00001",
                      "decisive": k in ("road", "flipping_area_blur", "flipping_area_mean", "mprt_last")} for k, t in titles.items()],
        "methods": methods, "agreement": {"measures": names, "matrix": matrix, "images": n}, "baselines": {"flipping_area": 0.83, "aopc": 0.21},
        "recommended": {"method": first, "title": judged[first][0], "reason": "3 of 11 methods are better than every control by all 3 decisive measures; it has the best mean rank among them, 1.3 against 2.0 for Occlusion."} if recommended
                       else {"method": None, "title": None, "reason": "No method is better than every control by all 3 decisive measures."},
        "points": None, "regions": {"name": "planted marker", "images": 40, "methods": {k: {"region": interval(0.5 if i % 2 else 0.02), "region_chance": 0.01 + 0.05 * (i % 2 == 0), "finding": interval(0.1), "finding_chance": 0.08} for i, k in enumerate(judged)},
                                    "accuracy": {"n": 240, "with": 0.97, "removed": 0.71, "elsewhere": 0.96, "drop": {"mean": 0.26, "low": 0.2, "high": 0.32, "n": 240}}} if regions else None,
        "flags": [{"index": 100, "method": "gradcam", "flags": ["unstable"], "words": ["max-sensitivity 1.21, limit 0.50"]}, {"index": 10, "method": "integrated_gradients", "flags": ["incomplete", "alone"],
                  "words": ["sum off by 0.31 logits, limit 0.10", "correlation with other methods 0.05, limit 0.20"]}, {"index": 9999, "method": "rise", "flags": ["alone"], "words": ["not on this page"]}],
        "drift": {"gradcam": {"n": 8, "severities": [1, 5], "chance": {"n": 8, "mean": 0.2, "low": 0.1, "high": 0.3}, "by_severity": [{"severity": s, "correlation": 0.8, "stayed_correlation": 0.9 - s / 10, "changed_correlation": None, "share_changed": s / 10} for s in (1, 5)], "words": ["Where the answer stayed, explanations moved."]}},
        "limits": {"gap": 0.1, "sensitivity": 0.5, "agreement": 0.2, "randomisation": 0.5, "alpha": 0.05}, "comparisons": 30}
