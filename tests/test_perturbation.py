"xaimed.perturbation: memory bounded, bad questions refused, the imputation equal to a direct solution."
import numpy as np
import pytest
import scipy.sparse
import scipy.sparse.linalg
import torch
from torch import nn

from xaimed import perturbation
from xaimed.attribution import blur, make_baseline
from xaimed.models import in_batches
from xaimed.perturbation import (OUTPUTS, check_maps, impute, imputed_curve, outputs, random_pixels, random_squares, rank_pixels, region_sums,
                                 removal_counts, removal_curve, removal_effects, responses)


class Counting(nn.Module):
    "A small net that notes the batches it sees, and has room for so many images."
    def __init__(self, room=10**9, error=None):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, 3))
        self.room, self.seen = room, []
        self.error = error or torch.OutOfMemoryError("CUDA out of memory.")

    def forward(self, x):
        if len(x) > self.room: raise self.error
        self.seen.append(len(x))
        return self.body(x)


def question(n=4, size=12):
    g = torch.Generator().manual_seed(1)
    return torch.randn(n, 3, size, size, generator=g), torch.arange(n) % 3, torch.randn(n, 1, size, size, generator=g)


@pytest.mark.parametrize("batch_size", [1, 7, 32])
def test_no_batch_is_larger_than_asked(batch_size):
    x, target, maps = question()
    model = Counting().eval()
    rank = rank_pixels(maps, x)
    removal_curve(model, x, target, rank, make_baseline("blur", x), n_steps=40, batch_size=batch_size)
    imputed_curve(model, x, target, rank, batch_size=batch_size)
    removal_effects(model, x, target, random_pixels(20, (12, 12)), make_baseline("mean", x), batch_size=batch_size)
    assert max(model.seen) <= batch_size and sum(model.seen) == 4 * (41 + 5 + 21)


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory."), MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried")])
def test_out_of_memory_halves_the_batch_and_goes_on(error, caplog):
    x, target, maps = question()
    rank, start = rank_pixels(maps, x), make_baseline("blur", x)
    whole = removal_curve(Counting().eval(), x, target, rank, start, n_steps=20, batch_size=32)
    tight = Counting(room=5, error=error).eval()
    torch.testing.assert_close(removal_curve(tight, x, target, rank, start, n_steps=20, batch_size=32), whole)
    assert max(tight.seen) == 4 and "out of memory with 32 images at once: going on with 16" in caplog.text
    with pytest.raises(type(error)): removal_curve(Counting(room=0, error=error).eval(), x, target, rank, start, n_steps=20)     # one image does not fit


def test_other_errors_are_not_taken_for_memory():
    def broken(start, stop): raise RuntimeError("shapes do not match")
    with pytest.raises(RuntimeError, match="shapes do not match"): in_batches(broken, 8, 4)
    with pytest.raises(ValueError, match="batch_size is 0"): in_batches(broken, 8, 0)


def test_the_model_is_left_as_found():
    x, target, maps = question()
    model = Counting().train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    removal_curve(model, x, target, rank_pixels(maps, x), make_baseline("blur", x))
    assert model.training and all(p.requires_grad for p in model.parameters())
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def direct(image, missing):
    "The imputation's linear system written out and solved by scipy."
    height, width = missing.shape
    cells = [tuple(c) for c in np.argwhere(missing)]
    place = {c: k for k, c in enumerate(cells)}
    matrix, right = scipy.sparse.lil_matrix((len(cells), len(cells))), np.zeros(len(cells))
    for k, (r, c) in enumerate(cells):
        for dr in (-1, 0, 1):
            for dc in (-1, 0, 1):
                n = (r + dr, c + dc)
                if (dr, dc) == (0, 0) or not (0 <= n[0] < height and 0 <= n[1] < width): continue
                w = 1 / 6 if dr == 0 or dc == 0 else 1 / 12
                matrix[k, k] += w
                if n in place: matrix[k, place[n]] -= w
                else: right[k] += w * image[n]
    filled = image.copy()
    filled[missing] = scipy.sparse.linalg.spsolve(matrix.tocsr(), right)
    return filled


