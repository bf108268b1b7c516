"xaimed.explain: equal to captum, nothing left behind, bad questions refused, the stage's files."
import copy
import csv
import threading

import numpy as np
import pytest
import torch
from captum.attr import IntegratedGradients, LayerAttribution, LayerGradCam
from torch import nn

from xaimed import explain
from xaimed.explain import (BASELINES, METHODS, RULES, Attribution, Explained, attribute, choose_targets, draw_samples, flat_maps, grad_cam,
                            integrated_gradients, make_baseline, read_explanations, register, sample_titles, select_samples, write_explanations)
from xaimed.models import build_model


def small_net(channels=3, classes=4, dtype=torch.float32, seed=0):
    "A small net with batch norm statistics and in-place ReLUs, in training mode."
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Conv2d(channels, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(inplace=True), nn.Conv2d(8, 8, 3, stride=2), nn.ReLU(inplace=True),
                        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, classes)).to(dtype).train()
    for _ in range(20): net(torch.randn(16, channels, 12, 12, dtype=dtype))
    return net


def batch(n=5, channels=3, size=(20, 14), dtype=torch.float32, seed=1):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(n, channels, *size, generator=g, dtype=dtype).clamp(-1, 1), torch.randint(0, 4, (n,), generator=g)


def state_of(model):
    "Everything that an explanation must leave alone."
    return ([m.training for m in model.modules()], [p.requires_grad for p in model.parameters()],
            [None if p.grad is None else p.grad.clone() for p in model.parameters()], [t.clone() for t in model.state_dict().values()],
            sum(len(m._forward_hooks) + len(m._forward_pre_hooks) + len(m._backward_hooks) + len(m._backward_pre_hooks) for m in model.modules()))


def assert_same_state(a, b):
    assert a[:2] == b[:2] and a[4] == b[4]
    for x, y in zip(a[2] + a[3], b[2] + b[3]): assert (x is None and y is None) or torch.equal(x, y)


def captum_cam(model, layer, x, target):
    model = copy.deepcopy(model).eval()
    coarse = LayerGradCam(model, model.get_submodule(layer)).attribute(x.clone(), target, relu_attributions=True)
    return LayerAttribution.interpolate(coarse, x.shape[2:], "bilinear").detach()


def captum_ig(model, x, target, start, n_steps=32, rule="gausslegendre"):
    model = copy.deepcopy(model).eval()
    values, gap = IntegratedGradients(model).attribute(x.clone(), start.clone(), target, n_steps=n_steps, method=rule, return_convergence_delta=True)
    return values.detach(), gap.detach()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("n", [1, 5])
def test_equal_to_captum(dtype, channels, n):
    model, (x, target) = small_net(channels, dtype=dtype), batch(n, channels, dtype=dtype)
    before, x_before = state_of(model), x.clone()
    cam = grad_cam(model, x, target, layer="4", batch_size=2)
    ig = integrated_gradients(model, x, target, n_steps=20, batch_size=3)
    torch.testing.assert_close(cam.map, captum_cam(model, "4", x, target))
    expected, gap = captum_ig(model, x, target, torch.full_like(x, -1), n_steps=20)
    torch.testing.assert_close(ig.map, expected)
    torch.testing.assert_close(ig.gap, gap, atol=2e-6, rtol=1e-4)
    assert cam.map.shape == (n, 1, 20, 14) and cam.gap is None and cam.map.dtype == dtype and (cam.map >= 0).all()
    assert ig.map.shape == x.shape and ig.gap.shape == (n,) and ig.map.dtype == dtype
    assert not cam.map.requires_grad and not ig.map.requires_grad and not ig.gap.requires_grad
    assert_same_state(before, state_of(model))
    assert torch.equal(x, x_before) and not x.requires_grad


@pytest.mark.parametrize("rule", RULES)
def test_every_rule_equals_captum(rule):
    model, (x, target) = small_net(), batch()
    expected, _ = captum_ig(model, x, target, make_baseline("blur", x), n_steps=9, rule=rule)
    torch.testing.assert_close(integrated_gradients(model, x, target, baseline="blur", n_steps=9, rule=rule).map, expected)


