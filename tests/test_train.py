"Training: each task, equal bits, loss turning NaN, wrong checkpoints, and CUDA paths as far as a CPU can cover them."
import csv
import math
from functools import partial

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from xaimed import train
from xaimed.config import TrainOptions, XaimedError, load_options, read_manifest, stage_dir
from xaimed.data import augment_batch, build_loaders
from xaimed.models import build_model
from xaimed.train import (COLUMNS, RECIPES, Diverged, load_checkpoint, load_trained_model, lr_factor, make_loss, make_optimizer, make_schedule,
                          predict_logits, recipe_for, run_training, train_one_epoch, validate_one_epoch)


def options(tmp_path, **overrides):
    "A run of seconds: few images of 16 pixels, the smallest network."
    return load_options("", run="t", overrides={"artifacts_dir": str(tmp_path / "artifacts"), "data.data_dir": str(tmp_path), "device": "cpu", "model.name": "resnet10",
                                                "data.size": 16, "data.batch_size": 16, "synthetic.n_train": 33, "synthetic.n_val": 16, "synthetic.n_test": 16,
                                                "train.epochs": 2, **overrides})


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    run = options(tmp_path_factory.mktemp("trained"))
    return run, run_training(run)


def test_the_stage_leaves_its_files(trained):
    run, folder = trained
    assert folder == stage_dir(run, "train") and {p.name for p in folder.iterdir()} >= {"best.pt", "last.pt", "history.csv", "curves.png", "manifest.json"}
    with open(folder / "history.csv", newline="") as f: rows = list(csv.DictReader(f))
    assert len(rows) == 2 and tuple(rows[0]) == COLUMNS
    best, last = load_checkpoint(folder / "best.pt"), load_checkpoint(folder / "last.pt")
    assert last["epoch"] == 2 and math.isclose(best["metrics"]["val_loss"], min(float(r["val_loss"]) for r in rows), rel_tol=1e-4)
    assert best["options"]["train"]["epochs"] == 2 and set(best["model"]) == {"name", "num_classes", "in_channels", "stem", "image_size"}
    assert {"optimizer", "scheduler", "random", "history", "setting"} == set(last["training"]) and "training" not in best
    facts = read_manifest(folder)["facts"]
    assert facts["recipe"]["optimizer"] == "adamw" and facts["best_epoch"] == best["epoch"] and facts["precision"] == train.resolve_precision("auto", "cpu") and facts["processes"] == 1


def test_unchanged_is_kept_and_the_model_comes_back(trained):
    run, folder = trained
    before = (folder / "best.pt").stat().st_mtime_ns
    assert run_training(run) == folder and (folder / "best.pt").stat().st_mtime_ns == before
    for which in ("best", "last"):
        model, checkpoint = load_trained_model(run, which)
        assert not model.training and all(torch.equal(v, checkpoint["state_dict"][k]) for k, v in model.state_dict().items())
    with pytest.raises(ValueError, match="Known: best, last"): load_trained_model(run, "first")


@pytest.mark.parametrize("change, message", [({"model.name": "resnet18"}, "model 'resnet10'.*'resnet18'"), ({"model.stem": "imagenet"}, "stem 'small'.*'imagenet'"),
                                             ({"synthetic.num_classes": 3}, "classes"), ({"synthetic.task": "multi-label"}, "task 'multi-class'"), ({"data.as_rgb": False}, "in_channels 3")])
def test_a_checkpoint_of_another_run_is_refused(trained, tmp_path, change, message):
    _, folder = trained
    with pytest.raises(ValueError, match=message): load_trained_model(options(tmp_path, **change), folder=folder)


def test_a_checkpoint_of_another_data_set_is_refused(trained, tmp_path, monkeypatch):
    run, folder = trained
    checkpoint = load_checkpoint(folder / "best.pt")
    train.save_checkpoint(tmp_path / "best.pt", {**checkpoint, "dataset": "breastmnist"})
    with pytest.raises(ValueError, match="dataset 'breastmnist', but the run asks for 'synthetic'"): load_trained_model(run, folder=tmp_path)
    checkpoint["state_dict"].pop("fc.weight")
    train.save_checkpoint(tmp_path / "best.pt", checkpoint)
    with pytest.raises(ValueError, match="do not fit its own description.*fc.weight"): load_trained_model(run, folder=tmp_path)


