"The reviewer's table: every item once and in order, every fact used, every rule turns when its part is gone, every link leads somewhere."
import html
import json
import re
import shutil
import subprocess
import sys
from collections import Counter

import pytest
from hypothesis import given, settings, strategies as st
from made_run import TASKS, make_run, make_verdict

from xaimed import reviewer as rv
from xaimed.page import template
from xaimed.schema import load_results, origin

quick = settings(max_examples=25, deadline=None, derandomize=True)
NAMES = {"synthetic": "synthetic", "published": "pathmnist", "own": "my scans"}
NEW = ("Curves and thresholds", "Where it is worse", "Worse images", "Images from elsewhere", "Other trainings", "Data audit", "Nearest training cases", "Reviewer's table")
PARTS = {"audit": ("", "data checks"), "ensemble": ("metrics", "ensemble"), "operating": ("metrics", "thresholds"), "robustness": ("metrics", "robustness")}
TRIPOD = "1 2 3a 3b 3c 4 5a 5b 6a 6b 6c 7 8a 8b 8c 9a 9b 9c 10 11 12a 12b 12c 12d 12e 12f 12g 13 14 15 16 17 18a 18b 18c 18d 18e 18f 19 20a 20b 20c 21 22 23a 23b 24 25 26 27a 27b 27c".split()
NUMBERS = {"CLAIM": [str(n) for n in range(1, 45)], "TRIPOD+AI": TRIPOD, "METRICS": [str(n) for n in range(1, 31)]}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    "A finished run of every task kind, its explanations measured."
    found = {task: load_results(make_run(tmp_path_factory.mktemp("reviewer"), task, verdict=make_verdict(), examined=False)) for task in TASKS}
    return {task: changed(r, figures={**r.figures, "operating_curves": "eval/curves.png"}) for task, r in found.items()}


@pytest.fixture
def run(runs): return runs["multi-class"]


@pytest.fixture(scope="module")
def anchors(root):
    "What the report can be linked to: its headings, those that are there and those that come with new sections."
    cells = json.loads((root / "nbs" / "05_report.ipynb").read_text())["cells"]
    text = "\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "markdown" and "report" in c["metadata"].get("tags", []))
    return {re.sub(r"[^\w-]", "", h.strip().replace(" ", "-")) for h in (*re.findall(r"^#+ (.*)$", text, re.M), *NEW)}


def changed(results, where="", **values):
    "The results with other values in one of their parts."
    first, _, rest = where.partition(".")
    return results.model_copy(update={first: changed(getattr(results, first), rest, **values)} if first else values)


def of(results, kind):
    "The same run on data of another origin."
    found = changed(results, "dataset", name=NAMES[kind])
    assert origin(found.dataset) == kind
    return found


def state(results, fact): return rv.FACTS[fact](results).state
def answered_by(results): return {r.fact for r in rv.reviewer_answers(results) if r.state == "answered"}


# ---- the lists

@pytest.mark.parametrize("name", NUMBERS)
def test_every_number_once_and_in_order(name): assert [i.number for i in rv.ITEMS if i.checklist == name] == NUMBERS[name]


def test_the_lists_have_their_published_sizes():
    assert Counter(i.checklist for i in rv.ITEMS) == {"CLAIM": 44, "TRIPOD+AI": 52, "METRICS": 30} and list(NUMBERS) == list(rv.CHECKLISTS)
    assert len({re.sub("[a-g]", "", n) for n in TRIPOD}) == 27 and len({i.section for i in rv.ITEMS if i.checklist == "METRICS"}) == 9


def test_every_fact_is_used_and_every_item_has_one(): assert {i.fact for i in rv.ITEMS} == set(rv.FACTS)


def test_items_are_short(): assert all(1 <= len(i.text.split()) <= 15 for i in rv.ITEMS)


