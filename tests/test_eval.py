"A whole evaluation: every task kind, medmnist's own figures, files from which all figures can be computed again."
import csv
import math

import medmnist
import numpy as np
import pytest
from PIL import Image

from xaimed import eval as evaluation
from xaimed import trust
from xaimed.calibration import logits_from
from xaimed.config import XaimedError, load_options, plain, read_json, read_manifest, stage_dir

TASKS = [("multi-class", 4), ("binary", 2), ("multi-label", 3), ("ordinal", 5)]
NAMES = ["disc", "ring, broken", 'the "cross"', "triangle", "star"]
FILES = ["confusion_matrix.png", "curves.json", "curves.png", "failure_gallery_selection.csv", "high_confidence_wrongs_grid.png", "low_confidence_corrects_grid.png", "metrics.json", "predictions.csv", "reliability.png", "risk_coverage.png"]


def case(task, K, n=60, seed=0):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, (n, K)) if task == "multi-label" else rng.integers(0, K, n)
    logits = rng.standard_normal((n, K)) + 2.0 * (labels if task == "multi-label" else np.eye(K)[labels])
    return rng.integers(0, 256, (n, 1, 12, 16), dtype=np.uint8), labels, trust.probabilities(logits, task)


def same(a, b): return a == b or (a is None and b != b)


@pytest.mark.parametrize("task, K", TASKS)
def test_every_file_is_written_and_every_figure_follows_from_predictions(task, K, tmp_path):
    images, labels, probs = case(task, K)
    evaluation.write_evaluation(tmp_path, images, labels, probs, task=task, classes=NAMES[:K], dataset="mine", gallery_size=5, checkpoint=dict(which="best", epoch=3))
    assert sorted(p.name for p in tmp_path.iterdir()) == FILES
    metrics = read_json(tmp_path / "metrics.json")
    assert {"accuracy", "macro_f1", "ece", "auc", "n", "split", "task", "classes", "per_class", "medmnist", "checkpoint", "dataset", "notes"} <= set(metrics)
    assert [set(r) for r in metrics["per_class"]] == [{"class", "precision", "recall", "f1", "auc", "support"}] * K
    assert metrics["n"] == 60 and metrics["notes"] == [] and metrics["checkpoint"] == {"which": "best", "epoch": 3}
    index, y, p = evaluation.read_predictions(tmp_path / "predictions.csv")
    assert np.array_equal(index, np.arange(60)) and np.array_equal(y, labels) and np.array_equal(p, probs)
    again = evaluation.evaluate(y, p, task, NAMES[:K])
    assert all(plain(again[k]) == metrics[k] for k in again)
    assert evaluation.select_failures(y, p, task, NAMES[:K], size=5) == evaluation.select_failures(labels, probs, task, NAMES[:K], size=5)
    for name in FILES:
        if name.endswith(".png"):
            with Image.open(tmp_path / name) as image: assert image.width >= 400
    with open(tmp_path / "predictions.csv", newline="") as f: header = next(csv.reader(f))
    assert header == ["index", "label", "predicted", *(f"prob_{k}" for k in range(K))]


