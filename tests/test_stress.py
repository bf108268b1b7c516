"What speaks against the figures: each question by hand or by another road, every task kind and split, what was not asked for, files written and read back."
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from PIL import Image
from sklearn.metrics import roc_auc_score
from torch import nn

from xaimed import schema, stress
from xaimed.config import load_options, plain, read_json, stage_dir
from xaimed.data import ImageDataset, load_split, run_data
from xaimed.features import CONTROLS, SCORES, fit_mahalanobis, mahalanobis_score, nearest_cases, pixel_scores
from xaimed.intervals import bootstrap_intervals, metric_values
from xaimed.models import transforms_for
from xaimed.robustness import corruptions_for, robustness_report
from xaimed.stress import Evaluated
from xaimed.trust import predict_labels, probabilities

pytestmark = pytest.mark.filterwarnings("error")
quick = settings(max_examples=25, deadline=None, derandomize=True)
TASKS = {"multi-class": 3, "binary": 2, "multi-label": 3, "ordinal": 4}
NAMES = ["ring, broken", 'the "cross"', "<b>disc</b>", "star"]
PARTS = ("leaks", "robustness", "strangers", "neighbours", "ensemble", "dropout")
KINDS = dict(zip(PARTS, (schema.Leaks, schema.Robustness, schema.Strangers, schema.Neighbourhood, schema.Ensemble, schema.Dropped)))


class Tiny(nn.Module):
    "Nine means of each channel, six features, K logits."
    def __init__(self, k, channels=3, seed=0, dropout=0.):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.layers = nn.Sequential(nn.AdaptiveAvgPool2d(3), nn.Flatten(), nn.Linear(9 * channels, 6), nn.Tanh(), nn.Dropout(dropout), nn.Linear(6, k))
        self.body = self.layers[:-1]

    def forward(self, x): return self.layers(x)


def write_data(path, task="multi-class", *, n=(30, 12, 20), side=12, shape=None, copies=(), seed=0):
    "An .npz: dim noise, brighter by class; `copies` are pairs of a test place and the train place whose image lies there."
    rng, k, arrays = np.random.default_rng(seed), TASKS[task], {}
    for split, m in zip(("train", "val", "test"), n):
        labels = (np.arange(m)[:, None] % (np.arange(k) + 2) == 0).astype(int) if task == "multi-label" else np.arange(m)[:, None] % k
        images = rng.integers(0, 60, (m, *(shape or (side, side)))) + 40 * (labels.sum(1) if task == "multi-label" else labels[:, 0]).reshape(m, *[1] * len(shape or (side, side)))
        arrays |= {f"{split}_images": images.clip(0, 255).astype(np.uint8), f"{split}_labels": labels}
    for there, here in copies: arrays["test_images"][there] = arrays["train_images"][here]
    np.savez(path, **arrays)
    path.with_suffix(".json").write_text(json.dumps({"title": f"Made {path.stem}", "task": task, "classes": NAMES[:k]}))
    return path


@pytest.fixture
def make(tmp_path):
    "A tiny network, trained on nothing, with a split of a data set written here."
    def made(task="multi-class", split="test", *, n=(30, 12, 20), copies=(), dropout=0., labels=None, **more):
        path = tmp_path / f"{task}-{'-'.join(map(str, n))}-{len(copies)}.npz"
        if not path.exists(): write_data(path, task, n=n, copies=copies)
        options = load_options("quick_smoke", run="u", overrides={"artifacts_dir": str(tmp_path / "artifacts"), "device": "cpu", "data.size": 12, "data.dataset": str(path), "eval.split": split, "eval.n_resamples": 100, "eval.n_corrupted": 5, "eval.mc_dropout": 0, **more})
        data = load_split(options, split, transforms_for(options))
        model = Tiny(TASKS[task], 3 if options.data.as_rgb else 1, dropout=dropout).eval()
        with torch.no_grad(): logits = model(data.transform(data.images)).numpy()
        return Evaluated(options, model, data, data.labels.numpy() if labels is None else labels, logits)
    return made


# ---- the network and its split

@pytest.mark.parametrize("task", TASKS)
def test_what_is_examined_is_what_the_network_says(make, task):
    e = make(task)
    assert e.task == task and len(e.train) == 30 and e.features.shape == (20, 6) and e.bank.shape == (30, 6)
    with torch.no_grad(): assert np.allclose(e.features, e.model.body(e.data.transform(e.data.images)), atol=1e-6) and np.allclose(e.bank, e.model.body(e.train.transform(e.train.images)), atol=1e-6)
    assert np.allclose(e.probs, probabilities(e.logits, task)) and np.array_equal(e.predicted, predict_labels(e.probs, task))
    assert e.features is e.features and e.bank is e.bank and e.train is e.train                # worked out once
    assert e.train.split == "train" and e.train.transform is e.data.transform


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("size", [1, 7, 50])
def test_it_says_the_same_in_any_batch_and_is_left_as_found(make, task, size):
    e = make(task, dropout=.5, **{"eval.batch_size": size})
    e.model.train()
    assert np.allclose(e.say(e.data.images), e.probs, atol=1e-6) and e.say(e.data.images[:3]).shape == (3, TASKS[task])
    assert all(m.training for m in e.model.modules()) and torch.is_grad_enabled()


