"The schema: every way a file can be broken, what may be compared, no path of this machine."
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from made_run import JUDGED, make_run, make_verdict

from xaimed import schema
from xaimed.config import XaimedError, code_of, read_json, stage_dir, write_json


FILES = [("data", "card.json"), ("models", "model.json"), ("train", "history.csv"), ("eval", "metrics.json"), ("eval", "failure_gallery_selection.csv"), ("explain", "explanations.csv"),
         ("eval", "manifest.json"), ("data", "samples.png"), ("train", "curves.png"), ("eval", "confusion_matrix.png")]

@pytest.mark.parametrize("stage,name", FILES, ids=[n for _, n in FILES])
def test_missing_file_is_named_with_what_to_run(tmp_path, stage, name):
    options = make_run(tmp_path)
    (stage_dir(options, stage) / name).unlink()
    with pytest.raises(XaimedError, match=rf"{stage}/fixture/{name} is missing.*--config.*run_") as e: schema.load_results(options)
    assert str(tmp_path) not in str(e.value)


@pytest.mark.parametrize("stage,name", [f for f in FILES if f[1].endswith((".json", ".csv"))], ids=lambda x: str(x))
def test_truncated_file_is_named(tmp_path, stage, name):
    options = make_run(tmp_path)
    path = stage_dir(options, stage) / name
    path.write_bytes(path.read_bytes()[:11])
    with pytest.raises(XaimedError, match=f"{stage}/fixture/{name}"): schema.load_results(options)


@pytest.mark.parametrize("old,new,said", [('"auc": 0.981', '"auc": "high"', "'high' as 'auc'"), ('"n": 200', '"n": 0', "'0' as 'n'"), ('"split"', '"spilt"', "lacks 'split'")])
def test_wrong_value_is_named(tmp_path, old, new, said):
    options = make_run(tmp_path)
    path = stage_dir(options, "eval") / "metrics.json"
    path.write_text(path.read_text().replace(old, new, 1))
    with pytest.raises(XaimedError, match="eval/fixture/metrics.json") as e: schema.load_results(options)
    assert said in str(e.value)


def test_wrong_row_of_a_table_is_named_by_its_line(tmp_path):
    options = make_run(tmp_path)
    path = stage_dir(options, "explain") / "explanations.csv"
    path.write_text(path.read_text().replace("0.93", "much", 1))
    with pytest.raises(XaimedError, match=r"explanations.csv line 2: .*'much' as 'probability'"): schema.load_results(options)


PRETRAINED = {"stem": "imagenet", "model": {"pretrained": True, "image_size": 224}}
PRETRAINED_ROW = "ResNet-18 ImageNet-pretrained, ImageNet stem (224)"

@pytest.mark.parametrize("overrides,comparable", [
    ({}, ["ResNet-18 (28)"]), ({"size": 64}, []), ({"size": 224, "stem": "imagenet"}, []), ({"dataset": "synthetic"}, []),
    ({"size": 28, "native": 64}, []), ({"size": 28, "native": 224}, []),                                  # a larger file, reduced to 28
    ({"size": 28, **PRETRAINED}, []), ({"size": 224, "native": 28, "stem": "imagenet"}, []),              # 28-pixel images, enlarged
    ({"size": 224, **PRETRAINED}, [PRETRAINED_ROW])])
def test_only_rows_made_alike_are_comparable(tmp_path, overrides, comparable):
    results = schema.load_results(make_run(tmp_path, **overrides))
    assert [r.model for r in results.published if r.comparable] == comparable
    assert bool(results.published) == (overrides.get("dataset") != "synthetic")
    assert all(r.why for r in results.published)


def test_unverified_figures_are_marked():
    rows = schema.published_figures("octmnist")
    assert {r["auc_reread"] for r in rows} == {"yes", "no"}
    assert all(r["source"] for name in ("octmnist", "breastmnist", "adrenalmnist3d") for r in schema.published_figures(name))


