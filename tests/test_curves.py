"xaimed.curves: curves, bands and thresholds beside scikit-learn, known truths and figures worked out by hand."
import json

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from scipy.stats import norm
from sklearn import metrics as sk

from xaimed import curves as cv
from xaimed.intervals import FEWEST, Estimate, wilson_interval

TASKS = ("binary", "multi-class", "ordinal", "multi-label")
HAS, SCORE = np.array([1, 0, 1, 0, 1, 0]), np.array([.9, .7, .7, .5, .4, .1])   # a tie of one each
quick = settings(max_examples=25, deadline=None)


def normal(rng, p, n, d=1.2):
    has = np.r_[np.ones(p, bool), np.zeros(n, bool)]
    return has, rng.normal(size=p + n) + d * has


def one_side(kind, n=60, seed=0):
    "Whether the class is true and scores: random, with many ties, or saturated at exactly 0 and 1."
    rng = np.random.default_rng(seed)
    has = rng.random(n) < .3
    has[:2] = True, False
    s = 1 / (1 + np.exp(-rng.normal(size=n) - has))
    return has, s if kind == "random" else s.round(1) if kind == "ties" else (s > .6).astype(float)


def table(task, n=90, seed=0):
    rng, k = np.random.default_rng(seed), 2 if task == "binary" else 4
    if task == "multi-label": labels, probs = rng.integers(2, size=(n, k)), rng.random((n, k))
    else: labels, probs = rng.integers(k, size=n), rng.dirichlet(np.ones(k), n)
    return labels, probs, [f"class {i}" for i in range(k)]


sides = st.lists(st.tuples(st.booleans(), st.integers(-3, 3)), min_size=2, max_size=30).map(lambda rows: (np.array([b for b, _ in rows]), np.array([s for _, s in rows], float)))
both_sides = sides.filter(lambda t: 0 < t[0].sum() < len(t[0]))


# ---- points

@pytest.mark.parametrize("kind", ["random", "ties", "saturated"])
@pytest.mark.parametrize("weighted", [False, True])
def test_points_equal_scikit_learn(kind, weighted):
    has, s = one_side(kind)
    w = np.random.default_rng(1).integers(1, 4, len(s)) if weighted else None
    roc, pr = cv.roc_points(has, s, w), cv.precision_recall_points(has, s, w)
    for found, want in zip(roc, sk.roc_curve(has, s, sample_weight=w, drop_intermediate=False)): np.testing.assert_allclose(found, want, atol=1e-12)
    precision, recall, thresholds = sk.precision_recall_curve(has, s, sample_weight=w)
    for found, want in zip(pr, (recall, precision, np.r_[thresholds, np.inf])): np.testing.assert_allclose(found, want[::-1], atol=1e-12)


@quick
@given(both_sides, st.randoms(use_true_random=False))
def test_points_are_in_order_whatever_the_order_of_the_images(side, random):
    has, s = side
    order = random.sample(range(len(s)), len(s))
    for points in (cv.roc_points, cv.precision_recall_points):
        a, b = points(has, s), points(has[order], s[order])
        assert all(np.array_equal(u, v, equal_nan=True) for u, v in zip(a, b)) and len(a.x) == len(set(s)) + 1 and (np.diff(a.threshold) < 0).all()
        twice = points(np.repeat(has, 2), np.repeat(s, 2))
        for u, v, w in zip(a, twice, points(has, s, np.full(len(s), 2.))): assert np.allclose(u, v, equal_nan=True) and np.allclose(u, w, equal_nan=True)
        for v in (a.x, a.y):
            v = v[np.isfinite(v)]
            assert ((v >= 0) & (v <= 1)).all()
        if np.isfinite(a.x).all(): assert (np.diff(a.x) >= 0).all() and a.x[0] == 0 and a.x[-1] == 1


@pytest.mark.parametrize("points", [cv.roc_points, cv.precision_recall_points])
def test_a_side_without_weight_is_a_side_that_is_not_there(points):
    for weights, said in (([1, 0, 1, 0], "true for 2 of 2 images"), ([0, 1, 0, 1], "true for 0 of 2 images"), ([0, 0, 0, 0], "true for 0 of 0 images")):
        with pytest.raises(ValueError, match=said): points([1, 0, 1, 0], [.1, .2, .3, .4], weights)
    assert points([1, 0], [.2, .7], [2, 1]).x[-1] == 1


# ---- bands

