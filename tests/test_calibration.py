"Calibration against scikit-learn, against numbers of netcal and torchmetrics, and against answers worked out by hand; faults refused; no warnings."
import json
import pickle

import numpy as np
import pytest
import sklearn
import sklearn.metrics as sk
from sklearn.calibration import calibration_curve
from sklearn.isotonic import IsotonicRegression

from xaimed import calibration as cal
from xaimed import trust

hypothesis = pytest.importorskip("hypothesis")
from hypothesis import given, settings, strategies as st  # noqa: E402

pytestmark = pytest.mark.filterwarnings("error")
TASKS = [("multi-class", 5), ("binary", 2), ("multi-label", 4), ("ordinal", 3)]
KINDS = ["random", "tied", "saturated"]
PROPERTY = settings(max_examples=40, deadline=None, database=None, derandomize=True)


def drawn(task, K, n=300, seed=0, factor=2.0):
    "Labels drawn from honest logits, and the logits times a factor."
    rng = np.random.default_rng(seed)
    z = rng.normal(0, 1.5, (n, K))
    p = trust.probabilities(z, task)
    y = rng.random((n, K)) < p if task == "multi-label" else (rng.random((n, 1)) > p.cumsum(1)[:, :-1]).sum(1)
    return y.astype(int), factor * z


def scores(kind, K, n=400, seed=7):
    "Labels and probabilities of one true class: random, on a grid, or half of them exactly 0 and 1."
    rng = np.random.default_rng(seed)
    z = rng.normal(0, 2, (n, K))
    y = (rng.random((n, 1)) > trust.probabilities(z, "multi-class").cumsum(1)[:, :-1]).sum(1)
    p = trust.probabilities(2 * z, "multi-class")
    if kind == "tied":
        p = np.round(p * 8)
        p = p / p.sum(1, keepdims=True)
    if kind == "saturated": p = np.where(rng.random((n, 1)) < 0.5, np.eye(K)[p.argmax(1)], p)
    return y, p


# ---- against others

@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("K", [2, 4])
def test_proper_scores_equal_scikit_learn(kind, K):
    y, p = scores(kind, K)
    task = "binary" if K == 2 else "multi-class"
    assert np.isclose(cal.brier_score(y, p, task), sk.brier_score_loss(y, p[:, 1]) if K == 2 else np.mean(((p - np.eye(K)[y]) ** 2).sum(1)))
    assert np.isclose(cal.negative_log_likelihood(y, p, task), sk.log_loss(y, p, labels=range(K)))
    if tuple(map(int, sklearn.__version__.split(".")[:2])) >= (1, 7): assert np.isclose(cal.brier_score(y, p, task), sk.brier_score_loss(y, p, labels=range(K)))   # several classes since 1.7


def test_proper_scores_of_labels_are_means_over_labels():
    y, z = drawn("multi-label", 4)
    p = trust.probabilities(z, "multi-label")
    assert np.isclose(cal.brier_score(y, p, "multi-label"), np.mean([sk.brier_score_loss(t, s) for t, s in zip(y.T, p.T)]))
    assert np.isclose(cal.negative_log_likelihood(y, p, "multi-label"), np.mean([sk.log_loss(t, s) for t, s in zip(y.T, p.T)]))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("equal, strategy", [("width", "uniform"), ("mass", "quantile")])
@pytest.mark.parametrize("n_bins", [1, 5, 10, 20])   # each divides 400: there the quantiles of both are the same
def test_bins_equal_scikit_learn(kind, equal, strategy, n_bins):
    y, p = scores(kind, 2)
    true, stated = calibration_curve(y, p[:, 1], n_bins=n_bins, strategy=strategy)
    b = cal.reliability_bins(p[:, 1], y, n_bins, equal=equal)
    full = b["count"] > 0
    assert np.allclose(b["accuracy"][full], true) and np.allclose(b["confidence"][full], stated)


