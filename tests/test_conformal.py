"Conformal sets and selective prediction: worked by hand, beside MAPIE and TorchCP, properties, the law over 200 splits, faults refused by name."
import math

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from scipy.stats import betabinom, binom
from sklearn.model_selection import StratifiedShuffleSplit

from xaimed import conformal as cf
from xaimed.intervals import wilson_interval
from xaimed.trust import probabilities

pytestmark = pytest.mark.filterwarnings("error")
quick = settings(max_examples=60, deadline=None, derandomize=True)
EVERY = sorted(cf.SCORES)


def case(n, seed, K=4):
    rng = np.random.default_rng(seed)
    y = rng.integers(0, K, n)
    return y, probabilities(rng.standard_normal((n, K)) + 1.5 * np.eye(K)[y], "multi-class")


def chance(n, seed=7): return np.random.RandomState(seed).uniform(size=(n, 1))   # as MAPIE draws it
def none(n): return np.zeros((n, 1))
def all_of_it(n): return np.ones((n, 1))
def of_truth(scores, y): return scores[np.arange(len(y)), y]


# ---- by hand

@pytest.mark.parametrize("n, alpha, rank", [(9, 0.1, 9), (8, 0.1, 9), (10, 0.1, 10), (19, 0.05, 19), (99, 0.1, 90), (100, 0.1, 91), (4, 0.4, 3), (1, 0.5, 1), (1, 0.4, 2), (0, 0.5, 1), (3, 1 - 1e-12, 1), (999, 0.3, 700)])
def test_rank_by_hand(n, alpha, rank): assert cf.conformal_rank(n, alpha) == rank


@pytest.mark.parametrize("alpha", [0.01, 0.05, 0.1, 0.2, 0.25, 0.3, 0.5, 0.9])
def test_images_needed_is_the_first_finite_threshold(alpha):
    n = cf.images_needed(alpha)
    assert math.isfinite(cf.conformal_threshold(np.zeros(n), alpha)) and cf.conformal_threshold(np.zeros(n - 1), alpha) == math.inf


def test_threshold_by_hand():
    own = [0.7, 0.1, 0.4, 0.2]
    assert [cf.conformal_threshold(own, a) for a in (0.8, 0.6, 0.4, 0.2, 0.19)] == [0.1, 0.2, 0.4, 0.7, math.inf]
    assert cf.conformal_threshold([0.3, 0.3, 0.3], 0.5) == 0.3 and cf.conformal_threshold([2.5], 0.5) == 2.5


@pytest.mark.parametrize("alpha", [0.03, 0.1, 0.2, 0.37])
def test_threshold_is_the_inflated_quantile(alpha):
    s = np.random.default_rng(0).random(83)
    assert cf.conformal_threshold(s, alpha) == np.quantile(s, math.ceil(84 * (1 - alpha)) / 83, method="inverted_cdf")


def test_scores_by_hand():
    p, half = np.array([[0.2, 0.5, 0.3], [0.4, 0.4, 0.2]]), np.full((2, 1), 0.5)
    assert cf.lac_score(p, half).tolist() == [[0.8, 0.5, 0.7], [0.6, 0.6, 0.8]]
    assert cf.aps_score(p, none(2)).tolist() == [[1.0, 0.5, 0.8], [0.8, 0.8, 1.0]]
    assert cf.aps_score(p, all_of_it(2)).tolist() == [[0.8, 0.0, 0.5], [0.0, 0.0, 0.8]]
    assert cf.aps_score(p, half).tolist() == [[0.9, 0.25, 0.65], [0.4, 0.4, 0.9]]
    assert cf.raps_score(p, half, k_reg=1, lam=0.1).tolist() == [[1.1, 0.25, 0.75], [0.5, 0.5, 1.1]]
    assert cf.raps_score(p, half, k_reg=2, lam=1.0).tolist() == [[1.9, 0.25, 0.65], [0.4, 0.4, 1.9]]


