"How the stages ask what speaks against the figures: options and their mistakes, files written, read back by the report, old runs without them."
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from made_run import against, make_run, make_verdict
from PIL import Image

from xaimed import data as data_room
from xaimed import eval as evaluation
from xaimed import explain, schema, stress
from xaimed.audit import audit
from xaimed.config import STAGES, XaimedError, fingerprint, load_options, plain, read_json, read_manifest, stage_dir, stage_state, write_json
from xaimed.curves import THRESHOLD_RULES, curves_left_out, curves_report, operating_report
from xaimed.data import ImageDataset, load_split, run_data
from xaimed.models import model_from_options, transforms_for
from xaimed.robustness import explanation_drift
from xaimed.train import checkpoint_header, run_training, save_checkpoint
from xaimed.trust import predict_labels, probabilities

TASKS = [("multi-class", 4), ("binary", 2), ("multi-label", 3), ("ordinal", 5)]
NAMES = ["disc", "ring, broken", 'the "cross"', "<b>triangle</b>", "star"]
PARTS = ("leaks", "robustness", "strangers", "neighbours", "ensemble", "dropout")
NOTHING = {"eval.n_corrupted": 0, "eval.other_data": "", "eval.n_neighbours": 0, "eval.mc_dropout": 0, "data.audit": False}


def case(task, K, n=60, seed=0):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, (n, K)) if task == "multi-label" else np.arange(n) % K
    logits = rng.standard_normal((n, K)) + 2.0 * (labels if task == "multi-label" else np.eye(K)[labels])
    return rng.integers(0, 256, (n, 1, 12, 16), dtype=np.uint8), labels, probabilities(logits, task)


def small(tmp_path, task="multi-class", K=4, **more):
    "Options of a run of 16-pixel images, small enough for a test."
    return load_options("quick_smoke", run="u", overrides={
        "artifacts_dir": str(tmp_path / "artifacts"), "data.data_dir": str(tmp_path / "data"), "data.size": 16, "synthetic.task": task, "synthetic.num_classes": K, "synthetic.n_train": 24,
        "synthetic.n_val": 14, "synthetic.n_test": 20, "train.epochs": 1, "eval.n_resamples": 100, "eval.n_corrupted": 4, "eval.mc_dropout": 2, **more})


@pytest.fixture
def fast(monkeypatch):
    "Figures are blank, and two corruptions stand for all."
    for name in ("curves_figure", "risk_curve", "confusion_figure", "reliability_of", "failure_grid"): monkeypatch.setattr(evaluation, name, lambda *a, **k: None)
    for name in ("severity_figure", "neighbours_figure"): monkeypatch.setattr(stress, name, lambda *a, **k: None)
    for room in (evaluation, stress): monkeypatch.setattr(room, "save_figure", lambda figure, path: Image.new("L", (8, 8)).save(path))
    for room in (explain, stress): monkeypatch.setattr(room, "corruptions_for", lambda name: ("pixelate", "brightness_down"))


@pytest.fixture
def untrained(tmp_path, monkeypatch, fast):
    "A run with random weights in the place of training, for any task."
    monkeypatch.setattr(evaluation, "run_training", lambda options: stage_dir(options, "train"))

    def make(task="multi-class", K=4, **more):
        options = small(tmp_path, task, K, **more)
        spec = load_split(options, "test").spec
        torch.manual_seed(0)
        model = model_from_options(options, spec)
        for which, epoch in (("best", 2), ("last", 5)): save_checkpoint(stage_dir(options, "train") / f"{which}.pt", {**checkpoint_header(options, spec, model), "epoch": epoch, "metrics": {}, "state_dict": model.state_dict()})
        return options
    return make


def metrics_of(folder): return read_json(folder / "metrics.json")


def write_npz(path, n=(24, 14, 20), k=2, shape=(16, 16), seed=0, copies=()):
    rng, arrays = np.random.default_rng(seed), {}
    for split, m in zip(("train", "val", "test"), n): arrays |= {f"{split}_images": rng.integers(0, 256, (m, *shape), dtype=np.uint8), f"{split}_labels": np.arange(m)[:, None] % k}
    for there, here in copies: arrays["test_images"][there] = arrays["train_images"][here]
    np.savez(path, **arrays)
    return path


# ---- write_evaluation

@pytest.mark.parametrize("task, K", TASKS)
def test_curves_are_written_as_numbers(task, K, tmp_path, fast):
    images, labels, probs = case(task, K)
    labels = labels * (np.arange(K) > 0) if task == "multi-label" else labels            # a label that no image has
    metrics = evaluation.write_evaluation(tmp_path, images, labels, probs, task=task, classes=NAMES[:K], n_resamples=200, seed=3)
    found = read_json(tmp_path / "curves.json")
    assert found["curves"] == plain(curves_report(labels, probs, task, NAMES[:K], n_resamples=200, seed=3)) and found["left_out"] == plain(curves_left_out(labels, probs, task, NAMES[:K]))
    assert [c["name"] for c in found["curves"]] == {"multi-label": NAMES[1:K]}.get(task, NAMES[:K]) and [x["name"] for x in found["left_out"]] == ([NAMES[0]] if task == "multi-label" else [])
    areas = {r["class"]: r["auc"] for r in found["curves"]}
    assert all(v == pytest.approx(metrics["per_class"][k]["auc"], abs=1e-3) for k, v in areas.items())
    assert (tmp_path / "curves.png").exists()


