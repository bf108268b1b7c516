"xaimed.intervals: intervals and paired tests beside scikit-learn, scipy and definitions written out."
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from scipy.stats import binomtest, bootstrap
from sklearn import metrics as sk

from xaimed import trust
from xaimed.intervals import (METRICS, Weighted, acceleration, bootstrap_intervals, cohen_kappa, confusions, delong_test, left_out, matthews, mcnemar_test, metric_values,
                              paired_bootstrap, counts_above, holm, metric_rows, placements, resample_weights, seed_spread, weighted_auc, weighted_average_precision, wilson_interval)

TASKS = ("binary", "multi-class", "ordinal", "multi-label")


def scores(task, n=60, seed=0, kind="random"):
    "Labels and probabilities of a task: random, with many ties, or saturated at exactly 0 and 1."
    rng, k = np.random.default_rng(seed), 2 if task == "binary" else 4
    if task == "multi-label": labels, probs = rng.integers(2, size=(n, k)), rng.random((n, k))
    else: labels, probs = rng.integers(k, size=n), rng.dirichlet(np.ones(k), n)
    if kind == "ties": probs = probs.round(1) if task == "multi-label" else np.eye(k)[probs.argmax(1)] * .4 + .6 / k
    if kind == "saturated": probs = (probs > .5).astype(float) if task == "multi-label" else np.eye(k)[probs.argmax(1)]
    return labels, probs


def copies(values, weights): return np.repeat(values, weights, 0)


@pytest.mark.parametrize("right,n", [(0, 1), (1, 1), (0, 10), (7, 10), (10, 10), (134, 156), (5000, 7000)])
@pytest.mark.parametrize("level", [.9, .95, .99])
def test_wilson_equals_scipy(right, n, level):
    found, want = wilson_interval(right, n, level=level), binomtest(right, n).proportion_ci(level, method="wilson")
    assert found.value == right / n and found.n == n
    np.testing.assert_allclose([found.low, found.high], want, atol=1e-12)


def test_wilson_of_many_at_once_and_of_none():
    found = wilson_interval([3, 0], [4, 0])
    assert found.value[0] == .75 and np.isnan([found.value[1], found.low[1], found.high[1]]).all()
    for right in (5, -1, 2.5):
        with pytest.raises(ValueError, match="outside 0..n"): wilson_interval(right, 4)
    for level in (0, 1, 95):
        with pytest.raises(ValueError, match="such as 0.95"): wilson_interval(1, 2, level=level)


@pytest.mark.parametrize("kind", ["random", "ties", "saturated"])
def test_weighted_auc_equals_scikit_learn_on_copies(kind):
    labels, probs = scores("binary", 50, 3, kind)
    weights = next(resample_weights(labels, 30, seed=1))
    want = [sk.roc_auc_score(copies(labels, w), copies(probs[:, 1], w)) for w in weights.astype(int)]
    np.testing.assert_allclose(weighted_auc(labels == 1, probs[:, 1], weights), want, atol=1e-12)


@pytest.mark.parametrize("kind", ["random", "ties", "saturated"])
def test_weighted_average_precision_equals_scikit_learn_on_copies(kind):
    labels, probs = scores("binary", 50, 3, kind)
    weights = next(resample_weights(np.zeros(50), 30, seed=1))
    want = [sk.average_precision_score(copies(labels, w), copies(probs[:, 1], w)) for w in weights.astype(int)]
    np.testing.assert_allclose(weighted_average_precision(labels == 1, probs[:, 1], weights), want, atol=1e-12)
    parts = np.random.default_rng(0).random((5, 50))
    np.testing.assert_allclose(weighted_average_precision(labels == 1, probs[:, 1], parts), [sk.average_precision_score(labels, probs[:, 1], sample_weight=w) for w in parts], atol=1e-12)


def test_average_precision_by_hand_and_where_a_side_is_missing():
    "A tie of three behind the best: 1/2 at precision 1, 1/2 at precision 2/4. The best negative without weight changes nothing."
    truth, score = [0, 0, 1, 0, 1], [.1, .4, .4, .4, .8]
    assert weighted_average_precision(truth, score, np.ones((1, 5))).tolist() == [.75]
    assert weighted_average_precision([0, *truth], [.9, *score], [[0, 1, 1, 1, 1, 1]]).tolist() == [.75]
    assert weighted_average_precision([0, *truth], [.9, *score], [[1, 1, 1, 1, 1, 1]])[0] == pytest.approx(.5 * .5 + .5 * 2 / 5)
    assert np.isnan(weighted_average_precision([0, 0], [.1, .2], np.ones((3, 2)))).tolist() == [True] * 3 and np.isnan(weighted_average_precision([1, 0], [.1, .2], [[0, 1]]))[0]
    assert weighted_average_precision([1, 1], [.1, .2], [[1, 0]]).tolist() == [1] and weighted_average_precision([1], [.1], [[2]]).tolist() == [1]


