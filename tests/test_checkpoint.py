"Checkpoint files that are damaged, hostile or of something else; random states that come back."
import errno
import io
import random
import zipfile

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from xaimed.checkpoint import FORMAT, NEEDED, VERSION, load_checkpoint, random_states, restore_random_states, restore_training, save_checkpoint, training_state

ABOUT = {"model": {"name": "resnet10"}, "dataset": "toy", "task": "binary", "classes": ["no", "yes"], "options": {}, "epoch": 1, "metrics": {}}


def example(): return {**ABOUT, "state_dict": {"w": torch.arange(6.0).reshape(2, 3), "n": torch.tensor(3)}}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    "A good file's bytes, and a place to put bad ones."
    folder = tmp_path_factory.mktemp("files")
    return save_checkpoint(folder / "good.pt", example()).read_bytes(), folder / "bad.pt"


def same_or_refused(path):
    "A damaged file is either refused, as a file of a wrong kind, or it still holds what was written."
    try: got = load_checkpoint(path)
    except ValueError as e: return str(e).startswith("bad.pt ")
    return all(torch.equal(v, got["state_dict"][k]) for k, v in example()["state_dict"].items()) and all(got[k] == ABOUT[k] for k in ABOUT)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_random_bytes_turned_give_no_other_weights(whole, data):
    content, path = bytearray(whole[0]), whole[1]
    for place in data.draw(st.lists(st.integers(0, len(content) - 1), min_size=1, max_size=4)): content[place] ^= data.draw(st.integers(1, 255))
    path.write_bytes(content)
    assert same_or_refused(path)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_file_cut_anywhere_is_refused(whole, data):
    whole[1].write_bytes(whole[0][:data.draw(st.integers(0, len(whole[0]) - 1))])
    with pytest.raises(ValueError, match="^bad.pt "): load_checkpoint(whole[1])


def test_every_bit_of_a_weight_counts(whole):
    "The bytes of the weights lie in the file as they are; one bit of them turned is found."
    start = whole[0].index(torch.arange(6.0).numpy().tobytes())
    for place in range(start, start + 24):
        content = bytearray(whole[0])
        content[place] ^= 1
        whole[1].write_bytes(content)
        with pytest.raises(ValueError, match="damaged"): load_checkpoint(whole[1])


class Calls:
    "A pickle that calls a function while it is read."
    def __init__(self, function, *args): self.call = function, args
    def __reduce__(self): return self.call


@pytest.mark.parametrize("place", ["state_dict", "training", "options"])
@pytest.mark.parametrize("legacy", [False, True])
def test_hostile_pickles_are_not_run(tmp_path, place, legacy):
    flag = tmp_path / "run"
    torch.save({"format": FORMAT, "version": VERSION, **example(), place: {"x": Calls(exec, f"open({str(flag)!r}, 'w')")}}, tmp_path / "best.pt", _use_new_zipfile_serialization=not legacy)
    with pytest.raises(ValueError, match="nothing in it was run"): load_checkpoint(tmp_path / "best.pt")
    assert not flag.exists()


def test_a_bomb_is_refused_before_it_is_unpacked(tmp_path):
    "A quarter of a gigabyte of zeros in 300 kB: refused by its form, without reading a member."
    with zipfile.ZipFile(tmp_path / "best.pt", "w", zipfile.ZIP_DEFLATED) as z:
        with z.open("archive/data/0", "w") as member:
            for _ in range(16): member.write(bytes(1 << 24))
    assert (tmp_path / "best.pt").stat().st_size < 2e6
    with pytest.raises(ValueError, match="best.pt is not a checkpoint"): load_checkpoint(tmp_path / "best.pt")


@pytest.mark.parametrize("legacy", [False, True])
def test_a_file_that_asks_for_memory_is_refused(tmp_path, legacy):
    "A few hundred bytes that make a bytearray of a tenth of a gigabyte; PyTorch permits that function."
    asks = {"format": FORMAT, "version": VERSION, **example(), "options": {"x": Calls(bytearray, 10**8)}}
    torch.save(asks, tmp_path / "best.pt", _use_new_zipfile_serialization=not legacy)
    with pytest.raises(ValueError, match="best.pt is not a checkpoint.*mentions bytearray.*train again"): load_checkpoint(tmp_path / "best.pt")


