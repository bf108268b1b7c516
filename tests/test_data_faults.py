"Hostile and broken data files, and servers that misbehave: a clear error or the right arrays, nothing written, nothing hanging."
import errno
import hashlib
import io
import json
import os
import socket
import struct
import threading
import time
import warnings
import zipfile
import zlib

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from test_data import make_arrays, save
from xaimed import data as D
from xaimed import store as S
from xaimed.config import load_options


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(params=(16 << 20, 0), ids=("unpacked each time", "kept unpacked"))
def way(request, monkeypatch):
    "Both ways of reading: as a small file, and as a large one."
    monkeypatch.setattr(S, "SMALL", request.param)


def use(path):
    "All that a run reads of a data file."
    found = D.find_data(path)
    return D.make_card(found), {s: D.load_medmnist_dataset(path, s) for s in D.SPLITS}


def refused(path, words, root=None):
    "A DataError that names the file; nothing is written beside it or into the cache."
    root = root or path.parent
    before = sorted(p for p in root.rglob("*") if "cache" not in p.relative_to(root).parts)
    with pytest.raises(D.DataError, match=words) as e: use(path)
    assert path.name in str(e.value)
    assert sorted(p for p in root.rglob("*") if "cache" not in p.relative_to(root).parts) == before
    assert not list(root.rglob("*.npy")) and not list((root / "cache").rglob("index.json"))


def zipped(path, entries, method=zipfile.ZIP_DEFLATED):
    "A zip written by hand: (name, bytes) pairs."
    with warnings.catch_warnings(), zipfile.ZipFile(path, "w", method) as z:
        warnings.simplefilter("ignore")                     # of names given twice
        for name, blob in entries: z.writestr(name, blob)
    return path


def npy(array, **said):
    "The bytes of an .npy; `said` changes what its header says."
    f = io.BytesIO()
    np.lib.format.write_array_header_1_0(f, {**np.lib.format.header_data_from_array_1_0(array), **said})
    return f.getvalue() + array.tobytes()


def parts(**changed):
    "The entries of a whole file, some of them changed."
    return [(f"{k}.npy", changed.get(k, npy(v))) for k, v in make_arrays("breastmnist").items()]


# files

def test_the_made_file_is_read_when_nothing_is_changed(tmp_path, way):
    assert len(use(zipped(tmp_path / "mine.npz", parts()))[1]) == 3


@pytest.mark.parametrize("key", ("train_images", "train_labels", "test_labels"))
def test_objects_are_never_unpickled(tmp_path, way, key):
    class Evil:
        def __reduce__(self): return os.mkdir, (str(tmp_path / "pwned"),)
    arrays = make_arrays("breastmnist")
    evil = np.empty(len(arrays[key]), dtype=object)
    evil[:] = Evil()
    np.savez(tmp_path / "mine.npz", **{**arrays, key: evil})
    with pytest.raises(D.DataError, match=f"mine.npz: {key} holds Python objects.*pickle"): use(tmp_path / "mine.npz")
    assert not (tmp_path / "pwned").exists()


@pytest.mark.parametrize("said,words", [(dict(shape=(10**12, 28, 28)), "contradict"), (dict(shape=(5, 28, 28)), "contradict"), (dict(shape=(3, 28, 28)), "contradict"), (dict(descr="<f8"), "contradict"),
                                        (dict(shape=(-4, 28, 28)), "negative|not valid"), (dict(shape=(2**70,)), "contradict"), (dict(descr="|u9"), "mine.npz"), (dict(shape="x"), "mine.npz")])
def test_a_header_that_lies(tmp_path, way, said, words):
    refused(zipped(tmp_path / "mine.npz", parts(train_images=npy(make_arrays("breastmnist")["train_images"], **said))), words)


def test_a_bomb_of_zeros(tmp_path, way, monkeypatch):
    monkeypatch.setattr(S, "BOMB", (1 << 20, 500))
    refused(zipped(tmp_path / "mine.npz", parts(train_labels=npy(np.zeros((3 << 20, 1), np.uint8)))), "train_labels would grow from .*zip bomb")
    refused(zipped(tmp_path / "mine.npz", parts(val_images=npy(np.zeros((4 << 10, 28, 28), np.uint8)))), "val_images would grow from .*zip bomb")


