"xaimed.scorecard: the measures that remove no pixels. Hand-computed values, chance levels, Quantus and captum, bad input."
import copy
import importlib.util
import inspect
from math import comb, log

import numpy as np
import pytest
import torch
from torch import nn

from xaimed import scorecard as card
from xaimed.models import build_model
from xaimed.scorecard import (MEASURES, area_share, average_sensitivity, bounding_box, box_share, check_masks, compare_maps, completeness, efficient_mprt,
                              energy_pointing_game, entropy, histogram_entropy, layer_groups, max_sensitivity, mprt_bottom_up, mprt_last, mprt_top_down,
                              perturbed_maps, pointing_game, pointing_game_chance, random_logit, randomised_maps, randomised_models, relevance_mass,
                              relevance_rank, sparseness, spearman, ssim, top_k_iou, top_k_iou_chance, widen)

NAMES = ("max_sensitivity", "average_sensitivity", "sparseness", "entropy", "completeness", "mprt_top_down", "mprt_bottom_up", "mprt_last", "efficient_mprt",
         "random_logit", "pointing_game", "relevance_mass", "relevance_rank", "energy_pointing_game", "top_k_iou")
LOCALISATION = NAMES[10:]
nothing = nn.Identity()


@pytest.fixture(scope="module")
def oracle(root):
    "The script with the fixed inputs; it imports Quantus only when asked for Quantus's values."
    spec = importlib.util.spec_from_file_location("oracle_measures", root / "benchmarks" / "oracle_measures.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def small_net(dtype=torch.float32):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(2, 6, 3, padding=1), nn.BatchNorm2d(6), nn.Softplus(), nn.Conv2d(6, 6, 3, padding=1), nn.BatchNorm2d(6), nn.Tanh(),
                        nn.AdaptiveAvgPool2d(3), nn.Flatten(), nn.Linear(54, 4)).to(dtype).train()
    for _ in range(10): net(torch.randn(16, 2, 12, 10, dtype=dtype))
    return net.eval()


def question(n=6, dtype=torch.float32):
    g = torch.Generator().manual_seed(1)
    x, target = torch.randn(n, 2, 12, 10, generator=g).to(dtype), torch.randint(0, 4, (n,), generator=g)
    masks = torch.rand(n, 12, 10, generator=g) > .8
    return x, target, masks


def explain(model, x, target):
    "Input times gradient."
    with torch.enable_grad():
        x = x.detach().clone().requires_grad_()
        return (x * torch.autograd.grad(model(x).gather(1, target[:, None]).sum(), x)[0]).detach()


def options(name, masks, gap):
    own = inspect.signature(MEASURES[name].function).parameters
    return {k: v for k, v in dict(masks=masks, explain=explain, gap=gap).items() if k in own}


def state(model):
    return ([m.training for m in model.modules()], [p.requires_grad for p in model.parameters()], [t.clone() for t in model.state_dict().values()],
            sum(len(m._forward_hooks) + len(m._backward_hooks) for m in model.modules()), torch.get_rng_state())


def same_state(a, b): return a[:2] == b[:2] and a[3] == b[3] and all(torch.equal(p, q) for p, q in zip(a[2], b[2])) and torch.equal(a[4], b[4])


# -- every measure ---------------------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("name", NAMES)
def test_one_number_per_image_whatever_the_batch(name):
    model, (x, target, masks) = small_net(), question()
    maps, gap, before = explain(model, x, target), torch.linspace(-1, 1, 6), state(model)
    whole = MEASURES[name].function(model, x, target, maps, **options(name, masks, gap))
    assert whole.shape == (6,) and whole.dtype == torch.float32 and whole.isfinite().all()
    assert same_state(before, state(model))
    for keep in ([3], [5, 0, 2], [4, 4]):
        some = MEASURES[name].function(model, x[keep], target[keep], maps[keep], **options(name, masks[keep], gap[keep]))
        torch.testing.assert_close(some, whole[keep], atol=1e-4, rtol=1e-4)
    again = MEASURES[name].function(model, x, target, maps, **options(name, masks, gap))
    assert torch.equal(again, whole)