def test_files_that_are_no_checkpoints(tmp_path):
    with pytest.raises(FileNotFoundError, match="run the train stage first"): load_checkpoint(tmp_path / "best.pt")
    class Bomb:
        def __reduce__(self): return (tmp_path.joinpath("boom").touch, ())
    torch.save({"format": "xaimed-checkpoint", "state_dict": Bomb()}, tmp_path / "bomb.pt")
    (tmp_path / "text.pt").write_text("not a checkpoint")
    (tmp_path / "empty.pt").touch()
    torch.save({"format": "xaimed-checkpoint", "version": 1, "state_dict": {}}, tmp_path / "whole.pt")
    (tmp_path / "truncated.pt").write_bytes((tmp_path / "whole.pt").read_bytes()[:300])
    for name in ("bomb.pt", "text.pt", "empty.pt", "truncated.pt", "whole.pt"):
        with pytest.raises(ValueError, match=name): load_checkpoint(tmp_path / name)
    assert not (tmp_path / "boom").exists()


def test_same_seed_equal_bits(trained, tmp_path):
    _, folder = trained
    again, other = run_training(options(tmp_path / "a")), run_training(options(tmp_path / "b", seed=1))
    once, twice, third = (load_checkpoint(f / "last.pt")["state_dict"] for f in (folder, again, other))
    assert all(torch.equal(once[k], twice[k]) for k in once)
    assert not torch.equal(once["conv1.weight"], third["conv1.weight"])


@pytest.mark.parametrize("task, classes", [("binary", 2), ("ordinal", 3), ("multi-label", 3)])
@pytest.mark.parametrize("recipe", ["modern", "medmnist"])
def test_every_task_and_recipe(tmp_path, task, classes, recipe):
    run = options(tmp_path, **{"synthetic.task": task, "synthetic.num_classes": classes, "train.recipe": recipe, "train.epochs": 1, "data.as_rgb": False})
    model, checkpoint = load_trained_model(run, folder=run_training(run))
    assert checkpoint["task"] == task and model.fc.out_features == classes and math.isfinite(checkpoint["metrics"]["val_loss"])


def test_the_test_split_is_not_opened(tmp_path, monkeypatch):
    opened = []
    monkeypatch.setattr(train, "build_loaders", lambda options, transform, *, splits, **k: opened.extend(splits) or build_loaders(options, transform, splits=splits, **k))
    run_training(options(tmp_path, **{"train.epochs": 1}))
    assert opened == ["train", "val"]


def test_a_loss_that_turns_nan_keeps_the_last_good_epoch_and_the_old_result(tmp_path, monkeypatch):
    good = options(tmp_path, **{"train.epochs": 1})
    folder = run_training(good)
    calls = []
    def spoilt(x, **how):
        calls.append(1)
        return x if len(calls) <= 4 else x * math.nan          # 33 images: 2 steps an epoch, the one left over is skipped
    monkeypatch.setattr(train, "augment_batch", spoilt)
    with pytest.raises(Diverged, match=r"stopped in epoch 3: the loss became nan at step 1\. best\.pt holds epoch \d, last\.pt epoch 2.*lower train\.lr"):
        run_training(options(tmp_path, **{"train.epochs": 5}))
    failed = folder.with_name("t.failed")
    assert load_checkpoint(failed / "last.pt")["epoch"] == 2 and (failed / "history.csv").read_text().count("\n") == 3
    assert all(torch.isfinite(v).all() for v in load_checkpoint(failed / "best.pt")["state_dict"].values())
    assert load_checkpoint(folder / "last.pt")["epoch"] == 1, "the old result is gone"


NO_ROOM = [torch.OutOfMemoryError("CUDA out of memory."), MemoryError(), *map(RuntimeError, ("DefaultCPUAllocator: can't allocate memory: you tried", "[enforce fail] DefaultCPUAllocator: not enough memory",
           "CUDA error: out of memory", "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`", "MPS backend out of memory", "std::bad_alloc"))]


