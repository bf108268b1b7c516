"Store: opened once and mapped; whole or not at all; out of the way when something is wrong with the cache."
import errno
import hashlib
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import threading
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from xaimed import data as D
from xaimed import store as S


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    "A cache of one's own, in which 1000 bytes are a large file."
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(S, "SMALL", 1000)
    S._say_once.cache_clear(), S._md5_once.cache_clear()
    return tmp_path / "cache" / "xaimed" / "arrays"


def arrays(seed=0, n=12, size=16):
    rng = np.random.default_rng(seed)
    return {f"{s}_{p}": v for s in D.SPLITS for p, v in (("images", rng.integers(0, 256, (n, size, size), np.uint8)), ("labels", np.arange(n)[:, None] % 2))}


@pytest.fixture
def made(tmp_path):
    np.savez_compressed(tmp_path / "mine.npz", **arrays())
    return tmp_path / "mine.npz"


def right(path, expected=None): return all(np.array_equal(S.read_array(path, k), v) for k, v in (expected or arrays()).items())
def entries(cache): return sorted(p.name for p in cache.glob("*") if p.is_dir())
@pytest.fixture
def no_zip(monkeypatch):
    "From the call on, opening a zip fails the test."
    def close():
        def refuse(*a, **k): raise AssertionError("a zip was opened")
        monkeypatch.setattr(zipfile, "ZipFile", refuse)
    return close


# memory