@pytest.mark.parametrize("name", [n for n in NAMES if n not in ("max_sensitivity", "average_sensitivity", "random_logit")])
def test_single_and_double_precision_agree(name):
    "Measures whose draws do not hang on the image's bytes; with distinct values there are no ties to draw for."
    x, target, masks = question()
    results = []
    for dtype in (torch.float32, torch.float64):
        model = small_net().to(dtype)
        results.append(MEASURES[name].function(model, x.to(dtype), target, explain(model, x.to(dtype), target), **options(name, masks, torch.ones(6))))
    # a value beside the edge of a bin may change its bin, and near ties their ranks
    torch.testing.assert_close(*results, atol=5e-3 if name == "efficient_mprt" else 1e-4, rtol=1e-3)


@pytest.mark.parametrize("name", NAMES)
def test_bad_maps_are_refused(name):
    model, (x, target, masks) = small_net(), question()
    maps = explain(model, x, target)
    for bad in (maps[:, :, :-1], maps[:3], maps[:, 0], maps.index_fill(0, torch.tensor([2]), torch.nan)):
        with pytest.raises(ValueError): MEASURES[name].function(model, x, target, bad, **options(name, masks, torch.ones(6)))


@pytest.mark.parametrize("name", NAMES)
def test_channels_are_added_up(name):
    model, (x, target, masks) = small_net(), question()
    maps = explain(model, x, target)
    wide, flat = (MEASURES[name].function(model, x, target, m, **options(name, masks, torch.ones(6))) for m in (maps, maps.sum(1, keepdim=True)))
    torch.testing.assert_close(wide, flat)


def test_the_registry_says_what_each_measure_is():
    for name in NAMES:
        entry = MEASURES[name]
        assert entry.function.__name__ == name == entry.name and entry.better in ("higher", "lower") and "arXiv" in entry.source and entry.passes
        assert (entry.chance is not None) == (entry.family == "localisation")
    assert MEASURES["mprt_last"].decisive and MEASURES["mprt_last"].budget == "cheap"
    assert {MEASURES[n].budget for n in ("max_sensitivity", "average_sensitivity", "mprt_top_down", "mprt_bottom_up")} == {"full"}


# -- robustness ------------------------------------------------------------------------------------------------------------------------------

def test_sensitivity_of_a_linear_model():
    "The gradient of w·x does not move; w·x moves by w·δ, which lies within the box."
    w = torch.randn(1, 2, 5, 4, generator=torch.Generator().manual_seed(2))
    x = torch.rand(3, 2, 5, 4, generator=torch.Generator().manual_seed(3)) * 7 - 2
    steady, product = (lambda m, x, t: w.expand_as(x)), (lambda m, x, t: w * x)
    for f in (max_sensitivity, average_sensitivity): assert (f(nothing, x, 0, steady(0, x, 0), explain=steady) == 0).all()
    moved = perturbed_maps(nothing, x, 0, product, n_perturbations=4)
    change = (moved - (w * x).sum(1)).flatten(2).norm(dim=2) / (w * x).sum(1).flatten(1).norm(dim=1)
    torch.testing.assert_close(max_sensitivity(nothing, x, 0, w * x, moved=moved), change.amax(0))
    torch.testing.assert_close(average_sensitivity(nothing, x, 0, w * x, explain=product, n_perturbations=4), change.mean(0))
    seen = []
    perturbed_maps(nothing, x, 0, lambda m, x, t: seen.append(x) or x, n_perturbations=50, radius=.1)
    noise = (torch.stack(seen) - x).abs().amax((0, 2, 3, 4))
    reach = .1 * (x.flatten(1).amax(1) - x.flatten(1).amin(1))
    assert (noise <= reach * 1.0001).all() and (noise > .99 * reach).all()          # the box is as wide as said, for each image


def test_sensitivity_does_not_hang_on_the_normalisation():
    "The same picture in 0..1 and in -1..1, and a method that does not care."
    x = torch.arange(2 * 64.).view(2, 1, 8, 8) / 128
    squares = lambda m, x, t: (x - x.flatten(1).amin(1).view(-1, 1, 1, 1))**2
    seen = []
    for scaled in (x, 2 * x - 1): perturbed_maps(nothing, scaled, 0, lambda m, x, t: seen.append(x.flatten(1).std(1)) or x, n_perturbations=1)
    torch.testing.assert_close(seen[1], 2 * seen[0], atol=1e-2, rtol=1e-2)