@pytest.mark.parametrize("checklist,number,words", [("CLAIM", "13", "acquired"), ("CLAIM", "20", "apart"), ("CLAIM", "27", "combined"), ("CLAIM", "31", "explained"), ("CLAIM", "33", "another source"), ("CLAIM", "34", "trial"), ("CLAIM", "39", "mistakes"), ("CLAIM", "44", "paid"),
    ("TRIPOD+AI", "3c", "social groups"), ("TRIPOD+AI", "12g", "computed"), ("TRIPOD+AI", "13", "imbalance"), ("TRIPOD+AI", "15", "thresholds"), ("TRIPOD+AI", "18f", "code"), ("TRIPOD+AI", "19", "public"), ("TRIPOD+AI", "23a", "intervals"),
    ("METRICS", "7", "Time"), ("METRICS", "17", "end-to-end"), ("METRICS", "19", "Confounders"), ("METRICS", "22", "Calibration"), ("METRICS", "27", "another institution"), ("METRICS", "30", "Model")])
def test_numbers_stand_for_what_they_stand_for_in_the_official_list(checklist, number, words):
    "Checked by hand against the published lists (CLAIM 2024 of ryai.240300, TRIPOD+AI of 11 January 2024, METRICS tool 1.0)."
    assert words in next(i.text for i in rv.ITEMS if (i.checklist, i.number) == (checklist, number))


# ---- every table is whole

@pytest.mark.parametrize("kind", NAMES)
@pytest.mark.parametrize("task", TASKS)
def test_full_table_of_every_task_and_origin(runs, anchors, task, kind):
    results = of(runs[task], kind)
    rows = rv.reviewer_answers(results)
    assert [r[:4] + (r.fact,) for r in rows] == [tuple(i) for i in rv.ITEMS]
    assert all(r.state in rv.STATES and len(r.words) > 5 for r in rows)
    assert all(r.anchor in anchors for r in rows if r.state == "answered" or r.anchor)
    for name, c in rv.reviewer_counts(rows).items(): assert c["items"] == len(NUMBERS[name]) == sum(c[s] for s in rv.STATES)
    text = rv.reviewer_section(results).data
    assert text.count("<tr") == 1 + 3 + 3 + 126 + 1 + 5 and all(text.count(f"<b>{s}</b>:") == sum(r.state == s for r in rows) for s in rv.STATES)
    assert set(re.findall(r"href='#([^']*)'", text)) <= anchors


def test_new_parts_lead_to_their_sections(run, anchors):
    "All parts that are still to come, and the places that their links lead to."
    full = changed(changed(run, "metrics", **{n: {"a": 1} for n in ("operating", "slices", "robustness", "strangers", "ensemble")}), audit={"a": 1}, neighbours={"a": 1})
    rows = rv.reviewer_answers(full)
    used = {r.anchor for r in rows}
    assert used <= anchors | {""} and {"Curves-and-thresholds", "Where-it-is-worse", "Worse-images", "Images-from-elsewhere", "Other-trainings", "Data-audit", "Reviewers-table"} <= used
    assert any("nearest training cases" in r.words for r in rows) and not any("nearest training cases" in r.words for r in rv.reviewer_answers(run))
    assert sum(r.state == "answered" for r in rows) > sum(r.state == "answered" for r in rv.reviewer_answers(run))


# ---- rules turn

@pytest.mark.parametrize("name", PARTS)
@pytest.mark.parametrize("empty", [None, {}, [], "absent"])
def test_a_part_that_may_come_answers_only_when_it_is_there(run, name, empty):
    where, fact = PARTS[name]
    assert state(changed(run, where, **{name: {"a": 1}}), fact) == "answered"
    assert state(run if empty == "absent" else changed(run, where, **{name: empty}), fact) != "answered"