@pytest.mark.parametrize("error", NO_ROOM[:1])
def test_a_training_without_room_says_what_to_change_and_keeps_the_epochs(tmp_path, monkeypatch, error):
    run, steps, step = options(tmp_path, **{"train.precision": "fp32"}), [], train.take_step
    def no_room(*args, **kwargs):
        steps.append(1)
        if len(steps) == 3: raise error                                              # two steps an epoch
        step(*args, **kwargs)
    monkeypatch.setattr(train, "take_step", no_room)
    with pytest.raises(XaimedError, match=r"stopped in epoch 2: memory ran out on cpu with train batches of 16 images\. best\.pt holds epoch 1, last\.pt epoch 1.*smaller data\.batch_size \(.*or train\.precision=bf16$"): run_training(run)
    again = []
    monkeypatch.setattr(train, "take_step", lambda *a, **k: (again.append(1), step(*a, **k)))
    assert len(load_checkpoint(run_training(run) / "last.pt")["training"]["history"]) == 2 and len(again) == 2   # the second epoch only


def test_validation_without_room_names_its_own_batches(tmp_path, monkeypatch):
    def no_room(*args, **kwargs): raise MemoryError
    monkeypatch.setattr(train, "validate_one_epoch", no_room)
    with pytest.raises(XaimedError, match=r"with val batches of \d+ images\. no epoch.*smaller data\.batch_size and eval\.batch_size"): run_training(options(tmp_path))


def test_another_error_in_training_is_not_taken_for_memory(tmp_path, monkeypatch):
    def broken(*args, **kwargs): raise RuntimeError("shapes do not match")
    monkeypatch.setattr(train, "take_step", broken)
    with pytest.raises(RuntimeError, match="shapes do not match"): run_training(options(tmp_path))


@pytest.mark.parametrize("error", NO_ROOM)
def test_prediction_without_room_goes_on_with_less(error, caplog):
    class Narrow(nn.Module):
        "Room for so many images."
        room, seen = 3, []
        def forward(self, x):
            self.seen.append(len(x))
            if len(x) > self.room: raise error
            return x.mean((2, 3))
    images, labels = torch.rand(18, 2, 4, 4), torch.arange(18)
    net = Narrow()
    logits, got = predict_logits(net, [(images[:8], labels[:8]), (images[8:16], labels[8:16]), (images[16:], labels[16:])])
    torch.testing.assert_close(logits, images.mean((2, 3)))
    assert got.tolist() == labels.tolist() and net.seen == [8, 4, *[2] * 9] and "out of memory with 8 images at once: going on with 4" in caplog.text
    Narrow.room = 0
    with pytest.raises(type(error)): predict_logits(net, [(images, labels)])


def test_a_first_epoch_that_fails_says_that_there_is_no_checkpoint(tmp_path, monkeypatch):
    monkeypatch.setattr(train, "augment_batch", lambda x, **how: x * math.inf)
    with pytest.raises(Diverged, match="epoch 1.*no epoch was finished"): run_training(options(tmp_path))


@pytest.mark.skipif(torch.cuda.is_available(), reason="CUDA is there")
def test_cuda_asked_for_and_absent(tmp_path):
    with pytest.raises(ValueError, match="no CUDA device here.*device: cpu"): run_training(options(tmp_path, device="cuda"))
    assert not (tmp_path / "artifacts" / "train").exists()


def test_unknown_recipe_is_found_before_anything_is_made(tmp_path):
    with pytest.raises(ValueError, match="Near: modern"): run_training(options(tmp_path, **{"train.recipe": "moderm"}))
    assert not (tmp_path / "artifacts").exists()