def test_sensitivity_of_constant_maps_has_no_answer():
    x = torch.rand(3, 1, 6, 6)
    maps = torch.stack([torch.zeros(1, 6, 6), torch.full((1, 6, 6), 4.), torch.rand(1, 6, 6)])
    for f in (max_sensitivity, average_sensitivity):
        assert f(nothing, x, 0, maps, explain=lambda m, x, t: x).isnan().tolist() == [True, True, False]


def test_sensitivity_refuses():
    x = torch.rand(3, 1, 6, 6)
    with pytest.raises(ValueError, match="explain is None"): max_sensitivity(nothing, x, 0, x)
    with pytest.raises(ValueError, match="radius is 0"): perturbed_maps(nothing, x, 0, lambda *a: x, radius=0)
    with pytest.raises(ValueError, match="n_perturbations"): perturbed_maps(nothing, x, 0, lambda *a: x, n_perturbations=0)
    with pytest.raises(ValueError, match="moved has shape"): max_sensitivity(nothing, x, 0, x, moved=x)


# -- complexity and axioms -------------------------------------------------------------------------------------------------------------------

def test_complexity_by_hand():
    x = torch.zeros(5, 1, 2, 2)
    maps = torch.tensor([[0, 0, 1, -3], [0, 5e-9, 0, 0], [-2, 2, 2, 2], [0, 0, 0, 0], [1, 2, 3, 4]]).float().view(5, 1, 2, 2)
    torch.testing.assert_close(sparseness(nothing, x, 0, maps), torch.tensor([10 / 16, 3 / 4, 0, 0, (-3 - 2 + 3 + 12) / 40]))
    shares = np.array([.1, .2, .3, .4])
    expected = [.25 * log(4) + .75 * log(4 / 3), 0, log(4), log(4), -(shares * np.log(shares)).sum()]
    torch.testing.assert_close(entropy(nothing, x, 0, maps), torch.tensor(expected, dtype=torch.float32))


def test_complexity_does_not_hang_on_scale():
    x, _, _ = question()
    for f in (sparseness, entropy):
        for factor in (1e-12, -3., 1e8): torch.testing.assert_close(f(nothing, x, 0, x * factor), f(nothing, x, 0, x), atol=1e-6, rtol=1e-5)


def test_completeness():
    x = torch.zeros(3, 1, 2, 2)
    assert completeness(nothing, x, 0, x, gap=torch.tensor([-.5, 0, 2.], dtype=torch.float64)).tolist() == [.5, 0, 2]
    assert completeness(nothing, x, 0, x).isnan().all()
    with pytest.raises(ValueError, match="gap has shape"): completeness(nothing, x, 0, x, gap=torch.zeros(2))


# -- randomisation ---------------------------------------------------------------------------------------------------------------------------

def test_a_resnet_is_randomised_in_six_groups():
    model = build_model("resnet18", 3, in_channels=1, stem="small", image_size=28, seed=0)
    assert layer_groups(model) == {"conv1": ["conv1", "bn1"]} | {f"layer{i}": [f"layer{i}"] for i in range(1, 5)} | {"fc": ["fc"]}
    assert layer_groups(nn.Sequential(model)) == {f"0.{k}": [f"0.{p}" for p in v] for k, v in layer_groups(model).items()}      # a wrapper is opened


@pytest.mark.parametrize("order", ["top_down", "bottom_up", "whole"])
def test_the_cascade_changes_one_more_group_at_each_stage_and_nothing_else(order):
    model, (x, _, _) = small_net(), question()
    model[0].weight.requires_grad_(False)
    before, logits = state(model), model(x)
    groups = {"0": (0, 1), "3": (3, 4), "8": (8,)}
    new = set()
    for name, changed in randomised_models(model, order=order, seed=3):
        new |= set(groups) if name == "whole" else {name}
        for group, places in groups.items():
            for place in places:
                for (key, old), value in zip(model[place].state_dict().items(), changed[place].state_dict().values()):
                    if group not in new: assert torch.equal(old, value)
                    elif "weight" in key and place in (0, 3, 8): assert not torch.isclose(old, value).any(dim=-1).all()
                    elif key == "running_mean": assert (value == 0).all()
                    elif key == "running_var": assert (value == 1).all()
        assert [m.training for m in changed.modules()] == [m.training for m in model.modules()] and not changed[0].weight.requires_grad
    assert new == set(groups) and same_state(before, state(model)) and torch.equal(model(x), logits)