STRIPPED = [  # part, what it becomes, the facts that must not be answered any more
    ("metrics.intervals", dict(rows=[]), ("intervals", "intervals by class")), ("metrics", dict(calibration=None, ece=None), ("calibration", "recalibration")), ("metrics", dict(auc=None, accuracy=None), ("figures", "plots", "confusion matrix")),
    ("metrics", dict(split="val"), ("test split",)), ("metrics.checkpoint", dict(which=None), ("choice of weights",)), ("", dict(figures={}), ("plots", "confusion matrix")), ("", dict(figures=dict(reliability="", confusion_matrix="", curves="")), ("plots",)), ("", dict(failures=[]), ("failures",)),
    ("", dict(scorecard=None), ("explanations",)), ("", dict(explanations=[]), ("explanations",)), ("model", dict(layers=[]), ("network",)), ("model", dict(normalise={}), ("normalisation", "preprocessing")), ("training", dict(settings={}), ("training",)),
    ("dataset", dict(source=None), ("data source",)), ("dataset", dict(source="the user's own file"), ("data source",)), ("dataset", dict(licence="not stated"), ("data source",)), ("dataset.file", dict(official=None), ("splits", "data availability")), ("dataset.file", dict(official=False), ("splits", "data availability")),
    ("provenance", dict(versions={}, commit=None), ("software", "code")), ("provenance", dict(commit="0123456789ab+changes"), ("code",)), ("provenance", dict(options={}), ("options",)),
]

@pytest.mark.parametrize("where,values,facts", STRIPPED, ids=[f"{w or 'results'}:{','.join(v)}={list(v.values())[0]!r}" for w, v, _ in STRIPPED])
def test_a_rule_turns_when_its_part_is_gone(run, where, values, facts):
    before, after = answered_by(run), answered_by(changed(run, where, **values))
    assert set(facts) <= before and before - after >= set(facts) and after <= before
    rows = rv.reviewer_answers(changed(run, where, **values))
    assert all(r.state == ("not applicable" if r.fact == "recalibration" else "missing") for r in rows if r.fact in facts)


def test_intervals_answer_all_three_lists(run):
    asked = {("CLAIM", "29"), ("CLAIM", "37"), ("METRICS", "21")}
    bare = changed(run, "metrics.intervals", rows=[])
    for results, wanted in ((run, "answered"), (bare, "missing")): assert {r.state for r in rv.reviewer_answers(results) if (r.checklist, r.number) in asked} == {wanted}
    drawn = {n: next(r.state for r in rv.reviewer_answers(of(x, "synthetic")) if r.number == "23a") for n, x in (("whole", run), ("bare", bare))}
    assert drawn == {"whole": "answered", "bare": "missing"}


def test_an_interval_has_two_ends(run):
    rows = [r.model_copy(update={"high": None}) for r in run.metrics.intervals.rows]
    assert state(changed(run, "metrics.intervals", rows=rows), "intervals") == "missing"


def test_sensitivity_without_specificity_is_not_enough(run):
    rows = [r for r in run.metrics.intervals.rows if r.name != "specificity"]
    assert state(changed(run, "metrics.intervals", rows=rows), "intervals by class") == "missing"


def test_a_run_without_mistakes_needs_no_look_at_them(run):
    assert state(changed(changed(run, failures=[]), "metrics", accuracy=1.0), "failures") == "not applicable"


def test_only_mistakes_count_as_a_look_at_mistakes(run):
    wrong, right = ([f for f in run.failures if f.group == g] for g in ("high_confidence_wrong", "low_confidence_correct"))
    assert wrong and right
    assert rv.FACTS["failures"](run).words == f"A gallery of {len(wrong)} mistakes, the surest first"
    assert rv.FACTS["failures"](changed(run, failures=[*right, wrong[0]])) == rv.Answer("answered", "A gallery of 1 mistake, the surest first", "Failures")
    assert rv.FACTS["failures"](changed(changed(run, failures=right), "metrics", accuracy=1.0)) == rv.Answer("not applicable", "no image was wrong")
    assert rv.FACTS["failures"](changed(run, failures=right)) == rv.Answer("missing", "A look at the images that were wrong", "Failures")


@pytest.mark.parametrize("gone", ["reliability", "operating_curves"])
def test_all_plots_need_both_kinds(run, gone):
    assert rv.FACTS["plots"](run).state == "answered" and "ROC" in rv.FACTS["plots"](run).words
    assert state(changed(run, figures={k: v for k, v in run.figures.items() if k != gone}), "plots") == "missing"