def test_rows_are_drawn_by_the_seed(make):
    e, other = make(), make(seed=1)
    five = e.draw(5)
    assert five.tolist() == sorted(set(five.tolist())) and len(five) == 5 and set(five) <= set(e.draw(9)) and np.array_equal(five, e.draw(5))
    assert e.draw(1000).tolist() == list(range(20)) and not np.array_equal(e.draw(9), other.draw(9))


# ---- leaks

def test_leaked_images_are_taken_out_by_hand():
    "Ten images, four leaked and right; of the six others three are right: two of three zeros, one of three ones."
    y, said = np.array([0, 1] * 5), np.array([0, 1, 0, 1, 0, 1, 0, 0, 1, 0])
    found = stress.leak_effect(y, np.eye(2)[said], "binary", np.arange(10) < 4, n_resamples=100)
    assert (found["n"], found["n_leaked"]) == (10, 4) and list(found["of_all"]) == list(found["without"]) == ["auc", "accuracy", "balanced_accuracy"]
    assert found["of_all"]["accuracy"]["value"] == .7 and found["without"]["accuracy"]["value"] == .5
    assert found["without"]["balanced_accuracy"]["value"] == pytest.approx((2 / 3 + 1 / 3) / 2) and found["without"]["auc"]["value"] == pytest.approx(.5)
    assert found["of_all"]["accuracy"]["low"] < .7 < found["of_all"]["accuracy"]["high"]
    assert {n: c["value"] for n, c in found["change"].items()} == pytest.approx({"auc": .5 - found["of_all"]["auc"]["value"], "accuracy": -.2, "balanced_accuracy": .5 - .7}) and found["change"]["accuracy"]["low"] < -.2 < found["change"]["accuracy"]["high"]


def test_a_leak_that_changes_nothing_is_told_as_nothing():
    "Leaked and other images are right equally often, and a wide interval of each figure is none of their difference where all are right."
    y = np.arange(40) % 2
    found = stress.leak_effect(y, np.eye(2)[y], "binary", np.arange(40) < 10, n_resamples=100)["change"]
    assert {(c["value"], c["low"], c["high"], c["note"]) for c in found.values()} == {(0, None, None, "no interval: every resample gives the same change")}


def test_a_change_without_an_interval_has_its_reason():
    "One leaked image of 300 rarely matters; two images left are often not both drawn; one class has no AUC."
    y, said = np.arange(300) % 2, np.arange(300) % 2
    said[7:] ^= np.arange(293) % 5 == 0
    of = lambda y, said, seen: {k: (c["low"] is None, c["note"]) for k, c in stress.leak_effect(y, np.eye(2)[said], "binary", seen, n_resamples=200)["change"].items()}
    wide = of(y, said, np.arange(300) < 60)
    assert all(note == "" and not none for none, note in wide.values())
    few = of(y[:9], said[:9], np.arange(9) < 8)
    assert few["accuracy"] == (True, "no interval: too few images or classes are left in many of the resamples") and few["auc"][1].startswith("not defined")
    assert of(np.zeros(9, int), np.arange(9) % 2, np.arange(9) < 3)["auc"] == (True, "not defined: too few classes or images")


@pytest.mark.parametrize("left", [1, 2])
def test_few_images_left_give_no_warning(left):
    y, p = np.arange(9) % 3, probabilities(np.random.default_rng(0).normal(size=(9, 3)), "multi-class")
    found = stress.leak_effect(y, p, "multi-class", np.arange(9) >= left, n_resamples=100)
    assert found["n_leaked"] == 9 - left and found["change"]["accuracy"]["value"] is not None


@pytest.mark.parametrize("task", TASKS)
@given(seen=st.lists(st.booleans(), min_size=12, max_size=12), seed=st.integers(0, 3))
@settings(quick, max_examples=8)
def test_without_the_leaked_is_the_rest_alone(task, seen, seed):
    rng, k, seen = np.random.default_rng(seed), TASKS[task], np.array(seen)
    y = rng.integers(0, 2, (12, k)) if task == "multi-label" else rng.integers(0, k, 12)
    p = probabilities(rng.normal(size=(12, k)), task)
    with np.errstate(invalid="ignore"): found = stress.leak_effect(y, p, task, seen, n_resamples=100, seed=seed)
    assert found["n_leaked"] == seen.sum() and (found["without"] is None) == (seen.all() or not seen.any())
    alone = lambda rows: plain({n: dict(value=v.value, low=v.low, high=v.high) for n, v in bootstrap_intervals(y[rows], p[rows], task, metrics=["auc", "accuracy", "balanced_accuracy"], n_resamples=100, seed=seed).items()})
    assert found["of_all"] == alone(slice(None)) and (found["without"] is None or found["without"] == alone(~seen)) and (found["change"] is None) == (found["without"] is None)
    for name, c in (found["change"] or {}).items():
        both = found["without"][name]["value"], found["of_all"][name]["value"]
        assert c["value"] is None if None in both else c["value"] == pytest.approx(both[0] - both[1])
        assert c["low"] is None or c["low"] <= c["high"]
    json.dumps(found, allow_nan=False)


def test_one_word_per_image_is_asked_of_leaks():
    with pytest.raises(ValueError, match=r"seen has shape \(3,\), expected \(2,\)"): stress.leak_effect([0, 1], np.eye(2), "binary", [True, False, True])


