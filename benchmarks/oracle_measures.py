"""Measures without pixel removal beside Quantus and captum: the values that tests/test_scorecard_measures.py pins.

    pip install --no-deps quantus==0.6.0 opencv-python-headless --target FOLDER      (never into xaimed's own environment: LGPL, for development only)
    PYTHONPATH=FOLDER python benchmarks/oracle_measures.py

Inputs, weights and noise are formulas, so that every machine sees the same. Printed per measure: Quantus's value, xaimed's, and the largest
difference. A line marked with * differs by design; the page and the tests say why.
"""
import numpy as np
import torch
from torch import Tensor, nn

from xaimed import scorecard as card


def wave(shape: tuple[int, ...], phase: float) -> Tensor:
    "Numbers -1..1 by formula, without a random generator: sin of a growing stride."
    index = torch.arange(int(np.prod(shape)), dtype=torch.float64)
    return torch.sin(phase + 0.37 * index + 0.011 * index**2).float().view(shape)


class WaveConv(nn.Conv2d):
    "A convolution whose trained and whose fresh weights are formulas."
    def __init__(self, *args, phase: float, **kwargs):
        super().__init__(*args, **kwargs)
        with torch.no_grad(): self.weight.copy_(wave(self.weight.shape, phase)); self.bias.copy_(.1 * wave(self.bias.shape, phase))

    def reset_parameters(self):
        with torch.no_grad(): self.weight.copy_(wave(self.weight.shape, 40.)); self.bias.zero_()


class WaveLinear(nn.Linear):
    "A linear layer whose trained and whose fresh weights are formulas."
    def __init__(self, *args, phase: float, **kwargs):
        super().__init__(*args, **kwargs)
        with torch.no_grad(): self.weight.copy_(wave(self.weight.shape, phase)); self.bias.zero_()

    def reset_parameters(self):
        with torch.no_grad(): self.weight.copy_(wave(self.weight.shape, 50.)); self.bias.zero_()


def fixed_model() -> nn.Module:
    "A curved classifier with two classes, for images of 1 x 9 x 8."
    return nn.Sequential(WaveConv(1, 4, 3, padding=1, phase=1.), nn.Softplus(), WaveConv(4, 3, 3, padding=1, phase=2.), nn.Tanh(),
                         nn.AdaptiveAvgPool2d(3), nn.Flatten(), WaveLinear(27, 2, phase=3.)).eval()


def fixed_images() -> Tensor: return wave((3, 1, 9, 8), 0.)


def fixed_targets() -> Tensor: return torch.tensor([0, 1, 1])


def fixed_maps() -> Tensor: return wave((3, 1, 9, 8), 7.) + .2


def fixed_masks() -> Tensor:
    "Three findings: a square, an L, a block at the border; bool (3, 9, 8)."
    masks = torch.zeros(3, 9, 8, dtype=torch.bool)
    masks[0, 2:6, 3:7] = masks[1, 1:8, 2:4] = masks[1, 7, 2:6] = masks[2, 0:6, 4:8] = True
    return masks


def fixed_noise(step: int) -> Tensor: return .02 * wave((3, 1, 9, 8), 10. + step)


def gradient(model: nn.Module, x: Tensor, target: Tensor) -> Tensor:
    "The plain gradient of the target's logit."
    with torch.enable_grad():
        x = x.detach().clone().requires_grad_()
        return torch.autograd.grad(model(x).gather(1, target[:, None]).sum(), x)[0]


def gradient_numpy(model, inputs, targets, **_) -> np.ndarray:
    "The same for Quantus."
    return gradient(model, torch.as_tensor(inputs, dtype=torch.float32), torch.as_tensor(targets)).numpy()


class FixedNoise:
    "Perturbations by formula, one after the other, in the form that Quantus and captum ask for."
    def __init__(self): self.step = 0

    def __call__(self, arr=None, indices=None, **_):
        noise = fixed_noise(self.step)
        self.step += 1
        return arr + (noise if isinstance(arr, Tensor) else noise.numpy().reshape(arr.shape))