def test_a_bomb_in_many_parts(tmp_path, way, monkeypatch):
    "No array of it is a bomb by itself."
    monkeypatch.setattr(S, "BOMB", (1 << 20, 500))
    more = [(f"more_{i}.npy", npy(np.zeros(900_000, np.uint8))) for i in range(20)]
    refused(zipped(tmp_path / "mine.npz", [*parts(), *more]), "mine.npz would grow from .*zip bomb")


def test_a_header_without_end_is_not_read(tmp_path, way):
    "A header of the second version that announces 64 MB, packed into 64 kB."
    import tracemalloc
    header = b"\x93NUMPY\x02\x00" + struct.pack("<I", 1 << 26) + b" " * (1 << 26)
    path = zipped(tmp_path / "mine.npz", parts(train_images=header))
    del header
    tracemalloc.start()
    refused(path, "is not a whole .npz file.*a header of 67108864 bytes, expected at most 65536")
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < 8 << 20


@pytest.mark.parametrize("claimed", (10**9, 2**32 - 2))
def test_a_directory_that_claims_more_than_deflate_can_do(tmp_path, way, claimed):
    path = zipped(tmp_path / "mine.npz", parts())
    blob = bytearray(path.read_bytes())
    at = blob.index(b"PK\x01\x02")                          # the first entry of the directory: its unpacked size is at 24
    blob[at + 24:at + 28] = struct.pack("<I", claimed)
    path.write_bytes(blob)
    refused(path, f"claims {claimed} bytes.*lies about its size")


@pytest.mark.parametrize("name", ("../train_images.npy", "/etc/train_images.npy", "a/train_images.npy", "..\\train_images.npy", "C:train_images.npy", "..npy/../x.npy", "x\n.npy", ".npy", "train_images.npy"))
def test_names_with_a_place_in_them(tmp_path, way, name):
    refused(zipped(tmp_path / "mine.npz", [*parts(), (name, npy(np.zeros(3)))]), "entry named|twice")


@pytest.mark.parametrize("method", (zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA))
def test_other_packers(tmp_path, way, method): refused(zipped(tmp_path / "mine.npz", parts(), method), "packed by method.*savez")


def test_a_password(tmp_path, way):
    path = zipped(tmp_path / "mine.npz", parts())
    blob = path.read_bytes()
    for sign, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        whole = bytearray(blob)
        for at in [i for i in range(len(blob)) if blob.startswith(sign, i)]: whole[at + offset] |= 1
        blob = bytes(whole)
    path.write_bytes(blob)
    refused(path, "not a whole .npz|encrypted|password")


@pytest.mark.parametrize("n", (64, 65, 4000))
def test_a_zip_of_many_entries_is_refused(tmp_path, way, n):
    extra = [(f"extra_{i}.npy", npy(np.zeros(1))) for i in range(n - 6)]
    path = zipped(tmp_path / "mine.npz", [*parts(), *extra])
    if n == S.MOST_ENTRIES: assert len(S.array_headers(path)) == n and len(use(path)[1]) == 3
    else: refused(path, f"mine.npz holds {n} entries, expected at most 64.*as one array")


@pytest.mark.parametrize("names", (("a.npy", "A.npy"), ("train_images.NPY",), ("readme", "README")))
def test_names_that_differ_in_case_only_are_one_place_on_some_disks(tmp_path, way, names):
    refused(zipped(tmp_path / "mine.npz", [*parts(), *((n, npy(np.zeros(3))) for n in names)]), "twice: which one is meant")


def test_each_name_is_looked_at_once(tmp_path, monkeypatch):
    "The work grows with the number of entries, not with its square."
    class Counted(str):
        n = 0
        def lower(self):
            Counted.n += 1
            return str(self).casefold()
        def __getitem__(self, where): return Counted(str(self)[where])
    monkeypatch.setattr(S, "MOST_ENTRIES", 10**6)
    entries = [type("Info", (), {"filename": Counted(f"extra_{i}.npy")})() for i in range(500)]
    assert len(S._members(tmp_path, type("Zip", (), {"infolist": lambda self: entries})())) == 500 and Counted.n <= 1000