@pytest.mark.parametrize("task, K", TASKS)
def test_a_held_out_split_gives_sets_and_a_recalibration(task, K, tmp_path):
    images, labels, probs = case(task, K, n=300)
    _, val_labels, val_probs = case(task, K, n=300, seed=5)
    sharp = lambda p: trust.probabilities(20 * logits_from(p, task), task)         # far too sure, on both splits
    metrics = evaluation.write_evaluation(tmp_path, images, labels, sharp(probs), task=task, classes=NAMES[:K], held_out=evaluation.Scores(val_labels, sharp(val_probs)), n_resamples=200)
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([*FILES, "reliability_calibrated.png"])
    c, sets = metrics["calibration"], metrics["conformal"]
    assert metrics["held_out"] == {"split": "val", "n": 300} and c["after"]["nll"] < c["before"]["nll"] and c["after"]["ece"] < c["before"]["ece"]
    assert c["gain"]["low"] > 0 and c["gain"]["mean"] == pytest.approx(c["before"]["nll"] - c["after"]["nll"])
    assert c["temperature"] is None if task == "multi-label" else c["temperature"] > 1.5
    assert all(.83 < sets[way]["coverage"] < .97 for way in ("marginal", "by_class")) and len(sets["marginal"]["by_class"]) == K
    with open(tmp_path / "predictions.csv", newline="") as f: rows = list(csv.DictReader(f))
    held = np.array([[int(v) for v in r["set"].split(";")] for r in rows])
    inside = held[labels == 1].mean() if task == "multi-label" else held[np.arange(300), labels].mean()
    assert held.shape == (300, K) and abs(inside - sets["marginal"]["coverage"]) < 1e-9
    index, y, p = evaluation.read_predictions(tmp_path / "predictions.csv")
    assert np.array_equal(y, labels) and p.shape == (300, K)
    assert [x["target"] for x in metrics["selective"]["at"]] == [.8, .9, .95] and metrics["selective"]["at"][0]["accuracy"] >= metrics["selective"]["at"][2]["accuracy"] - .05


@pytest.mark.parametrize("task, K", TASKS)
def test_sets_of_labels_are_made_once(task, K, monkeypatch):
    "The labels of a multi-label task have thresholds of their own either way."
    asked, real = [], evaluation.conformal_sets
    monkeypatch.setattr(evaluation, "conformal_sets", lambda *a, **k: asked.append(k["by_class"]) or real(*a, **k))
    (_, y, p), (_, held, said) = case(task, K), case(task, K, seed=5)
    found, sets = evaluation.sets_report(evaluation.Scores(held, said), evaluation.Scores(y, p), task)
    assert asked == ([False] if task == "multi-label" else [False, True])
    assert np.array_equal(sets, real(held, said, p, task=task)) and (found["by_class"] == found["marginal"]) == (task == "multi-label")
    by_class = real(held, said, p, by_class=True, task=task)
    assert found["by_class"]["sizes"] == np.bincount(by_class.sum(1), minlength=K + 1).tolist()


def test_a_table_says_that_there_is_no_interval():
    row = dict(title="AUC", test="DeLong", first=1., second=float("nan"), difference=float("nan"), low=float("nan"), high=float("nan"), p=float("nan"), n=1)
    text = evaluation.comparison_table([row, row | dict(first=.9, second=.9, difference=0., low=0., high=0.)])
    assert "| AUC | 1.000 | – | – | none | – | DeLong |" in text and "| +0.000 | none |" in text and "1 image; " in text and "nan" not in text and "No interval: " in text
    assert "none" not in evaluation.comparison_table([row | dict(second=.9, difference=-.1, low=-.2, high=.1)])
    whole = evaluation.intervals_table(evaluation.evaluate([0] * 6, np.tile([.9, .1], (6, 1)), "binary", NAMES[:2], n_resamples=100))
    assert "| AUC | – | none | – |" in whole and "– to" not in whole and "None: a figure" in whole


def test_logits_at_hand_are_used_beyond_what_probabilities_hold():
    "Logits forty times too large: their probabilities are 0 and 1 to the last digit, and the temperature can only be found from the logits."
    rng = np.random.default_rng(0)
    z = rng.normal(size=(400, 3))
    labels = (rng.random((400, 1)) > trust.probabilities(z, "multi-class").cumsum(1)[:, :-1]).sum(1)
    scored = evaluation.Scores(labels, trust.probabilities(40 * z, "multi-class"), 40 * z)
    rebuilt = evaluation.Scores(labels, scored.probs)
    exact, rough = (evaluation.recalibrated(s, s, "multi-class", method="temperature")[0]["temperature"] for s in (scored, rebuilt))
    assert abs(exact - 40) < 6 and rough < 30


