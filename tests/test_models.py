"Models: published weights without a network, state dicts that do not fit, hooks and modes, the stage's refusals."
import zipfile

import numpy as np
import pytest
import torch
import torchvision
from torch import nn

from xaimed import models
from xaimed.config import load_options, read_json, stage_state
from xaimed.data import build_transforms
from xaimed.models import (adapt_channels, build_model, cam_layer, cam_map_size, check_cam, fit_state_dict, input_size, list_models, load_state_dict,
                           register_backbone, resolve_weights, run_models, shrink_kernel, trace_shapes, transforms_for, weights_preset)


def published(name: str, seed: int = 7) -> dict:
    "A seeded state dict as torchvision would deliver it: three channels, 7x7, 1000 classes."
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return getattr(torchvision.models, name)().state_dict()


@pytest.fixture
def hub(monkeypatch):
    "Stand in for the download: the addresses that were asked for, and seeded weights."
    asked = []
    def get_state_dict(self, *args, **kwargs):
        asked.append(self.url)
        return published(type(self).__name__.removesuffix("_Weights").lower())
    monkeypatch.setattr(torchvision.models.WeightsEnum, "get_state_dict", get_state_dict)
    return asked


def options(tmp_path, **overrides):
    return load_options("", run="t", overrides={"artifacts_dir": str(tmp_path / "artifacts"), "data.data_dir": str(tmp_path), "device": "cpu",
                                                "synthetic.n_train": 24, "synthetic.n_val": 16, "synthetic.n_test": 16, **overrides})


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_pretrained_takes_default_and_replaces_the_head(hub, name):
    model, state = build_model(name, 5, pretrained=True), published(name)
    assert len(hub) == 1 and hub[0] == torchvision.models.get_model_weights(name).DEFAULT.url
    assert torch.equal(model.conv1.weight, state["conv1.weight"]) and model.conv1.stride == (2, 2)
    assert torch.equal(model.layer3[0].conv1.weight, state["layer3.0.conv1.weight"])
    assert model.fc.out_features == 5 and model.spec.stem == "imagenet" and model.spec.weights.endswith(("V1", "V2"))


def test_pretrained_kernel_for_gray_and_small_stem(hub):
    kernel = published("resnet18")["conv1.weight"]
    assert torch.equal(build_model("resnet18", 2, 1, pretrained=True).conv1.weight, kernel.mean(1, keepdim=True))
    four = build_model("resnet18", 2, 4, weights="DEFAULT").conv1.weight
    assert torch.allclose(four, torch.cat([kernel, kernel[:, :1]], 1) * 3 / 4)
    small = build_model("resnet18", 2, 3, pretrained=True, stem="small", image_size=28)
    assert torch.equal(small.conv1.weight, shrink_kernel(kernel, 3)) and small.conv1.stride == (1, 1)
    with torch.no_grad():  # away from the border a flat image gives the response that it gave through the 7x7 kernel
        flat = torch.ones(1, 3, 28, 28)
        assert torch.allclose(small.conv1(flat)[0, :, 14, 14], nn.functional.conv2d(flat, kernel, padding=3)[0, :, 14, 14], atol=1e-4)


def test_no_network_says_what_to_do(monkeypatch):
    def fails(self, *args, **kwargs): raise OSError("no route to host")
    monkeypatch.setattr(torchvision.models.WeightsEnum, "get_state_dict", fails)
    with pytest.raises(RuntimeError, match=r"no route to host.*download that file.*model\.weights"): build_model("resnet18", 2, pretrained=True)


def test_fetching_asks_for_tensors_only_and_the_checksum(monkeypatch):
    seen = {}
    monkeypatch.setattr(torchvision.models._api, "load_state_dict_from_url", lambda url, *a, **k: seen.update(k) or published("resnet18"))
    build_model("resnet18", 2, pretrained=True)
    assert seen["weights_only"] is True and seen["check_hash"] is True


