"Data: every source, every task kind, downloads over a bad line, and input that is wrong."
import csv
import errno
import http.server
import json
import os
import re
import shutil
import socket
import threading
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from xaimed import data as D
from xaimed.config import XaimedError, load_options, stage_state
from xaimed.synthetic import write_synthetic


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    "What tests keep unpacked does not go into the user's cache."
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))


NAMES_2D = [n for n in D.list_datasets() if not n.endswith("3d")]
NAMES_3D = [n for n in D.list_datasets() if n.endswith("3d")]


def make_arrays(name, size=28, per_class=2, seed=0):
    "Arrays of the form of a MedMNIST set, with every class in every split."
    spec, rng = D.medmnist_spec(name), np.random.default_rng(seed)
    k, arrays = len(spec.classes), {}
    for split in D.SPLITS:
        n = per_class * k
        shape = {(2, 1): (n, size, size), (2, 3): (n, size, size, 3), (3, 1): (n, size, size, size)}[spec.ndim, spec.channels]
        labels = np.arange(n)[:, None] % k if spec.task != "multi-label" else np.eye(k, dtype=int)[np.arange(n) % k]
        arrays |= {f"{split}_images": rng.integers(0, 256, shape, np.uint8), f"{split}_labels": labels.astype(np.uint8)}
    return arrays


def save(path, arrays):
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, **arrays)
    return path


@pytest.fixture
def published(monkeypatch):
    "Let a made file count as the published one."
    def publish(name, path, size=28):
        end = "" if size == 28 else f"_{size}"
        monkeypatch.setitem(D._info()[name], f"MD5{end}", D.md5_of(path))
        return path
    return publish


# every set and task kind

@pytest.mark.parametrize("size", (28, 64))
@pytest.mark.parametrize("name", NAMES_2D)
def test_every_2d_set_by_name(name, size, tmp_path, published):
    arrays = make_arrays(name, size)
    published(name, save(tmp_path / D.file_name(name, size), arrays), size)
    spec = D.medmnist_spec(name)
    loaders = D.build_medmnist_dataloaders(name, size=size, data_dir=tmp_path, batch_size=5)
    for split, loader in loaders.items():
        x, y = next(iter(loader))
        assert x.shape == (5 if len(loader.dataset) >= 5 else len(loader.dataset), 3, size, size)[:4] and x.dtype == torch.float32 and -1 <= x.min() and x.max() <= 1
        if spec.task == "multi-label": assert y.dtype == torch.float32 and y.shape[1:] == (14,)
        else: assert y.dtype == torch.int64 and y.ndim == 1
        stored = arrays[f"{split}_labels"] if spec.task == "multi-label" else arrays[f"{split}_labels"][:, 0]
        assert np.array_equal(loader.dataset.labels.numpy(), stored)
        pixels = loader.dataset.images.permute(0, 2, 3, 1).numpy()
        assert np.array_equal(pixels if spec.channels == 3 else pixels[..., 0], arrays[f"{split}_images"])


@pytest.mark.parametrize("name", NAMES_3D)
def test_every_3d_set_loads(name, tmp_path, published):
    published(name, save(tmp_path / f"{name}.npz", make_arrays(name, 10)))
    loaded = D.load_medmnist_dataset(name, "val", data_dir=tmp_path, transform=D.build_transforms(28))
    assert loaded.images.shape[1:] == (1, 10, 10, 10) and loaded.__getitems__([0, 1])[0].shape == (2, 1, 10, 10, 10)


@pytest.mark.parametrize("name", D.list_datasets())
def test_card_of_every_set(name, tmp_path, published):
    published(name, save(tmp_path / f"{name}.npz", make_arrays(name, 8)))
    card = D.make_card(D.find_data(name, data_dir=tmp_path))
    assert card["counts"]["test"]["per_class"] == [2] * len(card["classes"]) and card["file"]["official"] is True
    assert card["licence"] and card["source"] and card["citation"] and card["known_defects"] and card["flips"] in ("none", "horizontal", "all")


def test_greyscale_stays_one_channel_when_asked(tmp_path, published):
    published("breastmnist", save(tmp_path / "breastmnist.npz", make_arrays("breastmnist")))
    x, _ = next(iter(D.build_medmnist_dataloaders("breastmnist", data_dir=tmp_path, as_rgb=False)["val"]))
    assert x.shape[1] == 1


def test_only_the_split_asked_for_is_unpacked(tmp_path):
    path = save(tmp_path / "mine.npz", make_arrays("pathmnist"))
    blob = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as z: start = z.getinfo("test_images.npy").header_offset + 400
    blob[start:start + 50] = b"x" * 50                     # the CRC of the test images is now wrong
    path.write_bytes(blob)
    assert len(D.load_medmnist_dataset(path, "train")) == 18
    with pytest.raises(D.DataError, match="mine.npz"): D.load_medmnist_dataset(path, "test")


def test_the_table_is_medmnists_own():
    from medmnist import INFO
    assert D._info() == INFO and D.list_datasets() == list(INFO)


# names and refusals

def test_an_unknown_name_lists_the_near_ones():
    with pytest.raises(ValueError, match="pathmnist"): D.load_medmnist_dataset("pathmnits", "train")
    with pytest.raises(ValueError, match="breastmnist"): D.download_medmnist("brestmnist")
    with pytest.raises(ValueError, match="train"): D.load_arrays(D.DataFile(None, None, "npz", None), "tran")


def test_a_size_that_is_not_published_says_which_are():
    with pytest.raises(ValueError, match="28, 64, 128, 224"): D.file_name("pathmnist", 100)
    with pytest.raises(ValueError, match="28, 64"): D.file_name("adrenalmnist3d", 224)


def test_a_missing_file_says_how_to_get_it(tmp_path):
    with pytest.raises(D.DataError, match="download-data --dataset breastmnist"): D.load_medmnist_dataset("breastmnist", "train", data_dir=tmp_path)
    with pytest.raises(D.DataError, match="no file or folder"): D.load_medmnist_dataset(tmp_path / "nothing.npz", "train")
    assert issubclass(D.DataError, XaimedError)


def test_a_wrong_md5_is_refused_and_the_file_kept(tmp_path):
    path = save(tmp_path / "breastmnist.npz", make_arrays("breastmnist"))
    for call in (lambda: D.load_medmnist_dataset("breastmnist", "train", data_dir=tmp_path), lambda: D.download_medmnist("breastmnist", data_dir=tmp_path)):
        with pytest.raises(D.DataError, match="750601b1f35ba3300ea97c75c52ff8f6") as e: call()
        assert D.md5_of(path) in str(e.value) and "data.verify=form" in str(e.value) and path.exists()
    found = D.find_data("breastmnist", data_dir=tmp_path, verify="form")
    assert found.official is False and "not the published file" in found.spec.title and D.make_card(found)["file"]["official"] is False