def test_every_published_row_can_be_read():
    import csv
    with open(Path(schema.__file__).parent / "reference" / "published.csv", newline="") as f: rows = list(csv.DictReader(f))
    assert len(rows) > 100 and all(0 < float(r["auc"]) <= 1 and 0 < float(r["acc"]) <= 1 and r["auc_reread"] in ("yes", "no") for r in rows)
    assert (Path(schema.__file__).parent / "reference" / "README.md").is_file()


@pytest.mark.parametrize("text,left", [
    ("/home/u/My Scans/d.npz", "…/d.npz"), ("/home/u/My Scans (old), 2/d.npz", "…/d.npz"), ("read /home/Ada L/My  Scans (old)/d.npz twice", "read …/d.npz twice"), ("path:/home/u/d.npz", "path:…/d.npz"),
    ("path=/home/u/d.npz", "path=…/d.npz"), ("see '/home/u/a, b/d e.npz'.", "see '…/d e.npz'."), ("C:\\Users\\Ada L\\d.npz", "…/d.npz"), ("path:C:\\Users\\u\\d.npz", "path:…/d.npz"),
    ("file:///home/u/d.npz", "…/d.npz"), ("from file:///home/u/d.npz", "from …/d.npz"), ("~ada/w/a.pt", "…/a.pt"), ("\\\\host\\ada\\d.npz", "…/d.npz"), ("/srv/a/b or /srv/c/d", "…/b or …/d"), ("/home/u/data/", "…/data"),
    ("https://medmnist.com/v2/", None), ("see https://zenodo.org/a/b and http://x.y/z", None), ("benign and/or normal / other", None), ("runs/my run/a", None), ("../data/x", None), ("1/2", None)])
def test_no_piece_of_a_path_is_left(text, left): assert schema.without_paths(text) == (left or text)


def test_spread_of_other_data_sets_comes_from_the_table(tmp_path, monkeypatch):
    results = schema.load_results(make_run(tmp_path))
    row = next(r for r in results.published if r.comparable)
    assert "on 3 others the standard deviation was 0.008 to 0.011" in schema.comparison_words(row, 0.9, 0)
    monkeypatch.setattr(schema, "_reference", lambda name: [{"metric": "auc", "sd": "0.5"}])
    assert "0.500 to 0.500" in schema.comparison_words(row, 0.9, 0)


def test_results_json_has_the_documented_schema_and_no_path(tmp_path):
    import jsonschema
    results = schema.load_results(make_run(tmp_path))
    content = json.loads(write_json(tmp_path / "results.json", results.model_dump(mode="json", by_alias=True)).read_text())
    jsonschema.validate(content, schema.Results.model_json_schema(by_alias=True))
    assert content["format"] == "xaimed-results" and content["version"] == 1
    assert content["metrics"]["per_class"][0]["class"] == "class 0, of 9"
    assert str(tmp_path) not in json.dumps(content) and content["provenance"]["options"]["data"]["data_dir"] == "…/data"
    assert all(not Path(p).is_absolute() and (tmp_path / "artifacts" / p).is_file() for p in content["figures"].values())
    assert content["training"]["settings"]["lr"] == 2e-3 and content["training"]["history"][-1]["epoch"] == 8
    keys = [k for k, _, _ in schema.schema_rows()]
    assert "metrics.ece" in keys and "dataset.counts.*.total" in keys and len(keys) == len(set(keys))


def test_scorecard_is_taken_over_whole_and_goes_through_json(tmp_path):
    import jsonschema
    given = make_verdict()
    results = schema.load_results(make_run(tmp_path, verdict=given))
    content = json.loads(write_json(tmp_path / "results.json", results.model_dump(mode="json", by_alias=True)).read_text())
    jsonschema.validate(content, schema.Results.model_json_schema(by_alias=True))
    card = content["scorecard"]
    def same(ours, theirs):  # every key of the contract is there with its value; defaults may be added
        if isinstance(theirs, dict): return all(k == "points" or same(ours[k], v) for k, v in theirs.items())
        if isinstance(theirs, list): return len(ours) == len(theirs) and all(map(same, ours, theirs))
        return ours == theirs
    assert same(card, given)
    assert schema.Results.model_validate(content).scorecard == results.scorecard
    keys = {k: kind for k, kind, _ in schema.schema_rows()}
    assert keys["scorecard"] == "object or null" and keys["scorecard.regions.accuracy.with"] == "float" and keys["scorecard.methods[].scores.*.p_corrected"] == "float or null"


