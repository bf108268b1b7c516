"""xaimed.scorecard: the measures that remove pixels, beside independent implementations on fixed inputs.

The inputs, and how the values were found, are in benchmarks/oracle_faithfulness.py; it finds them anew where the other libraries are installed.
"""
import importlib.util

import numpy as np
import pytest
import torch

from xaimed import scorecard as card
from xaimed.perturbation import impute, rank_pixels, removal_curve

# Quantus 0.6.0 (float32, numpy 2.4, torch 2.14.1, scipy 1.17.1), with its rescaling of maps off (normalise=False, abs=False) and the point before the first step added
QUANTUS = {
    "pixel_flipping": [[0.2792938, 0.8477826, 0.9238881, 0.8854421, 0.8071045, 0.7550555],
                       [0.7717455, 0.857058, 0.9040276, 0.8860717, 0.5922302, 0.1960891],
                       [0.0277714, 0.0116247, 0.0116933, 0.0122657, 0.0205558, 0.0488553]],
    "deletion_blur": [0.6088325, 0.7472784, 0.018607],
    "insertion_blur": [0.2421713, 0.5707608, 0.026629],
    "aopc_blur": [-0.3385273, 0.0526155, -0.0055166],
    "flipping_area_blur": [-0.3666612, -0.1765177, 0.008022],
    "deletion_mean": [0.7068893, 0.7482366, 0.0192781],
    "insertion_mean": [0.2836573, 0.5583383, 0.0292183],
    "aopc_mean": [-0.4364289, 0.050812, -0.0064008],
    "flipping_area_mean": [-0.423232, -0.1898983, 0.0099402],
    "region_perturbation": [-0.2250257, -0.0005941, -0.0119427],
    "imputed, most relevant first": [[0.2445807, 0.5994582, 0.8471961, 0.8618487, 0.6854836],
                                     [0.8202741, 0.7443889, 0.8580207, 0.3360065, 0.2102102],
                                     [0.0232905, 0.0205836, 0.0050563, 0.0186506, 0.0276415]],
    "imputed, least relevant first": [[0.3725382, 0.1296945, 0.1041266, 0.2478483, 0.6123093],
                                      [0.6481702, 0.375171, 0.5359803, 0.6404029, 0.6369634],
                                      [0.0279596, 0.0251394, 0.0203108, 0.0305626, 0.0416152]],
    "road": [-0.3544101, -0.0264425, 0.010073],
    "faithfulness_correlation": [-0.0816353, -0.5432945, 0.2380407],
    "infidelity of growing regions": [35.5182152, 22.0376873, 18.2198849],
}
# pytorch-grad-cam 1.5.7, noise 0; its drop divided by f of the whole image, as in the paper
GRAD_CAM = {
    "road": [-0.3544101, -0.0264425, 0.010073],
    "average_drop": [0.1624198, 0.2015543, 0.0],
    "average_increase": [0.0, 0.0, 1.0],
}
# captum 0.9.0; compared live as well, since xaimed stands on captum
CAPTUM = {
    "infidelity, unscaled": [6.1738353, 1.3657739, 11.2755375],
    "infidelity": [0.5462592, 0.2424697, 0.3881546],
}
QUANTUS_MEAN = [[0.2792938, 0.8483446, 0.9249641, 0.8841627, 0.7887574, 0.7041639],
                [0.7717455, 0.8582309, 0.900031, 0.8838546, 0.5895903, 0.1950057],
                [0.0277714, 0.0116578, 0.0116087, 0.0120058, 0.0207201, 0.0484298]]
# fills are solved to 1e-4 of an image's contrast, not to the last digit
CLOSE = {"imputed, most relevant first": 5e-4, "imputed, least relevant first": 5e-4, "road": 1e-4, "infidelity of growing regions": 1e-4}