def test_sets_by_hand():
    y, p = [0, 1, 0, 1], np.array([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4], [0.7, 0.3]])
    new = np.array([[0.6, 0.4], [0.1, 0.9], [0.5, 0.5]])
    assert cf.conformal_sets(y, p, new, alpha=0.4).tolist() == [[1, 0], [0, 1], [0, 0]]
    assert cf.conformal_sets(y, p, new, alpha=0.4, by_class=True).tolist() == [[1, 1], [0, 1], [0, 1]]
    # without chance the score is the mass before: 0, 0, 0 and 0.7; the third smallest is 0
    assert cf.conformal_sets(y, p, new, alpha=0.4, score="aps", seed=None).tolist() == [[1, 0], [0, 1], [1, 1]]
    # the fourth is 0.7, with the fine 0.8: 0.6 + 0.1 and 0.5 + 0.1 pass, 0.9 + 0.1 does not; of a tie both are the second
    assert cf.conformal_sets(y, p, new, alpha=0.2, score="raps", seed=None).tolist() == [[1, 1], [0, 1], [1, 1]]


def test_multi_label_is_calibrated_on_the_images_that_have_it():
    has, p = np.array([[1, 0], [0, 1], [1, 0], [1, 0]]), np.array([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4], [0.7, 0.3]])
    for by_class in (False, True):
        assert np.allclose(cf.conformal_thresholds(has, p, alpha=0.5, task="multi-label", by_class=by_class), [0.3, 0.2])
    assert np.isinf(cf.conformal_thresholds(has * [1, 0], p, alpha=0.5, task="multi-label")).tolist() == [False, True]
    for score in ("aps", "raps"):
        with pytest.raises(ValueError, match="expected 'lac' for a multi-label task"): cf.conformal_sets(has, p, p, score=score, task="multi-label")


def test_multi_label_keeps_its_sensitivity_in_every_label():
    rng = np.random.default_rng(0)
    draw = lambda n: (y := (rng.random((n, 3)) < [0.5, 0.2, 0.1]).astype(int), probabilities(rng.standard_normal((n, 3)) + 1.5 * y - 1, "multi-label"))
    (cy, cp), (y, p) = draw(1500), draw(3000)
    found = cf.set_metrics(y, cf.conformal_sets(cy, cp, p, task="multi-label"), alpha=0.1, task="multi-label")
    for k, part in enumerate(found["by_class"]):
        low, high = cf.coverage_band(int(cy[:, k].sum()), 0.1, n_test=part["n"], level=0.999)
        assert low <= part["coverage"] <= high and part["n"] == y[:, k].sum() and part["low"] < part["coverage"] < part["high"]
    assert found["n"] == y.sum() and math.isnan(found["low"]) and sum(found["sizes"]) == 3000


# ---- beside other libraries: mapie 1.6.0 and torchcp 1.2.1 (torch 2.14), on `case(100, 0)` to calibrate and `case(60, 1)` to answer for

MAPIE = {   # alpha: threshold, images per class in the sets
    "lac": {0.1: (0.7511807749, [20, 23, 19, 25]), 0.2: (0.64747514, [17, 17, 13, 19])},
    "aps": {0.1: (0.7521910472, [22, 26, 20, 25]), 0.2: (0.6464604298, [18, 20, 18, 22])},    # include_last_label="randomized", random_state=7
    "aps, last label in": {0.1: (0.7521910472, [28, 32, 25, 35]), 0.2: (0.6464604298, [22, 26, 23, 29])},   # include_last_label=True
    "raps": {0.1: (0.804285744856, [17, 22, 19, 24]), 0.2: (0.668768659758, [15, 20, 11, 18])},   # include_last_label=False; it chose k_reg 2 and lam 0.2 on 10 images
}
TORCHCP = {   # not randomised; the first image of case(60, 1); float32 fines
    "aps": [0.9740935, 0.951501, 1.0, 0.9916004],
    "raps": [1.0740935, 0.951501, 1.3, 1.1916004],                            # penalty 0.1, kreg 1
    "raps, k_reg 2, lam 0.05": [0.9740935, 0.951501, 1.1, 1.0416004],
    "raps thresholds by class": [1.0566074, 1.138156, 0.9386451, 1.0138868],  # penalty 0.1, kreg 1, alpha 0.1
}