MACHINE = [(MemoryError("Unable to allocate 13 GiB"), "the memory ran out.*smaller images"), (PermissionError(errno.EACCES, "Permission denied"), "Permission denied.*let this user read"),
           (PermissionError(errno.EPERM, "Operation not permitted"), "not permitted.*let this user read"), (OSError(errno.EIO, "Input/output error"), "Input/output error.*check the disk"),
           (OSError(errno.ESTALE, "Stale file handle"), "Stale.*check the disk"), (OSError(errno.EMFILE, "Too many open files"), "Too many open files.*ulimit")]


@pytest.mark.parametrize("where", ("opening", "header", "values"))
@pytest.mark.parametrize("error,words", MACHINE, ids=lambda v: getattr(v, "errno", None) and errno.errorcode[v.errno])
def test_what_the_machine_refuses_is_not_blamed_on_the_file(tmp_path, way, monkeypatch, where, error, words):
    path = zipped(tmp_path / "mine.npz", parts())
    def fail(*a, **k): raise error
    if where == "opening": monkeypatch.setattr(zipfile, "ZipFile", fail)
    elif where == "header": monkeypatch.setattr(S, "_read_header", fail)
    else:
        monkeypatch.setattr(np.lib.format, "read_array", fail)                             # as a small file
        monkeypatch.setattr(S, "_copy", lambda path, *a: S._read_block(path, type("", (), {"read": fail})))   # as a large one
    with pytest.raises(D.DataError, match=f"mine.npz could not be read: .*{words}") as e: D.load_medmnist_dataset(path, "train")
    assert "may well be whole" in str(e.value) and not any(w in str(e.value) for w in ("delete", "fetch", "not a whole"))
    assert not list(tmp_path.rglob("*.npy"))


@pytest.mark.skipif(not hasattr(os, "getuid") or os.getuid() == 0, reason="the superuser may read everything")
def test_a_file_that_may_not_be_read(tmp_path, way):
    path = zipped(tmp_path / "mine.npz", parts())
    path.chmod(0)
    with pytest.raises((D.DataError, PermissionError), match="mine.npz") as e: use(path)
    assert "delete" not in str(e.value)


@pytest.mark.parametrize("error,words", MACHINE[:4], ids=("memory", "access", "not permitted", "disk"))
def test_an_image_that_the_machine_refuses_is_not_to_be_replaced(tmp_path, monkeypatch, error, words):
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / "a.png")
    def fail(*a, **k): raise error
    monkeypatch.setattr(Image.Image, "convert", fail)
    with pytest.raises(D.DataError, match=f"a.png could not be read: .*{words}") as e: D.read_image(tmp_path / "a.png", 8, 1)
    assert "replace it" not in str(e.value)
    (tmp_path / "a.png").write_bytes(b"noise")
    with pytest.raises(D.DataError, match="a.png cannot be read as an image.*replace it"): D.read_image(tmp_path / "a.png", 8, 1)


def test_a_zip_that_points_before_its_start_is_broken(tmp_path):
    assert S.machine_fault(tmp_path, OSError(errno.EINVAL, "Invalid argument")) is None and S.machine_fault(tmp_path, zlib.error("x")) is None and S.machine_fault(tmp_path, OSError("x")) is None


def test_a_pipe_is_not_waited_for(tmp_path, way):
    os.mkfifo(tmp_path / "breastmnist.npz")
    for call in (lambda: D.find_data("breastmnist", data_dir=tmp_path), lambda: D.find_data(tmp_path / "breastmnist.npz"), lambda: D.download_medmnist("breastmnist", data_dir=tmp_path), lambda: D.md5_of(tmp_path / "breastmnist.npz")):
        with pytest.raises(D.DataError, match="breastmnist.npz"): call()


ARRAYS = make_arrays("breastmnist", size=9)
WHOLE = {}
for _packed, _write in ((True, np.savez_compressed), (False, np.savez)):
    _f = io.BytesIO()
    _write(_f, **ARRAYS)
    WHOLE[_packed] = _f.getvalue()