def test_curves_by_hand():
    rows = [dict(name=f"class {k}", auc=.5 + k / 10, auprc=None, roc=dict(x=[0, .5, 1], y=[0, .7, 1], low=None, high=None), pr=dict(x=[0, 1], y=[1, .3], low=[.9, None], high=[1, None])) for k in range(3)]
    figure = evaluation.curves_figure(rows, title="T")
    roc, pr = [ax for ax in figure.axes if ax.lines]
    assert [line.get_label() for line in roc.lines if ":" in str(line.get_label())] == ["class 0: 0.500", "class 1: 0.600", "class 2: 0.700"] and [line.get_label() for line in pr.lines] == ["class 0: –", "class 1: –", "class 2: –"]
    dotted, first = roc.lines[:2]
    assert dotted.get_linestyle() == ":" and list(dotted.get_ydata()) == [0, 1] and first.get_ydata().tolist() == [0, .7, 1] and not any(line.get_linestyle() == ":" for line in pr.lines)
    assert len(pr.collections) == 3 and not roc.collections                       # bands only where there are some
    said = [t.get_text() for t in evaluation.curves_figure([]).texts]
    assert "no class has both an image with it and one without it" in said


@pytest.mark.parametrize("task, K, rule", [(t, k, r) for t, k in TASKS for r in THRESHOLD_RULES if t in ("binary", "multi-label") or r == "youden"])
def test_thresholds_are_frozen_on_the_held_out_images(task, K, rule, tmp_path, fast):
    (images, labels, probs), (_, held, said) = case(task, K), case(task, K, n=40, seed=5)
    metrics = evaluation.write_evaluation(tmp_path, images, labels, probs, task=task, classes=NAMES[:K], n_resamples=100, threshold=rule, threshold_target=.8, held_out=evaluation.Scores(held, said))
    o = metrics["operating"]
    assert o == operating_report(held, said, labels, probs, task, NAMES[:K], rule=rule, target=.8)
    if task in ("multi-class", "ordinal"): return                                # the most probable class decides
    assert o["rule"] == rule and o["target"] == (.8 if rule in ("sensitivity", "specificity") else None) and [r["class"] for r in o["rows"]] == list(range(K))
    for r in o["rows"]:
        truth = lambda y: y[:, r["class"]] if task == "multi-label" else y == r["class"]
        called, was = (p[:, r["class"]] >= r["threshold"] for p in (probs, said))
        assert r["scored"]["sensitivity"]["value"] == pytest.approx(called[truth(labels) == 1].mean()) and r["held_out"]["specificity"]["value"] == pytest.approx((~was[truth(held) == 0]).mean())
        if rule in ("sensitivity", "specificity"): assert r["held_out"][rule]["value"] >= .8
    schema.Operating.model_validate(read_json(tmp_path / "metrics.json")["operating"])


@pytest.mark.parametrize("task, K", TASKS)
def test_without_a_network_nothing_is_stressed(task, K, tmp_path, fast):
    images, labels, probs = case(task, K)
    metrics = evaluation.write_evaluation(tmp_path, images, labels, probs, task=task, classes=NAMES[:K], n_resamples=100)
    assert {p: metrics[p] for p in PARTS} == dict.fromkeys(PARTS) and metrics["operating"] is None and metrics["slices"]["n"] == 60
    assert {*PARTS, "operating", "slices"} <= set(metrics_of(tmp_path)) and schema.Metrics.model_validate(metrics_of(tmp_path)).slices.words


def test_a_network_is_stressed_with_its_surest_failures(tmp_path, fast):
    images, labels, probs = case("multi-class", 4)
    index, asked = np.arange(60) * 3 + 1, []
    metrics = evaluation.write_evaluation(tmp_path, images, labels, probs, task="multi-class", classes=NAMES[:4], n_resamples=100, index=index, split="val", gallery_size=4, stress=lambda wrong: asked.append(wrong) or {"leaks": {"n": 1}, "robustness": None})
    assert metrics["leaks"] == {"n": 1} and metrics_of(tmp_path)["leaks"] == {"n": 1} and metrics["robustness"] is None
    wrong, said = np.flatnonzero(probs.argmax(1) != labels), probs.max(1)
    surest = wrong[np.argsort(-said[wrong], kind="stable")][:4]
    assert list(asked[0]) == index[surest].tolist()
    for row, (image, words) in zip(surest, asked[0].values()):
        assert np.array_equal(image, images[row, 0]) and words.split("\n") == [f"said {NAMES[probs[row].argmax()]}", f"label {NAMES[labels[row]]}", f"val {index[row]}"]
    evaluation.write_evaluation(tmp_path, images, labels, np.eye(4)[labels], task="multi-class", classes=NAMES[:4], n_resamples=100, stress=lambda wrong: asked.append(wrong) or {})
    assert asked[1] == {}


