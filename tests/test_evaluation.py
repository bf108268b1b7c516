"What the report says against the figures: every part in every task kind, by hand where it counts, nothing where nothing was asked, names that are code, no torch."
import json
import re
import subprocess
import sys
from html.parser import HTMLParser

import pytest
from made_run import TASKS, make_run, make_verdict

from xaimed import evaluation, explanations, schema
from xaimed.config import stage_dir
from xaimed.schema import Audit, Case, Ends, Ensemble, Leaks, Operating, Results, Slices

SECTIONS = ("curves_section", "slices_section", "audit_section", "robustness_section", "strangers_section", "trainings_section")
EVIL = "<script>alert('x')</script> \"&<b>"


class Page(HTMLParser):
    "Tables as lists of rows of texts, with the classes of the rows; notes, pictures, and tags that do not match."
    def __init__(self, html):
        super().__init__()
        self.tables, self.css, self.notes, self.warned, self.images, self.captions, self.open, self.wrong, self.cell = [], [], [], [], [], [], [], [], None
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        if tag == "img": return self.images.append(attrs["alt"])
        self.open.append((tag, attrs.get("class", "")))
        if tag == "table": self.tables.append([]), self.css.append([])
        if tag == "tr": self.tables[-1].append([]), self.css[-1].append(attrs.get("class", ""))
        if tag in ("td", "th"): self.tables[-1][-1].append("")
        if tag == "small": self.tables[-1][-1][-1] += " | "

    def handle_data(self, data):
        tags = [t for t, _ in self.open]
        if {"td", "th"} & set(tags): self.tables[-1][-1][-1] += data
        elif "xr-caption" in dict.fromkeys(c for _, c in self.open): self.captions.append(data)
        elif tags[-1:] == ["p"]: (self.warned if any("xr-warn" in c for _, c in self.open) else self.notes).append(data)

    def handle_endtag(self, tag):
        if self.open and self.open[-1][0] == tag: self.open.pop()
        else: self.wrong.append(tag)


def page(html):
    seen = Page(getattr(html, "data", html))
    assert not seen.open and not seen.wrong
    return seen


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    "By task: a run that was examined, one with a verdict, and one that was not."
    made = {}
    for task in TASKS:
        for kind, more in (("examined", {}), ("judged", dict(verdict=make_verdict())), ("plain", dict(examined=False))):
            made[task, kind] = schema.load_results(make_run(tmp_path_factory.mktemp(f"{task}-{kind}"), task, **more))
    return made


def with_metrics(results, **parts): return results.model_copy(update={"metrics": results.metrics.model_copy(update=parts)})


# ---- all parts

@pytest.mark.parametrize("task", TASKS)
def test_every_part_is_whole_and_says_its_own_figures(runs, task):
    results = runs[task, "judged"]
    m, text = results.metrics, {name: getattr(evaluation, name)(results).data for name in SECTIONS}
    for name, html in text.items(): assert page(html).images == {"curves_section": ["ROC and precision-recall curves with bands"], "audit_section": ["Copies side by side, and doubtful labels"], "robustness_section": ["Accuracy and calibration error by severity"]}.get(name, [])
    for words, name in ((m.slices.words, "slices_section"), (results.audit.words, "audit_section"), (m.robustness.words, "robustness_section"), (m.strangers.words, "strangers_section"), (m.ensemble.words + m.dropout.words, "trainings_section")):
        said = page(text[name])
        assert words and [w for w in said.notes + said.warned if w in words] == words
    rows = {name: page(html).tables for name, html in text.items()}
    assert len(rows["slices_section"][0]) == 1 + len(m.slices.slices) and len(rows["robustness_section"][0]) == 1 + len(m.robustness.by_corruption) and len(rows["strangers_section"][0]) == 1 + len(m.strangers.scores)
    assert len(rows["trainings_section"][0]) == 1 + 2 + 2 and "Do the explanations stay?" in text["robustness_section"] and "Part of the network left out" in text["trainings_section"]
    assert bool(rows["curves_section"]) == (task in ("binary", "multi-label"))


