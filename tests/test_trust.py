"Metrics against scikit-learn and against answers worked out by hand; faults refused by name; no warnings."
import numpy as np
import pytest
import sklearn.metrics as sk

from xaimed import trust

pytestmark = pytest.mark.filterwarnings("error")
TASKS = [("multi-class", 5), ("binary", 2), ("multi-label", 4), ("ordinal", 3)]


def case(task, K, n=200, seed=0):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, (n, K)) if task == "multi-label" else rng.integers(0, K, n)
    logits = rng.standard_normal((n, K)) + 1.5 * (labels if task == "multi-label" else np.eye(K)[labels])
    return labels, trust.probabilities(logits, task)


@pytest.mark.parametrize("task, K", TASKS)
def test_equal_to_scikit_learn(task, K):
    y, p = case(task, K)
    d, labels = trust.predict_labels(p, task), np.arange(K)
    expected = {"binary": lambda: sk.roc_auc_score(y, p[:, 1]), "multi-label": lambda: sk.roc_auc_score(y, p, average="macro")}.get(task, lambda: sk.roc_auc_score(y, p, multi_class="ovr"))()
    assert np.isclose(trust.auc(y, p, task), expected)
    assert np.isclose(trust.macro_f1(y, p, task), sk.f1_score(y, d, average="macro"))
    found = trust.per_class_metrics(y, p, task)
    assert np.allclose([found[k] for k in ("precision", "recall", "f1", "support")], sk.precision_recall_fscore_support(y, d, labels=labels))
    if task == "multi-label":
        assert np.isclose(trust.accuracy(y, d), np.mean([sk.accuracy_score(y[:, k], d[:, k]) for k in range(K)]))
        tn, fp, fn, tp = np.array([sk.confusion_matrix(y[:, k], d[:, k]).ravel() for k in range(K)]).T
        assert np.array_equal(trust.label_outcomes(y, d), np.stack([tp, fn, fp, tn], 1))
    else:
        assert np.isclose(trust.accuracy(y, d), sk.accuracy_score(y, d))
        assert np.array_equal(trust.confusion_matrix(y, d, K), sk.confusion_matrix(y, d, labels=labels))


def test_binary_auc_reads_column_1_only():
    p = np.array([[0.9, 0.1], [0.9, 0.2], [0.0, 0.3]])
    assert trust.auc([0, 1, 1], p, "binary") == 1.0


@pytest.mark.parametrize("task", ["multi-class", "binary", "ordinal"])
def test_perfect_reversed_tied(task):
    y = np.array([0, 0, 1, 1])
    right = np.eye(2)[y]
    assert trust.auc(y, right, task) == 1 and trust.auc(y, 1 - right, task) == 0 and trust.auc(y, np.full((4, 2), 0.5), task) == 0.5


@pytest.mark.parametrize("task, K", TASKS)
def test_probabilities_survive_extreme_logits(task, K):
    z = np.array([[3e38] + [-3e38] * (K - 1), [0.0] * K, [-745.2] * K])
    p = trust.probabilities(z, task)
    assert p.dtype == np.float64 and np.isfinite(p).all() and ((p >= 0) & (p <= 1)).all()
    if task != "multi-label": assert np.allclose(p.sum(1), 1)
    assert trust.probabilities(np.zeros((1, K), np.float16), task).dtype == np.float64


@pytest.mark.parametrize("bad, said", [(np.zeros(3), r"shape \(3,\)"), (np.zeros((0, 2)), r"shape \(0, 2\)"), ([[np.nan, 0]], "1 of 1 rows"), ([[np.inf, 0]], "1 of 1 rows")])
def test_bad_logits_are_refused(bad, said):
    with pytest.raises(ValueError, match=said): trust.probabilities(bad, "binary")


HALF = np.full((4, 2), 0.5)
@pytest.mark.parametrize("labels, probs, task, said", [
    (np.zeros((4, 1), int), HALF, "binary", r"labels has shape \(4, 1\), expected \(4,\)"),
    (np.zeros(3, int), HALF, "binary", r"labels has shape \(3,\)"),
    (np.zeros(4, int), HALF, "multi-label", r"expected \(4, 2\)"),
    (np.array([0, 1, 2, 0]), HALF, "multi-class", r"0\.\.2, expected 0\.\.1: there are 2 classes"),
    (np.array([0, -1, 1, 0]), HALF, "ordinal", r"-1\.\.1"),
    (np.full((4, 2), 2), HALF, "multi-label", r"expected 0\.\.1"),
    (np.array([0, 0.5, 1, 0]), HALF, "binary", "whole numbers"),
    (np.array([0, np.nan, 1, 0]), HALF, "binary", "whole numbers"),
    (np.array(list("abcd")), HALF, "binary", "whole numbers"),
    (np.zeros(4, int), np.where(np.eye(4, 2) > 0, np.nan, 0.5), "binary", "NaN in 2 of 4 rows"),
    (np.zeros(4, int), HALF * 4, "binary", "pass logits through"),
    (np.zeros(4, int), HALF - 1, "binary", "pass logits through"),
    (np.zeros(4, int), np.full((4, 3), 1 / 3), "binary", "3 columns, expected 2"),
    (np.zeros(4, int), np.full(4, 0.5), "binary", r"probs has shape \(4,\)"),
    (np.zeros(0, int), np.zeros((0, 2)), "binary", r"probs has shape \(0, 2\)"),
    (np.zeros(4, int), HALF, "multiclass", "unknown task 'multiclass'. Near: multi-class"),
])
def test_faults_are_named(labels, probs, task, said):
    for f in (trust.auc, trust.auc_per_class, trust.per_class_metrics, trust.macro_f1, trust.confidence_and_correct):
        with pytest.raises(ValueError, match=said): f(labels, probs, task)