def test_selective_confidence_does_not_look_at_the_labels():
    probs = np.random.default_rng(0).random((300, 6))
    labels = (np.random.default_rng(1).random((300, 6)) < probs).astype(int)                # perfectly calibrated
    found, curve = evaluation.selective_report(labels, probs, "multi-label")
    other, again = evaluation.selective_report(1 - labels, probs, "multi-label")
    assert np.array_equal(curve["threshold"], again["threshold"]) and found["aurc"] < found["error"]


def test_a_held_out_split_of_one_class_is_said_and_stops_nothing(tmp_path):
    images, labels, probs = case("binary", 2)
    metrics = evaluation.write_evaluation(tmp_path, images, labels, probs, task="binary", classes=NAMES[:2], held_out=evaluation.Scores(np.zeros(9, int), probs[:9]), n_resamples=200)
    assert metrics["calibration"]["after"] is None and "class 0 only" in metrics["calibration"]["notes"][0] and not (tmp_path / "reliability_calibrated.png").exists()
    assert metrics["conformal"]["by_class"]["thresholds"][1] == float("inf") and read_json(tmp_path / "metrics.json")["conformal"]["by_class"]["thresholds"][1] is None


@pytest.mark.parametrize("task, K", TASKS)
def test_two_runs_are_compared_on_the_same_images(task, K, tmp_path):
    images, labels, probs = case(task, K)
    def write(name, labels, probs, **more):
        (tmp_path / name).mkdir()
        evaluation.write_evaluation(tmp_path / name, images[:len(labels)], labels, probs, task=task, classes=NAMES[:K], n_resamples=100, **more)
        return tmp_path / name
    truth = labels if task == "multi-label" else np.eye(K)[labels]
    order = np.random.default_rng(1).permutation(60)
    first, second = write("first", labels, probs), write("second", labels[order], (.5 * probs + .5 * truth)[order], index=order)
    rows = {(r["title"], r["test"]): r for r in evaluation.compare_runs(first, second, n_resamples=200)}
    assert rows["AUC", "paired bootstrap"]["second"] == pytest.approx(1) and rows["AUC", "paired bootstrap"]["difference"] > 0
    assert (("AUC", "DeLong") in rows) == (task == "binary") and (("Accuracy", "McNemar") in rows) == (task != "multi-label")
    assert "60 images" in evaluation.comparison_table(list(rows.values()))
    for bad, why in ((write("few", labels[:50], probs[:50]), "expected the same images"), (write("other", 1 - labels if task in ("binary", "multi-label") else (labels + 1) % K, probs), "differ in their labels"),
                     (write("val", labels, probs, split="val"), "differ in their split")):
        with pytest.raises(ValueError, match=why): evaluation.compare_runs(first, bad)
    with pytest.raises(ValueError, match="both runs are first, expected two"): evaluation.compare_runs(first, tmp_path / "few" / ".." / "first")
    with pytest.raises(XaimedError, match="no metrics.json"): evaluation.compare_runs(first, tmp_path / "nothing")


@pytest.mark.parametrize("task, K", TASKS)
def test_the_gallery_is_ranked_and_complete(task, K):
    _, labels, probs = case(task, K, seed=1)
    rows = evaluation.select_failures(labels, probs, task, NAMES[:K], size=1000)
    wrong, right = ([r for r in rows if r["group"] == g] for g in evaluation.GROUPS)
    predicted = trust.predict_labels(probs, task)
    is_right = (predicted == labels) if labels.ndim == 1 else (predicted == labels).all(1)
    assert {r["index"] for r in wrong} == set(np.flatnonzero(~is_right)) and {r["index"] for r in right} == set(np.flatnonzero(is_right))
    for group, sign in ((wrong, -1), (right, 1)):
        assert [r["rank"] for r in group] == list(range(1, len(group) + 1))
        assert group == sorted(group, key=lambda r: (sign * r["confidence"], r["index"]))
    for r in rows:
        p = probs[r["index"]]
        assert r["confidence"] == (p.max() if labels.ndim == 1 else max(p[r["decided"]], 1 - p[r["decided"]]))
        assert r["label"] == ";".join(map(str, np.atleast_1d(labels[r["index"]]))) and r["predicted"] == ";".join(map(str, np.atleast_1d(predicted[r["index"]])))
        if task == "multi-label" and r["group"] == evaluation.GROUPS[0]: assert predicted[r["index"], r["decided"]] != labels[r["index"], r["decided"]]
        assert len(evaluation.failure_title(r, NAMES[:K], task).split("\n")) == 3
    again = evaluation.select_failures(labels, probs, task, NAMES[:K], size=3)
    assert [r for r in again if r["group"] == evaluation.GROUPS[0]] == wrong[:3]