@pytest.mark.parametrize("task", TASKS)
def test_what_was_not_examined_is_said(runs, task):
    results = runs[task, "plain"]
    said = {"curves_section": "No threshold was chosen: " + ("the most probable class decides." if task in ("multi-class", "ordinal") else "it needs a split that was held out of training."), "slices_section": "Not cut into slices", "audit_section": "data.audit is false",
            "robustness_section": "eval.n_corrupted is 0", "strangers_section": "eval.other_data is empty", "trainings_section": "One training only"}
    for name in SECTIONS:
        seen = page(getattr(evaluation, name)(results))
        assert said[name] in " ".join(seen.notes + seen.warned) and not seen.tables and (not seen.images or name == "curves_section")
    assert page(evaluation.audit_section(results)).warned and page(evaluation.trainings_section(results)).warned       # not to know is a reason to be wary
    assert evaluation.leaks_part(results.metrics.leaks, "test") == "" and explanations.cases_part(results, 0) == ""
    assert "eval.n_neighbours is 0" in explanations.cases_section(results).data and not page(explanations.cases_section(results)).images


def poisoned(value, key=""):
    "The same with code in every text, and in the names that are keys."
    if isinstance(value, dict): return {k: poisoned(v, k) for k, v in value.items()}
    if isinstance(value, list): return [poisoned(v, key) for v in value]
    return value + EVIL if isinstance(value, str) and key not in ("file", "split", "task", "format") else value


@pytest.mark.parametrize("task", TASKS)
def test_names_from_outside_cannot_break_any_part(runs, task):
    "Class names, columns of a user's table, titles of data sets and methods, words that quote them: whatever is text in the files."
    clean = runs[task, "judged"]
    content = clean.model_dump(mode="json", by_alias=True)
    for part in ("audit", "neighbours"): content[part] = poisoned(content[part])
    content["metrics"] |= {k: poisoned(content["metrics"][k]) for k in ("operating", "slices", "leaks", "robustness", "strangers", "neighbours", "ensemble", "dropout")}
    content["scorecard"] |= {"drift": {"gradcam" + EVIL: poisoned(content["scorecard"]["drift"]["gradcam"])}, "methods": poisoned(content["scorecard"]["methods"])}
    content["dataset"]["classes"] = [c + EVIL for c in content["dataset"]["classes"]]
    results = Results.model_validate(content)
    results._folder = clean._folder
    parts = [getattr(evaluation, name)(results).data for name in SECTIONS] + [explanations.cases_section(results).data, *(explanations.cases_part(results, i) for i in {c.index for c in results.neighbours})]
    parts += [explanations.failures_section(results, group).data for group in ("high_confidence_wrong", "low_confidence_correct")] + [explanations.explanations_section(results).data]
    for html in parts:
        assert "<script" not in html and "<b>" not in html
        page(html)
    assert sum("&lt;script&gt;" in html for html in parts) >= len(SECTIONS)