def ours(name, alpha, kept=None, k_reg=2, lam=0.2):
    "Threshold and sets from the parts, with MAPIE's chance and conventions about the last label."
    (cy, cp), (_, p) = case(100, 0), case(60, 1)
    if name == "lac": return cf.conformal_thresholds(cy, cp, alpha=alpha)[0], cf.conformal_sets(cy, cp, p, alpha=alpha)
    if name == "raps":
        if kept is None: kept = next(StratifiedShuffleSplit(n_splits=1, test_size=0.1, random_state=7).split(cp, cy))[0]
        limit = cf.conformal_threshold(of_truth(cf.raps_score(cp[kept], chance(len(kept)), k_reg=k_reg, lam=lam), cy[kept]), alpha)
        return limit, (cf.raps_score(p, none(60), k_reg=k_reg, lam=lam) <= limit) | np.eye(4, dtype=bool)[p.argmax(1)]   # MAPIE never leaves out the first
    limit = cf.conformal_threshold(of_truth(cf.aps_score(cp, chance(100)), cy), alpha)
    return limit, cf.aps_score(p, chance(60) if name == "aps" else all_of_it(60)) <= limit


@pytest.mark.parametrize("name", MAPIE)
@pytest.mark.parametrize("alpha", [0.1, 0.2])
def test_equal_to_mapie_as_it_was(name, alpha):
    limit, sets = ours(name, alpha)
    assert np.isclose(limit, MAPIE[name][alpha][0], atol=1e-9) and sets.sum(0).tolist() == MAPIE[name][alpha][1]


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("name", MAPIE)
@pytest.mark.parametrize("alpha", [0.1, 0.2])
def test_equal_to_mapie_live(name, alpha):
    pytest.importorskip("mapie")
    from mapie.classification import SplitConformalClassifier
    from sklearn.base import BaseEstimator, ClassifierMixin
    (cy, cp), (_, p), seen = case(100, 0), case(60, 1), []
    class Given(ClassifierMixin, BaseEstimator):
        "A model whose input is its output; notes what it was asked."
        def __init__(self): self.classes_, self.fitted_ = np.arange(4), True
        def fit(self, X, y): return self
        def predict(self, X): return X.argmax(1)
        def predict_proba(self, X):
            seen.append(X)
            return X
    theirs = SplitConformalClassifier(Given(), confidence_level=1 - alpha, conformity_score=name[:4].strip(","), prefit=True, random_state=7).conformalize(cp, cy)
    last = {"aps": "randomized", "aps, last label in": True, "raps": False}.get(name)
    sets = theirs.predict_set(p, conformity_score_params={} if last is None else dict(include_last_label=last))[1][:, :, 0]
    inner, options = theirs._mapie_classifier.conformity_score_function_, {}
    if name == "raps": options = dict(kept=[int(np.flatnonzero((cp == row).all(1))[0]) for row in seen[0]], k_reg=float(np.ravel(inner.k_star)[0]), lam=float(np.ravel(inner.lambda_star)[0]))
    limit, found = ours(name, alpha, **options)
    assert np.isclose(limit, np.ravel(inner.quantiles_)[0], atol=1e-9) and np.array_equal(found, sets)


def test_equal_to_torchcp_as_it_was():
    (cy, cp), (_, p) = case(100, 0), case(60, 1)
    assert np.allclose(cf.aps_score(p, none(60))[0], TORCHCP["aps"], atol=1e-6)
    assert np.allclose(cf.raps_score(p, none(60))[0], TORCHCP["raps"], atol=1e-6)
    assert np.allclose(cf.raps_score(p, none(60), k_reg=2, lam=0.05)[0], TORCHCP["raps, k_reg 2, lam 0.05"], atol=1e-6)
    own = of_truth(cf.raps_score(cp, none(100)), cy)
    assert np.allclose([cf.conformal_threshold(own[cy == k], 0.1) for k in range(4)], TORCHCP["raps thresholds by class"], atol=1e-6)