def test_the_audit_claims_no_more_than_it_looked_at(run):
    notes = ["3 different images have almost no contrast and were not compared for near copies.", "Labels were judged on 50 of 200 images, drawn by seed."]
    for given in ([], notes):
        answer = rv.FACTS["data checks"](changed(run, audit={"n": {"test": 200}, "notes": given}))
        assert answer.state == "answered" and "every image" not in answer.words and all(n.rstrip(".") in answer.words for n in given) and ("Not all of them" in answer.words) == bool(given)


def test_nothing_is_done_about_unfit_images(run):
    "However well strangers are noticed: no run holds a threshold in use."
    for parts in ({}, {"strangers": {"a": 1}}, {"robustness": {"a": 1}}, {"strangers": {"a": 1}, "robustness": {"a": 1}}):
        row = next(r for r in rv.reviewer_answers(changed(run, "metrics", **parts)) if (r.checklist, r.number) == ("TRIPOD+AI", "27a"))
        assert row.state == "missing" and row.anchor == ("Images-from-elsewhere" if "strangers" in parts else "Worse-images" if parts else "")


def test_calibration_without_recalibration(run):
    plain = changed(run, "metrics", calibration=None)
    assert rv.FACTS["calibration"](plain).words.startswith("Expected calibration error") and state(plain, "recalibration") == "not applicable"
    unfit = changed(run, "metrics.calibration", after=None)
    assert state(unfit, "recalibration") == "not applicable" and state(unfit, "calibration") == "answered"


def test_a_limit_on_the_images_is_said(tmp_path, run):
    assert state(run, "subset") == "not applicable"
    few = load_results(make_run(tmp_path, **{"data.max_train": 64}))
    assert rv.FACTS["subset"](few) == rv.Answer("answered", "A part of the images was used, drawn by the seed", "Provenance")


@pytest.mark.parametrize("task,words", [("multi-label", "0.5 for every label"), ("ordinal", "the most probable class")])
def test_thresholds_that_nobody_chose(runs, task, words): assert words in rv.FACTS["thresholds"](runs[task]).words


@pytest.mark.parametrize("robust,many,expected", [(True, True, "Worse-images"), (True, False, "Worse-images"), (False, True, "Other-trainings"), (False, False, "")])
def test_changed_conditions(run, robust, many, expected):
    answer = rv.FACTS["changed conditions"](changed(run, "metrics", robustness={"a": 1} if robust else None, ensemble={"a": 1} if many else None))
    assert answer.anchor == expected and (answer.state == "answered") == bool(expected)


# ---- never more than the results hold

ONLY_AUTHORS = ("title", "abstract", "background", "aims", "sample size", "protocol", "registration", "funding", "conflicts of interest", "public involvement", "interpretation", "limits of the study", "users", "next steps", "weights", "availability statement", "simple baseline", "checklist by the authors", "external test")
PATIENTS = ("study design", "eligibility", "deidentification", "acquisition", "true labels", "annotators", "agreement of readers", "ethics approval", "patient characteristics", "fairness", "dates", "centres", "treatments", "inequalities", "figures by centre", "time from image to label", "patients kept apart", "patients and place in care", "missing data", "choice of labels", "blinding", "whom the data stand for", "cutting out", "clinical benefit")

@pytest.mark.parametrize("kind", NAMES)
def test_what_no_file_knows_is_never_answered(run, kind):
    full = changed(changed(of(run, kind), "metrics", **{n: {"a": 1} for n in ("operating", "slices", "robustness", "strangers", "ensemble")}), audit={"a": 1}, neighbours={"a": 1})
    for results in (of(run, kind), full):
        assert {state(results, f) for f in ONLY_AUTHORS} == {"missing"}
        assert {state(results, f) for f in PATIENTS} == {"not applicable" if kind == "synthetic" else "missing"}
        if kind == "synthetic": assert {rv.FACTS[f](results).words for f in PATIENTS} == {rv.DRAWN}


