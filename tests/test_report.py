"The report: a run's files in, one page out; every task kind, and every way a file can be broken."
import json
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import nbformat
import numpy as np
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from xaimed import report
from xaimed.config import STAGES, XaimedError, load_options, read_json, stage_dir, write_json

TASKS = {"multi-class": 9, "binary": 2, "multi-label": 14, "ordinal": 5}
METHODS = ("gradcam", "integrated_gradients")


def draw(path:Path, shape=(60, 90)) -> None:
    import matplotlib.pyplot as plt
    plt.imsave(path, np.linspace(0, 1, shape[0] * shape[1]).reshape(shape), cmap="gray")


def write_csv(path:Path, columns:list[str], rows) -> None:
    import csv
    with open(path, "w", newline="") as f:
        out = csv.writer(f)
        out.writerow(columns)
        out.writerows(rows)


def make_run(root:Path, task="multi-class", *, dataset="pathmnist", classes=None, failures=True, masks=False, official=True, size=28, stem="small", draw=draw, n_test=200, native=None, model=None, **overrides):
    "Write the files of a finished run, as the stages' contract has them."
    native = native or size  # side of the images in the file
    many, k = task == "multi-label", len(classes) if classes else TASKS[task]
    classes = classes or [f"class {i}, of {k}" for i in range(k)]
    options = load_options("quick_smoke", dataset=dataset, run="fixture", overrides={"artifacts_dir": str(root / "artifacts"), "data.data_dir": str(root / "private" / "data"), "data.size": size, **overrides})
    at = {s: stage_dir(options, s) for s in STAGES[:5]}
    for folder in at.values(): folder.mkdir(parents=True)
    counts = {s: {"total": n, "per_class": [n // k] * k} for s, n in dict(train=1000, val=100, test=n_test).items()}
    write_json(at["data"] / "card.json", {
        "name": dataset, "title": "PathMNIST" if dataset == "pathmnist" else dataset, "task": task, "classes": classes, "channels": 3, "ndim": 2, "size": size, "image_shape": [native, native, 3], "counts": counts,
        "licence": "CC BY 4.0", "source": "https://medmnist.com/", "citation": "Yang et al. 2023", "known_defects": ["JPEG traces leak the class"], "flips": "all", "masks": masks,
        "file": {"name": f"{dataset}.npz", "bytes": 205615438, "md5": "a" * 32, "sha256": "b" * 64, "official": official}, "description": f"Read from {root}/private/data/{dataset}.npz."})
    write_json(at["models"] / "model.json", {
        "name": "resnet18", "stem": stem, "num_classes": k, "in_channels": 3, "image_size": size, "pretrained": False, "weights": None, "parameters": 11173962, "cam_layer": "layer4", "cam_map_size": [4, 4],
        "layers": [{"name": f"layer{i}", "type": "Sequential", "output_shape": [64 * 2**i, 28 // 2**i, 28 // 2**i], "parameters": 147968 * i} for i in range(1, 5)], "normalise": {"mean": [0.5], "std": [0.5], "interpolation": "bilinear"}, **(model or {})})
    write_csv(at["train"] / "history.csv", list(report.Epoch.model_fields), [[e, 1e-3, 1 / e, 0.5 + e / 20, 1.1 / e, 0.5 + e / 21, 0.6 + e / 30, 1.5] for e in range(1, 9)])
    write_json(at["eval"] / "metrics.json", {
        "accuracy": 0.91, "macro_f1": 0.88, "ece": 0.041, "auc": 0.981, "n": n_test, "split": "test", "task": task, "classes": classes, "dataset": dataset, "checkpoint": {"which": "best", "epoch": 7},
        "per_class": [{"class": c, "precision": 0.9, "recall": 0.8, "f1": 0.85, "auc": None if i == k - 1 else 0.97, "support": 0 if i == k - 1 else n_test // k} for i, c in enumerate(classes)], "medmnist": {"AUC": 0.981, "ACC": 0.91}})
    label, predicted = (";".join(["1"] + ["0"] * (k - 1)), ";".join(["0"] * k)) if many else ("0", "1")
    rows = [(group, rank, 10 * rank + j, label, predicted, 0.99 - rank / 50, classes[0], "none" if many else classes[1]) for j, group in enumerate(("high_confidence_wrong", "low_confidence_correct")) for rank in range(1, 7)]
    write_csv(at["eval"] / "failure_gallery_selection.csv", list(report.Failure.model_fields), rows if failures else [])
    shown = [("random", 100 + i) for i in range(3)] + ([(r[0], r[2]) for r in rows if r[1] <= 2] if failures else [])
    write_csv(at["explain"] / "explanations.csv", list(report.Explained.model_fields), [
        (i, group, m, 1, classes[1], 0.93, label, "" if m == "gradcam" else "-0.0213", f"sample_{i:05d}_{m}.png") for group, i in shown for m in METHODS])
    for stage, name in report.FIGURES.values():
        if failures or "grid" not in name: draw(at[stage] / name)
    for _, i in shown:
        for m in METHODS: draw(at["explain"] / f"sample_{i:05d}_{m}.png")
    recipe = {"title": "AdamW, one-cycle", "source": "somebody 2019", "optimizer": "adamw", "lr": 2e-3, "weight_decay": 0.05, "schedule": "one_cycle", "label_smoothing": 0.1, "augment": True, "select": "val_loss"}
    for i, stage in enumerate(at):
        write_json(at[stage] / "manifest.json", {
            "stage": stage, "build": stage, "options": options, "watched": [{"path": str(root / "private")}], "outputs": [], "facts": {"recipe": recipe, "precision": "fp32"} if stage == "train" else {},
            "started": "2026-01-02T03:04:05+00:00", "wall_seconds": 10.0 * i + 1.25, "peak_memory_mb": 812, "versions": {"xaimed": "0.1.0", "python": "3.11", "torch": "2.9"}, "commit": "0123456789ab",
            "platform": "Linux x86_64, 2 cores", "device": "cpu", "seed": 0})
    return options


def executed(root:Path, results, target:Path) -> Path:
    "Run the report notebook's tagged cells here, without a kernel, and keep them as a notebook."
    cells, space = [new_markdown_cell("## A lesson that stays out")], {**vars(report), "results": results}
    for cell in nbformat.read(root / "nbs" / "05_report.ipynb", as_version=4).cells:
        if "report" not in cell.metadata.get("tags", []): continue
        copy = new_markdown_cell(cell.source) if cell.cell_type == "markdown" else new_code_cell(cell.source, execution_count=1, outputs=[new_output("execute_result", {"text/html": eval(cell.source, space).data}, execution_count=1)])
        copy.metadata["tags"] = ["report"]
        cells.append(copy)
    nbformat.write(new_notebook(cells=cells), target)
    return target


class Page(HTMLParser):
    "Ids, links, images, headings, and tags that were opened and not closed."
    VOID = {"meta", "img", "br", "hr", "link", "input", "col"}

    def __init__(self, text:str):
        super().__init__()
        self.ids, self.links, self.images, self.open, self.wrong = [], [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        if "id" in attrs: self.ids.append(attrs["id"])
        if tag == "a": self.links.append(attrs.get("href", ""))
        if tag == "img": self.images.append(attrs)
        if tag not in self.VOID: self.open.append(tag)

    def handle_endtag(self, tag):
        if tag in self.VOID: return
        if self.open and self.open[-1] == tag: self.open.pop()
        else: self.wrong.append(tag)


def make_page(folder:Path, root:Path, task:str):
    "A fixture's results and its page."
    results = report.load_results(make_run(folder, task))
    return results, report.render_report(executed(root, results, folder / "05_report.ipynb"), folder / "report.html").read_text()


@pytest.mark.parametrize("task", TASKS)
def test_page_of_every_task_kind(tmp_path, root, task):
    folder, (results, text) = tmp_path, make_page(tmp_path, root, task)
    seen = Page(text)
    assert not seen.wrong and not seen.open
    assert len(seen.ids) == len(set(seen.ids))
    assert {a[1:] for a in seen.links if a.startswith("#")} <= set(seen.ids)
    assert len(seen.images) == 6 + (3 + 4) * 2
    assert all(i["src"].startswith("data:image/png;base64,") and len(i["alt"]) > 10 and "No description" not in i["alt"] for i in seen.images)
    assert report.outside_resources(text) == [] and "<script" not in text
    assert str(folder) not in text and "private/" not in text
    for heading in ("Summary", "Intended use and limits", "Data", "Model", "Training", "Results", "Failures", "Ethics", "Provenance"): assert re.search(rf"<h2 id='[\w-]+'>{heading}</h2>|<h2 id=\"[\w-]+\">{heading}</h2>", text), heading
    for part in ("Not for diagnosis", "approximations", "0123456789ab", "a" * 32, "JPEG traces", "layer4", "812"): assert part in text, part
    assert text.count("<details class=\"code\">") == sum(1 for c in nbformat.read(folder / "05_report.ipynb", 4).cells if c.cell_type == "code")
    assert "A lesson that stays out" not in text
    for c in results.dataset.classes: assert text.count(c) >= 2   # counts and per-class table
    assert ("over all labels" in text) == (task == "multi-label") and ("threshold of 0.5" in text) == (task == "multi-label")
    assert ("steps of a scale" in text) == (task == "ordinal")
    assert ("95 % interval 0." in text) == (task != "multi-label")


def test_results_json_has_the_documented_schema_and_no_path(tmp_path):
    import jsonschema
    results = report.load_results(make_run(tmp_path))
    content = json.loads(write_json(tmp_path / "results.json", results.model_dump(mode="json", by_alias=True)).read_text())
    jsonschema.validate(content, report.Results.model_json_schema(by_alias=True))
    assert content["format"] == "xaimed-results" and content["version"] == 1
    assert content["metrics"]["per_class"][0]["class"] == "class 0, of 9"
    assert str(tmp_path) not in json.dumps(content) and content["provenance"]["options"]["data"]["data_dir"] == "…/data"
    assert all(not Path(p).is_absolute() and (tmp_path / "artifacts" / p).is_file() for p in content["figures"].values())
    assert content["training"]["settings"]["lr"] == 2e-3 and content["training"]["history"][-1]["epoch"] == 8
    keys = [k for k, _, _ in report.schema_rows()]
    assert "metrics.ece" in keys and "dataset.counts.*.total" in keys and len(keys) == len(set(keys))


def test_run_report_makes_what_is_missing_and_writes_both_files(tmp_path, monkeypatch):
    asked = []
    options = load_options("quick_smoke", dataset="pathmnist", run="fixture", overrides={"artifacts_dir": str(tmp_path / "artifacts"), "data.data_dir": str(tmp_path / "private" / "data"), "data.size": 28})
    monkeypatch.setitem(sys.modules, "xaimed.explain", SimpleNamespace(run_explain=lambda o: asked.append(o) or make_run(tmp_path)))
    folder = report.run_report(options)
    assert asked == [options] and {"results.json", "model_card.md", "manifest.json"} <= {p.name for p in folder.iterdir()}
    assert report.Results.model_validate(read_json(folder / "results.json")).metrics.auc == 0.981
    card = (folder / "model_card.md").read_text()
    assert str(tmp_path) not in card and str(tmp_path) not in (folder / "results.json").read_text()


def test_model_card_has_the_headings_of_mitchell_et_al(tmp_path):
    card = report.model_card(report.load_results(make_run(tmp_path, "binary", classes=["<5 mm | small", "large *"])))
    assert re.findall(r"^## (.*)$", card, re.M) == ["Model details", "Intended use", "Factors", "Metrics", "Evaluation data", "Training data", "Quantitative analyses", "Ethical considerations", "Caveats and recommendations"]
    from markdown_it import MarkdownIt
    html = MarkdownIt("commonmark").enable("table").render(card)
    assert "<td>&lt;5 mm | small</td>" in html and "<td>large *</td>" in html
    assert "Not for diagnosis" in html or "not for diagnosis" in html


def test_empty_failure_groups_are_said_in_words(tmp_path, root):
    options = make_run(tmp_path, "binary", failures=False)
    results = report.load_results(options)
    assert "high_confidence_wrong" not in results.figures
    assert "every one of the 200 images" in report.failures_section(results, "high_confidence_wrong").data
    assert "no image of the test split was classified rightly" in report.failures_section(results, "low_confidence_correct").data
    text = report.render_report(executed(root, results, tmp_path / "nb.ipynb"), tmp_path / "r.html").read_text()
    assert len(Page(text).images) == 4 + 3 * 2


def test_names_from_outside_cannot_break_the_page(tmp_path, root):
    evil = "<script>alert('x')</script>"
    results = report.load_results(make_run(tmp_path, "binary", classes=[evil, 'a "quoted" & <b>name'], **{"report.title": f"Title {evil}"}))
    text = report.render_report(executed(root, results, tmp_path / "nb.ipynb"), tmp_path / "r.html").read_text()
    seen = Page(text)
    assert "<script" not in text and "<b>name" not in text and not seen.wrong and not seen.open
    assert "<title>Title &lt;script&gt;" in text


FILES = [("data", "card.json"), ("models", "model.json"), ("train", "history.csv"), ("eval", "metrics.json"), ("eval", "failure_gallery_selection.csv"), ("explain", "explanations.csv"),
         ("eval", "manifest.json"), ("data", "samples.png"), ("train", "curves.png"), ("eval", "confusion_matrix.png")]

@pytest.mark.parametrize("stage,name", FILES, ids=[n for _, n in FILES])
def test_missing_file_is_named_with_what_to_run(tmp_path, stage, name):
    options = make_run(tmp_path)
    (stage_dir(options, stage) / name).unlink()
    with pytest.raises(XaimedError, match=rf"{stage}/fixture/{name} is missing.*--config.*run_") as e: report.load_results(options)
    assert str(tmp_path) not in str(e.value)


@pytest.mark.parametrize("stage,name", [f for f in FILES if f[1].endswith((".json", ".csv"))], ids=lambda x: str(x))
def test_truncated_file_is_named(tmp_path, stage, name):
    options = make_run(tmp_path)
    path = stage_dir(options, stage) / name
    path.write_bytes(path.read_bytes()[:11])
    with pytest.raises(XaimedError, match=f"{stage}/fixture/{name}"): report.load_results(options)


@pytest.mark.parametrize("old,new,said", [('"auc": 0.981', '"auc": "high"', "'high' as 'auc'"), ('"n": 200', '"n": 0', "'0' as 'n'"), ('"split"', '"spilt"', "lacks 'split'")])
def test_wrong_value_is_named(tmp_path, old, new, said):
    options = make_run(tmp_path)
    path = stage_dir(options, "eval") / "metrics.json"
    path.write_text(path.read_text().replace(old, new, 1))
    with pytest.raises(XaimedError, match="eval/fixture/metrics.json") as e: report.load_results(options)
    assert said in str(e.value)


def test_wrong_row_of_a_table_is_named_by_its_line(tmp_path):
    options = make_run(tmp_path)
    path = stage_dir(options, "explain") / "explanations.csv"
    path.write_text(path.read_text().replace("0.93", "much", 1))
    with pytest.raises(XaimedError, match=r"explanations.csv line 2: .*'much' as 'probability'"): report.load_results(options)


def test_picture_that_is_none_stops_the_stage_and_leaves_no_report(tmp_path, monkeypatch):
    options = make_run(tmp_path)
    next(stage_dir(options, "explain").glob("sample_*.png")).write_text("half a picture")
    monkeypatch.setitem(sys.modules, "xaimed.explain", SimpleNamespace(run_explain=lambda o: stage_dir(o, "explain")))
    with pytest.raises(XaimedError, match="is not a PNG picture"): report.run_report(options)
    assert not stage_dir(options, "report").exists()


PRETRAINED = {"stem": "imagenet", "model": {"pretrained": True, "image_size": 224}}
PRETRAINED_ROW = "ResNet-18 ImageNet-pretrained, ImageNet stem (224)"

@pytest.mark.parametrize("overrides,comparable", [
    ({}, ["ResNet-18 (28)"]), ({"size": 64}, []), ({"size": 224, "stem": "imagenet"}, []), ({"dataset": "synthetic"}, []),
    ({"size": 28, "native": 64}, []), ({"size": 28, "native": 224}, []),                                  # a larger file, reduced to 28
    ({"size": 28, **PRETRAINED}, []), ({"size": 224, "native": 28, "stem": "imagenet"}, []),              # 28-pixel images, enlarged
    ({"size": 224, **PRETRAINED}, [PRETRAINED_ROW])])
def test_only_rows_made_alike_are_comparable(tmp_path, overrides, comparable):
    results = report.load_results(make_run(tmp_path, **overrides))
    assert [r.model for r in results.published if r.comparable] == comparable
    assert bool(results.published) == (overrides.get("dataset") != "synthetic")
    assert all(r.why for r in results.published)


def test_a_part_of_the_test_split_is_not_comparable(tmp_path):
    options = make_run(tmp_path)
    path = stage_dir(options, "eval") / "metrics.json"
    write_json(path, {**read_json(path), "n": 50})
    results = report.load_results(options)
    assert not any(r.comparable for r in results.published)
    assert "50 of 200 images" in report.summary_section(results).data


def test_unverified_figures_are_marked():
    rows = report.published_figures("octmnist")
    assert {r["auc_reread"] for r in rows} == {"yes", "no"}
    assert all(r["source"] for name in ("octmnist", "breastmnist", "adrenalmnist3d") for r in report.published_figures(name))


def test_every_published_row_can_be_read():
    import csv
    with open(Path(report.__file__).parent / "reference" / "published.csv", newline="") as f: rows = list(csv.DictReader(f))
    assert len(rows) > 100 and all(0 < float(r["auc"]) <= 1 and 0 < float(r["acc"]) <= 1 and r["auc_reread"] in ("yes", "no") for r in rows)
    assert (Path(report.__file__).parent / "reference" / "README.md").is_file()


@pytest.mark.parametrize("cells,said", [
    ([new_markdown_cell("## A lesson")], "no cell with the tag 'report'"),
    ([new_code_cell("summary_section(results)", metadata={"tags": ["report"]})], "has no output"),
    ([new_code_cell("summary_section(results)", metadata={"tags": ["report"]}, outputs=[new_output("error", ename="KeyError", evalue="x", traceback=[])])], "failed"),
    ([new_code_cell("1", metadata={"tags": ["report"]}, outputs=[new_output("display_data", {"text/html": "<img src='https://example.org/a.png'>"})])], "from outside")])
def test_render_refuses_what_is_no_executed_report(tmp_path, cells, said):
    nbformat.write(new_notebook(cells=cells), tmp_path / "nb.ipynb")
    with pytest.raises(XaimedError, match=said): report.render_report(tmp_path / "nb.ipynb", tmp_path / "r.html")
    assert [p.name for p in tmp_path.iterdir()] == ["nb.ipynb"]


def test_render_says_which_notebook_is_missing_or_broken(tmp_path):
    with pytest.raises(XaimedError, match="05_report.ipynb is missing"): report.render_report(tmp_path / "05_report.ipynb", tmp_path / "r.html")
    (tmp_path / "05_report.ipynb").write_text("{")
    with pytest.raises(XaimedError, match="is not a notebook"): report.render_report(tmp_path / "05_report.ipynb", tmp_path / "r.html")


@pytest.mark.parametrize("text,found", [
    ("<a href='https://a.b'>x</a>", 0), ("<img alt='src=https://a.b' src='data:,'>", 0), ("<link rel=preload href=//f.g>", 1), ("<p style='background:url(x.png)'>", 1),
    ("<svg><image href='https://a.b/x.png'/><a href='https://a.b'><use xlink:href='#g'/></a></svg>", 1), ("<input type=image src=x.png>", 1), ("<table background=x.png>", 1),
    ("<img srcset='a.png 1x, b.png 2x'>", 2), ("<svg><rect fill='url(https://a.b#c)'/><rect fill='url(#c)'/></svg>", 1), ("<pre>&lt;img src=x.png&gt;</pre>", 0), ("<img src='&#104;ttps://a.b/x.png'>", 1),
    ("<style>@font-face{src:url('https://f.g')}</style>", 1), ("<iframe src='x'></iframe>", 1), ("<script>1</script>", 0)])
def test_outside_resources(text, found): assert len(report.outside_resources(text)) == found


@pytest.mark.parametrize("text,left", [
    ("/home/u/My Scans/d.npz", "…/d.npz"), ("/home/u/My Scans (old), 2/d.npz", "…/d.npz"), ("read /home/Ada L/My  Scans (old)/d.npz twice", "read …/d.npz twice"), ("path:/home/u/d.npz", "path:…/d.npz"),
    ("path=/home/u/d.npz", "path=…/d.npz"), ("see '/home/u/a, b/d e.npz'.", "see '…/d e.npz'."), ("C:\\Users\\Ada L\\d.npz", "…/d.npz"), ("path:C:\\Users\\u\\d.npz", "path:…/d.npz"),
    ("file:///home/u/d.npz", "…/d.npz"), ("from file:///home/u/d.npz", "from …/d.npz"), ("~ada/w/a.pt", "…/a.pt"), ("\\\\host\\ada\\d.npz", "…/d.npz"), ("/srv/a/b or /srv/c/d", "…/b or …/d"), ("/home/u/data/", "…/data"),
    ("https://medmnist.com/v2/", None), ("see https://zenodo.org/a/b and http://x.y/z", None), ("benign and/or normal / other", None), ("runs/my run/a", None), ("../data/x", None), ("1/2", None)])
def test_no_piece_of_a_path_is_left(text, left): assert report.without_paths(text) == (left or text)


def test_import_brings_no_torch(tmp_path):
    code = "import sys, xaimed.report; assert not {'torch', 'nbconvert', 'matplotlib', 'sklearn'} & set(sys.modules), sorted(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path, env={**__import__("os").environ, "PYTHONPATH": str(Path(report.__file__).parent.parent)})


def test_the_recipe_is_told_from_the_values_in_force(tmp_path, root):
    plain = report.load_results(make_run(tmp_path / "a"))
    assert "label smoothing 0.1" in plain.training.title and not plain.training.changed
    many = report.load_results(make_run(tmp_path / "b", "multi-label"))
    assert "no label smoothing" in many.training.title and many.training.settings["label_smoothing"] == 0
    other = report.load_results(make_run(tmp_path / "c", **{"train.recipe": "medmnist", "train.epochs": 100, "train.lr": 0.5}))
    assert other.training.changed == ["lr"] and "another learning rate" in report.training_section(other).data
    assert all("size and recipe" not in r.why for r in other.published)
    assert "another learning rate" in report.model_card(other) and "another learning rate" in report.title_section(other).data


def test_card_counts_the_images_that_were_used(tmp_path):
    card = report.model_card(report.load_results(make_run(tmp_path, **{"data.max_train": 64})))
    assert "train 64 of 1,000, drawn by seed, val 100\n" in card


def test_grad_cam_is_named_only_where_it_was_used(tmp_path):
    options = make_run(tmp_path)
    table = stage_dir(options, "explain") / "explanations.csv"
    table.write_text("".join(line for line in table.read_text().splitlines(True) if ",gradcam," not in line))
    results = report.load_results(options)
    assert "Grad-CAM" not in report.model_card(results) + report.model_section(results).data


@pytest.mark.parametrize("dataset,said,unsaid", [("pathmnist", "recorded in the data file", "not known to xaimed"), ("synthetic", "drawn by a program", "recorded"), ("my_scans", "not known to xaimed", "recorded")])
def test_what_is_known_of_the_people(tmp_path, dataset, said, unsaid):
    results = report.load_results(make_run(tmp_path, dataset="pathmnist"))
    results = results.model_copy(update={"dataset": results.dataset.model_copy(update={"name": dataset})})
    text = report.model_card(results) + report.ethics_section(results).data
    assert said in text and unsaid not in text


def test_spread_of_other_data_sets_comes_from_the_table(tmp_path, monkeypatch):
    results = report.load_results(make_run(tmp_path))
    row = next(r for r in results.published if r.comparable)
    assert "on 3 others the standard deviation was 0.008 to 0.011" in report.comparison_words(row, 0.9, 0)
    monkeypatch.setattr(report, "_reference", lambda name: [{"metric": "auc", "sd": "0.5"}])
    assert "0.500 to 0.500" in report.comparison_words(row, 0.9, 0)


@pytest.mark.parametrize("split,which,said", [("train", "best", "was trained on these images"), ("val", "best", "chose the epoch"), ("val", "last", "was watched on these images")])
def test_a_split_that_took_part_in_training_is_no_test(tmp_path, split, which, said):
    options = make_run(tmp_path)
    path = stage_dir(options, "eval") / "metrics.json"
    write_json(path, {**read_json(path), "split": split, "checkpoint": {"which": which, "epoch": 8}})
    results = report.load_results(options)
    text = report.summary_section(results).data
    assert text.count(said) == 2 and "no test" in text and said in report.model_card(results)
    assert ("chose the epoch" in text) == (said == "chose the epoch") and "no part in training" not in text


@pytest.mark.parametrize("task,width", [("multi-label", 390), ("multi-label", 1280), ("binary", 390)])
def test_page_fits_the_screen(tmp_path, root, task, width):
    "In a real browser: nothing but the boxes made to scroll is wider than the screen."
    chromium = next((p for n in ("chromium", "chromium-browser", "google-chrome") if (p := shutil.which(n))), None)
    if not chromium: pytest.skip("no chromium or chrome here: the page's width was not measured")
    folder, (_, text) = tmp_path, make_page(tmp_path, root, task)
    frame = f"<iframe id=f style='width:{width}px;height:900px;border:0' srcdoc=\"{text.replace('&', '&amp;').replace(chr(34), '&quot;')}\"></iframe>"
    script = "<script>onload=()=>{let d=document.getElementById('f').contentDocument.documentElement;document.title=d.scrollWidth+' '+d.clientWidth}</script>"
    (folder / "frame.html").write_text(f"<!doctype html><title>none</title>{frame}{script}")
    ran = subprocess.run([chromium, "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", f"--user-data-dir={folder / 'profile'}", "--virtual-time-budget=3000", "--dump-dom", f"file://{folder}/frame.html"], capture_output=True, text=True, timeout=120)
    sizes = re.search(r"<title>(\d+) (\d+)</title>", ran.stdout)
    if not sizes: pytest.skip("the browser gave no page here")
    assert int(sizes[1]) <= int(sizes[2]) <= width
