"xaimed.attribution: equal to captum or to the paper's formula, nothing left behind, bad questions refused, controls that know nothing."
import copy
import json
import re
import threading
import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from captum.attr import (GradientShap, GuidedBackprop, InputXGradient, IntegratedGradients, LayerAttribution, LayerGradCam, NoiseTunnel,
                         Occlusion, Saliency)
from scipy import ndimage
from torch import nn

from xaimed import attribution
from xaimed.attribution import (BASELINES, METHODS, RULES, Attribution, attribute, blur, draws, grad_cam, grad_cam_plus_plus, gradient_shap, guided_backprop,
                                input_x_gradient, integrated_gradients, layer_cam, make_baseline, occlusion, register, rise, rise_masks, saliency,
                                shared_draws, smoothgrad, spread)
from xaimed.models import build_model

CAMS = ("gradcam", "gradcam_plus_plus", "layercam")
CHEAP = {**{name: {"layer": "4"} for name in CAMS}, "integrated_gradients": {"n_steps": 4}, "saliency": {}, "input_x_gradient": {}, "smoothgrad": {"n_samples": 3},
         "guided_backprop": {}, "gradient_shap": {"n_samples": 2, "level": .1}, "occlusion": {"window": .5, "stride": .25}, "rise": {"n_masks": 9, "cells": 3}}
CONTROLS = ("random", "smoothed_random", "edges", "centred_gaussian")
every_method = pytest.mark.parametrize("method", CHEAP)


def test_the_registry_is_what_this_file_tests():
    assert set(METHODS) == {*CHEAP, *CONTROLS} and {name for name in METHODS if METHODS[name].control} == set(CONTROLS)
    assert all(METHODS[name].source for name in METHODS) and len({m.title for m in METHODS.values()}) == len(METHODS)
    assert "fails the randomisation test" in METHODS["guided_backprop"].source


def test_the_page_names_every_method(root):
    cells = json.loads((root / "nbs" / "04_attribution.ipynb").read_text(encoding="utf-8"))["cells"]
    rows = [line.split("|")[1] for cell in cells if cell["cell_type"] == "markdown" for line in "".join(cell["source"]).splitlines() if line.startswith("| `")]
    assert {name for row in rows for name in re.findall(r"`(\w+)`", row)} == set(METHODS)


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


@every_method
@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode, lambda: torch.autocast("cpu", dtype=torch.bfloat16)])
@pytest.mark.parametrize("frozen", [False, True])
def test_any_context_of_the_caller(method, context, frozen):
    model, (x, target) = small_net().requires_grad_(not frozen), batch()
    options = CHEAP[method]
    expected = attribute(method, small_net(), x, target, **options).map
    before = state_of(model)
    with context():
        grad_mode = torch.is_grad_enabled()
        result = attribute(method, model, x + 0, target, **options)     # x made inside the context
        assert torch.is_grad_enabled() == grad_mode
    torch.testing.assert_close(result.map, expected)
    assert_same_state(before, state_of(model))


@every_method
def test_gradients_and_graph_of_the_caller_survive(method):
    model, (x, target) = small_net(), batch()
    x.requires_grad_()
    loss = model(x).square().mean()                      # a graph that is still to be used
    for p in model.parameters(): p.grad = torch.ones_like(p)
    model[1].eval()
    model[3].weight.requires_grad_(False)
    before = state_of(model)
    attribute(method, model, x, target, **CHEAP[method])
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


@every_method
@pytest.mark.parametrize("at", [1, 2])
def test_nothing_left_behind_when_forward_raises(method, at):
    model, (x, target) = small_net(), batch()
    model[7] = Breaks(model[7], at)
    model[1].eval()
    before = state_of(model)
    with pytest.raises(RuntimeError, match="broken"):
        attribute(method, model, x, target, batch_size=2, **CHEAP[method])
    assert_same_state(before, state_of(model))


