"xaimed.explain: the images and targets it chooses, its files and figures, the stage."
import csv

import numpy as np
import pytest
import torch

from xaimed import explain
from xaimed.attribution import Attribution
from xaimed.explain import Explained, choose_targets, draw_samples, flat_maps, read_explanations, sample_titles, select_samples, write_explanations


def test_choose_targets():
    scores = torch.tensor([[1., 3, 2], [0, -1, -2], [5, 5, 9]])
    assert choose_targets("predicted", scores).tolist() == [1, 0, 2]
    assert choose_targets("true", scores, torch.tensor([0, 1, 2])).tolist() == [0, 1, 2]
    assert choose_targets("true", scores, torch.tensor([[1., 0, 1], [0, 0, 0], [1, 1, 0]])).tolist() == [2, 0, 0]
    assert choose_targets("1", scores).tolist() == choose_targets(1, scores).tolist() == [1, 1, 1]
    for kind, message in (("3", "expected 'predicted', 'true' or 0..2"), ("treu", "Near: true"), (-1, "unknown target")):
        with pytest.raises(ValueError, match=message): choose_targets(kind, scores)
    with pytest.raises(ValueError, match="needs labels"): choose_targets("true", scores)


def test_select_samples():
    gallery = [{"group": g, "index": i} for g in ("high_confidence_wrong", "low_confidence_correct") for i in range(10, 20)]
    samples = select_samples(range(50), gallery, n_random=50, n_gallery=3)
    assert sorted(i for i, _ in samples) == list(range(50))
    assert samples[:3] == [(i, "high_confidence_wrong") for i in (10, 11, 12)]     # a random draw takes no image from the gallery
    for seed in range(5):
        few = select_samples(range(10, 20), gallery[:10], n_random=4, n_gallery=4, seed=seed)
        assert few[:4] == [(i, "high_confidence_wrong") for i in range(10, 14)]
        assert [g for _, g in few[4:]] == ["random"] * 4 and {i for i, _ in few[4:]} <= set(range(14, 20))
    assert len({tuple(select_samples(range(50), gallery, seed=s)) for s in range(5)}) > 1
    samples = select_samples(range(50), gallery, n_random=0, n_gallery=3)
    assert samples == [(i, "high_confidence_wrong") for i in (10, 11, 12)]        # the second group holds the same images: once each
    with pytest.raises(ValueError, match="one of the split's 15 images"): select_samples(range(15), gallery, n_gallery=10)
    assert select_samples(range(3), [], n_random=0) == []
    assert {i for i, _ in select_samples([4, 9, 30], [{"group": "g", "index": "9"}], n_random=2)} <= {4, 9, 30}      # a part of a split keeps its indices


def explained(n=3, channels=3, multi_label=False, masks=True, size=(12, 10)):
    g = np.random.default_rng(0)
    maps = torch.rand(n, channels, *size, generator=torch.Generator().manual_seed(0)) - .5
    labels = g.integers(0, 2, (n, 3)) if multi_label else g.integers(0, 3, n)
    return Explained(list(range(7, 7 + n)), ["random"] * n, g.integers(0, 256, (n, channels, *size), dtype=np.uint8),
                     g.random((n, *size)) > .7 if masks else None, labels, g.integers(0, 3, n), g.random(n), ("a very long class name, as they are", "b", "c"),
                     {"gradcam": Attribution(maps[:, :1].clamp(min=0)), "integrated_gradients": Attribution(maps, torch.linspace(-.1, .1, n))})


@pytest.mark.parametrize("multi_label", [False, True])
@pytest.mark.parametrize("masks", [False, True])
@pytest.mark.parametrize("channels", [1, 3])
def test_files(tmp_path, multi_label, masks, channels):
    shown = explained(multi_label=multi_label, masks=masks, channels=channels)
    facts = write_explanations(tmp_path, shown)
    assert facts["samples"] == 3 and facts["largest_gap"] == pytest.approx(.1)
    with open(tmp_path / "explanations.csv", encoding="utf-8") as f: rows = list(csv.DictReader(f))
    assert list(rows[0]) == ["index", "group", "method", "target", "target_name", "probability", "label", "completeness_gap", "file"]
    assert len(rows) == 6 and all((tmp_path / r["file"]).stat().st_size > 1000 for r in rows)
    assert {r["file"] for r in rows} == {f"sample_{i:05d}_{m}.png" for i in (7, 8, 9) for m in shown.attributions}
    assert [r["completeness_gap"] == "" for r in rows] == [True] * 3 + [False] * 3
    assert rows[0]["label"] == ";".join(map(str, np.atleast_1d(shown.labels[0])))
    with np.load(tmp_path / "attributions.npz", allow_pickle=False) as a:
        assert a["gradcam"].shape == (3, 1, 12, 10) and a["integrated_gradients"].shape == (3, channels, 12, 10) and a["gradcam"].dtype == np.float32
        assert np.array_equal(a["images"], shown.images) and ("masks" in a) == masks
        np.testing.assert_array_equal(a["integrated_gradients"], shown.attributions["integrated_gradients"].map.numpy())
    again = read_explanations(tmp_path, shown.classes)
    assert again.index == shown.index and sample_titles(again, "integrated_gradients", 0) == sample_titles(shown, "integrated_gradients", 0)