@pytest.mark.parametrize("name, channels, size", [("resnet18", 3, (28, 28)), ("resnet18", 1, (32, 24)), ("resnet50", 3, (28, 28))])
def test_equal_to_captum_on_resnets(name, channels, size):
    "torchvision's in-place ReLUs, the default layer, a non-square image."
    model = build_model(name, 4, in_channels=channels, image_size=28, seed=0).train()
    x, target = batch(2, channels, size)
    before = state_of(model)
    torch.testing.assert_close(grad_cam(model, x, target).map, captum_cam(model, "layer4", x, target), atol=1e-6, rtol=1e-4)
    expected, gap = captum_ig(model, x, target, torch.full_like(x, -1), n_steps=4)
    result = integrated_gradients(model, x, target, n_steps=4)
    torch.testing.assert_close(result.map, expected, atol=1e-6, rtol=1e-3)
    torch.testing.assert_close(result.gap, gap, atol=1e-4, rtol=1e-3)
    assert_same_state(before, state_of(model))


def test_in_place_relu_changes_nothing():
    "The same weights with in-place and ordinary ReLUs, at the layer before the ReLU."
    model = small_net()
    plain = copy.deepcopy(model)
    for m in plain.modules():
        if isinstance(m, nn.ReLU): m.inplace = False
    x, target = batch()
    for layer in ("1", "3", "4"): torch.testing.assert_close(grad_cam(model, x, target, layer=layer).map, grad_cam(plain, x, target, layer=layer).map)
    torch.testing.assert_close(integrated_gradients(model, x, target).map, integrated_gradients(plain, x, target).map)


@pytest.mark.parametrize("method", ["gradcam", "integrated_gradients"])
@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode, lambda: torch.autocast("cpu", dtype=torch.bfloat16)])
@pytest.mark.parametrize("frozen", [False, True])
def test_any_context_of_the_caller(method, context, frozen):
    model, (x, target) = small_net().requires_grad_(not frozen), batch()
    options = {"layer": "4"} if method == "gradcam" else {"n_steps": 4}
    expected = attribute(method, small_net(), x, target, **options).map
    before = state_of(model)
    with context():
        grad_mode = torch.is_grad_enabled()
        result = attribute(method, model, x + 0, target, **options)     # x made inside the context
        assert torch.is_grad_enabled() == grad_mode
    torch.testing.assert_close(result.map, expected)
    assert_same_state(before, state_of(model))


@pytest.mark.parametrize("method", ["gradcam", "integrated_gradients"])
def test_gradients_and_graph_of_the_caller_survive(method):
    model, (x, target) = small_net(), batch()
    x.requires_grad_()
    loss = model(x).square().mean()                      # a graph that is still to be used
    for p in model.parameters(): p.grad = torch.ones_like(p)
    model[1].eval()
    model[3].weight.requires_grad_(False)
    before = state_of(model)
    attribute(method, model, x, target, **({"layer": "4"} if method == "gradcam" else {"n_steps": 4}))
    assert_same_state(before, state_of(model))
    assert x.grad is None and x.requires_grad
    loss.backward()


class Breaks(nn.Module):
    "Fails at the n-th call."
    def __init__(self, inner, at): super().__init__(); self.inner, self.at, self.calls = inner, at, 0
    def forward(self, x):
        self.calls += 1
        if self.calls >= self.at: raise RuntimeError("broken")
        return self.inner(x)


@pytest.mark.parametrize("method", ["gradcam", "integrated_gradients"])
@pytest.mark.parametrize("at", [1, 2])
def test_nothing_left_behind_when_forward_raises(method, at):
    model, (x, target) = small_net(), batch()
    model[7] = Breaks(model[7], at)
    model[1].eval()
    before = state_of(model)
    with pytest.raises(RuntimeError, match="broken"):
        attribute(method, model, x, target, batch_size=2, **({"layer": "4"} if method == "gradcam" else {"n_steps": 4}))
    assert_same_state(before, state_of(model))