@pytest.mark.parametrize("share", [.1, .5, .9])
def test_imputation_equals_a_direct_solution(share):
    g = np.random.default_rng(0)
    x = g.normal(size=(3, 2, 17, 14))
    missing = g.random((3, 17, 14)) < share
    missing[0, :9] = True                             # a whole half, at the border
    want = np.array([[direct(channel, hole) for channel in image] for image, hole in zip(x, missing)])
    got = impute(torch.from_numpy(x), torch.from_numpy(missing)[:, None], tolerance=1e-9)
    np.testing.assert_allclose(got.numpy(), want, atol=1e-6)
    coarse = impute(torch.from_numpy(x).float(), torch.from_numpy(missing)[:, None])
    assert np.abs(coarse.numpy() - want).max() < 3e-3 * np.ptp(x, axis=(2, 3)).min()                     # as it is used
    assert torch.equal(coarse[~torch.from_numpy(missing)[:, None].expand(-1, 2, -1, -1)], torch.from_numpy(x).float()[~torch.from_numpy(missing)[:, None].expand(-1, 2, -1, -1)])


@pytest.mark.parametrize("size,share", [((64, 64), .5), ((64, 64), .9), ((37, 50), .7), ((21, 64), .3)])
def test_smooth_holes_at_the_default_tolerance_and_whoever_shares_the_batch(size, share):
    g = torch.Generator().manual_seed(3)
    x = torch.rand(4, 3, *size, generator=g)
    rank = rank_pixels(blur(torch.randn(4, 1, *size, generator=g), size[0] / 10), x).view(4, 1, *size)
    missing = rank < round(share * size[0] * size[1])
    missing[1] = False; missing[1, :, 5, 5] = True                                 # done at once, beside holes that take their time
    got = impute(x, missing)
    want = np.array([[direct(channel, hole) for channel in image] for image, hole in zip(x[:2, :1].double().numpy(), missing[:2, 0].numpy())])
    assert np.abs(got[:2, :1].numpy() - want).max() < 1.5e-3                       # the contrast is 1
    for i in range(4): torch.testing.assert_close(impute(x[i:i + 1], missing[i:i + 1])[0], got[i], atol=1e-6, rtol=0)
    assert torch.equal(torch.where(missing, x, got), x) and got.is_contiguous()


def test_grey_in_three_channels_is_solved_once(monkeypatch):
    solved, solve = [], perturbation._solve_fill
    monkeypatch.setattr(perturbation, "_solve_fill", lambda x, *rest: solved.append(x.shape[1]) or solve(x, *rest))
    x, hole = torch.rand(2, 1, 20, 20), torch.zeros(2, 1, 20, 20, dtype=torch.bool)
    hole[..., 4:15, 3:17] = True
    grey, colour = x.repeat(1, 3, 1, 1), x.repeat(1, 3, 1, 1)
    colour[1, 2, 0, 0] += .5                                                       # one pixel of one channel of one image
    got = impute(grey, hole)
    torch.testing.assert_close(got, impute(x, hole).expand(-1, 3, -1, -1), atol=1e-6, rtol=0)
    assert got.is_contiguous()
    torch.testing.assert_close(impute(colour, hole)[0], got[0], atol=1e-6, rtol=0) # whoever shares the batch
    assert solved == [1, 1, 3]


def test_few_rounds_fill_large_holes(monkeypatch):
    rounds, cycle = [], perturbation._v_cycle
    def counted(residual, levels, *rest):
        if residual.shape[-1] == 64: rounds.append(1)
        return cycle(residual, levels, *rest)
    monkeypatch.setattr(perturbation, "_v_cycle", counted)
    g = torch.Generator().manual_seed(3)
    x, maps = torch.rand(4, 3, 64, 64, generator=g), torch.randn(4, 1, 64, 64, generator=g)
    for smooth in (False, True):
        rank = rank_pixels(blur(maps, 6.4) if smooth else maps, x).view(4, 1, 64, 64)
        impute(x, rank < 3686)                                                     # of 4096
    assert len(rounds) <= 11                                                       # 13 or more where coarse grids forget what is half known, or the border


def test_imputation_keeps_out_of_mixed_precision():
    x, hole = torch.rand(2, 3, 20, 20), torch.zeros(2, 1, 20, 20, dtype=torch.bool)
    hole[..., 4:15, 3:17] = True
    with torch.autocast("cpu", dtype=torch.bfloat16): mixed = impute(x, hole)
    assert torch.equal(mixed, impute(x, hole)) and mixed.dtype == torch.float32
    torch.testing.assert_close(impute(x.bfloat16(), hole).float(), impute(x.bfloat16().float(), hole), atol=4e-3, rtol=0)


