"From scores to words: scipy and statistics by hand as oracles, properties in seeded loops, faults refused by name."
import json
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pytest
import scipy.stats

from xaimed import verdict as v
from xaimed.intervals import holm
from xaimed.config import plain

pytestmark = pytest.mark.filterwarnings("error")


def measure(name, better="higher", family="faithfulness", decisive=True):
    return {"name": name, "title": name.upper(), "family": family, "better": better, "passes": "2 n", "budget": "cheap", "source": "", "decisive": decisive}


def method(name, control=False): return {"name": name, "title": name.title(), "control": control}


MEASURES = [measure("road"), measure("area_blur"), measure("area_mean"), measure("mprt_last", "lower", "randomisation"), measure("max_sensitivity", "lower", "robustness", False)]
METHODS = [method("a"), method("b"), method("c"), method("random", True), method("edges", True)]


def table_of(values, methods=METHODS, measures=MEASURES, chance=None):
    "A table from an array of shape (methods, measures, images)."
    values = np.asarray(values, dtype=float)
    keys = pd.MultiIndex.from_product([[m["name"] for m in methods], [m["name"] for m in measures], range(values.shape[2])], names=["method", "measure", "index"])
    frame = keys.to_frame(index=False).assign(value=values.ravel(), chance=np.nan if chance is None else np.asarray(chance, dtype=float).ravel(), group="random", target=0, drawn=1)
    return frame.assign(control=frame["method"].map({m["name"]: int(m["control"]) for m in methods}))


def scored(n=24, seed=0, **shift):
    "Noise, the same for all, with methods moved by name in the better direction on every measure but the randomisation test, which all pass."
    values = np.random.default_rng(seed).normal(0, 0.1, (len(METHODS), len(MEASURES), n))
    for i, m in enumerate(METHODS):
        values[i] += shift.get(m["name"], 0) * np.array([1 if x["better"] == "higher" else -1 for x in MEASURES])[:, None]
    values[:, 3] = 0.1 + 0.01 * values[:, 3]
    return values


# ---- interval


def test_interval_equals_scipy_where_scipy_has_an_answer():
    x = np.sort(np.random.default_rng(0).gamma(1.0, size=40))
    theirs = scipy.stats.bootstrap((x,), np.mean, n_resamples=2000, rng=np.random.default_rng(0)).confidence_interval
    ours = v.interval(x)
    assert np.allclose([ours.mean, ours.low, ours.high], [x.mean(), theirs.low, theirs.high])


@pytest.mark.parametrize("x", [[], [np.nan], [np.nan, np.inf]])
def test_interval_without_values(x):
    found = v.interval(x)
    assert found.n == 0 and np.isnan([found.mean, found.low, found.high]).all()


def test_interval_of_hostile_values_is_finite_holds_the_mean_and_ignores_the_order():
    rng = np.random.default_rng(1)
    cases = [[0] * 31 + [1], [1] * 31 + [0], [0, 1], [1, 1 + 1e-15], [1e-300, 2e-300], [1e12, 1e12 + 1], [-1e150, 1e150, 0], [0.1] * 7, list(rng.pareto(0.3, 32)), [0] * 499 + [1]]
    for x in cases + [rng.normal(size=rng.integers(2, 20)).tolist() for _ in range(30)]:
        found = v.interval(x)
        assert found.low <= found.mean <= found.high and found.n == len(x)
        assert np.min(x) <= found.low and found.high <= np.max(x)
        assert v.interval(rng.permutation(x)) == found


def test_interval_of_rows_equals_each_row_alone():
    rows = np.random.default_rng(2).normal(size=(3, 4, 12))
    rows[0, 0, :5], rows[1, 1], rows[2, 2], rows[2, 3, 1:] = np.nan, 0.25, np.nan, np.nan
    together = v.interval(rows)
    for i in range(3):
        for j in range(4): assert np.allclose([part[i, j] for part in together], v.interval(rows[i, j]), equal_nan=True)