@pytest.mark.parametrize("kind", ["random", "ties", "saturated"])
def test_the_curve_on_the_grid_is_read_off_the_points(kind):
    "Looked up one by one: the ROC on straight lines with the upper end of upright parts, precision of the first threshold that reaches the recall."
    has, s = one_side(kind, 53, 4)
    roc, pr = cv.roc_band(has, s, n_resamples=100), cv.precision_recall_band(has, s, n_resamples=100)
    a, b = cv.roc_points(has, s), cv.precision_recall_points(has, s)
    for x, y in zip(roc.x, roc.y):
        upright = np.isclose(a.x, x)
        assert y == pytest.approx(a.y[upright].max() if upright.any() else np.interp(x, a.x, a.y))
    for x, y in zip(pr.x, pr.y): assert y == pytest.approx(b.y[max((b.x >= x - 1e-9).argmax(), (b.x > 0).argmax())])
    assert roc.area == pytest.approx(sk.roc_auc_score(has, s)) and pr.area == pytest.approx(sk.average_precision_score(has, s))
    assert (roc.n_positive, roc.n_negative) == (pr.n_positive, pr.n_negative) == (has.sum(), (~has).sum())


def test_upright_parts_are_met_whatever_the_last_bit_says():
    "100 negatives: at .29 (whose hundredfold is 28.999…) the curve is upright, and its upper end counts."
    s = np.r_[np.arange(100.)[::-1], 70.5, 70.5]                                 # 29 negatives above both positives
    has = np.r_[np.zeros(100), 1, 1]
    y = cv.roc_band(has, s).y
    assert y[:29].tolist() == [0] * 29 and y[29:].tolist() == [1] * 72


def slow_band(has, s, stratified, seed, at):
    "The definition: repeat the drawn images, take scikit-learn's curve, read it at one point."
    rng, found = np.random.default_rng(seed), []
    for _ in range(800):
        pick = np.concatenate([rng.choice(m, len(m)) for m in ([np.flatnonzero(has), np.flatnonzero(~has)] if stratified else [np.arange(len(has))])])
        t, v = has[pick], s[pick]
        if stratified:
            x, y, _ = sk.roc_curve(t, v, drop_intermediate=False)
            k = np.searchsorted(x, at + 1e-9, side="right") - 1
            found.append(y[k] if np.isclose(x[k], at) else y[k] + (at - x[k]) / (x[k + 1] - x[k]) * (y[k + 1] - y[k]))
        elif t.any():
            p, r, _ = sk.precision_recall_curve(t, v)
            found.append(p[::-1][(r[::-1] >= at - 1e-9).argmax()])
    return np.quantile(found, [.025, .975])


def least(has, s, band, at):
    "The narrowest ends at one point, counted anew from the images: Wilson's interval, widened where the threshold may lie beyond all images of a side."
    P, N = int(has.sum()), int((~has).sum())
    if band is cv.roc_band:
        w = wilson_interval(round(P * band(has, s, n_resamples=100).y[round(at * 100)]), P)
        return 0 if (1 - at) ** N > .025 else w.low, 1 if at ** N > .025 else w.high
    t = max(t for t in s if (has & (s >= t)).sum() >= max(1, at * P - 1e-9))
    w = wilson_interval((has & (s >= t)).sum(), (s >= t).sum())
    if (1 - at) ** P > .025: return 0, 1
    return min(w.low, wilson_interval(P, P + N).low) if at ** P > .025 else w.low, w.high


@pytest.mark.parametrize("kind", ["random", "ties"])
def test_bands_agree_with_their_definition(kind):
    has, s = one_side(kind, 120, 2)
    for band, stratified, at in ((cv.roc_band, True, .2), (cv.roc_band, True, .5), (cv.precision_recall_band, False, .4), (cv.precision_recall_band, False, .8)):
        c, (low, high), w = band(has, s, n_resamples=1500), slow_band(has, s, stratified, 7, at), least(has, s, band, at)
        np.testing.assert_allclose([c.low[round(at * 100)], c.high[round(at * 100)]], [min(low, w[0]), max(high, w[1])], atol=.04)


@pytest.mark.parametrize("kind", ["random", "ties", "saturated"])
def test_a_band_is_at_least_wilsons_interval_everywhere(kind):
    has, s = one_side(kind, 40, 3)
    for band in (cv.roc_band, cv.precision_recall_band):
        c = band(has, s, n_resamples=100)
        ends = np.array([least(has, s, band, at) for at in c.x])
        assert (c.low <= ends[:, 0] + 1e-12).all() and (c.high >= ends[:, 1] - 1e-12).all() and (c.low < c.high).all()


def test_widening_by_hand():
    "Ten positives above all forty negatives: Wilson's 10 of 10, and nothing below where .975 = 1 - (1 - x)**40, from .0881 on."
    easy = np.r_[np.ones(10), np.zeros(40)]
    roc, pr = cv.roc_band(easy, easy), cv.precision_recall_band(easy, easy)
    ten = wilson_interval(10, 10).low
    assert (roc.low[:9] == 0).all() and np.allclose(roc.low[9:], ten) and (roc.high == 1).all()
    assert (pr.low[:31] == 0).all() and (pr.high == 1).all()                      # (1 - r)**10 > .025 up to r = .3085
    assert np.allclose(pr.low[31:70], ten)                                       # all ten have one score
    assert np.allclose(pr.low[70:], wilson_interval(10, 50).low)                  # r**10 > .025 from r = .6915: calling all is not excluded
    worst = cv.roc_band(1 - easy, easy)                                           # nothing found until every negative is called
    assert (worst.low[:-1] == 0).all() and np.allclose(worst.high[:70], wilson_interval(0, 40).high) and (worst.high[70:] == 1).all()