@pytest.mark.parametrize("keep", (.3, .9, .999))
def test_a_truncated_file_is_named(tmp_path, keep):
    path = save(tmp_path / "breastmnist.npz", make_arrays("breastmnist"))
    blob = path.read_bytes()
    path.write_bytes(blob[: int(keep * len(blob))])
    for dataset, where in (("breastmnist", dict(data_dir=tmp_path)), ("breastmnist", dict(data_dir=tmp_path, verify="form")), (path, {})):
        with pytest.raises(D.DataError, match="breastmnist.npz is not a whole .npz"): D.load_medmnist_dataset(dataset, "train", **where)
    assert path.exists()


def test_what_is_no_npz_at_all(tmp_path):
    for name, blob in (("text.npz", b"hello"), ("empty.npz", b""), ("pickle.npz", b"\x80\x04K\x01.")):
        (tmp_path / name).write_bytes(blob)
        with pytest.raises(D.DataError, match=name): D.load_medmnist_dataset(tmp_path / name, "train")


def spoil(key, change):
    def apply(arrays): return {**arrays, key: change(arrays[key])}
    return apply


@pytest.mark.parametrize("split", D.SPLITS)
@pytest.mark.parametrize("part,change,words", [
    ("images", lambda a: a.astype(np.int32), "int32.*uint8"),
    ("images", lambda a: a / 255, "float64.*uint8"),
    ("images", lambda a: np.where(np.arange(a.size).reshape(a.shape) == 3, np.nan, a / 255), "NaN"),
    ("images", lambda a: a[..., 0, 0], "shape"),
    ("images", lambda a: a[:-1], "rows for|images"),
    ("labels", lambda a: a[:-1], "rows for"),
    ("labels", lambda a: a + 1, "0 to 2|names 3 classes"),
    ("labels", lambda a: np.minimum(a, 1), "no image of 'c'"),
    ("labels", lambda a: a + .5, "whole numbers"),
    ("labels", lambda a: np.where(a == 2, np.nan, a), "NaN"),
    ("labels", lambda a: a.astype(np.int64) - 1, "-1|0 to 2"),
    ("labels", lambda a: np.array([["x"]] * len(a)), "whole numbers"),
    ("labels", lambda a: a[:, :, None], "shape"),
])
def test_arrays_that_are_wrong(tmp_path, split, part, change, words):
    arrays = make_arrays("organamnist")
    arrays = {k: v[:12] % 3 if k.endswith("labels") else v[:12] for k, v in arrays.items()}
    path = save(tmp_path / "mine.npz", spoil(f"{split}_{part}", change)(arrays))
    (tmp_path / "mine.json").write_text(json.dumps({"classes": ["a", "b", "c"]}))
    with pytest.raises(D.DataError) as e: D.load_medmnist_dataset(path, split), D.make_card(D.find_data(path))
    assert re.search(words, str(e.value)) and "mine" in str(e.value)


def test_object_arrays_and_missing_keys(tmp_path):
    arrays = make_arrays("breastmnist")
    path = tmp_path / "mine.npz"
    np.savez(path, **{**arrays, "train_labels": np.array([{}] * 4, dtype=object)})
    with pytest.raises(D.DataError, match="mine.npz"): D.load_medmnist_dataset(path, "train")
    save(path, {k: v for k, v in arrays.items() if k != "val_labels"})
    with pytest.raises(D.DataError, match="val_labels"): D.load_medmnist_dataset(path, "train")
    save(path, {k: v for k, v in arrays.items() if k != "test_images"})
    with pytest.raises(D.DataError, match="test_images"): D.load_medmnist_dataset(path, "train")


def test_multi_label_needs_both_answers(tmp_path):
    arrays = make_arrays("chestmnist")
    for change, words in ((lambda a: np.where(np.arange(14) == 3, 0, a), "no image of"), (lambda a: np.where(np.arange(14) == 3, 1, a), "every image has"), (lambda a: a * 2, "0 to 1"), (lambda a: a[:, :1], "shape|columns|expected")):
        path = save(tmp_path / "mine.npz", spoil("train_labels", lambda a: change(a).astype(np.uint8))(arrays))
        with pytest.raises(D.DataError, match=words): D.load_medmnist_dataset(path, "train"), D.load_medmnist_dataset(path, "val")


# one's own files

def test_a_file_named_like_a_medmnist_file_gets_its_facts(tmp_path):
    path = save(tmp_path / "pneumoniamnist_64.npz", make_arrays("pneumoniamnist", 64))
    found = D.find_data(path)
    assert found.spec.classes == ("normal", "pneumonia") and found.official is False and found.spec.flips == "none" and "not the published" in found.spec.title
    other = save(tmp_path / "pathmnist.npz", make_arrays("breastmnist"))       # grey: not PathMNIST's form
    assert D.find_data(other).spec.licence == "not stated"


def test_a_last_axis_of_one_is_gray(tmp_path):
    arrays = make_arrays("breastmnist")
    path = save(tmp_path / "mine.npz", {k: v[..., None] if k.endswith("images") else v for k, v in arrays.items()})
    spec = D.find_data(path).spec
    loaded = D.load_medmnist_dataset(path, "train")
    assert (spec.ndim, spec.channels) == (2, 1) and np.array_equal(loaded.images[:, 0].numpy(), arrays["train_images"]) and D.make_card(D.find_data(path))["image_shape"] == [28, 28]


@pytest.mark.parametrize("channels", (1, 3))
def test_channels_first_are_refused_with_the_mend(tmp_path, channels):
    arrays = make_arrays("breastmnist")
    path = save(tmp_path / "mine.npz", {k: np.repeat(v[:, None], channels, 1) if k.endswith("images") else v for k, v in arrays.items()})
    with pytest.raises(D.DataError, match="first.*moveaxis"): D.find_data(path)


@pytest.mark.parametrize("k", (2, 3))
def test_one_hot_labels_are_not_guessed(tmp_path, k):
    arrays = make_arrays("breastmnist", per_class=3)
    path = save(tmp_path / "mine.npz", {key: np.eye(k, dtype=np.uint8)[np.arange(6) % k] if key.endswith("labels") else v for key, v in arrays.items()})
    with pytest.raises(D.DataError, match="exactly one 1.*argmax.*mine.json"): D.find_data(path)
    (tmp_path / "mine.json").write_text(json.dumps({"task": "multi-label"}))
    assert D.load_medmnist_dataset(path, "train").labels.shape == (6, k)


@pytest.mark.parametrize("facts,words", [({"clases": ["a", "b"]}, "classes"), ({"classes": ["a"]}, "names 1 classes"), ({"task": "clasification"}, "task"), ({"flips": "vertical"}, "flips"),
                                         ({"classes": {"0": "a", "2": "b"}}, "keys"), ([1], "object")])
