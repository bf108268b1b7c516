"The report: a run's files in, one page out; every task kind, and every way a file can be broken."
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import nbformat
import pytest
from made_run import TASKS, make_run, make_verdict
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from xaimed import evaluation, explanations, report, reviewer
from xaimed.config import XaimedError, load_options, read_json, stage_dir, write_json
from xaimed.schema import Interval


def executed(root:Path, results, target:Path) -> Path:
    "Run the report notebook's tagged cells here, without a kernel, and keep them as a notebook."
    cells, space = [new_markdown_cell("## A lesson that stays out")], {**vars(report), **vars(evaluation), **vars(explanations), **vars(reviewer), "results": results}
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


def make_page(folder:Path, root:Path, task:str, **kwargs):
    "A fixture's results and its page."
    results = report.load_results(make_run(folder, task, **kwargs))
    return results, report.render_report(executed(root, results, folder / "05_report.ipynb"), folder / "report.html").read_text()


@pytest.mark.parametrize("task", TASKS)
def test_page_of_every_task_kind(tmp_path, root, task):
    folder, (results, text) = tmp_path, make_page(tmp_path, root, task)
    seen = Page(text)
    assert not seen.wrong and not seen.open
    assert len(seen.ids) == len(set(seen.ids))
    assert {a[1:] for a in seen.links if a.startswith("#")} <= set(seen.ids)
    assert len(seen.images) == 12 + (3 + 4) * 3                  # each explained image has two maps and its nearest training cases
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
    assert "threshold of its own it is in every set" in text and "beyond luck: their likelihood rises" in text and ("Temperature 1.40" in text) == (task != "multi-label") and ("covered less often than luck allows" in text) == (task != "multi-label")
    assert "an AUC of 0.981 (95 % interval 0.951 to 0.996)" in text and "Cohen's kappa" in text and "<small>0.800 to 0.950</small>" in text


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
    assert "every one of the 200 images" in explanations.failures_section(results, "high_confidence_wrong").data
    assert "no image of the test split was classified rightly" in explanations.failures_section(results, "low_confidence_correct").data
    text = report.render_report(executed(root, results, tmp_path / "nb.ipynb"), tmp_path / "r.html").read_text()
    assert len(Page(text).images) == 9 + 3 * 3


def test_names_from_outside_cannot_break_the_page(tmp_path, root):
    evil = "<script>alert('x')</script>"
    results = report.load_results(make_run(tmp_path, "binary", classes=[evil, 'a "quoted" & <b>name'], **{"report.title": f"Title {evil}"}))
    text = report.render_report(executed(root, results, tmp_path / "nb.ipynb"), tmp_path / "r.html").read_text()
    seen = Page(text)
    assert "<script" not in text and "<b>name" not in text and not seen.wrong and not seen.open
    assert "<title>Title &lt;script&gt;" in text


def test_picture_that_is_none_stops_the_stage_and_leaves_no_report(tmp_path, monkeypatch):
    options = make_run(tmp_path)
    next(stage_dir(options, "explain").glob("sample_*.png")).write_text("half a picture")
    monkeypatch.setitem(sys.modules, "xaimed.explain", SimpleNamespace(run_explain=lambda o: stage_dir(o, "explain")))
    with pytest.raises(XaimedError, match="is not a PNG picture"): report.run_report(options)
    assert not stage_dir(options, "report").exists()


def test_a_part_of_the_test_split_is_not_comparable(tmp_path):
    options = make_run(tmp_path)
    path = stage_dir(options, "eval") / "metrics.json"
    write_json(path, {**read_json(path), "n": 50})
    results = report.load_results(options)
    assert not any(r.comparable for r in results.published)
    assert "50 of 200 images" in report.summary_section(results).data


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


@pytest.mark.parametrize("split,which,said", [("train", "best", "was trained on these images"), ("val", "best", "chose the epoch"), ("val", "last", "was watched on these images")])
def test_a_split_that_took_part_in_training_is_no_test(tmp_path, split, which, said):
    options = make_run(tmp_path)
    path = stage_dir(options, "eval") / "metrics.json"
    write_json(path, {**read_json(path), "split": split, "checkpoint": {"which": which, "epoch": 8}})
    results = report.load_results(options)
    text = report.summary_section(results).data
    assert text.count(said) == 2 and "no test" in text and said in report.model_card(results)
    assert ("chose the epoch" in text) == (said == "chose the epoch") and "no part in training" not in text


