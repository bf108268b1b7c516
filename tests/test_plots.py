"Figures: one shared scale, nothing clipped or overlapping, the same bytes twice, no global state."
import subprocess
import sys

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image

from xaimed import plots

RNG = np.random.default_rng(0)
PATH = ["adipose", "background", "debris", "lymphocytes", "mucus", "smooth muscle", "normal colon mucosa", "cancer-associated stroma", "colorectal adenocarcinoma epithelium"]
DERMA = ["actinic keratoses and intraepithelial carcinoma", "basal cell carcinoma", "benign keratosis-like lesions", "dermatofibroma", "melanoma", "melanocytic nevi", "vascular lesions"]
LONG = ["an exceedingly long class name that nobody should have chosen", "W" * 60, "x"]


def gray(h=28, w=28): return RNG.integers(0, 256, (h, w), dtype=np.uint8)
def rgb(h=28, w=28): return RNG.integers(0, 256, (h, w, 3), dtype=np.uint8)
def bump(h=28, w=28): return np.exp(-((np.arange(h)[:, None] - h / 2) ** 2 + (np.arange(w)[None] - w / 2) ** 2) / 40)
def titles(n, names=PATH): return [f"true {names[i % len(names)]}\npredicted {names[(i + 1) % len(names)]}\n0.987 · image {i}" for i in range(n)]


METHODS = ["Grad-CAM", "Integrated Gradients", "Grad-CAM++", "Layer-CAM", "Saliency", "Input × Gradient", "SmoothGrad", "Guided Backprop", "Occlusion", "Expected Gradients (GradientSHAP)", "RISE", "Random", "Smoothed random", "Edge detector", "Centred Gaussian"]


def panel(title, **levels):
    "Fifteen methods on one measure, invented."
    mean = RNG.normal(0.2, 0.2, 15)
    return dict(title=title, better="higher", mean=mean, low=mean - 0.1, high=mean + 0.15, best=0.3, **levels)


def agreement(k):
    v = RNG.uniform(-1, 1, (k, k))
    v = (v + v.T) / 2
    np.fill_diagonal(v, 1)
    return v