@pytest.mark.parametrize("name, task, K", [("bloodmnist", "multi-class", 8), ("breastmnist", "binary", 2), ("chestmnist", "multi-label", 14), ("retinamnist", "ordinal", 5)])
@pytest.mark.parametrize("seed", range(3))
def test_equal_to_medmnists_evaluator(name, task, K, seed, tmp_path):
    _, labels, probs = case(task, K, n=150, seed=seed)
    if seed == 2: probs = probs.round(1)   # ties, and values of exactly one half
    np.savez(tmp_path / f"{name}.npz", test_labels=labels if labels.ndim == 2 else labels[:, None])
    theirs = medmnist.Evaluator(name, "test", root=str(tmp_path)).evaluate(probs)
    assert evaluation.medmnist_figures(labels, probs, task) == {"AUC": theirs.AUC, "ACC": theirs.ACC}
    ours = evaluation.evaluate(labels, probs, task, [str(k) for k in range(K)])
    assert ours["auc"] == pytest.approx(theirs.AUC) and ours["medmnist"]["AUC"] == theirs.AUC
    if seed != 2: assert ours["accuracy"] == pytest.approx(theirs.ACC)


def test_equal_to_medmnists_evaluator_on_real_labels(real_data):
    evaluator = medmnist.Evaluator("breastmnist", "test", root=str(real_data))
    labels = evaluator.labels[:, 0]
    probs = trust.probabilities(np.random.default_rng(0).standard_normal((len(labels), 2)) + np.eye(2)[labels], "binary")
    theirs = evaluator.evaluate(probs)
    assert evaluation.medmnist_figures(labels, probs, "binary") == {"AUC": theirs.AUC, "ACC": theirs.ACC} and len(labels) == 156


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("task, K", TASKS)
@pytest.mark.parametrize("n", [1, 4])
def test_a_split_of_one_class_or_one_image_is_answered_with_reasons(task, K, n, tmp_path):
    images, _, probs = case(task, K, n=n)
    labels = np.zeros((n, K), int) if task == "multi-label" else np.zeros(n, int)
    evaluation.write_evaluation(tmp_path, images, labels, probs, task=task, classes=NAMES[:K])
    metrics = read_json(tmp_path / "metrics.json")
    assert metrics["auc"] is None and metrics["medmnist"]["AUC"] is None and isinstance(metrics["accuracy"], float) and isinstance(metrics["ece"], float)
    assert any(note.startswith("AUC is undefined") for note in metrics["notes"]) and any("medmnist" in note for note in metrics["notes"])
    for r in metrics["per_class"]:
        for measure, name in (("auc", "AUC"), ("precision", "precision"), ("recall", "recall"), ("f1", "F1")):
            said = any(note.startswith(f"{r['class']}: {name} is undefined") for note in metrics["notes"])
            assert said == (r[measure] is None)
    assert "nan" not in (tmp_path / "metrics.json").read_text().lower()