# ECE and MCE, 10 bins of equal width: binary on the probability of class 1 (K = 2), multi-class on the winner.
# netcal 1.4.0: netcal.metrics.ECE(10).measure(p, y), MCE(10); torchmetrics 1.9.0 agrees within 2e-7.
NETCAL = {("random", 2): (0.10328713704280121, 0.28251037826367176), ("random", 4): (0.13119826404560353, 0.2517446932332288),
          ("tied", 2): (0.10718749999999991, 0.2717391304347826), ("tied", 4): (0.13027777777777774, 0.1622354497354498),
          ("saturated", 2): (0.16028226968713738, 0.37972051577890475), ("saturated", 4): (0.2154898567440617, 0.33536967878834045)}

@pytest.mark.parametrize("kind, K", NETCAL)
def test_ece_and_mce_equal_netcal(kind, K):
    y, p = scores(kind, K)
    c, ok = (p[:, 1], y) if K == 2 else trust.confidence_and_correct(y, p, "multi-class")
    found = cal.bin_errors(cal.reliability_bins(c, ok, 10))
    assert np.allclose(found, NETCAL[kind, K], atol=1e-12)
    if K == 2: assert np.isclose(cal.ece_per_class(y, p, "binary", 10)[1], found[0])
    else: assert np.allclose([cal.calibration_errors(y, p, "multi-class", 10)[k] for k in ("ece", "mce")], found)


# netcal 1.4.0: TemperatureScaling().fit(p, y), its weight is 1/T; transform(p) differs from ours by at most 1.4e-7; IsotonicRegression().transform(p) by 0
@pytest.mark.parametrize("K, weight", [(2, 0.45420735), (4, 0.56875915)])
def test_temperature_equals_netcal(K, weight):
    y, p = scores("random", K)
    assert np.allclose(cal.fit_temperature(y, cal.logits_from(p, "multi-class"), "multi-class").scale, weight, atol=1e-6)


def test_torchmetrics_live():
    f = pytest.importorskip("torchmetrics.functional.classification")
    import torch
    for kind in ("random", "tied"):   # saturated scores are its issue 3510
        y, p = scores(kind, 4)
        other = f.multiclass_calibration_error(torch.tensor(p), torch.tensor(y), num_classes=4, n_bins=10)
        assert np.isclose(cal.calibration_errors(y, p, "multi-class", 10)["ece"], float(other), atol=1e-6)


def test_netcal_live():
    metrics = pytest.importorskip("netcal.metrics")
    for kind in KINDS:
        y, p = scores(kind, 4)
        assert np.isclose(cal.calibration_errors(y, p, "multi-class", 10)["ece"], metrics.ECE(10).measure(p, y))


@pytest.mark.parametrize("task", ["multi-class", "binary", "multi-label"])
def test_isotonic_equals_scikit_learn(task):
    K = 2 if task == "binary" else 3
    (y, z), (_, new) = drawn(task, K), drawn(task, K, seed=1)
    p, q = trust.probabilities(z, task), trust.probabilities(new, task)
    one = y if y.ndim == 2 else np.eye(K)[y]
    expected = np.stack([IsotonicRegression(y_min=0, y_max=1, out_of_bounds="clip").fit(p[:, k], one[:, k]).predict(q[:, k]) for k in range(K)], 1)
    if task == "multi-class": expected = expected / expected.sum(1, keepdims=True)
    if task == "binary": expected[:, 0] = 1 - expected[:, 1]
    assert np.allclose(cal.fit_isotonic(y, z, task)(new), expected)


def test_slope_equals_unpenalised_logistic_regression():
    from sklearn.linear_model import LogisticRegression
    for kind in KINDS:
        y, p = scores(kind, 2)
        x = (np.log(p.clip(2**-52, 1 - 2**-52)) - np.log1p(-p.clip(2**-52, 1 - 2**-52)))[:, 1]
        reference = LogisticRegression(C=1e12, tol=1e-10, max_iter=1000).fit(x[:, None], y)
        s = cal.calibration_slope(y, p[:, 1])
        assert np.isclose(s.slope, reference.coef_[0, 0], rtol=1e-4) and np.isclose(s.intercept, reference.intercept_[0], atol=1e-4) and s.why == ""
        stated = 1 / (1 + np.exp(-(x + s.in_the_large)))
        assert np.isclose(stated.mean(), y.mean())