HISTORY = {"epoch": [1, 2, 3], "train_loss": [1.0, 0.6, 0.4], "val_loss": [0.9, 0.7, 0.8], "val_auc": [0.6, 0.8, 0.9]}
BINS = {"edges": np.linspace(0, 1, 4), "count": np.array([0, 3, 9]), "confidence": np.array([np.nan, 0.5, 0.9]), "accuracy": np.array([np.nan, 0.9, 0.7])}
FIGURES = {
    "one image": lambda: plots.image_grid([gray()], titles(1), title="One"),
    "no image": lambda: plots.image_grid([], title="A title that is long enough to need a second line, and perhaps even a third one", empty="none: " + "because " * 20),
    "many": lambda: plots.image_grid([gray() for _ in range(25)], titles(25), title="Many"),
    "many, long names": lambda: plots.image_grid([rgb() for _ in range(7)], titles(7, LONG), title="Long " * 30),
    "wide and tall": lambda: plots.image_grid([gray(20, 60), gray(60, 20), rgb(20, 60)], titles(3, DERMA)),
    "overlay one": lambda: plots.overlay_grid([gray()], [bump()], titles(1, DERMA), title="One"),
    "overlay many": lambda: plots.overlay_grid([rgb() for _ in range(9)], [bump()] * 9, titles(9, DERMA), title="Nine", label="a label that is far too long for its bar " * 4),
    "overlay rectangular": lambda: plots.overlay_grid([gray(20, 60)] * 3, [bump(20, 60)] * 3, titles(3), signed=True),
    "overlay constant": lambda: plots.overlay_grid([gray()] * 2, [np.zeros((28, 28)), np.ones((28, 28))]),
    "overlay, outlined": lambda: plots.overlay_grid([gray()] * 2, [bump()] * 2, titles(2), masks=[bump() > 0.5, None]),
    "intervals": lambda: plots.intervals(METHODS, [panel(t) for t in ("Flipping area, blurred", "Flipping area, mean colour", "ROAD")] + [panel("Pointing game", chance=0.08)], faint=[False] * 11 + [True] * 4, title="How each did"),
    "intervals, five panels": lambda: plots.intervals(METHODS, [panel("W" * 40)] * 5, title="Long " * 40),
    "intervals, one row": lambda: plots.intervals(["x"], [dict(title="Tiny", better="lower", mean=[1e-5], low=[9e-6], high=[2e-5], best=None)]),
    "intervals, nothing known": lambda: plots.intervals(["x", "y"], [dict(title="None", better="lower", mean=[None] * 2, low=[None] * 2, high=[None] * 2)]),
    "intervals, all the same": lambda: plots.intervals(LONG, [dict(title="Flat", better="lower", mean=[1000.0] * 3, low=[1000.0] * 3, high=[1000.0] * 3)] * 4),
    "intervals, none": lambda: plots.intervals([], []),
    "matrix 2": lambda: plots.matrix([[1, None], [None, 1]], ["ROAD", "Sparseness"], title="Two"),
    "matrix 12": lambda: plots.matrix(agreement(12), [f"measure {m}" for m in METHODS[:12]], title="Twelve"),
    "matrix 28": lambda: plots.matrix(agreement(28), [f"{i} {m}" for i, m in enumerate(METHODS + METHODS[:13])], title="Long " * 40),
    "matrix, none": lambda: plots.matrix([], []),
    "curves": lambda: plots.curves(HISTORY, title="Curves"),
    "curves, one epoch": lambda: plots.curves([{"epoch": "1", "train_loss": "0.5", "val_loss": "", "val_auc": None}]),
    "curves, no epoch": lambda: plots.curves([]),
    "lines": lambda: plots.lines([dict(title="ROC", xlabel="false positive rate", ylabel="sensitivity", curves=[dict(x=[0, .5, 1], y=[0, .8, 1], low=[0, .6, 1], high=[0, .9, 1], label=f"{c}: AUC 0.81 [0.74, 0.88]") for c in PATH]), dict(title="Precision", xlabel="recall", ylabel="precision", curves=[dict(x=[0, 1], y=[1, .5], label="a long name of a class that goes on and on and on")])], diagonal=["ROC"], title="Curves"),
    "lines, one": lambda: plots.lines([dict(title="Accuracy", xlabel="severity", ylabel="accuracy", curves=[dict(x=range(6), y=[.9, .8, .7, None, .5, .4], label="motion blur")])]),
    "lines, none": lambda: plots.lines([], title="Curves"),
    "confusion 2": lambda: plots.confusion([[90, 10], [3, 53]], ["malignant", "normal, benign"], title="Two"),
    "confusion 9": lambda: plots.confusion(RNG.integers(0, 2000, (9, 9)), PATH, title="Nine"),
    "confusion 14": lambda: plots.confusion(RNG.integers(0, 99999, (14, 14)), (PATH + DERMA)[:14], title="Fourteen"),
    "confusion, long": lambda: plots.confusion(np.eye(3, dtype=int), LONG),
    "labels 14": lambda: plots.label_table(RNG.integers(0, 22433, (14, 4)), (PATH + DERMA)[:14], title="Fourteen labels"),
    "labels 1": lambda: plots.label_table([[0, 0, 0, 5]], ["hernia"]),
    "reliability": lambda: plots.reliability(BINS, ece=0.123, title="Bins"),
    "reliability, undefined": lambda: plots.reliability({k: [None if v != v else v for v in np.asarray(c).tolist()] for k, c in BINS.items()}, ece=None),
}


def drawn_texts(figure):
    "Every text that is drawn, ticks outside the view left out."
    yield from figure.texts
    for ax in figure.axes:
        yield from ax.texts
        if not ax.axison: continue
        yield from (ax.xaxis.label, ax.yaxis.label)
        if ax.get_legend(): yield from ax.get_legend().get_texts()
        for axis in (ax.xaxis, ax.yaxis):
            low, high = sorted(axis.get_view_interval())
            for tick in axis.get_major_ticks():
                if low <= tick.get_loc() <= high:
                    if tick.label1.get_visible(): yield tick.label1
                    if tick.label2.get_visible(): yield tick.label2