@pytest.mark.parametrize("total", [1, 2, 3, 4, 7, 100])
@pytest.mark.parametrize("schedule", ["one_cycle", "milestones"])
def test_learning_rates_stay_between_zero_and_the_peak(total, schedule):
    values = [lr_factor(s, total, schedule) for s in range(total)]
    assert all(0 < v <= 1 for v in values) and max(values[: max(1, total // 2)]) > 0.02


def test_options_take_the_place_of_the_recipe():
    recipe = recipe_for(TrainOptions(recipe="medmnist", lr=0.5, weight_decay=0.1, label_smoothing=0.2, augment=True, select="val_loss"))
    assert (recipe.optimizer, recipe.lr, recipe.weight_decay, recipe.label_smoothing, recipe.augment, recipe.select) == ("adam", 0.5, 0.1, 0.2, True, "val_loss")


def test_gradients_are_clipped():
    model = nn.Linear(1, 2, bias=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    before = model.weight.detach().clone()
    train_one_epoch(model, [(torch.full((1, 1), 1e4), torch.tensor([0]))], make_loss("binary"), optimizer, grad_clip=0.01)
    assert (model.weight - before).norm() <= 0.0101


def test_a_loader_that_cannot_be_used():
    model = build_model("resnet10", 2, image_size=16)
    with pytest.raises(ValueError, match="batch norm needs two"): train_one_epoch(model, [(torch.zeros(1, 3, 16, 16), torch.tensor([0]))], make_loss("binary"), make_optimizer(model, RECIPES["modern"]))
    with pytest.raises(ValueError, match="loader is empty"): predict_logits(model, [])


def test_validation_of_a_spoilt_model_is_nan_and_not_an_error():
    model = nn.Linear(1, 2)
    nn.init.constant_(model.weight, math.nan)
    result = validate_one_epoch(model, [(torch.ones(4, 1), torch.tensor([0, 1, 0, 1]))], make_loss("binary"), task="binary")
    assert math.isnan(result["loss"]) and math.isnan(result["auc"])


@pytest.mark.parametrize("task", ["binary", "multi-label"])
def test_cuda_path_hides_no_cpu_tensor(monkeypatch, task):
    """Tensors without data that know their device: an operation between a CPU and a CUDA tensor raises, as on a GPU.
    Without a CUDA build the backward engine and CUDA's autocast cannot run, so gradients are put in by hand and the arithmetic is fp32."""
    monkeypatch.setattr(torch.Tensor, "item", lambda self: 0.5)        # there are no values to read
    monkeypatch.setattr(torch.Tensor, "__bool__", lambda self: True)
    with FakeTensorMode():
        with torch.device("cuda"): model = build_model("resnet10", 3, image_size=16)
        y = torch.zeros(4, 3) if task == "multi-label" else torch.zeros(4, dtype=torch.long)
        monkeypatch.setattr(torch.Tensor, "backward", lambda loss: [setattr(p, "grad", torch.empty_like(p)) for p in model.parameters()])
        loader = [(torch.zeros(4, 3, 16, 16), y)] * 2
        optimizer = make_optimizer(model, RECIPES["modern"])
        schedule = make_schedule(optimizer, RECIPES["modern"], epochs=1, steps_per_epoch=2)
        result = train_one_epoch(model, loader, make_loss(task, 0.1), optimizer, device="cuda", scheduler=schedule, grad_clip=1.0,
                                 augment=partial(augment_batch, flips="horizontal"))
        logits, labels = predict_logits(model, loader, device="cuda")
    assert result["n"] == 8 and logits.device.type == labels.device.type == "cpu" and logits.dtype == torch.float32
    assert {p.device.type for p in model.parameters()} == {"cuda"} and all(p.grad.device.type == "cuda" for p in model.parameters())


def test_bf16_trains_on_the_cpu_and_leaves_weights_in_float32():
    model = build_model("resnet10", 2, image_size=16, seed=0)
    x, y = torch.randn(8, 3, 16, 16, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1] * 4)
    losses = [train_one_epoch(model, [(x, y)], make_loss("binary"), optimizer, precision="bf16")["loss"] for optimizer in [make_optimizer(model, RECIPES["medmnist"])] for _ in range(4)]
    assert losses[-1] < losses[0] and {p.dtype for p in model.parameters()} == {torch.float32}


def test_the_cuda_check_would_notice(monkeypatch):
    "The same on a model that forgot a tensor on the CPU."
    class Forgetful(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.offset = nn.Linear(2, 2), torch.ones(3, 2)
        def forward(self, x): return self.layer(x) + self.offset
    with FakeTensorMode():
        model = Forgetful()
        with torch.device("cuda"): model.layer = nn.Linear(2, 2)
        with pytest.raises(RuntimeError, match="cpu"): predict_logits(model, [(torch.zeros(3, 2), torch.zeros(3))], device="cuda")


def test_what_auto_means(monkeypatch):
    "By what the hardware says of itself: a CPU with and without bf16, CUDA of capability 7 and 9."
    for has in (True, False):
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: has, raising=False)
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False, raising=False)
        assert train.resolve_precision("auto", "cpu") == ("bf16" if has else "fp32")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for capability, expected in (((7, 5), "fp16"), ((8, 0), "bf16"), ((9, 0), "bf16")):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: capability)
        assert train.resolve_precision("auto", "cuda") == expected
    assert train.resolve_precision("auto", "mps") == "fp32" and train.resolve_precision("fp16", "cuda") == "fp16"
    with pytest.raises(ValueError, match="Near: bf16"): train.resolve_precision("bf61", "cpu")


def test_evaluation_is_fp32_unless_asked():
    model, x = nn.Linear(64, 2), torch.randn(4, 64, generator=torch.Generator().manual_seed(0))
    loader = [(x, torch.zeros(4, dtype=torch.long))]
    assert torch.equal(predict_logits(model, loader)[0], model(x).detach())
    assert not torch.equal(predict_logits(model, loader, precision="bf16")[0], model(x).detach())


@pytest.mark.parametrize("clip", [None, 1.0])
def test_fp16_scales_the_loss_and_leaves_out_a_step_that_overflowed(clip):
    "float32 stands in for fp16's arithmetic; what is tested is the scaler: equal weights after a good step, no step and half the scale after an overflow."
    torch.manual_seed(0)
    plain, scaled = nn.Linear(3, 2), nn.Linear(3, 2)
    scaled.load_state_dict(plain.state_dict())
    x, y, scaler = torch.randn(4, 3), torch.tensor([0, 1, 1, 0]), train.make_scaler("fp16", "cpu")
    for model, s in ((plain, None), (scaled, scaler)): train_one_epoch(model, [(x, y)], make_loss("binary"), make_optimizer(model, RECIPES["medmnist"]), scaler=s, grad_clip=clip)
    assert torch.allclose(plain.weight, scaled.weight, atol=1e-6)
    before = scaled.weight.detach().clone()
    scaled.weight.register_hook(lambda g: g * math.inf)
    train_one_epoch(scaled, [(x, y)], make_loss("binary"), make_optimizer(scaled, RECIPES["medmnist"]), scaler=scaler, grad_clip=clip)
    assert torch.equal(scaled.weight, before) and scaler.get_scale() == 2048


def test_the_optimizer_is_fused_and_changes_nothing_but_the_speed():
    torch.manual_seed(0)
    one, two = nn.Linear(5, 3), nn.Linear(5, 3)
    two.load_state_dict(one.state_dict())
    ours = make_optimizer(one, RECIPES["modern"])
    assert ours.defaults["fused"]
    theirs = torch.optim.AdamW([{"params": [two.weight], "weight_decay": 0.05}, {"params": [two.bias], "weight_decay": 0.0}], lr=2e-3, foreach=False)
    for _ in range(5):
        x = torch.randn(4, 5)
        for model, optimizer in ((one, ours), (two, theirs)): train_one_epoch(model, [(x, torch.tensor([0, 1, 2, 0]))], make_loss("multi-class"), optimizer)
    assert torch.allclose(one.weight, two.weight, atol=1e-6) and torch.allclose(one.bias, two.bias, atol=1e-6)


def test_compiling(monkeypatch):
    monkeypatch.setattr(train, "can_compile", lambda device: True)
    asked = {(c, d, n): train.resolve_compile(c, d, n) for c in ("auto", "on", "off") for d in ("cpu", "cuda") for n in (10, train.BREAK_EVEN)}
    assert {k for k, v in asked.items() if v} == {("auto", "cuda", train.BREAK_EVEN), *(("on", d, n) for d in ("cpu", "cuda") for n in (10, train.BREAK_EVEN))}
    monkeypatch.setattr(train, "can_compile", lambda device: False)
    assert not train.resolve_compile("auto", "cuda", train.BREAK_EVEN)
    with pytest.raises(train.XaimedError, match="no C\\+\\+ compiler for cpu: install one, or set train.compile=off"): train.resolve_compile("on", "cpu", 1)


def test_only_full_batches_go_through_the_compiled_network():
    model, seen = nn.Linear(1, 2), []
    def compiled(x):
        seen.append(len(x))
        return model(x)
    loader = [(torch.ones(n, 1), torch.zeros(n, dtype=torch.long)) for n in (4, 4, 3)]
    assert train_one_epoch(model, loader, make_loss("binary"), make_optimizer(model, RECIPES["medmnist"]), forward=compiled)["n"] == 11 and seen == [4, 4]


def test_a_compiled_network_trains_the_same():
    "What torch.compile returns is a module with ways of its own (it has no truth value); here with the backend that changes no arithmetic."
    found = []
    for compiled in (False, True):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 2))
        forward = torch.compile(model, backend="eager", dynamic=False) if compiled else None
        loader = [(torch.randn(n, 2), torch.zeros(n, dtype=torch.long)) for n in (4, 4, 3)]
        train_one_epoch(model, loader, make_loss("binary"), make_optimizer(model, RECIPES["medmnist"]), forward=forward)
        found.append(model[0].weight.detach().clone())
    assert torch.equal(*found)