# ---- by hand

def test_issue_3510_of_torchmetrics():
    # both belong to the last of ten bins: |1/2 - 0.975|; in two bins the gaps would be 0.05 and 1, together 0.525
    assert np.allclose(cal.bin_errors(cal.reliability_bins([0.95, 1.0], [1, 0], 10)), 0.475)
    assert np.isclose(cal.classwise_ece([1, 0], [[0.05, 0.95], [0, 1]], "binary", 10), 0.475)
    for equal in cal.BINNINGS:
        assert cal.reliability_bins([0.0, 1.0, 1.0, 0.0], [1, 1, 0, 0], equal=equal)["count"].sum() == 4


@pytest.mark.parametrize("task, y, right", [("binary", [0, 1], np.eye(2)), ("multi-class", [0, 1, 2], np.eye(3)), ("ordinal", [0, 1, 2], np.eye(3)), ("multi-label", [[0, 1], [1, 0]], np.eye(2)[::-1])])
def test_sure_and_right_costs_nothing_sure_and_wrong_everything(task, y, right):
    wrong = 1 - right if task in ("binary", "multi-label") else np.roll(right, 1, axis=1)
    best, worst = cal.calibration_summary(y, right, task), cal.calibration_summary(y, wrong, task)
    assert all(best[k] == 0 for k in ("ece", "ece_mass", "mce", "classwise_ece", "brier", "nll"))
    assert worst["ece"] == worst["ece_mass"] == worst["mce"] == 1 and worst["brier"] == (1 if task in ("binary", "multi-label") else 2)
    assert np.isclose(worst["nll"], -np.log(np.finfo(float).eps))


def test_ties_stay_together():
    c = np.array([0.0] * 5 + [0.3] * 3 + [0.5] + [1.0] * 6)
    for n_bins in (1, 2, 3, 4, 7, 15, 40):
        b = cal.equal_mass_bins(c, c > 0.4, n_bins)
        assert len(b["count"]) <= n_bins and b["count"].min() > 0 and b["count"].sum() == 15
    assert cal.equal_mass_bins(c, c > 0.4, 40)["count"].tolist() == [5, 3, 1, 6]
    assert cal.equal_mass_bins(c, c > 0.4, 40)["edges"].tolist() == [0, 0, 0.3, 0.5, 1]


def test_slopes_by_hand_and_undefined():
    s = cal.calibration_slope([1, 0, 0, 0, 1, 1, 1, 0], np.repeat([0.25, 0.75], 4))
    assert np.allclose([s.slope, s.intercept, s.in_the_large], [1, 0, 0], atol=1e-8)
    assert np.isclose(s.slope_error, 1 / np.sqrt(8 * 3 / 16 * np.log(3) ** 2))   # information: n p(1-p) x^2
    for y, p, why, large in [([1, 1], [0.2, 0.9], "all 2 labels are 1", False), ([0], [0.0], "all 1 labels are 0", False), ([0, 1], [0.3, 0.3], "all probabilities are equal", True),
                             ([0, 0, 1, 1], [0.1, 0.2, 0.3, 0.9], "threshold", True), ([1, 1, 0], [0.1, 0.2, 0.3], "threshold", True), ([0, 1, 1], [0.0, 0.0, 1.0], "threshold", True)]:
        s = cal.calibration_slope(y, p)
        assert why in s.why and np.isnan([s.slope, s.intercept, s.slope_error]).all() and np.isfinite(s.in_the_large) == large
    assert np.isclose(cal.calibration_slope([1, 0, 1, 1], [0.5] * 4).in_the_large, np.log(3))
    s = cal.calibration_slope([0, 1, 0, 1], [0.0, 0.0, 1.0, 1.0])   # sure and worth nothing
    assert np.isclose(s.slope, 0, atol=1e-9)


