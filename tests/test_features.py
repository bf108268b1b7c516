"Features, look-alikes and strangers: worked by hand, beside scikit-learn and pytorch-ood, properties, hooks gone after a fault, faults refused by name."
import json
import tracemalloc

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from scipy.special import logsumexp
from sklearn.covariance import LedoitWolf
from sklearn.metrics import roc_auc_score
from sklearn.neighbors import KNeighborsClassifier, NearestNeighbors
from torch import nn
from torch.utils.data import DataLoader

from xaimed import features as ft
from xaimed.data import DatasetSpec, ImageDataset, build_transforms, make_loader
from xaimed.models import build_model

pytestmark = pytest.mark.filterwarnings("error")
quick = settings(max_examples=25, deadline=None, derandomize=True)
TASKS = ("multi-class", "binary", "ordinal", "multi-label")


def cloud(n, d, seed): return np.random.default_rng(seed).standard_normal((n, d)).astype(np.float32)


def split(n, seed=0, channels=1, size=16):
    rng = np.random.default_rng(seed)
    spec = DatasetSpec("made", "Made", "multi-class", ("a", "b", "c"), channels=channels)
    return ImageDataset(torch.from_numpy(rng.integers(0, 256, (n, channels, size, size), dtype=np.uint8)), torch.from_numpy(rng.integers(0, 3, n)), spec, "test", transform=build_transforms(size))


@pytest.fixture(scope="module")
def net(): return build_model("resnet10", 3, 3, image_size=16, seed=0).eval()


# ---- reading the network

def test_features_make_the_logits(net):
    x = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    f, z = ft.penultimate(net, x)
    assert f.shape == (4, 512) and not f.requires_grad and not z.requires_grad
    with torch.no_grad(): assert torch.equal(z, net(x)) and torch.equal(net.fc(f), z)


def test_mode_grads_and_hooks_are_left_as_found(net):
    net.train(); net.layer1.eval()
    before = [m.training for m in net.modules()]
    running = net.bn1.running_mean.clone()
    try:
        ft.penultimate(net, torch.randn(2, 3, 16, 16))
        assert [m.training for m in net.modules()] == before and torch.equal(net.bn1.running_mean, running)
        assert all(p.requires_grad and p.grad is None for p in net.parameters()) and not net.fc._forward_hooks
        with pytest.raises(RuntimeError): ft.penultimate(net, torch.randn(2, 5, 16, 16))                 # fails before the head
        assert [m.training for m in net.modules()] == before and not net.fc._forward_hooks and torch.is_grad_enabled()
    finally: net.eval()


class Late(nn.Module):
    "Fails after its head has run."
    def __init__(self): super().__init__(); self.fc = nn.Linear(2, 2)
    def forward(self, x): self.fc(x); raise KeyError("late")


def test_hook_is_gone_when_the_model_fails_after_its_head():
    model = Late().train()
    with pytest.raises(KeyError): ft.penultimate(model, torch.ones(1, 2))
    assert not model.fc._forward_hooks and model.training


@pytest.mark.parametrize("model, why", [(nn.Sequential(nn.Flatten()), "has no nn.Linear"), (nn.Sequential(nn.Linear(2, 2), nn.Tanh()), "its output is not the logits")])
def test_a_network_without_a_head_is_refused(model, why):
    with pytest.raises(ValueError, match=why): ft.penultimate(model, torch.ones(3, 2))


def test_a_head_that_runs_twice_is_refused():
    one = nn.Linear(2, 2)
    with pytest.raises(ValueError, match="ran 2 times"): ft.penultimate(nn.Sequential(one, one), torch.ones(3, 2))


def test_nan_images_come_through_the_reading():
    f, z = ft.penultimate(nn.Sequential(nn.Linear(2, 2)), torch.full((1, 2), torch.nan))
    assert f.isnan().all() and z.isnan().all()


def test_whole_split_in_its_order_whatever_the_batch(net):
    data = split(7)
    f, z = ft.extract_features(net, data)
    assert f.shape == (7, 512) and z.shape == (7, 3) and f.dtype == z.dtype == np.float32
    for other in (ft.extract_features(net, data, batch_size=2), ft.extract_features(net, make_loader(data, batch_size=3)), ft.extract_features(net, [data.__getitems__([0, 1]), data.__getitems__([2, 3, 4, 5, 6])], batch_size=2)):
        assert np.allclose(other[0], f, atol=1e-5) and np.allclose(other[1], z, atol=1e-5)
    one = ft.penultimate(net, data[3][0][None])[0]
    assert np.allclose(f[3], one, atol=1e-5)


def test_batches_are_bounded():
    seen = []
    class Spy(nn.Module):
        def __init__(self): super().__init__(); self.fc = nn.Linear(4, 2)
        def forward(self, x): seen.append(len(x)); return self.fc(x.flatten(1))
    ft.extract_features(Spy(), [(torch.ones(5, 4), torch.zeros(5))], batch_size=2)
    assert seen == [2, 2, 1]


def test_shuffled_and_empty_loaders_are_refused(net):
    with pytest.raises(ValueError, match="shuffles"): ft.extract_features(net, make_loader(split(4), shuffle=True))
    with pytest.raises(ValueError, match="empty"): ft.extract_features(net, [])
    assert len(ft.extract_features(net, DataLoader(split(2), 2, collate_fn=lambda b: b))[0]) == 2