@every_method
def test_batches_do_not_matter(method):
    model, (x, target) = small_net(), batch(9)
    options = CHEAP[method]
    whole = attribute(method, model, x, target, batch_size=100, **options)
    for size in (1, 2, 4, 9):
        part = attribute(method, model, x, target, batch_size=size, **options)
        torch.testing.assert_close(part.map, whole.map)
        if part.gap is not None: torch.testing.assert_close(part.gap, whole.gap, atol=2e-6, rtol=1e-3)
    pick = torch.tensor([6, 0])
    torch.testing.assert_close(attribute(method, model, x[pick], target[pick], **options).map, whole.map[pick])
    assert torch.equal(attribute(method, model, x, target, batch_size=4, **options).map, attribute(method, model, x, target, batch_size=4, **options).map)


@every_method
def test_no_warning_no_global_randomness_no_gradient_left(method):
    model, (x, target) = small_net(), batch()
    state = torch.get_rng_state()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = attribute(method, model, x, target, **CHEAP[method])
    assert torch.equal(state, torch.get_rng_state())
    assert not result.map.requires_grad and not x.requires_grad and (METHODS[method].signed or (result.map >= 0).all())
    assert (result.gap is not None) == (method in ("integrated_gradients", "gradient_shap"))
    assert result.map.shape == (5, 1 if method in (*CAMS, "occlusion", "rise") else 3, 20, 14)


@every_method
@pytest.mark.parametrize("places", [1, 3])
def test_signals_and_volumes(method, places):
    conv, pool = (nn.Conv1d, nn.AdaptiveAvgPool1d) if places == 1 else (nn.Conv3d, nn.AdaptiveAvgPool3d)
    torch.manual_seed(0)
    net = nn.Sequential(conv(2, 4, 3, padding=1), nn.ReLU(inplace=True), pool(1), nn.Flatten(), nn.Linear(4, 3))
    x = torch.rand(3, 2, *[6] * places) * 2 - 1
    result = attribute(method, net, x, torch.tensor([0, 1, 2]), **{**CHEAP[method], **({"layer": "1"} if method in CAMS else {})})
    assert result.map.shape[2:] == x.shape[2:] and (result.map != 0).any()


class Counts(nn.Module):
    "Remembers the largest batch seen."
    def __init__(self, inner): super().__init__(); self.inner, self.largest, self.images = inner, 0, 0
    def forward(self, x): self.largest = max(self.largest, len(x)); self.images += len(x); return self.inner(x)


@pytest.mark.parametrize("n, size", [(1, 8), (5, 8), (20, 8), (3, 1)])
@pytest.mark.parametrize("method, passes", [("gradcam", 1), ("gradcam_plus_plus", 1), ("layercam", 1), ("saliency", 1), ("input_x_gradient", 1), ("guided_backprop", 1),
                                            ("integrated_gradients", 4 + 2), ("smoothgrad", 3), ("gradient_shap", 3 * 2 + 3 + 1), ("rise", 9)])
def test_memory_is_bounded_by_batch_size_and_the_passes_are_those_of_the_table(method, passes, n, size):
    model, (x, target) = Counts(small_net()), batch(n)
    attribute(method, model, x, target, batch_size=size, **{**CHEAP[method], **({"layer": "inner.4"} if method in CAMS else {})})
    assert model.largest <= size and model.images == n * passes


@pytest.mark.parametrize("n, size", [(1, 8), (5, 8), (20, 8), (3, 1)])
def test_occlusion_passes(n, size):
    model, (x, target) = Counts(small_net()), batch(n)
    occlusion(model, x, target, window=5, stride=5, batch_size=size)       # 20×14: 4×3 windows, the last column's cut short
    assert model.largest <= size and model.images == n * (12 + 1)