def test_fresh_weights_follow_the_seed_and_not_the_order_the_device_type_or_the_generator():
    model = small_net()
    ends = []
    for order in ("top_down", "bottom_up", "whole"):
        torch.manual_seed(len(ends))
        ends.append(list(randomised_models(model, order=order))[-1][1].state_dict())
    for other in ends[1:]: assert all(torch.equal(a, b) for a, b in zip(ends[0].values(), other.values()))
    double = list(randomised_models(copy.deepcopy(model).double(), order="whole"))[0][1]
    assert all(torch.equal(a.double(), b.double()) for a, b in zip(ends[0].values(), double.state_dict().values())) and double[0].weight.dtype == torch.float64
    other = list(randomised_models(model, order="whole", seed=1))[0][1]
    assert not torch.equal(ends[0]["0.weight"], other[0].weight)
    assert not torch.equal(ends[0]["0.weight"].flatten()[:9], ends[0]["3.weight"].flatten()[:9])        # no two layers share a stream


def test_models_that_cannot_be_randomised_are_refused():
    class Token(nn.Module):
        def __init__(self):
            super().__init__()
            self.token = nn.Parameter(torch.ones(3))
    with pytest.raises(ValueError, match="1 is a Token that holds weights and has no reset_parameters"): list(randomised_models(nn.Sequential(nn.Linear(2, 2), Token())))
    with pytest.raises(ValueError, match="no layers with weights"): layer_groups(nn.Sequential(nn.ReLU(), nn.Flatten()))
    with pytest.raises(ValueError, match="order"): list(randomised_models(small_net(), order="topdown"))
    root = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    root.scale = nn.Parameter(torch.ones(1))
    with pytest.raises(ValueError, match="the model itself is a Sequential"): layer_groups(root)
    assert layer_groups(nn.Linear(2, 2)) == {"model": [""]}
    assert len(list(randomised_models(nn.Linear(2, 2)))) == 1


def test_similarity_of_maps():
    g = torch.Generator().manual_seed(0)
    a, b = torch.randint(0, 9, (5, 11, 8), generator=g).float(), torch.randint(0, 9, (5, 11, 8), generator=g).float()          # many ties
    from scipy.stats import spearmanr
    from skimage.metrics import structural_similarity
    torch.testing.assert_close(spearman(a, b), torch.tensor([spearmanr(p.flatten(), q.flatten())[0] for p, q in zip(a, b)], dtype=torch.float32), atol=1e-6, rtol=1e-6)
    for window, (p, q) in ((7, (a, b)), (5, (a[:, :5], b[:, :5]))):
        p, q = (v / v.amax((1, 2), keepdim=True) for v in (p, q))
        expected = [structural_similarity(u.double().numpy(), v.double().numpy(), win_size=window, data_range=1.) for u, v in zip(p, q)]
        torch.testing.assert_close(ssim(p, q), torch.tensor(expected, dtype=torch.float32), atol=1e-5, rtol=1e-5)
    flat = torch.full((1, 11, 8), 3.)
    for kind in ("spearman", "ssim"):
        torch.testing.assert_close(compare_maps(a, a, kind), torch.ones(5))
        assert compare_maps(flat, flat * 0, kind).item() == 1 and compare_maps(flat, a[:1], kind).isnan().all() and compare_maps(a[:1], flat, kind).item() == 0
    with pytest.raises(ValueError, match="similarity"): compare_maps(a, b, "pearson")
    with pytest.raises(ValueError, match="one shape"): compare_maps(a, b[:, :4])