def test_interval_covers():
    held = []
    for seed in range(300):
        found = v.interval(np.random.default_rng(seed).normal(2, 3, 30), n_resamples=1000, seed=seed)
        held.append(found.low <= 2 <= found.high)
    assert 0.90 <= np.mean(held) <= 0.97


@pytest.mark.parametrize("x, options, said", [(1.0, {}, "single number"), ([1, 2], {"n_resamples": 10}, "n_resamples is 10")])
def test_interval_refuses(x, options, said):
    with pytest.raises(ValueError, match=said): v.interval(x, **options)


# ---- paired test


@pytest.mark.parametrize("better, side", [("higher", "greater"), ("lower", "less")])
@pytest.mark.parametrize("n", [2, 4, 9])
def test_paired_test_equals_scipy_when_every_pattern_is_tried(better, side, n):
    for seed in range(10):
        a, b = np.random.default_rng(seed).integers(0, 6, (2, n)).astype(float)   # integers, so that ties happen
        theirs = scipy.stats.permutation_test((a - b,), np.mean, permutation_type="samples", n_resamples=np.inf, alternative=side)
        assert v.paired_test(a, b, better=better).p == pytest.approx(theirs.pvalue, abs=1e-12)


def test_paired_test_is_near_the_exact_p_when_patterns_are_drawn():
    for seed in range(5):
        a, b = np.random.default_rng(seed).normal(0.2, 1, (2, 12))
        exact, drawn = v.paired_test(a, b).p, v.paired_test(a, b, n_resamples=4000, seed=seed).p
        assert abs(exact - drawn) < 4 * np.sqrt(exact * (1 - exact) / 4000) + 1e-3


def test_paired_test_is_never_zero_and_mirrors():
    a, b = np.arange(40) + 5.0, np.arange(40.0)
    assert v.paired_test(a, b).p == v.smallest_p(40) == 1 / 20_000
    assert v.paired_test(a, b) == (5, 1 / 20_000, 40)
    assert v.paired_test(a, b, better="lower").p == 1
    x, y = np.random.default_rng(3).normal(size=(2, 10))
    assert v.paired_test(x, y, better="lower").p == v.paired_test(-x, -y).p == v.paired_test(y, x).p


def test_paired_test_ties_missing_pairs_and_order():
    assert v.paired_test(np.full(30, 0.3), np.full(30, 0.3)).p == 1
    assert v.paired_test([0.1 + 0.2] * 30, [0.3] * 30).p <= 1            # a rounding difference is no error
    assert np.isnan(v.paired_test([np.nan, 1], [1, np.nan]).p) and v.paired_test([np.nan, 1], [1, np.nan]).n == 0
    a, b = np.random.default_rng(4).normal(size=(2, 25))
    for seed in range(5):
        order = np.random.default_rng(seed).permutation(25)
        assert v.paired_test(a[order], b[order]).p == v.paired_test(a, b).p
    a[3] = np.nan
    gone = np.delete(a, 3), np.delete(b, 3)
    assert v.paired_test(a, b).difference == pytest.approx(v.paired_test(*gone).difference)
    few = np.array([1, np.nan, 2, 3, -1.0]), np.zeros(5)
    assert v.paired_test(*few).p == v.paired_test([1, 2, 3, -1.0], np.zeros(4)).p


def test_paired_test_keeps_its_level():
    a, b = np.random.default_rng(5).normal(size=(2, 2000, 12))
    assert 0.03 < np.mean(v.paired_test(a, b).p < 0.05) < 0.07


def test_paired_test_broadcasts():
    a, b = np.random.default_rng(6).normal(size=(3, 1, 10)), np.random.default_rng(7).normal(size=(2, 10))
    found = v.paired_test(a, b)
    assert found.p.shape == found.n.shape == found.difference.shape == (3, 2)
    assert found.p[2, 1] == v.paired_test(a[2, 0], b[1]).p


