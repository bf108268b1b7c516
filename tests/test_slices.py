"Slices: qualities by hand, cuts and names, the user's table, tests beside statsmodels and scipy and by enumeration, false alarms, faults refused by name."
import itertools
import json
import math

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from scipy.stats import fisher_exact

from xaimed import slices as sl
from xaimed.intervals import delong_test, holm, wilson_interval
from xaimed.trust import auc, probabilities

pytestmark = pytest.mark.filterwarnings("error")
quick = settings(max_examples=25, deadline=None, derandomize=True)
TASKS = ("multi-class", "binary", "multi-label", "ordinal")


def scores(n, seed, task="multi-class", weak=None):
    "Labels and probabilities; on the rows of `weak` the evidence is nearly gone."
    rng = np.random.default_rng(seed)
    K, many = 2 if task == "binary" else 3, task == "multi-label"
    y = rng.integers(0, 2, (n, K)) if many else rng.integers(0, K, n)
    pull = np.where(np.zeros(n, bool) if weak is None else weak, 0.3, 3.0)[:, None]
    z = rng.standard_normal((n, K)) + pull * ((y - 0.5) if many else np.eye(K)[y])
    return y, probabilities(z, task)


def part(n, size, seed=0, name="part"): return sl.Slice("column", name, np.random.default_rng(seed).permutation(n) < size)


# ---- qualities by hand

def images(*gray): return np.array(gray, np.uint8)[:, None]