def test_a_copy_in_val_chose_the_epoch_and_is_no_clean_image(make):
    e = make(copies=COPIES)
    with np.load(e.options.data.dataset) as f: arrays = dict(f)
    arrays["test_images"][3], arrays["test_images"][9] = arrays["val_images"][1], arrays["val_images"][2]     # one more, and one that lies in train and val: counted once
    arrays["train_images"][11] = arrays["val_images"][2]
    np.savez(e.options.data.dataset, **arrays)
    e = make(copies=COPIES)
    run_data(e.options)
    found = stress.leaks(e)
    assert found["n_leaked"] == 5 and found["without"]["accuracy"]["value"] == pytest.approx((e.predicted == e.labels)[~np.isin(np.arange(20), [2, 3, 5, 9, 14])].mean())
    assert stress.leaks(make(split="val", copies=COPIES))["n_leaked"] == 1


COPIES = ((2, 0), (5, 4), (9, 11), (14, 20))

@pytest.mark.parametrize("task", TASKS)
def test_leaks_are_told_by_the_place_in_the_file(make, task):
    "Where only some images are evaluated, a leaked image is found by its place in the split and not by its row."
    e = make(task, copies=COPIES, **{"data.max_eval": 11, "seed": 1})
    run_data(e.options)
    assert read_json(stage_dir(e.options, "data") / "audit.json")["leaked"]["test"] == [i for i in e.data.index.tolist() if i in dict(COPIES)]
    gone, found = np.isin(e.data.index, list(dict(COPIES))), stress.leaks(e)
    assert 0 < gone.sum() < 4 and not np.array_equal(np.flatnonzero(gone), e.data.index[gone])
    assert (found["n"], found["n_leaked"]) == (11, gone.sum())
    assert found["without"]["accuracy"]["value"] == pytest.approx((e.predicted == e.labels)[~gone].mean())


def test_leaks_need_an_audit_and_another_split(make):
    e = make(copies=COPIES, **{"data.audit": False})
    assert stress.leaks(e) is None
    run_data(e.options)
    assert stress.leaks(e) is None
    known = make(copies=COPIES)
    run_data(known.options)
    assert stress.leaks(known)["n_leaked"] == 4 and stress.leaks(make(split="train", copies=COPIES)) is None
    val = stress.leaks(make(split="val", copies=COPIES))
    assert (val["n"], val["n_leaked"], val["without"]) == (12, 0, None)


def test_nothing_is_left_where_all_images_leaked(make):
    e = make(n=(30, 12, 6), copies=[(i, i) for i in range(6)])
    run_data(e.options)
    found = stress.leaks(e)
    assert found["n_leaked"] == found["n"] == 6 and found["without"] is None


# ---- worse images

@pytest.mark.parametrize("task", TASKS)
def test_worse_images_are_those_drawn(make, task):
    e = make(task, **{"eval.n_corrupted": 7, "eval.batch_size": 3})
    found, rows = stress.worse_images(e), e.draw(7)
    names = corruptions_for(e.data.spec.name)
    assert found["n"] == 7 and [c["corruption"] for c in found["by_corruption"]] == list(names) and found["severities"] == [1, 2, 3, 4, 5] and len(found["rows"]) == 5 * len(names)
    assert found["clean"]["accuracy"] == pytest.approx((e.predicted[rows] == e.labels[rows]).mean())
    assert found["words"] and all(isinstance(w, str) for w in found["words"]) and "On 7 clean images" in found["words"][0]
    at_once = robustness_report(lambda x: probabilities(e.model(e.data.transform(x)).detach().numpy(), task), e.data.images[rows], e.labels[rows], task, corruptions=names, seed=0, batch_size=7)
    for a, b in zip(found["rows"], at_once["rows"]):
        assert a["accuracy"] == b["accuracy"] and a["nll"] == pytest.approx(b["nll"], abs=1e-5)
    schema.Robustness.model_validate(json.loads(json.dumps(found, allow_nan=False)))


def test_worse_images_fit_the_data_set_and_are_at_most_all(make):
    e = make(**{"eval.n_corrupted": 1000})
    assert stress.worse_images(e)["n"] == 20 and stress.worse_images(make(**{"eval.n_corrupted": 0})) is None
    e.data.spec = replace(e.data.spec, name="breastmnist")
    assert [c["corruption"] for c in stress.worse_images(e)["by_corruption"]] == list(corruptions_for("breastmnist"))


def test_lines_of_severity_are_means_over_a_family():
    rows = [dict(family=f, severity=s, accuracy=a, ece=c) for f, s, a, c in (("noise", 1, .8, .1), ("noise", 1, .6, .3), ("noise", 5, .5, None), ("noise", 5, .3, None), ("blur", 1, .7, .2), ("blur", 5, None, .5))]
    figure = stress.severity_figure(dict(rows=rows, severities=[1, 5], clean=dict(accuracy=.9, ece=.05)), title="T")
    right, ece = ({line.get_label(): (line.get_xdata().tolist(), np.round(line.get_ydata(), 9).tolist()) for line in ax.lines} for ax in figure.axes if ax.lines)
    assert right["noise"] == ([0, 1, 5], [.9, .7, .4]) and right["blur"][1][:2] == [.9, .7] and np.isnan(right["blur"][1][2])
    assert ece["blur"] == ([0, 1, 5], [.05, .2, .5]) and ece["noise"][1][:2] == [.05, .2] and np.isnan(ece["noise"][1][2])
    low, high = [ax for ax in figure.axes if ax.lines][1].get_ylim()
    assert low == 0 and high == pytest.approx(1.05 * .5)