def test_counts_above():
    found, wrong = counts_above([1, 0, 1, 0], [.1, .5, .5, .9], [[1, 1, 1, 1], [0, 2, 3, 4]], [2, .9, .5, .3, .1])
    assert found.tolist() == [[0, 0, 1, 1, 2], [0, 0, 3, 3, 3]] and wrong.tolist() == [[0, 1, 2, 2, 2], [0, 4, 6, 6, 6]]
    assert [c.tolist() for c in counts_above([0], [.5], [[1]], [.5])] == [[[0]], [[1]]]


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("kind", ["random", "ties", "saturated"])
def test_auprc_of_every_task(task, kind):
    labels, probs = scores(task, 80, 7, kind)
    truth = labels if task == "multi-label" else np.eye(probs.shape[1], dtype=int)[labels]
    found, each = metric_values(labels, probs, task, metrics=["auprc", "auprc_per_class"]), [sk.average_precision_score(t, p) for t, p in zip(truth.T, probs.T)]
    np.testing.assert_allclose(found["auprc_per_class"], each, atol=1e-12)
    np.testing.assert_allclose(found["auprc"], each[1] if task == "binary" else np.mean(each), atol=1e-12)
    assert [r["name"] for r in metric_rows(labels, probs, task, n_resamples=100) if "auprc" in r["name"]] == ["auprc"] + ["auprc_per_class"] * probs.shape[1]
    assert list(paired_bootstrap(labels, probs, probs, task, metrics=["auprc"], n_resamples=100)) == ["auprc"]


def test_auprc_leaves_absent_classes_out_and_has_no_interval_of_few():
    labels, probs = np.r_[np.arange(60) % 2, [2] * 4], scores("multi-class", 64, 4)[1]     # nearly every draw has one of the four
    found = bootstrap_intervals(labels, probs, "multi-class", metrics=["auprc", "auprc_per_class"], n_resamples=200)
    each = found["auprc_per_class"]
    assert np.isfinite(each.value).tolist() == [True, True, True, False] and found["auprc"].value == pytest.approx(np.nanmean(each.value))
    assert np.isfinite(each.low).tolist() == [True, True, False, False] and np.isnan(found["auprc"].low)
    shared = bootstrap_intervals(labels[:60], probs[:60], "multi-class", metrics=["auprc"], n_resamples=200)["auprc"]
    assert shared.low < shared.value < shared.high


def test_auprc_of_scores_that_know_nothing_is_the_prevalence_and_varies_with_it():
    "Drawn with the class counts fixed, one score for all would never vary; drawn from all images, it is a binomial share."
    assert not METRICS["auprc"].stratified and not METRICS["auprc_per_class"].stratified
    labels = np.r_[np.ones(30, int), np.zeros(70, int)]
    e = bootstrap_intervals(labels, np.full((100, 2), .5), "binary", metrics=["auprc"], n_resamples=1000, method="percentile")["auprc"]
    assert e.value == pytest.approx(.3) and abs(e.low - .21) < .02 and abs(e.high - .39) < .02


@pytest.mark.parametrize("kind", ["random", "ties", "saturated"])
@pytest.mark.parametrize("task", TASKS)
def test_a_weight_of_two_is_the_image_twice(task, kind):
    labels, probs = scores(task, 40, 5, kind)
    weights = next(resample_weights(np.zeros(40), 12, seed=2))
    for name, m in METRICS.items():
        weighted = m.function(Weighted(labels, probs, task, weights))
        for row, w in zip(weighted, weights.astype(int)):
            np.testing.assert_allclose(row, metric_values(copies(labels, w), copies(probs, w), task, metrics=[name])[name], atol=1e-9, err_msg=name)