@pytest.mark.parametrize("method", ["gradcam", "integrated_gradients"])
def test_batches_do_not_matter(method):
    model, (x, target) = small_net(), batch(9)
    options = {"layer": "4"} if method == "gradcam" else {"n_steps": 7, "baseline": "mean"}
    whole = attribute(method, model, x, target, batch_size=100, **options)
    for size in (1, 2, 4, 9):
        part = attribute(method, model, x, target, batch_size=size, **options)
        torch.testing.assert_close(part.map, whole.map)
        if part.gap is not None: torch.testing.assert_close(part.gap, whole.gap, atol=2e-6, rtol=1e-3)
    pick = torch.tensor([6, 0])
    torch.testing.assert_close(attribute(method, model, x[pick], target[pick], **options).map, whole.map[pick])
    assert torch.equal(attribute(method, model, x, target, batch_size=4, **options).map, attribute(method, model, x, target, batch_size=4, **options).map)


class Counts(nn.Module):
    "Remembers the largest batch seen."
    def __init__(self, inner): super().__init__(); self.inner, self.largest, self.images = inner, 0, 0
    def forward(self, x): self.largest = max(self.largest, len(x)); self.images += len(x); return self.inner(x)


@pytest.mark.parametrize("n, size", [(1, 8), (5, 8), (20, 8), (3, 1)])
def test_memory_is_bounded_by_batch_size(n, size):
    model, (x, target) = Counts(small_net()), batch(n)
    integrated_gradients(model, x, target, n_steps=10, batch_size=size)
    assert model.largest <= size and model.images == n * 12      # the path, and both its ends for the gap
    model.largest = 0
    grad_cam(model, x, target, layer="inner.4", batch_size=size)
    assert model.largest <= size


@pytest.mark.parametrize("method", ["gradcam", "integrated_gradients"])
def test_stays_on_its_device(method, monkeypatch):
    "On the meta device a mix of devices is an error: no tensor is made on, or moved to, the CPU. The three value checks are left out there."
    monkeypatch.setattr(explain, "check_values", lambda *a: None)
    monkeypatch.setattr(explain, "target_range", lambda target: (0, 3))
    model, x = small_net().to("meta"), torch.empty(4, 3, 20, 14, device="meta")
    for target in (2, torch.zeros(4, dtype=torch.long, device="meta")):
        for own in ({"layer": "4"},) if method == "gradcam" else ({"baseline": b, "n_steps": 4} for b in BASELINES):
            result = attribute(method, model, x, target, batch_size=2, **own)
            assert result.map.device.type == "meta" and (result.gap is None or result.gap.device.type == "meta")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
@pytest.mark.parametrize("method", ["gradcam", "integrated_gradients"])
def test_equal_on_cuda(method):
    model, (x, target) = small_net(dtype=torch.float64), batch(dtype=torch.float64)
    options = {"layer": "4"} if method == "gradcam" else {}
    expected = attribute(method, model, x, target, **options).map
    with torch.autocast("cuda", dtype=torch.bfloat16): result = attribute(method, model.cuda(), x.cuda(), target, **options).map
    assert result.device.type == "cuda"
    torch.testing.assert_close(result.cpu(), expected)


def test_half_precision_models_give_float32_maps():
    model, (x, target) = small_net().to(torch.bfloat16), batch(dtype=torch.bfloat16)
    cam, ig = grad_cam(model, x, target, layer="4"), integrated_gradients(model, x, target, n_steps=4)
    assert cam.map.dtype == ig.map.dtype == ig.gap.dtype == torch.float32
    torch.testing.assert_close(cam.map, grad_cam(small_net(), x.float(), target, layer="4").map, atol=.05, rtol=.1)


def test_linear_model_is_exact():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 20 * 14, 4)).double()
    x, target = batch(dtype=torch.float64)
    for start in (*BASELINES, torch.tensor(.3), torch.randn(3, 1, 1)):
        result = integrated_gradients(model, x, target, baseline=start, n_steps=2)
        expected = model[1].weight[target].view_as(x) * (x - make_baseline(start, x))
        torch.testing.assert_close(result.map, expected.detach(), atol=1e-6, rtol=1e-6)
        assert result.gap.abs().max() < 1e-5