MEASURE = """
import sys
import numpy as np, torch
from xaimed import data as D
def status(key): return next(int(l.split()[1]) * 1024 for l in open("/proc/self/status") if l.startswith(key))
def mark(): open("/proc/self/clear_refs", "w").write("5"); return status("VmRSS")
D.load_medmnist_dataset(sys.argv[1], "train").batch(torch.arange(4))      # what the libraries load, they have loaded
for split in ("train", "val", "test", "train"):
    before = mark()
    data = D.load_medmnist_dataset(sys.argv[2], split)
    loaded = status("VmHWM") - before
    before = mark()
    for where in torch.arange(64).split(16): data.batch(where)
    print(loaded, status("VmHWM") - before, data.images.nbytes, type(data.images.untyped_storage()).__name__)
before = mark()
data.images.amax()
print(status("VmHWM") - before, 0, data.images.nbytes)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize("shape,kept", (((224, 224), True), ((224, 224, 3), True), ((224, 224), False)))
def test_any_split_takes_at_most_its_own_size(tmp_path, shape, kept):
    n = 2400 if len(shape) == 2 else 800
    big = {f"{s}_images": np.random.default_rng(0).integers(0, 256, (n // 4 if s != "train" else n, *shape), np.uint8) for s in D.SPLITS}
    np.savez(tmp_path / "big.npz", **big, **{f"{s}_labels": np.arange(len(big[f"{s}_images"]))[:, None] % 2 for s in D.SPLITS})
    np.savez(tmp_path / "tiny.npz", **{k: v[:8, :32] for k, v in arrays().items()})
    env = {**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache") if kept else os.devnull}
    done = subprocess.run([sys.executable, "-c", MEASURE, str(tmp_path / "tiny.npz"), str(tmp_path / "big.npz")], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    *splits, all_read = [[int(v) for v in line.split()[:3]] for line in done.stdout.splitlines()]
    print(f"{shape}, kept {kept}: " + ", ".join(f"{loaded / size:.3f}" for loaded, _, size in splits))
    assert [size for *_, size in splits] == [n * int(np.prod(shape)) // d for d in (1, 4, 4, 1)]
    for loaded, batch, size in splits: assert loaded <= (.1 if kept else 1.2) * size and batch < 40e6      # a batch of 16 is 1 or 2 MB; the rest is the system's read-ahead
    assert all_read[0] <= 1.2 * all_read[2]


def test_a_batch_of_a_mapped_split_is_a_copy_of_that_batch(made):
    data = D.load_medmnist_dataset(made, "train")
    where = torch.tensor([5, 0, 5])
    x, y = data.batch(where)
    assert np.array_equal(x[:, 0].numpy(), arrays()["train_images"][where]) and x.untyped_storage().nbytes() == 3 * 16 * 16 and y.tolist() == [1, 0, 1]
    x.zero_()
    assert right(made) and data.images.untyped_storage().nbytes() >= 12 * 16 * 16


# the second time

def test_the_second_opening_reads_no_zip(made, cache, no_zip):
    first = {s: D.load_medmnist_dataset(made, s) for s in D.SPLITS}
    card = D.make_card(D.find_data(made))
    no_zip()
    for s, d in first.items():
        again = D.load_medmnist_dataset(made, s)
        assert torch.equal(again.images, d.images) and torch.equal(again.labels, d.labels) and np.array_equal(again.images[:, 0], arrays()[f"{s}_images"])
    assert D.make_card(D.find_data(made)) == card and len(entries(cache)) == 1
    with pytest.raises(AssertionError, match="a zip was opened"): S._from_zip(made, "train_images")       # the check can fail
    with pytest.raises(D.DataError, match="holds no other"): S.read_array(made, "other")


def test_masks_of_a_large_file_are_kept_too(made, cache, no_zip):
    inside = np.zeros((12, 16, 16), np.uint8)
    inside[:, 2:5, 3:8] = 255
    np.savez(made.with_name("mine_masks.npz"), **{f"{s}_masks": inside for s in D.SPLITS})
    assert len({D.load_medmnist_dataset(made, s).masks.sum().item() for s in D.SPLITS}) == 1 and len(entries(cache)) == 2
    no_zip()
    assert np.array_equal(D.load_medmnist_dataset(made, "val").masks, inside > 0)


def test_a_small_file_leaves_nothing(tmp_path, cache, monkeypatch):
    monkeypatch.setattr(S, "SMALL", 10**6)
    np.savez(tmp_path / "mine.npz", **arrays())
    assert right(tmp_path / "mine.npz") and not isinstance(S.read_array(tmp_path / "mine.npz", "train_images"), np.memmap) and not cache.exists()


@pytest.mark.filterwarnings("ignore:Stored array in format 2.0")
@pytest.mark.parametrize("array", (np.asfortranarray(np.arange(4000.).reshape(40, 100)), np.zeros((0, 5), np.int16), np.array(7), np.array(["x", "yz"]), np.zeros(300, np.dtype([(f"a field with a long name {i}", "u1") for i in range(3000)]))),
                         ids=("fortran", "empty", "scalar", "text", "long header"))
def test_every_plain_array_comes_back(tmp_path, array):
    np.savez(tmp_path / "mine.npz", a=array, **arrays())
    if array.dtype.names:                                         # numpy itself does not trust a header of that length
        with pytest.raises(D.DataError, match="mine.npz"): S.read_array(tmp_path / "mine.npz", "a")
        return
    for _ in range(2):
        got = S.read_array(tmp_path / "mine.npz", "a")
        assert np.array_equal(got, array) and got.dtype == array.dtype and got.flags.f_contiguous == array.flags.f_contiguous
    assert S.array_headers(tmp_path / "mine.npz")["a"].shape == array.shape


def test_python_objects_are_left_in_the_zip(tmp_path, cache):
    np.savez(tmp_path / "mine.npz", notes=np.array([{}], dtype=object), **arrays())
    assert right(tmp_path / "mine.npz") and len(list(cache.rglob("*.npy"))) == 6
    with pytest.raises(D.DataError, match="notes holds Python objects.*pickle"): S.read_array(tmp_path / "mine.npz", "notes")


def test_what_is_written_stays_in_this_process(made):
    S.read_array(made, "train_images")[:] = 0
    assert right(made)


def test_a_map_that_the_system_refuses_is_for_reading(made, monkeypatch):
    load, seen = np.load, []
    def refuse(file, mmap_mode=None, **k):
        seen.append(mmap_mode)
        if mmap_mode == "c": raise OSError(errno.ENOMEM, "Cannot allocate memory")
        return load(file, mmap_mode=mmap_mode, **k)
    monkeypatch.setattr(np, "load", refuse)
    data = D.load_medmnist_dataset(made, "train")                # torch warns of such arrays; pytest would show it
    assert seen == ["c", "r"] * (len(seen) // 2) and np.array_equal(data.images[:, 0], arrays()["train_images"])


# a file that changed, an entry that is damaged

def test_a_changed_file_is_read_anew_and_the_old_entry_goes(made, cache):
    assert right(made)
    old = entries(cache)
    np.savez_compressed(made, **arrays(seed=1))
    os.utime(made, ns=(1, 1))
    assert right(made, arrays(seed=1)) and len(entries(cache)) == 1 and entries(cache) != old


def swapped(made, way):
    "Other content of the same length and time, written over the file or put in its place."
    kept, other = made.stat(), made.with_name("other.npz")
    np.savez(other, **arrays(seed=1))                                  # not packed, so of the same length
    blob, changed = made.read_bytes(), other.read_bytes()
    if way == "written over": made.write_bytes(changed)
    else: os.replace(other, made)
    os.utime(made, ns=(kept.st_atime_ns, kept.st_mtime_ns))
    assert (made.stat().st_size, made.stat().st_mtime_ns) == (kept.st_size, kept.st_mtime_ns) and changed != blob
    return changed


@pytest.mark.parametrize("way", ("written over", "put in its place"))
def test_a_file_changed_with_size_and_time_kept_is_read_anew(tmp_path, cache, way):
    made = tmp_path / "mine.npz"
    np.savez(made, **arrays())
    old = D.md5_of(made)
    assert right(made) and len(entries(cache)) == 1
    changed = swapped(made, way)
    assert D.md5_of(made) == hashlib.md5(changed).hexdigest() != old
    assert right(made, arrays(1)) and len(entries(cache)) == 1
    with pytest.raises(D.DataError, match="is not the published file"): D.check_md5(made, old)


@pytest.mark.skipif(os.name == "nt", reason="needs modes")
def test_what_only_seems_changed_costs_one_more_unpacking(made, cache, tmp_path, monkeypatch):
    unpack, calls = S._unpack, []
    monkeypatch.setattr(S, "_unpack", lambda *a: calls.append(1) or unpack(*a))
    assert right(made) and right(made) and len(calls) == 1
    made.chmod(0o444), made.parent.chmod(0o555)                       # as on a read-only disk
    try: assert right(made) and right(made) and len(calls) == 2 and len(entries(cache)) == 1
    finally: made.parent.chmod(0o755)
    shutil.copy2(made, tmp_path / "copy.npz"), os.replace(tmp_path / "copy.npz", made)
    assert right(made) and right(made) and len(calls) == 3 and len(entries(cache)) == 1


def test_the_entry_of_a_file_that_is_gone_goes(made, cache, tmp_path):
    assert right(made)
    np.savez(tmp_path / "other.npz", **arrays(2))
    made.unlink()
    assert right(tmp_path / "other.npz", arrays(2)) and len(entries(cache)) == 1


def another(folder, name="another.npz"):
    "Something new is unpacked: the occasion to tidy."
    np.savez(folder / name, **arrays(5))
    assert right(folder / name, arrays(5))
    return S._entry_name(S._identity(folder / name))


def names(cache): return {p.name for p in cache.iterdir()}


@pytest.mark.skipif(os.name == "nt", reason="needs signals")
def test_what_a_killed_process_left_of_a_file_that_is_gone_goes(made, cache, tmp_path):
    assert subprocess.run([sys.executable, "-c", KILLED, str(made)]).returncode == -signal.SIGKILL
    place = S._entry_name(S._identity(made))[0]
    assert {n[:22] for n in names(cache)} == {f".{place}~", f".{place}."}
    made.rename(tmp_path / "moved.npz")
    new = another(tmp_path)
    assert names(cache) == {new[1], f".{new[0]}.lock"}


def test_what_another_process_is_working_on_stays(made, cache, tmp_path):
    place, name = S._entry_name(S._identity(made))
    assert right(made)
    work = cache / f".{place}~abc"
    work.mkdir()
    made.rename(tmp_path / "moved.npz")
    with S.FileLock(cache / f".{place}.lock"):
        one = another(tmp_path, "one.npz")
        assert names(cache) == {name, work.name, f".{place}.lock", one[1], f".{one[0]}.lock"}
    two = another(tmp_path, "two.npz")
    assert names(cache) == {one[1], f".{one[0]}.lock", two[1], f".{two[0]}.lock"}


@pytest.mark.parametrize("days,opened,stays", ((59, False, True), (61, False, False), (61, True, True)))
def test_what_nobody_opened_for_long_goes(made, cache, tmp_path, days, opened, stays):
    assert right(made)
    place, name = S._entry_name(S._identity(made))
    long_ago = S.time.time() - days * 86400
    os.utime(cache / name / "index.json", (long_ago, long_ago))
    if opened: assert right(made)
    new = another(tmp_path)
    assert names(cache) == {new[1], f".{new[0]}.lock"} | ({name, f".{place}.lock"} if stays else set())
    assert right(made)


def test_an_entry_that_cannot_be_read_goes_when_it_is_old(cache, tmp_path):
    another(tmp_path, "first.npz")
    for name, age in (("young", 1), ("old", 61)):
        entry = cache / f"{hashlib.sha256(name.encode()).hexdigest()[:20]}-{name}"
        entry.mkdir()
        if name == "young": (entry / "index.json").write_text("[")
        os.utime(entry, (S.time.time() - age * 86400,) * 2)
    another(tmp_path, "second.npz")
    assert [n.split("-")[1] for n in entries(cache) if n.endswith(("young", "old"))] == ["young"]


def test_check_sums_of_files_that_are_gone_or_changed_go(made, cache, tmp_path):
    gone, changed = tmp_path / "gone.npz", tmp_path / "changed.npz"
    for path in (gone, changed): np.savez(path, **arrays(2)), D.md5_of(path)
    assert right(made) and D.md5_of(made)
    other = tmp_path / "precious"
    other.write_text("kept")
    (cache / "md5-link").symlink_to(other), (cache / ("md5-" + "0" * 24)).write_text("0" * 32), (cache / "notes.txt").write_text("mine")   # a link, a note of before, something else
    for name, age in ((".0123abcd-md5-x", 2), (".4567abcd-md5-y", 0)):                                       # notes of processes that were killed, or are writing
        (cache / name).write_text("")
        os.utime(cache / name, (S.time.time() - age * 86400,) * 2)
    gone.unlink(), os.utime(changed, ns=(7, 7))
    place, name = S._entry_name(S._identity(made))
    new = D.md5_of(changed)
    assert names(cache) == {name, f".{place}.lock", "notes.txt", ".4567abcd-md5-y", *(S._note_name(i["path"], S._state(i)) for i in map(S._identity, (made, changed)))}
    assert other.read_text() == "kept" and new == hashlib.md5(changed.read_bytes()).hexdigest()


def test_a_cache_that_is_deleted_is_made_again(made, cache):
    open_here = S.read_array(made, "train_images")
    D.md5_of(made), shutil.rmtree(cache.parent)
    S._md5_once.cache_clear()
    assert D.md5_of(made) == hashlib.md5(made.read_bytes()).hexdigest() and right(made)
    if os.name != "nt": assert np.array_equal(open_here, arrays()["train_images"])


def test_the_same_content_in_two_places_has_two_entries(made, cache, tmp_path):
    (tmp_path / "b").mkdir()
    shutil.copy2(made, tmp_path / "b")
    (tmp_path / "link.npz").symlink_to(made)
    assert right(made) and right(tmp_path / "b" / made.name) and right(tmp_path / "link.npz") and len(entries(cache)) == 2


DAMAGE = {
    "cut": lambda e: os.truncate(e / "train_images.npy", 500), "empty": lambda e: os.truncate(e / "train_images.npy", 0), "longer": lambda e: os.truncate(e / "train_images.npy", 10**4),
    "gone": lambda e: (e / "train_images.npy").unlink(), "no index": lambda e: (e / "index.json").unlink(), "cut index": lambda e: os.truncate(e / "index.json", 40),
    "index of another file": lambda e: (e / "index.json").write_text((e / "index.json").read_text().replace("mine.npz", "yours.npz")), "another index": lambda e: (e / "index.json").write_text("[1]"), "header": lambda e: (e / "train_images.npy").write_bytes((e / "train_images.npy").read_bytes().replace(b"(12, 16, 16)", b"(16, 12, 16)")),
    "folder": lambda e: ((e / "train_images.npy").unlink(), (e / "train_images.npy").mkdir()), "noise": lambda e: (e / "train_images.npy").write_bytes(os.urandom((e / "train_images.npy").stat().st_size)),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_entry_is_made_again(made, cache, damage):
    assert right(made)
    entry = cache / entries(cache)[0]
    size = (entry / "train_images.npy").stat().st_size
    DAMAGE[damage](entry)
    assert right(made) and (entry / "train_images.npy").stat().st_size == size and "mine.npz" in (entry / "index.json").read_text() and entries(cache) == [entry.name] and right(made)
    assert np.array_equal(np.load(entry / "train_images.npy"), arrays()["train_images"])


def test_damage_that_cannot_be_mended_still_reads(made, cache, monkeypatch, caplog):
    assert right(made)
    DAMAGE["cut"](cache / entries(cache)[0])
    monkeypatch.setattr(S, "_tidy", lambda *a, **k: (_ for _ in ()).throw(PermissionError(errno.EACCES, "Permission denied")))
    with caplog.at_level(logging.WARNING): assert right(made)
    assert "is damaged" in caplog.text and "Permission denied" in caplog.text


# nothing can be kept

def reads_anyway(made, caplog, words):
    with caplog.at_level(logging.WARNING): assert right(made) and right(made)
    assert caplog.text.count("is not kept unpacked") == 1 and words in caplog.text       # said once


def test_a_cache_that_is_a_file(made, tmp_path, monkeypatch, caplog):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    reads_anyway(made, caplog, "Not a directory")


@pytest.mark.skipif(not hasattr(os, "getuid") or os.getuid() == 0, reason="the superuser may write everywhere")
def test_a_cache_that_cannot_be_written(made, tmp_path, caplog):
    (tmp_path / "cache").mkdir(mode=0o555)
    reads_anyway(made, caplog, "Permission denied")


@pytest.mark.parametrize("number", (errno.EROFS, errno.EACCES, errno.EDQUOT))
def test_a_cache_on_a_read_only_system(made, cache, monkeypatch, caplog, number):
    monkeypatch.setattr(S.tempfile, "mkdtemp", lambda **k: (_ for _ in ()).throw(OSError(number, os.strerror(number))))
    reads_anyway(made, caplog, os.strerror(number))
    assert entries(cache) == []


def test_too_little_room_is_seen_before_anything_is_written(made, cache, monkeypatch, caplog):
    usage = shutil.disk_usage(made)
    monkeypatch.setattr(S.shutil, "disk_usage", lambda p: usage._replace(free=4000))
    reads_anyway(made, caplog, "bytes are needed")
    assert entries(cache) == []


LIMITED = """
import resource, sys, numpy as np, logging
from xaimed import store as S
S.SMALL = 1000
resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))       # the system refuses to write more, in the middle of an array
print(int(S.read_array(sys.argv[1], "test_images").sum()))
"""


@pytest.mark.skipif(os.name == "nt", reason="needs limits of the system")
def test_a_disk_that_is_full_in_the_middle(made, cache):
    done = subprocess.run([sys.executable, "-c", LIMITED, str(made)], capture_output=True, text=True)
    assert done.returncode == 0 and int(done.stdout) == arrays()["test_images"].sum() and "File too large" in done.stderr, done.stderr
    assert entries(cache) == []
    assert right(made) and len(entries(cache)) == 1


def test_more_than_memory_and_disk_is_refused(made, tmp_path, monkeypatch):
    usage = shutil.disk_usage(made)
    monkeypatch.setattr(S.shutil, "disk_usage", lambda p: usage._replace(free=0))
    monkeypatch.setattr(S, "_memory", lambda: 3071)
    with pytest.raises(D.DataError, match="train_images takes 3072 bytes, more than the memory.*XDG_CACHE_HOME"): S.read_array(made, "train_images")
    assert len(S.read_array(made, "train_labels")) == 12


def test_a_broken_zip_leaves_no_entry(made, cache):
    blob = bytearray(made.read_bytes())
    with zipfile.ZipFile(made) as z: at = z.getinfo("test_images.npy").header_offset + 600
    blob[at:at + 50] = bytes(50)
    made.write_bytes(blob)
    with pytest.raises(D.DataError, match="mine.npz is not a whole .npz"): S.read_array(made, "train_images")
    assert entries(cache) == []


def test_a_file_that_changes_while_it_is_unpacked(made, cache, monkeypatch, caplog):
    copy = S._copy
    def slow(*args):
        os.utime(made, ns=(5, 5))
        return copy(*args)
    monkeypatch.setattr(S, "_copy", slow)
    with caplog.at_level(logging.WARNING): assert np.array_equal(S.read_array(made, "train_images"), arrays()["train_images"])
    assert "changed while it was read" in caplog.text and entries(cache) == []


# links, owners

def elsewhere(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "precious").write_text("kept")
    return tmp_path / "elsewhere"


@pytest.mark.parametrize("place", ("xaimed", "xaimed/arrays"))
def test_a_link_leads_nowhere(made, tmp_path, caplog, place):
    target, link = elsewhere(tmp_path), tmp_path / "cache" / place
    link.parent.mkdir(parents=True)
    link.symlink_to(target)
    reads_anyway(made, caplog, "is a link or a file")
    assert D.md5_of(made) == hashlib.md5(made.read_bytes()).hexdigest()
    assert [p.name for p in target.iterdir()] == ["precious"] and link.is_symlink()


def test_a_link_in_the_place_of_an_entry_or_an_array(made, cache, tmp_path, caplog):
    target = elsewhere(tmp_path)
    assert right(made)
    entry = cache / entries(cache)[0]
    (entry / "train_images.npy").rename(target / "train_images.npy")
    (entry / "train_images.npy").symlink_to(target / "train_images.npy")
    assert right(made) and not (entry / "train_images.npy").is_symlink()                      # made again
    entry.rename(target / "entry")
    entry.symlink_to(target / "entry")
    with caplog.at_level(logging.WARNING): assert right(made)
    assert sorted(p.name for p in target.iterdir()) == ["entry", "precious", "train_images.npy"] and len(list((target / "entry").iterdir())) == 7


@pytest.mark.skipif(not hasattr(os, "getuid"), reason="needs owners")
def test_another_users_folder_is_not_used(made, cache, monkeypatch, caplog):
    assert right(made)
    own = os.getuid()
    monkeypatch.setattr(os, "getuid", lambda: own + 1)
    opened = []
    monkeypatch.setattr(S, "_mapped", lambda *a: opened.append(a))
    reads_anyway(made, caplog, "belongs to another user")
    assert not opened


@pytest.mark.skipif(os.name == "nt", reason="needs modes")
def test_the_folder_is_closed_to_others(made, cache):
    cache.mkdir(parents=True)
    cache.chmod(0o777)
    assert right(made) and cache.stat().st_mode & 0o777 == 0o700


# processes

KILLED = """
import os, signal, sys
from xaimed import store as S
S.SMALL, copy, done = 1000, S._copy, []
def dies(*args):
    if len(done) == 2: os.kill(os.getpid(), signal.SIGKILL)
    copy(*args); done.append(1)