def either_refused_or_right(path):
    "True when the file was read, and then every value is right."
    try: _, splits = use(path)
    except D.DataError as e:
        assert path.name in str(e)
        return False
    for s, d in splits.items(): assert np.array_equal(d.images[:, 0], ARRAYS[f"{s}_images"]) and np.array_equal(d.labels, ARRAYS[f"{s}_labels"][:, 0])
    return True


fuzz = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@fuzz
@given(packed=st.booleans(), where=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(1, 255)), min_size=1, max_size=4))
def test_bytes_that_changed_anywhere(tmp_path, way, packed, where):
    blob = bytearray(WHOLE[packed])
    for at, change in where: blob[int(at * len(blob))] ^= change
    (tmp_path / "mine.npz").write_bytes(blob)
    either_refused_or_right(tmp_path / "mine.npz")


@fuzz
@given(packed=st.booleans(), at=st.integers(0, 1400), change=st.integers(1, 255))
def test_bytes_that_changed_in_the_directory(tmp_path, way, packed, at, change):
    blob = bytearray(WHOLE[packed])
    start = blob.index(b"PK\x01\x02")
    blob[start + at % (len(blob) - start)] ^= change
    (tmp_path / "mine.npz").write_bytes(blob)
    either_refused_or_right(tmp_path / "mine.npz")


@fuzz
@given(packed=st.booleans(), keep=st.floats(0, 1, exclude_max=True))
def test_a_file_cut_anywhere(tmp_path, way, packed, keep):
    (tmp_path / "mine.npz").write_bytes(WHOLE[packed][:int(keep * len(WHOLE[packed]))])
    assert not either_refused_or_right(tmp_path / "mine.npz")


def test_that_check_can_fail(tmp_path, monkeypatch):
    monkeypatch.setattr(zipfile.ZipExtFile, "_update_crc", lambda *a: None)       # nothing compares the check sum
    blob = bytearray(WHOLE[False])
    blob[blob.index(ARRAYS["val_images"].tobytes()) + 5] ^= 1
    (tmp_path / "mine.npz").write_bytes(blob)
    with pytest.raises(AssertionError): either_refused_or_right(tmp_path / "mine.npz")


# images in a folder

@pytest.fixture
def pictures(tmp_path):
    for name in ("benign", "malignant"):
        for i in range(8):
            path = tmp_path / "pictures" / name / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.full((12, 12), 20 * i, np.uint8)).save(path)
    return tmp_path / "pictures"


def png(width, height, data=b"", mode=0):
    "A gray PNG whose header says `width` by `height`."
    def chunk(kind, body): return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, mode, 0, 0, 0)) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("side,words", ((200_000, "too large"), (9_000, "81000000 pixels"), (12_000, "pixels"), (2**31 - 1, "05.png|too large")))
def test_a_png_bomb_is_refused_by_its_header(pictures, side, words):
    (pictures / "benign" / "05.png").write_bytes(png(side, side, zlib.compress(bytes(1000))))
    for call in (lambda: D.find_data(pictures), lambda: D.read_image(pictures / "benign" / "05.png", 28, 1)):
        with pytest.raises(D.DataError, match=words) as e: call()
        assert "05.png" in str(e.value)


def test_only_the_formats_of_the_folder_loader_are_opened(pictures, monkeypatch):
    "PostScript under the name of a picture would start a program; nor is any other format of Pillow's tried."
    from PIL import EpsImagePlugin
    def run(*args, **kwargs): raise AssertionError("Ghostscript was started")
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", run)
    for save in (lambda p: Image.new("L", (12, 12)).save(p, "EPS"), lambda p: Image.new("L", (12, 12)).save(p, "PPM")):
        save(pictures / "benign" / "5.png")
        for call in (lambda: D.find_data(pictures), lambda: D.read_image(pictures / "benign" / "5.png", 28, 1)):
            with pytest.raises(D.DataError, match="5.png cannot be read as an image"): call()
    for ending in D.IMAGE_SUFFIXES:
        Image.new("L", (12, 12), 90).save(pictures / f"a{ending}")
        assert abs(int(D.read_image(pictures / f"a{ending}", 12, 1).mean()) - 90) < 3


