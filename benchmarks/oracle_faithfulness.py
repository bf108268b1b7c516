"""Measures that remove pixels beside Quantus, pytorch-grad-cam and captum: the values that tests/test_oracle.py pins.

    pip install --no-deps quantus==0.6.0 grad-cam==1.5.7 ttach opencv-python-headless --target FOLDER     (never into xaimed's own environment: for development only)
    PYTHONPATH=FOLDER python benchmarks/oracle_faithfulness.py [--pin]

Inputs and weights are formulas, so that every machine sees the same. Printed per measure: the oracle's value, xaimed's, and the largest difference; with --pin
the dictionaries of the test. A line marked with * differs by design; the tests say why.
"""
import argparse
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor, nn

from xaimed import scorecard as card
from xaimed.attribution import make_baseline
from xaimed.perturbation import imputed_curve, rank_pixels, removal_effects

STEPS, CELL, SHARES = 6, 2, (.1, .3, .5, .7, .9)     # 20 pixels a step; cells of 2 × 2 pixels; of 120 pixels every share is a whole number


def wave(shape: tuple[int, ...], phase: float) -> Tensor:
    "Numbers -1..1 by formula, without a random generator: sin of a growing stride."
    index = torch.arange(int(np.prod(shape)), dtype=torch.float64)
    return torch.sin(phase + 0.37 * index + 0.011 * index**2).float().view(shape)


def fixed_model() -> nn.Module:
    "A curved classifier with three classes, for images of 3 x 12 x 10."
    model = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.Softplus(), nn.Conv2d(6, 4, 3, stride=2, padding=1), nn.Tanh(), nn.Flatten(), nn.Linear(120, 3))
    with torch.no_grad():
        for i, p in enumerate(model.parameters()): p.copy_(wave(p.shape, 1. + i) * (.4 if p.ndim > 1 else .1))
    return model.eval().requires_grad_(False)


def fixed_images() -> Tensor:
    "Three images whose channels have mean 0, so that their mean is also the zero that some libraries fill with."
    x = wave((3, 3, 12, 10), 0.)
    return x - x.mean((2, 3), keepdim=True)


def fixed_targets() -> Tensor: return torch.tensor([0, 1, 2])


def fixed_maps() -> Tensor: return wave((3, 1, 12, 10), 7.) + .1


def pixel_regions() -> Tensor: return (wave((8, 120), 5.).argsort(1).argsort(1) < 30).view(8, 12, 10)     # 30 scattered pixels each


def square_regions() -> Tensor:
    "Eight squares with sides of 2 to 5 pixels."
    y, x = torch.arange(12).view(12, 1), torch.arange(10).view(1, 10)
    return torch.stack([(y >= k) & (y < k + 2 + k % 4) & (x >= 3 * k % 7) & (x < 3 * k % 7 + 2 + k % 4) for k in range(8)])


def growing_regions() -> Tensor:
    "The first 1, 2, ... 30 cells, row by row."
    cells = torch.arange(12).div(CELL, rounding_mode="floor").view(12, 1) * 5 + torch.arange(10).div(CELL, rounding_mode="floor").view(1, 10)
    return torch.stack([cells <= k for k in range(30)])


def local_maps() -> Tensor:
    "Relevance per unit of each channel, as a gradient is: Quantus's Infidelity multiplies it by what was taken away."
    return .05 * wave((3, 3, 12, 10), 9.)


def scaled_maps() -> Tensor:
    "The maps with their negative part cut off, 0..1, as pytorch-grad-cam's."
    return fixed_maps().clamp_min(0) / fixed_maps().amax((2, 3), keepdim=True)


def trapezoid(curve: np.ndarray) -> list: return ((curve[:, 1:] + curve[:, :-1]) / 2).mean(1).tolist()