S._copy = dies
S.read_array(sys.argv[1], "train_images")
"""


@pytest.mark.skipif(os.name == "nt", reason="needs signals")
def test_a_process_that_is_killed_leaves_nothing_that_counts(made, cache):
    assert subprocess.run([sys.executable, "-c", KILLED, str(made)]).returncode == -signal.SIGKILL
    assert [n[0] for n in entries(cache)] == ["."]                 # a temporary folder
    assert right(made) and [n[0] == "." for n in entries(cache)] == [False]


def test_many_at_once_unpack_once(made, cache, monkeypatch):
    unpack, calls, results = S._unpack, [], []
    monkeypatch.setattr(S, "_unpack", lambda *a: calls.append(1) or unpack(*a))
    threads = [threading.Thread(target=lambda: results.append(right(made))) for _ in range(6)]
    [t.start() for t in threads], [t.join() for t in threads]
    assert results == [True] * 6 and len(calls) == 1 and len(entries(cache)) == 1


def test_an_entry_that_is_replaced_stays_readable_where_it_is_open(made, cache):
    open_here = S.read_array(made, "train_images")
    np.savez_compressed(made, **arrays(seed=1))
    os.utime(made, ns=(1, 1))
    assert right(made, arrays(seed=1)) and np.array_equal(open_here, arrays()["train_images"])


# the check sum

def test_the_md5_of_a_large_file_is_noted(made, cache, monkeypatch):
    right_one = hashlib.md5(made.read_bytes()).hexdigest()
    assert D.md5_of(made) == right_one and len(list(cache.glob("md5-*"))) == 1
    S._md5_once.cache_clear()
    monkeypatch.setattr(S.hashlib, "md5", lambda **k: (_ for _ in ()).throw(AssertionError("computed again")))
    assert D.md5_of(made) == right_one


@pytest.mark.parametrize("text", ("", "0" * 31, "0" * 32, "<script>", "\xff" * 32, '{"md5": "0"}', '{"md5": 1, "path": "x"}', '{"md5": "' + "0" * 32 + '"}'))
def test_a_note_that_is_no_md5_is_not_believed(made, cache, text):
    right_one = D.md5_of(made)
    next(cache.glob("md5-*")).write_text(text, encoding="latin-1")
    S._md5_once.cache_clear()
    assert D.md5_of(made) == right_one


def test_put_in_place(tmp_path):
    (tmp_path / "beside").write_text("new"), (tmp_path / "target").write_text("old")
    S.put_in_place(tmp_path / "beside", tmp_path / "target")
    assert [p.name for p in tmp_path.glob("[bt]*")] == ["target"] and (tmp_path / "target").read_text() == "new"


def test_the_index_is_plain_json(made, cache):
    assert right(made)
    index = json.loads((cache / entries(cache)[0] / "index.json").read_text())
    assert index["source"] == {"path": str(made), "size": made.stat().st_size, "mtime_ns": made.stat().st_mtime_ns, "ctime_ns": made.stat().st_ctime_ns, "inode": made.stat().st_ino} and set(index["arrays"]) == set(arrays())