@pytest.mark.parametrize("task, K", TASKS)
def test_the_evaluated_images_are_sliced_by_quality_and_by_the_table(task, K, tmp_path, fast):
    images, labels, probs = case(task, K)
    columns = {"scanner": np.array(["A", "B<b>"] * 30), "age": np.r_[np.nan, np.arange(59.) // 3], "name": [f"scan {i}" for i in range(60)]}
    metrics = evaluation.write_evaluation(tmp_path, images, labels, probs, task=task, classes=NAMES[:K], n_resamples=100, metadata=columns)
    rows = {r["name"]: r for r in metrics["slices"]["slices"]}
    right = (predict_labels(probs, task) == labels).reshape(60, -1).all(1)
    assert rows["scanner: A"]["n"] == 30 and rows["scanner: A"]["accuracy"]["value"] == pytest.approx(right[::2].mean()) and rows["scanner: B<b>"]["accuracy"]["value"] == pytest.approx(right[1::2].mean()) and rows["age: missing"]["n"] == 1
    assert {r["column"] for r in rows.values()} > {"scanner", "age", "brightness"} and "name" not in {r["column"] for r in rows.values()} and metrics["slices"]["words"][-1].startswith("name: ") and metrics["slices"] == metrics_of(tmp_path)["slices"]


def test_slices_of_images_and_of_a_table():
    images = np.random.default_rng(0).integers(0, 256, (12, 1, 8, 8), dtype=np.uint8)
    names = lambda *a: list(dict.fromkeys(s.column for s in evaluation.slices_of(*a)))
    qualities = names(images)
    assert {"brightness", "contrast"} <= set(qualities) and names(images, {}) == names(images, None) == qualities
    assert names(images, {"site": ["a", "b"] * 6, "same": ["a"] * 12}) == [*qualities, "site"]                 # what does not vary is no slice
    assert names(images[..., :2]) == [] and names(images[..., :2], {"site": ["a", "b"] * 6}) == ["site"]       # too small for a quality
    assert set(names(np.repeat(images[:, :, None], 5, 2))) <= set(qualities) and names(np.repeat(images[:, :, None], 5, 2))     # volumes
    assert names(np.full((12, 1, 8, 8), 7, np.uint8)) == []


@pytest.mark.parametrize("task, K", TASKS)
@pytest.mark.filterwarnings("error")
def test_a_split_of_one_class_gives_the_new_parts_with_reasons(task, K, tmp_path, fast):
    images, _, probs = case(task, K, n=5)
    labels, (_, held, said) = np.zeros((5, K), int) if task == "multi-label" else np.zeros(5, int), case(task, K, n=40, seed=5)
    metrics = evaluation.write_evaluation(tmp_path, images, labels, probs, task=task, classes=NAMES[:K], n_resamples=100, held_out=evaluation.Scores(held, said), metadata={"site": list("aabbb")})
    found = read_json(tmp_path / "curves.json")
    assert found["curves"] == [] and len(found["left_out"]) == K and all(x["reason"] for x in found["left_out"])
    assert metrics["slices"]["tested"] == 0 and all(r["small"] and r["auc"]["value"] is None for r in metrics["slices"]["slices"])
    if task in ("binary", "multi-label"): assert all(r["scored"]["sensitivity" if has else "specificity"]["value"] is not None and r["scored"]["specificity" if has else "sensitivity"]["value"] is None for r in metrics["operating"]["rows"] for has in [task == "binary" and r["class"] == 0])
    schema.Metrics.model_validate(metrics_of(tmp_path))


# ---- options of the evaluation and their mistakes

def test_files_that_options_name_are_found(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "meta.csv").write_text("index,site\n0,a\n")
    other, named = write_npz(tmp_path / "other.npz"), lambda **more: evaluation.files_named(small(tmp_path, **{f"eval.{k}": v for k, v in more.items()}))
    assert named() == named(other_data="noise") == named(other_data="shuffled") == named(other_data="") == named(metadata="") == {}
    assert named(metadata="meta.csv") == {"metadata": tmp_path / "meta.csv"} and named(metadata=str(tmp_path / "meta.csv"), other_data="other.npz") == {"metadata": tmp_path / "meta.csv", "other_data": other}
    (tmp_path / "noise").mkdir()
    assert named(other_data="noise") == {}                                          # a name is a name, whatever lies here


@pytest.mark.parametrize("more,said", [
    ({"metadata": "missing.csv"}, r"eval.metadata is 'missing.csv', and there is no such file: expected a CSV"), ({"metadata": "."}, "there is no such file"), ({"other_data": "scrambed"}, r"eval.other_data: unknown data set 'scrambed'.*noise, shuffled, scrambled"),
    ({"other_data": "missing.npz"}, "eval.other_data: there is no file or folder"), ({"other_data": "broken.npz"}, "eval.other_data: .*broken.npz is not a whole .npz"), ({"other_data": "pathmnist"}, "eval.other_data: pathmnist has no size 16"),
    ({"other_data": "empty"}, "eval.other_data: .*class folders")])
def test_what_is_not_there_is_said_before_anything_is_trained(tmp_path, monkeypatch, more, said):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "broken.npz").write_text("no zip")
    (tmp_path / "empty").mkdir()
    monkeypatch.setattr(evaluation, "run_training", lambda options: pytest.fail("trained first"))
    options = small(tmp_path, **{f"eval.{k}": v for k, v in more.items()})
    with pytest.raises(ValueError, match=said): evaluation.run_eval(options)
    assert not stage_dir(options, "eval").exists()


TABLES = [("image,site\n0,a\n", "expected one called index"), ("index,split,site\n0,tset,a\n", "Near: test"), ("index,site\none,a\n", "index 'one', expected a whole number"), ("index,site\n0,a\n20,b\n", "the first 20; expected 0..19"),
          ("index,split,site\n0,val,a\n", "no row of the test split"), ("index\n0\n", "at least one named column besides index"), ("index,site\n3,a\n3,b\n", "a second time"), ("index,site\n-1,a\n", "the first -1")]

@pytest.mark.parametrize("text,said", TABLES)
def test_a_wrong_table_is_named_before_anything_is_trained(tmp_path, monkeypatch, text, said):
    from xaimed.pipeline import check_names
    (tmp_path / "meta.csv").write_text(text)
    for room in (evaluation, explain): monkeypatch.setattr(room, "run_training", lambda options: pytest.fail("trained first"))
    options = small(tmp_path, **{"eval.metadata": str(tmp_path / "meta.csv")})
    for call in (lambda: check_names(options, STAGES), lambda: evaluation.run_eval(options), lambda: explain.run_explain(options)):
        with pytest.raises(ValueError, match=f"eval.metadata: .*{said}"): call()
    assert not (tmp_path / "data").exists()                                     # no image was made for it either


def test_a_split_has_its_size_before_it_is_loaded(tmp_path):
    own = write_npz(tmp_path / "own.npz", n=(24, 14, 9))
    for name in "ab":
        (tmp_path / "scans" / name).mkdir(parents=True)
        for i in range(20): Image.new("L", (8, 8), i).save(tmp_path / "scans" / name / f"{i}.png")
    sizes = lambda **more: [evaluation.split_size(small(tmp_path, **more), s) for s in ("train", "val", "test")]
    assert sizes() == [24, 14, 20] and sizes(**{"data.dataset": str(own)}) == [24, 14, 9] and sizes(**{"data.dataset": "pathmnist", "data.size": 28}) == [None] * 3
    folder = sizes(**{"data.dataset": str(tmp_path / "scans")})
    assert sum(folder) == 40 and folder == [len(load_split(small(tmp_path, **{"data.dataset": str(tmp_path / "scans")}), s)) for s in ("train", "val", "test")]


def test_other_data_of_volumes_are_refused_before_anything_is_trained(tmp_path):
    path = write_npz(tmp_path / "volumes.npz", n=(6, 6, 6), shape=(12, 12, 12))
    with pytest.raises(ValueError, match="volumes; expected images"): evaluation.files_named(small(tmp_path, **{"eval.other_data": str(path)}))


def test_no_message_ends_in_two_marks(tmp_path, monkeypatch):
    for said, ends in (("is it there?", "is it there? Made"), ("it is gone.", "it is gone. Made"), ("it is gone", "it is gone. Made")):
        monkeypatch.setattr(evaluation, "check_source", lambda options: (_ for _ in ()).throw(ValueError(said)))
        with pytest.raises(ValueError, match=ends.replace("?", "[?]")): evaluation.files_named(small(tmp_path, **{"eval.other_data": "pathmnist"}))


def test_a_set_that_is_not_to_be_fetched_is_said_before_anything_is_trained(tmp_path):
    with pytest.raises(ValueError, match="eval.other_data: there is no pathmnist.npz in"): evaluation.files_named(small(tmp_path, **{"data.size": 28, "data.download": False, "eval.other_data": "pathmnist"}))


def test_the_runs_own_data_are_no_strangers(tmp_path):
    own = str(write_npz(tmp_path / "own.npz"))
    for name, more in (("synthetic", {}), (own, {"data.dataset": own})):
        with pytest.raises(ValueError, match="the run's own data set"): evaluation.files_named(small(tmp_path, **more | {"eval.other_data": name}))
    assert evaluation.files_named(small(tmp_path, **{"data.dataset": own, "eval.other_data": "synthetic"})) == {}


@pytest.mark.parametrize("more", [{"eval.metadata": "missing.csv"}, {"eval.other_data": "missing.npz"}])
def test_a_whole_run_names_a_missing_file_before_it_trains(tmp_path, monkeypatch, more):
    "`xaimed run` checks names first, and the explain stage makes what it needs: neither may train for hours and then miss a file."
    from xaimed.pipeline import check_names
    options = small(tmp_path, **more)
    monkeypatch.setattr(explain, "run_training", lambda options: pytest.fail("trained first"))
    with pytest.raises(ValueError, match="missing"): check_names(options, STAGES)
    with pytest.raises(ValueError, match="missing"): explain.run_explain(options)


@pytest.mark.parametrize("value", [[-1], [0, 2**31], ["a"], list(range(21))])
def test_seeds_that_no_run_could_have_are_refused(value):
    with pytest.raises(ValueError, match="eval.ensemble"): load_options("quick_smoke", overrides={"eval.ensemble": value})


@pytest.mark.parametrize("name,value", [("n_corrupted", -1), ("n_neighbours", 21), ("mc_dropout", -1), ("threshold", "best"), ("threshold_target", 1.0), ("threshold_target", 0)])
def test_figures_out_of_range_are_refused(name, value):
    with pytest.raises(ValueError, match=f"eval.{name}"): load_options("quick_smoke", overrides={f"eval.{name}": value})


def test_a_table_slices_the_images_that_were_evaluated(untrained, tmp_path, monkeypatch):
    "By place in the split, whatever the order of the rows; rows of other splits and of images that were left out do no harm."
    rows = [(i, "test", "A" if i < 6 else "B", 40.5 + i) for i in reversed(range(20))] + [(i, "val", "C", 99) for i in range(14)]
    (tmp_path / "meta.csv").write_text("index,split,scanner,age\n" + "".join(f"{i},{s},{x},{y}\n" for i, s, x, y in rows))
    options = untrained(**NOTHING | {"eval.metadata": str(tmp_path / "meta.csv"), "data.max_eval": 13})
    folder = evaluation.run_eval(options)
    index, y, p = evaluation.read_predictions(folder / "predictions.csv")
    found = {r["name"]: r for r in metrics_of(folder)["slices"]["slices"]}
    assert found["scanner: A"]["n"] == (index < 6).sum() and found["scanner: B"]["n"] == (index >= 6).sum() and "scanner: C" not in found and any(n.startswith("age ") for n in found)
    assert found["scanner: A"]["accuracy"]["value"] == pytest.approx((p.argmax(1) == y)[index < 6].mean())
    assert [Path(n["path"]).name for n in read_manifest(folder)["watched"]] == ["meta.csv"]
    assert "meta.csv" not in stage_state(options, "eval")[1]
    (tmp_path / "meta.csv").write_text((tmp_path / "meta.csv").read_text().replace(",A,", ",D,"))
    assert stage_state(options, "eval") == (False, "meta.csv changed")
    write = evaluation.write_evaluation
    def edited_meanwhile(*given, **how):
        (tmp_path / "meta.csv").write_text((tmp_path / "meta.csv").read_text().replace(",D,", ",E,"))
        return write(*given, **how)
    with monkeypatch.context() as meanwhile:
        meanwhile.setattr(evaluation, "write_evaluation", edited_meanwhile)
        assert "scanner: D" in {r["name"] for r in metrics_of(evaluation.run_eval(options))["slices"]["slices"]}
    assert stage_state(options, "eval") == (False, "meta.csv changed")
    assert "scanner: E" in {r["name"] for r in metrics_of(evaluation.run_eval(options))["slices"]["slices"]}           # a changed table is read again


@pytest.mark.parametrize("text,said", [
    ("image,site\n0,a\n", "meta.csv has the columns image, site, expected one called index"), ("index;site\n0;a\n", "expected one called index"), ("index,site\n0,a\n20,b\n", r"meta.csv has 1 row whose index is not among the 20 images of the test split, the first 20; expected 0..19"),
    ("index,site\n3,a\n3,b\n", "row 3, has index 3 of the test split a second time"), ("index,split,site\n0,val,a\n", "no row of the test split"), ("index,split,site\n0,tset,a\n", "Near: test"), ("index\n0\n", "at least one named column besides index"), ("", "expected one called index"),
    ("index,site\none,a\n", "index 'one', expected a whole number"), ("index,site\n0,a,b\n", "more values than the header"), ("index,site\n0,Köln\n".encode("latin-1"), "meta.csv.*UTF-8")])
def test_a_wrong_table_is_named(untrained, tmp_path, text, said):
    (tmp_path / "meta.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
    options = untrained(**NOTHING | {"eval.metadata": str(tmp_path / "meta.csv")})
    with pytest.raises(ValueError, match=said): evaluation.run_eval(options)
    assert not stage_dir(options, "eval").exists()


@pytest.mark.parametrize("task, K", TASKS)
def test_the_stage_asks_every_question_by_default(untrained, task, K):
    options = untrained(task, K)
    folder = evaluation.run_eval(options)
    metrics = metrics_of(folder)
    assert [p for p in PARTS if metrics[p] is None] == ["ensemble"] and {"curves.json", "curves.png", "neighbours.csv", "neighbours_grid.png", "robustness.png"} <= {p.name for p in folder.iterdir()}
    assert metrics["leaks"]["n"] == metrics["strangers"]["n_inside"] == metrics["neighbours"]["n"] == 20 and metrics["robustness"]["n"] == 4 and metrics["dropout"]["n_passes"] == 2 and metrics["strangers"]["name"] == "scrambled" and metrics["neighbours"]["k"] == 3
    assert (metrics["operating"] is None) == (task in ("multi-class", "ordinal"))
    schema.Metrics.model_validate(metrics)


def test_what_is_switched_off_leaves_no_file_and_null(untrained):
    folder = evaluation.run_eval(untrained(**NOTHING))
    assert {p: metrics_of(folder)[p] for p in PARTS} == dict.fromkeys(PARTS) and not {"neighbours.csv", "neighbours_grid.png", "robustness.png"} & {p.name for p in folder.iterdir()}
    assert metrics_of(folder)["slices"] is not None and (folder / "curves.json").exists()


@pytest.mark.parametrize("split,held", [("val", None), ("train", "val")])
def test_other_splits_are_examined_too(untrained, split, held):
    metrics = metrics_of(evaluation.run_eval(options := untrained("binary", 2, **{"eval.split": split, "data.max_train": 13})))
    assert [p for p in PARTS if metrics[p] is None] == (["leaks", "ensemble"] if split == "train" else ["ensemble"])
    assert (metrics["operating"] is None) == (held is None) and (metrics["held_out"] or {}).get("split") == held
    if split == "train":
        cases = stress.read_neighbours(stage_dir(options, "eval") / "neighbours.csv")
        places = load_split(options, "train").index.tolist()
        assert list(cases) == places != list(range(13)) and all(c["case"] != i and c["case"] in places for i, near in cases.items() for c in near)


def test_a_file_of_other_images_is_read_and_watched(untrained, tmp_path):
    path = write_npz(tmp_path / "ward.npz", n=(6, 6, 9), shape=(20, 20, 3))
    options = untrained(**NOTHING | {"eval.other_data": str(path)})
    found = metrics_of(evaluation.run_eval(options))["strangers"]
    assert (found["name"], found["n_outside"], found["n_inside"]) == ("ward", 9, 20)
    assert [Path(n["path"]).name for n in read_manifest(stage_dir(options, "eval"))["watched"]][0] == "ward.npz"
    write_npz(path, n=(6, 6, 8))
    assert stage_state(options, "eval")[1] == "ward.npz changed"
    assert metrics_of(evaluation.run_eval(options))["strangers"]["n_outside"] == 8


def test_other_synthetic_images_are_made_again_when_their_options_change(untrained, tmp_path):
    "The run's own data are a file here: of the options of synthetic images only the evaluation's other set depends."
    own = {"data.dataset": str(write_npz(tmp_path / "own.npz")), "eval.other_data": "synthetic"}
    first, changed = untrained("multi-class", 4, **NOTHING | own), small(tmp_path, **NOTHING | own | {"synthetic.n_test": 12})
    assert metrics_of(evaluation.run_eval(first))["strangers"]["n_outside"] == 20 and fingerprint(first, "eval") != fingerprint(changed, "eval")
    without = [small(tmp_path, **NOTHING | {"data.dataset": own["data.dataset"], "synthetic.n_test": n}) for n in (20, 12)]
    assert fingerprint(without[0], "eval") == fingerprint(without[1], "eval")


def test_threshold_rule_of_the_options(untrained):
    o = metrics_of(evaluation.run_eval(untrained("binary", 2, **NOTHING | {"eval.threshold": "specificity", "eval.threshold_target": .7})))["operating"]
    assert (o["rule"], o["target"], o["n_held_out"]) == ("specificity", .7, 14) and o["rows"][0]["held_out"]["specificity"]["value"] >= .7


def test_dropout_passes_of_the_options(untrained):
    d = metrics_of(evaluation.run_eval(untrained(**NOTHING | {"eval.mc_dropout": 5})))["dropout"]
    assert (d["n_passes"], d["trained_with_dropout"], d["n"]) == (5, False, 20)


# ---- an ensemble of real trainings

def test_members_are_trained_once_and_kept(tmp_path, fast):
    options = small(tmp_path, "binary", 2, **NOTHING | {"eval.ensemble": [2, 0, 2], "synthetic.n_train": 8, "synthetic.n_val": 8, "seed": 0})
    metrics = metrics_of(evaluation.run_eval(options))
    runs = sorted(p.name for p in (tmp_path / "artifacts" / "train").iterdir() if not p.name.startswith("."))
    assert runs == ["u", "u.s2"] and [m["seed"] for m in metrics["ensemble"]["members"]] == [0, 2]
    builds = {r: read_manifest(tmp_path / "artifacts" / "train" / r)["build"] for r in runs}
    member = stress.member_options(options, 2)
    assert read_manifest(stage_dir(member, "train"))["seed"] == 2 and not stage_dir(member, "eval").exists()
    own, other = (torch.load(stage_dir(o, "train") / "best.pt", weights_only=True)["state_dict"] for o in (options, member))
    assert not torch.equal(own["conv1.weight"], other["conv1.weight"])
    assert metrics["ensemble"]["members"][0]["accuracy"] == metrics["accuracy"] and metrics["ensemble"]["members"][0]["auc"] == pytest.approx(metrics["auc"])
    more = small(tmp_path, "binary", 2, **NOTHING | {"eval.ensemble": [2], "eval.n_resamples": 200, "synthetic.n_train": 8, "synthetic.n_val": 8})
    again = metrics_of(evaluation.run_eval(more, force=True))                                      # evaluated anew, trained not
    assert {r: read_manifest(tmp_path / "artifacts" / "train" / r)["build"] for r in runs} == builds and again["ensemble"]["members"] == metrics["ensemble"]["members"]
    assert (tmp_path / "artifacts" / "data" / "u" / "card.json").exists() and stage_state(more, "eval") == (True, "unchanged")
    run_training(member, force=True)                                                               # a member trained anew is judged anew
    assert stage_state(more, "eval") == (False, "manifest.json changed")
    builds["u.s2"] = read_manifest(stage_dir(member, "train"))["build"]
    alone = metrics_of(evaluation.run_eval(small(tmp_path, "binary", 2, **NOTHING | {"eval.ensemble": [0], "synthetic.n_train": 8, "synthetic.n_val": 8})))
    assert alone["ensemble"] is None
    of_its_own = metrics_of(evaluation.run_eval(member.model_copy(update={"eval": member.eval.model_copy(update={"ensemble": ()})})))
    assert of_its_own["accuracy"] == metrics["ensemble"]["members"][1]["accuracy"] and read_manifest(stage_dir(member, "train"))["build"] == builds["u.s2"]      # a member is a run like any other


# ---- the audit of the data stage

def test_the_data_stage_audits(tmp_path):
    path = write_npz(tmp_path / "own.npz", n=(30, 14, 20), copies=((3, 8), (11, 2)))
    options = small(tmp_path, **{"data.dataset": str(path)})
    folder = run_data(options)
    found = read_json(folder / "audit.json")
    assert {"audit.json", "audit.png", "card.json", "samples.png"} <= {p.name for p in folder.iterdir()} and set(read_manifest(folder)["outputs"]) >= {"audit.json", "audit.png"}
    assert found["leaked"] == {"val": [], "test": [3, 11]} and found["n"] == {"train": 30, "val": 14, "test": 20} and any("2 of 20 test images" in w for w in found["words"])
    with np.load(path) as f: splits = {s: (f[f"{s}_images"][:, None], f[f"{s}_labels"][:, 0]) for s in ("train", "val", "test")}
    assert {k: v for k, v in found.items() if k != "words"} == audit(splits, "binary", ("class 0", "class 1"))
    with Image.open(folder / "audit.png") as image: assert image.width >= 400
    read = schema.read_part(options, "data", "audit.json", schema.Audit)
    assert [(c.members, c.across) for c in read.exact] == [([("train", 2), ("test", 11)], True), ([("train", 8), ("test", 3)], True)] or len(read.exact) == 2


def test_without_an_audit_there_is_no_file_and_the_old_one_goes(tmp_path):
    path = write_npz(tmp_path / "own.npz")
    folder = run_data(small(tmp_path, **{"data.dataset": str(path)}))
    assert (folder / "audit.json").exists()
    assert run_data(off := small(tmp_path, **{"data.dataset": str(path), "data.audit": False})) == folder and not (folder / "audit.json").exists() and not (folder / "audit.png").exists()
    assert stage_state(off, "data") == (True, "unchanged") and (folder / "card.json").exists()


@pytest.mark.parametrize("task, K", TASKS)
def test_an_audit_names_images_by_their_place_in_the_file(task, K, tmp_path, monkeypatch):
    options = small(tmp_path, task, K, **{"data.max_train": 9, "data.max_eval": 7, "seed": 1})
    parts = {s: load_split(options, s) for s in ("train", "val", "test")}
    where = {s: [int(d.index[2]), int(d.index[5])] for s, d in parts.items()}
    parts["test"].images[[2, 5]] = parts["train"].images[[2, 5]]
    found = data_room.write_audit(tmp_path, parts, seed=1)
    assert found["leaked"]["test"] == where["test"] != [2, 5] and found == read_json(tmp_path / "audit.json") and found["task"] == task
    assert {tuple(map(tuple, e["members"])) for e in found["exact"]} == {(("train", a), ("test", b)) for a, b in zip(where["train"], where["test"])}
    schema.Audit.model_validate(found)


# ---- drift of the explanations, and cases beside them

@pytest.mark.parametrize("task, K", TASKS)
def test_drift_is_measured_on_the_draw_of_the_scorecard(task, K, tmp_path, fast):
    options = small(tmp_path, task, K, **{"scorecard.n_drift": 3, "explain.methods": ["saliency", "gradcam"], "data.max_eval": 8, "seed": 2})
    data, explaining = load_split(options, "test", transforms_for(options)), dict(n_steps=2, batch_size=4, mean=.5, std=.5, seed=2)
    torch.manual_seed(0)
    model = model_from_options(options, data.spec).eval()
    found = explain.drift_report(options, model, data, explaining)
    assert list(found) == ["saliency", "gradcam"] and all((d["n"], d["severities"]) == (3, [1, 3, 5]) and d["words"] and len(d["rows"]) == 6 for d in found.values())
    index = explain.draw_images(data.index.tolist(), 3, seed=2)
    rows = [data.index.tolist().index(i) for i in index]
    def say(x):
        with torch.no_grad(): return probabilities(model(data.transform(x)).numpy(), task)
    def maps(x, target):
        z = data.transform(x).requires_grad_()
        return torch.autograd.grad(model(z)[torch.arange(len(z)), target].sum(), z)[0].abs().sum(1)
    by_hand = explanation_drift(maps, say, data.images[rows], corruptions=("pixelate", "brightness_down"), severities=(1, 3, 5), seed=2, task=task, batch_size=4)
    for a, b in zip(found["saliency"]["rows"], by_hand["rows"]): assert a["share_changed"] == b["share_changed"] and a["correlation"] == pytest.approx(b["correlation"], abs=.02)
    json.dumps(found, allow_nan=False)
    verdict = make_verdict() | {"drift": found}
    assert schema.Scorecard.model_validate(json.loads(json.dumps(verdict))).drift["gradcam"]["by_severity"][0]["severity"] == 1


@pytest.mark.parametrize("n", [0, 4])
def test_drift_is_left_out_where_no_image_is_asked_for(n, tmp_path, monkeypatch):
    import pandas as pd
    options = small(tmp_path, **{"scorecard.n_drift": n, "scorecard.n_images": 5})
    monkeypatch.setattr(explain, "scorecard", lambda *a, **k: pd.DataFrame({"measure": ["road"]}))
    monkeypatch.setattr(explain, "judge", lambda *a, **k: {"recommended": None})
    monkeypatch.setattr(explain, "drift_report", lambda options, *a: {"gradcam": {"n": options.scorecard.n_drift}})
    _, verdict = explain.measure_explanations(options, None, load_split(options, "test"), [(0, "random")], {})
    assert verdict == {"recommended": None, "drift": {"gradcam": {"n": 4}} if n else None}


def explained(options, index, K):
    many = options.synthetic.task == "multi-label"
    return explain.Explained(index, ["random"] * len(index), np.zeros((len(index), 1, 16, 16), np.uint8), None, np.zeros((len(index), K), int) if many else np.zeros(len(index), int), np.full(len(index), 1), np.full(len(index), .625), NAMES[:K], {})


@pytest.mark.parametrize("task, K", TASKS)
def test_cases_are_drawn_beside_each_explained_image(task, K, tmp_path, monkeypatch):
    options, shown = small(tmp_path, task, K, **{"data.max_train": 9, "seed": 1}), []
    train, folder = load_split(options, "train"), tmp_path / "out"
    folder.mkdir()
    explain.write_cases(options, folder, explained(options, [4, 7], K))
    assert not any(folder.iterdir())                                            # none were looked for
    at, real = train.index.tolist(), explain.neighbours_figure
    assert at != list(range(9))
    rows = [dict(index=i, typicality=.5, neighbours=[dict(index=c, label="0", label_name=NAMES[0], similarity=.9) for c in cases]) for i, cases in ((4, at[3:6]), (5, at[:3]), (7, at[6:]))]
    stage_dir(options, "eval").mkdir(parents=True)
    stress.write_neighbours(stage_dir(options, "eval") / "neighbours.csv", rows)
    def figure(images, cases, picture, **more):
        (i, (_, words)), = images.items()
        shown.append((i, words, [picture(c["case"]) for c in cases[i]]))
        return real(images, cases, picture, **more)
    monkeypatch.setattr(explain, "neighbours_figure", figure)
    explain.write_cases(options, folder, explained(options, [4, 7], K))
    assert sorted(p.name for p in folder.iterdir()) == ["sample_00004_neighbours.png", "sample_00007_neighbours.png"]
    assert [(i, words) for i, words, _ in shown] == [(i, f"image {i}\n{NAMES[1]} 0.62\nlabel: {'none' if task == 'multi-label' else NAMES[0]}") for i in (4, 7)]
    with np.load(next((tmp_path / "data" / "synthetic").glob(f"synthetic_16_*[0-9a-f].npz"))) as f:
        for (_, _, pictures), cases in zip(shown, (at[3:6], at[6:])): assert all(np.array_equal(p, f["train_images"][c]) for p, c in zip(pictures, cases))


# ---- read back by the report

@pytest.mark.parametrize("task", [t for t, _ in TASKS])
def test_a_run_is_read_with_and_without_the_new_parts(task, tmp_path):
    new, old = (schema.load_results(make_run(tmp_path / str(e), task, examined=e)) for e in (True, False))
    for p in (*PARTS, "slices"): assert getattr(new.metrics, p) is not None and getattr(old.metrics, p) is None
    assert new.audit is not None and old.audit is None and old.neighbours == [] and old.metrics.operating is None and (new.metrics.operating is None) == (task in ("multi-class", "ordinal"))
    assert {"audit", "robustness", "neighbours"} <= set(new.figures) and not {"audit", "robustness", "neighbours"} & set(old.figures)
    for r in (new, old):
        content = json.loads(json.dumps(r.model_dump(mode="json", by_alias=True), allow_nan=False))
        assert schema.Results.model_validate(content).model_dump(mode="json", by_alias=True) == content
    parts, found = against(task, {"multi-class": 9, "binary": 2, "multi-label": 14, "ordinal": 5}[task])
    assert new.metrics.slices.words == parts["slices"]["words"] and new.metrics.ensemble.n_members == 2 and new.audit.n_exact_groups == found["n_exact_groups"] and new.metrics.strangers.scores[0].auc.value == parts["strangers"]["scores"][0]["auc"]["value"]


def test_a_file_of_before_the_new_parts_is_read(tmp_path):
    "Runs made by an earlier version have neither the files nor the keys."
    options = make_run(tmp_path, "binary", examined=False)
    path = stage_dir(options, "eval") / "metrics.json"
    write_json(path, {k: v for k, v in read_json(path).items() if k not in (*PARTS, "operating", "slices", "held_out", "calibration", "conformal", "selective", "intervals")})
    (stage_dir(options, "eval") / "curves.png").unlink(missing_ok=True)
    results = schema.load_results(options)
    assert results.metrics.auc == .981 and results.metrics.slices is None and "operating_curves" not in results.figures


def test_cases_are_read_of_the_images_that_are_shown(tmp_path):
    options = make_run(tmp_path, "multi-label")
    path = stage_dir(options, "eval") / "neighbours.csv"
    path.write_text(path.read_text() + "7777,1,3,0;1,other,0.5,0.5\n10,4,3,,,,\n")
    cases = schema.load_results(options).neighbours
    assert 7777 not in {c.index for c in cases} and [(c.index, c.rank, c.case) for c in cases[:3]] == [(100, r, 700 + r) for r in (1, 2, 3)] and cases[0].label.startswith("1;0;0") and cases[0].similarity == .88
    last = [c for c in cases if c.rank == 4]
    assert len(last) == 1 and (last[0].index, last[0].label, last[0].similarity, last[0].typicality) == (10, "", None, None)
    results = schema.load_results(options)
    assert schema.read_cases(options, results.model_copy(update={"failures": [], "explanations": results.explanations[:1]})) == [c for c in cases if c.index == results.explanations[0].index]
    path.unlink()
    assert schema.load_results(options).neighbours == []


@pytest.mark.parametrize("stage,name,old,new,said", [
    ("eval", "neighbours.csv", "index,rank", "image,rank", "lacks the column 'index'"), ("eval", "neighbours.csv", ",0.88,", ",near,", "line 2: .*'near' as 'similarity'"), ("data", "audit.json", '"n": {', '"m": {', "lacks 'n'"), ("data", "audit.json", "{", "[", "is not valid JSON"),
    ("eval", "metrics.json", '"n_leaked": 6', '"n_leaked": "six"', "'six' as 'leaks.n_leaked'"), ("eval", "metrics.json", '"tested": true', '"tested": "perhaps"', "slices")])
def test_a_broken_new_file_is_named(tmp_path, stage, name, old, new, said):
    options = make_run(tmp_path, "binary")
    path = stage_dir(options, stage) / name
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new, 1))
    with pytest.raises(XaimedError, match=rf"{stage}/fixture/{name}.*{said}") as e: schema.load_results(options)
    assert str(tmp_path) not in str(e.value)