class Quantus:
    "Quantus's metrics on the fixed inputs, with its own rescaling of maps switched off."
    def __init__(self):
        import quantus
        self.q, self.model, self.x, self.y, self.a = quantus, fixed_model(), fixed_images().numpy(), fixed_targets().numpy(), fixed_maps().numpy()

    def __call__(self, name, maps=None, softmax=True, x=None, model=None, **options):
        metric = getattr(self.q, name)(abs=False, normalise=False, disable_warnings=True, display_progressbar=False, **options)
        x, maps = self.x if x is None else x, self.a if maps is None else maps
        return np.asarray(metric(model=model or self.model, x_batch=x.copy(), y_batch=self.y.copy(), a_batch=maps.copy(), softmax=softmax), dtype=float)

    def replaced_by(self, kind):
        "A perturb_func that takes the values of a baseline image of xaimed's."
        other, rows = make_baseline(kind, fixed_images()).flatten(1).numpy(), np.arange(3)[:, None]
        def replace(arr, indices, **_):
            arr = arr.copy()
            arr[rows, indices] = other[rows, indices]
            return arr
        return replace

    def flipping(self, kind, sign=1):
        "f before and after each step, the first point added: Quantus leaves it out."
        before = fixed_model()(fixed_images()).softmax(1).gather(1, fixed_targets()[:, None]).numpy()
        return np.hstack([before, self("PixelFlipping", sign * self.a, features_in_step=3 * 120 // STEPS, perturb_func=self.replaced_by(kind))])

    def imputed(self, sign):
        "f of images filled in by Quantus's own solver, without noise; its ROAD itself raises on RGB images."
        order, filled = np.argsort(-sign * self.a[:, 0].reshape(3, -1), axis=1), []
        for share in SHARES: filled.append([self.q.noisy_linear_imputation(arr=x, indices=o[:round(share * 120)], noise=0.) for x, o in zip(self.x, order)])
        filled = torch.as_tensor(np.asarray(filled), dtype=torch.float32)
        return torch.stack([self.model(f).softmax(1).gather(1, fixed_targets()[:, None])[:, 0] for f in filled], 1).numpy()

    def correlation(self):
        "Its random subsets of features replaced by fixed regions, all channels of each pixel."
        subsets = [np.flatnonzero(np.repeat(r[None], 3, 0)) for r in pixel_regions().numpy()]
        draws = iter([s for s in subsets for _ in range(3)])
        with patch("numpy.random.choice", lambda *_, **__: next(draws)):
            return self("FaithfulnessCorrelation", softmax=False, nr_runs=8, subset_size=90, perturb_baseline=0., return_aggregate=False)

    def values(self) -> dict[str, list]:
        found = {"pixel_flipping": self("PixelFlipping", features_in_step=3 * 120 // STEPS, perturb_baseline=0.).tolist()}
        for kind in card.CURVE_BASELINES:
            morf, lerf = self.flipping(kind), self.flipping(kind, -1)
            found |= {f"deletion_{kind}": trapezoid(morf), f"insertion_{kind}": trapezoid(lerf[:, ::-1]), f"aopc_{kind}": (morf[:, :1] - morf).mean(1).tolist(),
                      f"flipping_area_{kind}": trapezoid(lerf - morf)}
        drops = self("RegionPerturbation", patch_size=CELL, perturb_func=self.replaced_by("blur"))
        return found | {"region_perturbation": (drops.sum(1) / (1 + drops.shape[1])).tolist(), "imputed, most relevant first": self.imputed(1).tolist(),
                        "imputed, least relevant first": self.imputed(-1).tolist(), "road": (self.imputed(-1) - self.imputed(1)).mean(1).tolist(),
                        "faithfulness_correlation": self.correlation().tolist(),
                        "infidelity of growing regions": self("Infidelity", local_maps().numpy(), softmax=False, perturb_patch_sizes=[CELL], n_perturb_samples=1,
                                                              perturb_baseline=0.).tolist()}

    def different(self) -> dict[str, list]:
        "Where it says something else than xaimed, which xaimed says on purpose."
        constant, seen = np.ones_like(self.a) * np.float32([.25, .5, .75])[:, None, None, None], []      # one constant for all is refused
        spy = nn.Sequential(nn.Identity(), self.model).eval()
        spy[0].register_forward_hook(lambda module, given, out: seen.append(given[0].clone()))
        found = {"pixel_flipping, its mean": self("PixelFlipping", features_in_step=3 * 120 // STEPS, perturb_baseline="mean").tolist()}
        self("PixelFlipping", constant, model=spy, features_in_step=3 * 120 // STEPS, perturb_baseline=9.)
        found["channels and rows gone after one step of a constant map"] = [[sorted(set(part.tolist())) for part in (x == 9).nonzero().T[:2]] for x in seen[0]]
        for title, call in (("ROAD on RGB", lambda: self("ROAD", percentages=[10, 50])), ("64 steps of RGB 64 x 64", self.wide),
                            ("area per image", lambda: self("PixelFlipping", features_in_step=60, return_auc_per_sample=True))):
            try: found[title] = [type(call()).__name__]
            except Exception as error: found[title] = [f"raises {type(error).__name__}"]
        return found

    def wide(self):
        model = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
        return self("PixelFlipping", np.arange(12288, dtype="float32").reshape(3, 1, 64, 64), x=np.ones((3, 3, 64, 64), "float32"), model=model, features_in_step=3 * 64)


def grad_cam_values() -> dict[str, list]:
    "pytorch-grad-cam's ROAD without noise, and its drop and increase."
    from pytorch_grad_cam.metrics.cam_mult_image import DropInConfidence, IncreaseInConfidence
    from pytorch_grad_cam.metrics.perturbation_confidence import PerturbationConfidenceMetric, RemoveLeastRelevantFirst, RemoveMostRelevantFirst
    from pytorch_grad_cam.metrics.road import NoisyLinearImputer
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputSoftmaxTarget
    model, x, targets = fixed_model(), fixed_images(), [ClassifierOutputSoftmaxTarget(int(t)) for t in fixed_targets()]
    def road(order): return np.stack([PerturbationConfidenceMetric(order(100 - 100 * s, NoisyLinearImputer(noise=0.)))(x, fixed_maps()[:, 0].numpy(), targets, model, return_diff=False)
                                      for s in SHARES], 1)
    cams, before = scaled_maps()[:, 0].numpy(), model(x).softmax(1).gather(1, fixed_targets()[:, None])[:, 0].numpy()
    return {"road": (road(RemoveLeastRelevantFirst) - road(RemoveMostRelevantFirst)).mean(1).tolist(),
            "average_drop": (DropInConfidence()(x, cams, targets, model) / before).tolist(),     # it gives the drop itself, the paper the share that is lost
            "average_increase": IncreaseInConfidence()(x, cams, targets, model).tolist()}


def captum_values() -> dict[str, list]:
    "captum's infidelity of the same removed squares, the map in its own units and scaled to fit best."
    from captum.metrics import infidelity
    found, x, regions = {}, fixed_images(), square_regions()
    for name, normalize in (("infidelity, unscaled", False), ("infidelity", True)):
        turn = iter(regions.repeat(2, 1, 1))
        def remove(images):
            taken = next(turn).expand_as(images)
            return taken.float(), torch.where(taken, make_baseline("blur", images), images)
        found[name] = infidelity(fixed_model(), remove, x, fixed_maps().expand_as(x) / 3, target=fixed_targets(), n_perturb_samples=len(regions),
                                 max_examples_per_batch=len(x), normalize=normalize).tolist()
    return found


def our_values() -> dict[str, list]:
    "xaimed's values under the same names."
    model, x, y, a, zero = fixed_model(), fixed_images(), fixed_targets(), fixed_maps(), torch.zeros(1)
    def call(name, maps=a, **options): return card.MEASURES[name].function(model, x, y, maps, **options).tolist()
    values = {"pixel_flipping": card.pixel_flipping(model, x, y, a, baseline=zero, n_steps=STEPS)[:, 1:].tolist()}
    for kind in card.CURVE_BASELINES: values |= {f"{name}_{kind}": call(f"{name}_{kind}", n_steps=STEPS) for name in ("deletion", "insertion", "aopc", "flipping_area")}
    rank, regions, squares, growing = rank_pixels(a, x), pixel_regions(), square_regions(), growing_regions()
    for title, order in (("most", rank), ("least", 119 - rank)):
        values[f"imputed, {title} relevant first"] = imputed_curve(model, x, y, order, shares=SHARES, noise=0.).tolist()
    with patch.object(card, "imputed_curve", lambda *args, **options: imputed_curve(*args, **options | {"noise": 0.})): values["road"] = call("road", shares=SHARES)
    def costs(taken, kind): return taken, removal_effects(model, x, y, taken, make_baseline(kind, x))
    return values | {"region_perturbation": call("region_perturbation", cells=5, n_steps=30), "average_drop": call("average_drop"), "average_increase": call("average_increase"),
                     "faithfulness_correlation": call("faithfulness_correlation", pixel_effects=costs(regions, zero)),
                     "infidelity of growing regions": call("infidelity", local_maps() * x, square_effects=costs(growing, zero), scaled=False),
                     "infidelity": call("infidelity", square_effects=costs(squares, "blur")),
                     "infidelity, unscaled": call("infidelity", square_effects=costs(squares, "blur"), scaled=False)}


def drifting_mean() -> list:
    "Quantus's mean by hand: of all channels, taken anew before each step from what the steps before have left."
    model, x, y, rank = fixed_model(), fixed_images(), fixed_targets(), rank_pixels(fixed_maps(), fixed_images()).view(3, 1, 12, 10)
    curve, now = [], x
    for step in range(STEPS):
        taken = (rank >= 20 * step) & (rank < 20 * (step + 1))
        now = torch.where(taken, now.mean((1, 2, 3), keepdim=True), now)
        curve.append(model(now).softmax(1).gather(1, y[:, None])[:, 0])
    return torch.stack(curve, 1).tolist()


DIFFERENT = ("channels and rows gone after one step of a constant map", "ROAD on RGB", "64 steps of RGB 64 x 64", "area per image")     # said in words


def rounded(values: dict) -> dict: return {k: np.round(v, 7).tolist() if k not in DIFFERENT else v for k, v in values.items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pin", action="store_true", help="print the dictionaries that the test holds")
    pin, ours = parser.parse_args().pin, our_values()
    for source, function in (("Quantus", lambda: Quantus().values()), ("pytorch-grad-cam", grad_cam_values), ("captum", captum_values)):
        try: theirs = function()
        except ModuleNotFoundError as error:
            print(f"{source} is not here ({error.name}): see the head of this script")
            continue
        if pin: print(f"{source}:", *(f"    {k!r}: {v}," for k, v in rounded(theirs).items()), sep="\n")
        else: print(source, *(f"  {k}: largest difference {np.abs(np.subtract(v, ours[k])).max():.2g} of {np.abs(v).max():.3g}" for k, v in theirs.items()), sep="\n")
        if source == "Quantus": print("* different by design:", *(f"    {k!r}: {v}," for k, v in rounded(Quantus().different()).items()), sep="\n")


if __name__ == "__main__": main()
