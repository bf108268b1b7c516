"Ensembles and dropout: worked by hand, beside scipy and the closed form of a linear head, properties, the network left as found, faults refused by name."
import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from scipy.stats import entropy
from sklearn.metrics import log_loss, roc_auc_score
from torch import nn

from xaimed import ensemble as en
from xaimed.conformal import aurc
from xaimed.data import DatasetSpec, ImageDataset, build_transforms
from xaimed.intervals import bootstrap_intervals, paired_bootstrap
from xaimed.models import build_model
from xaimed.trust import predict_labels

pytestmark = pytest.mark.filterwarnings("error")
quick = settings(max_examples=25, deadline=None, derandomize=True)
TASKS = ("multi-class", "binary", "ordinal", "multi-label")


def case(task, m=3, n=40, seed=0, k=3):
    "Labels, and probabilities of m networks that lean towards them."
    rng, k = np.random.default_rng(seed), 2 if task == "binary" else k
    y = rng.integers(0, 2, (n, k)) if task == "multi-label" else rng.integers(0, k, n)
    truth = 2. * y - 1 if task == "multi-label" else 2 * np.eye(k)[y]
    return y, en.member_probabilities(truth + rng.standard_normal((n, k)) + .7 * rng.standard_normal((m, n, k)), task)


# ---- the mean and the entropies

def test_mean_by_hand():
    two = np.array([[[.9, .1], [.5, .5]], [[.3, .7], [.5, .5]]])
    assert np.allclose(en.ensemble_probabilities(two, "binary"), [[.6, .4], [.5, .5]])
    z = np.log(two)
    assert np.allclose(en.member_probabilities(z, "binary"), two) and np.allclose(en.member_probabilities(z, "multi-label"), two / (1 + two))


def test_all_together_are_one_definition(monkeypatch):
    "Every report takes the same mean of its members."
    y, p = case("multi-class")
    monkeypatch.setattr(en, "ensemble_probabilities", lambda members, task: np.asarray(members)[0])
    r = en.ensemble_report(y, p, "multi-class", [0, 1, 2], n_resamples=100)
    assert r["ensemble"]["accuracy"]["value"] == r["members"][0]["accuracy"] and r["comparison"]["auc"]["difference"] == 0
    assert np.allclose(en.uncertainty(p, "multi-class")["total"], entropy(p[0], axis=1))
    assert en.dropout_report(y, np.log(p[0]), np.log(p), "multi-class", p=.2, trained_with_dropout=False, n_resamples=100)["changed"] == 0


def test_uncertainty_by_hand_of_three_votes():
    u = en.uncertainty(np.eye(3)[[[0], [0], [1]]], "multi-class")                  # two sure of 0, one of 1
    assert u["total"][0] == pytest.approx(entropy([2, 1])) and u["expected"].tolist() == [0] and u["mutual_information"][0] == u["total"][0]
    assert u["disagreement"][0] == pytest.approx(1 / 3) and all(v.shape == (1,) for v in u.values())
    labels = en.uncertainty([[[1, 0]], [[0, 0]]], "multi-label")                     # one label in dispute, one agreed
    assert labels["total"][0] == pytest.approx(np.log(2) / 2) and labels["disagreement"].tolist() == [.25]     # a mean of 0.5 is a no: one of four decisions differs


@pytest.mark.parametrize("task", TASKS)
def test_entropies_as_scipy_gives_them(task):
    _, p = case(task)
    u, mean = en.uncertainty(p, task), p.mean(0)
    def h(q): return entropy(np.stack([q, 1 - q]), axis=0).mean(-1) if task == "multi-label" else entropy(q, axis=-1)
    def kl(a, b): return entropy(np.stack([a, 1 - a]), np.stack([b, 1 - b]), axis=0).mean(-1) if task == "multi-label" else entropy(a, b, axis=-1)
    assert np.allclose(u["total"], h(mean)) and np.allclose(u["expected"], np.mean([h(q) for q in p], 0))
    assert np.allclose(u["mutual_information"], np.mean([kl(q, mean) for q in p], 0))            # the same quantity, by another road
    d = predict_labels(mean, task)
    assert np.allclose(u["disagreement"], np.mean([(predict_labels(q, task) != d).reshape(len(d), -1).mean(1) for q in p], 0))