def test_imputation_of_nothing_of_all_and_its_noise():
    x = torch.randn(2, 1, 6, 6)
    none = torch.zeros(2, 1, 6, 6, dtype=torch.bool)
    assert torch.equal(impute(x, none), x)
    with pytest.raises(ValueError, match="covers a whole image"): impute(x, ~none)
    with pytest.raises(ValueError, match="expected \\(2, 1, 6, 6\\)"): impute(x, none[:, 0])
    hole = none.clone(); hole[..., :3] = True
    still, noisy = impute(torch.ones_like(x), hole), impute(torch.ones_like(x), hole, noise=.1)
    torch.testing.assert_close(still, torch.ones_like(x))
    assert .03 < (noisy - still)[hole].std() < .2 and torch.equal(noisy[~hole], still[~hole])


def test_bad_questions():
    x, target, maps = question()
    model, start = Counting().eval(), make_baseline("blur", x)
    rank = rank_pixels(maps, x)
    for wrong in (torch.tensor([0, 1, 2, 3]), torch.tensor([0, -1, 0, 0])):
        with pytest.raises(ValueError, match="expected 0..2: the model has 3 outputs"): removal_curve(model, x, wrong, rank, start)
    with pytest.raises(ValueError, match="one class index per image"): removal_curve(model, x, target[:2], rank, start)
    with pytest.raises(ValueError, match="Near: logit"): removal_curve(model, x, target, rank, start, output="logits")
    for steps in (0, 145):
        with pytest.raises(ValueError, match="n_steps is"): removal_curve(model, x, target, rank, start, n_steps=steps)
    with pytest.raises(ValueError, match="shares is"): imputed_curve(model, x, target, rank, shares=(.5, 1.))
    for bad in (maps[:, 0], maps[:2], maps.expand(-1, 2, -1, -1), maps[..., :5], None):
        with pytest.raises(ValueError, match="one map per image"): check_maps(x, bad)
    nan = maps.clone(); nan[2, 0, 3, 3] = torch.nan
    with pytest.raises(ValueError, match="position 2 of the batch"): check_maps(x, nan)
    with pytest.raises(ValueError, match="share is"): random_pixels(3, (4, 4), share=1.)
    class Broken(nn.Module):
        def forward(self, x): return torch.full((len(x), 3), torch.nan)
    with pytest.raises(ValueError, match="not finite; check the checkpoint"): responses(Broken(), x, target, 2, lambda image, copy: x[image])


def test_ties_have_no_favourite_place():
    x = torch.randn(400, 1, 6, 6)
    first = (rank_pixels(torch.zeros(400, 1, 6, 6), x) == 0).float().mean(0)
    assert first.max() < .07                                                       # each place is first in about 1 of 36
    rank = rank_pixels(torch.zeros(400, 1, 6, 6), x)
    assert torch.equal(rank.sort(1).values, torch.arange(36).expand(400, 36))       # every place once
    assert not torch.equal(rank, rank_pixels(torch.zeros(400, 1, 6, 6), x, seed=1))


def test_outputs():
    logits = torch.tensor([[1., -2.], [0., 3.]])
    assert torch.allclose(outputs(logits, torch.tensor([0, 1]), "sigmoid"), torch.sigmoid(torch.tensor([1., 3.])))
    assert set(OUTPUTS) == {"probability", "logit", "sigmoid"}
    assert removal_counts(10, 3) == [0, 3, 7, 10] and removal_counts(4, 4) == [0, 1, 2, 3, 4]


def test_regions():
    squares = random_squares(50, (9, 15), sides=(.2, .5), seed=3)
    for region in squares.numpy():
        rows, cols = np.flatnonzero(region.any(1)), np.flatnonzero(region.any(0))
        assert len(rows) == len(cols) and region.sum() == len(rows) ** 2 and 2 <= len(rows) <= 4
    maps = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    pixels = random_pixels(5, (4, 4), share=.25, seed=1)
    want = [[maps[b].sum(0)[r].sum() for r in pixels] for b in range(2)]
    torch.testing.assert_close(region_sums(maps, pixels), torch.tensor(want, dtype=torch.float64))
    assert torch.equal(pixels, random_pixels(5, (4, 4), share=.25, seed=1)) and not torch.equal(pixels, random_pixels(5, (4, 4), share=.25, seed=2))