@pytest.mark.parametrize("kind", ["random", "ties", "saturated"])
@pytest.mark.parametrize("task", TASKS)
def test_metrics_equal_those_of_the_trust_page_and_scikit_learn(task, kind):
    labels, probs = scores(task, 80, 7, kind)
    found, said = metric_values(labels, probs, task), trust.predict_labels(probs, task)
    each = trust.per_class_metrics(labels, probs, task)
    known = {"auc": trust.auc(labels, probs, task), "auc_per_class": each["auc"], "accuracy": trust.accuracy(labels, said), "macro_f1": trust.macro_f1(labels, probs, task),
             "sensitivity": each["recall"], "ppv": each["precision"], "ece": trust.expected_calibration_error(*trust.confidence_and_correct(labels, probs, task))}
    if task == "multi-label":
        known |= {"mcc": np.mean([sk.matthews_corrcoef(a, b) for a, b in zip(labels.T, said.T)]), "kappa": np.mean([sk.cohen_kappa_score(a, b) for a, b in zip(labels.T, said.T)]),
                  "balanced_accuracy": np.mean([sk.balanced_accuracy_score(a, b) for a, b in zip(labels.T, said.T)]),
                  "brier": np.mean([sk.brier_score_loss(a, b) for a, b in zip(labels.T, probs.T)])}
    else:
        known |= {"mcc": sk.matthews_corrcoef(labels, said), "balanced_accuracy": sk.balanced_accuracy_score(labels, said),
                  "kappa": sk.cohen_kappa_score(labels, said, weights="quadratic" if task == "ordinal" else None),
                  "brier": sk.brier_score_loss(labels, probs[:, 1]) if task == "binary" else ((probs - np.eye(probs.shape[1])[labels])**2).sum(1).mean()}
        w = Weighted(labels, probs, task, np.ones((1, len(labels))))
        assert np.array_equal(confusions(w)[0], sk.confusion_matrix(labels, said, labels=range(probs.shape[1])))
    for name, value in known.items(): np.testing.assert_allclose(found[name], value, atol=1e-9, err_msg=name)


def test_coefficients_worked_out_by_hand():
    table = np.array([[[3, 1], [2, 4]]])
    assert matthews(table)[0] == pytest.approx((3 * 4 - 1 * 2) / np.sqrt(4 * 6 * 5 * 5))
    assert cohen_kappa(table)[0] == pytest.approx((.7 - (.4 * .5 + .6 * .5)) / (1 - .5))
    far, near = np.array([[[5, 0, 5], [0, 5, 0], [0, 0, 5]]]), np.array([[[5, 5, 0], [0, 5, 0], [0, 0, 5]]])
    assert cohen_kappa(far, quadratic=True)[0] < cohen_kappa(near, quadratic=True)[0]
    assert np.isnan(matthews(np.array([[[4, 0], [0, 0]]])))[0] and np.isnan(cohen_kappa(np.array([[[4, 0], [0, 0]]])))[0]


def test_resamples_keep_the_classes_and_the_seed():
    labels = np.array([0] * 5 + [1] * 30)
    draws = np.concatenate(list(resample_weights(labels, 500, seed=3, batch=64)))
    assert draws.shape == (500, 35) and (draws[:, :5].sum(1) == 5).all() and (draws[:, 5:].sum(1) == 30).all()
    assert np.array_equal(draws, np.concatenate(list(resample_weights(labels, 500, seed=3, batch=64)))) and not np.array_equal(draws, np.concatenate(list(resample_weights(labels, 500, seed=4, batch=64))))
    assert np.abs(draws.mean(0) - 1).max() < .25 and abs(draws[:, 5:].var() - (1 - 1 / 30)) < .05


def test_every_image_is_left_out_once():
    labels = np.array([0] * 7 + [1] * 30)
    for most in (1000, 10):
        sets = np.concatenate(list(left_out(labels, most=most, batch=4)))
        assert (sets == 0).sum(0).tolist() == [1] * 37
        assert all(len(set(labels[row == 0])) == 1 for row in sets)
    assert len(np.concatenate(list(left_out(labels, most=1000)))) == 37


def test_acceleration_of_a_mean_is_a_sixth_of_its_skewness():
    values = np.random.default_rng(0).exponential(size=400)
    without = (values.sum() - values) / 399
    d = values - values.mean()
    assert acceleration(np.array([values.mean()]), without[:, None], np.zeros(400))[0] == pytest.approx((d**3).sum() / (d**2).sum()**1.5 / 6, rel=1e-6)