@quick
@given(st.sampled_from(TASKS), st.integers(1, 6), st.integers(1, 8), st.integers(0, 10**6))
def test_uncertainty_keeps_its_bounds_and_knows_no_order(task, m, n, seed):
    _, p = case(task, m, n, seed)
    u, k = en.uncertainty(p, task), p.shape[2]
    assert (u["mutual_information"] >= 0).all() and (u["mutual_information"] <= np.log(m) + 1e-9).all() and (u["expected"] <= u["total"] + 1e-9).all()
    assert (u["total"] <= (np.log(2) if task == "multi-label" else np.log(k)) + 1e-9).all() and (u["disagreement"] >= 0).all() and (u["disagreement"] <= 1).all()
    again = en.uncertainty(p[np.random.default_rng(seed).permutation(m)], task)
    assert all(np.allclose(u[name], again[name]) for name in u)
    same = en.uncertainty(np.repeat(p[:1], 3, 0), task)
    assert np.allclose(same["mutual_information"], 0) and not same["disagreement"].any()


@pytest.mark.parametrize("members, task, why", [(np.ones((2, 2)) / 2, "binary", r"shape \(2, 2\), expected \(M, N, K\)"), (np.empty((0, 2, 2)), "binary", "at least one"), ([[[.5, .5]], [[np.nan, 1]]], "binary", "member 1: probs has NaN"),
                                                ([[[3., -1.]]], "binary", "member 0: .*`probabilities` first"), (np.ones((1, 2, 3)) / 3, "binary", "expected 2 for a binary task"), ([[[.5, .5]]], "two", "task")])
def test_members_that_are_none_are_refused(members, task, why):
    for call in (en.ensemble_probabilities, en.uncertainty):
        with pytest.raises(ValueError, match=why): call(members, task)


def test_logits_that_are_none_are_refused():
    with pytest.raises(ValueError, match="expected \\(M, N, K\\)"): en.member_probabilities(np.zeros((2, 3)), "binary")
    with pytest.raises(ValueError, match="NaN"): en.member_probabilities([[[np.nan, 1]]], "binary")


# ---- orders

def test_order_by_hand():
    r = en.order_report([1, 1, 0, 1], {"ensemble": [4, 3, 1, 2], "single": [1, 2, 4, 3], "mutual_information": [0, 0, 0, 0]}, n_resamples=100)
    assert r["best"] == "ensemble" and r["n"] == 4 and r["error"] == .25
    assert [o["aurc"] for o in r["orders"]] == [1 / 16, pytest.approx((1 + 1 / 2 + 1 / 3 + 1 / 4) / 4), .25] and r["orders"][0]["excess"] == 0
    assert r["difference"]["name"] == "mutual_information" and r["difference"]["value"] == .25 - 1 / 16
    json.dumps(r, allow_nan=False)


def test_a_better_order_is_clear_and_an_equal_one_is_not():
    rng = np.random.default_rng(0)
    right = rng.random(200) < .7
    good, blind = right + .3 * rng.standard_normal(200), rng.random(200)
    r = en.order_report(right, {"good": good, "blind": blind}, n_resamples=200)
    assert r["best"] == "good" and r["clear"] is True and r["difference"]["low"] > 0
    assert all(o["low"] <= o["aurc"] <= o["high"] for o in r["orders"]) and r["orders"][0]["aurc"] == aurc(good, right)["aurc"]
    tied = en.order_report(right, {"a": good, "b": good * 2}, n_resamples=200)
    assert tied["clear"] is False and tied["difference"] == dict(name="b", value=0, low=0, high=0)
    assert en.order_report(right, {"a": good}, n_resamples=100)["difference"] is None
    assert en.order_report(right, {"a": good, "b": blind}, n_resamples=200, seed=1) == en.order_report(right, {"a": good, "b": blind}, n_resamples=200, seed=1)