@pytest.mark.parametrize("score", EVERY)
def test_by_class_is_one_calibration_per_class(score):
    cy, cp = case(100, 0)
    limits = cf.conformal_thresholds(cy, cp, score=score, by_class=True, seed=None)
    own = of_truth(cf.SCORES[score](cp, all_of_it(100)), cy)
    assert limits.tolist() == [cf.conformal_threshold(own[cy == k], 0.1) for k in range(4)]


# ---- properties, on small tables with many ties and zeros

@st.composite
def tables(draw, rows=12):
    "Labels and probabilities of a few images, from whole numbers: equal values, zeros and ones are common."
    K, n, m = draw(st.integers(2, 5)), draw(st.integers(1, rows)), draw(st.integers(1, 6))
    cells = np.array(draw(st.lists(st.integers(0, 4), min_size=(n + m) * K, max_size=(n + m) * K)), float).reshape(n + m, K)
    cells[cells.sum(1) == 0] = 1
    p = cells / cells.sum(1, keepdims=True)
    return np.array(draw(st.lists(st.integers(0, K - 1), min_size=n, max_size=n))), p[:n], p[n:]


alphas, seeds, flags = st.floats(0.01, 0.99), st.sampled_from([None, 0, 5]), st.booleans()


@quick
@given(tables(), alphas, alphas, st.sampled_from(EVERY), flags, seeds)
def test_sets_grow_as_alpha_falls(table, a, b, score, by_class, seed):
    small, large = (cf.conformal_sets(*table, alpha=x, score=score, by_class=by_class, seed=seed) for x in (max(a, b), min(a, b)))
    assert (small <= large).all()


@quick
@given(st.lists(st.floats(-3, 3), max_size=30), st.lists(st.floats(0, 1), min_size=30, max_size=30), alphas, alphas)
def test_threshold_is_monotone(scores, more, a, b):
    assert cf.conformal_threshold(scores, min(a, b)) >= cf.conformal_threshold(scores, max(a, b))
    assert cf.conformal_threshold(np.add(scores, more[:len(scores)]), a) >= cf.conformal_threshold(scores, a)


@quick
@given(tables(), alphas, st.sampled_from(EVERY), flags, st.randoms(use_true_random=False))
def test_order_of_images_and_of_classes_does_not_matter(table, alpha, score, by_class, random):
    y, p, new = table
    options = dict(alpha=alpha, score=score, by_class=by_class)
    rows, classes = random.sample(range(len(y)), len(y)), np.array(random.sample(range(p.shape[1]), p.shape[1]))
    sets = cf.conformal_sets(y, p, new, seed=None, **options)
    assert np.array_equal(sets, cf.conformal_sets(y[rows], p[rows], new, seed=None, **options))
    for seed in (None, 0):
        expected = cf.conformal_sets(y, p, new, seed=seed, **options)[:, classes]
        assert np.array_equal(expected, cf.conformal_sets(np.argsort(classes)[y], p[:, classes], new[:, classes], seed=seed, **options))


@quick
@given(tables(), alphas, st.sampled_from(EVERY), seeds)
def test_sets_are_nested_by_probability(table, alpha, score, seed):
    y, p, new = table
    sets = cf.conformal_sets(y, p, new, alpha=alpha, score=score, seed=seed)
    lowest = np.where(sets, new, np.inf).min(1, keepdims=True)
    assert sets[new >= lowest].all()
    if seed is None and score == "aps": assert sets.any(1).all()