def test_a_json_that_is_wrong(tmp_path, facts, words):
    path = save(tmp_path / "mine.npz", make_arrays("breastmnist"))
    (tmp_path / "mine.json").write_text(json.dumps(facts))
    with pytest.raises(D.DataError, match=words): D.dataset_spec(path)
    (tmp_path / "mine.json").write_text("{")
    with pytest.raises(D.DataError, match="not valid JSON"): D.dataset_spec(path)


@pytest.fixture
def pictures(tmp_path):
    rng = np.random.default_rng(0)
    for name, n in (("benign", 20), ("malignant", 40)):
        for i in range(n):
            path = tmp_path / "pictures" / name / f"{i:02d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 256, (30 + i % 3, 40), np.uint8)).save(path)
    (tmp_path / "pictures" / "benign" / "notes.txt").write_text("not an image")
    return tmp_path / "pictures"


def test_a_folder_is_split_reproducibly_in_equal_shares(pictures):
    splits = {s: D.load_medmnist_dataset(pictures, s, size=28, seed=1) for s in D.SPLITS}
    assert {s: d.labels.bincount().tolist() for s, d in splits.items()} == {"train": [14, 28], "val": [3, 6], "test": [3, 6]}
    assert torch.equal(splits["train"].images, D.load_medmnist_dataset(pictures, "train", size=28, seed=1).images)
    _, one = D.folder_files(pictures, seed=1)
    _, two = D.folder_files(pictures, seed=2)
    assert one != two and len({f for pairs in one.values() for f, _ in pairs}) == 60
    assert splits["train"].images.shape[1:] == (1, 28, 28) and splits["train"].spec.task == "binary"


def test_the_card_knows_the_images_of_a_linked_class_folder(pictures, tmp_path):
    "They are read through the link, so the checksum covers them; what no split uses is left out."
    (pictures / "benign").rename(tmp_path / "elsewhere")
    (pictures / "benign").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    def facts(): return D.make_card(D.find_data(pictures))["file"]
    before = facts()
    assert before["bytes"] == sum(p.stat().st_size for p in [*(tmp_path / "elsewhere").glob("*.png"), *(pictures / "malignant").glob("*.png")])
    (pictures / "cover.png").write_bytes(b"of no class")
    assert facts() == before
    shutil.copy(pictures / "malignant" / "00.png", tmp_path / "elsewhere" / "00.png")
    assert facts()["sha256"] != before["sha256"]


def test_a_folder_with_its_own_splits(pictures, tmp_path):
    for split in ("train", "valid", "test"): shutil.copytree(pictures, tmp_path / "split" / split)
    _, files = D.folder_files(tmp_path / "split")
    assert {s: len(p) for s, p in files.items()} == {"train": 60, "val": 60, "test": 60}
    shutil.rmtree(tmp_path / "split" / "test" / "benign")
    (tmp_path / "split" / "test" / "other").mkdir()
    shutil.copy(pictures / "benign" / "00.png", tmp_path / "split" / "test" / "other")
    with pytest.raises(D.DataError, match="other"): D.folder_files(tmp_path / "split")
    shutil.rmtree(tmp_path / "split" / "test")
    with pytest.raises(D.DataError, match="none for test"): D.folder_files(tmp_path / "split")


def test_broken_images_and_folders_are_named(pictures, tmp_path):
    (pictures / "benign" / "05.png").write_bytes(b"no png")
    with pytest.raises(D.DataError, match="05.png"): [D.load_medmnist_dataset(pictures, s, size=28) for s in D.SPLITS]
    whole = (pictures / "benign" / "06.png").read_bytes()
    (pictures / "benign" / "05.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(D.DataError, match="05.png"): [D.load_medmnist_dataset(pictures, s, size=28) for s in D.SPLITS]
    for path in list((pictures / "benign").glob("*.png"))[4:]: path.unlink()
    with pytest.raises(D.DataError, match="'benign' \\(4\\)"): D.folder_files(pictures)
    for path in (pictures / "benign").glob("*.png"): path.unlink()
    with pytest.raises(D.DataError, match="benign"): D.folder_files(pictures)
    (tmp_path / "bare").mkdir()
    with pytest.raises(D.DataError, match="0 class folders"): D.dataset_spec(tmp_path / "bare")


def test_colour_and_16_bit_images(pictures):
    Image.fromarray(np.full((30, 30), 40_000, np.uint16)).save(pictures / "benign" / "00.png")
    assert D.folder_spec(pictures).channels == 1 and D.read_image(pictures / "benign" / "00.png", 28, 1).max() == 40_000 >> 8
    Image.new("RGBA", (30, 30), (10, 20, 30, 255)).save(pictures / "benign" / "00.png")
    assert D.folder_spec(pictures).channels == 3 and D.read_image(pictures / "benign" / "00.png", 28, 3)[0, 0].tolist() == [10, 20, 30]


def test_what_reading_a_folder_loses_is_told(pictures):
    for path in pictures.rglob("*.png"): Image.open(path).resize((30, 30)).save(path)
    assert D.folder_spec(pictures).known_defects == ()
    (pictures / "dataset.json").write_text('{"known_defects": ["Two scanners."]}')
    assert D.folder_spec(pictures).known_defects == ("Two scanners.",)
    n, benign = len(list(pictures.rglob("*.png"))), pictures / "benign"
    Image.fromarray(np.full((30, 75), 4095, np.uint16)).save(benign / "00.png")
    Image.fromarray(np.full((31, 30), 9, np.uint8)).save(benign / "01.png")             # as good as square
    Image.fromarray(np.full((60, 30, 4), 9, np.uint8)).save(benign / "02.png")
    Image.new("L", (30, 30)).save(benign / "03.png", format="TIFF", save_all=True, append_images=[Image.new("L", (30, 30))])
    assert D.folder_spec(pictures).known_defects == ("Two scanners.",
        f"Squashed to a square: 2 of {n} images, up to 2.5 times as long as wide. Crop or pad them first where shapes tell something.",
        f"Cut to 8 bits: 1 of {n} images, which have 16 for each value. Rescale them first where values fill a part of the range only, as those of 12 bits do.",
        f"First page only: 1 of {n} files, which hold several pages or frames.", f"Transparency dropped: 1 of {n} images.",
        f"Grey beside colour: {n - 1} of {n} images are grey, the others in colour. Where that goes with the class, it is a shortcut.")


def test_what_is_lost_in_every_split_is_told(tmp_path):
    for split, shape in (("train", (20, 20)), ("val", (20, 20)), ("test", (20, 60))):
        for name in ("a", "b"):
            (tmp_path / split / name).mkdir(parents=True)
            Image.fromarray(np.zeros(shape, np.uint8)).save(tmp_path / split / name / "0.png")
    assert D.folder_spec(tmp_path).known_defects == ("Squashed to a square: 2 of 6 images, up to 3.0 times as long as wide. Crop or pad them first where shapes tell something.",)


def test_grey_beside_colour_is_told(pictures):
    n = len(list(pictures.rglob("*.png")))
    for path in pictures.rglob("*.png"): Image.open(path).resize((30, 30)).save(path)
    Image.new("RGB", (30, 30)).save(pictures / "benign" / "00.png")
    spec = D.folder_spec(pictures)
    assert spec.channels == 3 and spec.known_defects == (f"Grey beside colour: {n - 1} of {n} images are grey, the others in colour. Where that goes with the class, it is a shortcut.",)


def test_a_folder_run_says_which_file_a_number_is(pictures, tmp_path):
    options = load_options("", dataset=str(pictures), run="t", overrides={"artifacts_dir": str(tmp_path / "out"), "data.max_train": 12, "data.seed": 3})
    folder = D.run_data(options)
    with open(folder / "files.csv", newline="") as f: rows = {(r["split"], int(r["index"])): r for r in csv.DictReader(f)}
    assert len(rows) == len(list(pictures.rglob("*.png")))
    for split in D.SPLITS:
        data = D.load_split(options, split)
        for i, image, label in zip(data.index.tolist(), data.images, data.labels):
            row = rows[split, i]
            assert int(row["label"]) == int(label) and Path(row["file"]).parts[0] == row["class"] == data.spec.classes[int(label)]
            assert np.array_equal(D.read_image(pictures / row["file"], options.data.size, 1), np.asarray(image).squeeze())
    assert json.loads((folder / "audit.json").read_text())["words"][-1].endswith("files.csv of the data stage.")


def test_16_bits_of_colour_are_told(pictures, tmp_path):
    "Pillow opens such a PNG as plain RGB; only the way it unpacks the pixels tells."
    import struct
    import zlib
    def chunk(kind, data): return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    rows = b"".join(b"\0" + struct.pack(">90H", *[4095] * 90) for _ in range(30))
    (pictures / "benign" / "00.png").write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 30, 30, 16, 2, 0, 0, 0)) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b""))
    assert D.read_image(pictures / "benign" / "00.png", 30, 3).max() == 4095 >> 8
    assert any(x.startswith("Cut to 8 bits: 1 of ") for x in D.folder_spec(pictures).known_defects)