RATES, RECALLS = np.array([0, .05, .1, .3, .5, .8, 1]), np.array([0, .05, .1, .3, .5, .8, .95, 1])

@pytest.mark.parametrize("p, n, d", [(20, 60, 2), (20, 60, .5), (10, 100, 1)])
def test_a_band_covers_what_is_promised_at_many_points(p, n, d):
    "200 data sets from a known model. The share of images with the class is itself drawn for precision, and fixed for the ROC."
    rng, inside = np.random.default_rng(0), [np.zeros(len(RATES)), np.zeros(len(RECALLS))]
    found, wrong = RECALLS * p / (p + n), norm.sf(norm.isf(RECALLS) + d) * n / (p + n)
    truth = norm.cdf(d + norm.ppf(RATES)), np.r_[1, found[1:] / (found[1:] + wrong[1:])]
    for seed in range(200):
        m = int(np.clip(rng.binomial(p + n, p / (p + n)), FEWEST, None))
        for k, (band, grid, images) in enumerate(((cv.roc_band, RATES, normal(rng, p, n, d)), (cv.precision_recall_band, RECALLS, normal(rng, m, p + n - m, d)))):
            c, at = band(*images, n_resamples=200, n_points=21, seed=seed), (grid * 20).round().astype(int)
            inside[k] += (c.low[at] - 1e-9 <= truth[k]) & (truth[k] <= c.high[at] + 1e-9)
    assert min(v.min() for v in inside) / 200 >= .9, inside


def test_a_band_holds_its_curve_widens_with_the_level_and_keeps_its_seed():
    images = normal(np.random.default_rng(1), 40, 80)
    for band in (cv.roc_band, cv.precision_recall_band):
        c, wide, again, other = band(*images), band(*images, level=.99), band(*images), band(*images, seed=1)
        assert (c.low <= c.high).all() and ((c.low <= c.y) & (c.y <= c.high)).mean() > .97 and (c.high - c.low).mean() > .05
        assert (wide.low <= c.low).all() and (wide.high >= c.high).all() and (wide.high - wide.low).mean() > 1.1 * (c.high - c.low).mean() and np.array_equal(c.y, wide.y)
        assert all(np.array_equal(a, b) for a, b in zip(c, again)) and not np.array_equal(c.low, other.low) and np.array_equal(c.y, other.y)
    assert (np.diff(cv.roc_band(*images).low) >= -1e-12).all()                   # quantiles of rising curves rise
    many = normal(np.random.default_rng(1), 400, 800)
    assert (lambda c: (c.high - c.low).mean())(cv.roc_band(*many)) < .5 * (lambda c: (c.high - c.low).mean())(cv.roc_band(*images))


def test_precision_is_drawn_from_all_images_and_sensitivity_within_its_side():
    "Scores that know nothing: the precision at recall 1 is the drawn prevalence, which varies only when both sides are drawn together; the ROC ends at 1 without spread."
    has, s = np.r_[np.ones(30), np.zeros(70)], np.full(100, .5)
    c = cv.precision_recall_band(has, s, n_resamples=2000)
    np.testing.assert_allclose([c.low[-1], c.high[-1]], [.21, .39], atol=.02)    # binomial, 100 of .3
    roc = cv.roc_band(has, s)
    assert [roc.low[50], roc.high[50]] == pytest.approx(wilson_interval(15, 30)[1:3])    # the diagonal, half of 30, without spread of its own


def test_a_draw_without_a_positive_is_left_out_of_the_band():
    "Of 95 images five have it: one draw in 160 has none, and no precision."
    c = cv.precision_recall_band(*normal(np.random.default_rng(0), 5, 90), n_resamples=2000)
    assert np.isfinite(c.low).all() and (c.low < c.high).any()


@pytest.mark.parametrize("p, n", [(FEWEST - 1, 40), (40, FEWEST - 1), (1, 1)])
def test_too_few_images_have_a_curve_and_no_band(p, n):
    images = normal(np.random.default_rng(0), p, n)
    for band in (cv.roc_band, cv.precision_recall_band):
        c = band(*images)
        assert np.isnan(c.low).all() and np.isnan(c.high).all() and np.isfinite(c.y).all() and np.isfinite(c.area)
    assert np.isfinite(cv.roc_band(*normal(np.random.default_rng(0), FEWEST, 40)).low).all()