@quick
@given(tables(), alphas, st.sampled_from(EVERY), flags)
def test_calibration_images_keep_their_own_promise(table, alpha, score, by_class):
    "On the calibration images themselves the coverage is at least rank / n, without chance."
    y, p, _ = table
    sets = cf.conformal_sets(y, p, p, alpha=alpha, score=score, by_class=by_class, seed=None)
    assert of_truth(sets, y).sum() >= min(len(y), cf.conformal_rank(len(y), alpha) - 1)


@quick
@given(st.lists(st.tuples(st.integers(0, 4), st.booleans()), min_size=1, max_size=25), st.randoms(use_true_random=False))
def test_risk_and_coverage_from_the_definition(pairs, random):
    c, ok = np.array([a for a, _ in pairs], float), np.array([b for _, b in pairs])
    curve, order = cf.risk_coverage(c, ok), random.sample(range(len(c)), len(c))
    for i, t in enumerate(curve["threshold"]):
        kept = c >= t
        assert curve["answered"][i] == kept.sum() and np.isclose(curve["risk"][i], 1 - ok[kept].mean()) and curve["coverage"][i] == kept.mean()
    assert curve["threshold"].tolist() == sorted(set(c.tolist()), reverse=True)
    assert cf.aurc(c, ok) == cf.aurc(c[order], ok[order]) == cf.aurc(3 * c - 7, ok)
    r = cf.aurc(c, ok)
    assert np.isclose(r["aurc"], np.mean([1 - ok[c >= v].mean() for v in c])) and -1e-12 <= r["aurc"] - r["best"] <= r["excess"] + 1e-12
    assert np.isclose(r["best"], cf.aurc(np.argsort(np.argsort(ok, kind="stable")), ok)["aurc"]) and np.isclose(r["error"], 1 - ok.mean())


# ---- the law of the coverage

@pytest.mark.parametrize("alpha", [0.1, 0.25])
@pytest.mark.parametrize("score", EVERY)
def test_coverage_of_200_splits_follows_its_law(score, alpha):
    n, m, splits = 80, 120, 200
    y, p = case(n + m, 5)
    covered = np.empty(splits)
    for i in range(splits):
        order = np.random.default_rng([11, i]).permutation(n + m)
        a, b = order[:n], order[n:]
        covered[i] = of_truth(cf.conformal_sets(y[a], p[a], p[b], alpha=alpha, score=score, seed=i), y[b]).sum()
    k = cf.conformal_rank(n, alpha)
    law, (low, high) = betabinom(m, k, n + 1 - k), cf.coverage_band(n, alpha, n_test=m)
    assert ((covered >= low * m) & (covered <= high * m)).sum() >= binom.ppf(0.0005, splits, 0.95)
    assert abs(covered.mean() - law.mean()) < 4 * law.std() / np.sqrt(splits) and 0.75 < covered.std() / law.std() < 1.3
    assert np.abs(np.searchsorted(np.sort(covered), np.arange(m + 1), side="right") / splits - law.cdf(np.arange(m + 1))).max() < 0.14   # Kolmogorov's 0.1 % for 200


def test_by_class_keeps_the_promise_in_every_class():
    (cy, cp), (y, p) = case(2000, 1), case(2000, 2)
    tilt = np.array([8.0, 1, 1, 0.3])   # a model that favours class 0 and neglects class 3
    cp, p = (q * tilt / (q * tilt).sum(1, keepdims=True) for q in (cp, p))
    parts = {b: cf.set_metrics(y, cf.conformal_sets(cy, cp, p, by_class=b), alpha=0.1)["by_class"] for b in (False, True)}
    for k, part in enumerate(parts[True]):
        low, high = cf.coverage_band(int((cy == k).sum()), 0.1, n_test=part["n"], level=0.999)
        assert low <= part["coverage"] <= high
    assert parts[False][3]["high"] < 0.9 < parts[False][0]["low"]