@pytest.mark.parametrize("task, K", TASKS)
def test_slopes_of_a_task(task, K):
    y, z = drawn(task, K, 3000)
    found = cal.calibration_slopes(y, trust.probabilities(z, task), task)
    assert len(found) == (1 if task == "binary" else K) and all(s.slope < 0.9 - 2 * s.slope_error and not s.why for s in found)
    if task in ("binary", "multi-label"): assert np.allclose([s.slope for s in found], 0.5, atol=0.06)   # logits were doubled


# ---- properties

def decisions(data):
    n = data.draw(st.integers(1, 40))
    grid = st.one_of(st.floats(0, 1), st.integers(0, 10).map(lambda i: i / 10))
    return np.array(data.draw(st.lists(grid, min_size=n, max_size=n))), np.array(data.draw(st.lists(st.booleans(), min_size=n, max_size=n)))


@PROPERTY
@given(st.data(), st.integers(1, 20), st.sampled_from(sorted(cal.BINNINGS)))
def test_bins_and_errors_hold_their_ranges(data, n_bins, equal):
    c, ok = decisions(data)
    b = cal.reliability_bins(c, ok, n_bins, equal=equal)
    ece, mce = cal.bin_errors(b)
    full = b["count"] > 0
    assert 0 <= ece <= mce + 1e-12 and mce <= 1 and b["count"].sum() == len(c) and np.isclose(ok.mean(), (b["accuracy"] * b["count"])[full].sum() / len(c))
    assert (b["low"][full] <= b["accuracy"][full] + 1e-12).all() and (b["accuracy"][full] <= b["high"][full] + 1e-12).all()
    assert (np.diff(b["edges"]) >= 0).all() and len(b["edges"]) == len(b["count"]) + 1
    assert ece >= abs(c.mean() - ok.mean()) - 1e-12   # no binning sees less than one bin
    turn = np.random.default_rng(0).permutation(len(c))
    again = cal.reliability_bins(c[turn], ok[turn], n_bins, equal=equal)
    assert np.array_equal(b["count"], again["count"]) and np.array_equal(b["edges"], again["edges"]) and np.allclose(cal.bin_errors(again), (ece, mce))


@PROPERTY
@given(st.sampled_from(TASKS), st.integers(1, 60), st.integers(0, 10_000), st.sampled_from([0.0, 0.3, 3.0, 300.0]))
def test_summaries_hold_their_ranges_whatever_the_order(task_K, n, seed, factor):
    task, K = task_K
    y, z = drawn(task, K, n, seed, factor)
    p = trust.probabilities(z, task)
    found = cal.calibration_summary(y, p, task)
    assert all(0 <= found[k] <= 1 for k in ("ece", "ece_mass", "mce", "classwise_ece")) and found["ece"] <= found["mce"] + 1e-12
    assert 0 <= found["brier"] <= 2 and 0 <= found["nll"] <= 36.05 and found["n"] == n
    turn = np.random.default_rng(seed).permutation(n)
    again = cal.calibration_summary(y[turn], p[turn], task)
    assert list(found) == list(again) and np.allclose(list(found.values()), list(again.values()), rtol=1e-6, atol=1e-6, equal_nan=True)


@PROPERTY
@given(st.sampled_from(TASKS), st.integers(0, 10_000), st.sampled_from([0.2, 1.0, 5.0]))
def test_temperature_keeps_the_decisions_and_lowers_the_nll(task_K, seed, factor):
    task, K = task_K
    y, z = drawn(task, K, 60, seed, factor)
    z = np.round(z, 2)
    fitted = cal.fit_temperature(y, z, task)
    T = 1 / fitted.scale
    assert (T >= 0.01 - 1e-12).all() and (T <= 100 + 1e-9).all() and (task == "multi-label" or len(set(T)) == 1)
    assert np.array_equal(trust.predict_labels(fitted(z), task), trust.predict_labels(trust.probabilities(z, task), task))
    assert cal.negative_log_likelihood(y, fitted(z), task) <= cal.negative_log_likelihood(y, trust.probabilities(z, task), task) + 1e-9