@pytest.mark.parametrize("has", [[1, 1, 1], [0, 0, 0], [0], [1], [1] * 40])
@pytest.mark.parametrize("call", [cv.roc_points, cv.precision_recall_points, cv.roc_band, cv.precision_recall_band, cv.choose_threshold])
def test_a_single_class_is_refused_alike_by_all_that_need_both(call, has):
    "And whoever reports on such a split still answers: `curves_left_out`, `operating_point` and `operating_report`, below."
    with pytest.raises(ValueError, match=f"positive is true for {sum(has)} of {len(has)} images, expected some of both: a (curve|threshold) weighs misses against false alarms"): call(has, np.linspace(0, 1, len(has)))


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("n", [1, 30])
@pytest.mark.filterwarnings("error")
def test_reports_on_a_split_of_one_class_have_a_defined_answer(task, n):
    (hy, hp, classes), (y, p, _) = table(task, 80, 1), table(task, n, 2)
    for value in (0, 1):
        one = np.full_like(y, value)
        rows, out = cv.curves_report(one, p, task, classes, n_resamples=100), cv.curves_left_out(one, p, task, classes)
        assert rows == [] and {x["reason"] for x in out} <= {"no image has it", "every image has it"} and len(out) == p.shape[1]
        for rule in cv.THRESHOLD_RULES:
            r = cv.operating_report(hy, hp, one, p, task, classes, rule=rule)
            if r is None: continue
            json.dumps(r, allow_nan=False)
            for row in r["rows"]:
                has = bool(value) if task == "multi-label" else row["class"] == value
                assert f"{'all' if has else 'none'} of the {n} evaluated images {'have' if has else 'has'} it, so {'specificity' if has else 'sensitivity'} is not defined there" in row["note"]
            none_held = cv.operating_report(one, p, hy, hp, task, classes, rule=rule)
            assert all(row["threshold"] is None and row["note"].startswith("no threshold: ") for row in none_held["rows"])


@quick
@given(both_sides, st.integers(2, 12), st.randoms(use_true_random=False))
def test_curves_stay_in_their_range(side, n_points, random):
    has, s = side
    order = random.sample(range(len(s)), len(s))
    for band in (cv.roc_band, cv.precision_recall_band):
        c, shuffled = band(has, s, n_resamples=100, n_points=n_points), band(has[order], s[order], n_resamples=100, n_points=n_points)
        assert len(c.x) == len(c.y) == len(c.low) == n_points and ((c.y >= 0) & (c.y <= 1)).all() and 0 <= c.area <= 1
        assert np.allclose(c.y, shuffled.y) and c.area == pytest.approx(shuffled.area)
        if np.isfinite(c.low).any(): assert ((c.low >= 0) & (c.low <= c.high) & (c.high <= 1)).all()
    assert (np.diff(cv.roc_band(has, s, n_points=n_points).y) >= 0).all() and np.array_equal(cv.roc_band(has, 2 * s + 1, n_points=n_points).y, cv.roc_band(has, s, n_points=n_points).y)


# ---- the curves of an evaluation

@pytest.mark.parametrize("task", TASKS)
def test_report_of_every_task(task):
    labels, probs, classes = table(task)
    rows = cv.curves_report(labels, probs, task, classes, n_resamples=200)
    assert json.loads(json.dumps(rows, allow_nan=False)) == rows and cv.curves_left_out(labels, probs, task, classes) == []
    assert [r["class"] for r in rows] == list(range(len(classes)))
    for r in rows:
        assert list(r) == ["class", "name", "n_positive", "n", "prevalence", "auc", "auprc", "roc", "pr"]
        k = r["class"]
        has = labels[:, k] == 1 if task == "multi-label" else labels == k
        assert (r["name"], r["n_positive"], r["n"], r["prevalence"]) == (classes[k], has.sum(), len(has), round(has.mean(), 4))
        assert r["auc"] == round(sk.roc_auc_score(has, probs[:, k]), 4) and r["auprc"] == round(sk.average_precision_score(has, probs[:, k]), 4)
        for key, band in (("roc", cv.roc_band), ("pr", cv.precision_recall_band)):
            assert list(r[key]) == ["x", "y", "low", "high"]
            c = band(has, probs[:, k], n_resamples=200)
            for name in r[key]: np.testing.assert_allclose(r[key][name], getattr(c, name), atol=5.1e-5)
            assert all(v == round(v, 4) for name in r[key] for v in r[key][name])