@pytest.mark.parametrize("name", FIGURES)
def test_no_text_is_clipped_or_lies_over_another(name):
    figure = FIGURES[name]()
    with plots.style():
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        boxes = [(t.get_text(), t.get_window_extent(canvas.get_renderer())) for t in drawn_texts(figure) if t.get_text().strip()]
    assert boxes
    for text, box in boxes:
        assert box.x0 >= -1 and box.y0 >= -1 and box.x1 <= figure.bbox.width + 1 and box.y1 <= figure.bbox.height + 1, f"{text!r} leaves the figure"
    for i, (text, box) in enumerate(boxes):
        for other, its in boxes[i + 1:]: assert not box.padded(-1).overlaps(its.padded(-1)), f"{text!r} lies over {other!r}"


@pytest.mark.parametrize("name", FIGURES)
def test_every_figure_can_be_saved_and_is_closed(name, tmp_path):
    path = plots.save_figure(FIGURES[name](), tmp_path / "figure.png")
    assert not plt.get_fignums()
    with Image.open(path) as image:
        assert image.width > 300 and image.info.get("Software") is None
        assert np.asarray(image.convert("L")).std() > 0
    assert [p.name for p in tmp_path.iterdir()] == ["figure.png"]


def test_the_same_figure_has_the_same_bytes(tmp_path):
    image = gray()
    first, second = (plots.save_figure(plots.overlay_grid([image], [bump()], ["x"]), tmp_path / f"{i}.png").read_bytes() for i in range(2))
    assert first == second


def test_saving_refuses_another_format_and_leaves_nothing_behind_on_failure(tmp_path):
    with pytest.raises(ValueError, match="ending in .png"): plots.save_figure(plots.image_grid([gray()]), tmp_path / "figure.pdf")
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError): plots.save_figure(plots.image_grid([gray()]), tmp_path / "file" / "figure.png")
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_importing_and_drawing_change_no_settings():
    code = "import matplotlib as m, warnings; a = dict(m.rcParams); import xaimed.plots as p, numpy as n; p.image_grid([n.zeros((4, 4))]); assert dict(m.rcParams) == a"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env={"MPLBACKEND": "agg", "PATH": "", "PYTHONPATH": ":".join(p for p in sys.path if p)})
    assert done.returncode == 0, done.stderr


def overlays(figure, name="relevance"): return [im for ax in figure.axes for im in ax.images if im.get_cmap().name == name and np.size(im.get_array()) > 256]


def test_all_overlays_of_a_figure_share_one_scale_and_native_pixels():
    maps = [bump(), 0.01 * bump(), 3 * bump()]
    drawn = overlays(plots.overlay_grid([gray()] * 3, maps))
    assert len(drawn) == 3 and len({(im.norm.vmin, im.norm.vmax) for im in drawn}) == 1
    assert {im.get_interpolation() for im in drawn} == {"nearest"}
    assert [im.get_array().shape for im in drawn] == [(28, 28)] * 3
    signed = overlays(plots.overlay_grid([gray()], [bump() - 0.5], signed=True), "for_against")
    assert signed[0].norm.vmin == -signed[0].norm.vmax


def test_a_constant_map_is_drawn_empty_and_faint_noise_stays_faint():
    figure = plots.overlay_grid([gray()] * 4, [np.zeros((28, 28)), np.full((28, 28), 9.0), 9 + 1e-9 * RNG.random((28, 28)), bump()])
    assert len(overlays(figure)) == 1
    assert sum(t.get_text() == "constant map" for t in figure.findobj(mpl.text.Text)) == 3
    figure = plots.overlay_grid([gray()] * 2, [1e-3 * RNG.random((28, 28)), bump()])
    faint = overlays(figure)[0]
    assert faint.cmap(faint.norm(faint.get_array()))[..., 3].max() < 0.02