@pytest.mark.parametrize("right, orders, n, why", [([1], {}, 100, "orders is empty"), ([1, 0], {"a": [1, 2]}, 99, "at least 100"), ([1, 0], {"a": [1, np.nan]}, 100, "NaN"), ([1, 0], {"a": [1]}, 100, "shape")])
def test_orders_refuse(right, orders, n, why):
    with pytest.raises(ValueError, match=why): en.order_report(right, orders, n_resamples=n)


# ---- the report

@pytest.mark.parametrize("task", TASKS)
def test_report_in_every_task(task):
    y, p = case(task, m=4, n=60)
    r = en.ensemble_report(y, p, task, [3, 1, 4, 5], n_resamples=200)
    json.dumps(r, allow_nan=False)
    assert (r["n"], r["n_members"], [e["seed"] for e in r["members"]]) == (60, 4, [3, 1, 4, 5]) and set(r["members"][0]) == {"seed", "auc", "accuracy", "ece", "nll"}
    for name in ("auc", "accuracy"):
        each = [e[name] for e in r["members"]]
        assert r["seed_spread"][name] == dict(mean=pytest.approx(np.mean(each)), sd=pytest.approx(np.std(each, ddof=1)), low=min(each), high=max(each), n=4)
    mean = p.mean(0)
    e, c = (f for f in (bootstrap_intervals(y, mean, task, metrics=["auc", "brier"], n_resamples=200)["auc"], paired_bootstrap(y, p[0], mean, task, metrics=["auc"], n_resamples=200)["auc"]))
    assert r["ensemble"]["auc"] == dict(value=pytest.approx(e.value), low=pytest.approx(e.low), high=pytest.approx(e.high), n=60) and r["ensemble"]["ece"]["value"] >= 0
    assert r["comparison"]["auc"]["difference"] == pytest.approx(c.difference) and r["comparison"]["auc"]["first"] == pytest.approx(r["members"][0]["auc"]) and set(r["comparison"]) == {"auc", "accuracy", "brier"}
    assert r["nll_gain"]["value"] == pytest.approx(r["members"][0]["nll"] - r["ensemble"]["nll"]["value"]) and r["nll_gain"]["low"] < r["nll_gain"]["value"] < r["nll_gain"]["high"]
    assert r["ensemble"]["nll"]["value"] <= np.mean([m["nll"] for m in r["members"]]) and [o["name"] for o in r["orders"]["orders"]] == list(en.ORDERS)
    assert r["uncertainty"]["mutual_information"] == pytest.approx(en.uncertainty(p, task)["mutual_information"].mean())
    words = en.ensemble_words(r)
    assert len(words) == 6 and "4 trainings" in words[0] and "order" in words[-1]


@pytest.mark.parametrize("gain, said", [
    ((.251, .2, .3), "falls by 0.251 per image (0.200 to 0.300)."), ((-.251, -.3, -.2), "rises by 0.251 per image (0.200 to 0.300)."),
    ((.01, -.02, .04), "changes by −0.010 per image (−0.040 to +0.020): no clear difference."), ((0, 0, 0), "changes by +0.000 per image: no clear difference."),
    ((-1e-9, -2e-9, 1e-9), "changes by +0.000 per image: no clear difference."), ((.1, 0, .2), "changes by −0.100 per image (−0.200 to +0.000): no clear difference.")])
def test_words_say_which_way_the_likelihood_goes(gain, said):
    assert en._nll_words(dict(zip(("value", "low", "high"), gain))) == "The negative log-likelihood " + said


def test_words_when_the_others_are_worse_and_when_they_are_the_same():
    y, p = case("binary", m=1, n=60, seed=1)
    worse = " ".join(en.ensemble_words(en.ensemble_report(y, np.concatenate([p, 1 - p.clip(.001, .999)]), "binary", [0, 1], n_resamples=100)))
    assert "log-likelihood rises by" in worse and "by -" not in worse.split("log-likelihood")[1]
    same = " ".join(en.ensemble_words(en.ensemble_report(y, np.repeat(p, 2, 0), "binary", [0, 1], n_resamples=100)))
    assert "changes the AUC by +0.000: no clear difference" in same and "changes by +0.000 per image: no clear difference" in same and "000 to" not in same