@pytest.mark.parametrize("kind", NAMES)
def test_what_holds_of_every_run_of_this_package(run, kind):
    assert {state(of(run, kind), f) for f in ("hand-made features", "feature table", "predictors", "class imbalance")} == {"not applicable"}
    assert {f: rv.FACTS[f](of(run, kind)).anchor for f in ("kind of model", "starting weights", "role in care")} == {"kind of model": "Summary", "starting weights": "Model", "role in care": "Intended-use-and-limits"}


@pytest.mark.parametrize("values,words", [(dict(), "random weights, seed 0"), (dict(pretrained=True), "torchvision's default weights"), (dict(weights="IMAGENET1K_V1"), "IMAGENET1K_V1")])
def test_starting_weights_are_named(run, values, words): assert words in rv.FACTS["starting weights"](changed(run, "model", **values)).words


@pytest.mark.parametrize("fact,where,part,place", [("figures by centre", "metrics", "slices", "Where-it-is-worse"), ("groups of people", "metrics", "slices", "Where-it-is-worse"), ("clinical benefit", "metrics", "operating", "Curves-and-thresholds"),
    ("patients kept apart", "", "audit", "Data-audit"), ("external test", "metrics", "strangers", "Images-from-elsewhere"), ("unfit images", "metrics", "strangers", "Images-from-elsewhere"), ("unfit images", "metrics", "robustness", "Worse-images")])
def test_a_part_of_what_is_missing_is_shown(run, fact, where, part, place):
    "Still missing, but with a link to what there is."
    before, after = (rv.FACTS[fact](r) for r in (run, changed(run, where, **{part: {"a": 1}})))
    assert before.state == after.state == "missing" and before.words == after.words and before.anchor != after.anchor == place


@pytest.mark.parametrize("fact,synthetic,published,own", [("splits", "answered", "answered", "missing"), ("proper split", "answered", "missing", "missing"), ("numbers of patients", "answered", "missing", "missing"), ("data availability", "answered", "answered", "missing"),
    ("differences between splits", "not applicable", "not applicable", "missing"), ("trial registration", "not applicable", "not applicable", "missing"), ("kind of image", "answered", "answered", "missing"), ("preprocessing", "answered", "answered", "missing"), ("groups of people", "answered", "missing", "missing")])
def test_what_depends_on_where_the_images_come_from(run, fact, synthetic, published, own): assert [state(of(run, k), fact) for k in NAMES] == [synthetic, published, own]


def test_one_gray_channel_is_one_kind_of_image(run): assert state(changed(of(run, "own"), "dataset", channels=1), "kind of image") == "answered"


@pytest.mark.parametrize("kind,regions,slices,expected", [("synthetic", True, False, ("answered", "Measured-explanations")), ("synthetic", False, True, ("not applicable", "")), ("published", True, True, ("missing", "Measured-explanations")), ("own", False, True, ("missing", "Where-it-is-worse")), ("own", False, False, ("missing", ""))])
def test_confounders(run, kind, regions, slices, expected):
    results = changed(of(run, kind), "metrics", slices={"a": 1} if slices else None)
    if not regions: results = changed(results, "scorecard", regions=None)
    answer = rv.FACTS["confounders"](results)
    assert (answer.state, answer.anchor) == expected


@given(auc=st.none() | st.floats(0, 1), ece=st.floats(0, 1), accuracy=st.floats(0, 0.999))
@quick
def test_how_good_the_run_is_changes_no_answer(runs, auc, ece, accuracy):
    base, other = runs["binary"], changed(runs["binary"], "metrics", auc=auc, ece=ece, accuracy=accuracy)
    assert [r.state for r in rv.reviewer_answers(other)] == [r.state for r in rv.reviewer_answers(base)]


# ---- helpers and page

def test_part_of_what_is_not_there():
    assert rv.part({}, "a.b.c") is None and rv.part({"a": None}, "a.b") is None and rv.part(None, "a") is None
    assert rv.part({"a": {"b": 0}}, "a.b") == 0 and rv.part({"a": False}, "a") is False and rv.part({"a": {}}, "a") is None