def test_a_photograph_is_turned_as_its_camera_says(pictures):
    "Every viewer turns it; torchvision and MONAI read it lying on its side."
    upright = np.zeros((40, 20), np.uint8)
    upright[:20], upright[:20, :10] = 255, 128                                         # no turn and no mirror leaves it as it is
    T = Image.Transpose
    for k, turn in {2: T.FLIP_LEFT_RIGHT, 3: T.ROTATE_180, 4: T.FLIP_TOP_BOTTOM, 5: T.TRANSPOSE, 6: T.ROTATE_90, 7: T.TRANSVERSE, 8: T.ROTATE_270}.items():
        for kind, how in (("png", {}), ("jpg", {"quality": 100}), ("webp", {"lossless": True}), ("tif", {}), ("tif", {"compression": "tiff_lzw"})):
            (exif := Image.Exif())[0x0112] = k
            lying = Image.fromarray(upright).transpose(turn)
            lying.save(path := pictures / f"photo.{kind}", exif=exif, **how)
            seen = D.read_image(path, 20, 1).astype(int)
            assert abs(seen[:8, 2:8] - 128).max() < 9 and seen[:8, 12:].min() > 246 and seen[12:].max() < 9, (k, kind, how)


@pytest.mark.filterwarnings("error")
def test_broken_exif_costs_no_picture(pictures):
    "What a camera wrote beside the pixels may be anything; the pixels are whole."
    random = np.random.default_rng(0)
    (exif := Image.Exif())[0x0112] = 6
    exif[0x010F], exif[0x8769] = "Camera", {0x9003: "2026:11:30", 0x829A: 0.01}
    whole = exif.tobytes()
    for trial in range(60):
        bad = bytearray(whole)
        for i in random.integers(6, len(bad), 1 + trial % 6): bad[i] = random.integers(256)
        for kind in ("png", "jpg", "webp"):
            Image.fromarray(np.full((40, 20), 90, np.uint8)).save(path := pictures / f"photo.{kind}", exif=bytes(bad))
            assert abs(D.read_image(path, 20, 1).astype(int) - 90).max() < 3


# masks

def test_masks_beside_a_file(tmp_path):
    path, rng = save(tmp_path / "mine.npz", make_arrays("breastmnist")), np.random.default_rng(0)
    masks = {f"{s}_masks": rng.integers(0, 256, (4, 28, 28), np.uint8) for s in D.SPLITS}
    masks["train_masks"][1] = 127
    masks["train_kept_fraction"] = np.array([1, 1, .95, .94], np.float32)
    save(tmp_path / "mine_masks.npz", masks)
    train = D.load_medmnist_dataset(path, "train")
    assert np.array_equal(train.masks.numpy(), masks["train_masks"] >= 128) and train.mask_valid.tolist() == [True, False, True, False]
    assert D.load_medmnist_dataset(path, "test").mask_valid.all() and D.make_card(D.find_data(path))["masks"] is True
    assert train.take(2, seed=0).masks.shape == (2, 28, 28)
    save(tmp_path / "mine_masks.npz", {**masks, "train_masks": masks["train_masks"][:3]})
    with pytest.raises(D.DataError, match="mine_masks.npz"): D.load_medmnist_dataset(path, "train")


@pytest.mark.parametrize("write", (lambda m: m, lambda m: m.astype(np.uint8), lambda m: m.astype(np.float32), lambda m: m.astype(np.int64) * 255, lambda m: m[..., None].astype(np.uint8) * 200))
def test_masks_of_every_usual_type_are_the_same(tmp_path, write):
    path, inside = save(tmp_path / "mine.npz", make_arrays("breastmnist")), np.zeros((4, 28, 28), bool)
    inside[1:, 3:9, 5:8] = True
    save(tmp_path / "mine_masks.npz", {f"{s}_masks": write(inside) for s in D.SPLITS})
    loaded = D.load_medmnist_dataset(path, "val")
    assert np.array_equal(loaded.masks.numpy(), inside) and loaded.mask_valid.tolist() == [False, True, True, True]


@pytest.mark.parametrize("write,words", [
    (lambda m: m * np.uint8(3), "numbers from 0 to 3, expected bool"), (lambda m: m * np.int16(256), "0 to 256"), (lambda m: m * np.int8(-1), "from -1 to 0"),
    (lambda m: m * .4, "fractions or NaN"), (lambda m: np.where(m, np.nan, 0), "fractions or NaN"), (lambda m: m.astype("U5"), "type <U5"), (lambda m: m & False, "no mask has a pixel inside"),
])
def test_masks_that_would_be_empty_or_wrong(tmp_path, write, words):
    path, inside = save(tmp_path / "mine.npz", make_arrays("breastmnist")), np.zeros((4, 28, 28), bool)
    inside[:, 3:9, 5:8] = True
    save(tmp_path / "mine_masks.npz", {f"{s}_masks": write(inside) for s in D.SPLITS})
    with pytest.raises(D.DataError, match=words) as e: D.load_medmnist_dataset(path, "train")
    assert "mine_masks.npz" in str(e.value)


