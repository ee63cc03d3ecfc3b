"""Feature networks by name: what they take, what they say of themselves, what they refuse."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save_file

from genflow import precision
from genflow.errors import InputError
from genflow.metrics import (
    ClassifierConfig,
    Extractor,
    FeatureExtractor,
    ImageClassifier,
    create_extractor,
    load_classifier,
    save_classifier,
)
from genflow.metrics.extractors import INCEPTION_FILES
from genflow.metrics.features import NetworkExtractor, Scaling, resolve_dtype
from genflow.metrics.inception import random_inception, save_inception
from genflow.metrics.resize import Preparation


def picture(height: int, width: int, channels: int = 3, seed: int = 0) -> np.ndarray:
    """Smooth, so that resizing it is not mostly aliasing."""
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 4, channels), dtype=np.uint8)
    planes = [np.asarray(Image.fromarray(coarse[:, :, c]).resize((width, height), 3)) for c in range(channels)]
    return np.stack(planes, axis=2)


@pytest.fixture(autouse=True)
def _nothing_found(tmp_path, monkeypatch):
    """No weights of the machine's own are seen."""
    monkeypatch.setenv("GENFLOW_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.delenv("GENFLOW_WEIGHTS", raising=False)


@pytest.fixture(scope="module")
def inception_file(tmp_path_factory):
    file = tmp_path_factory.mktemp("inception") / INCEPTION_FILES[0]
    save_inception(random_inception(0), file)
    return file


@pytest.fixture(scope="module")
def small() -> FeatureExtractor:
    """A classifier of 8x8 grey images that resizes."""
    torch.manual_seed(0)
    network = ImageClassifier(ClassifierConfig(sample_size=8, num_classes=3, stages=((8, 1), (12, 1))))
    return FeatureExtractor(network, "small", batch_size=4, resize="clean")


def stack(extractor: Extractor, *images: np.ndarray) -> torch.Tensor:
    return torch.stack([extractor.prepare(image) for image in images])


def test_inception_end_to_end_in_every_mode(inception_file):
    images = [picture(20, 34, 1), picture(299, 299, seed=2)]
    found = {}
    for mode in ("legacy", "clean", "legacy-pytorch"):
        extractor = create_extractor("inception", weights=inception_file, resize=mode, batch_size=2)
        features = extractor(stack(extractor, *images))
        assert features.values.shape == (2, 2048)
        assert features.logits.shape == (2, 1008)
        assert torch.equal(features.predicted, features.logits.argmax(1))
        assert extractor.describe() == {
            "features": "inception",
            "features_sha256": extractor.sha256,
            "dimensions": 2048,
            "resize": mode,
            "size": 299,
            "channels": 3,
            "scaling": "(x - 127.5) / 127.5" if mode == "legacy-pytorch" else "(x - 128) / 128",
            "dtype": "float32",
        }
        json.dumps(extractor.describe())
        found[mode] = features.values
    assert (found["legacy"] - found["clean"])[0].abs().max() > 1e-3
    # by hand: the network on (x - 128) / 128, and at the right size resizing changes nothing
    network = random_inception(0)
    with torch.no_grad():
        by_hand = network((torch.from_numpy(images[1]).permute(2, 0, 1)[None].float() - 128) / 128)
    for mode in ("legacy", "clean"):
        assert torch.allclose(found[mode][1], by_hand[0][0], rtol=1e-4, atol=1e-5)
    assert torch.allclose(features.logits[1], by_hand[1][0], rtol=0.1, atol=0.05)  # 127.5 for 128: near, not equal
    assert extractor.published is False


def test_inception_takes_a_stack_of_one_size_too(inception_file):
    extractor = create_extractor("inception:64", weights=inception_file, batch_size=2)
    images = [picture(20, 34, seed=seed) for seed in range(3)]
    raw = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)
    assert torch.allclose(extractor(raw).values, extractor(stack(extractor, *images)).values, atol=1e-5)
    assert extractor(raw).logits is None
    assert extractor.describe()["features"] == "inception:64"
    assert extractor.dimensions == 64
    clean = create_extractor("inception:64", weights=inception_file, resize="clean", batch_size=1)
    with pytest.raises(InputError, match=r"images: got 34x20; inception:64 takes 299x299: prepare\(\)"):
        clean(raw)
    exact = create_extractor("inception:64", weights=inception_file, resize="none")
    with pytest.raises(InputError, match="image: got 34x20; inception:64 takes 299x299"):
        exact.prepare(images[0])