def test_acceleration_of_strata_is_a_sum_over_strata():
    "The difference of two means with 2 and 4 values: by hand, the pulls are each value's distance from its own mean."
    a, b = np.array([0., 4.]), np.array([0., 0., 0., 8.])
    value = a.mean() - b.mean()
    without = np.r_[[a[1 - i] - b.mean() for i in range(2)], [a.mean() - np.delete(b, i).mean() for i in range(4)]]
    squares = (2**2 + 2**2) / 2**2 + (3 * 2**2 + 6**2) / 4**2
    cubes = (-2**3 + 2**3) / 2**3 + (3 * 2**3 - 6**3) / 4**3
    assert acceleration(np.array([value]), without[:, None], np.array([0, 0, 1, 1, 1, 1]))[0] == pytest.approx(cubes / squares**1.5 / 6)


@pytest.mark.parametrize("method", ["percentile", "bca"])
def test_intervals_agree_with_scipy(method):
    "One stratum, so that both draw alike: the class-0 images of a table that has no others but one of class 1, which never changes."
    rng = np.random.default_rng(1)
    p = rng.beta(2, 5, size=200)
    labels, probs = np.r_[np.zeros(200, int), 1], np.stack([np.r_[1 - p, 0], np.r_[p, 1]], 1)
    found = bootstrap_intervals(labels, probs, "binary", metrics=["brier"], method=method, n_resamples=4000, seed=0)["brier"]
    want = bootstrap((p**2,), lambda v, axis: v.sum(axis) / 201, n_resamples=4000, method=method, rng=np.random.default_rng(1), vectorized=True).confidence_interval
    np.testing.assert_allclose([found.low, found.high], want, atol=.1 * (want.high - want.low))


@pytest.mark.parametrize("task", TASKS)
def test_intervals_hold_their_figures(task):
    labels, probs = scores(task, 60, 11)
    found = bootstrap_intervals(labels, probs, task, n_resamples=200)
    assert list(found) == list(METRICS)
    values = metric_values(labels, probs, task)
    for name, e in found.items():
        np.testing.assert_array_equal(e.value, values[name])
        if name == "ece": assert np.isnan(e.low) and np.isnan(e.high)
        else: assert (np.asarray(e.low) <= e.value).all() and (e.value <= np.asarray(e.high)).all() and (np.asarray(e.low) < np.asarray(e.high)).all() and e.n == 60, name
    again = bootstrap_intervals(labels, probs, task, n_resamples=200)
    assert all(np.array_equal(found[n][k], again[n][k], equal_nan=True) for n in found for k in range(3))


def test_brier_covers_what_other_images_would_give():
    "80 data sets from one known model of prevalence .3: drawn with the class counts fixed, the interval would be too narrow (about four in five)."
    rng, inside = np.random.default_rng(1), 0
    def draw(n):
        y = (rng.random(n) < .3).astype(int)
        s = 1 / (1 + np.exp(-(rng.normal(size=n) + 1.5 * y - 1.5)))
        return y, np.stack([1 - s, s], 1)
    y, p = draw(400_000)
    truth = ((p[:, 1] - y)**2).mean()
    for k in range(80):
        e = bootstrap_intervals(*draw(150), "binary", metrics=["brier"], n_resamples=300, seed=k)["brier"]
        inside += e.low <= truth <= e.high
    assert .88 <= inside / 80 <= .99


def test_no_interval_where_nothing_can_be_said():
    labels, probs = scores("multi-class", 121, 4)
    labels = np.r_[np.arange(120) % 3, 3]
    found = bootstrap_intervals(labels, probs, "multi-class", metrics=["auc", "auc_per_class", "auprc", "balanced_accuracy", "macro_f1", "brier"], n_resamples=200)
    assert np.isnan(found["auc_per_class"].low[3]) and np.isfinite(found["auc_per_class"].low[:3]).all() and np.isfinite(found["auc_per_class"].value).all()
    assert all(np.isnan(found[n].low) for n in ("auc", "auprc", "balanced_accuracy", "macro_f1")) and np.isfinite(found["brier"].low)
    perfect = bootstrap_intervals([0] * 10 + [1] * 10, np.eye(2)[[0] * 10 + [1] * 10] * .8 + .1, "binary", n_resamples=200)
    assert perfect["auc"].value == perfect["mcc"].value == 1 and np.isnan([perfect[n].low for n in ("auc", "mcc", "balanced_accuracy", "brier")]).all()