def test_a_split_alone_may_have_no_masks(tmp_path):
    path, inside = save(tmp_path / "mine.npz", make_arrays("breastmnist")), np.zeros((4, 28, 28), bool)
    save(tmp_path / "mine_masks.npz", {"train_masks": inside, "val_masks": inside, "test_masks": ~inside})
    assert not D.load_medmnist_dataset(path, "train").mask_valid.any() and D.load_medmnist_dataset(path, "test").mask_valid.all()


# the stage

@pytest.mark.parametrize("name", ("mine.json", "mine_masks.npz"))
def test_a_file_that_appears_beside_makes_the_stage_stale(tmp_path, name):
    path = save(tmp_path / "mine.npz", make_arrays("breastmnist"))
    options = load_options("", dataset=str(path), run="t", overrides={"artifacts_dir": str(tmp_path / "out")})
    D.run_data(options)
    assert stage_state(options, "data")[0]
    if name == "mine.json": (tmp_path / name).write_text(json.dumps({"classes": ["benign", "malignant"]}))
    else: save(tmp_path / name, {f"{s}_masks": np.ones((4, 28, 28), bool) for s in D.SPLITS})
    assert stage_state(options, "data") == (False, f"{name} changed")
    card = json.loads((D.run_data(options) / "card.json").read_text())
    assert card["classes"] == (["benign", "malignant"] if name == "mine.json" else ["class 0", "class 1"]) and card["masks"] is (name != "mine.json")
    assert stage_state(options, "data")[0]
    (tmp_path / name).unlink()
    assert not stage_state(options, "data")[0]


def test_a_file_edited_while_the_stage_reads_is_noticed(pictures, tmp_path, monkeypatch):
    "At the first look at the headers, and at the audit: what the card says is either of the file as it is now, or out of date."
    names = pictures / "dataset.json"
    for moment in ("_look_at_headers", "write_audit"):
        names.write_text(json.dumps({"title": "Before"}))
        options = load_options("", dataset=str(pictures), run=moment.strip("_"), overrides={"artifacts_dir": str(tmp_path / "out"), "data.seed": 1})
        once, real = [], getattr(D, moment)
        def edited(*given, **how):
            if not once: names.write_text(json.dumps({"title": "After"}))
            once.append(1)
            return real(*given, **how)
        with monkeypatch.context() as meanwhile:
            meanwhile.setattr(D, moment, edited)
            card = json.loads((D.run_data(options) / "card.json").read_text())
        assert once and (card["title"] == "After") == stage_state(options, "data")[0]


# synthetic, by options

def test_synthetic_by_options(tmp_path):
    options = load_options("", overrides={"data.dataset": "synthetic", "data.data_dir": str(tmp_path), "data.size": 20, "synthetic.n_train": 12, "synthetic.n_val": 8, "synthetic.n_test": 8, "synthetic.marker_correlation": 1.,
                                          "data.max_train": 6, "artifacts_dir": str(tmp_path / "out"), "run": "t"})
    train = D.load_split(options, "train")
    assert len(train) == 6 and train.spec.name == "synthetic" and train.masks.shape == (6, 20, 20) and train.marker_masks is not None and train.index.max() > 5
    assert len(list((tmp_path / "synthetic").glob("*.npz"))) == 2
    folder = D.run_data(options)
    card = json.loads((folder / "card.json").read_text())
    assert card["counts"]["train"]["total"] == 12 and card["masks"] and card["name"] == "synthetic" and (folder / "samples.png").stat().st_size > 1000
    assert D.run_data(options) == folder


def test_synthetic_where_data_dir_cannot_be_written(tmp_path, monkeypatch):
    (tmp_path / "a_file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    found = D.find_data("synthetic", data_dir=tmp_path / "a_file", synthetic=dict(n_train=8, n_val=8, n_test=8))
    assert found.path.is_relative_to(tmp_path / "cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "a_file"))
    with pytest.raises(D.DataError, match="data.data_dir"): D.find_data("synthetic", data_dir=tmp_path / "a_file", synthetic=dict(n_train=8, n_val=8, n_test=12))


# transform, augmentation, loaders

@pytest.mark.parametrize("channels", (1, 3))
@pytest.mark.parametrize("rgb", (True, False))
@pytest.mark.parametrize("stored,size", ((28, 28), (28, 64), (64, 28), (50, 33)))
def test_the_transform_is_the_same_whichever_way(channels, rgb, stored, size):
    batch = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, channels, stored, stored), np.uint8))
    t = D.build_transforms(size, rgb=rgb, mean=.4, std=.3)
    whole = t(batch)
    assert whole.shape == (3, 3 if rgb else 1, size, size)
    for i in range(3):
        array = batch[i].permute(1, 2, 0).numpy() if channels == 3 else batch[i, 0].numpy()
        for one in (batch[i], Image.fromarray(array), array, batch[i].float() / 255, *([batch[i, 0]] if channels == 1 else [])):
            assert torch.allclose(t(one), whole[i], atol=2e-5)


@pytest.mark.parametrize("name", ("ResNet18_Weights.IMAGENET1K_V1", "ResNet50_Weights.IMAGENET1K_V2"))
def test_a_preset_at_its_own_size_is_the_preset(name):
    import torchvision
    preset = torchvision.models.get_weight(name).transforms()
    for shape in ((2, 3, 224, 224), (1, 3, 300, 260)):
        batch = torch.from_numpy(np.random.default_rng(0).integers(0, 256, shape, np.uint8))
        assert torch.equal(D.build_transforms(224, preset=preset)(batch), preset(batch))
    image = Image.fromarray(batch[0].permute(1, 2, 0).numpy())
    assert (D.build_transforms(224, preset=preset)(image) - preset(image)).abs().max() < 2.1 / 255 / .22
    small = D.build_transforms(28, preset=preset)(batch)
    assert small.shape == (1, 3, 28, 28) and D.build_transforms(28, preset=preset, rgb=False)(batch).shape == (1, 1, 28, 28)


def test_transform_refusals():
    t = D.build_transforms(28)
    for bad in (torch.zeros(2, 28, 28), torch.zeros(1, 2, 28, 28), torch.zeros(5)):
        with pytest.raises(ValueError, match="shape"): t(bad)
    for bad in (dict(image_size=4), dict(std=0)):
        with pytest.raises(ValueError): D.build_transforms(**bad)