def test_what_has_no_curve_is_told():
    _, probs, classes = table("multi-class", 12)
    labels = np.array([0] * 7 + [1] * 4 + [2])
    rows = cv.curves_report(labels, probs, "multi-class", classes, n_resamples=100)
    assert [r["class"] for r in rows] == [0, 1, 2] and rows[1]["roc"]["low"] == [None] * 101 == rows[2]["pr"]["high"] and rows[2]["roc"]["y"][-1] == 1
    assert None not in rows[0]["roc"]["low"]
    assert cv.curves_left_out(labels, probs, "multi-class", classes) == [{"class": 3, "name": "class 3", "reason": "no image has it"}]
    few = cv.curves_report(labels, probs, "multi-class", classes, n_resamples=100, most_classes=2)
    assert few == rows[:2] and [c["reason"] for c in cv.curves_left_out(labels, probs, "multi-class", classes, most_classes=2)] == ["only the 2 classes with the most images are drawn", "no image has it"]
    many = np.array([[1, 0], [1, 1], [1, 0]])
    assert [r["class"] for r in cv.curves_report(many, probs[:3, :2], "multi-label", "ab", n_resamples=100)] == [1] and cv.curves_left_out(many, probs[:3, :2], "multi-label", "ab")[0]["reason"] == "every image has it"
    p = np.array([[.4, .6]])
    assert cv.curves_report([1], p, "binary", "ab") == [] and cv.curves_left_out([1], p, "binary", "ab") == [{"class": 0, "name": "a", "reason": "no image has it"}, {"class": 1, "name": "b", "reason": "every image has it"}]
    assert cv.curves_report([0], p, "binary", "ab") == [] and cv.curves_left_out([0], p, "binary", "ab")[1]["reason"] == "no image has it"


# ---- thresholds

def counts(has, s, t): return [int(((s >= t) & (has == h)).sum()) for h in (1, 0)]


@pytest.mark.parametrize("rule, target, want", [("youden", .9, .25), ("f1", .9, .25), ("sensitivity", .3, .8), ("sensitivity", .6, .6), ("sensitivity", .67, .25), ("sensitivity", 1, .25),
                                                ("specificity", .3, .25), ("specificity", .6, .6), ("specificity", .67, .8), ("specificity", 1, .8)])
def test_thresholds_by_hand(rule, target, want): assert cv.choose_threshold(HAS, SCORE, rule=rule, target=target) == pytest.approx(want)


def test_of_equals_the_lowest_and_defined_ends():
    assert cv.choose_threshold([1, 0, 1, 0], [4., 3, 2, 1]) == 1.5                                # J is 1/2 after the first and after the third
    assert cv.choose_threshold([1, 0, 0, 1], [4., 3, 2, 1], rule="f1") == 1                       # F1 is 2/3 with one called and with all
    assert cv.choose_threshold([0, 0, 1, 1], [1., 2, 3, 4]) == 2.5
    assert cv.choose_threshold([1, 1, 0, 0], [1., 2, 3, 4]) == 1                                  # worse than chance: J is 0 at both ends
    assert cv.choose_threshold([1, 1, 0, 0], [1., 2, 3, 4], rule="specificity") == np.nextafter(4, 5)   # none is called
    assert cv.choose_threshold([0, 1], [0., 1], rule="sensitivity") == .5                         # saturated
    for rule in cv.THRESHOLD_RULES: assert cv.choose_threshold([1, 0], [.5, .5], rule=rule) == (np.nextafter(.5, 1) if rule == "specificity" else .5)


def test_youden_ties_are_ties_in_whole_numbers():
    "J is 1/5 with one of five found and no false alarm, and again with all found and four of five falsely called; in floating point 1 - 4/5 is less than 1/5."
    has, s = np.r_[np.ones(5), np.zeros(5)], np.array([3., 2, 2, 2, 2, 2, 2, 2, 2, 1])
    assert cv.choose_threshold(has, s) == 1.5


def test_neighbours_in_the_last_bit_are_kept_apart():
    low = .5
    high = np.nextafter(low, 1)
    assert cv.choose_threshold([1, 0], [high, low]) == high


@quick
@given(both_sides, st.floats(.01, 1))
def test_thresholds_keep_their_rule(side, target):
    "Against every threshold that calls different images, tried one by one."
    has, s = side
    P, N = has.sum(), (~has).sum()
    tried = [counts(has, s, t) for t in [*np.unique(s), np.inf]]                                  # the lowest first
    def of(rule): return counts(has, s, cv.choose_threshold(has, s, rule=rule, target=target))
    assert of("youden") == max(tried, key=lambda c: c[0] * N - c[1] * P)                          # of equals `max` takes the first: the lowest
    assert of("f1") == max(tried, key=lambda c: 2 * c[0] / (c[0] + c[1] + P))
    assert of("sensitivity") == [c for c in tried if c[0] / P >= target][-1]
    assert of("specificity") == [c for c in tried if (N - c[1]) / N >= target][0]


@quick
@given(both_sides, st.sampled_from(sorted(cv.THRESHOLD_RULES)), st.floats(.05, .95), st.floats(.05, .95), st.randoms(use_true_random=False))
def test_thresholds_do_not_depend_on_order_and_rise_with_the_target(side, rule, a, b, random):
    has, s = side
    order = random.sample(range(len(s)), len(s))
    low, high = (cv.choose_threshold(has, s, rule=rule, target=t) for t in sorted((a, b)))
    assert low == cv.choose_threshold(has[order], s[order], rule=rule, target=min(a, b))
    if rule == "sensitivity": assert low >= high
    elif rule == "specificity": assert low <= high
    else: assert low == high
    assert s.min() <= low <= np.nextafter(s.max(), np.inf)