@pytest.mark.parametrize("task,width,verdict", [("multi-label", 390, None), ("multi-label", 1280, None), ("binary", 390, make_verdict()), ("binary", 1280, make_verdict())], ids=["labels-phone", "labels-wide", "scored-phone", "scored-wide"])
def test_page_fits_the_screen(tmp_path, root, task, width, verdict):
    "In a real browser: nothing but the boxes made to scroll is wider than the screen."
    chromium = next((p for n in ("chromium", "chromium-browser", "google-chrome") if (p := shutil.which(n))), None)
    if not chromium: pytest.skip("no chromium or chrome here: the page's width was not measured")
    folder, (_, text) = tmp_path, make_page(tmp_path, root, task, verdict=verdict)
    text = text.replace('<details class="xr-fold">', '<details class="xr-fold" open>')
    frame = f"<iframe id=f style='width:{width}px;height:900px;border:0' srcdoc=\"{text.replace('&', '&amp;').replace(chr(34), '&quot;')}\"></iframe>"
    script = "<script>onload=()=>{let d=document.getElementById('f').contentDocument.documentElement;document.title=d.scrollWidth+' '+d.clientWidth}</script>"
    (folder / "frame.html").write_text(f"<!doctype html><title>none</title>{frame}{script}")
    ran = subprocess.run([chromium, "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", f"--user-data-dir={folder / 'profile'}", "--virtual-time-budget=3000", "--dump-dom", f"file://{folder}/frame.html"], capture_output=True, text=True, timeout=120)
    sizes = re.search(r"<title>(\d+) (\d+)</title>", ran.stdout)
    if not sizes: pytest.skip("the browser gave no page here")
    assert int(sizes[1]) <= int(sizes[2]) <= width


def scored(folder:Path, verdict, task="binary", **kwargs):
    "Results of a run whose explanations were measured."
    return report.load_results(make_run(folder, task, verdict=verdict, **kwargs))


def plain(html:str) -> str:
    "The text of a page, without its pictures and tags."
    import html as entities
    return " ".join(entities.unescape(re.sub(r"<[^>]+>", " ", html)).split())


def test_measured_explanations_on_the_page(tmp_path, root):
    results = scored(tmp_path, make_verdict(), masks=True)
    text = report.render_report(executed(root, results, tmp_path / "nb.ipynb"), tmp_path / "r.html").read_text()
    seen, words = Page(text), plain(text)
    assert not seen.wrong and not seen.open and len(seen.ids) == len(set(seen.ids))
    assert {a[1:] for a in seen.links if a.startswith("#")} <= set(seen.ids)
    assert len(seen.images) == 12 + (3 + 4) * 3 + 2 and all(len(i["alt"]) > 10 and i["src"].startswith("data:image/png") for i in seen.images)
    assert report.outside_resources(text) == []
    for said in ("The explanation to use here is Grad-CAM", "3 of 11 methods are better", "fails the randomisation test", "not judged", "better than every control on 2 of 3 measures", "no better than an edge detector",
                 "accuracy falls from 0.97 to 0.71 when the region (planted marker) is filled in (a difference of 0.26 [0.20, 0.32]), and is 0.96 when as much is filled in elsewhere: the model uses it",
                 "12 images, full set of measures, probability, 8 steps, seed 0, 12,345 model passes, 21 s", "this one network", "Most at odds are", "0.83 (Flipping area)", "max-sensitivity 1.21, limit 0.50",
                 "sum off by 0.31 logits, limit 0.10", "2 of the 14 maps on this page carry one", "Somebody et al. 2020"): assert said in words, said
    assert "not on this page" not in words and "not measured (scorecard" not in words
    for name in ("Edge detector", "Random", "Top k iou ↑".replace(" ↑", ""), "Infidelity"): assert name in words
    order = [words.index(h) for h in ("How to read the explanations", "Measured explanations", "Failures")]
    assert order == sorted(order)