@pytest.mark.parametrize("shape", ((6, 3, 28, 28), (6, 1, 32, 20), (4, 1, 12, 12, 12)))
def test_augmentation(shape):
    x = torch.rand(shape, generator=torch.Generator().manual_seed(0)) * 2 - 1
    still = dict(shift=0, rotate=0, scale=0, brightness=0, contrast=0)
    assert torch.allclose(D.augment_batch(x, **still), x, atol=1e-5)
    for flips, allowed in (("none", {(0, 0)}), ("horizontal", {(0, 0), (0, 1)}), ("all", {(0, 0), (0, 1), (1, 0), (1, 1)})):
        seen, generator = set(), torch.Generator().manual_seed(1)
        for _ in range(8):
            for out, inp in zip(D.augment_batch(x, flips=flips, generator=generator, **still), x):
                kinds = [(v, h) for v in (0, 1) for h in (0, 1) if torch.allclose(out, inp.flip([d for d, on in ((-2, v), (-1, h)) if on]), atol=1e-4)]
                assert len(kinds) == 1
                seen.add(kinds[0])
        assert seen == allowed, flips
    assert torch.equal(*(D.augment_batch(x, flips="all", generator=torch.Generator().manual_seed(2)) for _ in range(2)))
    with pytest.raises(ValueError, match="horizontal"): D.augment_batch(x, flips="horizontl")


def test_loader_workers_give_the_same_batches(tmp_path):
    path = save(tmp_path / "mine.npz", make_arrays("bloodmnist"))
    one, two = (list(D.build_medmnist_dataloaders(path, batch_size=5, seed=3, num_workers=w)["train"]) for w in (0, 1))
    assert all(torch.equal(a[0], b[0]) and torch.equal(a[1], b[1]) for a, b in zip(one, two)) and len(one) == len(two) == 4


def epochs_of(path, num_workers, *, n=3, state=None, seed=3):
    "Labels and images of n epochs, and the state of the order's generator after each."
    loader = D.build_medmnist_dataloaders(path, batch_size=5, seed=seed, num_workers=num_workers)["train"]
    if state is not None: loader.generator.set_state(state)
    found = []
    for _ in range(n):
        x, y = (torch.cat(part) for part in zip(*loader))
        found.append((x, y, loader.generator.get_state()))
    return found


def test_every_epoch_has_the_same_order_with_any_number_of_workers_and_goes_on_from_its_state(tmp_path):
    path = save(tmp_path / "mine.npz", make_arrays("bloodmnist"))
    torch.manual_seed(0)
    alone, one, two = (epochs_of(path, w) for w in (0, 1, 2))
    for other in (one, two):
        for a, b in zip(alone, other): assert all(map(torch.equal, a, b))
    assert not any(torch.equal(a[0], b[0]) for a, b in ((alone[0], alone[1]), (alone[1], alone[2])))     # three different orders
    for w in (0, 1):
        again = epochs_of(path, w, n=2, state=one[0][2], seed=99)                                         # resumed after the first epoch
        for a, b in zip(again, alone[1:]): assert all(map(torch.equal, a, b))


@pytest.mark.parametrize("num_workers", (0, 1))
def test_an_epoch_that_is_left_early_has_drawn_what_a_whole_one_draws(tmp_path, num_workers):
    path = save(tmp_path / "mine.npz", make_arrays("bloodmnist"))
    loader = D.build_medmnist_dataloaders(path, batch_size=1, seed=3, num_workers=num_workers)["train"]
    assert len(loader) > 8 and len(next(iter(loader))[0]) == 1
    assert torch.equal(loader.generator.get_state(), epochs_of(path, 0, n=1)[0][2])


def test_augmentation_is_drawn_per_image_and_by_seed_alone():
    one = torch.rand((1, 3, 20, 20), generator=torch.Generator().manual_seed(0)) * 2 - 1
    def drawn(seed): return D.augment_batch(one.repeat(16, 1, 1, 1), flips="all", generator=torch.Generator().manual_seed(seed))
    first = drawn(3)
    assert len({tuple(x.flatten().tolist()) for x in first}) == 16                    # sixteen copies of one image, sixteen pictures
    assert torch.equal(first, drawn(3)) and not torch.equal(first, drawn(4))
    torch.manual_seed(99)
    assert torch.equal(first, drawn(3)) and not any(torch.equal(a, b) for a, b in zip(first, drawn(4)))   # torch's own generator plays no part
    state = torch.random.get_rng_state()
    drawn(3)
    assert torch.equal(state, torch.random.get_rng_state())


@pytest.mark.parametrize("free,share,kept", ((1000, .5, False), (10**9, .5, True), (10**9, 0., False), (None, 1., False)))
def test_a_split_is_kept_on_the_device_when_it_takes_its_share_at_most(tmp_path, monkeypatch, free, share, kept):
    data = D.load_medmnist_dataset(save(tmp_path / "mine.npz", make_arrays("bloodmnist")), "train", transform=D.build_transforms(28))
    monkeypatch.setattr(D, "free_memory", lambda device: free)
    loader = D.make_loader(data, batch_size=4, device="meta", device_share=share)     # a device that holds shapes and no values
    assert loader.dataset.images.device.type == ("meta" if kept else "cpu")
    if not kept: assert next(iter(loader))[0].device.type == "meta"                     # streamed: sent as bytes, transformed there


def test_the_share_counts_masks_and_its_edge(tmp_path, monkeypatch):
    path = save(tmp_path / "mine.npz", make_arrays("breastmnist"))
    bare = D.load_medmnist_dataset(path, "train")
    save(tmp_path / "mine_masks.npz", {f"{s}_masks": np.ones((4, 28, 28), bool) for s in D.SPLITS})
    data = D.load_medmnist_dataset(path, "train")
    assert data.n_bytes == bare.n_bytes + 4 * 28 * 28 + 4
    for free, on in ((2 * data.n_bytes, True), (2 * data.n_bytes - 1, False)):
        monkeypatch.setattr(D, "free_memory", lambda device: free)
        assert D.belongs_on(data.n_bytes, "cuda", .5) is on
    with pytest.raises(ValueError, match="device_share is 1.5"): D.belongs_on(1, "cpu", 1.5)


def test_the_options_share_reaches_the_loader(tmp_path, monkeypatch):
    path, seen = save(tmp_path / "mine.npz", make_arrays("breastmnist")), []
    monkeypatch.setattr(D, "belongs_on", lambda n, device, share: seen.append(share) or False)
    D.build_loaders(load_options("", dataset=str(path), overrides={"data.device_share": .25}), D.build_transforms(28))
    assert seen == [.25] * 3


