"xaimed.explain: the images and targets it chooses, its files and figures, the stage."
import csv
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from xaimed import explain, scorecard
from xaimed.attribution import METHODS, Attribution
from xaimed.config import read_json
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
                                       "train.epochs": 1, "explain.n_steps": 4, "explain.n_random": 2, "explain.n_gallery": 2, "scorecard.budget": "none", **more})


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


def test_the_recommended_method_is_drawn_also_when_nobody_asked_for_its_pictures(tmp_path, monkeypatch):
    import pandas as pd
    judged = {"recommended": {"method": "saliency"}, "methods": [], "warnings": []}
    monkeypatch.setattr(explain, "measure_explanations", lambda *args: (pd.DataFrame({"score": [1.0]}), judged))
    monkeypatch.setattr(explain, "warnings_of", lambda verdict: {})
    shown = read_explanations(explain.run_explain(smoke(tmp_path, **{"scorecard.budget": "cheap", "explain.methods": ["gradcam"]})), range(4))
    assert list(shown.attributions) == ["gradcam", "saliency"]


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


SCORED = {"model.name": "resnet10", "explain.methods": ["gradcam"], "scorecard.budget": "full", "scorecard.methods": ["saliency"], "scorecard.n_images": 6, "scorecard.n_deep": 2, "scorecard.n_steps": 4}


def read_table(folder): return pd.read_csv(folder / "scorecard.csv", keep_default_na=True)


def test_stage_scores(tmp_path):
    "Every image by every method by every measure the budget allows; flags on the overlays; what was spent is recorded."
    options = smoke(tmp_path, **SCORED)
    folder = explain.run_explain(options)
    table, verdict = read_table(folder), read_json(folder / "verdict.json")
    assert list(table) == ["index", "group", "drawn", "target", "method", "control", "measure", "value", "chance"]
    methods = ["gradcam", "saliency", *(m.name for m in METHODS.values() if m.control)]
    assert list(dict.fromkeys(table["method"])) == methods and [m["name"] for m in verdict["methods"]] == methods
    assert not table.duplicated(["index", "method", "measure"]).any()
    drawn = table[table["drawn"] == 1]
    assert drawn["index"].nunique() == 6
    cheap, every = ({m.name for m in scorecard.choose_measures(budget=b)} for b in ("cheap", "full"))
    got = drawn.groupby("index")["measure"].agg(set)
    assert sorted(map(len, got)) == [len(cheap)] * 4 + [len(every)] * 2         # a picture's own sensitivity is no part of the sample
    pictured = {int(r["index"]) for r in csv.DictReader(open(folder / "explanations.csv", encoding="utf-8"))}
    flagged = table[table["index"].isin(pictured)]
    assert pictured <= set(table["index"]) and all({"max_sensitivity", "consensus"} <= set(part["measure"]) for _, part in flagged.groupby("index"))
    assert set(table[table["drawn"] == 0]["measure"]) <= set(explain.WARNING)
    assert table[table["measure"] == "pointing_game"]["chance"].between(0, 1).all() and table[table["measure"] == "road"]["chance"].isna().all()
    assert verdict["budget"] | {"seconds": 0} == {"measures": "full", "n_images": 6, "n_deep": 2, "n_steps": 4, "output": "probability", "batch_size": 32, "seed": 0, "seconds": 0}
    assert verdict["budget"]["seconds"] > 0 and verdict["regions"] is None
    # the same scores in other batches
    again = read_table(explain.run_explain(smoke(tmp_path, **SCORED, **{"scorecard.batch_size": 3, "run": "again"})))
    assert again.drop(columns="value").equals(table.drop(columns="value"))
    np.testing.assert_allclose(again["value"], table["value"], atol=2e-3, rtol=2e-3)