def test_rules_are_described():
    assert list(cv.THRESHOLD_RULES) == ["youden", "f1", "sensitivity", "specificity"] and all(r.title and r.description.endswith(".") for r in cv.THRESHOLD_RULES.values())
    assert [n for n, r in cv.THRESHOLD_RULES.items() if r.targeted] == ["sensitivity", "specificity"]


def test_operating_point_by_hand():
    has, s = np.r_[np.ones(10), np.zeros(20)], np.r_[np.full(7, .8), np.full(3, .2), np.full(5, .8), np.full(15, .2)]
    r = cv.operating_point(has, s, .5)
    assert list(r) == ["threshold", "sensitivity", "specificity", "ppv", "npv", "f1", "accuracy", "tp", "fn", "fp", "tn"]
    assert (r["tp"], r["fn"], r["fp"], r["tn"], r["threshold"]) == (7, 3, 5, 15, .5) and r["f1"] == 14 / 22
    for name, right, n in (("sensitivity", 7, 10), ("specificity", 15, 20), ("ppv", 7, 12), ("npv", 15, 18), ("accuracy", 22, 30)):
        assert isinstance(r[name], Estimate) and r[name] == wilson_interval(right, n)
    assert cv.operating_point(has, s, .8)["tp"] == 7 and cv.operating_point(has, s, np.nextafter(.8, 1))["tp"] == 0
    assert cv.operating_point(has, s, .5, level=.99)["sensitivity"].low < r["sensitivity"].low


def test_operating_point_where_a_share_is_of_nothing():
    none = cv.operating_point([0, 0], [.1, .2], .5)
    assert np.isnan([none["sensitivity"].value, none["ppv"].low, none["f1"]]).all() and none["specificity"].value == none["accuracy"].value == 1
    missed = cv.operating_point([1, 0], [.1, .2], .5)
    assert missed["f1"] == 0 and missed["sensitivity"].value == 0 and np.isnan(missed["ppv"].value) and missed["npv"].value == .5


# ---- the operating report

@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("rule", sorted(cv.THRESHOLD_RULES))
def test_operating_report_of_every_task(task, rule):
    (hy, hp, classes), (y, p, _) = table(task, 80, 1), table(task, 70, 2)
    r = cv.operating_report(hy, hp, y, p, task, classes, rule=rule, target=.8)
    if task in ("multi-class", "ordinal"):
        assert r is None
        return
    assert json.loads(json.dumps(r, allow_nan=False)) == r
    assert (r["rule"], r["title"], r["n_held_out"], r["target"]) == (rule, cv.THRESHOLD_RULES[rule].title, 80, .8 if rule in ("sensitivity", "specificity") else None) and list(r) == ["rule", "title", "target", "n_held_out", "rows"]
    assert [row["class"] for row in r["rows"]] == list(range(len(classes)))
    for row in r["rows"]:
        assert list(row) == ["class", "name", "threshold", "held_out", "scored", "note"] and row["name"] == classes[row["class"]]
        dull = any(0 in (row[w]["tp"] + row[w]["fp"], row[w]["fn"] + row[w]["tn"], row[w]["tp"], row[w]["tn"]) for w in ("held_out", "scored"))
        assert (row["note"] is not None) == dull                              # each side has 16 images or more, which is enough for .8
        k = row["class"]
        held, test = ((labels[:, k] == 1 if task == "multi-label" else labels == k) for labels in (hy, y))
        assert row["threshold"] == cv.choose_threshold(held, hp[:, k], rule=rule, target=.8)
        for where, has, s in (("held_out", held, hp[:, k]), ("scored", test, p[:, k])):
            point, got = cv.operating_point(has, s, row["threshold"]), row[where]
            assert list(got) == ["sensitivity", "specificity", "ppv", "npv", "f1", "accuracy", "tp", "fn", "fp", "tn"] and [got[c] for c in ("tp", "fn", "fp", "tn")] == [point[c] for c in ("tp", "fn", "fp", "tn")]
            for name in ("sensitivity", "specificity", "ppv", "npv", "accuracy"):
                assert list(got[name]) == ["value", "low", "high", "n"]
                np.testing.assert_array_equal([np.nan if v is None else v for v in got[name].values()], point[name])
        if rule in ("sensitivity", "specificity"): assert row["held_out"][rule]["value"] >= .8


def test_the_test_images_do_not_move_the_threshold():
    (hy, hp, classes), (y, p, _) = table("binary", 80, 1), table("binary", 70, 2)
    a, b = (cv.operating_report(hy, hp, labels, probs, "binary", classes)["rows"][1] for labels, probs in ((y, p), (1 - y, p[::-1])))
    assert a["threshold"] == b["threshold"] and a["held_out"] == b["held_out"] and a["scored"] != b["scored"]