def test_qualities_by_hand():
    a = images([[0, 0, 0], [0, 255, 0], [0, 0, 0]])                # a point: mean 1/9, variance 1/9 - 1/81 = 8/81
    q = sl.image_quality(np.concatenate([a, a // 5]))
    assert np.allclose(q["brightness"], [1 / 9, 1 / 45])
    assert np.allclose(q["contrast"], [math.sqrt(8) / 9, math.sqrt(8) / 45])
    assert np.allclose(q["sharpness"], 0)                          # one inner pixel: a Laplacian has no variance
    assert np.allclose(q["noise"], [math.sqrt(math.pi / 2) * 4 / 6, math.sqrt(math.pi / 2) * 4 / 30])
    assert q["border"].tolist() == [1, 1] and list(q) == list(sl.QUALITIES)


def test_sharpness_by_hand():
    a = np.zeros((4, 4)); a[1, 1] = 255                            # Laplacian of the inner four: -4, 1, 1, 0
    assert np.isclose(sl.image_quality(images(a))["sharpness"][0], np.var([-4, 1, 1, 0]) / np.var([1] + [0] * 15))


def test_sharpness_and_noise_know_the_number_of_axes():
    static = np.random.default_rng(0).normal(128, 20, (4, 1, 16, 16, 16)).round().astype(np.uint8)
    q = sl.image_quality(static)                                   # 6**2 + 6 of white noise in three dimensions
    assert abs(q["sharpness"].mean() - 42) < 2 and abs(q["noise"].mean() - 20 / 255) < 0.002


def test_a_blurred_image_is_less_sharp_and_a_dull_one_is_not():
    a = np.random.default_rng(0).integers(0, 120, (3, 1, 9, 9)).astype(np.uint8) * 2
    b = a.astype(float); b[..., 1:-1, 1:-1] = sum(a[..., i:i + 7, j:j + 7].astype(float) for i in range(3) for j in range(3)) / 9
    first, blurred, dull = (sl.image_quality(v.astype(np.uint8))["sharpness"] for v in (a, b, a // 2))
    assert (blurred < first).all() and np.allclose(dull, first)


def test_border_counts_black_saturated_and_flat_sides():
    a = np.random.default_rng(0).integers(50, 200, (5, 5))
    def of(change):
        b = a.copy(); change(b)
        return sl.image_quality(images(b))["border"][0]
    assert of(lambda b: None) == 0
    assert of(lambda b: b.__setitem__((0, 2), 0)) == 1 / 16 and of(lambda b: b.__setitem__((2, 4), 255)) == 1 / 16
    assert of(lambda b: b.__setitem__((2, 2), 0)) == 0                                            # not at the border
    assert of(lambda b: b.__setitem__((slice(None), 4), 90)) == 5 / 16
    assert of(lambda b: (b.__setitem__((0, slice(None)), 90), b.__setitem__((slice(None), 0), 60))) == 5 / 16   # the corner breaks the upper side
    volume = np.random.default_rng(1).integers(50, 200, (2, 1, 3, 4, 5)).astype(np.uint8)
    volume[0, 0, 0] = 77
    assert sl.image_quality(volume)["border"].tolist() == [20 / (60 - 1 * 2 * 3), 0]


def test_colour_is_its_mean_and_saturated_only_in_every_channel():
    a = np.random.default_rng(0).integers(10, 200, (2, 3, 5, 5)).astype(np.uint8)
    a[:, 0, 0, 0] = 255
    q = sl.image_quality(a)
    assert np.allclose(q["brightness"], a.mean((1, 2, 3)) / 255) and q["border"].tolist() == [0, 0]
    a[0, :, 0, 0] = 255
    assert sl.image_quality(a)["border"].tolist() == [1 / 16, 0]


@pytest.mark.parametrize("value", [0, 51, 255])
@pytest.mark.parametrize("shape", [(2, 1, 3, 3), (1, 3, 7, 5), (1, 1, 4, 5, 6)])
def test_constant_images_are_defined(value, shape):
    q = sl.image_quality(np.full(shape, value, np.uint8))
    assert np.allclose(q["brightness"], value / 255) and all((q[k] == 0).all() for k in ("contrast", "sharpness")) and (q["noise"] < 1e-12).all() and (q["border"] == 1).all()


def test_parts_at_a_time_give_the_same():
    a = np.random.default_rng(0).integers(0, 256, (70, 1, 6, 6)).astype(np.uint8)
    whole = sl.image_quality(a)
    big = sl.image_quality(np.tile(a[:, :, :3, :3], (1, 1, 400, 400))[:5])       # 1.4 million pixels each: two at once
    alone = [sl.image_quality(np.tile(a[i:i + 1, :, :3, :3], (1, 1, 400, 400))) for i in range(5)]
    assert all(np.allclose(big[k], [one[k][0] for one in alone]) for k in big)
    assert all(np.array_equal(sl.image_quality(a[::-1])[k], whole[k][::-1]) for k in whole)
    assert all(v.shape == (0,) for v in sl.image_quality(a[:0]).values())


@pytest.mark.parametrize("bad, words", [
    (np.zeros((2, 1, 4, 4)), "images has type float64, expected uint8"), (np.zeros((2, 4, 4), np.uint8), r"images has shape \(2, 4, 4\), expected \(N, C, H, W\)"),
    (np.zeros((2, 1, 2, 4), np.uint8), "at least 3 pixels"), (np.zeros((2, 0, 4, 4), np.uint8), "images has shape"), (np.uint8(3), "images has shape")])
def test_images_of_another_form_are_refused(bad, words):
    with pytest.raises(ValueError, match=words): sl.image_quality(bad)


@quick
@given(st.integers(0, 10**6), st.sampled_from((1, 3)), st.booleans())
def test_qualities_stay_in_their_ranges_and_ignore_mirroring(seed, channels, flip):
    a = np.random.default_rng(seed).choice([0, 255, 20, 130], (3, channels, 6, 5)).astype(np.uint8)
    q = sl.image_quality(a)
    assert ((q["brightness"] >= 0) & (q["brightness"] <= 1)).all() and ((q["contrast"] >= 0) & (q["contrast"] <= 0.5)).all() and ((q["border"] >= 0) & (q["border"] <= 1)).all()
    assert (q["sharpness"] >= 0).all() and (q["noise"] >= 0).all()
    turned = a[..., ::-1, :] if flip else np.swapaxes(a, -1, -2)
    assert all(np.allclose(sl.image_quality(turned)[k], v) for k, v in q.items())


# ---- cuts

def sizes(slices): return [(s.name, int(s.rows.sum())) for s in slices]


def test_thirds_by_hand():
    assert sizes(sl.numeric_slices("q", np.arange(1, 10))) == [("q 3 or less", 3), ("q 3 to 6", 3), ("q above 6", 3)]
    assert sizes(sl.numeric_slices("q", np.arange(1, 9))) == [("q 3 or less", 3), ("q 3 to 6", 3), ("q above 6", 2)]
    assert sizes(sl.numeric_slices("q", [0.1234, 0.2143, 0.2151, 0.48, 0.49, 0.9])) == [("q 0.215 or less", 2), ("q 0.215 to 0.48", 2), ("q above 0.48", 2)]
    assert sizes(sl.numeric_slices("year", [2018, 2019, 2020, 2021])) == [("year 2019 or less", 2), ("year 2019 to 2020", 1), ("year above 2020", 1)]
    assert sizes(sl.numeric_slices("q", [1, 2, 3, 4], n_bins=2)) == [("q 2 or less", 2), ("q above 2", 2)]


def test_ties_stay_together_and_what_does_not_vary_is_not_cut():
    assert sl.numeric_slices("q", [0.5] * 9) == [] and sl.numeric_slices("q", []) == [] and sl.numeric_slices("q", [3]) == []
    assert sizes(sl.numeric_slices("q", [0] * 8 + [0.1, 0.2, 0.3])) == [("q: 0", 8), ("q above 0", 3)]
    assert [n for _, n in sizes(sl.numeric_slices("q", [0.1, 0.2, 0.3] + [1] * 8))] == [3, 8]
    assert sizes(sl.numeric_slices("q", [2, 1, 2])) == [("q: 1", 1), ("q: 2", 2)]
    assert sizes(sl.numeric_slices("q", [np.nan, np.nan])) == []
    assert sizes(sl.numeric_slices("q", [5, 5, np.nan, np.inf])) == [("q: 5", 2), ("q: missing", 2)]


@quick
@given(st.lists(st.one_of(st.integers(-5, 5).map(float), st.floats(-1e3, 1e3, width=32), st.just(math.nan)), min_size=1, max_size=60), st.integers(2, 5), st.integers(0, 99))
def test_every_image_is_in_one_slice_and_the_name_is_true(values, n_bins, seed):
    v = np.array(values)
    found = sl.numeric_slices("q", v, n_bins=n_bins)
    if len(set(v[np.isfinite(v)])) + np.isnan(v).any() < 2:
        assert found == []
        return
    assert (sum(s.rows.astype(int) for s in found) == 1).all() and all(s.rows.any() for s in found) and len(found) <= n_bins + 1
    for s in found:
        words, own = s.name.removeprefix("q").strip(": ").split(), v[s.rows]
        if words == ["missing"]: assert np.isnan(own).all()
        elif words[-1] == "less": assert (own <= float(words[0])).all()
        elif words[0] == "above": assert (own > float(words[1])).all()
        elif len(words) == 3: assert ((own > float(words[0])) & (own <= float(words[2]))).all()
        else: assert (own == float(words[0])).all()
    order = np.random.default_rng(seed).permutation(len(v))
    for s, t in zip(found, sl.numeric_slices("q", v[order], n_bins=n_bins)): assert s.name == t.name and np.array_equal(s.rows[order], t.rows)


def test_without_ties_the_thirds_are_equal_to_one_in_a_hundred():
    for n in (30, 300, 1000):
        found = sl.numeric_slices("q", np.random.default_rng(n).random(n))
        assert len(found) == 3 and max(abs(s.rows.sum() - n / 3) for s in found) <= 2 * (n // 100) + 1
        if n > 100: assert max(len(s.name) for s in found) <= len("q 0.333 to 0.666")


def test_categories():
    values = ["B", "A", "A", "", None, float("nan"), "C", "D", " A ", "other", "NA"]
    assert sizes(sl.category_slices("c", values, most=1)) == [("c: A", 3), ("c: other", 4), ("c: missing", 4)]
    assert sizes(sl.category_slices("c", values, most=8)) == [("c: A", 3), ("c: B", 1), ("c: C", 1), ("c: D", 1), ("c: other", 1), ("c: missing", 4)]
    assert sl.category_slices("c", ["A", "A"]) == [] and sl.category_slices("c", [None, ""]) == []
    assert sizes(sl.category_slices("c", [True, False, True])) == [("c: True", 2), ("c: False", 1)]


def test_columns_are_numbers_or_words():
    made = sl.metadata_slices({"age": np.array([1, None, 2, 3, 4], object), "sex": ["F", "M", None, "M", "F"], "flag": np.array([True, False, True, True, True]), "same": ["x"] * 5, "score": np.arange(5) / 10})
    assert [s.column for s in made] == ["age"] * 5 + ["sex"] * 3 + ["flag"] * 2 + ["score"] * 3
    assert [s.name for s in made if s.column == "sex"] == ["sex: F", "sex: M", "sex: missing"]
    assert [s.column for s in sl.quality_slices({"a": np.arange(6), "b": np.ones(6)})] == ["a"] * 3


@pytest.mark.parametrize("values, kind", [
    ([1, 2, 3, 4, 5] * 10, "word"), ([float(v) for v in range(1, 9)] * 3, "word"), (list(range(1, 10)) * 3, "number"), ([3, None, 1] * 5, "word"), ([1.5, 2.5] * 5, "number"), (np.arange(60) / 7, "number"),
    (range(1000, 1060), "name"), ([*range(1000, 1060), *range(1070, 1090)], "name"), (range(0, 300, 5), "number"), ([*range(50), 3, 4], "number"), ([*range(50), *range(20)], "number"), (np.arange(60) ** 2, "number"), (np.random.default_rng(0).permutation(400)[:60], "number"),
    (np.r_[range(20, 38), 47], "name"), (np.r_[range(20, 38), 48], "number"),        # 19 numbers: among 28 from the lowest to the highest is hardly a gap, among 29 it is one
    ([f"P{i}" for i in range(40)], "name"), ([f"P{i}" for i in range(40)] + [None] * 40, "name"), ([f"P{i % 30}" for i in range(40)], "word"), (["a", "b"], "word"), ([None, ""], "word"), ([True, False] * 9, "word"), ([np.nan] * 4, "word")])
def test_kinds_of_columns(values, kind): assert sl.column_kind(values) == kind


@pytest.mark.parametrize("n", [9, 12, 20, 40])
def test_ages_of_a_small_split_are_numbers_even_when_all_differ(n):
    rng = np.random.default_rng(n)
    for ages in (rng.choice(np.arange(18, 95), n, replace=False), rng.choice(np.arange(18, 95), n, replace=False).astype(float), rng.normal(60, 12, n).round(1)):
        assert len(set(ages)) >= 0.8 * n and sl.column_kind(ages) == sl.column_kind(ages, column="age") == "number"
        assert sl.column_kind(np.r_[ages, np.nan, np.nan]) == "number" and {s.column for s in sl.metadata_slices({"age": ages})} == {"age"}


@pytest.mark.parametrize("column, values, kind", [
    ("patient_id", range(0, 300, 5), "name"), ("PatientID", range(0, 300, 5), "name"), ("patient id", [7, 7, 9] * 2 + list(range(20, 60)), "name"), ("Subject", [f"S{i % 30}" for i in range(60)], "name"), ("file", [f"{i % 30}.png" for i in range(40)], "name"),
    ("MRN", range(0, 300, 5), "name"), ("scanner_id", [1, 2, 3] * 20, "word"), ("site_id", list(range(12)) * 5, "word"), ("site_id", list(range(12)) * 4, "name"), ("patient_age", range(0, 300, 5), "number"), ("covid", range(0, 300, 5), "number"), ("grid", range(0, 300, 5), "number"),
    ("patient_id", np.arange(60) / 7, "number"), ("", range(0, 300, 5), "number"), ("1", range(0, 300, 5), "number")])
def test_a_header_may_say_that_it_is_an_identifier(column, values, kind): assert sl.column_kind(values, column=column) == kind


def test_a_users_csv_with_age_sex_scanner_and_patient(tmp_path):
    "Twenty-four patients drawn from a thousand: each has its own age, and its own number."
    rng = np.random.default_rng(0)
    age, patient = rng.choice(np.arange(18, 95), 24, replace=False), rng.choice(np.arange(1, 1001), 24, replace=False)
    path = write(tmp_path, "index,age,sex,scanner,patient_id\n" + "".join(f"{i},{age[i]},{'FM'[i % 2]},{'ABC'[i % 3]},{patient[i]}\n" for i in range(24)))
    columns = sl.read_metadata(path, range(24), "test")
    assert {c: sl.column_kind(v, column=c) for c, v in columns.items()} == dict(age="number", sex="word", scanner="word", patient_id="name")
    assert list(dict.fromkeys(s.column for s in sl.metadata_slices(columns))) == ["age", "sex", "scanner"] and [s.column for s in sl.metadata_slices(columns)].count("age") == 3
    assert sl.columns_left_out(columns) == ["patient_id: by its header an identifier, no slices."]


def test_a_site_in_numbers_is_sliced_by_value_and_its_missing_are_named():
    for site in (np.array([1, 2, 5, 2, 2, 1]), np.array([1, 2, 5, 2, 2, 1, np.nan])):
        assert sizes(sl.metadata_slices({"site": site})) == [("site: 2", 3), ("site: 1", 2), ("site: 5", 1)] + [("site: missing", 1)] * (len(site) == 7)


def test_none_is_a_word(tmp_path):
    column = ["none", "hypertension", "none", ""]
    assert sizes(sl.metadata_slices({"comorbidity": column})) == [("comorbidity: none", 2), ("comorbidity: hypertension", 1), ("comorbidity: missing", 1)]
    got = sl.read_metadata(write(tmp_path, "index,comorbidity\n0,none\n1,hypertension\n"), [0, 1, 2], "test")
    assert got["comorbidity"].tolist() == ["none", "hypertension", "missing"]
    assert sizes(sl.metadata_slices({"c": [None, "x"]})) == [("c: x", 1), ("c: missing", 1)]


def test_names_of_images_give_no_slices_and_are_told():
    columns = {"patient_id": np.arange(200, 250), "file": [f"{i}.png" for i in range(50)], "site": [1, 2] * 25, "scanner": ["A"] * 50, "dose": np.arange(50) / 7}
    assert {s.column for s in sl.metadata_slices(columns)} == {"site", "dose"}
    assert sl.columns_left_out(columns) == ["patient_id: by its header an identifier, no slices.", "file: by its header an identifier, no slices.", "scanner: all images have the same value, no slices."]
    assert sl.columns_left_out({"number": np.arange(200, 250), "note": [f"n{i}" for i in range(50)]}) == [f"{c}: nearly every image has its own value, no slices." for c in ("number", "note")]
    assert sl.columns_left_out({}) == []


@pytest.mark.parametrize("call, words", [
    (lambda: sl.numeric_slices("age", [[1, 2]]), r"age has shape \(1, 2\)"), (lambda: sl.numeric_slices("age", [1, 2], n_bins=1), "n_bins is 1, expected at least 2"),
    (lambda: sl.category_slices("c", ["a"], most=0), "most is 0"), (lambda: sl.metadata_slices({"c": [["a"], ["b"]]}), "column 'c' has shape")])
def test_bad_columns_are_refused(call, words):
    with pytest.raises(ValueError, match=words): call()


# ---- the user's table

def write(tmp_path, text, encoding="utf-8"):
    path = tmp_path / "table.csv"
    path.write_text(text, encoding=encoding)
    return path


def test_table_is_read_in_the_order_of_the_images(tmp_path):
    path = write(tmp_path, 'index,split,site,age,note\n2,test,"B, north",61,\n0,test,A,,x\n1,train,C,30,y\n\n', "utf-8-sig")
    got = sl.read_metadata(path, [2, 0, 1], "test")
    assert list(got) == ["site", "age", "note"] and got["site"].tolist() == ["B, north", "A", "missing"] and got["note"].tolist() == ["missing", "x", "missing"]
    assert got["age"][0] == 61 and np.isnan(got["age"][1:]).all()
    assert [s.name for s in sl.metadata_slices(got)] == ["site: A", "site: B, north", "site: missing", "age: 61", "age: missing", "note: x", "note: missing"]


def test_table_of_a_whole_split_for_some_of_its_images(tmp_path):
    path = write(tmp_path, "index,site\n" + "".join(f"{i},{'AB'[i % 2]}\n" for i in range(10)))
    assert sl.read_metadata(path, [7, 2], "val", size=10)["site"].tolist() == ["B", "A"]
    with pytest.raises(ValueError, match="8 rows whose index is not among the 2 images of the val split, the first 0"): sl.read_metadata(path, [7, 2], "val")
    with pytest.raises(ValueError, match="1 row whose index is not among the 9 images"): sl.read_metadata(path, [7, 2], "val", size=9)


@pytest.mark.parametrize("text, words", [
    ("id,site\n0,A\n", "has the columns id, site, expected one called index"), ("", r"has the columns \(none\)"), ("index;site\n0;A\n", "separated by commas"),
    ("index,site\n0,A\n0,B\n", "row 3, has index 0 of the test split a second time"), ("index,site\n3,A\n", "the first 3; expected 0..2"), ("index,site\n-1,A\n", "the first -1"),
    ("index,site\nx,A\n", "row 2, has index 'x', expected a whole number"), ("index,site\n0.5,A\n", "'0.5'"), ("index,split\n0,test\n", "at least one named column"), ("index,split,site\n0,tset,A\n", "Near: test"),
    ("index,split,site\n0,train,A\n", "no row of the test split"), ("index,site\n0,A,B\n", "more values than"), ("index,site\n0\n", "fewer values than"), ("index,site,site\n0,A,B\n", "a column name twice")])
def test_tables_that_do_not_fit_are_refused(tmp_path, text, words):
    with pytest.raises(ValueError, match=words): sl.read_metadata(write(tmp_path, text), [0, 1, 2], "test")


def test_unknown_split_is_refused(tmp_path):
    with pytest.raises(ValueError, match="unknown split 'tests'"): sl.read_metadata(write(tmp_path, "index,site\n0,A\n"), [0], "tests")


# ---- the difference and its test

@pytest.mark.parametrize("counts, level, low, high", [   # statsmodels 0.15.0, confint_proportions_2indep(method="newcomb", compare="diff")
    ((56, 70, 48, 80), .95, 0.05243147240236498, 0.33387265403690614), ((56, 70, 48, 80), .99, 0.005370869250078403, 0.3718084317757736),
    ((0, 20, 3, 20), .95, -0.36041886474075696, 0.0383963331262675), ((20, 20, 30, 40), .95, 0.05595578624951486, 0.4019396142076803),
    ((9, 10, 3, 10), .99, 0.04302696661534433, 0.8374050678947363), ((141, 200, 380, 400), .95, -0.3138236686054291, -0.18066745739709653), ((0, 10, 0, 20), .99, -0.24910540109875348, 0.3988540933049082)])
def test_difference_interval_beside_statsmodels(counts, level, low, high):
    e = sl.difference_interval(*counts, level=level)
    assert np.allclose(e[1:3], (low, high), atol=1e-12) and e.n == counts[1] + counts[3] and np.isclose(e.value, counts[0] / counts[1] - counts[2] / counts[3])


def test_difference_of_an_empty_group_is_not_defined(): assert all(math.isnan(v) for v in sl.difference_interval(0, 0, 3, 5)[:3])


@quick
@given(st.integers(0, 10**6), st.integers(1, 60), st.floats(0, 1), st.floats(0, 1))
def test_without_strata_it_is_fishers_test(seed, n, share, size):
    rng = np.random.default_rng(seed)
    right, rows = rng.random(n) < share, rng.random(n) < size
    table = [[(right & rows).sum(), (~right & rows).sum()], [(right & ~rows).sum(), (~right & ~rows).sum()]]
    expected, p = sl.exact_test(right, rows)
    assert np.isclose(p, fisher_exact(table)[1]) and np.isclose(expected, rows.sum() * right.mean())


@pytest.mark.parametrize("seed", range(6))
def test_within_strata_beside_every_arrangement(seed):
    rng = np.random.default_rng(seed)
    strata, right = np.array([0, 0, 0, 0, 1, 1, 1, 1, 2]), rng.random(9) < 0.6
    rows = rng.random(9) < 0.5
    sums = []                       # every way to choose as many images of each stratum
    for parts in itertools.product(*(itertools.combinations(np.flatnonzero(strata == s), int(rows[strata == s].sum())) for s in range(3))):
        sums.append(right[[i for p in parts for i in p]].sum())
    law = {k: sums.count(k) / len(sums) for k in sums}
    seen = law[(right & rows).sum()]
    expected, p = sl.exact_test(right, rows, strata)
    assert np.isclose(p, sum(v for v in law.values() if v <= seen * (1 + 1e-9))) and np.isclose(expected, np.mean(sums))


def test_strata_that_explain_everything_leave_nothing():
    right, rows = np.array([1] * 30 + [0] * 30, bool), np.array([0] * 30 + [1] * 30, bool)
    assert sl.exact_test(right, rows)[1] < 1e-15 and sl.exact_test(right, rows, right.astype(int)) == (0, 1)
    with pytest.raises(ValueError, match="expected all"): sl.exact_test(right, rows[:5])


# ---- AUC

@quick
@given(st.integers(0, 10**6), st.integers(2, 12), st.integers(2, 12), st.booleans())
def test_one_class_has_the_variance_of_delong(seed, up, down, ties):
    rng = np.random.default_rng(seed)
    positive, score = np.r_[np.ones(up, bool), np.zeros(down, bool)], rng.integers(0, 4, up + down) if ties else rng.standard_normal(up + down)
    value, variance = sl.auc_with_variance(positive[:, None], score[:, None])
    known = delong_test(positive, np.zeros(up + down), score)     # a score that says nothing has no variance of its own
    if math.isnan(known.p): return
    inner = known.low > -1 and known.high < 1
    assert np.isclose(value, known.second) and (not inner or np.isclose(math.sqrt(variance), (known.high - known.low) / 2 / 1.959963984540054))


def test_mean_over_classes_has_the_spread_of_new_draws():
    values, variances = [], []
    for seed in range(250):
        y, p = scores(60, seed, weak=np.ones(60, bool))
        value, variance = sl.auc_with_variance(y[:, None] == np.arange(3), p)
        assert np.isclose(value, auc(y, p, "multi-class"))
        values.append(value); variances.append(variance)
    assert 0.85 < np.mean(variances) / np.var(values) < 1.25
    assert sl.auc_with_variance(np.repeat(np.eye(2)[[0, 0, 1, 1]][:, :1] == 1, 3, 1), np.repeat(np.array([[3.], [1], [2], [0]]), 3, 1)) == pytest.approx((0.75, 0.125))    # thrice the same class is one class


def test_only_classes_with_enough_images_in_both_are_compared():
    y, p = scores(120, 0)
    rows = np.arange(120) < 60
    y[rows & (y == 2)] = 0
    y[np.flatnonzero(rows)[:4]] = 2                                # four of class 2 inside: one too few
    difference, p_value, classes = sl.compare_auc(y[:, None] == np.arange(3), p, rows)
    assert classes == [0, 1] and 0 <= p_value <= 1 and difference.low <= difference.value <= difference.high
    assert sl.compare_auc(y[:, None] == np.arange(3), p, np.arange(120) < 3)[2] == [] and math.isnan(sl.compare_auc(y[:, None] == np.arange(3), p, np.zeros(120, bool))[1])


def test_auc_differences_of_perfect_scores():
    positive, rows = np.tile([[True], [False]], (20, 1)), np.arange(40) < 20
    perfect = positive.astype(float)
    d, p, classes = sl.compare_auc(positive, perfect, rows)
    assert (d.value, p, classes) == (0, 1, [0]) and math.isnan(d.low)
    half = np.where(rows[:, None], 0.5, perfect)                   # inside all tied: no variance on either side, and yet they differ
    d, p, _ = sl.compare_auc(positive, half, rows)
    assert d.value == -0.5 and math.isnan(p)


def test_the_auc_test_keeps_its_level():
    rng, p = np.random.default_rng(0), []
    positive, rows = np.tile([[True], [False]], (75, 1)), np.arange(150) < 50
    for _ in range(600): p.append(sl.compare_auc(positive, rng.standard_normal((150, 1)) + 1.5 * positive, rows)[1])
    assert 0.03 < np.mean(np.array(p) <= 0.05) < 0.085


# ---- the report

ROW = {"column", "name", "n", "n_per_class", "small", "tested", "accuracy", "auc", "ece", "difference", "p", "p_corrected", "worse", "expected", "p_mix", "p_mix_corrected", "worse_than_mix", "auc_difference", "auc_classes", "p_auc", "p_auc_corrected", "auc_worse", "against_rest", "against_mix", "auc_against_rest"}


@pytest.mark.parametrize("task", TASKS)
def test_a_planted_slice_is_found_in_every_task(task):
    weak = np.arange(240) < 80
    y, p = scores(240, 1, task, weak)
    slices = [sl.Slice("q", "weak", weak), part(240, 80, 1, "luck"), part(240, 10, 2, "few")]
    r = sl.slice_report(y, p, task, slices, n_resamples=100)
    assert json.loads(json.dumps(r, allow_nan=False)) == r
    found = {s["name"]: s for s in r["slices"]}
    assert all(set(s) == ROW for s in r["slices"]) and (r["tested"], r["tested_auc"]) == (2, 2)
    assert found["weak"]["worse"] and found["weak"]["worse_than_mix"] and found["weak"]["auc_worse"] and not found["luck"]["worse"]
    assert found["few"]["small"] and found["few"]["p"] is None and found["few"]["p_mix_corrected"] is None and not found["few"]["worse"] and found["few"]["accuracy"]["low"] is not None
    for figure in ("accuracy", "auc"):
        w = r["worst"][figure]
        assert w["name"] == "weak" and w["worse"] and w["tested"] == 2 and np.isclose(w["level"], 0.975) and w["value"] == found["weak"][figure]["value"]
        assert w["low"] < found["weak"][figure]["low"] < found["weak"][figure]["high"] < w["high"]
    words = sl.slices_words(r)
    assert any("worse than the rest beyond luck" in s for s in words) and [sl.slice_mark(s) for s in r["slices"]] == ["worse", "", "small"] and sl.slice_mark(found["weak"], "auc") == "worse by AUC"
    assert "lowest accuracy" in words[1] and "lowest AUC" in words[2]
    assert ("every label" in words[0]) == (task == "multi-label")


@pytest.mark.parametrize("task", TASKS)
def test_a_better_slice_is_not_called_worse(task):
    weak = np.arange(240) < 80
    y, p = scores(240, 1, task, weak)
    s = sl.slice_report(y, p, task, [sl.Slice("q", "strong", ~weak)], n_resamples=100)["slices"][0]
    assert max(s["p_corrected"], s["p_mix_corrected"], s["p_auc_corrected"]) < 0.05 and s["difference"]["low"] > 0 and s["accuracy"]["value"] > s["expected"]
    assert not s["worse"] and not s["worse_than_mix"] and not s["auc_worse"] and s["auc_classes"] == ([1] if task == "binary" else [0, 1, 2])
    assert s["against_rest"] == s["against_mix"] == s["auc_against_rest"] == "better" and sl.slice_mark(s) == "better" and sl.slice_mark(s, "auc") == "better by AUC"


@pytest.mark.parametrize("task", TASKS)
def test_the_words_of_a_better_slice_do_not_read_as_a_failure(task):
    weak = np.arange(240) < 80
    y, p = scores(240, 1, task, weak)
    one = sl.slice_report(y, p, task, [sl.Slice("q", "strong", ~weak)], n_resamples=100)
    assert one["worst"]["accuracy"]["against_rest"] == one["worst"]["auc"]["against_rest"] == "better" and not one["worst"]["accuracy"]["worse"]
    said = sl.slices_words(one)
    assert said[1].startswith("The accuracy of the one tested slice, strong, is ") and "by its interval: better than the rest beyond luck (p < 0.001, corrected)." in said[1] and not any("not worse" in w or "lowest" in w or "fewer" in w for w in said)
    two = sl.slice_report(y, p, task, [sl.Slice("q", "strong", ~weak), sl.Slice("q", "half of it", np.arange(240) >= 120)], n_resamples=100)
    assert "even that is better than the rest beyond luck" in sl.slices_words(two)[1]
    both = sl.slice_report(y, p, task, [sl.Slice("q", "strong", ~weak), sl.Slice("q", "weak", weak)], n_resamples=100)
    gap, told = both["slices"][0]["difference"]["value"], [w for w in sl.slices_words(both) if w.startswith("Better than the rest")]
    assert [r["against_rest"] for r in both["slices"]] == ["better", "worse"] and told[0] == f"Better than the rest beyond luck by accuracy, which is no failure: strong ({100 * gap:.1f} points more, p < 0.001, corrected)." and "by AUC" in told[1] and "weak" not in " ".join(told)


def test_directions_say_what_the_flags_say():
    seen = set()
    for seed in range(30):
        y, p = scores(120, seed, "binary", np.arange(120) < 40)
        r = sl.slice_report(y, p, "binary", [sl.Slice("q", "weak", np.arange(120) < 40), sl.Slice("q", "rest", np.arange(120) >= 40), part(120, 50, seed, "luck"), part(120, 5, seed, "few")], n_resamples=100)
        for s in r["slices"]:
            for answer, worse, key in (("against_rest", "worse", "p_corrected"), ("against_mix", "worse_than_mix", "p_mix_corrected"), ("auc_against_rest", "auc_worse", "p_auc_corrected")):
                assert s[worse] == (s[answer] == "worse") and (s[answer] == "not tested") == (s[key] is None) and (s[answer] in ("worse", "better")) == (s[key] is not None and s[key] <= 0.05)
                seen.add(s[answer])
            if s["against_rest"] in ("worse", "better"): assert (s["difference"]["value"] < 0) == (s["against_rest"] == "worse")
    assert seen == {"worse", "better", "no difference shown", "not tested"}


def test_report_by_hand():
    # class 0: 3 of 4 right, class 1: 2 of 4; the slice holds one of class 0 (right) and two of class 1 (both wrong)
    y, said = np.array([0, 0, 0, 0, 1, 1, 1, 1]), np.array([0, 0, 0, 1, 0, 0, 1, 1])
    rows = np.array([1, 0, 0, 0, 1, 1, 0, 0], bool)
    r = sl.slice_report(y, np.eye(2)[said] * 0.8 + 0.1, "binary", [sl.Slice("c", "a", rows)], small=1, n_resamples=100)
    s = r["slices"][0]
    assert (s["n"], s["n_per_class"], s["accuracy"]["value"]) == (3, [1, 2], pytest.approx(1 / 3)) and s["expected"] == pytest.approx((0.75 + 2 * 0.5) / 3)
    assert s["difference"]["value"] == pytest.approx(1 / 3 - 4 / 5) and s["accuracy"]["low"] == pytest.approx(wilson_interval(1, 3).low)
    assert s["p"] == pytest.approx(fisher_exact([[1, 2], [4, 1]])[1]) == s["p_corrected"] and s["p_auc"] is None and s["auc_classes"] == []
    # right inside by luck: of class 0 none or one (1/4, 3/4), of class 1 none, one or two (1/6, 4/6, 1/6); 0, 1, 2 or 3 in all with 1, 7, 13 and 3 of 24
    assert s["p_mix"] == pytest.approx((1 + 7 + 3) / 24)
    assert s["ece"] == pytest.approx(0.9 - 1 / 3) and r["overall"]["accuracy"]["value"] == 5 / 8


def test_multi_label_counts_an_image_as_right_when_every_label_is():
    y = np.array([[1, 0], [1, 1], [0, 0], [0, 1]])
    p = np.array([[.9, .1], [.9, .2], [.1, .1], [.8, .9]])        # the second and the last have one label wrong
    r = sl.slice_report(y, p, "multi-label", [sl.Slice("c", "a", np.array([1, 1, 0, 0], bool))], small=1, n_resamples=100)
    assert r["overall"]["accuracy"]["value"] == 0.5 and r["slices"][0]["accuracy"]["value"] == 0.5 and r["slices"][0]["n_per_class"] == [2, 1]
    assert r["slices"][0]["expected"] == 0.5 and r["slices"][0]["p_mix"] == 1      # every combination occurs once: nothing to compare


def test_a_class_mix_is_told_from_a_worse_slice():
    rng = np.random.default_rng(0)
    rows = np.arange(600) < 200
    y = np.where(rng.random(600) < np.where(rows, 0.9, 0.2), 1, 0)                 # class 1 is hard, and the slice is full of it
    right = rng.random(600) < np.where(y == 1, 0.6, 0.95)
    p = np.eye(2)[np.where(right, y, 1 - y)] * 0.8 + 0.1
    r = sl.slice_report(y, p, "binary", [sl.Slice("site", "B", rows)], n_resamples=100)
    s = r["slices"][0]
    assert s["worse"] and not s["worse_than_mix"] and abs(s["accuracy"]["value"] - s["expected"]) < 0.07
    assert sl.slice_mark(s) == "worse, by its class mix" and any("class mix alone" in t and "not shown to be worse" in t for t in sl.slices_words(r))


def test_harm_that_an_easy_mix_hides_is_named():
    def block(n, ok): return np.arange(n) < ok
    right, hard = np.r_[block(80, 64), block(20, 4), block(20, 20), block(80, 40)], np.r_[np.zeros(80), np.ones(20), np.zeros(20), np.ones(80)].astype(int)
    r = sl.slice_report(hard, np.eye(2)[np.where(right, hard, 1 - hard)] * 0.8 + 0.1, "binary", [sl.Slice("site", "site: A", np.arange(200) < 100)], n_resamples=100)
    assert not r["slices"][0]["worse"] and r["slices"][0]["worse_than_mix"] and sl.slice_mark(r["slices"][0]) == "worse than its class mix"
    assert any("not shown to be worse than the rest, but its class mix alone" in t for t in sl.slices_words(r))


def test_meaningless_slices_are_seldom_called_anything():
    rng, raw, held = np.random.default_rng(0), [], []
    for _ in range(250):
        right = rng.random(300) < 0.8
        p = [sl.exact_test(right, rng.permutation(300) < 100)[1] for _ in range(12)]
        raw.append(min(p) <= 0.05); held.append(min(holm(p)) <= 0.05)
    assert 0.28 < np.mean(raw) < 0.53 and np.mean(held) < 0.08                    # 46 % and 5 % at most, exact tests being cautious


def test_meaningless_slices_of_whole_reports():
    called = []
    for seed in range(25):
        y, p = scores(150, seed + 100, "binary")
        r = sl.slice_report(y, p, "binary", [part(150, 50, 1000 * seed + k, f"s{k}") for k in range(8)], n_resamples=100)
        called.append([any(s[k] for s in r["slices"]) for k in ("worse", "worse_than_mix", "auc_worse")])
        assert r["worst"]["accuracy"]["worse"] <= called[-1][0]
    assert (np.mean(called, 0) <= 0.16).all()


def test_the_simultaneous_interval_holds_for_the_slice_that_was_picked():
    rng, m = np.random.default_rng(0), 12
    counts = rng.binomial(100, 0.8, (2000, m)).min(1)
    def holds(level): e = wilson_interval(counts, 100, level=level); return np.mean((e.low <= 0.8) & (e.high >= 0.8))
    assert holds(0.95) < 0.8 and holds(1 - 0.05 / m) > 0.94
    weak = np.arange(240) < 80
    y, p = scores(240, 1, "binary", weak)
    slices = [sl.Slice("q", "weak", weak)] + [part(240, 80, k, f"s{k}") for k in range(m - 1)]
    w = sl.slice_report(y, p, "binary", slices, n_resamples=100)["worst"]["accuracy"]
    right = (p.argmax(1) == y)[weak].sum()
    assert (w["low"], w["high"]) == pytest.approx(wilson_interval(right, 80, level=1 - 0.05 / m)[1:3])


@quick
@given(st.integers(0, 10**6), st.sampled_from(TASKS))
def test_the_order_of_images_has_no_say(seed, task):
    y, p = scores(60, seed, task)
    slices, order = [part(60, 25, seed), part(60, 30, seed + 1, "other")], np.random.default_rng(seed).permutation(60)
    a = sl.slice_report(y, p, task, slices, n_resamples=100)
    b = sl.slice_report(y[order], p[order], task, [s._replace(rows=s.rows[order]) for s in slices], n_resamples=100)
    for s, t in zip(a["slices"], b["slices"]):
        for k in ("n", "n_per_class", "p", "p_mix", "p_corrected", "expected", "ece", "p_auc", "worse"): assert s[k] == pytest.approx(t[k]), k
        assert s["accuracy"] == pytest.approx(t["accuracy"]) and s["auc"]["value"] == pytest.approx(t["auc"]["value"])
        assert s["p_corrected"] >= s["p"] and s["difference"]["low"] <= s["difference"]["value"] <= s["difference"]["high"]
    assert a == sl.slice_report(y, p, task, slices, n_resamples=100)


@pytest.mark.parametrize("small, tested, worse, mix, auc, by_accuracy, by_auc", [
    (1, 0, 0, 0, 0, "small", "small"), (0, 0, 0, 0, 0, "not tested", "not tested"), (0, 1, 0, 0, 0, "", ""), (0, 1, 1, 1, 1, "worse", "worse by AUC"), (0, 1, 1, 0, 0, "worse, by its class mix", ""),
    (0, 1, 0, 1, 0, "worse than its class mix", ""), (0, 1, 0, 0, 1, "worse by AUC", "worse by AUC"), (0, 1, 1, 0, 1, "worse, by its class mix", "worse by AUC"), (0, 1, 0, 1, 1, "worse than its class mix", "worse by AUC")])
def test_marks(small, tested, worse, mix, auc, by_accuracy, by_auc):
    row = dict(small=bool(small), tested=bool(tested), worse=bool(worse), worse_than_mix=bool(mix), auc_worse=bool(auc))
    assert (sl.slice_mark(row), sl.slice_mark(row, "auc")) == (by_accuracy, by_auc)
    with pytest.raises(ValueError, match="unknown metric 'auk'. Near: auc"): sl.slice_mark(row, "auk")


@pytest.mark.parametrize("rest, mix, auc, by_accuracy, by_auc", [
    ("better", "better", "better", "better", "better by AUC"), ("better", "no difference shown", "no difference shown", "better, by its class mix", ""), ("no difference shown", "better", "better", "better than its class mix", "better by AUC"),
    ("no difference shown", "no difference shown", "better", "better by AUC", "better by AUC"), ("better", "better", "worse", "worse by AUC", "worse by AUC"), ("better", "worse", "better", "worse than its class mix", "better by AUC"),
    ("worse", "worse", "better", "worse", "better by AUC"), ("no difference shown",) * 3 + ("", "")])
def test_marks_of_directions(rest, mix, auc, by_accuracy, by_auc):
    "What is worse is said first; what is better only where nothing is."
    row = dict(small=False, tested=True, worse=rest == "worse", worse_than_mix=mix == "worse", auc_worse=auc == "worse", against_rest=rest, against_mix=mix, auc_against_rest=auc)
    assert (sl.slice_mark(row), sl.slice_mark(row, "auc")) == (by_accuracy, by_auc)


def test_a_slice_worse_by_auc_alone_has_a_mark():
    "As many right inside as outside, but inside the scores of the positives are in no order."
    y, rows = np.tile([1, 0], 100), np.arange(200) < 100
    score = np.where(rows, np.where(y == 1, .6, np.where(np.arange(200) % 8 == 1, .99, .4)), np.where(y == 1, .6, np.where(np.arange(200) % 8 == 1, .51, .4)))
    s = sl.slice_report(y, np.c_[1 - score, score], "binary", [sl.Slice("site", "site: A", rows)], n_resamples=100)["slices"][0]
    assert not s["worse"] and not s["worse_than_mix"] and s["auc_worse"] and sl.slice_mark(s) == "worse by AUC"


@pytest.mark.parametrize("task", TASKS)
def test_edges_have_a_defined_answer(task):
    y, p = scores(40, 0, task)
    none, every = np.zeros(40, bool), np.ones(40, bool)
    r = sl.slice_report(y, p, task, [sl.Slice("c", "nobody", none), sl.Slice("c", "everybody", every)], n_resamples=100)
    json.dumps(r, allow_nan=False)
    nobody, everybody = r["slices"]
    assert nobody["accuracy"]["value"] is None and nobody["expected"] is None and nobody["ece"] is None and everybody["difference"]["value"] is None and not everybody["tested"] and not everybody["small"]
    assert r["worst"] == {"accuracy": None, "auc": None} and r["tested"] == 0 and [sl.slice_mark(s) for s in r["slices"]] == ["small", "not tested"]
    assert "No slice could be tested by accuracy." in sl.slices_words(r) and any("nobody" in s for s in sl.slices_words(r))
    empty = sl.slice_report(y, p, task, [], n_resamples=100)
    assert empty["slices"] == [] and len(sl.slices_words(empty)) == 1
    one = sl.slice_report(y[:1], p[:1], task, [sl.Slice("c", "a", np.array([True]))], n_resamples=100)
    json.dumps(one, allow_nan=False); sl.slices_words(one)


def test_a_single_class_has_no_auc():
    y, p = np.zeros(60, int), scores(60, 0)[1]
    r = sl.slice_report(y, p, "multi-class", [part(60, 30)], n_resamples=100)
    s = r["slices"][0]
    assert s["auc"]["value"] is None and s["p_auc"] is None and s["p"] is not None and s["p_mix"] == pytest.approx(s["p"]) and r["worst"]["auc"] is None
    assert "No slice could be tested by AUC." in sl.slices_words(r)


@pytest.mark.parametrize("change, words", [
    (dict(level=1), "level is 1"), (dict(small=0), "small is 0, expected at least 1"), (dict(n_resamples=10), "n_resamples is 10"),
    (dict(slices=[sl.Slice("c", "a", np.ones(39, bool))]), r"slice 'a' has rows of type bool and shape \(39,\), expected bool \(40,\)"), (dict(slices=[sl.Slice("c", "a", np.arange(40))]), "rows of type int64"),
    (dict(slices=[part(40, 20), part(40, 20)]), "the slice 'part' is there 2 times"),     (dict(slices={"a": np.ones(40, bool)}), r"slices is a dict, expected a list of Slice: make each as \[Slice\("), (dict(slices=part(40, 20)), "slices is a Slice, expected a list"), (dict(slices="site"), "slices is a str"), (dict(slices=None), "slices is a NoneType"),
    (dict(slices=[np.ones(40, bool)]), r"slices\[0\] is a ndarray, expected a Slice of a column, a name and which images belong, bool \(40,\): make it as Slice\(\"site\", \"site: A\", site == \"A\"\)"),
    (dict(slices=np.ones((3, 40), bool)), r"slices\[0\] is a ndarray"), (dict(slices=[part(40, 20), {"column": "a"}]), r"slices\[1\] is a dict"), (dict(slices=[[True] * 40]), r"slices\[0\] is a list"), (dict(slices=[dict(column="c", name="a", rows=np.ones(40, bool))]), r"slices\[0\] is a dict"), (dict(slices=[5]), r"slices\[0\] is a int"), (dict(slices=[("a", np.ones(40, bool))]), r"slices\[0\] is a tuple"),
    (dict(slices=[sl.Slice("c", "a", ["x"] * 40)]), "rows of type"), (dict(probs=np.full((40, 3), np.nan)), "probs has NaN"), (dict(labels=np.zeros(39, int)), "labels has shape"), (dict(task="multi"), "unknown task")])
def test_faults_are_refused_by_name(change, words):
    y, p = scores(40, 0)
    given = dict(labels=y, probs=p, task="multi-class", slices=[part(40, 20)], n_resamples=100) | change
    with pytest.raises(ValueError, match=words): sl.slice_report(**given)


def test_rows_may_be_a_list_and_slices_any_iterable():
    (y, p), rows = scores(40, 0), np.arange(40) < 20
    expected = sl.slice_report(y, p, "multi-class", [sl.Slice("c", "a", rows)], n_resamples=100)
    assert expected == sl.slice_report(y, p, "multi-class", (s for s in [("c", "a", rows.tolist())]), n_resamples=100)


def test_colours_in_the_last_place_are_refused():
    with pytest.raises(ValueError, match="move the channel axis"): sl.image_quality(np.zeros((4, 28, 28, 3), np.uint8))


def test_what_is_no_table_of_columns_is_refused():
    with pytest.raises(ValueError, match="expected a dict of columns"): sl.metadata_slices(np.arange(40))
    with pytest.raises(ValueError, match="age 10, site 40, expected the same"): sl.metadata_slices({"age": np.arange(10), "site": ["A", "B"] * 20})