def test_mprt_reads_shared_stages_and_models():
    model, (x, target, _) = small_net(), question()
    maps = explain(model, x, target)
    calls = []
    def counted(m, x, t): calls.append(m); return explain(m, x, t)
    models = {order: list(randomised_models(model, order=order)) for order in ("top_down", "bottom_up")}
    stages = randomised_maps(model, x, target, counted, models=models)
    assert len(calls) == 6 and {k: list(v) for k, v in stages.items()} == {"top_down": ["8", "3", "0"], "bottom_up": ["0", "3", "8"]}
    for f, order in ((mprt_top_down, "top_down"), (mprt_bottom_up, "bottom_up")):
        shared = f(model, x, target, maps, stages=stages)
        torch.testing.assert_close(shared, f(model, x, target, maps, explain=explain))
        by_hand = torch.stack([spearman(maps.sum(1).abs(), m.abs()) for m in stages[order].values()]).mean(0)
        torch.testing.assert_close(shared, by_hand)
        assert (f(model, x, target, maps, stages=stages, similarity="ssim") != shared).all()
    last = spearman(maps.sum(1).abs(), stages["bottom_up"]["8"].abs())
    whole = randomised_maps(model, x, target, counted, orders=("whole",))
    assert len(calls) == 7
    for use in (dict(stages=stages), dict(stages=whole), dict(explain=explain)): torch.testing.assert_close(mprt_last(model, x, target, maps, **use), last)
    for use in (dict(stages=whole), dict(explain=explain)): torch.testing.assert_close(efficient_mprt(model, x, target, maps, **use), efficient_mprt(model, x, target, maps, stages=stages))
    with pytest.raises(ValueError, match="explain is None and stages holds no 'top_down'"): mprt_top_down(model, x, target, maps, stages=whole)


def test_a_map_that_ignores_the_model_fails_and_so_does_a_constant():
    model, (x, target, _) = small_net(), question()
    for blind in (lambda m, x, t: x[:, :1] ** 2, lambda m, x, t: torch.zeros_like(x[:, :1]), lambda m, x, t: torch.ones_like(x)):
        maps = blind(model, x, target)
        for f in (mprt_top_down, mprt_bottom_up, mprt_last, random_logit): torch.testing.assert_close(f(model, x, target, maps, explain=blind), torch.ones(6))
        change = efficient_mprt(model, x, target, maps, explain=blind)
        assert (change == 0).all() if maps.std() > 0 else change.isnan().all()


def test_histogram_entropy():
    g = torch.Generator().manual_seed(0)
    values = torch.randn(4, 13, 9, generator=g)
    for bins in (10, 100):
        shares = [np.histogram(v.double().numpy(), bins=bins)[0] / 117 for v in values]
        expected = torch.tensor([-sum(p * log(p) for p in s if p) for s in shares], dtype=torch.float32)
        torch.testing.assert_close(histogram_entropy(values, bins), expected)
    half = torch.tensor([[[0., 0.], [1., 1.]]])
    torch.testing.assert_close(histogram_entropy(half), torch.tensor([log(2)]))
    assert histogram_entropy(half * 0 + 5).item() == 0
    with pytest.raises(ValueError, match="bins"): histogram_entropy(half, 1)


def test_random_logit():
    torch.manual_seed(0)
    x = torch.randn(40, 1, 5, 5)
    for classes in (2, 5):
        model, seen = nn.Sequential(nn.Flatten(), nn.Linear(25, classes)), []
        target = torch.arange(40) % classes
        def counted(m, x, t): seen.append(t); return explain(m, x, t)
        random_logit(model, x, target, explain(model, x, target), explain=counted)
        assert (seen[0] != target).all() and seen[0].min() == 0 and seen[0].max() == classes - 1
        random_logit(model, x, target, explain(model, x, target), explain=counted, seed=1)
        assert torch.equal(seen[0], seen[1]) == (classes == 2)
    opposite = nn.Sequential(nn.Flatten(), nn.Linear(25, 2))
    with torch.no_grad(): opposite[1].weight[1] = -opposite[1].weight[0]
    torch.testing.assert_close(random_logit(opposite, x, 1, explain(opposite, x, torch.ones(40, dtype=torch.int64)), explain=explain), -torch.ones(40))
    one = nn.Sequential(nn.Flatten(), nn.Linear(25, 1))
    assert random_logit(one, x, 0, explain(one, x, torch.zeros(40, dtype=torch.int64)), explain=explain).isnan().all()
    with pytest.raises(ValueError, match="target holds indices 0..2, expected 0..1"): random_logit(opposite, x, torch.arange(40) % 3, x, explain=explain)


# -- localisation ----------------------------------------------------------------------------------------------------------------------------