def test_titles_say_what_is_shown():
    shown = explained()
    heading, line = sample_titles(shown, "integrated_gradients", 1)
    assert "Integrated Gradients" in heading and shown.classes[shown.target[1]] in heading and f"{shown.probability[1]:.3f}" in heading
    assert f"label: {shown.label_name(1)}" in line and "sample 8" in line and "gap +0.000" in line
    assert "gap" not in "".join(sample_titles(shown, "gradcam", 1))


def test_figures_run_beside_each_other(tmp_path):
    "No global state: two threads draw the same pictures as one."
    shown = explained()
    draw_samples(shown, "gradcam").savefig(tmp_path / "a.png")
    assert flat_maps(shown.attributions["integrated_gradients"].map, (12, 10)).shape == (3, 12, 10)
    assert flat_maps(shown.attributions["integrated_gradients"].map, (24, 20)).shape == (3, 24, 20)
    assert draw_samples(shown, "gradcam", []).axes is not None


def smoke(tmp_path, **more):
    "Options of a run small enough for a test: few images, one epoch."
    from xaimed.config import load_options
    return load_options("", overrides={"artifacts_dir": str(tmp_path), "device": "cpu", "data.size": 28, "synthetic.n_train": 32, "synthetic.n_val": 16, "synthetic.n_test": 24,
                                       "train.epochs": 1, "explain.n_steps": 4, "explain.n_random": 2, "explain.n_gallery": 2, **more})


def test_stage(tmp_path):
    "The chain on synthetic data: files, facts, true targets, and what is kept."
    from xaimed.config import read_manifest, stage_dir
    from xaimed.eval import run_eval
    options = smoke(tmp_path)
    folder = explain.run_explain(options)
    assert folder == stage_dir(options, "explain")
    with open(folder / "explanations.csv", encoding="utf-8") as f: rows = list(csv.DictReader(f))
    with open(run_eval(options) / "predictions.csv", encoding="utf-8") as f: predictions = {r["index"]: r for r in csv.DictReader(f)}
    assert {r["method"] for r in rows} == {"gradcam", "integrated_gradients"} and "random" in {r["group"] for r in rows}
    for r in rows:
        assert (folder / r["file"]).exists() and r["target"] == predictions[r["index"]]["predicted"] and r["label"] == predictions[r["index"]]["label"]
        assert float(r["probability"]) == pytest.approx(float(predictions[r["index"]][f"prob_{r['target']}"]), abs=1e-4)
    shown = read_explanations(folder, range(4))
    assert shown.masks is not None and shown.attributions["gradcam"].map.shape[2:] == (28, 28)
    stamp = (folder / "manifest.json").stat().st_mtime_ns
    explain.run_explain(options)
    assert (folder / "manifest.json").stat().st_mtime_ns == stamp and read_manifest(folder)
    true = smoke(tmp_path, **{"explain.target": "true", "explain.methods": ["gradcam"], "explain.n_gallery": 0})
    shown = read_explanations(explain.run_explain(true), range(4))
    assert np.array_equal(shown.target, shown.labels) and set(shown.group) == {"random"} and list(shown.attributions) == ["gradcam"]


def test_stage_when_nothing_was_wrong(tmp_path, monkeypatch):
    "An evaluation without an error writes a gallery with one group; the stage explains that and the random images."
    from xaimed import eval as evaluation
    def all_right(labels, probs, *args, **kwargs): return select(labels, np.eye(probs.shape[1])[labels] * .9 + .02, *args, **kwargs)
    select = evaluation.select_failures
    monkeypatch.setattr(evaluation, "select_failures", all_right)
    options = smoke(tmp_path, **{"explain.methods": ["gradcam"]})
    folder = explain.run_explain(options)
    gallery = explain.gallery_rows(evaluation.run_eval(options))
    assert gallery and {r["group"] for r in gallery} == {"low_confidence_correct"}
    shown = read_explanations(folder, range(4))
    assert shown.group == ["low_confidence_correct"] * 2 + ["random"] * 2 and len(set(shown.index)) == 4
    assert shown.index[:2] == [int(r["index"]) for r in gallery[:2]]
    # no image in either group: a header alone, as the evaluation itself writes it
    monkeypatch.setattr(evaluation, "select_failures", lambda *args, **kwargs: [])
    assert explain.gallery_rows(evaluation.run_eval(options, force=True)) == []
    assert read_explanations(explain.run_explain(options), range(4)).group == ["random"] * 2


def test_stage_refuses(tmp_path):
    with pytest.raises(ValueError, match="Near: gradcam"): explain.run_explain(smoke(tmp_path, **{"explain.methods": ["grad_cam"]}))
    with pytest.raises(ValueError, match="the model has 4 outputs"): explain.run_explain(smoke(tmp_path, **{"explain.target": "7"}))
    with pytest.raises(ValueError, match="set explain.n_random"): explain.run_explain(smoke(tmp_path, **{"explain.n_random": 0, "explain.n_gallery": 0}))


@pytest.mark.parametrize("task", ["multi-label", "binary"])
def test_stage_other_tasks(tmp_path, task):
    options = smoke(tmp_path, **{"synthetic.task": task, "synthetic.num_classes": 3 if task == "multi-label" else 2, "explain.target": "true"})
    folder = explain.run_explain(options)
    with open(folder / "explanations.csv", encoding="utf-8") as f: rows = list(csv.DictReader(f))
    for r in rows:
        labels = r["label"].split(";")
        assert task != "multi-label" or "1" not in labels or labels[int(r["target"])] == "1"