def test_memory_that_runs_out_while_reading_is_said(tmp_path, monkeypatch):
    save_checkpoint(tmp_path / "best.pt", example())
    def fails(*args, **kwargs): raise MemoryError
    monkeypatch.setattr(torch, "load", fails)
    with pytest.raises(ValueError, match="best.pt is not a checkpoint.*MemoryError"): load_checkpoint(tmp_path / "best.pt")


@pytest.mark.parametrize("lacking", sorted(NEEDED))
def test_what_a_checkpoint_needs(tmp_path, lacking):
    partial = {k: v for k, v in example().items() if k != lacking}
    with pytest.raises(ValueError, match=f"needs {lacking}"): save_checkpoint(tmp_path / "best.pt", partial)
    assert not any(tmp_path.iterdir())


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = save_checkpoint(tmp_path / "last.pt", example())
    before = path.read_bytes()
    def full_disk(value, file):
        file.write(before[:100])
        raise OSError("No space left on device")
    monkeypatch.setattr(torch, "save", full_disk)
    with pytest.raises(OSError): save_checkpoint(path, {**example(), "epoch": 2})
    assert path.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ["last.pt"]


@pytest.mark.parametrize("normals", [0, 1, 2])
def test_every_generator_stands_where_it_stood(normals):
    "With an odd number of normal draws Python and numpy keep the second of a pair: it belongs to the state."
    own = {"a": torch.Generator().manual_seed(1), "b": torch.Generator().manual_seed(2)}
    def draw(): return [random.random(), random.gauss(0, 1), np.random.rand(), np.random.standard_normal(), torch.rand(1).item(), torch.randn(1).item(), *(torch.rand(1, generator=g).item() for g in own.values())]
    for _ in range(normals): random.gauss(0, 1), np.random.standard_normal()
    file = io.BytesIO()
    torch.save(random_states(own), file)
    first = draw()
    draw()
    file.seek(0)
    restore_random_states(torch.load(file, weights_only=True), own)
    assert draw() == first
    restore_random_states(random_states(own), own)


def test_optimizer_averages_and_scaler_come_back():
    def make():
        model = nn.Linear(2, 1)
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, fused=True)
        return model, {"optimizer": optimizer, "scheduler": torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5), "scaler": torch.amp.GradScaler("cpu", init_scale=8.0)}
    model, parts = make()
    model(torch.ones(3, 2)).sum().backward()
    parts["optimizer"].step(); parts["scheduler"].step()
    checkpoint = {"state_dict": model.state_dict(), "training": training_state(parts, [{"epoch": 1}], {})}
    other, fresh = make()
    fresh["scaler"] = torch.amp.GradScaler("cpu", init_scale=2.0)
    assert restore_training(checkpoint, other, fresh, {}) == [{"epoch": 1}]
    assert torch.equal(other.weight, model.weight) and fresh["scaler"].get_scale() == 8.0 and fresh["optimizer"].param_groups[0]["lr"] == 0.05
    for a, b in zip(fresh["optimizer"].state.values(), parts["optimizer"].state.values()): assert all(torch.equal(a[k], b[k]) for k in ("step", "exp_avg", "exp_avg_sq"))


@pytest.mark.parametrize("number", [errno.EACCES, errno.EIO])
def test_a_file_that_cannot_be_read_is_not_called_damaged(tmp_path, monkeypatch, number):
    "No right to read it, or a disk that fails: the file may be good, and a training that was stopped must not be begun anew."
    from xaimed import checkpoint, train
    save_checkpoint(tmp_path / "last.pt", example())
    def fails(path): raise OSError(number, "as the system says", str(path))
    monkeypatch.setattr(checkpoint, "read_tensors", fails)
    for read in (lambda: load_checkpoint(tmp_path / "last.pt"), lambda: train.read_last(tmp_path, "val_loss")):
        with pytest.raises(OSError, match="as the system says.*last.pt") as caught: read()
        assert caught.value.errno == number


def test_the_generator_of_mps_is_kept(monkeypatch):
    "No such device is needed: its generator is a stand-in."
    stands = [torch.tensor([7], dtype=torch.uint8)]
    monkeypatch.setattr(torch.mps, "get_rng_state", lambda: stands[0])
    monkeypatch.setattr(torch.mps, "set_rng_state", lambda state: stands.__setitem__(0, state))
    kept = random_states({}, "mps")
    stands[0] = torch.tensor([8], dtype=torch.uint8)
    restore_random_states(kept, {}, "mps")
    assert stands[0].item() == 7 and random_states({})["mps"] is None