@PROPERTY
@given(st.sampled_from(["binary", "multi-label"]), st.integers(2, 40), st.integers(0, 10_000))
def test_isotonic_rises(task, n, seed):
    y, z = drawn(task, 2, n, seed)
    if task == "binary": y[:2] = 0, 1
    new = np.stack([np.zeros(101), np.linspace(-8, 8, 101)], 1)
    rising = cal.fit_isotonic(y, z, task)(new)
    assert (np.diff(rising[:, 1]) >= 0).all() and ((rising >= 0) & (rising <= 1)).all()


@PROPERTY
@given(st.integers(0, 10_000), st.sampled_from(sorted(cal.CALIBRATORS)), st.sampled_from(TASKS))
def test_calibrated_are_probabilities_and_do_not_depend_on_the_order(seed, name, task_K):
    task, K = task_K
    (y, z), (_, new) = drawn(task, K, 80, seed), drawn(task, K, 20, seed + 1, 100.0)
    if task != "multi-label": y[:K] = range(K)
    p = cal.fit_calibrator(name, y, z, task)(new)
    assert p.shape == new.shape and p.dtype == np.float64 and ((p >= 0) & (p <= 1)).all() and (task == "multi-label" or np.allclose(p.sum(1), 1))
    turn = np.random.default_rng(seed).permutation(len(y))
    assert np.allclose(cal.fit_calibrator(name, y[turn], z[turn], task)(new), p, atol=1e-4)


# ---- recalibration

@pytest.mark.parametrize("task, K", TASKS)
@pytest.mark.parametrize("factor", [0.5, 2.5])
def test_temperature_finds_the_factor(task, K, factor):
    y, z = drawn(task, K, 6000, factor=factor)
    fitted = cal.fit_temperature(y, z, task)
    assert np.allclose(1 / fitted.scale, factor, rtol=0.12) and fitted.notes == ()


@pytest.mark.parametrize("task, K", TASKS)
@pytest.mark.parametrize("name", cal.CALIBRATORS)
def test_every_calibrator_helps_a_boastful_model(task, K, name):
    (y, z), (y_test, z_test) = drawn(task, K, 2000, 1, 3.0), drawn(task, K, 3000, 2, 3.0)
    fitted = cal.fit_calibrator(name, y, z, task)
    before, after = (cal.calibration_summary(y_test, p, task) for p in (trust.probabilities(z_test, task), fitted(z_test)))
    assert all(after[k] < before[k] for k in ("ece", "ece_mass", "classwise_ece", "brier", "nll"))
    copy = pickle.loads(pickle.dumps(fitted))
    assert np.array_equal(copy(z_test), fitted(z_test))


def test_vector_is_the_minimum_and_platt_for_labels():
    from sklearn.linear_model import LogisticRegression
    y, z = drawn("multi-label", 3, 2000, factor=3.0)
    fitted = cal.fit_vector(y, z, "multi-label")
    for k in range(3):
        platt = LogisticRegression(C=1e9, tol=1e-10).fit(z[:, [k]], y[:, k])
        assert np.isclose(fitted.scale[k], platt.coef_[0, 0], atol=1e-3) and np.isclose(fitted.bias[k], platt.intercept_[0], atol=1e-3)
    y, z = drawn("multi-class", 4, 2000, factor=3.0)
    fitted = cal.fit_vector(y, z, "multi-class")
    residual = fitted(z) - np.eye(4)[y]
    assert np.abs((residual * z).mean(0)).max() < 1e-4 and np.abs(residual.mean(0)).max() < 1e-4   # the gradient of the NLL
    assert cal.negative_log_likelihood(y, fitted(z), "multi-class") <= cal.negative_log_likelihood(y, cal.fit_temperature(y, z, "multi-class")(z), "multi-class")