@pytest.mark.parametrize("a, b, options, said", [([1, 2], [1], {}, r"shape \(2,\)"), (1, 2, {}, r"shape \(\)"), ([1], [2], {"better": "up"}, "unknown direction 'up'")])
def test_paired_test_refuses(a, b, options, said):
    with pytest.raises(ValueError, match=said): v.paired_test(a, b, **options)


# ---- controls and comparisons


def test_best_control_by_direction_ties_and_absence():
    values = np.zeros((5, 5, 6)); values[3], values[4] = 0.2, 0.5
    t = table_of(values)
    assert v.best_control(t, MEASURES[0]) == "edges" and v.best_control(t, MEASURES[4]) == "random"
    values[3] = 0.5
    assert v.best_control(table_of(values), MEASURES[0]) == "edges"
    values[3:] = np.nan
    assert v.best_control(table_of(values), MEASURES[0]) is None
    t.loc[t["method"] == "edges", "drawn"] = 0                              # a gallery image has no say
    assert v.best_control(t, MEASURES[0]) == "random"


def test_compare_holds_the_right_figures():
    values = scored(a=0.5)
    found = v.compare(table_of(values), MEASURES, METHODS).set_index(["method", "measure"])
    assert len(found) == 15
    best = 3 + int(np.argmax(values[3:, 0].mean(1)))
    assert found.loc[("a", "road"), "difference"] == pytest.approx((values[0, 0] - values[best, 0]).mean())
    p = max(v.paired_test(values[0, 0], values[k, 0]).p for k in (3, 4))
    assert found.loc[("a", "road"), "p"] == p and found.loc[("a", "road"), "n"] == 24
    decides = found.index.get_level_values("measure").isin([m["name"] for m in v.decisive_measures(MEASURES)])
    for family in (decides, ~decides): assert np.array_equal(found["p_corrected"][family], holm(found["p"][family]))      # each for its own number


def test_a_method_equal_to_a_control_never_wins():
    for seed in range(20):
        values = scored(seed=seed)
        values[0] = values[3 + seed % 2]
        judged = v.judge(table_of(values), MEASURES, METHODS, budget={})["methods"][0]
        assert judged["kind"] == "none" and not any(e["better"] for e in judged["scores"].values())


def test_the_scores_of_a_constant_map_never_win():
    # pixels of a constant map are removed in a random order: its scores are those of noise, or one number, or not defined
    for seed in range(20):
        values = scored(seed=seed)
        values[0, :3], values[0, 3:] = 0, np.nan
        values[1, :3] = np.random.default_rng(100 + seed).permuted(values[3, :3], axis=1)
        for one in v.judge(table_of(values), MEASURES, METHODS, budget={})["methods"][:2]:
            assert one["kind"] == "none" and not any(e["better"] for e in one["scores"].values())


@pytest.mark.parametrize("wild", [False, True])
def test_false_wins_in_noise_stay_below_alpha(wild):
    # methods and controls are exchangeable; in the wild case the truly best control is noisy and often not the one with the best mean
    methods, measures = [method(f"m{i}") for i in range(5)] + [method(f"c{i}", True) for i in range(4)], [measure(f"s{i}") for i in range(6)]
    wins = 0
    for seed in range(100):
        rng = np.random.default_rng(seed)
        values = rng.normal(size=(9, 6, 12)) + rng.normal(size=(1, 1, 12))
        if wild: values[5] = rng.normal(0, 5, (6, 12)); values[:5] *= 0.1; values[6:] = values[6:] * 0.1 - 0.2
        wins += (v.compare(table_of(values, methods, measures), measures, methods)["p_corrected"] < 0.05).any()
    assert wins / 100 <= 0.05