# ---- nearest cases

@pytest.mark.parametrize("metric", ft.SIMILARITIES)
@pytest.mark.parametrize("block", [1, 3, 64])
def test_nearest_as_scikit_learn_finds_them(metric, block):
    bank, queries = cloud(50, 6, 0), cloud(11, 6, 1)
    where, s = ft.nearest_cases(queries, bank, k=4, metric=metric, block=block)
    d, i = NearestNeighbors(n_neighbors=4, algorithm="brute", metric=metric).fit(bank.astype(float)).kneighbors(queries.astype(float))
    assert np.array_equal(where, i) and np.allclose(s, 1 - d if metric == "cosine" else -d, atol=1e-8)


@pytest.mark.parametrize("metric", ft.SIMILARITIES)
@pytest.mark.parametrize("block", [1, 2, 5, 100])
def test_equal_cases_come_in_their_order(metric, block):
    bank = np.repeat(cloud(4, 33, 2), 3, 0)[np.random.default_rng(0).permutation(12)]
    where, s = ft.nearest_cases(bank, bank, k=12, metric=metric, block=block)
    assert all(sorted(row) == list(range(12)) for row in where.tolist())
    for row, values in zip(where, s):
        assert all(a < b for a, b, u, v in zip(row, row[1:], values, values[1:]) if u == v) and (np.diff(values) <= 0).all()
        assert (values == values.max()).sum() == 3


def test_a_query_is_not_its_own_neighbour():
    bank = cloud(30, 5, 3)
    where, _ = ft.nearest_cases(bank, bank, k=29, exclude=np.arange(30), block=8)
    assert all(set(row) == set(range(30)) - {i} for i, row in enumerate(where.tolist()))
    mixed = np.where(np.arange(30) < 15, np.arange(30), -1)
    where, s = ft.nearest_cases(bank, bank, k=1, exclude=mixed)
    assert (where[15:, 0] == np.arange(15, 30)).all() and (where[:15, 0] != np.arange(15)).all() and (s[15:] == 1).all()


def test_zero_vectors_and_scale():
    assert ft.nearest_cases([[0., 0.]], [[1., 0.], [0., 0.]], k=2)[1].tolist() == [[0, 0]]
    bank = cloud(20, 4, 4)
    a, b = ft.nearest_cases(bank[:5], bank, k=3), ft.nearest_cases(bank[:5] * 8, bank * .25, k=3)
    assert np.array_equal(a[0], b[0]) and np.array_equal(a[1], b[1])


@quick
@given(st.integers(1, 12), st.integers(1, 20), st.integers(1, 4), st.integers(0, 10**6), st.integers(1, 9), st.sampled_from(ft.SIMILARITIES))
def test_nearest_are_the_best_and_permuting_the_bank_moves_them_along(n_q, n_b, d, seed, block, metric):
    rng = np.random.default_rng(seed)
    queries, bank, k = rng.standard_normal((n_q, d)), rng.standard_normal((n_b, d)), min(3, n_b)
    where, s = ft.nearest_cases(queries, bank, k=k, metric=metric, block=block)
    every = ft._similarity(queries, bank, metric)
    assert np.allclose(s, -np.sort(-every, 1)[:, :k], atol=1e-9) and s.max() <= (1 if metric == "cosine" else 0)
    order = rng.permutation(n_b)
    assert np.allclose(ft.nearest_cases(queries, bank[order], k=k, metric=metric)[1], s, atol=1e-9)


@pytest.mark.parametrize("given_, why", [(dict(k=0), "k is 0"), (dict(k=6), r"expected 1\.\.5"), (dict(k=5, exclude=[0, 1]), "not its own neighbour"), (dict(metric="cosin"), "Near: cosine"), (dict(block=0), "block is 0"),
                                         (dict(exclude=[0]), r"exclude has shape \(1,\)"), (dict(exclude=[0, 5]), r"-1\.\.4"), (dict(exclude=[.5, 1.]), "whole numbers")])
def test_nearest_refuses(given_, why):
    with pytest.raises(ValueError, match=why): ft.nearest_cases(cloud(2, 3, 0), cloud(5, 3, 1), **given_)


@pytest.mark.parametrize("queries, bank, why", [(np.ones(3), np.ones((2, 3)), r"queries has shape \(3,\)"), (np.ones((1, 2)), np.ones((2, 3)), "expected 3: features of the same network"),
                                                ([[np.nan, 0, 0]], np.ones((2, 3)), "in 1 of 1 rows"), (np.ones((1, 3)), np.empty((0, 3)), r"bank has shape \(0, 3\)"), (np.ones((1, 3)), [[1, np.inf, 0]], "bank has values")])
def test_features_that_are_none_are_refused(queries, bank, why):
    with pytest.raises(ValueError, match=why): ft.nearest_cases(queries, bank, k=1)


# ---- how near is near

def test_usual_and_typical_by_hand():
    line = np.array([[0.], [1.], [3.], [9.]])
    usual = ft.usual_similarities(line, metric="euclidean")
    assert usual.tolist() == [-6, -2, -1, -1]
    assert ft.typicality([-10, -6, -1.5, -1, 0], usual).tolist() == [.2, .4, .6, 1, 1]