def test_coverage_is_about_what_is_promised():
    "120 data sets from one known model: the true AUC lies in nine of ten 90 % intervals, give or take the luck of 120."
    rng, truth, inside = np.random.default_rng(0), 0.7602499389065233, 0            # Phi(1 / sqrt 2)
    for k in range(120):
        labels = np.r_[np.zeros(40, int), np.ones(40, int)]
        s = 1 / (1 + np.exp(-(rng.normal(size=80) + labels)))
        e = bootstrap_intervals(labels, np.stack([1 - s, s], 1), "binary", metrics=["auc"], n_resamples=300, level=.9, seed=k)["auc"]
        inside += e.low <= truth <= e.high
    assert .82 <= inside / 120 <= .97


def test_a_class_alone_one_image_and_bad_scores():
    alone = bootstrap_intervals(np.zeros(9, int), np.full((9, 2), .5), "binary", n_resamples=100)
    assert np.isnan(alone["auc"].value) and np.isnan(alone["auc"].low) and alone["accuracy"].value == 1
    one = bootstrap_intervals([1], [[.2, .8]], "binary", n_resamples=100)
    assert one["accuracy"].value == 1 and np.isnan(one["accuracy"].low) and one["accuracy"].n == 1
    rare = bootstrap_intervals(np.eye(20, 2, dtype=int), np.random.default_rng(0).random((20, 2)), "multi-label", metrics=["auc_per_class"], n_resamples=300)["auc_per_class"]
    assert np.isfinite(rare.value).all() and np.isnan(rare.low).all()                     # more than a third of the draws miss the one positive image
    with pytest.raises(ValueError, match="NaN"): bootstrap_intervals([0, 1], [[.5, .5], [np.nan, 1]], "binary")
    with pytest.raises(ValueError, match="at least 100"): bootstrap_intervals([0, 1], [[.5, .5]] * 2, "binary", n_resamples=10)
    with pytest.raises(ValueError, match="Near: "): bootstrap_intervals([0, 1], [[.5, .5]] * 2, "binary", metrics=["acuracy"])
    with pytest.raises(ValueError, match="method"): bootstrap_intervals([0, 1], [[.5, .5]] * 2, "binary", method="basic")


def slow_delong(positive, a, b):
    "The definition: kernels of all pairs, and the covariance of their means over each side."
    def kernels(s): return np.array([[1. if x > y else .5 if x == y else 0. for y in s[~positive]] for x in s[positive]])
    ka, kb = kernels(a), kernels(b)
    m, n = ka.shape
    s10, s01 = np.cov(ka.mean(1), kb.mean(1)), np.cov(ka.mean(0), kb.mean(0))
    s = s10 / m + s01 / n
    return ka.mean(), kb.mean(), s[0, 0] + s[1, 1] - 2 * s[0, 1]


@pytest.mark.parametrize("digits", [6, 1])
def test_delong_equals_its_definition(digits):
    rng = np.random.default_rng(2)
    positive = rng.random(70) < .4
    a, b = (np.round(positive * g + rng.normal(size=70), digits) for g in (1., .5))
    first, second, variance = slow_delong(positive, a, b)
    found = delong_test(positive, a, b)
    assert found.first == pytest.approx(first) and found.second == pytest.approx(second) and found.first == pytest.approx(sk.roc_auc_score(positive, a))
    assert (found.high - found.low) / 2 == pytest.approx(1.959964 * np.sqrt(variance), rel=1e-5)
    assert delong_test(positive, b, a).p == pytest.approx(found.p) and delong_test(positive, a, a).p == 1


def test_delong_where_there_is_nothing_to_test():
    parted = delong_test([1, 1, 0, 0], [.1, .1, .9, .9], [.9, .9, .1, .1])
    assert parted.difference == 1 and np.isnan([parted.low, parted.p]).all()
    assert np.isnan(delong_test([1, 1, 0], [.1, .2, .3], [.3, .2, .1]).p)
    with pytest.raises(ValueError, match="other than 0 and 1"): delong_test([1, 2, 1], [.1, .2, .3], [.3, .2, .1])
    with pytest.raises(ValueError, match="a list of names"): metric_values([0, 1], [[.5, .5]] * 2, "binary", metrics="auc")
    with pytest.raises(ValueError, match="expected all"): delong_test([1, 0], [.1, .2, .3], [.3, .2, .1])
    with pytest.raises(ValueError, match="NaN"): delong_test([1, 1, 0, 0], [.1, .2, .3, np.nan], [.3, .2, .1, 0])
    up, down = placements([1, 0, 0], [.5, .5, .1])
    assert up.tolist() == [.75] and down.tolist() == [.5, 1]