tiny = torch.tensor([[[[4., 0., -2.], [1., 3., .5], [-1., 2., -3.]]]])
ell = torch.tensor([[[1, 0, 0], [1, 0, 0], [0, 1, 0]]], dtype=torch.bool)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_localisation_by_hand(dtype):
    at = dict(model=nothing, x=torch.zeros(1, 1, 3, 3, dtype=dtype), target=0, maps=tiny.to(dtype), masks=ell)
    assert pointing_game(**at).item() == 1 and pointing_game(**at | {"maps": -at["maps"]}).item() == 0
    assert relevance_mass(**at).item() == pytest.approx(7 / 10.5)
    assert relevance_rank(**at).item() == pytest.approx(2 / 3)
    assert energy_pointing_game(**at).item() == pytest.approx((9 + 18) / (4.5 + 27))
    assert top_k_iou(**at, k=.44).item() == pytest.approx(3 / 4) and top_k_iou(**at).item() == pytest.approx(1 / 3)     # a tenth of 9: one pixel
    assert top_k_iou(**at, k=1.).item() == pytest.approx(3 / 9)


def test_relevance_mass_counts_positive_relevance_only():
    "Dividing by all relevance, as Quantus does, would give 3 / 2 = 1.5 here: more than all."
    maps = torch.tensor([[[[3., -2.], [1., 0.]]]])
    mask = torch.tensor([[[1, 0], [0, 0]]], dtype=torch.bool)
    assert relevance_mass(nothing, torch.zeros(1, 1, 2, 2), 0, maps, masks=mask).item() == .75


def test_tolerance_is_a_disc():
    masks = torch.zeros(1, 9, 9, dtype=torch.bool)
    masks[0, 4, 4] = True
    yy, xx = torch.meshgrid(torch.arange(9) - 4, torch.arange(9) - 4, indexing="ij")
    for radius in (0, .9, 1, 1.5, 2, 3.2): assert torch.equal(widen(masks, radius)[0], (yy**2 + xx**2 <= radius**2))
    corner = torch.zeros(1, 1, 9, 9)
    corner[0, 0, 4, 6] = 1
    assert [pointing_game(nothing, corner, 0, corner, masks=masks, tolerance=t / 9).item() for t in (0, 1.9, 2.1)] == [0, 0, 1]
    assert pointing_game_chance(masks, tolerance=1.5 / 9).item() == pytest.approx(9 / 81)
    for bad in (-.1, 1.):
        with pytest.raises(ValueError, match="tolerance"): pointing_game(nothing, corner, 0, corner, masks=masks, tolerance=bad)


def test_box_holds_all_parts_of_a_mask():
    masks = torch.zeros(3, 6, 7, dtype=torch.bool)
    masks[0, 1, 2] = masks[0, 4, 5] = masks[1, 0, 0] = True
    box = torch.zeros_like(masks)
    box[0, 1:5, 2:6] = box[1, 0, 0] = True
    assert torch.equal(bounding_box(masks), box)
    torch.testing.assert_close(box_share(masks), torch.tensor([16 / 42, 1 / 42, torch.nan]), equal_nan=True)


def test_ties_are_broken_at_random_and_not_by_place():
    g = torch.Generator().manual_seed(0)
    x = torch.rand(2000, 1, 4, 4, generator=g)
    maps = torch.zeros(2000, 1, 4, 4)
    maps[:, 0, [0, 3], [1, 2]] = 1                                            # two highest pixels, one of them on the finding
    masks = torch.zeros(2000, 4, 4, dtype=torch.bool)
    masks[:, 3, 2] = True
    hits = pointing_game(nothing, x, 0, maps, masks=masks, tolerance=0.)
    assert .45 < hits.mean() < .55
    assert torch.equal(hits, pointing_game(nothing, x, 0, maps, masks=masks, tolerance=0.))
    other = pointing_game(nothing, x, 0, maps, masks=masks, tolerance=0., seed=1)
    assert .4 < (other == hits).float().mean() < .6
    assert .45 < relevance_rank(nothing, x, 0, maps, masks=masks).mean() < .55