def test_fewer_than_five_pairs_are_not_compared():
    values = scored(a=1.0)
    values[0, 0, 4:] = np.nan
    one = v.judge(table_of(values), MEASURES, METHODS, budget={})
    entry = one["methods"][0]["scores"]["road"]
    assert entry["n"] == 4 and entry["control"] is entry["p"] is entry["p_corrected"] is entry["better"] is None
    assert one["comparisons"] == 14 and one["methods"][0]["verdict"] == "better than every control on 2 of 3 measures"
    assert "ROAD: no comparison" in one["methods"][0]["reason"]


# ---- agreement


def test_agreement_equals_scipy_with_missing_scores():
    rng = np.random.default_rng(8)
    values = rng.integers(0, 4, (5, 5, 7)).astype(float)                     # ties
    values[rng.random(values.shape) < 0.2] = np.nan
    found = v.agreement(table_of(values), MEASURES)
    sign = [1 if m["better"] == "higher" else -1 for m in MEASURES]
    for i in range(5):
        for j in range(5):
            each = []
            for k in range(7):
                x, y = sign[i] * values[:, i, k], sign[j] * values[:, j, k]
                both = np.isfinite(x) & np.isfinite(y)
                if both.sum() >= 3 and np.ptp(x[both]) and np.ptp(y[both]): each.append(scipy.stats.spearmanr(x[both], y[both]).statistic)
            assert found["matrix"][i][j] == pytest.approx(np.mean(each)) if each else found["matrix"][i][j] is None


def test_agreement_leaves_out_measures_without_scores_and_says_none_where_undefined():
    values = scored(n=6)
    values[:, 1] = np.nan
    values[:, 2] = 0.5
    found = v.agreement(table_of(values), MEASURES)
    assert found["measures"] == ["road", "area_mean", "mprt_last", "max_sensitivity"] and found["images"] == 6
    assert found["matrix"][1] == [None] * 4 and found["matrix"][0][0] == pytest.approx(1)
    assert v.baselines(found) == {}
    assert v.baselines({"measures": ["area_mean", "x_blur", "area_blur"], "matrix": [[1, 0.1, 0.2], [0.1, 1, 0.3], [0.2, 0.3, 1]]}) == {"area": 0.2}


# ---- flags


def test_flags_cover_images_that_were_not_drawn_and_leave_out_controls():
    t = table_of(scored(n=6))
    t.loc[t["measure"] == "max_sensitivity", "value"] = 0.9
    t.loc[t["index"] == 5, "drawn"] = 0
    found = v.flags(t)
    assert {f["index"] for f in found} == set(range(6)) and {f["method"] for f in found} == {"a", "b", "c"}
    assert [(f["index"], f["method"]) for f in found] == sorted((f["index"], f["method"]) for f in found)
    assert json.dumps(found)


def test_flags_stand_beyond_the_limit_not_on_it_and_in_a_fixed_order():
    t = pd.DataFrame([{"index": 3, "drawn": 1, "method": "a", "control": 0, "measure": m, "value": x, "chance": np.nan}
                      for m, x in (("consensus", 0.1), ("max_sensitivity", 0.7), ("completeness", 0.4))])
    assert v.flags(t)[0]["flags"] == ["incomplete", "unstable", "alone"] and len(v.flags(t)[0]["words"]) == 3
    assert v.flags(t, limits=v.Limits(gap=0.4, sensitivity=0.7, agreement=0.1)) == []
    assert v.flags(t.assign(value=np.nan)) == []


@pytest.mark.parametrize("bad", [{"alpha": 0}, {"alpha": 1.5}, {"gap": np.nan}, {"randomisation": np.inf}])
def test_limits_refuse(bad):
    with pytest.raises(ValueError, match=next(iter(bad))): v.Limits(**bad)


# ---- the verdict


