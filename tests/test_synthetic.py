"Synthetic images: determinism, balance, masks, markers, files, refusals."
import json

import numpy as np
import pytest

from xaimed.synthetic import FINDINGS, TASKS, class_names, draw_finding, make_images, make_labels, marker_flags, write_synthetic


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("channels", (1, 3))
@pytest.mark.parametrize("size", (16, 28, 45, 64))
def test_shapes_types_and_determinism(task, channels, size):
    made, again = (make_images(10, task=task, channels=channels, size=size, seed=7, marker_correlation=.5) for _ in range(2))
    assert made.images.shape == (10, size, size, 3)[: 3 if channels == 1 else 4] and made.images.dtype == np.uint8
    assert made.labels.shape == (10, 4 if task == "multi-label" else 1) and made.labels.dtype == np.uint8
    for part in ("images", "labels", "masks", "marker_masks"): assert np.array_equal(getattr(made, part), getattr(again, part)), part
    assert set(np.unique(made.masks)) <= {0, 255} and made.masks.shape == (10, size, size)
    assert not np.array_equal(made.images, make_images(10, task=task, channels=channels, size=size, seed=8, marker_correlation=.5).images)


@pytest.mark.parametrize("task,k", [("multi-class", k) for k in range(2, len(FINDINGS) + 1)] + [("ordinal", k) for k in range(2, 9)] + [("multi-label", k) for k in (2, 5, 10)])
def test_any_number_of_classes(task, k):
    made = make_images(2 * k, task=task, num_classes=k, size=32)
    assert len(class_names(task, k)) == k
    counts = made.labels.sum(0) if task == "multi-label" else np.bincount(made.labels[:, 0], minlength=k)
    assert len(counts) == k and counts.max() - counts.min() <= 1


def test_a_finding_is_in_the_mask_and_the_mask_in_the_image():
    made = make_images(60, size=64, distractors=0, seed=1)
    for image, mask in zip(made.images, made.masks):
        inside, outside = image[mask > 0].astype(float), image[mask == 0].astype(float)
        assert inside.mean() - outside.mean() > 50


@pytest.mark.parametrize("name", FINDINGS)
def test_every_finding_has_the_area_asked_for(name):
    for size in (28, 64):
        for angle in (.3, .9, 2.):
            assert draw_finding(name, size, area=.08, angle=angle).mean() == pytest.approx(.08, rel=.03)


def test_one_finding_per_image_unless_multi_label():
    from scipy.ndimage import label
    for task in ("multi-class", "binary", "ordinal"):
        made = make_images(60, task=task, size=64)
        assert all(label(mask)[1] == 1 for mask in made.masks)
    multi = make_images(60, task="multi-label", size=96)
    parts = np.array([label(mask)[1] for mask in multi.masks])
    assert (parts <= multi.labels.sum(1)).all() and (parts == multi.labels.sum(1)).mean() > .9 and ((parts == 0) == (multi.labels.sum(1) == 0)).all()


@pytest.mark.parametrize("correlation", (0, .3, 1))
@pytest.mark.parametrize("task", TASKS)
def test_marker_agrees_with_the_label_as_often_as_asked(task, correlation):
    rng = np.random.default_rng(0)
    labels = make_labels(4000, task, 4, rng)
    flags = marker_flags(labels, correlation, rng, task=task)
    last = len(class_names(task, 4)) - 1
    marked = labels[:, last] == 1 if task == "multi-label" else labels[:, 0] == last
    assert flags[marked].mean() - flags[~marked].mean() == pytest.approx(correlation, abs=.002)


def test_marker_stands_clear_of_findings_and_where_its_mask_says():
    made = make_images(80, seed=3, task="binary", marker_correlation=.5)
    plain = make_images(80, seed=3, task="binary")
    assert plain.marker_masks is None
    assert not ((made.marker_masks > 0) & (made.masks > 0)).any()
    assert (made.images[made.marker_masks > 0] == round(.95 * 255)).all()
    assert 0 < (made.marker_masks > 0).any((1, 2)).mean() < 1


def test_file_form_and_equal_bytes(tmp_path):
    def write(name): return write_synthetic(tmp_path / name / "set.npz", n_train=9, n_val=5, n_test=6, size=20, channels=3, task="multi-label", num_classes=3, marker_correlation=1., test_marker_correlation=0., seed=5)
    first, second = write("a"), write("b")
    for name in ("set.npz", "set_masks.npz", "set.json"): assert (first.parent / name).read_bytes() == (second.parent / name).read_bytes()
    assert sorted(p.name for p in first.parent.iterdir()) == ["set.json", "set.npz", "set_masks.npz"]
    with np.load(first) as z, np.load(first.with_name("set_masks.npz")) as m:
        for split, n in (("train", 9), ("val", 5), ("test", 6)):
            assert z[f"{split}_images"].shape == (n, 20, 20, 3) and z[f"{split}_labels"].shape == (n, 3) and z[f"{split}_labels"].dtype == np.uint8
            assert m[f"{split}_masks"].shape == m[f"{split}_marker_masks"].shape == (n, 20, 20)
    facts = json.loads(first.with_suffix(".json").read_text())
    assert facts["classes"] == ["disc", "ring", "cross"] and facts["task"] == "multi-label" and facts["settings"]["seed"] == 5


def test_nothing_is_left_when_writing_fails(tmp_path, monkeypatch):
    def full(*args, **kwargs): raise OSError(28, "No space left on device")
    monkeypatch.setattr(np, "savez", full)
    with pytest.raises(OSError): write_synthetic(tmp_path / "set.npz", n_train=4, n_val=4, n_test=4)
    assert not (tmp_path / "set.npz").exists() and not (tmp_path / "set.json").exists()


@pytest.mark.parametrize("bad,word", [(dict(size=15), "size"), (dict(channels=4), "channels"), (dict(task="x"), "task"), (dict(num_classes=1), "num_classes"), (dict(num_classes=2.5), "num_classes"),
                                      (dict(contrast=0), "contrast"), (dict(distractors=-1), "distractors"), (dict(marker_correlation=-.1), "marker_correlation"), (dict(n=0), "n is")])
def test_refusals_name_what_is_wrong(bad, word):
    with pytest.raises(ValueError, match=word): make_images(**{"n": 4, **bad})