def test_each_class_of_a_binary_task_has_a_threshold_of_its_own():
    "Which of the two is the finding is not for the numbering to say: 90 % sensitivity for one is not 90 % for the other."
    (hy, hp, classes), (y, p, _) = table("binary", 80, 1), table("binary", 70, 2)
    benign, ill = cv.operating_report(hy, hp, y, p, "binary", classes, rule="sensitivity", target=.9)["rows"]
    turned = cv.operating_report(1 - hy, hp[:, ::-1], 1 - y, p[:, ::-1], "binary", classes[::-1], rule="sensitivity", target=.9)["rows"]
    def figures(row): return {k: v for k, v in row.items() if k != "class"}
    assert [figures(benign), figures(ill)] == [figures(turned[1]), figures(turned[0])]
    assert min(benign["held_out"]["sensitivity"]["value"], ill["held_out"]["sensitivity"]["value"]) >= .9 and benign["threshold"] != pytest.approx(1 - ill["threshold"])


def test_a_label_that_was_not_held_out_has_no_threshold():
    hy, hp = np.array([[1, 0, 1], [0, 0, 1]]), np.array([[.9, .2, .5], [.1, .1, .5]])
    rows = cv.operating_report(hy, hp, [[1, 1, 1]], [[.8, .7, .5]], "multi-label", "abc")["rows"]
    assert rows[0]["threshold"] == .5 and rows[0]["scored"]["specificity"] == dict(value=None, low=None, high=None, n=0) and rows[0]["scored"]["f1"] == 1
    assert rows[0]["note"] == "all of the 1 evaluated images have it, so specificity is not defined there; the threshold calls all of the 1 evaluated images"
    for row, note in ((rows[1], "no threshold: none of the 2 held-out images has it"), (rows[2], "no threshold: all of the 2 held-out images have it")):
        assert row["threshold"] is row["held_out"] is row["scored"] is None and row["note"] == note
    assert cv.operating_report([1], [[.2, .8]], [0], [[.3, .7]], "binary", "ab")["rows"][1]["note"].startswith("no threshold: all of the 1")


def one_row(held, test, **options):
    "The row of a binary report on (has, score of class 1) pairs."
    return cv.operating_report(held[0].astype(int), np.c_[1 - held[1], held[1]], test[0].astype(int), np.c_[1 - test[1], test[1]], "binary", "ab", **options)["rows"][1]


def test_a_threshold_that_calls_all_or_none_is_noted():
    n, has = 50, np.repeat([True, False], 50)
    good, tied, wrong = (has, .2 + .6 * has), (has, np.full(2 * n, .5)), (has, .8 - .6 * has)
    row = one_row(tied, tied)                                                     # one score: Youden calls all
    assert row["note"] == "the threshold calls all of the 100 held-out images, so specificity is 0 there; the threshold calls all of the 100 evaluated images, so specificity is 0 there"
    row = one_row(wrong, wrong, rule="specificity")                               # nine in ten negatives must stay uncalled: none is called
    assert row["scored"]["sensitivity"]["value"] == 0 and row["note"].endswith("the threshold calls none of the 100 evaluated images, so sensitivity is 0 there")
    row = one_row(good, (has, np.full(2 * n, .1)))                                # the scanner has changed: fine when chosen, nothing found now
    assert row["held_out"]["sensitivity"]["value"] == 1 and row["note"] == "the threshold calls none of the 100 evaluated images, so sensitivity is 0 there"
    row = one_row(good, wrong)                                                    # half are called, all of them wrongly
    assert row["note"] == "none of the 50 evaluated images that have it is called, so sensitivity is 0 there; all of the 50 evaluated images without it are called, so specificity is 0 there"
    assert one_row(good, good)["note"] is None


@pytest.mark.parametrize("rule", ["sensitivity", "specificity"])
@pytest.mark.parametrize("target, enough", [(.9, 35), (.95, 73), (.8, 16)])
def test_a_target_that_so_few_images_cannot_show_is_noted(rule, target, enough):
    def images(few): return (lambda has: (has, .2 + .6 * has))(np.repeat([True, False], (few, 100) if rule == "sensitivity" else (100, few)))
    assert wilson_interval(enough, enough).low >= target > wilson_interval(enough - 1, enough - 1).low
    assert one_row(images(enough), images(enough), rule=rule, target=target)["note"] is None
    note = one_row(images(enough), images(enough - 1), rule=rule, target=target)["note"]
    of, low = "with it" if rule == "sensitivity" else "without it", wilson_interval(enough - 1, enough - 1).low
    assert note == f"a {rule} of {target:g} cannot be shown with the {enough - 1} evaluated images {of}: even for {enough - 1} of {enough - 1} the 95 % interval begins at {low:.3f}; {enough} are needed"
    assert " held-out images " in one_row(images(enough - 1), images(enough), rule=rule, target=target)["note"] and "evaluated" not in one_row(images(enough - 1), images(enough), rule=rule, target=target)["note"]
    assert one_row(images(enough - 1), images(enough - 1), rule="youden", target=target)["note"] is None       # no target, none missed
    assert "no number of images can show 1" in one_row(images(500), images(500), rule=rule, target=1)["note"]