def test_judge_gives_the_file_as_agreed():
    values = scored(a=0.5, b=0.1)
    chance = np.full(values.shape, np.nan); chance[:, 0] = 0.08
    t = table_of(values, chance=chance)
    found = v.judge(t, MEASURES, METHODS, budget={"n_images": np.int64(24), "seconds": 1.5}, regions={"name": "x"})
    assert list(found) == ["format", "version", "budget", "measures", "methods", "agreement", "baselines", "recommended", "points", "regions", "flags", "limits", "comparisons"]
    assert found["format"] == "xaimed-verdict" and found["version"] == 1 and found["points"] is None and found["regions"] == {"name": "x"}
    assert found["limits"] == {"gap": 0.1, "sensitivity": 0.5, "empty": 1e-6, "agreement": 0.2, "randomisation": 0.5, "alpha": 0.05}
    assert json.loads(json.dumps(found, allow_nan=False)) == found == plain(found)
    assert [list(m) for m in found["methods"]] == [["name", "title", "control", "verdict", "kind", "reason", "scores"]] * 5
    assert list(found["methods"][0]["scores"]["road"]) == ["mean", "low", "high", "n", "chance", "control", "difference", "p", "p_corrected", "better"]
    assert list(found["methods"][3]["scores"]["road"]) == ["mean", "low", "high", "n", "chance"]
    assert found["methods"][3]["verdict"] is None and found["methods"][3]["kind"] == "control"
    assert found["methods"][0]["scores"]["road"]["chance"] == pytest.approx(0.08) and found["methods"][0]["scores"]["area_blur"]["chance"] is None
    assert found["methods"][0]["kind"] == "better" and found["recommended"]["method"] == "a" and found["comparisons"] == 15


def test_only_drawn_images_count_and_no_order_matters():
    t = table_of(scored(a=0.5, b=0.15))
    gallery = table_of(scored(n=8, seed=9, c=50)).assign(drawn=0, group="gallery")
    gallery["index"] += 1000
    base = v.judge(t, MEASURES, METHODS, budget={})
    both = v.judge(pd.concat([t, gallery]), MEASURES, METHODS, budget={})
    assert {k: x for k, x in both.items() if k != "flags"} == {k: x for k, x in base.items() if k != "flags"}
    assert v.judge(t.sample(frac=1, random_state=0), MEASURES, METHODS, budget={}) == base
    renamed = t.assign(index=t["index"].map(dict(enumerate(np.random.default_rng(0).permutation(24) + 100))))
    other = v.judge(renamed, MEASURES, METHODS, budget={})
    assert [m["kind"] for m in other["methods"]] == [m["kind"] for m in base["methods"]]
    for x, y in zip(base["methods"], other["methods"]):
        assert all(x["scores"][k].get("p") == y["scores"][k].get("p") and x["scores"][k]["low"] == y["scores"][k]["low"] for k in x["scores"])


def test_the_same_seed_gives_the_same_bits_and_leaves_the_global_generator_alone():
    t, state = table_of(scored(a=0.1)), np.random.get_state()[1].tolist()
    kept = t.copy()
    assert v.judge(t, MEASURES, METHODS, budget={}, seed=3) == v.judge(t, MEASURES, METHODS, budget={}, seed=3)
    assert np.random.get_state()[1].tolist() == state
    pd.testing.assert_frame_equal(t, kept)


def test_a_table_that_went_through_a_file(tmp_path):
    values = scored(n=8, a=0.5)
    values[2, :2] = np.nan
    t = table_of(values)
    t.to_csv(tmp_path / "scorecard.csv", index=False)
    before, after = (v.judge(x, MEASURES, METHODS, budget={}) for x in (t, pd.read_csv(tmp_path / "scorecard.csv")))
    assert [(m["verdict"], m["reason"]) for m in before["methods"]] == [(m["verdict"], m["reason"]) for m in after["methods"]]
    assert after["methods"][2]["scores"]["road"]["n"] == 0 and after["comparisons"] == before["comparisons"] == 13