@pytest.fixture(scope="module")
def oracle(root):
    "The script with the fixed inputs; it imports the other libraries only when asked for their values."
    spec = importlib.util.spec_from_file_location("oracle_faithfulness", root / "benchmarks" / "oracle_faithfulness.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def ours(oracle): return oracle.our_values()


def same(got, expected, name): np.testing.assert_allclose(got, expected, rtol=3e-6, atol=CLOSE.get(name, 2e-6))


@pytest.mark.parametrize("name", QUANTUS)
def test_equal_to_quantus(ours, name): same(ours[name], QUANTUS[name], name)


@pytest.mark.parametrize("name", GRAD_CAM)
def test_equal_to_pytorch_grad_cam(ours, name): same(ours[name], GRAD_CAM[name], name)


@pytest.mark.parametrize("name", CAPTUM)
def test_equal_to_captum(oracle, ours, name):
    same(ours[name], CAPTUM[name], name)
    same(ours[name], oracle.captum_values()[name], name)


def test_values_are_telling(ours):
    "Three images, three answers each: a measure that gave one number to all would not pass for equal."
    for name, values in ours.items():
        if name != "average_increase": assert len(np.unique(np.round(values, 4), axis=0)) == 3, name


def test_the_pins_are_what_quantus_says(oracle):
    pytest.importorskip("quantus")
    quantus = oracle.Quantus()
    for name, value in quantus.values().items(): same(value, QUANTUS[name], name)
    different = quantus.different()
    same(different.pop("pixel_flipping, its mean"), QUANTUS_MEAN, "")
    assert different == {"channels and rows gone after one step of a constant map": [[[0], [0, 1, 2, 3, 4, 5]]] * 3, "ROAD on RGB": ["raises IndexError"],
                         "64 steps of RGB 64 x 64": ["raises AssertionError"], "area per image": ["raises AttributeError"]}


def test_the_pins_are_what_pytorch_grad_cam_says(oracle):
    pytest.importorskip("pytorch_grad_cam")
    for name, value in oracle.grad_cam_values().items(): same(value, GRAD_CAM[name], name)


# -- where they differ: the other's value explained by hand, and the value that is kept ----------------------------------------------------------

def test_quantus_takes_the_mean_of_what_is_left(oracle, ours):
    "Its mean is of all channels together and is taken anew before every step, so what stands in for a pixel depends on the pixels removed before."
    np.testing.assert_allclose(oracle.drifting_mean(), QUANTUS_MEAN, atol=2e-6)
    np.testing.assert_allclose(np.array(QUANTUS_MEAN)[:, 0], np.array(QUANTUS["pixel_flipping"])[:, 0], atol=2e-6)      # the first step's mean is the image's own
    assert np.abs(np.subtract(QUANTUS_MEAN, ours["pixel_flipping"])[:, 1:]).max() > .01


def test_quantus_removes_features_and_starts_with_one_channel(oracle):
    "A map of one channel is repeated for every channel: for a constant map its first step takes the top rows of red alone. Here a pixel goes whole, and from anywhere."
    model, x, constant = oracle.fixed_model(), oracle.fixed_images(), torch.full((3, 1, 12, 10), .5)
    rank = rank_pixels(constant, x)
    rows = (rank.view(3, 12, 10) < 20).any(2).sum(1)
    assert (rows >= 8).all() and not torch.equal(rank[0], rank[1])
    seen = []
    model.register_forward_pre_hook(lambda module, given: seen.append(given[0].clone()))
    removal_curve(model, x, oracle.fixed_targets(), rank, torch.full_like(x, 9), n_steps=6)
    gone = torch.cat(seen).view(7, 3, 3, 12, 10).transpose(0, 1) == 9
    assert (gone.any(2) == gone.all(2)).all() and gone[:, :, 0].sum((2, 3)).tolist() == [[0, 20, 40, 60, 80, 100, 120]] * 3


def test_quantus_never_puts_a_patch_back(oracle, ours):
    "Its infidelity averages over the first 1, 2, ... patches removed together, one nested in the next; the paper's perturbations are drawn apart."
    growing = oracle.growing_regions()
    assert growing[0].sum() == 4 and growing[-1].all() and (growing[1:] >= growing[:-1]).all()
    apart = growing.clone()
    apart[1:] &= ~growing[:-1]
    model, x, y = oracle.fixed_model(), oracle.fixed_images(), oracle.fixed_targets()
    logits = lambda images: model(images).gather(1, y[:, None])[:, 0]
    costs = torch.stack([logits(x) - logits(x * ~r) for r in apart], 1)
    said = torch.stack([(oracle.local_maps() * x * r).sum((1, 2, 3)) for r in apart], 1)
    kept = card.infidelity(model, x, y, oracle.local_maps() * x, square_effects=(apart, costs), scaled=False)
    torch.testing.assert_close(kept, (said - costs).square().mean(1))
    assert (kept < .2 * torch.tensor(QUANTUS["infidelity of growing regions"])).all()


def test_the_fill_is_exact_when_asked_to_be(oracle, ours):
    "The equation by hand, in float64 and dense: every missing pixel is the weighted mean of the neighbours inside the image."
    x, rank = oracle.fixed_images(), rank_pixels(oracle.fixed_maps(), oracle.fixed_images()).view(3, 1, 12, 10)
    for share in oracle.SHARES:
        missing = rank < round(share * 120)
        filled = [impute(x, missing, tolerance=t) for t in (1e-4, 1e-7)]
        for i in range(3):
            exact = by_hand(x[i].double().numpy(), missing[i, 0].numpy())
            contrast = exact.max() - exact.min()
            assert np.abs(filled[0][i].numpy() - exact).max() < 2e-3 * contrast and np.abs(filled[1][i].numpy() - exact).max() < 5e-6 * contrast


def by_hand(image, missing):
    "One row per missing pixel."
    height, width = missing.shape
    places, filled = np.argwhere(missing), image.copy()
    number = {tuple(p): i for i, p in enumerate(places.tolist())}
    matrix, right = np.zeros((len(places), len(places))), np.zeros((len(places), len(image)))
    for i, (r, c) in enumerate(places):
        for dr, dc in ((-1, -1), (-1, 0), (-1, 1), (0, -1), (0, 1), (1, -1), (1, 0), (1, 1)):
            place, weight = (r + dr, c + dc), 1 / 12 if dr and dc else 1 / 6
            if not (0 <= place[0] < height and 0 <= place[1] < width): continue
            matrix[i, i] += weight
            if place in number: matrix[i, number[place]] -= weight
            else: right[i] += weight * image[:, place[0], place[1]]
    filled[:, missing] = np.linalg.solve(matrix, right).T
    return filled