def test_completeness_gap_is_what_it_says_and_falls():
    model, (x, target) = small_net(dtype=torch.float64), batch(dtype=torch.float64)
    gaps = []
    for n in (2, 8, 32, 128):
        result = integrated_gradients(model, x, target, n_steps=n)
        still = copy.deepcopy(model).eval()
        rise = (still(x) - still(torch.full_like(x, -1))).gather(1, target[:, None])[:, 0]
        torch.testing.assert_close(result.gap, result.map.flatten(1).sum(1) - rise.detach())
        gaps.append(result.gap.abs().mean().item())
    assert gaps[0] > gaps[1] > gaps[2] > gaps[3] and gaps[3] < .01 * rise.abs().mean()


def test_black_is_black_in_the_image():
    x = torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(make_baseline("black", x), torch.full_like(x, -1))
    torch.testing.assert_close(make_baseline("black", x, mean=[.5, .4, .3], std=[.25, .2, .1])[1, :, 3, 3], torch.tensor([-2., -2., -3.]))
    torch.testing.assert_close(make_baseline("black", x, mean=(.5,), std=(.5,)), torch.full_like(x, -1))
    torch.testing.assert_close(make_baseline("mean", x)[:, :, 0, 0], x.mean((2, 3)))
    assert make_baseline("blur", x).std() < x.std() / 2
    with pytest.raises(ValueError, match="one per channel"): make_baseline("black", x, mean=[.5, .5], std=.5)
    with pytest.raises(ValueError, match="Known: black, mean, blur"): make_baseline("balck", x)
    with pytest.raises(ValueError, match="broadcasts to"): make_baseline(torch.zeros(5, 8, 8), x)


def test_a_model_that_writes_into_its_input():
    class Writes(nn.Module):
        def __init__(self): super().__init__(); self.conv = nn.Conv2d(1, 2, 3)
        def forward(self, x): x.sub_(.5); return self.conv(x).relu_().mean((2, 3))
    x = torch.rand(3, 1, 6, 6)
    before = x.clone()
    grad_cam(Writes(), x, 0, layer="conv"), integrated_gradients(Writes(), x, 0)
    assert torch.equal(x, before)


@pytest.mark.parametrize("method", ["gradcam", "integrated_gradients"])
@pytest.mark.parametrize("change, message", [
    (dict(target=torch.zeros(5, 1, dtype=torch.long)), r"target has shape \(5, 1\), expected \(5,\)"),
    (dict(target=torch.zeros(4, dtype=torch.long)), r"target has shape \(4,\), expected \(5,\)"),
    (dict(target=torch.zeros(5)), "expected integers"),
    (dict(target=torch.zeros(5, dtype=torch.bool)), "expected integers"),
    (dict(target=4), "expected 0..3"),
    (dict(target=torch.tensor([0, 1, -1, 0, 0])), "holds indices -1..1, expected 0..3"),
    (dict(x=torch.zeros(3, 20, 14)), r"expected \(B, C, H, W\)"),
    (dict(x=torch.zeros(5, 1, 20, 14)), "first convolution takes 3"),
    (dict(x=torch.zeros(5, 3, 20, 14, dtype=torch.uint8)), "expected floats"),
    (dict(x=torch.zeros(5, 3, 20, 14, dtype=torch.float64)), "x.to"),
    (dict(x=torch.zeros(0, 3, 20, 14)), "holds no pixels"),
    (dict(x=np.zeros((5, 3, 20, 14), np.float32)), "expected a tensor"),
    (dict(x=torch.full((5, 3, 20, 14), torch.nan)), "NaN or infinite for 5 of 5"),
    (dict(batch_size=0), "batch_size is 0"),
    (dict(colour="red"), "unknown option"),
])
def test_bad_questions(method, change, message):
    x, target = batch()
    model = small_net()
    before = state_of(model)
    question = {"x": x, "target": target, **({"layer": "4"} if method == "gradcam" else {}), **change}
    with pytest.raises(ValueError, match=message): attribute(method, model, **question)
    assert_same_state(before, state_of(model))