@every_method
def test_stays_on_its_device(method, monkeypatch):
    "On the meta device a mix of devices is an error: no tensor is made on, or moved to, the CPU. The three value checks are left out there."
    monkeypatch.setattr(attribution, "check_values", lambda *a: None)
    monkeypatch.setattr(attribution, "target_range", lambda target: (0, 3))
    model, x = small_net().to("meta"), torch.empty(4, 3, 20, 14, device="meta")
    for target in (2, torch.zeros(4, dtype=torch.long, device="meta")):
        for own in [{"baseline": b} for b in BASELINES] if "baseline" in METHODS[method].options else [{}]:
            result = attribute(method, model, x, target, batch_size=2, **CHEAP[method], **own)
            assert result.map.device.type == "meta" and (result.gap is None or result.gap.device.type == "meta")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
@every_method
def test_equal_on_cuda(method):
    model, (x, target) = small_net(dtype=torch.float64), batch(dtype=torch.float64)
    options = CHEAP[method]
    expected = attribute(method, model, x, target, **options).map
    with torch.autocast("cuda", dtype=torch.bfloat16): result = attribute(method, model.cuda(), x.cuda(), target, **options).map
    assert result.device.type == "cuda"
    torch.testing.assert_close(result.cpu(), expected)


@every_method
def test_half_precision_models_give_float32_maps(method):
    model, (x, target) = small_net().to(torch.bfloat16), batch(dtype=torch.bfloat16)
    result = attribute(method, model, x, target, **CHEAP[method])
    assert result.map.dtype == torch.float32 and (result.gap is None or result.gap.dtype == torch.float32)
    expected = attribute(method, small_net(), x.float(), target, **CHEAP[method]).map
    assert np.corrcoef(result.map.flatten(), expected.flatten())[0, 1] > .9


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
    for method in CHEAP:
        if method != "guided_backprop": attribute(method, Writes(), x, 0, **{**CHEAP[method], **({"layer": "conv"} if method in CAMS else {})})
    assert torch.equal(x, before)


@every_method
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
    question = {"x": x, "target": target, **CHEAP[method], **change}
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
    for method, own in CHEAP.items():
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


def test_undisturbed_survives_errors_in_threads():
    model, errors = small_net(), []
    def work():
        try:
            with attribution.undisturbed(model): raise KeyError
        except KeyError: errors.append(1)
    thread = threading.Thread(target=work)
    thread.start(); thread.join()
    assert errors and model.training and all(p.requires_grad for p in model.parameters())


# The methods of one point, of many points, and without gradients: captum, or the paper's formula written out

@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradient_methods_equal_captum(dtype):
    model, (x, target) = small_net(dtype=dtype), batch(dtype=dtype)
    still = copy.deepcopy(model).eval()
    inputs = x.clone().requires_grad_()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = {saliency: Saliency(still).attribute(inputs, target), input_x_gradient: InputXGradient(still).attribute(inputs, target),
                    guided_backprop: GuidedBackprop(still).attribute(inputs, target),
                    smoothgrad: NoiseTunnel(Saliency(still)).attribute(inputs, nt_samples=2, stdevs=0., target=target)}
    for method, values in expected.items():
        result = method(model, x, target, batch_size=2, **({"level": 0.} if method is smoothgrad else {}))
        assert result.map.dtype == dtype
        torch.testing.assert_close(result.map, values.detach())


class GuidedReLU(torch.autograd.Function):
    "A ReLU that lets only positive gradients back."
    @staticmethod
    def forward(ctx, x): ctx.save_for_backward(x); return x.relu()
    @staticmethod
    def backward(ctx, g): return g.relu() * (ctx.saved_tensors[0] > 0)


class Guided(nn.Module):
    def forward(self, x): return GuidedReLU.apply(x)


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_guided_backprop_on_resnets_with_reused_in_place_relus(name):
    model = build_model(name, 4, image_size=28, seed=0).train()
    x, target = batch(2, 3, (28, 28))
    other = copy.deepcopy(model).eval()
    for module in list(other.modules()):
        for child, layer in list(module.named_children()):
            if isinstance(layer, nn.ReLU): setattr(module, child, Guided())
    inputs = x.clone().requires_grad_()
    expected, = torch.autograd.grad(other(inputs).gather(1, target[:, None]).sum(), inputs)
    before = state_of(model)
    torch.testing.assert_close(guided_backprop(model, x, target).map, expected, rtol=1e-3, atol=1e-5)
    assert_same_state(before, state_of(model))
    with pytest.raises(ValueError, match="no nn.ReLU module"): guided_backprop(nn.Sequential(nn.Flatten(), nn.Linear(3 * 28 * 28, 4)), x, target)