# ---- images from elsewhere

@pytest.mark.parametrize("name", ["scrambled", "noise", "shuffled"])
def test_strangers_made_of_the_images(make, name):
    e = make(**{"eval.other_data": name})
    about, other = stress.other_images(e)
    assert about["name"] == name and about["description"].startswith("Made of the evaluated images.") and about["title"]
    assert other.images.shape == e.data.images.shape and other.images.dtype == torch.uint8 and not torch.equal(other.images, e.data.images) and other.transform is e.data.transform
    assert torch.equal(other.images, stress.other_images(e)[1].images)
    if name == "shuffled": assert torch.equal(other.images.flatten(1).sort(1).values, e.data.images.flatten(1).sort(1).values)


def test_no_more_strangers_than_a_thousand(make, tmp_path):
    e = make(**{"eval.other_data": "noise"})
    many = ImageDataset(torch.zeros(1003, 1, 8, 8, dtype=torch.uint8), torch.zeros(1003, dtype=torch.int64), e.data.spec, "test", transform=e.data.transform)
    about, other = stress.other_images(Evaluated(e.options, e.model, many, many.labels.numpy(), np.zeros((1003, 3))))
    assert len(other) == len(other.labels) == 1000
    path = write_data(tmp_path / "many.npz", "binary", n=(4, 4, 1002), side=8)
    _, other = stress.other_images(make(**{"eval.other_data": str(path)}))
    assert len(other) == 1000 and other.index.max() > 999


@pytest.mark.parametrize("shape", [(12, 12), (20, 20), (12, 12, 3)], ids=str)
def test_strangers_of_a_file_are_its_test_images_as_the_network_takes_them(make, tmp_path, shape):
    "Another size and other channels are brought to those of the run; other labels do not matter."
    path = write_data(tmp_path / "ward.npz", "multi-label", n=(6, 6, 9), shape=shape, seed=5)
    e = make("binary", **{"eval.other_data": str(path)})
    about, other = stress.other_images(e)
    assert about == dict(name="ward", title="Made ward", description="Its test split.") and len(other) == 9 and other.split == "test"
    with np.load(path) as f: assert np.array_equal(other.images.numpy().reshape(9, -1).sum(1), f["test_images"].reshape(9, -1).sum(1))
    assert other.transform(other.images).shape == (9, 3, 12, 12)
    found = stress.strangers(e)
    assert (found["n_inside"], found["n_outside"], found["title"]) == (20, 9, "Made ward") and "Made ward" in " ".join(found["words"])


def test_strangers_with_other_channels_are_brought_to_those_of_the_run(make, tmp_path):
    "Colour is averaged where the run is gray, for the network and for the pixel controls; gray is repeated where it is not."
    path = write_data(tmp_path / "colour.npz", n=(6, 6, 9), shape=(12, 12, 3))
    e = make(**{"eval.other_data": str(path), "data.as_rgb": False})
    found, (_, other) = stress.strangers(e), stress.other_images(e)
    assert (found["n_inside"], found["n_outside"]) == (20, 9) and other.transform(other.images).shape == (9, 1, 12, 12)
    gray = other.images.numpy().mean(1, keepdims=True)
    told = [pixel_scores(images, e.train.images.numpy())["contrast"] for images in (e.data.images.numpy(), gray)]
    assert next(r for r in found["scores"] if r["name"] == "contrast")["auc"]["value"] == pytest.approx(roc_auc_score(np.r_[np.ones(20), np.zeros(9)], np.concatenate(told)))
    assert stress.strangers(make(**{"eval.other_data": "noise", "data.as_rgb": False}))["n_outside"] == 20


def test_volumes_are_refused_as_strangers_of_pictures(make, tmp_path):
    path = write_data(tmp_path / "volumes.npz", n=(6, 6, 9), shape=(12, 12, 12))
    with pytest.raises(ValueError, match="eval.other_data"): stress.strangers(make(**{"eval.other_data": str(path)}))


@pytest.mark.parametrize("task", TASKS)
def test_scores_of_strangers_by_another_road(make, task):
    e = make(task, **{"eval.other_data": "noise"})
    found, (_, other) = stress.strangers(e), stress.other_images(e)
    scores = {r["name"]: r for r in found["scores"]}
    assert list(scores) == [*SCORES, *CONTROLS] and [r["control"] for r in found["scores"]] == [False] * 4 + [True] * 3
    with torch.no_grad(): theirs = e.model.body(e.data.transform(other.images)).numpy()
    fitted, side = fit_mahalanobis(e.bank, None if task == "multi-label" else e.train.labels.numpy(), task), np.r_[np.ones(20), np.zeros(20)]
    assert scores["mahalanobis"]["auc"]["value"] == pytest.approx(roc_auc_score(side, np.r_[mahalanobis_score(fitted, e.features), mahalanobis_score(fitted, theirs)]))
    assert scores["nearest_case"]["auc"]["value"] == pytest.approx(roc_auc_score(side, np.r_[nearest_cases(e.features, e.bank, k=1)[1][:, 0], nearest_cases(theirs, e.bank, k=1)[1][:, 0]]), abs=.02)
    assert scores["contrast"]["auc"]["value"] == 1.0                             # the images are dim, uniform noise is not
    pixels = [pixel_scores(d.images.numpy(), e.train.images.numpy())["pixels"] for d in (e.data, other)]
    assert scores["pixels"]["auc"]["value"] == pytest.approx(roc_auc_score(side, np.concatenate(pixels)))
    assert found["words"] and "the test images" in found["words"][0]
    schema.Strangers.model_validate(json.loads(json.dumps(found, allow_nan=False)))