@pytest.mark.parametrize("size", [28, 64])
def test_published_weights_bring_their_transforms(tmp_path, size):
    run = options(tmp_path, **{"model.pretrained": True, "data.size": size})
    image = torch.randint(0, 256, (3, 1, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    theirs = torchvision.models.ResNet18_Weights.DEFAULT.transforms()(image.expand(-1, 3, -1, -1))
    assert input_size(run) == 224 and torch.allclose(transforms_for(run)(image), theirs, atol=1e-5)
    small = transforms_for(options(tmp_path, **{"model.pretrained": True, "model.stem": "small", "data.size": size}))(image)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    assert torch.allclose(small, (image.expand(-1, 3, -1, -1) / 255 - mean) / std, atol=1e-5)


def test_a_local_file_under_its_published_name_keeps_its_transforms(tmp_path):
    torch.save(published("resnet18"), tmp_path / "resnet18-f37072fd.pth")
    torch.save(published("resnet18"), tmp_path / "mine.pth")
    assert weights_preset(options(tmp_path, **{"model.weights": str(tmp_path / "resnet18-f37072fd.pth")})).mean == [0.485, 0.456, 0.406]
    assert weights_preset(options(tmp_path, **{"model.weights": str(tmp_path / "mine.pth")})) is None


def test_state_dicts_that_do_not_fit_name_keys_and_shapes():
    state, model = published("resnet18"), build_model("resnet18", 2)
    with pytest.raises(ValueError, match=r"1 missing: layer1\.0\.conv1\.weight"): fit_state_dict(model, {k: v for k, v in state.items() if k != "layer1.0.conv1.weight"})
    with pytest.raises(ValueError, match=r"1 not in the model: extra"): fit_state_dict(model, {**state, "extra": torch.zeros(1)})
    with pytest.raises(ValueError, match=r"bn1\.weight is \(3,\), expected \(64,\)"): fit_state_dict(model, {**state, "bn1.weight": torch.zeros(3)})
    with pytest.raises(ValueError, match=r"conv1\.weight is \(64, 3, 3, 3\), expected \(64, 3, 7, 7\)"): fit_state_dict(model, {**state, "conv1.weight": torch.zeros(64, 3, 3, 3)})
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(ValueError): fit_state_dict(model, {**state, "bn1.weight": torch.zeros(3)})
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items()), "a refused state dict was half loaded"
    assert fit_state_dict(model, state) == ["fc.weight", "fc.bias"]


def test_a_pickle_runs_no_code(tmp_path):
    class Bomb:
        def __reduce__(self): return (tmp_path.joinpath("boom").touch, ())
    torch.save({"a": Bomb()}, tmp_path / "bomb.pt")
    with pytest.raises(ValueError, match="nothing in it was run"): build_model("resnet18", 2, weights=tmp_path / "bomb.pt")
    assert not (tmp_path / "boom").exists()


@pytest.mark.parametrize("legacy", [False, True])
def test_weights_are_read_in_both_forms_and_ask_for_no_memory(tmp_path, legacy):
    class Asks:
        def __reduce__(self): return bytearray, (10**8,)
    state = {"a": torch.arange(6.0), "at_the_seam": torch.zeros(1 << 18)}
    torch.save(state, tmp_path / "good.pt", _use_new_zipfile_serialization=not legacy)
    assert all(torch.equal(v, state[k]) for k, v in load_state_dict(tmp_path / "good.pt").items())
    torch.save({**state, "b": Asks()}, tmp_path / "asks.pt", _use_new_zipfile_serialization=not legacy)
    with pytest.raises(ValueError, match="asks.pt is not a file of tensors.*mentions bytearray.*expected a state dict"): load_state_dict(tmp_path / "asks.pt")


def test_weights_that_are_packed_or_damaged_are_refused(tmp_path):
    torch.save({"a": torch.arange(6.0)}, tmp_path / "good.pt")
    with zipfile.ZipFile(tmp_path / "good.pt") as good, zipfile.ZipFile(tmp_path / "packed.pt", "w", zipfile.ZIP_DEFLATED) as packed:
        for member in good.infolist(): packed.writestr(member.filename, good.read(member))
    content = bytearray((tmp_path / "good.pt").read_bytes())
    content[content.index(torch.arange(6.0).numpy().tobytes()) + 5] ^= 1
    (tmp_path / "turned.pt").write_bytes(content)
    (tmp_path / "start.pt").write_bytes(content[:300])
    for name, words in (("packed", "packed members"), ("turned", "a checksum does not fit"), ("start", "BadZipFile")):
        with pytest.raises(ValueError, match=f"{name}.pt is not a file of tensors \\(({words})"): load_state_dict(tmp_path / f"{name}.pt")


def test_a_word_is_found_across_the_blocks_of_a_file(tmp_path):
    for place in range((1 << 20) - 10, (1 << 20) + 1):
        (tmp_path / "x").write_bytes(b"-" * place + b"bytearray")
        assert models._mentions(tmp_path / "x", b"bytearray") and not models._mentions(tmp_path / "x", b"bytearrays")


@pytest.mark.parametrize("name", ["resnet10", "resnet18", "resnet34", "resnet50", "resnet101"])
def test_every_backbone_builds_and_names_its_cam_layer(name):
    model = build_model(name, 3, in_channels=1, image_size=64)
    assert isinstance(model.get_submodule(cam_layer(model)), nn.Module)
    assert cam_map_size(model, 64) == (8, 8) and trace_shapes(model, 64, [""])[""] == (1, 3)


@pytest.mark.parametrize("bad", [dict(name="resnet9", num_classes=2), dict(name="resnet18", num_classes=0), dict(name="resnet18", num_classes=2, in_channels=0),
                                 dict(name="resnet18", num_classes=2, stem="tiny"), dict(name="resnet18", num_classes=2, stem="imagenet", image_size=6)])
def test_bad_arguments(bad):
    with pytest.raises(ValueError): build_model(**bad)


@pytest.mark.parametrize("weights", ["IMAGENET", "ResNet34_Weights.DEFAULT", torchvision.models.ResNet34_Weights.DEFAULT])
def test_weights_of_another_model_or_none(weights):
    with pytest.raises(ValueError, match="IMAGENET1K_V1"): resolve_weights("resnet18", weights=weights)


def test_a_new_backbone_is_one_registration(monkeypatch):
    monkeypatch.setattr(models, "BACKBONES", dict(models.BACKBONES))
    @register_backbone("resnet26", cam_layer="layer4")
    def resnet26(): return torchvision.models.ResNet(torchvision.models.resnet.BasicBlock, [3, 3, 3, 3])
    assert "resnet26" in list_models() and check_cam(build_model("resnet26", 2, 1, image_size=28), 28) == (4, 4)
    with pytest.raises(ValueError, match="no published weights"): resolve_weights("resnet26", pretrained=True)
    with pytest.raises(ValueError, match="registered already"): register_backbone("resnet26", cam_layer="layer4")(resnet26)


def test_shapes_leave_nothing_behind_when_forward_raises():
    class Breaks(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 2, 3), nn.BatchNorm2d(2)
        def forward(self, x): raise RuntimeError(f"broken after {self.conv(x).shape}")
    model = Breaks().train()
    model.norm.eval()
    with pytest.raises(RuntimeError): trace_shapes(model, 8, ["conv"])
    assert not model.conv._forward_hooks and model.training and model.conv.training and not model.norm.training
    assert model.conv.weight.device.type == "cpu"


def test_channels_keep_the_response_to_gray():
    weight = torch.randn(4, 3, 3, 3, generator=torch.Generator().manual_seed(1))
    for channels in (2, 3, 4, 6, 9):
        if channels % 3 == 0: assert torch.allclose(adapt_channels(weight, channels).sum(1), weight.sum(1), atol=1e-5)
        assert adapt_channels(weight, channels).shape == (4, channels, 3, 3)
    with pytest.raises(ValueError, match="can only become smaller"): shrink_kernel(weight, 7)


def test_the_stage_writes_its_card_and_watches_local_weights(tmp_path, monkeypatch):
    torch.save(published("resnet18"), tmp_path / "mine.pth")
    run = options(tmp_path, **{"model.weights": str(tmp_path / "mine.pth")})
    folder = run_models(run)
    card = read_json(folder / "model.json")
    assert set(card) == {"name", "stem", "num_classes", "in_channels", "image_size", "pretrained", "weights", "parameters", "cam_layer", "cam_map_size", "layers", "normalise"}
    assert card["cam_map_size"] == [4, 4] and card["weights"] == "mine.pth" and "4×4" in (folder / "summary.txt").read_text()
    assert stage_state(run, "models")[0]
    torch.save(published("resnet18", seed=8), tmp_path / "mine.pth")
    assert stage_state(run, "models") == (False, "mine.pth changed")
    def edited_meanwhile(*given):
        torch.save(published("resnet18", seed=9), tmp_path / "mine.pth")
        return card_of(*given)
    card_of = models.model_card
    monkeypatch.setattr(models, "model_card", edited_meanwhile)
    run_models(run)
    assert stage_state(run, "models") == (False, "mine.pth changed")


def test_the_stage_refuses_a_map_of_one_cell_unless_nobody_wants_it(tmp_path):
    with pytest.raises(ValueError, match=r"1×1 at 28 pixels.*model\.stem"): run_models(options(tmp_path, **{"model.stem": "imagenet"}))
    folder = run_models(options(tmp_path, **{"model.stem": "imagenet", "explain.methods": ["integrated_gradients"]}))
    assert read_json(folder / "model.json")["cam_map_size"] == [1, 1]


def test_volumes_are_refused(tmp_path):
    rng = np.random.default_rng(0)
    arrays = {}
    for split in ("train", "val", "test"):
        arrays[f"{split}_images"], arrays[f"{split}_labels"] = rng.integers(0, 256, (6, 12, 12, 12), dtype=np.uint8), np.arange(6).reshape(-1, 1).astype(np.uint8) % 2
    np.savez(tmp_path / "volumes.npz", **arrays)
    with pytest.raises(ValueError, match="holds volumes.*choose a 2D data set"): run_models(options(tmp_path, **{"data.dataset": str(tmp_path / "volumes.npz"), "data.size": 12}))


def test_gray_stays_gray_when_asked(tmp_path):
    run = options(tmp_path, **{"data.as_rgb": False})
    assert read_json(run_models(run) / "model.json")["in_channels"] == 1
    assert transforms_for(run)(torch.zeros(2, 1, 28, 28, dtype=torch.uint8)).shape == (2, 1, 28, 28)
    colour = options(tmp_path, **{"data.as_rgb": False, "synthetic.channels": 3, "run": "colour"})
    assert read_json(run_models(colour) / "model.json")["in_channels"] == 3
    assert transforms_for(colour)(torch.zeros(2, 3, 28, 28, dtype=torch.uint8)).shape == (2, 3, 28, 28)


def test_the_transform_of_random_weights_is_half_and_half(tmp_path):
    x = torch.randint(0, 256, (2, 1, 28, 28), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(transforms_for(options(tmp_path))(x), build_transforms(28)(x))