def test_a_text_bomb_in_a_png(pictures):
    text = b"note\x00\x00" + zlib.compress(bytes(80 << 20))
    whole = (pictures / "benign" / "5.png").read_bytes()
    body = struct.pack(">I", len(text)) + b"zTXt" + text + struct.pack(">I", zlib.crc32(b"zTXt" + text))
    (pictures / "benign" / "5.png").write_bytes(whole[:33] + body + whole[33:])
    with pytest.raises(D.DataError, match="5.png"): [D.load_medmnist_dataset(pictures, s, size=12) for s in D.SPLITS]


@pytest.mark.filterwarnings("ignore:Tag data larger")
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(where=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(1, 255)), min_size=1, max_size=3), ending=st.sampled_from(("png", "jpg", "bmp", "tif", "webp", "gif")))
def test_image_files_with_bytes_changed(tmp_path, where, ending):
    path = tmp_path / f"one.{ending}"
    Image.fromarray(np.arange(144, dtype=np.uint8).reshape(12, 12)).save(path)
    blob = bytearray(path.read_bytes())
    for at, change in where: blob[int(at * len(blob))] ^= change
    path.write_bytes(blob)
    try: assert D.read_image(path, 12, 1).shape == (12, 12)
    except D.DataError as e: assert path.name in str(e)


# names

EVIL = ["../../etc/passwd", "/absolute", "<script>alert('x')</script>", "$\\frac{1", "a\\b", "{0!r} %s", "=1+1", "|x|", "CON", "‏ü é"]


def test_hostile_class_names_are_shown_and_are_no_path(tmp_path):
    k, rng = len(EVIL), np.random.default_rng(0)
    path = save(tmp_path / "data" / "mine.npz", {f"{s}_{p}": v for s in D.SPLITS for p, v in (("images", rng.integers(0, 256, (2 * k, 9, 9), np.uint8)), ("labels", np.arange(2 * k)[:, None] % k))})
    path.with_suffix(".json").write_text(json.dumps({"classes": EVIL, "title": "<b>$x", "description": "line\nline"}))
    options = load_options("", dataset=str(path), run="t", overrides={"artifacts_dir": str(tmp_path / "out"), "data.audit": False})
    before = set(tmp_path.rglob("*"))
    folder = D.run_data(options)
    assert json.loads((folder / "card.json").read_text())["classes"] == EVIL and (folder / "samples.png").stat().st_size > 1000
    assert [p.name for p in sorted(set(tmp_path.rglob("*")) - before) if not p.is_relative_to(tmp_path / "out") and not p.is_relative_to(tmp_path / "cache")] == []


@pytest.mark.parametrize("name", ("a\nb", "a\rb", "tab\there", "\x1b[31mred", "nul\x00", "\x7f", "\u202egpj.exe", "", "  ", "x" * 201, 5, None, ["a"], "no"))
def test_class_names_that_cannot_be_shown(tmp_path, name):
    path = save(tmp_path / "mine.npz", make_arrays("breastmnist"))
    (tmp_path / "mine.json").write_text(json.dumps({"classes": ["no", name]}))
    with pytest.raises(D.DataError, match="mine.json") as e: D.find_data(path)
    assert not any(c in str(e.value) for c in "\n\r\t\x1b\x00\x7f\u202e")


@pytest.mark.parametrize("name,fine", (("<script>", True), ("a\nb", False), ("\x1b[31mred", False), ("‮gpj", False), ("$x", True)))
def test_class_folders_with_hostile_names(pictures, name, fine):
    (pictures / "benign").rename(pictures / name)
    if fine: assert name in D.folder_spec(pictures).classes
    else:
        with pytest.raises(D.DataError, match="control character"): D.folder_spec(pictures)


@pytest.mark.parametrize("text,words", ((b'{"title": 5}', "expected a text"), (b'{"licence": null}', "expected a text"), (b'{"classes": "ab"}', "list of texts"), (b'{"known_defects": [1]}', "list of texts"), (b"[" * 10**5, "not valid JSON"),
                                        (b"\xff\xfe", "not valid JSON"), (b'{"classes": ["a", "b"]}' + b" " * (1 << 20), "megabyte"), (b'{"task": ["binary"]}', "expected a text")), ids=range(8))