def test_poor_validation_splits():
    sure, flat = 5 * np.eye(3)[[0, 1, 2, 0]], np.zeros((4, 3))
    for name in cal.CALIBRATORS:
        for n in (1, 4):
            with pytest.raises(ValueError, match=f"class 1 only, in {n} images, expected at least two"): cal.fit_calibrator(name, [1] * n, flat[:n], "multi-class")
        label = cal.fit_calibrator(name, [[0, 1, 0]], flat[:1] + 1, "multi-label")     # one image: every label has one value
        assert len(label.notes) == 3 and np.array_equal(label(sure), trust.probabilities(sure, "multi-label"))
        with pytest.raises(ValueError, match="2 of 4 rows with NaN"): cal.fit_calibrator(name, [0, 1, 2, 0], np.array([[1, 2, 3], [0, np.nan, 0], [np.inf, 0, 0], [0, 0, 0]]), "ordinal")
        with pytest.raises(ValueError, match="logits has 2 columns, expected 3"): cal.fit_calibrator(name, [0, 1, 2, 0], sure, "ordinal")(sure[:, :2])
        with pytest.raises(ValueError, match=r"logits has shape \(3,\)"): cal.fit_calibrator(name, [0, 1, 2, 0], sure, "ordinal")(sure[0])
        with pytest.raises(ValueError, match=r"labels has shape \(3,\)"): cal.fit_calibrator(name, [0, 1, 2], sure, "ordinal")
        with pytest.raises(ValueError, match="3 columns, expected 2"): cal.fit_calibrator(name, [0, 1, 1, 0], sure, "binary")
    for name in ("vector", "isotonic"):
        with pytest.raises(ValueError, match="no image of class 2, expected every class: use temperature"): cal.fit_calibrator(name, [0, 1, 0, 1], sure, "ordinal")
    assert cal.fit_temperature([0, 1, 0, 1], sure * 0 + [1, 0, 0], "ordinal").notes[0] == "class 2: not in the validation split"


def test_equal_and_separated_scores():
    y, sure, flat = [0, 1, 2, 0], 5 * np.eye(3)[[0, 1, 2, 0]], np.zeros((4, 3))
    cold, same, wrong = (cal.fit_temperature(t, z, "multi-class") for t, z in ((y, sure), (y, flat), ([1, 2, 0, 1], sure)))
    assert np.allclose(1 / cold.scale, 0.01) and "bound 0.01" in cold.notes[0]
    assert np.allclose(same.scale, 1) and "stays 1" in same.notes[0]
    assert np.allclose(1 / wrong.scale, 100) and "bound 100" in wrong.notes[0]
    apart = cal.fit_vector(y, sure, "multi-class")
    assert "separate" in apart.notes[0] and np.isfinite(apart.scale).all() and apart.scale.max() < 10
    assert "steps from 0 to 1" in cal.fit_isotonic(y, sure, "multi-class").notes[0]
    for fit in (cal.fit_vector, cal.fit_isotonic): assert np.allclose(fit(y, flat, "multi-class")(flat), [0.5, 0.25, 0.25], atol=0.01)   # the base rate
    assert "flat" in cal.fit_isotonic(y, flat, "multi-class").notes[0]


def test_a_row_whose_curves_are_all_zero_keeps_its_probabilities():
    f = cal.Isotonic("multi-class", ((np.array([0.0, 1.0]), np.array([0.0, 0.0])),) * 3)
    z = np.array([[1.0, 2.0, 3.0]])
    assert np.allclose(f(z), trust.probabilities(z, "multi-class"))


@pytest.mark.parametrize("scale", [1e-8, 1e3, 1e6, 1e30])
@pytest.mark.parametrize("name", cal.CALIBRATORS)
def test_logits_of_any_size(scale, name):
    y, z = drawn("multi-class", 3, 50, factor=scale)
    assert np.isfinite(cal.fit_calibrator(name, y, z, "multi-class")(z)).all()


