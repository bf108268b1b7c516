"The measures tell a map that knows from one that does not: a trained network, the same network with random weights, and maps without a model."
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from xaimed.attribution import METHODS, attribute
from xaimed.scorecard import chance_levels, flipping_area, pointing_game, road
from xaimed.synthetic import make_images
from xaimed.trust import auc, probabilities

SETTINGS = dict(size=56, distractors=4, distractor_contrast=1.4)      # distractors brighter than findings: neither the middle nor the strongest edge gives a finding away
FEW = dict(n_steps=16, n_samples=8, n_masks=64)                      # of the methods that sample: enough to point


def network():
    "Four convolutions and a mean: the last map has 14 × 14 cells."
    def block(a, b, stride): return [nn.Conv2d(a, b, 3, stride, 1, bias=False), nn.BatchNorm2d(b), nn.ReLU()]
    return nn.Sequential(*block(1, 24, 2), *block(24, 48, 1), *block(48, 96, 2), *block(96, 128, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, 4))


def seeded(seed):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return network().eval()


def trained(images, labels, epochs=10, batch=64):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = network()
        optimizer = torch.optim.AdamW(net.parameters(), lr=3e-3, weight_decay=.05)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=epochs * (len(images) // batch))
        for _ in range(epochs):
            for part in torch.randperm(len(images))[:len(images) // batch * batch].split(batch):
                x = torch.rot90(images[part], int(torch.randint(4, (1,))), (2, 3))
                F.cross_entropy(net(x.flip(-1) if torch.rand(1) < .5 else x), labels[part], label_smoothing=.05).backward()
                optimizer.step(); schedule.step(); optimizer.zero_grad()
    return net.eval()


@pytest.fixture(scope="module")
def case():
    train, test = make_images(1200, seed=0, **SETTINGS), make_images(200, seed=1, **SETTINGS)
    def tensor(made): return torch.from_numpy(made.images)[:, None].float() / 127.5 - 1
    model = trained(tensor(train), torch.from_numpy(train.labels[:, 0]).long())
    x, masks = tensor(test), torch.from_numpy(test.masks) > 0
    with torch.no_grad(): logits = model(x)
    return model, x, masks, auc(test.labels[:, 0], probabilities(logits.numpy(), "multi-class"), "multi-class")


def maps_of(name, model, x):
    own = {k: v for k, v in ({"layer": "11"} | FEW).items() if k in METHODS[name].options}
    with torch.no_grad(): target = model(x).argmax(1)
    return target, attribute(name, model, x, target, **own).map


def pointing(name, model, x, masks):
    target, maps = maps_of(name, model, x)
    return pointing_game(model, x, target, maps, masks=masks).mean().item()


def chance(masks): return chance_levels(masks, measures=["pointing_game"])["pointing_game"].mean().item()


def test_the_model_is_good(case): assert case[3] >= .98


def test_grad_cam_points_to_the_finding(case):
    model, x, masks, _ = case
    assert pointing("gradcam", model, x, masks) >= .90


@pytest.mark.parametrize("control", [m.name for m in METHODS.values() if m.control])
def test_controls_are_at_chance(case, control):
    model, x, masks, _ = case
    assert pointing(control, model, x, masks) <= chance(masks) + .1


@pytest.mark.parametrize("method", [m.name for m in METHODS.values() if not m.control])
def test_with_random_weights_every_method_falls_to_chance(case, method):
    _, x, masks, _ = case
    some = slice(0, 100)                                    # two draws of random weights, a hundred images each
    found = sum(pointing(method, seeded(seed), x[some], masks[some]) for seed in (1, 2)) / 2
    assert found <= chance(masks[some]) + .1


def test_faithfulness_tells_as_well(case):
    model, x, _, _ = case
    x = x[:32]
    def area(name):
        target, maps = maps_of(name, model, x)
        return [f(model, x, target, maps).mean().item() for f in (flipping_area, road)]
    ours, controls = area("gradcam"), [area(m.name) for m in METHODS.values() if m.control]
    for k in range(2): assert ours[k] > max(c[k] for c in controls)