def test_coverage_band():
    assert np.allclose(cf.coverage_band(1, 0.5), (0.025, 0.975)) and cf.coverage_band(8, 0.1) == (1.0, 1.0) == cf.coverage_band(0, 0.1, n_test=5)
    wide, narrow, finite = cf.coverage_band(50, 0.1), cf.coverage_band(5000, 0.1), cf.coverage_band(50, 0.1, n_test=50)
    assert finite[0] < wide[0] < narrow[0] < 0.9 < narrow[1] < wide[1] <= finite[1] <= 1


# ---- what the sets achieved

def test_set_metrics_by_hand():
    sets = np.array([[1, 0, 0], [1, 1, 0], [0, 0, 0], [0, 1, 0], [1, 1, 1]], bool)
    r = cf.set_metrics([0, 1, 1, 2, 0], sets, alpha=0.1)
    assert (r["n"], r["coverage"], r["target"], r["mean_size"], r["sizes"], r["empty"], r["single"], r["full"]) == (5, 0.6, 0.9, 1.4, [1, 2, 1, 1], 0.2, 0.4, 0.2)
    assert (r["low"], r["high"]) == tuple(wilson_interval(3, 5)[1:3])
    assert [(c["n"], c["coverage"]) for c in r["by_class"]] == [(2, 1.0), (2, 0.5), (1, 0.0)]
    assert [(c["size"], c["n"], c["coverage"]) for c in r["by_size"]] == [(0, 1, 0.0), (1, 2, 0.5), (2, 1, 1.0), (3, 1, 1.0)]
    absent = cf.set_metrics([0, 0], sets[:2], alpha=0.1)["by_class"][2]
    assert absent["n"] == 0 and all(math.isnan(absent[k]) for k in ("coverage", "low", "high"))
    many = cf.set_metrics([[1, 0, 1], [0, 0, 0]], sets[:2], alpha=0.1, task="multi-label")
    assert (many["n"], many["coverage"], many["mean_size"]) == (2, 0.5, 1.5) and math.isnan(many["high"]) and many["by_class"][0]["coverage"] == 1


# ---- selective prediction

def test_accuracy_at_coverage_by_hand():
    c, ok = np.arange(10, 0, -1) / 10, np.array([1, 1, 1, 1, 1, 1, 0, 1, 0, 0])
    rows = cf.accuracy_at_coverage(c, ok, coverages=(0.1, 0.8, 0.85, 1))
    assert [(r["n"], r["coverage"], r["threshold"]) for r in rows] == [(1, 0.1, 1.0), (8, 0.8, 0.3), (9, 0.9, 0.2), (10, 1.0, 0.1)]
    assert np.allclose([r["accuracy"] for r in rows], [1, 7/8, 7/9, 0.7]) and (rows[1]["low"], rows[1]["high"]) == tuple(wilson_interval(7, 8)[1:3])
    assert [r["coverage"] for r in cf.accuracy_at_coverage(np.ones(10), ok)] == [1, 1, 1]
    assert [r["target"] for r in cf.accuracy_at_coverage(c, ok)] == [0.8, 0.9, 0.95]


def test_aurc_by_hand():
    assert cf.aurc([3, 2, 1], [0, 1, 1])["aurc"] == pytest.approx((1 + 1/2 + 1/3) / 3)
    assert cf.aurc([1, 2, 3], [0, 1, 1]) == dict(aurc=pytest.approx(1/9), best=pytest.approx(1/9), excess=pytest.approx(0), error=pytest.approx(1/3))
    assert cf.aurc([1.0] * 3, [0, 1, 1])["aurc"] == pytest.approx(1/3) and cf.aurc([0.5], [True])["aurc"] == 0


# ---- edges