@pytest.mark.parametrize("deterministic", [True, False])
def test_kernel_choice_is_put_back_even_after_an_error(deterministic, monkeypatch):
    import os
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    def state(): return torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark, os.environ.get("CUBLAS_WORKSPACE_CONFIG")
    before = state()
    with pytest.raises(KeyError), train.kernel_choice("cuda", deterministic):
        assert state() == ((True, True, False, ":4096:8") if deterministic else (False, False, True, None))
        raise KeyError
    assert state() == before
    with train.kernel_choice("cpu", deterministic): assert state() == before


def test_no_reading_in_the_loop_on_a_gpu(monkeypatch):
    "Reading a number makes the CPU wait for the GPU. Counted on tensors without data that say they are on CUDA: as many reads in an epoch of 2 steps as in one of 9."
    reads = []
    monkeypatch.setattr(torch.Tensor, "item", lambda self: reads.append("item") or 0.5)
    monkeypatch.setattr(torch.Tensor, "__bool__", lambda self: reads.append("bool") or True)
    monkeypatch.setattr(torch.Tensor, "__int__", lambda self: reads.append("int") or 1)
    def epoch(n):
        reads.clear()
        with FakeTensorMode():
            with torch.device("cuda"): model = nn.Sequential(nn.Flatten(), nn.Linear(12, 2))
            optimizer = make_optimizer(model, RECIPES["modern"])
            with monkeypatch.context() as patch:
                patch.setattr(torch.Tensor, "backward", lambda loss: [setattr(p, "grad", torch.empty_like(p)) for p in model.parameters()])
                train_one_epoch(model, [(torch.zeros(4, 3, 2, 2), torch.zeros(4, dtype=torch.long))] * n, make_loss("binary"), optimizer, device="cuda", grad_clip=1.0)
        return len(reads)
    assert epoch(2) == epoch(9) <= 4