def test_more_bad_questions():
    x, target = batch()
    model = small_net()
    with pytest.raises(ValueError, match="Near: gradcam"): attribute("gradcamm", model, x, target)
    with pytest.raises(ValueError, match="unknown layer"): grad_cam(model, x, target, layer="layer4")
    with pytest.raises(ValueError, match="not part of the model"): grad_cam(model, x, target, layer=nn.ReLU())
    with pytest.raises(ValueError, match="name the layer yourself"): grad_cam(model, x, target)
    with pytest.raises(ValueError, match="at least 2 points"): integrated_gradients(model, x, target, n_steps=1)
    with pytest.raises(ValueError, match="1×1"): grad_cam(model, x, target, layer="5")
    with pytest.raises(ValueError, match="1×1.*model.stem='small'"):
        grad_cam(build_model("resnet18", 4, stem="imagenet", image_size=28, seed=0), torch.zeros(1, 3, 28, 28), 0)
    with pytest.raises(ValueError, match="expected logits of shape"): integrated_gradients(model[:6], x, target)
    broken = small_net()
    with torch.no_grad(): broken[7].weight[:] = torch.nan
    for method, own in (("gradcam", {"layer": "4"}), ("integrated_gradients", {})):
        with pytest.raises(ValueError, match="check the checkpoint"): attribute(method, broken, x, target, **own)


def test_registry_takes_another_method():
    try:
        @register("test_ones", title="Ones", signed=False)
        def ones(model, x, target, *, scale=1.0): return Attribution(torch.ones_like(x[:, :1]) * scale)
        x, target = batch()
        assert attribute("test_ones", small_net(), x, target, scale=2.0).map.max() == 2 and METHODS["test_ones"].options == ("scale",)
        with pytest.raises(ValueError, match="already registered"): register("test_ones", title="Other", signed=True)(lambda model, x, target: None)
        METHODS.pop("test_ones")
        register("test_ones", title="Wrong", signed=False)(lambda model, x, target: Attribution(x[:, :, ::2]))
        with pytest.raises(ValueError, match="returned a map of shape"): attribute("test_ones", small_net(), x, target)
    finally: METHODS.pop("test_ones", None)


def test_choose_targets():
    scores = torch.tensor([[1., 3, 2], [0, -1, -2], [5, 5, 9]])
    assert choose_targets("predicted", scores).tolist() == [1, 0, 2]
    assert choose_targets("true", scores, torch.tensor([0, 1, 2])).tolist() == [0, 1, 2]
    assert choose_targets("true", scores, torch.tensor([[1., 0, 1], [0, 0, 0], [1, 1, 0]])).tolist() == [2, 0, 0]
    assert choose_targets("1", scores).tolist() == choose_targets(1, scores).tolist() == [1, 1, 1]
    for kind, message in (("3", "expected 'predicted', 'true' or 0..2"), ("treu", "Near: true"), (-1, "unknown target")):
        with pytest.raises(ValueError, match=message): choose_targets(kind, scores)
    with pytest.raises(ValueError, match="needs labels"): choose_targets("true", scores)


def test_select_samples():
    gallery = [{"group": g, "index": i} for g in ("high_confidence_wrong", "low_confidence_correct") for i in range(10, 20)]
    samples = select_samples(range(50), gallery, n_random=50, n_gallery=3)
    assert sorted(i for i, _ in samples) == list(range(50))
    assert samples[:3] == [(i, "high_confidence_wrong") for i in (10, 11, 12)]     # a random draw takes no image from the gallery
    for seed in range(5):
        few = select_samples(range(10, 20), gallery[:10], n_random=4, n_gallery=4, seed=seed)
        assert few[:4] == [(i, "high_confidence_wrong") for i in range(10, 14)]
        assert [g for _, g in few[4:]] == ["random"] * 4 and {i for i, _ in few[4:]} <= set(range(14, 20))
    assert len({tuple(select_samples(range(50), gallery, seed=s)) for s in range(5)}) > 1
    samples = select_samples(range(50), gallery, n_random=0, n_gallery=3)
    assert samples == [(i, "high_confidence_wrong") for i in (10, 11, 12)]        # the second group holds the same images: once each
    with pytest.raises(ValueError, match="one of the split's 15 images"): select_samples(range(15), gallery, n_gallery=10)
    assert select_samples(range(3), [], n_random=0) == []
    assert {i for i, _ in select_samples([4, 9, 30], [{"group": "g", "index": "9"}], n_random=2)} <= {4, 9, 30}      # a part of a split keeps its indices