def test_a_json_beside_that_is_hostile(tmp_path, text, words):
    path = save(tmp_path / "mine.npz", make_arrays("breastmnist"))
    (tmp_path / "mine.json").write_bytes(text)
    with pytest.raises(D.DataError, match=words) as e: D.find_data(path)
    assert "mine.json" in str(e.value) and len(str(e.value)) < 500


# servers

class Raw:
    "A server that answers connection after connection as told: each answer is a function of the connection."
    def __init__(self, *answers):
        self.answers, self.asked, self.held = list(answers), [], []
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.socket.getsockname()[1]}"
        threading.Thread(target=self.serve, daemon=True).start()

    def serve(self):
        while True:
            try: connection, _ = self.socket.accept()
            except OSError: return
            threading.Thread(target=self.answer, args=(connection,), daemon=True).start()

    def answer(self, connection):
        request = b""
        while b"\r\n\r\n" not in request and (piece := connection.recv(4096)): request += piece
        self.asked.append(request.decode("latin-1"))
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        try:
            if answer(connection) == "hold": self.held.append(connection)       # neither answered nor closed
            else: connection.close()
        except OSError: connection.close()

    def __enter__(self): return self
    def __exit__(self, *a):
        self.socket.close()
        for connection in self.held: connection.close()


def says(body=b"", *, status="200 OK", length="right", then=None, headers=""):
    "An answer: status, headers, body; `length` may lie; `then` is done before the line is closed."
    said = {"right": f"Content-Length: {len(body)}\r\n", None: ""}.get(length, f"Content-Length: {length}\r\n")
    def answer(connection):
        connection.sendall(f"HTTP/1.1 {status}\r\n{said}{headers}Connection: close\r\n\r\n".encode() + body)
        return then(connection) if then else None
    return answer


def hold(connection): return "hold"
def endless(connection):
    while True: connection.sendall(bytes(1 << 16))


@pytest.fixture
def blob(tmp_path, monkeypatch):
    path = save(tmp_path / "origin" / "bloodmnist.npz", make_arrays("bloodmnist"))
    monkeypatch.setitem(D._info()["bloodmnist"], "MD5", hashlib.md5(path.read_bytes()).hexdigest())
    return path.read_bytes()


def fetch(tmp_path, server, **how):
    "Fetch; whatever happens, the file is whole and right, or not there."
    started = time.monotonic()
    try: return D.download_medmnist("bloodmnist", data_dir=tmp_path / "data", mirror=server.url, **{"pause": .01, "timeout": .5, "retries": 2, **how})
    finally:
        target = tmp_path / "data" / "bloodmnist.npz"
        assert not target.exists() or target.read_bytes() == (tmp_path / "origin" / "bloodmnist.npz").read_bytes()
        assert time.monotonic() - started < 20


MISBEHAVES = {
    "says nothing": (hold, "no answer in time|timed out"),
    "stalls in the middle": (lambda c: says(b"x" * 50_000, length=10**5, then=hold)(c), "kept in"),
    "closes at once": (lambda c: None, "could not fetch"),
    "drops in the middle, always": (lambda c: says(b"x" * 5000, length=10**5)(c), "bytes"),
    "sends something else": (lambda c: says(b"<html>log in</html>")(c), "MD5.*deleted"),
    "sends nothing": (lambda c: says(b"")(c), "MD5|could not"),
    "redirects to a file": (lambda c: says(status="302 Found", headers="Location: file:///etc/passwd\r\n")(c), "could not fetch.*in 1 attempts.*InvalidSchema"),
    "redirects to itself": (lambda c: says(status="302 Found", headers="Location: /bloodmnist.npz\r\n")(c), "in 1 attempts.*TooManyRedirects"),
    "redirects nowhere": (lambda c: says(status="302 Found", headers="Location: http://[x/\r\n")(c), "in 1 attempts.*Invalid IPv6 URL"),
    "has no such file": (lambda c: says(status="404 Not Found")(c), "in 1 attempts.*404"),
    "is broken, always": (lambda c: says(status="500 Internal Server Error")(c), "in 3 attempts.*500"),
    "speaks no HTTP": (lambda c: c.sendall(b"SSH-2.0-OpenSSH\r\n" * 20), "could not fetch"),
    "names an absurd length": (lambda c: says(b"x", length=10**19)(c), "full"),
    "claims a packing it has not": (lambda c: says(b"x" * 500, headers="Content-Encoding: gzip\r\n")(c), "could not fetch"),
}