def test_an_outlier_does_not_dim_the_rest_and_the_bar_says_so():
    spiky = bump()
    spiky[0, 0] = 1000
    scale, beyond = plots.shared_scale([spiky] * 3)
    assert scale.vmax < 2 and beyond
    assert plots.shared_scale([np.eye(28) * (np.arange(28) == 3)])[0].vmax == 1.0
    with pytest.raises(ValueError, match="vmax is -1"): plots.shared_scale([bump()], vmax=-1)


def test_images_are_never_stretched():
    dark = plots.image_grid([np.full((8, 8), 3, np.uint8), np.full((8, 8), 0.9)])
    shown = [ax.images[0] for ax in dark.axes]
    assert [(im.norm.vmin, im.norm.vmax) for im in shown] == [(0, 1), (0, 1)]
    assert np.allclose(shown[0].get_array(), 3 / 255) and np.allclose(shown[1].get_array(), 0.9)


@pytest.mark.parametrize("image, said", [
    (np.zeros((3, 8, 8)), "move the channel axis last"), (np.zeros((8, 8, 4)), "expected \\(H, W\\)"), (np.zeros((0, 8)), "expected \\(H, W\\)"),
    (np.full((8, 8), 255.0), "undo the normalisation"), (np.full((8, 8), np.nan), "nan"), (np.full((8, 8), -1.0), "-1..-1")])
def test_an_image_that_is_none_is_refused(image, said):
    with pytest.raises(ValueError, match=said): plots.image_grid([image])


def test_parts_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="images \\(2\\), titles \\(1\\)"): plots.image_grid([gray()] * 2, ["a"])
    with pytest.raises(ValueError, match="map has shape"): plots.overlay_grid([gray()], [np.zeros((7, 7))])
    with pytest.raises(ValueError, match="NaN"): plots.overlay_grid([gray()], [np.full((28, 28), np.nan)])
    with pytest.raises(ValueError, match="signed=True"): plots.overlay_grid([gray()], [bump() - 0.5])
    with pytest.raises(ValueError, match="mask has shape"): plots.image_grid([gray()], masks=[np.ones((3, 3))])
    with pytest.raises(ValueError, match="matrix has shape"): plots.confusion(np.eye(3), ["a", "b"])
    with pytest.raises(ValueError, match="counts has shape"): plots.label_table(np.eye(3), ["a", "b", "c"])


def test_masks_are_outlined_where_there_is_something_to_outline():
    masks = [bump() > 0.5, np.zeros((28, 28)), None, np.ones((28, 28))]
    figure = plots.image_grid([gray()] * 4, masks=masks)
    assert [len(ax.collections) for ax in figure.axes] == [1, 0, 0, 0]
    corner = np.zeros((28, 28), bool)
    corner[2:6, 20:26] = True
    (line,) = plots.image_grid([gray()], masks=[corner]).axes[0].collections
    points = np.concatenate([p.vertices for p in line.get_paths()])
    assert np.allclose([points[:, 0].min(), points[:, 0].max(), points[:, 1].min(), points[:, 1].max()], [19.5, 25.5, 1.5, 5.5], atol=0.2)


def test_overlays_are_outlined_in_green_on_both_pictures():
    figure = plots.overlay_grid([gray()] * 2, [bump()] * 2, masks=[bump() > 0.5, np.ones((28, 28))])
    lines = [len(ax.collections) for ax in figure.axes[:4]]
    assert lines == [1, 1, 0, 0]
    assert mpl.colors.to_hex(figure.axes[1].collections[0].get_edgecolor()[0]) == plots.GREEN.lower()
    with pytest.raises(ValueError, match="masks \\(1\\)"): plots.overlay_grid([gray()] * 2, [bump()] * 2, masks=[None])