def test_files_behind_the_other_set(make, tmp_path):
    path = write_data(tmp_path / "ward.npz", n=(6, 6, 9))
    files = lambda name: [p.name for p in stress.other_files(make(**{"eval.other_data": name}).options)]
    assert files("") == files("noise") == files("scrambled") == files("synthetic") == [] and files(str(path)) == ["ward.npz", "ward.json", "ward_masks.npz"]


def test_no_other_data_no_strangers(make): assert stress.strangers(make(**{"eval.other_data": ""})) is None


def test_an_image_of_train_is_not_its_own_nearest_case_among_strangers(make, monkeypatch):
    "Else every training image would be perfectly familiar, and the score flattered. Places in the bank differ from places in the file."
    e, asked, real = make(split="train", **{"data.max_train": 17, "seed": 1}), [], stress.ood_scores
    monkeypatch.setattr(stress, "ood_scores", lambda *a, **k: asked.append((e.own_places if "nearest" in k else None, real(*a, **k))) or asked[-1][1])
    found = stress.strangers(e)
    (own, inside), (none, _) = asked
    assert own.tolist() == list(range(17)) and none is None and found["n_inside"] == 17 and not np.array_equal(e.data.index, range(17))
    alike = e.features @ e.features.T / np.outer(*[np.linalg.norm(e.features, axis=1)] * 2)
    assert np.allclose(inside["nearest_case"], (alike - 2 * np.eye(17)).max(1), atol=1e-5) and "the train images" in found["words"][0]


@pytest.mark.parametrize("few", [1, 2])
def test_a_training_set_too_small_for_a_covariance_stops_nothing(make, few, tmp_path):
    "One image, or one of each class: no spread around the class means. The other scores can still be told, or the part is null."
    e = make("binary", **{"data.max_train": few, "seed": 2})
    found = stress.stress_tests(e, tmp_path, {})
    assert set(found) == set(PARTS) and found["leaks"] is None and found["robustness"]["n"] == 5


def test_a_network_whose_features_never_change_is_still_examined(make, tmp_path):
    e = make("binary", **{"eval.n_corrupted": 0})
    for p in e.model.body.parameters(): p.data.zero_()
    found = stress.stress_tests(e, tmp_path, {})
    assert set(found) == set(PARTS)


# ---- nearest cases

@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("split", ["test", "train", "val"])
def test_nearest_cases_by_sorting_all_similarities(make, task, split):
    e = make(task, split, **{"eval.n_neighbours": 4, "data.max_train": 23, "data.max_eval": 9, "seed": 3})
    agreement, rows = stress.neighbours(e)
    unit = lambda f: f / np.linalg.norm(f, axis=1, keepdims=True)
    alike, place = unit(e.features) @ unit(e.bank).T, e.train.index.tolist()
    if split == "train": alike[np.arange(23), np.arange(23)] = -2
    assert [r["index"] for r in rows] == e.data.index.tolist() and agreement["k"] == 4 and agreement["n"] == len(rows) == (23 if split == "train" else 9) and agreement["n_bank"] == 23
    for i, r in enumerate(rows):
        cases = [c["index"] for c in r["neighbours"]]
        assert len(set(cases)) == 4 and set(cases) <= set(place) and (split != "train" or r["index"] not in cases)
        assert np.allclose([c["similarity"] for c in r["neighbours"]], np.sort(alike[i])[::-1][:4], atol=1e-5)
        assert all(c["similarity"] == pytest.approx(alike[i, place.index(c["index"])], abs=1e-5) for c in r["neighbours"])
        y = [e.train.labels.numpy().astype(int)[place.index(c)] for c in cases]
        assert [c["label"] for c in r["neighbours"]] == [";".join(map(str, np.atleast_1d(v))) for v in y]
        truth = e.labels[i].astype(int)
        assert r["agreement"]["label"] == pytest.approx(np.mean([np.array_equal(v, truth) for v in y])) and r["agreement"]["prediction"] == pytest.approx(np.mean([np.array_equal(v, e.predicted[i]) for v in y]))
    def vote(y): return [c for c in y if y.count(c) == max(map(y.count, y))][0]                      # of equals the nearest
    labels = [[[int(v) for v in c["label"].split(";")] for c in r["neighbours"]] for r in rows]
    votes = np.array([[vote(list(column)) for column in zip(*y)] for y in labels]).reshape(e.labels.shape)
    for name, truth in (("label", e.labels), ("prediction", e.predicted)): assert agreement[name]["value"] == pytest.approx((votes == truth).reshape(len(rows), -1).all(1).mean())
    assert agreement["n_strangers"] == sum(r["typicality"] <= .05 for r in rows) and agreement["accuracy"] == pytest.approx(np.mean([np.array_equal(a, b) for a, b in zip(e.predicted, e.labels)]))
    assert schema.Neighbourhood.model_validate(json.loads(json.dumps(agreement, allow_nan=False))).words == agreement["words"] and agreement["words"][0].startswith(f"{agreement['n_strangers']} of {len(rows)} images")