@pytest.mark.parametrize("name", LOCALISATION)
@pytest.mark.parametrize("shape", ["disc", "scatter", "corner", "most"])
def test_random_maps_score_the_chance_level(name, shape):
    n, g = 3000, torch.Generator().manual_seed(5)
    yy, xx = torch.meshgrid(torch.arange(13), torch.arange(17), indexing="ij")
    mask = {"disc": (yy - 5)**2 + (xx - 9)**2 <= 9, "scatter": torch.rand(13, 17, generator=g) < .1, "corner": (yy < 2) & (xx < 3), "most": yy > 1}[shape][None]
    maps = torch.rand(n, 1, 13, 17, generator=g)
    entry = MEASURES[name]
    got, chance = entry.function(nothing, maps, 0, maps, masks=mask.expand(n, -1, -1)), entry.chance(mask).item()
    assert abs(got.mean().item() - chance) < 4 * got.std().item() / n**.5 + 1e-6
    constant = entry.function(nothing, maps, 0, torch.full_like(maps, .3), masks=mask.expand(n, -1, -1))
    assert abs(constant.mean().item() - chance) < 4 * constant.std().item() / n**.5 + 1e-6
    if name in ("relevance_mass", "energy_pointing_game"): torch.testing.assert_close(constant, torch.full((n,), chance))


def test_chance_of_overlap_is_exact():
    for pixels, size, k in ((12, 3, .25), (12, 9, .5), (12, 1, 1.), (30, 30, .1), (30, 17, .6)):
        mask = (torch.arange(pixels) < size).view(1, 3, -1)
        taken = max(1, round(k * pixels))
        expected = sum(comb(size, h) * comb(pixels - size, taken - h) / comb(pixels, taken) * h / (taken + size - h) for h in range(min(size, taken) + 1))
        assert top_k_iou_chance(mask, k=k).item() == pytest.approx(expected, rel=1e-6)
    large = torch.zeros(1, 224, 224, dtype=torch.bool)
    large[0, 50:110, 60:150] = True
    share, k = 5400 / 224**2, 5018 / 224**2                                   # many pixels: the ratio of the means is close
    assert top_k_iou_chance(large).item() == pytest.approx(share * k / (share + k - share * k), rel=2e-3)
    for bad in (0, 1.1):
        with pytest.raises(ValueError, match="k is"): top_k_iou_chance(large, k=bad)


@pytest.mark.parametrize("name", LOCALISATION)
def test_empty_and_full_masks(name):
    x = torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(6))
    masks = torch.zeros(3, 8, 8, dtype=torch.bool)
    masks[1] = True
    masks[2, 2:4, 2:5] = True
    more = dict(k=1.) if name == "top_k_iou" else {}
    got, chance = MEASURES[name].function(nothing, x, 0, x, masks=masks, **more), MEASURES[name].chance(masks, **more)
    assert got.isnan().tolist() == chance.isnan().tolist() == [True, False, False]
    assert got[1].item() == 1 and chance[1].item() == pytest.approx(1)
    if name == "top_k_iou":                                                   # with fewer pixels taken, the share taken is both score and chance
        assert top_k_iou(nothing, x, 0, x, masks=masks)[1].item() == pytest.approx(6 / 64) == pytest.approx(top_k_iou_chance(masks)[1].item())


@pytest.mark.parametrize("name", ["relevance_mass", "energy_pointing_game"])
def test_maps_that_point_nowhere_score_chance(name):
    maps = torch.stack([torch.zeros(1, 8, 8), torch.full((1, 8, 8), -2.), torch.full((1, 8, 8), .1)])
    masks = torch.zeros(3, 8, 8, dtype=torch.bool)
    masks[:, 2, 2:5] = masks[:, 4, 4] = True
    torch.testing.assert_close(MEASURES[name].function(nothing, maps, 0, maps, masks=masks), MEASURES[name].chance(masks))
    negative = -torch.rand(3, 1, 8, 8)
    torch.testing.assert_close(relevance_mass(nothing, maps, 0, negative, masks=masks), area_share(masks))


@pytest.mark.parametrize("name", LOCALISATION)
def test_bad_masks_are_refused(name):
    x = torch.rand(2, 3, 8, 8)
    good = torch.rand(2, 8, 8) > .5
    for bad, message in ((good.float(), "float32, expected bool"), (good[:, None], "expected \\(2, 8, 8\\)"), (good[:1], "one mask per map"), (None, "NoneType"),
                         (good.numpy(), "ndarray")):
        with pytest.raises(ValueError, match=message): MEASURES[name].function(nothing, x, 0, x, masks=bad)
    check_masks(x, good)


# -- independent implementations: Quantus 0.6.0 and captum 0.9.0 on fixed inputs, found by benchmarks/oracle_measures.py ------------------------

