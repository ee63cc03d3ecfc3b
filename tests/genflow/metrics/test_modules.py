"""TorchScript files as feature networks: what they are given, what is taken from them, what is refused."""

import json

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from genflow.errors import InputError
from genflow.metrics import create_extractor

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")


class Plain(nn.Module):
    """Means of the input's channels and of their squares."""

    def forward(self, x: Tensor) -> Tensor:
        x = x.float()
        return torch.cat([x.mean((2, 3)), x.square().mean((2, 3))], 1)


class Detector(nn.Module):
    """As NVIDIA's: levels of any size, features only when asked for."""

    def forward(self, x: Tensor, return_features: bool = False) -> Tensor:
        features = (x.float() - 128).div(128).mean((2, 3), keepdim=True)
        return features if return_features else features.flatten(1).softmax(1)


class Pair(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        features = x.float().mean((2, 3))
        return features, 10 * features


class Strict(nn.Module):
    """Fails on anything but one grey channel."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x).mean((2, 3))


class Odd(nn.Module):
    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"x": x}


def picture(height: int, width: int, channels: int = 3, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)


@pytest.fixture
def saved(tmp_path):
    def save(module: nn.Module, **beside: object):
        torch.manual_seed(0)
        path = tmp_path / "net.pt"
        torch.jit.script(module).save(str(path))
        if beside:
            path.with_suffix(".json").write_text(json.dumps(beside))
        return path

    return save


@pytest.mark.parametrize(
    ("kind", "scale"),
    [
        ("levels", lambda x: x),
        ("unit", lambda x: x / 255),
        ("symmetric", lambda x: x / 127.5 - 1),
        ("imagenet", lambda x: (x / 255 - torch.tensor([0.485, 0.456, 0.406])) / torch.tensor([0.229, 0.224, 0.225])),
    ],
)
@pytest.mark.parametrize("beside", [False, True])
def test_a_module_gets_what_it_is_declared_to_take(kind, scale, beside, saved):
    options = {"size": 6, "input": kind}
    path = saved(Plain(), **options) if beside else saved(Plain())
    extractor = create_extractor(path, options=None if beside else options, resize="none", batch_size=2)
    images = [picture(6, 6, seed=seed) for seed in range(3)]
    features = extractor(torch.stack([extractor.prepare(image) for image in images]))
    pixels = scale(torch.from_numpy(np.stack(images)).float())
    wanted = torch.cat([pixels.mean((1, 2)), pixels.square().mean((1, 2))], 1)
    assert torch.allclose(features.values, wanted, rtol=1e-4, atol=1e-5)
    assert extractor.dimensions == 6
    assert features.logits is None
    assert extractor.describe()["scaling"].startswith("levels" if kind == "levels" else "(x - ")


def test_by_default_images_are_resized_to_299_as_clean(saved):
    extractor = create_extractor(saved(Plain()))
    assert extractor.prepare(picture(20, 30)).shape == (3, 299, 299)
    assert extractor.describe()["resize"] == "clean"
    assert extractor.name == "net"


def test_a_detector_that_resizes_itself_is_asked_for_features(saved):
    path = saved(Detector())
    extractor = create_extractor(path, batch_size=2)
    images = [picture(20, 30, seed=seed) for seed in range(3)]
    prepared = torch.stack([extractor.prepare(image) for image in images])
    assert prepared.dtype == torch.uint8
    assert prepared.shape == (3, 3, 20, 30)
    wanted = (torch.from_numpy(np.stack(images)).float().mean((1, 2)) - 128) / 128
    assert torch.allclose(extractor(prepared).values, wanted, atol=1e-4)
    assert extractor.describe()["size"] is None
    clean = create_extractor(path, resize="clean")
    assert clean.prepare(images[0]).shape == (3, 299, 299)
    assert clean.sha256 == extractor.sha256


def test_a_pair_is_features_and_logits(saved):
    extractor = create_extractor(saved(Pair()), options={"size": 5}, batch_size=4)
    features = extractor(torch.stack([extractor.prepare(picture(9, 9, seed=seed)) for seed in range(3)]))
    assert torch.allclose(features.logits, 10 * features.values)
    assert torch.equal(features.predicted, features.values.argmax(1))


def test_the_code_counts_for_the_hash(saved):
    assert create_extractor(saved(Plain())).sha256 != create_extractor(saved(Pair())).sha256


def test_a_module_that_fails_is_told_what_it_was_given(saved):
    path = saved(Strict())
    with pytest.raises(InputError, match=r"fails on torch.float32 1x3x299x299 \(.*net\.json beside it") as caught:
        create_extractor(path)
    assert "\n" not in str(caught.value)
    right = create_extractor(path, options={"size": 8, "channels": 1, "input": "unit"})
    assert right(torch.stack([right.prepare(picture(9, 9))])).values.shape == (1, 4)
    with pytest.raises(InputError, match="returns neither features"):
        create_extractor(saved(Odd()))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sise": 3}, "options: unknown key 'sise' .did you mean 'size'"),
        ({"size": 0}, "options: size: got 0"),
        ({"size": "big"}, "options: size: got 'big'"),
        ({"input": "float"}, "options: input: 'float' is not known.*levels, unit, symmetric, imagenet"),
        ({"channels": 2}, "options: channels: got 2; allowed: 1, 3"),
    ],
)
def test_odd_options_are_refused(options, message, saved):
    with pytest.raises(InputError, match=message):
        create_extractor(saved(Plain()), options=options)


def test_other_files_are_named(saved, tmp_path):
    path = saved(Plain())
    path.with_suffix(".json").write_text("[1]")
    with pytest.raises(InputError, match=r"net\.json does not hold an object with size, input, channels"):
        create_extractor(path)
    path.with_suffix(".json").unlink()
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match="is no TorchScript file"):
        create_extractor(path)
    torch.save({"x": torch.zeros(1)}, tmp_path / "weights.pth")
    with pytest.raises(InputError, match="weights alone are given by weights="):
        create_extractor(tmp_path / "weights.pth")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"empty/config\.json does not exist"):
        create_extractor(tmp_path / "empty")
    with pytest.raises(InputError, match="is a folder; they are for TorchScript"):
        create_extractor(tmp_path / "empty", options={"size": 3})