def test_randomisation_comes_before_everything_else():
    values = scored(a=0.5)
    values[0, 3] = 0.9
    one = v.judge(table_of(values), MEASURES, METHODS, budget={})
    assert one["methods"][0]["kind"] == "randomisation" and "0.90" in one["methods"][0]["reason"] and one["recommended"]["method"] is None
    values[0, 3] = np.tile([0.0, 1.0], 12)                                     # the mean is on the limit, the lower end is not above it
    assert v.judge(table_of(values), MEASURES, METHODS, budget={})["methods"][0]["kind"] == "better"
    values[0, 3] = np.nan
    assert "the randomisation test was not made" in v.judge(table_of(values), MEASURES, METHODS, budget={})["methods"][0]["reason"]


def test_too_few_images_for_any_verdict():
    one = v.judge(table_of(scored(n=5, a=9.0)), MEASURES, METHODS, budget={})
    assert one["methods"][0]["kind"] == "unjudged" and "Too few images" in one["methods"][0]["reason"]
    assert min(e["p_corrected"] for e in one["methods"][0]["scores"].values()) > 0.05
    assert v.summary_words(one).startswith("The explanations were not judged. Too few images") and one["recommended"]["reason"].startswith("Nothing was judged. Too few images")
    assert "3 more" in one["methods"][0]["reason"]                              # 9 decisive comparisons: 9 / 2**8 < 0.05 < 9 / 2**7
    for n, kind in ((7, "unjudged"), (8, "better")):
        assert v.judge(table_of(scored(n=n, a=9.0)), MEASURES, METHODS, budget={})["methods"][0]["kind"] == kind


def test_measures_without_rows_or_without_a_decisive_one():
    extra = [*MEASURES, measure("pointing_game", family="localisation")]
    one = v.judge(table_of(scored(a=0.5)), extra, METHODS, budget={})
    assert one["methods"][0]["scores"]["pointing_game"]["n"] == 0 and one["methods"][0]["scores"]["pointing_game"]["mean"] is None
    assert one["methods"][0]["kind"] == "better"                               # localisation never decides
    plain_measures = [{**m, "decisive": False} for m in MEASURES]
    assert v.recommend([], [])["reason"].startswith("No measure of faithfulness")
    none = v.judge(table_of(scored(a=0.5)), plain_measures, METHODS, budget={})
    assert {m["kind"] for m in none["methods"]} == {"unjudged", "control"} and none["recommended"]["method"] is None
    assert v.summary_words(none)


def test_the_named_control_is_the_one_most_often_not_beaten():
    entry = lambda control: {"control": control, "difference": 0.0, "p": 0.5, "p_corrected": 1.0, "better": False, "mean": 0.1}
    three = MEASURES[:3]
    assert v.verdict_of({"road": entry("edges"), "area_blur": entry("random"), "area_mean": entry("random")}, three)["verdict"] == "no better than random noise"
    assert v.verdict_of({"road": entry("edges"), "area_blur": entry("random")}, three)["verdict"] == "no better than an edge detector"
    assert v.verdict_of({"road": entry("mine")}, three)["verdict"] == "no better than the control mine"


def test_recommend_breaks_ties_by_sensitivity_then_name():
    def one(name, kind, *means, sensitivity=None):
        scores = {**{m["name"]: {"mean": x} for m, x in zip(MEASURES, means)}, "max_sensitivity": {"mean": sensitivity}}
        return {"name": name, "title": name, "control": False, "kind": kind, "scores": scores}
    assert v.recommend([one("b", "better", 1, 1, 1), one("a", "better", 1, 1, 1)], MEASURES)["method"] == "a"
    assert v.recommend([one("b", "better", 1, 1, 1, sensitivity=0.1), one("a", "better", 1, 1, 1)], MEASURES)["method"] == "b"
    assert v.recommend([one("b", "better", 1, 2, 2), one("a", "better", 9, 1, 1)], MEASURES)["method"] == "b"
    assert v.recommend([], MEASURES)["method"] is None