@pytest.mark.parametrize("how", MISBEHAVES)
def test_a_server_that_misbehaves(tmp_path, blob, how):
    answer, words = MISBEHAVES[how]
    with Raw(answer) as server:
        with pytest.raises(D.DataError, match=words) as e: fetch(tmp_path, server)
    assert "data.mirror" in str(e.value) or "data.data_dir" in str(e.value)                  # what to do
    assert not (tmp_path / "data" / "bloodmnist.npz").exists()


RECOVERS = {
    "500, then right": [lambda b: says(status="500 Internal Server Error"), lambda b: says(b)],
    "silence, then right": [lambda b: hold, lambda b: says(b)],
    "closed, then right": [lambda b: lambda c: None, lambda b: says(b)],
    "half and no length, then right": [lambda b: says(b[: len(b) // 2], length=None), lambda b: says(b), lambda b: says(b)],
    "too short a length, then right": [lambda b: says(b, length=len(b) - 100), lambda b: says(b), lambda b: says(b)],
    "too long a length, then right": [lambda b: says(b, length=len(b) + 100), lambda b: says(status="416 Range Not Satisfiable"), lambda b: says(b)],
    "length is a word": [lambda b: says(b, length="many")],
    "length is negative": [lambda b: says(b, length=-5)],
    "a stall in the middle, then the rest": [lambda b: says(b[:32_768], length=len(b), then=hold), lambda b: says(b[32_768:], status="206 Partial Content", headers=f"Content-Range: bytes 32768-{len(b) - 1}/{len(b)}\r\n")],
    "the rest from a wrong place, then right": [lambda b: says(b[:32_768], length=len(b)), lambda b: says(b[10:], status="206 Partial Content", headers=f"Content-Range: bytes 10-{len(b) - 1}/{len(b)}\r\n"), lambda b: says(b)],
    "the rest of something else, then right": [lambda b: says(b[:32_768], length=len(b)), lambda b: says(bytes(len(b) - 32_768), status="206 Partial Content", headers=f"Content-Range: bytes 32768-{len(b) - 1}/{len(b)}\r\n"), lambda b: says(b)],
}


@pytest.mark.parametrize("how", RECOVERS)
def test_a_server_that_recovers(tmp_path, blob, how):
    with Raw(*(answer(blob) for answer in RECOVERS[how])) as server:
        try: report = fetch(tmp_path, server)
        except D.DataError as e:                                   # a whole answer with the wrong MD5 is not asked for again by itself
            assert "MD5" in str(e) and "try again" in str(e)
            report = fetch(tmp_path, server)
    assert report["status"] == "downloaded" and report["md5"] == hashlib.md5(blob).hexdigest()
    assert sorted(p.name for p in (tmp_path / "data").glob("[!.]*")) == ["bloodmnist.npz"]


def test_an_answer_without_end_is_cut_off(tmp_path, blob, monkeypatch):
    monkeypatch.setattr(D, "MOST_BYTES", 1 << 20)
    with Raw(says(length=None, then=endless)) as server:
        with pytest.raises(D.DataError, match="in 1 attempts.*more than 1048576 bytes"): fetch(tmp_path, server)
    assert not (tmp_path / "data" / "bloodmnist.npz").exists() and not (tmp_path / "data" / "bloodmnist.npz.part").exists()


@pytest.mark.parametrize("mirror", ("file:///etc", "ftp://127.0.0.1/x", "http://", "://"))
def test_a_mirror_that_is_no_web_address(tmp_path, blob, mirror):
    with pytest.raises(D.DataError, match="could not fetch.*data.mirror"): D.download_medmnist("bloodmnist", data_dir=tmp_path / "data", mirror=mirror, pause=60)
    assert not list((tmp_path / "data").glob("[!.]*"))