def test_batches_sent_to_a_device_are_transformed_there(tmp_path, monkeypatch):
    data = D.load_medmnist_dataset(save(tmp_path / "mine.npz", make_arrays("bloodmnist")), "train")
    sent = []
    monkeypatch.setattr(D, "to_device_async", lambda x, device: sent.append((x.dtype, tuple(x.shape), str(device))) or x)
    data.transform = lambda x: sent.append("transform") or x
    data.batch(torch.tensor([1, 2]), torch.device("meta"))
    assert sent == [(torch.uint8, (2, 3, 28, 28), "meta"), (torch.int64, (2,), "meta"), "transform"]      # whole grey levels cross, and only then floats are made


@pytest.mark.parametrize("shuffle", (True, False))
def test_the_loader_gives_what_a_dataloader_gives(tmp_path, shuffle):
    data = D.load_medmnist_dataset(save(tmp_path / "mine.npz", make_arrays("bloodmnist", per_class=5)), "train", transform=D.build_transforms(28))
    own = D.make_loader(data, batch_size=7, shuffle=shuffle, seed=5)
    plain = torch.utils.data.DataLoader(data, 7, shuffle=shuffle, generator=torch.Generator().manual_seed(5), collate_fn=lambda b: b)
    for _ in range(3):                                                                  # epoch after epoch
        for (x, y), (a, b) in zip(own, plain, strict=True): assert torch.equal(x, a) and torch.equal(y, b)
        assert torch.equal(own.generator.get_state(), plain.generator.get_state())
    assert (len(own), own.batch_size, own.dataset, own.drop_last) == (6, 7, data, False) and isinstance(own, torch.utils.data.DataLoader)
    state = own.generator.get_state()
    following = [y.tolist() for _, y in own]
    own.generator.set_state(state)
    assert [y.tolist() for _, y in own] == following                                   # the generator's state is all that an exact resume needs


def test_one_image_and_places_outside(tmp_path):
    data = D.load_medmnist_dataset(save(tmp_path / "mine.npz", make_arrays("breastmnist")), "train")
    assert torch.equal(data[-1][0], data[3][0]) and len(list(data)) == 4
    for bad in (4, -5):
        with pytest.raises(IndexError): data[bad]


def test_a_batch_cannot_be_overwritten_by_the_next(tmp_path):
    loader = D.build_medmnist_dataloaders(save(tmp_path / "mine.npz", make_arrays("breastmnist", per_class=8)), batch_size=4)["test"]
    kept = [x.clone() for x, _ in loader]
    held = [x for x, _ in loader]
    assert all(torch.equal(a, b) for a, b in zip(kept, held)) and len({x.data_ptr() for x in held}) == len(held)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
def test_on_the_gpu(tmp_path):
    path = save(tmp_path / "mine.npz", make_arrays("bloodmnist"))
    x, y = next(iter(D.build_medmnist_dataloaders(path, device="cuda")["val"]))
    cpu, _ = next(iter(D.build_medmnist_dataloaders(path)["val"]))
    assert x.is_cuda and y.is_cuda and torch.allclose(x.cpu(), cpu, atol=1e-5)
    streamed = D.build_medmnist_dataloaders(path, device="cuda", device_share=0.)["val"]
    assert not streamed.dataset.images.is_cuda and torch.equal(next(iter(streamed))[0], x)
    assert D.augment_batch(x, flips="all", generator=torch.Generator("cuda").manual_seed(0)).is_cuda


# downloads

class Server:
    "A local server that can break off, refuse ranges, answer errors, or serve something else."
    def __init__(self, files, *, ranges=True, break_after=(), errors=()):
        self.log, server = [], self
        self.break_after, self.errors = list(break_after), list(errors)

        class Handler(http.server.BaseHTTPRequestHandler):
            def log_message(self, *args): pass
            def do_GET(self):
                wanted = self.headers.get("Range")
                server.log.append((self.path, wanted))
                if server.errors: return self.send_error(server.errors.pop(0))
                blob = files.get(self.path.lstrip("/").split("?")[0])
                if blob is None: return self.send_error(404)
                start = int(re.match(r"bytes=(\d+)-", wanted)[1]) if wanted and ranges else 0
                if wanted and ranges and start >= len(blob): return self.send_error(416)
                self.send_response(206 if wanted and ranges else 200)
                if wanted and ranges: self.send_header("Content-Range", f"bytes {start}-{len(blob) - 1}/{len(blob)}")
                self.send_header("Content-Length", str(len(blob) - start))
                self.end_headers()
                end = start + server.break_after.pop(0) if server.break_after else len(blob)
                self.wfile.write(blob[start:end])

        self.http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}"
        threading.Thread(target=self.http.serve_forever, daemon=True).start()

    def __enter__(self): return self
    def __exit__(self, *args): self.http.shutdown(), self.http.server_close()


@pytest.fixture
def blob(tmp_path, published):
    path = published("bloodmnist", save(tmp_path / "origin" / "bloodmnist.npz", make_arrays("bloodmnist")))
    return path.read_bytes()


def fetch(tmp_path, server, **kwargs): return D.download_medmnist("bloodmnist", data_dir=tmp_path / "data", mirror=getattr(server, "url", server), **{"pause": .01, **kwargs})


def test_download_reports_splits_and_bytes(tmp_path, blob):
    with Server({"bloodmnist.npz": blob}) as server: report = fetch(tmp_path, server)
    assert report["status"] == "downloaded" and report["bytes"] == len(blob) and report["splits"]["train"]["images"] == 16 and report["splits"]["val"]["bytes"] == 16 * 28 * 28 * 3
    assert (tmp_path / "data" / "bloodmnist.npz").read_bytes() == blob and not list((tmp_path / "data").glob("*.part"))
    with Server({}) as server: assert fetch(tmp_path, server)["status"] == "present" and not server.log


def test_download_goes_on_where_the_line_broke(tmp_path, blob):
    with Server({"bloodmnist.npz": blob}, break_after=[40_000, 40_000]) as server: fetch(tmp_path, server)
    starts = [int((r or "bytes=0-")[6:-1]) for _, r in server.log]
    assert len(starts) == 3 and 0 < starts[1] <= 40_000 < starts[2] <= 80_000 and (tmp_path / "data" / "bloodmnist.npz").read_bytes() == blob


def test_download_starts_anew_when_the_server_cannot_go_on(tmp_path, blob):
    with Server({"bloodmnist.npz": blob}, ranges=False, break_after=[40_000]) as server: fetch(tmp_path, server)
    assert len(server.log) == 2 and (tmp_path / "data" / "bloodmnist.npz").read_bytes() == blob


@pytest.mark.parametrize("stale", (b"x" * 3000, b"x" * 10**6))
def test_a_stale_part_is_replaced(tmp_path, blob, stale):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "bloodmnist.npz.part").write_bytes(stale)
    with Server({"bloodmnist.npz": blob}) as server: fetch(tmp_path, server)
    assert (tmp_path / "data" / "bloodmnist.npz").read_bytes() == blob