def test_mcnemar():
    found = mcnemar_test([1] * 8 + [0] * 2, [0] * 5 + [1] * 5)
    assert found.p == binomtest(2, 7).pvalue and found.difference == pytest.approx(-.3) and found.low < found.difference < found.high
    with pytest.raises(ValueError, match="expected both"): mcnemar_test([1, 0], [1])


@pytest.mark.parametrize("task", TASKS)
def test_paired_bootstrap(task):
    labels, weak = scores(task, 150, 1)
    truth = labels if task == "multi-label" else np.eye(weak.shape[1])[labels]
    strong = .6 * weak + .4 * truth
    found = paired_bootstrap(labels, weak, strong, task, n_resamples=300)
    assert all(c.low < c.high and c.n == 150 and c.difference == c.second - c.first for c in found.values())
    assert found["auc"].low > 0 and found["auc"].p < .02 and found["brier"].high < 0
    same = paired_bootstrap(labels, weak, weak, task, n_resamples=300)
    assert all(c.difference == c.low == c.high == 0 and c.p == 1 for c in same.values())
    with pytest.raises(ValueError, match="at least 100"): paired_bootstrap(labels, weak, strong, task, n_resamples=10)
    with pytest.raises(ValueError, match="per class"): paired_bootstrap(labels, weak, strong, task, metrics=["sensitivity"])
    with pytest.raises(ValueError, match="labels has shape|same images"): paired_bootstrap(labels, weak, strong[:, :-1] if task == "multi-label" else strong[:-1], task)


def test_holm_beside_statsmodels():   # statsmodels 0.15.0, multipletests(method="holm")
    assert np.allclose(holm([.01, .04, .03, .005, .5, .04]), [0.05, 0.12, 0.12, 0.03, 0.5, 0.12])
    assert np.allclose(holm([np.nan, .6, .7]), [np.nan, 1, 1], equal_nan=True)


def test_holm_properties():
    for seed in range(50):
        rng = np.random.default_rng(seed)
        p = rng.uniform(size=rng.integers(1, 20)) ** 3
        q, order = holm(p), rng.permutation(len(p))
        assert (q >= p).all() and (q <= 1).all()
        assert (np.diff(q[np.argsort(p)]) >= 0).all()                       # keeps the order
        assert np.array_equal(holm(p[order]), q[order])
        assert (holm(np.append(p, rng.uniform() ** 3))[:-1] >= q).all()   # one more comparison never helps
        lower = p.copy(); lower[0] /= 2
        assert (holm(lower) <= q + 1e-15).all()                           # a smaller p never hurts
        assert q.min() <= min(1, len(p) * p.min()) + 1e-15                  # never above Bonferroni where it counts
        assert np.array_equal(holm(np.append(p, np.nan))[:-1], q)


def test_holm_edges():
    assert holm([]).shape == (0,) and np.isnan(holm([np.nan])).all() and holm([[0.01, 0.02]]).shape == (1, 2)
    for bad in ([-0.1], [1.1]):
        with pytest.raises(ValueError, match="between 0 and 1"): holm(bad)


def test_there_is_one_holm():
    from xaimed import slices, verdict
    assert slices.holm is verdict.holm is holm and not hasattr(slices, "_holm") and "holm" not in verdict.__all__


def test_seed_spread():
    assert np.isnan(seed_spread([.9]).sd) and seed_spread([.8, .9]).n == 2
    for bad in ([], [np.nan], [[.1]]):
        with pytest.raises(ValueError, match="one finite number per training"): seed_spread(bad)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), n=st.integers(2, 40), task=st.sampled_from(TASKS), kind=st.sampled_from(["random", "ties", "saturated"]))
def test_ranges_and_order(seed, n, task, kind):
    "Every metric stays in its range, and does not care in which order the images come."
    labels, probs = scores(task, n, seed, kind)
    order = np.random.default_rng(seed).permutation(n)
    found, shuffled = metric_values(labels, probs, task), metric_values(labels[order], probs[order], task)
    for name, value in found.items():
        low, high = (-1, 1) if name in ("mcc", "kappa") else (0, 2) if name == "brier" else (0, 1)
        value = np.asarray(value)[np.isfinite(value)]
        assert ((value >= low - 1e-9) & (value <= high + 1e-9)).all(), name
        np.testing.assert_allclose(found[name], shuffled[name], atol=1e-9, err_msg=name)