def layer_values(model, layer, x, target):
    "A layer's output and the target logit's gradient there, through autograd alone."
    still, seen = copy.deepcopy(model).eval(), []
    def note(module, inputs, output): seen[:] = [output]; return output.clone()      # the last call counts
    still.get_submodule(layer).register_forward_hook(note)
    logits = still(x)
    return seen[0].detach(), torch.autograd.grad(logits.gather(1, target[:, None]).sum(), seen[0])[0]


@pytest.mark.parametrize("which, layer", [("small", "4"), ("small", "2"), ("resnet18", "layer4"), ("resnet18", "layer3.1.relu"), ("resnet18", "layer2")])
def test_cams_are_the_papers_formulas(which, layer):
    model = small_net(dtype=torch.float64) if which == "small" else build_model("resnet18", 4, image_size=28, seed=0).double().train()
    x, target = batch(3, size=(28, 28), dtype=torch.float64)
    a, g = layer_values(model, layer, x, target)
    assert (a >= 0).all()
    alpha = torch.where(g == 0, 0, g**2 / (2 * g**2 + a.sum((2, 3), keepdim=True) * g**3))
    plus = ((alpha * g.relu()).sum((2, 3), keepdim=True) * a).sum(1, keepdim=True).relu()
    cell = (g.relu() * a).sum(1, keepdim=True).relu()
    before = state_of(model)
    for method, coarse in ((grad_cam_plus_plus, plus), (layer_cam, cell)):
        expected = F.interpolate(coarse, size=(28, 28), mode="bilinear", align_corners=False)
        torch.testing.assert_close(method(model, x, target, layer=layer, batch_size=2).map, expected)
    torch.testing.assert_close(grad_cam(model, x, target, layer=layer).map, captum_cam(model, layer, x, target))
    assert_same_state(before, state_of(model))


def test_cam_layers_that_cannot_be_read():
    class Strange(nn.Module):
        def __init__(self): super().__init__(); self.conv, self.idle, self.pair, self.head = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 3), Pair(), nn.Linear(4, 4)
        def forward(self, x): self.idle(x); return self.head(self.pair(self.conv(x))[0].mean((2, 3)))
    class Pair(nn.Module):
        def forward(self, x): return x, x
    model, (x, target) = Strange().train(), batch()
    before = state_of(model)
    for layer, message in (("idle", "do not depend on layer 'idle'"), ("pair", "returned a tuple"), ("head", r"shape \(5, 4\).*earlier layer"), (model, "earlier layer")):
        with pytest.raises(ValueError, match=message): grad_cam(model, x, target, layer=layer)
    assert_same_state(before, state_of(model))
    grad_cam(model, x, target, layer="conv")


def plain_gradient(model, x, target):
    still, x = copy.deepcopy(model).eval(), x.clone().requires_grad_()
    return torch.autograd.grad(still(x).gather(1, target[:, None]).sum(), x)[0]


def test_smoothgrad_is_the_mean_over_the_shared_noise():
    model, (x, target) = small_net(dtype=torch.float64), batch(dtype=torch.float64)
    noise = .2 * shared_draws(6, x.shape[1:], x, seed=3)
    expected = torch.stack([plain_gradient(model, x + e * (x.flatten(1).max(1).values - x.flatten(1).min(1).values).view(-1, 1, 1, 1), target) for e in noise]).mean(0).abs()
    torch.testing.assert_close(smoothgrad(model, x, target, n_samples=6, level=.2, seed=3, batch_size=7).map, expected)
    assert not torch.allclose(smoothgrad(model, x, target, n_samples=6, level=.2, seed=4).map, expected)