def test_a_region_of_a_file_is_watched(tmp_path, monkeypatch):
    from xaimed.config import read_manifest, stage_state
    corner = np.zeros((28, 28), bool); corner[:6, :6] = True
    np.savez(tmp_path / "ruler.npz", mask=corner)
    options = smoke(tmp_path, **SCORED | {"scorecard.budget": "cheap", "scorecard.region": str(tmp_path / "ruler.npz")})
    folder = explain.run_explain(options)
    assert read_json(folder / "verdict.json")["regions"]["name"] == "ruler"
    assert [n["path"] for n in read_manifest(folder)["watched"]] == [str(tmp_path / "ruler.npz")] and stage_state(options, "explain")[0]
    np.savez(tmp_path / "ruler.npz", mask=corner.T[::-1])
    assert stage_state(options, "explain") == (False, "ruler.npz changed")
    write = explain.write_explanations
    def edited_meanwhile(*given, **how):
        np.savez(tmp_path / "ruler.npz", mask=corner[::-1, ::-1])
        return write(*given, **how)
    monkeypatch.setattr(explain, "write_explanations", edited_meanwhile)
    explain.run_explain(options)
    assert stage_state(options, "explain") == (False, "ruler.npz changed")


def test_the_budget_is_honoured(tmp_path, monkeypatch):
    folder = explain.run_explain(smoke(tmp_path, **SCORED | {"scorecard.budget": "cheap"}))
    table, verdict = read_table(folder), read_json(folder / "verdict.json")
    assert set(table["measure"]) == {m.name for m in scorecard.choose_measures(budget="cheap")} and verdict["budget"]["measures"] == "cheap" and verdict["budget"]["n_deep"] == 0
    none = explain.run_explain(smoke(tmp_path, **{"explain.methods": ["gradcam"]}))
    assert not (none / "verdict.json").exists() and not (none / "scorecard.csv").exists()
    with pytest.raises(ValueError, match="unknown attribution method 'saliensy'. Near: saliency"): explain.run_explain(smoke(tmp_path, **SCORED | {"scorecard.methods": ["saliensy"]}))


def test_warnings_stand_on_the_overlay():
    shown = explained()
    warned = replace(shown, warnings={(8, "gradcam"): ["max-sensitivity 1.21, limit 0.50"]})
    assert "\u26a0 max-sensitivity 1.21, limit 0.50" in sample_titles(warned, "gradcam", 1)[1]
    assert all("\u26a0" not in sample_titles(warned, m, i)[1] for m, i in (("gradcam", 0), ("integrated_gradients", 1)))


@pytest.fixture(scope="module")
def cheat(tmp_path_factory):
    "A network that has learnt to read the corner tag, and the test split."
    from xaimed.config import load_options
    from xaimed.data import load_split
    from xaimed.models import transforms_for
    folder = tmp_path_factory.mktemp("cheat")
    options = load_options("", overrides={"artifacts_dir": str(folder), "data.data_dir": str(folder), "device": "cpu", "synthetic.task": "binary", "synthetic.n_train": 256, "synthetic.n_val": 16, "synthetic.n_test": 120,
                                          "synthetic.marker_correlation": 1.0})
    transform = transforms_for(options)
    train, test = (load_split(options, split, transform) for split in ("train", "test"))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 32, 3, 2, 1), nn.BatchNorm2d(32), nn.ReLU(), nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(32, 2))
        optimizer = torch.optim.Adam(net.parameters(), 1e-2)
        x = transform(train.images)
        for _ in range(40):
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(x), train.labels).backward()
            optimizer.step()
    return net.eval(), test


EXPLAINING = dict(n_steps=16, batch_size=32, mean=.5, std=.5, seed=0)


def test_a_shortcut_is_exposed(cheat):
    "Relevance lies on the tag and not on the finding, and the answers go when the tag goes."
    net, data = cheat
    name, masks = explain.region_masks(None, data)
    report = explain.region_report(net, data, name, masks, drawn=data.index.tolist(), methods=["integrated_gradients", "centred_gaussian"], explaining=EXPLAINING)
    tag = report["methods"]["integrated_gradients"]
    assert name == "planted marker" and report["images"] == report["accuracy"]["n"] == int(masks.flatten(1).any(1).sum())
    assert tag["region"]["low"] > 5 * tag["region_chance"] and tag["region"]["mean"] > tag["finding"]["mean"]
    assert report["methods"]["centred_gaussian"]["region"]["mean"] < 2 * tag["region_chance"]
    accuracy = report["accuracy"]
    assert accuracy["with"] > .95 and accuracy["drop"]["low"] > .5 and accuracy["elsewhere"] > accuracy["removed"] + .5
    assert accuracy["with"] - accuracy["removed"] == pytest.approx(accuracy["drop"]["mean"])