def test_nothing_wrong_and_nothing_right_draw_a_sentence(tmp_path):
    images = np.zeros((2, 3, 8, 8), np.uint8)
    for labels in ([0, 1], [1, 0]):
        probs = np.array([[0.9, 0.1], [0.2, 0.8]])
        evaluation.write_evaluation(tmp_path, images, labels, probs, task="binary", classes=["a", "b"])
        rows = evaluation.select_failures(labels, probs, "binary", ["a", "b"])
        assert len({r["group"] for r in rows}) == 1
        empty = next(g for g in evaluation.GROUPS if g not in {r["group"] for r in rows})
        figure = evaluation.failure_grid(rows, images, ["a", "b"], "binary", group=empty)
        assert any(t.get_text().startswith("none: no image") for t in figure.texts)


def test_volumes_show_their_middle_slice():
    volume = np.zeros((1, 28, 28, 28), np.uint8)
    volume[:, 14] = 7
    assert (evaluation.as_channels_last(volume) == 7).all()
    with pytest.raises(ValueError, match="1 or 3 channels"): evaluation.as_channels_last(np.zeros((2, 8, 8)))


def test_faults_are_named(tmp_path):
    images, labels, probs = case("multi-class", 4)
    with pytest.raises(ValueError, match="class names: 3, columns of probs: 4"): evaluation.evaluate(labels, probs, "multi-class", NAMES[:3])
    with pytest.raises(ValueError, match="images: 59, rows of probabilities: 60"): evaluation.write_evaluation(tmp_path, images[1:], labels, probs, task="multi-class", classes=NAMES[:4])
    with pytest.raises(ValueError, match="NaN"): evaluation.write_evaluation(tmp_path, images, labels, probs * np.nan, task="multi-class", classes=NAMES[:4])
    with pytest.raises(ValueError, match="expected 0..3"): evaluation.evaluate(labels + 1, probs, "multi-class", NAMES[:4])
    assert not any(tmp_path.iterdir())
    (tmp_path / "predictions.csv").write_text("index,something\n")
    with pytest.raises(ValueError, match="expected a predictions.csv"): evaluation.read_predictions(tmp_path / "predictions.csv")
    with pytest.raises(ValueError, match="unknown gallery group"): evaluation.failure_grid([], images, NAMES, "binary", group="wrong")


