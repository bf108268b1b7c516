"xaimed.scorecard: known answers, every measure of each map its own, constant maps that win nothing, bad questions."
import pytest
import torch
from torch import nn

from xaimed import scorecard
from xaimed.attribution import METHODS, attribute, integrated_gradients, make_baseline
from xaimed.scorecard import (MEASURES, SHARED, chance_levels, choose_measures, curves, flipping_area, infidelity, insertion, measure, pixel_effects, pixel_flipping, region_perturbation,
                              score, square_effects)


class Linear(nn.Module):
    "Logits w·x and 0."
    def __init__(self, weight):
        super().__init__()
        self.weight = nn.Parameter(weight)
    def forward(self, x): return torch.stack([(x * self.weight).sum((1, 2, 3)), torch.zeros_like(x[:, 0, 0, 0])], 1)


def net(channels=1, classes=3):
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = nn.Sequential(nn.Conv2d(channels, 6, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(96, classes))
        for p in model.parameters(): nn.init.normal_(p, std=.4)
    return model.eval()


def question(n=6, channels=1, size=16):
    g = torch.Generator().manual_seed(0)
    masks = torch.zeros(n, size, size, dtype=torch.bool)
    for k in range(n): masks[k, k % 11:k % 11 + 5, 3:8] = True
    return torch.randn(n, channels, size, size, generator=g), torch.arange(n) % 3, masks


def by_ig(model, x, target): return integrated_gradients(model, x, target, n_steps=4).map


def everything(model, x, target, maps, masks, gap=None, **options):
    return score(model, x, target, maps, masks=masks, explain=by_ig, gap=gap, others=[maps.flip(-1)], n_steps=6, **options)


@pytest.mark.parametrize("channels", [1, 3])
def test_scores_depend_on_neither_the_batch_nor_its_size(channels):
    model, (x, target, masks) = net(channels), question(channels=channels)
    result = integrated_gradients(model, x, target, n_steps=4)
    whole = everything(model, x, target, result.map, masks, result.gap, batch_size=64)
    assert set(whole) == set(MEASURES)
    for pick, size in (([4], 64), ([5, 0, 3], 2), (list(range(6)), 5)):
        part = everything(model, x[pick], target[pick], result.map[pick], masks[pick], result.gap[pick], batch_size=size)
        for name in whole: torch.testing.assert_close(part[name], whole[name][pick], equal_nan=True, atol=2e-4, rtol=1e-3, msg=lambda m, n=name: f"{n}: {m}")


def test_a_constant_map_wins_nothing():
    model, (x, target, masks) = net(), question(n=60)
    right = integrated_gradients(model, x, target, n_steps=8).map
    constant = torch.full_like(right, .3)
    good, flat = everything(model, x, target, right, masks), score(model, x, target, constant, masks=masks, explain=lambda m, i, t: torch.full_like(i, .3), others=[right], n_steps=6)
    for name, entry in MEASURES.items():
        if name in ("completeness", "consensus") or entry.family in ("randomisation", "localisation"): continue
        if flat[name].isnan().all(): continue                                             # not defined: it cannot win
        sign = 1 if entry.better == "higher" else -1
        assert sign * flat[name].nanmean() < sign * good[name].nanmean(), name
    assert flat["max_sensitivity"].isnan().all() and flat["average_sensitivity"].isnan().all() and flat["faithfulness_correlation"].isnan().all()
    assert (flat["mprt_last"] == 1).all()                                                  # it fails the randomisation test
    assert flat["flipping_area_blur"].abs().mean() < good["flipping_area_blur"].mean() / 2
    level = chance_levels(masks)
    for name in level: assert (flat[name].mean() - level[name].mean()).abs() < .15, name


def test_a_zero_map_has_defined_answers():
    model, (x, target, masks) = net(), question()
    scores = everything(model, x, target, torch.zeros(6, 1, 16, 16), masks)
    assert (scores["average_drop"] >= 0).all() and (scores["average_increase"] <= 1).all() and scores["infidelity"].isfinite().all()


@pytest.mark.parametrize("kind", ["blur", "mean"])
def test_the_measures_of_a_linear_model(kind):
    "With the model's own contributions every answer is the best there is."
    g = torch.Generator().manual_seed(2)
    model, x = Linear(torch.randn(1, 8, 8, generator=g)), torch.randn(3, 1, 8, 8, generator=g)
    start = make_baseline(kind, x)
    own = (model.weight * (x - start)).detach()
    got = curves(model, x, 0, own, baselines=[kind], n_steps=64, output="logit")[kind]
    falling = own.flatten(1).sort(1, descending=True).values.cumsum(1)
    clean = model(x)[:, :1].detach()
    torch.testing.assert_close(got[0][:, 1:], clean - falling, atol=1e-4, rtol=1e-4)                      # MoRF takes the largest first
    area = flipping_area(model, x, 0, own, baseline=kind, n_steps=64, output="logit")
    for _ in range(5):
        other = torch.randn(own.shape, generator=g)
        assert (flipping_area(model, x, 0, other, baseline=kind, n_steps=64, output="logit") < area).all()  # no order does better
    torch.testing.assert_close(flipping_area(model, x, 0, -own, baseline=kind, n_steps=64, output="logit"), -area, atol=1e-4, rtol=1e-4)


def test_insertion_is_the_curve_of_putting_pixels_in():
    model, (x, target, _) = net(), question()
    maps, start = by_ig(model, x, target), make_baseline("blur", x)
    order = maps.flatten(1).argsort(1, descending=True)
    curve = []
    for k in range(7):
        shown = torch.zeros(len(x), 256, dtype=torch.bool)
        shown.scatter_(1, order[:, :round(k * 256 / 6)], True)
        image = torch.where(shown.view(-1, 1, 16, 16), x, start)
        curve.append(model(image).softmax(1).gather(1, target[:, None])[:, 0])
    want = torch.stack(curve, 1)
    area = ((want[:, 1:] + want[:, :-1]) / 2).mean(1).detach()
    # n = 6 does not divide 256 pixels: the counts of the two directions differ by at most one pixel
    torch.testing.assert_close(insertion(model, x, target, maps, baseline="blur", n_steps=6), area, atol=5e-3, rtol=0)


def test_shared_results_are_computed_once(monkeypatch):
    model, (x, target, masks) = net(), question()
    maps, calls = by_ig(model, x, target), []
    for name, function in list(SHARED.items()):
        def counted(*args, _f=function, _n=name, **kwargs): calls.append(_n); return _f(*args, **kwargs)
        counted.__signature__ = __import__("inspect").signature(function)
        monkeypatch.setitem(SHARED, name, counted)
    everything(model, x, target, maps, masks)
    assert sorted(calls) == sorted(SHARED)
    given = {"pixel_effects": pixel_effects(model, x, target), "square_effects": square_effects(model, x, target)}
    calls.clear()
    again = everything(model, x, target, maps, masks, **given)
    assert not {"pixel_effects", "square_effects"} & set(calls)
    torch.testing.assert_close(again["infidelity"], infidelity(model, x, target, maps))


def test_the_budget_decides_what_is_explained_again():
    model, (x, target, masks) = net(), question()
    calls = []
    def counting(m, i, t): calls.append(len(i)); return by_ig(m, i, t)
    maps = by_ig(model, x, target)
    score(model, x, target, maps, budget="cheap", explain=counting, n_steps=4)
    assert len(calls) == 2                                                     # one randomised model, one other class
    cheap, full = ({m.name for m in choose_measures(budget=b)} for b in ("cheap", "full"))
    assert cheap < full and {"max_sensitivity", "mprt_top_down", "mprt_bottom_up"} <= full - cheap


def test_bad_questions():
    model, (x, target, masks) = net(), question()
    maps = by_ig(model, x, target)
    for bad, message in ((maps[..., 1:], "one map per image"), (maps * torch.nan, "NaN or infinite for 6 of 6"), (maps[0], "one map per image")):
        with pytest.raises(ValueError, match=message): score(model, x, target, bad)
    with pytest.raises(ValueError, match="expected 0..2: the model has 3 outputs"): score(model, x, target + 1, maps)
    with pytest.raises(ValueError, match="needs explain, got none"): score(model, x, target, maps, measures=["max_sensitivity"])
    with pytest.raises(ValueError, match="unknown budget"): score(model, x, target, maps, budget="huge")
    with pytest.raises(ValueError, match="unknown option of the scorecard 'nsteps'. Near: n_steps"): score(model, x, target, maps, nsteps=3)
    with pytest.raises(ValueError, match="already registered as ROAD"): measure("road", title="Another", family="faithfulness", better="higher", passes="1", source="")(lambda: None)
    with pytest.raises(ValueError, match="unknown family"): measure("new", title="New", family="beauty", better="higher", passes="1", source="")


def test_empty_and_full_masks():
    model, (x, target, masks) = net(), question()
    masks[0], masks[1] = False, True
    scores = score(model, x, target, by_ig(model, x, target), masks=masks, measures=[n for n, m in MEASURES.items() if m.family == "localisation"])
    level = chance_levels(masks)
    assert set(level) == set(scores)
    for name in scores:
        assert scores[name][0].isnan() and level[name][0].isnan()                  # nothing to find
        torch.testing.assert_close(scores[name][1], level[name][1], atol=1e-5, rtol=0)   # nothing to miss: no better than chance


def test_the_registry_is_complete_and_says_where_from():
    assert len(MEASURES) == 30 and {m.family for m in MEASURES.values()} == set(scorecard.FAMILIES)
    assert all(m.source and m.passes and m.better in ("higher", "lower") for m in MEASURES.values())
    assert [n for n, m in MEASURES.items() if m.decisive and m.family == "faithfulness"] == ["flipping_area_blur", "flipping_area_mean", "road"]
    assert all((m.chance is not None) == (m.family == "localisation") for m in MEASURES.values())
    assert len([m for m in METHODS.values() if m.control]) == 4


def test_the_controls_are_about_chance_at_flipping():
    model, (x, target, _) = net(), question(n=60)
    random = attribute("random", model, x, target).map
    area = flipping_area(model, x, target, random, n_steps=8)
    assert area.mean().abs() < 3 * area.std() / len(area) ** .5 + .01


def test_double_precision_and_pixel_flipping_itself():
    model, (x, target, _) = net().double(), question()
    maps = torch.arange(256.).view(1, 1, 16, 16).expand(6, -1, -1, -1).double()
    curve = pixel_flipping(model, x.double(), target, maps, n_steps=4)
    gone = x.double().clone(); gone[:, :, 8:] = make_baseline("mean", x.double())[:, :, 8:]
    want = model(gone).softmax(1).gather(1, target[:, None])[:, 0]
    torch.testing.assert_close(curve[:, 2], want.detach())                             # half of the pixels: the lower half of the image
    cells = region_perturbation(model, x.double(), target, maps, cells=2, n_steps=4)
    assert cells.shape == (6,) and cells.dtype == torch.float64


def test_a_share_of_f_is_never_of_a_logit():
    model, (x, target, _) = net(), question()
    maps = by_ig(model, x, target)
    direct = scorecard.average_drop(model, x, target, maps)
    for given in (dict(output="logit"), dict(output="probability")):
        both = score(model, x, target, maps, measures=["average_drop", "average_increase"], **given)
        torch.testing.assert_close(both["average_drop"], direct)
        assert both["average_drop"].min() >= 0 and both["average_drop"].max() <= 1 and set(both["average_increase"].tolist()) <= {0., 1.}
    labels = score(model, x, target, maps, measures=["average_drop"], output="logit", bounded="sigmoid")["average_drop"]
    torch.testing.assert_close(labels, scorecard.average_drop(model, x, target, maps, output="sigmoid"))


def test_the_units_of_a_map_do_not_matter():
    model, (x, target, _) = net(), question()
    maps = by_ig(model, x, target)
    names = ["faithfulness_correlation", "infidelity", "sparseness", "flipping_area_blur"]
    whole, tiny = (score(model, x, target, m, measures=names, n_steps=4) for m in (maps, maps * 1e-20))
    for name in names: torch.testing.assert_close(tiny[name], whole[name], atol=1e-4, rtol=1e-3, msg=name)


def test_ties_are_not_broken_by_the_random_control():
    model, (x, _, _) = net(), question()
    random = attribute("random", model, x, 0).map
    order, control = (scorecard.rank_pixels(m, x) for m in (torch.zeros_like(random), random))
    assert not torch.equal(order, control) and not torch.equal(order, 255 - control)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_scores_stay_on_the_device_and_are_the_same_there():
    model, (x, target, masks) = net(), question()
    result = integrated_gradients(model, x, target, n_steps=4)
    here = everything(model, x, target, result.map, masks, result.gap)
    there = everything(model.cuda(), x.cuda(), target.cuda(), result.map.cuda(), masks.cuda(), result.gap.cuda())
    for name in here:
        assert there[name].device.type == "cuda", name
        torch.testing.assert_close(there[name].cpu(), here[name], equal_nan=True, atol=5e-3, rtol=1e-2, msg=name)
    assert all(level.device.type == "cuda" for level in chance_levels(masks.cuda()).values())