def test_verdict_table_puts_the_recommended_first_and_the_controls_last(tmp_path):
    given = make_verdict()
    given["recommended"] = {"method": "occlusion", "title": "Occlusion", "reason": "Because."}
    html = explanations.verdict_table(scored(tmp_path, given).scorecard)
    names = re.findall(r"<th scope='row'[^>]*>(.*?)<small", html)
    assert names[0] == "Occlusion" and names[1:3] == ["Grad-CAM", "Grad-CAM++"] and names[-4:] == ["Random", "Smoothed random", "Edge detector", "Centred Gaussian"]
    assert len(names) == 15 and html.count("xr-gray") == 4 and html.count("xr-randomisation") == 1
    best = max(m["scores"]["road"]["mean"] for m in given["methods"] if m["control"])
    assert f"control {best:.2f}" in html and "chance 0.08" in html


@pytest.mark.parametrize("kind", ["better", "some", "none", "randomisation", "unjudged", "something new"])
def test_every_kind_of_verdict_has_its_word_and_look(tmp_path, kind):
    given = make_verdict()
    for m in given["methods"]: m.update({} if m["control"] else dict(kind=kind, verdict=f"word of {kind}"))
    results = scored(tmp_path, given)
    html = explanations.verdict_table(results.scorecard)
    assert html.count(f"word of {kind}") == 11 and (f"xr-{kind}" in html) == (kind != "something new")
    assert f"Grad-CAM: word of {kind}" in report.model_card(results)


def test_no_scorecard_is_said_and_nothing_is_claimed(tmp_path, root):
    results = report.load_results(make_run(tmp_path, "binary", masks=True))
    text = plain(report.render_report(executed(root, results, tmp_path / "nb.ipynb"), tmp_path / "r.html").read_text())
    assert "were not measured (scorecard.budget is none)" in text and "were not scored against them in this run" in text
    assert "better than every control" not in text and "A tag below a map" not in text
    assert "no method can be preferred" in report.model_card(results)


def test_no_recommendation_is_a_warning(tmp_path):
    results = scored(tmp_path, make_verdict(recommended=False, regions=False))
    html = explanations.measured_section(results).data
    assert "xr-note xr-warn" in html and "No explanation method can be recommended here" in html and "under suspicion" not in html
    assert "none can be recommended" in report.summary_section(results).data


def test_nothing_judged_is_no_verdict_and_no_finding(tmp_path):
    verdict = make_verdict(recommended=False, regions=False)
    for m in verdict["methods"]:
        if not m["control"]: m.update(kind="unjudged", verdict="not judged", reason="Too few images: 4 more would do.")
    verdict["recommended"]["reason"] = "Nothing was judged. Too few images: 4 more would do."
    said = plain(report.summary_section(scored(tmp_path, verdict)).data)
    assert "no verdict. Nothing was judged. Too few images: 4 more would do." in said and "none can be recommended" not in said


def test_an_answer_that_is_never_given_is_told(tmp_path):
    results = report.load_results(make_run(tmp_path, "binary"))
    assert "never answers" not in report.warnings_of(results)
    metrics = stage_dir(load_options("quick_smoke", run="fixture", overrides={"artifacts_dir": str(tmp_path / "artifacts")}), "eval") / "metrics.json"
    found = read_json(metrics)
    found["per_class"][0]["precision"] = None
    write_json(metrics, found)
    again = report.load_results(load_options("quick_smoke", dataset="pathmnist", run="fixture", overrides={"artifacts_dir": str(tmp_path / "artifacts"), "data.data_dir": str(tmp_path / "private" / "data"), "data.size": 28}))
    assert "The network never answers “class 0, of 2” on these images." in plain(report.warnings_of(again))


def test_names_in_a_verdict_cannot_break_the_page(tmp_path, root):
    evil = "<script>alert('x')</script>\"&<b>"
    def spoil(x):
        keys = ("title", "verdict", "reason", "source", "passes", "name_of_region")
        if isinstance(x, dict): return {k: evil if k in keys and isinstance(v, str) else [evil] if k == "words" else spoil(v) for k, v in x.items()}
        return [spoil(v) for v in x] if isinstance(x, list) else x
    given = spoil(make_verdict())
    given["regions"]["name"] = evil
    given["methods"][0]["kind"] = "' onclick='x"
    results = scored(tmp_path, given, masks=True)
    text = report.render_report(executed(root, results, tmp_path / "nb.ipynb"), tmp_path / "r.html").read_text()
    seen = Page(text)
    assert "<script" not in text and "onclick" not in re.sub(r"&[#\w]+;", "", text) and "<b>\"" not in text and not seen.wrong and not seen.open
    assert "<script>" not in report.model_card(results).replace("\\<script\\>", "")