def test_figures_as_scikit_learn_gives_them():
    y, p = case("multi-class", m=2, n=80, seed=3)
    r = en.ensemble_report(y, p, "multi-class", [0, 1], n_resamples=100)
    for e, q in zip(r["members"], p):
        assert e["auc"] == pytest.approx(roc_auc_score(y, q, multi_class="ovr")) and e["nll"] == pytest.approx(log_loss(y, q)) and e["accuracy"] == (q.argmax(1) == y).mean()


def test_orders_judge_the_decisions_of_all_together():
    y, p = case("multi-label", m=3, n=50, seed=5)
    r, mean = en.ensemble_report(y, p, "multi-label", [0, 1, 2], n_resamples=100)["orders"], p.mean(0)
    right = (predict_labels(mean, "multi-label") == y).all(1)
    by = {"single": np.maximum(p[0], 1 - p[0]).min(1), "ensemble": np.maximum(mean, 1 - mean).min(1), "mutual_information": -en.uncertainty(p, "multi-label")["mutual_information"]}
    assert r["error"] == pytest.approx(1 - right.mean())
    for o in r["orders"]: assert o["aurc"] == pytest.approx(aurc(by[o["name"]], right)["aurc"])


def test_one_training_has_no_spread():
    y, p = case("binary", m=1)
    r = en.ensemble_report(y, p, "binary", [7], n_resamples=100)
    assert r["seed_spread"]["auc"]["sd"] is None and r["comparison"]["auc"]["difference"] == 0 and r["uncertainty"]["mutual_information"] == 0
    assert en.ensemble_words(r) == ["One training: how far another seed would lie is not known."]


def test_one_class_and_one_image():
    y, p = np.zeros(12, int), case("multi-class", n=12)[1]
    r = en.ensemble_report(y, p, "multi-class", [0, 1, 2], n_resamples=100)
    assert r["members"][0]["auc"] is None and r["seed_spread"]["auc"] is None and r["ensemble"]["auc"]["value"] is None and r["seed_spread"]["accuracy"]["n"] == 3
    words = en.ensemble_words(r)
    assert words[0] == "AUC is not defined for every training." and not any("nan" in w.lower().split() for w in words)
    one = en.ensemble_report(y[:1], p[:, :1], "multi-class", [0, 1, 2], n_resamples=100)
    assert one["n"] == 1 and one["ensemble"]["nll"]["low"] is None and one["nll_gain"]["high"] is None
    json.dumps([r, one, en.ensemble_words(one)], allow_nan=False)


def test_saturated_members():
    y = np.array([0, 1] * 10)
    p = np.stack([np.eye(2)[y], np.eye(2)[y], np.eye(2)[1 - y]])
    r = en.ensemble_report(y, p, "binary", [0, 1, 2], n_resamples=100)
    assert [m["accuracy"] for m in r["members"]] == [1, 1, 0] and r["ensemble"]["accuracy"]["value"] == 1 and r["uncertainty"]["disagreement"] == pytest.approx(1 / 3)
    assert np.isfinite(r["members"][2]["nll"]) and all(o["excess"] == 0 for o in r["orders"]["orders"])


@pytest.mark.parametrize("seeds, why", [([0, 1], "expected 3 different ones"), ([0, 1, 1], "same training twice")])
def test_seeds_must_be_of_the_trainings(seeds, why):
    y, p = case("binary")
    with pytest.raises(ValueError, match=why): en.ensemble_report(y, p, "binary", seeds)


def test_labels_must_be_of_the_images():
    y, p = case("binary")
    with pytest.raises(ValueError, match="labels has shape"): en.ensemble_report(y[:-1], p, "binary", [0, 1, 2])
    with pytest.raises(ValueError, match="at least 100"): en.ensemble_report(y, p, "binary", [0, 1, 2], n_resamples=9)