def test_summary_words_are_two_or_three_sentences():
    for values in (scored(a=0.5, b=0.5), scored(), scored(n=5, a=9.0)):
        words = v.summary_words(v.judge(table_of(values), MEASURES, METHODS, budget={}))
        assert 2 <= words.count(". ") + 1 <= 3 and words.endswith(".") or words.endswith(").")
        assert "nan" not in words.lower().split() and "None" not in words


# ---- bad input


def broken(**change): return table_of(scored(n=6)).assign(**change)


@pytest.mark.parametrize("t, said", [
    (broken().drop(columns=["chance", "drawn"]), "no column drawn, chance"),
    (broken().replace({"measure": {"road": "raod"}}), "unknown measure in the table 'raod'.*Near: road"),
    (broken().replace({"method": {"a": "aa"}}), "unknown method in the table 'aa'"),
    (broken()[lambda t: t["control"] == 0], "no control map"),
    (broken()[lambda t: t["control"] == 1], "only control maps"),
    (broken()[lambda t: t["index"] < 4], "4 drawn images"),
    (broken(drawn=0), "no control map among the drawn"),
    (broken(drawn=np.nan), "column drawn holds None, expected 0 or 1"),
    (broken(control=2), "column control holds 2, expected 0 or 1"),
    (broken(control=lambda t: 1 - t["control"]), "differ on whether a is a control"),
    (broken(value="high"), "column value holds 'high', expected numbers"),
    (pd.concat([broken(), broken()]), "several rows"),
    (broken().iloc[:0], "no control map"),
])
def test_tables_that_are_refused(t, said):
    with pytest.raises(ValueError, match=said): v.judge(t, MEASURES, METHODS, budget={})


@pytest.mark.parametrize("measures, methods, said", [
    ([*MEASURES, MEASURES[0]], METHODS, "name 'road' twice"),
    (MEASURES, [*METHODS, METHODS[0]], "name 'a' twice"),
    ([{**MEASURES[0], "better": "more"}, *MEASURES[1:]], METHODS, "unknown direction of road 'more'"),
    ([{"name": "road"}, *MEASURES[1:]], METHODS, "'road' has no 'title'"),
])
def test_facts_that_are_refused(measures, methods, said):
    with pytest.raises(ValueError, match=said): v.judge(table_of(scored(n=6)), measures, methods, budget={})


def test_infinite_scores_count_as_missing():
    values = scored(n=8)
    values[0, 0, 0] = np.inf
    assert v.judge(table_of(values), MEASURES, METHODS, budget={})["methods"][0]["scores"]["road"]["n"] == 7


def test_consensus_is_read_for_flags_whether_or_not_it_is_among_the_measures():
    t = table_of(scored(n=6))
    extra = t[t["measure"] == "road"].assign(measure="consensus", value=0.05)
    found = v.judge(pd.concat([t, extra]), MEASURES, METHODS, budget={})
    assert len([f for f in found["flags"] if "alone" in f["flags"]]) == 18 and found["comparisons"] == 15
    assert "consensus" not in found["agreement"]["measures"]


# ---- the room


def test_no_torch_and_no_pictures_for_a_verdict(tmp_path):
    code = "import sys, xaimed.verdict; assert not {'torch', 'matplotlib', 'xaimed.scorecard', 'xaimed.plots'} & set(sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_full_scorecard_is_judged_in_seconds():
    methods = [method(f"f{i}", i < 4) for i in range(13)]
    measures = [measure(f"m{i}", decisive=i < 3) for i in range(25)]
    values = np.random.default_rng(0).normal(size=(13, 25, 32))
    values[np.random.default_rng(1).random(values.shape) < 0.05] = np.nan
    t = table_of(values, methods, measures)
    start = time.process_time()
    v.judge(t, measures, methods, budget={})
    assert time.process_time() - start < 5