def test_no_path_of_a_users_file_is_told(tmp_path):
    options = make_run(tmp_path, "binary", **{"eval.metadata": "/home/ada/private scans/meta.csv", "eval.other_data": "/home/ada/other.npz"})
    path = stage_dir(options, "eval") / "metrics.json"
    content = read_json(path)
    content["strangers"] |= {"description": "Read from /home/ada/other.npz."}
    write_json(path, content)
    results = schema.load_results(options)
    assert "/home/ada" not in json.dumps(results.model_dump(mode="json")) and "ada/" not in results.metrics.strangers.description and results.provenance.options["eval"]["metadata"].endswith("meta.csv")


# ---- all of it, really trained

def test_a_real_run_is_examined_explained_and_read(tmp_path, fast):
    from xaimed import evaluation as sections
    from xaimed import explanations
    options = small(tmp_path, "multi-label", 3, **{"synthetic.n_train": 12, "eval.n_corrupted": 2, "eval.ensemble": [1], "explain.methods": ["gradcam"], "explain.n_random": 1, "explain.n_gallery": 1, "scorecard.budget": "cheap",
                                                   "scorecard.n_images": 5, "scorecard.methods": ["saliency"], "scorecard.n_steps": 2, "scorecard.n_drift": 2})
    folder = explain.run_explain(options)
    results = schema.load_results(options)
    assert [p for p in PARTS if getattr(results.metrics, p) is None] == [] and results.audit.n == {"train": 12, "val": 14, "test": 20} and list(results.scorecard.drift) == ["gradcam"] and results.scorecard.drift["gradcam"]["n"] == 2
    shown = {e.index for e in results.explanations}
    assert shown and {p.name for p in folder.glob("*_neighbours.png")} == {f"sample_{i:05d}_neighbours.png" for i in shown} and {c.index for c in results.neighbours} == shown | {f.index for f in results.failures}
    parts = [getattr(sections, name)(results).data for name in ("curves_section", "slices_section", "audit_section", "robustness_section", "strangers_section", "trainings_section")] + [explanations.cases_section(results).data, *(explanations.cases_part(results, i) for i in shown)]
    assert all(parts) and not any(w in " ".join(parts) for w in ("not audited", "Not tried", "No other set", "One training only", "not looked for")) and "Do the explanations stay?" in parts[3]
    assert not any(re.search(r"\b(nan|None|inf)\b", re.sub(r"base64,[^']*", "", text)) for text in parts)