def test_no_part_needs_torch(runs, tmp_path):
    "Neither on import nor to be written."
    results = runs["binary", "judged"]
    (tmp_path / "results.json").write_text(json.dumps(results.model_dump(mode="json", by_alias=True)))
    code = f"""
import sys, json, pathlib
from xaimed import evaluation, explanations, schema
heavy = {{'torch', 'sklearn', 'matplotlib'}}
assert not heavy & set(sys.modules), heavy & set(sys.modules)
results = schema.Results.model_validate(json.loads(pathlib.Path('results.json').read_text()))
results._folder = pathlib.Path({str(results._folder)!r})
for name in {SECTIONS!r}: getattr(evaluation, name)(results)
explanations.cases_section(results), explanations.cases_part(results, 10)
assert not heavy & set(sys.modules), heavy & set(sys.modules)"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


# ---- curves and thresholds

def operated(v, low=None, **more): return {name: dict(value=v, low=low, high=None if low is None else v + .05, n=10) for name in ("sensitivity", "specificity", "ppv", "npv", "accuracy")} | more


def threshold(rows, **more): return Operating.model_validate(dict(rule="youden", title="largest Youden index", n_held_out=21, rows=rows) | more)


def test_a_threshold_stands_once_over_two_lines(runs):
    o = threshold([{"class": 1, "name": "ill", "threshold": .41, "held_out": operated(.9, .8), "scored": operated(.75, .6, ppv=dict(value=None))}])
    seen = page(evaluation.curves_section(with_metrics(runs["binary", "examined"], operating=o)))
    head, first, second = seen.tables[0]
    assert head == ["Class", "Threshold", "Sensitivity", "Specificity", "PPV", "NPV", "Accuracy"]
    assert first == ["ill | evaluated", "0.410", "0.750 | 0.600 to 0.800", "0.750 | 0.600 to 0.800", "–", "0.750 | 0.600 to 0.800", "0.750 | 0.600 to 0.800"]
    assert second[:3] == ["ill | held out", "", "0.900 | 0.800 to 0.950"]
    assert "largest Youden index, chosen on 21 held-out images and frozen" in seen.captions[0] and seen.notes == ["PPV and NPV hold for the share of the class in these images; elsewhere it is another."]
    targeted = threshold([{"class": 1, "name": "ill", "threshold": .41, "held_out": operated(.9), "scored": operated(.8)}], target=.95, n_held_out=1)
    assert "largest Youden index (0.95), chosen on 1 held-out image and" in page(evaluation.curves_section(with_metrics(runs["binary", "examined"], operating=targeted))).captions[0]


def test_labels_without_a_threshold_have_a_reason_and_no_line(runs):
    without = {"class": 0, "name": "drain", "note": "no threshold: none of the 21 held-out images has it"}
    o = threshold([without, {"class": 1, "name": "ill", "threshold": .3, "held_out": operated(.9), "scored": operated(.8)}])
    seen = page(evaluation.curves_section(with_metrics(runs["multi-label", "examined"], operating=o)))
    assert [r[0] for r in seen.tables[0]] == ["Label", "ill | evaluated", "ill | held out"] and seen.notes[0] == "drain: no threshold: none of the 21 held-out images has it."
    seen = page(evaluation.curves_section(with_metrics(runs["multi-label", "examined"], operating=threshold([without]))))
    assert not seen.tables and "drain" in seen.notes[0] and len(seen.images) == 1


def test_both_classes_of_a_binary_task_have_their_two_lines(runs):
    results = runs["binary", "examined"]
    seen = page(evaluation.curves_section(results))
    assert len(results.metrics.operating.rows) == 2 and [r[0] for r in seen.tables[0][1:]] == [f"{row.name} | {where}" for row in results.metrics.operating.rows for where in ("evaluated", "held out")]
    assert "By the Youden rule they are as a rule one cut, told for both classes; by another rule an image may pass both thresholds, or neither." in seen.captions[0]
    c = results.metrics.calibration
    shown = evaluation.calibration_table(c.model_copy(update={"before": c.before | {"slope": 1.1, "intercept": -.2, "in_the_large": -.1}}), results.dataset)
    assert all(f"{name} (0 is best), of “{results.dataset.classes[1]}”" in shown for name in ("Calibration intercept", "Calibration in the large")) and "Calibration slope (1 is best)<" in shown
    assert f"Precision averaged over recall, of the class “{results.dataset.classes[1]}”." in str(evaluation.metrics_section(results).data)
    assert f"here {results.metrics.per_class[1].support / results.metrics.n:.3f}: compare" in str(evaluation.metrics_section(results).data)
    assert "one cut" not in page(evaluation.curves_section(runs["multi-label", "examined"])).captions[0]


def test_every_label_has_its_two_lines(runs):
    results = runs["multi-label", "examined"]
    table = page(evaluation.curves_section(results)).tables[0]
    chosen = [r for r in results.metrics.operating.rows if r.threshold is not None]
    assert len(chosen) == 14 and [r[0] for r in table[1:]] == [f"{r.name} | {where}" for r in chosen for where in ("evaluated", "held out")]
    assert [r[1] for r in table[1::2]] == [f"{r.threshold:.3f}" for r in chosen] and {r[1] for r in table[2::2]} == {""}


# ---- slices

def test_every_slice_has_its_mark(runs):
    cases = [(dict(small=True, tested=False), "small"), (dict(tested=False), "not tested"), (dict(worse=True, worse_than_mix=True), "worse"), (dict(worse=True), "worse, by its class"), (dict(worse_than_mix=True), "worse than its class"), (dict(auc_worse=True, p_auc_corrected=.01), "worse by AUC"), (dict(worse=True, auc_worse=True), "worse, by its class"), ({}, "")]
    rows = [dict(column="c", name=f"slice {i}", n=10 + i, accuracy=dict(value=.5, low=.4, high=.6), expected=.7, ece=.1, p_corrected=None if not more.get("tested", True) else .04) | more for i, (more, _) in enumerate(cases)]
    s = Slices.model_validate(dict(n=60, small=20, tested=4, slices=rows, words=["One sentence."]))
    seen = page(evaluation.slices_section(with_metrics(runs["binary", "examined"], slices=s)))
    head, *body = seen.tables[0]
    assert head == ["Slice", "Images", "Accuracy", "AUC", "By class mix", "ECE", "p, accuracy", "p, AUC", ""] and all(r[-1].startswith(mark) and bool(r[-1]) == bool(mark) for r, (_, mark) in zip(body, cases)) and len(body) == 8 and body[2][-1] == "worse"
    assert body[2] == ["slice 2", "12", "0.500 | 0.400 to 0.600", "–", "0.700", "0.100", "0.040", "–", "worse"] and body[0][6] == body[1][6] == "–" and body[5][6:8] == ["0.040", "0.010"]
    assert seen.css[0] == ["", "xr-gray", *[""] * 7] and seen.notes == ["One sentence."]
    assert "Not cut into slices" in evaluation.slices_section(with_metrics(runs["binary", "examined"], slices=s.model_copy(update={"slices": []}))).data


# ---- leaks and the audit

def test_leaks_are_told_with_and_without():
    assert evaluation.leaks_part(None, "test") == "" and evaluation.leaks_part(Leaks(n=9, n_leaked=0), "test") == ""
    seen = page(evaluation.leaks_part(Leaks(n=9, n_leaked=9, of_all={"auc": Ends(value=.9)}), "val"))
    assert seen.warned == ["Every val image has a copy in train or val: these figures are of memory."] and not seen.tables
    seen = page(evaluation.leaks_part(Leaks(n=1200, n_leaked=1, of_all={"auc": Ends(value=.9, low=.85, high=.94), "accuracy": Ends(value=.8)}, without={"auc": Ends(value=None), "accuracy": Ends(value=.79)}, change={"accuracy": Ends(value=-.01, low=-.02, high=.01)}), "test"))
    assert seen.tables[0] == [["Figure", "All 1,200", "Without the 1", "Change"], ["AUC", "0.900 | 0.850 to 0.940", "–", "–"], ["Accuracy", "0.800 | no interval", "0.790 | no interval", "−0.010 | −0.020 to 0.010"]] and "1 image of 1,200 in the test split has an exact or near copy" in seen.captions[0]
    assert "2 images of 9 in the test split have" in page(evaluation.leaks_part(Leaks(n=9, n_leaked=2, of_all={"auc": Ends(value=.9)}, without={}), "test")).captions[0]


@pytest.mark.parametrize("change,cell", [
    (dict(value=0, low=0, high=0), "0.000 | no interval"), (dict(value=-0., low=None), "0.000 | no interval"), (dict(value=-.2), "−0.200 | no interval"),
    (dict(value=-.0001, low=-.0002, high=.0001), "0.000 | narrower than 0.001"), (dict(value=None), "–"), (dict(value=.01, low=-.0001, high=.02), "0.010 | 0.000 to 0.020")])
def test_a_change_of_no_width_is_no_interval(change, cell):
    why = "hardly any resample gives another figure without it." if change["value"] == 0 else "too few resamples differ, or are defined."
    seen = page(evaluation.leaks_part(Leaks(n=9, n_leaked=1, of_all={"auc": Ends(value=1)}, without={"auc": Ends(value=1)}, change={"auc": Ends(**change)}), "test"))
    assert seen.tables[0][1] == ["AUC", "1.000 | no interval", "1.000 | no interval", cell] and seen.notes == ([f"AUC: no interval of the change, because {why}"] if "no" in cell.split() else [])


def test_every_missing_interval_has_its_reason(runs):
    "Nine classes, one with three images, one with none; a figure of one in every resample."
    results = runs["multi-class", "plain"]
    rows = [schema.MetricRow(name=n, title=n, value=v, interval="BCa") for n, v in (("auc", .9), ("accuracy", 1.), ("mcc", .3), ("kappa", None), ("ece", .1))]
    few = [c.model_copy(update={"support": n}) for c, n in zip(results.metrics.per_class, (3, 0, *[20] * 7))]
    seen = page(evaluation.metrics_section(with_metrics(results, per_class=few, intervals=results.metrics.intervals.model_copy(update={"rows": rows}))))
    assert [(r[2], r[3]) for r in seen.tables[0][1:]] == [("none: fewer than 5 images of a class, or of the others", "–"), ("none: every resample gives the same", "–"), ("none: resamples give the same, or too few give any", "–"), ("not defined: too few classes", "–"), ("none: see below", "–")]
    assert "Has no interval: its bins" in " ".join(r[1] for r in seen.tables[1])
    assert evaluation.why_no_interval(rows[0], results.metrics.model_copy(update={"n": 1})) == "none: one image only"


@pytest.mark.parametrize("task", TASKS)
def test_no_interval_is_without_width_or_words(runs, task):
    "In every section: a dash, or ends that differ, or words."
    results = runs[task, "judged"]
    for name in (*SECTIONS, "metrics_section", "sets_section", "selective_section"):
        for cell in (c for t in page(getattr(evaluation, name)(results)).tables for r in t for c in r):
            assert "nan" not in cell.lower().split() and "None" not in cell and "− to" not in cell
            if " to " in cell and " | " in cell: assert len(set(cell.split(" | ")[1].split(" to "))) == 2, cell
    assert not page(evaluation.selective_section(results)).tables[0][-1][-1].endswith("| ")


@pytest.mark.parametrize("listed,n,said", [(200, 612, "The first 200 of 612 "), (200, 200, ""), (3, 3, ""), (200, 1200, "The first 200 of 1,200 ")])
def test_a_list_that_was_cut_says_so(runs, listed, n, said):
    copy = dict(members=[["train", 0], ["test", 1]], labels=[0, 0])
    a = Audit.model_validate(dict(n=dict(train=8), exact=[copy] * listed, near=[copy | dict(likeness=.99)] * listed, suspects=[dict(split="val", index=3, label_name="ill", suggested_name="well", self_confidence=.03)] * listed, n_exact_groups=n, n_near_pairs=n, n_suspects=n))
    html = evaluation.audit_section(with_metrics(runs["binary", "examined"].model_copy(update={"audit": a}), leaks=None)).data
    for what in ("groups of equal images", "pairs of nearly equal images", "doubtful labels"): assert (f"{said}{what} are listed." in html) == bool(said)
    assert f"Copies, by split and place ({2 * n:,})" in html and f"Doubtful labels ({n:,})" in html


def test_a_better_slice_is_called_better(runs):
    "Its p is as small as that of a worse one."
    row = lambda name, gap, p, **more: dict(column="c", name=name, n=30, accuracy=dict(value=.9, low=.8, high=.95), p_corrected=p, difference=dict(value=gap), worse=p is not None and p <= .05 and (gap or 0) < 0, worse_than_mix=False) | more
    rows = [row("good", .2, .001), row("bad", -.2, .001), row("same", .2, .3), row("by AUC", 0, 1., auc_difference=dict(value=.1), p_auc_corrected=.01), row("unknown", None, .001), row("few", .2, None, tested=False)]
    seen = page(evaluation.slices_section(with_metrics(runs["binary", "examined"], slices=Slices.model_validate(dict(n=60, small=20, tested=5, slices=rows, words=["Said."])))))
    assert [r[-1] for r in seen.tables[0][1:]] == ["better", "worse, by its class mix", "", "better by AUC", "", "not tested"]
    assert seen.notes == ["Said.", "Better than the rest beyond luck, and no failure: good, by AUC."] and "in either direction" in seen.captions[0]


def test_where_nothing_differs_no_corruption_is_the_worst(runs):
    one = dict(title="Pixelation", family="digital", accuracy=.8, accuracy_at_hardest=.8, error_at_hardest=.2, drop=0, drop_low=-.0, drop_high=.0, changed=0)
    said = lambda rows, words: page(evaluation.robustness_section(with_metrics(runs["binary", "examined"], robustness=schema.Robustness.model_validate(dict(n=8, severities=[5], by_corruption=rows, words=words)))))
    worst = ["The worst of 2 by balanced error is Pixelation."]
    none = said([one, one | dict(title="JPEG")], worst)
    assert none.tables[0][1][4] == "0.000 | no answer turned" and none.notes[1].startswith("No answer turns from right to wrong or back under any of the 2 corruptions at severity 5")
    tie = one | dict(drop=.3, drop_low=.1, drop_high=.5, changed=2)
    assert said([tie, tie], worst).notes[1] == "All 2 corruptions give the same accuracy at severity 5: none of them is the hardest."
    assert said([tie, one], worst).notes == worst and said([one, one], ["Nothing changed."]).notes == ["Nothing changed."]


@pytest.mark.parametrize("task", TASKS)
def test_one_class_alone_gives_a_whole_report(tmp_path, root, task, monkeypatch):
    "Every image of the evaluated split has the first class (or no label): all parts, as the stages write them, and the whole page."
    import numpy as np
    from test_report import executed
    from xaimed import eval as stage, features, report, robustness, slices, stress
    from xaimed.config import read_json, write_json
    k, n, rng = TASKS[task], 40, np.random.default_rng(0)
    options, save = make_run(tmp_path, task), lambda figure, path: None
    folder = stage_dir(options, "eval")
    probs, held = (rng.dirichlet(np.ones(k), m) for m in (n, 60))
    y = np.zeros((n, k), int) if task == "multi-label" else np.zeros(n, int)
    held_y = rng.integers(0, 2, (60, k)) if task == "multi-label" else np.arange(60) % k
    images, f = rng.integers(0, 256, (n, 1, 8, 8), dtype=np.uint8), rng.normal(size=(n, 4))
    import torch
    tried = robustness.robustness_report(lambda x: probs[:len(x)], torch.from_numpy(images[:8]), y[:8], task, corruptions=["pixelate"], severities=(5,))
    parts = dict(leaks=stress.leak_effect(y, probs, task, np.arange(n) < 4, n_resamples=100), robustness=tried | dict(words=robustness.robustness_words(tried)), strangers=None, ensemble=None, dropout=None,
                 neighbours=features.knn_agreement(f, y, y, f + .01, y, [str(c) for c in range(k)], task, k=3) | dict(n_strangers=0))
    monkeypatch.setattr(stage, "save_figure", save)
    for name in ("curves_figure", "risk_curve", "confusion_figure", "reliability_of", "failure_grid"): monkeypatch.setattr(stage, name, lambda *a, **more: None)
    classes, was = read_json(folder / "metrics.json")["classes"], read_json(folder / "metrics.json")
    stage.write_evaluation(folder, images, y, probs, task=task, classes=classes, dataset=was["dataset"], n_resamples=100, held_out=stage.Scores(held_y, held), checkpoint=was["checkpoint"], stress=lambda gallery: parts)
    make_gallery = [dict(group=g, rank=1, index=10, label="0", predicted="1", confidence=.9, label_name="a", predicted_name="b") for g in stage.GROUPS]
    stage.write_gallery(folder / "failure_gallery_selection.csv", make_gallery)
    results = schema.load_results(options)
    assert results.metrics.auc is None and results.metrics.leaks.change["auc"].value is None
    text = report.render_report(executed(root, results, tmp_path / "05_report.ipynb"), tmp_path / "report.html").read_text()
    plain_text = re.sub(r"<details class=.code.>.*?</details>|base64,[^']*", "", text, flags=re.S)
    found = re.search(r"[>\s(](nan|inf|None)[<,;.)%]|\b(AUC|of|to|accuracy) (nan|None|inf)\b", plain_text)
    assert not found, plain_text[found.start() - 80:found.end() + 40]
    assert "not defined: too few classes" in text and page(evaluation.metrics_section(results)).tables[0][1][2] == "not defined: too few classes"


def audited(**more): return Audit.model_validate(dict(n=dict(train=8, val=4, test=4), words=["Said."]) | more)


def test_the_audit_lists_copies_and_doubts(runs):
    copy = lambda *members, **more: dict(members=[list(m) for m in members], labels=[0] * len(members)) | more
    a = audited(exact=[copy(*(("train", i) for i in range(6))), copy(("train", 1), ("test", 2), same_label=False, across=True)], near=[copy(("train", 3), ("val", 0), across=True, likeness=.9876, mirrored=True), copy(("val", 1), ("val", 2), likeness=.99)],
                suspects=[dict(split="val", index=3, label_name="ill", suggested_name="well", self_confidence=.03)])
    results = runs["binary", "examined"].model_copy(update={"audit": a})
    seen = page(evaluation.audit_section(results))
    leaks, copies, doubts = seen.tables
    assert copies == [["Images", "How alike", "Labels", "Across splits"], ["train 0, train 1, train 2, train 3 …", "equal", "the same", "no"], ["train 1, test 2", "equal", "differ", "yes"], ["train 3, val 0", "mirrored, likeness 0.988", "the same", "yes"], ["val 1, val 2", "likeness 0.990", "the same", "no"]]
    assert doubts == [["Image", "Label", "Rather", "Probability of its label"], ["val 3", "ill", "well", "0.030"]]
    assert leaks[0] == ["Figure", "All 60", "Without the 6", "Change"] and len(seen.images) == 1        # the made run's own leaks, beside
    assert page(evaluation.audit_section(results.model_copy(update={"audit": audited()}))).images == []       # nothing found: no empty sheet
    assert page(evaluation.audit_section(with_metrics(results.model_copy(update={"audit": audited()}), leaks=None))).tables == []


@pytest.mark.parametrize("more,warned", [({}, False), (dict(n_conflicts=1), True), (dict(n_leaked=dict(val=0, test=1)), True), (dict(n_leaked=dict(val=0, test=0)), False), (dict(n_leaked_val=1), True), (dict(n_leaked_val=0), False), (dict(absent_classes=dict(val=[], test=[2])), True), (dict(absent_classes=dict(val=[])), False), (dict(n_suspects=4, n_near_pairs=3), False)])
def test_the_audit_warns_of_what_makes_figures_wrong(runs, more, warned):
    seen = page(evaluation.audit_section(with_metrics(runs["binary", "plain"], leaks=None).model_copy(update={"audit": audited(**more)})))
    assert (seen.warned, seen.notes) == ((["Said."], []) if warned else ([], ["Said."]))


# ---- worse images, drift, strangers, trainings

def test_the_fall_of_accuracy_has_its_interval(runs):
    one = dict(title="Pixelation", family="digital", accuracy=.8, accuracy_at_hardest=.5, ece_at_hardest=.2)
    r = schema.Robustness.model_validate(dict(n=1, severities=[1, 3], by_corruption=[one | dict(drop=.3, drop_low=-.05, drop_high=.62), one | dict(title="JPEG", drop=-.1, drop_low=None, drop_high=None)], words=["Said."]))
    seen = page(evaluation.robustness_section(with_metrics(runs["binary", "examined"], robustness=r)))
    assert seen.tables[0] == [["Corruption", "Kind", "Accuracy, mean", "At severity 3", "Fall", "ECE there"], ["Pixelation", "digital", "0.800", "0.500", "0.300 | −0.050 to 0.620", "0.200"], ["JPEG", "digital", "0.800", "0.500", "−0.100 | no interval: all images lose the same", "0.200"]]
    assert seen.notes == ["Said."] and "at severity 3" in seen.captions[0] and "stay?" not in evaluation.robustness_section(with_metrics(runs["binary", "examined"], robustness=r)).data


def test_drift_is_told_method_by_method(runs):
    card = runs["binary", "judged"].scorecard
    own = dict(n=1, by_severity=[dict(severity=5, stayed_correlation=None, changed_correlation=.5, share_changed=None)], words=["Nothing."])
    seen = page(evaluation.drift_part(card.model_copy(update={"drift": card.drift | {"my_own": own}})))
    assert seen.tables[0] == [["Method", "Severity", "Answer stayed", "Answer changed", "Changed", "Another image"], ["Grad-CAM", "1", "0.800", "–", "10 %", "0.200"], ["Grad-CAM", "5", "0.400", "–", "50 %", "0.200"], ["my_own", "5", "–", "0.500", "0 %", "–"]]
    assert seen.notes == ["Grad-CAM. Where the answer stayed, explanations moved.", "my_own. Nothing."] and "8 images" in seen.captions[0]
    for nothing in (None, {}): assert evaluation.drift_part(card.model_copy(update={"drift": nothing})) == ""


def test_controls_stand_in_gray_among_the_scores(runs):
    results = runs["binary", "examined"]
    s, seen = results.metrics.strangers, page(evaluation.strangers_section(results))
    assert seen.css[0] == ["", *("xr-gray" if r.control else "" for r in s.scores)] and {"", "xr-gray"} == set(seen.css[0][1:])
    for r, row in zip(s.scores, seen.tables[0][1:]):
        assert row[0] == r.title and row[3] == r.source and row[1].startswith(f"{r.auc.value:.3f}") and row[2].startswith(f"{r.false_positive_rate.value:.3f}")
        assert (f"{r.auc.low:.3f} to {r.auc.high:.3f}" in row[1]) if r.auc.low is not None else "|" not in row[1]
    assert seen.notes[0] == f"The other set: {s.title}. {s.description}" and "60 evaluated images against 60 others" in seen.captions[0]


def test_members_and_their_spread(runs):
    e = Ensemble.model_validate(dict(n=1, n_members=2, members=[dict(seed=7, auc=.9, accuracy=.75, nll=.5, ece=.1), dict(seed=1, accuracy=.5)], seed_spread=dict(auc=None, accuracy=dict(mean=.625, sd=.177)), ensemble=dict(auc=dict(value=None), accuracy=dict(value=.8, low=.7, high=.9), nll=dict(value=.4, low=.3, high=.5))))
    assert page(evaluation.members_table(e)).tables[0] == [["Training", "AUC", "Accuracy", "NLL", "ECE"], ["seed 7, this run", "0.900", "0.750", "0.500", "0.100"], ["seed 1", "–", "0.500", "–", "–"], ["mean ± sd over seeds", "–", "0.625 ± 0.177", "", ""], ["all together", "–", "0.800 | 0.700 to 0.900", "0.400 | 0.300 to 0.500", "–"]]
    assert "1 image." in page(evaluation.members_table(e)).captions[0]
    one = page(evaluation.trainings_section(with_metrics(runs["binary", "examined"], ensemble=None)))
    assert "One training only" in one.warned[0] and not one.tables and one.notes == runs["binary", "examined"].metrics.dropout.words
    assert "left out" not in evaluation.trainings_section(with_metrics(runs["binary", "examined"], dropout=None)).data


# ---- nearest cases

def near(index, n=2, typicality=.5): return [Case(index=index, rank=r, case=7 * r, label="1", label_name=f"name {r}", similarity=.987, typicality=typicality) for r in range(1, n + 1)]


def test_the_cases_of_an_image_are_named_with_their_picture(runs, tmp_path):
    results = runs["binary", "examined"]
    shown = {c.index for c in results.neighbours}
    assert shown == {f.index for f in results.failures if f.rank <= 2} | {e.index for e in results.explanations}
    for i in shown: assert page(explanations.cases_part(results, i)).images == [f"Image {i} and its nearest training cases"] and explanations.cases_part(results, i).count("similarity") == 3
    other = results.model_copy(update={"neighbours": near(10) + near(555)})
    assert "Nearest training cases: name 1 (train 7, similarity 0.99); name 2 (train 14, similarity 0.99)." in explanations.cases_part(other, 10)
    assert page(explanations.cases_part(other, 555)).images == [] and "name 1" in explanations.cases_part(other, 555)    # no picture was drawn for it
    assert explanations.cases_part(other, 11) == ""


@pytest.mark.parametrize("typicality,said", [(.004, "fewer than 1 % of"), (.01, "only 1 % of"), (.05, "only 5 % of"), (.051, ""), (None, "")])
def test_a_stranger_is_said_to_be_far(runs, typicality, said):
    text = explanations.cases_part(runs["binary", "examined"].model_copy(update={"neighbours": near(10, typicality=typicality)}), 10)
    assert ("None of them is near" in text) == bool(said) and said in text


@pytest.mark.parametrize("task", TASKS)
def test_how_far_the_cases_may_be_trusted(runs, task):
    results = runs[task, "examined"]
    n, seen = results.metrics.neighbours, page(explanations.cases_section(results))
    assert seen.images == ["Failures and their nearest training cases"] and f"{n.k} training cases" in seen.notes[0] and f"{100 * n.prediction.value:.0f} % ({100 * n.prediction.low:.0f} to" in seen.notes[0] and f"{100 * n.accuracy:.0f} %." in seen.notes[1]
    said = page(explanations.cases_section(with_metrics(results, neighbours=n.model_copy(update={"words": ["2 of 60 images are far."]})))).notes
    assert "2 of 60 images are far." in said and "2 of 60 images are far." not in page(explanations.cases_section(with_metrics(results, neighbours=n.model_copy(update={"words": []})))).notes
    bare = n.model_copy(update={"label": schema.Agreeing(value=.5), "accuracy": None})
    assert "It is true for 50 %; luck would give 0 %" in page(explanations.cases_section(with_metrics(results, neighbours=bare))).notes[1]


def test_the_list_of_failures_has_a_column_of_cases_where_there_are_any(runs):
    results = runs["multi-label", "examined"]
    table = lambda r: page(explanations.failures_section(r, "high_confidence_wrong")).tables[0]
    assert table(results)[0][-1] == "Nearest training cases" and table(results)[1][-1].count("class 1, of 14") == 3 and table(results)[3][-1] == "–"
    assert table(runs["multi-label", "plain"])[0][-1] == "Confidence"


def test_a_lost_picture_of_cases_is_left_out_and_a_broken_one_is_named(tmp_path):
    from xaimed.config import XaimedError
    options = make_run(tmp_path)
    results, path = schema.load_results(options), stage_dir(options, "explain") / "sample_00010_neighbours.png"
    path.write_text("half a picture")
    with pytest.raises(XaimedError, match="sample_00010_neighbours.png is not a PNG picture"): explanations.cases_part(results, 10)
    path.unlink()
    assert not page(explanations.cases_part(results, 10)).images and "Nearest training cases" in explanations.cases_part(results, 10)