@pytest.mark.parametrize("score", EVERY)
def test_few_images_one_image_one_class(score):
    y, p = case(5, 0, K=3)
    assert cf.conformal_sets(y, p, p, alpha=0.1, score=score).all() and np.isinf(cf.conformal_thresholds(y, p, alpha=0.1, score=score)).all()
    assert cf.conformal_sets(y[:1], p[:1], p[:1], alpha=0.1, score=score).all()
    one = cf.conformal_sets(y[:1], p[:1], p[:1], alpha=0.5, score=score, seed=None)
    assert one.shape == (1, 3) and one[0, y[0]]
    alone = cf.conformal_sets(np.zeros(20, int), np.ones((20, 1)), np.ones((4, 1)), score=score, seed=None)
    assert alone.shape == (4, 1) and alone.all()


@pytest.mark.parametrize("score", EVERY)
def test_a_class_that_calibration_lacks_is_never_ruled_out_by_class(score):
    y, p = case(60, 0, K=3)
    known = y != 2
    limits = cf.conformal_thresholds(y[known], p[known], score=score, by_class=True)
    assert np.isinf(limits).tolist() == [False, False, True]
    assert cf.conformal_sets(y[known], p[known], p, score=score, by_class=True)[:, 2].all()


@pytest.mark.parametrize("score", EVERY)
@pytest.mark.parametrize("wrong, size", [(0, 1), (4, 1), (6, 2), (50, 2)])
def test_saturated_scores(score, wrong, size):
    p = np.eye(2)[np.zeros(50, int)]
    sets = cf.conformal_sets((np.arange(50) < wrong).astype(int), p, p[:1], score=score, seed=None)[0]
    assert sets.sum() == size and sets[0]


def test_equal_sums_are_equal():
    "0.1 + 0.2 and 0.3 differ in the last bit; a class on the line is in."
    y, p = [2, 2, 2], np.array([[0.7, 0.2, 0.1], [0.4, 0.3, 0.3], [0.7, 0.0, 0.3]])
    assert cf.conformal_sets(y, p, [[0.1 + 0.2, 0.7, 0.0]], alpha=0.5).tolist() == [[True, True, False]]


def test_chance_is_seeded_and_inputs_are_left_as_they_were():
    (y, p), (_, new) = case(50, 0), case(30, 1)
    before = y.copy(), p.copy(), new.copy()
    sets = [cf.conformal_sets(y, p, new, score="aps", seed=s) for s in (3, 3, 4)]
    assert np.array_equal(sets[0], sets[1]) and not np.array_equal(sets[0], sets[2])
    assert np.array_equal(cf.conformal_sets(y, p, new[:7], score="aps", seed=3), sets[0][:7])
    assert all(np.array_equal(a, b) for a, b in zip(before, (y, p, new)))
    assert np.array_equal(cf.conformal_sets(y, p, new, seed=3), cf.conformal_sets(y, p, new, seed=None))


def test_without_chance_the_most_probable_class_stays():
    (y, p), (_, new) = case(400, 0), case(400, 1)
    assert cf.conformal_sets(y, p, new, alpha=0.3, score="aps", seed=None)[np.arange(400), new.argmax(1)].all()
    assert not cf.conformal_sets(y, p, new, alpha=0.3, score="aps").any(1).all()