def explained(n=3, channels=3, multi_label=False, masks=True, size=(12, 10)):
    g = np.random.default_rng(0)
    maps = torch.rand(n, channels, *size, generator=torch.Generator().manual_seed(0)) - .5
    labels = g.integers(0, 2, (n, 3)) if multi_label else g.integers(0, 3, n)
    return Explained(list(range(7, 7 + n)), ["random"] * n, g.integers(0, 256, (n, channels, *size), dtype=np.uint8),
                     g.random((n, *size)) > .7 if masks else None, labels, g.integers(0, 3, n), g.random(n), ("a very long class name, as they are", "b", "c"),
                     {"gradcam": Attribution(maps[:, :1].clamp(min=0)), "integrated_gradients": Attribution(maps, torch.linspace(-.1, .1, n))})


@pytest.mark.parametrize("multi_label", [False, True])
@pytest.mark.parametrize("masks", [False, True])
@pytest.mark.parametrize("channels", [1, 3])
def test_files(tmp_path, multi_label, masks, channels):
    shown = explained(multi_label=multi_label, masks=masks, channels=channels)
    facts = write_explanations(tmp_path, shown)
    assert facts["samples"] == 3 and facts["largest_gap"] == pytest.approx(.1)
    with open(tmp_path / "explanations.csv", encoding="utf-8") as f: rows = list(csv.DictReader(f))
    assert list(rows[0]) == ["index", "group", "method", "target", "target_name", "probability", "label", "completeness_gap", "file"]
    assert len(rows) == 6 and all((tmp_path / r["file"]).stat().st_size > 1000 for r in rows)
    assert {r["file"] for r in rows} == {f"sample_{i:05d}_{m}.png" for i in (7, 8, 9) for m in shown.attributions}
    assert [r["completeness_gap"] == "" for r in rows] == [True] * 3 + [False] * 3
    assert rows[0]["label"] == ";".join(map(str, np.atleast_1d(shown.labels[0])))
    with np.load(tmp_path / "attributions.npz", allow_pickle=False) as a:
        assert a["gradcam"].shape == (3, 1, 12, 10) and a["integrated_gradients"].shape == (3, channels, 12, 10) and a["gradcam"].dtype == np.float32
        assert np.array_equal(a["images"], shown.images) and ("masks" in a) == masks
        np.testing.assert_array_equal(a["integrated_gradients"], shown.attributions["integrated_gradients"].map.numpy())
    again = read_explanations(tmp_path, shown.classes)
    assert again.index == shown.index and sample_titles(again, "integrated_gradients", 0) == sample_titles(shown, "integrated_gradients", 0)


def test_titles_say_what_is_shown():
    shown = explained()
    heading, line = sample_titles(shown, "integrated_gradients", 1)
    assert "Integrated Gradients" in heading and shown.classes[shown.target[1]] in heading and f"{shown.probability[1]:.3f}" in heading
    assert f"label: {shown.label_name(1)}" in line and "sample 8" in line and "gap +0.000" in line
    assert "gap" not in "".join(sample_titles(shown, "gradcam", 1))


def test_figures_run_beside_each_other(tmp_path):
    "No global state: two threads draw the same pictures as one."
    shown = explained()
    draw_samples(shown, "gradcam").savefig(tmp_path / "a.png")
    assert flat_maps(shown.attributions["integrated_gradients"].map, (12, 10)).shape == (3, 12, 10)
    assert flat_maps(shown.attributions["integrated_gradients"].map, (24, 20)).shape == (3, 24, 20)
    assert draw_samples(shown, "gradcam", []).axes is not None


def test_undisturbed_survives_errors_in_threads():
    model, errors = small_net(), []
    def work():
        try:
            with explain.undisturbed(model): raise KeyError
        except KeyError: errors.append(1)
    thread = threading.Thread(target=work)
    thread.start(); thread.join()
    assert errors and model.training and all(p.requires_grad for p in model.parameters())


def smoke(tmp_path, **more):
    "Options of a run small enough for a test: few images, one epoch."
    from xaimed.config import load_options
    return load_options("", overrides={"artifacts_dir": str(tmp_path), "device": "cpu", "data.size": 28, "synthetic.n_train": 32, "synthetic.n_val": 16, "synthetic.n_test": 24,
                                       "train.epochs": 1, "explain.n_steps": 4, "explain.n_random": 2, "explain.n_gallery": 2, **more})