QUANTUS = {  # with its own rescaling of maps switched off (abs=False, normalise=False)
    "entropy": [4.0950856, 4.1415148, 4.1322689],
    "sparseness": [0.3081966, 0.2723554, 0.2834071],
    "pointing_game": [1.0, 0.0, 1.0],
    "relevance_mass of positive maps": [0.217572, 0.1915379, 0.3299148],
    "relevance_rank": [0.25, 0.125, 0.2916667],
    "top-7 intersection": [0.2857143, 0.0, 0.1428571],
    "max_sensitivity": [0.1012129, 0.01474, 0.0487622],             # captum's sensitivity_max: the same
    "average_sensitivity": [0.0662471, 0.012641, 0.0351758],
    "mprt stages top-down": [[0.9410573, 0.9572963, 0.948807], [0.307158, 0.6641585, 0.5657277], [-0.0358222, 0.2378931, -0.0102579]],
    "mprt stages bottom-up": [[0.2733616, 0.1025789, -0.0378802], [0.0167535, 0.1592707, 0.0181362], [-0.0358222, 0.2378931, -0.0102579]],
    "efficient_mprt": [-0.0250764, 0.0229817, 0.0334982],
    "random_logit": [0.1519069, 0.1252814, 0.2024246],
    "ssim": [-0.7072138, -0.6654659, -0.629704],
}


@pytest.fixture(scope="module")
def ours(oracle): return oracle.our_values()


@pytest.mark.parametrize("name", QUANTUS)
def test_equal_to_quantus(ours, name): np.testing.assert_allclose(ours[name], QUANTUS[name], atol=2e-6)


def test_equal_to_captum(oracle, ours): np.testing.assert_allclose(ours["max_sensitivity"], oracle.captum_values()["max_sensitivity"], atol=1e-6)


def test_where_quantus_differs(oracle, ours):
    "Each with what Quantus 0.6.0 says, why, and the value by hand that is kept here."
    # it adds 1e-7 to every value before the Gini index, so the scale of a map changes its sparseness; a ratio must not
    small = [0.2676776, 0.2364975, 0.2456917]
    np.testing.assert_allclose(ours["sparseness of a small map"], QUANTUS["sparseness"], atol=2e-6)
    assert np.abs(np.subtract(small, ours["sparseness of a small map"])).min() > .03
    # any of the tied highest pixels counts as a hit, so a constant map scores 1 on every mask; one pixel drawn at random scores chance
    assert ours["pointing_game of a constant map"] != [1, 1, 1]
    # an empty mask's NaN is stored in an array of bool and becomes a hit
    assert np.isnan(ours["pointing_game, one mask empty"]).tolist() == [False, True, False]
    # it divides by the sum of all relevance, negative values too
    maps, masks = oracle.fixed_maps()[:, 0].double(), oracle.fixed_masks()
    theirs = (maps * masks).sum((1, 2)) / maps.sum((1, 2))
    np.testing.assert_allclose(theirs, [0.3467479, 0.1253421, 0.2898271], atol=1e-5)
    positive = maps.clamp(min=0)
    np.testing.assert_allclose(ours["relevance_mass"], (positive * masks).sum((1, 2)) / positive.sum((1, 2)), atol=1e-6)
    # its mean over the stages takes in the trained model's own map, whose similarity is 1
    stages = np.asarray(QUANTUS["mprt stages top-down"])
    np.testing.assert_allclose(np.vstack([np.ones(3), stages]).mean(0), [0.5530983, 0.714837, 0.6260692], atol=2e-6)
    np.testing.assert_allclose(ours["mprt_top_down"], stages.mean(0), atol=2e-6)


# -- on an accelerator -----------------------------------------------------------------------------------------------------------------------

@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("name", NAMES)
def test_the_same_on_a_gpu(name):
    model, (x, target, masks) = small_net(torch.float64), question(dtype=torch.float64)
    values = []
    for device in ("cpu", "cuda"):
        m, a, t = copy.deepcopy(model).to(device), x.to(device), target.to(device)
        got = MEASURES[name].function(m, a, t, explain(m, a, t), **options(name, masks.to(device), torch.ones(6, device=device)))
        assert got.device.type == device
        values.append(got.cpu())
    torch.testing.assert_close(*values, atol=1e-2 if name == "efficient_mprt" else 1e-4, rtol=1e-3)
    if MEASURES[name].chance: torch.testing.assert_close(MEASURES[name].chance(masks.cuda()).cpu(), MEASURES[name].chance(masks))