@pytest.mark.parametrize("split", ["test", "train"])
def test_the_bank_is_searched_once_for_the_evaluated_images(make, monkeypatch, split, tmp_path):
    "Cases, agreement and strangers share one search; the other set and what is usual have their own."
    from xaimed import features
    e, asked, real = make(split=split, **{"eval.n_corrupted": 0, "eval.n_neighbours": 4}), [], features.nearest_cases
    alone = [features.neighbours_report(e.features, e.labels, e.data.index.tolist(), e.bank, e.train.labels.numpy(), e.train.index.tolist(), e.data.spec.classes, e.task, predicted=e.predicted, k=4, same_split=split == "train"),
             features.knn_agreement(e.features, e.labels, e.predicted, e.bank, e.train.labels.numpy(), e.data.spec.classes, e.task, k=4, exclude=e.own_places)]
    for room in (features, stress): monkeypatch.setattr(room, "nearest_cases", lambda q, bank, **more: asked.append(np.asarray(q)) or real(q, bank, **more))
    found = stress.stress_tests(e, tmp_path, {})
    assert sum(np.array_equal(q, e.features) for q in asked) == (2 if split == "train" else 1) and len(asked) == 3       # of train the usual ones are the same images
    agreement, rows = stress.neighbours(e)
    assert rows == alone[0] and {k: agreement[k] for k in alone[1]} == alone[1] and found["neighbours"] == agreement


def test_a_copy_in_train_is_the_nearest_case_and_no_stranger(make):
    _, rows = stress.neighbours(make(copies=COPIES))
    for there, here in COPIES: assert rows[there]["neighbours"][0]["index"] == here and rows[there]["neighbours"][0]["similarity"] == pytest.approx(1) and not rows[there]["stranger"]


@pytest.mark.parametrize("split", ["test", "train"])
def test_there_are_no_more_cases_than_the_bank_can_give(make, split):
    agreement, rows = stress.neighbours(make(split=split, **{"data.max_train": 5, "eval.n_neighbours": 20}))
    assert agreement["k"] == 4 and all(len(r["neighbours"]) == 4 for r in rows)
    assert stress.neighbours(make(**{"eval.n_neighbours": 0})) == (None, [])


@pytest.mark.parametrize("task", TASKS)
def test_cases_come_back_as_they_were_written(make, task, tmp_path):
    e = make(task)
    _, rows = stress.neighbours(e)
    path = stress.write_neighbours(tmp_path / "neighbours.csv", rows)
    assert path.read_text().splitlines()[0] == ",".join(stress.NEIGHBOUR_COLUMNS)
    back = stress.read_neighbours(path)
    assert list(back) == e.data.index.tolist()
    for r in rows:
        assert [(c["case"], c["label"], c["label_name"]) for c in back[r["index"]]] == [(c["index"], c["label"], c["label_name"]) for c in r["neighbours"]]
        assert [c["similarity"] for c in back[r["index"]]] == [round(c["similarity"], 4) for c in r["neighbours"]] and {c["typicality"] for c in back[r["index"]]} == {round(r["typicality"], 4)}
    if task == "multi-label": assert {"none", "ring, broken", 'ring, broken + the "cross"'} & {c["label_name"] for cases in back.values() for c in cases}
    assert stress.read_neighbours(stress.write_neighbours(tmp_path / "empty.csv", [])) == {}


def shown(figure): return sum(len(ax.images) for ax in figure.axes), [t.get_text() for t in [*figure.texts, *(t for ax in figure.axes for t in [ax.title, *ax.texts])] if t.get_text()]


def test_each_image_stands_beside_its_cases():
    case = lambda k: dict(case=k, label="1", label_name=f"name {k}", similarity=.9312, typicality=.5)
    asked, image = [], np.zeros((8, 8), np.uint8)
    figure = stress.neighbours_figure({4: (image, "four"), 7: (image, "seven"), 9: (image, "nine")}, {4: [case(1), case(2)], 9: [case(3)]}, lambda k: asked.append(k) or image, title="T")
    n, said = shown(figure)
    assert n == 2 + 3 and asked == [1, 2, 3]                                    # an image without cases is left out
    assert "four" in " ".join(said) and "seven" not in " ".join(said) and "train 2" in " ".join(said) and "similarity 0.93" in " ".join(said)
    for images, cases in (({}, {}), ({4: (image, "four")}, {})):
        n, said = shown(stress.neighbours_figure(images, cases, lambda k: image))
        assert n == 0 and "no image to compare" in said


# ---- other trainings