def test_inception_is_found_where_it_is_put_and_known_by_its_bytes(inception_file, tmp_path, monkeypatch):
    with pytest.raises(InputError) as caught:
        create_extractor("inception")
    text = str(caught.value)
    assert all(part in text for part in (*INCEPTION_FILES[:2], str(tmp_path / "cache"), "$GENFLOW_WEIGHTS", "weights="))
    assert "\n" not in text

    home = tmp_path / "cache"
    home.mkdir()
    converted = {k: v.contiguous() for k, v in random_inception(0).state_dict().items()}
    save_file(converted, home / INCEPTION_FILES[2])
    found = create_extractor("inception:64")
    assert found.sha256 == create_extractor("inception:64", weights=inception_file).sha256

    monkeypatch.setattr("genflow.metrics.extractors.file_hash", lambda path: "6726825d" + 56 * "0")
    assert create_extractor("inception:64").published is True

    (home / INCEPTION_FILES[0]).write_bytes(inception_file.read_bytes()[:1000])
    with pytest.raises(InputError, match=rf"{INCEPTION_FILES[0]} is damaged"):
        create_extractor("inception")
    torch.save({"conv.weight": torch.zeros(1)}, home / INCEPTION_FILES[0])
    with pytest.raises(InputError, match=r"has no 'Conv2d_1a_3x3\.conv\.weight'"):
        create_extractor("inception")


def test_the_shipped_classifier():
    extractor = create_extractor("fashion-mnist", batch_size=4)
    assert extractor.dimensions == 128
    assert extractor.class_names[0] == "t-shirt"
    assert extractor.describe()["resize"] == "none"
    colour = picture(28, 28)
    grey = np.asarray(Image.fromarray(colour).convert("L"))[:, :, None]
    features = extractor(stack(extractor, colour, grey))
    assert torch.equal(features.values[0], features.values[1])
    assert torch.equal(features.predicted, features.logits.argmax(1))
    with pytest.raises(InputError, match="image: got 20x30; fashion-mnist-classifier takes 28x28"):
        extractor.prepare(picture(30, 20))
    resizing = create_extractor("fashion-mnist", resize="clean", batch_size=1)
    assert resizing.sha256 == extractor.sha256
    assert resizing(stack(resizing, picture(30, 20))).values.shape == (1, 128)


def test_a_folder_of_ones_own_classifier(small, tmp_path):
    save_classifier(small.network, tmp_path / "mine")
    extractor = create_extractor(tmp_path / "mine")
    x = torch.randint(0, 256, (5, 1, 8, 8), dtype=torch.uint8)
    wanted = FeatureExtractor(load_classifier(tmp_path / "mine"), "mine", batch_size=5)(x)
    assert torch.allclose(extractor(x).values, wanted.values, atol=1e-6)
    assert extractor.name == "mine"
    with pytest.raises(InputError, match="weights: .*mine brings its own"):
        create_extractor(tmp_path / "mine", weights=tmp_path)
    (tmp_path / "mine" / "model.safetensors").unlink()
    with pytest.raises(InputError, match=r"model\.safetensors does not exist"):
        create_extractor(tmp_path / "mine")


@settings(max_examples=30)
@given(st.lists(st.integers(0, 10**6), min_size=1, max_size=13), st.integers(1, 9))
def test_features_depend_neither_on_batch_size_nor_on_company(small, seeds, batch_size):
    """Whatever comes with an image, in whatever batches: its features are those that it has alone."""
    extractor = FeatureExtractor(small.network, "small", batch_size=batch_size, resize="clean")
    images = [picture(5 + seed % 7, 9, 1, seed) for seed in seeds]
    whole = extractor(stack(extractor, *images))
    assert whole.values.shape == (len(seeds), 12)
    place = len(seeds) // 2
    alone = small(stack(small, images[place]))
    assert torch.allclose(whole.values[place], alone.values[0], atol=1e-5)
    assert torch.allclose(whole.logits[place], alone.logits[0], atol=1e-5)
    same = extractor(stack(extractor, *images[::-1]))
    assert torch.allclose(same.values.flip(0), whole.values, atol=1e-5)