def test_a_threshold_chosen_on_the_test_images_is_flattered():
    rng, own, frozen = np.random.default_rng(3), [], []
    for _ in range(300):
        held, test = normal(rng, 20, 40), normal(rng, 20, 40)
        for found, images in ((own, test), (frozen, held)):
            r = cv.operating_point(*test, cv.choose_threshold(*images))
            found.append(r["sensitivity"].value + r["specificity"].value - 1)
    assert np.mean(frozen) < 2 * norm.cdf(.6) - 1 < np.mean(own) - .04 and min(own) >= 0


# ---- faults

@pytest.mark.parametrize("change, said", [
    (dict(score=[.1, np.nan, .2]), "NaN or infinite values for 1 of 3"), (dict(score=[.1, np.inf, .2]), "NaN or infinite"), (dict(score=[.1, .2]), r"positive has shape \(3,\) and score \(2,\)"),
    (dict(score=[[.1], [.2], [.3]], positive=[[1], [0], [1]]), "one at a time"), (dict(positive=[], score=[]), "at least one image"), (dict(positive=[0, 1, 2]), "other than 0 and 1")])
def test_bad_images_are_named(change, said):
    a = dict(positive=[1, 0, 1], score=[.1, .2, .3]) | change
    for call in (cv.roc_points, cv.precision_recall_points, cv.roc_band, cv.precision_recall_band, cv.choose_threshold, lambda **k: cv.operating_point(threshold=.5, **k)):
        with pytest.raises(ValueError, match=said): call(**a)


def test_other_faults_are_named():
    p, y = np.full((4, 2), .5), [0, 1, 0, 1]
    report = lambda **k: cv.operating_report(**(dict(held_labels=y, held_probs=p, labels=y, probs=p, task="binary", classes="ab") | k))
    for call, said in [
        (lambda: cv.roc_points(HAS, SCORE, [1, 2]), r"weights has shape \(2,\), expected \(6,\)"), (lambda: cv.roc_points(HAS, SCORE, -SCORE), "0 or more"), (lambda: cv.precision_recall_points(HAS, SCORE, SCORE * np.nan), "0 or more"),
        (lambda: cv.roc_band(HAS, SCORE, n_resamples=10), "at least 100"), (lambda: cv.roc_band(HAS, SCORE, level=95), "such as 0.95"), (lambda: cv.precision_recall_band(HAS, SCORE, n_points=1), "n_points is 1"),
        (lambda: cv.choose_threshold([1, 1], [.1, .2]), "true for 2 of 2 images, expected some of both"), (lambda: cv.choose_threshold([0], [.1]), "true for 0 of 1"),
        (lambda: cv.choose_threshold(HAS, SCORE, rule="yuden"), "unknown threshold rule 'yuden'. Near: youden"), (lambda: cv.choose_threshold(HAS, SCORE, rule="sensitivity", target=0), "target is 0"),
        (lambda: cv.choose_threshold(HAS, SCORE, rule="specificity", target=90), "target is 90"), (lambda: cv.choose_threshold(HAS, SCORE, rule="specificity", target=np.nan), "target is nan"),
        (lambda: cv.operating_point(HAS, SCORE, np.nan), "threshold is NaN"), (lambda: cv.operating_point(HAS, SCORE, .5, level=2), "such as 0.95"),
        (lambda: cv.curves_report(y, p, "binary", "abc"), "classes has 3 names, expected 2"), (lambda: cv.curves_report(y, p, "binary", "ab", most_classes=0), "most_classes is 0"), (lambda: cv.curves_report(y, p * np.nan, "binary", "ab"), "NaN in 4 of 4"),
        (lambda: cv.curves_left_out(y, p, "binry", "ab"), "unknown task"), (lambda: report(rule="f2"), "unknown threshold rule"), (lambda: report(rule="sensitivity", target=2), "target is 2"), (lambda: report(task="ordinal", rule="f2"), "unknown threshold rule"),
        (lambda: report(held_labels=[0, 1]), r"held-out: labels has shape \(2,\)"), (lambda: report(probs=p * 4), "test: .*pass logits through"), (lambda: report(classes="abc"), "classes 3 names"),
        (lambda: report(held_labels=np.eye(4, 3), held_probs=np.full((4, 3), .5), labels=np.eye(4, 2), task="multi-label"), "held_probs has 3 columns, probs 2"),
    ]:
        with pytest.raises(ValueError, match=said): call()


def test_inputs_are_left_as_they_were():
    has, s = HAS.copy(), SCORE.copy()
    cv.roc_band(has, s), cv.precision_recall_band(has, s), cv.choose_threshold(has, s), cv.operating_point(has, s, .5)
    assert np.array_equal(has, HAS) and np.array_equal(s, SCORE)