# ---- dropout

def head(n=5, d=30, k=3, seed=0):
    rng = np.random.default_rng(seed)
    return rng.standard_normal((n, d)).astype(np.float32), rng.standard_normal((k, d)).astype(np.float32), rng.standard_normal(k).astype(np.float32)


@pytest.mark.parametrize("p", [.1, .5, .8])
def test_mean_and_variance_of_a_linear_head(p):
    f, w, b = head()
    z = en.dropout_logits(f, w, b, p=p, n_passes=6000)
    variance = p / (1 - p) * (f.astype(float)**2 @ w.T.astype(float)**2)
    assert (np.abs(z.mean(0) - (f @ w.T + b)) < 5 * np.sqrt(variance / 6000)).all() and np.allclose(z.var(0, ddof=1), variance, rtol=.1)


def test_masks_fall_on_features_and_differ_between_images():
    z = en.dropout_logits(np.ones((200, 2)), np.eye(2), p=.25, n_passes=50)
    assert set(np.unique(z)) == {0, np.float32(1 / .75)} and z.any((0, 1)).all()
    assert abs((z == 0).mean() - .25) < .01 and abs(np.corrcoef(z[..., 0].ravel(), z[..., 1].ravel())[0, 1]) < .03
    assert (z[:, 0] != z[:, 1]).any() and (z[0] != z[1]).any()


def test_blocks_and_further_passes_change_no_bit():
    f, w, b = head(n=23)
    z = en.dropout_logits(f, w, b, n_passes=6, seed=3)
    assert z.shape == (6, 23, 3) and z.dtype == np.float32
    for block in (1, 7, 22): assert np.array_equal(z, en.dropout_logits(f, w, b, n_passes=6, seed=3, block=block))
    assert np.array_equal(z[:2], en.dropout_logits(f, w, b, n_passes=2, seed=3)) and not np.array_equal(z, en.dropout_logits(f, w, b, n_passes=6, seed=4))
    assert np.allclose(en.dropout_logits(f, w, b, p=0, n_passes=1)[0], f @ w.T + b, atol=1e-4)


@pytest.mark.parametrize("given_, why", [(dict(p=1), "p is 1"), (dict(p=-.1), "p is"), (dict(n_passes=0), "n_passes is 0")])
def test_dropout_refuses(given_, why):
    with pytest.raises(ValueError, match=why): en.dropout_logits(*head(), **given_)


def test_dropout_refuses_another_head():
    f, w, b = head()
    for bad in ((f[:, 1:], w, b), (f, w, b[1:]), (f[:0], w, b), (f[0], w, b)):
        with pytest.raises(ValueError, match="features has shape"): en.dropout_logits(*bad)


def test_network_is_left_as_found():
    net = build_model("resnet10", 3, 3, image_size=16, seed=0).train()
    net.layer2.eval()
    modes, state = [m.training for m in net.modules()], {k: v.clone() for k, v in net.state_dict().items()}
    data = ImageDataset(torch.randint(0, 256, (6, 1, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)), torch.zeros(6, dtype=torch.int64), DatasetSpec("made", "Made", "multi-class", ("a", "b", "c")), "test", transform=build_transforms(16))
    torch.manual_seed(5); before = torch.random.get_rng_state()
    z = en.mc_dropout(net, data, p=.3, n_passes=4, seed=1, batch_size=4)
    assert z.shape == (4, 6, 3) and [m.training for m in net.modules()] == modes and torch.equal(torch.random.get_rng_state(), before)
    assert all(torch.equal(v, state[k]) for k, v in net.state_dict().items()) and not net.fc._forward_hooks and all(p.grad is None and p.requires_grad for p in net.parameters())
    assert np.array_equal(z, en.mc_dropout(net, data, p=.3, n_passes=4, seed=1, batch_size=4))
    f, logits = en.extract_features(net, data, batch_size=4)
    assert np.array_equal(z, en.dropout_logits(f, net.fc.weight.detach().numpy(), net.fc.bias.detach().numpy(), p=.3, n_passes=4, seed=1))
    assert np.allclose(en.mc_dropout(net, data, p=0, n_passes=1)[0], logits, atol=1e-4)                # batch norm is in evaluation mode


