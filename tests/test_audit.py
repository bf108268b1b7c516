"Audit of a data set: copies, leaks and doubtful labels planted and found, worked by hand, beside cleanlab, properties, faults refused by name."
import json
import math

import matplotlib.pyplot as plt
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from scipy.ndimage import zoom
from sklearn.decomposition import PCA
from sklearn.metrics import roc_auc_score

from xaimed import audit as au
from xaimed.synthetic import make_images
from xaimed.trust import auc

pytestmark = pytest.mark.filterwarnings("error")
quick = settings(max_examples=25, deadline=None, derandomize=True)
NAMES = ["round", "spiculated"]


def drawn(n, seed, task="binary", **options):
    made = make_images(n, task=task, seed=seed, **options)
    images = made.images[:, None] if made.images.ndim == 3 else np.moveaxis(made.images, -1, 1)
    return np.ascontiguousarray(images), made.labels.astype(int) if task == "multi-label" else made.labels[:, 0].astype(int)


def again(images, seed=0): return np.clip(images * 0.8 + 30 + np.random.default_rng(seed).normal(0, 2, images.shape), 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def clean(): return {"train": drawn(120, [3, 0]), "val": drawn(40, [3, 1]), "test": drawn(40, [3, 2])}


@pytest.fixture(scope="module")
def planted(clean):
    s = {k: (x.copy(), y.copy()) for k, (x, y) in clean.items()}
    (x, y), (vx, vy), (tx, ty) = s.values()
    x[1], y[1] = x[0], y[0]                              # equal within train
    tx[5], ty[5] = x[10], 1 - y[10]                      # equal across, other label
    vx[3], vy[3] = again(x[20:21])[0], y[20]             # near across
    tx[7], ty[7] = x[30][..., ::-1], y[30]               # mirrored across
    tx[9], ty[9] = again(vx[4:5])[0], vy[4]              # near, val and test: no leak from train
    return s


@pytest.fixture(scope="module")
def found(planted): return au.audit(planted, "binary", NAMES)


def members(entries): return sorted(tuple(map(tuple, e["members"])) for e in entries)


# ---- copies

def test_what_was_planted_is_found_and_nothing_else(found):
    assert members(found["exact"]) == [(("train", 0), ("train", 1)), (("train", 10), ("test", 5))]
    assert members(found["near"]) == [(("train", 20), ("val", 3)), (("train", 30), ("test", 7)), (("val", 4), ("test", 9))]
    assert [e["members"] for e in found["near"] if e["mirrored"]] == [[["train", 30], ["test", 7]]]
    assert [(c["kind"], c["members"]) for c in found["conflicts"]] == [("exact", [["train", 10], ["test", 5]])]
    assert found["leaked"] == {"val": [3], "test": [5, 7]} and found["n_leaked"] == {"val": 1, "test": 2}
    assert [au.leaked(found, s) for s in ("train", "val", "test")] == [[], [3], [5, 7]]
    assert (found["n_exact_groups"], found["n_exact_across"], found["n_exact_images"], found["n_near_pairs"], found["n_near_across"], found["n_near_mirrored"], found["n_conflicts"]) == (2, 1, 4, 3, 3, 1, 1)
    assert all(0.95 <= e["likeness"] <= 1 and au.DETAIL <= e["detail"] <= 1 and e["across"] and e["same_label"] for e in found["near"])


def test_nothing_is_found_in_clean_images(clean):
    a = au.audit(clean, "binary", NAMES)
    assert not any(a[k] for k in ("exact", "near", "conflicts", "absent_classes", "n_flat")) and a["leaked"] == {"val": [], "test": []}
    assert all(s["low"] < 0.5 for s in a["shift"].values())


def test_a_near_pair_with_two_labels_is_a_conflict(planted):
    s = {k: (x, y.copy()) for k, (x, y) in planted.items()}
    s["val"][1][3] = 1 - s["val"][1][3]
    kinds = [(c["kind"], c["members"][0]) for c in au.audit(s, "binary", NAMES)["conflicts"]]
    assert kinds == [("exact", ["train", 10]), ("near", ["train", 20])]


def test_the_stable_index_is_reported(planted, found):
    index = {k: 1000 + np.arange(len(x))[::-1] * 2 for k, (x, _) in planted.items()}
    a = au.audit(planted, "binary", NAMES, index=index)
    moved = {k: {i: int(v) for i, v in enumerate(index[k])} for k in index}
    assert members(a["near"]) == sorted(tuple((s, moved[s][i]) for s, i in m) for m in members(found["near"]))
    assert a["leaked"] == {s: sorted(moved[s][i] for i in v) for s, v in found["leaked"].items()}
    plt.close(au.audit_sheet(a, planted, NAMES, index=index))


def test_an_equal_image_shares_the_near_copies_of_its_twin(clean):
    s = {k: (x.copy(), y.copy()) for k, (x, y) in clean.items()}
    s["test"][0][2] = s["test"][0][8] = again(s["train"][0][50:51])[0]     # two equal test images, both near train 50
    a = au.audit(s, "binary", NAMES)
    assert a["leaked"]["test"] == [2, 8] and a["n_near_pairs"] == 1 and a["n_exact_groups"] == 1


def test_only_direct_copies_leak():
    pairs = np.array([[0, 1], [1, 2]])                                       # train 0 ~ val 0 ~ test 0
    p = au.pool({s: (np.full((1, 1, 2, 2), i, np.uint8), [0]) for i, s in enumerate(("train", "val", "test"))}, "multi-class", 1)
    c = au.Copies([], pairs, np.ones(2), np.ones(2), np.zeros(2, bool), [np.array([i]) for i in range(3)], np.zeros(3), 0.95, 0, 3, 0)
    assert au.leaked_rows(p, c) == {"val": [0], "test": []} and au.leaked_rows(p, c, source="val") == {"train": [0], "test": [0]}
    assert au.leaked_rows(p, c, source="other") == {}


@pytest.mark.parametrize("task, options", [("multi-class", {}), ("ordinal", {}), ("multi-label", {}), ("multi-class", dict(channels=3)), ("multi-class", dict(size=64))])
def test_copies_in_every_task_and_form(task, options):
    s = {"train": drawn(60, [4, 0], task, **options), "test": drawn(30, [4, 1], task, **options)}
    s["test"][0][4], s["test"][0][6] = s["train"][0][9], again(s["train"][0][11:12])[0]
    s["test"][1][6] = s["train"][1][11]
    s["test"][1][4] = 1 - s["train"][1][9] if task == "multi-label" else (s["train"][1][9] + 1) % 4
    a = au.audit(s, task, list("abcd"))
    assert a["leaked"] == {"test": [4, 6]} and members(a["conflicts"]) == [(("train", 9), ("test", 4))]
    assert json.loads(json.dumps(a, allow_nan=False)) == a
    assert len(au.audit_words(a)) >= 6
    plt.close(au.audit_sheet(a, s, list("abcd")))


def test_volumes():
    rng = np.random.default_rng(0)
    x = np.clip(zoom(rng.normal(size=(50, 1, 7, 7, 7)), (1, 1, 2, 2, 2), order=1) * 40 + 120 + rng.normal(0, 8, (50, 1, 14, 14, 14)), 0, 255).astype(np.uint8)
    y = np.arange(50) % 2
    x[40], x[41], x[42] = x[0], again(x[1:2])[0], x[2][..., ::-1]
    a = au.audit({"train": (x[:40], y[:40]), "test": (x[40:], y[40:])}, "binary", NAMES)
    assert a["leaked"] == {"test": [0, 1, 2]} and a["n_near_mirrored"] == 1 and a["shift"] == {}
    plt.close(au.audit_sheet(a, {"train": (x[:40], y[:40]), "test": (x[40:], y[40:])}, NAMES))


def test_images_that_look_alike_are_no_copies(clean):
    "One outline in common, at ten times the contrast of what differs: raw correlation calls them all equal."
    body = 60 + 120 * (np.hypot(*np.mgrid[-1:1:28j, -1:1:28j]) < 0.8)
    x = np.clip(body + 0.2 * (clean["train"][0].astype(float) - 100), 0, 255).astype(np.uint8)
    flat = x.reshape(len(x), -1) - x.reshape(len(x), -1).mean(1, keepdims=True)
    assert np.corrcoef(flat)[np.triu_indices(120, 1)].min() > 0.9
    x[100:104] = again(x[:4])
    a = au.audit({"train": (x, clean["train"][1])}, "binary", NAMES)
    assert members(a["near"]) == [(("train", i), ("train", 100 + i)) for i in range(4)]


def test_fine_detail_refuses_what_only_looks_alike():
    "The same coarse picture under another grain is alike and yet no copy."
    rng = np.random.default_rng(0)
    coarse = zoom(rng.normal(size=(60, 7, 7)), (1, 4, 4), order=1)
    x = np.clip(128 + 40 * coarse[:, None] + rng.normal(0, 8, (60, 1, 28, 28)), 0, 255).astype(np.uint8)
    x[30:40] = np.clip(128 + 40 * coarse[:10, None] + rng.normal(0, 8, (10, 1, 28, 28)), 0, 255).astype(np.uint8)
    d = au.descriptors(au.thumbnails(x, 16)).reshape(60, -1)
    assert len(au.alike_pairs(d, d, 0.95)[0]) == 10
    assert not len(au.find_copies(au.pool({"train": (x, np.zeros(60))}, "multi-class", 1)).pairs)


def test_a_symmetric_image_is_listed_once():
    x = drawn(60, 9)[0]
    x[:2] = np.concatenate([x[:2, ..., :14], x[:2, ..., :14][..., ::-1]], -1)
    x[50] = again(x[:1])[0]
    a = au.audit({"train": (x, np.zeros(60))}, "binary", NAMES)
    assert members(a["near"]) == [(("train", 0), ("train", 50))]


def test_flat_images_are_counted_and_compared_only_exactly(clean):
    x = clean["train"][0].copy()
    x[:3], x[3], x[4:6] = 7, 8, 0
    x[4, 0, 0, 0] = 1
    a = au.audit({"train": (x, clean["train"][1])}, "binary", NAMES)
    assert a["n_flat"] == 4 and a["n_near_pairs"] == 0 and members(a["exact"]) == [(("train", 0), ("train", 1), ("train", 2))]
    assert any("almost no contrast" in w for w in au.audit_words(a))


def test_a_draw_is_recorded_and_exact_copies_do_not_suffer(planted):
    a = au.audit(planted, "binary", NAMES, most=50, most_fit=60)
    assert a["settings"]["compared"] == 50 and a["settings"]["different"] == 198 and a["n_exact_groups"] == 2
    assert any("50 of 198" in w for w in a["notes"]) and any("60 of 200" in w for w in a["notes"])
    assert a["scorer"]["n"] == 60 and a["shift"]["val"]["n"] == [30, 30]


def test_lists_are_cut_and_counts_are_not(planted):
    a = au.audit(planted, "binary", NAMES, most_listed=1)
    assert len(a["near"]) == len(a["exact"]) == 1 and a["n_near_pairs"] == 3 and a["n_exact_groups"] == 2 and a["leaked"]["test"] == [5, 7]


def test_a_limit_of_ones_own(planted):
    a = au.audit(planted, "binary", NAMES, limit=1.5)
    assert a["n_near_pairs"] == 0 and a["settings"]["likeness"] == 1.5 and a["settings"]["likeness_set"] and a["leaked"]["test"] == [5]


# ---- the parts, by hand

def test_area_weights_by_hand():
    assert np.allclose(au.area_weights(3, 2), [[2 / 3, 1 / 3, 0], [0, 1 / 3, 2 / 3]]) and np.allclose(au.area_weights(4, 2), [[0.5, 0.5, 0, 0], [0, 0, 0.5, 0.5]])
    assert np.array_equal(au.area_weights(5, 5), np.eye(5))


def test_thumbnails_by_hand():
    x = np.arange(32, dtype=np.uint8).reshape(1, 2, 4, 4)                    # channels differ by 16
    assert np.allclose(au.thumbnails(x, 2), [[[2.5 + 8, 4.5 + 8], [10.5 + 8, 12.5 + 8]]])
    assert np.array_equal(au.thumbnails(x, 16), x.mean(1)) and np.array_equal(au.thumbnails(x.repeat(5, 0), 3, chunk=40), au.thumbnails(x, 3).repeat(5, 0))


def test_descriptors_by_hand():
    d = au.descriptors(np.array([[[0.0, 100.0]], [[100.0, 0.0]], [[5.0, 5.0]]], np.float32))
    assert np.allclose(d, [[[-math.sqrt(0.5), math.sqrt(0.5)]], [[math.sqrt(0.5), -math.sqrt(0.5)]], [[0, 0]]])


def test_the_descriptor_of_a_mirrored_image_is_the_mirrored_descriptor():
    thumbs = au.thumbnails(drawn(60, 2)[0], 8) + np.linspace(0, 150, 8, dtype=np.float32)   # all brighter on the right
    x = np.concatenate([thumbs, thumbs[:5, :, ::-1]])
    d = au.descriptors(x)
    assert np.allclose(d[60:], d[:5, :, ::-1], atol=1e-5) and np.allclose((d**2).sum((1, 2)), 1, atol=1e-5)


def test_pairs_equal_those_of_the_full_matrix():
    rng = np.random.default_rng(0)
    d = au._unit(rng.standard_normal((90, 6)))
    r = d @ d.T
    expected = {(i, j) for i, j in zip(*np.where(np.triu(r >= 0.8, 1)))}
    for block in (1, 7, 90, 1000):
        pairs, likeness, total = au.alike_pairs(d, d, 0.8, block=block)
        assert set(map(tuple, pairs.tolist())) == expected and total == len(expected) and (np.diff(likeness) <= 0).all()
        assert np.allclose(likeness, r[tuple(pairs.T)])
    best, kept, total = au.alike_pairs(d, d, 0.8, block=7, keep=5)
    assert np.array_equal(best, pairs[:5]) and total == len(expected)


def test_the_limit_follows_the_data():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((400, 100))
    assert au.likeness_limit(au._unit(x), np.arange(400) % 3) == 0.95
    limits = [au.likeness_limit(au._unit(w * x + rng.standard_normal(100)), np.arange(400) % 3) for w in (0.3, 0.2, 0.05)]
    assert 0.95 < limits[0] < limits[1] < limits[2] == 0.99
    assert au.likeness_limit(au._unit(x), np.ones(400)) == 0.95 and au.likeness_limit(np.zeros((3, 4)), [0, 1, 0]) == 0.95
    # copies with the same label are no evidence of how alike different images are, however many
    assert au.likeness_limit(au._unit(np.repeat(x, 2, 0)), np.repeat(np.arange(400) % 3, 2)) == 0.95
    # the median does not mind a few contradictions
    twins = au._unit(np.concatenate([x, x[:40]]))
    assert au.likeness_limit(twins, np.r_[np.arange(400) % 2, (np.arange(40) + 1) % 2]) == 0.95


def test_class_counts_and_absent_classes():
    x = np.zeros((4, 1, 2, 2), np.uint8)
    p = au.pool({"train": (x, [0, 1, 2, 2]), "test": (x, [0, 0, 2, 2])}, "ordinal", 4)
    assert au.class_counts(p, 4) == {"train": [1, 1, 2, 0], "test": [2, 0, 2, 0]} and au.absent_classes(p, 4) == {"train": [3], "test": [1, 3]}
    p = au.pool({"train": (x, [[1, 0, 1], [1, 0, 0], [1, 0, 1], [1, 0, 0]])}, "multi-label", 3)
    assert au.absent_classes(p, 3) == {"train": [0, 1]}


def test_pixel_features_hold_the_principal_components():
    x, _ = drawn(100, 1)
    ours = au.pixel_features(x, n_components=5)
    theirs = PCA(5).fit_transform(au.thumbnails(x, 16).reshape(100, -1))
    assert np.allclose(np.abs(ours[:, :5]), np.abs(theirs / theirs.std(0)), atol=1e-3)
    assert au.pixel_features(np.zeros((30, 1, 8, 8), np.uint8)).any() == False


# ---- folds, AUC, shift

@quick
@given(st.integers(0, 10**6), st.integers(10, 80), st.integers(1, 4), st.integers(2, 5))
def test_folds_keep_clusters_whole_and_classes_even(seed, n, kinds, k):
    rng = np.random.default_rng(seed)
    strata, clusters = rng.integers(0, kinds, n), rng.integers(0, n, n)
    f = au.folds(strata, clusters, k, seed=seed)
    assert set(f) <= set(range(k)) and all(len(set(f[clusters == c])) == 1 for c in clusters)
    alone = au.folds(strata, np.arange(n), k, seed=seed)
    for s in range(kinds): assert np.ptp(np.bincount(alone[strata == s], minlength=k)) <= 1
    assert np.array_equal(alone, au.folds(strata, np.arange(n), k, seed=seed))


@quick
@given(st.integers(0, 10**6), st.integers(4, 60), st.booleans())
def test_auc_is_scikit_learns_and_order_does_not_matter(seed, n, ties):
    rng = np.random.default_rng(seed)
    y, s = np.arange(n) % 2 == 0, rng.standard_normal(n)
    s = np.round(s) if ties else s
    area, low, high = au.auc_interval(y, s, c := rng.integers(0, n, n))
    assert np.isclose(area, roc_auc_score(y, s))
    assert np.isnan(low) or 0 <= low <= area <= high <= 1
    mixed = rng.permutation(n)
    assert np.allclose(au.auc_interval(y[mixed], s[mixed], c[mixed]), (area, low, high), equal_nan=True)
    assert np.allclose(au.auc_interval(~y, -s, c), (area, low, high), equal_nan=True)


def test_auc_interval_by_hand():
    # placements: of the positives 1 and 1/2; of the negatives 1/2 and 1; each deviates by 1/4, and is divided by 2
    area, low, high = au.auc_interval([1, 1, 0, 0], [0.9, 0.4, 0.5, 0.1])
    half = 1.959963984540054 * math.sqrt(4 * 0.125**2 * 4 / 3)
    assert area == 0.75 and np.isclose(low, 0.75 - half) and high == min(1, 0.75 + half)
    wide = au.auc_interval([1, 1, 0, 0], [0.9, 0.4, 0.5, 0.1], widen=1.2)
    assert np.isclose(wide[1], 0.75 - 1.2 * half)
    assert np.isnan(au.auc_interval([1, 1], [1, 2])).all() and np.isnan(au.auc_interval([1, 0], [1, 0])[1])


def test_clusters_of_two_count_once():
    rng = np.random.default_rng(0)
    y, s = np.arange(60) % 2, rng.standard_normal(60) + np.arange(60) % 2
    once, twice, wrong = au.auc_interval(y, s), au.auc_interval(np.tile(y, 2), np.tile(s, 2), np.tile(np.arange(60), 2)), au.auc_interval(np.tile(y, 2), np.tile(s, 2))
    assert np.allclose(once, twice) and np.isclose((once[2] - once[1]) / (wrong[2] - wrong[1]), math.sqrt(2), atol=0.02)


def test_random_splits_are_seldom_called_different():
    x, _ = drawn(240, 11)
    rates = []
    for seed in range(30):
        order = np.random.default_rng(seed).permutation(240)
        s = au.split_shift(x[order[:160]], x[order[160:]], seed=seed)
        rates.append((s["low"] > 0.5, s["high"] < 0.5))
    assert np.sum(rates, axis=0).max() <= 2


def test_a_shift_is_seen():
    a, b = drawn(150, 1)[0], drawn(100, 2)[0]
    told = au.split_shift(a, np.clip(b * 0.95 + 6, 0, 255).astype(np.uint8))
    assert told["low"] > 0.65 and told["n"] == [150, 100]
    assert au.split_shift(a, np.full_like(b, 3)) | {"auc": 1} == {"auc": 1, "low": None, "high": None, "n": [150, 100]}
    assert au.split_shift(a, b[:19]) is None and au.split_shift(a, b, most=30)["n"] == [30, 30]


def test_copies_do_not_help_the_model_to_tell_splits_apart():
    "Five images, ten times over in each split: without clusters they are learned by heart."
    x = drawn(10, 5)[0]
    first, second = x[np.arange(60) % 5], x[5 + np.arange(60) % 5]
    assert au.split_shift(first, second)["auc"] > 0.99
    own = np.r_[np.arange(60) % 5, 5 + np.arange(60) % 5]
    assert au.split_shift(first, second, clusters=own) is None     # ten different images are too few to say
    p = au.audit({"train": (first, np.arange(60) % 2), "test": (second, np.arange(60) % 2)}, "binary", NAMES)
    assert p["shift"] == {} and any("not compared" in w for w in p["notes"])


def test_a_draw_takes_the_clusters_along(monkeypatch):
    x, seen = np.arange(100, dtype=np.uint8)[:, None, None, None] * np.ones((1, 1, 4, 4), np.uint8), {}
    features, scores = au.pixel_features, au.out_of_fold_scores
    monkeypatch.setattr(au, "pixel_features", lambda images, **k: features(seen.setdefault("images", images), **k))
    monkeypatch.setattr(au, "out_of_fold_scores", lambda *a, clusters, **k: scores(*a, clusters=seen.setdefault("clusters", clusters), **k))
    au.split_shift(x[:60], x[60:], clusters=np.arange(100), most=25)
    assert np.array_equal(seen["images"][:, 0, 0, 0], seen["clusters"]) and len(seen["clusters"]) == 50


# ---- label suspects, beside cleanlab 2.9.0: find_label_issues(filter_by="confident_learning"), on `case`

CLEANLAB = {
    (2, "plain"): [2, 7, 11, 33, 37, 57, 64, 74, 75, 85, 97, 105],
    (2, "ties"): [0, 1, 2, 7, 11, 21, 33, 37, 57, 64, 74, 75, 76, 85, 93, 97, 105, 117, 127],
    (2, "saturated"): [0, 1, 2, 6, 7, 11, 17, 19, 21, 23, 33, 37, 41, 50, 51, 57, 59, 64, 72, 74, 75, 76, 79, 85, 93, 97, 105, 112, 114, 116, 117, 118, 122, 127, 128, 129, 146],
    (4, "plain"): [0, 16, 40, 44, 62, 63, 79, 86, 92, 97, 106, 108, 135, 137, 141, 142, 143],
    (4, "ties"): [16, 40, 44, 62, 86, 92, 106, 108, 135, 141, 142, 143],
    (4, "saturated"): [0, 11, 12, 16, 24, 35, 36, 38, 40, 44, 49, 57, 61, 62, 63, 65, 68, 73, 79, 81, 82, 83, 86, 92, 97, 98, 104, 106, 108, 112, 122, 125, 128, 134, 135, 137, 139, 141, 142, 143, 144, 145],
}
CLEANLAB_LABELS = [   # find_multilabel_issues_per_class(filter_by="confident_learning")
    [8, 9, 11, 16, 26, 29, 41, 57, 64, 72, 75, 76, 77, 79, 81, 82, 90, 95, 100, 101, 107, 109, 110, 111, 115, 117, 118],
    [4, 15, 22, 23, 27, 33, 51, 52, 54, 62, 63, 65, 73, 78, 96, 97, 109],
    [2, 6, 20, 25, 33, 36, 51, 54, 55, 56, 58, 61, 93, 101, 102, 105, 115, 116]]


def case(k, kind, n=150):
    rng = np.random.RandomState(k)
    y = rng.randint(0, k, n)
    z = rng.standard_normal((n, k)) + 1.5 * np.eye(k)[y]
    y, p = np.where(rng.rand(n) < 0.15, rng.randint(0, k, n), y), np.exp(z) / np.exp(z).sum(1, keepdims=True)
    if kind == "ties":
        p = np.round(p * 4) / 4
        p = np.where(p.sum(1, keepdims=True) > 0, p / np.maximum(p.sum(1, keepdims=True), 1e-9), 1 / k)
    return y, np.eye(k)[p.argmax(1)] if kind == "saturated" else p


@pytest.mark.parametrize("k, kind", CLEANLAB)
def test_equal_to_cleanlab_as_it_was(k, kind):
    y, p = case(k, kind)
    for task in ("multi-class", "ordinal") + (("binary",) if k == 2 else ()):
        s = au.label_suspects(y, p, task)
        assert sorted(s.row.tolist()) == CLEANLAB[k, kind] and (np.diff(s.margin) >= 0).all()
        assert np.array_equal(s.given, y[s.row]) and (s.suggested != s.given).all() and np.array_equal(s.self_confidence, p[s.row, y[s.row]])


def test_multi_label_is_equal_to_cleanlab_as_it_was():
    rng = np.random.RandomState(9)
    y = (rng.rand(120, 3) < [0.5, 0.3, 0.2]).astype(int)
    p = 1 / (1 + np.exp(-(2 * rng.standard_normal((120, 3)) + 3 * y - 1.5)))
    s = au.label_suspects(y, p, "multi-label")
    assert [sorted(s.row[s.question == k].tolist()) for k in range(3)] == CLEANLAB_LABELS
    assert np.array_equal(s.given, y[s.row, s.question]) and np.array_equal(s.suggested, 1 - s.given) and (np.diff(s.margin) >= 0).all()


def test_suspects_by_hand():
    p = np.array([[0.9, 0.1], [0.8, 0.2], [0.1, 0.9], [0.3, 0.7], [0.5, 0.5]])
    assert np.allclose(au.confident_thresholds(np.array([0, 0, 0, 1, 1]), p), [0.6, 0.6])
    s = au.label_suspects([0, 0, 0, 1, 1], p, "binary")
    assert [a.tolist() for a in s[:4]] == [[2], [-1], [0], [1]] and np.isclose(s.self_confidence[0], 0.1) and np.isclose(s.margin[0], -0.8)


def test_suspects_at_the_edges():
    assert len(au.label_suspects([0], [[0.2, 0.8]], "binary").row) == 0            # the other class has no threshold
    assert len(au.label_suspects([0, 0, 0], [[1.0], [1.0], [1.0]], "multi-class").row) == 0
    assert len(au.label_suspects([0, 0], [[0.1, 0.9], [0.2, 0.8]], "multi-class").row) == 0
    assert len(au.label_suspects(np.zeros((3, 2)), np.full((3, 2), 0.9), "multi-label").row) == 0
    with pytest.raises(ValueError, match="NaN"): au.label_suspects([0, 1], [[np.nan, 1], [0, 1]], "binary")
    with pytest.raises(ValueError, match="labels has shape"): au.label_suspects([0, 1, 0], [[0.5, 0.5]] * 2, "binary")


@quick
@given(st.integers(0, 10**6), st.integers(2, 40), st.integers(2, 5))
def test_suspects_do_not_depend_on_the_order_of_images_or_classes(seed, n, k):
    rng = np.random.default_rng(seed)
    y, p = rng.integers(0, k, n), rng.dirichlet(np.ones(k), n)
    rows, classes = rng.permutation(n), rng.permutation(k)
    plain, mixed = au.label_suspects(y, p, "multi-class"), au.label_suspects(np.argsort(classes)[y][rows], p[rows][:, classes], "multi-class")
    assert sorted(rows[mixed.row]) == sorted(plain.row) and np.allclose(np.sort(mixed.margin), np.sort(plain.margin))
    assert (plain.margin <= 0).all() and (plain.self_confidence <= 0.5).all()


# ---- the pixel model

@pytest.mark.parametrize("task", ["multi-class", "binary", "multi-label", "ordinal"])
def test_out_of_fold_scores_know_what_the_features_know(task):
    rng, k = np.random.default_rng(0), 2 if task == "binary" else 3
    y = rng.integers(0, 2, (200, 3)) if task == "multi-label" else rng.integers(0, k, 200)
    hot = y if task == "multi-label" else np.eye(k)[y]
    told, guess = (au.out_of_fold_scores(x, y, task, k) for x in (rng.standard_normal((200, k)) + 3 * hot, rng.standard_normal((200, 4))))
    assert auc(y, told, task) > 0.95 and abs(auc(y, guess, task) - 0.5) < 0.12
    assert told.shape == (200, k) and (task == "multi-label" or np.allclose(told.sum(1), 1))


def test_no_image_is_judged_by_a_model_that_has_seen_it_or_its_copy():
    rng = np.random.default_rng(1)
    x, y = rng.standard_normal((40, 60)), rng.integers(0, 2, 40)           # more features than images: what is seen is known
    double, labels = np.tile(x, (3, 1)), np.tile(y, 3)
    assert auc(labels, au.out_of_fold_scores(double, labels, "binary", 2, strength=100), "binary") > 0.95
    assert abs(auc(labels, au.out_of_fold_scores(double, labels, "binary", 2, strength=100, clusters=np.tile(np.arange(40), 3)), "binary") - 0.5) < 0.25


def test_a_class_that_a_fold_never_saw_gets_zero():
    y = np.r_[np.zeros(20, int), np.ones(20, int), 2]
    p = au.out_of_fold_scores(np.random.default_rng(0).standard_normal((41, 3)), y, "multi-class", 4)
    assert p[40, 2] == 0 and (p[:, 3] == 0).all() and np.allclose(p.sum(1), 1)
    assert (au.out_of_fold_scores(np.zeros((6, 2)), np.zeros(6), "binary", 2) == [1, 0]).all()


def test_copies_do_not_vouch_for_a_label():
    x = drawn(40, 6)[0]
    y = np.random.default_rng(2).integers(0, 2, 40)
    a = au.audit({"train": (np.tile(x, (4, 1, 1, 1)), np.tile(y, 4))}, "binary", NAMES)
    assert a["n_exact_groups"] == 40 and a["scorer"]["auc"] < 0.75 and not a["suspects"]


@pytest.fixture(scope="module")
def turned():
    "Class 1 has light on the left; eight labels are turned round."
    x, y = drawn(260, 8)
    x = np.clip(x + np.linspace(60, 0, 28) * y[:, None, None, None], 0, 255).astype(np.uint8)
    rows = np.arange(8) * 17
    y[rows] = 1 - y[rows]
    return {"train": (x[:200], y[:200]), "test": (x[200:], y[200:])}, set(rows.tolist())


def test_turned_labels_are_suspects(turned):
    splits, rows = turned
    a = au.audit(splits, "binary", NAMES)
    named = {s["index"] for s in a["suspects"] if s["split"] == "train"}
    assert len(named & rows) >= 6 and a["n_suspects"] == len(a["suspects"]) <= 14 and a["scorer"]["auc"] >= au.LEAST_AUC
    first = a["suspects"][0]
    assert first["label_name"] == NAMES[first["label"]] and first["suggested_name"] == NAMES[first["suggested"]] and first["margin"] <= a["suspects"][-1]["margin"]
    assert any("firmly contradicts" in w for w in au.audit_words(a))
    assert set(a["scorer"]["auc_by_split"]) == {"train", "test"}
    plt.close(au.audit_sheet(a, splits, NAMES))


def test_a_model_that_knows_nothing_names_nobody(clean):
    rng = np.random.default_rng(0)
    a = au.audit({"train": (clean["train"][0], rng.integers(0, 2, 120))}, "binary", NAMES)
    assert a["scorer"]["auc"] < au.LEAST_AUC and a["suspects"] == [] and a["n_suspects"] == 0
    assert any("could not be judged" in w for w in au.audit_words(a))


def test_multi_label_suspects_name_the_label(turned):
    splits, rows = turned
    many = {k: (x, np.stack([y, np.random.default_rng(1).integers(0, 2, len(y))], 1)) for k, (x, y) in splits.items()}
    a = au.audit(many, "multi-label", ["light", "nothing"])
    assert {s["question"] for s in a["suspects"]} == {0} and len({s["index"] for s in a["suspects"] if s["split"] == "train"} & rows) >= 6
    assert {s["label_name"] for s in a["suspects"]} <= {"light: yes", "light: no"}
    plt.close(au.audit_sheet(a, many, ["light", "nothing"]))


# ---- the whole, at its edges

def test_same_seed_same_answer(planted, found): assert au.audit(planted, "binary", NAMES) == found


def test_order_of_images_does_not_matter(planted, found):
    order = {k: np.random.default_rng(3).permutation(len(x)) for k, (x, _) in planted.items()}
    a = au.audit({k: (x[order[k]], y[order[k]]) for k, (x, y) in planted.items()}, "binary", NAMES, index=order)
    def pairs(entries): return sorted(sorted(map(tuple, e["members"])) for e in entries)
    assert a["leaked"] == found["leaked"] and pairs(a["exact"]) == pairs(found["exact"]) and pairs(a["near"]) == pairs(found["near"])


def test_words_say_what_was_found_and_what_was_not(found, clean):
    text = " ".join(au.audit_words(found))
    for part in ("2 groups of equal images with 4 images, 1 group across splits", "3 pairs, 3 across splits, 1 mirrored", "2 of 40 test images (5.0 %) have a copy in train", "1 of 40 test images have a copy in val, which chooses the epoch, the threshold and the recalibration.", "different labels: 1 case.", "Every class occurs"): assert part in text
    text = " ".join(au.audit_words(au.audit({"train": clean["train"], "test": (clean["test"][0], np.zeros(40))}, "binary", NAMES)))
    for part in ("Exact copies: no groups", "none found, mirrored or not", "No copy of a test image was found in train (equal, or alike up to a left-right mirror).", "different labels: none found.", "no image to judge these classes by: spiculated", "mix of classes in test differs"): assert part in text


@pytest.mark.parametrize("row, said", [
    (dict(auc=0.517, low=0.45, high=0.58), "val images are not shown to differ from train images (a simple model tells them apart with an AUC of 0.52, 95 % interval 0.45 to 0.58; 0.5 is no difference)."),
    (dict(auc=0.5, low=None, high=None), "val images are not shown to differ from train images (a simple model tells them apart with an AUC of 0.50; 0.5 is no difference)."),
    (dict(auc=0.7, low=0.6, high=0.8), "A simple model can tell val images from train images (AUC 0.70, 95 % interval 0.60 to 0.80; 0.5 is no difference): the splits do not look the same.")])
def test_a_shift_that_was_not_found_is_not_denied(row, said):
    assert au._shift_words(dict(shift={"val": row}, task="binary", counts={"train": [5, 5], "val": [5, 5]})) == [said]


def test_copies_between_val_and_test_are_found_with_and_without_train(clean):
    s = {k: (x.copy(), y.copy()) for k, (x, y) in clean.items()}
    s["test"][0][:15], s["test"][1][:15] = s["val"][0][:15], s["val"][1][:15]
    s["test"][0][20], s["test"][0][21] = again(s["val"][0][30:31])[0], s["val"][0][31][..., ::-1]
    s["test"][0][25] = s["train"][0][3]
    index = {k: 500 + np.arange(len(x)) for k, (x, _) in s.items()}
    a = au.audit(s, "binary", NAMES, index=index)
    from_val = [500 + i for i in [*range(15), 20, 21]]
    assert a["leaked_val"] == from_val and a["n_leaked_val"] == 17 and a["n_leaked"] == {"val": 0, "test": 1}
    assert au.leaked(a, "test") == [525] and au.leaked(a, "test", also_val=True) == [*from_val, 525]
    assert au.leaked(a, "val", also_val=True) == au.leaked(a, "train", also_val=True) == []
    assert "17 of 40 test images have a copy in val" in " ".join(au.audit_words(a))
    only = au.audit({k: s[k] for k in ("val", "test")}, "binary", NAMES)
    assert only["leaked_val"] == [*range(15), 20, 21] and only["leaked"] == {} and au.leaked(only, "test", also_val=True) == only["leaked_val"]
    for names in (("train", "test"), ("train", "val")):
        none = au.audit({k: s[k] for k in names}, "binary", NAMES)
        assert none["leaked_val"] == [] and none["n_leaked_val"] == 0 and not any("copy in val" in w for w in au.audit_words(none))


def test_an_image_in_train_and_val_is_counted_once(clean):
    s = {k: (x.copy(), y.copy()) for k, (x, y) in clean.items()}
    s["val"][0][2] = s["test"][0][6] = s["train"][0][1]
    a = au.audit(s, "binary", NAMES)
    assert a["leaked"]["test"] == a["leaked_val"] == au.leaked(a, "test", also_val=True) == [6]


def test_an_earlier_audit_does_not_pass_for_one_without_copies_in_val(found):
    earlier = {k: v for k, v in found.items() if k != "leaked_val"}
    assert au.leaked(earlier, "test") == [5, 7] and au.leaked(found, "test", also_val=True) == [5, 7, 9]
    with pytest.raises(ValueError, match="run it again"): au.leaked(earlier, "test", also_val=True)


def test_sheet_says_when_there_is_nothing(clean):
    a = au.audit({"train": clean["train"]}, "binary", NAMES) | dict(suspects=[])
    fig = au.audit_sheet(a, clean, NAMES)
    assert any("no copies" in t.get_text() for t in fig.texts)


def test_sheet_shows_contradictions_first_and_keeps_its_size(planted, found):
    titles = [t.get_text() for t in au.audit_sheet(found, planted, NAMES).texts]
    assert titles[1].startswith("train 10\n") and titles[2].startswith("test 5\n")
    assert len(au.audit_sheet(found, planted, NAMES, most=4).axes) == 4
    s = dict(planted)
    s["train"] = (planted["train"][0], planted["train"][1].copy())
    s["train"][1][1] = 1 - s["train"][1][0]                               # within train, and yet before what is across
    s["train"][1][10] = planted["test"][1][5]
    assert au.audit_sheet(au.audit(s, "binary", NAMES), s, NAMES).texts[1].get_text().startswith("train 0\n")


@pytest.mark.parametrize("n", [1, 2, 3])
def test_a_handful_of_images(n, clean):
    a = au.audit({"train": (clean["train"][0][:n], np.zeros(n))}, "binary", NAMES)
    assert a["scorer"]["auc"] is None and a["shift"] == {} and a["absent_classes"] == {"train": [1]} and a["leaked"] == {}
    assert any("too few images" in w for w in au.audit_words(a))
    json.dumps(a, allow_nan=False)


def test_two_images_that_are_nearly_equal(clean):
    x = clean["train"][0][:1]
    assert au.audit({"train": (x, [0]), "test": (again(x), [1])}, "binary", NAMES)["leaked"] == {"test": [0]}


@pytest.mark.parametrize("change, message", [
    (dict(images=np.zeros((4, 1, 8, 8))), "of uint8"), (dict(images=np.zeros((4, 8, 8), np.uint8)), "expected \\(N, C, H, W\\)"), (dict(images=np.zeros((0, 1, 8, 8), np.uint8)), "at least one"),
    (dict(labels=np.zeros((4, 1))), "expected \\(4,\\): one class index"), (dict(labels=np.zeros(3)), "labels of train"), (dict(labels=np.array([0, 1, 2, 0])), "expected 0..1"), (dict(labels=np.array([0, np.nan, 1, 0])), "whole numbers"),
    (dict(task="multi-label"), "a 0 or 1 per image and label"), (dict(task="regression"), "unknown task"), (dict(index={"train": [0, 1, 1, 2]}), "3 different values, expected 4"), (dict(index={"train": [0, 1]}), "index of train")])
def test_faults_are_refused_by_name(change, message):
    given = dict(images=np.zeros((4, 1, 8, 8), np.uint8), labels=np.zeros(4), task="binary", index=None) | change
    with pytest.raises(ValueError, match=message): au.audit({"train": (given["images"], given["labels"])}, given["task"], NAMES, index=given["index"])


def test_more_faults(found):
    with pytest.raises(ValueError, match="splits is empty"): au.audit({}, "binary", NAMES)
    x = np.zeros((2, 1, 8, 8), np.uint8)
    with pytest.raises(ValueError, match="as in the split before"): au.audit({"train": (x, [0, 1]), "test": (x[..., :6], [0, 1])}, "binary", NAMES)
    with pytest.raises(ValueError, match="unknown split 'tset'. Near: test"): au.leaked(found, "tset")
    with pytest.raises(ValueError, match="not finite"): au.out_of_fold_scores(np.full((4, 2), np.nan), [0, 1, 0, 1], "binary", 2)
    with pytest.raises(ValueError, match="clusters has shape"): au.out_of_fold_scores(np.zeros((4, 2)), [0, 1, 0, 1], "binary", 2, clusters=[1])
    with pytest.raises(ValueError, match="at least 2"): au.out_of_fold_scores(np.zeros((1, 2)), [0], "binary", 2)
    with pytest.raises(ValueError, match="no NaN"): au.auc_interval([1, 0], [np.nan, 1])


def test_colours_in_the_last_place_are_refused():
    "As they lie in an .npz, (N, H, W, 3) would pass as an image of 28 channels, three pixels wide."
    images = np.zeros((4, 28, 28, 3), np.uint8)
    with pytest.raises(ValueError, match="1 or 3 channels in the second place"): au.audit({"train": (images, np.array([0, 1, 0, 1]))}, "binary", ["a", "b"])