def test_stage(tmp_path):
    "The chain on synthetic data: files, facts, true targets, and what is kept."
    from xaimed.config import read_manifest, stage_dir
    from xaimed.eval import run_eval
    options = smoke(tmp_path)
    folder = explain.run_explain(options)
    assert folder == stage_dir(options, "explain")
    with open(folder / "explanations.csv", encoding="utf-8") as f: rows = list(csv.DictReader(f))
    with open(run_eval(options) / "predictions.csv", encoding="utf-8") as f: predictions = {r["index"]: r for r in csv.DictReader(f)}
    assert {r["method"] for r in rows} == {"gradcam", "integrated_gradients"} and "random" in {r["group"] for r in rows}
    for r in rows:
        assert (folder / r["file"]).exists() and r["target"] == predictions[r["index"]]["predicted"] and r["label"] == predictions[r["index"]]["label"]
        assert float(r["probability"]) == pytest.approx(float(predictions[r["index"]][f"prob_{r['target']}"]), abs=1e-4)
    shown = read_explanations(folder, range(4))
    assert shown.masks is not None and shown.attributions["gradcam"].map.shape[2:] == (28, 28)
    stamp = (folder / "manifest.json").stat().st_mtime_ns
    explain.run_explain(options)
    assert (folder / "manifest.json").stat().st_mtime_ns == stamp and read_manifest(folder)
    true = smoke(tmp_path, **{"explain.target": "true", "explain.methods": ["gradcam"], "explain.n_gallery": 0})
    shown = read_explanations(explain.run_explain(true), range(4))
    assert np.array_equal(shown.target, shown.labels) and set(shown.group) == {"random"} and list(shown.attributions) == ["gradcam"]


def test_stage_when_nothing_was_wrong(tmp_path, monkeypatch):
    "An evaluation without an error writes a gallery with one group; the stage explains that and the random images."
    from xaimed import eval as evaluation
    def all_right(labels, probs, *args, **kwargs): return select(labels, np.eye(probs.shape[1])[labels] * .9 + .02, *args, **kwargs)
    select = evaluation.select_failures
    monkeypatch.setattr(evaluation, "select_failures", all_right)
    options = smoke(tmp_path, **{"explain.methods": ["gradcam"]})
    folder = explain.run_explain(options)
    gallery = explain.gallery_rows(evaluation.run_eval(options))
    assert gallery and {r["group"] for r in gallery} == {"low_confidence_correct"}
    shown = read_explanations(folder, range(4))
    assert shown.group == ["low_confidence_correct"] * 2 + ["random"] * 2 and len(set(shown.index)) == 4
    assert shown.index[:2] == [int(r["index"]) for r in gallery[:2]]
    # no image in either group: a header alone, as the evaluation itself writes it
    monkeypatch.setattr(evaluation, "select_failures", lambda *args, **kwargs: [])
    assert explain.gallery_rows(evaluation.run_eval(options, force=True)) == []
    assert read_explanations(explain.run_explain(options), range(4)).group == ["random"] * 2


def test_stage_refuses(tmp_path):
    with pytest.raises(ValueError, match="Near: gradcam"): explain.run_explain(smoke(tmp_path, **{"explain.methods": ["grad_cam"]}))
    with pytest.raises(ValueError, match="the model has 4 outputs"): explain.run_explain(smoke(tmp_path, **{"explain.target": "7"}))
    with pytest.raises(ValueError, match="set explain.n_random"): explain.run_explain(smoke(tmp_path, **{"explain.n_random": 0, "explain.n_gallery": 0}))


@pytest.mark.parametrize("task", ["multi-label", "binary"])
def test_stage_other_tasks(tmp_path, task):
    options = smoke(tmp_path, **{"synthetic.task": task, "synthetic.num_classes": 3 if task == "multi-label" else 2, "explain.target": "true"})
    folder = explain.run_explain(options)
    with open(folder / "explanations.csv", encoding="utf-8") as f: rows = list(csv.DictReader(f))
    for r in rows:
        labels = r["label"].split(";")
        assert task != "multi-label" or "1" not in labels or labels[int(r["target"])] == "1"