@pytest.mark.parametrize("layers, p", [
    ([nn.Linear(2, 2)], None), ([nn.Dropout(.2), nn.Linear(2, 2)], .2), ([nn.Dropout(.5), nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2)], None),      # dropout before another layer
    ([nn.Linear(2, 3), nn.ReLU(), nn.Dropout(.3), nn.Linear(3, 2)], .3), ([nn.Dropout(.5), nn.ReLU(), nn.Linear(2, 2)], None), ([nn.Dropout2d(.2), nn.Linear(2, 2)], None),
    ([nn.Sequential(nn.Dropout(.2), nn.Linear(2, 2)), nn.Softmax(1)], .2), ([nn.Dropout(.2), nn.Linear(2, 2), nn.Identity()], None), ([nn.Sequential(nn.Linear(2, 2), nn.Dropout(.2), nn.ReLU()), nn.Linear(2, 2)], None)])
def test_only_dropout_before_the_head_counts(layers, p):
    net = nn.Sequential(*layers)
    assert en.head_dropout(net) == p and en.uses_dropout(net, .2) is (p == .2) and not en.uses_dropout(net, .25)


def test_the_networks_here_have_no_dropout_before_the_head():
    assert en.head_dropout(build_model("resnet10", 3, 3, image_size=16, seed=0)) is None
    with pytest.raises(ValueError, match="has no nn.Linear"): en.head_dropout(nn.Sequential(nn.Dropout(.2)))


def test_head_without_bias_and_in_training_with_dropout():
    net = nn.Sequential(nn.Flatten(), nn.Dropout(.5), nn.Linear(4, 2, bias=False)).train()
    x = torch.ones(3, 1, 2, 2)
    z = en.mc_dropout(net, [(x, torch.zeros(3))], p=0, n_passes=2)
    with torch.no_grad(): assert np.allclose(z[0], (x.flatten(1) @ net[2].weight.T).numpy(), atol=1e-6)   # its own dropout is off
    assert net.training and np.array_equal(z[0], z[1])


@pytest.mark.parametrize("task", TASKS)
def test_dropout_report_in_every_task(task):
    y, _ = case(task, n=50)
    k = 2 if task == "binary" else 3
    f, w, b = head(n=50, k=k, seed=2)
    logits = f @ w.T + b
    r = en.dropout_report(y, logits, en.dropout_logits(f, w, b, n_passes=5), task, p=.2, trained_with_dropout=False, n_resamples=100)
    json.dumps(r, allow_nan=False)
    assert (r["p"], r["n_passes"], r["trained_with_dropout"], r["n"]) == (.2, 5, False, 50) and r["uncertainty"]["mutual_information"] > 0 and 0 <= r["changed"] <= 1
    own = en.member_probabilities(logits[None], task)[0]
    right = (predict_labels(own, task) == y).reshape(50, -1).all(1)
    assert r["orders"]["error"] == pytest.approx(1 - right.mean())                                        # the network's own decisions
    assert "without dropout of p = 0.2 before its head: that p is a guess" in en.dropout_words(r)[0] and not any("guess" in w for w in en.dropout_words(r | dict(trained_with_dropout=True)))
    none = en.dropout_report(y, logits, np.stack([logits] * 3), task, p=0, trained_with_dropout=False, n_resamples=100)
    assert none["changed"] == 0 and none["uncertainty"]["mutual_information"] == pytest.approx(0, abs=1e-12) and next(o for o in none["orders"]["orders"] if o["name"] == "mutual_information")["aurc"] == pytest.approx(none["orders"]["error"])


def test_dropout_report_refuses_other_images():
    y, _ = case("binary")
    with pytest.raises(ValueError, match="same images"): en.dropout_report(y, np.zeros((40, 2)), np.zeros((3, 39, 2)), "binary", p=.2, trained_with_dropout=False)