def quantus_values() -> dict[str, list]:
    "What Quantus 0.6.0 says about the fixed inputs, with its own rescaling of maps switched off."
    import quantus
    raw = dict(abs=False, normalise=False, disable_warnings=True, display_progressbar=False)
    model, x, y = fixed_model(), fixed_images().numpy(), fixed_targets().numpy()
    a, s = fixed_maps().numpy(), fixed_masks().numpy()[:, None]
    def call(metric, maps=a, masks=s, **more):
        return np.asarray(metric(model=model, x_batch=x.copy(), y_batch=y.copy(), a_batch=maps.copy(), s_batch=masks.copy(), **more), dtype=float).tolist()
    grad = dict(explain_func=gradient_numpy)
    own = gradient_numpy(model, x, y)
    positive = np.abs(a)
    constant = np.ones_like(a) * np.float32([.25, .5, .75])[:, None, None, None]       # one constant for all is refused, one for each is not
    none = s.copy()
    none[1] = False
    mprt = quantus.MPRT(layer_order="top_down", **raw)(model=model, x_batch=x, y_batch=y, a_batch=np.abs(own), explain_func=lambda **k: np.abs(gradient_numpy(**k)))
    up = quantus.MPRT(layer_order="bottom_up", **raw)(model=model, x_batch=x, y_batch=y, a_batch=np.abs(own), explain_func=lambda **k: np.abs(gradient_numpy(**k)))
    mean = quantus.MPRT(layer_order="top_down", return_average_correlation=True, **raw)(
        model=model, x_batch=x, y_batch=y, a_batch=np.abs(own), explain_func=lambda **k: np.abs(gradient_numpy(**k)))
    spearman = quantus.similarity_func.correlation_spearman
    return {
        "entropy": call(quantus.Complexity(**raw), positive),
        "sparseness": call(quantus.Sparseness(**raw), positive),
        "sparseness of a small map": call(quantus.Sparseness(**raw), positive * np.float32(1e-6)),
        "pointing_game": call(quantus.PointingGame(**raw)),
        "pointing_game of a constant map": call(quantus.PointingGame(**raw), constant),
        "pointing_game, one mask empty": call(quantus.PointingGame(**raw), a, none),
        "relevance_mass": call(quantus.RelevanceMassAccuracy(**raw)),
        "relevance_mass of positive maps": call(quantus.RelevanceMassAccuracy(**raw), positive),
        "relevance_rank": call(quantus.RelevanceRankAccuracy(**raw)),
        "top-7 intersection": call(quantus.TopKIntersection(k=7, **raw)),
        "max_sensitivity": call(quantus.MaxSensitivity(nr_samples=4, perturb_func=FixedNoise(), **raw), own, **grad),
        "average_sensitivity": call(quantus.AvgSensitivity(nr_samples=4, perturb_func=FixedNoise(), **raw), own, **grad),
        "mprt stages top-down": [mprt[k] for k in mprt if k != "original"],
        "mprt stages bottom-up": [up[k] for k in up if k != "original"],
        "mprt_top_down": list(mean),
        "efficient_mprt": call(quantus.EfficientMPRT(**raw), own, masks=s, **grad),
        "random_logit": call(quantus.RandomLogit(num_classes=2, similarity_func=lambda a, b, **_: spearman(a.reshape(len(a), -1), b.reshape(len(b), -1), batched=True), **raw), own, **grad),
        "ssim": [float(quantus.similarity_func.ssim(p, q)) for p, q in zip(*_for_ssim())],
    }


def _for_ssim():
    "Two stacks of maps 0..1 with both ends present, so that Quantus's data range is 1."
    pair = [np.abs(m[:, 0]) / np.abs(m[:, 0]).max((1, 2), keepdims=True) for m in (fixed_maps().numpy(), wave((3, 1, 9, 8), 21.).numpy())]
    for m in pair: m[:, 0, 0] = 0
    return pair


def captum_values() -> dict[str, list]:
    "captum's sensitivity_max for the same noise."
    from captum.metrics import sensitivity_max
    noise, model = FixedNoise(), fixed_model()
    def explain(x, target):       # given a tuple, it must return a tuple: a bare tensor would be taken apart image by image
        return (gradient(model, x[0], target),) if isinstance(x, tuple) else gradient(model, x, target)
    return {"max_sensitivity": sensitivity_max(explain, fixed_images(), perturb_func=lambda x: noise(arr=x), n_perturb_samples=4, max_examples_per_batch=3,
                                               target=fixed_targets()).tolist()}


def our_values() -> dict[str, list]:
    "xaimed's values under the same names."
    model, x, y = fixed_model(), fixed_images(), fixed_targets()
    a, s = fixed_maps(), fixed_masks()
    own = gradient(model, x, y)
    moved = torch.stack([gradient(model, x + fixed_noise(i), y)[:, 0] for i in range(4)])
    stages = card.randomised_maps(model, x, y, gradient)
    none = s.clone()
    none[1] = False
    def call(name, maps=a, **options): return card.MEASURES[name].function(model, x, y, maps, **options).tolist()
    def each(order): return [card.spearman(own[:, 0].abs(), m.abs()).tolist() for m in stages[order].values()]
    values = {name: call(name, a.abs()) for name in ("entropy", "sparseness")}
    values["sparseness of a small map"] = call("sparseness", a.abs() * 1e-6)
    values |= {"pointing_game": call("pointing_game", masks=s, tolerance=0.), "pointing_game of a constant map": call("pointing_game", torch.ones_like(a), masks=s, tolerance=0.),
               "pointing_game, one mask empty": call("pointing_game", masks=none, tolerance=0.),
               "relevance_mass": call("relevance_mass", masks=s), "relevance_mass of positive maps": call("relevance_mass", a.abs(), masks=s),
               "relevance_rank": call("relevance_rank", masks=s)}
    iou, size = np.asarray(call("top_k_iou", masks=s, k=7 / 72)), s.flatten(1).sum(1).numpy()
    values["top-7 intersection"] = (iou * (7 + size) / (1 + iou) / 7).tolist()       # h of k, solved from h / (k + m - h)
    values |= {name: call(name, own, moved=moved) for name in ("max_sensitivity", "average_sensitivity")}
    values |= {"mprt stages top-down": each("top_down"), "mprt stages bottom-up": each("bottom_up"), "mprt_top_down": call("mprt_top_down", own, stages=stages),
               "efficient_mprt": call("efficient_mprt", own, stages=stages), "random_logit": call("random_logit", own, explain=gradient)}
    values["ssim"] = card.ssim(*(torch.as_tensor(m) for m in _for_ssim())).tolist()
    return values


DIFFER = ("sparseness of a small map", "pointing_game of a constant map", "pointing_game, one mask empty", "relevance_mass", "mprt_top_down")


def main():
    np.set_printoptions(precision=7, suppress=True)
    ours = our_values()
    for source, theirs in (("Quantus", quantus_values()), ("captum", captum_values())):
        for name, value in theirs.items():
            far = np.abs(np.asarray(value) - np.asarray(ours[name])).max()
            print(f"{'*' if name in DIFFER else ' '} {name}: largest difference {far:.2g}\n    {source:7s} {np.round(value, 7).tolist()}\n    xaimed  {np.round(ours[name], 7).tolist()}")


if __name__ == "__main__": main()