@pytest.mark.parametrize("run,seed,new,name", [("a", 0, 1, "a.s1"), ("a_s1", 1, 2, "a_s1.s2"), ("a", 3, 0, "a.s0")])
@pytest.mark.parametrize("own", [None, 9])
def test_a_member_is_the_same_training_with_another_seed_in_a_folder_of_its_own(run, seed, new, name, own):
    options = load_options("quick_smoke", run=run, overrides={"seed": seed, "data.seed": own})
    member = stress.member_options(options, new)
    assert (member.run, member.seed, member.data.seed, member.data.audit) == (name, new, seed if own is None else own, False)
    assert member.model_copy(update={"seed": seed, "run": run, "data": options.data}) == options
    assert stage_dir(member, "train") not in {stage_dir(load_options("quick_smoke", overrides={"seed": s}), "train") for s in range(5)}   # nobody's run is written over


def test_other_seeds_are_each_named_once():
    of = lambda *seeds: stress.other_seeds(load_options("quick_smoke", overrides={"seed": 2, "eval.ensemble": list(seeds)}))
    assert of() == of(2, 2) == [] and of(3, 2, 1, 3) == [3, 1]


@pytest.mark.parametrize("most", [{"data.max_train": 9}, {"data.max_eval": 7}, {"data.max_train": 9, "data.max_eval": 7}])
def test_members_see_the_images_of_the_run(make, most):
    e = make(**{"seed": 1, **most})
    for split in ("train", "val", "test"): assert torch.equal(load_split(stress.member_options(e.options, 2), split).index, load_split(e.options, split).index)


@pytest.fixture
def trained(monkeypatch):
    "Trainings that are asked for, in the place of real ones: a member's network is made of its seed."
    asked = []
    monkeypatch.setattr(stress, "run_training", lambda o: asked.append(("train", o.run, o.seed)))
    def load(o, which):
        asked.append((which, o.run, o.seed))
        return Tiny(TASKS[load_split(o, "val").spec.task], seed=o.seed), {}
    monkeypatch.setattr(stress, "load_trained_model", load)
    return asked


@pytest.mark.parametrize("task", TASKS)
def test_members_are_trained_in_turn_and_judged_on_the_same_images(make, trained, task):
    e = make(task, **{"eval.ensemble": [0, 3, 3, 1], "eval.checkpoint": "last", "data.max_eval": 13})
    found = stress.other_trainings(e)
    assert trained == [("train", "u.s3", 3), ("last", "u.s3", 3), ("train", "u.s1", 1), ("last", "u.s1", 1)]    # its own seed is the run itself
    assert [m["seed"] for m in found["members"]] == [0, 3, 1] and (found["n_members"], found["n"]) == (3, 13)
    with torch.no_grad(): each = [probabilities(Tiny(TASKS[task], seed=s).eval()(e.data.transform(e.data.images)).numpy(), task) for s in (0, 3, 1)]
    assert np.allclose(each[0], e.probs, atol=1e-6)
    for m, p in zip(found["members"], each): assert m["accuracy"] == pytest.approx((predict_labels(p, task) == e.labels).mean()) and m["auc"] == pytest.approx(metric_values(e.labels, p, task, metrics=["auc"])["auc"], abs=.02)
    assert found["ensemble"]["accuracy"]["value"] == pytest.approx((predict_labels(np.mean(each, 0), task) == e.labels).mean())
    assert found["seed_spread"]["accuracy"]["mean"] == pytest.approx(np.mean([m["accuracy"] for m in found["members"]])) and found["words"]
    schema.Ensemble.model_validate(json.loads(json.dumps(found, allow_nan=False)))


@pytest.mark.parametrize("seeds", [[], [0], [0, 0]])
def test_without_another_seed_nothing_is_trained(make, trained, seeds): assert stress.other_trainings(make(**{"eval.ensemble": seeds})) is None and trained == []


def test_no_member_was_trained_on_an_evaluated_image(make, trained, monkeypatch, tmp_path):
    "A folder without splits is split by the run's seed: with another seed, evaluated images would lie in the member's train split. Refused, or split as the run is."
    from xaimed.eval import files_named
    rng = np.random.default_rng(0)
    for name in ("a", "b"):
        (tmp_path / "scans" / name).mkdir(parents=True)
        for i in range(20): Image.fromarray(rng.integers(0, 256, (12, 12), dtype=np.uint8)).save(tmp_path / "scans" / name / f"{i}.png")
    options = load_options("quick_smoke", run="u", overrides={"artifacts_dir": str(tmp_path / "artifacts"), "data.size": 12, "data.dataset": str(tmp_path / "scans"), "eval.ensemble": [1], "eval.n_resamples": 100})
    data, model, seen = load_split(options, "test", transforms_for(options)), Tiny(2), []
    monkeypatch.setattr(stress, "run_training", lambda o: seen.extend(load_split(o, "train").images))
    try:
        files_named(options)
        stress.other_trainings(Evaluated(options, model, data, data.labels.numpy(), model(data.transform(data.images)).detach().numpy()))
    except ValueError as error: assert "eval.ensemble" in str(error) and not seen
    both = {i.numpy().tobytes() for i in seen} & {i.numpy().tobytes() for i in data.images}
    assert not both, f"{len(both)} of {len(data)} evaluated images were trained on"


# ---- part of the network left out