def test_inputs_are_left_as_they_were():
    y, p = case("multi-label", 4)
    before = y.copy(), p.copy()
    trust.per_class_metrics(y, p, "multi-label"), trust.calibration_bins(*trust.confidence_and_correct(y, p, "multi-label"))
    assert np.array_equal(y, before[0]) and np.array_equal(p, before[1])


@pytest.mark.parametrize("task, K", TASKS)
@pytest.mark.parametrize("n", [1, 5])
def test_one_image_or_one_class_is_answered(task, K, n):
    y = np.zeros((n, K), int) if task == "multi-label" else np.zeros(n, int)
    p = trust.probabilities(np.random.default_rng(0).standard_normal((n, K)), task)
    assert np.isnan(trust.auc(y, p, task)) and np.isnan(trust.auc_per_class(y, p, task)).all()
    found = trust.per_class_metrics(y, p, task)
    assert np.isnan(found["recall"][1:]).all() and found["support"].sum() == (0 if task == "multi-label" else n)
    assert 0 <= trust.expected_calibration_error(*trust.confidence_and_correct(y, p, task)) <= 1


def test_one_label():
    y, p = np.array([[0], [1], [1]]), np.array([[0.2], [0.9], [0.4]])
    found = trust.per_class_metrics(y, p, "multi-label")
    assert (found["precision"], found["recall"], found["f1"], found["auc"], found["support"]) == (1, 0.5, 2 / 3, 1, 2)
    assert np.isnan(trust.macro_f1([[0]], [[0.1]], "multi-label"))


def naive_ece(c, ok, n):
    "Bin by bin, straight from the definition."
    total = 0.0
    edges = np.linspace(0, 1, n + 1)
    for i in range(n):
        inside = (c > edges[i]) & (c <= edges[i + 1]) | ((c == 0) & (i == 0))
        if inside.any(): total += inside.sum() / len(c) * abs(ok[inside].mean() - c[inside].mean())
    return total


@pytest.mark.parametrize("n_bins", [1, 2, 3, 7, 10, 15, 100])
def test_ece_counts_every_decision_once(n_bins):
    rng = np.random.default_rng(n_bins)
    edges = np.linspace(0, 1, n_bins + 1)
    c = np.concatenate([rng.random(300), edges, np.nextafter(edges[1:], 0), np.nextafter(edges[:-1], 1), [0, 0, 1, 1]])
    ok = rng.random(len(c)) < c
    bins = trust.calibration_bins(c, ok, n_bins)
    assert bins["count"].sum() == len(c)
    assert np.isclose(trust.expected_calibration_error(c, ok, n_bins), naive_ece(c, ok, n_bins))
    full = bins["count"] > 0
    assert ((bins["confidence"][full] >= edges[:-1][full] - 1e-12) & (bins["confidence"][full] <= edges[1:][full] + 1e-12)).all()


@pytest.mark.parametrize("c, ok, expected", [(1.0, True, 0), (1.0, False, 1), (0.0, False, 0), (0.0, True, 1), (0.5, True, 0.5)])
def test_ece_of_a_single_decision(c, ok, expected): assert trust.expected_calibration_error([c], [ok]) == expected


def test_ece_of_many_shapes_and_faults():
    assert trust.expected_calibration_error([[1.0, 0.8]], [[1, 0]], 10) == pytest.approx(0.4)
    with pytest.raises(ValueError, match="expected 0..1"): trust.expected_calibration_error([1.1], [True])
    with pytest.raises(ValueError, match="expected 0..1"): trust.expected_calibration_error([np.nan], [True])
    with pytest.raises(ValueError, match="same shape"): trust.expected_calibration_error([0.5, 0.6], [True])
    with pytest.raises(ValueError, match="at least one"): trust.expected_calibration_error([], [])
    with pytest.raises(ValueError, match="n_bins is 0"): trust.expected_calibration_error([0.5], [True], 0)
    with pytest.raises(ValueError, match="true and false"): trust.expected_calibration_error([0.5], [3])


def test_confusion_faults():
    with pytest.raises(ValueError, match="use `label_outcomes`"): trust.confusion_matrix(np.zeros((2, 2), int), np.zeros((2, 2), int), 2)
    with pytest.raises(ValueError, match="expected 0..1"): trust.confusion_matrix([0, 1], [0, 2], 2)
    with pytest.raises(ValueError, match="expected both"): trust.label_outcomes([[0, 1]], [[0]])
    with pytest.raises(ValueError, match="same shape"): trust.accuracy([0, 1], [0])