@pytest.mark.parametrize("change", [{"device": "cuda"}, {"precision": "fp16"}, {"compiled": True}, {"processes": 2}])
def test_a_training_of_another_kind_of_machine_starts_again_and_says_so(trained, tmp_path, caplog, change):
    "The options may be equal: `auto` means another thing elsewhere."
    for name in ("best.pt", "last.pt"): (tmp_path / name).write_bytes((trained[1] / name).read_bytes())
    setting = load_checkpoint(tmp_path / "last.pt")["training"]["setting"]
    assert setting == {"device": "cpu", "precision": train.resolve_precision("auto", "cpu"), "compiled": False, "processes": 1}
    assert train.read_last(tmp_path, "val_loss", setting)["epoch"] == 2 and not caplog.text
    (name, now), = change.items()
    assert train.read_last(tmp_path, "val_loss", {**setting, **change}) is None
    assert f"starting again from the first epoch, because {name} was {setting[name]} and is now {now}" in caplog.text


def test_what_cuda_left_does_not_stop_a_training_on_the_cpu(tmp_path, monkeypatch, caplog):
    "Interrupted where `auto` was fp16 on CUDA; here there is none of it. (What CUDA left is made of what the CPU left.)"
    run, real, calls = options(tmp_path), train.augment_batch, []
    def interrupt(x, **how):
        calls.append(1)
        if len(calls) == 4: raise KeyboardInterrupt              # in the second of two epochs
        return real(x, **how)
    with monkeypatch.context() as patch:
        patch.setattr(train, "augment_batch", interrupt)
        with pytest.raises(KeyboardInterrupt): run_training(run)
    part = stage_dir(run, "train").with_name(".t.part")
    last = load_checkpoint(part / "last.pt")
    last["training"]["setting"].update(device="cuda", precision="fp16")
    last["training"]["random"]["own"]["augment"] = torch.zeros(16, dtype=torch.uint8)
    torch.save(last, part / "last.pt")
    folder = run_training(run)
    assert load_checkpoint(folder / "last.pt")["epoch"] == 2 and "because device was cuda and is now cpu" in caplog.text