def test_no_scorecard_and_no_region_are_null(tmp_path):
    assert schema.load_results(make_run(tmp_path / "a")).scorecard is None
    assert schema.load_results(make_run(tmp_path / "b", verdict=make_verdict(regions=False))).scorecard.regions is None


@pytest.mark.parametrize("change,said", [
    (lambda v: v.pop("methods"), "lacks 'methods'"), (lambda v: v["methods"][0]["scores"]["road"].update(mean="high"), "'high' as 'methods.0.scores.road.mean'"),
    (lambda v: v["agreement"]["matrix"].pop(), "agreement matrix that is not"), (lambda v: v["measures"].pop(0), "scores of 'deletion_blur', which is not among its measures"),
    (lambda v: v.update(version=2), "'2' as 'version'"), (lambda v: v["measures"][0].update(better="more"), "'more' as 'measures.0.better'")])
def test_a_broken_verdict_is_named(tmp_path, change, said):
    verdict = make_verdict()
    change(verdict)
    with pytest.raises(XaimedError, match="explain/fixture/verdict.json") as e: schema.load_results(make_run(tmp_path, verdict=verdict))
    assert said in str(e.value)


def test_a_truncated_verdict_is_named(tmp_path):
    options = make_run(tmp_path, verdict=make_verdict())
    path = stage_dir(options, "explain") / "verdict.json"
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(XaimedError, match="verdict.json is not valid JSON.*explain --force"): schema.load_results(options)


def test_what_the_verdict_room_writes_can_be_read(tmp_path):
    "The two rooms agree on the file: a judgement of invented scores passes through it."
    pd, verdict = pytest.importorskip("pandas"), pytest.importorskip("xaimed.verdict")
    rng, given = np.random.default_rng(0), make_verdict()
    rows = [{"index": i, "group": "random", "drawn": 1, "target": 0, "method": m["name"], "control": int(m["control"]), "measure": x["name"], "value": rng.normal(0 if m["control"] else 0.5), "chance": 0.1 if x["family"] == "localisation" else np.nan}
            for i in range(12) for m in given["methods"] for x in given["measures"]]
    facts = [{k: m[k] for k in ("name", "title", "control")} for m in given["methods"]]
    made = verdict.judge(pd.DataFrame(rows), given["measures"], facts, budget=given["budget"], regions=given["regions"], n_resamples=500)
    card = schema.load_results(make_run(tmp_path, verdict=made)).scorecard
    assert [m.verdict for m in card.methods] == [m["verdict"] for m in made["methods"]] and card.recommended.reason == made["recommended"]["reason"]
    assert len(card.flags) == len(made["flags"]) and len(card.methods) == len(JUDGED) + 4


def test_import_brings_no_torch(tmp_path):
    code = "import sys, xaimed.schema; assert not {'torch', 'nbconvert', 'matplotlib', 'pandas', 'IPython'} & set(sys.modules), sorted(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path, env={**__import__("os").environ, "PYTHONPATH": str(Path(schema.__file__).parent.parent)})


def test_the_report_is_stale_when_the_schema_changes(tmp_path, monkeypatch):
    import shutil
    from xaimed import config
    package = tmp_path / "xaimed"
    shutil.copytree(Path(schema.__file__).parent, package, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(config, "_package", lambda: package)
    before, models = code_of("report"), code_of("models")
    (package / "schema.py").write_text((package / "schema.py").read_text() + "# changed\n")
    assert code_of("report") != before and code_of("models") == models