@pytest.mark.parametrize("task", TASKS)
def test_half_networks(make, task):
    e = make(task, **{"eval.mc_dropout": 6})
    found = stress.half_networks(e)
    assert (found["n_passes"], found["p"], found["n"], found["trained_with_dropout"]) == (6, stress.DROPOUT, 20, False) and "trained without dropout" in found["words"][0]
    assert found == stress.half_networks(e) and found["uncertainty"]["mutual_information"] > 0 and 0 <= found["changed"] <= 1
    used = stress.half_networks(make(task, dropout=stress.DROPOUT, **{"eval.mc_dropout": 6}))
    assert used["trained_with_dropout"] and "trained without" not in " ".join(used["words"])
    assert stress.half_networks(make(task)) is None
    schema.Dropped.model_validate(json.loads(json.dumps(found, allow_nan=False)))


def test_leaving_nothing_out_changes_nothing(make, monkeypatch):
    monkeypatch.setattr(stress, "DROPOUT", 0.)
    found = stress.half_networks(make(**{"eval.mc_dropout": 3}))
    assert found["changed"] == 0 and found["uncertainty"]["mutual_information"] == pytest.approx(0, abs=1e-6) and found["uncertainty"]["disagreement"] == 0


# ---- all of it

@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("split", ["test", "val", "train"])
def test_every_question_is_answered_and_its_files_are_written(make, trained, task, split, tmp_path):
    e, folder = make(task, split, **{"eval.ensemble": [1], "eval.mc_dropout": 3, "data.max_eval": 8, "data.max_train": 15}), tmp_path / "out"
    folder.mkdir()
    run_data(e.options)
    found = stress.stress_tests(e, folder, {int(e.data.index[0]): (e.data.images[0, 0].numpy(), "said one")})
    assert tuple(found) == PARTS and [p for p in PARTS if found[p] is None] == (["leaks"] if split == "train" else [])
    assert sorted(p.name for p in folder.iterdir()) == ["neighbours.csv", "neighbours_grid.png", "robustness.png"]
    assert list(stress.read_neighbours(folder / "neighbours.csv")) == e.data.index.tolist()
    for part, kind in KINDS.items():
        if found[part] is not None: assert kind.model_validate(json.loads(json.dumps(found[part], allow_nan=False))).n if part != "strangers" else kind.model_validate(found[part]).n_inside == len(e.data)


def test_what_is_not_asked_for_is_null_and_writes_no_file(make, tmp_path):
    e = make(**{"eval.n_corrupted": 0, "eval.other_data": "", "eval.n_neighbours": 0})
    (folder := tmp_path / "out").mkdir()
    assert stress.stress_tests(e, folder, {0: (np.zeros((8, 8), np.uint8), "said")}) == dict.fromkeys(PARTS) and not any(folder.iterdir())


def test_the_surest_failures_are_drawn_with_their_cases(make, monkeypatch, tmp_path):
    e, drawn, real = make(**{"eval.n_corrupted": 0, "eval.other_data": "", "data.max_train": 15, "seed": 1}), [], stress.neighbours_figure
    def figure(images, cases, picture, **more):
        drawn.append((list(images), [[np.asarray(picture(c["case"])) for c in cases[i]] for i in images], [[c["case"] for c in cases[i]] for i in images]))
        return real(images, cases, picture, **more)
    monkeypatch.setattr(stress, "neighbours_figure", figure)
    gallery = {i: (e.data.images[i, 0].numpy(), f"said {i}") for i in (7, 3, 19, 0, 1, 2, 4, 5)}
    stress.stress_tests(e, tmp_path, gallery)
    (index, pictures, cases), = drawn
    assert index == [7, 3, 19, 0, 1, 2] and len(index) == stress.SHOWN
    with np.load(e.options.data.dataset) as f: assert all(np.array_equal(p, f["train_images"][c]) for ps, cs in zip(pictures, cases) for p, c in zip(ps, cs))   # by their place in the file
    stress.stress_tests(e, tmp_path, {})                                        # nothing was wrong: a sentence


@pytest.mark.parametrize("task", TASKS)
def test_a_split_of_one_class_is_answered(make, trained, task, tmp_path):
    labels = np.zeros((20, 3), int) if task == "multi-label" else np.zeros(20, int)
    e = make(task, labels=labels, copies=COPIES, **{"eval.ensemble": [1], "eval.mc_dropout": 3})
    run_data(e.options)
    found = json.loads(json.dumps(stress.stress_tests(e, tmp_path, {}), allow_nan=False))
    assert found["leaks"]["of_all"]["auc"]["value"] is None and found["leaks"]["without"]["accuracy"]["value"] is not None and found["robustness"]["clean"]["auc"] is None
    assert found["ensemble"]["members"][0]["auc"] is None and found["ensemble"]["seed_spread"]["auc"] is None and found["strangers"]["scores"][0]["auc"]["value"] is not None
    for part, kind in KINDS.items(): kind.model_validate(found[part])


def test_one_image_is_answered(make, tmp_path):
    e = make(**{"data.max_eval": 1, "eval.mc_dropout": 3})
    run_data(e.options)
    found = json.loads(json.dumps(stress.stress_tests(e, tmp_path, {}), allow_nan=False))
    for part, kind in KINDS.items(): assert (found[part] is None) == (part == "ensemble") and (found[part] is None or kind.model_validate(found[part]))