def test_intervals_draw_every_value_and_the_levels_to_beat():
    ax = plots.intervals(["a", "b"], [dict(title="t", better="higher", mean=[0.5, None], low=[0.4, None], high=[0.7, None], best=0.9, chance=0.1)], faint=[False, True]).axes[0]
    dots = [line for line in ax.lines if line.get_marker() == "o"]
    assert dots[0].get_xydata().tolist() == [[0.5, 0.0]] and [t.get_text() for t in ax.texts] == ["not measured"]
    assert sorted(line.get_xdata()[0] for line in ax.lines if line.get_linestyle() in ("--", ":")) == [0.1, 0.9]
    low, high = ax.get_xlim()
    assert low < 0.1 and high > 0.9 and ax.get_ylim() == (1.5, -0.5)           # every level inside, the first row on top
    assert [t.get_text() for t in ax.get_yticklabels()] == ["a", "b"]
    with pytest.raises(ValueError, match="different numbers of"): plots.intervals(["a"], [dict(title="t", better="higher", mean=[1], low=[1, 2], high=[1])])


def test_matrix_writes_every_number_on_one_scale():
    ax = plots.matrix([[1, -0.001, 0.456], [-0.001, 1, float("nan")], [0.456, None, 1]], list("abc")).axes[0]
    said = {(round(t.get_position()[1]), round(t.get_position()[0])): t.get_text() for t in ax.texts}
    assert said[0, 2] == "0.46" and said[0, 1] == "0.00" and said[1, 2] == said[2, 1] == "–" and said[0, 0] == "1.00"
    assert ax.images[0].norm.vmin == -1 and ax.images[0].norm.vmax == 1
    assert "100" in {t.get_text() for t in plots.matrix(agreement(28), ["m"] * 28).axes[0].texts}
    with pytest.raises(ValueError, match="values has shape \\(2, 2\\)"): plots.matrix(np.eye(2), ["a"])
    with pytest.raises(ValueError, match="reach 3"): plots.matrix([[3.0]], ["a"])
    with pytest.raises(ValueError, match="shape"): plots.matrix(np.eye(2)[:1], ["a"])


def test_names_with_special_characters(tmp_path):
    names = ["$alpha", "a_b^{2}$", "50 % \\frac"]
    plots.save_figure(plots.confusion(np.eye(3, dtype=int), names, title="$x_"), tmp_path / "figure.png")


def test_confusion_writes_every_count_in_its_cell():
    m = np.arange(16).reshape(4, 4) * 7
    ax = plots.confusion(m, list("abcd")).axes[0]
    where = lambda t: (round(t.get_position()[1]), round(t.get_position()[0]))
    counts, shares = ({where(t): t.get_text() for t in ax.texts if ("%" in t.get_text()) == said} for said in (False, True))
    assert counts == {(i, j): str(m[i, j]) for i in range(4) for j in range(4)}
    assert shares[0, 3] == "50 %" and shares[0, 0] == "0 %" and shares[3, 3] == "28 %"
    rare = {t.get_text() for t in plots.confusion([[999, 1], [0, 5]], ["a", "b"]).axes[0].texts}
    assert {">99 %", "<1 %", "0 %", "100 %"} <= rare                                   # neither all nor nothing
    assert [t.get_text() for t in ax.get_yticklabels()] == list("abcd")


def test_wrap_never_exceeds_the_width():
    for width in (20, 60, 200):
        for text in (*PATH, *LONG, "", "a\nb\nc\nd\ne"):
            lines = plots.wrap(text, width, 9, 3)
            assert 1 <= len(lines) <= 3 and all(plots.text_width(line, 9) <= width for line in lines)


def test_best_epoch_follows_the_selection():
    assert plots.best_epoch(HISTORY) == 1 and plots.best_epoch(HISTORY, "val_auc") == 2
    assert plots.best_epoch({"epoch": [1, 2], "val_loss": ["nan", "3"]}) == 1
    assert plots.best_epoch({"epoch": [1, 2], "val_loss": [2, 2]}) == 0 and plots.best_epoch({"epoch": [1]}) is None
    marks = [line.get_label() for line in plots.curves(HISTORY, select="val_auc").axes[0].lines]
    assert "kept: epoch 3" in marks