def test_usual_of_a_sample_asks_the_whole_bank():
    bank = np.repeat(cloud(40, 5, 0), 2, 0)                           # every case has its double
    assert (ft.usual_similarities(bank, most=7, seed=3) == 1).all() and len(ft.usual_similarities(bank, most=7)) == 7
    bank = cloud(60, 5, 1)
    assert np.array_equal(ft.usual_similarities(bank, most=9, seed=1), ft.usual_similarities(bank, most=9, seed=1)) and not np.array_equal(ft.usual_similarities(bank, most=9, seed=1), ft.usual_similarities(bank, most=9, seed=2))
    with pytest.raises(ValueError, match="at least 2"): ft.usual_similarities(bank[:1])


@quick
@given(st.lists(st.floats(-1, 1), min_size=1, max_size=30), st.lists(st.floats(-1, 1), min_size=2, max_size=10))
def test_typicality_is_a_rising_share(usual, asked):
    t = ft.typicality(sorted(asked), sorted(usual))
    assert (t > 0).all() and (t <= 1).all() and (np.diff(t) >= 0).all()


# ---- the report of neighbours

@pytest.mark.parametrize("kind", ["apart", "close", "pairs", "copies", "zeros"])
@pytest.mark.parametrize("block", [13, 1024])
def test_a_large_bank_is_searched_as_if_in_float64(kind, block):
    "Float32 chooses candidates and float64 decides: also among cases closer than float32 can tell, many copies, and vectors of zeros."
    rng = np.random.default_rng(0)
    bank, q = rng.standard_normal((300, 20)).astype(np.float32), rng.standard_normal((40, 20)).astype(np.float32)
    if kind == "close": bank, q = (np.float32(1) + np.float32(1e-5) * v for v in (bank, q))
    if kind == "pairs": bank = bank[rng.permutation(300) // 2]
    if kind == "copies": bank = bank[np.arange(300) % 4]
    if kind == "zeros": bank[::2] = 0; q[::3] = 0
    own = np.where(np.arange(40) < 20, np.arange(40) * 7, -1)
    q[own >= 0] = bank[own[own >= 0]]
    s = ft._similarity(q, bank, "cosine")
    s[own >= 0, own[own >= 0]] = -np.inf
    order = np.argsort(-s, axis=1, kind="stable")[:, :5]
    where, found = ft.nearest_cases(q, bank, k=5, exclude=own, block=block)
    assert np.array_equal(where, order) and np.array_equal(found, np.take_along_axis(s, order, 1))


def test_most_queries_are_answered_by_the_few_candidates(monkeypatch):
    "Else the float32 pass would be in vain."
    whole, real = [], ft._nearest
    monkeypatch.setattr(ft, "_nearest", lambda queries, *a: whole.append(len(queries)) or real(queries, *a))
    rng = np.random.default_rng(1)
    ft.nearest_cases(rng.standard_normal((50, 64)), rng.standard_normal((400, 64)), k=3)
    assert sum(whole) <= 2


def test_a_search_is_shared_and_another_ones_is_refused():
    bank, q, y = cloud(90, 6, 0), cloud(12, 6, 1), np.arange(90) % 2
    searched = ft.nearest_cases(q, bank, k=5)
    asked = dict(bank_features=bank, bank_labels=y, classes="ab", task="binary", k=3)
    assert ft.knn_agreement(q, y[:12], y[:12], **asked) == ft.knn_agreement(q, y[:12], y[:12], nearest=searched, **asked)
    assert ft.neighbours_report(q, y[:12], range(12), bank_index=range(90), **asked) == ft.neighbours_report(q, y[:12], range(12), bank_index=range(90), nearest=searched, **asked)
    scores = [ft.ood_scores(q, np.zeros((12, 2)), "binary", fitted=None, bank=bank, **more)["nearest_case"] for more in ({}, dict(nearest=searched))]
    assert np.array_equal(*scores)
    for bad in ((searched[0][:5], searched[1][:5]), (searched[0][:, :2], searched[1][:, :2]), (searched[0], searched[1][:, :2])):
        with pytest.raises(ValueError, match=r"nearest has shapes .* expected both \(12, 3\) or wider"): ft.knn_agreement(q, y[:12], y[:12], nearest=bad, **asked)


LINE = np.array([[1., 0.], [1., .1], [1., .2], [0., 1.], [.1, 1.]])


def test_report_by_hand():
    rows = ft.neighbours_report([[1., .05], [0., 2.]], [1, 1], [40, 7], LINE, [0, 0, 1, 1, 1], [10, 11, 12, 13, 14], ["clear", "nodule"], "binary", predicted=[0, 1], k=3)
    first, second = rows
    assert [n["index"] for n in first["neighbours"]] == [11, 10, 12] or [n["index"] for n in first["neighbours"]] == [10, 11, 12]
    assert first["index"] == 40 and first["label"] == "1" and first["label_name"] == "nodule" and first["predicted"] == "0" and first["predicted_name"] == "clear"
    assert first["agreement"] == dict(label=pytest.approx(1 / 3), prediction=pytest.approx(2 / 3))
    assert [n["index"] for n in second["neighbours"]][:2] == [13, 14] and second["similarity"] == 1 and second["agreement"] == dict(label=1, prediction=1)
    assert second["typicality"] == 1 and second["stranger"] is False and first["neighbours"][0]["label"] == "0"
    json.dumps(rows, allow_nan=False)


def test_report_multi_label_and_unknown_labels():
    y = np.array([[1, 0], [1, 0], [0, 0], [0, 1], [1, 1]])
    row, = ft.neighbours_report([[1., 0.]], [[1, 0]], [0], LINE, y, range(5), ["effusion", "mass"], "multi-label", k=3)
    assert [n["label"] for n in row["neighbours"]] == ["1;0", "1;0", "0;0"] and [n["label_name"] for n in row["neighbours"]] == ["effusion", "effusion", "none"]
    assert row["label"] == "1;0" and row["agreement"] == dict(label=pytest.approx(2 / 3), prediction=None) and row["predicted"] is None
    both = ft.neighbours_report([[.1, 1.]], None, [0], LINE, y, range(5), ["effusion", "mass"], "multi-label", k=1, predicted=[[1, 1]])[0]
    assert both["neighbours"][0]["label_name"] == "effusion + mass" and both["label"] is None and both["agreement"] == dict(label=None, prediction=1)


def test_report_within_a_split_leaves_the_query_out():
    bank, y, index = cloud(12, 4, 0), np.arange(12) % 3, np.arange(12) * 5
    for row in ft.neighbours_report(bank[3:6], y[3:6], index[3:6], bank, y, index, "abc", "ordinal", k=11, same_split=True):
        assert row["index"] not in [n["index"] for n in row["neighbours"]]
    assert ft.neighbours_report(bank[:1], y[:1], index[:1], bank, y, index, "abc", "ordinal", k=1)[0]["neighbours"][0]["index"] == 0


def test_a_far_query_is_a_stranger():
    rng = np.random.default_rng(0)
    bank = np.c_[np.ones((60, 1)), .05 * rng.standard_normal((60, 3))]
    near, far = ft.neighbours_report([[1., 0, 0, 0], [-1., 1, 0, 0]], [0, 0], [0, 1], bank, np.zeros(60, int), range(60), ["only"], "multi-class")
    assert near["stranger"] is False and far["stranger"] is True and far["typicality"] == pytest.approx(1 / 61)


@pytest.mark.parametrize("change, why", [(dict(query_labels=[0, 2]), "query_labels: labels has values"), (dict(bank_labels=[0] * 4), r"bank_labels has shape \(4,\)"), (dict(bank_index=[1]), "one position per image"), (dict(task="many"), "task"), (dict(predicted=[0]), "predicted has shape")])
def test_report_refuses(change, why):
    base = dict(query_features=LINE[:2], query_labels=[0, 1], query_index=[0, 1], bank_features=LINE, bank_labels=[0, 0, 1, 1, 1], bank_index=range(5), classes="ab", task="binary")
    with pytest.raises(ValueError, match=why): ft.neighbours_report(**(base | change))


# ---- agreement over a split

@pytest.mark.parametrize("seed", range(3))
def test_votes_are_those_of_scikit_learn(seed):
    rng = np.random.default_rng(seed)
    bank, y, q = cloud(80, 3, seed), rng.integers(0, 2, 80), cloud(40, 3, seed + 50)
    votes = KNeighborsClassifier(5, metric="cosine", algorithm="brute").fit(bank, y).predict(q)
    truth, said = rng.integers(0, 2, 40), rng.integers(0, 2, 40)
    r = ft.knn_agreement(q, truth, said, bank, y, "ab", "binary", k=5)
    assert r["label"]["value"] == (votes == truth).mean() and r["prediction"]["value"] == (votes == said).mean() and r["accuracy"] == (said == truth).mean()
    json.dumps(r, allow_nan=False)


def test_a_tie_goes_to_the_nearer_case():
    votes = np.array([[2, 1, 1, 2], [0, 1, 2, 3], [3, 1, 1, 0], [1, 2, 2, 1]])
    assert ft._majority(votes).tolist() == [2, 0, 1, 1]


def test_chance_is_that_of_the_class_frequencies():
    rng = np.random.default_rng(0)
    y, truth = rng.choice(3, 4000, p=[.7, .2, .1]), rng.choice(3, 4000, p=[.5, .3, .2])
    r = ft.knn_agreement(cloud(4000, 2, 1), truth, truth, cloud(4000, 2, 2), y, "abc", "multi-class", k=1)["label"]
    assert r["low"] < r["chance"] < r["high"] and r["chance"] == pytest.approx(.7 * .5 + .2 * .3 + .1 * .2, abs=.02) and r["commonest"] == pytest.approx((truth == 0).mean())
    assert not r["above_chance"]


def test_multi_label_counts_whole_images_and_each_label():
    bank = np.array([[1., 0.], [1., .1], [1., -.1], [0., 1.], [.1, 1.], [-.1, 1.]])
    y = np.array([[1, 0], [1, 1], [1, 0], [0, 1], [0, 1], [0, 0]])
    r = ft.knn_agreement([[1., 0.], [0., 1.]], [[1, 0], [0, 0]], [[1, 0], [0, 1]], bank, y, ["a", "b"], "multi-label", k=3)
    assert r["prediction"]["value"] == 1 and r["label"]["value"] == .5 and r["accuracy"] == .5
    assert [p["label"]["value"] for p in r["per_label"]] == [1, .5] and [p["name"] for p in r["per_label"]] == ["a", "b"]
    assert r["label"]["chance"] == pytest.approx(.5 * 2 / 6 + .5 * 1 / 6)        # rows 1;0 and 0;0 among the cases


def test_one_class_and_one_image():
    r = ft.knn_agreement(cloud(1, 3, 0), [0], [0], cloud(5, 3, 1), [0] * 5, ["only"], "multi-class", k=5)
    assert r["label"]["value"] == 1 and r["label"]["chance"] == 1 and not r["label"]["above_chance"] and r["n"] == 1


# ---- scores

Z = np.array([[-2.41, -3.97, -0.75], [1.26, 3.41, 0.33], [-1.66, -2.35, 2.25], [4.9, 0.82, -3.7]])


def test_scores_as_pytorch_ood_gives_them():
    # pytorch-ood 0.4.0, EnergyBased.score and MaxSoftmax.score, whose sign is the other way
    assert np.allclose(ft.energy_score(Z), [-0.5429093795851411, 3.560524181529115, 2.279648445608232, 4.91694715376656])
    assert np.allclose(ft.energy_score(Z, temperature=2.5), [0.7063907676890345, 4.7583441507595445, 3.033584027294951, 5.412658295098943])
    assert np.allclose(ft.max_probability(Z, "multi-class"), [0.8129459771477827, 0.8602569274279583, 0.9707867579137465, 0.9831956414484219])


def test_energy_of_labels_is_the_sum_of_their_own():
    two = np.stack([Z, np.zeros_like(Z)], 2)
    assert np.allclose(ft.energy_score(Z, "multi-label", temperature=.5), .5 * logsumexp(two / .5, axis=2).sum(1))
    assert np.allclose(ft.max_probability(Z, "multi-label"), [1 / (1 + np.exp(-v)) for v in (.75, .33, 1.66, .82)])


def test_energy_of_huge_logits_is_finite():
    assert np.isfinite(ft.energy_score([[1e4, -1e4], [-1e4, -1e4]])).all() and np.isfinite(ft.energy_score([[1e4, -1e4]], "multi-label")).all()


@quick
@given(st.integers(0, 10**6), st.floats(.1, 10), st.floats(-50, 50))
def test_energy_moves_with_the_logits(seed, temperature, shift):
    z = np.random.default_rng(seed).normal(0, 3, (5, 4))
    e = ft.energy_score(z, temperature=temperature)
    assert np.allclose(ft.energy_score(z + shift, temperature=temperature), e + shift) and (e >= z.max(1) - 1e-9).all() and (e <= z.max(1) + temperature * np.log(4) + 1e-9).all()


@pytest.mark.parametrize("call, why", [(lambda: ft.energy_score(Z, temperature=0), "temperature is 0"), (lambda: ft.energy_score(Z, temperature=np.nan), "temperature"), (lambda: ft.energy_score([[np.nan, 1]]), "NaN"), (lambda: ft.energy_score([1, 2]), "shape"), (lambda: ft.max_probability(Z, "two-class"), "task")])
def test_scores_refuse(call, why):
    with pytest.raises(ValueError, match=why): call()


def four_groups():
    rng, y = np.random.default_rng(8), np.arange(40) % 4
    f = np.round(rng.standard_normal((40, 3)) @ np.array([[1, .5, 0], [0, 2, .3], [0, 0, .7]]), 2)
    return f + y[:, None], y


def test_mahalanobis_as_pytorch_ood_gives_it():
    # pytorch-ood 0.4.0, Mahalanobis, no shrinkage: it sums where a covariance has the mean over 40 images, and halves, so its distances are ours over 80
    theirs = [0.008448260836303234, 0.045293841511011124, 0.37552499771118164, 0.0093685332685709]
    asked = np.array([[0, 0, 0], [1, 2, 3], [-4, 1, 0], [2., 2, 2]])
    assert np.allclose(ft.mahalanobis_score(ft.fit_mahalanobis(*four_groups(), shrinkage=0), asked), -80 * np.array(theirs), rtol=1e-4)


def test_mahalanobis_as_scikit_learn_shrinks_it():
    f, y = four_groups()
    means = np.stack([f[y == k].mean(0) for k in range(4)])
    lw = LedoitWolf(assume_centered=True).fit(f - means[y])
    fitted = ft.fit_mahalanobis(f, y)
    asked = cloud(9, 3, 0) * 3
    assert fitted.shrinkage == pytest.approx(lw.shrinkage_) and 0 < fitted.shrinkage < 1 and fitted.n == 40 and fitted.classes.tolist() == [0, 1, 2, 3]
    assert np.allclose(ft.mahalanobis_score(fitted, asked, block=2), -np.min([lw.mahalanobis(asked - m) for m in means], 0))
    pooled = LedoitWolf().fit(f)
    for one in (ft.fit_mahalanobis(f), ft.fit_mahalanobis(f, np.eye(4)[y], "multi-label")): assert np.allclose(ft.mahalanobis_score(one, asked), -pooled.mahalanobis(asked))


def test_mahalanobis_with_more_features_than_images_and_missing_classes():
    f = cloud(12, 40, 0)
    fitted = ft.fit_mahalanobis(f, [0, 3] * 6)
    assert fitted.classes.tolist() == [0, 3] and np.isfinite(ft.mahalanobis_score(fitted, f)).all() and (ft.mahalanobis_score(fitted, f) <= 0).all()
    part = ft.fit_mahalanobis(f, [0, 3] * 6, most=8, seed=1)
    assert part.n == 8 and np.allclose(part.means, fitted.means)


@quick
@given(st.integers(0, 10**6))
def test_mahalanobis_does_not_see_a_change_of_axes(seed):
    rng = np.random.default_rng(seed)
    f, y, turn = rng.standard_normal((30, 3)), np.arange(30) % 3, rng.standard_normal((3, 3)) + 3 * np.eye(3)
    order = rng.permutation(30)
    a = ft.mahalanobis_score(ft.fit_mahalanobis(f, y, shrinkage=0), f)
    assert np.allclose(ft.mahalanobis_score(ft.fit_mahalanobis(f @ turn, y, shrinkage=0), f @ turn), a, rtol=1e-5)
    assert np.allclose(ft.mahalanobis_score(ft.fit_mahalanobis(f[order], y[order], shrinkage=0), f), a)


@pytest.mark.parametrize("call, why", [(lambda: ft.fit_mahalanobis(np.ones((1, 2))), "at least 2"), (lambda: ft.fit_mahalanobis(np.ones((5, 2))), "cannot be inverted"), (lambda: ft.fit_mahalanobis(np.eye(2), [0, 1]), "cannot be inverted"),
                                       (lambda: ft.fit_mahalanobis(np.eye(3), [0, 1]), "labels has shape"), (lambda: ft.fit_mahalanobis(np.eye(3), shrinkage=2), "shrinkage is 2"), (lambda: ft.fit_mahalanobis(np.eye(3), [0, 1, 0], "multi"), "task"),
                                       (lambda: ft.mahalanobis_score(ft.fit_mahalanobis(cloud(9, 2, 0)), cloud(3, 4, 0)), "expected 2: features")])
def test_mahalanobis_refuses(call, why):
    with pytest.raises(ValueError, match=why): call()


@pytest.mark.parametrize("task", TASKS)
def test_every_score_in_every_task(task):
    k = 2 if task == "binary" else 3
    rng, f = np.random.default_rng(0), cloud(30, 5, 0)
    y = rng.integers(0, 2, (30, k)) if task == "multi-label" else np.arange(30) % k
    found = ft.ood_scores(f, rng.standard_normal((30, k)), task, fitted=ft.fit_mahalanobis(f, y, task), bank=f, exclude=np.arange(30))
    assert list(found) == list(ft.SCORES) and all(v.shape == (30,) and np.isfinite(v).all() for v in found.values()) and found["nearest_case"].max() < 1


# ---- other sets and pixels

@pytest.mark.parametrize("kind", ft.OTHER_SETS)
@pytest.mark.parametrize("shape", [(6, 1, 9, 9), (6, 3, 8, 10), (4, 1, 5, 6, 7)])
def test_other_sets_keep_shape_and_seed(kind, shape):
    x = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    kept = x.copy()
    a, b, c = (ft.stranger_images(kind, x, seed=s) for s in (1, 1, 2))
    assert a.shape == shape and a.dtype == np.uint8 and np.array_equal(a, b) and not np.array_equal(a, c) and np.array_equal(x, kept)
    some = ft.stranger_images(kind, torch.from_numpy(x), n=2, seed=1)
    assert some.shape == (2, *shape[1:]) and ft.OTHER_SETS[kind].distance in ("near", "far")


def test_shuffled_keeps_colours_and_histogram():
    x = np.random.default_rng(0).integers(0, 256, (5, 3, 7, 7), dtype=np.uint8)
    made = ft.stranger_images("shuffled", x)
    def colours(image): return sorted(map(tuple, image.reshape(3, -1).T.tolist()))
    assert all(colours(a) == colours(b) for a, b in zip(x, made)) and np.array_equal(ft.pixel_statistics(x), ft.pixel_statistics(made))
    order = [np.argsort(image[0].ravel(), kind="stable").tolist() for image in made]
    assert order[0] != order[1]


def test_scrambled_keeps_the_spectrum_where_nothing_is_clipped():
    x = np.random.default_rng(0).integers(118, 138, (3, 2, 16, 16), dtype=np.uint8)
    made = ft.stranger_images("scrambled", x)
    a, b = (np.abs(np.fft.rfft2(v.astype(float))) for v in (x, made))
    assert np.allclose(a.mean((2, 3)), b.mean((2, 3)), rtol=.01) and np.corrcoef(a.ravel(), b.ravel())[0, 1] > .99 and np.abs(x.mean((2, 3)) - made.mean((2, 3))).max() < .2
    assert abs(np.corrcoef(x[0, 0].ravel(), made[0, 0].ravel())[0, 1]) < .3


def test_noise_is_uniform():
    made = ft.stranger_images("noise", np.zeros((20, 1, 32, 32), np.uint8))
    assert made.min() == 0 and made.max() == 255 and abs(made.mean() - 127.5) < 2 and abs(made.std() - 73.9) < 1.5


@pytest.mark.parametrize("kind, x, n, why", [("nois", np.zeros((2, 1, 4, 4), np.uint8), None, "Near: noise"), ("noise", np.zeros((2, 1, 4, 4)), None, "uint8"), ("noise", np.zeros((2, 4, 4), np.uint8), None, "shape"), ("noise", np.zeros((2, 1, 4, 4), np.uint8), 3, r"expected 1\.\.2")])
def test_other_sets_refuse(kind, x, n, why):
    with pytest.raises(ValueError, match=why): ft.stranger_images(kind, x, n=n)


def test_a_new_set_is_one_function():
    try:
        @ft.register_other_set("blank", title="blank", description="Nothing.", distance="far")
        def blank(images, rng): return np.zeros_like(images)
        assert not ft.stranger_images("blank", np.ones((2, 1, 3, 3), np.uint8)).any()
        with pytest.raises(ValueError, match="registered already"): ft.register_other_set("blank", title="", description="", distance="far")(lambda images, rng: images)
    finally: ft.OTHER_SETS.pop("blank", None)
    with pytest.raises(ValueError, match="distance"): ft.register_other_set("x", title="", description="", distance="middling")


def test_pixel_statistics_are_those_of_numpy():
    x = np.random.default_rng(0).integers(0, 256, (1500, 2, 3, 3), dtype=np.uint8)
    assert np.allclose(ft.pixel_statistics(x), np.stack([x.mean((1, 2, 3)), x.std((1, 2, 3))], 1))
    for chunk in (1, 50, 10**6): assert np.array_equal(ft.pixel_statistics(x), ft.pixel_statistics(x, chunk=chunk))
    assert np.array_equal(ft.pixel_statistics(x / 255, chunk=1), ft.pixel_statistics(x / 255))
    bank = x[:700]
    s, u = ft.pixel_scores(x, bank), ft.pixel_statistics(bank)
    assert list(s) == list(ft.CONTROLS) and np.allclose(s["brightness"], -np.abs(x.mean((1, 2, 3)) - u[:, 0].mean()) / u[:, 0].std()) and all((v <= 0).all() for v in s.values())


def test_pixel_statistics_take_little_memory():
    "40 images of 1024 pixels a side are 42 million values: 670 MB as whole numbers and their squares, 67 MB a chunk."
    x = np.zeros((40, 1, 1024, 1024), np.uint8)
    tracemalloc.start()
    try:
        ft.pixel_statistics(x)
        assert tracemalloc.get_traced_memory()[1] < 100e6
    finally: tracemalloc.stop()


# ---- the report

def test_auc_and_rate_as_scikit_learn_gives_them():
    rng = np.random.default_rng(3)
    a, b = np.round(rng.normal(1, 1, 60), 1), np.round(rng.normal(0, 1, 50), 1)          # with ties
    row, = ft.ood_report({"energy": a}, {"energy": b}, n_resamples=200)
    assert row["auc"]["value"] == pytest.approx(roc_auc_score(np.r_[np.ones(60), np.zeros(50)], np.r_[a, b])) and row["auc"]["low"] < row["auc"]["value"] < row["auc"]["high"]
    assert (a >= row["threshold"]).mean() >= .95 > (a > row["threshold"]).mean() and row["false_positive_rate"]["value"] == (b >= row["threshold"]).mean()
    assert (row["n_inside"], row["n_outside"], row["control"], row["better"], row["title"]) == (60, 50, False, "higher", "Energy")
    assert ft.ood_report({"brightness": a}, {"brightness": b}, n_resamples=100)[0]["control"] is True
    json.dumps(row, allow_nan=False)


def test_rate_by_hand():
    e, threshold = ft.false_positive_rate(range(1, 21), [0, 1, 2, 3, 30])
    assert threshold == 2 and e.value == 3 / 5 and e.n == 5 and e.low < .6 < e.high
    assert ft.false_positive_rate(range(1, 21), [1], recall=1)[1] == 1
    assert ft.false_positive_rate([5], [5, 4])[0].value == .5                             # a tie passes
    with pytest.raises(ValueError, match="recall"): ft.false_positive_rate([1], [1], recall=0)


@quick
@given(st.integers(0, 10**6), st.integers(5, 30), st.integers(5, 30))
def test_report_turns_with_its_sides_and_sees_only_order(seed, n, m):
    rng = np.random.default_rng(seed)
    a, b = rng.integers(0, 6, n), rng.integers(0, 6, m)
    def auc(x, y): return ft.ood_report({"s": x}, {"s": y}, n_resamples=100)[0]["auc"]["value"]
    assert auc(a, b) == pytest.approx(1 - auc(b, a)) and auc(a, b) == pytest.approx(auc(np.exp(a), np.exp(b))) and auc(a, a) == pytest.approx(.5)
    low, high = (ft.false_positive_rate(a, b, recall=r)[0].value for r in (.5, .95))
    assert low <= high


def test_a_figure_without_an_interval_says_why():
    apart, = ft.ood_report({"s": np.arange(9) + 10}, {"s": np.arange(8)}, n_resamples=100)
    assert apart["auc"] == dict(value=1, low=None, high=None) and "same figure" in apart["note"] and apart["false_positive_rate"]["value"] == 0
    few, = ft.ood_report({"s": [1, 2, 3]}, {"s": [0, 2, 5]}, n_resamples=100)
    assert few["auc"]["low"] is None and "fewer than 5" in few["note"]


@pytest.mark.parametrize("inside, outside, why", [({"a": [1]}, {"b": [1]}, "the same names"), ({}, {}, "at least one"), ({"a": [np.nan, 1]}, {"a": [1]}, "a inside"), ({"a": [1]}, {"a": []}, "a outside"), ({"a": [[1]]}, {"a": [1]}, "one number per image")])
def test_report_of_other_sets_refuses(inside, outside, why):
    with pytest.raises(ValueError, match=why): ft.ood_report(inside, outside, n_resamples=100)


def words_of(**figures):
    "Words on scores with these values, lows and highs."
    return ft.ood_words([dict(name=n, title=n, control=False, auc=dict(value=v, low=l, high=h), false_positive_rate=dict(value=.9), recall=.95, n_inside=40, n_outside=30, note="" if l else "no interval: why") for n, (v, l, h) in figures.items()], "a", "b")


@pytest.mark.parametrize("figures, first", [
    (dict(E=(.18, .1, .3), M=(.1, .05, .2)), "No score tells a from b beyond luck; the highest of 2 is E: AUC 0.180 (0.100 to 0.300), n 40 and 30; the best of 2 is chosen after the fact, which flatters it."),
    (dict(E=(.6, .5, .7), M=(.1, .05, .2)), "No score tells a from b beyond luck; the highest of 2 is E: AUC 0.600 (0.500 to 0.700), n 40 and 30; the best of 2 is chosen after the fact, which flatters it."),
    (dict(E=(.6, .501, .7), M=(.1, .05, .2)), "E tells a from b best of 2 scores: AUC 0.600 (0.501 to 0.700), n 40 and 30; the best of 2 is chosen after the fact, which flatters it."),
    (dict(E=(.5, None, None)), "E, the only score, does not tell a from b beyond luck: AUC 0.500 (no interval: why), n 40 and 30."),
    (dict(E=(.8, .7, .9)), "E, the only score, tells a from b: AUC 0.800 (0.700 to 0.900), n 40 and 30.")])
def test_words_claim_a_difference_only_above_luck(figures, first):
    assert words_of(**figures)[0] == first + " At the threshold that keeps 95 % of the former, 90 % of the latter pass."


def test_strangers_beside_the_share_by_definition():
    # P(X >= k) for 100 images at 0.05, scipy 1.16 binomtest: k 9: 0.0631, k 10: 0.0282
    assert ft.strangers_words(9, 100) == "9 of 100 images (9.0 %) are farther from their nearest training case than 95 % of training cases are from theirs; about 5 % would be by definition."
    assert ft.strangers_words(10, 100).endswith("about 5 % would be by definition, and this is more than luck allows.")
    assert "luck" not in ft.strangers_words(0, 1) and "luck" not in ft.strangers_words(0, 200) and "luck" in ft.strangers_words(2, 2) and "1,200 of 2,000 images (60.0 %)" in ft.strangers_words(1200, 2000)
    assert ft.strangers_words(np.int64(1), np.int64(1)).endswith(".")                        # 0.05 is not below 0.05
    for k, n in ((0, 0), (-1, 5), (6, 5)):
        with pytest.raises(ValueError, match=f"n_strangers is {k} and n {n}"): ft.strangers_words(k, n)


def test_words_name_the_easy_set_first():
    rng = np.random.default_rng(0)
    a, b, far = rng.normal(0, 1, 80), rng.normal(.8, 1, 80), rng.normal(-9, 1, 80)
    easy = ft.ood_words(ft.ood_report({"energy": a, "pixels": a}, {"energy": b, "pixels": far}, n_resamples=100), "the test images", "noise")
    assert "More familiar than the test images, by Energy: noise." in easy and "proves little" in easy[-1]
    hard = ft.ood_words(ft.ood_report({"energy": a, "contrast": a}, {"energy": far, "contrast": a}, n_resamples=100), "the test images", "noise")
    assert "Energy, the only score, tells the test images from noise: AUC 1.000 (no interval: every resample gives the same figure), n 80 and 80. At the threshold that keeps 95 % of the former, 0 % of the latter pass." == hard[0] and hard[-1].startswith("The best pixel control reaches AUC 0.500")
    wholly = ft.ood_words(ft.ood_report({"energy": far}, {"energy": a}, n_resamples=100), "a", "b")
    assert "More familiar than a, by Energy: b." in wholly                                 # AUC 0 has no interval, and is the worst of all
    assert "Without controls" in ft.ood_words(ft.ood_report({"energy": a}, {"energy": b}, n_resamples=100), "a", "b")[-1]
    reversed_ = ft.ood_words(ft.ood_report({"brightness": far}, {"brightness": a}, n_resamples=100), "a", "b")
    assert "proves little" in reversed_[-1]                                                # told apart the other way round is told apart