@pytest.mark.parametrize("task, K", TASKS)
def test_logits_from_probabilities(task, K):
    _, z = drawn(task, K)
    p = trust.probabilities(z, task)
    assert np.allclose(trust.probabilities(cal.logits_from(p, task), task), p, atol=1e-14)
    hard = np.round(p) if task == "multi-label" else np.eye(K)[p.argmax(1)]
    assert np.isfinite(cal.logits_from(hard, task)).all() and np.allclose(trust.probabilities(cal.logits_from(hard, task), task), hard, atol=1e-14)
    for bad, said in ((p * np.nan, "NaN"), (p + 1, "expected 0..1"), (p[0], "expected \\(N, K\\)"), (p[:0], "expected \\(N, K\\)")):
        with pytest.raises(ValueError, match=said): cal.logits_from(bad, task)


# ---- faults

HALF = np.full((4, 2), 0.5)
@pytest.mark.parametrize("labels, probs, task, said", [
    (np.zeros((4, 1), int), HALF, "binary", r"labels has shape \(4, 1\), expected \(4,\)"),
    (np.array([0, 1, 2, 0]), HALF, "multi-class", r"0\.\.2, expected 0\.\.1"),
    (np.full((4, 2), 2), HALF, "multi-label", r"expected 0\.\.1"),
    (np.zeros(4, int), HALF * np.nan, "binary", "NaN in 4 of 4 rows"),
    (np.zeros(4, int), HALF * 4, "ordinal", "pass logits through"),
    (np.zeros(0, int), np.zeros((0, 2)), "binary", r"probs has shape \(0, 2\)"),
    (np.zeros(4, int), HALF, "multiclass", "unknown task 'multiclass'. Near: multi-class"),
])
def test_faults_are_named(labels, probs, task, said):
    for f in (cal.calibration_errors, cal.ece_per_class, cal.classwise_ece, cal.brier_score, cal.negative_log_likelihood, cal.calibration_slopes, cal.calibration_summary):
        with pytest.raises(ValueError, match=said): f(labels, probs, task)


def test_other_faults():
    with pytest.raises(ValueError, match="unknown binning 'mas'. Near: mass"): cal.calibration_errors([0, 1], HALF[:2], "binary", equal="mas")
    with pytest.raises(ValueError, match="unknown calibrator 'temprature'. Near: temperature"): cal.fit_calibrator("temprature", [0, 1], HALF[:2], "binary")
    with pytest.raises(ValueError, match="n_bins is 0"): cal.equal_mass_bins([0.5], [True], 0)
    for f in cal.BINNINGS.values():
        with pytest.raises(ValueError, match="expected 0..1"): f([np.nan], [True])
        with pytest.raises(ValueError, match="at least one"): f([], [])
    with pytest.raises(ValueError, match=r"expected both \(N,\)"): cal.calibration_slope([0, 1], HALF[:2])
    with pytest.raises(ValueError, match="NaN"): cal.calibration_slope([0, 1], [0.5, np.nan])


@pytest.mark.parametrize("task, K", TASKS)
def test_one_image_is_answered_and_written(task, K):
    y, z = drawn(task, K, 1)
    found = cal.calibration_summary(y, trust.probabilities(z, task), task)
    assert ("slope" in found) == (task == "binary") and found["n"] == 1 and np.isnan(found.get("slope", np.nan))
    assert json.dumps(found)
    if task != "multi-label": assert np.isclose(found["ece"], found["mce"])


def test_inputs_are_left_as_they_were():
    y, z = drawn("multi-class", 3)
    p = trust.probabilities(z, "multi-class")
    before = y.copy(), z.copy(), p.copy()
    cal.calibration_summary(y, p, "multi-class")
    for name in cal.CALIBRATORS: cal.fit_calibrator(name, y, z, "multi-class")(z)
    assert all(np.array_equal(a, b) for a, b in zip(before, (y, z, p)))