def test_the_same_scores_give_the_same_bytes(tmp_path):
    images, labels, probs = case("multi-class", 4)
    for name in "ab": evaluation.write_evaluation(tmp_path / name, images, labels, probs, task="multi-class", classes=NAMES[:4])
    assert all((tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes() for name in FILES)


@pytest.fixture
def untrained(tmp_path, monkeypatch):
    "A run with random weights in the place of training, for any task."
    import torch
    from xaimed.data import load_split
    from xaimed.models import model_from_options
    from xaimed.train import checkpoint_header, save_checkpoint

    def make(task, K, **overrides):
        options = load_options("quick_smoke", run=f"untrained-{task}", overrides={
            "artifacts_dir": str(tmp_path / "artifacts"), "data.data_dir": str(tmp_path / "data"), "device": "cpu", "eval.batch_size": 7,
            "synthetic.task": task, "synthetic.num_classes": K, "synthetic.n_train": 8, "synthetic.n_val": 6, "synthetic.n_test": 20, **overrides})
        spec = load_split(options, "test").spec
        torch.manual_seed(0)
        model = model_from_options(options, spec)
        for which, epoch in (("best", 2), ("last", 5)):
            save_checkpoint(stage_dir(options, "train") / f"{which}.pt", {**checkpoint_header(options, spec, model), "epoch": epoch, "metrics": {}, "state_dict": model.state_dict()})
        monkeypatch.setattr(evaluation, "run_training", lambda options: stage_dir(options, "train"))
        return options
    return make


@pytest.mark.parametrize("task, K", TASKS)
def test_the_stage_on_every_task(task, K, untrained, capfd):
    options = untrained(task, K)
    folder = evaluation.run_eval(options)
    assert folder == stage_dir(options, "eval") and set(FILES) <= {p.name for p in folder.iterdir()}
    metrics, facts = read_json(folder / "metrics.json"), read_manifest(folder)["facts"]
    assert metrics["n"] == facts["n"] == 20 and metrics["checkpoint"] == {"which": "best", "epoch": 2}
    assert metrics["task"] == task and same(metrics["auc"], facts["auc"] if facts["auc"] is not None else math.nan)
    assert capfd.readouterr().out == ""


def test_the_stage_takes_the_split_and_checkpoint_of_the_options(untrained):
    options = untrained("multi-class", 4, **{"eval.split": "val", "eval.checkpoint": "last", "eval.gallery_size": 2, "eval.ece_bins": 5})
    folder = evaluation.run_eval(options)
    metrics = read_json(folder / "metrics.json")
    assert (metrics["split"], metrics["n"], metrics["checkpoint"], metrics["ece_bins"]) == ("val", 6, {"which": "last", "epoch": 5}, 5)
    with open(folder / "failure_gallery_selection.csv", newline="") as f: assert max(int(r["rank"]) for r in csv.DictReader(f)) == 2


def test_the_train_split_keeps_its_order(untrained):
    from xaimed.data import load_split
    options = untrained("multi-class", 4, **{"eval.split": "train"})
    _, labels, _ = evaluation.read_predictions(evaluation.run_eval(options) / "predictions.csv")
    assert labels.tolist() == load_split(options, "train").labels.tolist()


def test_a_batch_size_changes_no_prediction(untrained):
    first = evaluation.read_predictions(evaluation.run_eval(untrained("binary", 2)) / "predictions.csv")
    second = evaluation.read_predictions(evaluation.run_eval(untrained("binary", 2, **{"eval.batch_size": 20}), force=True) / "predictions.csv")
    assert np.allclose(first[2], second[2], atol=1e-5)


def test_a_checkpoint_of_another_data_set_is_refused_and_nothing_is_left(untrained):
    options = untrained("multi-class", 4)
    other = untrained("multi-class", 3, **{"run": options.run})
    untrained("multi-class", 4)
    with pytest.raises(ValueError, match="trained with"): evaluation.run_eval(other)
    assert not stage_dir(other, "eval").exists()


def test_the_index_is_the_place_in_the_file(tmp_path):
    "When only some images were kept, every file names the place of each in the data file."
    probs = np.array([[.9, .1], [.8, .2], [.3, .7]])
    images = np.stack([np.full((1, 8, 8), v, np.uint8) for v in (10, 20, 30)])
    evaluation.write_evaluation(tmp_path, images, np.array([1, 0, 1]), probs, task="binary", classes=["a", "b"], index=[5, 7, 40])
    assert evaluation.read_predictions(tmp_path / "predictions.csv")[0].tolist() == [5, 7, 40]
    gallery = (tmp_path / "failure_gallery_selection.csv").read_text().splitlines()
    assert [line.split(",")[2] for line in gallery[1:]] == ["5", "40", "7"]
    with pytest.raises(ValueError): evaluation.write_predictions(tmp_path / "p.csv", np.array([1, 0, 1]), probs, "binary", index=[5])


def test_a_run_that_is_not_there_names_those_that_are(tmp_path):
    (tmp_path / "eval" / "demo_s1").mkdir(parents=True)
    (tmp_path / "eval" / "demo_s1" / "metrics.json").write_text("{}")
    with pytest.raises(XaimedError, match=r"no metrics.json in eval/demo, .*name of a run \(demo_s1\)"): evaluation.read_evaluation(tmp_path / "eval" / "demo")


def test_only_p_values_that_are_there_are_counted():
    row = dict(title="AUC", test="DeLong", first=.8, second=.9, difference=.1, low=.0, high=.2, p=.04, n=50)
    assert "there are 1 here" in evaluation.comparison_table([row, row | {"p": float("nan")}])