def test_retries_pause_twice_as_long_each_time(tmp_path, blob, monkeypatch):
    pauses = []
    monkeypatch.setattr(D.time, "sleep", pauses.append)
    with Server({"bloodmnist.npz": blob}, errors=[503, 500, 429]) as server: fetch(tmp_path, server, pause=1.)
    assert pauses == [1, 2, 4]


def test_an_error_that_will_not_mend_is_not_retried(tmp_path, blob):
    with Server({}) as server:
        with pytest.raises(D.DataError, match="404.*data.mirror"): fetch(tmp_path, server)
        assert len(server.log) == 1


def test_retries_end_and_the_part_is_kept(tmp_path, blob):
    with Server({"bloodmnist.npz": blob}, break_after=[30_000, 20_000, 20_000]) as server:
        with pytest.raises(D.DataError, match="in 3 attempts.*bytes.*kept"): fetch(tmp_path, server, retries=2)
    kept = (tmp_path / "data" / "bloodmnist.npz.part").stat().st_size
    assert 10_000 < kept < 100_000 and not (tmp_path / "data" / "bloodmnist.npz").exists()
    with Server({"bloodmnist.npz": blob}) as server: fetch(tmp_path, server)
    assert server.log[0][1] == f"bytes={kept}-"


def test_a_server_with_something_else(tmp_path, blob):
    with Server({"bloodmnist.npz": b"<html>log in</html>"}) as server:
        with pytest.raises(D.DataError, match="MD5.*deleted"): fetch(tmp_path, server)
    assert not list((tmp_path / "data").glob("[!.]*"))


def test_no_network(tmp_path, blob):
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        free = s.getsockname()[1]
    with pytest.raises(D.DataError, match="could not fetch.*Check the network"): fetch(tmp_path, f"http://127.0.0.1:{free}", retries=1)


def test_a_folder_as_mirror(tmp_path, blob):
    assert fetch(tmp_path, str(tmp_path / "origin"))["status"] == "copied"
    with pytest.raises(D.DataError, match="holds no breastmnist.npz"): D.download_medmnist("breastmnist", data_dir=tmp_path / "data", mirror=str(tmp_path / "origin"))
    save(tmp_path / "origin" / "octmnist.npz", make_arrays("octmnist"))
    with pytest.raises(D.DataError, match="not the published file"): D.download_medmnist("octmnist", data_dir=tmp_path / "data", mirror=str(tmp_path / "origin"))
    assert sorted(p.name for p in (tmp_path / "data").glob("[!.]*")) == ["bloodmnist.npz"]


def test_a_full_disk(tmp_path, blob, monkeypatch):
    usage = D.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(D.shutil, "disk_usage", lambda p: usage._replace(free=10))
    with Server({"bloodmnist.npz": blob}) as server:
        with pytest.raises(D.DataError, match="full.*data.data_dir"): fetch(tmp_path, server)
    monkeypatch.undo()
    real = open
    class Full:
        def __init__(self, f): self.f = f
        def __enter__(self): return self
        def __exit__(self, *a): self.f.close()
        def write(self, b): raise OSError(errno.ENOSPC, "No space left on device")
    monkeypatch.setattr("builtins.open", lambda p, mode="r", *a, **k: Full(real(p, mode, *a, **k)) if str(p).endswith(".part") and mode in ("wb", "ab") else real(p, mode, *a, **k))
    with Server({"bloodmnist.npz": blob}) as server:
        with pytest.raises(D.DataError, match="full"): fetch(tmp_path, server)


def test_a_folder_that_cannot_be_written(tmp_path, blob):
    (tmp_path / "a_file").write_text("")
    with Server({"bloodmnist.npz": blob}) as server:
        with pytest.raises(D.DataError, match="cannot write.*XAIMED_DATA_DIR"): D.download_medmnist("bloodmnist", data_dir=tmp_path / "a_file" / "data", mirror=server.url)
    (tmp_path / "closed").mkdir(mode=0o555)
    if os.access(tmp_path / "closed", os.W_OK): return        # the superuser may write everywhere
    with pytest.raises(D.DataError, match="cannot write"): D.download_medmnist("bloodmnist", data_dir=tmp_path / "closed", mirror=str(tmp_path / "origin"))


def test_two_at_once_fetch_once(tmp_path, blob):
    with Server({"bloodmnist.npz": blob}) as server:
        threads = [threading.Thread(target=fetch, args=(tmp_path, server)) for _ in range(3)]
        [t.start() for t in threads], [t.join() for t in threads]
        assert len(server.log) == 1


# real files

@pytest.mark.parametrize("name,size,counts", (("breastmnist", 28, (546, 78, 156)), ("breastmnist", 64, (546, 78, 156)), ("adrenalmnist3d", 28, (1188, 98, 298))))
def test_real_files(real_data, name, size, counts):
    if not (real_data / D.file_name(name, size)).exists(): pytest.skip(f"no {D.file_name(name, size)} here")
    found = D.find_data(name, size=size, data_dir=real_data)
    card = D.make_card(found, size=size)
    assert found.official is True and tuple(card["counts"][s]["total"] for s in D.SPLITS) == counts
    x, y = next(iter(D.build_medmnist_dataloaders(name, size=size, data_dir=real_data, batch_size=16)["train"]))
    assert x.shape == ((16, 3, size, size) if found.spec.ndim == 2 else (16, 1, 28, 28, 28)) and y.shape == (16,)


@pytest.mark.parametrize("size", (28, 64))
def test_real_masks(real_data, size):
    if not (real_data / f"breastmnist{'' if size == 28 else '_64'}_masks.npz").exists(): pytest.skip("no masks here")
    splits = {s: D.load_medmnist_dataset("breastmnist", s, size=size, data_dir=real_data) for s in D.SPLITS}
    has = {s: int(d.masks.flatten(1).any(1).sum()) for s, d in splits.items()}
    assert all(abs(has[s] - n) <= 2 for s, n in (("train", 453), ("val", 60), ("test", 134)))
    assert all(d.mask_valid.sum() <= has[s] and d.masks.shape == (len(d), size, size) for s, d in splits.items())
    assert 300 < splits["train"].mask_valid.sum() < 453


def test_real_pneumonia_is_reassembled(real_data):
    path = real_data / "pneumoniamnist.npz"
    if not path.exists(): pytest.skip("no pneumoniamnist.npz here")
    if D.md5_of(path) == D.published("pneumoniamnist")[1]: pytest.skip("this one is the published file")
    with pytest.raises(D.DataError, match="data.verify=form"): D.load_medmnist_dataset("pneumoniamnist", "val", data_dir=real_data)
    for found in (D.find_data("pneumoniamnist", data_dir=real_data, verify="form"), D.find_data(path)):
        assert found.official is False and found.spec.classes == ("normal", "pneumonia") and "not the published" in found.spec.title
        assert D.make_card(found)["counts"]["train"]["per_class"] == [1214, 3494]