def test_masks_and_localisation(tmp_path):
    words = plain(explanations.explanations_section(scored(tmp_path, make_verdict(), masks=True)).data)
    assert "Pointing game over the images that were scored: Grad-CAM" in words and "chance 0.08" in words and "RISE" not in words   # only what is shown
    assert "were not scored" not in words


@pytest.mark.parametrize("accuracy,said", [
    ({"removed": 0.96, "drop": {"mean": 0.01, "low": -0.02, "high": 0.04}}, "no sign beyond chance"), ({"elsewhere": 0.72}, "the filling itself may do the harm"),
    ({"elsewhere": None}, "[0.20, 0.32]): the model uses it."), ({"removed": 0.97, "drop": None}, "stays, going from 0.97 to 0.97"), ({"removed": 0.99, "drop": None}, "rises from 0.97 to 0.99")])
def test_what_filling_in_a_region_says(tmp_path, accuracy, said):
    given = make_verdict()
    given["regions"]["accuracy"].update(accuracy)
    assert said in explanations.removal_words(scored(tmp_path, given).scorecard.regions)


def test_a_region_without_a_finding_or_an_accuracy(tmp_path):
    given = make_verdict()
    given["regions"]["accuracy"] = None
    for m in given["regions"]["methods"].values(): m.update(finding=None, finding_chance=None)
    html = explanations.measured_section(scored(tmp_path, given)).data
    assert "In the finding" not in html and "In the region" in html and "accuracy falls" not in html


def test_a_score_that_is_not_defined_is_a_dash(tmp_path):
    given = make_verdict()
    for m in given["methods"]: m["scores"]["completeness"].update(mean=None, low=None, high=None, n=0)
    del given["methods"][0]["scores"]["road"]
    given["methods"][1]["scores"]["road"].update(low=None, high=None)
    for row in given["agreement"]["matrix"]: row[given["agreement"]["measures"].index("completeness")] = None
    given["agreement"]["matrix"][given["agreement"]["measures"].index("completeness")] = [None] * len(given["agreement"]["measures"])
    results = scored(tmp_path / "undefined", given)
    html = explanations.measured_section(results).data
    assert "between 21 measures" in html
    assert "Completeness ↓" not in html and ">–<" in html and "None" not in plain(html) and "nan" not in plain(html)


def test_a_verdict_of_one_method_on_one_measure(tmp_path):
    given = make_verdict(judged={"gradcam": ("Grad-CAM", "none")}, measures={"faithfulness": ["road"]}, masks=False, regions=False, recommended=False)
    given["baselines"] = {}
    html = explanations.measured_section(scored(tmp_path, given)).data
    assert "Do the measures agree?" not in html and html.count("<img") == 1


def test_only_the_methods_shown_are_explained(tmp_path):
    options = make_run(tmp_path, "binary")
    table = stage_dir(options, "explain") / "explanations.csv"
    table.write_text(table.read_text().replace(",gradcam,", ",occlusion,").replace(",integrated_gradients,", ",my_own,"))
    html = explanations.reading_section(report.load_results(options)).data
    assert "Occlusion" in html and "my own" in html and "Grad-CAM" not in html and "Integrated" not in html


def test_every_registered_method_can_be_told_in_words():
    attribution = pytest.importorskip("xaimed.attribution")
    methods = {name for name, m in attribution.METHODS.items() if not m.control}
    assert set(explanations.METHOD_TEXTS) == set(explanations.METHOD_WORDS) >= methods


@pytest.mark.parametrize("value,said", [((0.31, 0.2, 0.4), "0.31 [0.20, 0.40]"), ((1e-5, 9e-6, 2e-5), "1.0e−05 [9.0e−06, 2.0e−05]"), ((1234.5, -2, 2000), "1,234 [−2, 2,000]"), ((0.0, -0.001, 0.3), "0.00 [0.00, 0.30]"), ((0.5, None, None), "0.50"), ((None, None, None), "–")])
def test_intervals_in_words(value, said):
    assert explanations.interval_words(Interval(**dict(zip(("mean", "low", "high"), value)))) == said