def test_a_region_of_ones_own(cheat, tmp_path):
    net, data = cheat
    for name, share in (("border", 300 / 784), ("corners", 144 / 784)):
        called, masks = explain.region_masks(name, data)
        assert called == name and masks.float().mean().item() == pytest.approx(share)
    corner = np.zeros((28, 28), np.uint8); corner[:6, :6] = 255
    np.savez(tmp_path / "ruler.npz", mask=corner)
    name, masks = explain.region_masks(str(tmp_path / "ruler.npz"), data)
    assert name == "ruler" and masks.shape == (len(data), 28, 28) and masks[0].sum() == 36
    np.savez(tmp_path / "each.npz", test_masks=np.stack([corner] * len(data)))
    assert torch.equal(explain.region_masks(str(tmp_path / "each.npz"), data)[1], masks)
    np.savez(tmp_path / "grey.npz", mask=np.full((28, 28), 7, np.uint8))
    np.savez(tmp_path / "objects.npz", mask=np.array([{}], dtype=object))
    (tmp_path / "broken.npz").write_bytes((tmp_path / "ruler.npz").read_bytes()[:-30])
    np.savez(tmp_path / "small.npz", mask=corner[:9])
    np.savez(tmp_path / "empty.npz", other=corner)
    for bad, message in (("small", "has shape"), ("empty", "holds neither"), ("missing", "no such file"), ("grey", "numbers from 7 to 7"), ("objects", "Python objects"), ("broken", "not a whole .npz")):
        with pytest.raises(ValueError, match=message): explain.region_masks(str(tmp_path / f"{bad}.npz"), data)
    with pytest.raises(ValueError, match="Near: border"): explain.region_masks("boarder", data)
    nowhere = torch.zeros_like(masks)
    assert explain.region_report(net, data, "nowhere", nowhere, drawn=[0], methods=["edges"], explaining=EXPLAINING) is None
    framed = explain.region_report(net, data, "border", explain.region_masks("border", data)[1], drawn=[0, 1, 2], methods=["edges"], explaining=EXPLAINING)
    assert framed["accuracy"]["elsewhere"] is None and framed["images"] == 3          # its own mirror image: nothing to compare with


def test_masks_that_are_cut_off_are_not_scored(cheat):
    net, data = cheat
    index = data.index.tolist()[:4]
    assert explain.ask(net, data, index).masks.flatten(1).any(1).all()
    data.mask_valid = torch.ones(len(data), dtype=torch.bool)
    data.mask_valid[1] = False
    try: assert explain.ask(net, data, index).masks.flatten(1).any(1).tolist() == [True, False, True, True]
    finally: data.mask_valid = torch.ones(len(data), dtype=torch.bool)


def test_a_method_that_runs_out_of_memory_goes_on_with_less(caplog):
    class Tight(nn.Sequential):
        def forward(self, x):
            if len(x) > 3: raise torch.OutOfMemoryError("CUDA out of memory.")
            return super().forward(x)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        parts = nn.Conv2d(1, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)
    x = torch.randn(8, 1, 10, 10)
    want = explain.explainer("saliency", batch_size=8)(nn.Sequential(*parts), x, 0).map
    torch.testing.assert_close(explain.explainer("saliency", batch_size=8)(Tight(*parts), x, 0).map, want)
    assert "saliency: out of memory, going on with 2 images at once" in caplog.text
    with pytest.raises(ValueError, match="target has shape"): explain.explainer("saliency")(Tight(*parts), x, torch.zeros(2, dtype=torch.long))


def test_a_blank_map_carries_a_warning():
    from xaimed.verdict import flags
    rows = [(7, "random", 1, 0, "gradcam", 0, "sparseness", 0.0, None), (8, "random", 1, 0, "gradcam", 0, "sparseness", .4, None)]
    table = pd.DataFrame(rows, columns=["index", "group", "drawn", "target", "method", "control", "measure", "value", "chance"])
    assert [(f["index"], f["flags"]) for f in flags(table)] == [(7, ["empty"])]


def test_a_split_too_small_for_a_verdict_keeps_its_pictures(tmp_path, caplog):
    folder = explain.run_explain(smoke(tmp_path, **SCORED | {"data.max_eval": 4}))
    assert (folder / "explanations.csv").exists() and not (folder / "verdict.json").exists() and "a verdict needs 5" in caplog.text