def test_every_batch_has_one_size(small):
    seen = []

    def forward(images: torch.Tensor) -> tuple[torch.Tensor, None]:
        seen.append(len(images))
        return images.flatten(1).mean(1, keepdim=True), None

    extractor = NetworkExtractor(
        torch.nn.Identity(),
        "mean",
        forward=forward,
        prepare=Preparation("mean", "none", None, 1),
        scaling=Scaling((1.0,), (2.0,)),
        dimensions=1,
        batch_size=4,
    )
    images = torch.arange(10, dtype=torch.uint8).view(10, 1, 1, 1).expand(10, 1, 3, 5)
    features = extractor(images)
    assert seen == [4, 4, 4]
    assert torch.equal(features.values[:, 0], (torch.arange(10.0) - 1) / 2)
    assert features.logits is features.predicted is None
    assert extractor(images[:0]).values.shape == (0, 1)
    assert images[9, 0, 0, 0] == 9  # scaling is not done in the caller's images


def test_scaling_by_channel():
    scaling = Scaling.by_mean_and_std((0.0, 0.5, 1.0), (1.0, 0.5, 0.25))
    white = scaling(torch.full((1, 3, 2, 2), 255, dtype=torch.uint8))
    assert torch.allclose(white[0, :, 0, 0], torch.tensor([1.0, 1.0, 0.0]))
    assert str(scaling) == "(x - [0, 127.5, 255]) / [255, 127.5, 63.75]"
    levels = torch.full((1, 3, 2, 2), 255.0)
    assert torch.allclose(scaling(levels), white)
    assert levels.min() == 255


def test_bfloat16_is_near_and_recorded(small):
    images = [picture(9, 9, 1, seed) for seed in range(6)]
    half = FeatureExtractor(small.network, "small", batch_size=6, resize="clean", dtype="bfloat16")
    exact, near = small(stack(small, *images)).values, half(stack(half, *images)).values
    assert near.dtype == torch.float32
    assert not torch.equal(near, exact)
    assert (near - exact).norm() < 0.02 * exact.norm()
    assert half.describe() == {**small.describe(), "dtype": "bfloat16"}


@pytest.mark.parametrize(("found", "dtype"), [("bf16", "bfloat16"), ("fp32", "float32"), ("fp16", "float32")])
def test_auto_is_what_the_probe_finds(found, dtype, monkeypatch):
    monkeypatch.setattr(precision, "probe", lambda device: precision.Precision(found, f"on {device}"))
    assert resolve_dtype("auto", "cpu") == dtype
    assert resolve_dtype("float32", "cpu") == "float32"


def test_float32_is_whole_inside_and_the_callers_afterwards():
    parts = torch.backends.cudnn.conv, torch.backends.cuda.matmul
    before = [part.fp32_precision for part in parts]
    with precision.whole_float32():
        assert [part.fp32_precision for part in parts] == ["ieee", "ieee"]
    assert [part.fp32_precision for part in parts] == before
    with pytest.raises(KeyError), precision.whole_float32():
        raise KeyError
    assert [part.fp32_precision for part in parts] == before


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("inceptoin", {}, r"features: 'inceptoin' is neither a path .* \(did you mean 'inception'\?\)"),
        ("nowhere/net.pt", {}, "features: 'nowhere/net.pt' is neither a path here nor one of inception, dinov2, clip"),
        ("inception:65", {}, "the layer of inception: '65' is not known.*allowed: 64, 192, 768, 2048, spatial"),
        ("fashion-mnist:2", {}, "fashion-mnist has no variants; got '2'"),
        ("dinov2:huge", {}, "the variant of dinov2: 'huge' is not known.*large"),
        ("fashion-mnist", {"resize": "cleen"}, "resize: 'cleen' is not known .did you mean 'clean'"),
        ("fashion-mnist", {"dtype": "float16"}, "dtype: 'float16' is not known"),
        ("fashion-mnist", {"batch_size": 0}, "batch_size: got 0"),
        ("fashion-mnist", {"device": "gpu"}, "device: 'gpu' is not known; allowed: cpu, cuda"),
        ("fashion-mnist", {"options": {"size": 3}}, "options: fashion-mnist takes none"),
        ("fashion-mnist", {"weights": "nowhere"}, "nowhere.* does not exist"),
        ("inception", {"weights": "nowhere"}, "weights: 'nowhere' does not exist"),
    ],
)
def test_what_is_not_known_is_named(name, options, message):
    with pytest.raises(InputError, match=message) as caught:
        create_extractor(name, **options)
    assert "\n" not in str(caught.value)