P = np.full((4, 2), 0.5)
@pytest.mark.parametrize("change, said", [
    (dict(alpha=0), "alpha is 0, expected above 0 and below 1"), (dict(alpha=1), "alpha is 1"), (dict(alpha=-0.1), "alpha is -0.1"), (dict(alpha=math.nan), "alpha is nan"),
    (dict(score="rasp"), "unknown score 'rasp'. Near: raps"), (dict(task="multiclass"), "unknown task 'multiclass'"),
    (dict(lam=0.1), "score 'lac' has no option 'lam', expected none"), (dict(score="raps", lamb=0.1), "no option 'lamb', expected k_reg or lam"),
    (dict(score="raps", lam=-1), "expected both at least 0"), (dict(score="raps", lam=math.nan), "expected both at least 0"), (dict(score="raps", k_reg=-1), "expected both at least 0"),
    (dict(cal_probs=np.where(np.eye(4, 2) > 0, np.nan, 0.5)), "calibration: probs has NaN in 2 of 4 rows"), (dict(probs=P * np.nan), "test: probs has NaN in 4 of 4 rows"),
    (dict(cal_probs=P * 4), "calibration: .*pass logits through"), (dict(probs=P - 1), "test: .*pass logits through"),
    (dict(cal_labels=[0, 1, 2, 0]), r"calibration: labels has values 0\.\.2"), (dict(cal_labels=[0, 1]), r"calibration: labels has shape \(2,\), expected \(4,\)"),
    (dict(cal_labels=[], cal_probs=np.zeros((0, 2))), r"calibration: probs has shape \(0, 2\)"), (dict(probs=np.zeros((0, 2))), r"test: probs has shape \(0, 2\)"),
    (dict(probs=np.full(2, 0.5)), r"test: probs has shape \(2,\)"), (dict(probs=np.full((2, 3), 1 / 3)), "probs has 3 columns, expected 2 as in cal_probs"),
    (dict(cal_labels=np.eye(4, 2), probs=np.full((2, 3), 1 / 3), task="multi-label"), "probs has 3 columns, expected 2"),
    (dict(cal_probs=np.full((4, 3), 1 / 3), task="binary"), "calibration: probs has 3 columns, expected 2"),
])
def test_faults_are_named(change, said):
    arguments = dict(cal_labels=[0, 1, 0, 1], cal_probs=P, probs=P) | change
    with pytest.raises(ValueError, match=said): cf.conformal_sets(**arguments)


def test_other_faults_are_named():
    sets = np.ones((2, 3), bool)
    for call, said in [
        (lambda: cf.conformal_threshold([[0.1]], 0.1), r"scores has shape \(1, 1\)"), (lambda: cf.conformal_threshold([math.nan], 0.1), "1 NaN"),
        (lambda: cf.images_needed(2), "alpha is 2"), (lambda: cf.coverage_band(10, 0), "alpha is 0"), (lambda: cf.coverage_band(10, 0.1, level=1), "level is 1"), (lambda: cf.coverage_band(10, 0.1, n_test=0), "n_test is 0"),
        (lambda: cf.set_metrics([0, 1], sets.astype(int), alpha=0.1), "type int64, expected"), (lambda: cf.set_metrics([0, 1], sets[0], alpha=0.1), r"shape \(3,\)"),
        (lambda: cf.set_metrics([0, 3], sets, alpha=0.1), r"sets: labels has values 0\.\.3"), (lambda: cf.set_metrics([0], sets, alpha=0.1), r"sets: labels has shape \(1,\)"), (lambda: cf.set_metrics([0, 1], sets, alpha=9), "alpha is 9"),
        (lambda: cf.risk_coverage([0.5, 0.5], [True]), r"shape \(2,\) and correct \(1,\)"), (lambda: cf.risk_coverage([], []), "at least one image"), (lambda: cf.aurc([[0.5]], [[True]]), "one label at a time"),
        (lambda: cf.aurc([math.nan, 1], [True, True]), "for 1 of 2 images"), (lambda: cf.risk_coverage([0.5], [2]), "correct has values other than"),
        (lambda: cf.accuracy_at_coverage([0.5], [True], coverages=[0]), "coverages has 0"), (lambda: cf.accuracy_at_coverage([0.5], [True], coverages=[1.1]), "coverages has 1.1"),
    ]:
        with pytest.raises(ValueError, match=said): call()


def test_a_score_is_one_registered_function():
    @cf.register_score("margin")
    def margin(probs, u): return np.round(probs.max(1, keepdims=True) - probs, 12)
    try:
        (y, p), (_, new) = case(50, 0), case(30, 1)
        sets = cf.conformal_sets(y, p, new, score="margin")
        assert sets[np.arange(30), new.argmax(1)].all() and 1 <= sets.sum(1).mean() < 4
        with pytest.raises(ValueError, match="registered already"): cf.register_score("margin")(lambda probs, u: probs)
    finally: del cf.SCORES["margin"]