@pytest.mark.parametrize("level", [0., .1])
def test_gradient_shap_is_the_mean_over_baselines_and_path(level):
    model, (x, target) = small_net(dtype=torch.float64), batch(dtype=torch.float64)
    given = [torch.randn(3, 1, 1, dtype=torch.float64), "blur"]
    result = gradient_shap(model, x, target, baselines=given, n_samples=3, level=level, seed=2, batch_size=4)
    places = (shared_draws(6, (), x, seed=2, kind="uniform").view(2, 3) + torch.arange(3)) / 3
    assert (places.floor() == 0).all() and ((places * 3).floor() == torch.arange(3)).all()     # one point in each third of the path
    noise, terms = level * shared_draws(6, x.shape[1:], x, seed=3), []
    for k in range(6):
        start, end = make_baseline(given[k // 3], x), x + noise[k] * spread(x)
        terms.append((end - start) * plain_gradient(model, start + places[k // 3, k % 3] * (end - start), target))
    torch.testing.assert_close(result.map, sum(terms) / 6)
    still = copy.deepcopy(model).eval()
    f = [still(image).gather(1, target[:, None])[:, 0].detach() for image in (x, *(make_baseline(b, x) for b in given))]
    torch.testing.assert_close(result.gap, result.map.flatten(1).sum(1) - (f[0] - (f[1] + f[2]) / 2))


def test_gradient_shap_agrees_with_its_relatives():
    model, (x, target) = small_net(dtype=torch.float64), batch(dtype=torch.float64)
    ig = integrated_gradients(model, x, target, n_steps=256).map
    eg = gradient_shap(model, x, target, baselines=("black",), n_samples=256)
    assert (eg.map - ig).abs().max() < .02 * ig.abs().max() and eg.gap.abs().max() < .02 * ig.abs().flatten(1).sum(1).min()
    three = gradient_shap(model, x, target, baselines=torch.stack([torch.zeros_like(x[0]), torch.ones_like(x[0])]), n_samples=2)      # a tensor is a set
    assert three.map.shape == x.shape
    linear = nn.Sequential(nn.Flatten(), nn.Linear(3 * 20 * 14, 4)).double()
    expected = GradientShap(linear).attribute(x.clone().requires_grad_(), torch.zeros_like(x[:1]), n_samples=3, stdevs=0., target=target)
    torch.testing.assert_close(gradient_shap(linear, x, target, baselines=[torch.zeros(())], n_samples=3).map, expected.detach())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("window, stride", [(5, 3), (7, 7), (.25, .125), (1, 1)])
def test_occlusion_equals_captum_and_the_plain_loop(dtype, window, stride):
    model, (x, target) = small_net(dtype=dtype), batch(3, size=(9, 7), dtype=dtype)
    start = make_baseline("mean", x)
    before = state_of(model)
    result = occlusion(model, x, target, window=window, stride=stride, baseline="mean", batch_size=4)
    assert_same_state(before, state_of(model))
    sides, steps = ([round(v * n) if isinstance(v, float) else v for n in (9, 7)] for v in (window, stride))
    still = copy.deepcopy(model).eval()
    with torch.no_grad():
        captums = Occlusion(still).attribute(x, (3, *sides), (3, *steps), start, target)
        fall, covered = torch.zeros(3, 9, 7, dtype=dtype), torch.zeros(9, 7)
        tops, lefts = (range(0, -(-(n - side) // step) * step + 1, step) for n, side, step in zip((9, 7), sides, steps))
        for top in tops:
            for left in lefts:
                area = (..., slice(top, top + sides[0]), slice(left, left + sides[1]))
                hidden = x.clone()
                hidden[area] = start[area]
                fall[area] += (still(x) - still(hidden)).gather(1, target[:, None])[:, :, None]
                covered[area] += 1
    torch.testing.assert_close(result.map, captums[:, :1].to(dtype), rtol=1e-4, atol=1e-6)       # captum answers in single precision
    torch.testing.assert_close(result.map[:, 0], fall / covered.to(dtype), rtol=1e-5, atol=1e-6)


def test_rise_is_the_papers_formula_about_the_mean_score():
    model, (x, target) = small_net(dtype=torch.float64), batch(dtype=torch.float64)
    before = state_of(model)
    result = rise(model, x, target, n_masks=20, cells=4, p=.3, seed=5, baseline="blur", batch_size=7)
    assert_same_state(before, state_of(model))
    masks = rise_masks((shared_draws(20, (1, 4, 4), x, seed=5, kind="uniform") < .3).to(x), shared_draws(20, (2,), torch.empty(0), seed=6, kind="uniform"), x.shape[2:])
    start, still = make_baseline("blur", x), copy.deepcopy(model).eval()
    with torch.no_grad(): f = torch.stack([still(x * m + start * (1 - m)).gather(1, target[:, None])[:, 0] for m in masks])
    expected = sum((f[k] - f.mean(0)).view(-1, 1, 1, 1) * masks[k] for k in range(20)) / (20 * .3)
    torch.testing.assert_close(result.map, expected)
    with torch.no_grad(): model[7].bias += 100                                 # a constant in the logit is no reason for any pixel
    torch.testing.assert_close(rise(model, x, target, n_masks=20, cells=4, p=.3, seed=5, baseline="blur").map, expected)


def test_rise_masks():
    ones = torch.ones(3, 1, 4, 4)
    shifts = torch.rand(3, 2, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(rise_masks(ones, shifts, (13, 9)), torch.ones(3, 1, 13, 9))
    grid = torch.zeros(1, 1, 2, 2)
    grid[..., 0, 0] = 1
    a, b = rise_masks(grid, torch.zeros(1, 2), (8, 8)), rise_masks(grid, torch.full((1, 2), .5), (8, 8))
    torch.testing.assert_close(b[..., :-2, :-2], a[..., 2:, 2:])                # half a cell of 4 pixels further
    assert a[0, 0, 0, 0] == 1 and a[0, 0, -1, -1] < .1
    grids = (shared_draws(2000, (1, 5, 5), ones, seed=0, kind="uniform") < .25).float()
    many = rise_masks(grids, shared_draws(2000, (2,), ones, seed=1, kind="uniform"), (11, 16))
    assert many.min() >= 0 and many.max() <= 1 and (many.mean(0) - .25).abs().max() < .05


@pytest.mark.parametrize("method, options, message", [
    ("smoothgrad", {"n_samples": 0}, "n_samples is 0"), ("smoothgrad", {"n_samples": 2.5}, "whole number"), ("smoothgrad", {"level": -.1}, "level is -0.1"),
    ("gradient_shap", {"n_samples": 0}, "n_samples is 0"), ("gradient_shap", {"level": -1}, "level is -1"), ("gradient_shap", {"baselines": ()}, "baselines is empty"),
    ("gradient_shap", {"baselines": ("balck",)}, "Near: black"), ("gradient_shap", {"baselines": torch.zeros(2, 3, 4, 4)}, "broadcasts to"),
    ("occlusion", {"window": 0}, "window is 0"), ("occlusion", {"window": 1.5}, "window is 1.5"), ("occlusion", {"window": 15}, r"1\.\.14"), ("occlusion", {"stride": 0.}, "stride is 0"),
    ("occlusion", {"window": 3, "stride": 4}, "would stay unseen"), ("occlusion", {"baseline": "white"}, "unknown baseline"),
    ("rise", {"n_masks": 1}, "n_masks is 1"), ("rise", {"cells": 0}, "cells is 0"), ("rise", {"p": 1}, "p is 1"), ("rise", {"p": 0.}, "p is 0"), ("rise", {"baseline": "white"}, "unknown baseline"),
    ("smoothed_random", {"width": 0}, "width is 0"), ("centred_gaussian", {"width": -1}, "width is -1"),
])
def test_bad_options(method, options, message):
    x, target = batch()
    with pytest.raises(ValueError, match=message): attribute(method, small_net(), x, target, **options)


# Controls

@pytest.mark.parametrize("name", CONTROLS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_controls_know_nothing_of_the_model(name, dtype):
    x, target = batch(dtype=dtype)
    model, other = Counts(small_net(dtype=dtype)), small_net(dtype=dtype, seed=1)
    before = state_of(model)
    result = attribute(name, model, x, target)
    assert model.images == 0 and METHODS[name].control and not METHODS[name].signed and result.gap is None
    assert_same_state(before, state_of(model))
    assert result.map.shape == (5, 1, 20, 14) and (result.map >= 0).all() and (result.map.flatten(1).std(1) > 0).all()
    assert result.map.dtype == torch.promote_types(dtype, torch.float32)
    assert torch.equal(attribute(name, other, x, 0).map, result.map)             # another model, another class
    pick = torch.tensor([3, 1])
    torch.testing.assert_close(attribute(name, model, x[pick], target[pick]).map, result.map[pick])
    with pytest.raises(ValueError, match="target has shape"): attribute(name, model, x, target[:3])
    with pytest.raises(ValueError, match="NaN or infinite"): attribute(name, model, x / 0, target)


@pytest.mark.parametrize("name", CONTROLS)
def test_controls_and_baselines_keep_their_precision_in_any_context(name):
    model, (x, target) = small_net(), batch()
    expected, blurred = attribute(name, model, x, target).map, make_baseline("blur", x)
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad():
        assert torch.equal(attribute(name, model, x, target).map, expected) and torch.equal(make_baseline("blur", x), blurred)


def test_random_controls_follow_the_seed_and_the_image():
    model, (x, target) = small_net(), batch()
    for name in ("random", "smoothed_random"):
        a, b = (attribute(name, model, x, target, seed=seed).map for seed in (0, 1))
        assert not torch.equal(a, b) and torch.equal(a, attribute(name, model, x, target).map) and not torch.equal(a[0], a[1])
    rough, smooth = (attribute(name, model, x, target).map for name in ("random", "smoothed_random"))
    assert torch.equal(smooth.flatten(1).amin(1), torch.zeros(len(x))) and torch.equal(smooth.flatten(1).amax(1), torch.ones(len(x)))
    peaks = attribute("smoothed_random", model, torch.randn(300, *x.shape[1:]), 0).map[:, 0].flatten(1).argmax(1)
    rows, cols = peaks // 14, peaks % 14
    border = ((rows == 0) | (rows == 19) | (cols == 0) | (cols == 13)).float().mean()
    assert .15 < border < .45, border                                             # 64 of 280 pixels: the peak is not drawn to the border
    assert (smooth.diff(dim=-1).abs().mean() < rough.diff(dim=-1).abs().mean() / 2)


def test_edges_are_sobels():
    model, (x, target) = small_net(dtype=torch.float64), batch(dtype=torch.float64)
    gray = x.mean(1).numpy()
    for image, found in zip(gray, attribute("edges", model, x, target).map[:, 0]):
        expected = np.hypot(*(ndimage.sobel(image, axis, mode="nearest") / 8 for axis in (0, 1)))
        np.testing.assert_allclose(found.numpy(), expected, atol=1e-12)
    assert (attribute("edges", model, torch.ones_like(x), target).map == 0).all()      # nothing changes, nothing is shown


def test_the_hill_is_in_the_middle():
    model, (x, target) = small_net(), batch(1, size=(9, 15))
    hill = attribute("centred_gaussian", model, x, target, width=.2).map[0, 0]
    assert hill[4, 7] == 1 == hill.max() and torch.equal(hill, hill.flip(0)) and torch.equal(hill, hill.flip(1))
    torch.testing.assert_close(hill[4, 10], torch.tensor(np.exp(-.5), dtype=torch.float32))      # 3 pixels of 15 are one standard deviation