def test_counts_of_no_rows(): assert rv.reviewer_counts([]) == {n: {"answered": 0, "not applicable": 0, "missing": 0, "items": 0} for n in rv.CHECKLISTS}


def test_missing_things_are_listed_once_with_all_that_ask(run):
    rows = rv.reviewer_answers(run)
    lacking = rv.missing_facts(rows)
    assert len({m.words for m in lacking}) == len(lacking) == len({r.words for r in rows if r.state == "missing"})
    asked = [(name, number) for m in lacking for part in m.asked.split("; ") for name, numbers in [part.split(" ", 1)] for number in numbers.split(", ")]
    assert sorted(asked) == sorted((r.checklist, r.number) for r in rows if r.state == "missing")
    assert next(m for m in lacking if m.fact == "acquisition").asked == "CLAIM 13; TRIPOD+AI 9b; METRICS 5, 6"


def test_conditions_of_metrics(run):
    found = {kind: [c[2].split(":")[0] for c in rv.metrics_conditions(of(run, kind))] for kind in NAMES}
    unknown = "cannot be judged"
    assert found == {"synthetic": ["no", "no", "no", "no", "yes"], "published": [unknown, unknown, "no", "no", "yes"], "own": [unknown, unknown, "no", "no", "yes"]}


def test_section_says_what_it_is_not(run):
    text = html.unescape(rv.reviewer_section(run).data)
    assert "filled by a program" in text and "no judgement of quality" in text and "No METRICS score is computed" in text
    assert text.index("Still to be written") < text.index("CLAIM 2024, item by item") and text.count("<details") == 4
    assert all(len(m.fact) < 30 and m.fact in text for m in rv.missing_facts(rv.reviewer_answers(run)))


@pytest.mark.parametrize("kind", NAMES)
def test_names_are_text_and_not_html(run, kind):
    evil = "<img src=x onerror=1>&'\""
    results = changed(of(run, kind), "dataset", title=evil, classes=[evil] * len(run.dataset.classes))
    results = changed(changed(changed(results, "model", name=evil, weights=evil), "provenance", commit=evil, versions={"xaimed": evil}), "scorecard.regions", name=evil)
    text = rv.reviewer_section(results).data
    assert "<img" not in text and text.count("&lt;img") >= 3 + (kind == "published") + (kind == "synthetic")


def test_importing_brings_no_torch():
    done = subprocess.run([sys.executable, "-c", "import sys, xaimed.reviewer; print([m for m in ('torch', 'sklearn', 'matplotlib', 'captum') if m in sys.modules])"], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr


@pytest.mark.parametrize("width", [390, 1280])
def test_section_fits_the_screen(tmp_path, run, width):
    "In a real browser, all folds open: nothing but the boxes made to scroll is wider than the screen."
    chromium = next((p for n in ("chromium", "chromium-browser", "google-chrome") if (p := shutil.which(n))), None)
    if not chromium: pytest.skip("no chromium or chrome here: the section's width was not measured")
    body = rv.reviewer_section(run).data.replace("<details class='xr-fold'>", "<details class='xr-fold' open>")
    assert body.count("open>") == 4
    page = f"<style>{template('report.css')}{template('components.css')}</style><main>{body}</main>"
    frame = f"<iframe id=f style='width:{width}px;height:900px;border:0' srcdoc=\"{html.escape(page, quote=True)}\"></iframe>"
    script = "<script>onload=()=>{let d=document.getElementById('f').contentDocument.documentElement;document.title=d.scrollWidth+' '+d.clientWidth}</script>"
    (tmp_path / "frame.html").write_text(f"<!doctype html><title>none</title>{frame}{script}")
    ran = subprocess.run([chromium, "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=3000", "--dump-dom", f"file://{tmp_path}/frame.html"], capture_output=True, text=True, timeout=120)
    sizes = re.search(r"<title>(\d+) (\d+)</title>", ran.stdout)
    if not sizes: pytest.skip("the browser gave no page here")
    assert int(sizes[1]) <= int(sizes[2]) <= width
